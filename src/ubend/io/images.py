"""Pictures as arrays; written masks; the one resize.

Pictures at every border: (H, W, C) uint8, uint16 or float32, values as in the file. Masks: (H, W) uint8
class index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import DataError, Problem
from ubend.core.files import write_file
from ubend.core.i18n import _
from ubend.io.decode import read_raster, without_warnings
from ubend.io.raster import MOST_CHANNELS, depth_name

if TYPE_CHECKING:
    import torch


def read_image(path: Path, channels: int | None = None, place: NDArray[Any] | None = None) -> NDArray[Any]:
    """A picture, upright (EXIF orientation applied).

    Alpha is dropped unless `channels` counts it; CMYK is converted to red, green, blue.

    Args:
        path: PNG, JPEG, BMP, WebP or TIFF.
        channels: 1 gives grey (ITU-R 601 luma of colour), 3 gives colour (grey repeated), any other number
            only files that have so many; None: as the file is.
        place: an array that the picture may be decoded into, if it has its shape and dtype; whether it was,
            `np.may_share_memory` tells. Fresh memory for every picture costs a fifth of the time to decode it.
    Returns:
        (H, W, C) uint8, uint16 when the file has that depth, float32 when it has any other.
    Raises:
        DataError: missing, empty, truncated, no picture, other channels, or numbers that are not finite.
    """
    raster = read_raster(path, channels, place)
    return finish_pixels(raster.colors(), raster.alpha, channels, path)


def read_with_channels(path: Path, wanted: Sequence[int | None]) -> list[NDArray[Any]]:
    """The same image with several numbers of channels, decoded once.

    Args:
        path: as of `read_image`.
        wanted: each as of `read_image`; the first one also says what unnamed pages of a TIFF are.
    Returns, raises:
        As `read_image` for each; where the same is wanted, the same array.
    """
    raster = read_raster(path, wanted[0])
    colors = raster.colors()
    made = {channels: finish_pixels(colors, raster.alpha, channels, path) for channels in {*wanted}}
    return [made[channels] for channels in wanted]


def finish_pixels(image: NDArray[Any], alpha: bool, channels: int | None, path: Path) -> NDArray[Any]:
    """(H, W, channels in the file) -> as `read_image` gives it; arguments and errors as there.

    Args:
        alpha: the last channel is alpha.
    """
    if alpha and image.shape[2] != channels:
        image = image[:, :, :-1]
    fitted = fit_channels(image, image.shape[2] if channels is None else channels)
    if fitted is None:
        line = _("{path}: has {found} channels, but {channels} are asked for")
        raise DataError(line.format(path=path, found=image.shape[2], channels=channels), path=path, key="data.channels")
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        image = fitted.astype(depth_name(image.dtype), copy=False)
    if image.dtype.kind == "f" and (bad := image.size - int(np.count_nonzero(np.isfinite(image)))):
        raise DataError(
            _("{path}: holds {count} values that are no finite numbers; replace them").format(path=path, count=bad),
            path=path,
            key="value",
        )
    return np.ascontiguousarray(image)


def read_resized(
    paths: Sequence[Path], channels: int, native_hw: tuple[int, int], size_hw: tuple[int, int], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], dict[int, list[str]]]:
    """Pictures of one size, read and resized together: one by one, the calls cost as much as the work.

    Args:
        paths: n files.
        channels: as of `read_image`.
        native_hw: (height, width) of each of them, upright, px.
        size_hw: (height, width) that is wanted.
        dtype: of each of them.
    Returns:
        (n, *size_hw, channels) pictures, and what is wrong with those that cannot be used, by their place in
        `paths`; such a picture is not to be looked at.
    """
    native = np.empty((len(paths), *native_hw, channels), dtype)  # clearing it first takes a twentieth of the time
    bad: dict[int, list[str]] = {}
    with without_warnings():  # once for all of them
        for number, (path, place) in enumerate(zip(paths, native, strict=True)):
            if problems := read_into(place, path):
                place[:] = 0
                bad[number] = problems
    return resize_arrays(native, size_hw), bad


def read_into(place: NDArray[Any], path: Path) -> list[str]:
    """Read a picture into an array of its shape and dtype; returns what is wrong with it."""
    try:
        image = read_image(path, place.shape[2], place)
    except DataError as error:
        return error.problems
    if image.dtype != place.dtype:
        return [depth_problem(path, image.dtype, place.dtype)]
    if image.shape != place.shape:
        return [Problem(_("{path}: was changed while it was read; start again").format(path=path), path)]
    if not np.may_share_memory(image, place):
        place[:] = image
    return []


def depth_problem(path: Path, found: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    """The sentence for a picture of another depth than the others."""
    line = _("{path}: {found} picture in a set of {dtype} pictures; save all with the same depth")
    return Problem(line.format(path=path, found=found, dtype=wanted), path, "dtype")


def fit_channels(image: NDArray[Any], channels: int) -> NDArray[Any] | None:
    """(H, W, C) -> (H, W, channels): grey repeated, the luma of colour (ITU-R 601), or as it is; None: neither."""
    found = image.shape[2]
    if channels == found:
        return image
    if (found, channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (found, channels) == (3, 1):
        if image.dtype == np.uint8:
            return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[:, :, None]
        luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        return (np.rint(luma) if image.dtype.kind == "u" else luma).astype(image.dtype)[:, :, None]
    return None


def write_mask(path: Path, index: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]) -> None:
    """Write class indices as a palette PNG: the values are the indices, the colours those of the classes.

    Args:
        index: (H, W) uint8 class index; what is no class is drawn grey.
        colors: (red, green, blue) of each class.
    """
    picture = Image.fromarray(index)
    palette = np.full((256, 3), 128, dtype=np.uint8)
    palette[: len(colors)] = colors
    picture.putpalette(palette.tobytes())
    write_file(path, lambda temporary: picture.save(temporary, format="PNG"))


def resize_image(image: "torch.Tensor", size_hw: tuple[int, int]) -> "torch.Tensor":
    """The one resize of pictures: bilinear, antialiased when it shrinks, pixel centres aligned.

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
        # torch 2.14 on a CPU gives a single column the first row's value all over, or fails an assertion of its own
        # where it is uint8; a single row it gets right. So the picture is laid on its side
        turned = image.float().transpose(2, 3)
        out = interpolate(turned, size=size_hw[::-1], mode="bilinear", align_corners=False, antialias=True)
        out = out.transpose(2, 3)
        return out.to(image.dtype) if image.is_floating_point() else out.round().to(image.dtype)
    return interpolate(image, size=size_hw, mode="bilinear", align_corners=False, antialias=True)


def resize_array(image: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """`resize_image` for one (H, W, C) array; dtype kept, whole numbers rounded."""
    return image if image.shape[:2] == tuple(size_hw) else resize_arrays(image[None], size_hw)[0]


def resize_arrays(images: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """`resize_image` for (N, H, W, C) arrays; dtype kept, whole numbers rounded."""
    import torch

    if images.shape[1:3] == tuple(size_hw):
        return images
    dtype = np.uint8 if images.dtype == np.uint8 else np.float32
    planes = torch.from_numpy(np.require(straighten(images), dtype, ["C", "W"])).permute(0, 3, 1, 2)
    out = resize_image(planes, size_hw).permute(0, 2, 3, 1).numpy()
    whole = images.dtype.kind == "f" or out.dtype == images.dtype
    return np.ascontiguousarray(out if whole else np.rint(out)).astype(images.dtype, copy=False)


def straighten(image: NDArray[Any]) -> NDArray[Any]:
    """The same, without negative strides, which torch refuses: numpy calls one row contiguous whatever its stride."""
    return image.copy() if any(stride < 0 for stride in image.strides) else image


def resize_mask(mask: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Nearest pixel centre: (..., H, W) -> (..., height, width), no value is invented."""
    if mask.shape[-2:] == tuple(size_hw):
        return mask
    rows = ((np.arange(size_hw[0]) + 0.5) * mask.shape[-2] / size_hw[0]).astype(np.int64)
    columns = ((np.arange(size_hw[1]) + 0.5) * mask.shape[-1] / size_hw[1]).astype(np.int64)
    return np.ascontiguousarray(mask[..., rows[:, None], columns[None, :]])


@dataclass(frozen=True)
class Sizing:
    """How pictures are brought to the network's size; kept with the model, and part of a store's name.

    Attributes:
        size_px: as in `model_size`; None: pictures keep their own size.
        keep_aspect: as in `model_size`.
        channels: 1 reads grey, 3 colour.
    """

    size_px: Annotated[int, Interval(ge=8, le=8192)] | None
    keep_aspect: bool
    channels: Annotated[int, Interval(ge=1, le=MOST_CHANNELS)]


def model_size(shape_hw: tuple[int, int], size_px: int | None, keep_aspect: bool) -> tuple[int, int]:
    """(height, width) to which a picture is resized for the network.

    `keep_aspect`: the area of a `size_px` square, the aspect kept (so that the cost of a picture does not
    depend on its shape); else that square. Without `size_px` the picture's own.
    """
    if size_px is None:
        return shape_hw
    if not keep_aspect:
        return size_px, size_px
    height, width = shape_hw
    factor = size_px / (height * width) ** 0.5
    return max(1, round(height * factor)), max(1, round(width * factor))
