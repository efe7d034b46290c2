"""Checks that an image fits a model: channels, bit depth, shape, values."""

import reprlib
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .decode import read_header
from .errors import DataError, Problem
from .i18n import _, ngettext
from .images import LoadedImage, fill_invalid, fit_channels, load_image, straighten
from .raster import Header

Image = NDArray[Any] | LoadedImage | Path | str


class _HasChannels(Protocol):
    @property
    def channels(self) -> int: ...


class TakesImages(Protocol):
    """A model, as far as its images are concerned: their dtype, and the number of their channels."""

    @property
    def dtype(self) -> str: ...

    @property
    def sizing(self) -> _HasChannels: ...


def refuse_other_kind(path: Path, header: Header, bundle: TakesImages) -> None:
    """Fail if channels or bit depth of an image do not fit the model.

    Raises:
        DataError: they do not.
    """
    problems = []
    if not header.gives(bundle.sizing.channels):
        line = _("{path}: has {found} channels, but the model takes {channels}").format(
            path=path, found=header.channels, channels=bundle.sizing.channels
        )
        problems.append(Problem(line, path, "data.channels"))
    if header.dtype != bundle.dtype:
        line = _("{path}: a {found} image, but the model takes {dtype}; convert it to {dtype}").format(
            path=path, found=header.dtype, dtype=bundle.dtype
        )
        if header.dtype == "float32":
            line = _(
                "{path}: an image with float or signed values, but the model takes {dtype}; convert it to {dtype} "
                "(multiply values of 0..1 by {maximum})"
            ).format(path=path, dtype=bundle.dtype, maximum=np.iinfo(bundle.dtype).max)
        problems.append(Problem(line, path, "dtype"))
    if problems:
        raise DataError(problems, path=path)


def inspect_file(path: Path, bundle: TakesImages) -> Header:
    """Read and check the header of an image file.

    Raises:
        DataError: it is unreadable, or does not fit the model.
    """
    header = read_header(path, bundle.sizing.channels)
    refuse_other_kind(path, header, bundle)
    return header


def given_image(image: NDArray[Any] | LoadedImage) -> LoadedImage:
    """An image in memory; pixels of a masked array that are masked in any channel are invalid."""
    if isinstance(image, LoadedImage):
        return image
    if not isinstance(image, np.ma.MaskedArray) or image.ndim not in (2, 3):
        return LoadedImage(np.asarray(image))  # also Pillow images and lists
    masked, values = np.ma.getmaskarray(image), np.asarray(image.data)
    if image.ndim == 2:
        masked, values = masked[:, :, None], values[:, :, None]
    invalid = np.asarray(masked.any(axis=2))
    return fill_invalid(LoadedImage(values, invalid if invalid.any() else None))


def take_pixels(image: Image, bundle: TakesImages, header: Header | None = None) -> LoadedImage:
    """Load an image with the model's channels, at native size, with its invalid pixels.

    Args:
        image: a file, or (H, W) or (H, W, channels) values; channels are converted as for files; for masked arrays
            see `given_image`.
        header: of the file, already checked; None: read it.
    Raises:
        DataError: unreadable, or channels or bit depth do not fit the model; an array may also be float, with finite
            values in the model's units.
    """
    channels, dtype = bundle.sizing.channels, bundle.dtype
    if isinstance(image, str | Path):
        if header is None:
            _warn(describe_channels([inspect_file(Path(image), bundle)], channels))
        image = load_image(Path(image), channels)
    loaded = given_image(image)
    image = loaded.pixels
    if image.ndim == 0:
        line = _("the image is {given}, but give a file, or an array of the shape (height, width, {channels})")
        raise DataError(line.format(given=reprlib.repr(image.item()), channels=channels), key="shape")
    if image.dtype != dtype and image.dtype.kind != "f":
        raise DataError(
            _("the array is {found}, but the model takes {dtype}, or float in the same units").format(
                found=image.dtype, dtype=dtype
            ),
            key="dtype",
        )
    _refuse_values(image, bundle)
    loaded = _fit_array(loaded, channels)
    image = loaded.pixels
    if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise DataError(
            _("the image has the shape {shape}, but the model takes (height, width, {channels})").format(
                shape=image.shape, channels=channels
            ),
            key="shape",
        )
    return LoadedImage(straighten(image), loaded.invalid)


def _refuse_values(image: NDArray[Any], bundle: TakesImages) -> None:
    """Fail if a float array is not finite, or, for models of integer images, is out of range or scaled to 0..1.

    Raises:
        DataError: it is.
    """
    if image.dtype.kind != "f" or not image.size:
        return
    with np.errstate(over="ignore"):
        bad = image.size - int(np.isfinite(image.astype(np.float32, copy=False)).sum())
    if bad:
        line = _("the array has values that are not finite ({count}); replace them")
        raise DataError(line.format(count=bad), key="value")
    if bundle.dtype == "float32":
        return
    low, high, maximum = image.min(), image.max(), np.iinfo(bundle.dtype).max
    line = ""
    if low < 0 or high > maximum:
        line = _(
            "the array has values from {low:.3g} to {high:.3g}, but the model takes 0..{maximum}; "
            "scale them as the training images were scaled, or clip them"
        )
    elif 0 < high <= 1:
        line = _(
            "the array has values from {low:.3g} to {high:.3g}, but the model takes 0..{maximum}; multiply by {maximum}"
        )
    if line:
        raise DataError(line.format(low=low, high=high, maximum=maximum), key="value")


def _fit_array(given: LoadedImage, channels: int) -> LoadedImage:
    """(H, W) or (H, W, C) -> (H, W, channels), if this is possible; otherwise unchanged.

    Grey is repeated, colour becomes grey, and alpha is removed; pixels with alpha 0 are invalid.
    """
    image, invalid = given.pixels, given.invalid
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] == channels or 0 in image.shape:
        return LoadedImage(image, invalid)
    alpha = image.shape[2] in (2, 4)
    header = Header(image.shape[0], image.shape[1], image.shape[2] - alpha, image.dtype.name, alpha)
    fitted = None
    if header.channels in (1, channels):
        fitted = fit_channels(image[:, :, : header.channels], channels)
    if fitted is None:
        return LoadedImage(image, invalid)
    _warn(describe_channels([header], channels))
    if alpha and not image[:, :, -1].all():
        hidden = image[:, :, -1] == 0
        return fill_invalid(LoadedImage(fitted, hidden if invalid is None else hidden | invalid))
    return LoadedImage(fitted, invalid)


def describe_channels(headers: Collection[Header], channels: int) -> list[str]:
    """Messages on images whose channels are converted for the model, one for each kind."""
    grey = sum(header.channels == 1 != channels for header in headers)
    color = sum(header.channels == 3 and channels == 1 for header in headers)
    alpha = sum(header.alpha and header.channels + 1 != channels for header in headers)
    lines = {
        ngettext(
            "note: {count} of {all} images is grey; its values are repeated in the model's {channels} channels",
            "note: {count} of {all} images are grey; their values are repeated in the model's {channels} channels",
            grey,
        ): grey,
        ngettext(
            "note: {count} of {all} images is in colour and is converted to grey (luma), which the model takes",
            "note: {count} of {all} images are in colour and are converted to grey (luma), which the model takes",
            color,
        ): color,
        ngettext(
            "note: {count} of {all} images has alpha: it marks valid pixels, and is not a channel for the model",
            "note: {count} of {all} images have alpha: it marks valid pixels, and is not a channel for the model",
            alpha,
        ): alpha,
    }
    lines_given = ((line, count) for line, count in lines.items() if count)
    return [line.format(count=count, all=len(headers), channels=channels) for line, count in lines_given]


def _warn(lines: list[str]) -> None:
    for line in lines:
        warnings.warn(line.removeprefix("note: "), stacklevel=2)
