"""Loads the libraries that the first training step needs, while the images are read."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ubend.accel.gate import usable


@contextmanager
def warmed_up(device: torch.device) -> Iterator[None]:
    """A context during which the device's libraries are loaded in a thread; errors appear in the first step instead."""
    thread = threading.Thread(target=_load, args=(device,), name="ubend-warm")
    thread.start()
    try:
        yield
    finally:
        thread.join()  # while a step is captured, no other thread may allocate memory


def _load(device: torch.device) -> None:
    with contextlib.suppress(RuntimeError, OSError):
        if usable(torch.empty(0, device=device)):
            _run_something(device)


def _run_something(device: torch.device) -> None:
    """Run a convolution with gradients, which loads cuDNN, and a Triton kernel: Triton hashes its files before one."""
    from ubend.accel.loss import SumLosses

    image = torch.zeros(1, 8, 16, 16, device=device, dtype=torch.bfloat16)
    image = image.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.zeros(8, 8, 3, 3, device=device, dtype=torch.bfloat16, requires_grad=True)
    logits = torch.conv2d(image, weight, padding=1)[:, :2].float()
    target, weights = torch.zeros(1, 16, 16, device=device, dtype=torch.uint8), torch.ones(2, device=device)
    cross_entropy, _dice = SumLosses.apply(logits, target, weights, True)
    cross_entropy.backward()
