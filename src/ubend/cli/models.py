"""Commands that show, compare and export models and runs: show, info, compare, report, runs, export."""

from pathlib import Path
from typing import Any

import click

from ubend.core.click_i18n import Choice, command, option
from ubend.core.i18n import later
from ubend.core.terminal import echo
from ubend.exporting.targets import PRECISION_NAMES, TARGETS
from ubend.tasks.options import PATH, make_reporter, options


@command(help=later("Draw the first or the worst test images of RUN: input, truth, prediction."))
@click.argument("run", type=PATH)
@option("--worst", is_flag=True, help=later("Draw the images with the lowest scores, with score and error map."))
@options("subset")
@option("--out", type=PATH, help=later("PNG to write  [RUN/predictions.png, or RUN/worst.png]"))
@option("--count", type=click.IntRange(1), default=10, show_default=True, help=later("Number of images."))
@option("--show", "display", is_flag=True, help=later("Also display it."))
@options("device")
def show(run: Path, out: Path | None, display: bool, **flags: Any) -> None:
    from ubend.tasks.show import draw_predictions

    echo(draw_predictions(run, out, show=display, **flags))


@command(help=later("Describe MODEL: network, classes, size, training, scores, automatic choices."))
@click.argument("model", type=PATH)
def info(model: Path) -> None:
    from ubend.tasks.info import describe_model

    for line in describe_model(model):
        echo(line)


@command(help=later("Compare RUNS (run folders, or files of `ubend evaluate --out`) on the same test images."))
@click.argument("runs", nargs=-1, required=True, metavar="RUNS...", type=PATH)
@option(
    "--margin",
    type=float,
    default=0.01,
    show_default=True,
    help=later("Largest difference of Dice that does not matter: within it, models count as equal."),
)
@option("--json", "out", type=PATH, help=later("Also write the comparison to this JSON file."))
def compare(runs: tuple[Path, ...], margin: float, out: Path | None) -> None:
    from ubend.tasks.compare import compare as call

    for line in str(call(runs, margin=margin, out=out)).splitlines():
        echo(line)


@command(help=later("Write the report of a run, or the comparison of several RUNS: one HTML file, readable offline."))
@click.argument("runs", nargs=-1, required=True, metavar="RUNS...", type=PATH)
@option(
    "--out",
    type=PATH,
    help=later("File to write  [RUN/report.html; of several: FIRST/comparison.html; with --card: RUN/README.md]"),
)
@option(
    "--card",
    is_flag=True,
    help=later("Write the model card instead: README.md in the format of the Hugging Face Hub, with the scores."),
)
@options("device")
def report(runs: tuple[Path, ...], out: Path | None, card: bool, device: str | None) -> None:
    if card:
        from ubend.tasks.card import write_card

        echo(write_card(runs, out))
        return
    from ubend.tasks.report import write_report

    echo(write_report(runs, out, device=device))


@command(help=later("List the runs in FOLDER (default: runs), newest first: data, settings, scores."))
@click.argument("folder", type=PATH, default=Path("runs"), required=False)
def runs(folder: Path) -> None:
    from ubend.tasks.runs import list_runs

    for line in list_runs(folder):
        echo(line)


@command(
    help=later(
        "Write MODEL as one file for other programs, after checking that predictions agree within stated limits."
    )
)
@click.argument("model", type=PATH)
@option("--to", type=Choice(TARGETS), default="onnx", show_default=True, help=later("Kind of the file; web: a page."))
@option("--out", type=PATH, help=later("File or folder to write  [RUN/model.onnx; web: RUN/web, RUN/model.html]"))
@option(
    "--precision",
    type=Choice(PRECISION_NAMES),
    default="fp32",
    show_default=True,
    help=later(
        "Precision of the file: onnx fp32, fp16 (half as large), int8; openvino fp32, bf16, int8; web fp32, fp16."
    ),
)
@option("--single-file", is_flag=True, help=later("web: one HTML file of at most 30 MB, which opens from the disk."))
@option(
    "--ort-web",
    type=PATH,
    help=later("web: folder in which `npm pack onnxruntime-web` was run  [downloaded once from npm's registry]"),
)
def export(model: Path, **flags: Any) -> None:
    from ubend.tasks.export import export as call

    with make_reporter() as reporter:
        call(model, reporter=reporter, **flags)
