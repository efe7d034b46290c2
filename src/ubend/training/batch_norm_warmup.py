"""Batch norm warm-up: the first steps, in which the running statistics still contain much of their initial values.

Validation scores are then too low: on small data sets the network predicts one class for ten epochs (measured:
docs/experiments.md). With the statistics of the validation images, the same weights show what has been learned.
These scores are only displayed; no weights are chosen by them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ubend.training.training import Training

# Steps after which less than 0.5% of the statistics is initial values: batch norm's momentum is 0.1, and the EMA's
# decay (1 + step) / (10 + step). Counted step by step: 0.4% after 60, 6% after 30.
BATCH_NORM_WARMUP_STEPS = 60


def in_batch_norm_warmup(training: Training, step: int) -> bool:
    """Whether a validation after `step` steps should also show the score with batch statistics."""
    model, canvas_hw = training.state.model, training.validation.canvas_hw
    values = math.prod(math.ceil(side / 2**model.depth) for side in canvas_hw)  # one value has no variance
    # layers that synchronise would wait for batches that other processes do not have
    synchronised = training.settings.sync_batch_norm and training.state.ema is model
    return model.has_batch_norm and step <= BATCH_NORM_WARMUP_STEPS and values > 1 and not synchronised


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
