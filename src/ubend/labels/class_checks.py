"""Checks of a class table against the masks: remarks, or an error where the masks contradict it."""

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.i18n import _, ngettext
from ubend.labels.class_table import (
    IGNORED,
    ROUNDING_REACH,
    LabelMap,
)
from ubend.labels.label_values import LISTED, LabelScan, ValueKind, format_values, value_table
from ubend.labels.value_table import write_table

_SLIP_SHARE = 1e-4  # an unnamed class with less than this fraction of all pixels may be a slip
_FEW_BACKGROUND, _MOST_PIXELS = 0.2, 0.6  # fractions of all pixels: value 0 is then perhaps not the background
FEW_CLASSES = 12  # more consecutive values than this in each mask are object ids
_MOST_BETWEEN = 0.5  # of the pixels of lossless masks: resampling and soft edges give far fewer
_LOST_SHARE = 0.05  # more in-between colours than this fraction of all pixels make a data set ambiguous


def describe_absent(label_scan: LabelScan, labels: LabelMap) -> list[str]:
    """A remark on classes that occur in no mask."""
    index, _found = labels.classify(label_scan.tally(labels.kind).codes)
    absent = [name for position, name in enumerate(labels.names) if position not in set(index.tolist())]
    line = _(
        "classes that occur in no mask ({count}): {names}; they cannot be learnt, and where they are predicted they "
        "score 0; leave them out of --classes or --values"
    )
    names = ", ".join(absent[:LISTED] + ["..."] * (len(absent) > LISTED))
    return [line.format(count=len(absent), names=names)] if absent else []


def describe_background(label_scan: LabelScan, labels: LabelMap) -> list[str]:
    """A remark on unnamed classes the first of which has few pixels, although another one has most of them."""
    tally = label_scan.tally(labels.kind)
    share = np.bincount(labels.classify(tally.codes)[0], tally.pixels, 256)[: labels.classes] / tally.pixels.sum()
    largest = int(share.argmax())
    if labels.kind == "color" or share[0] > _FEW_BACKGROUND or share[largest] < _MOST_PIXELS:
        return []
    others = [codes for index, codes in enumerate(labels.codes) if index != largest]
    line = _(
        "the value {value} is taken as background, although only {share:.1%} of the pixels have it, and {most:.0%} the "
        'value {other}; if that is the background: --values "{suggestion}"'
    )
    background, other = (format_values(labels.codes[index], labels.kind) for index in (0, largest))
    entries = zip([labels.codes[largest], *others], labels.names, strict=True)
    suggestion = ",".join(f"{value}={name}" for values, name in entries for value in values)
    return [line.format(value=background, share=share[0], most=share[largest], other=other, suggestion=suggestion)]


def describe_stray(label_scan: LabelScan, labels: LabelMap) -> list[str]:
    """A remark on unnamed classes with so few pixels that they may be annotation slips."""
    tally = label_scan.tally(labels.kind)
    share = np.bincount(labels.classify(tally.codes)[0], tally.pixels, 256)[: labels.classes] / tally.pixels.sum()
    stray = [index for index in np.flatnonzero((share > 0) & (share < _SLIP_SHARE)).tolist() if labels.codes[index]]
    if not stray or labels.classes - len(stray) < 2:  # the rarer one of two classes may be small
        return []
    suggestion = replace(
        labels,
        names=tuple(name for index, name in enumerate(labels.names) if index not in stray),
        codes=tuple(values for index, values in enumerate(labels.codes) if index not in stray),
        ignored=(*labels.ignored, *(value for index in stray for value in labels.codes[index])),
    )
    line = _(
        "classes with very few pixels ({names}): if these are annotation errors, correct the masks, or "
        'ignore the pixels: --values "{suggestion}"'
    )
    texts = (f"{labels.names[index]} {share[index]:.4%}" for index in stray[:LISTED])
    return [line.format(names=", ".join(texts), suggestion=",".join(write_table(suggestion)))]


def describe_alike(labels: LabelMap) -> list[str]:
    """A remark on classes whose names differ only by case, spaces, hyphens or underscores."""
    plain = [re.sub(r"[\s_-]+", "", name.casefold()) for name in labels.names]
    alike = [name for name, word in zip(labels.names, plain, strict=True) if plain.count(word) > 1]
    first = dict(zip(reversed(plain), reversed(labels.names), strict=True))
    joined = replace(labels, names=tuple(map(str, range(labels.classes))))  # whose names differ
    table = [text.partition("=") for text in write_table(joined)]
    suggestion = ",".join(
        f"{values}={first[plain[int(name)]] if name.isdecimal() else name}" for values, _equals, name in table
    )
    line = _(
        "classes whose names differ only by case or spaces ({names}) stay separate; to merge them: --values "
        '"{suggestion}"'
    )
    return [line.format(names=", ".join(map(repr, alike[:LISTED])), suggestion=suggestion)] if alike else []


def check_overlaps(label_scan: LabelScan, labels: LabelMap) -> list[str]:
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


def refuse_other_lossless(label_scan: LabelScan, labels: LabelMap) -> None:
    """Fail if JPEG masks determined the classes, but lossless masks in the set have other label values."""
    if not label_scan.lossy.any():
        return
    entries, count = label_scan.entries(labels.kind), np.diff(label_scan.starts)
    exact = ~label_scan.lossy[label_scan.mask_of] & (count[label_scan.mask_of] <= FEW_CLASSES)
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


def check_in_between(label_scan: LabelScan, labels: LabelMap) -> list[str]:
    """Remarks on label values between classes.

    Raises:
        DataError: they are too many to be noise.
    """
    tally, remarks = label_scan.tally(labels.kind), list[str]()
    index, known_values = labels.classify(tally.codes)
    known_values &= ~np.isin(tally.codes, [value for values in (*labels.codes, labels.ignored) for value in values])
    moved, lost = known_values & (index != IGNORED), known_values & (index == IGNORED)
    total = int(tally.pixels.sum())
    if labels.reach and (share := _share_between(label_scan, labels.kind, tally.codes[moved])) > _MOST_BETWEEN:
        line = _(
            "{share:.0%} of the pixels of the masks have values between those of the classes ({classes}): are these "
            "photographs instead of masks? Name the folder of the masks with --masks, or every class with --values"
        )
        raise DataError(line.format(share=share, classes=labels.describe()), key="data.values")
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
                    '--values "{suggestion}"'
                ).format(
                    share=share,
                    classes=labels.describe(),
                    table=value_table(tally[lost], labels.kind, total),
                    suggestion=",".join(f"#{values_of[0]:06x}={name}" for values_of, name in known),
                ),
                key="data.values",
            )
        remarks.append(
            _("{count} pixels ({share:.2%}) with in-between colours are not scored").format(
                count=int(tally.pixels[lost].sum()), share=share
            )
        )
    return remarks


def _share_between(label_scan: LabelScan, kind: ValueKind, between: NDArray[np.int32]) -> float:
    """The fraction of pixels with these values in masks without the noise of JPEG, 0..1."""
    lossless = ~label_scan.lossy[label_scan.mask_of]
    has_value = np.isin(label_scan.entries(kind), between)
    return float(label_scan.pixels[lossless & has_value].sum() / max(1, label_scan.pixels[lossless].sum()))


def find_unknown_values(label_scan: LabelScan, labels: LabelMap) -> dict[int, NDArray[np.int32]]:
    """Index of a mask -> its label values that are not in the class table (-1: of another kind)."""
    entries = label_scan.entries(labels.kind)
    unique, inverse = np.unique(entries, return_inverse=True)
    _index, known = labels.classify(unique.astype(np.int32))
    unknown = ~known[inverse]
    mask_numbers = label_scan.mask_of[unknown]
    masks, first = np.unique(mask_numbers, return_index=True)
    return dict(zip(masks.tolist(), np.split(entries[unknown], first[1:]), strict=True)) if len(masks) else {}
