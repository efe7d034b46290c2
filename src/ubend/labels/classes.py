"""Finds the class table of a data set, from its masks and from what the user or the folder states.

Stated classes take precedence: `--values` (label values and names), then `--classes` (names), then a class table in
the folder. Ambiguous masks are an error that shows their label values and the flag that resolves it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.i18n import _, ngettext
from ubend.labels.class_table import (
    ANY_DISTANCE,
    IGNORED,
    NOISE_REACH,
    ROUNDING_REACH,
    LabelMap,
    background_class,
    make_label_map,
)
from ubend.labels.label_values import LISTED, LabelScan, Tally, format_values, unpack_color, value_table
from ubend.labels.value_table import parse_table, write_table

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
_SLIP_SHARE = 1e-4  # an unnamed class with less than this fraction of all pixels may be a slip
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
                'classes, name them: --values "{cure},*=nearest"; if they are soft edges: --values '
                '"0=background,255=foreground,*=nearest"'
            ).format(
                levels=", ".join(shares),
                cure=",".join(f"{value}=name{number}" for number, value in enumerate([0, *levels, 255], 1)),
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
                'have other values; name them: --values "{cure},*=nearest"'
            ).format(
                table=value_table(tally, "value"),
                share=1 - explained / total,
                cure=",".join(f"{value}=name{number}" for number, value in enumerate(main, 1)),
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
                    '--values "{cure}"; otherwise give both of them the same name'
                ).format(
                    pair=format_values(pair, "color"),
                    table=value_table(tally, "color"),
                    cure=",".join(f"#{value:06x}=name{i}" for i, value in enumerate(tally.codes[:LISTED].tolist(), 1)),
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
            '"{cure},*=nearest"; or check whether these are photographs instead of masks'
        ).format(
            count=len(tally.codes),
            known=format_values(main, "color", LISTED),
            share=share,
            table=value_table(rest, "color", int(total)),
            cure=",".join([*known, *(f"#{value:06x}=name" for value in extra)]),
        ),
        key="data.values",
    )


_FEW_CLASSES = 12  # more consecutive values than this in each mask are object ids
_LOST_SHARE = 0.05  # more in-between colours than this fraction of all pixels make a data set ambiguous


@dataclass(frozen=True)
class LabelHints:
    """What the user or the folder states about the classes; None: not stated.

    Attributes:
        table: `VALUE=NAME` each, see `--values`.
        names: class names in the order of the label values.
        values: the label value of each class, from the layout.
        colors: the colour of each class, from a class table in the folder.
        ignored: label values whose pixels are not scored.
    """

    table: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    values: tuple[int, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignored: tuple[int, ...] = ()


def find_classes(label_scan: LabelScan, hints: LabelHints) -> tuple[LabelMap, list[str]]:
    """(label map of a data set, remarks for the user).

    Raises:
        DataError: the masks do not define the classes, or contradict what is stated.
        SettingError: `--values` cannot be read.
    """
    remarks: list[str]
    if hints.table is not None:
        labels, remarks = _allow_noise(parse_table(hints.table), label_scan), []
    elif hints.colors is not None and hints.names is not None and _shows(label_scan, hints.colors):
        labels, remarks = _by_color_table(hints.names, hints.colors, bool(label_scan.lossy.any())), []
    elif hints.values is not None:
        reach = ANY_DISTANCE if label_scan.lossy.any() else 0
        labels, remarks = make_label_map(hints.values, hints.names, ignored=hints.ignored, reach=reach), []
    elif hints.colors is not None and label_scan.kind() == "value":  # masks contain the line numbers of the table
        reach = ANY_DISTANCE if label_scan.lossy.any() else 0
        ignored = (255,) if 255 in label_scan.codes and len(hints.colors) <= 255 else ()
        values = range(len(hints.colors))
        labels = make_label_map(values, hints.names, ignored=ignored, reach=reach, colors=hints.colors)
        remarks = [_remark_255()] if ignored else []
    elif label_scan.kind() == "value":
        labels, remarks = _find_values(label_scan, hints.names)
    else:
        labels, remarks = _find_colors(label_scan, hints.names)
    if hints.table is None and hints.colors is None:
        labels = _with_palette(label_scan, labels)
    if labels.classes < 2:
        raise DataError(
            _(
                "all masks are empty: they contain the single value {value}; segmentation needs at least two classes, "
                "so check that these are the right masks"
            ).format(value=format_values(labels.codes[0], labels.kind) if labels.codes else "-"),
            key="data.masks",
        )
    if hints.table is None:
        _refuse_other_lossless(label_scan, labels)
    stray = _describe_stray(label_scan, labels) if hints.table is None and hints.names is None else []
    checks = (*_check_overlaps(label_scan, labels), *_check_in_between(label_scan, labels))
    more = (*stray, *_describe_alike(labels), *checks)
    return labels, [*_describe_absent(label_scan, labels), *remarks, *more]


def _describe_absent(label_scan: LabelScan, labels: LabelMap) -> list[str]:
    """A remark on classes that occur in no mask."""
    index, _found = labels.classify(label_scan.tally(labels.kind).codes)
    absent = [name for number, name in enumerate(labels.names) if number not in set(index.tolist())]
    line = _("classes that occur in no mask ({count}): {names}; they cannot be learnt and get no score")
    names = ", ".join(absent[:LISTED] + ["..."] * (len(absent) > LISTED))
    return [line.format(count=len(absent), names=names)] if absent else []


def _describe_stray(label_scan: LabelScan, labels: LabelMap) -> list[str]:
    """A remark on unnamed classes with so few pixels that they may be annotation slips."""
    tally = label_scan.tally(labels.kind)
    share = np.bincount(labels.classify(tally.codes)[0], tally.pixels, 256)[: labels.classes] / tally.pixels.sum()
    stray = [number for number in np.flatnonzero((share > 0) & (share < _SLIP_SHARE)).tolist() if labels.codes[number]]
    if not stray or labels.classes - len(stray) < 2:  # the rarer one of two classes may be small
        return []
    cure = replace(
        labels,
        names=tuple(name for number, name in enumerate(labels.names) if number not in stray),
        codes=tuple(values for number, values in enumerate(labels.codes) if number not in stray),
        ignored=(*labels.ignored, *(value for number in stray for value in labels.codes[number])),
    )
    line = _(
        "classes with very few pixels ({names}): if these are annotation errors, correct the masks, or "
        'ignore the pixels: --values "{cure}"'
    )
    texts = (f"{labels.names[number]} {share[number]:.4%}" for number in stray[:LISTED])
    return [line.format(names=", ".join(texts), cure=",".join(write_table(cure)))]


def _describe_alike(labels: LabelMap) -> list[str]:
    """A remark on classes whose names differ only by case, spaces, hyphens or underscores."""
    plain = [re.sub(r"[\s_-]+", "", name.casefold()) for name in labels.names]
    alike = [name for name, word in zip(labels.names, plain, strict=True) if plain.count(word) > 1]
    first = dict(zip(reversed(plain), reversed(labels.names), strict=True))
    joined = replace(labels, names=tuple(map(str, range(labels.classes))))  # whose names differ
    table = [text.partition("=") for text in write_table(joined)]
    cure = ",".join(
        f"{values}={first[plain[int(name)]] if name.isdecimal() else name}" for values, _equals, name in table
    )
    line = _(
        'classes whose names differ only by case or spaces ({names}) stay separate; to merge them: --values "{cure}"'
    )
    return [line.format(names=", ".join(map(repr, alike[:LISTED])), cure=cure)] if alike else []


def _check_overlaps(label_scan: LabelScan, labels: LabelMap) -> list[str]:
    """A remark on classes whose regions overlap.

    Raises:
        DataError: a class is covered completely.
    """
    if labels.kind == "color" or not len(label_scan.covered):
        return []
    below, above = (labels.classify(label_scan.covered[:, column].astype(np.int32))[0] for column in (1, 2))
    tally = label_scan.tally("value")
    left = np.bincount(labels.classify(tally.codes)[0], tally.pixels, 256)
    texts, lost = list[str](), dict[str, list[str]]()
    for lower, upper_class in sorted({*zip(below.tolist(), above.tolist(), strict=True)}):
        if lower == upper_class or IGNORED in (lower, upper_class):
            continue
        here = label_scan.covered[(below == lower) & (above == upper_class)]
        name, upper, pixels = labels.names[lower], labels.names[upper_class], int(here[:, 3].sum())
        whole = left[lower] + label_scan.covered[(below == lower) & (above != lower), 3].sum()
        line = ngettext(
            "{upper} on {name} in {count} image, {share:.1%} of its pixels",
            "{upper} on {name} in {count} images, {share:.1%} of its pixels",
            len(np.unique(here[:, 0])),
        )
        texts.append(line.format(upper=upper, name=name, count=len(np.unique(here[:, 0])), share=pixels / whole))
        if not left[lower]:
            lost.setdefault(name, []).append(upper)
    if lost:
        name, others = next(iter(lost.items()))
        raise DataError(
            _(
                "the class {name} is covered completely by {others} in every mask; remove the masks of one of the "
                "two, or redraw them so that they do not overlap"
            ).format(name=name, others=", ".join(others)),
            key="data.masks",
        )
    line = _(
        "regions of several classes overlap ({found}); in each image a smaller mask covers a larger one, and a "
        "later annotation covers an earlier one (COCO: the smaller covers the larger)"
    )
    return [line.format(found="; ".join(texts[:LISTED] + ["..."] * (len(texts) > LISTED)))] if texts else []


def _with_palette(label_scan: LabelScan, labels: LabelMap) -> LabelMap:
    """Use the palette's colours for classes of palette indices, unless it is grey or has duplicate colours."""
    shown = dict(zip(label_scan.codes.tolist(), label_scan.shown.tolist(), strict=True))
    colors = [shown[values[0]] for values in labels.codes if values[0] in shown] if labels.kind == "value" else []
    plain = len(colors) < labels.classes or len(set(colors)) < len(colors) or not label_scan.with_palette.all()
    if plain or all(r == g == b for r, g, b in map(unpack_color, colors)):
        return labels
    return replace(labels, colors=tuple(map(unpack_color, colors)))


def _shows(label_scan: LabelScan, colors: Sequence[tuple[int, int, int]]) -> bool:
    """Whether the masks use the colours of a table; grey ids and palettes of other colours do not."""
    if label_scan.kind() == "color":
        return True
    known = [r << 16 | g << 8 | b for r, g, b in colors]
    return bool(np.isin(label_scan.shown, known).all())


def _by_color_table(names: Sequence[str], colors: tuple[tuple[int, int, int], ...], lossy: bool) -> LabelMap:
    values = [r << 16 | g << 8 | b for r, g, b in colors]
    if len(set(values)) < len(values):
        raise DataError(
            _("the class table in the folder gives two classes the same colour; correct it"), key="class table"
        )
    labels = make_label_map(values, names, "color", reach=ROUNDING_REACH, colors=colors)
    return _with_noise(labels) if lossy else labels


def _remark_255() -> str:
    return _("mask value 255 in addition to class numbers: its pixels are not scored")


def _with_noise(labels: LabelMap) -> LabelMap:
    """The label map for noisy masks: values and two colours go to the nearest class; blends of more are ignored."""
    if labels.kind == "value" or labels.classes == 2:
        return replace(labels, reach=ANY_DISTANCE, others=None)
    return replace(labels, reach=NOISE_REACH, others=IGNORED)


def _allow_noise(labels: LabelMap, label_scan: LabelScan) -> LabelMap:
    """The label map of `--values` for JPEG masks: without an entry `*=...`, other values go to the nearest class."""
    explicit = labels.reach > ROUNDING_REACH or labels.others is not None
    return labels if explicit or not label_scan.lossy.any() else _with_noise(labels)


def _find_values(label_scan: LabelScan, names: Sequence[str] | None) -> tuple[LabelMap, list[str]]:
    """Find the classes in masks of values: two, consecutive, or evenly spaced values, or a few with JPEG noise."""
    tally = label_scan.tally("value")
    if label_scan.lossy.any():
        classes = None if names is None else len(names)
        return make_label_map(find_main_values(tally, classes), names, reach=ANY_DISTANCE), []
    values = tally.codes.tolist()
    if names is not None and len(names) == len(values):
        return make_label_map(values, names), []
    if names is not None and len(names) > len(values) and (numbered := _number_names(names, values)):
        return numbered
    if len(values) > MAX_FOUND or _are_object_ids(label_scan, values):
        raise DataError(
            _(
                'the masks contain {count} different values ({table}): object ids (--values "{objects}"; '
                'touching objects then become one), resampled masks (--values "{resampled}"), or photographs instead '
                "of masks"
            ).format(
                count=len(values),
                table=value_table(tally, "value"),
                objects="0=background,*=object",
                resampled="0=background,255=object,*=nearest",
            ),
            key="data.values",
        )
    if len(values) > 2 and values[-1] == 255 and _is_run(values[:-1]):
        _refuse_mixed(label_scan, tally)
        return make_label_map(values[:-1], names, ignored=(255,)), [_remark_255()]
    if names is None and not _is_even(values):
        raise DataError(
            _(
                "the masks contain {count} values that do not define the classes: {table}; if each is a class, "
                'name them: --values "{cure}"; if some come from resampling, name only the true ones and add '
                "*=nearest"
            ).format(
                count=len(values),
                table=value_table(tally, "value"),
                cure=",".join(
                    f"{value}=ignored" if value == 255 and 1 < values[-2] <= MAX_FOUND else f"{value}=name{number}"
                    for number, value in enumerate(values[:LISTED], 1)
                ),
            ),
            key="data.values",
        )
    return make_label_map(values, names), []


def _number_names(names: Sequence[str], values: list[int]) -> tuple[LabelMap, list[str]] | None:
    """The label map if there are more names than values: value k is name k, from 0; some classes occur in no mask.

    None: there are values beyond the names, or the names could also be numbered from 1.
    """
    white = values[-1] == 255 and len(names) < 256
    numbers = values[:-1] if white else values
    from_zero = 0 in numbers or background_class(names) == 0
    if len(numbers) < 2 or numbers[-1] >= len(names) or not from_zero:
        return None
    labels = make_label_map(range(len(names)), names, ignored=(255,) if white else ())
    return labels, [_remark_255()] if white else []


def _refuse_mixed(label_scan: LabelScan, tally: Tally) -> None:
    """Fail if some masks contain class numbers and others 0 and 255: then 255 may be a class or the ignored value."""
    first = int(tally.codes[0])
    classed = set(label_scan.mask_of[(label_scan.codes > first) & (label_scan.codes < 255)].tolist())
    whites = set(label_scan.mask_of[label_scan.codes == 255].tolist())
    if not classed & whites:
        named = [
            f"{value}=class {i}" if i else f"{value}=background" for i, value in enumerate(tally.codes[:-1].tolist())
        ]
        raise DataError(
            _(
                "masks with {values}: {classed}; with 255: {whites}; with both: none; if 255 is a "
                'class, give --values "{table},255=class 1"; if it is not to be scored, give --values '
                '"{table},255=ignored"'
            ).format(
                classed=len(classed),
                values=format_values(tally.codes[1:-1].tolist(), "value"),
                whites=len(whites),
                table=",".join(named),
            ),
            key="data.values",
        )


def _are_object_ids(label_scan: LabelScan, values: list[int]) -> bool:
    """Whether the values are object ids (1, 2, ..., k in each mask, with varying k)."""
    if len(values) <= _FEW_CLASSES or not _is_run(values):
        return False
    objects = [codes[codes > 0].tolist() for codes in np.split(label_scan.codes, label_scan.starts[1:-1])]
    return (
        all(_is_run([0, *codes_of_mask]) for codes_of_mask in objects)
        and len({len(codes_of_mask) for codes_of_mask in objects}) > 2
    )


def _find_colors(label_scan: LabelScan, names: Sequence[str] | None) -> tuple[LabelMap, list[str]]:
    """Find the classes in masks of colours: all colours if they are few, else the main ones among noise and blends."""
    tally = label_scan.tally("color")
    if -1 in tally.codes:
        raise DataError(
            _(
                "masks in colour: {colored}; with values above 255, which are not colours: {deep}; save "
                "all masks in the same way"
            ).format(
                colored=int(label_scan.colored.sum()),
                deep=len(np.unique(label_scan.mask_of[label_scan.entries("color") == -1])),
            ),
            key="color",
        )
    remarks = []
    if not label_scan.colored.any():
        remarks.append(
            _("the palettes of the masks differ, so their colours are used, not their indices")
            if label_scan.palettes_problem() == "differ"
            else _("the palettes of the masks go from light to dark, so their greys are used, not their indices")
        )
    values, noisy = find_main_colors(tally, bool(label_scan.lossy.any()))
    labels = make_label_map(values, names, "color", reach=ROUNDING_REACH)
    labels = _with_noise(labels) if noisy else labels
    if names is None:
        remarks.append(
            _('the classes are named by their colours; name them yourself: --values "{table}"').format(
                table=",".join(
                    f"#{codes[0]:06x}={name}" for codes, name in zip(labels.codes, labels.names, strict=True)
                )
            )
        )
    return labels, remarks


def _is_run(values: list[int]) -> bool:
    """Whether these are consecutive numbers."""
    return values == list(range(values[0], values[0] + len(values)))


def _is_even(values: list[int]) -> bool:
    """Whether these are consecutive or evenly spaced, within rounding, such as 0, 128, 255."""
    steps = np.diff(values)
    return len(steps) == 0 or bool(steps.max() == steps.min() or (steps.max() - steps.min() == 1 and steps.min() >= 8))


def _refuse_other_lossless(label_scan: LabelScan, labels: LabelMap) -> None:
    """Fail if JPEG masks determined the classes, but lossless masks in the set have other label values."""
    if not label_scan.lossy.any():
        return
    entries, count = label_scan.entries(labels.kind), np.diff(label_scan.starts)
    exact = ~label_scan.lossy[label_scan.mask_of] & (count[label_scan.mask_of] <= _FEW_CLASSES)
    values = np.unique(entries[exact | (label_scan.codes > 255) & ~label_scan.colored[label_scan.mask_of]])
    _index, known = replace(labels, reach=ROUNDING_REACH if labels.kind == "color" else 0, others=None).classify(values)
    if not known.all():
        raise DataError(
            _(
                "JPEG masks contain about {known}, but lossless masks in the same set contain {others}; give the "
                "meaning of each label value with --values, or use masks of one kind"
            ).format(known=labels.describe(), others=format_values(values[~known].tolist(), labels.kind, LISTED)),
            key="data.values",
        )


def _check_in_between(label_scan: LabelScan, labels: LabelMap) -> list[str]:
    """Remarks on label values between classes.

    Raises:
        DataError: they are too many to be noise.
    """
    tally, remarks = label_scan.tally(labels.kind), list[str]()
    index, known_values = labels.classify(tally.codes)
    known_values &= ~np.isin(tally.codes, [value for values in (*labels.codes, labels.ignored) for value in values])
    moved, lost = known_values & (index != IGNORED), known_values & (index == IGNORED)
    total = int(tally.pixels.sum())
    if moved.any() and labels.reach:
        remarks.append(
            _(
                "pixels with in-between values ({kinds} values, {count} pixels, {share:.2%}) were assigned to the "
                "nearest class"
            ).format(
                count=int(tally.pixels[moved].sum()), share=tally.pixels[moved].sum() / total, kinds=int(moved.sum())
            )
        )
    if lost.any() and labels.reach:
        share = tally.pixels[lost].sum() / total
        if share > _LOST_SHARE:
            known = zip(labels.codes, labels.names, strict=True)
            raise DataError(
                _(
                    "{share:.1%} of the pixels have colours other than {classes}: {table}; name every class: "
                    '--values "{cure}"'
                ).format(
                    share=share,
                    classes=labels.describe(),
                    table=value_table(tally[lost], labels.kind, total),
                    cure=",".join(f"#{values_of[0]:06x}={name}" for values_of, name in known),
                ),
                key="data.values",
            )
        remarks.append(
            _("{count} pixels ({share:.2%}) with in-between colours are not scored").format(
                count=int(tally.pixels[lost].sum()), share=share
            )
        )
    return remarks


def find_unknown_values(label_scan: LabelScan, labels: LabelMap) -> dict[int, NDArray[np.int32]]:
    """Index of a mask -> its label values that are not in the class table (-1: of another kind)."""
    entries = label_scan.entries(labels.kind)
    unique, inverse = np.unique(entries, return_inverse=True)
    _index, known = labels.classify(unique.astype(np.int32))
    unknown = ~known[inverse]
    mask_numbers = label_scan.mask_of[unknown]
    numbers, first = np.unique(mask_numbers, return_index=True)
    return dict(zip(numbers.tolist(), np.split(entries[unknown], first[1:]), strict=True)) if len(numbers) else {}
