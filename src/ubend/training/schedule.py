"""Parameter groups, learning rate of a step, weight averaging."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ubend.config import TrainSettings

_ONE_CYCLE_START = 25.0  # the peak over the first rate (Smith & Topin 2018 as in common use)
_ONE_CYCLE_END = 1e4  # the first rate over the last


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Adam:
    """Adam or AdamW, one launch for all parameters; biases and batch norms are not decayed."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    device = weights[0].device.type
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate, fused=device in ("cuda", "cpu"))


def learning_rate_at(step: int, steps: int, settings: TrainSettings) -> float:
    """The learning rate of step `step` of `steps`.

    one-cycle rises from a 25th of the peak and falls to a 250,000th, both along half a cosine (Smith &
    Topin 2018, arXiv:1708.07120); cosine rises linearly from zero and falls to zero.
    """
    peak = settings.learning_rate
    if settings.schedule == "constant":
        return peak
    rise = settings.warmup * steps
    if step < rise:
        share = (step + 1) / (rise + 1)
        if settings.schedule == "cosine":
            return peak * share
        start = peak / _ONE_CYCLE_START
        return start + (peak - start) * 0.5 * (1 - math.cos(math.pi * share))
    share = (step - rise) / max(1.0, steps - rise)
    end = 0.0 if settings.schedule == "cosine" else peak / _ONE_CYCLE_START / _ONE_CYCLE_END
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def averaging_decay(step: int, decay: float) -> float:
    """The decay after step `step`: grows from 0.1 towards `decay`, so that short runs average too."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, for weights and batch norm statistics alike."""
    mine, theirs = list(_float_state(average)), list(_float_state(model))
    torch._foreach_lerp_(mine, theirs, 1.0 - decay)


def _float_state(model: nn.Module) -> Iterable[Tensor]:
    return (t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point())
