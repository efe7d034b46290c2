"""The class table of a data set, from what its masks hold and what is told.

What is told goes before what is found: `--values` (codes and names), then `--classes` (names), then a
class table in the folder. What cannot be read with certainty is an error that shows what the masks hold
and the flag that settles it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ubend.errors import DataError
from ubend.language import _
from ubend.masks.codes import CodeKind, code_words
from ubend.masks.labels import (
    ANY_DISTANCE,
    IGNORED,
    MOST_CLASSES,
    NOISE_REACH,
    ROUNDING_REACH,
    LabelMap,
    make_label_map,
    refuse_reserved,
)
from ubend.masks.maincolors import MOST_FOUND, find_main_colors, find_main_values
from ubend.masks.survey import LISTED, Survey, Tally, value_table
from ubend.masks.valuetable import parse_table

_FEW_CLASSES = 12  # more values than this, counted up in each mask, are objects
_LOST_SHARE = 0.05  # of all pixels: more in-between colours than this make a set unclear


class _Noise(TypedDict):
    """What becomes of codes that are none of the classes'; see `LabelMap`."""

    reach: int
    others: int | None


@dataclass(frozen=True)
class Told:
    """What the user or the folder says of the classes; None where nothing is said.

    Attributes:
        table: `code=name` each, as of `--values`.
        names: class names in the order of the codes.
        values: the code of each class, when the layout tells them.
        colors: the colour of each class, from a table in the folder.
        ignored: values whose pixels are not scored, beside `values`.
    """

    table: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    values: tuple[int, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignored: tuple[int, ...] = ()


def find_classes(survey: Survey, told: Told) -> tuple[LabelMap, list[str]]:
    """What the codes of a data set mean, and remarks for the user.

    Raises:
        DataError: the masks do not tell which classes there are, or contradict what is told.
        SettingError: `--values` cannot be read.
    """
    remarks: list[str]
    if told.table is not None:
        labels, remarks = _allow_noise(parse_table(told.table), survey), []
    elif told.colors is not None and told.names is not None and _shows(survey, told.colors):
        labels, remarks = _by_color_table(told.names, told.colors, bool(survey.lossy.any()))
    elif told.values is not None:
        labels, remarks = _make(told.values, told.names, "value", ignored=told.ignored, reach=_reach(survey)), []
    elif told.colors is not None and survey.kind() == "value":
        labels, remarks = _by_number(survey, told.names, told.colors)
    elif survey.kind() == "value":
        labels, remarks = _find_values(survey, told.names)
    else:
        labels, remarks = _find_colors(survey, told.names)
    if labels.classes < 2:
        raise DataError(
            _(
                "all masks are empty: they hold the single value {value}; segmentation needs at least two "
                "classes, so check that these are the right masks"
            ).format(value=code_words(labels.codes[0], labels.kind) if labels.codes else "-"),
            key="data.masks",
        )
    if told.table is None:
        _refuse_other_lossless(survey, labels)
    return labels, [*remarks, *_snapped(survey, labels)]


def _make(
    codes: Sequence[int],
    names: Sequence[str] | None,
    kind: CodeKind,
    *,
    ignored: tuple[int, ...] = (),
    reach: int = 0,
    others: int | None = None,
    colors: tuple[tuple[int, int, int], ...] | None = None,
) -> LabelMap:
    """A label map of one code per class; names are made up when None.

    Raises:
        DataError: too many or too few names, or one twice.
    """
    refuse_reserved(names or ())
    if len(codes) > MOST_CLASSES:
        raise DataError(
            _("the masks hold {count} classes; at most {most} can be learnt").format(
                count=len(codes), most=MOST_CLASSES
            ),
            key="data.classes",
        )
    if names is None:
        return make_label_map(codes, None, kind, ignored=ignored, reach=reach, others=others, colors=colors)
    if len(names) != len(codes):
        raise DataError(
            _(
                "the masks hold {found} classes ({values}) but {given} class names were given ({names}); "
                "give one name per value with --classes"
            ).format(found=len(codes), values=code_words(codes, kind, 64), given=len(names), names=", ".join(names)),
            key="data.classes",
        )
    if len(set(names)) < len(names):
        raise DataError(
            _("class names must differ, but they are: {names}; mend --classes").format(names=", ".join(names)),
            key="data.classes",
        )
    return make_label_map(codes, names, kind, ignored=ignored, reach=reach, others=others, colors=colors)


def _shows(survey: Survey, colors: Sequence[tuple[int, int, int]]) -> bool:
    """Are the masks painted in the colours of a table? Grey ids and palettes of other colours are not."""
    if survey.kind() == "color":
        return True
    known = [r << 16 | g << 8 | b for r, g, b in colors]
    return bool(np.isin(survey.shown, known).all())


def _by_color_table(
    names: Sequence[str], colors: tuple[tuple[int, int, int], ...], lossy: bool
) -> tuple[LabelMap, list[str]]:
    codes = [r << 16 | g << 8 | b for r, g, b in colors]
    if len(set(codes)) < len(codes):
        raise DataError(_("the class table of the folder gives one colour to two classes; mend it"), key="class table")
    if lossy:
        return _make(codes, names, "color", **_noise(codes), colors=colors), []
    return _make(codes, names, "color", reach=ROUNDING_REACH, colors=colors), []


def _by_number(
    survey: Survey, names: Sequence[str] | None, colors: tuple[tuple[int, int, int], ...]
) -> tuple[LabelMap, list[str]]:
    """A class table with colours, and masks that hold the numbers of its lines; 255 beside them is ignored."""
    ignored = (255,) if 255 in survey.codes and len(colors) <= 255 else ()
    labels = _make(range(len(colors)), names, "value", ignored=ignored, reach=_reach(survey), colors=colors)
    return labels, [_remark_255()] if ignored else []


def _remark_255() -> str:
    return _("mask value 255 beside class numbers: its pixels are not scored")


def _noise(classes: Sequence[object]) -> _Noise:
    """Between two colours, each pixel belongs to the nearer one; a blend of two of many may look like a third."""
    if len(classes) == 2:
        return {"reach": ANY_DISTANCE, "others": None}
    return {"reach": NOISE_REACH, "others": IGNORED}


def _allow_noise(labels: LabelMap, survey: Survey) -> LabelMap:
    """The labels of `--values` for JPEG masks, when nothing is said of other codes."""
    if not survey.lossy.any() or labels.reach > ROUNDING_REACH or labels.others is not None:
        return labels
    if labels.kind == "value":
        return replace(labels, reach=ANY_DISTANCE)
    return replace(labels, **_noise(labels.names))


def _reach(survey: Survey) -> int:
    return ANY_DISTANCE if survey.lossy.any() else 0


def _find_values(survey: Survey, names: Sequence[str] | None) -> tuple[LabelMap, list[str]]:
    """Masks of values: two of them, numbers in a row, evenly spaced ones, or JPEG noise around a few."""
    tally = survey.tally("value")
    if survey.lossy.any():
        return _make(find_main_values(tally), names, "value", reach=ANY_DISTANCE), []
    values = tally.codes.tolist()
    if names is not None and len(names) == len(values):
        return _make(values, names, "value"), []
    if len(values) > MOST_FOUND or _count_objects(survey, values):
        raise DataError(
            _(
                "the masks hold {count} different values ({table}): numbered objects (--values "
                '"{objects}"), a resampled mask (--values "{resampled}"), or a photograph that is no mask'
            ).format(
                count=len(values),
                table=value_table(tally, "value"),
                objects="0=background,*=object",
                resampled="0=background,255=object,*=nearest",
            ),
            key="data.values",
        )
    if len(values) > 2 and values[-1] == 255 and _is_run(values[:-1]):
        _refuse_mixed(survey, tally)
        return _make(values[:-1], names, "value", ignored=(255,)), [_remark_255()]
    if names is None and not _is_even(values):
        raise DataError(
            _(
                "the masks hold {count} values that do not tell the classes: {table}; if each is a class, name them: "
                '--values "{cure}"; if they come from resampling, add *=nearest to the true ones'
            ).format(
                count=len(values),
                table=value_table(tally, "value"),
                cure=",".join(f"{value}=name{number}" for number, value in enumerate(values[:LISTED], 1)),
            ),
            key="data.values",
        )
    return _make(values, names, "value"), []


def _refuse_mixed(survey: Survey, tally: Tally) -> None:
    """Fail when some masks hold classes, and others 0 and 255: then 255 may be a class, not pixels to be ignored."""
    first = int(tally.codes[0])
    classed = set(survey.mask_of[(survey.codes > first) & (survey.codes < 255)].tolist())
    whites = set(survey.mask_of[survey.codes == 255].tolist())
    if not classed & whites:
        named = [f"{code}=class {i}" if i else f"{code}=background" for i, code in enumerate(tally.codes[:-1].tolist())]
        raise DataError(
            _(
                "{classed} masks hold {codes}, {whites} hold 255, no mask holds both: is 255 a class (--values "
                '"{table},255=class 1"), or is it not to be scored (--values "{table},255=ignored")?'
            ).format(
                classed=len(classed),
                codes=code_words(tally.codes[1:-1].tolist(), "value"),
                whites=len(whites),
                table=",".join(named),
            ),
            key="data.values",
        )


def _count_objects(survey: Survey, values: list[int]) -> bool:
    """Do the values count objects up in each mask (1, 2, ..., k), with another k in each?"""
    if len(values) <= _FEW_CLASSES or not _is_run(values):
        return False
    tops = []
    for number in range(len(survey)):
        mine = survey.codes[survey.starts[number] : survey.starts[number + 1]]
        mine = mine[mine > 0]
        if len(mine) and not _is_run([0, *mine.tolist()]):
            return False
        tops.append(len(mine))
    return len(set(tops)) > 2


def _find_colors(survey: Survey, names: Sequence[str] | None) -> tuple[LabelMap, list[str]]:
    """Masks of colours: each a class, when they are few; else the main ones, with noise or blends around them."""
    tally = survey.tally("color")
    if -1 in tally.codes:
        raise DataError(
            _(
                "{colored} masks are coloured, {deep} others hold values above 255, which are no colours; "
                "save all alike"
            ).format(
                colored=int(survey.colored.sum()), deep=len(np.unique(survey.mask_of[survey.entries("color") == -1]))
            ),
            key="color",
        )
    remarks = []
    if not survey.colored.any():
        remarks.append(
            _("the palettes of the masks differ, so their colours are read, not their indices")
            if survey.palettes_differ()
            else _("the palettes of the masks run from light to dark, so their greys are read, not their indices")
        )
    codes, noisy = find_main_colors(tally, bool(survey.lossy.any()))
    if noisy:
        labels = _make(codes, names, "color", **_noise(codes))
    else:
        labels = _make(codes, names, "color", reach=ROUNDING_REACH)
    if names is None:
        remarks.append(
            _('the classes are named by their colours; name them yourself: --values "{table}"').format(
                table=",".join(f"#{some[0]:06x}={name}" for some, name in zip(labels.codes, labels.names, strict=True))
            )
        )
    return labels, remarks


def _is_run(values: list[int]) -> bool:
    """Are these consecutive numbers?"""
    return values == list(range(values[0], values[0] + len(values)))


def _is_even(values: list[int]) -> bool:
    """Are these consecutive or evenly spaced? 0, 128, 255 is, but for the rounding."""
    steps = np.diff(values)
    return len(steps) == 0 or bool(steps.max() == steps.min() or (steps.max() - steps.min() == 1 and steps.min() >= 8))


def _refuse_other_lossless(survey: Survey, labels: LabelMap) -> None:
    """Fail when JPEG masks settled the classes, but masks beside them hold other codes, saved exactly: no noise."""
    if not survey.lossy.any():
        return
    entries, count = survey.entries(labels.kind), np.diff(survey.starts)
    exact = ~survey.lossy[survey.mask_of] & (count[survey.mask_of] <= _FEW_CLASSES)
    codes = np.unique(entries[exact | (survey.codes > 255) & ~survey.colored[survey.mask_of]])
    _index, known = replace(labels, reach=ROUNDING_REACH if labels.kind == "color" else 0, others=None).classify(codes)
    if not known.all():
        raise DataError(
            _(
                "JPEG masks hold about {known}, but masks beside them, saved without loss, hold {others}: are they "
                "coded differently? Say what each code means with --values, or keep masks of one kind"
            ).format(known=labels.describe(), others=code_words(codes[~known].tolist(), labels.kind, LISTED)),
            key="data.values",
        )


def _snapped(survey: Survey, labels: LabelMap) -> list[str]:
    """What became of codes that are none of the classes'; an error when they are too many to be noise."""
    tally = survey.tally(labels.kind)
    exact = np.isin(tally.codes, [code for codes in (*labels.codes, labels.ignored) for code in codes])
    index, found = labels.classify(tally.codes)
    total, remarks = int(tally.pixels.sum()), []
    moved = found & ~exact & (index != IGNORED)
    lost = found & ~exact & (index == IGNORED)
    if moved.any() and labels.reach:
        remarks.append(
            _("{count} pixels ({share:.2%}) with {kinds} in-between values went to the nearest class").format(
                count=int(tally.pixels[moved].sum()), share=tally.pixels[moved].sum() / total, kinds=int(moved.sum())
            )
        )
    share = tally.pixels[lost].sum() / total
    if lost.any() and labels.reach and share > _LOST_SHARE:
        raise DataError(
            _(
                "{share:.1%} of the pixels hold colours that are none of {classes}: {table}; name every class: "
                '--values "{cure}"'
            ).format(
                share=share,
                classes=labels.describe(),
                table=value_table(Tally(tally.codes[lost], tally.pixels[lost], tally.masks[lost]), labels.kind, total),
                cure=",".join(f"#{some[0]:06x}={name}" for some, name in zip(labels.codes, labels.names, strict=True)),
            ),
            key="data.values",
        )
    if lost.any() and labels.reach:
        remarks.append(
            _("{count} pixels ({share:.2%}) with in-between colours are not scored").format(
                count=int(tally.pixels[lost].sum()), share=share
            )
        )
    return remarks


def find_strangers(survey: Survey, labels: LabelMap) -> dict[int, NDArray[np.int32]]:
    """Number of a mask -> its codes that the class table does not know (-1: of another kind)."""
    entries = survey.entries(labels.kind)
    unique, which = np.unique(entries, return_inverse=True)
    _index, found = labels.classify(unique.astype(np.int32))
    strange = ~found[which]
    mine = survey.mask_of[strange]
    numbers, first = np.unique(mine, return_index=True)
    return dict(zip(numbers.tolist(), np.split(entries[strange], first[1:]), strict=True)) if len(numbers) else {}
