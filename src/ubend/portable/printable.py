"""Text for a terminal: control characters in names are escaped, so that the terminal does not execute them."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from .i18n import _

# C0, DEL and C1 without line feed and tab; bytes that are not UTF-8; marks that reorder or break a line
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHOWN = 10  # names shown of a long list


def printable(text: str) -> str:
    """The text with control characters, bidirectional marks and undecodable bytes as `\\x1b`, `\\u202e`, `\\xe9`."""
    return _HIDDEN.sub(lambda match: _escape(ord(match[0])), text)


def printable_line(text: str) -> str:
    """The same for a single line: line feeds are escaped, too."""
    return printable(text).replace("\n", "\\n")


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shell_word(path: Path | str) -> str:
    """The path as one word of a command line, for commands that a message suggests: in quotes if it has spaces."""
    text = str(path)
    return shlex.quote(text) if re.search(r"[^\w@%+=:,./~\\-]", text) else text


def some_names(names: Sequence[str], maximum: int = 3) -> str:
    """The first few names, followed by `...` if there are more, for a sentence that states their number."""
    return ", ".join([*names[:maximum], *(["..."] if len(names) > maximum else [])])


def enumerate_names(names: list[str]) -> str:
    """`a, b, c`; a long list is cut after ten names, followed by the number of the others."""
    shown = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        shown = _("{names}, ... and {count} more").format(names=shown, count=len(names) - _SHOWN)
    return shown
