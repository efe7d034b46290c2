"""What a training step costs, counted without running it, and what the device can do, measured.

FLOPs are those of the convolutions, forward and backward, a multiplication and an addition each
(`torch.utils.flop_counter`). Bytes are counted for a step in which a convolution is a kernel of its own, whose
traffic hides behind its arithmetic, and all that lies between two convolutions is one fused kernel for each pass:

    batch or instance norm with its ReLU and a residual sum: forward read for the statistics, read, write (and
    read the residual); backward read both gradient and input twice, write
    concatenation, and the split of its gradient: read, write
    pooling, nearest upsampling, padding, forward and backward: read, write
    a tensor used twice: its two gradients read, their sum written
    Adam: weight, gradient and two moments read, weight and moments written, float32; under autocast also the
    weights cast to bfloat16, and their gradients cast back

in float32 or bfloat16, as the variant's activations are; the loss on the logits' few channels is left out. The limit
is one over (FLOPs / rate of a large matrix product + bytes / rate of a copy). A step that hides memory traffic
behind arithmetic, or fuses it into the convolutions, may pass it; the limit of the FLOPs alone it may not.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from timing import time_runs

_ADAM_BYTES, _CAST_BYTES = 28, 12  # of a parameter: seven float32; float32 -> bfloat16 and back


@dataclass(frozen=True)
class StepCost:
    """Of one image of one training step.

    Attributes:
        parameters: of the network.
        flops: of its convolutions, forward and backward.
        bytes: moved between device memory and the kernels that are no convolutions.
    """

    parameters: int
    flops: float
    bytes: float


@dataclass(frozen=True)
class Limits:
    """What the device was measured to do.

    Attributes:
        flops_per_s: of a large matrix product.
        bytes_per_s: of a large copy, bytes read and bytes written.
        words: what was measured.
    """

    flops_per_s: float
    bytes_per_s: float
    words: str

    def arithmetic_rate(self, cost: StepCost) -> float:
        """Images per second if only the FLOPs took time."""
        return self.flops_per_s / cost.flops

    def traffic_rate(self, cost: StepCost) -> float:
        """Images per second if the FLOPs and then the bytes took time."""
        return 1 / (cost.flops / self.flops_per_s + cost.bytes / self.bytes_per_s)


def count_step(build: Callable[[], nn.Module], batch: int, size: int, half: bool, channels: int = 3) -> StepCost:
    """Count one step on a batch of (batch, channels, size, size).

    Args:
        build: makes the network.
        half: bfloat16 activations under autocast; else float32.
    """
    with torch.device("meta"):  # shapes without data
        network = build().train()
        image = torch.empty(batch, channels, size, size)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        logits = network(image)
        logits.backward(torch.ones_like(logits))
    moved = traffic.elements * (2 if half else 4) + parameters * (_ADAM_BYTES + (_CAST_BYTES if half else 0))
    return StepCost(parameters, flops.get_total_flops() / batch, moved / batch)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements that are read and written between the convolutions, as told at the top."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        first: Tensor = out[0] if isinstance(out, tuple | list) else out
        name = func.overloadpacket.__name__
        match name.removesuffix("_backward"):
            case "native_batch_norm":
                self.elements += first.numel() * (5 if name.endswith("_backward") else 3)
            case "cat" | "slice":
                self.elements += 2 * first.numel()
            case "max_pool2d_with_indices" | "upsample_nearest2d" | "replication_pad2d":
                self.elements += args[0].numel() + first.numel()
            case "add":
                self.elements += 3 * first.numel()
            case "add_" if first.is_floating_point():  # batch norm counts its batches in an integer
                self.elements += first.numel()
        return out


def measure_limits(device: torch.device, side: int, copied: int) -> Limits:
    """Times a (side, side) matrix product on random numbers, and a copy of `copied` bytes.

    The product is the faster one of bfloat16 and float32: not every processor that has bfloat16 gains by it.
    """
    rates = {dtype: 2 * side**3 / _time_product(dtype, side, device) for dtype in (torch.bfloat16, torch.float32)}
    dtype = max(rates, key=lambda dtype: rates[dtype])
    source = torch.ones(copied // 4, device=device)
    destination = torch.empty_like(source)
    copy_s = _time_one(lambda: destination.copy_(source), device)
    words = f"{str(dtype).removeprefix('torch.')} product of {side} x {side}, copy of {copied / 2**20:.0f} MiB"
    return Limits(rates[dtype], 2 * 4 * source.numel() / copy_s, words)


def _time_product(dtype: torch.dtype, side: int, device: torch.device) -> float:
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return _time_one(lambda: torch.mm(a, b, out=product), device)


def _time_one(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run: the median of seven turns of several."""
    count = 10 if device.type == "cuda" else 2
    time_runs(run, count, device)
    return statistics.median(time_runs(run, count, device) for _ in range(7)) / count
