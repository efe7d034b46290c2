"""Summaries of trainings, from the files in their run folders, without reading the model."""

import json
import math
import os
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ubend.core.errors import OutputError, UbendError, reason
from ubend.core.files import read_text
from ubend.core.i18n import _
from ubend.evaluation.score_tables import show_mean
from ubend.labels.class_table import background_class
from ubend.training.run_folder import RunFolder

Dice = Mapping[str, float | None]  # class name -> mean over images, 0..1; None: undefined


@dataclass(frozen=True)
class RunSummary:
    """One training.

    Attributes:
        started: local time; of runs of an earlier version, when run.json was written.
        data: name of the data folder.
        epochs: planned epochs; `done`: finished epochs.
        kept_epoch: of the weights in the model file; None: before the first validation.
        size_px: `data.size`; None: native size.
        crop_px: side of the crops; None: whole images.
        val_dice: validation scores of the kept weights, at training size.
        scored: the split that was scored at the end; None: not yet.
        images: number of scored images.
        test_dice: scores at native size.
        mean: their mean over the classes without the background, with the ends of its 95% interval; None: unknown.
        test_images: hashes of each scored image and its mask; empty: unknown.
        choices: the automatic choices among the settings, "key = value: reason".
    """

    started: datetime
    data: str
    epochs: int
    done: int
    kept_epoch: int | None
    size_px: int | None
    crop_px: int | None
    seed: int
    version: str
    val_dice: Dice | None
    scored: str | None
    images: int
    test_dice: Dice | None
    mean: Mapping[str, Any] | None
    test_images: frozenset[str]
    choices: tuple[str, ...]


def read_summary(path: Path) -> RunSummary:
    """Read a run folder.

    Raises:
        OutputError: a file of it is missing, unreadable or damaged.
    """
    run = RunFolder(path)
    file = run.facts
    try:
        facts = json.loads(read_text(file))
        started = datetime.fromisoformat(facts["began"]) if "began" in facts else _changed(file)
        started = started.astimezone()
        file = run.settings
        settings = tomllib.loads(read_text(file))
        data, train = settings["data"], settings["train"]
        epochs, seed = int(train["epochs"]), int(train["seed"])
        size, crop = (None if (px := data.get(key)) is None else int(px) for key in ("size", "crop"))
        images_and_masks = [str(data[key]) for key in ("images", "masks") if key in data]
        folder = Path(str(data.get("folder") or (images_and_masks and os.path.commonpath(images_and_masks)) or "?"))
        file = run.metrics
        if (subs := sub_runs(path, facts, data)) and not file.exists():  # the progress is that of the last training
            file = subs[-1].metrics
        rows = [json.loads(line) for line in read_text(file).splitlines()] if file.exists() else []
        best = next((row for row in reversed(rows) if row["best"]), None)
        val_dice = None if best is None else read_dice(best["val_dice"])
        file = run.scores
        scores = json.loads(read_text(file)) if file.exists() else None
        seed = int((scores or {}).get("seeds", {}).get("kept", seed))
        native = {} if scores is None else scores["native"]
        test_dice = None if scores is None else read_dice(native["dice"]["per_image"])
        return RunSummary(
            started,
            folder.name,
            epochs,
            len(rows),
            None if best is None else int(best["epoch"]),
            size,
            crop,
            seed,
            str(facts["ubend"]),
            val_dice,
            None if scores is None else str(scores["part"]),
            int(native.get("pictures", 0)),
            test_dice,
            *_read_test(scores or {}),
            choices=tuple(map(str, facts.get("choices", ()))),
        )
    except KeyError as error:
        cause = _("no {key}").format(key=error.args[0])
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        cause = reason(error) if isinstance(error, OSError) else str(error)
        if not run.facts.exists():
            line = _(
                "{path}: no run folder, since it has no {name}, or its training ended before the first step; `ubend "
                "runs {parent}` lists the runs beside it"
            )
            raise OutputError(line.format(path=path, name=run.facts.name, parent=path.parent), path=path) from error
    line = _(
        "{path}: damaged ({reason}), so dates and scores of the run are not shown; its model does not need this file"
    )
    raise OutputError(line.format(path=file, reason=" ".join(cause.split())), path=file)


def sub_runs(path: Path, facts: Mapping[str, Any], data: Mapping[str, Any]) -> list[RunFolder]:
    """The run folders of the trainings within a run of several, finished or not; empty for a run of one.

    Args:
        facts: content of run.json; runs of earlier versions do not list them there.
        data: section `data` of settings.toml.
    """
    folds = int(data["folds"]) if data.get("folds") and not data.get("held_out") else 0
    names = facts.get("sub_runs") or [f"fold-{fold}" for fold in range(1, folds + 1)]
    return [RunFolder(path / str(name)) for name in names]


def _read_test(scores: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, frozenset[str]]:
    """`mean` and `test_images` of `RunSummary`; earlier versions did not write them."""
    interval = scores.get("intervals", {}).get("dice", {}).get("mean_foreground")
    if interval is not None:
        interval = {key: interval[key] for key in ("mean", "low", "high", "t_low", "t_high", "rough")}
    images = scores.get("images", {}).values()
    return interval, frozenset(f"{image['image_hash']} {image['mask_hash']}" for image in images)


def _rank(summaries: Sequence[tuple[Path, RunSummary]]) -> list[str]:
    """A line for each set of test images that several runs of the same classes were scored on, the best run first."""
    alike = dict[tuple[frozenset[str], tuple[str, ...]], list[tuple[float, Path]]]()
    for path, run in summaries:
        if run.test_images and run.mean is not None:
            alike.setdefault((run.test_images, tuple(run.test_dice or ())), []).append((-run.mean["mean"], path))
    lines = []
    for (images, _classes), runs in alike.items():
        if len(runs) > 1:
            ranked = [path for _mean, path in sorted(runs)]
            line = _("on the same {count} images, best first: {runs}; `ubend compare {paths}` tests the differences")
            names = ", ".join(path.resolve().name for path in ranked)
            lines.append(
                line.format(count=len(images), runs=names, paths=" ".join(shlex.quote(str(path)) for path in ranked))
            )
    return lines


def list_runs(folder: Path) -> list[str]:
    """A table of the runs in a folder, newest first, and a line for each damaged run.

    Args:
        folder: a folder that contains run folders, or a run folder.
    Raises:
        OutputError: the folder is missing, or contains no run.
    """
    try:
        paths = [folder] if _is_run(folder) else sorted(path for path in folder.iterdir() if _is_run(path))
    except OSError as error:
        raise OutputError(
            _("{path}: {reason}; name the folder that contains the runs").format(path=folder, reason=reason(error)),
            path=folder,
        ) from error
    if not paths:
        raise OutputError(
            _("{path}: no run in this folder; create one with `ubend fit`").format(path=folder), path=folder
        )
    runs: list[tuple[Path, RunSummary]] = []
    damaged: list[str] = []
    for path in paths:
        try:
            runs.append((path, read_summary(path)))
        except UbendError as error:
            damaged.append(str(error))
    runs.sort(key=lambda entry: entry[1].started.timestamp(), reverse=True)
    heads = [_("run"), _("date"), _("data"), _("epochs"), _("size"), _("seed"), _("validation"), _("test")]
    table = [heads, *([path.resolve().name, *_cells(summary)] for path, summary in runs)]
    lines = align(table, right=3) if runs else []
    if runs:
        line = _("scores: Dice, mean over images and over the classes without the background, with its 95% interval")
        lines += [line, *_rank(runs)]
    return [*lines, *damaged]


def mean_dice(dice: Dice | None) -> float | None:
    """The mean over the classes without the background; None if unknown."""
    if dice is None:
        return None
    background = background_class(list(dice))
    values = [value for index, value in enumerate(dice.values()) if index != background and value is not None]
    return sum(values) / len(values) if values else None


def show_dice(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def show_date(date: datetime) -> str:
    """Day and minute."""
    return f"{date:%Y-%m-%d %H:%M}"


def align(rows: list[list[str]], right: int) -> list[str]:
    """Rows of cells as lines; columns from number `right` on are aligned to the right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < right else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, wide, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cells(run: RunSummary) -> list[str]:
    epochs = f"{run.done}" if run.done == run.epochs else f"{run.done}/{run.epochs}"
    test = show_dice(mean_dice(run.test_dice)) if run.mean is None else show_mean(run.mean)
    if run.scored not in (None, "test"):
        test = f"- ({run.scored} {test})"
    val = show_dice(mean_dice(run.val_dice))
    size = "native" if run.size_px is None else f"{run.size_px}"  # the word of data.resize
    if run.crop_px is not None:
        size = _("{size}, crops of {crop}").format(size=size, crop=run.crop_px)
    return [show_date(run.started), run.data, epochs, size, f"{run.seed}", val, test]


def _is_run(path: Path) -> bool:
    run = RunFolder(path)
    return any(map(os.path.isfile, (run.facts, run.settings, run.metrics, run.model_path)))


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime)


def read_dice(value: Any) -> Dice:
    """The Dice of each class, from an entry of scores.json without its means.

    Raises:
        ValueError, TypeError, AttributeError: the entry does not contain scores.
    """
    means = ("mean", "mean_foreground")
    dice = {str(name): None if score is None else float(score) for name, score in value.items() if name not in means}
    return {name: None if score is None or math.isnan(score) else score for name, score in dice.items()}
