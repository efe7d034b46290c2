"""Which images a model accepts: channels, depth, shape."""

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, Problem
from ubend.core.i18n import _, ngettext
from ubend.io.decode import read_header
from ubend.io.images import LoadedImage, fill_invalid, fit_channels, load_image, straighten
from ubend.io.raster import Header
from ubend.models.model_file import Bundle

Image = NDArray[Any] | LoadedImage | Path | str


def refuse_other_kind(path: Path, header: Header, bundle: Bundle) -> None:
    """Fail when an image has other channels than the model takes, or another depth."""
    problems = []
    if not header.gives(bundle.sizing.channels):
        line = _("{path}: has {found} channels, but the model takes {channels}").format(
            path=path, found=header.channels, channels=bundle.sizing.channels
        )
        problems.append(Problem(line, path, "data.channels"))
    if header.dtype != bundle.dtype:
        line = _("{path}: a {found} image, but the model takes {dtype}; save it with that depth").format(
            path=path, found=header.dtype, dtype=bundle.dtype
        )
        if header.dtype == "float32":
            line = _(
                "{path}: an image of float or signed values, but the model takes {dtype}; save it so, values of 0..1 "
                "times {maximum}"
            ).format(path=path, dtype=bundle.dtype, maximum=np.iinfo(bundle.dtype).max)
        problems.append(Problem(line, path, "dtype"))
    if problems:
        raise DataError(problems, path=path)


def inspect_file(path: Path, bundle: Bundle) -> Header:
    """An image file's header; DataError: it is unreadable, or of another kind than the model takes."""
    header = read_header(path, bundle.sizing.channels)
    refuse_other_kind(path, header, bundle)
    return header


def given_image(image: NDArray[Any] | LoadedImage) -> LoadedImage:
    """An image in memory; of a masked array, masked values were not seen, in any channel."""
    if isinstance(image, LoadedImage):
        return image
    if not isinstance(image, np.ma.MaskedArray) or image.ndim not in (2, 3):
        return LoadedImage(np.asarray(image))  # of Pillow images and lists too
    masked, values = np.ma.getmaskarray(image), np.asarray(image.data)
    if image.ndim == 2:
        masked, values = masked[:, :, None], values[:, :, None]
    invalid = np.asarray(masked.any(axis=2))
    return fill_invalid(LoadedImage(values, invalid if invalid.any() else None))


def take_pixels(image: Image, bundle: Bundle, header: Header | None = None) -> LoadedImage:
    """(H, W, channels) of an image, as it is, and where it was seen.

    Args:
        image: a file, or (H, W) or (H, W, channels) values; channels are fitted as those of files are, and see
            `given_image` for masked arrays.
        header: of the file, checked already; None: it is read.
    Raises:
        DataError: unreadable, or not of the model's channels and depth; an array may be float, of finite values in the
            model's units.
    """
    channels, dtype = bundle.sizing.channels, bundle.dtype
    if isinstance(image, str | Path):
        if header is None:
            _warn(describe_channels([inspect_file(Path(image), bundle)], channels))
        image = load_image(Path(image), channels)
    loaded = given_image(image)
    image = loaded.pixels
    if image.dtype != dtype and image.dtype.kind != "f":
        raise DataError(
            _("an array of {found} was given, but the model takes {dtype}, or float in its units").format(
                found=image.dtype, dtype=dtype
            ),
            key="dtype",
        )
    _refuse_values(image, bundle)
    loaded = _fit_array(loaded, channels)
    image = loaded.pixels
    if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise DataError(
            _("an image of shape {shape} was given, but the model takes (height, width, {channels})").format(
                shape=image.shape, channels=channels
            ),
            key="shape",
        )
    return LoadedImage(straighten(image), loaded.invalid)


def _refuse_values(image: NDArray[Any], bundle: Bundle) -> None:
    """Fail on an array of float that is not finite, or that holds what no file of the model's depth can hold, or that
    was scaled to 0..1 for a model of whole numbers. A model of float values takes all finite ones, as of files."""
    if image.dtype.kind != "f" or not image.size:
        return
    with np.errstate(over="ignore"):
        bad = image.size - int(np.isfinite(image.astype(np.float32, copy=False)).sum())
    if bad:
        line = _("an array with values that are no finite numbers ({count}) was given; replace them")
        raise DataError(line.format(count=bad), key="value")
    if bundle.dtype == "float32":
        return
    low, high, maximum = image.min(), image.max(), np.iinfo(bundle.dtype).max
    line = ""
    if low < 0 or high > maximum:
        line = _(
            "an array of values from {low:.3g} to {high:.3g} was given, but the model takes 0..{maximum}; "
            "bring them to this range as the training images were, or clip them"
        )
    elif 0 < high <= 1:
        line = _(
            "an array of values from {low:.3g} to {high:.3g} was given, but the model takes 0..{maximum}; "
            "multiply by {maximum}"
        )
    if line:
        raise DataError(line.format(low=low, high=high, maximum=maximum), key="value")


def _fit_array(given: LoadedImage, channels: int) -> LoadedImage:
    """(H, W), (H, W, C) -> (H, W, channels) where that is understood: grey repeated, alpha 0 not seen and alpha left
    out; else as it is."""
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
    """What becomes of images that have other channels than a model takes; one sentence for each kind of them."""
    grey = sum(header.channels == 1 != channels for header in headers)
    color = sum(header.channels == 3 and channels == 1 for header in headers)
    alpha = sum(header.alpha and header.channels + 1 != channels for header in headers)
    lines = {
        ngettext(
            "note: {count} of {all} images is grey; the grey is repeated in the model's {channels} channels",
            "note: {count} of {all} images are grey; the grey is repeated in the model's {channels} channels",
            grey,
        ): grey,
        ngettext(
            "note: {count} of {all} images is in colour; the model takes grey, so it becomes grey (luma)",
            "note: {count} of {all} images are in colour; the model takes grey, so they become grey (luma)",
            color,
        ): color,
        ngettext(
            "note: {count} of {all} images has alpha: it says what was seen and is no channel of the image",
            "note: {count} of {all} images have alpha: it says what was seen and is no channel of the image",
            alpha,
        ): alpha,
    }
    lines_given = ((line, count) for line, count in lines.items() if count)
    return [line.format(count=count, all=len(headers), channels=channels) for line, count in lines_given]


def _warn(lines: list[str]) -> None:
    for line in lines:
        warnings.warn(line.removeprefix("note: "), stacklevel=2)


def too_large(native_hw: tuple[int, int]) -> str:
    """The sentence for an image of that (height, width) in px that memory does not suffice for."""
    return _("out of memory with one image of {width}x{height} px; try --device cpu, or a smaller image").format(
        width=native_hw[1], height=native_hw[0]
    )
