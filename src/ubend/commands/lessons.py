"""What the course explains, running: lesson."""

from pathlib import Path
from typing import Any

import click

from ubend.commands.shared import PATH
from ubend.errors import SettingError
from ubend.language import _, later
from ubend.translated import Group, command, option


@click.group(cls=Group, help=later("Lessons: what a course on U-Nets explains, to run, look at and change."))
def lesson() -> None:
    """Lessons."""


@command(help=later("A transposed convolution step by step: placed, added where pieces overlap, cut by the padding."))
@option("--input", "text", default="2 2; 1 4", show_default=True, help=later("Matrix: rows by ;, numbers by spaces."))
@option("--kernel", default="1 1; 1 1", show_default=True, help=later("Matrix."))
@option("--stride", default="1", show_default=True, metavar="S[,T]", help=later("Rows, and columns if others."))
@option("--padding", default="0", show_default=True, metavar="P[,Q]", help=later("Rows, and columns if others."))
@option("--out", type=PATH, default=Path("lesson"), show_default=True, help=later("Folder for the pictures."))
@option("--show", "display", is_flag=True, help=later("Also display them."))
def transposed_convolution(text: str, kernel: str, stride: str, padding: str, out: Path, display: bool) -> None:
    from ubend.lessons.convolution import parse_matrix
    from ubend.lessons.transposed import teach_transposed_convolution

    pairs: dict[str, Any] = {"stride": _pair("--stride", stride), "padding": _pair("--padding", padding)}
    lines = teach_transposed_convolution(parse_matrix(text), parse_matrix(kernel), out=out, show=display, **pairs)
    for line in lines:
        click.echo(line)


def _pair(name: str, text: str) -> tuple[int, int]:
    """`2` -> (2, 2), `2,1` -> (2, 1)."""
    words = text.replace(",", " ").split()
    if len(words) not in (1, 2) or not all(word.lstrip("-").isdecimal() for word in words):
        raise SettingError(_("{name} {text}: give one whole number, or two by comma").format(name=name, text=text))
    return int(words[0]), int(words[-1])


@command(help=later("Thresholds, clusters, regions and edges on one picture, beside its true mask."))
@option("--data", type=PATH, metavar="FOLDER", help=later("Pictures with masks, or a named set  [drawn ones]"))
@option("--out", type=PATH, default=Path("lesson"), show_default=True, help=later("Folder for the pictures."))
@option("--show", "display", is_flag=True, help=later("Also display them."))
def traditional_methods(data: Path | None, out: Path, display: bool) -> None:
    from ubend.baselines.methods import refuse_missing

    refuse_missing()
    from ubend.jobs.baseline import open_examples
    from ubend.lessons.traditional import draw_examples, teach_traditional_methods

    examples, shown, labels = draw_examples() if data is None else open_examples(data)
    for line in teach_traditional_methods(examples, shown, labels, out=out, show=display):
        click.echo(line)


lesson.add_command(transposed_convolution)
lesson.add_command(traditional_methods)
