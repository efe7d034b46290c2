"""The machine fits the run: what training will take of the device's memory, and the micro-batch that fits."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from ubend.choices import Choice
from ubend.device import free_bytes
from ubend.kernels.gate import usable
from ubend.language import _
from ubend.training.checkpoint import TrainingState
from ubend.training.footprint import StepPlan, predict_step_bytes
from ubend.training.setup import has_lone_values
from ubend.training.step import Job, micro_batch_of

# Of what is free, so much is planned with: cuDNN's workspaces are not counted (5% of the peak at batch 256 on an
# H100), libraries load their code, and a step that cannot be captured any more for want of memory is a slow one.
_PLANNED = 0.93
_GIB = 2**30


@dataclass(frozen=True)
class TrainingBytes:
    """What a training takes of the device's memory, at most; bytes.

    Attributes:
        pictures: that stay on the device.
        weights: of the network, with batch norm's statistics, and of their average.
        moments: of the optimiser, from the first step on.
        best: the weights that are kept, from the first validation on.
        step: batch, maps and gradients, at the worst moment of a step.
    """

    pictures: int
    weights: int
    moments: int
    best: int
    step: int

    @property
    def coming(self) -> int:
        """What is not there yet before the first step."""
        return self.moments + self.best + self.step

    @property
    def total(self) -> int:
        return self.pictures + self.weights + self.coming


def predict_training_bytes(job: Job, state: TrainingState, micro_batch: int | None = None) -> TrainingBytes | None:
    """What the steps of a training will take, known before the first one.

    It is what torch's allocator gives out, without cuDNN's workspaces; the validation, which takes as many pictures
    at a time as there is room for, is not in it.

    Args:
        micro_batch: pictures at a time; None: as the training stands.
    Returns:
        None where torch.compile decides.
    """
    if job.settings.compile:
        return None
    batches, net = job.batches, state.model
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    kernels = usable(next(net.parameters()))
    plan = StepPlan(
        batch=batches.batch,
        micro_batch=micro_batch or micro_batch_of(job, state),
        window_hw=batches.window_hw,
        half=job.settings.precision == "bfloat16",
        fused=kernels and type(net.stem[1]) is nn.BatchNorm2d,
        fused_loss=job.loss.has_kernel(next(net.parameters()), net.classes),
        loss=job.loss.kind,
    )
    return TrainingBytes(
        pictures=sum(some.bytes for some in (batches.pictures, job.validation) if some.resident),
        weights=weights * (1 if state.average is net else 2),
        moments=2 * sum(parameter.nbytes for parameter in net.parameters()),
        best=weights,
        step=predict_step_bytes(net, plan) + batches.fetched_bytes,
    )


def choose_micro_batch(job: Job, state: TrainingState) -> Choice | None:
    """Where whole batches are predicted not to fit into free memory: the largest of equal parts that do.

    The state's progress keeps it, as it does where memory ran out. None: nothing is chosen, since all fits, or
    somebody has said how many, or the memory is not known.
    """
    batch, device = job.batches.batch, job.batches.pictures.device
    here = room_bytes(device)
    if here is None:
        return None
    room = job.ranks.least(int(_PLANNED * here))  # all ranks have to choose alike
    if job.settings.micro_batch or state.progress.micro_batch:
        return None
    whole = predict_training_bytes(job, state, batch)
    if whole is None or whole.coming <= room:
        return None
    for size in _parts(job, state, batch):
        predicted = predict_training_bytes(job, state, size)
        state.progress.micro_batch = size
        if predicted is not None and predicted.coming <= room:
            break  # else the smallest part, and the step itself finds out
    if state.progress.micro_batch is None:
        return None
    reason = _(
        "a step with all {batch} pictures at a time would take {needed:.1f} GiB of memory, of which {room:.1f} can be "
        "had (the steps stay those of {batch} pictures)"
    )
    return Choice(
        "train.micro_batch",
        state.progress.micro_batch,
        reason.format(batch=batch, needed=whole.coming / _GIB, room=room / _GIB),
    )


def _parts(job: Job, state: TrainingState, batch: int) -> list[int]:
    """Sizes of 2, 3, ... parts of a batch, as equal as can be, that can be trained on; largest first."""
    sizes = dict.fromkeys(math.ceil(batch / count) for count in range(2, batch + 1))
    return [size for size in sizes if not has_lone_values(job.batches, state.model.depth, size)]


def room_bytes(device: torch.device) -> int | None:
    """Memory that torch can still give out on a GPU; None elsewhere.

    On the CPU nothing is refused: what does not fit is swapped, what is free is the system's guess, and other
    programs' memory comes and goes. A smaller micro-batch changes what batch norm sees, so it is not risked there.
    """
    if device.type != "cuda":
        return None
    return free_bytes(device) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
