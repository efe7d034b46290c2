"""Out-of-memory handling: a step is repeated with smaller micro-batches, and validation continues with smaller batches.

Gradients and sums are still those of the whole batch (loop.py); batch norm then sees fewer images at a time.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.core.device import attempt
from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.batches import Batch
from ubend.training.loop import Runtime
from ubend.training.training import Training


class LimitedMemoryRuntime(Runtime):
    """Wraps a runtime: steps and validation passes that run out of memory are repeated at half the size.

    Before the optimizer's update, a step changes only batch norm's running statistics; they are saved and restored.
    """

    def __init__(self, runtime: Runtime, reporter: Reporter) -> None:
        super().__init__(runtime.training, runtime.processes)
        self.runtime, self._reporter = runtime, reporter

    def backward(self, step: int, batch: Batch) -> Tensor:
        state = self.training.state
        state.statistics.keep()
        while (sums := attempt(self.runtime.backward, step, batch)) is None:
            state.optimizer.zero_grad()
            state.statistics.restore()
            self._halve_micro_batch()
        return sums

    def measure(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        pieces: list[tuple[Tensor, Tensor]] = []
        while len(items):
            part = items[: self.training.state.progress.validation_batch]
            measured = attempt(self.runtime.measure, part)
            if measured is None:
                self._halve_validation_batch(len(part))
                continue
            pieces.append(measured)
            items = items[len(part) :]
        sums_of_pieces, confusions = zip(*pieces, strict=True)
        return torch.stack(sums_of_pieces).sum(dim=0), torch.cat(confusions)

    def _halve_micro_batch(self) -> None:
        training, before = self.training, self.training.micro_batch
        size = before // 2
        if self.processes.count > 1:  # all processes would have to halve together: a synchronisation in every step
            raise SettingError(
                _(
                    "the device of process {rank} ran out of memory with {count} images at a time; use --set "
                    "train.micro_batch={size}, or set it in the run's settings.toml for --resume"
                ).format(rank=self.processes.rank, count=before, size=max(1, size)),
                key="train.micro_batch",
            )
        while size and has_single_values(training, size):
            size -= 1
        if size == 0:
            raise SettingError(
                _(
                    "the device ran out of memory with {count} images at a time, and training needs at least that "
                    "many; use a smaller --size or data.crop, or --device cpu"
                ).format(count=before),
                key="train.micro_batch",
            )
        training.state.progress.micro_batch = size
        self._reporter.report(
            _(
                "note: out of memory with {before} images at a time; the step is repeated, and training continues with "
                "{size} at a time (each step still uses {batch} images)"
            ).format(before=before, size=size, batch=training.batches.batch_per_process)
        )

    def _halve_validation_batch(self, before: int) -> None:
        if before == 1:
            raise SettingError(
                _("the device ran out of memory while validating one image; use a smaller --size, or --device cpu"),
                key="data.size",
            )
        self.training.state.progress.validation_batch = before // 2
        self._reporter.report(
            _(
                "note: out of memory while validating {before} images at a time; validation continues with {size}"
            ).format(before=before, size=before // 2)
        )


def has_single_values(training: Training, micro_batch: int) -> bool:
    """Whether batch norm would see one value per channel (it needs two) at the deepest level of a micro-batch."""
    smallest, depth = training.batches.batch_per_process % micro_batch or micro_batch, training.state.model.depth
    values = smallest * math.prod(math.ceil(side / 2**depth) for side in training.batches.crop_hw)
    return training.state.model.has_batch_norm and values < 2


def refuse_single_values(training: Training) -> None:
    """Raise SettingError if `has_single_values`, so that the first step does not fail with torch's message."""
    if has_single_values(training, training.micro_batch):
        raise SettingError(
            _(
                "train.batch = {batch} (in micro-batches of {micro}) leaves a single value per channel at the deepest "
                "of {levels} levels, for which batch norm is undefined; use a larger --batch, a larger --size or a "
                "smaller model.depth"
            ).format(batch=training.settings.batch, micro=training.micro_batch, levels=training.state.model.depth + 1),
            key="train.batch",
        )
