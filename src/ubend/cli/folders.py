"""Commands for images and masks before training: data, preview, sample, demo, cache."""

from pathlib import Path
from typing import Any

import click

from ubend.core.click_i18n import command, option
from ubend.core.i18n import later, ngettext
from ubend.core.terminal import echo
from ubend.tasks.options import PATH, folder_options, make_reporter, options, prepare_command


@command(help=later("Describe FOLDER, draw some of its images, and write data.toml, which `fit` accepts instead."))
@click.argument("folder", type=PATH, required=False)
@folder_options()
@option("--seed", type=int, help=later("Random seed  [0]"))
@options("set")
@option("--out", type=PATH, help=later("Folder for data.toml, split.csv, samples.png  [NAME-data]"))
@option("--show", "display", is_flag=True, help=later("Also display the images."))
def data(folder: Path | None, assignments: tuple[str, ...], out: Path | None, display: bool, **flags: Any) -> None:
    from ubend.core.settings import parse_assignment

    prepare_command(False)
    from ubend.tasks.data import describe_data
    from ubend.tasks.user_settings import read_user_settings, source_name

    settings = read_user_settings(
        folder, settings=dict(parse_assignment(text) for text in assignments), flags=flags
    ).settings
    out_dir = out if out is not None else Path(f"{Path(source_name(settings)).name}-data")
    with make_reporter() as reporter:
        describe_data(settings, out_dir, show=display, reporter=reporter)


@command(help=later("Find what is wrong with FOLDER: what `data` says, and checks of images, masks and splits."))
@click.argument("folder", type=PATH, required=False)
@folder_options()
@option("--seed", type=int, help=later("Random seed  [0]"))
@options("set")
@option("--json", "json_path", type=PATH, help=later("JSON file to write, with all findings."))
@option("--html", "html_path", type=PATH, help=later("HTML page to write, with all findings and thumbnails."))
@option("--strict", is_flag=True, help=later("Fail on warnings too; exit code 2."))
@option(
    "--fix",
    type=PATH,
    metavar="OUT",
    help=later("Folder to create: a repaired copy; only what has a sure repair is changed."),
)
@option(
    "--model",
    type=PATH,
    metavar="RUN",
    help=later("Run folder or model file; masks are compared with its predictions too."),
)
@option(
    "--accept",
    "accepted",
    multiple=True,
    metavar="CHECK[:FILE]",
    help=later(
        "Accept findings, named as they are printed, until their files change; repeatable. Written to FOLDER/data.toml."
    ),
)
def doctor(
    folder: Path | None,
    assignments: tuple[str, ...],
    json_path: Path | None,
    html_path: Path | None,
    strict: bool,
    fix: Path | None,
    model: Path | None,
    accepted: tuple[str, ...],
    **flags: Any,
) -> None:
    from ubend.core.settings import parse_assignment

    prepare_command(False)
    from ubend.tasks.doctor import examine_data
    from ubend.tasks.user_settings import read_user_settings

    settings = read_user_settings(
        folder, settings=dict(parse_assignment(text) for text in assignments), flags=flags
    ).settings
    with make_reporter() as reporter:
        examine_data(
            settings,
            json_path=json_path,
            html_path=html_path,
            strict=strict,
            accepted=accepted,
            fix=fix,
            model=model,
            reporter=reporter,
        )


@command(help=later("Draw images of FOLDER with their masks, before training."))
@click.argument("folder", type=PATH, required=False)
@folder_options()
@options("set")
@option("--out", type=PATH, help=later("PNG to write  [NAME-preview-1.png, -2, ...]"))
@option("--count", type=click.IntRange(1), default=8, show_default=True, help=later("Number of images."))
@option("--show", "display", is_flag=True, help=later("Also display it."))
def preview(
    folder: Path | None, assignments: tuple[str, ...], out: Path | None, count: int, display: bool, **flags: Any
) -> None:
    from ubend.core.settings import parse_assignment
    from ubend.tasks.show import draw_samples, free_preview_name
    from ubend.tasks.user_settings import read_user_settings

    settings = read_user_settings(
        folder, settings=dict(parse_assignment(text) for text in assignments), flags=flags
    ).settings
    echo(draw_samples(settings, out or free_preview_name(settings), count=count, show=display))


@command(help=later("Write drawn microscope images with masks to FOLDER."))
@click.argument("folder", type=PATH)
@option("--count", type=click.IntRange(1), default=64, show_default=True, help=later("Number of images."))
@option(
    "--size", "size_px", type=click.IntRange(64), default=256, show_default=True, help=later("Side of an image, px.")
)
@option("--seed", type=int, default=0, show_default=True, help=later("Random seed."))
def sample(folder: Path, count: int, size_px: int, seed: int) -> None:
    from ubend.dataset.sample import draw_sample

    draw_sample(folder, count, size_px, seed)
    echo(
        ngettext("{count} image with its mask in {folder}", "{count} images with masks in {folder}", count).format(
            count=count, folder=folder
        )
    )


@command(help=later("Draw a sample data set, train, score and predict, and list the results."))
@option("--out", type=PATH, help=later("Folder to create  [ubend-demo-1, -2, ...]"))
@option("--seed", type=int, default=0, show_default=True, help=later("Random seed."))
def demo(out: Path | None, seed: int) -> None:
    prepare_command(False)
    from ubend.tasks.demo import run_demo

    with make_reporter() as reporter:
        run_demo(out, reporter=reporter, seed=seed)


@command(help=later("List or clear the cache: decoded images and downloaded data sets."))
@option("--clear", is_flag=True, help=later("Delete everything in the cache."))
def cache(clear: bool) -> None:
    from ubend.tasks.cache import clear_cache, describe_cache

    for line in clear_cache() if clear else describe_cache():
        echo(line)
