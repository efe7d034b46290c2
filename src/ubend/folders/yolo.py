"""YOLO segmentation: a text file of normalised polygons for each picture."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from ubend.errors import reason
from ubend.folders.collection import Collection, is_polygon, number_classes, part_of, side_of
from ubend.folders.naming import IMAGE_SUFFIXES
from ubend.folders.pairs import Reading
from ubend.folders.problems import Problems
from ubend.folders.tree import entries, subfolders
from ubend.language import _
from ubend.masks.shapes import Shape
from ubend.masks.sources import DrawnMask

_BEYOND = 1.0  # shares of the picture that a polygon may reach out of it; pixels are not normalised
_ITEM = re.compile(r"""(?:(\d+)\s*:\s*)?("[^"]*"|'[^']*'|[^,"'\s][^,]*)""")  # `name`, `'name'`, `3: name`


def fits_yolo(root: Path) -> bool:
    """Folders of text files called `labels` beside folders of pictures."""
    for _pictures, labels in _folders(root):
        files = [entry.name for place in [labels, *subfolders(labels).values()] for entry in entries(place)]
        suffixes = {Path(name).suffix.lower() for name in files}
        if ".txt" in suffixes and not suffixes & set(IMAGE_SUFFIXES):
            return True
    return False


def _folders(root: Path) -> Iterator[tuple[Path, Path]]:
    """(pictures, labels) in the root, and in its parts."""
    for place in [root, *(path for name, path in subfolders(root).items() if part_of(name))]:
        below = subfolders(place)
        images = [path for name, path in below.items() if side_of(name) == "picture"]
        if images and "labels" in below:
            yield images[0], below["labels"]


def read_yolo(root: Path, problems: Problems) -> Reading:
    """The pairs of all pictures; those without a text file are all background. Later lines lie on earlier ones."""
    collection = Collection(root, problems)
    names = _read_names(root, problems)
    texts: dict[Path, list[tuple[str, int, tuple[float, ...]]]] = {}
    pictures: dict[Path, Path] = {}  # picture -> where its text file should be
    for images, labels in _folders(root):
        for image in collection.pictures_in(images):
            pictures[image] = labels / image.relative_to(images).with_suffix(".txt")
        for path in sorted(labels.rglob("*.txt")):
            if path.name != "classes.txt" and not path.name.startswith("."):
                texts[path] = _read_lines(path, problems)
    for path in texts.keys() - set(pictures.values()):
        problems.add("no image", path)
    used = {number for lines in texts.values() for _who, number, _polygon in lines}
    if names is None:
        names = {number: f"class {number}" for number in sorted(used)}
        collection.remarks.append(_("no names of classes in data.yaml; classes are called by their numbers"))
    classes, values = number_classes((names[number] for number in sorted(names)), problems)
    for image, path in pictures.items():
        shapes = []
        for who, number, polygon in texts.get(path, []):
            if number not in names:
                problems.add("unknown category", f"{who} ({number})")
            else:
                shapes.append(Shape(values[names[number]], (polygon,), relative=True))
        collection.add(image, DrawnMask(path if path in texts else image, tuple(shapes)))
    if without := len(pictures.keys()) - len(set(pictures.values()) & texts.keys()):
        sentence = _("pictures without a text file, all background: {count}")
        collection.remarks.append(sentence.format(count=without))
    return collection.reading(classes)


def _read_lines(path: Path, problems: Problems) -> list[tuple[str, int, tuple[float, ...]]]:
    """(place, class number, polygon) of each line that can be read."""
    name, found = problems.shorten(path), []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.add("annotation file", f"{name} ({reason(error)})")
        return []
    for count, line in enumerate(lines, 1):
        who, words = _("{file}, line {number}").format(file=name, number=count), line.split()
        try:
            polygon = tuple(map(float, words[1:]))
        except ValueError:
            polygon = (math.nan,)
        if not words:
            continue
        if not words[0].isdecimal() or not all(map(math.isfinite, polygon)):
            problems.add("annotation entry", f"{who}: " + _("not a class number and coordinates"))
        elif len(polygon) == 4:
            problems.add("box only", who)
        elif not is_polygon(polygon):
            problems.add("few points", who)
        elif min(polygon) < -_BEYOND or max(polygon) > 1 + _BEYOND:
            problems.add("not normalised", who)
        else:
            found.append((who, int(words[0]), polygon))
    return found


def _read_names(root: Path, problems: Problems) -> dict[int, str] | None:
    """Class number -> name, of a YAML file in the root, else of `classes.txt` there or in `labels`."""
    for path in (Path(entry.path) for entry in entries(root)):
        if path.suffix.lower() in (".yaml", ".yml"):
            try:
                names = parse_names(path.read_text(encoding="utf-8-sig"))
            except (OSError, UnicodeDecodeError) as error:
                problems.add("annotation file", f"{problems.shorten(path)} ({reason(error)})")
                continue
            if names:
                return names
    for path in (root / "classes.txt", *(labels / "classes.txt" for _images, labels in _folders(root))):
        if path.is_file():
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return dict(enumerate(line.strip() for line in lines if line.strip()))
    return None


def parse_names(text: str) -> dict[int, str]:
    """Class number -> name, of the key `names` of a YAML text: a list or a mapping, in a line or line by line."""
    found = re.search(r"^names[ \t]*:(.*(?:\n(?:[ \t\-\]}#].*)?)*)", text, re.MULTILINE)
    if found is None:
        return {}
    body = re.sub(r"(?m)(?:^|\s)#.*$", "", found.group(1)).strip()
    if body.startswith(("[", "{")):
        items = _ITEM.findall(body[1:].partition("]" if body.startswith("[") else "}")[0])
    else:
        lines = [line.strip().removeprefix("- ") for line in body.splitlines() if line.strip()]
        items = [found for line in lines for found in re.findall(r"^(?:(\d+)\s*:\s*)?(.+)$", line)]
    names = {int(key) if key else place: name.strip().strip("\"'") for place, (key, name) in enumerate(items)}
    return {number: name for number, name in names.items() if name}
