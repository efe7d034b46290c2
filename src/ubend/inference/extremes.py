"""Values of images that are far beyond those that a model was trained on: nodata values that no file declares."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ubend.core.i18n import ngettext
from ubend.core.progress import Reporter
from ubend.dataset.extreme_values import find_normal_range, name_values
from ubend.io.row_windows import TiffRowReader
from ubend.layouts.problems import enumerate_names
from ubend.models.model_file import Bundle

_RANGE_STD = 2.0  # from the mean: training images have values of that range, if not of a larger one
_FAR_STD = 400.0  # 100 times that range, as in extreme_values.py: what is nearer to the mean is not looked at twice
_PIECE_PIXELS = 2**18


class ExtremeValues:
    """The images among those that a model is given that hold values far beyond its training images; of 8 bit none.

    A value is far beyond as in `find_normal_range`, of the image's values and those within two standard deviations of
    the mean that the model file states. Where more than half of an image is so, it must be one value: else the image
    is of another unit rather than without data.

    Args:
        bundles: the models; images are compared with the first of those that take the most channels, as they do.
    """

    def __init__(self, *bundles: Bundle) -> None:
        bundle = max(bundles, key=lambda one: one.sizing.channels)
        net = bundle.model
        self._mean, self._std = (
            values.detach().flatten().cpu().numpy().astype(np.float64) for values in (net.mean, net.std)
        )
        self._is_possible = bundle.dtype != "uint8"
        self._found: dict[Path, NDArray[np.generic]] = {}

    def look(self, path: Path, pixels: NDArray[np.generic]) -> None:
        """Look at an image, (H, W, C), or some of its rows; may be called by several threads."""
        if self._is_possible and pixels.shape[2] == len(self._mean) and len(values := self._find(pixels)):
            self._found[path] = values

    def watch(self, windows: TiffRowReader) -> Callable[[int, int], NDArray[np.generic]]:
        """The file's `read`, whose rows are looked at."""

        def read(top: int, bottom: int) -> NDArray[np.generic]:
            pixels = windows.read(top, bottom)
            self.look(windows.path, pixels)
            return pixels

        return read

    def tell(self, reporter: Reporter) -> None:
        """Say what `describe` gives."""
        for line in self.describe():
            reporter.report(line)

    def describe(self) -> list[str]:
        """A line when images hold such values, with what to do; else none."""
        if not self._found:
            return []
        values, commonest = name_values(self._found.values())
        line = ngettext(
            "WARNING: {count} image holds values far beyond those that the model was trained on ({values}): {names}; "
            "probably nodata, or hot pixels, and its prediction is wrong: declare them as the file's "
            "nodata value (gdal_edit.py -a_nodata {value}), or save them as NaN",
            "WARNING: {count} images hold values far beyond those that the model was trained on ({values}): {names}; "
            "probably nodata, or hot pixels, and the predictions of these images are wrong: declare them as the files' "
            "nodata value (gdal_edit.py -a_nodata {value}), or save them as NaN",
            len(self._found),
        )
        names = enumerate_names(sorted(path.name for path in self._found))
        return [line.format(count=len(self._found), values=values, names=names, value=commonest)]

    def _find(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """(P,) the values of (H, W, C) pixels that are far beyond; P may be 0."""
        pixels = image.reshape(-1, image.shape[2])
        reach = _FAR_STD * self._std
        each = zip(pixels.T, self._mean - reach, self._mean + reach, strict=True)  # faster than axis=0
        if not any(channel.min() < low or channel.max() > high for channel, low, high in each):
            return pixels[:0, 0]
        low, high = self._mean - _RANGE_STD * self._std, self._mean + _RANGE_STD * self._std
        training = np.linspace(low, high, min(len(pixels), _PIECE_PIXELS), dtype=np.float32)

        def pieces() -> Iterator[NDArray[np.generic]]:
            for start in range(0, len(pixels), _PIECE_PIXELS):
                yield training  # at least as many as of the image, so that what is far is no more than half
                yield pixels[start : start + _PIECE_PIXELS]

        low, high = find_normal_range(pieces(), len(self._mean))
        is_extreme = (pixels < low) | (pixels > high)
        values: NDArray[np.generic] = pixels[is_extreme]
        maximum = 2 * int(is_extreme.any(axis=1).sum()) > len(pixels)
        return values[:0] if maximum and len(np.unique(values)) > 1 else values
