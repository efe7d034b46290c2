"""Synchronised batch norm over the images of all ranks; also on the CPU, which torch's own does not support.

N images of this rank, C channels, H x W pixels; every rank has the same number.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.training.distributed import ProcessGroup


def synchronise_batch_norm(model: nn.Module, processes: ProcessGroup) -> None:
    """Replace the model's batch norms by synchronised ones with the same parameters."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SyncedBatchNorm(child, processes))


class SyncedBatchNorm(nn.BatchNorm2d):
    """A batch norm over all ranks with the parameters and buffers of `like`. (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, like: nn.BatchNorm2d, processes: ProcessGroup) -> None:
        super().__init__(like.num_features, like.eps, like.momentum)
        self.weight, self.bias = like.weight, like.bias
        self.running_mean, self.running_var = like.running_mean, like.running_var
        self.num_batches_tracked = like.num_batches_tracked
        self._processes = processes

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiler must not reorder messages
    def forward(self, input: Tensor) -> Tensor:
        """Normalise with statistics of all ranks while training, with running statistics otherwise."""
        if not self.training:
            return super().forward(input)
        out, mean, var = _Normalised.apply(input, self.weight, self.bias, self.eps, self._processes)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            count = input.numel() // input.shape[1] * self._processes.count
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / max(1, count - 1)), self.momentum)
        normalised: Tensor = out
        return normalised


class _Normalised(torch.autograd.Function):
    """Normalise by mean and variance over all ranks.

    The gradient with fixed statistics, which torch has for every device, plus the gradient through mean and variance,
    which is affine in the input of each channel:

        dx = w s (dy - sum(dy) / n - x^ sum(dy x^) / n),   s = 1 / sqrt(var + eps),   x^ = (x - mean) s

    where n and the sums are of all ranks. The gradients of weight and bias are those of this rank's images; they are
    summed over the ranks after the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, processes: ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor]:
        own_var, own_mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        mean64 = own_mean.double()  # so that the difference of squares below loses no precision
        moments = torch.stack([mean64, own_var.double() + mean64.square()])
        processes.sum_tensors([moments])
        moments /= processes.count
        mean = moments[0].float()
        var = (moments[1] - moments[0].square()).clamp_min(0).float()
        out = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.processes = eps, processes
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        scale = (var + ctx.eps).rsqrt()
        fixed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, var, mean, scale, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias])  # sum(dy x^), sum(dy)
        ctx.processes.sum_tensors([sums])
        sums /= x.numel() // x.shape[1] * ctx.processes.count
        slope = -weight * scale.square() * sums[0]
        level = -weight * scale * sums[1] - slope * mean
        through = x * slope[:, None, None] + level[:, None, None]
        return (fixed + through).to(x.dtype), of_weight, of_bias, None, None
