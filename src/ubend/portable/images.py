"""Images as arrays, masks as files, and the size at which a network takes an image.

H x W pixels, C channels, N images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .decode import read_raster
from .errors import DataError, OutputError
from .files import write_file
from .i18n import _, ngettext
from .raster import Raster, depth_name
from .tiff import union_invalid

_BLOCK_PIXELS = 2**22  # of the rows that are averaged at a time
_PNG_LEVEL = 2  # compression: photographs take a quarter of the time of level 6, and an eighth more space


@dataclass(frozen=True)
class LoadedImage:
    """An image and its invalid pixels.

    Attributes:
        pixels: (H, W, C), see `read_image`; invalid pixels are set to the mean of the valid ones.
        invalid: (H, W) bool, invalid pixels: nodata value or internal mask of a TIFF, alpha 0 if alpha is dropped,
            NaN. None: all pixels are valid.
    """

    pixels: NDArray[Any]
    invalid: NDArray[np.bool_] | None = None


def load_image(path: Path, channels: int | None = None, out: NDArray[Any] | None = None) -> LoadedImage:
    """Read an image and its invalid pixels; for arguments and errors see `read_image`."""
    return _finish(read_raster(path, channels, out), channels, path)


def read_image(path: Path, channels: int | None = None, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Read an image, upright (EXIF orientation applied).

    Alpha is dropped unless `channels` counts it; CMYK is converted to red, green, blue. Invalid pixels (see
    `LoadedImage`) are set to the mean of the valid ones.

    Args:
        path: PNG, JPEG, BMP, WebP, PPM, PGM or TIFF.
        channels: 1 gives grey (ITU-R 601 luma of colour), 3 gives colour (grey repeated), any other number accepts
            only files with that many channels; None: as in the file.
        out: an array to decode into, used if it has the right shape and dtype; check with `np.may_share_memory`.
            Allocating memory for each image costs a fifth of the decoding time.
    Returns:
        (H, W, C) uint8 or uint16 if the file has this depth, otherwise float32.
    Raises:
        DataError: missing, empty, truncated, not an image, wrong number of channels, or infinite values.
    """
    return load_image(path, channels, out).pixels


def read_with_channels(path: Path, wanted: Sequence[int | None]) -> list[LoadedImage]:
    """Read an image with several numbers of channels, decoding it once; for errors see `load_image`.

    Args:
        path: see `read_image`.
        wanted: see `channels` of `read_image`; the first one also decides whether unnamed pages of a TIFF are channels.
    Returns:
        An image for each number; equal numbers share one image.
    """
    raster = read_raster(path, wanted[0])
    made = {channels: _finish(raster, channels, path) for channels in {*wanted}}
    return [made[channels] for channels in wanted]


def _finish(raster: Raster, channels: int | None, path: Path) -> LoadedImage:
    return fill_invalid(finish_pixels(raster.colors(), raster.alpha, channels, path, raster.invalid))


def fill_invalid(image: LoadedImage) -> LoadedImage:
    """Set invalid pixels to the mean of the valid ones; returns the same image if all are valid."""
    if image.invalid is None:
        return image
    pixels, invalid = image.pixels.copy(), image.invalid
    size_hw = pixels.shape[0], pixels.shape[1]
    pixels[invalid] = mean_valid(lambda top, bottom: LoadedImage(pixels[top:bottom], invalid[top:bottom]), size_hw)
    return LoadedImage(pixels, invalid)


def mean_valid(read: Callable[[int, int], LoadedImage], size_hw: tuple[int, int]) -> NDArray[Any]:
    """(C,) mean of the valid pixels, in the image's dtype; 0 if there are none.

    Args:
        read: (top, bottom) -> these rows; values of invalid pixels are not used.
        size_hw: (H, W), px.
    """
    total: Any = 0
    count = 0
    step = max(1, _BLOCK_PIXELS // size_hw[1])
    for top in range(0, size_hw[0], step):
        rows = read(top, min(top + step, size_hw[0]))
        valid = rows.pixels.reshape(-1, rows.pixels.shape[2]) if rows.invalid is None else rows.pixels[~rows.invalid]
        count += len(valid)
        total = total + valid.sum(axis=0, dtype=np.float64)
    mean = total / max(1, count)
    return np.asarray(mean if rows.pixels.dtype.kind == "f" else np.rint(mean)).astype(rows.pixels.dtype)


def finish_pixels(
    image: NDArray[Any], alpha: bool, channels: int | None, path: Path, invalid: NDArray[np.bool_] | None = None
) -> LoadedImage:
    """Convert (H, W, channels in the file) as `load_image` does, but invalid pixels keep their values.

    Args:
        alpha: the last channel is alpha.
        channels, path: see `load_image`, also for errors.
        invalid: (H, W) pixels that the file marks as invalid, apart from alpha and NaN.
    """
    if alpha and image.shape[2] != channels:
        image, invalid = image[:, :, :-1], union_invalid(invalid, image[:, :, -1] == 0)
    fitted = fit_channels(image, image.shape[2] if channels is None else channels)
    if fitted is None:
        line = _("{path}: has {found} channels, but {channels} are required")
        raise DataError(line.format(path=path, found=image.shape[2], channels=channels), path=path, key="data.channels")
    with np.errstate(over="ignore"):  # values beyond float32 are reported below
        image = fitted.astype(depth_name(image.dtype), copy=False)
    if image.dtype.kind == "f" and not (finite := np.isfinite(image)).all():
        nan = np.isnan(image).any(axis=2)
        invalid = nan if invalid is None else invalid | nan
        if bad := int(np.count_nonzero(~finite[~invalid])):
            line = ngettext(
                "{path}: contains {count} infinite value; replace it, or declare it as the file's nodata value",
                "{path}: contains {count} infinite values; replace them, or declare them as the file's nodata value",
                bad,
            )
            raise DataError(line.format(path=path, count=bad), path=path, key="value")
    return LoadedImage(np.ascontiguousarray(image), None if invalid is None or not invalid.any() else invalid)


def fit_channels(image: NDArray[Any], channels: int) -> NDArray[Any] | None:
    """(H, W, C) -> (H, W, channels): repeats grey, or takes the luma of colour (ITU-R 601); None: not possible."""
    present = image.shape[2]
    if channels == present:
        return image
    if (present, channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (present, channels) == (3, 1):
        if image.dtype == np.uint8:
            return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[:, :, None]
        luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        return (np.rint(luma) if image.dtype.kind == "u" else luma).astype(image.dtype)[:, :, None]
    return None


def write_mask(path: Path, index: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]) -> None:
    """Write class indices as a palette PNG: the values are the indices, the colours those of the classes.

    Args:
        index: (H, W) uint8 class index; other values are drawn grey.
        colors: (red, green, blue) of each class.
    """
    image = Image.fromarray(index)
    palette = np.full((256, 3), 128, dtype=np.uint8)
    palette[: len(colors)] = colors
    image.putpalette(palette.tobytes())
    write_file(path, lambda temporary: image.save(temporary, format="PNG"))


def save_mask(path: Path, index: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]) -> None:
    """`write_mask` for a file named by the user.

    Raises:
        OutputError: the path does not end in .png, or the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        line = _("{path}: a mask is saved as PNG; give a name that ends in .png")
        raise OutputError(line.format(path=path), path=path)
    write_mask(path, index, colors)


def save_png(image: Image.Image, path: Path) -> None:
    """Write the image as PNG, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    write_file(path, lambda temporary: image.save(temporary, format="PNG", compress_level=_PNG_LEVEL))


def straighten(image: NDArray[Any]) -> NDArray[Any]:
    """Copy an array with negative strides, which torch refuses.

    NumPy's contiguity flag is not enough: a single row is contiguous with any stride.
    """
    return image.copy() if any(stride < 0 for stride in image.strides) else image


def model_size(shape_hw: tuple[int, int], size_px: int | None, keep_aspect: bool) -> tuple[int, int]:
    """(height, width) to which an image is resized for the network.

    With `keep_aspect`: the area of a `size_px` x `size_px` square with the image's aspect ratio, so that the cost does
    not depend on shape; otherwise that square. Without `size_px`: the native size.
    """
    if size_px is None:
        return shape_hw
    if not keep_aspect:
        return size_px, size_px
    height, width = shape_hw
    factor = size_px / (height * width) ** 0.5
    return max(1, round(height * factor)), max(1, round(width * factor))


def describe_sizing(size_px: int | None, keep_aspect: bool, channels: int) -> str:
    """One line on the images of a model; for arguments see `model_size`."""
    if size_px is None:
        aspect = _("at native size")
    elif keep_aspect:
        aspect = _("aspect kept, the area of a {size} px square")
    else:
        aspect = _("squashed to {size} x {size} px")
    line = _("images: {channels} channels, {aspect}")
    return line.format(channels=channels, aspect=aspect.format(size=size_px))
