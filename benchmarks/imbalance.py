"""Losses, class weights and windows against ever rarer classes, on drawn images.

    python benchmarks/imbalance.py losses     # 64 px images, whole
    python benchmarks/imbalance.py windows    # 256 px images through 64 px windows

The classes: ground, squares (common), discs (rare, redder). Printed are the pooled Dice of
squares and discs on drawn images that were not trained on, for each seed.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from engine import begin_training, make_step, open_data
from timing import make_ready
from ubend.metrics.overlap import count_confusion_batch, dice_from_confusion

SHARES = (0.05, 0.01, 0.002, 0.0005)  # of all pixels, that are discs


def draw(generator: np.random.Generator, side: int, share: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(side, side, 3) image and (side, side) mask: noisy ground, squares, and discs on `share` of it."""
    y, x = np.mgrid[:side, :side]
    index = np.zeros((side, side), np.uint8)
    for _ in range(max(1, side * side // 2048)):
        top, left = generator.integers(0, side - 8, 2)
        length = generator.integers(6, 22)
        index[top : top + length, left : left + length] = 1
    radius = min(7.0, max(2.0, math.sqrt(share * side * side / math.pi)))
    wanted = share * side * side / (math.pi * radius**2)
    for _ in range(int(wanted) + (generator.random() < wanted % 1)):
        cy, cx = generator.uniform(radius, side - radius, 2)
        index[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = 2
    looks = np.array([[0, 0, 0], [60, 60, 60], [90, 40, 40]])
    image = generator.normal(90, 25, (side, side, 3)) + looks[index]
    return image.clip(0, 255).astype(np.uint8), index


def make_set(folder: Path, side: int, share: float, count: int) -> None:
    """A folder of images, masks and parts: the last 64 are the validation split."""
    generator = np.random.default_rng(1)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    lines = ["file,split"]
    for number in range(count):
        image, index = draw(generator, side, share)
        Image.fromarray(image).save(folder / "images" / f"{number:03d}.png")
        Image.fromarray(index).save(folder / "masks" / f"{number:03d}.png")
        lines.append(f"{number:03d}.png,{'train' if number < count - 64 else 'val'}")
    (folder / "classes.txt").write_text("background\nsquare\ndisc\n")
    (folder / "split.csv").write_text("\n".join(lines) + "\n")


def train_one(folder: Path, side: int, seed: int, steps: int, changes: dict[str, Any]) -> tuple[float, float]:
    """Pooled Dice of squares and of discs after a short training."""
    given = {
        "data.split": str(folder / "split.csv"),
        "data.size": side,
        "model.width": 8,
        "model.depth": 3,
        "train.batch": 8,
        "train.epochs": max(1, round(8 * steps / (len(list((folder / "masks").iterdir())) - 64))),
        "train.learning_rate": 3e-3,
        "train.seed": seed,
        "train.precision": "float32",
        "train.ema_decay": 0.98,
        "augment.orientation": "free",
        **changes,
    }
    device = make_ready("cpu")
    training = (runtime := begin_training(*open_data(folder, folder.parent / "cache", device, given), device)).training
    step = make_step(runtime)
    for _ in range(training.steps):
        step()
    training.state.ema.eval()
    confusion = np.zeros((3, 3), np.int64)
    with torch.inference_mode():
        for start in range(0, len(training.validation), 8):
            image, target = training.validation.take(np.arange(start, start + 8))
            guess = training.forward_ema(image.float()).argmax(1).to(torch.uint8)
            confusion += count_confusion_batch(guess, target, 3).sum(0).numpy()
    dice = dice_from_confusion(confusion[None])[0]
    return float(dice[1]), float(dice[2])


def weights_of(share: float, power: float) -> list[float]:
    """One over each class's share, to a power; the mean over the pixels is 1."""
    shares = np.array([0.85 - share, 0.15, share])
    weights = shares**-power
    return [float(w) for w in weights / (weights * shares).sum()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["losses", "windows"])
    parser.add_argument("--steps", type=int, help="of 8 images  [losses 700, windows 320]")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    side, count, steps = (64, 320, 700) if args.what == "losses" else (256, 160, 320)
    for share in SHARES:
        if args.what == "losses":
            variants: dict[str, dict[str, Any]] = {
                "ce": {"train.loss": "ce"},
                "dice+ce": {"train.loss": "dice+ce"},
                "dice+focal": {"train.loss": "dice+focal"},
                "ce, weights 1/share": {"train.loss": "ce", "train.class_weights": weights_of(share, 1.0)},
                "dice+ce, weights 1/sqrt(share)": {
                    "train.loss": "dice+ce",
                    "train.class_weights": weights_of(share, 0.5),
                },
                "dice+ce, weights 1/share": {"train.loss": "dice+ce", "train.class_weights": weights_of(share, 1.0)},
            }
            for changes in variants.values():
                changes["augment.kind"] = "none"
        else:
            variants = {
                f"foreground share {part:.2f}": {"data.crop": 64, "data.foreground_share": part}
                for part in (0.0, 1 / 3, 2 / 3)
            }
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "set"
            make_set(folder, side, share, count)
            for name, changes in variants.items():
                found = [train_one(folder, side, seed, args.steps or steps, changes) for seed in range(args.seeds)]
                squares, discs = (statistics.mean(column) for column in zip(*found, strict=True))
                each = ", ".join(f"{disc:.3f}" for _square, disc in found)
                print(f"discs {share:.2%}  {name:31} squares {squares:.3f}  discs {discs:.3f} ({each})", flush=True)


if __name__ == "__main__":
    main()
