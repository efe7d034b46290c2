"""Where the mask of a picture comes from, and what it says of each pixel.

A mask is one file of values or colours, several files of one class or object each, or shapes of an
annotation file. All of them read as *codes*; `LabelMap` makes class indices of codes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CodeKind = Literal["value", "color"]


@dataclass(frozen=True)
class FileMask:
    """One file: PNG, JPEG, BMP, WebP, TIFF or `.npy` of grey values, ids, palette indices or colours."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


@dataclass(frozen=True)
class Layer:
    """A file whose pixels other than the darkest value belong to `value`."""

    path: Path
    value: int


@dataclass(frozen=True)
class LayeredMask:
    """Several files, one per object or one per class; later layers lie on earlier ones, 0 where none is."""

    layers: tuple[Layer, ...]

    @property
    def path(self) -> Path:
        """The file that messages name."""
        return self.layers[0].path

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(layer.path for layer in self.layers)


@dataclass(frozen=True)
class Shape:
    """An annotated region.

    Attributes:
        value: of its pixels, 1..254.
        polygons: each (x0, y0, x1, y1, ...) in px of the upright picture, the pixel (0, 0) reaching from 0 to 1.
        rle: instead of polygons, COCO's run lengths: {"size": [h, w], "counts": list or str}.
        relative: the polygons' numbers are shares of the picture's width and height.
    """

    value: int
    polygons: tuple[tuple[float, ...], ...] = ()
    rle: dict[str, Any] | None = None
    relative: bool = False


@dataclass(frozen=True)
class DrawnMask:
    """Shapes of an annotation file; later ones lie on earlier ones, 0 where none is.

    Attributes:
        path: the annotation file.
        shapes: in the order in which they are drawn; none: all background.
        size_hw: (height, width) of the picture as the annotation states it; None when it does not.
    """

    path: Path
    shapes: tuple[Shape, ...]
    size_hw: tuple[int, int] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


Mask = FileMask | LayeredMask | DrawnMask


@dataclass(frozen=True)
class Codes:
    """What a mask says of each pixel.

    Attributes:
        values: (H, W) int32: a grey value or id (0..65535) or palette index, or a colour as 0xRRGGBB.
        kind: which of them.
        palette: of a palette picture, (256, 3) uint8: index -> colour.
        lossy: a JPEG: values are only about those that were saved.
    """

    values: NDArray[np.int32]
    kind: CodeKind
    palette: NDArray[np.uint8] | None = None
    lossy: bool = False
