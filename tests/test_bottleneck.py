"""The line that says what limits a run: the verdict from its figures, and when it is reported."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.discs import make_discs
from support.training import SMALL, Listener, press_once
from ubend.dataset.batches import TrainingBatches
from ubend.models.unet import UNet
from ubend.tasks import fit as job
from ubend.training import loop
from ubend.training.recorder import describe_limit

CPU = torch.device("cpu")


def test_verdicts() -> None:
    assert describe_limit(0.03, CPU) == "the run is limited by computing (time spent waiting for images: 3%)"
    assert describe_limit(0.4, CPU).startswith(
        "the run is limited by reading images (time spent waiting for them: 40%); a faster disk"
    )


def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (60 * 2**30, 80 * 2**30))
    assert "images: 0%); GPU memory in use: 20.0 of 80.0 GiB" in describe_limit(0.0, torch.device("cuda"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Moves only where a test says so; a training pass through the network takes a second."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    forward = UNet.forward

    def pass_in_a_second(self: UNet, image: torch.Tensor) -> torch.Tensor:
        clock.now += self.training
        return forward(self, image)

    monkeypatch.setattr(UNet, "forward", pass_in_a_second)
    monkeypatch.setattr(job, "EpochDrawing", lambda *_args, **_named: lambda _state: lambda: None)
    monkeypatch.setattr(job, "draw_curves", lambda *_args: None)
    monkeypatch.setattr(loop, "time", clock)
    return clock


def limits(work: Callable[[Listener], object], at_step: Callable[[int], None] = lambda done: None) -> list[str]:
    """The lines that `work` says, each with the number of epochs that it has reported before."""
    listener = Listener(at_step)
    work(listener)
    lines = listener.said.splitlines()
    return [
        f"{sum(before.startswith('epoch ') for before in lines[:number])}: {line}"
        for number, line in enumerate(lines)
        if line.startswith("the run is limited")
    ]


def test_said_once_after_the_second_epoch(
    clock: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second epoch alone, since the first one includes compiling; again in a process that resumes."""
    discs, run = tmp_path / "discs", tmp_path / "run"
    make_discs(discs, 24)
    settings: dict[str, Any] = {**SMALL, "train.epochs": 5, "train.batch": 4}  # 16 images: 4 steps an epoch
    draw = TrainingBatches.sample

    def sample_late(self: TrainingBatches, step: int) -> Any:
        waited = 0.0 if step < 4 else 0.25
        clock.now += waited
        self.waited_s += waited
        return draw(self, step)

    monkeypatch.setattr(TrainingBatches, "sample", sample_late)
    (line,) = limits(
        lambda listener: job.fit(discs, run, settings=settings, device="cpu", reporter=listener), press_once(12)
    )
    assert line.startswith("2: the run is limited by reading images (time spent waiting for them: 20%)")
    (line,) = limits(lambda listener: job.resume(run, reporter=listener))
    assert line.startswith("2: ")
