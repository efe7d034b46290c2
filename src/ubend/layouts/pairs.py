"""Pairs of image and mask, and what the reader of a layout returns."""

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
        name: unique in the folder: the relative stem, such as `0001` or `train/0001`.
        image: the image's file.
        mask: where its mask comes from.
        split: the part given by the layout or by the split file; None when nothing gives one.
        group: images of one group (one patient, one video) must stay in one part; None: no group.
    """

    name: str
    image: Path
    mask: Mask
    split: SplitName | None
    group: str | None


def common_folder(paths: Iterable[Path | str]) -> str:
    """The deepest folder that holds all these files, absolute; "" where there is none."""
    try:
        return os.path.commonpath({os.path.dirname(os.path.abspath(path)) for path in paths})
    except ValueError:  # no files, or on several drives
        return ""


@dataclass(frozen=True)
class LayoutResult:
    """What the reader of a layout found.

    Attributes:
        pairs: in any order; names are unique.
        classes: class names in the order of `values`; None when nothing tells them.
        values: the mask value of each class; None when the layout does not state them.
        colors: the colour of each class; when given, masks are coded by colour, not by value.
        remarks: what the user should know.
        ignored: mask values whose pixels are not scored.
        layout: the layout in words that tell more than `Layout.description`; "" when there is no more to tell.
    """

    pairs: Sequence[Pair]
    classes: tuple[str, ...] | None = None
    values: tuple[int, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    remarks: tuple[str, ...] = ()
    ignored: tuple[int, ...] = ()
    layout: str = ""


@dataclass(frozen=True)
class Layout:
    """A way to lay out a data set.

    Attributes:
        description: the layout in words.
        fits: does a folder look like it? Quick, for it is asked of many.
        read: the folder's pairs; what is wrong goes into the problems.
    """

    description: Callable[[], str]
    fits: Callable[[Path], bool]
    read: Callable[[Path, Problems], LayoutResult]


@dataclass(frozen=True)
class Folder(LayoutResult):
    """A data set on disk: a reading with at least one pair, in the natural order of the names (`2` before `10`).

    Attributes:
        root: where the layout was found: the folder asked for, or one below it.
        skipped: (name, problem) of what was left out, when that was asked for.
    """

    root: Path = Path()
    skipped: tuple[tuple[str, str], ...] = ()
