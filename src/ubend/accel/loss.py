"""Cross entropy and soft Dice of a batch, and their gradient, each in one pass over the logits.

The counterpart of `ubend.training.losses.Loss.sum` (all kinds except dice+focal). A program processes all classes of
PIXELS pixels of one image; sums are computed in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ubend.core.settings import LossKind
from ubend.training.losses import EPSILON, MIN_DICE

MAX_CLASSES = 32  # that a program holds at once; with more, the plain implementation is used
_PIXELS = 1024  # largest number of pixels per program; fewer with many classes


@triton.jit
def _load(logits, target, image, pixel, pixels, classes, CLASSES: tl.constexpr):
    """Log-softmax (CLASSES, PIXELS), its exponential, the one-hot target, and (PIXELS,) which pixels are scored."""
    kind = tl.arange(0, CLASSES)
    at = (image * classes + kind).to(tl.int64)[:, None] * pixels + pixel[None, :]
    mask = (kind < classes)[:, None] & (pixel < pixels)[None, :]
    value = tl.load(logits + at, mask=mask, other=float("-inf"))
    value = tl.where((pixel < pixels)[None, :] | (kind > 0)[:, None], value, 0.0)  # no NaN beyond the end
    value -= tl.max(value, axis=0)[None, :]
    log_prob = value - tl.log(tl.sum(tl.exp(value), axis=0))[None, :]
    truth = tl.load(target + image.to(tl.int64) * pixels + pixel, mask=pixel < pixels, other=255)
    hot = (truth[None, :] == kind[:, None]) & mask
    return log_prob, tl.exp(log_prob), hot, truth < classes


@triton.jit
def _sum(logits, target, weights, partial, pixels, classes, CLASSES: tl.constexpr, PIXELS: tl.constexpr):
    """partial[image, part] = sums of each class: weighted cross entropy, overlap, probability, true pixels."""
    image, part = tl.program_id(0), tl.program_id(1)
    kind = tl.arange(0, CLASSES)
    pixel = part * PIXELS + tl.arange(0, PIXELS)
    log_prob, prob, hot, scored = _load(logits, target, image, pixel, pixels, classes, CLASSES)
    out = partial + ((image * tl.num_programs(1) + part) * 4 * classes) + kind
    weight = tl.load(weights + kind, mask=kind < classes, other=0.0)
    entropy = -tl.sum(tl.where(hot, log_prob, 0.0), axis=1) * weight
    tl.store(out, entropy, mask=kind < classes)
    tl.store(out + classes, tl.sum(tl.where(hot, prob, 0.0), axis=1), mask=kind < classes)
    tl.store(out + 2 * classes, tl.sum(tl.where(scored[None, :], prob, 0.0), axis=1), mask=kind < classes)
    tl.store(out + 3 * classes, tl.sum(hot.to(tl.float32), axis=1), mask=kind < classes)


@triton.jit
def _differentiate(
    logits,
    target,
    weights,
    entropy_scale,
    in_truth,
    everywhere,
    out,
    pixels,
    classes,
    CLASSES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """out = entropy_scale * weight * (p - hot) + the softmax's gradient of dp = in_truth * hot + everywhere."""
    image = tl.program_id(0)
    kind = tl.arange(0, CLASSES)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    _log_prob, prob, hot, scored = _load(logits, target, image, pixel, pixels, classes, CLASSES)
    at = image * classes + kind
    inner = tl.load(in_truth + at, mask=kind < classes, other=0.0)[:, None]
    outer = tl.load(everywhere + at, mask=kind < classes, other=0.0)[:, None]
    slope = tl.where(hot, inner, 0.0) + outer
    dice = prob * (slope - tl.sum(prob * slope, axis=0)[None, :])
    weight = tl.load(weights + kind, mask=kind < classes, other=0.0)[:, None]
    pixel_weight = tl.sum(tl.where(hot, weight, 0.0), axis=0)[None, :]  # the weight of the pixel's class
    entropy = tl.load(entropy_scale) * pixel_weight * (prob - hot.to(tl.float32))
    gradient = tl.where(scored[None, :], entropy + dice, 0.0)
    mask = (kind < classes)[:, None] & (pixel < pixels)[None, :]
    tl.store(out + at.to(tl.int64)[:, None] * pixels + pixel[None, :], gradient, mask=mask)


class SumLosses(torch.autograd.Function):
    """(cross entropy, Dice term), summed as in `Loss.sum`; float32 scalars.

    Arguments of `apply`: logits (N, C, H, W); target (N, H, W) uint8 class index, >= C for ignored pixels;
    weights (C,) float32; kind of the loss.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, weights: Tensor, kind: LossKind) -> tuple[Tensor, Tensor]:
        logits, target = logits.float().contiguous(), target.contiguous()
        n, classes, height, width = logits.shape
        sizes = _tile(classes)
        parts = triton.cdiv(height * width, sizes["PIXELS"])
        partial = logits.new_empty((n, parts, 4, classes))
        _sum[(n, parts)](logits, target, weights, partial, height * width, classes, **sizes)
        entropy, overlap, prob, truth = partial.sum(dim=1).unbind(dim=1)  # (N, C) each
        ctx.save_for_backward(logits, target, weights, overlap, prob, truth)
        ctx.kind = kind
        if kind in ("ce", "ce-sum"):
            return entropy.sum(), entropy.new_zeros(())
        dice = 2.0 * overlap / (prob + truth).clamp_min(EPSILON)
        dice_loss = -dice.clamp_min(MIN_DICE).log() if kind == "logdice+ce" else 1.0 - dice
        return entropy.sum(), torch.where(truth > 0, dice_loss, 0.0).sum()

    @staticmethod
    def backward(ctx, entropy_scale: Tensor, dice_scale: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target, weights, overlap, prob, truth = ctx.saved_tensors
        n, classes, height, width = logits.shape
        if ctx.kind not in ("ce", "ce-sum"):
            scale = torch.where(truth > 0, 2.0 * dice_scale / (prob + truth).clamp_min(EPSILON), 0.0)
            if ctx.kind == "logdice+ce":
                dice = 2.0 * overlap / (prob + truth).clamp_min(EPSILON)
                scale = torch.where(dice >= MIN_DICE, scale / dice, 0.0)
            in_truth, everywhere = -scale, scale * overlap / (prob + truth).clamp_min(EPSILON)
        else:
            in_truth = everywhere = torch.zeros_like(overlap)
        out, sizes = torch.empty_like(logits), _tile(classes)
        grid = (n, triton.cdiv(height * width, sizes["PIXELS"]))
        _differentiate[grid](
            logits, target, weights, entropy_scale, in_truth, everywhere, out, height * width, classes, **sizes
        )
        return out, None, None, None


def _tile(classes: int) -> dict[str, int]:
    padded = triton.next_power_of_2(classes)
    return {"CLASSES": padded, "PIXELS": max(128, min(_PIXELS, 4096 // padded))}
