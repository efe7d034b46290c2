"""A whole training step as one CUDA graph: sampling, augmentation, network, loss, gradients, optimizer, EMA.

The host only draws random numbers and starts the graph, so that small kernels do not wait for Python. A graph reads
and writes fixed memory: the values that change from step to step (random numbers, learning rate, weight of the EMA)
are copied to one buffer before each start.
"""

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ubend.accel.gate import usable
from ubend.core.device import attempt
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.batches import Batch
from ubend.training.loop import Runtime
from ubend.training.memory import LimitedMemoryRuntime
from ubend.training.optim import ema_decay
from ubend.training.training import Training

_EAGER_STEPS = 3  # before capture: they allocate workspaces and the optimizer's moments, and may run out of memory
_PREFETCH = 4  # buffers of values in pinned memory: the host runs at most so many steps ahead of the device


def capture_steps(runtime: LimitedMemoryRuntime, reporter: Reporter) -> Runtime:
    """A runtime that takes the same steps as CUDA graphs; `runtime` itself if they cannot be captured."""
    training = runtime.training
    if not usable(next(training.state.model.parameters())) or training.settings.compile:
        return runtime
    if not can_capture(training):
        reporter.report(_("note: training is slower: the steps of this network or loss cannot run as a CUDA graph"))
        return runtime
    return CapturedRuntime(runtime, reporter)


def can_capture(training: Training) -> bool:
    """Whether a step of this training can be one CUDA graph; pixel weights would be fetched from the host."""
    return training.state.model.can_capture and training.loss.can_capture and not training.batches.weighs_pixels


class CapturedRuntime(Runtime):
    """Wraps a runtime: from the fourth step on, steps are replayed as a CUDA graph."""

    def __init__(self, runtime: LimitedMemoryRuntime, reporter: Reporter) -> None:
        super().__init__(runtime.training, runtime.processes)
        self._runtime, self._reporter = runtime, reporter
        state, batches = self.training.state, self.training.batches
        device = batches.source.device
        rows = batches.pack(0).shape
        parameter_groups = state.optimizer.param_groups
        size = rows[0] * rows[1] + len(parameter_groups) + 1
        self._slots = [torch.empty(size, dtype=torch.float32, pin_memory=True) for _ in range(_PREFETCH)]
        self._sent: deque[torch.cuda.Event] = deque(maxlen=_PREFETCH)
        self._changing = torch.empty(size, dtype=torch.float32, device=device)
        self._packed = self._changing[: rows[0] * rows[1]].view(rows)
        *rates, self._share = self._changing[rows[0] * rows[1] :].unbind()
        self._fetched: tuple[Tensor, Tensor] | None = None
        self._flat = flatten(state.model), flatten(state.ema)
        for parameter_group, rate in zip(parameter_groups, rates, strict=True):
            parameter_group["lr"] = rate
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph, self._taken = torch.cuda.CUDAGraph(), 0

    def training_step(self, step: int) -> None:
        self._send(step)
        if self._taken < _EAGER_STEPS:
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                self._update(self._runtime.backward(step, self._render()))
            current.wait_stream(self._stream)
        elif self._taken > _EAGER_STEPS or attempt(self._capture, step):
            self._graph.replay()
        else:
            self._reporter.report(_("note: not enough memory for a CUDA graph, so training continues without one"))
            self.training.state.optimizer.zero_grad()  # the capture may have left gradients
            self._taken = -(2**62)  # all further steps are eager
            return self.training_step(step)
        self._taken += 1
        return None

    def backward(self, step: int, batch: Batch) -> Tensor:
        return self._runtime.backward(step, batch)

    def measure(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return self._runtime.measure(items)

    def _send(self, step: int) -> None:
        """Start copying this step's packed values to the device."""
        if len(self._sent) == _PREFETCH:
            self._sent[0].synchronize()  # until the slot's previous values have been copied
        slot, training = self._slots[step % _PREFETCH], self.training
        values = slot.numpy()
        shares = np.array([parameters["rate_scale"] for parameters in training.state.optimizer.param_groups])
        values[: -1 - len(shares)] = training.batches.pack(step).reshape(-1)
        values[-1 - len(shares) : -1] = training.learning_rate_at(step) * shares
        values[-1] = 1.0 - ema_decay(step, training.settings.ema_decay)
        self._changing.copy_(slot, non_blocking=True)
        if not training.batches.source.resident:
            fetched = training.batches.fetch(step)
            self._fetched = self._fetched or (torch.empty_like(fetched[0]), torch.empty_like(fetched[1]))
            torch._foreach_copy_(list(self._fetched), list(fetched))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._sent.append(event)

    def _render(self) -> Batch:
        return self.training.batches.render(self._packed, self._fetched)

    def _update(self, sums: Tensor) -> None:
        state = self.training.state
        state.sums += sums
        state.optimizer.step()
        state.optimizer.zero_grad()
        if state.ema is not state.model:
            self._flat[1].lerp_(self._flat[0], self._share)

    def _capture(self, step: int) -> bool:
        self.training.batches.wait_for_reading()
        torch.cuda.empty_cache()  # the graph has a pool of its own
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._update(self._runtime.runtime.backward(step, self._render()))
        return True


@torch.no_grad()
def flatten(module: nn.Module) -> Tensor:
    """Move all float32 tensors of a module into one (n,) float32 tensor; they become views of it.

    One kernel can then update all of them.
    """
    tensors = [t for t in [*module.parameters(), *module.buffers()] if t.dtype == torch.float32]
    places = np.cumsum([0] + [-(-t.numel() // 64) * 64 for t in tensors])  # 256 bytes: kernels load 16 at a time
    flat = torch.zeros(int(places[-1]), dtype=torch.float32, device=tensors[0].device)
    for tensor, place in zip(tensors, places.tolist(), strict=False):
        home = flat.as_strided(tensor.shape, tensor.stride(), place)
        home.copy_(tensor)
        tensor.data = home
    return flat
