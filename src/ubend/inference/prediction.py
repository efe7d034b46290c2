"""What is made of a model's logits: the most probable class of each pixel, and probabilities.

C classes, H x W pixels of an image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.labels.class_table import LabelMap


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image, at the image's own size.

    Attributes:
        mask: (H, W) uint8 class index; IGNORED (255) where the image is invalid: nodata, alpha 0, NaN.
        prob: (C, H, W) float32 probabilities; they add up to 1 over C, and are 0 where the image is invalid.
        labels: the class table.
    """

    mask: NDArray[np.uint8]
    prob: NDArray[np.float32]
    labels: LabelMap

    def shares(self) -> dict[str, float]:
        """Share of the seen pixels that each class takes, 0..1."""
        counts = np.bincount(self.mask.reshape(-1), minlength=self.labels.classes)[: self.labels.classes]
        seen = max(1, int(counts.sum()))
        return {name: int(count) / seen for name, count in zip(self.labels.names, counts, strict=True)}


def class_index(logits: Tensor) -> Tensor:
    """(C, ...) logits -> (...) uint8 index of the largest, the first of equals."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=0).to(torch.uint8)
    # torch's own goes pixel by pixel on a CPU: measured, 5 Mpix/s for two classes, and this 42 (two cores)
    best, index = logits[0].clone(), torch.zeros(logits.shape[1:], dtype=torch.uint8)
    for number in range(1, len(logits)):
        index.masked_fill_(logits[number] > best, number)
        torch.maximum(best, logits[number], out=best)
    return index
