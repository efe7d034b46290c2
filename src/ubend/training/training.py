"""What a training consists of: settings, data, loss, and the state that its steps change."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ubend.core.plan import TrainPlan
from ubend.dataset.batches import TrainingBatches
from ubend.dataset.sources import ItemSource
from ubend.training.checkpoint import TrainingState
from ubend.training.losses import Loss
from ubend.training.optim import learning_rate_at

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Training:
    """The model, data and loss of a training.

    Attributes:
        settings: the resolved settings of the section `[train]`.
        class_names: in the order of the class index.
        batches: batches of the training split.
        validation: the validation split.
        loss: the training loss.
        state: the network, its EMA, the optimizer and the progress.
        forward: (N, C, H, W) raw values -> (N, classes, H, W) logits of the network; `forward_ema`: of its EMA.
    """

    settings: TrainPlan
    class_names: tuple[str, ...]
    batches: TrainingBatches
    validation: ItemSource
    loss: Loss
    state: TrainingState
    forward: Forward
    forward_ema: Forward

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_until(self.settings.epochs)

    def steps_until(self, epochs: int) -> int:
        """Steps of the first `epochs` epochs, at least one per epoch; every batch is full."""
        return max(epochs, round(epochs * self.batches.items_per_epoch / self.settings.batch))

    @property
    def part_ends(self) -> list[int]:
        """Epochs at which the trunk and each branch end, see branches.py; one branch: the two halves."""
        parts = self.settings.branches + 1
        return [round(self.settings.epochs * part / parts) for part in range(1, parts + 1)]

    def learning_rate_at(self, step: int) -> float:
        """The learning rate at `step` (from 0): the schedule runs along the trunk and each of its branches."""
        trunk, *ends = map(self.steps_until, self.part_ends)
        start, end = next((start, end) for start, end in itertools.pairwise([trunk, *ends]) if step < end)
        scheduled = step if step < trunk else trunk + step - start
        return learning_rate_at(scheduled, trunk + end - start, self.settings)

    @property
    def micro_batch(self) -> int:
        """Images in memory at once: as many as the settings and memory allow."""
        batch = self.batches.batch_per_process
        return min(batch, self.settings.micro_batch, self.state.progress.micro_batch or batch)

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which networks compute in the precision of the settings."""
        return autocast(self.state.sums.device, self.settings)


def autocast(device: torch.device, settings: TrainPlan) -> AbstractContextManager[object]:
    """A context in which networks compute in the precision of the settings."""
    return torch.autocast(device.type, torch.bfloat16) if settings.precision == "bfloat16" else nullcontext()
