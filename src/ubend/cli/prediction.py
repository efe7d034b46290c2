"""The command `predict`."""

from pathlib import Path
from typing import Any

import click

from ubend.core.click_i18n import Choice, command, option
from ubend.core.i18n import later
from ubend.portable import option_help
from ubend.tasks.options import PATH, make_reporter, options, take_prediction_options


@command(
    help=later(
        "Predict masks of PATHS: images, videos, scans (NIfTI, DICOM), folders, patterns, a CSV with the column file; "
        "- reads a list of images."
    )
)
@click.argument("model", type=PATH)
@click.argument("paths", type=PATH, nargs=-1, required=True)
@option("--out", type=PATH, required=True, help=option_help.OUT)
@options("tiles", "overlap", "with", "tta", "threshold")
@option("--min-area", metavar="[CLASS=]PX", multiple=True, help=option_help.MIN_AREA)
@options("fill-holes")
@option("--prob", type=Choice(["uint8", "uint16", "npz"]), help=option_help.PROB)
@options("resume")
@option("--window", help=later("Intensity window of scans (NIfTI, DICOM): a name such as lung, or CENTER,WIDTH."))
@options("device")
@option("--cluster", metavar="ADDRESS", help=later("Predict images on a Ray cluster; auto: the one on this machine."))
@option("--gpu-share", type=float, metavar="PART", help=later("With --cluster: part of a GPU for each process  [1]"))
def predict(model: Path, paths: tuple[Path, ...], out: Path, cluster: str | None, **flags: Any) -> None:
    from ubend.tasks.cluster import choose_task

    task = choose_task(cluster, flags.pop("gpu_share"))
    flags |= {"options": take_prediction_options(flags)}
    with make_reporter() as reporter:
        task(model, paths, out, reporter=reporter, **flags)
