"""Class names and colours; mask value <-> class index; the ignored value.

Masks on disk hold *values* (0..255); everything after the store works on the *class index*, 0..C-1 in
the order of the class table, or IGNORED for pixels that no one scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.errors import DataError
from ubend.language import _

IGNORED = 255  # class index of a pixel that is neither trained on nor scored

# Colours of the class table when a folder brings none: background black, then well-separated hues.
DEFAULT_COLORS = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)  # Okabe & Ito 2008: told apart by colour-blind people too

_TWO_ENDS_SHARE = 0.97  # lossy masks with this share of their pixels near 0 and near 255 are black and white
_MOST_CLASSES = 64  # a picture of so many values is no mask
_MANY_CLASSES = 12  # without names: more are rarely classes
_MAIN_SHARE = 0.003  # a value of a lossy mask is a class of its own if it holds this share of all pixels
_MAIN_DISTANCE = 24  # ... and no commoner value lies this near: JPEG's ringing stays well inside


@dataclass(frozen=True)
class LabelMap:
    """The class table, and what each mask value means.

    Attributes:
        names: class index -> name.
        values: class index -> the value that masks hold for it.
        colors: class index -> (red, green, blue), 0..255.
        ignored: mask values whose pixels are not scored.
        table: mask value (0..255) -> class index, or IGNORED.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignored: tuple[int, ...]
    table: tuple[int, ...] = field(repr=False)

    @property
    def classes(self) -> int:
        return len(self.names)

    def lookup(self) -> NDArray[np.uint8]:
        """(256,) uint8: mask value -> class index or IGNORED."""
        return np.array(self.table, dtype=np.uint8)

    def index(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W) mask values -> (H, W) class index or IGNORED."""
        return self.lookup()[mask]

    def describe(self) -> str:
        """One line: `0 -> background, 255 -> polyp`."""
        return ", ".join(f"{value} -> {name}" for value, name in zip(self.values, self.names, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "values": list(self.values),
            "colors": [list(c) for c in self.colors],
            "ignored": list(self.ignored),
            "table": list(self.table),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LabelMap":
        colors = tuple((int(r), int(g), int(b)) for r, g, b in value["colors"])
        names, values, ignored = (tuple(value[key]) for key in ("names", "values", "ignored"))
        return cls(names, values, colors, ignored, tuple(value["table"]))


def background_class(names: Sequence[str]) -> int | None:
    """The class that is no object: the one called background, if any."""
    plain = [name.strip().lower() for name in names]
    return next((plain.index(name) for name in ("background", "bg", "nền") if name in plain), None)


def class_colors(names: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """(red, green, blue) per class: black for the background, wherever it stands, else for the first."""
    black, *others = default_colors(len(names))
    others.insert(background_class(names) or 0, black)
    return tuple(others)


def default_colors(classes: int) -> tuple[tuple[int, int, int], ...]:
    """(red, green, blue) per class; background black; repeats, darker, after the first eight."""
    out = []
    for index in range(classes):
        r, g, b = DEFAULT_COLORS[index % 8] if index < 8 else DEFAULT_COLORS[1 + (index - 8) % 7]
        shade = 0.6 ** max(0, (index - 1) // 7) if index >= 8 else 1.0
        out.append((round(r * shade), round(g * shade), round(b * shade)))
    return tuple(out)


def make_label_map(
    values: list[int], names: list[str] | None = None, ignored: tuple[int, ...] = (), snap: bool = False
) -> LabelMap:
    """A label map from the value of each class.

    Args:
        values: the mask value of each class, in the order of the classes.
        names: class names; made up (`background`, `class 1`, ...) when None.
        ignored: values whose pixels are not scored.
        snap: unknown values go to the nearest of `values` (JPEG masks); else they are IGNORED.
    """
    if names is None:
        names = ["background", *(f"class {i}" for i in range(1, len(values)))]
        if len(values) == 2:
            names[1] = "foreground"
    table = np.full(256, IGNORED, dtype=np.uint8)
    if snap:
        distance = np.abs(np.arange(256)[:, None] - np.array(values)[None, :])
        table[:] = distance.argmin(axis=1)  # 127 -> 0, 128 -> 255: the tie cannot occur for 0 and 255
    for index, value in enumerate(values):
        table[value] = index
    for value in ignored:
        table[value] = IGNORED
    colors = class_colors(names)
    return LabelMap(tuple(names), tuple(values), colors, tuple(ignored), tuple(int(v) for v in table))


def detect_label_map(
    pixels: NDArray[np.int64], lossy: bool, names: list[str] | None = None, known: list[int] | None = None
) -> tuple[LabelMap, list[str]]:
    """What the mask values of a data set mean, and remarks for the user.

    Args:
        pixels: (256,) how many pixels of all masks hold each value.
        lossy: some masks are JPEG, so that values near a main value are its noise.
        names: class names in the order of the values, when the user or the folder gives them.
        known: the value of each class, when the layout of the folder tells it.
    Raises:
        DataError: the values do not tell which classes there are.
    """
    remarks: list[str] = []
    present = [int(v) for v in np.flatnonzero(pixels)]
    ignored: tuple[int, ...] = ()
    if known is not None:
        values = known
    else:
        values = _main_values(pixels, present) if lossy else _exact_values(pixels, present)
        all_named = names is not None and len(names) == len(values)
        if not (lossy or all_named) and len(values) > 2 and values[-1] == 255 and _is_run(values[:-1]):
            values, ignored = values[:-1], (255,)
            remarks.append(_("mask value 255 beside class numbers: its pixels are not scored"))
        elif not lossy and names is None:
            _refuse_unclear(pixels, values)
    if len(values) < 2:
        raise DataError(
            _(
                "all masks are empty: they hold the single value {value}; segmentation needs at least two "
                "classes, so check that these are the right masks"
            ).format(value=values[0] if values else "-")
        )
    if names is not None and len(names) != len(values):
        raise DataError(
            _(
                "the masks hold {found} classes (values {values}) but {given} class names were given ({names}); "
                "give one name per value with --classes"
            ).format(
                found=len(values),
                values=", ".join(map(str, values)),
                given=len(names),
                names=", ".join(names),
            )
        )
    if names is not None and len(set(names)) < len(names):
        raise DataError(
            _("class names must differ, but they are: {names}; mend --classes").format(names=", ".join(names))
        )
    if names is None and len(values) > _MANY_CLASSES:
        remarks.append(
            _(
                "{count} classes: if these numbers count objects (instance masks), make all objects one value first"
            ).format(count=len(values))
        )
    label_map = make_label_map(values, names, ignored, snap=lossy)
    strangers = [v for v in present if v not in values and v not in ignored]
    if strangers and lossy:
        moved = int(pixels[strangers].sum())
        remarks.append(
            _("{count} pixels ({share:.2%}) with {kinds} in-between values went to the nearest main value").format(
                count=moved, share=moved / pixels.sum(), kinds=len(strangers)
            )
        )
    elif strangers:
        raise DataError(
            _("mask values beyond the classes: {values}; the classes are {classes}").format(
                values=_value_table(pixels, strangers), classes=label_map.describe()
            )
        )
    return label_map, remarks


def _main_values(pixels: NDArray[np.int64], present: list[int]) -> list[int]:
    """The values that stand for classes in JPEG masks, whose noise spreads each over its neighbours."""
    total = int(pixels.sum())
    low, high = int(pixels[:_MAIN_DISTANCE].sum()), int(pixels[256 - _MAIN_DISTANCE :].sum())
    if low and high and low + high >= _TWO_ENDS_SHARE * total:
        return [0, 255]
    main: list[int] = []
    for value in sorted(present, key=lambda v: -int(pixels[v])):
        around = pixels[max(0, value - _MAIN_DISTANCE // 2) : value + _MAIN_DISTANCE // 2 + 1]
        if around.sum() >= _MAIN_SHARE * total and all(abs(value - other) >= _MAIN_DISTANCE for other in main):
            main.append(value)
    return sorted(main)


def _exact_values(pixels: NDArray[np.int64], present: list[int]) -> list[int]:
    """All values of masks without noise."""
    if len(present) > _MOST_CLASSES:
        raise DataError(
            _(
                "the masks hold {count} different values, too many to be classes ({values}, ...); "
                "masks must hold one value per class: save them again as PNG without resampling"
            ).format(count=len(present), values=_value_table(pixels, present[:6]))
        )
    return present


def _is_run(values: list[int]) -> bool:
    """Are these consecutive numbers?"""
    return values == list(range(values[0], values[0] + len(values)))


def _refuse_unclear(pixels: NDArray[np.int64], values: list[int]) -> None:
    """Fail when exact values are neither consecutive nor evenly spaced: they come from resampling, or need names."""
    steps = np.diff(values)
    even = len(steps) == 0 or steps.max() == steps.min() or (steps.max() - steps.min() == 1 and steps.min() >= 8)
    if not even:  # 0, 128, 255 is even, but for the rounding
        raise DataError(
            _(
                "the masks hold {count} values that do not tell the classes: {values}; resampled masks hold such "
                "values (save them again, resized by nearest neighbour), and if each is a class, name them by --classes"
            ).format(count=len(values), values=_value_table(pixels, values[:12]))
        )


def _value_table(pixels: NDArray[np.int64], values: list[int]) -> str:
    total = max(1, int(pixels.sum()))
    return ", ".join(f"{v} ({pixels[v] / total:.2%})" for v in values)
