"""A peer's network in a plain PyTorch loop, on the data, split, size, batch and number of steps of `ubend fit`.

    python benchmarks/zoo_peer.py smp|tutornet FILE -- FOLDER [words of `ubend fit`]

`smp` is segmentation_models.pytorch's U-Net on tf_efficientnet_lite0, with the ImageNet weights that ubend takes;
`tutornet` is the tutorial's U-Net. The data are read, split and resized as `ubend fit` with these words would; what it
chooses for the training beyond size, window, batch, steps and precision is not used. The loop is one that a
practitioner would write: AdamW, warm-up and cosine, cross entropy + Dice, flips, turns, scale and colour; no average of
the weights, and windows lie anywhere. At 20 evenly spaced steps the network is scored on the validation split, and the
best weights are kept. Scores are those of `ubend evaluate`: tiles or whole images as ubend's plan has it, native size.
FILE gets JSON: the scores of the validation and test splits and what belongs beside them.
"""

import argparse
import copy
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutorial import TutorialUNet
from ubend.cli.training import fit
from ubend.core.autoconfig import resolve
from ubend.core.device import describe_device, pick_device, prepare_process, set_up
from ubend.core.plan import Plan
from ubend.core.progress import Reporter
from ubend.core.settings import Settings, parse_assignment
from ubend.dataset.dataset import Dataset
from ubend.dataset.prepare import prepare
from ubend.dataset.sources import ItemSource
from ubend.dataset.store import read_class_map
from ubend.evaluation.scores import DecodedImage, evaluate_pairs
from ubend.inference.predictor import Predictor
from ubend.labels.class_table import IGNORED
from ubend.layouts.pairs import Pair, SplitName
from ubend.models.efficientnet_lite import read_weights
from ubend.models.segmentation_net import SegmentationNet, pad_to_multiple
from ubend.tasks.fit import scan
from ubend.tasks.user_settings import read_user_settings
from ubend.training.build import build
from ubend.training.training import autocast

PEERS = ("smp", "tutornet")
ENCODER = "tf_efficientnet_lite0"
RATE, ENCODER_RATE, WEIGHT_DECAY, WARM_UP = 1e-3, 3e-4, 1e-2, 0.05  # warm-up: share of the steps
SCALE, SHIFT, CONTRAST, BRIGHTNESS, SATURATION = 0.25, 0.1, 0.25, 0.15, 0.3  # half-widths of uniform draws
CHECKS = 20  # of the validation split


class PeerNet(SegmentationNet):
    """A peer's network: (N, C, H, W) raw values -> (N, classes, H, W) logits; it is given normalised, padded images.

    Attributes:
        encoder: the part that begins with pretrained weights; None: none does.
    """

    def __init__(self, name: str, channels: int, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(channels, classes, 64, 5 if name == "smp" else 4, None, "transposed", mean, std)
        self.encoder: nn.Module | None = None
        if name == "smp":
            import segmentation_models_pytorch as smp

            self.network: nn.Module = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, in_channels=3, classes=classes)
            self.encoder = self.network.encoder
            self.network.encoder.model.load_state_dict(read_weights(ENCODER))
        else:
            self.network = TutorialUNet(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        logits: Tensor = self.network(pad_to_multiple((image - self.mean) / self.std, self.input_multiple))
        return logits[..., :height, :width]

    def encoder_parameters(self) -> list[nn.Parameter]:
        return [] if self.encoder is None else list(self.encoder.parameters())


def is_here(name: str) -> bool:
    """Whether what a peer needs is installed."""
    return name != "smp" or find_spec("segmentation_models_pytorch") is not None


def read_words(words: Sequence[str]) -> Settings:
    """The settings that a command line of `ubend fit` stands for."""
    given: dict[str, Any] = fit.make_context("fit", list(words)).params
    for name in ("out", "show", "watch", "resumed", "gpus"):
        given.pop(name)
    changes = dict(parse_assignment(text) for text in given.pop("assignments"))
    return read_user_settings(given.pop("folder"), given.pop("recipe"), given.pop("config"), changes, given).settings


class Augmented:
    """Training batches, warped on the device; shapes as in `ubend.dataset.batches.Batch`.

    Args:
        source: the training split.
        plan: batch, seed, orientation, and whether windows are learned.
        window_hw: (H, W) of a training image.
        white: the greatest value of the images.
    """

    def __init__(self, source: ItemSource, plan: Plan, window_hw: tuple[int, int], white: float) -> None:
        self._plan, self._window_hw, self._white, self._device = plan, window_hw, white, source.device
        self._images = [torch.from_numpy(source.image(n).copy()).to(source.device) for n in range(len(source))]
        self._masks = [torch.from_numpy(source.mask(n).copy()).to(source.device) for n in range(len(source))]
        self._shown = np.repeat(np.arange(len(source)), source.repeats)
        self._generator = np.random.default_rng(plan.train.seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, C, H, W) float32 raw values and (B, H, W) int64 class index or IGNORED, without an end."""
        waiting: list[int] = []
        while True:
            while len(waiting) < self._plan.train.batch:
                waiting += self._generator.permutation(self._shown).tolist()
            numbers, waiting = waiting[: self._plan.train.batch], waiting[self._plan.train.batch :]
            images, masks = zip(*map(self._warp, numbers), strict=True)
            yield self._colour(torch.cat(images)), torch.cat(masks)

    def _warp(self, number: int) -> tuple[Tensor, Tensor]:
        image, mask = self._images[number].permute(2, 0, 1)[None].float(), self._masks[number][None, None].float()
        draw, free = self._generator.uniform, self._plan.augment.orientation == "free"
        shape, window = np.array(mask.shape[2:]), np.array(self._window_hw)
        turn, zoom = math.radians(draw(-180, 180) if free else draw(-15, 15)), math.exp(draw(-SCALE, SCALE))
        flip_y, flip_x = draw() < 0.5 and free, draw() < 0.5
        half = np.minimum(window / zoom, shape) / 2
        centre = draw(half, shape - half)
        if self._plan.data.crop is None:
            centre += draw(-SHIFT, SHIFT, 2) * window
        cos, sin = math.cos(turn) / zoom, math.sin(turn) / zoom
        rows = [[cos, -sin], [sin, cos]] * np.array([[-1 if flip_y else 1, -1 if flip_x else 1]])  # of (y, x) from it
        theta = np.c_[rows * window / shape[:, None], 2 * centre / shape - 1]
        theta = theta[::-1, [1, 0, 2]]  # torch has x first
        grid = F.affine_grid(torch.tensor(theta[None].copy(), dtype=torch.float32), [1, 1, *self._window_hw], False)
        grid = grid.to(self._device, non_blocking=True)
        warped = F.grid_sample(image, grid, "bilinear", "reflection", False)
        index = F.grid_sample(mask - IGNORED, grid, "nearest", "zeros", False) + IGNORED  # outside: IGNORED
        return warped, index[:, 0].round().long()

    def _colour(self, image: Tensor) -> Tensor:
        def draw(width: float) -> Tensor:
            values = self._generator.uniform(-width, width, (len(image), 1, 1, 1))
            return torch.tensor(values, dtype=torch.float32).to(self._device, non_blocking=True)

        image = image / self._white
        grey = image.mean(dim=1, keepdim=True)
        if image.shape[1] == 3:
            image = grey + (image - grey) * draw(SATURATION).exp()
        middle = grey.mean(dim=(2, 3), keepdim=True)
        image = middle + (image - middle) * draw(CONTRAST).exp() + draw(BRIGHTNESS)
        return image.clamp(0, 1) * self._white


def cross_entropy_and_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy, plus 1 - Dice of the batch, the mean over the classes in it; IGNORED does not count."""
    logits, known = logits.float(), target != IGNORED
    prob = logits.softmax(dim=1) * known[:, None]
    truth = F.one_hot(torch.where(known, target, 0), logits.shape[1]).movedim(-1, 1) * known[:, None]
    both, sizes, there = (prob * truth).sum((0, 2, 3)), (prob + truth).sum((0, 2, 3)), truth.sum((0, 2, 3)) > 0
    dice = 2 * both / sizes.clamp(min=1)
    return F.cross_entropy(logits, target, ignore_index=IGNORED) + ((1 - dice) * there).sum() / there.sum().clamp(min=1)


def rate_at(step: int, steps: int) -> float:
    """The learning rate of a step, as a share of the greatest: a linear rise, then half a cosine to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))


def train(peer: PeerNet, batches: Augmented, plan: Plan, steps: int, validation: "Validation") -> int:
    """Train, and leave the best weights in the network; returns their step."""
    encoder = peer.encoder_parameters()
    known = {id(parameter) for parameter in encoder}
    rest = [parameter for parameter in peer.parameters() if id(parameter) not in known]
    groups = [{"params": rest, "lr": RATE}, {"params": encoder, "lr": ENCODER_RATE}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    checks = {round(steps * (check + 1) / CHECKS) for check in range(CHECKS)}
    best, best_step, weights = -1.0, 0, dict[str, Tensor]()
    device = next(peer.parameters()).device
    for step, (image, target) in zip(range(1, steps + 1), batches, strict=False):
        peer.train()
        with autocast(device, plan.train):
            logits = peer(image.contiguous(memory_format=torch.channels_last))
        loss = cross_entropy_and_dice(logits, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step in checks:
            figure = validation.score()
            print(f"step {step} of {steps}: loss {loss.item():.4f}, validation Dice {figure:.4f}", flush=True)
            if figure > best:
                best, best_step, weights = figure, step, copy.deepcopy(peer.state_dict())
    peer.load_state_dict(weights)
    return best_step


class Validation:
    """The validation split, read once."""

    def __init__(self, predictor: Predictor, data: Dataset) -> None:
        self._predictor, self._pairs = predictor, data.pairs("val")
        self._decoded = [self._read(pair, data) for pair in self._pairs]

    def _read(self, pair: Pair, data: Dataset) -> DecodedImage:
        image = self._predictor.prepare(pair.image)
        return DecodedImage(image, read_class_map(pair, image.native_hw, data.labels).classes)

    def score(self) -> float:
        """Mean over the classes of their mean Dice per image, by which ubend chooses too."""
        self._predictor.model.eval()
        scores = evaluate_pairs(self._predictor, self._pairs, decoded=self._decoded.__getitem__)
        return float(scores["native"]["dice"]["per_image"]["mean"])


def run_peer(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Train and score a peer; see the top of this file."""
    settings = read_words(words)
    prepare_process(False)
    device = pick_device(settings.device)
    set_up(device, False)
    found = scan(settings, device, Reporter())
    data, plan = found.data, resolve(settings, found.facts)
    batches = prepare(data, plan, device).batches
    torch.manual_seed(plan.train.seed)
    bundle = build(data, plan, device).bundle
    mean, std = (values.flatten().tolist() for values in (bundle.model.mean, bundle.model.std))
    peer = PeerNet(name, data.store.channels, data.labels.classes, mean, std)
    predictor = Predictor(replace(bundle, model=peer), device)
    steps = max(
        plan.train.epochs, round(plan.train.epochs * batches.items_per_epoch / plan.train.batch)
    )  # as `Training.steps`
    augmented = Augmented(batches.source, plan, batches.crop_hw, float(data.value_range()[1].max()))
    best_step = train(peer, augmented, plan, steps, Validation(predictor, data))
    peer.eval()
    subsets: tuple[SplitName, ...] = ("val", "test")
    return {
        "device": describe_device(device),
        "batch": plan.train.batch,
        "size": plan.data.size,
        "window": plan.data.crop,
        "epochs": plan.train.epochs,
        "steps": steps,
        "best_step": best_step,
        "parameters": sum(parameter.numel() for parameter in peer.parameters()),
        "scores": {subset: {"part": subset, **evaluate_pairs(predictor, data.pairs(subset))} for subset in subsets},
    }


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("file", type=Path)
    end = list(words).index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end])
    args.file.write_text(json.dumps(run_peer(args.name, words[end + 1 :])) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
