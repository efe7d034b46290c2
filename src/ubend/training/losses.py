"""(logits, target) -> sums and counts, float32; pure.

A loss is a sum over the batch divided by a count of its targets alone. So it is the same number however
the batch is cut into micro-batches or spread over processes.

N pictures, C classes, H x W pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LossCounts(NamedTuple):
    """Denominators: scored pixels, and (picture, class) regions that occur; float32 scalars, at least 1."""

    pixels: Tensor
    regions: Tensor


class LossSums(NamedTuple):
    """Numerators: cross entropy summed over pixels, 1 - Dice summed over regions; float32 scalars."""

    cross_entropy: Tensor
    dice: Tensor


def sums_dtype(device: torch.device) -> torch.dtype:
    """The type in which an epoch's losses are added up: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(N, H, W) uint8 class index -> (N, C, H, W) bool; all False where the pixel is ignored."""
    index = torch.arange(classes, device=target.device, dtype=target.dtype)
    return target[:, None] == index[:, None, None]


def count_targets(target: Tensor, classes: int) -> LossCounts:
    """The counts by which `sum_losses` of the same targets is divided.

    Args:
        target: (N, H, W) uint8 class index or IGNORED.
    """
    hot = one_hot(target, classes)
    pixels = hot.sum().float().clamp_min(1)
    return LossCounts(pixels, hot.flatten(2).any(dim=2).sum().float().clamp_min(1))


def sum_losses(logits: Tensor, target: Tensor) -> LossSums:
    """Cross entropy of every pixel, and soft Dice of every class of every picture, as sums.

    The Dice of class c in a picture is 2 sum(p t) / (sum(p) + sum(t)) over the scored pixels; a class
    that does not occur in the picture's target is left to the cross entropy. Cross entropy is
    log-softmax times a one-hot target: no scatter, so it is deterministic on CUDA.

    Args:
        logits: (N, C, H, W) unnormalised scores of any float dtype; computed in float32.
        target: (N, H, W) uint8 class index or IGNORED.
    Source: Milletari et al. 2016, V-Net, arXiv:1606.04797 (plain sums where the paper squares).
    """
    hot = one_hot(target, logits.shape[1])
    log_prob = F.log_softmax(logits.float(), dim=1)
    cross_entropy = -torch.where(hot, log_prob, 0.0).sum()
    scored = hot.any(dim=1, keepdim=True)
    prob = torch.where(scored, log_prob.exp(), 0.0)
    overlap = torch.where(hot, prob, 0.0).sum(dim=(2, 3))
    truth = hot.sum(dim=(2, 3))
    dice = 2.0 * overlap / (prob.sum(dim=(2, 3)) + truth).clamp_min(1e-6)
    return LossSums(cross_entropy, torch.where(truth > 0, 1.0 - dice, 0.0).sum())


def mean_loss(sums: LossSums, counts: LossCounts, dice_weight: float) -> Tensor:
    """Mean cross entropy per pixel, plus `dice_weight` times the mean of 1 - Dice per region; scalar."""
    loss = sums.cross_entropy / counts.pixels
    return loss + dice_weight * sums.dice / counts.regions if dice_weight else loss
