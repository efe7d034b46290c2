"""What the commands share: options, the reporter, the display of scores."""

import atexit
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ubend.core.click_i18n import Choice, option
from ubend.core.errors import SettingError
from ubend.core.i18n import _, later
from ubend.core.terminal import echo
from ubend.portable import option_help
from ubend.portable.printable import shell_word
from ubend.portable.tile_options import DEFAULT_OVERLAP, parse_tiles

if TYPE_CHECKING:
    from ubend.core.progress import Reporter
    from ubend.evaluation.score_tables import Scores
    from ubend.portable.mask_predictor import PredictionOptions

PATH = click.Path(path_type=Path)
_F = TypeVar("_F", bound=Callable[..., Any])

# Where images and masks are, and what they mean, for the commands that read them.
_FOLDER_OPTIONS = {
    "images": option("--images", help=later("Folder or quoted pattern of the images, instead of FOLDER.")),
    "masks": option("--masks", help=later("Folder or quoted pattern of the masks, together with --images.")),
    "split": option(
        "--split",
        type=PATH,
        help=later("CSV with the columns file,split[,group], or file,group: split and group of each image."),
    ),
    "classes": option("--classes", help=later("Class names in the order of the mask values, separated by commas.")),
    "values": option(
        "--values",
        help=later('Class of each mask value, such as 0=background,1=polyp,255=ignored or "#ff0000=road,...".'),
    ),
    "channels": option(
        "--channels", type=int, help=later("Channels of the images: 1 (grey), 3 (colour) or more  [as stored]")
    ),
    "skip-bad": option("--skip-bad", is_flag=True, default=None, help=later("Skip pairs that cannot be used.")),
    "root": option(
        "--root", type=PATH, help=later("Folder of the named data sets oxford-pet and kvasir-seg  [the cache]")
    ),
}

# How a model is used: the same in every command that predicts.
_MODEL_OPTIONS = {
    "tiles": option("--tiles", metavar="PX", help=option_help.TILES),
    "overlap": option(
        "--overlap",
        type=float,
        default=DEFAULT_OVERLAP,
        show_default=True,
        help=option_help.OVERLAP,
    ),
    "with": option(
        "--with",
        "models",
        type=PATH,
        multiple=True,
        help=option_help.WITH,
    ),
    "tta": option(
        "--tta",
        is_flag=True,
        help=option_help.TTA,
    ),
    "threshold": option("--threshold", metavar="CLASS=P", multiple=True, help=option_help.THRESHOLD),
    "fill-holes": option(
        "--fill-holes",
        metavar="[CLASS=]PX",
        multiple=True,
        help=option_help.FILL_HOLES,
    ),
    "resume": option("--resume", is_flag=True, help=option_help.RESUME),
    "set-unmasked": option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help=later("data.unmasked=background: images without a mask file show background alone."),
    ),
    "subset": option(
        "--subset", type=Choice(["train", "val", "test"]), help=later("Split of the images to use  [test]")
    ),
    "device": option("--device", help=later("cuda, cuda:1, mps or cpu  [the fastest here]")),
}

# How a model is trained: most options of `ubend fit`; the rest are in cli/training.py.
_FIT_OPTIONS = {
    "size": option(
        "--size",
        type=int,
        help=later("Images are resized to the area of SIZE x SIZE pixels, aspect ratio kept  [chosen from the data]"),
    ),
    "patches": option(
        "--patches",
        is_flag=True,
        default=None,
        help=later("Train on crops at native scale (data.resize=native); --size is the side of a crop."),
    ),
    "width": option(
        "--width",
        type=int,
        help=later(
            "Channels of the first level; without --encoder, selects the plain U-Net  [64; 32 with an encoder; "
            "16 on a CPU]"
        ),
    ),
    "encoder": option(
        "--encoder",
        metavar="NAME",
        help=later(
            "Encoder, such as resnet18 (timm's have random weights without --set model.pretrained=true); none: the "
            "plain U-Net  [tf_efficientnet_lite0]"
        ),
    ),
    "set": option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help=later("Any other setting, such as train.learning_rate=3e-4; repeatable; see docs/settings.md."),
    ),
    "effort": option(
        "--effort",
        type=Choice(["quick", "normal", "best"]),
        help=later(
            "quick: a quarter of the epochs; best: trains 5 models (--folds 5), and averages their predictions of the "
            "image and of its mirror images  [normal]"
        ),
    ),
    "folds": option(
        "--folds",
        type=click.IntRange(2, 100),
        metavar="K",
        help=later(
            "Cross-validation: train K models, each without 1/K of the images; the result is one file that averages "
            "them."
        ),
    ),
    "leave-out": option(
        "--leave-out",
        type=Choice(
            ["group"],
            later("the patient, video or site of each image is named in the column group of --split"),
        ),
        help=later(
            "Cross-validation over groups (patients, videos, sites; of --split, or found): leave out one at a time."
        ),
    ),
    "seeds": option(
        "--seeds",
        type=click.IntRange(1, 100),
        metavar="N",
        help=later("Train N models on the same split, with N random seeds; report how much the scores vary."),
    ),
    "test": option(
        "--test",
        type=Choice(["none"]),
        help=later("none: no test split, so that every image belongs to a fold; only with --folds."),
    ),
}


def options(*names: str) -> Callable[[_F], _F]:
    """Some of the shared options, in this order."""

    def add(command: _F) -> _F:
        for name in reversed(names):
            command = (_FOLDER_OPTIONS | _MODEL_OPTIONS | _FIT_OPTIONS)[name](command)
        return command

    return add


def folder_options(*names: str) -> Callable[[_F], _F]:
    """Some of the options of a folder, or all."""
    return options(*(names or _FOLDER_OPTIONS))


def take_prediction_options(flags: dict[str, Any]) -> "PredictionOptions":
    """Remove the options for prediction from the flags of a command and return them."""
    from dataclasses import fields

    from ubend.portable.mask_predictor import PredictionOptions

    requested = {field.name: flags.pop(field.name) for field in fields(PredictionOptions) if field.name in flags}
    return PredictionOptions(**requested | {"tiles": parse_tiles(requested["tiles"])})


def prepare_command(deterministic: bool) -> None:
    """Import torch, and make the process exit quickly, without collecting garbage."""
    from ubend.core.device import prepare_process

    prepare_process(deterministic)
    atexit.register(gc.freeze)


def make_reporter() -> "Reporter":
    """The reporter of progress for this terminal."""
    from ubend.core.progress import Reporter

    return Reporter()


def print_scores(scores: Mapping[str, Any]) -> None:
    """Print scores, and a warning if nearly all pixels are predicted as one class."""
    from ubend.evaluation.score_tables import score_lines, warn_one_class

    for line in score_lines(scores):
        echo(line)
    warning = warn_one_class(scores)
    if warning:
        echo(warning, err=True)


def launch_ranks(gpus: int, arguments: Sequence[str]) -> int:
    """Run this command line in `gpus` processes that train together; returns their exit code."""
    from ubend.training.launcher import launch, process_rank

    if process_rank().count > 1:
        raise SettingError(
            _(
                "--gpus {count}: torchrun has started {there} processes already; leave --gpus out, "
                "and use torchrun's --nproc-per-node"
            ).format(count=gpus, there=process_rank().count),
            key="--gpus",
        )
    return launch([sys.executable, "-m", "ubend", *arguments], gpus)


def report_result(reporter: "Reporter", run: Path, scores: "Scores | None") -> None:
    """Print the scores of a training and where its model is; exit with 130 if it was interrupted."""
    from ubend.core.files import model_path
    from ubend.training.launcher import process_rank
    from ubend.training.run_folder import RunFolder

    if not process_rank().is_first:
        return
    if scores is None:
        sys.exit(130)
    print_scores(scores.data)
    reporter.report(_("report: {report}").format(report=RunFolder(run).report))
    reporter.report(
        _("model: {model}; see its predictions with `ubend show {run}`").format(
            model=model_path(run), run=shell_word(run)
        )
    )
