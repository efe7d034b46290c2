"""What the user says of the codes: `--values 0=background,255=polyp` -> a label map."""

import re
from collections.abc import Sequence

from PIL import ImageColor

from ubend.data.codes import CodeKind
from ubend.data.labels import ANY_DISTANCE, IGNORED, LabelMap, draw_colors
from ubend.errors import SettingError
from ubend.language import _

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def parse_table(texts: Sequence[str]) -> LabelMap:
    """`0=background`, `255=polyp`, `1..20=cell`, `#ff0000=road`, `red=road`, `7=ignored`, `*=nearest` -> labels.

    Raises:
        SettingError: what cannot be read, with an example.
    """
    codes: dict[str, list[int]] = {}
    kinds: set[CodeKind] = set()
    rest = None
    for text in texts:
        word, equals, name = (part.strip() for part in text.partition("="))
        if not equals or not word or not name:
            raise _unreadable(text)
        if word == "*":
            rest = name
            continue
        span = _RANGE.fullmatch(word)
        try:
            if word.isdigit() or span:
                low, high = (int(word), int(word)) if span is None else (int(span[1]), int(span[2]))
                found, kind = list(range(low, high + 1)), "value"
            else:
                r, g, b = ImageColor.getcolor(word, "RGB")  # type: ignore[misc]
                found, kind = [r << 16 | g << 8 | b], "color"
        except ValueError as error:
            raise _unreadable(text) from error
        if not found or found[-1] > (65535 if kind == "value" else 0xFFFFFF):
            raise _unreadable(text)
        kinds.add(kind)  # type: ignore[arg-type]
        codes.setdefault(name, []).extend(found)
    ignored = tuple(codes.pop("ignored", ()))
    if rest not in (None, "ignored", "nearest"):
        codes.setdefault(str(rest), [])
    every = [code for some in [*codes.values(), ignored] for code in some]
    if len(kinds) != 1 or len(codes) < 2 or len(set(every)) < len(every):
        raise SettingError(
            _(
                "--values {text}: name at least two classes, each code once, either all by values or all by colours"
            ).format(text=",".join(texts))
        )
    kind = kinds.pop()
    names = tuple(codes)
    others = {None: None, "ignored": IGNORED, "nearest": None}.get(rest, names.index(rest) if rest in names else None)
    table = tuple(tuple(some) for some in codes.values())
    reach = ANY_DISTANCE if rest == "nearest" else 0
    return LabelMap(names, kind, table, draw_colors(names, table, kind), ignored, reach, others)


def _unreadable(text: str) -> SettingError:
    return SettingError(
        _(
            "--values: cannot read {text}; write code=name by comma, such as 0=background,255=polyp or "
            "#000000=background,#ff0000=polyp; also 1..9=cell, 255=ignored, *=nearest, *=ignored"
        ).format(text=text)
    )
