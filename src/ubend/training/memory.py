"""The machine fits the run: what training will take of the device's memory, and the micro-batch that fits.

Two passes with parts of a batch are tried and measured before the first step; a line through both tells what more
pictures take. Nothing of them stays but what the first step would load anyway.
"""

import math
from dataclasses import dataclass

import torch

from ubend.choices import Choice
from ubend.config import settled
from ubend.data.batches import Batch
from ubend.device import attempt, free_bytes
from ubend.language import _
from ubend.training.checkpoint import TrainingState
from ubend.training.setup import has_lone_values
from ubend.training.step import Job, autocast, micro_batch_of

# Of what is free, so much is planned with: libraries load their code, and a step that cannot be captured any more
# for want of memory is a slow one.
_PLANNED = 0.95
_GIB = 2**30


@dataclass(frozen=True)
class PassBytes:
    """What the gradients of so many pictures took at most, batch, maps and gradients; of two numbers of pictures.

    Attributes:
        less, more: pictures, and bytes.
    """

    less: tuple[int, int]
    more: tuple[int, int]

    def of(self, pictures: int) -> int:
        """Of any number of pictures, by the line through both."""
        (few, few_bytes), (many, many_bytes) = self.less, self.more
        return round(few_bytes + (many_bytes - few_bytes) / (many - few) * (pictures - few))


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


def predict_training_bytes(
    job: Job, state: TrainingState, passes: PassBytes, micro_batch: int | None = None
) -> TrainingBytes:
    """What the steps of a training will take; the validation, which takes what there is room for, is not in it.

    Args:
        passes: from `measure_passes`.
        micro_batch: pictures at a time; None: as the training stands.
    """
    batches, net = job.batches, state.model
    parameters = sum(parameter.nbytes for parameter in net.parameters())
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    micro_batch = micro_batch or micro_batch_of(job, state)
    # from the second part on, gradients are added to those of the first
    gradients = parameters if micro_batch < batches.batch else 0
    return TrainingBytes(
        pictures=sum(some.bytes for some in (batches.pictures, job.validation) if some.resident),
        weights=weights * (1 if state.average is net else 2),
        moments=state.optimizer.moments * parameters,
        best=weights,
        step=passes.of(micro_batch) + gradients + batches.fetched_bytes,
    )


def measure_passes(job: Job, state: TrainingState) -> PassBytes | None:
    """Try a quarter and a half of the pictures that a step takes at a time, or less where memory is short.

    None where memory is not known (see `room_bytes`), torch.compile decides, or a batch is too small to be parted.
    """
    if room_bytes(job.batches.pictures.device) is None or job.settings.compile:
        return None
    batch, more = job.batches.draw(state.progress.step), micro_batch_of(job, state) // 2
    while more >= 2 and not has_lone_values(job.batches, state.model.depth, more // 2):
        taken = [attempt(_measure_pass, job, state, batch, count) for count in (more // 2, more)]
        if taken[0] is not None and taken[1] is not None:
            return PassBytes((more // 2, taken[0]), (more, taken[1]))
        more //= 2
    return None


def choose_micro_batch(job: Job, state: TrainingState, passes: PassBytes | None) -> Choice | None:
    """Where whole batches are predicted not to fit into free memory: the largest of equal parts that do.

    The state's progress keeps it, as it does where memory ran out. None: nothing is chosen, since all fits, or
    somebody has said how many, or nothing is known.
    """
    batch, here = job.batches.batch, room_bytes(job.batches.pictures.device)
    # all ranks have to choose alike
    room = job.ranks.least(-1 if passes is None or here is None else int(_PLANNED * here))
    if passes is None or room < 0 or job.settings.micro_batch or state.progress.micro_batch:
        return None
    whole = predict_training_bytes(job, state, passes, batch).coming
    if whole <= room:
        return None
    for size in _parts(job, state, batch):
        state.progress.micro_batch = size
        if predict_training_bytes(job, state, passes, size).coming <= room:
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
        reason.format(batch=settled(job.settings.batch), needed=whole / _GIB, room=room / _GIB),
    )


def room_bytes(device: torch.device) -> int | None:
    """Memory that torch can still give out on a GPU; None elsewhere.

    On the CPU nothing is refused: what does not fit is swapped, what is free is the system's guess, and other
    programs' memory comes and goes. A smaller micro-batch changes what batch norm sees, so it is not risked there.
    """
    if device.type != "cuda":
        return None
    return free_bytes(device) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _measure_pass(job: Job, state: TrainingState, batch: Batch, pictures: int) -> int:
    """The most that is given out during a pass, with the batch."""
    before = torch.cuda.memory_allocated(batch.image.device)
    torch.cuda.reset_peak_memory_stats(batch.image.device)
    try_pass(job, state, batch, pictures)
    taken = torch.cuda.max_memory_allocated(batch.image.device) - before
    return taken + batch.image.nbytes + batch.target.nbytes


def try_pass(job: Job, state: TrainingState, batch: Batch, pictures: int) -> None:
    """Gradients of a batch's first pictures, made and dropped; the state is as it was."""
    image, target = batch.image[:pictures], batch.target[:pictures]
    more = None if batch.more is None else batch.more[:pictures]
    state.model.train()
    state.statistics.keep()
    try:
        with autocast(image.device, job.settings):
            logits = state.model(image)
        counts = job.loss.count(target, len(job.class_names), more)
        job.loss.of_step(job.loss.sum(logits, target, more), counts).backward()  # type: ignore[no-untyped-call]
    finally:
        state.optimizer.zero_grad()
        state.statistics.restore()


def _parts(job: Job, state: TrainingState, batch: int) -> list[int]:
    """Sizes of 2, 3, ... parts of a batch, as equal as can be, that can be trained on; largest first."""
    sizes = dict.fromkeys(math.ceil(batch / count) for count in range(2, batch + 1))
    return [size for size in sizes if not has_lone_values(job.batches, state.model.depth, size)]
