"""One optimiser step on one effective batch, in micro-batches that memory has room for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ubend.core.counter_rng import draw_bits
from ubend.core.device import attempt, has_compiler
from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.core.progress import Teller
from ubend.core.settings import TrainSettings
from ubend.dataset.batches import Batch, TrainingBatches
from ubend.dataset.sources import Source
from ubend.training.checkpoint import TrainingState
from ubend.training.distributed import ALONE, EarlySums, Ranks, sum_step
from ubend.training.losses import Loss
from ubend.training.optim import averaging_decay, learning_rate_at, update_average
from ubend.training.run_folder import RunFolder
from ubend.training.setup import has_lone_values

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """All that stays the same while training.

    Attributes:
        batches: the training part.
        validation: the pictures, or windows of them, that choose the weights.
        class_names: of the class table.
        loss: what is made small.
        settings: resolved; no None is left.
        steps: of the whole training.
        run: where it is written.
        after_epoch: called with the state after each epoch's row is in the history; what it returns is called in the
            thread that writes.
        save_model: writes the model file, given the weights that are kept.
        forward: (N, C, H, W) raw values -> (N, classes, H, W) logits of the network in training; itself, or a faster
            function of the same weights.
        forward_average: the same of the averaged weights, to validate with.
        ranks: the processes that train together.
        early_sums: what `forward` gives gradients to as soon as they are there; most networks give it nothing.
    """

    batches: TrainingBatches
    validation: Source
    class_names: tuple[str, ...]
    loss: Loss
    settings: TrainSettings
    steps: int
    run: RunFolder
    after_epoch: Callable[[TrainingState], Callable[[], None]]
    save_model: Callable[[Mapping[str, Tensor]], None]
    _: KW_ONLY
    forward: Forward
    forward_average: Forward
    ranks: Ranks = ALONE
    early_sums: EarlySums = field(default_factory=lambda: EarlySums(ALONE))


class Step:
    """`step(k)` takes the step k of a job, from the state as it stands; no host sync."""

    def __init__(self, job: Job, state: TrainingState, teller: Teller) -> None:
        self.job, self.state, self.teller = job, state, teller
        self._forward = _compiled(state.model, teller) if job.settings.compile else job.forward
        self._draws = state.model.is_stochastic

    def __call__(self, step: int) -> None:
        batch = self.job.batches.draw(step)

        def begin() -> Batch:
            if self._draws:
                self._seed_dropout(step)
            return batch

        with torch.random.fork_rng(self._generators(), enabled=self._draws):
            self.state.sums += self._gradients_in_memory(begin)
        for group in self.state.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.job.steps, self.job.settings)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad()
        if self.state.average is not self.state.model:
            update_average(self.state.average, self.state.model, averaging_decay(step, self.job.settings.average_decay))

    def _seed_dropout(self, step: int) -> None:
        """What is dropped is a function of (seed, step, process), so that a resumed run drops the same."""
        position = np.array([step * self.job.ranks.count + self.job.ranks.rank])
        torch.manual_seed(int(draw_bits(self.job.settings.seed, "dropout", position, 1)[0, 0]) >> 1)

    def _generators(self) -> list[torch.device]:
        """The devices, but for the CPU, whose generators dropout moves."""
        device = self.job.batches.pictures.device
        return [device] if device.type == "cuda" else []

    def _gradients_in_memory(self, draw: Callable[[], Batch]) -> Tensor:
        """As `_gradients`; where memory runs out they are begun again, in smaller parts.

        Until all gradients are there, nothing has changed but batch norm's running statistics.
        """
        self.state.statistics.keep()
        while (sums := attempt(lambda: self._gradients(draw()))) is None:
            self.state.optimizer.zero_grad()
            self.state.statistics.restore()
            self._halve_micro_batch()
        return sums

    def _gradients(self, batch: Batch) -> Tensor:
        """The gradients of a batch in the parameters; returns its sums, as in `TrainingState.sums`."""
        job, state = self.job, self.state
        counts = job.loss.count(batch.target, len(job.class_names), batch.more)
        job.ranks.sum_tensors(counts)
        found = torch.zeros_like(state.sums)
        state.model.train()
        for image, target, more in _micro_batches(batch, micro_batch_of(job, state)):
            with autocast(image.device, job.settings):
                logits = self._forward(image)
            sums = job.loss.sum(logits, target, more)
            job.loss.of_step(sums, counts).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                found[0::2] += torch.stack(sums)
        sum_step(job.ranks, state.model, found, job.early_sums.take())
        found[1::2] += torch.stack(counts)
        return found

    def _halve_micro_batch(self) -> None:
        before, ranks = micro_batch_of(self.job, self.state), self.job.ranks
        size = before // 2
        if ranks.count > 1:  # to halve together, all would have to wait for each other in every step
            raise SettingError(
                _(
                    "the device of process {rank} ran out of memory with {count} pictures at a time; set "
                    "train.micro_batch = {size} (for --resume in {settings})"
                ).format(rank=ranks.rank, count=before, size=max(1, size), settings=self.job.run.settings),
                key="train.micro_batch",
            )
        while size and has_lone_values(self.job.batches, self.state.model.depth, size):
            size -= 1
        if size == 0:
            raise SettingError(
                _(
                    "the device ran out of memory with {count} pictures at a time, and fewer cannot be trained on; "
                    "use a smaller --size, --width or data.window, or --device cpu"
                ).format(count=before),
                key="train.micro_batch",
            )
        self.state.progress.micro_batch = size
        self.teller.say(
            _(
                "note: out of memory with {before} pictures at a time; the step is repeated, and training goes on, "
                "with {size} at a time (the steps stay those of {batch} pictures)"
            ).format(before=before, size=size, batch=self.job.batches.batch)
        )


def micro_batch_of(job: Job, state: TrainingState) -> int:
    """Pictures in memory at once, as a training stands: as memory and the settings allow."""
    batch = job.batches.batch
    return min(batch, job.settings.micro_batch or batch, state.progress.micro_batch or batch)


def _compiled(model: nn.Module, teller: Teller) -> Forward:
    if has_compiler():
        compiled: Forward = torch.compile(model)
        return compiled
    teller.say(_("note: no C compiler was found, so training goes on uncompiled (the same results, slower)"))
    return model


def _micro_batches(batch: Batch, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    images = torch.split(batch.image, size)
    more = [None] * len(images) if batch.more is None else torch.split(batch.more, size)
    return zip(images, torch.split(batch.target, size), more, strict=True)


def autocast(device: torch.device, settings: TrainSettings) -> Any:
    """A context in which the network computes in the training's precision."""
    if settings.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
