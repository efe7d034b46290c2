"""Finds images and masks in folders with common names, or in two given lists, and pairs them.

A folder between the root and a file names a side (`images`), a split (`train`), both (`train_masks`), or neither
(`patient1`). The side of a file is that of the nearest folder that names one; if none does, file names decide.
"""

import glob
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from ubend.core.i18n import _, ngettext
from ubend.labels.cellpose import is_cellpose
from ubend.labels.mask_files import FileMask
from ubend.layouts.affixes import Affix, NamedFile
from ubend.layouts.mask_content import is_field_of_view
from ubend.layouts.matching import match
from ubend.layouts.naming import (
    COLORED_FOLDERS,
    MANUAL_FOLDERS,
    MASK_SUFFIXES,
    OBJECT_IDS,
    PREVIEW_FOLDERS,
    Side,
    folder_meaning,
    mentions,
    plain_folder,
    side_of_affix,
    split_words,
    splits_of_siblings,
    squeeze,
)
from ubend.layouts.pairing import cellpose_line, read_matching
from ubend.layouts.pairs import Layout, LayoutResult, Pair, SplitName
from ubend.layouts.problems import Problems
from ubend.layouts.sides import NO_SIDES, Sides, divide, images_and_masks, separate_sides
from ubend.layouts.tree import FoundFile, as_found_file, walk
from ubend.portable.image_paths import IMAGE_SUFFIXES, expand_pattern
from ubend.portable.printable import enumerate_names


def _classify_all(files: Sequence[FoundFile]) -> list[tuple[Side | None, NamedFile]]:
    """The side of each file, and its item.

    Folders such as `uavid_train` and `uavid_val` name splits if all files of a side are then in a split, or none.
    """
    siblings = splits_of_siblings({file.folders for file in files})
    found = [_classify(file, siblings) for file in files]
    splits: dict[Side | None, set[bool]] = defaultdict(set)
    for side, item in found:
        if item.file.suffix in MASK_SUFFIXES:
            splits[side].add(item.split is not None)
    return found if all(len(known) == 1 for known in splits.values()) else [_classify(file, {}) for file in files]


def _has_both_sides(found: Sequence[tuple[Side | None, NamedFile]]) -> bool:
    """Whether there are masks, and other images."""
    sides = {side for side, item in found if item.file.suffix in MASK_SUFFIXES}
    return "mask" in sides and len(sides) > 1


def _with_plain_folders(files: Sequence[FoundFile]) -> list[FoundFile]:
    """The files as if the outermost folder that mentions a side had a plain name: `masks` for `Lesion masks`."""
    plain = list[FoundFile]()
    for file in files:
        level, name = next(((i, word) for i, word in enumerate(map(plain_folder, file.folders)) if word), (0, None))
        folders = file.folders if name is None else (*file.folders[:level], name, *file.folders[level + 1 :])
        plain.append(replace(file, folders=folders))
    return plain


def _classify(file: FoundFile, siblings: Mapping[tuple[str, ...], SplitName]) -> tuple[Side | None, NamedFile]:
    """The side of a file, and its item; the nearest folders decide side and split.

    Args:
        siblings: from `splits_of_siblings`.
    """
    side: Side | None = None
    split: SplitName | None = None
    others: list[str] = []
    for level, name in zip(range(len(file.folders), 0, -1), reversed(file.folders), strict=True):
        meaning = folder_meaning(name)
        if (named := siblings.get(file.folders[:level])) and (meaning is None or meaning[1] is None):
            meaning = (meaning[0] if meaning else side_of_affix(split_words(name)[0][-1]), named, name)
        if meaning is None or (meaning[0] and side not in (None, meaning[0])) or (meaning[1] and split and side):
            others.append(name)
            continue
        side, split = side or meaning[0], split or meaning[1]
    return side, NamedFile(file, split, tuple(reversed(others)), file.stem)


def _read_tree(root: Path, problems: Problems) -> LayoutResult:
    """Read a tree of images and masks, separated by folders or by file names."""
    files, remarks = _without_previews(walk(root))
    found = _sort_files(files)
    _report_two_words([*found.images, *found.masks, *found.others], problems)
    sides, layout, more_remarks = _choose_sides(root, found, problems)
    for side, item in found.foreign:
        if side or not ((found.masks or found.cellpose) and (found.images or found.others)):
            problems.add("foreign", item.file.path)
    if not sides.masks:
        return LayoutResult([])
    images, masks = _without_wrapper(sides.images, sides.masks)
    reading = read_matching(match(images, masks, sides.affixes, any_affix=sides.affixes is not None), problems)
    remarks = [*remarks, *more_remarks, *_describe_field_of_view(reading.pairs, problems), *reading.remarks]
    words = "; ".join(filter(None, (layout, reading.layout)))
    return replace(reading, remarks=tuple(remarks), layout=words)


@dataclass(frozen=True)
class _SortedFiles:
    """The files of a tree by what their folders say.

    Attributes:
        images, masks: in folders for images, and for masks.
        others: in other folders.
        foreign: files that are not read, with their side.
        cellpose: Cellpose's files, which are in the image folders.
    """

    images: list[NamedFile]
    masks: list[NamedFile]
    others: list[NamedFile]
    foreign: list[tuple[Side | None, NamedFile]]
    cellpose: list[NamedFile]


def _sort_files(files: Sequence[FoundFile]) -> _SortedFiles:
    classified = _classify_all(files)
    if not _has_both_sides(classified) and _has_both_sides(loose := _classify_all(_with_plain_folders(files))):
        classified = loose
    found = _SortedFiles([], [], [], [], [])
    for side, item in classified:
        file = item.file
        if side == "image" and is_cellpose(file.path):
            found.cellpose.append(item)
        elif file.suffix in (IMAGE_SUFFIXES if side == "image" else MASK_SUFFIXES):
            (found.images if side == "image" else found.masks if side == "mask" else found.others).append(item)
        else:
            found.foreign.append((side, item))
    return found


def _choose_sides(root: Path, found: _SortedFiles, problems: Problems) -> tuple[Sides, str, list[str]]:
    """(images and masks, the layout in words, remarks); without masks there is a problem, or no file at all."""
    images, masks, others, remarks = found.images, found.masks, found.others, list[str]()
    for choose in (_prefer_manual, _without_colored):
        masks, more_remarks = choose(root, masks)
        remarks += more_remarks
    if found.cellpose and (masks or others or any(mentions(item.stem, "mask") for item in images)):
        remarks.append(cellpose_line(len(found.cellpose)))
    else:
        masks = masks + found.cellpose
    layout = _("folders of images and of masks")
    if images and masks:
        return Sides(images, masks), layout, remarks + _report_others(root, others, problems)
    if masks and others:
        return Sides(_without_own_folder(others, masks), masks), layout, remarks
    if others and images and any(item.file.folders for item in others):
        sides = images_and_masks(images, others)
        if len({item.folders for item in others}) > 1 or not sides.masks:
            _report_unclear_folders(root, images, others, problems)
            return NO_SIDES, layout, remarks
        line = _("the files in {names} look like masks and are named like the images")
        return sides, layout, [*remarks, line.format(names=f"{sides.masks[0].file.path.parent.name}/")]
    if masks and all(mentions(item.stem, "mask") for item in masks):
        problems.add("no images", root)
        return NO_SIDES, layout, remarks
    together = [*images, *masks, *others]
    sides = separate_sides(root, together, problems) if together else NO_SIDES
    return sides, _("images and masks in one folder, separated by their names"), remarks


def _describe_field_of_view(pairs: Sequence[Pair], problems: Problems) -> list[str]:
    """Remarks on splits whose masks are all like a camera's field of view, as in DRIVE's `test/`.

    It is no error: what a fixed camera shows may be the same in all images, too.
    """
    of_split = defaultdict[SplitName | None, list[Path]](list)
    for pair in pairs:
        if isinstance(pair.mask, FileMask):
            of_split[pair.split].append(pair.mask.path)
    line = _(
        "masks such as {name} are the same in all images and cover most of each, as a camera's field of view does; if "
        "that is not what is to be found, put the right masks beside them, as NAME_gt.png"
    )
    fields = filter(is_field_of_view, of_split.values())
    return [line.format(name=problems.shorten(masks[0])) for masks in fields]


def _prefer_manual(root: Path, masks: list[NamedFile]) -> tuple[list[NamedFile], list[str]]:
    """(masks of folders such as `manual1`, if there are any, without those of others such as `mask`, remarks).

    Sets of retinal images have the field of view in `mask`.
    """
    others, manual = divide(masks, lambda item: MANUAL_FOLDERS.isdisjoint(map(squeeze, item.file.folders)))
    if not manual or not others:
        return masks, []
    line = _("masks drawn by hand are used ({manual}); other masks are skipped: {names}")
    return manual, [line.format(manual=_list_folders(root, manual), names=_list_folders(root, others))]


def _without_colored(root: Path, masks: list[NamedFile]) -> tuple[list[NamedFile], list[str]]:
    """(masks without those of folders such as `colormaps`, if there are others, remarks), as in BDD100K."""
    plain, colored = divide(masks, lambda item: COLORED_FOLDERS.isdisjoint(map(squeeze, item.file.folders)))
    if not plain or not colored:
        return masks, []
    line = _("masks drawn in colours are skipped ({names}), since there are others: {others}")
    return plain, [line.format(names=_list_folders(root, colored), others=_list_folders(root, plain))]


def _list_folders(root: Path, items: Sequence[NamedFile]) -> str:
    folders = sorted({item.file.path.parent.relative_to(root).as_posix() for item in items})
    return enumerate_names([f"{name}/" for name in folders])


def _without_previews(files: Sequence[FoundFile]) -> tuple[Sequence[FoundFile], list[str]]:
    """(files without those in folders such as `overlays` and `images/thumbnails`, remarks); all if none is left."""
    previews, kept = list[FoundFile](), list[FoundFile]()
    for file in files:
        (kept if PREVIEW_FOLDERS.isdisjoint(map(squeeze, file.folders)) else previews).append(file)
    if not previews or not kept:
        return files, []
    line = _("folders of overlays or previews are skipped ({count} images): {names}")
    names = sorted({f"{'/'.join(file.folders)}/" for file in previews})
    return kept, [line.format(count=len(previews), names=enumerate_names(names))]


def _without_wrapper(*sides: Sequence[NamedFile]) -> list[list[NamedFile]]:
    """The items without the leading folders common to all of them, such as an archive's top folder."""
    every = [item.folders for items in sides for item in items]
    shared = sum(1 for _same in takewhile(lambda names: len(set(names)) == 1, zip(*every, strict=False)))
    return [[NamedFile(i.file, i.split, i.folders[shared:], i.stem) for i in items] for items in sides]


def _report_two_words(items: Sequence[NamedFile], problems: Problems) -> None:
    """Add a problem for two folders of one split in the same place, such as `val` and `valid`."""
    words: dict[tuple[Path, SplitName], dict[str, str]] = {}
    for folders, path in {(item.file.folders, item.file.path.parent) for item in items}:
        for level, name in enumerate(folders):
            meaning = folder_meaning(name)
            if meaning and meaning[1]:
                above = path.parents[len(folders) - level - 1]
                words.setdefault((above, meaning[1]), {}).setdefault(meaning[2], name)
    for names in words.values():
        if len(names) > 1:
            problems.add("same split", " + ".join(names[word] for word in sorted(names)))


def _report_others(root: Path, others: Sequence[NamedFile], problems: Problems) -> list[str]:
    """Report files that are neither images nor masks.

    Those in folders are a problem, except object ids (`ids/`); these and files in the root give a remark.
    """
    loose: dict[str, None] = {}
    for item in others:
        parent = item.file.path.parent
        if parent == root:
            loose[item.file.path.name] = None
        elif parent.name.casefold() == OBJECT_IDS:
            loose[f"{parent.relative_to(root).as_posix()}/"] = None
        else:
            problems.add("skipped", parent)
    line = _("skipped, outside the folders of images and masks: {names}")
    return [line.format(names=enumerate_names([*loose]))] if loose else []


def _report_unclear_folders(
    root: Path, images: Sequence[NamedFile], others: Sequence[NamedFile], problems: Problems
) -> None:
    """Add the problem that there are image folders, but no other folder is known to contain masks."""
    paths = ([item.file.path.relative_to(root) for item in items] for items in (images, others))
    ours, theirs = (
        sorted({path.parts[0] if path.parent.parts else "." for path in side_paths}) for side_paths in paths
    )
    problems.add_line(
        _(
            "{root}: {images} has images, and {others} has files that may be their masks; if they are, give "
            "--images '{first}' --masks '{second}', and --values \"0=background,*=object\" if they are object ids"
        ).format(
            root=root,
            images=enumerate_names([f"{name}/" for name in ours]),
            others=enumerate_names([f"{name}/" for name in theirs]),
            first=root / ours[0],
            second=root / theirs[0],
        ),
        "unclear folders",
    )


def read_lists(images: str, masks: str, problems: Problems) -> LayoutResult:
    """Pair the images of one folder or glob with the masks of another.

    Args:
        images, masks: a folder, or a file pattern such as `scans/*_raw.png`; `**` matches any depth.
    """
    image_items = _expand(images, problems)
    mask_items = _expand(masks, problems)
    for key, text, items, suffixes in (
        ("data.images", images, image_items, IMAGE_SUFFIXES),
        ("data.masks", masks, mask_items, MASK_SUFFIXES),
    ):
        if not items:
            line = _(
                "no images found at {pattern}; give a folder with images, or a pattern in quotes that matches images"
            )
            problems.add_line(line.format(pattern=text), key)
        for item in items:
            if item.file.suffix not in suffixes:
                problems.add("foreign", item.file.path)
    both = {item.file.path for item in image_items} & {item.file.path for item in mask_items}
    if both:
        problems.add_line(
            ngettext(
                "{count} file is on both sides ({names}); let --images and --masks name different files",
                "{count} files are on both sides ({names}); let --images and --masks name different files",
                len(both),
            ).format(count=len(both), names=enumerate_names(sorted(map(problems.shorten, both)))),
            "both sides",
        )
    if not image_items or not mask_items or both:
        return LayoutResult([])
    image_items, mask_items = _without_wrapper(image_items)[0], _without_wrapper(mask_items)[0]
    image_items, mask_items = _without_own_folder(image_items, mask_items), _without_own_folder(mask_items, image_items)
    matching = match(image_items, mask_items, (_pattern_affix(images), _pattern_affix(masks)), any_affix=True)
    reading = read_matching(matching, problems, mixed_rests=True)
    words = _("images of {images}, masks of {masks}").format(images=images, masks=masks)
    return replace(reading, layout="; ".join(filter(None, (words, reading.layout))))


def _without_own_folder(items: Sequence[NamedFile], others: Sequence[NamedFile]) -> list[NamedFile]:
    """The items without a folder that all of them are in and none of the others: `scans` of `*/scans/*.jpg`."""
    own = set.intersection(*({*item.folders} for item in items)).difference(*(item.folders for item in others))
    return [replace(item, folders=tuple(name for name in item.folders if name not in own)) for item in items]


def list_root(images: str, masks: str) -> Path:
    """The deepest folder that contains both."""
    return Path(os.path.commonpath([fixed_folder(images), fixed_folder(masks)]))


def fixed_folder(pattern: str) -> Path:
    """The deepest existing folder of a pattern before its first wildcard."""
    path = Path(pattern).expanduser().absolute()
    if path.is_dir():
        return path
    while glob.has_magic(str(path)) or not path.is_dir():
        path = path.parent
    return path


def _expand(pattern: str, problems: Problems) -> list[NamedFile]:
    """The files in a folder, or matched by a pattern."""
    root, full = fixed_folder(pattern), Path(pattern).expanduser().absolute()
    if full.is_dir():
        files_found: list[FoundFile | None] = [*walk(root)]
    else:
        files = (path for path in expand_pattern(full) if path.is_file())
        files_found = [as_found_file(path, path.parent.relative_to(root).parts) for path in files]
    return [item for _side, item in _classify_all([file for file in files_found if file])]


def _pattern_affix(pattern: str) -> Affix:
    """The text before and after the wildcards of a file pattern: `("", "_raw")` for `scans/*_raw.png`."""
    name = os.path.basename(pattern)
    if not glob.has_magic(name):
        return "", ""
    stem = os.path.splitext(name)[0]
    before, after = stem.partition("*")[0], stem.rpartition("*")[2]
    return ("", "") if glob.has_magic(before + after) or "*" not in stem else (before, after)


TREE = Layout(
    lambda: _(
        "images/ and masks/ (or other common names, also with train/, val/, test/ and subfolders), or images and "
        "masks in one folder as NAME.jpg and NAME_mask.png"
    ),
    lambda root: True,  # fits any folder: the reader reports what is missing
    _read_tree,
)
