"""The training loss as pure functions: (logits, target) -> sums and counts, float32.

A loss is a sum over the batch divided by a count that depends only on the targets. So it does not depend on how
the batch is split into micro-batches or spread over processes.

N images, C classes, H x W pixels.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ubend.core.settings import LossKind

MIN_DICE = 1e-6  # lower limit of Dice in -log(Dice)
EPSILON = 1e-6  # keeps 0 / 0 finite: the Dice of a class without a pixel, true or predicted
_FOCUS = 2.0  # exponent of the focal loss, as recommended by its authors


class LossCounts(NamedTuple):
    """Denominators of the mean loss, float32 scalars; those of micro-batches and processes add up to the batch's."""

    pixels: Tensor  # sum of the weights of all scored pixels; their count if unweighted
    dice_terms: Tensor  # number of (image, class) pairs in which the class occurs in the true mask


class LossSums(NamedTuple):
    """Numerators of the mean loss, scalars: float32 of a forward pass, float64 (on MPS float32) of a whole batch."""

    cross_entropy: Tensor  # summed over pixels; weighted, or focal
    dice: Tensor  # 1 - Dice or -log(Dice), summed over the pairs that `dice_terms` counts


@dataclass(frozen=True)
class Loss:
    """The training loss.

    ce           cross entropy, mean per scored pixel
    ce-sum       the same, but the sum over the pixels is optimised, as in the U-Net paper
    dice+ce      ce plus 1 - soft Dice, mean over the classes that occur in each image
    logdice+ce   the same, with -log(Dice): the gradient of a class that is hardly found is large, not small
    dice+focal   dice+ce, with (1 - p)^2 times the cross entropy: down-weights easy pixels

    With class weights w the mean over pixels is weighted, sum(w l) / sum(w); Dice is not weighted, since it
    counts all classes equally. Optional per-pixel weights are added to the class weight.

    Attributes:
        kind: see above.
        class_weights: (C,) float32 on the device of the targets; None: equal weights of 1.
    Sources: Milletari et al. 2016, V-Net, arXiv:1606.04797 (Dice; plain sums where the paper squares); Lin
        et al. 2017, Focal loss, arXiv:1708.02002; Ronneberger et al. 2015, arXiv:1505.04597 (sum, pixel weights).
    """

    kind: LossKind
    class_weights: Tensor | None = None
    can_capture: ClassVar[bool] = True  # in a CUDA graph

    def count(self, target: Tensor, classes: int, pixel_weights: Tensor | None = None) -> LossCounts:
        """The denominators for `sum` of the same targets.

        Args:
            target: (N, H, W) uint8 class index or IGNORED.
            pixel_weights: (N, H, W) float32, extra per-pixel weights.
        """
        hot = one_hot(target, classes)
        if self.class_weights is None:
            pixels = hot.sum().float()
        else:
            pixels = hot.sum(dim=(0, 2, 3)).float() @ self.class_weights
        if pixel_weights is not None:
            pixels = pixels + (hot.any(dim=1) * pixel_weights).sum()
        return LossCounts(pixels, hot.flatten(2).any(dim=2).sum().float())

    def sum(self, logits: Tensor, target: Tensor, pixel_weights: Tensor | None = None) -> LossSums:
        """Cross entropy summed over pixels, and the Dice term of `kind` summed over the classes of all images.

        The Dice of class c in an image is 2 sum(p t) / (sum(p) + sum(t)) over the scored pixels; a class
        that does not occur in the image's target is excluded from the Dice term. Cross entropy is
        log-softmax times a one-hot target: no scatter, so it is deterministic on CUDA.

        Args:
            logits: (N, C, H, W) unnormalised scores of any float dtype; computed in float32.
            target: (N, H, W) uint8 class index or IGNORED.
            pixel_weights: see `count`.
        """
        # float mask: multiplying is three times faster than selecting by a bool on a CPU; NCHW order
        hot = one_hot(target, logits.shape[1]).float()
        logits = logits.to(torch.float32, memory_format=torch.contiguous_format)
        log_prob = F.log_softmax(logits, dim=1)
        prob = log_prob.exp()
        pixelwise = log_prob * (1.0 - prob) ** _FOCUS if self.kind == "dice+focal" else log_prob
        pixelwise = pixelwise * hot
        if self.class_weights is None:
            cross_entropy = -pixelwise.sum()
        else:
            cross_entropy = -(pixelwise.sum(dim=(0, 2, 3)) @ self.class_weights)
        if pixel_weights is not None:
            cross_entropy = cross_entropy - (pixelwise.sum(dim=1) * pixel_weights).sum()
        if self.kind in ("ce", "ce-sum"):
            return LossSums(cross_entropy, torch.zeros_like(cross_entropy))
        intersection = (prob * hot).sum(dim=(2, 3))
        true_area = hot.sum(dim=(2, 3))
        predicted_area = (prob * hot.sum(dim=1, keepdim=True)).sum(dim=(2, 3))  # over scored pixels
        dice = 2.0 * intersection / (predicted_area + true_area).clamp_min(EPSILON)
        dice_loss = -dice.clamp_min(MIN_DICE).log() if self.kind == "logdice+ce" else 1.0 - dice
        return LossSums(cross_entropy, torch.where(true_area > 0, dice_loss, 0.0).sum())

    def mean(self, loss_sums: LossSums, counts: LossCounts) -> Tensor:
        """Scalar: the mean loss, sums divided by counts; a term whose count is 0 is 0."""
        loss = loss_sums.cross_entropy / torch.where(counts.pixels > 0, counts.pixels, 1.0)
        return loss if self.kind in ("ce", "ce-sum") else loss + loss_sums.dice / counts.dice_terms.clamp_min(1)

    def of_step(self, loss_sums: LossSums, counts: LossCounts) -> Tensor:
        """Scalar: the loss that a step optimises. The mean; for `ce-sum` the sum (its mean is only reported)."""
        return loss_sums.cross_entropy if self.kind == "ce-sum" else self.mean(loss_sums, counts)


def sum_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(N,) float32: cross entropy of each image, summed over scored pixels, nats; independent of the rest of the batch.

    Args:
        logits, target: see `Loss.sum`.
    """
    logits = logits.to(torch.float32, memory_format=torch.contiguous_format)
    pixelwise = torch.where(one_hot(target, logits.shape[1]), F.log_softmax(logits, dim=1), 0.0)
    return torch.stack([-image.sum() for image in pixelwise])


def sums_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which an epoch's losses are summed: float64, where the device supports it."""
    return torch.float32 if device.type == "mps" else torch.float64


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(N, H, W) uint8 class index -> (N, C, H, W) bool; all False where the pixel is ignored."""
    index = torch.arange(classes, device=target.device, dtype=target.dtype)
    return target[:, None] == index[:, None, None]
