"""Layouts of published sets that hold several masks of each picture, of which one is the truth: DRIVE, Cityscapes."""

from pathlib import Path

from ubend.folders.naming import PART_WORDS
from ubend.folders.pairs import Layout, Pair, Part, Reading
from ubend.folders.problems import Problems
from ubend.folders.tree import Found, subfolders, walk
from ubend.language import _
from ubend.masks.sources import FileMask

_MANUAL = "1st_manual"
# Cityscapes: label id -> class, the 19 that are scored; the ids of the others are not
# (github.com/mcordts/cityscapesScripts, helpers/labels.py).
_CITY_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
_CITY_IDS = 34
_CITY_PICTURE = "_leftImg8bit"
_CITY_MASK = "_gtFine_labelIds"


def _drive_parts(root: Path) -> dict[str, Path]:
    """Word for the part -> its folder; "": the root itself."""
    below = {word: folder for word, folder in subfolders(root).items() if word in PART_WORDS}
    return {word: folder for word, folder in {"": root, **below}.items() if "images" in subfolders(folder)}


def _fits_drive(root: Path) -> bool:
    return any(_MANUAL in subfolders(folder) for folder in _drive_parts(root).values())


def _read_drive(root: Path, problems: Problems) -> Reading:
    """`21_training.tif` and `21_manual1.gif` belong together by their number.

    `mask/` is the camera's field of view, `2nd_manual/` another observer.
    """
    pairs: list[Pair] = []
    remarks = [_("masks are those of 1st_manual/; mask/ (the field of view) and 2nd_manual/ are passed over")]
    for word, folder in _drive_parts(root).items():
        if _MANUAL not in subfolders(folder):
            remarks.append(_("{folder}/ has no 1st_manual/; passed over").format(folder=folder.name))
            continue
        masks = _numbered(subfolders(folder)[_MANUAL], problems)
        for number, picture in _numbered(subfolders(folder)["images"], problems).items():
            part = PART_WORDS.get(word)
            if number in masks:
                pairs.append(Pair(picture.stem, picture.path, FileMask(masks.pop(number).path), part, None))
            else:
                problems.add("no mask", picture.path)
        for mask in masks.values():
            problems.add("no image", mask.path)
    return Reading(pairs, ("background", "vessel"), remarks=tuple(remarks))


def _numbered(folder: Path, problems: Problems) -> dict[str, Found]:
    """First word of the name -> file."""
    files: dict[str, Found] = {}
    for found in walk(folder):
        if files.setdefault(found.stem.split("_")[0], found) is not found:
            problems.add("two images", found.path)
    return files


def _fits_cities(root: Path) -> bool:
    return {"leftimg8bit", "gtfine"} <= subfolders(root).keys()


def _read_cities(root: Path, problems: Problems) -> Reading:
    """`PART/CITY/x_leftImg8bit.png` and `PART/CITY/x_gtFine_labelIds.png`; the masks of the test part are empty."""
    folders = subfolders(root)
    pictures, masks = (
        {(*f.folders, f.stem.removesuffix(end)): f for f in walk(folder) if f.stem.endswith(end)}
        for folder, end in ((folders["leftimg8bit"], _CITY_PICTURE), (folders["gtfine"], _CITY_MASK))
    )
    pairs, passed = list[Pair](), 0
    for key in sorted(pictures.keys() | masks.keys()):
        part: Part | None = PART_WORDS.get(key[0].casefold())
        if part == "test":
            passed += key in pictures
        elif key in pictures and key in masks:
            pairs.append(Pair("/".join(key), pictures[key].path, FileMask(masks[key].path), part, None))
        elif key in pictures:
            problems.add("no mask", pictures[key].path)
        else:
            problems.add("no image", masks[key].path)
    remarks = []
    if passed:
        remarks = [
            _("{count} pictures of the test part are passed over: their masks are not public").format(count=passed)
        ]
    ignored = tuple(number for number in range(_CITY_IDS) if number not in _CITY_CLASSES)
    return Reading(pairs, tuple(_CITY_CLASSES.values()), tuple(_CITY_CLASSES), ignored=ignored, remarks=tuple(remarks))


DRIVE = Layout(lambda: _("DRIVE: images/ and 1st_manual/, in training/ and test/"), _fits_drive, _read_drive)
CITYSCAPES = Layout(lambda: _("Cityscapes: leftImg8bit/ and gtFine/, each PART/CITY/..."), _fits_cities, _read_cities)
