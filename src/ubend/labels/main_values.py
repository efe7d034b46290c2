"""The label values and colours that are classes, in masks with noise (JPEG) or blends (resampling) around them."""

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.labels.class_table import (
    ROUNDING_REACH,
    make_label_map,
)
from ubend.labels.label_values import LISTED, Tally, format_values, unpack_color, value_table

MAX_FOUND = 64  # masks with more label values are resampled, lossy, or not masks
# A label value of noisy masks is a class if it has MAIN_SHARE of all pixels, if no more frequent value is within
# MAIN_DISTANCE (JPEG artefacts stay well below it), and if it is a peak: _PEAK_SHARE of the pixels within MAIN_DISTANCE
# of a colour are within _PEAK_DISTANCE of it, unlike blends. Of values _VALUE_PEAK_SHARE must be, since soft edges are
# spread evenly: 13 of the 25 values around one are within 6 of it.
MAIN_SHARE, MAIN_DISTANCE = 0.003, 24
_PEAK_DISTANCE, _PEAK_SHARE, _VALUE_PEAK_SHARE = 6, 0.5, 0.65
_TWO_ENDS_SHARE = 0.97  # JPEG masks with this fraction of their pixels near 0 and near 255 are black and white
_BLEND_DISTANCE = 64  # in noisy masks: colours this close to the line between two classes are blends of them
_CLEAN_BLEND_DISTANCE = 4  # the same in masks that were resampled but saved losslessly
# More pixels than this fraction of all, whose colours are neither noise nor blends, may be a class.
_UNEXPLAINED_SHARE = 0.005
_BLENDS_SHARE = 0.05  # more blends than this fraction of all pixels, far from every class, may be a class between two
_STRAY_SHARE = 0.01  # a colour similar to another one, with less than this fraction of its pixels, is a slip
_MAX_POINTS = 20_000  # number of most frequent colours among which classes are searched


def find_main_colors(tally: Tally, lossy: bool) -> tuple[list[int], bool]:
    """(colours that are classes, ascending; whether there are noise or blends around them).

    Raises:
        DataError: the colours do not define the classes.
    """
    if not lossy and len(tally.codes) <= MAX_FOUND and not _mostly_blends(tally):
        return _without_strays(tally), False
    values = _main_colors(tally[np.sort(np.argsort(-tally.pixels, kind="stable")[:_MAX_POINTS])])
    _refuse_unexplained(tally, values)
    return values, True


def find_main_values(tally: Tally, classes: int | None = None) -> list[int]:
    """The values that are classes in JPEG masks, where noise spreads each value over its neighbours.

    Args:
        classes: number of classes; None: not stated.
    Raises:
        DataError: the values do not define the classes.
    """
    pixels, total = np.zeros(65536, np.int64), int(tally.pixels.sum())
    pixels[tally.codes] = tally.pixels

    def around(value: int, distance: int) -> int:
        return int(pixels[max(0, value - distance) : value + distance + 1].sum())

    low, high = around(0, MAIN_DISTANCE - 1), around(255, MAIN_DISTANCE - 1)
    if low and high and low + high >= _TWO_ENDS_SHARE * total:
        levels = _levels_between(pixels)
        if not levels or classes == 2:
            return [0, 255]
        if classes == len(levels) + 2:
            return [0, *levels, 255]
        shares = (f"{value} ({around(value, _PEAK_DISTANCE) / total:.2%})" for value in levels)
        raise DataError(
            _(
                "these JPEG masks are mostly 0 and 255, but contain {levels} too often for noise: if these are "
                'classes, name them: --values "{suggestion},*=nearest"; if they are soft edges: --values '
                '"0=background,255=foreground,*=nearest"'
            ).format(
                levels=", ".join(shares),
                suggestion=",".join(f"{value}=name{number}" for number, value in enumerate([0, *levels, 255], 1)),
            ),
            key="data.values",
        )
    main: list[int] = []
    for value in np.argsort(-pixels[:256], kind="stable").tolist():
        near = around(value, MAIN_DISTANCE // 2)
        peak = around(value, _PEAK_DISTANCE) >= _VALUE_PEAK_SHARE * near
        if near >= MAIN_SHARE * total and peak and all(abs(value - other) >= MAIN_DISTANCE for other in main):
            main.append(value)
    main = sorted(main)
    explained = sum(around(value, MAIN_DISTANCE // 2) for value in main)
    if len(main) > 2 and explained < (1 - _BLENDS_SHARE) * total:
        raise DataError(
            _(
                "these JPEG masks do not define their classes: {table} are common, but {share:.1%} of the pixels "
                'have other values; name them: --values "{suggestion},*=nearest"'
            ).format(
                table=value_table(tally, "value"),
                share=1 - explained / total,
                suggestion=",".join(f"{value}=name{number}" for number, value in enumerate(main, 1)),
            ),
            key="data.values",
        )
    return main


def _levels_between(pixels: NDArray[np.int64]) -> list[int]:
    """Peaks between black and white in JPEG masks, ascending.

    Half of the pixels within MAIN_DISTANCE of a peak are within _PEAK_DISTANCE of it, and all peaks together have half
    of the intermediate pixels; noise and soft edges are spread over all values.

    Args:
        pixels: (65536,) number of pixels with each value.
    """
    total, between = int(pixels.sum()), pixels[:256].copy()
    between[:MAIN_DISTANCE], between[256 - MAIN_DISTANCE :] = 0, 0
    around = np.convolve(between, np.ones(2 * _PEAK_DISTANCE + 1, np.int64), "same")
    wide = np.convolve(between, np.ones(2 * MAIN_DISTANCE + 1, np.int64), "same")
    levels = list[int]()
    for value in np.argsort(-around, kind="stable").tolist():
        clear = 2 * MAIN_DISTANCE <= value < 256 - 2 * MAIN_DISTANCE and all(
            abs(value - v) > MAIN_DISTANCE for v in levels
        )
        if clear and around[value] >= max(MAIN_SHARE * total, _PEAK_SHARE * wide[value]):
            near = between[value - _PEAK_DISTANCE : value + _PEAK_DISTANCE + 1]
            levels.append(value - _PEAK_DISTANCE + int(near.argmax()))
    return sorted(levels) if levels and around[levels].sum() >= _PEAK_SHARE * between.sum() else []


def _points(values: NDArray[np.int32]) -> NDArray[np.float64]:
    """(K,) colour codes -> (K, 3)."""
    return np.stack(unpack_color(values), axis=-1).astype(np.float64)


def _without_strays(tally: Tally) -> list[int]:
    """All colours except those that nearly equal a far more frequent one.

    Raises:
        DataError: two nearly equal colours are both common.
    """
    points, main = _points(tally.codes), list[int]()
    for candidate in np.argsort(-tally.pixels, kind="stable").tolist():
        near = [i for i in main if np.linalg.norm(points[i] - points[candidate]) <= ROUNDING_REACH]
        if not near:
            main.append(candidate)
        elif tally.pixels[candidate] > _STRAY_SHARE * tally.pixels[near[0]]:
            pair = sorted((int(tally.codes[near[0]]), int(tally.codes[candidate])))
            raise DataError(
                _(
                    "the masks contain nearly equal colours: {pair} among {table}; if each is a class, name all: "
                    '--values "{suggestion}"; otherwise give both of them the same name'
                ).format(
                    pair=format_values(pair, "color"),
                    table=value_table(tally, "color"),
                    suggestion=",".join(
                        f"#{value:06x}=name{i}" for i, value in enumerate(tally.codes[:LISTED].tolist(), 1)
                    ),
                ),
                key="data.values",
            )
    return sorted(int(tally.codes[i]) for i in main)


def _mostly_blends(tally: Tally) -> bool:
    """Whether there are more blends of two common colours than common colours, as after resampling."""
    common = tally.pixels >= MAIN_SHARE * tally.pixels.sum()
    blends = _between(_points(tally.codes[~common]), tally.codes[common].tolist(), _CLEAN_BLEND_DISTANCE)
    return bool(blends.sum() > common.sum())


def _main_colors(tally: Tally) -> list[int]:
    """The colours that are classes among noise and blends: common ones, far from more frequent ones, and peaks."""
    total = int(tally.pixels.sum())
    points = _points(tally.codes)
    left, main = tally.pixels.copy(), list[int]()
    while left.any() and len(main) <= MAX_FOUND:
        top = int(left.argmax())
        distance = np.linalg.norm(points - points[top], axis=1)
        around, peak = (int(tally.pixels[distance <= d].sum()) for d in (MAIN_DISTANCE, _PEAK_DISTANCE))
        if left[top] < MAIN_SHARE * total / 1000:
            break  # the most frequent remaining colour has a thousandth of a class's pixels: only noise follows
        if around >= MAIN_SHARE * total and peak >= _PEAK_SHARE * around:
            main.append(int(tally.codes[top]))
        left[distance <= 2 * MAIN_DISTANCE] = 0
    return sorted(main)


def _between(points: NDArray[np.float64], ends: list[int], reach: float) -> NDArray[np.bool_]:
    """(K,) whether each of (K, 3) colours is within `reach` of an end, or of the line between two ends."""
    corners = [_points(np.array(value, np.int32)) for value in ends]
    is_between = np.zeros(len(points), np.bool_)
    for index, end in enumerate(corners):
        for other in corners[index:]:
            along, left = other - end, np.flatnonzero(~is_between)
            fraction = ((points[left] - end) @ along / max(1.0, float(along @ along))).clip(0, 1)
            is_between[left] = np.linalg.norm(points[left] - end - fraction[:, None] * along, axis=1) <= reach
    return is_between


def _near(points: NDArray[np.float64], values: list[int], reach: float) -> NDArray[np.bool_]:
    """(K,) whether each of (K, 3) colours is within `reach` of one of the label values."""
    near = [np.linalg.norm(points - _points(np.array(value, np.int32)), axis=1) <= reach for value in values]
    return np.any(near, axis=0) if near else np.zeros(len(points), np.bool_)


def _refuse_unexplained(tally: Tally, main: list[int]) -> None:
    """Fail if many pixels are neither near a main colour nor a blend of two.

    Examples are a class drawn in thin lines, or a class whose colour is between two others.

    Raises:
        DataError: there are too many.
    """
    # Colours are binned in steps of 4, since photographs have millions of them.
    bins, inverse = np.unique(tally.codes & 0xFCFCFC, return_inverse=True)
    points, pixels = _points(bins) + 2, np.bincount(inverse, tally.pixels, len(bins))
    total = float(pixels.sum())
    doubtful = []
    for value in main:
        others, near_value = [other for other in main if other != value], _near(points, [value], MAIN_DISTANCE)
        if (
            _between(_points(np.array([value])), others, _BLEND_DISTANCE)[0]
            and pixels[near_value].sum() < _BLENDS_SHARE * total
        ):
            doubtful.append(value)
    main = [value for value in main if value not in doubtful]
    explained = _between(points, main, _BLEND_DISTANCE) & ~_near(points, doubtful, MAIN_DISTANCE)
    if len(main) >= 2 and pixels[~explained].sum() <= _UNEXPLAINED_SHARE * total:
        explained = _near(points, main, _BLEND_DISTANCE)
        if pixels[~explained].sum() <= _BLENDS_SHARE * total:
            return
    explained = explained[inverse]
    share = tally.pixels[~explained].sum() / total
    rest = tally[~explained]
    if not main:
        raise DataError(
            _(
                "the masks contain {count} colours, and none is common ({table}): are these photographs instead "
                'of masks? If not, name every class: --values "#rrggbb=name,...,*=nearest"'
            ).format(count=len(tally.codes), table=value_table(rest, "color", int(total))),
            key="data.values",
        )
    names = make_label_map(main, None, "color").names if main else ()
    known = [f"#{value:06x}={name}" for value, name in zip(main, names, strict=True)]
    extra = [int(rest.codes[rest.pixels.argmax()])] if len(rest.codes) and len(main) < LISTED else []
    raise DataError(
        _(
            "the masks contain {count} colours; {known} are common, but {share:.1%} of the pixels have "
            "others ({table}), which noise and resampling do not explain: name every class, such as --values "
            '"{suggestion},*=nearest"; or check whether these are photographs instead of masks'
        ).format(
            count=len(tally.codes),
            known=format_values(main, "color", LISTED),
            share=share,
            table=value_table(rest, "color", int(total)),
            suggestion=",".join([*known, *(f"#{value:06x}=name" for value in extra)]),
        ),
        key="data.values",
    )
