"""The result of a prediction: the most probable class of each pixel, and probabilities.

C classes, H x W pixels of an image.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ubend.drawing.panels import show_image
from ubend.labels.class_table import IGNORED, LabelMap, background_class
from ubend.portable.images import save_mask
from ubend.portable.overlay import overlay_mask

_NOTEBOOK_PX = 1024  # longest side of the image in a notebook's output; a 12 Mpix PNG would add 10 MB to the notebook


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one image, at native size. Notebooks show its overlay.

    Attributes:
        mask: (H, W) uint8 class index, an index into `class_names`; IGNORED (255) where the image is invalid: nodata,
            alpha 0, NaN.
        labels: the class table.
        image: (H, W, channels) values of the image; may share memory with the input array.
        probabilities: (C, H, W) float32, with a sum of 1 over C, and 0 where the image is invalid; None: not requested.
    """

    mask: NDArray[np.uint8]
    labels: LabelMap
    image: NDArray[Any]
    probabilities: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        """Size, and the share of each class in the valid pixels."""
        counts = np.bincount(self.mask[self.valid], minlength=len(self.class_names))
        shares = [
            f"{name} {share:.1%}" for name, share in zip(self.class_names, counts / max(1, counts.sum()), strict=True)
        ]
        return f"Prediction({self.mask.shape[1]}x{self.mask.shape[0]} px: {', '.join(shares)})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in the order of the class index."""
        return self.labels.names

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(H, W) bool; False where the image is invalid."""
        return np.asarray(self.mask != IGNORED)

    def overlay(self, *, opacity: float = 0.45) -> NDArray[np.uint8]:
        """Draw the classes in their colours over the image, like `ubend predict`, except the background.

        Args:
            opacity: weight of the colour inside a region, 0..1.
        Returns:
            (H, W, 3) uint8; images that are not uint8 are stretched from their 1st..99th percentile to 0..255.
        Raises:
            ValueError: opacity is out of range.
        """
        return overlay_mask(self.image, self.mask, self.labels.colors, opacity, background_class(self.labels.names))

    def save(self, path: Path | str) -> None:
        """Write the mask as PNG: the values are class indices, the palette has the class colours.

        Args:
            path: must end in .png; an existing file is replaced, and missing folders are created.
        Raises:
            OutputError: the path does not end in .png, or the file cannot be written.
        """
        save_mask(Path(path), self.mask, self.labels.colors)

    def show(self) -> None:
        """Show the overlay in the notebook, or in a window; without a display, save it to a file and log its path."""
        show_image(Image.fromarray(self.overlay()))

    def _repr_png_(self) -> bytes:
        """The overlay as PNG, for notebooks; at most 1024 px on the longer side."""
        image, buffer = Image.fromarray(self.overlay()), io.BytesIO()
        image.thumbnail((_NOTEBOOK_PX, _NOTEBOOK_PX))
        image.save(buffer, format="PNG")
        return buffer.getvalue()

    def shares(self) -> dict[str, float]:
        """Class name -> fraction of the valid pixels, 0..1."""
        counts = np.bincount(self.mask.reshape(-1), minlength=self.labels.classes)[: self.labels.classes]
        valid = max(1, int(counts.sum()))
        return {name: int(count) / valid for name, count in zip(self.labels.names, counts, strict=True)}


def class_index(logits: Tensor) -> Tensor:
    """(C, ...) logits -> (...) uint8 index of the largest one; of equal ones, the first."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=0).to(torch.uint8)
    # On a CPU, argmax works pixel by pixel: 5 Mpix/s for two classes, this 42 Mpix/s (measured, two cores).
    best, index = logits[0].clone(), torch.zeros(logits.shape[1:], dtype=torch.uint8)
    for c in range(1, len(logits)):
        index.masked_fill_(logits[c] > best, c)
        torch.maximum(best, logits[c], out=best)
    return index
