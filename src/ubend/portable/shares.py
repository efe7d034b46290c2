"""The table shares.csv: the share of each class in the pixels of each predicted mask."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .class_table import IGNORED
from .decode import explain_decode_errors
from .errors import DataError
from .files import csv_text
from .i18n import _
from .reporter import Reporter
from .row_windows import TiffRowReader
from .storage import Storage

SHARES = "shares.csv"
_ROWS = 1024  # of a written mask, read at once
_REPORTED = 10  # images


class ClassShares:
    """Counts the pixels of each class while masks are written; thread-safe.

    Args:
        names: of the classes.
        out: the folder of the masks, and of `shares.csv`.
    """

    def __init__(self, names: Sequence[str], out: Path) -> None:
        self._names, self._out = names, out
        self._pixels: dict[Path, NDArray[np.int64]] = {}

    def count(self, image: Path, mask: NDArray[np.uint8]) -> None:
        """Add (h, W) rows of an image's mask: class index, or IGNORED, which does not count.

        Raises:
            DataError: it contains values that are not classes of the model.
        """
        counts = np.bincount(mask.reshape(-1), minlength=IGNORED + 1)
        if counts[len(self._names) : IGNORED].any():
            raise DataError(
                _("the folder contains a mask of another model; choose another --out"), path=self._out, key="--out"
            )
        self.add(image, counts[: len(self._names)])

    def add(self, image: Path, pixels: NDArray[np.int64]) -> None:
        """Add (C,) pixels of each class of an image's mask, counted elsewhere."""
        self._pixels[image] = self._pixels.get(image, 0) + pixels

    def pixels(self, image: Path) -> list[int]:
        """The pixels of each class of an image's mask so far."""
        return [int(count) for count in self._pixels[image]]

    def write(self, masks: Mapping[Path, Path], storage: Storage, reporter: Reporter) -> None:
        """Write the shares of all images and print some; masks that were not counted are read.

        Args:
            masks: image -> its mask.
            storage: of the masks and the table.
        """
        names, shares = self._names, dict[Path, list[float]]()
        for image, mask in masks.items():
            if image not in self._pixels:
                with storage.fetched(mask) as local_mask:
                    self._count_written(image, local_mask)
            pixels = self._pixels[image]
            shares[image] = [int(count) / max(1, int(pixels.sum())) for count in pixels]
        rows = [[image, *(f"{value:.6f}" for value in row)] for image, row in shares.items()]
        storage.write_text(self._out / SHARES, csv_text([["file", *names], *rows]))
        for image, row in list(shares.items())[:_REPORTED]:
            shown = ", ".join(f"{name} {value:.1%}" for name, value in zip(names, row, strict=True))
            reporter.report(f"{image.name}: {shown}")
        if len(shares) > _REPORTED:
            reporter.report(_("... and {count} more, in shares.csv").format(count=len(shares) - _REPORTED))
        whole = [index for index in range(len(names)) if all(row[index] == 1.0 for row in shares.values())]
        if whole:
            reporter.report(
                _(
                    "WARNING: every pixel of every image is {name}; are these images like the model's training images?"
                ).format(name=names[whole[0]])
            )

    def _count_written(self, image: Path, mask: Path) -> None:
        """Count a mask that was written by an earlier call."""
        if mask.suffix == ".png":
            with explain_decode_errors(mask), Image.open(mask) as file:
                self.count(image, np.asarray(file))
            return
        with TiffRowReader(mask) as rows_reader:
            height = rows_reader.size_hw[0]
            for top in range(0, height, _ROWS):
                self.count(image, rows_reader.read_stored(top, min(height, top + _ROWS)))
