"""The lessons of the course; each is a subcommand of `ubend lesson`."""

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from ubend.core.click_i18n import command, option
from ubend.core.errors import SettingError
from ubend.core.i18n import _, later
from ubend.core.terminal import echo
from ubend.tasks.options import PATH, make_reporter, prepare_command

_F = TypeVar("_F", bound=Callable[..., Any])
_UNTRAINED_PX = 128  # side of the images in the course text


@command(help=later("Transposed convolution step by step: place the pieces, add overlaps, cut off the padding."))
@option(
    "--input",
    "text",
    default="2 2; 1 4",
    show_default=True,
    help=later("Input matrix: rows separated by ;, numbers by spaces."),
)
@option("--kernel", default="1 1; 1 1", show_default=True, help=later("Kernel, a matrix in the same form."))
@option(
    "--stride",
    default="1",
    show_default=True,
    metavar="S[,T]",
    help=later("Stride of the rows, and of the columns if different."),
)
@option(
    "--padding",
    default="0",
    show_default=True,
    metavar="P[,Q]",
    help=later("Padding of the rows, and of the columns if different."),
)
@option("--out", type=PATH, default=Path("lesson"), show_default=True, help=later("Folder for the images."))
@option("--show", "display", is_flag=True, help=later("Also display them."))
def transposed_convolution(text: str, kernel: str, stride: str, padding: str, out: Path, display: bool) -> None:
    from ubend_lessons.convolution import parse_matrix
    from ubend_lessons.transposed import teach_transposed_convolution

    pairs: dict[str, Any] = {"stride": _pair("--stride", stride), "padding": _pair("--padding", padding)}
    _report(teach_transposed_convolution(parse_matrix(text), parse_matrix(kernel), out=out, show=display, **pairs))


_VARIANT_OPTIONS = (
    option("--data", "folder", type=PATH, help=later("Folder of images and masks  [a drawn sample]")),
    option("--out", type=PATH, required=True, help=later("Folder to create for runs and images.")),
    option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help=later("Any other setting; see docs/settings.md."),
    ),
    option("--device", help=later("cuda, cuda:1, mps or cpu  [the fastest here]")),
    option("--show", is_flag=True, help=later("Also display it.")),
)


def _variant_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for add in reversed(_VARIANT_OPTIONS):
        function = add(function)
    return function


def _teach(name: str, out: Path, assignments: tuple[str, ...], module: str = "variants", **options: Any) -> None:
    from ubend.core.settings import parse_assignment

    prepare_command(False)
    taught = import_module(f"ubend_lessons.{module}")
    with make_reporter() as reporter:
        settings = dict(parse_assignment(text) for text in assignments)
        getattr(taught, name)(out, settings=settings, reporter=reporter, **options)


def _report(lines: Iterable[str]) -> None:
    for line in lines:
        echo(line)


@command(help=later("Skip connections: train and score the network with all, with none, and with each one removed."))
@_variant_options
def skips(**options: Any) -> None:
    _teach("teach_skips", **options)


@command(help=later("Upsampling: train and score four methods (transposed, nearest, bilinear, max unpooling)."))
@_variant_options
def upsampling(**options: Any) -> None:
    _teach("teach_upsampling", **options)


@command(
    help=later("The original U-Net: sizes, mirrored tiles, counting touching cells with and without the weight map.")
)
@_variant_options
def paper(**options: Any) -> None:
    _teach("teach_paper", module="paper", **options)


_BREED_EPOCHS = option("--epochs", type=click.IntRange(1), help=later("Epochs of the training on breeds  [40]"))


@command(help=later("Transfer learning: train an encoder on breeds, then segmentation with few masks and with many."))
@option("--counts", metavar="N[,N]", help=later("Numbers of training images to try, besides all  [50,200]"))
@_BREED_EPOCHS
@_variant_options
def transfer(counts: str | None, epochs: int | None, **options: Any) -> None:
    if counts is not None:
        words = counts.replace(",", " ").split()
        if not words or not all(word.isdecimal() for word in words):
            raise SettingError(
                _("--counts {text}: give whole numbers separated by commas, such as 50,200").format(text=counts),
                key="--counts",
            )
        options["counts"] = [int(word) for word in words]
    options |= {} if epochs is None else {"epochs": epochs}
    _teach("teach_transfer", module="transfer", **options)


@command(help=later("Recognise breeds with a second head: from the whole image, the mask's pixels, or the cut-out."))
@option("--model", type=PATH, help=later("Segmentation model with the classes of the data  [one is trained]"))
@_BREED_EPOCHS
@_variant_options
def breeds(epochs: int | None, **options: Any) -> None:
    options |= {} if epochs is None else {"epochs": epochs}
    _teach("teach_breeds", module="breeds", **options)


@command(help=later("Cut objects out by their masks, and measure their shapes."))
@option("--data", "folder", type=PATH, help=later("Folder of images and masks  [a drawn sample]"))
@option("--model", type=PATH, help=later("Model that finds the objects  [the masks of the folder]"))
@option(
    "--images", type=int, default=4, show_default=True, help=later("Number of images, evenly spaced in the folder.")
)
@option("--out", type=PATH, required=True, help=later("Folder to create for tables and images."))
@option("--show", is_flag=True, help=later("Also display it."))
def shapes(out: Path, **options: Any) -> None:
    from ubend_lessons.shapes import teach_shapes

    with make_reporter() as reporter:
        teach_shapes(out, reporter=reporter, **options)


@command(help=later("Faults of the tutorial: each is run as in the text and corrected, and compared."))
@_variant_options
def faults(**options: Any) -> None:
    _teach("teach_faults", module="faults", **options)


@command(
    help=later("Medicine: 16-bit slices of computed tomography, an organ and its lesions, volumes in millilitres.")
)
@_variant_options
def medicine(**options: Any) -> None:
    _teach("teach_medicine", module="fields", **options)


@command(help=later("Satellites: GeoTIFFs of six bands, a vegetation index, georeferenced masks."))
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
            _("{name} {text}: give one whole number, or two separated by a comma").format(name=name, text=text),
            key=name,
        )
    return int(words[0]), int(words[-1])


@command(help=later("Thresholds, clusters, regions and edges on one image, next to its true mask."))
@option("--data", type=PATH, metavar="FOLDER", help=later("Images with masks, or a named data set  [drawn images]"))
@option("--out", type=PATH, default=Path("lesson"), show_default=True, help=later("Folder for the images."))
@option("--show", "display", is_flag=True, help=later("Also display them."))
def traditional_methods(data: Path | None, out: Path, display: bool) -> None:
    from ubend_lessons.baselines.methods import refuse_missing

    refuse_missing()
    from ubend_lessons.baselines.run import open_examples
    from ubend_lessons.traditional import draw_examples, teach_traditional_methods

    examples, shown, labels = draw_examples() if data is None else open_examples(data)
    _report(teach_traditional_methods(examples, shown, labels, out=out, show=display))


def _out_options(function: _F) -> _F:
    function = option("--show", "display", is_flag=True, help=later("Also display them."))(function)
    kept: _F = option(
        "--out", type=PATH, default=Path("lesson"), show_default=True, help=later("Folder for the images.")
    )(function)
    return kept


def _example_options(function: _F) -> _F:
    function = option("--number", type=int, default=0, show_default=True, help=later("Number of the image, from 0."))(
        function
    )
    kept: _F = option("--data", type=PATH, metavar="FOLDER", help=later("Images with masks  [drawn cells]"))(function)
    return kept


@command(help=later("Boxes, semantic, instance and panoptic masks of one image: what each shows and does not show."))
@_example_options
@_out_options
def kinds(data: Path | None, number: int, out: Path, display: bool) -> None:
    from ubend_lessons.example import take_example
    from ubend_lessons.kinds import teach_kinds

    _report(teach_kinds(take_example(data, number), out=out, show=display))


@command(help=later("Each kind of augmentation alone, drawn three times, with the outline of the mask."))
@_example_options
@option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help=later("Strength of a kind, such as augment.scale=0.5."),
)
@option("--seed", type=click.IntRange(0), default=0, show_default=True, help=later("Random seed."))
@_out_options
def augmentation(
    data: Path | None, number: int, assignments: tuple[str, ...], seed: int, out: Path, display: bool
) -> None:
    from ubend.core.settings import parse_assignment
    from ubend_lessons.augmentation import teach_augmentation
    from ubend_lessons.example import take_example

    settings = dict(map(parse_assignment, assignments))
    _report(teach_augmentation(take_example(data, number), out=out, settings=settings, seed=seed, show=display))


@command(help=later("Draw the network, by tracing an image through its layers."))
@option("--model", type=PATH, help=later("Model file or run  [a network with random weights]"))
@option("--width", type=click.IntRange(1, 256), help=later("Without --model: channels of the first level  [64]"))
@option("--depth", type=click.IntRange(1, 7), help=later("Without --model: number of poolings  [4]"))
@option("--size", type=int, metavar="PX", help=later("Side of the image  [the model's, else 128]"))
@_out_options
def architecture(
    model: Path | None, width: int | None, depth: int | None, size: int | None, out: Path, display: bool
) -> None:
    prepare_command(deterministic=False)
    from ubend.models.model_file import load_bundle
    from ubend_lessons.architecture import MAX_PX, teach_architecture, untrained

    if model is not None:
        if width is not None or depth is not None:
            raise SettingError(
                _("--width and --depth cannot be combined with --model, which has its own"), key="--model"
            )
        bundle = load_bundle(model)
        own = min(MAX_PX, bundle.window_px or bundle.sizing.size_px or _UNTRAINED_PX)
        side = own if size is None else size
        _report(teach_architecture(bundle.model, side, out=out, show=display))
        return
    net = untrained(width or 64, depth or 4)
    echo(
        _("no model was given: a U-Net of width {width} and depth {depth} with random weights").format(
            width=net.width, depth=net.depth
        )
    )
    _report(teach_architecture(net, _UNTRAINED_PX if size is None else size, out=out, show=display))


@command(help=later("Draw the feature maps of IMAGE in a model, and how the image is normalised."))
@click.argument("image", type=PATH, required=False)
@option("--model", type=PATH, help=later("Model file or run  [a small one is trained, within a minute]"))
@_out_options
def feature_maps(image: Path | None, model: Path | None, out: Path, display: bool) -> None:
    prepare_command(deterministic=False)
    from ubend.io.images import read_image
    from ubend.models.model_file import load_bundle
    from ubend_lessons.example import take_example
    from ubend_lessons.feature_maps import teach_feature_maps
    from ubend_lessons.tiny import EXTRA_IMAGE, train_tiny

    if model is not None and image is None:
        raise SettingError(_("--model needs an IMAGE: ubend lesson feature-maps --model MODEL IMAGE"), key="--model")
    bundle = load_bundle(model) if model is not None else None
    pixels = (
        take_example(None, EXTRA_IMAGE).image
        if image is None
        else read_image(image, 3 if bundle is None else bundle.sizing.channels)
    )
    if bundle is None:
        with make_reporter() as reporter:
            bundle = load_bundle(train_tiny(out, reporter))
    _report(teach_feature_maps(bundle, pixels, out=out, show=display))


@command(help=later("Show the training RUN as an animation: its images after each epoch, with the curves so far."))
@click.argument("run", type=PATH, required=False)
@option(
    "--seconds", type=click.FloatRange(0.02, 60), default=0.35, show_default=True, help=later("Duration of a frame, s.")
)
@_out_options
def training(run: Path | None, seconds: float, out: Path, display: bool) -> None:
    prepare_command(deterministic=False)
    from ubend_lessons.tiny import train_tiny
    from ubend_lessons.training import teach_training

    if run is None:
        with make_reporter() as reporter:
            run = train_tiny(out, reporter)
    _report(teach_training(run, out=out, seconds=seconds, show=display))


LESSONS = (  # in the order of the course
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
    kinds,
    augmentation,
    architecture,
    feature_maps,
    training,
)
