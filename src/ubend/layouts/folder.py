"""Reads any supported folder, or two lists of files, as pairs of image and mask, without decoding images.

To add a layout: write its `fits` and `read` and put its `Layout` into `_LAYOUTS`, specific layouts before general
ones. Problems are collected by kind while reading and raised together, worst first.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ubend.core.errors import DataError
from ubend.core.i18n import _, ngettext
from ubend.labels.mask_files import FileMask
from ubend.layouts.class_files import read_class_table
from ubend.layouts.coco import COCO
from ubend.layouts.collection import find_damaged
from ubend.layouts.groups import find_groups
from ubend.layouts.label_studio import LABEL_STUDIO, LABEL_STUDIO_MASKS
from ubend.layouts.labelme import LABELME
from ubend.layouts.layouts import TREE, fixed_folder, list_root, read_lists
from ubend.layouts.naming import SPLIT_WORDS, folder_meaning, split_in_name
from ubend.layouts.official import CELL_TRACKING, CITYSCAPES, DRIVE, PETS, VOC, loveda_hint
from ubend.layouts.pairs import SPLITS, Folder, Layout, LayoutResult, Pair
from ubend.layouts.problems import Problems, natural_key
from ubend.layouts.split_file import apply_split, apply_split_lists, unused_split_files
from ubend.layouts.tree import as_found_file, describe_content, list_entries, skipped_folders, subfolders, walk
from ubend.layouts.yolo import YOLO
from ubend.portable.printable import enumerate_names

# Tried in this order; the general folder tree (`TREE`) comes last.
_LAYOUTS = (PETS, VOC, DRIVE, CITYSCAPES, CELL_TRACKING, LABEL_STUDIO_MASKS, COCO, LABELME, LABEL_STUDIO, YOLO)
# Pairs are found by the names of their files: without the files of one, the others are read as before.
_FOUND_BY_NAME = (TREE, DRIVE, CITYSCAPES, CELL_TRACKING, LABELME)
_LEVELS_DOWN = 2  # archives unpack to Kvasir-SEG/Kvasir-SEG/images
_DEEPEST_WRAPPER = 8  # nested single folders; ends loops of links


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a folder, for any layout.

    Attributes:
        split: CSV file with the columns `file,split`, `file,group` or `file,split,group`, which replace splits and
            groups of the layout. `file` is a pair's name, a file name with or without suffix, or a relative path.
        skip_bad: skip files that cannot be used, and record them in `Folder.skipped`.
        unmasked: see `data.unmasked`.
        look: called with the pairs if anything is wrong; returns further problems to report together.
    """

    split: Path | None = None
    skip_bad: bool = False
    unmasked: Literal["refuse", "background"] = "refuse"
    look: Callable[[list[Pair]], list[str]] | None = None


def read_folder(root: Path, options: ReadOptions = ReadOptions()) -> Folder:
    """Find the layout of `root` and pair its images with their masks.

    Args:
        root: a folder in a supported layout, or one that contains exactly one such folder.
    Raises:
        DataError: all problems at once, worst first.
    """
    location, layout = _find_layout(root)
    problems = Problems(root)
    reading = layout.read(location, problems)
    if not reading.pairs:
        find_damaged(location, problems)
    if not reading.pairs and not problems:
        line = _(
            "no images with masks found in {root}, which contains: {content}; put images into images/ and masks of the "
            "same names into masks/, or both into one folder as NAME.jpg and NAME_mask.png; the layouts of Oxford-IIIT "
            "Pet, Pascal VOC, DRIVE and Cityscapes and annotations of COCO, YOLO, LabelMe and Label Studio are read "
            "too (docs/formats.md)"
        )
        problems.add_line(line.format(root=root, content=describe_content(root)), "nothing")
    description = reading.layout or layout.description()
    if location != root:
        description = _("{layout} in {folder}").format(layout=description, folder=location.relative_to(root).as_posix())
    # Roboflow puts a class table into each split's folder.
    splits = (folder for name, folder in subfolders(location).items() if name in SPLIT_WORDS)
    reading = replace(reading, layout=description, remarks=(*_skipped_folders([root], root), *reading.remarks))
    return _finish(location, reading, [location, root, *splits], problems, options)


def finds_pairs_by_name(root: Path) -> bool:
    """Whether a folder has no list of its pairs, so that it can be read without some of them.

    Raises:
        DataError: it cannot be read.
    """
    return _find_layout(root)[1] in _FOUND_BY_NAME


def read_pairs(images: str, masks: str, options: ReadOptions = ReadOptions()) -> Folder:
    """Pair the images of a folder or glob with the masks of another.

    Args:
        images, masks: such as `scans`, or `scans/*_raw.png`.
    Raises:
        DataError: all problems at once, worst first.
    """
    root = list_root(images, masks)
    problems = Problems(root)
    reading = read_lists(images, masks, problems)
    locations = {fixed_folder(pattern) for pattern in (images, masks)}
    reading = replace(reading, remarks=(*_skipped_folders(locations, root), *reading.remarks))
    return _finish(root, reading, [root], problems, options)


def _skipped_folders(locations: Iterable[Path], root: Path) -> list[str]:
    """Remarks on skipped folders among the data: those of the operating system or storage, and results of ubend."""
    kinds = zip(*map(skipped_folders, locations), strict=True)
    lines = (
        _("folders of the operating system or the storage are skipped ({count}): {names}"),
        _("folders with results of ubend are skipped ({count}): {names}"),
    )
    remarks = []
    for line, groups in zip(lines, kinds, strict=True):
        if names := sorted({f"{path.relative_to(root).as_posix()}/" for group in groups for path in group}):
            remarks.append(line.format(count=len(names), names=enumerate_names(names)))
    return remarks


def _finish(
    location: Path, reading: LayoutResult, tables: Iterable[Path], problems: Problems, options: ReadOptions
) -> Folder:
    """Apply split file and class table to what a layout's reader found; raises all problems."""
    if options.unmasked == "background" and reading.pairs:
        reading = _with_unmasked(reading, problems)
    pairs = sorted(reading.pairs, key=lambda pair: natural_key(pair.name))
    pairs, listed = apply_split_lists(pairs, location)
    pairs, named = _split_by_names(pairs)
    pairs, grouped = find_groups(pairs, location)
    found_splits = [pair.split for pair in pairs]
    if options.split is not None and pairs:
        pairs = apply_split(pairs, options.split, problems)
    classes, values, colors = reading.classes, reading.values, reading.colors
    from_annotations = classes is not None and any(not isinstance(pair.mask, FileMask) for pair in pairs)
    if not from_annotations and (table := read_class_table(tables, problems)):
        kept = values if values and len(values) == len(table.names) else None  # else the values are for other classes
        classes, values, colors = table.names, table.values or kept, table.colors or colors
    skipped = problems.take_skippable() if options.skip_bad and pairs else ()
    problems.raise_any(options.look(pairs) if options.look and problems else [])
    of_splits = (listed, named) if found_splits == [pair.split for pair in pairs] else ()
    of_groups = grouped if options.split is None else None
    message = (*of_splits, of_groups, loveda_hint(pairs) if classes is None else None)
    unused = [] if options.split or any(pair.split for pair in pairs) else unused_split_files(location)
    remarks = (*reading.remarks, *filter(None, message), *unused)
    found = replace(reading, pairs=tuple(pairs), classes=classes, values=values, colors=colors, remarks=remarks)
    return Folder(**vars(found), root=location, skipped=skipped)


def _with_unmasked(reading: LayoutResult, problems: Problems) -> LayoutResult:
    """The same with the images that have no mask file, as background alone."""
    problems.drop_unmasked(pair.image for pair in reading.unmasked)
    count = len(reading.unmasked)
    line = ngettext(
        "{count} image has no mask file and is read as background alone",
        "{count} images have no mask file and are read as background alone",
        count,
    )
    remarks = (*reading.remarks, *([line.format(count=count)] if count else []))
    return replace(reading, pairs=[*reading.pairs, *reading.unmasked], remarks=remarks)


def _split_by_names(pairs: list[Pair]) -> tuple[list[Pair], str | None]:
    """Set the splits of pairs if each file name states one, as in GlaS (`train_1`, `testA_1`); (pairs, remark)."""
    splits = [split_in_name(pair.image.stem) for pair in pairs]
    if any(pair.split for pair in pairs) or None in splits or not {"train"} < {*splits}:
        return pairs, None
    examples = {split: pair.image.name for split, pair in zip(splits, pairs, strict=True)}
    line = _("the split is taken from the file names ({examples}); for another one, give a split file: --split FILE")
    texts = (f"{examples[split]}: {split}" for split in SPLITS if split in examples)
    named = [replace(pair, split=split) for pair, split in zip(pairs, splits, strict=True)]
    return named, line.format(examples=", ".join(texts))


def _find_layout(root: Path) -> tuple[Path, Layout]:
    """Find the data set at or below `root`, level by level: (folder, layout)."""
    if root.is_file():
        raise DataError(_("{path} is a file; give a folder (unpack archives first)").format(path=root), path=root)
    level = [root]
    for _depth in range(_LEVELS_DOWN + 1):
        # Reversed, so that the first of several fitting layouts is kept.
        layouts = {location: layout for location in level for layout in reversed(_LAYOUTS) if layout.fits(location)}
        if layouts:
            _refuse_several(root, list(layouts))
            return layouts.popitem()
        level = [below for location in level for below in subfolders(location).values()]
    return _unwrap(root), TREE


def _refuse_several(root: Path, locations: list[Path]) -> None:
    """Fail if a folder contains several data sets, or a data set and other images.

    Raises:
        DataError: it does.
    """
    if locations == [root]:
        return  # everything below belongs to it
    outside = {file.path.parent for file in walk(root)} - {root}
    outside = {path for path in outside if not any(path.is_relative_to(location) for location in locations)}
    beside = {root / path.relative_to(root).parts[0] for path in outside}
    several = [
        *locations,
        *(path for path in beside if not any(location.is_relative_to(path) for location in locations)),
    ]
    if len(several) > 1:
        names = enumerate_names(sorted(location.relative_to(root).as_posix() for location in several))
        raise DataError(
            _("{root} contains several data sets: {names}; give one").format(root=root, names=names),
            path=root,
            key="several sets",
        )


def _unwrap(root: Path) -> Path:
    """The innermost of nested folders that contain nothing but one folder, as archives unpack to."""
    for _depth in range(_DEEPEST_WRAPPER):
        inside = list(subfolders(root).values())
        loose = any(not entry.is_dir() and as_found_file(Path(entry.path), ()) for entry in list_entries(root))
        if loose or len(inside) != 1 or folder_meaning(inside[0].name) is not None:
            break
        root = inside[0]
    return root
