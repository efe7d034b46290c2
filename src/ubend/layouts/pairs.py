"""Pairs of image and mask, and the result of reading a layout."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ubend.labels.mask_files import Mask
from ubend.layouts.problems import Problems

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        name: relative path without suffix, such as `0001` or `train/0001`; unique in the folder.
        image: the image file.
        mask: the source of the mask.
        split: from the layout or the split file; None: not stated.
        group: images of one group (one patient, one video) must stay in one split; None: no group.
    """

    name: str
    image: Path
    mask: Mask
    split: SplitName | None
    group: str | None


def common_folder(paths: Iterable[Path | str]) -> str:
    """The deepest folder that contains all these files, as an absolute path; "" if there is none."""
    try:
        return os.path.commonpath({os.path.dirname(os.path.abspath(path)) for path in paths})
    except ValueError:  # no files, or on several drives
        return ""


@dataclass(frozen=True)
class LayoutResult:
    """The result of reading a layout.

    Attributes:
        pairs: in any order; names are unique.
        classes: class names in the order of `values`; None: not stated.
        values: the label value of each class; None: not stated.
        colors: the colour of each class; if given, masks are coded by colour, not by value.
        remarks: messages for the user.
        ignored: label values whose pixels are not scored.
        table: `VALUE=NAME` each, see `--values`, instead of `classes` and `values`; None: not stated.
        layout: a more precise description than `Layout.description`; "" if there is none.
        unmasked: images without a mask file, which are problems too, with an empty mask.
    """

    pairs: Sequence[Pair]
    classes: tuple[str, ...] | None = None
    values: tuple[int, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    remarks: tuple[str, ...] = ()
    ignored: tuple[int, ...] = ()
    table: tuple[str, ...] | None = None
    layout: str = ""
    unmasked: Sequence[Pair] = ()


@dataclass(frozen=True)
class Layout:
    """A folder structure of data sets, and its reader.

    Attributes:
        description: the layout in words.
        fits: whether a folder looks like it; must be fast, since it is called for many folders.
        read: reads the pairs of a folder; adds what is wrong to the problems.
    """

    description: Callable[[], str]
    fits: Callable[[Path], bool]
    read: Callable[[Path, Problems], LayoutResult]


@dataclass(frozen=True)
class Folder(LayoutResult):
    """A data set on disk, with at least one pair, sorted by name in natural order (`2` before `10`).

    Attributes:
        root: the folder in which the layout was found: the given one, or one below it.
        skipped: (name, problem) of each file skipped because of `ReadOptions.skip_bad`.
    """

    root: Path = Path()
    skipped: tuple[tuple[str, str], ...] = ()
