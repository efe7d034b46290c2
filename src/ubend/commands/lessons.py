"""What the course explains, running: lesson."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ubend.commands.shared import PATH, make_teller, prepare
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


_VARIANT_OPTIONS = (
    option("--data", "folder", type=PATH, help=later("Folder of pictures and masks  [a drawn sample]")),
    option("--out", type=PATH, required=True, help=later("Folder to make, for runs and pictures.")),
    option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help=later("Any other setting; see docs/settings.md."),
    ),
    option("--device", help=later("cuda, mps or cpu  [the fastest here]")),
    option("--show", is_flag=True, help=later("Also display it.")),
)


def _variant_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for add in reversed(_VARIANT_OPTIONS):
        function = add(function)
    return function


def _teach(name: str, out: Path, assignments: tuple[str, ...], module: str = "variants", **options: Any) -> None:
    from ubend.config import parse_assignment

    prepare(False)
    taught = import_module(f"ubend.lessons.{module}")

    with make_teller() as teller:
        settings = dict(parse_assignment(text) for text in assignments)
        getattr(taught, name)(out, settings=settings, teller=teller, **options)


@command(help=later("Skip connections: the network with all, with none, and with each one cut, trained and scored."))
@_variant_options
def skips(**options: Any) -> None:
    _teach("teach_skips", **options)


@command(help=later("Ways to grow a map (transposed, nearest, bilinear, max unpooling), trained and scored."))
@_variant_options
def upsampling(**options: Any) -> None:
    _teach("teach_upsampling", **options)


@command(help=later("The tutorial's own faults, each run both ways: what it says, and what is so."))
@_variant_options
def faults(**options: Any) -> None:
    _teach("teach_faults", module="faults", **options)


@command(help=later("Medicine: 16-bit slices of computed tomography, an organ and its lesions, a scan in millilitres."))
@_variant_options
def medicine(**options: Any) -> None:
    _teach("teach_medicine", module="fields", **options)


@command(help=later("Satellites: GeoTIFFs of six bands, a vegetation index, masks that keep their place on the map."))
@_variant_options
def satellite(**options: Any) -> None:
    _teach("teach_satellite", module="fields", **options)


@command(help=later("Driving: street scenes of eight classes, some of them rare."))
@_variant_options
def driving(**options: Any) -> None:
    _teach("teach_driving", module="fields", **options)


def _pair(name: str, text: str) -> tuple[int, int]:
    """`2` -> (2, 2), `2,1` -> (2, 1)."""
    words = text.replace(",", " ").split()
    if len(words) not in (1, 2) or not all(word.lstrip("-").isdecimal() for word in words):
        raise SettingError(_("{name} {text}: give one whole number, or two by comma").format(name=name, text=text))
    return int(words[0]), int(words[-1])


for _lesson in (transposed_convolution, skips, upsampling, faults, medicine, satellite, driving):
    lesson.add_command(_lesson)
