"""Probabilities -> mask, under a person's conditions: thresholds, smallest regions, holes.

C classes, H x W pixels. A part is a connected piece of one class; pixels that meet only at a corner are connected
within a part, and do not connect a hole to what lies outside.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.labels.class_table import IGNORED, background_class

_CORNERS = np.ones((3, 3), bool)  # pixels that meet at a corner are connected


@dataclass(frozen=True)
class PostprocessOptions:
    """What is asked of a mask; nothing asked: each pixel has its most probable class.

    Attributes:
        thresholds: class index -> probability, 0..1, from which on a pixel has that class.
        min_area: class index -> px; smaller regions of the class become what surrounds them.
        fill_holes: class index -> px; holes of the class up to this area are filled. `math.inf`: all of them.
    """

    thresholds: Mapping[int, float] = field(default_factory=dict)
    min_area: Mapping[int, float] = field(default_factory=dict)
    fill_holes: Mapping[int, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.thresholds or self.min_area or self.fill_holes)


def postprocess(
    prob: NDArray[np.float32], wanted: PostprocessOptions, invalid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """A mask of probabilities: thresholds first, then holes are filled, then small regions go.

    Args:
        prob: (C, H, W) probabilities.
        invalid: (H, W) where the image is invalid.
    Returns:
        (H, W) uint8 class index; IGNORED where the image is invalid.
    """
    mask = apply_thresholds(prob, wanted.thresholds)
    if invalid is not None:
        mask[invalid] = IGNORED
    if wanted.fill_holes:
        fill_holes(mask, wanted.fill_holes)
    if wanted.min_area:
        drop_small_regions(mask, wanted.min_area)
    return mask


def apply_thresholds(prob: NDArray[np.float32], thresholds: Mapping[int, float]) -> NDArray[np.uint8]:
    """The class of each pixel: one whose probability reaches its threshold, else the most probable of the others.

    Where several classes reach theirs, the most probable of them is taken; where all classes have a threshold and
    none reaches it, the most probable of all. Of equally probable ones the first in the class table, as everywhere.

    Args:
        prob: (C, H, W) probabilities.
        thresholds: class index -> probability.
    Returns:
        (H, W) uint8 class index.
    """
    others = prob if len(thresholds) in (0, len(prob)) else prob.copy()
    if others is not prob:
        others[list(thresholds)] = -1
    mask: NDArray[np.uint8] = others.argmax(axis=0).astype(np.uint8)
    del others
    best = np.full(mask.shape, -1, prob.dtype)
    for index in sorted(thresholds):
        taken = (prob[index] >= thresholds[index]) & (prob[index] > best)
        mask[taken] = index
        best[taken] = prob[index][taken]
    return mask


def fill_holes(mask: NDArray[np.uint8], limits: Mapping[int, float]) -> None:
    """Fill, in place, what a class encloses on all sides, whatever it is; what reaches the image's rim or IGNORED
    pixels is no hole.

    Class by class in the order of the class table, each in what those before it have left. That matters only where
    two classes cross at a corner: of two that enclose a pixel, the outer one also encloses the inner one.

    Args:
        mask: (H, W) class index.
        limits: class index -> greatest area of a hole that is filled, px.
    """
    for index, limit in sorted(limits.items()):
        holes, count = ndimage.label(mask != index)
        filled = np.bincount(holes.reshape(-1), minlength=count + 1) <= limit
        filled[0] = False  # the class itself
        for rim in (holes[0], holes[-1], holes[:, 0], holes[:, -1], holes[mask == IGNORED]):
            filled[rim] = False
        mask[filled[holes]] = index


def drop_small_regions(mask: NDArray[np.uint8], limits: Mapping[int, float]) -> None:
    """Give, in place, each part of a class that is smaller than its limit to the class that it has the longest border
    with; of equal ones to the first in the class table.

    Smaller regions go first, so that specks side by side become what lies around all of them. Afterwards no part is
    smaller than its limit, unless it is all of the image, or nothing but IGNORED pixels lies around it.

    Args:
        mask: (H, W) class index.
        limits: class index -> least area of a part that stays, px.
    """
    while True:
        parts, classes = _label_regions(mask)
        areas = np.bincount(parts.reshape(-1), minlength=len(classes))
        minimum = np.array([limits.get(index, 0) for index in range(int(classes.max()) + 1)])
        small = areas < minimum[classes]
        if len(classes) == 1 or not small.any():
            return
        inner, outer = _find_borders(parts, small)
        known = classes[outer] != IGNORED
        inner, outer = inner[known], outer[known]
        small &= np.bincount(inner, minlength=len(areas)) > 0
        if not small.any():
            return
        # Of two small neighbours one goes now, the other is looked at again when it has grown.
        rank = np.argsort(np.argsort(areas, kind="stable"))
        waits = inner[small[outer] & (rank[outer] < rank[inner])]
        goes = small & (np.bincount(waits, minlength=len(areas)) == 0)
        going, new_index = np.flatnonzero(goes), np.cumsum(goes) - 1
        inner, outer = inner[goes[inner]], outer[goes[inner]]
        maximum = len(minimum)
        borders = np.bincount(new_index[inner] * maximum + classes[outer], minlength=len(going) * maximum)
        becomes = classes.copy()
        becomes[going] = borders.reshape(len(going), maximum).argmax(axis=1)
        mask[:] = becomes[parts]


def _label_regions(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """(H, W) number of the part that each pixel belongs to, from 0, and (parts,) the class of each part."""
    parts = np.zeros(mask.shape, np.int32)
    classes: list[int] = []
    for index in np.unique(mask):
        region = mask == index
        found, count = ndimage.label(region, _CORNERS)
        parts[region] = found[region] + (len(classes) - 1)
        classes += [int(index)] * count
    return parts, np.array(classes, np.uint8)


def _find_borders(parts: NDArray[np.int32], small: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Every edge between a pixel of a small part and one of another part, as the numbers of the two parts."""
    pairs = []
    for one, other in ((parts[1:], parts[:-1]), (parts[:, 1:], parts[:, :-1])):
        for here, region in ((one, other), (other, one)):
            edge = (here != region) & small[here]
            pairs.append((here[edge], region[edge]))
    inner, outer = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return inner, outer


def parse_thresholds(texts: Iterable[str], names: Sequence[str]) -> dict[int, float]:
    """`polyp=0.3` of each `--threshold` -> class index -> probability.

    Raises:
        SettingError: an unknown class (the nearest known one is named), or no probability above 0 and up to 1.
    """
    thresholds = {}
    for text in texts:
        name, probability = split_number(text)
        if name is None or not 0 < probability <= 1:
            raise SettingError(
                _("--threshold {text}: write it as CLASS=P, P above 0 and up to 1, for example {name}=0.3").format(
                    text=text, name=_example(names)
                ),
                key="--threshold",
            )
        thresholds[find_class(name, names)] = probability
    return thresholds


def parse_areas(flag: str, texts: Iterable[str], names: Sequence[str]) -> dict[int, float]:
    """`20` (all classes but the background) or `polyp=20` of each `--min-area` or `--fill-holes` -> class index -> px.

    `all` stands for any area. What names a class is stronger than what names none.

    Raises:
        SettingError: an unknown class (the nearest known one is named), or no area.
    """
    everywhere: dict[int, float] = {}
    named: dict[int, float] = {}
    for text in texts:
        name, area = split_number(text)
        if not area >= 0:
            raise SettingError(
                _("{flag} {text}: write it as PX or CLASS=PX, for example {name}=50").format(
                    flag=flag, text=text, name=_example(names)
                ),
                key=flag,
            )
        if name is None:
            everywhere = {index: area for index in range(len(names)) if index != background_class(names)}
        else:
            named[find_class(name, names)] = area
    return everywhere | named


def find_class(name: str, names: Sequence[str]) -> int:
    """The index of a class by its name.

    Raises:
        SettingError: there is none of that name; the nearest one, and all of them, are named.
    """
    if name in names:
        return names.index(name)
    known = ", ".join(names)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    if near:
        raise SettingError(
            _("unknown class {name}; did you mean {near}? The model's classes are: {known}").format(
                name=name, near=near[0], known=known
            ),
            key="class",
        )
    raise SettingError(
        _("unknown class {name}; the model's classes are: {known}").format(name=name, known=known), key="class"
    )


def _example(names: Sequence[str]) -> str:
    """A class to show in an example: not the background."""
    return next((name for index, name in enumerate(names) if index != background_class(names)), names[0])


def split_number(text: str) -> tuple[str | None, float]:
    """`polyp=20` -> its class and its number, `20` -> None and the number; `all` is infinite, no number is NaN."""
    name, equals, number = text.rpartition("=")
    try:
        value = math.inf if number.strip() == "all" else float(number)
    except ValueError:
        value = math.nan
    return name.strip() if equals else None, value
