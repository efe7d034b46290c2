"""Commands that train and score: fit, evaluate."""

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ubend.core.click_i18n import Choice, command, option
from ubend.core.i18n import _, later
from ubend.portable.tile_options import parse_tiles
from ubend.tasks.options import PATH, folder_options, make_reporter, options, prepare_command, print_scores

ARGUMENTS = "ubend.arguments"  # key of the command-line arguments, which --gpus passes to the processes it starts


@command(help=later("Train on FOLDER of images with masks or annotations (or on data.toml), and score the model."))
@click.argument("folder", type=PATH, required=False)
@option("--out", type=PATH, help=later("Run folder to create  [runs/NAME-1, -2, ...]"))
@folder_options()
@option(
    "--recipe",
    type=Choice(["modern", "tutorial", "paper"]),
    help=later("modern: the best defaults; tutorial: as in the course text; paper: the U-Net of 2015  [modern]"),
)
@options("effort", "folds", "leave-out", "seeds", "test")
@options("size", "patches", "width", "encoder")
@option(
    "--loss",
    type=Choice(["ce", "ce-sum", "dice+ce", "logdice+ce", "dice+focal"]),
    help=later(
        "ce: cross entropy; ce-sum: summed over the pixels, as in the paper; dice+ce: and 1 - Dice; logdice+ce: and "
        "-log(Dice); dice+focal: focal loss and 1 - Dice  [logdice+ce]"
    ),
)
@option("--epochs", type=int, help=later("Number of epochs  [chosen from the data]"))
@option("--batch", type=int, help=later("Images per batch  [16; fewer with few images]"))
@option("--patience", type=int, help=later("Stop after so many epochs without a better validation score  [never]"))
@option("--skips", help=later("Skip connections to keep: all, none, or levels such as 1,2 (1 is full size)."))
@option("--seed", type=int, help=later("Random seed  [0]"))
@options("device")
@option(
    "--gpus",
    type=click.IntRange(1, 64),
    metavar="N",
    help=later("Number of GPUs of this computer to train on; with --device cpu, of processes  [1]"),
)
@option("--deterministic", is_flag=True, default=None, help=later("Bitwise reproducible training on a GPU; slower."))
@option(
    "--track",
    type=Choice(["tensorboard", "mlflow", "trackio"]),
    help=later("Also send settings, metrics and scores to this experiment tracker."),
)
@option("--config", type=PATH, help=later("TOML file of settings, such as a run's settings.toml."))
@options("set")
@option("--from", "init_from", type=PATH, metavar="MODEL", help=later("Initialise from a trained model."))
@option("--show", is_flag=True, help=later("Display images with their predicted masks after each epoch."))
@option("--watch", is_flag=True, help=later("Show curves and images on a local page while training."))
@option("--resume", "resumed", type=PATH, metavar="RUN", help=later("Resume an interrupted run."))
def fit(
    folder: Path | None,
    config: Path | None,
    assignments: tuple[str, ...],
    show: bool,
    watch: bool,
    resumed: Path | None,
    gpus: int | None,
    **flags: Any,
) -> None:
    from ubend.core.settings import parse_assignment
    from ubend.tasks.options import launch_ranks, report_result
    from ubend.tasks.user_settings import asks_for_several
    from ubend.training.launcher import process_rank

    if resumed is not None:
        given = [name for name, value in flags.items() if value is not None]
        if folder is not None or config is not None or assignments or given:
            raise click.UsageError(
                _(
                    "--resume uses the run's own folder and settings; only --show, --watch and --gpus can be given "
                    "with it"
                )
            )
        config = resumed / "settings.toml"
    settings = dict(parse_assignment(text) for text in assignments)
    several = asks_for_several(folder, config, settings, flags) is not None
    if gpus is not None and gpus != process_rank().count and not several:
        context = click.get_current_context()
        context.exit(launch_ranks(gpus, context.meta[ARGUMENTS]))
    prepare_command(
        resumed is not None or bool(flags["deterministic"])
    )  # deterministic mode is harmless for other runs
    task = import_module("ubend.tasks.several" if several else "ubend.tasks.fit")
    kwargs: dict[str, Any] = {"show": show, "watch": watch} | ({"gpus": gpus} if several else {})
    with make_reporter() as reporter:
        if resumed is not None:
            result = task.resume(resumed, reporter=reporter, **kwargs)
        else:
            kwargs |= {"config": config, "settings": settings, **flags}
            result = task.fit(folder, reporter=reporter, **kwargs)
        report_result(reporter, result.run, result.scores)


@command(help=later("Score MODEL on its own test split, or on FOLDER (its test split, if it has one)."))
@click.argument("model", type=PATH)
@click.argument("folder", type=PATH, required=False)
@folder_options("images", "masks", "split", "values", "skip-bad", "root")
@options("set-unmasked", "subset", "device", "tiles", "tta")
@option("--out", type=PATH, help=later("Also write the scores to this JSON file."))
def evaluate(
    model: Path, folder: Path | None, assignments: tuple[str, ...], out: Path | None, tiles: str | None, **flags: Any
) -> None:
    from ubend.core.files import refuse_existing, write_json
    from ubend.core.settings import parse_assignment
    from ubend.tasks.evaluate import evaluate as call

    refuse_existing([] if out is None else [out])
    settings = dict(parse_assignment(text) for text in assignments)
    with make_reporter() as reporter:
        scores = call(model, folder, settings=settings, tiles=parse_tiles(tiles), reporter=reporter, **flags)
    print_scores(scores)
    if out is not None:
        write_json(out, scores)
