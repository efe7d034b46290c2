"""The explanations after a lesson's results: what to see, how reliable its figures are, what recorded figures show.

The texts and the recorded tables are in `explanations.toml`.
"""

import functools
import re
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ubend.core.i18n import _, now

FILE = Path(__file__).parent / "explanations.toml"
_WIDTH = 100  # characters of a line
_WORD = re.compile(r"[^`]*[^\W\d_]{3}")  # cells of tables with a word are translated; figures and `names` are not


@functools.cache
def _read() -> dict[str, dict[str, Any]]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def explain(name: str) -> list[str]:
    """The explanation of a lesson, or of one fault (`fault-leak`), in the chosen language.

    Returns:
        Lines of Markdown: three paragraphs; the recorded table, if there is one, and the commands that made it.
    Raises:
        KeyError: there is no such lesson.
    """
    own = _read()[name]
    texts = {key: now(own[key]) for key in ("see", "sure", "real")}
    paragraphs = [
        texts["see"] if name.startswith("fault-") else _("What to see: {text}").format(text=texts["see"]),
        _("How reliable it is: {text}").format(text=texts["sure"]),
        _("Beyond this run: {text}").format(text=texts["real"]),
    ]
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += ["", *textwrap.wrap(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False)]
    if "rows" in own:
        lines += ["", *draw_table([own["columns"], *own["rows"]])]
    if "commands" in own:
        lines += ["", _("measured by:"), "", *(f"    {command}" for command in own["commands"])]
    return lines


def draw_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with aligned columns; the first row is the heading. Cells with words are translated."""
    shown_rows = [[now(cell) if _WORD.match(cell) else cell for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*shown_rows, strict=True)]
    lines = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in shown_rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def list_sentences() -> Iterator[str]:
    """All texts of the file that are translated, for the catalogues."""
    for own in _read().values():
        yield from (own["see"], own["sure"], own["real"])
        for row in [own.get("columns", []), *own.get("rows", [])]:
            yield from (cell for cell in row if _WORD.match(cell))
