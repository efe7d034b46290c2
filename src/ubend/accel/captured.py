"""A whole training step as one CUDA graph: drawing, augmentation, network, loss, gradients, optimiser, average.

The host only draws numbers and starts the graph, so that small kernels do not wait for Python. A graph reads
and writes fixed places: what changes from step to step (the numbers, the learning rate, the share of the
average) is copied into one buffer before each start.
"""

from collections import deque

import numpy as np
import torch
from torch import Tensor, nn

from ubend.accel.gate import usable
from ubend.core.device import attempt
from ubend.core.i18n import _
from ubend.core.progress import Teller
from ubend.dataset.batches import Batch
from ubend.training.checkpoint import TrainingState
from ubend.training.optim import averaging_decay, learning_rate_at
from ubend.training.step import Job, Step

_EAGER_STEPS = 3  # before capture: workspaces are made, the optimiser's moments, and memory may run out
_AHEAD = 4  # steps whose numbers wait in pinned memory; the host is never further ahead of the device


class CapturedStep(Step):
    """`step(k)` as `Step` takes it; from the fourth call on as a CUDA graph."""

    def __init__(self, job: Job, state: TrainingState, teller: Teller) -> None:
        super().__init__(job, state, teller)
        device = job.batches.pictures.device
        rows = job.batches.numbers(0).shape
        self._shape, size = rows, rows[0] * rows[1] + 2
        self._slots = [torch.empty(size, dtype=torch.float32, pin_memory=True) for _ in range(_AHEAD)]
        self._sent: deque[torch.cuda.Event] = deque(maxlen=_AHEAD)
        self._changing = torch.empty(size, dtype=torch.float32, device=device)
        self._numbers, self._rate, self._share = self._changing[:-2].view(rows), *self._changing[-2:].unbind()
        self._fetched: tuple[Tensor, Tensor] | None = None
        self._flat = flatten(state.model), flatten(state.average)
        for group in state.optimizer.param_groups:
            group["lr"] = self._rate
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph, self._taken = torch.cuda.CUDAGraph(), 0

    def __call__(self, step: int) -> None:
        self._send(step)
        if self._taken < _EAGER_STEPS:
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                self._finish(self._gradients_in_memory(self._draw))
            current.wait_stream(self._stream)
        else:
            if self._taken == _EAGER_STEPS and attempt(self._capture) is None:
                self.teller.say(_("note: no memory is left to capture the step in, so training goes on uncaptured"))
                self._taken = -(2**62)  # eager for good
                return self(step)
            self._graph.replay()
        self._taken += 1
        return None

    def _send(self, step: int) -> None:
        """This step's numbers on their way to the device."""
        if len(self._sent) == _AHEAD:
            self._sent[0].synchronize()  # the slot's last numbers have arrived
        slot, settings = self._slots[step % _AHEAD], self.job.settings
        values = slot.numpy()
        values[:-2] = self.job.batches.numbers(step).reshape(-1)
        values[-2] = learning_rate_at(step, self.job.steps, settings)
        values[-1] = 1.0 - averaging_decay(step, settings.average_decay)
        self._changing.copy_(slot, non_blocking=True)
        if not self.job.batches.pictures.resident:
            fetched = self.job.batches.fetch(step)
            self._fetched = self._fetched or (torch.empty_like(fetched[0]), torch.empty_like(fetched[1]))
            torch._foreach_copy_(list(self._fetched), list(fetched))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._sent.append(event)

    def _draw(self) -> Batch:
        return self.job.batches.render(self._numbers, self._fetched)

    def _finish(self, sums: Tensor) -> None:
        self.state.sums += sums
        self.state.optimizer.step()
        self.state.optimizer.zero_grad()
        if self.state.average is not self.state.model:
            self._flat[1].lerp_(self._flat[0], self._share)

    def _capture(self) -> bool:
        self.job.batches.wait_for_reading()
        torch.cuda.empty_cache()  # the graph has a pool of its own
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._finish(self._gradients(self._draw()))
        return True


@torch.no_grad()
def flatten(module: nn.Module) -> Tensor:
    """Lay all float tensors of a module into one, in place: (n,) float32, of which they are views from now on.

    One launch then does what else takes one for each tensor.
    """
    tensors = [t for t in [*module.parameters(), *module.buffers()] if t.dtype == torch.float32]
    places = np.cumsum([0] + [-(-t.numel() // 64) * 64 for t in tensors])  # 256 bytes: kernels load 16 at a time
    flat = torch.zeros(int(places[-1]), dtype=torch.float32, device=tensors[0].device)
    for tensor, place in zip(tensors, places.tolist(), strict=False):
        home = flat.as_strided(tensor.shape, tensor.stride(), place)
        home.copy_(tensor)
        tensor.data = home
    return flat


def can_capture(job: Job, state: TrainingState) -> bool:
    """Whether this training's steps can be one graph here."""
    plain = state.model.can_capture and not job.batches.weighs_pixels  # nothing more to fetch
    return plain and not job.settings.compile and usable(next(state.model.parameters()))


def make_step(job: Job, state: TrainingState, teller: Teller) -> Step:
    """The fastest way to take steps on the job's device."""
    kind = CapturedStep if can_capture(job, state) else Step
    if kind is Step and usable(next(state.model.parameters())) and not job.settings.compile:
        teller.say(_("note: the steps of this network or loss are not captured in a CUDA graph, which is slower"))
    return kind(job, state, teller)
