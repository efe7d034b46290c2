"""(logits, target) -> sums and counts, float32; pure.

A loss is a sum over the batch divided by a count of its targets alone. So it is the same number however
the batch is cut into micro-batches or spread over processes.

N pictures, C classes, H x W pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ubend.core.settings import LossKind

_FOCUS = 2.0  # exponent of the focal loss, as its authors recommend


class LossCounts(NamedTuple):
    """Denominators: the class weights of all scored pixels, added up (their number where there are no
    weights), and (picture, class) regions that occur; float32 scalars. Those of parts add up to those of the
    whole, of micro-batches and of processes."""

    pixels: Tensor
    regions: Tensor


class LossSums(NamedTuple):
    """Numerators: cross entropy (weighted, or focal) summed over pixels, 1 - Dice summed over regions;
    float32 scalars."""

    cross_entropy: Tensor
    dice: Tensor


@dataclass(frozen=True)
class Loss:
    """What training makes small.

    ce           cross entropy, mean per scored pixel
    ce-sum       the same, but what a step makes small is the sum over the pixels, as in the U-Net paper
    dice+ce      that, plus 1 - soft Dice, mean over the classes that occur in each picture
    dice+focal   the same with (1 - p)^2 times the cross entropy: pixels that are right already count little

    With class weights w the mean over pixels is a weighted one, sum(w l) / sum(w); Dice is not weighted,
    since it counts every class alike. A pixel may have more weight, which is added to that of its class.

    Attributes:
        kind: as above.
        class_weights: (C,) float32 on the device of the targets; None: all classes weigh the same.
    Sources: Milletari et al. 2016, V-Net, arXiv:1606.04797 (Dice; plain sums where the paper squares); Lin
        et al. 2017, Focal loss, arXiv:1708.02002; Ronneberger et al. 2015, arXiv:1505.04597 (sum, pixel weights).
    """

    kind: LossKind
    class_weights: Tensor | None = None

    def count(self, target: Tensor, classes: int, more: Tensor | None = None) -> LossCounts:
        """The counts by which `sum` of the same targets is divided.

        Args:
            target: (N, H, W) uint8 class index or IGNORED.
            more: (N, H, W) float32, what single pixels weigh beyond their class.
        """
        hot = one_hot(target, classes)
        if self.class_weights is None:
            pixels = hot.sum().float()
        else:
            pixels = hot.sum(dim=(0, 2, 3)).float() @ self.class_weights
        if more is not None:
            pixels = pixels + (hot.any(dim=1) * more).sum()
        return LossCounts(pixels, hot.flatten(2).any(dim=2).sum().float())

    def sum(self, logits: Tensor, target: Tensor, more: Tensor | None = None) -> LossSums:
        """Cross entropy of every pixel, and soft Dice of every class of every picture, as sums.

        The Dice of class c in a picture is 2 sum(p t) / (sum(p) + sum(t)) over the scored pixels; a class
        that does not occur in the picture's target is left to the cross entropy. Cross entropy is
        log-softmax times a one-hot target: no scatter, so it is deterministic on CUDA.

        Args:
            logits: (N, C, H, W) unnormalised scores of any float dtype; computed in float32.
            target: (N, H, W) uint8 class index or IGNORED.
            more: as of `count`.
        """
        # products with it, since a CPU takes three times as long to choose by a bool; in the order of its planes
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
        if more is not None:
            cross_entropy = cross_entropy - (pixelwise.sum(dim=1) * more).sum()
        if self.kind in ("ce", "ce-sum"):
            return LossSums(cross_entropy, torch.zeros_like(cross_entropy))
        overlap = (prob * hot).sum(dim=(2, 3))
        truth = hot.sum(dim=(2, 3))
        claimed = (prob * hot.sum(dim=1, keepdim=True)).sum(dim=(2, 3))  # of what is scored
        dice = 2.0 * overlap / (claimed + truth).clamp_min(1e-6)
        return LossSums(cross_entropy, torch.where(truth > 0, 1.0 - dice, 0.0).sum())

    def mean(self, sums: LossSums, counts: LossCounts) -> Tensor:
        """Scalar: the loss of everything that was summed and counted; 0 where there is nothing to count."""
        loss = sums.cross_entropy / torch.where(counts.pixels > 0, counts.pixels, 1.0)
        return loss if self.kind in ("ce", "ce-sum") else loss + sums.dice / counts.regions.clamp_min(1)

    def of_step(self, sums: LossSums, counts: LossCounts) -> Tensor:
        """Scalar: what a step makes small. The mean, but of `ce-sum`, whose counts are for people."""
        return sums.cross_entropy if self.kind == "ce-sum" else self.mean(sums, counts)


def sum_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(N,) float32: the cross entropy of each picture, summed over its scored pixels, nats; the same in any company.

    Args:
        logits, target: as of `Loss.sum`.
    """
    logits = logits.to(torch.float32, memory_format=torch.contiguous_format)
    pixelwise = torch.where(one_hot(target, logits.shape[1]), F.log_softmax(logits, dim=1), 0.0)
    return torch.stack([-picture.sum() for picture in pixelwise])


def sums_dtype(device: torch.device) -> torch.dtype:
    """The type in which an epoch's losses are added up: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(N, H, W) uint8 class index -> (N, C, H, W) bool; all False where the pixel is ignored."""
    index = torch.arange(classes, device=target.device, dtype=target.dtype)
    return target[:, None] == index[:, None, None]
