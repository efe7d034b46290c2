"""Describe a model, from its file and its run folder."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ubend.core.errors import UbendError
from ubend.core.files import EXPORTED_SUFFIX, model_path
from ubend.core.i18n import _, ngettext
from ubend.labels.label_values import format_values
from ubend.models.exported import load_model
from ubend.portable.images import describe_sizing
from ubend.tasks.runs import Dice, read_dice, read_summary, show_date, show_dice
from ubend.training.run_folder import RunFolder


def describe_model(path: Path | str) -> list[str]:
    """Lines to print: network, classes with colours and mask values, size, normalisation, origin, scores, choices.

    Args:
        path: a run folder, or a model file; date, test scores and automatic choices are read from the run folder that
            contains it.
    """
    bundle = load_model(Path(path))
    net, labels, sizing = bundle.model, bundle.labels, bundle.sizing
    lines = [
        *net.describe(),
        describe_sizing(sizing.size_px, sizing.keep_aspect, sizing.channels),
        _("normalisation: mean {mean}, standard deviation {std} (inside the model)").format(
            mean=[round(v, 2) for v in net.mean.flatten().tolist()],
            std=[round(v, 2) for v in net.std.flatten().tolist()],
        ),
        _("classes:"),
    ]
    for index, (name, values, color) in enumerate(zip(labels.names, labels.codes, labels.colors, strict=True)):
        value = format_values(values, labels.kind) or _("all others")
        lines.append(f"  {index} {name}  " + _("mask value {value}, colour {color}").format(value=value, color=color))
    return [*lines, *_describe_training(bundle.about, model_path(Path(path)))]


def _describe_training(about: Mapping[str, Any], path: Path) -> list[str]:
    """Lines on origin and scores, from the model file and from its run folder, if it is in one."""
    titles = {"data": _("data"), "recipe": _("recipe"), "training_pictures": _("training images"), "seed": _("seed")}
    titles["encoder_weights"] = _("encoder weights")
    listed = {
        key: value
        for key, value in about.items()
        if key not in ("epochs", "kept_epoch", "val_dice", "out_of_fold_dice")
    }
    lines = [f"{titles.get(key, key)}: {value}" for key, value in listed.items()]
    with suppress(KeyError, ValueError, TypeError, AttributeError):  # the entry is missing or malformed
        lines.append(_describe_dice(_("out of fold, at native size"), read_dice(about["out_of_fold_dice"])))
    run = RunFolder(path.parent)
    summary, cause = None, _("date and test scores: unknown, because the file is not in its run folder")
    if path == run.model_path and run.facts.exists():
        try:
            summary = read_summary(path.parent)
        except UbendError as error:
            cause = str(error)
    if summary is None:
        if "epochs" in about:
            lines.append(_describe_epochs(about["epochs"], about["epochs"], about.get("kept_epoch")))
        with suppress(KeyError, ValueError, TypeError, AttributeError):  # the entry is missing or malformed
            lines.append(_describe_dice(_("validation, at training size"), read_dice(about["val_dice"])))
        return lines if path.suffix == EXPORTED_SUFFIX else [*lines, cause]  # that describes its scores itself
    lines.append(_("trained: {date}").format(date=show_date(summary.started)))
    if "seed" not in about:
        lines.append(f"{titles['seed']}: {summary.seed}")
    lines.append(_describe_epochs(summary.done, summary.epochs, summary.kept_epoch))
    if summary.val_dice is not None:
        lines.append(_describe_dice(_("validation, at training size"), summary.val_dice))
    choices = [_("chosen: {choice}").format(choice=choice) for choice in summary.choices]
    if summary.test_dice is None:
        return [*lines, _("test: not scored; `ubend evaluate {run}` scores it").format(run=path.parent), *choices]
    title = ngettext(
        "{subset}, {count} image at native size", "{subset}, {count} images at native size", summary.images
    ).format(subset=summary.scored, count=summary.images)
    return [*lines, _describe_dice(title, summary.test_dice), *choices]


def _describe_epochs(done: int, epochs: int, kept: int | None) -> str:
    line = (
        _("epochs: {done} of {epochs}")
        if kept is None
        else _("epochs: {done} of {epochs}, weights kept from epoch {kept}")
    )
    return line.format(done=done, epochs=epochs, kept=kept)


def _describe_dice(title: str, dice: Dice) -> str:
    return f"{title}: Dice " + ", ".join(f"{name} {show_dice(value)}" for name, value in dice.items())
