"""The class table: names, colours, label value <-> class index, the ignored value.

Masks on disk contain *label values*: numbers or colours (`label_values.py`). Everything after the store uses the
*class index*, 0..C-1 in the order of the class table, or IGNORED for pixels that are not scored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from PIL import ImageColor

from ubend.core.errors import DataError, SettingError
from ubend.core.i18n import _
from ubend.labels.label_values import (
    LabelArray,
    ValueKind,
    count_label_values,
    format_values,
    replace_values,
    unpack_color,
)
from ubend.portable.class_table import IGNORED, MAX_CLASSES, NAME_PATTERN, background_class

__all__ = [
    "ANY_DISTANCE",
    "DEFAULT_COLORS",
    "IGNORED",
    "MAX_CLASSES",
    "NAME_PATTERN",
    "NOISE_REACH",
    "RESERVED_NAMES",
    "ROUNDING_REACH",
    "ClassMap",
    "LabelMap",
    "background_class",
    "choose_colors",
    "class_colors",
    "default_colors",
    "make_label_map",
    "name_color",
]

_SHOWN = 64  # names or label values of a list in a message

# Default colours of classes: background black, then well-separated hues.
DEFAULT_COLORS = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)  # Okabe & Ito 2008: distinguishable with colour blindness, too

_NAMES = ("black", "white", "red", "lime", "green", "blue", "yellow", "cyan", "magenta", "gray", "silver", "maroon",
          "olive", "navy", "purple", "teal", "orange", "pink", "brown")  # fmt: skip

RESERVED_NAMES = ("ignored", "nearest", "near")  # words of `--values` for label values that are not a class
ROUNDING_REACH = 8  # colours this close to one in the class table are considered equal to it
NOISE_REACH = 64  # in noisy masks, colours this close to a class belong to it, unless another class is close, too
ANY_DISTANCE = 10**6  # larger than any distance: all label values go to the nearest class

_Value = Annotated[int, Interval(ge=-(2**31), lt=2**31)]  # ranges are checked where a table is read from a file
_Byte = Annotated[int, Interval(ge=0, le=255)]


class ClassMap(NamedTuple):
    """A mask as class indices.

    Attributes:
        classes: (H, W) uint8 class index or IGNORED.
        unknown_values: label values that are not in the class table; their pixels are IGNORED.
        pixels: (256,) int64: number of pixels of each class index.
    """

    classes: NDArray[np.uint8]
    unknown_values: NDArray[np.int32]
    pixels: NDArray[np.int64]


@dataclass(frozen=True)
class LabelMap:
    """The class table, and the meaning of each label value.

    Attributes:
        names: class index -> name.
        kind: whether masks are read as values or as colours.
        codes: class index -> its label values in masks; empty if masks never contain it.
        colors: class index -> (red, green, blue), 0..255, to draw it.
        ignored: label values whose pixels are not scored.
        reach: an unknown label value is assigned to the nearest known one within this distance (difference of values,
            Euclidean distance of colours), if the next class is more than twice as far; 0: never; ANY_DISTANCE: always.
        others: class index of all remaining label values, or IGNORED; None: they are an error.
    Raises:
        DataError: duplicate names, or a name that is not 1 to 200 characters on one line.
    """

    names: tuple[str, ...]
    kind: ValueKind
    codes: tuple[tuple[_Value, ...], ...]
    colors: tuple[tuple[_Byte, _Byte, _Byte], ...]
    ignored: tuple[_Value, ...] = ()
    reach: Annotated[int, Interval(ge=0, le=ANY_DISTANCE)] = 0
    others: _Byte | None = None

    def __post_init__(self) -> None:
        _refuse_unfit(self.names)
        if len(set(self.names)) < len(self.names):
            line = _("class names must be different, but are: {names}; fix --classes")
            raise DataError(line.format(names=_join(self.names)), key="data.classes")

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def unmapped(self) -> tuple[int, ...]:
        """The classes without a label value; no mask can contain them."""
        return tuple(index for index, values in enumerate(self.codes) if not values and index != self.others)

    @cached_property
    def _known(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """All known label values, ascending, and their class index."""
        index = {value: class_index for class_index, values in enumerate(self.codes) for value in values}
        index |= dict.fromkeys(self.ignored, IGNORED)
        values = np.array(sorted(index), np.int32)
        return values, np.array([index[int(value)] for value in values], np.uint8)

    def classify(self, values: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """(K,) label values -> ((K,) class index or IGNORED, (K,) whether the table has the value or a close one)."""
        known, index = self._known
        position = np.searchsorted(known, values).clip(max=len(known) - 1)
        exact = known[position] == values
        out = np.where(exact, index[position], IGNORED if self.others is None else self.others).astype(np.uint8)
        has_class = exact | (self.others is not None)
        if self.reach and not exact.all():
            unknown = np.flatnonzero(~exact)
            nearest, near = self._nearest(values[unknown])
            out[unknown[near]], has_class[unknown[near]] = index[nearest[near]], True
        return out, has_class

    def _nearest(self, values: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(position of the nearest known label value, whether it is within `reach`) for each label value."""
        known, index = self._known
        nearest, near = np.zeros(len(values), np.int64), np.zeros(len(values), np.bool_)
        points = self._points(known)
        step = max(1, 2**20 // len(known))  # bounded memory
        for start in range(0, len(values), step):
            chunk = slice(start, start + step)
            distance = np.linalg.norm(self._points(values[chunk])[:, None] - points[None], axis=2)
            first = distance.argmin(axis=1)
            shortest = distance[np.arange(len(first)), first]
            elsewhere = np.where(index[None] == index[first][:, None], np.inf, distance).min(axis=1)
            nearest[chunk] = first
            near[chunk] = (shortest <= self.reach) & ((2 * shortest < elsewhere) | (self.reach >= ANY_DISTANCE))
        return nearest, near

    def _points(self, values: NDArray[np.int32]) -> NDArray[np.float64]:
        if self.kind == "value":
            return values[:, None].astype(np.float64)
        return np.stack(unpack_color(values), axis=-1).astype(np.float64)

    def translate(self, mask_values: LabelArray) -> "ClassMap":
        """Convert a mask's label values to class indices.

        Raises:
            DataError: a mask of values in a set of colour masks, or vice versa.
        """
        mask_values = mask_values.of_kind(self.kind)
        present, counts = count_label_values(mask_values.values)
        index, known = self.classify(present)
        pixels = np.bincount(index, counts, 256).astype(np.int64)
        return ClassMap(replace_values(mask_values.values, present, index), present[~known], pixels)

    def in_order_of(self, names: tuple[str, ...], colors: tuple[tuple[int, int, int], ...]) -> "LabelMap":
        """The same label values in the class order of a model; classes are matched by name.

        Raises:
            SettingError: a class that the model does not have.
        """
        unknown = [name for name in self.names if name not in names]
        if unknown:
            raise SettingError(
                _("--values names {unknown}, but the model's classes are {known}; use their names").format(
                    unknown=", ".join(unknown), known=", ".join(names)
                ),
                key="data.values",
            )
        values = tuple(self.codes[self.names.index(name)] if name in self.names else () for name in names)
        others = self.others if self.others in (None, IGNORED) else names.index(self.names[self.others])
        return LabelMap(names, self.kind, values, colors, self.ignored, self.reach, others)

    def describe(self) -> str:
        """One line: `0 -> background, 255 -> polyp`."""
        texts = [format_values(values, self.kind) for values in self.codes]
        if self.others is not None and self.others < self.classes:
            texts[self.others] = ", ".join(filter(None, [texts[self.others], _("all others")]))
        return ", ".join(f"{these or '-'} -> {name}" for these, name in zip(texts, self.names, strict=True))


def class_colors(names: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """(red, green, blue) per class: black for the background, or for the first class if there is none."""
    black, *others = default_colors(len(names))
    others.insert(background_class(names) or 0, black)
    return tuple(others)


def default_colors(classes: int) -> tuple[tuple[int, int, int], ...]:
    """(red, green, blue) per class; the background is black; after the first eight, the colours repeat, darker."""
    _black, *hues = DEFAULT_COLORS
    shades = (((r, g, b), 0.6**turn) for turn in range(-(-classes // len(hues))) for r, g, b in hues)
    colors = [(round(r * shade), round(g * shade), round(b * shade)) for (r, g, b), shade in shades]
    return ((0, 0, 0), *colors[: classes - 1])


def choose_colors(
    names: Sequence[str], table: Sequence[Sequence[int]], kind: ValueKind
) -> tuple[tuple[int, int, int], ...]:
    """The display colour of each class: the colour in the masks, or a default one."""
    plain = class_colors(names)
    if kind == "value":
        return plain
    return tuple(unpack_color(values[0]) if values else color for values, color in zip(table, plain, strict=True))


def make_label_map(
    values: Sequence[int],
    names: Sequence[str] | None = None,
    kind: ValueKind = "value",
    *,
    ignored: tuple[int, ...] = (),
    reach: int = 0,
    others: int | None = None,
    colors: tuple[tuple[int, int, int], ...] | None = None,
) -> LabelMap:
    """A label map with one label value per class; missing names and colours get defaults.

    Raises:
        DataError: too many classes; too many or too few names; a duplicate or reserved name.
    """
    names = tuple(_generate_names(values, kind) if names is None else names)
    _refuse_unfit(names)
    if taken := [name for name in names if name in RESERVED_NAMES]:
        line = _("a class cannot be named {names}, which is a reserved word; rename it")
        raise DataError(line.format(names=", ".join(taken)), key="data.classes")
    if len(values) > MAX_CLASSES:
        line = _("the masks contain {count} classes; at most {maximum} are supported")
        raise DataError(line.format(count=len(values), maximum=MAX_CLASSES), key="data.classes")
    if len(names) != len(values):
        line = _(
            "the masks contain {found} classes ({values}), but there are {given} class names ({names}); give one "
            "name per value with --classes; if a value is a mistake, correct its masks, or leave its pixels out "
            "with --values ...,VALUE=ignored"
        )
        suggestion = ",".join(["background", *names])
        if kind == "color":
            line += _('; or name each colour: --values "{suggestion}"')
            shown = dict(zip(values[:_SHOWN], _generate_names(values, kind), strict=False))
            suggestion = ",".join(f"#{value:06x}={name}" for value, name in shown.items())
        elif len(names) == len(values) - 1 <= _SHOWN and background_class(names) is None:
            line += _('; if only the background is missing: --classes "{suggestion}"')
        raise DataError(
            line.format(
                found=len(values),
                values=format_values(values, kind, _SHOWN),
                given=len(names),
                names=_join(names),
                suggestion=suggestion,
            ),
            key="data.classes",
        )
    table = tuple((int(value),) for value in values)
    return LabelMap(names, kind, table, colors or choose_colors(names, table, kind), ignored, reach, others)


def _refuse_unfit(names: Sequence[str]) -> None:
    """Refuse names that are not one short line, before they are shown in other messages."""
    if unfit := [name for name in names if not re.fullmatch(NAME_PATTERN, name)]:
        line = _("the class name {name!r} must have 1 to 200 characters on one line")
        raise DataError(line.format(name=unfit[0][:50]), key="data.classes")


def _join(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])


def _generate_names(values: Sequence[int], kind: ValueKind) -> list[str]:
    if kind == "color":
        plain = [name_color(unpack_color(int(value))).replace("black", "background") for value in values]
        return [n if plain.count(n) == 1 else f"#{int(value):06x}" for n, value in zip(plain, values, strict=True)]
    names = ["background", *(f"class {i}" for i in range(1, len(values)))]
    return ["background", "foreground"] if len(values) == 2 else names


def name_color(color: tuple[int, int, int]) -> str:
    """`red` for red and nearly red colours; `#e6194b` for a colour without a common name."""
    points = np.array([ImageColor.getrgb(name)[:3] for name in _NAMES], np.float64)
    distance = np.linalg.norm(points - np.array(color), axis=1)
    return _NAMES[distance.argmin()] if distance.min() <= ROUNDING_REACH else "#{:02x}{:02x}{:02x}".format(*color)
