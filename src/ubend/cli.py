"""One subcommand = one function call. Nothing heavy is imported before a subcommand runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ubend import __version__
from ubend.errors import UbendError
from ubend.language import _

if TYPE_CHECKING:
    from ubend.teller import Teller

_PATH = click.Path(path_type=Path)


class _Group(click.Group):
    """Turns our errors into one clear line and exit code 2; lists subcommands in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UbendError as error:
            click.echo(_("error: {message}").format(message=error), err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo(_("interrupted"), err=True)
            ctx.exit(130)


@click.group(
    cls=_Group,
    help=_("A folder of pictures and masks in; a trained, honestly scored U-Net out."),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="ubend")
def main() -> None:
    """A folder of pictures and masks in; a trained, honestly scored U-Net out."""


@main.command(help=_("Train on FOLDER of pictures and masks, and score the model."))
@click.argument("folder", type=_PATH, required=False)
@click.option("--out", type=_PATH, help=_("Run folder to make  [runs/NAME-1, -2, ...]"))
@click.option(
    "--recipe", type=click.Choice(["modern", "tutorial"]), help=_("Group of settings to start from  [modern]")
)
@click.option("--split", type=_PATH, help=_("CSV file,split[,group] that says which picture is in which part."))
@click.option("--classes", help=_("Class names in the order of the mask values, by comma."))
@click.option("--channels", type=int, help=_("1 reads grey, 3 colour, others as many  [as the pictures are]"))
@click.option("--size", type=int, help=_("Size in pixels at which pictures are learnt."))
@click.option("--width", type=int, help=_("Channels of the network's first level."))
@click.option("--epochs", type=int, help=_("How often all pictures are shown."))
@click.option("--batch", type=int, help=_("Pictures per step."))
@click.option("--patience", type=int, help=_("Stop after so many epochs without a better validation score."))
@click.option("--skips", help=_("Skip connections to keep: all, none, or levels such as 1,2 (1 is full size)."))
@click.option("--seed", type=int, help=_("Of every random draw  [0]"))
@click.option("--device", help=_("cuda, cuda:1, mps or cpu  [the fastest here]"))
@click.option("--deterministic", is_flag=True, default=None, help=_("The same to the bit every time on a GPU; slower."))
@click.option("--config", type=_PATH, help=_("TOML file of settings, such as a run's settings.toml."))
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help=_("Any other setting; see docs/settings.md.")
)
@click.option("--show", is_flag=True, help=_("Display the panel of each epoch."))
@click.option("--resume", "resumed", type=_PATH, metavar="RUN", help=_("Go on with an interrupted run."))
def fit(
    folder: Path | None,
    config: Path | None,
    assignments: tuple[str, ...],
    show: bool,
    resumed: Path | None,
    **flags: Any,
) -> None:
    from ubend.config import parse_assignment

    if resumed is not None:
        given = [name for name, value in flags.items() if value is not None]
        if folder is not None or config is not None or assignments or given:
            raise click.UsageError(_("--resume takes the run's own folder and settings; give nothing else but --show"))
        _resume(resumed, show)
        return
    if folder is None:
        raise click.UsageError(_("name the FOLDER of pictures and masks"))
    settings = dict(parse_assignment(text) for text in assignments)
    out, recipe = flags.pop("out"), flags.pop("recipe")
    _prepare(bool(flags["deterministic"]))
    from ubend.jobs.fit import fit as call

    with _teller() as teller:
        result = call(folder, out, recipe=recipe, config=config, settings=settings, show=show, teller=teller, **flags)
        _tell_result(teller, result.run, result.scores)


@main.command(help=_("Score MODEL on its own test part, or on FOLDER (its test part, if it has one)."))
@click.argument("model", type=_PATH)
@click.argument("folder", type=_PATH, required=False)
@click.option("--part", type=click.Choice(["train", "val", "test"]), help=_("Part to score  [test]"))
@click.option("--split", type=_PATH, help=_("CSV file,split for FOLDER."))
@click.option("--device", help=_("cuda, mps or cpu  [the fastest here]"))
@click.option("--out", type=_PATH, help=_("Also write the scores to this JSON file."))
def evaluate(
    model: Path, folder: Path | None, part: str | None, split: Path | None, device: str | None, out: Path | None
) -> None:
    from ubend.errors import OutputError
    from ubend.files import write_json
    from ubend.jobs.evaluate import evaluate as call

    if out is not None and out.exists():
        raise OutputError(_("{path} exists already; choose another --out").format(path=out))
    scores = call(model, folder, part=part, split=split, device=device)  # type: ignore[arg-type]
    _tell_scores(scores)
    if out is not None:
        write_json(out, scores)


@main.command(help=_("Write masks and overlays for PATHS: pictures, or folders of them."))
@click.argument("model", type=_PATH)
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@click.option("--out", type=_PATH, required=True, help=_("Folder for masks, overlays and shares.csv."))
@click.option("--device", help=_("cuda, mps or cpu  [the fastest here]"))
def predict(model: Path, paths: tuple[Path, ...], out: Path, device: str | None) -> None:
    from ubend.jobs.predict import predict_files

    with _teller() as teller:
        targets = predict_files(model, paths, out, device=device, teller=teller)
        click.echo(_("{count} masks and overlays in {out}").format(count=len(targets), out=out))


@main.command(help=_("Draw RUN's first test pictures: input, truth, prediction."))
@click.argument("run", type=_PATH)
@click.option("--out", type=_PATH, help=_("PNG to write  [RUN/predictions.png]"))
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help=_("Pictures."))
@click.option("--show", "display", is_flag=True, help=_("Also display it."))
@click.option("--device", help=_("cuda, mps or cpu  [the fastest here]"))
def show(run: Path, out: Path | None, count: int, display: bool, device: str | None) -> None:
    from ubend.jobs.pictures import draw_predictions

    click.echo(draw_predictions(run, out, count=count, show=display, device=device))


@main.command(help=_("Draw pictures of FOLDER with their masks, before training."))
@click.argument("folder", type=_PATH)
@click.option("--out", type=_PATH, default=Path("samples.png"), show_default=True, help=_("PNG to write."))
@click.option("--count", type=click.IntRange(1), default=8, show_default=True, help=_("Pictures."))
@click.option("--show", "display", is_flag=True, help=_("Also display it."))
def samples(folder: Path, out: Path, count: int, display: bool) -> None:
    from ubend.jobs.pictures import draw_samples

    click.echo(draw_samples(folder, out, count=count, show=display))


@main.command(help=_("Say what MODEL is: network, classes, size, how it came about."))
@click.argument("model", type=_PATH)
def info(model: Path) -> None:
    from ubend.jobs.info import describe_model

    for line in describe_model(model):
        click.echo(line)


@main.command(help=_("Draw microscope pictures with masks into FOLDER."))
@click.argument("folder", type=_PATH)
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help=_("Pictures."))
@click.option("--size", "size_px", type=click.IntRange(64), default=256, show_default=True, help=_("Side in pixels."))
@click.option("--seed", type=int, default=0, show_default=True, help=_("Of the drawing."))
def sample(folder: Path, count: int, size_px: int, seed: int) -> None:
    from ubend.data.sample import draw_sample

    draw_sample(folder, count, size_px, seed)
    click.echo(_("{count} pictures with masks in {folder}").format(count=count, folder=folder))


@main.command(help=_("Draw a sample, fit, evaluate, predict, and say where to look."))
@click.option("--out", type=_PATH, default=Path("ubend-demo"), show_default=True, help=_("Folder to make."))
@click.option("--seed", type=int, default=0, show_default=True, help=_("Of every random draw."))
def demo(out: Path, seed: int) -> None:
    _prepare(False)
    from ubend.jobs.demo import run_demo

    with _teller() as teller:
        run_demo(out, teller=teller, seed=seed)


@main.command(help=_("List, or clear, the decoded pictures kept between runs."))
@click.option("--clear", is_flag=True, help=_("Delete all of it."))
def cache(clear: bool) -> None:
    from ubend.data.store import clear_stores, default_cache, list_stores

    where = default_cache()
    if clear:
        click.echo(_("{size:.1f} MiB freed in {path}").format(size=clear_stores(where) / 2**20, path=where))
        return
    stores = list_stores(where)
    for folder, size in stores:
        click.echo(f"{size / 2**20:10.1f} MiB  {folder.name}")
    total = sum(size for _folder, size in stores) / 2**20
    click.echo(_("{size:.1f} MiB in {path}; `ubend cache --clear` deletes it").format(size=total, path=where))


def _prepare(deterministic: bool) -> None:
    """What must stand before torch is imported."""
    from ubend.device import prepare_process

    prepare_process(deterministic)


def _resume(run: Path, show: bool) -> None:
    _prepare(True)  # harmless for other runs, and it must stand before torch
    from ubend.jobs.fit import resume

    with _teller() as teller:
        result = resume(run, show=show, teller=teller)
        _tell_result(teller, result.run, result.scores)


def _teller() -> "Teller":
    from ubend.teller import Teller

    return Teller()


def _tell_result(teller: "Teller", run: Path, scores: dict[str, Any] | None) -> None:
    if scores is None:
        sys.exit(130)
    _tell_scores(scores)
    teller.say(_("model: {model}; look at it with `ubend show {run}`").format(model=run / "model.safetensors", run=run))


def _tell_scores(scores: dict[str, Any]) -> None:
    from ubend.jobs.evaluate import score_lines, warn_one_class

    for line in score_lines(scores):
        click.echo(line)
    warning = warn_one_class(scores)
    if warning:
        click.echo(warning, err=True)
