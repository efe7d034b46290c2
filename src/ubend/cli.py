"""One subcommand = one function call. Nothing heavy is imported before a subcommand runs."""

import atexit
import gc
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ubend import __version__
from ubend.errors import SettingError, UbendError
from ubend.language import _, later
from ubend.translated import Group, Option, option

if TYPE_CHECKING:
    from ubend.teller import Teller

_PATH = click.Path(path_type=Path)
_F = TypeVar("_F", bound=Callable[..., Any])
_WORDS = "ubend.words"  # of the command line, so that --gpus can say them again
_FIRST_SPEAKS_S = 1.0  # of several processes that all have to say the same, the first one does, and ends the others


class _Group(Group):
    """Turns our errors into one clear line and exit code 2; lists subcommands in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UbendError as error:
            from ubend.training.launch import find_place, leave_at_once

            if not find_place().is_first:
                time.sleep(_FIRST_SPEAKS_S)
            click.echo(_("error: {message}").format(message=error), err=True)
            leave_at_once(2)
            ctx.exit(2)
        except KeyboardInterrupt:
            from ubend.training.launch import leave_at_once

            click.echo(_("interrupted"), err=True)
            leave_at_once(130)
            ctx.exit(130)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):  # click's own business
            raise
        except Exception:
            from ubend.training.launch import find_place, leave_at_once

            if find_place().count > 1:
                traceback.print_exc()
                leave_at_once(1)
            raise


# Where pictures and masks are, and what they mean: the same words in every command that reads them.
_FOLDER_OPTIONS = {
    "images": option("--images", help=later("Folder or quoted pattern of the pictures, in place of FOLDER.")),
    "masks": option("--masks", help=later("Folder or quoted pattern of the masks, with --images.")),
    "split": option("--split", type=_PATH, help=later("CSV file,split[,group]: which picture is in which part.")),
    "classes": option("--classes", help=later("Class names in the order of the mask values, by comma.")),
    "values": option("--values", help=later('What masks hold: 0=background,255=polyp or "#ff0000=road,..."')),
    "channels": option("--channels", type=int, help=later("1 reads grey, 3 colour, else so many  [as they are]")),
    "skip-bad": option("--skip-bad", is_flag=True, default=None, help=later("Leave out pairs that cannot be used.")),
    "root": option("--root", type=_PATH, help=later("Where a data set known by name lies, or goes  [the cache]")),
}


def _folder_options(*names: str) -> Callable[[_F], _F]:
    """Some of them, or all."""

    def add(command: _F) -> _F:
        for name in reversed(names or list(_FOLDER_OPTIONS)):
            command = _FOLDER_OPTIONS[name](command)
        return command

    return add


@click.group(
    cls=_Group,
    help=later("A folder of pictures and masks in; a trained, honestly scored U-Net out."),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="ubend", cls=Option, help=later("Show the version and exit."))
def main() -> None:
    """A folder of pictures and masks in; a trained, honestly scored U-Net out."""


@main.command(help=later("Train on FOLDER of pictures and masks (or oxford-pet, kvasir-seg), and score the model."))
@click.argument("folder", type=_PATH, required=False)
@option("--out", type=_PATH, help=later("Run folder to make  [runs/NAME-1, -2, ...]"))
@_folder_options()
@option("--recipe", type=click.Choice(["modern", "tutorial"]), help=later("Group of settings to start from  [modern]"))
@option("--size", type=int, help=later("Size in pixels at which pictures are learnt."))
@option("--width", type=int, help=later("Channels of the network's first level."))
@option("--loss", type=click.Choice(["ce", "dice+ce", "dice+focal"]), help=later("Loss function  [dice+ce]"))
@option("--epochs", type=int, help=later("How often all pictures are shown."))
@option("--batch", type=int, help=later("Pictures per step."))
@option("--patience", type=int, help=later("Stop after so many epochs without a better validation score."))
@option("--skips", help=later("Skip connections to keep: all, none, or levels such as 1,2 (1 is full size)."))
@option("--seed", type=int, help=later("Of every random draw  [0]"))
@option("--device", help=later("cuda, cuda:1, mps or cpu  [the fastest here]"))
@option("--gpus", type=click.IntRange(1), metavar="N", help=later("Train on so many GPUs of this computer  [1]"))
@option("--deterministic", is_flag=True, default=None, help=later("The same to the bit every time on a GPU; slower."))
@option("--config", type=_PATH, help=later("TOML file of settings, such as a run's settings.toml."))
@option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help=later("Any other setting; see docs/settings.md.")
)
@option("--from", "init_from", type=_PATH, metavar="MODEL", help=later("Begin with the weights of a trained model."))
@option("--show", is_flag=True, help=later("Display the panel of each epoch."))
@option("--resume", "resumed", type=_PATH, metavar="RUN", help=later("Go on with an interrupted run."))
def fit(
    folder: Path | None,
    config: Path | None,
    assignments: tuple[str, ...],
    show: bool,
    resumed: Path | None,
    gpus: int | None,
    **flags: Any,
) -> None:
    from ubend.config import parse_assignment
    from ubend.training.launch import find_place

    if resumed is not None:
        given = [name for name, value in flags.items() if value is not None]
        if folder is not None or config is not None or assignments or given:
            raise click.UsageError(
                _("--resume takes the run's own folder and settings; give nothing else but --show and --gpus")
            )
    if gpus is not None and gpus != find_place().count:
        _launch(gpus)
        return
    if resumed is not None:
        _resume(resumed, show)
        return
    settings = dict(parse_assignment(text) for text in assignments)
    out, recipe = flags.pop("out"), flags.pop("recipe")
    _prepare(bool(flags["deterministic"]))
    from ubend.jobs.fit import fit as call

    with _teller() as teller:
        result = call(folder, out, recipe=recipe, config=config, settings=settings, show=show, teller=teller, **flags)
        _tell_result(teller, result.run, result.scores)


def _launch(gpus: int) -> None:
    """This command line in so many processes; ends with their exit code."""
    from ubend.training.launch import find_place, launch

    if find_place().count > 1:
        raise SettingError(
            _("--gpus {count}: there are {there} processes already; torchrun's --nproc-per-node says how many").format(
                count=gpus, there=find_place().count
            )
        )
    context = click.get_current_context()
    context.exit(launch([sys.executable, "-m", "ubend", *context.meta[_WORDS]], gpus))


@main.command(help=later("Score MODEL on its own test part, or on FOLDER (its test part, if it has one)."))
@click.argument("model", type=_PATH)
@click.argument("folder", type=_PATH, required=False)
@_folder_options("images", "masks", "split", "values", "root")
@option("--part", type=click.Choice(["train", "val", "test"]), help=later("Part to score  [test]"))
@option("--device", help=later("cuda, mps or cpu  [the fastest here]"))
@option("--out", type=_PATH, help=later("Also write the scores to this JSON file."))
def evaluate(model: Path, folder: Path | None, out: Path | None, **flags: Any) -> None:
    from ubend.errors import OutputError
    from ubend.files import write_json
    from ubend.jobs.evaluate import evaluate as call

    if out is not None and out.exists():
        raise OutputError(_("{path} exists already; choose another --out").format(path=out))
    scores = call(model, folder, **flags)
    _tell_scores(scores)
    if out is not None:
        write_json(out, scores)


@main.command(
    help=later(
        "Write masks for PATHS: pictures, folders, patterns, or - for a list of them; videos; scans (NIfTI, DICOM)."
    )
)
@click.argument("model", type=_PATH)
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@option("--out", type=_PATH, required=True, help=later("Folder for masks, overlays and shares.csv."))
@option("--tiles", metavar="PX", help=later("Side of tiles at the pictures' own scale; whole: none  [as trained]"))
@option("--overlap", type=float, default=0.25, show_default=True, help=later("Share that neighbouring tiles share."))
@option("--with", "models", type=_PATH, multiple=True, help=later("Another model, to average with; repeatable."))
@option("--tta", is_flag=True, help=later("Average over mirror images, and turns where trained with them."))
@option("--threshold", metavar="CLASS=P", multiple=True, help=later("Take CLASS from this probability on; repeatable."))
@option("--min-area", metavar="[CLASS=]PX", multiple=True, help=later("Drop smaller parts; repeatable."))
@option("--fill-holes", metavar="[CLASS=]PX", multiple=True, help=later("Fill holes up to PX, or all; repeatable."))
@option("--resume", is_flag=True, help=later("Leave the masks that are there already, and make the others."))
@option("--window", help=later("Of scans (NIfTI, DICOM): lung, or CENTER,WIDTH, becomes 8 bit."))
@option("--device", help=later("cuda, mps or cpu  [the fastest here]"))
def predict(model: Path, paths: tuple[Path, ...], out: Path, tiles: str | None, **flags: Any) -> None:
    from ubend.inference.conditions import Conditions
    from ubend.jobs.predict_any import predict_paths

    side = None if tiles is None else 0 if tiles == "whole" else int(tiles) if tiles.isdecimal() else -1
    if side == -1:
        raise SettingError(_("--tiles {tiles}: give a side in px, or 0 for whole pictures").format(tiles=tiles))
    conditions = Conditions(*(flags.pop(name) for name in ("models", "tta", "threshold", "min_area", "fill_holes")))
    with _teller() as teller:
        predict_paths(model, paths, out, conditions=conditions, tiles=side, teller=teller, **flags)


@main.command(help=later("Cut a class out of PATHS: onto transparency, a colour or another picture."))
@click.argument("model", type=_PATH)
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@option("--out", type=_PATH, required=True, help=later("Folder for the cut-outs."))
@option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS",
    help=later("What to cut out; may be repeated, contour=0.5 counts half  [the only one]"),
)
@option(
    "--background",
    default="transparent",
    show_default=True,
    metavar="COLOR|PICTURE",
    help=later("What to lay behind it."),
)
@option("--soft", "soft_px", type=float, metavar="PX", help=later("Width of the edge  [as unsure as the model is]"))
@option("--device", help=later("cuda, mps or cpu  [the fastest here]"))
def cutout(model: Path, paths: tuple[Path, ...], out: Path, **words: Any) -> None:
    from ubend.jobs.cutout import cut_out_files

    with _teller() as teller:
        targets = cut_out_files(model, paths, out, teller=teller, **words)
        click.echo(_("{count} cut-outs in {out}").format(count=len(targets), out=out))


@main.command(help=later("Number the objects in PATHS, measure and outline them."))
@click.argument("model", type=_PATH)
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@option("--out", type=_PATH, required=True, help=later("Folder for ids, outlines and objects.csv."))
@option(
    "--method", type=click.Choice(["contour", "parts", "distance"]), help=later("How touching objects are told apart.")
)
@option("--min-area", type=click.IntRange(1), default=1, show_default=True, help=later("Leave smaller ones out, px."))
@option("--device", help=later("cuda, mps or cpu  [the fastest here]"))
def objects(model: Path, paths: tuple[Path, ...], out: Path, **flags: Any) -> None:
    from ubend.jobs.objects import find_objects

    with _teller() as teller:
        targets = find_objects(model, paths, out, teller=teller, **flags)
        click.echo(_("objects of {count} pictures in {out}").format(count=len(targets), out=out))


@main.command(help=later("Draw RUN's first test pictures: input, truth, prediction."))
@click.argument("run", type=_PATH)
@option("--out", type=_PATH, help=later("PNG to write  [RUN/predictions.png]"))
@option("--count", type=click.IntRange(1), default=10, show_default=True, help=later("Pictures."))
@option("--show", "display", is_flag=True, help=later("Also display it."))
@option("--device", help=later("cuda, mps or cpu  [the fastest here]"))
def show(run: Path, out: Path | None, count: int, display: bool, device: str | None) -> None:
    from ubend.jobs.pictures import draw_predictions

    click.echo(draw_predictions(run, out, count=count, show=display, device=device))


@main.command(help=later("Say what FOLDER holds, draw it, and write data.toml, which `fit` takes in its place."))
@click.argument("folder", type=_PATH, required=False)
@_folder_options()
@option("--seed", type=int, help=later("Of every random draw  [0]"))
@option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help=later("Any other setting; see docs/settings.md.")
)
@option("--out", type=_PATH, help=later("Folder for data.toml, split.csv, samples.png  [NAME-data]"))
@option("--show", "display", is_flag=True, help=later("Also display the pictures."))
def data(folder: Path | None, assignments: tuple[str, ...], out: Path | None, display: bool, **flags: Any) -> None:
    from ubend.config import parse_assignment

    _prepare(False)
    from ubend.jobs.data import understand
    from ubend.jobs.gather import gather_settings, source_name

    settings = gather_settings(folder, settings=dict(parse_assignment(text) for text in assignments), flags=flags)
    place = out if out is not None else Path(f"{Path(source_name(settings)).name}-data")
    with _teller() as teller:
        understand(settings, place, show=display, teller=teller)


@main.command(help=later("Draw pictures of FOLDER with their masks, before training."))
@click.argument("folder", type=_PATH, required=False)
@_folder_options()
@option("--out", type=_PATH, default=Path("samples.png"), show_default=True, help=later("PNG to write."))
@option("--count", type=click.IntRange(1), default=8, show_default=True, help=later("Pictures."))
@option("--show", "display", is_flag=True, help=later("Also display it."))
def samples(folder: Path | None, out: Path, count: int, display: bool, **flags: Any) -> None:
    from ubend.jobs.gather import gather_settings
    from ubend.jobs.pictures import draw_samples

    settings = gather_settings(folder, flags=flags)
    click.echo(draw_samples(settings, out, count=count, show=display))


@main.command(help=later("Say what MODEL is: network, classes, size, how it came about."))
@click.argument("model", type=_PATH)
def info(model: Path) -> None:
    from ubend.jobs.info import describe_model

    for line in describe_model(model):
        click.echo(line)


@main.command(help=later("Draw microscope pictures with masks into FOLDER."))
@click.argument("folder", type=_PATH)
@option("--count", type=click.IntRange(1), default=64, show_default=True, help=later("Pictures."))
@option("--size", "size_px", type=click.IntRange(64), default=256, show_default=True, help=later("Side in pixels."))
@option("--seed", type=int, default=0, show_default=True, help=later("Of the drawing."))
def sample(folder: Path, count: int, size_px: int, seed: int) -> None:
    from ubend.data.sample import draw_sample

    draw_sample(folder, count, size_px, seed)
    click.echo(_("{count} pictures with masks in {folder}").format(count=count, folder=folder))


@main.command(help=later("Draw a sample, fit, evaluate, predict, and say where to look."))
@option("--out", type=_PATH, default=Path("ubend-demo"), show_default=True, help=later("Folder to make."))
@option("--seed", type=int, default=0, show_default=True, help=later("Of every random draw."))
def demo(out: Path, seed: int) -> None:
    _prepare(False)
    from ubend.jobs.demo import run_demo

    with _teller() as teller:
        run_demo(out, teller=teller, seed=seed)


@main.command(help=later("List, or clear, what is kept between runs: decoded pictures, downloaded data, kernels."))
@option("--clear", is_flag=True, help=later("Delete all of it."))
def cache(clear: bool) -> None:
    from ubend.jobs.cache import clear_cache, describe_cache

    for line in clear_cache() if clear else describe_cache():
        click.echo(line)


def _prepare(deterministic: bool) -> None:
    """torch, and a process that ends soon after its last word: all its memory goes back at once, garbage or not."""
    from ubend.device import prepare_process

    prepare_process(deterministic)
    atexit.register(gc.freeze)


def _resume(run: Path, show: bool) -> None:
    _prepare(True)  # harmless for other runs
    from ubend.jobs.fit import resume

    with _teller() as teller:
        result = resume(run, show=show, teller=teller)
        _tell_result(teller, result.run, result.scores)


def _teller() -> "Teller":
    from ubend.teller import Teller

    return Teller()


def _tell_result(teller: "Teller", run: Path, scores: dict[str, Any] | None) -> None:
    from ubend.training.launch import find_place

    if not find_place().is_first:
        return
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
