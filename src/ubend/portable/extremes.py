"""Finds image values far outside the range of a model's training images, such as undeclared nodata values."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .extreme_values import find_normal_range, name_values
from .i18n import ngettext
from .predictors import ModelInfo
from .printable import enumerate_names
from .reporter import Reporter
from .row_windows import TiffRowReader

_RANGE_STD = 2.0  # standard deviations from the mean; training images have at least this range
_FAR_STD = 400.0  # 100 times that range, as in extreme_values.py; values closer to the mean are not checked further
_PIECE_PIXELS = 2**18
_PASSED_VALUES = 8  # of an image, from one process to another; `name_values` shows fewer


class ExtremeValues:
    """Collects input images with values far outside the range of the model's training images; never for 8 bit.

    A value is extreme according to `find_normal_range`, applied to the image's values together with a range of two
    standard deviations around the mean in the model file. If more than half of an image is extreme, this counts only
    if it is one value: otherwise the image probably has another unit.

    Args:
        bundles: the models; images are compared with the first one among those with the most channels.
    """

    def __init__(self, *bundles: ModelInfo) -> None:
        bundle = max(bundles, key=lambda bundle_: bundle_.sizing.channels)
        self._mean, self._std = bundle.channel_statistics
        self._is_possible = bundle.dtype != "uint8"
        self._found: dict[Path, NDArray[np.generic]] = {}

    def look(self, path: Path, pixels: NDArray[np.generic]) -> None:
        """Check an image (H, W, C), or some of its rows; may be called from several threads."""
        if self._is_possible and pixels.shape[2] == len(self._mean) and len(values := self._find(pixels)):
            self._found[path] = values

    def watch(self, windows: TiffRowReader) -> Callable[[int, int], NDArray[np.generic]]:
        """The file's `read` function, extended to check the rows that it reads."""

        def read(top: int, bottom: int) -> NDArray[np.generic]:
            pixels = windows.read(top, bottom)
            self.look(windows.path, pixels)
            return pixels

        return read

    def commonest(self, path: Path) -> list[float]:
        """The most common extreme values of an image, for `add` in another process; empty if there are none."""
        if path not in self._found:
            return []
        values, counts = np.unique(self._found[path], return_counts=True)
        return [value.item() for value in values[np.argsort(-counts, kind="stable")[:_PASSED_VALUES]]]

    def add(self, path: Path, values: NDArray[np.generic]) -> None:
        """Add (P,) extreme values of an image that were found elsewhere."""
        self._found[path] = values

    def tell(self, reporter: Reporter) -> None:
        """Report the messages of `describe`."""
        for line in self.describe():
            reporter.report(line)

    def describe(self) -> list[str]:
        """A warning, with the remedy, if images have such values; otherwise no line."""
        if not self._found:
            return []
        values, commonest = name_values(self._found.values())
        line = ngettext(
            "WARNING: {count} image has values far outside the range of the training images ({values}): {names}; "
            "probably nodata or hot pixels, and its prediction is wrong: declare them as the file's "
            "nodata value (gdal_edit.py -a_nodata {value}), or save them as NaN",
            "WARNING: {count} images have values far outside the range of the training images ({values}): {names}; "
            "probably nodata or hot pixels, and the predictions of these images are wrong: declare them as the files' "
            "nodata value (gdal_edit.py -a_nodata {value}), or save them as NaN",
            len(self._found),
        )
        names = enumerate_names(sorted(path.name for path in self._found))
        return [line.format(count=len(self._found), values=values, names=names, value=commonest)]

    def _find(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """(P,) the extreme values of (H, W, C) pixels; P may be 0."""
        pixels = image.reshape(-1, image.shape[2])
        reach = _FAR_STD * self._std
        each = zip(pixels.T, self._mean - reach, self._mean + reach, strict=True)  # faster than axis=0
        if not any(channel.min() < low or channel.max() > high for channel, low, high in each):
            return pixels[:0, 0]
        low, high = self._mean - _RANGE_STD * self._std, self._mean + _RANGE_STD * self._std
        training = np.linspace(low, high, min(len(pixels), _PIECE_PIXELS), dtype=np.float32)

        def pieces() -> Iterator[NDArray[np.generic]]:
            for start in range(0, len(pixels), _PIECE_PIXELS):
                yield training  # at least as many as image pixels, so that at most half of all values are extreme
                yield pixels[start : start + _PIECE_PIXELS]

        low, high = find_normal_range(pieces(), len(self._mean))
        is_extreme = (pixels < low) | (pixels > high)
        values: NDArray[np.generic] = pixels[is_extreme]
        maximum = 2 * int(is_extreme.any(axis=1).sum()) > len(pixels)
        return values[:0] if maximum and len(np.unique(values)) > 1 else values
