"""Sources of masks, and reading them as label values.

A mask is one file of values or colours, several files with one class or object each, or shapes of an annotation
file. All are read as *label values*; `LabelMap` converts these to class indices.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.labels.cellpose import is_cellpose, read_cellpose
from ubend.labels.label_values import LabelArray, count_label_values, pack_colors, unpack_color
from ubend.labels.shapes import Canvas, Shape, draw_shapes
from ubend.portable.decode import explain_decode_errors, read_raster
from ubend.portable.raster import Raster, refuse_large

_EDGES_SHARE = 0.1  # fraction of the pixels in one object's mask that may be soft edges or noise
_WHITE = 255  # the value of an object in a JPEG layer, except for noise
_GREY_TOLERANCE = 24  # largest difference between the channels of a JPEG mask that counts as grey


@dataclass(frozen=True)
class FileMask:
    """One file: PNG, JPEG, BMP, WebP, PPM, PGM, TIFF, GIF or `.npy` of grey values, ids, palette indices or colours."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


@dataclass(frozen=True)
class Layer:
    """A file whose nonzero pixels (for JPEG: above 127) belong to `value`."""

    path: Path
    value: int


@dataclass(frozen=True)
class LayeredMask:
    """Several files, one per object or one per class; 0 elsewhere.

    In each image, smaller regions cover larger ones, and later ones cover earlier ones of equal size.
    """

    layers: tuple[Layer, ...]

    @property
    def path(self) -> Path:
        """The file for messages."""
        return self.layers[0].path

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(layer.path for layer in self.layers)


@dataclass(frozen=True)
class ShapeMask:
    """Shapes of an annotation file; later ones cover earlier ones; 0 elsewhere.

    Attributes:
        path: the annotation file.
        shapes: in the order in which they are drawn; none: all background.
        size_hw: (height, width) of the image as the annotation states it; None: not stated.
    """

    path: Path
    shapes: tuple[Shape, ...]
    size_hw: tuple[int, int] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


Mask = FileMask | LayeredMask | ShapeMask


def read_label_values(mask: Mask, size_hw: tuple[int, int]) -> LabelArray:
    """Read a mask as label values.

    Args:
        mask: any kind of mask.
        size_hw: (height, width) of the upright image, to draw shapes in; files keep their native size.
    Raises:
        DataError: unreadable, not a mask, or shapes for an image of another size.
    """
    if isinstance(mask, FileMask):
        return _read_file(mask.path)
    if isinstance(mask, LayeredMask):
        return _read_layers(mask)
    if mask.size_hw is not None and mask.size_hw != size_hw:
        stated, real = ("x".join(map(str, hw[::-1])) for hw in (mask.size_hw, size_hw))
        line = _(
            "{path}: annotates an image of {stated} px, but the image is {real} px; export the annotation again"
        ).format(path=mask.path, stated=stated, real=real)
        if mask.size_hw == size_hw[::-1]:
            line = _(
                "{path}: annotates an image of {stated} px, but the image is {real} px after its EXIF orientation is "
                "applied; save the image upright without EXIF orientation, and annotate it again"
            ).format(path=mask.path, stated=stated, real=real)
        raise DataError(
            line,
            path=mask.path,
            key="size",
        )
    canvas = draw_shapes(mask.shapes, size_hw)
    return LabelArray(canvas.values, "value", covered=canvas.covered)


def _read_file(path: Path) -> LabelArray:
    if path.suffix.lower() == ".npy":
        with explain_decode_errors(path):
            if is_cellpose(path):
                pixels = read_cellpose(path)
            else:
                stored = np.lib.format.open_memmap(path, mode="r")
                refuse_large((*stored.shape[:2], 1, 1)[:2], stored.nbytes)
                pixels = np.array(stored)
        raster = Raster(pixels[:, :, None] if pixels.ndim == 2 else pixels)
    else:
        raster = read_raster(path)
    pixels, lossy = raster.pixels, raster.lossy
    if raster.palette is not None:
        return LabelArray(np.ascontiguousarray(pixels[:, :, 0]), "value", raster.palette[:, :3], lossy)
    if raster.alpha:
        pixels, alpha = pixels[:, :, :-1], pixels[:, :, -1]
        if np.ptp(alpha) and (pixels == pixels[0, 0]).all():  # a cut-out: only its alpha carries information
            return _whole(path, alpha)
    if pixels.shape[2:] == (3,) and pixels.dtype == np.uint8:
        return _colored(pack_colors(pixels), lossy)
    return _whole(path, pixels, lossy)


def _colored(colors: NDArray[np.int32], lossy: bool) -> LabelArray:
    """(H, W) 0xRRGGBB -> grey values if all pixels are grey, else colours."""
    if lossy:
        r, g, b = unpack_color(colors)
        spread = np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)
        grey = bool(spread.max(initial=0) <= _GREY_TOLERANCE)
    else:
        # red equals green equals blue; a few pixels usually decide
        grey = not any(((pixels >> 8 ^ pixels) & 0xFFFF).any() for pixels in (colors[::8, ::8], colors))
    if grey:
        green = (colors >> 8 & 255).astype(np.uint8)  # closest to the luma, in JPEG
        return LabelArray(green, "value", None, lossy)
    return LabelArray(colors, "color", None, lossy)


def _whole(path: Path, pixels: NDArray[Any], lossy: bool = False) -> LabelArray:
    """(H, W) or (H, W, 1) integers of any type -> label values.

    Raises:
        DataError: several channels, or values that are not integers from 0 to 65535.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 2 and pixels.dtype == np.uint8:
        return LabelArray(np.ascontiguousarray(pixels), "value", None, lossy)
    if pixels.ndim != 2 or pixels.dtype.kind not in "biuf":
        raise DataError(
            _(
                "{path}: a mask of shape {shape} and type {dtype} is not supported; save one whole number per pixel"
            ).format(path=path, shape="x".join(map(str, pixels.shape)), dtype=pixels.dtype),
            path=path,
            key="dtype",
        )
    if pixels.dtype.kind == "f" and (count := int(np.count_nonzero(~np.isfinite(pixels)))):
        line = _("{path}: mask values that are NaN or infinite ({count}); write whole numbers from 0 to 65535 there")
        raise DataError(line.format(path=path, count=count), path=path, key="value")
    low, high = (pixels.min(initial=0), pixels.max(initial=0)) if pixels.dtype != np.bool_ else (0, 1)
    if not 0 <= low <= high <= 65535 or (pixels.dtype.kind == "f" and not (pixels == np.floor(pixels)).all()):
        raise DataError(
            _("{path}: mask values must be whole numbers from 0 to 65535, found {low} to {high}").format(
                path=path, low=pixels.min(), high=pixels.max()
            ),
            path=path,
            key="value",
        )
    return LabelArray(pixels.astype(np.uint8 if high <= 255 else np.uint16), "value")


def _read_layer(path: Path) -> NDArray[np.bool_]:
    """(H, W) bool: the nonzero pixels of a file of one object or class; with noise or soft edges, those above half.

    Raises:
        DataError: it contains more than one object or class.
    """
    mask_values = _read_file(path)
    values = np.maximum.reduce(unpack_color(mask_values.values)) if mask_values.kind == "color" else mask_values.values
    present, counts = count_label_values(values)
    if len(present) <= 2 and not mask_values.lossy:
        on: NDArray[np.bool_] = values > 0
        return on
    top = _WHITE if mask_values.lossy else int(present[-1])
    between = (present > top // 8) & (present < top - top // 8)
    if counts[between].sum() > _EDGES_SHARE * values.size:
        raise DataError(
            _(
                "{path}: a mask of one object or class must contain 0 and one other value, but "
                "contains {count} values; correct the file"
            ).format(path=path, count=len(present)),
            path=path,
            key="value",
        )
    return np.asarray(values > top // 2)


def _read_layers(mask: LayeredMask) -> LabelArray:
    canvas: Canvas | None = None
    regions: list[tuple[bool, int, NDArray[np.bool_], int, int, int]] = []  # (no background, -pixels) of the order
    for layer in mask.layers:
        on = _read_layer(layer.path)
        canvas = canvas or Canvas(np.zeros(on.shape, np.uint8), Counter())
        if on.shape != canvas.values.shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (on.shape, canvas.values.shape)]
            raise DataError(
                _("{path}: {size} px, but {first} is {first_size} px; save all masks of an image in its size").format(
                    path=layer.path, size=sizes[0], first=mask.path.name, first_size=sizes[1]
                ),
                path=layer.path,
                key="size",
            )
        rows, columns = (np.flatnonzero(on.any(axis=axis)) for axis in (1, 0))
        if len(rows):
            box = on[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
            pixels = int(np.count_nonzero(box))
            regions.append((layer.value != 0, -pixels, box, layer.value, int(rows[0]), int(columns[0])))
    assert canvas is not None
    for *_order, box, value, top, left in sorted(regions, key=lambda region: region[:2]):
        canvas.paint(box, value, top, left)
    return LabelArray(canvas.values, "value", covered=canvas.covered)


def hash_masks(masks: Iterable[Mask], digest_of: dict[Path, str]) -> list[str]:
    """A digest of each mask; `digest_of` has the digests of mask files."""
    return [_hash_mask(mask, digest_of) for mask in masks]


def _hash_mask(mask: Mask, digest_of: dict[Path, str]) -> str:
    if isinstance(mask, FileMask):
        return digest_of[mask.path]
    if isinstance(mask, LayeredMask):
        # Includes the drawing order, which differed in earlier versions.
        parts: Any = ["smaller on larger", *((digest_of[layer.path], layer.value) for layer in mask.layers)]
    else:  # only what the annotation file states for this image
        parts = [vars(shape) for shape in mask.shapes]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def mask_to_text(mask: Mask, resolve: Callable[[Path], str]) -> str:
    """A mask as one line of text: the path of a file, or JSON for other masks; `resolve` makes paths absolute."""
    if isinstance(mask, FileMask):
        return resolve(mask.path)
    if isinstance(mask, LayeredMask):
        return json.dumps({"layers": [[resolve(layer.path), layer.value] for layer in mask.layers]})
    shapes = [vars(shape) for shape in mask.shapes]
    return json.dumps({"path": resolve(mask.path), "size_hw": mask.size_hw, "shapes": shapes})


def mask_from_text(text: str) -> Mask:
    """Parse a line of `mask_to_text`."""
    if not text.startswith("{"):
        return FileMask(Path(text))
    facts = json.loads(text)
    if "layers" in facts:
        return LayeredMask(tuple(Layer(Path(path), value) for path, value in facts["layers"]))
    shapes = tuple(
        Shape(s["value"], tuple(tuple(p) for p in s["polygons"]), s["rle"], s["relative"]) for s in facts["shapes"]
    )
    return ShapeMask(Path(facts["path"]), shapes, tuple(facts["size_hw"]) if facts["size_hw"] else None)
