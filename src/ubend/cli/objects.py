"""Commands for the objects in images: cutout, objects."""

from pathlib import Path
from typing import Any

import click

from ubend.core.click_i18n import Choice, command, option
from ubend.core.i18n import later
from ubend.portable import option_help
from ubend.tasks.options import PATH, make_reporter, options, take_prediction_options


@command(help=later("Cut a class out of the images PATHS, onto transparency, a colour or another image."))
@click.argument("model", type=PATH)
@click.argument("paths", type=PATH, nargs=-1, required=True)
@option("--out", type=PATH, required=True, help=later("Folder for the cut-outs."))
@option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS",
    help=later(
        "Class to cut out; CLASS=W weights its probability by W, such as contour=0.5; repeatable  [the only class]"
    ),
)
@option(
    "--background",
    default="transparent",
    show_default=True,
    metavar="COLOR|IMAGE",
    help=later("Background: transparent, a colour, or an image."),
)
@option(
    "--soft",
    "soft_px",
    type=float,
    metavar="PX",
    help=later("Width of the soft edge, px  [follows the model's probabilities]"),
)
@options("tiles", "overlap", "with", "tta", "resume", "device")
def cutout(model: Path, paths: tuple[Path, ...], out: Path, **flags: Any) -> None:
    from ubend.tasks.cutout import cut_out_files

    chosen = take_prediction_options(flags)
    with make_reporter() as reporter:
        cut_out_files(model, paths, out, options=chosen, reporter=reporter, **flags)


@command(help=option_help.OBJECTS)
@click.argument("model", type=PATH)
@click.argument("paths", type=PATH, nargs=-1, required=True)
@option("--out", type=PATH, required=True, help=option_help.OBJECTS_OUT)
@option("--method", type=Choice(["contour", "parts", "distance"]), help=option_help.METHOD)
@option("--min-area", type=click.IntRange(1), default=1, show_default=True, help=option_help.LEAST_AREA)
@option(
    "--export",
    "exports",
    type=Choice(["coco", "geojson", "panoptic"]),
    multiple=True,
    help=option_help.EXPORT,
)
@option("--pixel-size", metavar="LENGTH", help=option_help.PIXEL_SIZE)
@option(
    "--truth",
    type=PATH,
    metavar="FOLDER",
    help=later("Folder of true id images (NAME.png or NAME_ids.tif) to score against."),
)
@options("tiles", "overlap", "with", "tta", "threshold", "fill-holes", "device")
def objects(model: Path, paths: tuple[Path, ...], out: Path, **flags: Any) -> None:
    from ubend.portable.object_job import CountingOptions
    from ubend.portable.pixel_size import parse_pixel_size
    from ubend.tasks.objects import find_objects

    flags["pixel_size"] = None if flags["pixel_size"] is None else parse_pixel_size(flags["pixel_size"])
    counting = CountingOptions(*(flags.pop(name) for name in ("method", "min_area", "exports", "pixel_size")))
    chosen = take_prediction_options(flags)
    with make_reporter() as reporter:
        find_objects(model, paths, out, counting=counting, options=chosen, reporter=reporter, **flags)
