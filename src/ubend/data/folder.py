"""Any supported folder layout -> pairs of picture and mask; no pixels are decoded here.

To add a layout: write `fits` and `read` for it and put a `_Layout` into `_LAYOUTS`, the particular before
the general. Problems are collected by kind while reading and raised together, worst first.
"""

import csv
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from ubend.data.masks import FileMask, Mask
from ubend.errors import DataError, reason
from ubend.language import _

Part = Literal["train", "val", "test"]
PART_NAMES: tuple[Part, ...] = get_args(Part)

# What people call the parts, in folder names and in split files.
PART_WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# Allowed between a picture's stem and the mask's suffix, the longer before those they end in.
MASK_ENDINGS = ("_mask", "_cp_masks", "_masks", "_seg", "_segmentation", "_label", "_labels", "_gt", "-mask")

# Pictures that are not read: named as a problem, since passing over them would lose data unseen. All other
# suffixes (.json, .txt, .csv, .mat, .xml, .db, ...) are passed over.
_FOREIGN_SUFFIXES = frozenset(
    (".gif", ".dcm", ".nii", ".npy", ".npz", ".jp2", ".heic", ".jfif", ".pgm", ".ppm", ".svg", ".czi", ".nd2")
)
_SHOWN = 10  # names shown of a long list
_LEVELS_DOWN = 2  # archives unpack to Kvasir-SEG/Kvasir-SEG/images


@dataclass(frozen=True)
class Pair:
    """A picture and its mask.

    Attributes:
        name: unique in the folder: the relative stem, such as `0001` or `train/0001`.
        image: the picture's file.
        mask: where its mask comes from.
        part: the part given by the layout or by the split file; None when nothing gives one.
        group: pictures of one group (one patient, one video) must stay in one part; None: no group.
    """

    name: str
    image: Path
    mask: Mask
    part: Part | None
    group: str | None


@dataclass(frozen=True)
class Folder:
    """A data set on disk.

    Attributes:
        root: where the layout was found: the folder asked for, or one below it.
        layout: the layout in words.
        pairs: at least one, in the natural order of their names (`2` before `10`).
        classes: class names in the order of the mask values; None when nothing tells them.
        values: the mask value of each class; None when the layout does not tell them.
        colors: the colour of each class, from a class table; None when there is none.
    """

    root: Path
    layout: str
    pairs: tuple[Pair, ...]
    classes: tuple[str, ...] | None
    values: tuple[int, ...] | None
    colors: tuple[tuple[int, int, int], ...] | None = None


def read_folder(root: Path, split: Path | None = None, look: Callable[[list[Pair]], list[str]] | None = None) -> Folder:
    """Find the layout of `root` and pair its pictures with their masks.

    Args:
        root: a supported layout, or a folder that holds exactly one, up to two levels down.
        split: CSV with the columns `file,split` and perhaps `group`; it replaces the parts of the layout.
            `file` is a pair's name, a file name with or without suffix, or a relative path.
        look: asked, when anything is wrong, for further problems of the pairs, to be told along.
    Raises:
        DataError: all problems at once, worst first.
    """
    place, layout = _find_layout(root)
    problems = _Problems(root)
    pairs = sorted(layout.read(place, problems), key=lambda pair: _natural_key(pair.name))
    if split is not None and pairs:
        pairs = _apply_split(pairs, split, problems)
    classes = _read_classes([place, root], problems) or layout.classes
    if not pairs and not problems.names:
        problems.add("no pictures", place)
    problems.raise_any(look(pairs) if look and problems.names else [])
    words = layout.words()
    if place != root:
        words = _("{layout} in {folder}").format(layout=words, folder=place.relative_to(root).as_posix())
    return Folder(place, words, tuple(pairs), classes, layout.values)


def _sentences() -> dict[str, str]:
    """Kind of problem -> its sentence; the worst kind comes first."""
    return {
        "no pictures": _("no pictures in: {names}; pictures are files ending in {suffixes}"),
        "no folder": _("missing folders or lists ({count}): {names}; every part needs its own"),
        "same part": _("two folders for one part: {names}; keep one of them"),
        "no mask": _(
            "pictures without a mask ({count}): {names}; a mask has its picture's name, perhaps with "
            "{endings} after it; add the mask or take the picture away"
        ),
        "no image": _("masks without a picture ({count}): {names}; add the picture or take the mask away"),
        "listed": _("on an official list, but without picture or trimap ({count}): {names}; unpack them again"),
        "both lists": _("names on both official lists ({count}): {names}; a picture belongs to one part"),
        "two masks": _("several masks for one picture ({count}): {names}; keep one each"),
        "two images": _("several pictures of one name ({count}): {names}; keep one each, or rename"),
        "empty": _("empty files (0 bytes) or links to nothing ({count}): {names}; copy them again"),
        "foreign": _("pictures of a kind that is not read ({count}): {names}; save them as PNG or TIFF"),
        "subfolder": _("subfolders that are not read ({count}): {names}; move their files up or away"),
        "classes": _("unusable {names}; it needs one class name per line, each once, as UTF-8 text"),
        "split file": _("{names}; a split file is CSV text (UTF-8) with the columns file,split[,group]"),
        "split word": _("unknown words in the column split ({count}): {names}; use train, val or test"),
        "split twice": _("named twice in the split file, differently ({count}): {names}; keep one line"),
        "split unclear": _("in the split file, but fits several pictures ({count}): {names}; write the path"),
        "split unknown": _("in the split file, but not a pair of the folder ({count}): {names}"),
        "split missing": _("pairs that the split file does not name ({count}): {names}; add a line for each"),
    }


@dataclass
class _Problems:
    """What is wrong with a folder: kind -> the names it concerns."""

    root: Path
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str | Path) -> None:
        if isinstance(name, Path):
            name = name.relative_to(self.root).as_posix() if name.is_relative_to(self.root) else str(name)
        self.names.setdefault(kind, []).append(str(self.root) if name == "." else name)

    def raise_any(self, more: list[str]) -> None:
        lines = []
        for kind, sentence in _sentences().items():
            if found := self.names.get(kind):
                names, count = _enumerate(sorted(found, key=_natural_key)), len(found)
                suffixes, endings = " ".join(IMAGE_SUFFIXES), " ".join(MASK_ENDINGS)
                lines.append(sentence.format(names=names, count=count, suffixes=suffixes, endings=endings))
        if lines:
            raise DataError(lines + more)


def _enumerate(names: list[str]) -> str:
    """`a, b, c`; of a long list the first ten and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        shown = _("{names}, ... and {count} more").format(names=shown, count=len(names) - _SHOWN)
    return shown


def _natural_key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sorts numbers inside names by their size; the name itself settles `1` against `01`."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(False, int(p), "") if "0" <= p[0] <= "9" else (True, 0, p) for p in pieces], name


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without what systems leave behind (`._x`, `.DS_Store`, ...)."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            _("cannot read the folder {folder}: {reason}; check the name and its permissions").format(
                folder=folder, reason=reason(error)
            )
        ) from error
    return [path for path in found if not path.name.startswith(".") and path.name != "__MACOSX"]


def _subfolders(folder: Path) -> dict[str, Path]:
    """Name in small letters -> subfolder."""
    return {path.name.lower(): path for path in _entries(folder) if path.is_dir()}


def _index_files(folder: Path, problems: _Problems) -> dict[str, list[Path]]:
    """Stem -> the files with a picture's suffix; what would be lost unseen is a problem."""
    index: dict[str, list[Path]] = {}
    for path in _entries(folder):
        suffix = path.suffix.lower()
        if path.is_dir():
            problems.add("subfolder", path)
        elif suffix in IMAGE_SUFFIXES:
            stem = unicodedata.normalize("NFC", path.stem)  # macOS takes accents apart
            index.setdefault(stem, []).append(path)
        elif suffix in _FOREIGN_SUFFIXES:
            problems.add("foreign", path)
    return index


def _make_pair(name: str, images: list[Path], masks: list[Path], part: Part | None, problems: _Problems) -> Pair:
    """The pair of one picture and one mask; at least one file of each is there."""
    if len(images) > 1:
        problems.add("two images", f"{name} ({', '.join(path.name for path in images)})")
    if len(masks) > 1:
        problems.add("two masks", f"{name} ({', '.join(path.name for path in masks)})")
    for path in (images[0], masks[0]):
        if not path.is_file() or path.stat().st_size == 0:
            problems.add("empty", path)
    return Pair(name, images[0], FileMask(masks[0]), part, None)


def _pair_up(folder: Path, prefix: str, part: Part | None, problems: _Problems) -> list[Pair]:
    """The pairs of `images/` and `masks/` in a folder."""
    folders = _subfolders(folder)
    if missing := [name for name in ("images", "masks") if name not in folders]:
        for name in missing:
            problems.add("no folder", folder / name)
        return []
    images = _index_files(folders["images"], problems)
    if not images:
        problems.add("no pictures", folders["images"])
    masks: dict[str, list[Path]] = {}
    for stem, files in _index_files(folders["masks"], problems).items():
        bare = next((stem[: -len(end)] for end in MASK_ENDINGS if stem.lower().endswith(end)), stem)
        owner = stem if stem in images else bare  # the picture `x_mask` owns the mask `x_mask`
        if owner in images:
            masks.setdefault(owner, []).extend(files)
        else:
            for path in files:
                problems.add("no image", path)
    for stem in images.keys() - masks.keys():
        problems.add("no mask", images[stem][0])
    return [_make_pair(prefix + stem, images[stem], masks[stem], part, problems) for stem in masks]


@dataclass(frozen=True)
class _Layout:
    """A way to lay out a data set.

    Attributes:
        words: the layout in words.
        fits: does a folder look like it? Subfolders only, quick.
        read: the folder's pairs; what is wrong goes into the problems.
        classes, values: see `Folder`.
    """

    words: Callable[[], str]
    fits: Callable[[Path], bool]
    read: Callable[[Path, _Problems], list[Pair]]
    classes: tuple[str, ...] | None = None
    values: tuple[int, ...] | None = None


def _fits_flat(root: Path) -> bool:
    return {"images", "masks"} <= _subfolders(root).keys()


def _read_flat(root: Path, problems: _Problems) -> list[Pair]:
    return _pair_up(root, "", None, problems)


def _fits_parts(root: Path) -> bool:
    return any(name in PART_WORDS and _fits_flat(path) for name, path in _subfolders(root).items())


def _read_parts(root: Path, problems: _Problems) -> list[Pair]:
    pairs: list[Pair] = []
    seen: dict[Part, Path] = {}
    for word, folder in _subfolders(root).items():
        if part := PART_WORDS.get(word):
            if part in seen:
                problems.add("same part", f"{seen[part].name} + {folder.name}")
            seen[part] = folder
            pairs += _pair_up(folder, f"{part}/", part, problems)
    return pairs


def _fits_pets(root: Path) -> bool:
    return (root / "images").is_dir() and (root / "annotations" / "trimaps").is_dir()


def _read_pets(root: Path, problems: _Problems) -> list[Pair]:
    """The official lists decide which pairs there are."""
    images = _index_files(root / "images", problems)
    trimaps = _index_files(root / "annotations" / "trimaps", problems)
    parts: dict[str, Part] = {}
    lists: tuple[tuple[str, Part], ...] = (("trainval.txt", "train"), ("test.txt", "test"))
    for file, part in lists:
        path = root / "annotations" / file
        if not path.is_file():
            problems.add("no folder", path)
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for name in [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]:
            if parts.setdefault(name, part) != part:
                problems.add("both lists", name)
    for name in parts.keys() - (images.keys() & trimaps.keys()):
        problems.add("listed", name)
        del parts[name]
    return [_make_pair(name, images[name], trimaps[name], part, problems) for name, part in parts.items()]


_LAYOUTS = (
    _Layout(
        lambda: _("Oxford-IIIT Pet: images/, annotations/trimaps/, trainval.txt and test.txt"),
        _fits_pets,
        _read_pets,
        ("pet", "background", "contour"),
        (1, 2, 3),
    ),
    _Layout(lambda: _("train/, val/, test/, each with images/ and masks/"), _fits_parts, _read_parts),
    _Layout(lambda: _("images/ and masks/"), _fits_flat, _read_flat),
)


def _find_layout(root: Path) -> tuple[Path, _Layout]:
    """The folder at or below `root` that is a data set, and its layout; level by level."""
    if root.is_file():
        raise DataError(_("{path} is a file; give a folder (unpack archives first)").format(path=root))
    level = [root]
    for _depth in range(_LEVELS_DOWN + 1):
        # Backwards, so that of several layouts that fit a place the first one stays.
        found = {place: layout for place in level for layout in reversed(_LAYOUTS) if layout.fits(place)}
        if len(found) == 1:
            return found.popitem()
        if found:
            names = _enumerate([place.relative_to(root).as_posix() for place in found])
            raise DataError(_("{root} holds several data sets: {names}; give one").format(root=root, names=names))
        level = [below for place in level for below in _subfolders(place).values()]
    held = _enumerate([path.name + "/" * path.is_dir() for path in _entries(root)]) or _("nothing")
    raise DataError(
        _("no pictures with masks found in {root}, which holds: {held}; accepted layouts: {layouts}").format(
            root=root, held=held, layouts="; ".join(f"({i}) {x.words()}" for i, x in enumerate(_LAYOUTS, 1))
        )
    )


def _read_classes(places: Iterable[Path], problems: _Problems) -> tuple[str, ...] | None:
    """Class names of the first `classes.txt`: one per line, in the order of the mask values."""
    path = next((place / "classes.txt" for place in places if (place / "classes.txt").is_file()), None)
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) < len(names):
        problems.add("classes", path)
    return names


def _apply_split(pairs: list[Pair], split: Path, problems: _Problems) -> list[Pair]:
    """The pairs with the parts and groups of the split file."""
    try:
        lines = split.read_text(encoding="utf-8-sig").splitlines()
        semicolons = bool(lines) and ";" in lines[0]  # as spreadsheets write where the comma is decimal
        rows = list(csv.reader(lines, delimiter=";" if semicolons else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.add("split file", _("cannot read {file} ({reason})").format(file=split, reason=reason(error)))
        return pairs
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if missing := [name for name in ("file", "split") if name not in header]:
        lacks = _("{file} has no column {columns}").format(file=split, columns=", ".join(missing))
        problems.add("split file", lacks)
        return pairs
    known: dict[str, set[int]] = {}
    for number, pair in enumerate(pairs):
        for spelling in _spellings(pair, problems.root):
            known.setdefault(spelling, set()).add(number)
    given: dict[int, tuple[Part | None, str | None]] = {}
    for cells in filter(any, rows[1:]):
        row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        name = unicodedata.normalize("NFC", row.get("file", "")).replace("\\", "/").removeprefix("./")
        word, fitting = row.get("split", ""), known.get(name, set())
        value = (PART_WORDS.get(word.lower()), row.get("group") or None)
        if value[0] is None:
            problems.add("split word", f"{name}: {word or '-'}")
        if len(fitting) != 1:
            problems.add("split unclear" if fitting else "split unknown", name or "-")
        for number in fitting:
            if given.setdefault(number, value) != value and len(fitting) == 1:
                problems.add("split twice", name)
    for number, pair in enumerate(pairs):
        if number not in given:
            problems.add("split missing", pair.name)
    return [
        replace(p, part=given[i][0], group=given[i][1] or p.group) if i in given else p for i, p in enumerate(pairs)
    ]


def _spellings(pair: Pair, root: Path) -> set[str]:
    """All ways in which a split file may name a pair: `0001`, `0001.jpg`, `images/0001.jpg`, ..."""
    pieces = unicodedata.normalize("NFC", pair.image.relative_to(root).as_posix()).split("/")
    paths = {"/".join(pieces[start:]) for start in range(len(pieces))} | {pair.name + pair.image.suffix}
    return paths | {path.removesuffix(pair.image.suffix) for path in paths}
