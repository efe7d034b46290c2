"""COCO: JSON files with images, annotations and categories."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, field_validator

from ubend.core.i18n import _
from ubend.labels.mask_files import ShapeMask
from ubend.labels.shapes import Shape, measure_polygon
from ubend.layouts.collection import (
    Collection,
    Coordinate,
    Polygon,
    find_jsons,
    guess_kind,
    has_annotations,
    load_json,
    number_classes,
    polygon_problem,
    split_of_path,
)
from ubend.layouts.pairs import Layout, LayoutResult, SplitName
from ubend.layouts.problems import Problems, natural_key
from ubend.portable.printable import enumerate_names
from ubend.portable.run_lengths import read_counts

_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "image_info_")  # of the official sets

Id = int | str


class _Image(BaseModel):
    id: Id
    file_name: str
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)


class _Category(BaseModel):
    id: Id
    name: str = Field(min_length=1)
    supercategory: str | None = None


class _RunLengths(BaseModel):
    size: tuple[int, int]
    counts: list[int] | str


class _Annotation(BaseModel):
    id: Id | None = None
    image_id: Id
    category_id: Id
    segmentation: list[list[Coordinate]] | list[Coordinate] | _RunLengths | None = Field(
        None, union_mode="left_to_right"
    )


class _File(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]

    @field_validator("images", "annotations", "categories", mode="before")
    @classmethod
    def _listed(cls, entries: Any) -> Any:
        """Turn a table of entries by id, as in some published sets (LIVECell), into a list."""
        return [*entries.values()] if isinstance(entries, dict) else entries


_FILE = TypeAdapter(_File)


def _read(root: Path, problems: Problems) -> LayoutResult:
    """Read the COCO files of a folder; larger objects are drawn first, so that smaller ones stay visible."""
    collection = Collection(root, problems)
    paths = [path for path in find_jsons(root) if guess_kind(path) == "coco"]
    if others := [path.name for path in paths if path.name.startswith(_OTHER_TASKS)]:
        sentence = _("annotation files of other tasks are skipped: {names}")
        collection.remarks.append(sentence.format(names=enumerate_names(others)))
    loaded = {path: load_json(path, _FILE, problems) for path in paths if path.name not in others}
    files = {path: file for path, file in loaded.items() if file is not None}
    classes, values = number_classes(_category_names(files.values()), problems)
    empty = 0
    for path, file in files.items():
        split = split_of_path(path, root) if len(files) > 1 else None  # the name of a single file does not name a split
        empty += _read_file(path, file, values, collection, split)
    if empty:
        sentence = _("images without any object in the annotation files, all background: {count}")
        collection.remarks.append(sentence.format(count=empty))
    return collection.reading(classes)


def _category_names(files: Iterable[_File]) -> list[str]:
    """The class names in the order of their ids, without the superclass that Roboflow adds as id 0."""
    files = list(files)
    used = {annotation.category_id for file in files for annotation in file.annotations}
    above = {category.supercategory for file in files for category in file.categories}
    categories = {(c.id, c.name) for file in files for c in file.categories}
    kept = [c for c in categories if c[0] != 0 or c[0] in used or c[1] not in above]
    return [name for _id, name in sorted(kept, key=lambda c: (natural_key(str(c[0])), c[1]))]


def _read_file(path: Path, file: _File, values: dict[str, int], collection: Collection, split: SplitName | None) -> int:
    """Add the images of a file to the collection; returns the number of images without an object."""
    problems, name = collection.problems, collection.problems.shorten(path)
    names = {category.id: category.name for category in file.categories}
    shapes_of_image: dict[Id, list[tuple[float, Shape]]] = {}
    damaged = set[Id]()
    for entry in file.images:
        if entry.id in shapes_of_image:
            problems.add("annotation entry", f"{name}: images: " + _("two have the id {id}").format(id=entry.id))
            damaged.add(entry.id)
        shapes_of_image[entry.id] = []
    sizes = {p.id: (p.height, p.width) if p.height and p.width else None for p in file.images}
    for annotation in file.annotations:
        location = f"{name}: {annotation.id if annotation.id is not None else '-'}"
        if quoted := [
            key
            for key, stated, known in (
                ("category_id", annotation.category_id, names),
                ("image_id", annotation.image_id, shapes_of_image),
            )
            if stated not in known and str(stated) in map(str, known)
        ]:
            problems.add("quoted id", f"{location} ({', '.join(quoted)})")
        elif annotation.category_id not in names:
            problems.add("unknown category", f"{location} ({annotation.category_id})")
        elif annotation.image_id not in shapes_of_image:
            problems.add("unknown image", f"{location} ({annotation.image_id})")
        else:
            value = values.get(names[annotation.category_id], 0)
            size = sizes[annotation.image_id]
            if (area_and_shape := _make_shape(annotation, value, size, location, problems)) is not None:
                shapes_of_image[annotation.image_id].append(area_and_shape)
                if area_and_shape[1].rle is not None and size is None:
                    sizes[annotation.image_id] = area_and_shape[1].rle["size"]
            else:
                damaged.add(annotation.image_id)
    for entry in file.images:
        if (image := collection.find(entry.file_name, path)) is not None:
            shapes = sorted(shapes_of_image[entry.id], key=lambda pair: -pair[0])
            mask = ShapeMask(path, tuple(shape for _area, shape in shapes), sizes[entry.id])
            collection.add(image, mask, split, damaged=entry.id in damaged)
    return sum(not shapes for shapes in shapes_of_image.values())


def _make_shape(
    annotation: _Annotation, value: int, size_hw: tuple[int, int] | None, location: str, problems: Problems
) -> tuple[float, Shape] | None:
    """(area in px, shape) of an annotation; None, and a problem, if it has no usable region."""
    region = annotation.segmentation
    if not region:
        problems.add("box only", location)
        return None
    if isinstance(region, _RunLengths):
        rle = region.model_dump()
        try:
            counts = read_counts(rle)
        except (ValueError, OverflowError):
            problems.add("run lengths", location)
            return None
        if size_hw is not None and tuple(region.size) != tuple(size_hw):
            problems.add("run lengths", f"{location} ({region.size[1]}x{region.size[0]}, {size_hw[1]}x{size_hw[0]})")
            return None
        return float(counts[1::2].sum()), Shape(value, rle=rle)
    polygons: tuple[Polygon, ...] = tuple(tuple(polygon) for polygon in region if isinstance(polygon, list))
    polygons = polygons or (tuple(c for c in region if isinstance(c, float)),)  # some exporters write one flat list
    if kind := next(filter(None, map(polygon_problem, polygons)), None):
        problems.add(kind, location)
        return None
    return sum(map(measure_polygon, polygons)), Shape(value, polygons)


COCO = Layout(lambda: _("COCO: images, and JSON annotation files"), lambda root: has_annotations(root, "coco"), _read)
