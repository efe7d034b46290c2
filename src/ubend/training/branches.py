"""Branches: the second part of a training, run several times from the same state; the weights are averaged.

    trunk -> branch 1
          -> branch 2  -> mean of the averaged weights (EMA), with batch norm statistics of its own
          -> branch 3

The learning rate falls along each branch as it would without branches, and each branch sees other batches. Since the
branches start from the same weights, the mean of their weights is a network too, and usually a better one than each of
them. It is as fast as one of them.

Source: Gupta et al. 2020, arXiv:2001.02312 (SWAP), here one branch after the other; measured in docs/experiments.md.
"""

import numpy as np
import torch

from ubend.core.i18n import _
from ubend.training.batch_norm_warmup import measure_batch_norm
from ubend.training.checkpoint import restore_fork, save_fork
from ubend.training.distributed import ProcessGroup
from ubend.training.training import Training

_STATISTICS_BATCHES = 60  # training batches over which batch norm's statistics of the mean are measured


def begins_branch(training: Training) -> bool:
    """Whether the next step is the first one of a branch, and the branch has not begun yet."""
    progress = training.state.progress
    branch_starts = training.part_ends[:-1] if training.settings.branches > 1 else []
    epochs = len(progress.history)
    return epochs in branch_starts and progress.step == training.steps_until(epochs)


@torch.no_grad()
def begin_branch(training: Training) -> None:
    """Go back to the end of the trunk; the end of the branch before is added to the mean."""
    state = training.state
    if state.progress.branch == 0:
        save_fork(state)
    else:
        _add_to_mean(training)
        restore_fork(state)
    state.progress.branch += 1


@torch.no_grad()
def finish_branches(training: Training, processes: ProcessGroup) -> bool:
    """After the last step of the last branch: replace the EMA by the mean over all branches.

    Returns:
        Whether it was replaced; False before the last epoch, and without branches.
    """
    state, settings = training.state, training.settings
    if settings.branches == 1 or len(state.progress.history) + 1 < settings.epochs:
        return False
    _add_to_mean(training)
    for name, tensor in state.ema.state_dict().items():
        tensor.copy_(state.mean[name])
    measure_batch_norm(training, processes, _STATISTICS_BATCHES)
    return True


def _add_to_mean(training: Training) -> None:
    """Add the EMA at the end of a branch to the mean; integers, batch norm's numbers of batches, are those of the
    last branch."""
    state = training.state
    if not state.mean:
        state.mean = {name: torch.zeros_like(tensor) for name, tensor in state.ema.state_dict().items()}
    for name, tensor in state.ema.state_dict().items():
        if tensor.is_floating_point():
            state.mean[name].lerp_(tensor, 1 / state.progress.branch)
        else:
            state.mean[name].copy_(tensor)


def is_better_than_branches(training: Training, val_loss: float) -> bool:
    """Whether the mean over the branches, the EMA after the last epoch, is better than the branches at their ends.

    If it is, it is kept even where a single epoch has a better score: the best of many epochs on few validation images
    is partly chance. It is worse if the branches have ended in different minima.

    Args:
        val_loss: validation loss of the mean.
    """
    history = training.state.progress.history
    # the end of the last branch is not validated: its last epoch validates the mean
    return val_loss < float(np.mean([history[end - 1]["val_loss"] for end in training.part_ends[1:-1]]))


def describe_mean(training: Training) -> str | None:
    """One line after the last epoch: whether the mean over the branches is kept; None before and without branches."""
    settings, progress = training.settings, training.state.progress
    if settings.branches == 1 or len(progress.history) < settings.epochs:
        return None
    if progress.best_epoch == settings.epochs:
        return _("kept: the mean of the weights of {count} branches").format(count=settings.branches)
    line = _("note: the mean of the weights of {count} branches is worse than the branches, so epoch {epoch} is kept")
    return line.format(count=settings.branches, epoch=progress.best_epoch)
