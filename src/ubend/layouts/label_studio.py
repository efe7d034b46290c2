"""Label Studio: a JSON list of tasks with their annotations, coordinates in percent."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import AliasChoices, BaseModel, Field, TypeAdapter

from ubend.core.i18n import _
from ubend.labels.mask_files import Layer, LayeredMask, ShapeMask
from ubend.labels.shapes import Shape
from ubend.layouts.collection import (
    Collection,
    Coordinate,
    find_jsons,
    guess_kind,
    has_annotations,
    load_json,
    number_classes,
)
from ubend.layouts.naming import TASK_MASK
from ubend.layouts.pairs import Layout, LayoutResult
from ubend.layouts.problems import Problems, natural_key
from ubend.layouts.tree import walk
from ubend.portable.image_paths import IMAGE_SUFFIXES

_SHAPES = ("polygonlabels", "rectanglelabels", "polygon", "rectangle", "brushlabels", "brush")


class _Value(BaseModel):
    points: list[tuple[Coordinate, Coordinate]] | None = None
    x: Coordinate | None = None
    y: Coordinate | None = None
    width: Coordinate | None = None
    height: Coordinate | None = None
    rotation: Coordinate = 0
    rle: Any = None
    polygonlabels: list[str] = []
    rectanglelabels: list[str] = []
    plainlabels: list[str] = Field([], validation_alias="labels")

    @property
    def labels(self) -> list[str]:
        return self.polygonlabels or self.rectanglelabels or self.plainlabels


class _Region(BaseModel):
    id: int | str | None = None
    type: str = ""
    value: _Value = _Value()
    original_width: int | None = Field(None, ge=1)
    original_height: int | None = Field(None, ge=1)
    image_rotation: Coordinate = 0


class _Annotation(BaseModel):
    id: int | str | None = None
    result: list[_Region]
    was_cancelled: bool | None = False
    ground_truth: bool | None = False


class _Task(BaseModel):
    id: int | str | None = None
    data: dict[str, Any] | None = None
    annotations: list[_Annotation] = Field([], validation_alias=AliasChoices("annotations", "completions"))


_FILE = TypeAdapter(list[_Task])


def _read(root: Path, problems: Problems) -> LayoutResult:
    """Read all tasks of the exports in a folder; later regions are drawn over earlier ones."""
    collection = Collection(root, problems)
    tasks = _read_tasks(root, collection)
    drawn_by = {id(chosen): _labelled_regions(chosen.result) for _path, _task, chosen in tasks}
    names = {name for regions in drawn_by.values() for region in regions for name in region.value.labels}
    classes, values = number_classes(sorted(names, key=natural_key), problems)
    for path, task, chosen in tasks:
        location = f"{problems.shorten(path)}: " + _("task {id}").format(id=task.id)
        before = len(problems.names.get("few points", ()))  # the only skippable kind that `_make_shape` adds
        shapes = [_make_shape(region, values, location, problems) for region in drawn_by[id(chosen)]]
        is_damaged = len(problems.names.get("few points", ())) > before
        if (image := collection.find(_file_name(task.data or {}), path)) is not None:
            readable = tuple(shape for shape in shapes if shape is not None)
            sizes = ((region.original_height, region.original_width) for region in chosen.result)
            size_hw = next(((height, width) for height, width in sizes if height and width), None)
            collection.add(image, ShapeMask(path, readable, size_hw), damaged=is_damaged)
    return collection.reading(classes)


def _read_tasks(root: Path, collection: Collection) -> list[tuple[Path, _Task, _Annotation]]:
    """(file, task, chosen annotation) of each annotated task in the exports of a folder."""
    problems = collection.problems
    paths = [path for path in find_jsons(root) if guess_kind(path) == "labelstudio"]
    tasks: list[tuple[Path, _Task, _Annotation]] = []
    several = bare = 0
    for path in paths:
        for task in load_json(path, _FILE, problems) or []:
            if task.data is None:
                problems.add("small json", path)
                break
            usable = [annotation for annotation in task.annotations if not annotation.was_cancelled]
            several += len(usable) > 1
            bare += not usable
            if usable:
                chosen = next((annotation for annotation in usable if annotation.ground_truth), usable[-1])
                tasks.append((path, task, chosen))
    if several:
        sentence = _("tasks with several annotations: {count}; the one marked as ground truth is used, else the last")
        collection.remarks.append(sentence.format(count=several))
    if bare:
        collection.remarks.append(_("tasks without an annotation are skipped: {count}").format(count=bare))
    return tasks


def _fits_masks(root: Path) -> bool:
    """Whether there are masks named after tasks, and an export that says which images these belong to."""
    exported = any(guess_kind(path) == "labelstudio" for path in find_jsons(root))
    return exported and any(TASK_MASK.fullmatch(file.stem) for file in walk(root))


def _read_masks(root: Path, problems: Problems) -> LayoutResult:
    """Read all tasks with mask files, one per label; tasks annotated as empty are all background."""
    collection = Collection(root, problems)
    masks: dict[tuple[str, str], list[tuple[str, Path]]] = {}  # task and annotation -> label and file
    for mask_file in walk(root):
        if name := TASK_MASK.fullmatch(mask_file.stem):
            masks.setdefault((name["task"], name["annotation"]), []).append((name["tag"], mask_file.path))
    tags = {tag for files in masks.values() for tag, _path in files}
    classes, values = number_classes(sorted(tags, key=natural_key), problems)
    known = set[str]()
    for path, task, chosen in _read_tasks(root, collection):
        known.add(str(task.id))
        files = masks.get((str(task.id), str(chosen.id)), [])
        if (files or not chosen.result) and (image := collection.find(_file_name(task.data or {}), path)) is not None:
            layers = tuple(Layer(file, values[tag]) for tag, file in files)
            collection.add(image, LayeredMask(layers) if layers else ShapeMask(path, ()))
    for (task_id, _annotation), files in masks.items():
        if task_id not in known:
            for _tag, file in files:
                problems.add("no image", file)
    return collection.reading(classes)


def _labelled_regions(result: list[_Region]) -> list[_Region]:
    """The regions with their labels, without answers to questions about them.

    Tools such as `<Labels>` with `<Polygon>` store a region and its labels as two results with the same id; answers
    to questions about a region have its id, too.
    """
    shapes = {region.id for region in result if region.id is not None and region.type in _SHAPES}
    labels = {region.id: region.value.plainlabels for region in result if region.value.plainlabels}
    regions = []
    for region in result:
        if region.type in _SHAPES and not region.value.labels:
            value = region.value.model_copy(update={"plainlabels": labels.get(region.id, [])})
            regions.append(region.model_copy(update={"value": value}))
        elif region.type in _SHAPES or region.id not in shapes:
            regions.append(region)
    return regions


def _file_name(data: dict[str, Any]) -> str:
    """The image's path: `/data/upload/3/NAME`, `/data/local-files/?d=PATH`, `s3://BUCKET/NAME`, quoted or not."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    images = [text for text in texts.values() if re.search(rf"({'|'.join(IMAGE_SUFFIXES)})\b", text.lower())]
    stated = texts.get("image") or next(iter(images), "")
    try:
        url = urlsplit(stated)
    except ValueError:
        return stated
    if local := parse_qs(url.query).get("d"):
        return local[0]
    return unquote(url.path) if url.scheme or url.path.startswith("/data/") else unquote(stated)


def _make_shape(region: _Region, values: dict[str, int], location: str, problems: Problems) -> Shape | None:
    """The region as a shape; None if it is not a region, or, with a problem, if it cannot be read."""
    value, labels = region.value, region.value.labels
    if value.rle is not None or region.type.startswith("brush"):
        problems.add("brush", location)
        return None
    box = (value.x, value.y, value.width, value.height)
    if region.type not in _SHAPES:
        if value.points is not None or value.x is not None:  # else it is an answer, a remark, ..., not a region
            problems.add("shape kind", f"{location} ({region.type or '-'})")
        return None
    if len(labels) != 1:
        problems.add("one label", f"{location} ({', '.join(labels) or '-'})")
    elif value.rotation or region.image_rotation:
        problems.add("rotated", location)
    elif region.type.startswith("polygon") and value.points is not None and len(value.points) >= 3:
        outline = tuple(c / 100 for point in value.points for c in point)
        return Shape(values[labels[0]], (outline,), relative=True)
    elif region.type.startswith("rectangle") and None not in box:
        x0, y0, width, height = (c / 100 for c in box if c is not None)
        x1, y1 = x0 + width, y0 + height
        return Shape(values[labels[0]], ((x0, y0, x1, y0, x1, y1, x0, y1),), relative=True)
    else:
        problems.add("few points", location)
    return None


LABEL_STUDIO_MASKS = Layout(
    lambda: _("Label Studio: images, masks from brush labels, and an exported JSON file"), _fits_masks, _read_masks
)
LABEL_STUDIO = Layout(
    lambda: _("Label Studio: images, and an exported JSON file"),
    lambda root: has_annotations(root, "labelstudio"),
    _read,
)
