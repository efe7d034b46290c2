"""What is loaded beside the reading of pictures."""

import threading
from typing import Any

import pytest
import torch

from ubend.config import make_settings
from ubend.training import warmup

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_kernels_of_the_precision_are_loaded_beside(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, which has ended when the pictures are there."""
    loaded: list[tuple[torch.dtype, bool]] = []
    inside = threading.Event()

    def load(dtype: torch.dtype) -> None:
        inside.wait(10)
        loaded.append((dtype, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(warmup, "load_kernels", load)
    with warmup.warmed_up(CPU, make_settings(changes={"train.precision": precision})):
        assert loaded == []
        inside.set()
    assert loaded == [(dtype, False)]


def test_not_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "load_kernels", lambda _dtype: pytest.fail("the compiler makes its own"))
    with warmup.warmed_up(CPU, make_settings(changes={"train.compile": True})):
        pass


def test_what_fails_there_fails_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not here; an error of the reading goes its way, when the thread has ended."""

    def load(_dtype: Any) -> None:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(warmup, "load_kernels", load)
    with pytest.raises(ValueError, match="no pictures"), warmup.warmed_up(CPU, make_settings()):
        raise ValueError("no pictures")
    assert not [thread for thread in threading.enumerate() if thread.name == "ubend-warm"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu() -> None:
    """It runs through: what is suppressed there would go unseen."""
    warmup._run_something(torch.device("cuda"))
    torch.cuda.synchronize()
