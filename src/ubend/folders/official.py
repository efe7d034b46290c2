"""Layouts of well-known data sets, whose own lists decide: Oxford-IIIT Pet and Pascal VOC (also as of CVAT)."""

import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ubend.folders.naming import IMAGE_SUFFIXES, PART_WORDS
from ubend.folders.pairs import Layout, Pair, Part, Reading
from ubend.folders.problems import Problems, natural_key
from ubend.folders.tree import as_found, entries, is_empty, subfolders
from ubend.language import _
from ubend.masks.sources import FileMask

# The Pascal VOC challenge's classes in the order of their indices; 255 is "void".
_VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
_VOC_CLASSES = tuple(_VOC_NAMES.split())
_VOID = 255
_VOC_STEM = re.compile(r"20\d\d_\d{6}")  # as the challenge numbers; LabelMe's and CVAT's exports have its palette too


def _fits_pets(root: Path) -> bool:
    return (root / "images").is_dir() and (root / "annotations" / "trimaps").is_dir()


def _read_pets(root: Path, problems: Problems) -> Reading:
    """The official lists decide which pairs there are."""
    annotations = root / "annotations"
    listed: dict[str, Part | None] = {}
    lists: tuple[tuple[str, Part], ...] = (("trainval.txt", "train"), ("test.txt", "test"))
    for file, part in lists:
        if (annotations / file).is_file():
            _note(_list_lines(annotations / file, first_word=True), part, listed, problems)
        else:
            problems.add("no folder", annotations / file)
    images, trimaps = _index(root / "images"), _index(annotations / "trimaps")
    pairs = _pair_listed(listed, images, trimaps, problems)
    return Reading(pairs, ("pet", "background", "contour"), (1, 2, 3))


def _fits_voc(root: Path) -> bool:
    return {"jpegimages", "segmentationclass"} <= subfolders(root).keys()


def _read_voc(root: Path, problems: Problems) -> Reading:
    """The lists of `ImageSets/Segmentation` decide, where there are any; else there is a pair for each mask."""
    folders = subfolders(root)
    images, masks = _index(folders["jpegimages"]), _index(folders["segmentationclass"])
    within = subfolders(folders["imagesets"]).get("segmentation") if "imagesets" in folders else None
    lists = [Path(e.path) for e in entries(within) if e.name.casefold().endswith(".txt")] if within else []
    by_part = [path for path in lists if path.stem.casefold() in PART_WORDS]
    listed: dict[str, Part | None] = {}
    remarks = []
    for path in by_part or lists:
        names = _list_lines(path)
        if names and not masks.keys() & set(names):  # the challenge keeps the masks of its test part
            remarks.append(_("{file}: none of its pictures has a mask; passed over").format(file=path.name))
        else:
            _note(names, PART_WORDS.get(path.stem.casefold()), listed, problems)
    if not lists:
        listed = dict.fromkeys(masks)
    pairs = _pair_listed(listed, images, masks, problems)
    if pairs and (extra := len(images.keys() - listed.keys())):
        remarks.append(_("{count} pictures in no list and without a mask are passed over").format(count=extra))
    if all(_VOC_STEM.fullmatch(pair.name) for pair in pairs) and _have_voc_palette(p.mask.path for p in pairs[:4]):
        return Reading(pairs, _VOC_CLASSES, tuple(range(len(_VOC_CLASSES))), ignored=(_VOID,), remarks=tuple(remarks))
    return Reading(pairs, remarks=tuple(remarks))


def _list_lines(path: Path, *, first_word: bool = False) -> list[str]:
    """The names of a list, one per line; of lines such as `Abyssinian_1 1 1 1` only the first word."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [name.split()[0] for name in names] if first_word else names


def _note(names: Iterable[str], part: Part | None, listed: dict[str, Part | None], problems: Problems) -> None:
    for name in names:
        if listed.setdefault(name, part) != part:
            problems.add("both lists", name)


def _index(folder: Path, above: str = "") -> dict[str, list[Path]]:
    """Relative stem -> the files of a folder and those below it."""
    index: dict[str, list[Path]] = {}
    for entry in entries(folder):
        if entry.is_dir():
            index |= _index(Path(entry.path), f"{above}{entry.name}/")
        elif (found := as_found(Path(entry.path), ())) and found.suffix in IMAGE_SUFFIXES:
            index.setdefault(above + found.stem, []).append(found.path)
    return index


def _pair_listed(
    listed: dict[str, Part | None], images: dict[str, list[Path]], masks: dict[str, list[Path]], problems: Problems
) -> list[Pair]:
    """The pairs on the lists."""
    pairs = []
    for name in sorted(listed, key=natural_key):
        if name not in images or name not in masks:
            problems.add("listed", name)
            continue
        for kind, paths in (("two images", images[name]), ("two masks", masks[name])):
            if len(paths) > 1:
                problems.add(kind, f"{name} ({', '.join(path.name for path in paths)})")
            if is_empty(paths[0]):
                problems.add("empty", paths[0])
        pairs.append(Pair(name, images[name][0], FileMask(masks[name][0]), listed[name], None))
    return pairs


def _have_voc_palette(paths: Iterable[Path]) -> bool:
    """Are these palette pictures with the colours that the challenge gives its classes?"""
    expected = [channel for index in range(len(_VOC_CLASSES)) for channel in _voc_color(index)]
    found = []
    for path in paths:
        try:
            with Image.open(path) as image:
                palette = image.getpalette() if image.mode == "P" else None
        except (OSError, ValueError, SyntaxError):
            palette = None
        found.append(palette is not None and palette[: len(expected)] == expected[: len(palette)])
    return bool(found) and all(found)


def _voc_color(index: int) -> tuple[int, int, int]:
    """The bits of the index, three by three from the lowest, become the bits of the colour from the highest."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return color[0], color[1], color[2]


PETS = Layout(
    lambda: _("Oxford-IIIT Pet: images/, annotations/trimaps/, trainval.txt and test.txt"), _fits_pets, _read_pets
)
VOC = Layout(
    lambda: _("Pascal VOC: JPEGImages/, SegmentationClass/, lists in ImageSets/Segmentation/"), _fits_voc, _read_voc
)
