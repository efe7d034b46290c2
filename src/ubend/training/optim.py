"""Optimizers (Adam, SGD), learning rate schedules and the EMA of the weights."""

import math
from collections.abc import Callable, Iterable, Sequence
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

from ubend.core.plan import TrainPlan

_ONE_CYCLE_START = 25.0  # peak / first rate: div_factor of torch's OneCycleLR
_ONE_CYCLE_END = 1e4  # first rate / last rate: final_div_factor of torch's OneCycleLR


def without_compiler(kind: type[torch.optim.Optimizer]) -> Any:
    """An optimizer class whose methods do not import torch's compiler, which takes 1.3 to 2 s."""
    methods = {name: unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})


class SGD(without_compiler(torch.optim.SGD)):  # type: ignore[misc]
    """torch.optim.SGD with a step that rounds identically on all devices; the learning rate may be a device tensor.

    v = momentum v + gradient, parameter -= lr v; weight decay is added to the gradient. Under a constant gradient g
    the step converges to lr g / (1 - momentum).
    Source: Polyak 1964, in the form of Sutskever et al. 2013 without Nesterov momentum, and of torch.optim.SGD.
    """

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for parameter_group in self.param_groups:
            moved = [parameter for parameter in parameter_group["params"] if parameter.grad is not None]
            for parameter in moved:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            momenta = [self.state[parameter]["momentum"] for parameter in moved]
            torch._foreach_mul_(momenta, parameter_group["momentum"])
            torch._foreach_add_(momenta, [parameter.grad for parameter in moved])
            if parameter_group["weight_decay"]:
                torch._foreach_add_(momenta, moved, alpha=parameter_group["weight_decay"])
            torch._foreach_sub_(moved, torch._foreach_mul(momenta, parameter_group["lr"]))


def make_optimizer(
    model: nn.Module, settings: TrainPlan, encoder: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD; biases and batch norm parameters get no weight decay.

    Each parameter group has its `rate_scale`, by which `learning_rate_at` is multiplied.

    Args:
        encoder: the parameters whose learning rate is multiplied by `settings.encoder_rate`.
    """
    inside = set(encoder)
    parts = [([p for p in model.parameters() if p not in inside and p.requires_grad], 1.0)]
    parts += [([*encoder], settings.encoder_rate)] if encoder else []
    parameter_groups = [
        {"params": [p for p in part if (p.ndim > 1) is decays], "weight_decay": decay, "rate_scale": scale}
        for part, scale in parts
        for decays, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    rate, device = settings.learning_rate, next(model.parameters()).device.type
    if settings.optimizer == "sgd":
        return SGD(parameter_groups, lr=rate, momentum=settings.momentum)
    adam = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    kind: Callable[..., torch.optim.Optimizer] = without_compiler(adam)
    return kind(parameter_groups, lr=rate, fused=device in ("cuda", "cpu"), capturable=device == "cuda")


def learning_rate_at(step: int, steps: int, settings: TrainPlan) -> float:
    """The learning rate at step `step` (from 0) of `steps`.

    one-cycle rises from 1/25 of the peak and falls to 1/250,000, both along half a cosine (Smith &
    Topin 2018, arXiv:1708.07120); cosine rises linearly from near zero and falls towards zero; constant stays at the
    peak, without a warm-up.
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


def ema_decay(step: int, decay: float) -> float:
    """The decay after step `step`: it grows from 0.1 to `decay`, so that averaging also works in short runs."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * model, for weights and batch norm statistics."""
    averaged, current = list(_float_state(ema)), list(_float_state(model))
    torch._foreach_lerp_(averaged, current, 1.0 - decay)


def _float_state(model: nn.Module) -> Iterable[Tensor]:
    return (t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point())
