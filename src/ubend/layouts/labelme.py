"""LabelMe: one JSON file with shapes for each image."""

import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ubend.core.i18n import _
from ubend.labels.mask_files import ShapeMask
from ubend.labels.shapes import Shape
from ubend.layouts.collection import (
    Collection,
    Coordinate,
    Polygon,
    find_jsons,
    guess_kind,
    has_annotations,
    load_json,
    number_classes,
)
from ubend.layouts.pairs import Layout, LayoutResult
from ubend.layouts.problems import Problems, natural_key

_CIRCLE_POINTS = 128  # the polygon deviates from the circle by at most .0003 radii


class _Shape(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)
    label: str = Field(min_length=1)
    points: list[tuple[Coordinate, Coordinate]]
    shape_type: str | None = None


class _File(BaseModel):
    shapes: list[_Shape]
    imagePath: str | None = None
    imageHeight: int | None = Field(None, ge=1)
    imageWidth: int | None = Field(None, ge=1)


_FILE = TypeAdapter(_File)


def _read(root: Path, problems: Problems) -> LayoutResult:
    """Read the LabelMe files of a folder; later shapes are drawn over earlier ones."""
    collection = Collection(root, problems)
    stems = {path.stem for path in collection.images}
    # A JSON file named like an image that does not look like LabelMe is a damaged LabelMe file.
    paths = [path for path in find_jsons(root) if path.stem in stems or guess_kind(path) == "labelme"]
    loaded = {path: load_json(path, _FILE, problems) for path in paths}
    files = {path: file for path, file in loaded.items() if file is not None}
    labels = {shape.label for file in files.values() for shape in file.shapes}
    classes, values = number_classes(sorted(labels, key=natural_key), problems)
    beside: dict[Path, list[Path]] = {}
    for candidate in collection.images:
        beside.setdefault(candidate.with_suffix(""), []).append(candidate)
    for path, file in files.items():
        shapes = []
        for number, shape in enumerate(file.shapes, 1):
            outline = _outline(shape)
            if isinstance(outline, str):
                problems.add(outline, f"{problems.shorten(path)}: {number} ({shape.shape_type or 'polygon'})")
            else:
                shapes.append(Shape(values[shape.label], (outline,)))
        # The image of the same name next to it, since people rename both together; else the stated one.
        same_stem = beside.get(path.with_suffix(""), [])
        image = same_stem[0] if len(same_stem) == 1 else collection.find(file.imagePath or path.stem, path)
        if image is not None:
            height, width = file.imageHeight, file.imageWidth
            mask = ShapeMask(path, tuple(shapes), (height, width) if height and width else None)
            collection.add(image, mask, damaged=len(shapes) < len(file.shapes))
    return collection.reading(classes)


def _outline(shape: _Shape) -> Polygon | Literal["shape kind", "few points"]:
    """The outline of a shape as a polygon, or the kind of problem."""
    points = shape.points
    match shape.shape_type or "polygon":
        case "rectangle" if len(points) == 2:
            (x0, y0), (x1, y1) = points
            return (x0, y0, x1, y0, x1, y1, x0, y1)
        case "circle" if len(points) == 2:
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            angles = [2 * math.pi * i / _CIRCLE_POINTS for i in range(_CIRCLE_POINTS)]
            return tuple(c for a in angles for c in (x + radius * math.cos(a), y + radius * math.sin(a)))
        case "polygon" | "rectangle":  # newer rectangles have four corners
            return tuple(c for point in points for c in point) if len(points) >= 3 else "few points"
        case "circle":
            return "few points"
    return "shape kind"


LABELME = Layout(
    lambda: _("LabelMe: images, and a JSON file for each"), lambda root: has_annotations(root, "labelme"), _read
)
