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
from torch.nn.modules.batchnorm import _BatchNorm

from ubend.core.i18n import _
from ubend.training.checkpoint import restore_fork, save_fork
from ubend.training.distributed import ProcessGroup
from ubend.training.training import Training

_STATISTICS_BATCHES = 60  # batches over which batch norm's statistics of the mean are measured


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
    measure_batch_norm(training, processes)
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


@torch.no_grad()
def measure_batch_norm(training: Training, processes: ProcessGroup) -> None:
    """Set the running statistics of the EMA's batch norms to their mean over the last training batches."""
    network = training.state.ema
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    network.eval()  # dropout is off
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # equal weights
    for step in range(max(0, training.steps - _STATISTICS_BATCHES), training.steps):
        for micro_batch in training.batches.sample(step).split(training.micro_batch):
            with training.autocast():
                network(micro_batch.image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
    statistics = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
    processes.sum_tensors(statistics)
    torch._foreach_div_(statistics, processes.count)


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
