"""Finds the class table of a data set, from its masks and from what the user or the folder states.

Stated classes take precedence: `--values` (label values and names), then `--classes` (names), then a class table in
the folder. Ambiguous masks are an error that shows their label values and the flag that resolves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.labels.class_checks import (
    FEW_CLASSES,
    check_in_between,
    check_overlaps,
    describe_absent,
    describe_alike,
    describe_background,
    describe_stray,
    refuse_other_lossless,
)
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
from ubend.labels.main_values import MAX_FOUND, find_main_colors, find_main_values
from ubend.labels.value_table import parse_table

_ONE_VALUE_SHARE = 0.9  # of all pixels: masks of JPEG whose most frequent value has less are not empty


@dataclass(frozen=True)
class LabelHints:
    """What the user or the folder states about the classes; None: not stated.

    Attributes:
        table: `VALUE=NAME` each, see `--values`.
        names: class names in the order of the label values, or of the classes of `table`.
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
        labels, remarks = _allow_noise(parse_table(hints.table, hints.names), label_scan), []
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
        refuse_other_lossless(label_scan, labels)
    unnamed = hints.table is None and hints.names is None
    stray = (*describe_background(label_scan, labels), *describe_stray(label_scan, labels)) if unnamed else ()
    checks = (*check_overlaps(label_scan, labels), *check_in_between(label_scan, labels))
    more = (*stray, *describe_alike(labels), *checks)
    return labels, [*describe_absent(label_scan, labels), *remarks, *more]


def _with_palette(label_scan: LabelScan, labels: LabelMap) -> LabelMap:
    """Use the palette's colours for classes of palette indices, unless it is grey or has duplicate colours."""
    display_colors = dict(zip(label_scan.codes.tolist(), label_scan.display_colors.tolist(), strict=True))
    colors = (
        [display_colors[values[0]] for values in labels.codes if values[0] in display_colors]
        if labels.kind == "value"
        else []
    )
    plain = len(colors) < labels.classes or len(set(colors)) < len(colors) or not label_scan.with_palette.all()
    if plain or all(r == g == b for r, g, b in map(unpack_color, colors)):
        return labels
    return replace(labels, colors=tuple(map(unpack_color, colors)))


def _shows(label_scan: LabelScan, colors: Sequence[tuple[int, int, int]]) -> bool:
    """Whether the masks use the colours of a table; grey ids and palettes of other colours do not."""
    if label_scan.kind() == "color":
        return True
    known = [r << 16 | g << 8 | b for r, g, b in colors]
    return bool(np.isin(label_scan.display_colors, known).all())


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
        values = find_main_values(tally, None if names is None else len(names))
        if len(values) < 2 and tally.pixels.max() < _ONE_VALUE_SHARE * tally.pixels.sum():
            line = _("the values of these JPEG masks ({table}) are too close to tell from noise; save the masks as PNG")
            raise DataError(line.format(table=value_table(tally, "value")), key="data.masks")
        names, remarks = _with_background(names, values)
        return make_label_map(values, names, reach=ANY_DISTANCE), remarks
    values = tally.codes.tolist()
    if names is not None and len(names) == len(values):
        return make_label_map(values, names), []
    has_ignored = len(values) > 2 and values[-1] == 255 and _is_run(values[:-1])
    names, remarks = _with_background(names, values[:-1] if has_ignored else values)
    if remarks and not has_ignored:
        return make_label_map(values, names), remarks
    if names is not None and len(names) > len(values) and (numbered := _number_names(names, values)):
        return numbered
    if len(values) > MAX_FOUND or _are_object_ids(label_scan, values):
        line = _(
            "the masks contain {count} different values ({table}), which are object ids or photographs instead of "
            'masks; of object ids: --values "{objects}" (touching objects then become one)'
        )
        if len(values) <= FEW_CLASSES:
            line = _(
                "the masks contain {count} different values ({table}), and each mask contains 1, 2, ... without a gap, "
                'so that they are probably object ids; of object ids: --values "{objects}" (touching objects then '
                'become one); if each is a class, name them: --values "{classes}"'
            )
        elif values[-1] <= 255:
            line = _(
                "the masks contain {count} different values ({table}), which are object ids, photographs instead of "
                'masks, or resampled; of object ids: --values "{objects}" (touching objects then become one); of '
                'resampled masks: --values "{resampled}"'
            )
        raise DataError(
            line.format(
                count=len(values),
                table=value_table(tally, "value"),
                objects="0=background,*=object",
                classes=",".join(f"{value}=class {value}" if value else "0=background" for value in values),
                resampled="0=background,255=object,*=nearest",
            ),
            key="data.values",
        )
    if has_ignored:
        _refuse_mixed(label_scan, tally)
        return make_label_map(values[:-1], names, ignored=(255,)), [*remarks, _remark_255()]
    if names is None and not _is_even(values):
        line = _(
            "the masks contain {count} values that do not define the classes: {table}; if each is a class, "
            'name them: --values "{suggestion}"; if some come from resampling, name only the true ones and add '
            '*=nearest; if they are object ids: --values "0=background,*=object"'
        )
        if len(values) > FEW_CLASSES and values[0] == 0 and tally.pixels[-1] > tally.pixels[1:-1].sum():
            line = _(
                "the masks contain {count} values that do not define the classes: {table}; if those between 0 and "
                '{last} are soft edges: --values "0=background,{last}=object,*=nearest"; if each is a class, name '
                'them: --values "{suggestion}"'
            )
        raise DataError(
            line.format(
                count=len(values),
                table=value_table(tally, "value"),
                last=values[-1],
                suggestion=",".join(
                    f"{value}=ignored" if value == 255 and 1 < values[-2] <= MAX_FOUND else f"{value}=name{number}"
                    for number, value in enumerate(values[:LISTED], 1)
                ),
            ),
            key="data.values",
        )
    return make_label_map(values, names), []


def _with_background(names: Sequence[str] | None, values: list[int]) -> tuple[Sequence[str] | None, list[str]]:
    """(the names, with a background for the value 0 if there are two values and one name; remarks)."""
    if names is None or len(names) != 1 or len(values) != 2 or values[0] != 0 or background_class(names) is not None:
        return names, []
    return ("background", *names), [_("the value 0 is taken as background, which the class names do not list")]


def _number_names(names: Sequence[str], values: list[int]) -> tuple[LabelMap, list[str]] | None:
    """The label map if there are more names than values: value k is name k, from 0; some classes occur in no mask.

    None: there are values beyond the names, or the names could also be numbered from 1.
    """
    white = values[-1] == 255 and len(names) < 256
    indices = values[:-1] if white else values
    from_zero = 0 in indices or background_class(names) == 0
    if len(indices) < 2 or indices[-1] >= len(names) or not from_zero:
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
    """Whether the values are object ids: 1, 2, ..., k in each mask, with varying k.

    Masks of classes lack one here and there; a few classes may happen to be nested, so that there k must vary more.
    """
    if not _is_run(values):
        return False
    objects = [codes[codes > 0].tolist() for codes in np.split(label_scan.codes, label_scan.starts[1:-1])]
    counts = {len(codes_of_mask) for codes_of_mask in objects}
    enough = len(counts) > 2 if len(values) > FEW_CLASSES else len(counts - {0}) > 3
    return enough and all(_is_run([0, *codes_of_mask]) for codes_of_mask in objects)


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
    line = _('the classes are named by their colours; name them yourself: --values "{table}"')
    if names is not None:
        line = _('the class names are given to the colours in ascending order; to name each: --values "{table}"')
    table = (f"#{codes[0]:06x}={name}" for codes, name in zip(labels.codes, labels.names, strict=True))
    remarks.append(line.format(table=",".join(table)))
    return labels, remarks


def _is_run(values: list[int]) -> bool:
    """Whether these are consecutive numbers."""
    return values == list(range(values[0], values[0] + len(values)))


def _is_even(values: list[int]) -> bool:
    """Whether these are consecutive or evenly spaced, within rounding, such as 0, 128, 255."""
    steps = np.diff(values)
    return len(steps) == 0 or bool(steps.max() == steps.min() or (steps.max() - steps.min() == 1 and steps.min() >= 8))
