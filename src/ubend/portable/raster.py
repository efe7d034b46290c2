"""Headers and decoded pixels of image files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .i18n import _

MAX_CHANNELS = 16  # channels of a network's input
MAX_PIXELS = 178_956_970  # of an image that is decoded as a whole: Pillow's limit, 2 * Image.MAX_IMAGE_PIXELS
MAX_BYTES = 16 * MAX_PIXELS  # of its values: four channels of 32 bits, or 16 of 8 bits


@dataclass(frozen=True)
class Header:
    """The properties of an image as `read_image` would return it, from its header.

    Attributes:
        height, width: px, upright.
        channels: without alpha; 3 for a palette and for CMYK.
        dtype: "uint8", "uint16" or "float32".
        alpha: it has an alpha channel or a transparent colour.
        cmyk: it is CMYK, and is converted to RGB.
        turned: the EXIF or TIFF orientation is not upright.
    """

    height: int
    width: int
    channels: int
    dtype: str
    alpha: bool = False
    cmyk: bool = False
    turned: bool = False

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def bytes(self, channels: int) -> int:
        """Bytes of the decoded image with this number of channels."""
        return self.pixels * channels * np.dtype(self.dtype).itemsize

    def gives(self, channels: int) -> bool:
        """Whether the image can be read with this number of channels; grey and colour are converted."""
        if self.channels == channels or {self.channels, channels} == {1, 3}:
            return True
        return self.alpha and self.channels + 1 == channels


@dataclass(frozen=True)
class Raster:
    """A decoded file, upright.

    Attributes:
        pixels: (H, W, C) values as stored, with the dtype of the file; fewer than 8 bits are scaled to 0..255.
        alpha: the last of several channels is alpha.
        palette: (256, 4) uint8 red, green, blue, alpha of a palette image, whose pixels are (H, W, 1) indices;
            filled with black.
        lossy: compressed as JPEG, lossy WebP or JPEG in TIFF (by content, not suffix), so values are approximate.
        invalid: (H, W) bool, invalid pixels according to a TIFF's nodata value or internal mask; alpha and NaN are not
            considered. None: the file states none.
    """

    pixels: NDArray[Any]
    alpha: bool = False
    palette: NDArray[np.uint8] | None = None
    lossy: bool = False
    invalid: NDArray[np.bool_] | None = None

    def colors(self) -> NDArray[Any]:
        """(H, W, C) pixels, with the palette applied; the last channel is alpha if there is one."""
        if self.palette is None:
            return self.pixels
        return np.asarray(self.palette[self.pixels[:, :, 0]][:, :, : 4 if self.alpha else 3])


def refuse_large(size_hw: tuple[int, int], size_bytes: int) -> None:
    """Refuse images that are too large to decode as a whole: small files can contain huge empty images.

    Args:
        size_hw: (height, width), px.
        size_bytes: of the decoded values.
    Raises:
        DecompressionBombError: as Pillow does; `explain_decode_errors` turns it into a DataError.
    """
    pixels = size_hw[0] * size_hw[1]
    if pixels > MAX_PIXELS or size_bytes > MAX_BYTES:
        line = _("{pixels:.0f} megapixels, {size:.1f} GiB; at most {maximum:.0f} megapixels and {most_size:.1f} GiB")
        raise Image.DecompressionBombError(
            line.format(
                pixels=pixels / 1e6, size=size_bytes / 2**30, maximum=MAX_PIXELS / 1e6, most_size=MAX_BYTES / 2**30
            )
        )


def depth_name(dtype: np.dtype[Any]) -> str:
    """The dtype in which images with a stored dtype are used.

    It depends only on the stored dtype, not on values, so that all images of a data set have the same.
    """
    if dtype in (np.dtype(np.uint8), np.dtype(np.bool_)):
        return "uint8"
    return "uint16" if dtype == np.dtype(np.uint16) else "float32"


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, ...) as stored -> upright; orientations 1 to 8 of EXIF and TIFF."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
