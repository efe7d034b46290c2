"""What is loaded beside the reading of images."""

import threading

import pytest
import torch

from ubend.accel import warmup

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "usable", lambda _tensor: True)


def test_kernels_are_loaded_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, which has ended when the images are there."""
    loaded: list[tuple[torch.device, bool]] = []
    inside = threading.Event()

    def load(device: torch.device) -> None:
        inside.wait(10)
        loaded.append((device, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(warmup, "_run_something", load)
    with warmup.warmed_up(CPU):
        assert loaded == []
        inside.set()
    assert loaded == [(CPU, False)]


def test_what_fails_there_fails_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not here; an error of the reading goes its way, when the thread has ended."""

    def load(_device: torch.device) -> None:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(warmup, "_run_something", load)
    with pytest.raises(ValueError, match="no images"), warmup.warmed_up(CPU):
        raise ValueError("no images")
    assert not [thread for thread in threading.enumerate() if thread.name == "ubend-warm"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu() -> None:
    """It runs through: what is suppressed there would go unseen."""
    warmup._run_something(torch.device("cuda"))
    torch.cuda.synchronize()
