"""Parses the meaning of label values: `--values 0=background,255=polyp` -> a label map."""

import re
from collections.abc import Sequence

from PIL import ImageColor

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.labels.class_table import (
    ANY_DISTANCE,
    IGNORED,
    MAX_CLASSES,
    NOISE_REACH,
    RESERVED_NAMES,
    ROUNDING_REACH,
    LabelMap,
    choose_colors,
)
from ubend.labels.label_values import ValueKind

_MAX_VALUE = 65535
_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?")


def parse_table(texts: Sequence[str], renamed: Sequence[str] | None = None) -> LabelMap:
    """Parse `0=background`, `255=polyp`, `1..20=cell`, `#ff0000=road`, `red=road`, `7=ignored`, `*=nearest`.

    `*` stands for all other label values, which become: a class, `ignored`, `nearest` (the nearest class), or `near`
    (for colours: the nearest class if it is close, otherwise ignored).

    Args:
        renamed: other names of the classes, in their order.
    Raises:
        SettingError: the text cannot be parsed (the message has an example), or there are not as many names.
    """
    values: dict[str, list[int]] = {}
    kinds: set[ValueKind] = set()
    rest = None
    for text in texts:
        word, _equals, name = (part.strip() for part in text.partition("="))
        try:
            if not word or not name or (word == "*" and rest) or (word != "*" and name in RESERVED_NAMES[1:]):
                raise ValueError(text)
            if word == "*":
                rest = name
                continue
            kind, numbers = _parse_values(word)
        except ValueError as error:
            raise SettingError(
                _(
                    "--values: cannot parse {text}; give VALUE=NAME, separated by commas, such as "
                    "0=background,255=polyp or "
                    "#000000=background,#ff0000=polyp; also 1..9=cell, 255=ignored, *=nearest, *=ignored"
                ).format(text=text),
                key="data.values",
            ) from error
        kinds.add(kind)
        values.setdefault(name, []).extend(numbers)
    ignored = tuple(values.pop("ignored", ()))
    if rest is not None and rest not in RESERVED_NAMES:
        values.setdefault(str(rest), [])
    every = [value for group in [*values.values(), ignored] for value in group]
    if len(kinds) != 1 or len(values) < 2 or len(set(every)) < len(every):
        raise SettingError(
            _(
                "--values {text}: this replaces the whole table of classes: give at least two classes, and each label "
                "value once, either all as values or all as colours"
            ).format(text=",".join(texts)),
            key="data.values",
        )
    if len(values) > MAX_CLASSES:
        raise SettingError(
            _("--values names {count} classes; at most {maximum} are supported").format(
                count=len(values), maximum=MAX_CLASSES
            ),
            key="data.values",
        )
    kind = kinds.pop()
    names = tuple(values)
    if renamed and len(renamed) != len(names):
        line = _(
            "--classes gives {given} names ({renamed}), but --values has {count} classes ({names}); give one for each"
        )
        said = line.format(given=len(renamed), renamed=", ".join(renamed), count=len(names), names=", ".join(names))
        raise SettingError(said, key="data.classes")
    others = names.index(rest) if rest in names else (IGNORED if rest in ("ignored", "near") else None)
    table = tuple(tuple(group) for group in values.values())
    reach = {"nearest": ANY_DISTANCE, "near": NOISE_REACH, None: ROUNDING_REACH if kind == "color" else 0}.get(rest, 0)
    names = tuple(renamed or names)
    return LabelMap(names, kind, table, choose_colors(names, table, kind), ignored, reach, others)


def _parse_values(word: str) -> tuple[ValueKind, Sequence[int]]:
    """The label values of `7`, `1..20`, `#ff0000` or `red`.

    Raises:
        ValueError: not a label value, or out of range.
    """
    if span := _RANGE.fullmatch(word):
        low, high = int(span[1]), int(span[2] or span[1])
        if not low <= high <= _MAX_VALUE:
            raise ValueError(word)
        return "value", range(low, high + 1)
    r, g, b = ImageColor.getcolor(word, "RGB")  # type: ignore[misc]
    return "color", [r << 16 | g << 8 | b]


def write_table(labels: LabelMap) -> tuple[str, ...]:
    """The text for `--values` that `parse_table` reads as this label map, except for display colours."""
    spans = [
        f"{span}={name}"
        for values, name in zip(labels.codes, labels.names, strict=True)
        for span in _format_spans(values, labels)
    ]
    spans += [f"{span}=ignored" for span in _format_spans(labels.ignored, labels)]
    if labels.reach >= ANY_DISTANCE:
        spans.append("*=nearest")
    elif labels.others is not None and labels.others != IGNORED:
        spans.append(f"*={labels.names[labels.others]}")
    elif labels.others == IGNORED:
        spans.append("*=near" if labels.reach else "*=ignored")
    return tuple(spans)


def _format_spans(values: Sequence[int], labels: LabelMap) -> list[str]:
    """Label values as text: colours one by one, consecutive numbers as `3..7`."""
    if labels.kind == "color":
        return [f"#{value:06x}" for value in values]
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return [str(low) if low == high else f"{low}..{high}" for low, high in spans]
