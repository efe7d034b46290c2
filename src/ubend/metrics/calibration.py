"""Expected calibration error: how much a model's confidence differs from its accuracy.

The confidence of a pixel is the probability of its predicted class. Pixels are counted in BINS bins of equal width:

    calibration[bin] = number of pixels, sum of their confidences, number of correct pixels

Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor  # torch is imported late: scores of saved masks do not need it

BINS = 15  # as in Guo et al.


def count_calibration(confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The counts of any number of pixels.

    Args:
        confidence: (...) 0..1.
        right: same shape; whether the predicted class is correct.
    Returns:
        (BINS, 3) float64.
    """
    bins = np.minimum((confidence.reshape(-1) * BINS).astype(np.int64), BINS - 1)
    values = np.ones(bins.shape), confidence.reshape(-1), right.reshape(-1)
    return np.stack([np.bincount(bins, weights=value, minlength=BINS) for value in values], axis=1)


def count_calibration_batch(logits: "Tensor", target: "Tensor") -> "Tensor":
    """The counts of each image of a batch, on its device, without a synchronisation.

    Args:
        logits: (N, C, H, W).
        target: (N, H, W) class index; a value outside [0, C) is not counted.
    Returns:
        (N, BINS, 3) float64.
    """
    bins, confidence, right = _bin(logits, target)
    count = _count_by_bins if logits.device.type == "cpu" else _count_by_comparison
    return count(bins, confidence, right)


def _bin(logits: "Tensor", target: "Tensor") -> tuple["Tensor", "Tensor", "Tensor"]:
    """(N, H*W) bin of each pixel (BINS: not counted), float32 confidence, and whether its class is correct.

    Logits that are not finite fall into an arbitrary bin; callers must check for them.
    """
    import torch

    best, index = logits.float().max(dim=1)
    confidence = (best - logits.float().logsumexp(dim=1)).exp().flatten(1)
    counted = ((target >= 0) & (target < logits.shape[1])).flatten(1)
    bins = torch.where(counted, (confidence * BINS).long().clamp(0, BINS - 1), BINS)
    return bins, confidence, (index == target).flatten(1)


def _count_by_bins(bins: "Tensor", confidence: "Tensor", right: "Tensor") -> "Tensor":
    """(N, BINS, 3) counts by `bincount`; on a GPU, weighted `bincount` is not deterministic."""
    import torch

    images = len(bins)
    places = (bins + torch.arange(images)[:, None] * (BINS + 1)).flatten()
    values = None, confidence.double().flatten(), right.double().flatten()
    counts = [torch.bincount(places, value, minlength=images * (BINS + 1)).double() for value in values]
    return torch.stack(counts, dim=1).view(images, BINS + 1, 3)[:, :BINS]


def _count_by_comparison(bins: "Tensor", confidence: "Tensor", right: "Tensor") -> "Tensor":
    """(N, BINS, 3) counts by comparisons, one bin at a time."""
    import torch

    rows = []
    for index in range(BINS):
        here = bins == index
        sure = torch.where(here, confidence.double(), 0.0).sum(dim=1)
        rows.append(torch.stack([here.sum(dim=1).double(), sure, (here & right).sum(dim=1).double()], dim=1))
    return torch.stack(rows, dim=1)


def expected_calibration_error(counts: NDArray[np.float64]) -> float:
    """Mean over pixels of |accuracy - confidence| of their bin, 0..1; NaN without pixels.

    Args:
        counts: (BINS, 3), summed over any number of images.
    """
    pixels, confidence, right = counts.T
    return float(np.abs(confidence - right).sum() / pixels.sum()) if pixels.sum() else float("nan")
