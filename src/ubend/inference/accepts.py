"""Which images a model accepts: channels, depth, shape."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, Problem
from ubend.core.i18n import _
from ubend.io.decode import read_header
from ubend.io.images import read_image, straighten
from ubend.io.raster import Header
from ubend.models.model_file import Bundle

Image = NDArray[Any] | Path | str


def refuse_other_kind(path: Path, header: Header, bundle: Bundle) -> None:
    """Fail when an image has other channels than the model takes, or another depth."""
    problems = []
    if not header.gives(bundle.sizing.channels):
        line = _("{path}: has {found} channels, but the model takes {channels}").format(
            path=path, found=header.channels, channels=bundle.sizing.channels
        )
        problems.append(Problem(line, path, "data.channels"))
    if header.dtype != bundle.dtype:
        line = _("{path}: a {found} picture, but the model takes {dtype}; save it with that depth").format(
            path=path, found=header.dtype, dtype=bundle.dtype
        )
        problems.append(Problem(line, path, "dtype"))
    if problems:
        raise DataError(problems, path=path)


def inspect_file(path: Path, bundle: Bundle) -> Header:
    """An image file's header; DataError: it is unreadable, or of another kind than the model takes."""
    header = read_header(path, bundle.sizing.channels)
    refuse_other_kind(path, header, bundle)
    return header


def take_pixels(image: Image, bundle: Bundle, header: Header | None = None) -> NDArray[Any]:
    """(H, W, channels) of an image, as it is.

    Args:
        image: a file, or (H, W) or (H, W, channels) values.
        header: of the file, checked already; None: it is read.
    Raises:
        DataError: unreadable, or not of the model's channels and depth; an array may be float.
    """
    channels, dtype = bundle.sizing.channels, bundle.dtype
    if isinstance(image, str | Path):
        if header is None:
            inspect_file(Path(image), bundle)
        image = read_image(Path(image), channels)
    image = np.asarray(image)  # of Pillow images and lists too
    if image.dtype != dtype and image.dtype.kind != "f":
        raise DataError(
            _("an array of {found} was given, but the model takes {dtype}, or float in its units").format(
                found=image.dtype, dtype=dtype
            ),
            key="dtype",
        )
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise DataError(
            _("a picture of shape {shape} was given, but the model takes (height, width, {channels})").format(
                shape=image.shape, channels=channels
            ),
            key="shape",
        )
    return straighten(image)


def too_large(native_hw: tuple[int, int]) -> str:
    """The sentence for an image of that (height, width) in px that memory does not suffice for."""
    return _("out of memory with one picture of {width}x{height} px; try --device cpu, or a smaller picture").format(
        width=native_hw[1], height=native_hw[0]
    )
