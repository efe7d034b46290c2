"""Writes arrays given in Python to lossless files in the cache, which are then read like any other data set.

    KEY.arrays/arrays/images/0000.tif    one TIFF for each image and mask; KEY is a hash of all of them
    KEY.arrays/arrays/masks/0000.tif
    KEY.arrays/HASH.csv                  a split file, see `ReadOptions.split`

N images, H x W pixels, C channels.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.files import DiskRequirement, check_disk_space, csv_text, write_text
from ubend.core.i18n import _
from ubend.dataset.scan import cache_error
from ubend.layouts.naming import SPLIT_WORDS
from ubend.layouts.split_file import SPLIT_COLUMNS
from ubend.portable.raster import MAX_CHANNELS

Arrays = NDArray[Any] | Sequence[NDArray[Any]]
ARRAYS_SUFFIX = ".arrays"
_VERSION = 1  # to be increased when the same arrays give other files
_IMAGE_DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
_MAX_VALUE = 65535  # of a mask
_UNIT, _BYTES = 1.0, 100.0  # maximum of float images scaled to 0..1; minimum maximum of images surely in 0..255


def arrays_to_files(kwargs: Mapping[str, Any], cache: Path) -> dict[str, Any]:
    """Replace arrays among the keyword arguments of `ubend.fit` by paths of files in the cache.

    Args:
        kwargs: the keyword arguments, see `ubend.fit`. These are replaced, or removed (`groups`):
            images: N arrays (H, W) or (H, W, C), or one (N, H, W[, C]): uint8, uint16 or float, all of one dtype.
                Floats are used as float32, in any unit; NaN marks invalid pixels, see `LoadedImage`.
            masks: N arrays (H, W), or one (N, H, W), of integers 0..65535 or bool. The meaning of the values is
                found, or stated by `classes` and `values`, as for mask files.
            split: N words train, val or test; or a split file with the names 0000, 0001, ...
            groups: N numbers or names, None: no group; images of one group stay in one split.
        cache: where the files are written, unless they exist.
    Returns:
        The keyword arguments with paths; unchanged if there are no arrays.
    Raises:
        DataError: arrays that cannot be images and masks; the message names the first one, such as `masks[3]`.
        OutputError: the cache cannot be written, or the disk is full.
    """
    flags = dict(kwargs)
    images, masks, split, groups = (
        flags.get("images"),
        flags.get("masks"),
        flags.get("split"),
        flags.pop("groups", None),
    )
    given = [name for name in ("images", "masks") if not isinstance(flags.get(name), str | Path | None)]
    listed = groups is not None or not isinstance(split, str | Path | None)
    if not given and not listed:
        return flags
    if given != ["images", "masks"]:
        line = _("images and masks: give arrays for both, or paths for both; lists as split or groups need arrays")
        raise DataError(line, key="data.images")
    pixels, labels = _check_images(images), _check_masks(masks)
    if len(pixels) != len(labels):
        line = _("{images} images but {masks} masks; give one mask for each image, in the same order")
        raise DataError(line.format(images=len(pixels), masks=len(labels)), key="data.masks")
    for index, (image, mask) in enumerate(zip(pixels, labels, strict=True)):
        if image.shape[:2] != mask.shape:
            line = _("masks[{number}] has the shape {mask}, but images[{number}] {image}; height and width must agree")
            line = line.format(number=index, mask=mask.shape, image=image.shape)
            raise DataError(line, key="data.masks")
    digits = max(4, len(str(len(pixels) - 1)))
    names = [f"{index:0{digits}d}" for index in range(len(pixels))]
    folder = _write(names, {"images": pixels, "masks": labels}, cache)
    flags |= {side: folder / "arrays" / side for side in ("images", "masks")}
    if listed:
        flags["split"] = _write_split(names, split, groups, folder)
    return flags


def refuse_lost(path: Path) -> None:
    """Fail if the path is one of `arrays_to_files` and no longer in the cache.

    Raises:
        DataError: it is.
    """
    folder = next((parent for parent in (path, *path.parents) if parent.name.endswith(ARRAYS_SUFFIX)), None)
    if folder is not None and re.fullmatch("[0-9a-f]{24}", folder.stem) and not folder.exists():
        line = _(
            "{folder}: the arrays of this run are no longer in the cache; call ubend.fit with the same images and "
            "masks, which writes them again (a new run folder is fine)"
        )
        raise DataError(line.format(folder=folder), path=folder, key="folder")


def _as_arrays(values: Any, name: str) -> list[NDArray[Any]]:
    """The arrays of a sequence, or along the first axis of an array."""
    try:
        arrays = [value if isinstance(value, np.ndarray) else np.asarray(value) for value in values]
    except (TypeError, ValueError, RuntimeError) as error:
        line = _("{name}: not a sequence of arrays ({reason})").format(name=name, reason=error)
        raise DataError(line, key=f"data.{name}") from error
    if not arrays:
        raise DataError(_("{name} is empty; give at least one array").format(name=name), key=f"data.{name}")
    for index, array in enumerate(arrays):
        if isinstance(array, np.ma.MaskedArray):
            line = _("{name}[{number}] is a masked array; fill it: NaN in float images, 255 in masks")
            raise DataError(line.format(name=name, number=index), key=f"data.{name}")
    return arrays


def _check_images(images: Any) -> list[NDArray[Any]]:
    """(H, W, C) uint8, uint16 or float32 each, all of one dtype."""
    checked: list[NDArray[Any]] = []
    highest: list[float] = []
    for index, image in enumerate(_as_arrays(images, "images")):
        name = f"images[{index}]"
        if image.dtype.name not in _IMAGE_DTYPES:
            line = _("{name} is {dtype}; give uint8, uint16 or float").format(name=name, dtype=image.dtype)
            raise DataError(line, key="data.images")
        if image.ndim not in (2, 3) or not image.size or (image.ndim == 3 and image.shape[2] > MAX_CHANNELS):
            line = _("{name} has the shape {shape}; give (H, W) or (H, W, C), with at most {maximum} channels, last")
            raise DataError(line.format(name=name, shape=image.shape, maximum=MAX_CHANNELS), key="data.images")
        if image.dtype.kind == "f":
            with np.errstate(over="ignore"):
                image = image.astype(np.float32)
            if np.isinf(image).any():
                raise DataError(_("{name} has infinite values; replace them").format(name=name), key="data.images")
            if np.isnan(image).all():
                raise DataError(_("{name} has only NaN values; remove it").format(name=name), key="data.images")
            highest.append(float(np.nanmax(image)))
        if checked and image.dtype != checked[0].dtype:
            line = _("{name} is {dtype}, but images[0] is {first}; give all images in the same dtype")
            line = line.format(name=name, dtype=image.dtype, first=checked[0].dtype)
            raise DataError(line, key="data.images")
        checked.append(image if image.ndim == 3 else image[:, :, None])
    low = [index for index, value in enumerate(highest) if 0 < value <= _UNIT]
    high = [index for index, value in enumerate(highest) if _BYTES <= value <= 255]
    if low and high and min(float(np.nanmin(checked[index])) for index in (low[0], high[0])) >= 0:
        line = _(
            "the maximum of images[{low}] is {one:g}, but that of images[{high}] is {other:g}; give all images in "
            "0..1, or all in 0..255"
        )
        line = line.format(low=low[0], one=highest[low[0]], high=high[0], other=highest[high[0]])
        raise DataError(line, key="data.images")
    return checked


def _check_masks(masks: Any) -> list[NDArray[Any]]:
    """(H, W) each, all uint8, or all uint16 if a value needs it."""
    arrays = _as_arrays(masks, "masks")
    for index, mask in enumerate(arrays):
        name = f"masks[{index}]"
        if mask.dtype.kind not in "bui":
            line = _("{name} is {dtype}; give whole numbers, such as masks.astype(np.uint8)")
            raise DataError(line.format(name=name, dtype=mask.dtype), key="data.masks")
        if mask.ndim != 2 or not mask.size:
            line = _("{name} has the shape {shape}; give (H, W), one value for each pixel")
            raise DataError(line.format(name=name, shape=mask.shape), key="data.masks")
        low, high = int(mask.min()), int(mask.max())
        if low < 0 or high > _MAX_VALUE:
            line = _("{name} has the value {value}; give values from 0 to {maximum} (255: pixels that are not scored)")
            line = line.format(name=name, value=low if low < 0 else high, maximum=_MAX_VALUE)
            raise DataError(line, key="data.masks")
    dtype = np.uint8 if max(int(mask.max()) for mask in arrays) <= 255 else np.uint16
    return [mask.astype(dtype) for mask in arrays]


def _write(names: Sequence[str], sides: Mapping[str, Sequence[NDArray[Any]]], cache: Path) -> Path:
    """Write the arrays to a temporary folder, and rename it when complete; returns the folder."""
    import imagecodecs  # noqa: F401 - as in io/tiff.py
    import tifffile

    digest, size = hashlib.blake2b(f"{_VERSION}".encode(), digest_size=12), 0
    for side, arrays in sides.items():
        for array in arrays:
            digest.update(f"{side} {array.shape} {array.dtype.name}".encode())
            digest.update(np.ascontiguousarray(array).data)
            size += array.nbytes
    folder = cache / f"{digest.hexdigest()}{ARRAYS_SUFFIX}"
    if folder.is_dir():
        return folder
    check_disk_space([DiskRequirement(cache, size, _("set UBEND_CACHE to another disk"))])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.stem}-", dir=cache))
        try:
            for side, arrays in sides.items():
                (temporary / "arrays" / side).mkdir(parents=True)
                for name, array in zip(names, arrays, strict=True):
                    colors = "rgb" if array.shape[2:] == (3,) else "minisblack"
                    bands: dict[str, Any] = {"planarconfig": "contig"} if array.ndim == 3 and array.shape[2] > 1 else {}
                    stored = array[:, :, 0] if array.shape[2:] == (1,) else array
                    path = temporary / "arrays" / side / f"{name}.tif"
                    # No metadata: equal arrays must give equal files, so that a run can be resumed with them.
                    tifffile.imwrite(path, stored, photometric=colors, metadata=None, software=False, **bands)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process wrote the same folder first
            raise cache_error(cache, error) from error
    return folder


def _write_split(names: Sequence[str], split: Any, groups: Any, folder: Path) -> Path:
    """Write the split file of these lists, if it does not exist; returns its path."""
    columns: dict[str, list[Any]] = {"file": list(names)}
    if isinstance(split, str | Path):
        line = _("groups: give split as a list too, or add a column group to {path}").format(path=split)
        raise DataError(line, key="data.split")
    for name, values in (("split", split), ("group", groups)):
        if values is not None:
            columns[name] = ["" if value is None else str(value) for value in values]
            if len(columns[name]) != len(names):
                line = _("{name}: {found} entries for {count} images").format(
                    name="groups" if name == "group" else name, found=len(columns[name]), count=len(names)
                )
                raise DataError(line, key="data.split")
    for index, word in enumerate(columns.get("split", [])):
        if word.lower() not in SPLIT_WORDS:
            line = _("split[{number}] is {word}; give train, val or test").format(number=index, word=word or None)
            raise DataError(line, key="data.split")
    text = csv_text([[name for name in SPLIT_COLUMNS if name in columns], *zip(*columns.values(), strict=True)])
    path = folder / f"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.csv"
    if not path.exists():
        write_text(path, text)
    return path
