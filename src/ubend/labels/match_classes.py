"""Matches the classes of a data set to those of a model: by name, never by number."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.labels.class_table import IGNORED, LabelMap, background_class
from ubend.labels.label_values import LabelScan, format_values

_GENERATED_NAME = ("background", "foreground")  # default names of two unnamed classes


def match_classes(labels: LabelMap, model: LabelMap, occurring: Collection[int], *, numbered: bool) -> LabelMap:
    """The label map of a data set in the order of the model's classes.

    Classes are matched by name, ignoring case and synonyms of background. A class that occurs, but that the model does
    not have, is an error, unless the model was trained on the same label values and merges several of them.

    Args:
        labels: classes and label values of a data set.
        model: classes and label values of the model's training data.
        occurring: indices of the classes of `labels` that occur.
        numbered: the label values are from mask files, not assigned while reading annotations.
    Raises:
        DataError: a class that the model does not have; `--values` resolves it.
    """
    target_of = {class_index: _find(name, labels, model) for class_index, name in enumerate(labels.names)}
    unknown = {class_index for class_index in occurring if target_of[class_index] is None}
    if unknown and labels.classes == model.classes == 2 and _GENERATED_NAME in (labels.names, model.names):
        first = background_class(labels.names), background_class(model.names)
        if first[0] is not None and first[1] is not None:
            target_of, unknown = {first[0]: first[1], 1 - first[0]: 1 - first[1]}, set()
    if unknown and numbered and labels.kind == model.kind:
        joined = _joined(labels, model, target_of, unknown)
        target_of, unknown = {**target_of, **joined}, unknown - joined.keys()
    if unknown:
        raise DataError(
            _(
                "the model does not have the classes {unknown}; its classes are {known}. Give the model's class "
                'for each label value, or ignored: --values "{suggestion}"'
            ).format(
                unknown=", ".join(labels.names[class_index] for class_index in sorted(unknown)),
                known=", ".join(model.names),
                suggestion=",".join(
                    f"{format_values([value], labels.kind)}={_name(target_of[class_index], model)}"
                    for class_index, values in enumerate(labels.codes)
                    for value in values
                ),
            ),
            key="data.values",
        )
    values: list[list[int]] = [[] for _name in model.names]
    ignored = list(labels.ignored)
    for class_index, target in target_of.items():
        if target is not None:
            (ignored if target == IGNORED else values[target]).extend(labels.codes[class_index])
    others = labels.others if labels.others in (None, IGNORED) else target_of[labels.others]
    return LabelMap(
        model.names, labels.kind, tuple(map(tuple, values)), model.colors, tuple(ignored), labels.reach, others
    )


def match_palettes(label_scan: LabelScan, model: LabelMap) -> LabelMap:
    """The label map of palette masks with unnamed classes, in the order of the model's classes.

    If all their colours are the model's, each pixel is the class of its colour; otherwise palette indices are class
    indices.

    Raises:
        DataError: the palettes differ, so indices do not define classes; `--values` resolves it.
    """
    if model.kind == "color" or not label_scan.with_palette.all():
        return model
    if label_scan.palettes_problem() == "differ":
        raise DataError(
            _(
                "the palettes of the masks differ, so that an index can mean several classes, but the model identifies "
                "classes by index ({known}); give the class of each colour with --values, such as #000000={first}"
            ).format(known=model.describe(), first=model.names[0]),
            key="data.values",
        )
    classes = {r << 16 | g << 8 | b: index for index, (r, g, b) in enumerate(model.colors)}
    values: list[list[int]] = [[] for _name in model.names]
    for value, color in sorted(set(zip(label_scan.codes.tolist(), label_scan.display_colors.tolist(), strict=True))):
        if value in model.ignored:
            continue
        if color not in classes:
            return model
        values[classes[color]].append(value)
    return replace(model, codes=tuple(map(tuple, values)))


def find_held_classes(label_scan: LabelScan, labels: LabelMap) -> NDArray[np.bool_]:
    """(N, C) whether each mask contains each class."""
    values, inverse = np.unique(label_scan.entries(labels.kind), return_inverse=True)
    index, _known = labels.classify(values.astype(np.int32))
    held = np.zeros((len(label_scan), IGNORED + 1), np.bool_)
    held[label_scan.mask_of, index[inverse]] = True
    return held[:, : labels.classes]


def drop_absent(label_scan: LabelScan, model: LabelMap) -> LabelMap:
    """The model's label map without the label values of classes that do not occur, for masks of unnamed classes.

    Returned unchanged if fewer than two classes occur, since this says nothing about the others.
    """
    index, known = model.classify(np.unique(label_scan.entries(model.kind)))
    occurring = set(index[known].tolist()) - {IGNORED}
    if len(occurring) < 2:
        return model
    return replace(model, codes=tuple(values if n in occurring else () for n, values in enumerate(model.codes)))


def _name(target: int | None, model: LabelMap) -> str:
    return "ignored" if target in (None, IGNORED) else model.names[target]


def _find(name: str, labels: LabelMap, model: LabelMap) -> int | None:
    """The index of the model's class with this name; None: there is none."""
    if name in model.names:
        return model.names.index(name)
    ours, theirs = ([name_.strip().casefold() for name_ in names] for names in (model.names, labels.names))
    plain = name.strip().casefold()
    if ours.count(plain) == theirs.count(plain) == 1:
        return ours.index(plain)
    return background_class(model.names) if background_class(labels.names) == labels.names.index(name) else None


def _joined(labels: LabelMap, model: LabelMap, target_of: dict[int, int | None], unknown: set[int]) -> dict[int, int]:
    """{unknown class: the model's class}, by label value.

    Empty unless all known names also have the model's values, and the model merges the unknown classes' values with
    others.
    """

    def meant(class_index: int) -> set[int]:
        index, known_values = model.classify(np.array(labels.codes[class_index], np.int32))
        return set(index.tolist()) if known_values.all() else {-1}

    known = [
        class_index for class_index, target in target_of.items() if target is not None and labels.codes[class_index]
    ]
    if not known or any(meant(class_index) != {target_of[class_index]} for class_index in known):
        return {}
    targets = {class_index: meant(class_index) for class_index in unknown}
    several = {class_index for class_index, values in enumerate(model.codes) if len(values) > 1} | {
        IGNORED,
        model.others,
    }
    return {
        class_index: targets_of.pop()
        for class_index, targets_of in targets.items()
        if len(targets_of) == 1 and targets_of <= several
    }
