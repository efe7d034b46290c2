"""Folders of pictures and masks under any of the usual names, and lists of them, -> pairs.

Every folder between the root and a file says a side (`images`), a part (`train`), both (`train_masks`), or
is a name like any other (`patient1`). The folder nearest to the file that says a side decides; without any,
the names of the files must.
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from ubend.folders.naming import IMAGE_SUFFIXES, MASK_SUFFIXES, OBJECT_IDS, Side, folder_meaning, speaks_of
from ubend.folders.pairing import Affix, Item, match
from ubend.folders.pairs import Layout, Part, Reading
from ubend.folders.problems import Problems, enumerate_names
from ubend.folders.sides import Sides, tell_sides
from ubend.folders.stacking import read_matching
from ubend.folders.tree import Found, as_found, walk
from ubend.language import _


def _place(found: Found) -> tuple[Side | None, Item]:
    """The side of a file and its part and folders; the folders nearest to it decide."""
    side: Side | None = None
    part: Part | None = None
    others: list[str] = []
    for name in reversed(found.folders):
        meaning = folder_meaning(name)
        if meaning is None or (meaning[0] and side not in (None, meaning[0])) or (meaning[1] and part and side):
            others.append(name)
            continue
        side, part = side or meaning[0], part or meaning[1]
    return side, Item(found, part, tuple(reversed(others)), found.stem)


def fits_tree(root: Path) -> bool:
    """Any folder may be one: `read_tree` says what is missing."""
    return True


def read_tree(root: Path, problems: Problems) -> Reading:
    """Pictures and masks told apart by folders, or by the names of the files."""
    sides: dict[Side | None, list[Item]] = {"picture": [], "mask": [], None: []}
    foreign: list[tuple[Side | None, Item]] = []
    for found in walk(root):
        side, item = _place(found)
        if _is_read(found, side):
            sides[side].append(item)
        else:
            foreign.append((side, item))
    _refuse_two_words([item for items in sides.values() for item in items], problems)
    pictures, masks, others = sides["picture"], sides["mask"], sides[None]
    remarks: list[str] = []
    affixes: tuple[Affix, Affix] | None = None
    layout = _("folders of pictures and of masks")
    by_folders = bool(masks) and bool(pictures or others)
    if pictures and masks:
        remarks = _pass_over(root, others, problems)
    elif masks and others:
        pictures = others
    elif others and pictures and any(item.found.folders for item in others):
        _tell_unclear_folders(root, pictures, others, problems)
        return Reading([])
    else:
        together = [*pictures, *masks, *others]
        if not together and not foreign:
            return Reading([])
        if masks and all(speaks_of(item.stem, "mask") for item in masks):
            problems.add("no pictures", root)
            return Reading([])
        told = tell_sides(root, together, problems) if together else Sides([], [])
        pictures, masks, affixes = told.pictures, told.masks, told.affixes
        layout = _("pictures and masks in one folder, told apart by their names")
    for side, item in foreign:
        if side or not by_folders:
            problems.add("foreign", item.found.path)
    if not pictures or not masks:
        return Reading([])
    pictures, masks = _without_wrapper(pictures, masks)
    reading = read_matching(match(pictures, masks, affixes, sure=affixes is not None), problems)
    words = "; ".join(filter(None, (layout, reading.words)))
    return replace(reading, remarks=(*remarks, *reading.remarks), words=words)


def _is_read(found: Found, side: Side | None) -> bool:
    return found.suffix in (IMAGE_SUFFIXES if side == "picture" else MASK_SUFFIXES)


def _without_wrapper(*sides: Sequence[Item]) -> list[list[Item]]:
    """The items without the folders that all of them share first: those that an archive was packed in."""
    every = [item.folders for items in sides for item in items]
    shared = sum(1 for _same in takewhile(lambda names: len(set(names)) == 1, zip(*every, strict=False)))
    return [[Item(i.found, i.part, i.folders[shared:], i.stem) for i in items] for items in sides]


def _refuse_two_words(items: Sequence[Item], problems: Problems) -> None:
    """`val` and `valid` beside each other are two folders for one part."""
    words: dict[tuple[Path, Part], dict[str, str]] = {}
    for folders, path in {(item.found.folders, item.found.path.parent) for item in items}:
        for level, name in enumerate(folders):
            meaning = folder_meaning(name)
            if meaning and meaning[1]:
                above = path.parents[len(folders) - level - 1]
                words.setdefault((above, meaning[1]), {}).setdefault(meaning[2], name)
    for names in words.values():
        if len(names) > 1:
            problems.add("same part", " + ".join(names[word] for word in sorted(names)))


def _pass_over(root: Path, others: Sequence[Item], problems: Problems) -> list[str]:
    """Pictures that are on no side: those in folders are a problem, loose ones and numbers of objects are said."""
    loose = []
    for item in others:
        parent = item.found.path.parent
        if parent == root:
            loose.append(item.found.path.name)
        elif parent.name.casefold() == OBJECT_IDS:
            loose.append(f"{parent.relative_to(root).as_posix()}/")
        else:
            problems.add("passed over", parent)
    loose = list(dict.fromkeys(loose))
    if not loose:
        return []
    return [_("passed over beside the folders of pictures and masks: {names}").format(names=enumerate_names(loose))]


def _tell_unclear_folders(root: Path, pictures: Sequence[Item], others: Sequence[Item], problems: Problems) -> None:
    """There are folders of pictures, but none of the others is known to hold masks."""
    ours, theirs = (sorted({_top(root, item.found.path) for item in items}) for items in (pictures, others))
    problems.tell(
        _(
            "{root} holds pictures in {pictures}, and in {others}, which may be masks or not; if they are: "
            "--images '{first}' --masks '{second}'"
        ).format(
            root=root,
            pictures=enumerate_names([f"{name}/" for name in ours]),
            others=enumerate_names([f"{name}/" for name in theirs]),
            first=root / ours[0],
            second=root / theirs[0],
        ),
        "unclear folders",
    )


def _top(root: Path, path: Path) -> str:
    """The folder right below the root that holds a file; the root itself for a loose one."""
    return path.relative_to(root).parts[0] if path.parent != root else "."


def read_lists(images: str, masks: str, problems: Problems) -> Reading:
    """The pairs of two folders or globs.

    Args:
        images, masks: a folder, or a pattern of files such as `scans/*_raw.png`; `**` is any depth.
    """
    pictures = _expand(images, problems)
    layers = _expand(masks, problems)
    for key, text, items in (("data.images", images, pictures), ("data.masks", masks, layers)):
        if not items:
            line = _("no pictures found at {pattern}; give a folder, or a quoted pattern")
            problems.tell(line.format(pattern=text), key)
    both = {item.found.path for item in pictures} & {item.found.path for item in layers}
    if both:
        problems.tell(
            _("{count} files are on both sides ({names}); let --images and --masks name different files").format(
                count=len(both), names=enumerate_names(sorted(map(problems.shorten, both)))
            ),
            "both sides",
        )
    for item in pictures:
        if item.found.suffix not in IMAGE_SUFFIXES:
            problems.add("foreign", item.found.path)
    for item in layers:
        if item.found.suffix not in MASK_SUFFIXES:
            problems.add("foreign", item.found.path)
    if not pictures or not layers or both:
        return Reading([])
    pictures, layers = _without_wrapper(pictures)[0], _without_wrapper(layers)[0]
    matching = match(pictures, layers, (_pattern_affix(images), _pattern_affix(masks)), sure=True)
    reading = read_matching(matching, problems, sure=True)
    words = _("pictures of {images}, masks of {masks}").format(images=images, masks=masks)
    words = "; ".join(filter(None, (words, reading.words)))
    return replace(reading, words=words)


def list_root(images: str, masks: str) -> Path:
    """The deepest folder that holds both."""
    return Path(os.path.commonpath([_fixed(images), _fixed(masks)]))


def _fixed(pattern: str) -> Path:
    """The folder of a pattern above its first wildcard."""
    path = Path(pattern).expanduser().absolute()
    if path.is_dir():
        return path
    while glob.has_magic(str(path)) or not path.is_dir():
        path = path.parent
    return path


def _expand(pattern: str, problems: Problems) -> list[Item]:
    """The files that a folder or a pattern names."""
    root = _fixed(pattern)
    full = str(Path(pattern).expanduser().absolute())
    found: list[Found] = []
    if Path(full).is_dir():
        found = walk(root)
    else:
        for name in sorted(glob.glob(full, recursive=True)):
            path = Path(name)
            if path.is_file():
                folders = path.parent.relative_to(root).parts
                one = as_found(path, folders)
                found += [one] if one else []
    return [_place(one)[1] for one in found]


def _pattern_affix(pattern: str) -> Affix:
    """What stands before and after the wildcards of a file pattern: `("", "_raw")` of `scans/*_raw.png`."""
    name = os.path.basename(pattern)
    if not glob.has_magic(name):
        return "", ""
    stem = os.path.splitext(name)[0]
    before, after = stem.partition("*")[0], stem.rpartition("*")[2]
    return ("", "") if glob.has_magic(before + after) or "*" not in stem else (before, after)


TREE = Layout(
    lambda: _(
        "images/ and masks/ (or other usual names, also with train/, val/, test/ and subfolders), or pictures and "
        "masks side by side as NAME.jpg and NAME_mask.png"
    ),
    fits_tree,
    read_tree,
)
