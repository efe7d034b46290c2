"""Recognises masks of object ids, in which each value is an object instead of a class.

An object is one connected region; a class usually has several, at least in some masks. Ids may have gaps, where
objects were deleted.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.i18n import _
from ubend.labels.class_checks import FEW_CLASSES
from ubend.labels.class_table import background_class
from ubend.labels.classes import LabelHints
from ubend.labels.label_values import LabelScan

_LOOKED_AT = 8  # masks that are read again
_FEWEST_OBJECTS = 12  # in these masks together; fewer show nothing
_ONE_REGION_SHARE = 0.95  # objects per region; a few objects are drawn in two pieces
_IGNORED = 255


def read_object_ids(
    label_scan: LabelScan, hints: LabelHints, read: Callable[[int], NDArray[Any]]
) -> tuple[LabelHints, list[str]]:
    """Find out whether masks contain object ids, and add what that says of the classes.

    They certainly are if there are many values, or if only two classes are named; else a remark names the choice.

    Args:
        label_scan: of N masks.
        hints: what the user or the folder states about the classes.
        read: index of a mask (0 to N - 1) -> (H, W) its label values.
    Returns:
        (hints, remarks for the user).
    """
    values = np.unique(label_scan.codes)
    if not _may_be_ids(label_scan, hints, values):
        return hints, []
    certain = len(values) > FEW_CLASSES or hints.names is not None
    if not certain and not _count_up(label_scan):
        return hints, []
    if not _are_single_regions(label_scan, read):
        return hints, []
    if certain:
        line = _("the masks contain object ids ({count} values, each of which is one region), which become one class")
        if hints.names is None:
            line += _('; to name it: --values "0=background,*=NAME"')
        names = ("background", *hints.names) if hints.names and len(hints.names) == 1 else hints.names
        return replace(hints, table=("0=background", "*=object"), names=names), [line.format(count=len(values) - 1)]
    line = _(
        "the values of the masks (1 to {last}) are taken as classes, but each of them is one region, as object ids "
        'are; if they number objects of one class: --values "0=background,*=object"'
    )
    return hints, [line.format(last=values[-1])]


def _may_be_ids(label_scan: LabelScan, hints: LabelHints, values: NDArray[np.int32]) -> bool:
    """Whether nothing contradicts object ids: 0 is background, at most one other class is named, 255 is not apart."""
    stated = hints.table or hints.values or hints.colors or label_scan.kind() == "color"
    one_name = hints.names is None or len(hints.names) == 1 + (background_class(hints.names) == 0)
    if stated or not one_name or label_scan.lossy.any() or label_scan.with_palette.any():
        return False
    if len(values) < 3 or values[0] != 0 or (values[-1] == _IGNORED and values[-2] != _IGNORED - 1):
        return False
    return len(values) > FEW_CLASSES or values[-1] == len(values) - 1


def _count_up(label_scan: LabelScan) -> bool:
    """Whether each mask contains 1, 2, ..., k without a gap, and k differs."""
    masks: Sequence[NDArray[np.int32]] = np.split(label_scan.codes, label_scan.starts[1:-1])
    lasts = [(int(codes.max(initial=0)), int(np.count_nonzero(codes))) for codes in masks]
    return all(last == count for last, count in lasts) and len({last for last, _count in lasts} - {0}) > 1


def _are_single_regions(label_scan: LabelScan, read: Callable[[int], NDArray[Any]]) -> bool:
    """Whether nearly every value above 0 is one region, in the masks with the most values."""
    fullest = np.argsort(-np.diff(label_scan.starts), kind="stable")[:_LOOKED_AT].tolist()
    objects = int(np.count_nonzero(label_scan.codes[np.isin(label_scan.mask_of, fullest)]))
    spare = objects / _ONE_REGION_SHARE - objects  # more regions than this are too many
    for regions in itertools.chain.from_iterable(_count_regions(read(index)) for index in fullest):
        spare -= regions - 1
        if spare < 0:  # at the first values of a photograph
            return False
    return objects >= _FEWEST_OBJECTS


def _count_regions(values: NDArray[Any]) -> Iterator[int]:
    """The number of connected regions of each value above 0 in (H, W) label values."""
    import scipy

    for value, box in enumerate(scipy.ndimage.find_objects(values.astype(np.int32)), 1):
        if box:
            yield scipy.ndimage.label(values[box] == value, np.ones((3, 3)))[1]
