"""A training that records the scores of every image after every epoch.

E epochs, N images, C classes.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ubend.accel.accelerate import accelerate_augmentation
from ubend.core.autoconfig import resolve
from ubend.core.device import pick_device, set_up
from ubend.core.plan import Plan
from ubend.core.progress import Reporter
from ubend.dataset.augment import augment
from ubend.dataset.dataset import Dataset
from ubend.dataset.prepare import prepare
from ubend.dataset.sources import WholeImages
from ubend.labels.class_table import background_class
from ubend.metrics.overlap import count_confusion_batch, summarise_overlap
from ubend.tasks.fit import assemble, scan
from ubend.tasks.user_settings import read_user_settings
from ubend.training.build import build
from ubend.training.checkpoint import Saver, TrainingState
from ubend.training.interrupts import stop_on_signals
from ubend.training.loop import train
from ubend.training.losses import sum_cross_entropy
from ubend.training.recorder import Recorder
from ubend.training.run_folder import RunFolder
from ubend.training.training import Training

_PIXELS = 2**21  # pixels per forward pass
_ROOM_BYTES = 2**30  # memory on the device for the images that are scored


@dataclass(frozen=True)
class RecordedRun:
    """The scores of a training after each epoch.

    Attributes:
        data: the data set.
        plan: the resolved settings.
        names: (N,) of the validation and test images, in this order.
        is_val: (N,) bool, whether an image is a validation image.
        losses: (E, N) mean cross entropy per pixel of each image, nats, at model size.
        confusions: (E, N, C, C) number of pixels; rows are truth.
    """

    data: Dataset
    plan: Plan
    names: NDArray[np.str_]
    is_val: NDArray[np.bool_]
    losses: NDArray[np.float64]
    confusions: NDArray[np.int64]

    def best_epoch(self, which: NDArray[np.bool_]) -> int:
        """The epoch, from 0, with the lowest loss over these images."""
        return int(self.losses[:, which].mean(axis=1).argmin())

    def dice(self, epoch: int, which: NDArray[np.bool_]) -> float:
        """The mean Dice over these images and all classes except the background, after an epoch."""
        names = self.data.labels.names
        scores = summarise_overlap(self.confusions[epoch, which], names, background_class(names)).to_json()
        return float(scores["dice"]["per_image"]["mean_foreground"])


def train_recorded(
    folder: Path | str,
    settings: Mapping[str, Any],
    *,
    split: Path | str | None = None,
    device: str | None = None,
    reporter: Reporter,
) -> RecordedRun:
    """Train like `ubend fit`, and score the validation and test split after every epoch; no files are kept.

    Args:
        folder, split, device: see `fit`.
        settings: by dotted key.
        reporter: reports only the progress.
    Raises:
        UbendError: see `fit`.
    """
    chosen = read_user_settings(folder, settings=settings, flags={"split": split, "device": device}).settings
    where = pick_device(chosen.device)
    set_up(where, chosen.train.deterministic)
    found = scan(chosen, where, reporter)
    data, plan = found.data, resolve(chosen, found.facts)
    prepared, built = prepare(data, plan, where, augment=accelerate_augmentation(augment)), build(data, plan, where)
    training, runtime = assemble(plan, data, prepared, built, reporter)
    numbers = np.concatenate([data.indices("val"), data.indices("test")])
    scored = WholeImages(data.store, numbers, where, _ROOM_BYTES)
    epochs: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []

    def score(_state: TrainingState) -> Callable[[], None]:
        epochs.append(_score(scored, training))
        return lambda: None

    with tempfile.TemporaryDirectory() as place:
        run = RunFolder(Path(place) / "run")
        run.create()
        with Saver(run.state_path, lambda _weights, _history: None) as saver, stop_on_signals() as stop:
            train(runtime, Recorder(run, saver, reporter, score), stop)
            saver.wait()
    return RecordedRun(
        data,
        plan,
        np.array([data.folder.pairs[number].name for number in numbers]),
        np.arange(len(numbers)) < len(data.indices("val")),
        np.stack([losses for losses, _confusions in epochs]),
        np.stack([confusions for _losses, confusions in epochs]),
    )


@torch.inference_mode()
def _score(images: WholeImages, training: Training) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N,) mean cross entropy per scored pixel, and (N, C, C) confusion matrices, of the EMA of the weights."""
    training.state.ema.eval()
    classes = len(training.class_names)
    count = max(1, _PIXELS // math.prod(images.canvas_hw))
    losses, confusions = [], []
    for start in range(0, len(images), count):
        image, target = images.take(np.arange(start, min(start + count, len(images))))
        with training.autocast():
            logits = training.forward_ema(image.float())
        pixels = (target < classes).sum(dim=(1, 2)).clamp_min(1)
        losses.append(sum_cross_entropy(logits, target) / pixels)
        confusions.append(count_confusion_batch(logits.argmax(dim=1).to(torch.uint8), target, classes))
    return torch.cat(losses).double().cpu().numpy(), torch.cat(confusions).cpu().numpy()
