"""Adam and SGD, learning rate of a step, weight averaging."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from ubend.config import TrainSettings, settled

_ONE_CYCLE_START = 25.0  # the peak over the first rate (Smith & Topin 2018 as in common use)
_ONE_CYCLE_END = 1e4  # the first rate over the last


class Adam:
    """Adam or AdamW, with torch's defaults, steps and state.

    Not `torch.optim.Adam`, whose first use imports torch's compiler: 1.3 to 2 s before every training.

    Args:
        groups: each with `params`, `lr` and `weight_decay`. `lr` may be changed between steps; where a CUDA graph
            holds them it is a scalar tensor on the device.
        decoupled: AdamW's decay of the weights, apart from the gradients; else Adam's.
        fused: one launch for all parameters of a group; on CUDA and CPU.

    Attributes:
        param_groups: `groups`.
        state: of each parameter that was stepped: `step`, `exp_avg`, `exp_avg_sq`.
    Sources: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def __init__(self, groups: list[dict[str, Any]], *, decoupled: bool, fused: bool) -> None:
        self.param_groups, self.decoupled, self.fused = groups, decoupled, fused
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self.state_of(parameter) for parameter in moved]
            adam(
                moved,
                [parameter.grad for parameter in moved],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=self.fused,
                decoupled_weight_decay=self.decoupled,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=1e-8,
                maximize=False,
            )

    def zero_grad(self) -> None:
        """Free the gradients."""
        _free_gradients(self.param_groups)

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept of a parameter; zeros before its first step."""
        if parameter not in self.state:
            device = parameter.device if self.fused else torch.device("cpu")
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        return self.state[parameter]


class SGD:
    """Stochastic gradient descent with momentum: v = momentum v + gradient, parameter -= lr v.

    Args:
        groups: as of `Adam`; the decay is added to the gradients.
        momentum: share of v that stays; a constant gradient moves a parameter by lr / (1 - momentum) of it in the end.

    Attributes:
        param_groups: as of `Adam`.
        state: of each parameter that was stepped: `momentum`, the v above.
    Source: Polyak 1964, in the form of Sutskever et al. 2013 without Nesterov's change, and of torch.optim.SGD.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        self.param_groups, self.momentum = groups, momentum
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            speeds = [self.state_of(parameter)["momentum"] for parameter in moved]
            torch._foreach_mul_(speeds, self.momentum)
            torch._foreach_add_(speeds, [parameter.grad for parameter in moved])
            if group["weight_decay"]:
                torch._foreach_add_(speeds, moved, alpha=group["weight_decay"])
            torch._foreach_sub_(moved, torch._foreach_mul(speeds, group["lr"]))

    def zero_grad(self) -> None:
        """Free the gradients."""
        _free_gradients(self.param_groups)

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept of a parameter; zeros before its first step."""
        if parameter not in self.state:
            self.state[parameter] = {"momentum": torch.zeros_like(parameter, memory_format=torch.preserve_format)}
        return self.state[parameter]


Optimizer = Adam | SGD


def _free_gradients(groups: list[dict[str, Any]]) -> None:
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = None


def make_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Adam, AdamW or SGD; biases and batch norms are not decayed."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "lr": settled(settings.learning_rate), "weight_decay": settings.weight_decay},
        {"params": others, "lr": settled(settings.learning_rate), "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return SGD(groups, settings.momentum)
    device = weights[0].device.type
    return Adam(groups, decoupled=settings.optimizer == "adamw", fused=device in ("cuda", "cpu"))


def learning_rate_at(step: int, steps: int, settings: TrainSettings) -> float:
    """The learning rate of step `step` of `steps`.

    one-cycle rises from a 25th of the peak and falls to a 250,000th, both along half a cosine (Smith &
    Topin 2018, arXiv:1708.07120); cosine rises linearly from zero and falls to zero.
    """
    peak = settled(settings.learning_rate)
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
