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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ubend")
def main() -> None:
    """A folder of pictures and masks in; a trained, honestly scored U-Net out."""


@main.command()
@click.argument("folder", type=_PATH, required=False)
@click.option("--out", type=_PATH, help="Run folder to make  [runs/NAME-1, -2, ...]")
@click.option("--recipe", type=click.Choice(["modern", "tutorial"]), help="Group of settings to start from  [modern]")
@click.option("--split", type=_PATH, help="CSV file,split[,group] that says which picture is in which part.")
@click.option("--classes", help="Class names in the order of the mask values, by comma.")
@click.option("--size", type=int, help="Size in pixels at which pictures are learnt.")
@click.option("--width", type=int, help="Channels of the network's first level.")
@click.option("--epochs", type=int, help="How often all pictures are shown.")
@click.option("--batch", type=int, help="Pictures per step.")
@click.option("--patience", type=int, help="Stop after so many epochs without a better validation score.")
@click.option("--skips", help="Skip connections to keep: all, none, or levels such as 1,2 (1 is full size).")
@click.option("--seed", type=int, help="Of every random draw  [0]")
@click.option("--device", help="cuda, cuda:1, mps or cpu  [the fastest here]")
@click.option("--deterministic", is_flag=True, default=None, help="The same to the bit every time on a GPU; slower.")
@click.option("--config", type=_PATH, help="TOML file of settings, such as a run's settings.toml.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any other setting; see docs/settings.md."
)
@click.option("--show", is_flag=True, help="Display the panel of each epoch.")
@click.option("--resume", "resumed", type=_PATH, metavar="RUN", help="Go on with an interrupted run.")
def fit(
    folder: Path | None,
    config: Path | None,
    assignments: tuple[str, ...],
    show: bool,
    resumed: Path | None,
    **flags: Any,
) -> None:
    """Train on FOLDER of pictures and masks, and score the model."""
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
    if flags["classes"] is not None:
        flags["classes"] = tuple(name.strip() for name in flags["classes"].split(","))
    if flags["split"] is not None:
        flags["split"] = str(flags["split"].resolve())
    if flags["skips"] is not None:
        depth = settings.get("model.depth")
        flags["skips"] = _parse_skips(flags["skips"], depth if isinstance(depth, int) else 4)
    _prepare(bool(flags["deterministic"]))
    from ubend.jobs.fit import fit as call

    with _teller() as teller:
        result = call(folder, out, recipe=recipe, config=config, settings=settings, show=show, teller=teller, **flags)
        _tell_result(teller, result.run, result.scores)


@main.command()
@click.argument("model", type=_PATH)
@click.argument("folder", type=_PATH, required=False)
@click.option("--part", type=click.Choice(["train", "val", "test"]), help="Part to score  [test]")
@click.option("--split", type=_PATH, help="CSV file,split for FOLDER.")
@click.option("--device", help="cuda, mps or cpu  [the fastest here]")
@click.option("--out", type=_PATH, help="Also write the scores to this JSON file.")
def evaluate(
    model: Path, folder: Path | None, part: str | None, split: Path | None, device: str | None, out: Path | None
) -> None:
    """Score MODEL (a run or a model file) on its own test part, or on FOLDER."""
    from ubend.errors import OutputError
    from ubend.files import write_json
    from ubend.jobs.evaluate import evaluate as call

    if out is not None and out.exists():
        raise OutputError(_("{path} exists already; choose another --out").format(path=out))
    scores = call(model, folder, part=part, split=split, device=device)  # type: ignore[arg-type]
    _tell_scores(scores)
    if out is not None:
        write_json(out, scores)


@main.command()
@click.argument("model", type=_PATH)
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@click.option("--out", type=_PATH, required=True, help="Folder for masks, overlays and shares.csv.")
@click.option("--device", help="cuda, mps or cpu  [the fastest here]")
def predict(model: Path, paths: tuple[Path, ...], out: Path, device: str | None) -> None:
    """Write masks and overlays for PATHS: pictures, or folders of them."""
    from ubend.jobs.predict import predict_files

    with _teller() as teller:
        targets = predict_files(model, paths, out, device=device, teller=teller)
        click.echo(_("{count} masks and overlays in {out}").format(count=len(targets), out=out))


@main.command()
@click.argument("run", type=_PATH)
@click.option("--out", type=_PATH, help="PNG to write  [RUN/predictions.png]")
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="Pictures.")
@click.option("--show", "display", is_flag=True, help="Also display it.")
@click.option("--device", help="cuda, mps or cpu  [the fastest here]")
def show(run: Path, out: Path | None, count: int, display: bool, device: str | None) -> None:
    """Draw RUN's first test pictures: input, truth, prediction."""
    from ubend.jobs.pictures import draw_predictions

    click.echo(draw_predictions(run, out, count=count, show=display, device=device))


@main.command()
@click.argument("folder", type=_PATH)
@click.option("--out", type=_PATH, default=Path("samples.png"), show_default=True, help="PNG to write.")
@click.option("--count", type=click.IntRange(1), default=8, show_default=True, help="Pictures.")
@click.option("--show", "display", is_flag=True, help="Also display it.")
def samples(folder: Path, out: Path, count: int, display: bool) -> None:
    """Draw pictures of FOLDER with their masks, before training."""
    from ubend.jobs.pictures import draw_samples

    click.echo(draw_samples(folder, out, count=count, show=display))


@main.command()
@click.argument("model", type=_PATH)
def info(model: Path) -> None:
    """Say what MODEL is: network, classes, size, how it came about."""
    from ubend.jobs.info import describe_model

    for line in describe_model(model):
        click.echo(line)


@main.command()
@click.argument("folder", type=_PATH)
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help="Pictures.")
@click.option("--size", "size_px", type=click.IntRange(64), default=256, show_default=True, help="Side in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the drawing.")
def sample(folder: Path, count: int, size_px: int, seed: int) -> None:
    """Draw microscope pictures with masks into FOLDER."""
    from ubend.data.sample import draw_sample

    draw_sample(folder, count, size_px, seed)
    click.echo(_("{count} pictures with masks in {folder}").format(count=count, folder=folder))


@main.command()
@click.option("--out", type=_PATH, default=Path("ubend-demo"), show_default=True, help="Folder to make.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random draw.")
def demo(out: Path, seed: int) -> None:
    """Draw a sample, fit, evaluate, predict, and say where to look."""
    _prepare(False)
    from ubend.jobs.demo import run_demo

    with _teller() as teller:
        run_demo(out, teller=teller, seed=seed)


@main.command()
@click.option("--clear", is_flag=True, help="Delete all of it.")
def cache(clear: bool) -> None:
    """List, or clear, the decoded pictures kept between runs."""
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


def _parse_skips(text: str, depth: int) -> tuple[bool, ...]:
    from ubend.errors import SettingError

    if text in ("all", "none"):
        return (text == "all",) * depth
    try:
        levels = {int(word) for word in text.split(",")}
    except ValueError:
        levels = {0}
    if not levels <= set(range(1, depth + 1)):
        raise SettingError(
            _("--skips {text}: give all, none, or levels from 1 to {depth}").format(text=text, depth=depth)
        )
    return tuple(level in levels for level in range(1, depth + 1))


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
