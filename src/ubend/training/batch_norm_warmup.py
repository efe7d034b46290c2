"""Batch norm warm-up: the first steps, in which the running statistics still contain much of their initial values.

Validated with them, a network predicts one class for ten epochs on small data sets (measured: docs/experiments.md).

- With an EMA of the weights, its statistics are measured on the last training batches before each validation.
- Without, the network that is trained is also the one that is validated, as in the course text, and keeps its
  statistics. The validation scores with the statistics of the validation images are shown beside the usual ones; no
  weights are chosen by them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ubend.training.distributed import ProcessGroup
from ubend.training.training import Training

# Steps after which less than 0.5% of the statistics is initial values: batch norm's momentum is 0.1, and the EMA's
# decay (1 + step) / (10 + step). Counted step by step: 0.4% after 60, 6% after 30.
BATCH_NORM_WARMUP_STEPS = 60
_MEASURED_BATCHES = 8


def in_batch_norm_warmup(training: Training, step: int) -> bool:
    """Whether the running statistics have not settled after `step` steps."""
    model, canvas_hw = training.state.model, training.validation.canvas_hw
    values = math.prod(math.ceil(side / 2**model.depth) for side in canvas_hw)  # one value has no variance
    return model.has_batch_norm and step <= BATCH_NORM_WARMUP_STEPS and values > 1


def shows_batch_statistics(training: Training, step: int) -> bool:
    """Whether a validation after `step` steps should also show the score with batch statistics."""
    has_ema = training.state.ema is not training.state.model
    # layers that synchronise would wait for batches that other processes do not have
    return in_batch_norm_warmup(training, step) and not has_ema and not training.settings.sync_batch_norm


def settle_statistics(training: Training, processes: ProcessGroup) -> None:
    """During the warm-up, measure the batch norm statistics of the EMA; without an EMA, do nothing."""
    state = training.state
    if state.ema is not state.model and in_batch_norm_warmup(training, state.progress.step):
        measure_batch_norm(training, processes, _MEASURED_BATCHES)


@torch.no_grad()
def measure_batch_norm(training: Training, processes: ProcessGroup, batches: int) -> None:
    """Set the running statistics of the EMA's batch norms to their mean over the last training batches.

    Args:
        batches: their number; fewer if there were fewer steps.
    """
    network, steps = training.state.ema, training.state.progress.step
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    network.eval()  # dropout is off
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # equal weights
    for step in range(max(0, steps - batches), steps):
        for micro_batch in training.batches.sample(step).split(training.micro_batch):
            with training.autocast():
                network(micro_batch.image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
    statistics = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
    processes.sum_tensors(statistics)
    torch._foreach_div_(statistics, processes.count)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """A context in which batch norm uses the statistics of its input.

    Args:
        network: in `eval` mode; its running statistics are not changed.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, tracks in zip(norms, kept, strict=True):
            norm.training, norm.track_running_stats = False, tracks
