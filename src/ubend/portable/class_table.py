"""What every reader of a class table needs: the limits, the ignored index, the background."""

from collections.abc import Sequence
from typing import Protocol

IGNORED = 255  # class index of a pixel that is neither trained on nor scored
MAX_CLASSES = 254  # a class index is one byte
NAME_PATTERN = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}"  # one line, so as not to break tables and messages


class ClassTable(Protocol):
    """Name and colour, (red, green, blue) of 0..255, of each class index."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]: ...


def background_class(names: Sequence[str]) -> int | None:
    """The class named background, if any."""
    plain = [name.strip().lower() for name in names]
    return next((plain.index(name) for name in ("background", "bg", "nền") if name in plain), None)
