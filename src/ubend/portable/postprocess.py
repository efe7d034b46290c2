"""Post-processing: turns probabilities into a mask with thresholds, minimum areas of regions, and filled holes.

C classes, H x W pixels. A region is a connected component of one class, with 8-connectivity; holes have
4-connectivity, so that pixels that touch only at a corner do not connect a hole to the outside.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .class_table import IGNORED, background_class
from .errors import SettingError
from .i18n import _
from .regions import label_regions


@dataclass(frozen=True)
class PostprocessOptions:
    """Options for post-processing; by default, each pixel gets its most probable class.

    Attributes:
        thresholds: class index -> probability, 0..1, from which a pixel gets that class.
        min_area: class index -> px; smaller regions of the class get the class that surrounds them.
        fill_holes: class index -> px; holes of the class up to this area are filled. `math.inf`: all holes.
    """

    thresholds: Mapping[int, float] = field(default_factory=dict)
    min_area: Mapping[int, float] = field(default_factory=dict)
    fill_holes: Mapping[int, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.thresholds or self.min_area or self.fill_holes)


def postprocess(
    prob: NDArray[np.float32], wanted: PostprocessOptions, invalid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Make a mask from probabilities: apply thresholds, then fill holes, then remove small regions.

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
    """The class of each pixel: the one that reaches its threshold, else the most probable class without a threshold.

    If several classes reach their thresholds, the most probable of these; if all classes have a threshold and none
    reaches it, the most probable of all. Of equally probable classes, the first in the class table.

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
    """Fill holes of classes, in place: regions of any classes that a class encloses on all sides.

    A region that touches the image border or IGNORED pixels is not a hole. Classes are processed in the order of the
    class table, each on the result of the previous one. The order only matters where two classes cross at a corner:
    otherwise, of two classes that enclose a pixel, the outer one also encloses the inner one.

    Args:
        mask: (H, W) class index.
        limits: class index -> maximum area of a hole to fill, px.
    """
    for index, limit in sorted(limits.items()):
        holes, is_other = label_regions(mask != index, corners=False)
        filled = is_other & (np.bincount(holes.reshape(-1)) <= limit)
        for rim in (holes[0], holes[-1], holes[:, 0], holes[:, -1], holes[mask == IGNORED]):
            filled[rim] = False
        mask[filled[holes]] = index


def drop_small_regions(mask: NDArray[np.uint8], limits: Mapping[int, float]) -> None:
    """Remove small regions, in place: each gets the class with which it has the longest border.

    Of equally long borders, the first class in the class table wins. Smaller regions are removed first, so that
    adjacent specks get the class that surrounds them all. Afterwards no region is smaller than its limit, unless it is
    the whole image, or is surrounded only by IGNORED pixels.

    Args:
        mask: (H, W) class index.
        limits: class index -> minimum area of a region, px.
    """
    while True:
        parts, classes = label_regions(mask, corners=True)
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
        # Of two small neighbours, the smaller one is removed now; the other one is checked again afterwards.
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


def _find_borders(parts: NDArray[np.int32], small: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All pixel edges between a small region and another region, as the indices of the two regions."""
    pairs = []
    for first, other_side in ((parts[1:], parts[:-1]), (parts[:, 1:], parts[:, :-1])):
        for here, region in ((first, other_side), (other_side, first)):
            edge = (here != region) & small[here]
            pairs.append((here[edge], region[edge]))
    inner, outer = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return inner, outer


def parse_thresholds(texts: Iterable[str], names: Sequence[str]) -> dict[int, float]:
    """Parse the values of `--threshold`, such as `polyp=0.3`: {class index: probability}.

    Raises:
        SettingError: an unknown class (the message suggests a similar name), or a probability that is not above 0 and
            up to 1.
    """
    thresholds = {}
    for text in texts:
        name, probability = split_number(text)
        if name is None or not 0 < probability <= 1:
            raise SettingError(
                _("--threshold {text}: give CLASS=P with P above 0 and up to 1, for example {name}=0.3").format(
                    text=text, name=_example(names)
                ),
                key="--threshold",
            )
        thresholds[find_class(name, names)] = probability
    return thresholds


def parse_areas(flag: str, texts: Iterable[str], names: Sequence[str]) -> dict[int, float]:
    """Parse the values of `--min-area` or `--fill-holes`: {class index: px}.

    `20` applies to all classes except the background, `polyp=20` to one class and takes precedence. `all` means an
    unlimited area.

    Raises:
        SettingError: an unknown class (the message suggests a similar name), or a value that is not an area.
    """
    everywhere: dict[int, float] = {}
    named: dict[int, float] = {}
    for text in texts:
        name, area = split_number(text)
        if not area >= 0:
            raise SettingError(
                _("{flag} {text}: give PX or CLASS=PX, for example {name}=50").format(
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
    """The index of a class, by name.

    Raises:
        SettingError: there is no such class; the message lists all classes, and suggests a similar one.
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
    """A class name for an example, if possible not the background."""
    return next((name for index, name in enumerate(names) if index != background_class(names)), names[0])


def split_number(text: str) -> tuple[str | None, float]:
    """Parse `polyp=20` as ("polyp", 20), and `20` as (None, 20); `all` gives infinity, an invalid number NaN."""
    name, equals, value_text = text.rpartition("=")
    try:
        value = math.inf if value_text.strip() == "all" else float(value_text)
    except ValueError:
        value = math.nan
    return name.strip() if equals else None, value
