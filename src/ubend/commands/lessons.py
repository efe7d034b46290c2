"""What the course explains, running: lesson."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ubend.commands.picture_lessons import PICTURE_LESSONS
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


@command(help=later("The original U-Net: sizes, mirrored tiles, and touching cells counted with and without weights."))
@_variant_options
def paper(out: Path, assignments: tuple[str, ...], **options: Any) -> None:
    from ubend.config import parse_assignment

    prepare(False)
    from ubend.lessons.paper import teach_paper

    with make_teller() as teller:
        teach_paper(out, settings=dict(parse_assignment(text) for text in assignments), teller=teller, **options)


_BREED_EPOCHS = option("--epochs", type=click.IntRange(1), help=later("How often breeds' training shows all pictures."))


@command(
    help=later("Transfer learning: an encoder that learnt breeds, then segmentation with few masks and with many.")
)
@option("--counts", metavar="N[,N]", help=later("Training pictures with masks, before all  [50,200]"))
@_BREED_EPOCHS
@_variant_options
def transfer(out: Path, assignments: tuple[str, ...], counts: str | None, epochs: int | None, **options: Any) -> None:
    from ubend.config import parse_assignment

    if counts is not None:
        words = counts.replace(",", " ").split()
        if not words or not all(word.isdecimal() for word in words):
            raise SettingError(
                _("--counts {text}: give whole numbers by comma, such as 50,200").format(text=counts), key="--counts"
            )
        options["counts"] = [int(word) for word in words]
    prepare(False)
    from ubend.lessons.transfer import teach_transfer

    options |= {} if epochs is None else {"epochs": epochs}
    with make_teller() as teller:
        teach_transfer(out, settings=dict(parse_assignment(text) for text in assignments), teller=teller, **options)


@command(help=later("Breeds told by a second head: by the whole picture, by the mask's pixels, by the cut-out."))
@option("--model", type=PATH, help=later("A segmentation model of these classes  [one is trained]"))
@_BREED_EPOCHS
@_variant_options
def breeds(out: Path, assignments: tuple[str, ...], epochs: int | None, **options: Any) -> None:
    from ubend.config import parse_assignment

    prepare(False)
    from ubend.lessons.breeds import teach_breeds

    options |= {} if epochs is None else {"epochs": epochs}
    with make_teller() as teller:
        teach_breeds(out, settings=dict(parse_assignment(text) for text in assignments), teller=teller, **options)


@command(help=later("Objects cut out by their masks, and a table of their shapes."))
@option("--data", "folder", type=PATH, help=later("Folder of pictures and masks  [a drawn sample]"))
@option("--model", type=PATH, help=later("A model that finds the objects  [the masks of the folder]"))
@option("--pictures", type=int, default=4, show_default=True, help=later("How many, evenly taken."))
@option("--out", type=PATH, required=True, help=later("Folder to make, for tables and pictures."))
@option("--show", is_flag=True, help=later("Also display it."))
def shapes(out: Path, **options: Any) -> None:
    from ubend.lessons.shapes import teach_shapes

    with make_teller() as teller:
        teach_shapes(out, teller=teller, **options)


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
        raise SettingError(
            _("{name} {text}: give one whole number, or two by comma").format(name=name, text=text), key=name
        )
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


# in the order of the course
for _lesson in (
    transposed_convolution,
    upsampling,
    skips,
    paper,
    traditional_methods,
    transfer,
    shapes,
    breeds,
    faults,
    medicine,
    satellite,
    driving,
    *PICTURE_LESSONS,
):
    lesson.add_command(_lesson)
