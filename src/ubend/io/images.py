"""Reads images as arrays, writes masks (`ubend.portable.images`), and resizes.

Images are (H, W, C) uint8, uint16 or float32, with the values of the file. Masks are (H, W) uint8 class index.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from ubend.core.errors import DataError, Problem
from ubend.core.i18n import _
from ubend.portable.decode import without_warnings
from ubend.portable.images import (
    LoadedImage,
    finish_pixels,
    fit_channels,
    load_image,
    mean_valid,
    model_size,
    read_image,
    straighten,
    write_mask,
)
from ubend.portable.raster import MAX_CHANNELS
from ubend.portable.row_windows import TiffRowReader, may_be_tiff

if TYPE_CHECKING:
    import torch

__all__ = [
    "LoadedImage",
    "Sizing",
    "depth_problem",
    "finish_pixels",
    "fit_channels",
    "hash_pixels",
    "load_image",
    "model_size",
    "read_image",
    "read_into",
    "read_into_array",
    "read_resized",
    "resize_array",
    "resize_arrays",
    "resize_image",
    "resize_mask",
    "write_mask",
]

_ROWS_PIXELS = 2**22  # of the rows of a file that are read at a time
_Label = TypeVar("_Label", np.uint8, np.bool_)


def hash_pixels(pixels: NDArray[Any]) -> int:
    """A 64-bit hash of an image's size, dtype and values: equal for copies in other lossless formats.

    Args:
        pixels: (H, W, C) as returned by `read_image`.
    """
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.name}".encode())  # faster than BLAKE2b (measured)
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest()[:8], "little")


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


def read_into_array(path: Path, out: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Read an image into an array of its shape and dtype, (H, W, C), by rows if possible.

    Returns:
        (H, W) invalid pixels, see `LoadedImage`; None: all are valid.

    Raises:
        DataError: unreadable, or its shape or dtype differs from the array's.
    """
    if may_be_tiff(path):
        with TiffRowReader(path, out.shape[2]) as reader:
            if reader.is_readable and reader.size_hw == out.shape[:2]:
                return _read_rows_into_array(reader, out)
    return read_into(out, path)


def _read_rows_into_array(reader: TiffRowReader, out: NDArray[Any]) -> NDArray[np.bool_] | None:
    step = max(1, _ROWS_PIXELS // out.shape[1])
    invalid: NDArray[np.bool_] | None = None
    for top in range(0, len(out), step):
        rows = reader.load(top, min(top + step, len(out)))
        if rows.pixels.dtype != out.dtype:
            raise DataError(depth_problem(reader.path, rows.pixels.dtype, out.dtype))
        out[top : top + step] = rows.pixels
        if rows.invalid is not None:
            invalid = np.zeros(out.shape[:2], bool) if invalid is None else invalid
            invalid[top : top + step] = rows.invalid
    if invalid is not None:
        known = invalid
        mean = mean_valid(lambda top, bottom: LoadedImage(out[top:bottom], known[top:bottom]), reader.size_hw)
        for top in range(0, len(out), step):
            out[top : top + step][invalid[top : top + step]] = mean
    return invalid


def depth_problem(path: Path, dtype: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    """The message for an image whose bit depth differs from the others'."""
    line = _("{path}: a {found} image in a data set of {dtype} images; save all images with the same bit depth")
    if dtype.kind == "f":
        line = _(
            "{path}: an image with float or signed values in a data set of {dtype} images; save all images with the "
            "same bit depth"
        )
    return Problem(line.format(path=path, found=dtype, dtype=wanted), path, "dtype")


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
