"""Parts of a training, to take steps by hand and to interrupt it."""

import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ubend.accel.accelerate import accelerate_augmentation, accelerate_loss, accelerate_network
from ubend.core.files import default_cache
from ubend.core.progress import Teller
from ubend.core.settings import make_settings
from ubend.dataset.augment import augment
from ubend.dataset.dataset import open_dataset
from ubend.tasks import fit as job
from ubend.training.run_folder import RunFolder
from ubend.training.step import Job

SMALL: dict[str, Any] = {"data.size": 32, "model.width": 2, "model.depth": 2, "train.precision": "float32"}
MODERN: dict[str, Any] = {**SMALL, "train.epochs": 3, "train.batch": 5}  # 16 pictures: 10 steps, 3.2 an epoch
TUTORIAL: dict[str, Any] = {**SMALL, "train.epochs": 2, "train.batch": 20, "train.micro_batch": 8}  # 80 copies: 8 steps
FILES = ("resume.safetensors", "metrics.jsonl", "model.safetensors", "scores.json", "settings.toml", "data.csv")


class Listener(Teller):
    """Keeps what is said; calls `at_step(done)` after each training step."""

    def __init__(self, at_step: Callable[[int], None] = lambda done: None) -> None:
        super().__init__(Console(file=io.StringIO(), soft_wrap=True))
        self.at_step, self.what = at_step, ""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self.what = what
        super().begin(what, total, done)

    def count(self, done: int, total: int = 0) -> None:
        super().count(done, total)
        if self.what == "training":
            self.at_step(done)

    @property
    def said(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()


def press_once(at: int, number: int = signal.SIGINT) -> Callable[[int], None]:
    """Ctrl-C (or another signal) after step `at`: the step is finished and saved."""
    return lambda done: signal.raise_signal(number) if done == at else None


def press_twice(at: int) -> Callable[[int], None]:
    """An impatient Ctrl-C, Ctrl-C: nothing is finished, nothing is saved."""

    def press(done: int) -> None:
        if done == at:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    return press


def contents(run: Path) -> dict[str, bytes]:
    """All that a run is: weights, moments, averages, best weights, history; figures; model; scores."""
    return {name: (run / name).read_bytes() for name in FILES}


def make_job(folder: Path, run: Path, changes: dict[str, Any], device: str = "cpu") -> tuple[Job, Any]:
    """The parts of a training, to take steps by hand; fast on a GPU, as `fit` makes them."""
    given = {
        **MODERN,
        "data.folder": str(folder),
        "train.loss": "dice+ce",
        "augment.orientation": "free",
        "augment.rotation_deg": 180.0,
        "device": device,
        **changes,
    }
    data = open_dataset(make_settings(changes=given), device, default_cache(), Listener())
    on = torch.device(device)
    _bundle, state = job.make_state(data, data.settings, on)
    batches, validation = job.make_batches(data, data.settings, on, augment=accelerate_augmentation(augment))
    work = Job(
        batches,
        validation,
        data.labels.names,
        accelerate_loss(job.make_loss(data, data.settings, on)),
        data.settings.train,
        10,
        RunFolder(run),
        lambda _: lambda: None,
        lambda _: None,
        forward=accelerate_network(state.model),
        forward_average=accelerate_network(state.average),
    )
    return work, state
