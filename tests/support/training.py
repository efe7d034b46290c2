"""Parts of a training, to take steps by hand and to interrupt it."""

import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ubend.core.autoconfig import resolve
from ubend.core.progress import Reporter
from ubend.core.settings import make_settings
from ubend.dataset.prepare import prepare
from ubend.tasks.fit import scan
from ubend.training.build import build
from ubend.training.loop import PlainRuntime
from ubend.training.training import Training

SMALL: dict[str, Any] = {"data.size": 32, "model.width": 2, "model.depth": 2, "train.precision": "float32"}
MODERN: dict[str, Any] = {**SMALL, "train.epochs": 3, "train.batch": 5}  # 16 images: 10 steps, 3.2 an epoch
TUTORIAL: dict[str, Any] = {**SMALL, "train.epochs": 2, "train.batch": 20, "train.micro_batch": 8}  # 80 copies: 8 steps
FILES = ("resume.safetensors", "metrics.jsonl", "model.safetensors", "scores.json", "settings.toml", "data.csv")


class Listener(Reporter):
    """Keeps what is reported; calls `at_step(done)` after each training step."""

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


def make_runtime(folder: Path, changes: dict[str, Any], device: str = "cpu") -> PlainRuntime:
    """A training of ten steps, to take them by hand; in plain steps, without any wrapper."""
    given = {
        **MODERN,
        "data.folder": str(folder),
        "train.loss": "dice+ce",
        "augment.orientation": "free",
        "augment.rotation_deg": 180.0,
        "device": device,
        **changes,
    }
    settings, on = make_settings(changes=given), torch.device(device)
    found = scan(settings, on, Listener())
    plan = resolve(settings, found.facts)
    built, prepared = build(found.data, plan, on), prepare(found.data, plan, on)
    model, ema = built.state.model, built.state.ema
    return PlainRuntime(
        Training(
            plan.train,
            found.data.labels.names,
            prepared.batches,
            prepared.validation,
            built.loss,
            built.state,
            forward=model,
            forward_ema=ema,
        )
    )
