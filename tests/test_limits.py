"""What is said to limit a run: each verdict from its figures, and from trainings that are made to be limited so."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.discs import make_discs
from support.training import SMALL, Listener, press_once
from ubend.data.batches import Pictures
from ubend.jobs import fit as job
from ubend.model import fused
from ubend.model.unet import UNet
from ubend.training import setup
from ubend.training.limits import Measured, count_step_flops, describe_limit

BUSY = Measured(
    steps_s=2.0,
    images=9400,
    flops=1.24e15,
    reading=0.03,
    between=0.1,
    ahead=3.9,
    micro_batch=None,
    batch=64,
    memory=(int(12.1 * 2**30), 79 * 2**30),
)
FIGURES = (
    "4,700 img/s, 620.00 TFLOP/s; waiting for pictures 3% of the steps' time; validation, panel and saving 10% of the "
    "epoch's; 12.1 of 79.0 GiB of the device's memory in use"
)


@pytest.mark.parametrize(
    ("changes", "verdict", "advice"),
    [
        ({}, "by computing", "the device is busy"),
        ({"ahead": None}, "by computing", "the device is busy"),
        ({"reading": 0.4}, "by data", "a smaller --size"),
        ({"reading": 0.4, "by_window": True}, "by data", "more main memory"),
        ({"reading": 0.4, "micro_batch": 22, "between": 0.9, "ahead": 0.1}, "by data", "a faster disk"),
        ({"micro_batch": 22}, "by memory, which has room for 22 of 64 pictures at a time", "--width or data.window"),
        ({"between": 0.6}, "by what follows each epoch", "fewer --epochs"),
        ({"ahead": 0.7}, "by this computer's processor", "A larger --batch"),
    ],
)
def test_verdicts(changes: dict[str, Any], verdict: str, advice: str) -> None:
    line = describe_limit(replace(BUSY, **changes))
    assert line.startswith(f"the run is limited {verdict}")
    assert advice in line
    assert line.count(". ") == 1
    if not changes:
        assert FIGURES in line


def test_memory_that_is_not_known_is_not_said() -> None:
    assert "GiB" not in describe_limit(replace(BUSY, memory=None))


class Clock:
    """Stands still but for what the tests say takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits") / "discs"
    make_discs(folder, 24)
    return folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A pass through the network takes a second while training, three in the first steps; a panel takes two."""
    clock, forward, passes = Clock(), UNet.forward, 0

    def pass_in_a_second(self: UNet, image: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        if self.training:
            passes += 1
            clock.now += 1.0 if passes > 5 else 3.0
        return forward(self, image)

    def draw(*_args: Any) -> Callable[[], None]:
        clock.now += 2.0
        return lambda: None

    monkeypatch.setattr(UNet, "forward", pass_in_a_second)
    monkeypatch.setattr(job, "draw_panel", draw)
    monkeypatch.setattr("ubend.drawing.curves.draw_curves", lambda *_args: None)
    monkeypatch.setattr(job, "draw_curves", lambda *_args: None)
    for module in ("ubend.training.limits", "ubend.data.batches"):
        monkeypatch.setattr(f"{module}.time", clock)
    return clock


def fit(folder: Path, run: Path, listener: Listener | None = None, **changes: Any) -> str:
    listener = listener or Listener()
    settings = {**SMALL, "train.epochs": 3, "train.batch": 1, **changes}  # 16 pictures: 16 steps an epoch
    with contextlib.suppress(KeyboardInterrupt):
        job.fit(folder, run, settings=settings, device="cpu", teller=listener)
    return listener.said


def limits(said: str) -> list[str]:
    """The lines, each with the number of epochs that had been told before it."""
    lines = said.splitlines()
    return [
        f"{sum(before.startswith('epoch ') for before in lines[:number])}: {line}"
        for number, line in enumerate(lines)
        if line.startswith("the run is limited")
    ]


@pytest.mark.usefixtures("clock")
def test_computing_is_what_limits(folder: Path, tmp_path: Path) -> None:
    """Said once, after the first epoch, of its steps but the first ones; again when the run goes on, but only when
    an epoch has told enough."""
    said = fit(folder, tmp_path / "run", Listener(press_once(26)))
    (line,) = limits(said)
    assert line.startswith("1: the run is limited by computing: 1 img/s")
    assert "waiting for pictures 0% of the steps' time; validation, panel and saving 11% of the epoch's" in line
    listener = Listener()
    job.resume(tmp_path / "run", teller=listener)
    (line,) = limits(listener.said)
    assert line.startswith("2: "), "steps 27 to 32 end an epoch, and only the last of them is measured"


@pytest.mark.usefixtures("clock")
def test_too_few_steps_say_nothing(folder: Path, tmp_path: Path) -> None:
    assert limits(fit(folder, tmp_path / "run", **{"train.batch": 4})) == []


def test_reading_is_what_limits(clock: Clock, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are not resident, each of which is waited for half a second."""

    class Late(Future):  # type: ignore[type-arg]
        def result(self, timeout: float | None = None) -> Any:
            clock.now += 0.5
            return super().result(timeout)

    def take_late(self: Pictures, items: Any) -> Any:
        future = Late()
        future.set_result(self._to_device(items))
        return future

    monkeypatch.setattr(Pictures, "take_ahead", take_late)
    monkeypatch.setattr(setup, "_RESIDENT_CPU_BYTES", 0)
    (line,) = limits(fit(folder, tmp_path / "run"))
    assert line.startswith("1: the run is limited by data: 1 img/s")
    assert "waiting for pictures 33% of" in line


@pytest.mark.usefixtures("clock")
def test_memory_is_what_limits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two pictures has room; a micro-batch that somebody has set says nothing of the memory."""
    changes = {"train.batch": 2, "train.epochs": 2}  # 8 steps an epoch: of the first, too few are measured
    (line,) = limits(fit(folder, tmp_path / "set", **changes, **{"train.micro_batch": 1}))
    assert line.startswith("2: the run is limited by computing")
    forward = UNet.forward

    def limited(self: UNet, image: torch.Tensor) -> torch.Tensor:
        if self.training and len(image) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, image)

    monkeypatch.setattr(UNet, "forward", limited)
    (line,) = limits(fit(folder, tmp_path / "limited", **changes))
    assert line.startswith("2: the run is limited by memory, which has room for 1 of 2 pictures at a time: 1 img/s")


def test_what_follows_an_epoch_is_what_limits(
    clock: Clock, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_args: Any) -> Callable[[], None]:
        clock.now += 48.0
        return lambda: None

    monkeypatch.setattr(job, "draw_panel", draw)
    (line,) = limits(fit(folder, tmp_path / "run", **{"train.epochs": 2}))
    assert line.startswith("1: the run is limited by what follows each epoch")
    assert "validation, panel and saving 75% of the epoch's" in line


def test_flops() -> None:
    """As torch counts them, for whole batches."""
    net = UNet(3, 4, 4, 3, (True, False, True))
    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
        patch.setattr(fused, "find_kernels", lambda _net, _features: None)
        net(torch.rand(2, 3, 32, 40)).sum().backward()
    assert 2 * count_step_flops(net, (32, 40)) == counter.get_total_flops()
    assert count_step_flops(net, (30, 33)) == count_step_flops(net, (32, 40))
