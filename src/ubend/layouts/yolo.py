"""YOLO segmentation: one text file with normalised polygons for each image."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ubend.core.errors import missing_package, reason
from ubend.core.files import regular_file
from ubend.core.i18n import _
from ubend.labels.mask_files import ShapeMask
from ubend.labels.shapes import Shape
from ubend.layouts.class_files import read_names_text
from ubend.layouts.collection import Collection, has_masks, number_classes, polygon_problem, side_of, split_of
from ubend.layouts.pairs import Layout, LayoutResult
from ubend.layouts.problems import Problems
from ubend.layouts.tree import list_entries, subfolders
from ubend.portable.image_paths import IMAGE_SUFFIXES, is_system

_BEYOND = 1.0  # how far a polygon may extend beyond the image, in image sizes; beyond that, it is in pixels
_MAX_DIGITS = 9  # of a class number
_MAX_YAML = 2**18  # maximum characters of a YAML file; a thousand names need a tenth of that


def _fits(root: Path) -> bool:
    """Whether there are folders `labels` with text files next to folders of images."""
    for _images, labels in _folders(root):
        files = [entry.name for folder in [labels, *subfolders(labels).values()] for entry in list_entries(folder)]
        suffixes = {Path(name).suffix.lower() for name in files}
        if ".txt" in suffixes and not suffixes & set(IMAGE_SUFFIXES):
            return not has_masks(root)
    return False


def _folders(root: Path) -> Iterator[tuple[Path, Path]]:
    """(image folder, label folder) in the root and in its split folders."""
    for folder in [root, *(path for name, path in subfolders(root).items() if split_of(name))]:
        below = subfolders(folder)
        images = [path for name, path in below.items() if side_of(name) == "image"]
        if images and "labels" in below:
            yield images[0], below["labels"]


def _read(root: Path, problems: Problems) -> LayoutResult:
    """Read all images; those without a text file are all background. Later lines are drawn over earlier ones."""
    collection = Collection(root, problems)
    names = _read_names(root, problems)
    texts: dict[Path, list[tuple[str, int, tuple[float, ...]] | None]] = {}
    text_files: dict[Path, Path] = {}  # image -> where its text file should be
    for images, labels in _folders(root):
        inside = (path for path in collection.images if path.is_relative_to(images))
        text_files |= {path: labels / path.relative_to(images).with_suffix(".txt") for path in inside}
        for path in sorted(labels.rglob("*.txt")):
            below = path.relative_to(labels).parts
            if path.name != "classes.txt" and not any(name[0] == "." or is_system(name) for name in below):
                texts[path] = _read_lines(path, problems)
    for path in texts.keys() - set(text_files.values()):
        problems.add("no image", path)
    used = {line[1] for lines in texts.values() for line in lines if line}
    if names is None:
        names = {category: f"class {category}" for category in sorted(used)}
        collection.remarks.append(_("no class names in data.yaml; classes are named by their numbers"))
    classes, values = number_classes((names[category] for category in sorted(names)), problems)
    for image, path in text_files.items():
        shapes = []
        lines = texts.get(path, [])
        for location, category, polygon in filter(None, lines):
            if category not in names:
                problems.add("unknown category", f"{location} ({category})")
            else:
                shapes.append(Shape(values[names[category]], (polygon,), relative=True))
        collection.add(image, ShapeMask(path if path in texts else image, tuple(shapes)), damaged=None in lines)
    if without := len(text_files.keys()) - len(set(text_files.values()) & texts.keys()):
        sentence = _("images without a text file, all background: {count}")
        collection.remarks.append(sentence.format(count=without))
    return collection.reading(classes)


def _read_lines(path: Path, problems: Problems) -> list[tuple[str, int, tuple[float, ...]] | None]:
    """(location, class number, polygon) of each line; None, and a problem, for a line that cannot be read."""
    name = problems.shorten(path)
    shapes: list[tuple[str, int, tuple[float, ...]] | None] = []
    try:
        lines = regular_file(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.add("annotation file", f"{name} ({reason(error)})")
        return []
    for count, line in enumerate(lines, 1):
        location, words = _("{file}, line {number}").format(file=name, number=count), line.split()
        try:
            polygon = tuple(map(float, words[1:]))
        except ValueError:
            polygon = (math.nan,)
        if not words:
            continue
        read: tuple[str, int, tuple[float, ...]] | None = None
        if not words[0].isdecimal() or len(words[0]) > _MAX_DIGITS or not all(map(math.isfinite, polygon)):
            problems.add("annotation entry", f"{location}: " + _("not a class number and coordinates"))
        elif len(polygon) == 4:
            problems.add("box only", location)
        elif kind := polygon_problem(polygon):
            problems.add(kind, location)
        elif min(polygon) < -_BEYOND or max(polygon) > 1 + _BEYOND:
            problems.add("not normalised", location)
        else:
            read = (location, int(words[0]), polygon)
        shapes.append(read)
    return shapes


def _read_names(root: Path, problems: Problems) -> dict[int, str] | None:
    """Class number -> name, from a YAML file in the root, else from `classes.txt` there or in `labels`."""
    for path in (Path(entry.path) for entry in list_entries(root)):
        if path.suffix.lower() in (".yaml", ".yml"):
            text = read_names_text(path, problems)
            try:
                if text and (names := parse_names(text)):
                    return names
            except ValueError as error:
                problems.add("annotation file", f"{problems.shorten(path)} ({reason(error)})")
    for path in (root / "classes.txt", *(labels / "classes.txt" for _images, labels in _folders(root))):
        if path.is_file():
            text = read_names_text(path, problems)
            return None if text is None else dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    return None


def parse_names(text: str) -> dict[int, str]:
    """Class number -> name, from the key `names` of a YAML text: a list, or a mapping from numbers.

    Raises:
        ValueError: damaged, too long, nested too deeply, or neither a list of names nor a mapping of numbers to names.
        MissingPackageError: PyYAML is missing.
    """
    try:
        import yaml
    except ImportError as error:
        raise missing_package(error) from error
    if "names" not in text:
        return {}
    if len(text) > _MAX_YAML:
        raise ValueError(_("longer than {maximum} characters").format(maximum=_MAX_YAML))
    try:
        content = yaml.load(text, yaml.BaseLoader)  # no tags, no objects; `no` and `1.0` stay text
    except (yaml.YAMLError, RecursionError) as error:
        problem = getattr(error, "problem", None) or _("nested too deeply")
        raise ValueError(problem) from error
    names = _merge(_merge(content).get("names")) if isinstance(content, dict) else None
    named = dict(names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else ()))
    if not all(isinstance(name, str) and str(category).isdecimal() for category, name in named.items()):
        raise ValueError(_("names must be a list of class names, or class numbers with their names"))
    return {int(category): name.strip() for category, name in named.items() if name.strip()}


def _merge(table: Any) -> Any:
    """Resolve the merge key `<<` of a mapping, one level deep; the mapping's own entries take precedence.

    Raises:
        ValueError: the merge key contains something other than mappings.
    """
    if not isinstance(table, dict) or "<<" not in table:
        return table
    brought = table["<<"] if isinstance(table["<<"], list) else [table["<<"]]
    if not all(isinstance(merged, dict) for merged in brought):
        raise ValueError(_("the merge key << must contain mappings"))
    once = {id(merged): merged for merged in reversed(brought)}  # each once: a short text can refer to one very often
    own_keys = {key: value for key, value in table.items() if key != "<<"}
    return {key: value for merged in (*once.values(), own_keys) for key, value in merged.items()}


YOLO = Layout(lambda: _("YOLO: images/, and labels/ with text files of polygons"), _fits, _read)
