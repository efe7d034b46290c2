"""Layouts of well-known data sets.

Oxford-IIIT Pet, Pascal VOC (also as exported by CVAT), DRIVE, Cityscapes and the Cell Tracking Challenge.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ubend.core.files import regular_file
from ubend.core.i18n import _, ngettext
from ubend.labels.mask_files import FileMask
from ubend.layouts.naming import SPLIT_WORDS
from ubend.layouts.pairs import Layout, LayoutResult, Pair, SplitName
from ubend.layouts.problems import Problems, natural_key
from ubend.layouts.tree import FoundFile, as_found_file, is_empty, list_entries, subfolders, walk
from ubend.portable.image_paths import IMAGE_SUFFIXES

# The Pascal VOC challenge's classes in the order of their indices; 255 is "void".
_VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
_VOC_CLASSES = tuple(_VOC_NAMES.split())
_VOID = 255
_VOC_STEM = re.compile(r"20\d\d_\d{6}")  # names of the challenge; exports of LabelMe and CVAT have its palette, too

_MANUAL = "1st_manual"
# Cityscapes: label id -> class, the 19 that are scored; the ids of the others are not
# (github.com/mcordts/cityscapesScripts, helpers/labels.py).
_CITY_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
_CITY_IDS = 34
_CITY_IMAGE = "_leftImg8bit"
_CITY_MASKS = ("_gtFine_labelIds", "_gtFine_labelTrainIds")  # the second are converted from the first for training
# The Cell Tracking Challenge (celltrackingchallenge.net/datasets): 2-D frames, and masks of object ids by frame number.
_FRAME, _FRAME_MASK = re.compile(r"t(\d+)"), re.compile(r"man_seg(\d+)")
_CELL_TABLE = ("0=background", "*=cell")
_TRUTHS = ("_st", "_gt")  # of every frame, combined from the best methods; of some frames, by hand
# Label values of LoveDA (github.com/Junjue-Wang/LoveDA).
_LOVEDA = "0=ignored,1=background,2=building,3=road,4=water,5=barren,6=forest,7=agriculture"
_Key = TypeVar("_Key", str, tuple[str, ...])


def _read_pets(root: Path, problems: Problems) -> LayoutResult:
    """Read Oxford-IIIT Pet; the official lists decide which pairs there are."""
    annotations = root / "annotations"
    listed: dict[str, SplitName | None] = {}
    lists: tuple[tuple[str, SplitName], ...] = (("trainval.txt", "train"), ("test.txt", "test"))
    for file, split in lists:
        names = [line.split()[0] for line in _list_lines(annotations / file, problems)]  # of `Abyssinian_1 1 1 1`
        _note(names, split, listed, problems)
    pairs = _pair_listed(listed, _index(root / "images"), _index(annotations / "trimaps"), problems)
    return LayoutResult(pairs, ("pet", "background", "contour"), (1, 2, 3))


def _read_voc(root: Path, problems: Problems) -> LayoutResult:
    """Read Pascal VOC; the lists in `ImageSets/Segmentation` decide, if any; otherwise each mask is a pair."""
    folders = subfolders(root)
    images, masks = _index(folders["jpegimages"]), _index(folders["segmentationclass"])
    within = subfolders(folders["imagesets"]).get("segmentation") if "imagesets" in folders else None
    lists = [Path(e.path) for e in list_entries(within) if e.name.casefold().endswith(".txt")] if within else []
    by_split = [path for path in lists if path.stem.casefold() in SPLIT_WORDS]
    listed: dict[str, SplitName | None] = {}
    remarks = []
    for path in by_split or lists:
        names = _list_lines(path, problems)
        if names and not masks.keys() & set(names):  # the masks of the challenge's test split are not public
            remarks.append(_("{file}: none of its images has a mask; skipped").format(file=path.name))
        else:
            _note(names, SPLIT_WORDS.get(path.stem.casefold()), listed, problems)
    if not lists:
        listed = dict.fromkeys(masks)
    pairs = _pair_listed(listed, images, masks, problems)
    if pairs and (extra := len(images.keys() - listed.keys())):
        remarks.append(
            ngettext(
                "{count} image in no list and without a mask is skipped",
                "{count} images in no list and without a mask are skipped",
                extra,
            ).format(count=extra)
        )
    reading = LayoutResult(pairs, remarks=tuple(remarks))
    named = pairs and all(_VOC_STEM.fullmatch(pair.name) for pair in pairs)
    if named and all(_has_voc_palette(pair.mask.path) for pair in pairs[:4]):
        return replace(reading, classes=_VOC_CLASSES, values=tuple(range(len(_VOC_CLASSES))), ignored=(_VOID,))
    return reading


def _list_lines(path: Path, problems: Problems) -> list[str]:
    """The lines of a list of names; none, and a problem, if the list is missing."""
    if not path.is_file():
        problems.add("no folder", path)
        return []
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _note(
    names: Iterable[str], split: SplitName | None, listed: dict[str, SplitName | None], problems: Problems
) -> None:
    """Add the names with their split to `listed`; a name already there with another split is a problem."""
    for name in names:
        if listed.setdefault(name, split) != split:
            problems.add("both lists", name)


def _index(folder: Path, above: str = "") -> dict[str, list[Path]]:
    """Relative path without suffix -> the image files in and below a folder."""
    index: dict[str, list[Path]] = {}
    for entry in list_entries(folder):
        if entry.is_dir():
            index |= _index(Path(entry.path), f"{above}{entry.name}/")
        elif (file := as_found_file(Path(entry.path), ())) and file.suffix in IMAGE_SUFFIXES:
            index.setdefault(above + file.stem, []).append(file.path)
    return index


def _pair_listed(
    listed: dict[str, SplitName | None], images: dict[str, list[Path]], masks: dict[str, list[Path]], problems: Problems
) -> list[Pair]:
    """The pairs named by the lists."""
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


def _has_voc_palette(path: Path) -> bool:
    """Whether this is a palette image with the VOC challenge's class colours."""
    expected = [channel for index in range(len(_VOC_CLASSES)) for channel in _voc_color(index)]
    try:
        with Image.open(regular_file(path)) as image:
            palette = image.getpalette() if image.mode == "P" else None
    except (OSError, ValueError, SyntaxError):
        return False
    return palette is not None and palette[: len(expected)] == expected[: len(palette)]


def _voc_color(index: int) -> tuple[int, ...]:
    """The VOC colour of a class index: its bits, in groups of three from the lowest, are the colour's highest bits."""
    return tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3))


def _drive_splits(root: Path) -> dict[str, Path]:
    """Name of a split folder -> the folder; "": the root itself."""
    below = {word: folder for word, folder in subfolders(root).items() if word in SPLIT_WORDS}
    return {word: folder for word, folder in {"": root, **below}.items() if "images" in subfolders(folder)}


def _read_drive(root: Path, problems: Problems) -> LayoutResult:
    """Read DRIVE; `21_training.tif` and `21_manual1.gif` are paired by their number.

    `mask/` is the camera's field of view, `2nd_manual/` the annotation of a second observer.
    """
    pairs: list[Pair] = []
    remarks = [_("masks are those of 1st_manual/; mask/ (the field of view) and 2nd_manual/ are skipped")]
    for word, folder in _drive_splits(root).items():
        below = subfolders(folder)
        if _MANUAL in below:
            images, masks = (_numbered(below[name], problems) for name in ("images", _MANUAL))
            for _number, image, mask in _in_both(images, masks, problems):
                pairs.append(Pair(image.stem, image.path, FileMask(mask.path), SPLIT_WORDS.get(word), None))
        else:
            remarks.append(_("{folder}/ has no 1st_manual/; skipped").format(folder=folder.name))
    return LayoutResult(pairs, ("background", "vessel"), remarks=tuple(remarks))


def _numbered(folder: Path, problems: Problems) -> dict[str, FoundFile]:
    """First word of the file name -> file."""
    files: dict[str, FoundFile] = {}
    for file in walk(folder):
        if files.setdefault(file.stem.split("_")[0], file) is not file:
            problems.add("two images", file.path)
    return files


def _in_both(
    images: Mapping[_Key, FoundFile], masks: Mapping[_Key, FoundFile], problems: Problems
) -> list[tuple[_Key, FoundFile, FoundFile]]:
    """(key, image, mask) of each key in both; a key in only one of them is a problem."""
    for key in images.keys() - masks.keys():
        problems.add("no mask", images[key].path)
    for key in masks.keys() - images.keys():
        problems.add("no image", masks[key].path)
    return [(key, images[key], mask) for key, mask in masks.items() if key in images]


def _read_cities(root: Path, problems: Problems) -> LayoutResult:
    """Read Cityscapes: `SPLIT/CITY/x_leftImg8bit.png` and `SPLIT/CITY/x_gtFine_labelIds.png`.

    The test split is skipped, since its masks are empty. If there are no `labelIds` at all, `labelTrainIds` are read:
    the scored classes numbered from 0, and 255 for all others.
    """
    folders, every = subfolders(root), list[dict[tuple[str, ...], FoundFile]]()
    stems = [file.stem for file in walk(folders["gtfine"])]
    mask_end = next((end for end in _CITY_MASKS if any(stem.endswith(end) for stem in stems)), None)
    if mask_end is None:
        line = _(
            "{folder} has neither NAME{ids}.png nor NAME{train_ids}.png, which contain the classes; add one of them"
        )
        place, ends = folders["gtfine"], _CITY_MASKS
        problems.add_line(line.format(folder=place, ids=ends[0], train_ids=ends[1]), "no masks")
        return LayoutResult([])
    for folder, end in (("leftimg8bit", _CITY_IMAGE), ("gtfine", mask_end)):
        files = [file for file in walk(folders[folder]) if file.stem.endswith(end)]
        every.append({(*file.folders, file.stem.removesuffix(end)): file for file in files})
    images, masks = (
        {key: files_by_key[key] for key in files_by_key if _city_split(key) != "test"} for files_by_key in every
    )
    pairs = [
        Pair("/".join(key), image.path, FileMask(mask.path), _city_split(key), None)
        for key, image, mask in _in_both(images, masks, problems)
    ]
    remarks = []
    if passed := len(every[0]) - len(images):
        sentence = ngettext(
            "{count} image of the test split is skipped: its mask is not public",
            "{count} images of the test split are skipped: their masks are not public",
            passed,
        )
        remarks = [sentence.format(count=passed)]
    names, values = tuple(_CITY_CLASSES.values()), tuple(_CITY_CLASSES)
    ignored = tuple(index for index in range(_CITY_IDS) if index not in _CITY_CLASSES)
    if mask_end != _CITY_MASKS[0]:
        values, ignored = tuple(range(len(names))), (_VOID,)
    return LayoutResult(pairs, names, values, ignored=ignored, remarks=tuple(remarks))


def _city_split(key: tuple[str, ...]) -> SplitName | None:
    return SPLIT_WORDS.get(key[0].casefold())


def _cell_truths(root: Path) -> dict[str, Path]:
    """Folder of a sequence, such as `01` -> its folder of masks."""
    folders, truths = subfolders(root), dict[str, Path]()
    for name in folders:
        kinds = [subfolders(folders[name + end]) for end in _TRUTHS if name + end in folders]
        if (below := next((kind["seg"] for kind in kinds if "seg" in kind), None)) is not None:
            truths[name] = below
    return truths


def _read_cells(root: Path, problems: Problems) -> LayoutResult:
    """Read the Cell Tracking Challenge: frames `01/t000.tif`, masks `01_ST/SEG/man_seg000.tif` or those of `01_GT`."""
    pairs, places, unmasked = list[Pair](), list[str](), 0
    for name, folder in _cell_truths(root).items():
        frames, masks = (
            {named[1]: file for file in walk(place) if (named := pattern.fullmatch(file.stem))}
            for place, pattern in ((subfolders(root)[name], _FRAME), (folder, _FRAME_MASK))
        )
        for number, mask in masks.items():
            if number not in frames:
                problems.add("no image", mask.path)
                continue
            frame = frames[number]
            pairs.append(Pair(f"{name}/{frame.stem}", frame.path, FileMask(mask.path), None, None))
        unmasked += len(frames.keys() - masks.keys())
        places.append(f"{folder.parent.name}/{folder.name}/")
    remarks = [
        _("masks are those of {places}; those for tracking, in TRA/, are skipped").format(places=", ".join(places))
    ]
    if unmasked:
        sentence = ngettext(
            "{count} frame without a mask is skipped", "{count} frames without a mask are skipped", unmasked
        )
        remarks.append(sentence.format(count=unmasked))
    return LayoutResult(pairs, table=_CELL_TABLE, remarks=tuple(remarks))


def loveda_hint(pairs: Sequence[Pair]) -> str | None:
    """A message if this looks like LoveDA, whose masks have 0 where there is no data, not for the background."""
    places = [pair.mask.path.parts[-3:-1] for pair in pairs]
    if any(len(two) < 2 or two[0].casefold() not in ("urban", "rural") or two[1] != "masks_png" for two in places):
        return None
    line = _('this looks like LoveDA, whose masks have 0 where there is no data; to ignore it: --values "{table}"')
    return line.format(table=_LOVEDA)


PETS = Layout(
    lambda: _("Oxford-IIIT Pet: images/, annotations/trimaps/, trainval.txt and test.txt"),
    lambda root: (root / "images").is_dir() and (root / "annotations" / "trimaps").is_dir(),
    _read_pets,
)
VOC = Layout(
    lambda: _("Pascal VOC: JPEGImages/, SegmentationClass/, lists in ImageSets/Segmentation/"),
    lambda root: {"jpegimages", "segmentationclass"} <= subfolders(root).keys(),
    _read_voc,
)
DRIVE = Layout(
    lambda: _("DRIVE: images/ and 1st_manual/, in training/ and test/"),
    lambda root: any(_MANUAL in subfolders(folder) for folder in _drive_splits(root).values()),
    _read_drive,
)
CITYSCAPES = Layout(
    lambda: _("Cityscapes: leftImg8bit/ and gtFine/, each SPLIT/CITY/..."),
    lambda root: {"leftimg8bit", "gtfine"} <= subfolders(root).keys(),
    _read_cities,
)
CELL_TRACKING = Layout(
    lambda: _("Cell Tracking Challenge: sequences 01/, 02/ and masks in 01_ST/SEG/ or 01_GT/SEG/"),
    lambda root: bool(_cell_truths(root)),
    _read_cells,
)
