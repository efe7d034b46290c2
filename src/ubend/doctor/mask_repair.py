"""Writes repaired masks and images: label values snapped to the set's, flips undone, pixels stored upright."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import DataError
from ubend.doctor.values import NEAR_COLOR, NEAR_VALUE, KnownValues, value_distances
from ubend.labels.class_table import LabelMap
from ubend.labels.label_values import LabelArray, count_label_values, unpack_color
from ubend.portable.decode import explain_decode_errors, read_raster

MASK_SUFFIXES = (".png", ".bmp")  # lossless, and all that they hold is written again
_ORIENTATION = 0x0112  # EXIF tag
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # channels of 8 bit -> Pillow's mode
_BOOLEAN = ((0, 1), (0, 255))  # values of a mask, and of the others, that mean the same
_FAR = 3  # times as far as the nearest known value lies the next one, where a value has one answer

_Transpose = Image.Transpose
_FLIPS = {  # of `mask_fit` -> what Pillow calls it
    "left-right": _Transpose.FLIP_LEFT_RIGHT,
    "up-down": _Transpose.FLIP_TOP_BOTTOM,
    "turned by 180 degrees": _Transpose.ROTATE_180,
    "turned by 90 degrees": _Transpose.ROTATE_270,
    "turned by 270 degrees": _Transpose.ROTATE_90,
    "transposed": _Transpose.TRANSPOSE,
}
_ORIENTATIONS = {
    2: _Transpose.FLIP_LEFT_RIGHT,
    3: _Transpose.ROTATE_180,
    4: _Transpose.FLIP_TOP_BOTTOM,
    5: _Transpose.TRANSPOSE,
    6: _Transpose.ROTATE_270,
    7: _Transpose.TRANSVERSE,
    8: _Transpose.ROTATE_90,
}


def snap_values(mask: LabelArray, known: KnownValues, labels: LabelMap | None = None) -> LabelArray | None:
    """The mask with values that all the set's masks hold; None where there is more than one answer.

    Args:
        mask: as read.
        known: the values of the set's masks.
        labels: for a lossy mask: each value becomes that of the class as which it is read.
    """
    try:
        mask = mask.of_kind(known.kind)
    except DataError:
        return None
    if mask.palette is not None:
        return None
    present = count_label_values(mask.values)[0]
    new = _read_values(present, labels) if labels is not None else _snap(present, known)
    if new is None:
        return None
    values = new[np.searchsorted(present, mask.values)]
    small = known.kind == "value" and int(new.max(initial=0)) <= 255
    return LabelArray(values.astype(np.uint8 if small else np.int32), known.kind)


def _read_values(present: NDArray[np.int32], labels: LabelMap) -> NDArray[np.int32] | None:
    """(K,) the first value of the class as which each value is read."""
    index, has_class = labels.classify(present)
    if not has_class.all() or any(i >= len(labels.codes) or not labels.codes[i] for i in index.tolist()):
        return None
    return np.array([labels.codes[i][0] for i in index.tolist()], np.int32)


def _snap(present: NDArray[np.int32], known: KnownValues) -> NDArray[np.int32] | None:
    """(K,) the new values; None: not sure."""
    usual = known.values
    if known.kind == "value" and (tuple(present.tolist()), tuple(usual.tolist())) == _BOOLEAN:
        return np.array(_BOOLEAN[1], np.int32)
    distances = value_distances(present, usual, known.kind)
    nearest = distances.min(axis=1)
    next_nearest = np.sort(distances, axis=1)[:, 1] if len(usual) > 1 else np.full(len(present), np.inf)
    is_sure = (nearest * _FAR < next_nearest) & (nearest <= (NEAR_COLOR if known.kind == "color" else NEAR_VALUE))
    if known.kind == "value" and len(usual) == 2:  # a value between the two was made by averaging them
        is_sure |= (present > usual[0]) & (present < usual[1]) & (nearest < next_nearest)
    if not is_sure.all():
        return None
    new = np.asarray(usual[distances.argmin(axis=1)], np.int32)
    # A mask of one value where there were several lost its objects: its values are on another scale.
    return None if len(present) > 1 == len(np.unique(new)) else new


def save_values(mask: LabelArray) -> Callable[[Path], None]:
    """What writes these label values as PNG or BMP, by the path's suffix."""
    values = mask.values
    pixels = np.stack(unpack_color(values), axis=-1).astype(np.uint8) if mask.kind == "color" else values
    image = Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16))
    return image.save


def undo_flip(flip: str) -> Image.Transpose:
    """How a mask is turned that fits after this flip of `mask_fit`."""
    return _FLIPS[flip]


def undo_orientation(orientation: int) -> Image.Transpose:
    """How pixels are turned upright; EXIF orientation 2 to 8."""
    return _ORIENTATIONS[orientation]


def save_mask_turned(path: Path, how: Image.Transpose) -> Callable[[Path], None]:
    """What writes a mask file turned or flipped, in its own mode, with its palette."""

    def write(target: Path) -> None:
        with explain_decode_errors(path), Image.open(path) as mask:
            kept = {key: mask.info[key] for key in ("transparency",) if key in mask.info}
            mask.transpose(how).save(target, **kept)

    return write


def read_orientation(path: Path) -> int:
    """The EXIF orientation of a file, 1 to 8; 1 if it has none.

    Raises:
        DataError: not an image.
    """
    with explain_decode_errors(path), Image.open(path) as image:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    return orientation if orientation in _ORIENTATIONS else 1


def save_image_upright(path: Path) -> Callable[[Path], None] | None:
    """What writes an image as PNG or BMP with its pixels upright; None where it could not be read in the same way."""
    try:
        raster = read_raster(path)
    except DataError:
        return None
    pixels = raster.pixels
    if raster.palette is not None or pixels.dtype != np.uint8 or pixels.shape[2] not in _MODES:
        return None

    def write(target: Path) -> None:
        upright = read_raster(path).pixels
        Image.fromarray(np.ascontiguousarray(upright[:, :, 0] if upright.shape[2] == 1 else upright)).save(target)

    return write
