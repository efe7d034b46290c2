"""Reads images as arrays, writes masks, and resizes.

Images are (H, W, C) uint8, uint16 or float32, with the values of the file. Masks are (H, W) uint8 class index.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import DataError, Problem
from ubend.core.files import write_file
from ubend.core.i18n import _, ngettext
from ubend.io.decode import read_raster, without_warnings
from ubend.io.raster import MAX_CHANNELS, Raster, depth_name
from ubend.io.tiff import union_invalid

if TYPE_CHECKING:
    import torch

_Label = TypeVar("_Label", np.uint8, np.bool_)
_BLOCK_PIXELS = 2**22  # of the rows that are averaged at a time


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
        path: PNG, JPEG, BMP, WebP or TIFF.
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


def hash_pixels(pixels: NDArray[Any]) -> int:
    """A 64-bit hash of an image's size, dtype and values: equal for copies in other lossless formats.

    Args:
        pixels: (H, W, C) as returned by `read_image`.
    """
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.name}".encode())  # faster than BLAKE2b (measured)
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest()[:8], "little")


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
        seen = rows.pixels.reshape(-1, rows.pixels.shape[2]) if rows.invalid is None else rows.pixels[~rows.invalid]
        count += len(seen)
        total = total + seen.sum(axis=0, dtype=np.float64)
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


def read_resized(
    paths: Sequence[Path], channels: int, native_hw: tuple[int, int], size_hw: tuple[int, int], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], dict[int, list[str]], dict[int, NDArray[np.bool_]], list[int]]:
    """Read and resize images of one size together; one by one, the call overhead would equal the work.

    Args:
        paths: n files.
        channels: see `read_image`.
        native_hw: (height, width) of each of them, upright, px.
        size_hw: (height, width) to resize to, px.
        dtype: of each of them.
    Returns:
        (n, *size_hw, channels) images; the problems of unusable images by their index in `paths` (their pixels are
        undefined); the invalid pixels, (*native_hw), of images that have any, by index; and `hash_pixels` of each
        image at native size.
    """
    native = np.empty((len(paths), *native_hw, channels), dtype)  # setting it to zero would take 5% of the time
    bad: dict[int, list[str]] = {}
    invalid: dict[int, NDArray[np.bool_]] = {}
    with without_warnings():  # once for all
        for index, (path, out) in enumerate(zip(paths, native, strict=True)):
            try:
                invalid_pixels = read_into(out, path)
            except DataError as error:
                out[:] = 0
                bad[index] = error.problems
                continue
            if invalid_pixels is not None:
                invalid[index] = invalid_pixels
    return resize_arrays(native, size_hw), bad, invalid, [hash_pixels(image) for image in native]


def read_into(out: NDArray[Any], path: Path) -> NDArray[np.bool_] | None:
    """Read an image into an array of its shape and dtype; returns its invalid pixels, see `LoadedImage`.

    Raises:
        DataError: unreadable, or its shape or dtype differs from the array's.
    """
    loaded = load_image(path, out.shape[2], out)
    image = loaded.pixels
    if image.dtype != out.dtype:
        raise DataError([depth_problem(path, image.dtype, out.dtype)], path=path)
    if image.shape != out.shape:
        line = _("{path}: changed while it was read; run the command again")
        raise DataError([Problem(line.format(path=path), path)], path=path)
    if not np.may_share_memory(image, out):
        out[:] = image
    return loaded.invalid


def depth_problem(path: Path, dtype: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    """The message for an image whose bit depth differs from the others'."""
    line = _("{path}: a {found} image in a data set of {dtype} images; save all images with the same bit depth")
    if dtype.kind == "f":
        line = _(
            "{path}: an image with float or signed values in a data set of {dtype} images; save all images with the "
            "same bit depth"
        )
    return Problem(line.format(path=path, found=dtype, dtype=wanted), path, "dtype")


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


def resize_image(image: "torch.Tensor", size_hw: tuple[int, int]) -> "torch.Tensor":
    """Resize images: bilinear, antialiased when shrinking, pixel centres aligned.

    Args:
        image: (N, C, H, W), uint8 or float; values keep their range.
        size_hw: (height, width) in px.
    Returns:
        (N, C, height, width) of the same dtype; uint8 is rounded.
    """
    from torch.nn.functional import interpolate

    if tuple(image.shape[-2:]) == tuple(size_hw):
        return image
    if size_hw[1] == 1:
        # For a single column, torch 2.14 on a CPU returns the first row's value everywhere, or fails with an internal
        # assertion for uint8. A single row is correct, so the image is transposed.
        turned = image.float().transpose(2, 3)
        out = interpolate(turned, size=size_hw[::-1], mode="bilinear", align_corners=False, antialias=True)
        out = out.transpose(2, 3)
        return out.to(image.dtype) if image.is_floating_point() else out.round().to(image.dtype)
    return interpolate(image, size=size_hw, mode="bilinear", align_corners=False, antialias=True)


def resize_array(image: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """`resize_image` for one (H, W, C) array; keeps the dtype, integers are rounded."""
    return image if image.shape[:2] == tuple(size_hw) else resize_arrays(image[None], size_hw)[0]


def resize_arrays(images: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """`resize_image` for (N, H, W, C) arrays; keeps the dtype, integers are rounded."""
    import torch

    if images.shape[1:3] == tuple(size_hw):
        return images
    dtype = np.uint8 if images.dtype == np.uint8 else np.float32
    planes = torch.from_numpy(np.require(straighten(images), dtype, ["C", "W"])).permute(0, 3, 1, 2)
    out = resize_image(planes, size_hw).permute(0, 2, 3, 1).numpy()
    whole = images.dtype.kind == "f" or out.dtype == images.dtype
    return np.ascontiguousarray(out if whole else np.rint(out)).astype(images.dtype, copy=False)


def straighten(image: NDArray[Any]) -> NDArray[Any]:
    """Copy an array with negative strides, which torch refuses.

    NumPy's contiguity flag is not enough: a single row is contiguous with any stride.
    """
    return image.copy() if any(stride < 0 for stride in image.strides) else image


def resize_mask(mask: NDArray[_Label], size_hw: tuple[int, int]) -> NDArray[_Label]:
    """Nearest-neighbour resize of masks: (..., H, W) -> (..., height, width)."""
    if mask.shape[-2:] == tuple(size_hw):
        return mask
    rows = ((np.arange(size_hw[0]) + 0.5) * mask.shape[-2] / size_hw[0]).astype(np.int64)
    columns = ((np.arange(size_hw[1]) + 0.5) * mask.shape[-1] / size_hw[1]).astype(np.int64)
    return np.ascontiguousarray(mask[..., rows[:, None], columns[None, :]])


@dataclass(frozen=True)
class Sizing:
    """How images are read and resized for the network; stored with the model, and part of a store's name.

    Attributes:
        size_px, keep_aspect: see `model_size`.
        channels: number of channels; 1 reads grey, 3 colour.
    """

    size_px: Annotated[int, Interval(ge=8, le=8192)] | None
    keep_aspect: bool
    channels: Annotated[int, Interval(ge=1, le=MAX_CHANNELS)]


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
