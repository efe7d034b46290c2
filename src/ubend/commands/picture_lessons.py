"""Lessons that are mostly pictures: kinds, augmentation, architecture, feature-maps, training."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from ubend.commands.shared import PATH, make_teller, prepare
from ubend.errors import SettingError
from ubend.language import _, later
from ubend.translated import command, option

_F = TypeVar("_F", bound=Callable[..., Any])
_UNTRAINED_PX = 128  # the course text's pictures


def _out_options(function: _F) -> _F:
    function = option("--show", "display", is_flag=True, help=later("Also display them."))(function)
    kept: _F = option(
        "--out", type=PATH, default=Path("lesson"), show_default=True, help=later("Folder for the pictures.")
    )(function)
    return kept


def _example_options(function: _F) -> _F:
    function = option("--number", type=int, default=0, show_default=True, help=later("Which of its pictures, from 0."))(
        function
    )
    kept: _F = option("--data", type=PATH, metavar="FOLDER", help=later("Of pictures and masks  [drawn cells]"))(
        function
    )
    return kept


@command(help=later("One picture: its boxes, semantic, instance and panoptic masks; what each says and does not say."))
@_example_options
@_out_options
def kinds(data: Path | None, number: int, out: Path, display: bool) -> None:
    from ubend.lessons.example import take_example
    from ubend.lessons.kinds import teach_kinds

    _tell(teach_kinds(take_example(data, number), out=out, show=display))


@command(help=later("Each kind of augmentation alone, drawn three times, with the outline of the mask."))
@_example_options
@option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help=later("Strength, as augment.scale=0.5."))
@option("--seed", type=click.IntRange(0), default=0, show_default=True, help=later("Of the draws."))
@_out_options
def augmentation(
    data: Path | None, number: int, assignments: tuple[str, ...], seed: int, out: Path, display: bool
) -> None:
    from ubend.config import parse_assignment
    from ubend.lessons.augmentation import teach_augmentation
    from ubend.lessons.example import take_example

    settings = dict(map(parse_assignment, assignments))
    _tell(teach_augmentation(take_example(data, number), out=out, settings=settings, seed=seed, show=display))


@command(help=later("The network as a drawing, made from what its layers do to a picture."))
@option("--model", type=PATH, help=later("Model file or run  [one with drawn weights]"))
@option("--width", type=click.IntRange(1, 256), help=later("Without --model: channels of the first level  [64]"))
@option("--depth", type=click.IntRange(1, 7), help=later("Without --model: poolings  [4]"))
@option("--size", type=int, metavar="PX", help=later("Side of the picture  [the model's, else 128]"))
@_out_options
def architecture(
    model: Path | None, width: int | None, depth: int | None, size: int | None, out: Path, display: bool
) -> None:
    prepare(deterministic=False)
    from ubend.lessons.architecture import MOST_PX, teach_architecture, untrained
    from ubend.model.bundle import load_bundle

    if model is not None:
        if width is not None or depth is not None:
            raise SettingError(_("--width and --depth go without --model, which has its own"), key="--model")
        bundle = load_bundle(model)
        own = min(MOST_PX, bundle.window_px or bundle.sizing.size_px or _UNTRAINED_PX)
        side = own if size is None else size
        _tell(teach_architecture(bundle.model, side, out=out, show=display))
        return
    net = untrained(width or 64, depth or 4)
    click.echo(
        _("no model was given: a U-Net of width {width} and depth {depth} with drawn weights").format(
            width=net.width, depth=net.depth
        )
    )
    _tell(teach_architecture(net, _UNTRAINED_PX if size is None else size, out=out, show=display))


@command(help=later("What MODEL makes of PICTURE on its way: feature maps; and how pictures are normalised."))
@click.argument("picture", type=PATH, required=False)
@option("--model", type=PATH, help=later("Model file or run  [a small one is trained, within a minute]"))
@_out_options
def feature_maps(picture: Path | None, model: Path | None, out: Path, display: bool) -> None:
    prepare(deterministic=False)
    from ubend.lessons.example import take_example
    from ubend.lessons.feature_maps import teach_feature_maps
    from ubend.lessons.tiny import UNSEEN, train_tiny
    from ubend.model.bundle import load_bundle
    from ubend.pictures.images import read_image

    if model is not None and picture is None:
        raise SettingError(
            _("with --model give a PICTURE too: ubend lesson feature-maps --model MODEL PICTURE"), key="--model"
        )
    bundle = load_bundle(model) if model is not None else None
    image = (
        take_example(None, UNSEEN).image
        if picture is None
        else read_image(picture, 3 if bundle is None else bundle.sizing.channels)
    )
    if bundle is None:
        with make_teller() as teller:
            bundle = load_bundle(train_tiny(out, teller))
    _tell(teach_feature_maps(bundle, image, out=out, show=display))


@command(help=later("RUN as an animation: its pictures after each epoch, its curves growing beside them."))
@click.argument("run", type=PATH, required=False)
@option(
    "--seconds", type=click.FloatRange(0.02, 60), default=0.35, show_default=True, help=later("That a frame stays.")
)
@_out_options
def training(run: Path | None, seconds: float, out: Path, display: bool) -> None:
    prepare(deterministic=False)
    from ubend.lessons.tiny import train_tiny
    from ubend.lessons.training import teach_training

    if run is None:
        with make_teller() as teller:
            run = train_tiny(out, teller)
    _tell(teach_training(run, out=out, seconds=seconds, show=display))


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


PICTURE_LESSONS = (kinds, augmentation, architecture, feature_maps, training)
