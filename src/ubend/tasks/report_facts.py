"""The facts of a report, read from the files of a run, as frozen values for the page."""

import json
import math
import shlex
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ubend.core.errors import OutputError, reason
from ubend.core.files import read_text
from ubend.core.i18n import _, ngettext
from ubend.core.progress import show_duration
from ubend.doctor.finding import read_findings
from ubend.doctor.finding_text import describe_evidence, limit_findings, name_check, name_files, name_grade
from ubend.evaluation.comparison import read_scores, show_interval
from ubend.evaluation.intervals import mean_intervals
from ubend.evaluation.score_tables import (
    DISTANCES,
    Scores,
    main_row,
    measure_names,
    row_name,
    seed_lines,
    show_mean,
    show_unit,
)
from ubend.labels.class_table import LabelMap, background_class
from ubend.layouts.pairs import SPLITS, Pair, SplitName
from ubend.portable.printable import some_names
from ubend.tasks.evaluate import read_run_rows
from ubend.tasks.report_missed import MissedFacts, read_missed
from ubend.tasks.runs import RunSummary, read_summary, show_date, sub_runs
from ubend.tasks.show import score_images
from ubend.training.run_folder import RunFolder

_CONFUSIONS = 12  # number of confusions that are listed, the largest first
_UNLEARNT_DICE = 0.1  # a class with a lower mean Dice is named as hardly learnt
_FIRST_DECIMAL, _SECOND_DECIMAL = 0.05, 0.005  # half the width of an interval that makes this decimal uncertain


@dataclass(frozen=True)
class MeasureRow:
    """One measure of the main class, or its mean over all classes except the background, as text."""

    name: str
    mean: str
    median: str
    worst: str
    pooled: str


@dataclass(frozen=True)
class ClassRow:
    """A class: share of the pixels in the truth, number of images with it, measures as text."""

    name: str
    color: str
    share: str
    images: int
    dice: str
    iou: str
    precision: str
    recall: str
    boundary: str
    hausdorff: str


@dataclass(frozen=True)
class GroupRow:
    """A group that was left out: its number of images, its scores by the model trained without it, as text."""

    name: str
    images: int
    dice: str
    iou: str


@dataclass(frozen=True)
class Confusion:
    """Pixels of class `truth` that were predicted as `prediction`, as a share of the pixels of `truth`, 0..1."""

    truth: str
    prediction: str
    share: float


@dataclass(frozen=True)
class FindingRow:
    """A finding of the quick checks; `title` is its grade and check, `grade` one of `GRADES`."""

    grade: str
    title: str
    message: str
    repair: str
    files: str
    evidence: str


@dataclass(frozen=True)
class SplitRow:
    """A split: its number of images, and of their groups."""

    name: str
    images: int
    groups: int


@dataclass(frozen=True)
class RunFacts:
    """A finished run.

    Attributes:
        name: of the run folder.
        summary: see `read_summary`.
        scores: of its test images.
        labels: the class table.
        pairs: of the scored images, by name; empty if the data list is missing.
        image_dice: name of each scored image -> its Dice, 0..1.
        sentences: a short summary.
        measures, row, over, rough: the scores; their class or mean; the number of images or groups of their intervals;
            whether the intervals are rough.
        classes, confusions: scores of each class; the largest confusions.
        groups: the groups that were left out, and their mean; empty without `data.leave_out`.
        seed_lines: scores of several seeds; empty without `train.seeds`.
        calibration: `bins` of the scores; None: not available or not meaningful for this model.
        expected_error: expected calibration error; None: unknown.
        history: rows of metrics.jsonl, for curves; `validation`: a sentence on the epoch that was kept.
        splits, split_lines: how the images were split, without empty splits, and leaks between splits.
        missed: the missed objects; None: unknown, or no objects.
        findings: of the quick checks of the data; None: not recorded.
        findings_left: lines on findings that are not listed.
        times: (phase, duration).
        choices: (setting, value, reason) of the automatic choices.
        date: when the training began.
        settings: settings.toml.
        versions: (name, version).
        command: the command that repeats the training.
    """

    name: str
    summary: RunSummary
    scores: Scores
    labels: LabelMap
    pairs: Mapping[str, Pair]
    image_dice: Mapping[str, float]
    sentences: tuple[str, ...]
    measures: tuple[MeasureRow, ...]
    row: str
    over: str
    rough: bool
    classes: tuple[ClassRow, ...]
    confusions: tuple[Confusion, ...]
    groups: tuple[GroupRow, ...]
    seed_lines: tuple[str, ...]
    calibration: Sequence[Mapping[str, float | None]] | None
    expected_error: float | None
    history: Sequence[Mapping[str, Any]]
    validation: str
    splits: tuple[SplitRow, ...]
    split_lines: tuple[str, ...]
    missed: MissedFacts | None
    findings: tuple[FindingRow, ...] | None
    findings_left: tuple[str, ...]
    times: tuple[tuple[str, str], ...]
    choices: tuple[tuple[str, str, str], ...]
    date: str
    settings: str
    versions: tuple[tuple[str, str], ...]
    command: str


def read_facts(path: Path) -> RunFacts:
    """The facts of a run folder.

    Raises:
        OutputError: it has no scores, or a file of it is missing or damaged.
    """
    summary, scores = read_summary(path), read_scores(path)
    run = RunFolder(path)
    rows = read_run_rows(path)
    try:
        about, settings = json.loads(read_text(run.facts)), read_text(run.settings)
        labels = TypeAdapter(LabelMap).validate_python(about["classes"])
        data = tomllib.loads(settings)["data"]
        parts = sub_runs(path, about, data)
        folds = None if "seeds" in scores.data else len(parts)
        history, times = _read_logs(run, parts)
        findings, findings_left = _read_findings(parts[0] if parts else run)
        bins = (scores.data.get("calibration") or {}).get("bins")
        rough, over, measures = _measures(scores)
        splits, split_lines = _describe_splits(rows, scores, about, data.get("split_seed", summary.seed))
        image_dice = score_images(scores.data["per_picture"], labels)
        pairs = {pair.name: pair for pair, _hashes in rows if pair.name in image_dice}
        error = (scores.data.get("calibration") or {}).get("expected_error")
        leaked = len(_find_leaked(rows, scores)[0])
        sentences = _sentences(summary, scores, labels, splits, list(image_dice.values()), leaked, folds)
        choices = tuple(_split_choice(line) for line in about["choices"])
        versions = tuple((name, str(about[name])) for name in ("ubend", "torch", "numpy", "python", "device"))
        return RunFacts(
            name=path.resolve().name,
            summary=summary,
            scores=scores,
            labels=labels,
            pairs=pairs,
            image_dice=image_dice,
            sentences=sentences,
            measures=measures,
            row=row_name(main_row(list(labels.names))),
            over=over,
            rough=rough,
            classes=_class_rows(scores, labels),
            confusions=_confusions(scores),
            groups=_group_rows(scores),
            seed_lines=tuple(seed_lines(scores.data["seeds"], scores.subset)) if "seeds" in scores.data else (),
            calibration=bins if error is not None else None,
            expected_error=error,
            history=history,
            validation=_describe_validation(summary, history),
            splits=tuple(split for split in splits if split.images),
            split_lines=split_lines,
            missed=read_missed(scores.data),
            findings=findings,
            findings_left=findings_left,
            times=times,
            choices=choices,
            date=show_date(summary.started),
            settings=settings,
            versions=versions,
            command=shlex.join(["ubend", "fit", "--config", str(run.settings), "--out", f"{path}-again"]),
        )
    except KeyError as damaged:
        cause = _("no {key}").format(key=damaged.args[0])
    except (OSError, ValueError, TypeError, AttributeError) as damaged:
        cause = reason(damaged)
    line = _("{path}: a file of this run is damaged ({reason}), so there is no report; train again")
    raise OutputError(line.format(path=path, reason=cause), path=path)


def different_settings(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """(dotted key, value in each run) of the settings that differ between runs."""
    tables = [_flat(tomllib.loads(run.settings)) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    values_of = [(key, [str(table.get(key, "-")) for table in tables]) for key in keys]
    return [(key, values) for key, values in values_of if len(set(values)) > 1]


def choose_examples(image_dice: Mapping[str, float], count: int = 3) -> dict[str, list[str]]:
    """The names of the worst, typical (nearest to the median) and best images; each name occurs at most once."""
    ordered = sorted(image_dice, key=lambda name: (image_dice[name], name))
    middle = float(np.median([*image_dice.values()]))
    worst, best = ordered[:count], ordered[count:][-count:][::-1]
    rest = [name for name in ordered if name not in {*worst, *best}]
    typical = sorted(rest, key=lambda name: abs(image_dice[name] - middle))[:count]
    return {"worst": worst, "typical": typical, "best": best}


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table as dotted key -> value."""
    out = dict[str, Any]()
    for key, value in table.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def _split_choice(line: str) -> tuple[str, str, str]:
    """Split a line "key = value: reason" of run.json."""
    key, _equals, rest = line.partition(" = ")
    value, _colon, why = rest.partition(": ")
    return key, value, why


def _read_logs(
    run: RunFolder, parts: Sequence[RunFolder]
) -> tuple[list[Mapping[str, Any]], tuple[tuple[str, str], ...]]:
    """The history (of several trainings, that of the first), and the known duration of each phase, summed over all."""
    runs = parts or [run]

    def read(file: Path) -> list[Mapping[str, Any]]:
        return [json.loads(line) for line in read_text(file).splitlines()] if file.exists() else []

    timing = [row for run in runs for row in read(run.timing)]
    phases = {"train_s": _("training"), "validation_s": _("validation after each epoch")}
    times = [(name, sum(float(row[key]) for row in timing)) for key, name in phases.items()]
    history = run.metrics if run.metrics.exists() else runs[0].metrics
    return read(history), tuple((name, show_duration(seconds)) for name, seconds in times if timing)


def _describe_validation(summary: RunSummary, history: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the validation Dice of the weights that were kept; empty if it is unknown."""
    kept = next((row for row in history if row["epoch"] == summary.kept_epoch), None)
    if kept is None:
        return ""
    line = _(
        "The weights of epoch {epoch} were kept. Their Dice on the validation images, at model size: {dice}. The "
        "scores above are of other images, so they may be higher or lower."
    )
    if "branches" in kept:
        line = _(
            "The mean of the weights of {branches} branches was kept. Its Dice on the validation images, at model "
            "size: {dice}. The scores above are of other images, so they may be higher or lower."
        )
    shown = ", ".join(f"{name} {_figure(value)}" for name, value in kept["val_dice"].items())
    return line.format(epoch=summary.kept_epoch, branches=kept.get("branches"), dice=shown)


def _read_findings(run: RunFolder) -> tuple[tuple[FindingRow, ...] | None, tuple[str, ...]]:
    """The first findings of each check, and lines on how many more there are; None: not recorded."""
    if not run.findings.exists():  # of an earlier version
        return None, ()
    listed, left = limit_findings(read_findings(run.findings))
    rows = [
        FindingRow(
            grade=finding.grade,
            title=f"{name_grade(finding.grade)}: {name_check(finding.check)}",
            message=finding.message,
            repair=finding.repair,
            files=name_files(finding),
            evidence=describe_evidence(finding),
        )
        for finding in listed
    ]
    line = _("{grade}: {check}: {count} more; {file} lists all")
    lines = [
        line.format(grade=name_grade(grade), check=name_check(check), count=count, file=run.findings.name)
        for (check, grade), count in left.items()
    ]
    return tuple(rows), tuple(lines)


def _measures(scores: Scores) -> tuple[bool, str, tuple[MeasureRow, ...]]:
    """Whether intervals are rough, the number of images or groups, and the rows of measures."""
    data, native = scores.data, scores.data["native"]
    row = main_row([*native["predicted_share"]])
    intervals, boundary = data["intervals"], data["boundary"]
    count = intervals["count"]
    over = ngettext("{count} image", "{count} images", count)
    if intervals["over"] == "groups":
        over = ngettext("{count} group", "{count} groups", count)
    measures = {**native, "boundary_f1": boundary["f1"], **{name: boundary[name] for name in DISTANCES}}
    rows = []
    for name, title in measure_names(boundary["tolerance_px"]).items():
        is_distance = name in DISTANCES
        if is_distance:
            title = f"{title}, {show_unit(boundary['unit'])}"
        cells = [
            _figure(measures[name].get(way, {}).get(row), is_distance) for way in ("median", "worst_decile", "pooled")
        ]
        rows.append(MeasureRow(title, show_mean(intervals[name][row], is_distance), *cells))
    rough = any((intervals[name][row] or {}).get("rough") for name in ("dice", "iou"))
    return rough, over.format(count=count), tuple(rows)


def _class_rows(scores: Scores, labels: LabelMap) -> tuple[ClassRow, ...]:
    data, native = scores.data, scores.data["native"]
    keys = [key for key in native["dice"]["per_image"] if key not in ("mean", "mean_foreground")]
    rows = []
    for name, key, color in zip(labels.names, keys, labels.colors, strict=True):
        iou, precision, recall = (
            _figure(native[measure]["per_image"][key]) for measure in ("iou", "precision", "recall")
        )
        rows.append(
            ClassRow(
                name=name,
                color="#" + "".join(f"{part:02x}" for part in color),
                share=f"{native['true_share'][name]:.1%}",
                images=int(native["defined"][key]),
                dice=show_mean(data["intervals"]["dice"][key]),
                iou=iou,
                precision=precision,
                recall=recall,
                boundary=_figure(data["boundary"]["f1"]["per_image"][key]),
                hausdorff=_figure(data["boundary"]["hausdorff_95"]["per_image"][key], is_distance=True),
            )
        )
    return tuple(rows)


def _group_rows(scores: Scores) -> tuple[GroupRow, ...]:
    """The groups that were left out; the last row is their mean."""
    left_out = scores.data.get("left_out")
    if left_out is None:
        return ()
    rows = [
        *left_out["groups"].items(),
        (_("mean over groups"), {"images": len(scores.data["per_picture"]), **left_out}),
    ]
    return tuple(GroupRow(name, row["images"], show_mean(row["dice"]), show_mean(row["iou"])) for name, row in rows)


def _confusions(scores: Scores) -> tuple[Confusion, ...]:
    """The largest confusions; empty if the scores do not contain confusions."""
    confusions = [
        Confusion(truth, prediction, pixels / max(1, sum(row.values())))
        for truth, row in scores.data.get("confusion", {}).items()
        for prediction, pixels in row.items()
        if prediction != truth and pixels
    ]
    return tuple(sorted(confusions, key=lambda confusion: -confusion.share)[:_CONFUSIONS])


def _describe_splits(
    rows: Sequence[tuple[Pair, list[str]]], scores: Scores, about: Mapping[str, Any], seed: int
) -> tuple[tuple[SplitRow, ...], tuple[str, ...]]:
    """The splits, and lines on how they were made and on leaks between them."""
    names = {"train": _("training"), "val": _("validation"), "test": _("test")}
    splits = []
    for split in SPLITS:
        pairs = [pair for pair, _hashes in rows if pair.split == split]
        splits.append(SplitRow(names[split], len(pairs), len({pair.group for pair in pairs if pair.group})))
    stated = about.get("stated_split")
    lines = []
    if "left_out" in scores.data:
        lines.append(_("Every group was left out once, and is scored by the model that was trained without it."))
    elif stated is not None:
        line = _("The split is that of the folder or of the split file, such as the one that `ubend data` wrote.")
        lines.append(line if stated else _("The split is random, with seed {seed}.").format(seed=seed))
    if any(pair.group for pair, _hashes in rows) and "left_out" not in scores.data:
        lines.append(_("Random splits keep all images of a group (patient, video, site) in one split."))
    lines += [_("note: {remark}").format(remark=remark) for remark in about["remarks"]]
    return tuple(splits), (*lines, *_describe_leaks(rows, scores))


def _find_leaked(rows: Sequence[tuple[Pair, list[str]]], scores: Scores) -> tuple[list[str], bool]:
    """The scored images that, or other images of their groups, are also in another split; and whether there are groups.

    Args:
        rows: of the data list: each pair, and the hashes of its image and mask.
    """
    hashes, groups = dict[str, set[SplitName | None]](), dict[str, set[SplitName | None]]()
    for pair, (image, _mask) in rows:
        hashes.setdefault(image, set()).add(pair.split)
        if pair.group:
            groups.setdefault(pair.group, set()).add(pair.split)
    scored = {pair.name: (image, pair) for pair, (image, _mask) in rows if pair.name in scores.data["per_picture"]}
    leaked = [
        name
        for name, (image, pair) in scored.items()
        if len(hashes[image]) > 1 or (pair.group and len(groups[pair.group]) > 1)
    ]
    return leaked, bool(groups)


def _describe_leaks(rows: Sequence[tuple[Pair, list[str]]], scores: Scores) -> list[str]:
    """Lines on leaks between the splits."""
    leaked, has_groups = _find_leaked(rows, scores)
    if not leaked:
        if has_groups:
            return [_("Leaks: none; no scored image, and no other image of its group, is in another split.")]
        line = _(
            "Exact copies: no scored image is also in another split. Groups are unknown: if images of one patient, "
            "video or site are in several splits, the scores are optimistic."
        )
        return [line]
    line = ngettext(
        "Leaks: {count} scored image is also in another split, or another image of its group is: {names}.",
        "Leaks: {count} scored images are also in another split, or other images of their groups are: {names}.",
        len(leaked),
    ).format(count=len(leaked), names=some_names(leaked))
    classes = [*scores.data["native"]["predicted_share"]]
    background = background_class(classes)
    unleaked = [row["dice"] for name, row in scores.data["per_picture"].items() if name not in leaked]
    dice = [[row[name] for index, name in enumerate(classes) if index != background] for row in unleaked]
    if not dice:
        return [line]
    without = show_interval(mean_intervals([np.array(dice, np.float64)])[0])
    return [line, _("Without these images the mean Dice is {dice}.").format(dice=without)]


def _sentences(
    summary: RunSummary,
    scores: Scores,
    labels: LabelMap,
    splits: Sequence[SplitRow],
    image_dice: Sequence[float],
    leaked: int,
    folds: int | None,
) -> tuple[str, ...]:
    """A summary in five parts: classes, training data, mean score, weaknesses, caveats; `leaked` images are leaks."""
    train, val, test = (row.images for row in splits)
    counts = Counter(value < 0.5 for value in image_dice)
    dice, native = scores.data["intervals"]["dice"], scores.data["native"]
    row = main_row([*native["predicted_share"]])
    size = _("at native size") if summary.size_px is None else _("at {size} px").format(size=summary.size_px)
    figures = {
        "train": train,
        "val": val,
        "test": test,
        "names": ", ".join(labels.names),
        "data": summary.data,
        "size": size,
        "epochs": summary.done,
        "kept": summary.kept_epoch,
        "count": native["pictures"],
        "dice": show_mean(dice[row]),
        "row": row,
        "bad": counts[True],
        "folds": folds,
    }
    first = _("A model was trained to find these classes in images of {data}: {names}.")
    if "left_out" in scores.data:
        second = _(
            "It consists of {folds} networks; each of the {train} images was scored by the one that was trained "
            "without its group."
        )
    elif scores.subset == "out-of-fold":
        second = _(
            "It consists of {folds} networks; each of the {train} images was scored by the one not trained on it."
        )
    elif folds:
        second = _(
            "It consists of {folds} networks; the {train} images of the training split are divided into {folds} folds, "
            "and each network was trained {size} without one of them; {test} test images were held out until the end."
        )
    elif test:
        second = _(
            "It was trained on {train} images {size}; the weights were chosen among {epochs} epochs by {val} "
            "validation images, and {test} test images were held out until the end."
        )
    else:
        second = _(
            "It was trained on {train} images {size}; the weights were chosen among {epochs} epochs by {val} "
            "validation images; there are no test images, so the scores are those of the validation images and "
            "optimistic."
        )
    third = _("On {count} images at native size, the mean Dice of {row} with its 95% interval is {dice}.")
    if row in ("mean", "mean_foreground"):
        third = _("On {count} images at native size, the mean Dice over all classes with its 95% interval is {dice}.")
    if row == "mean_foreground":
        third = _(
            "On {count} images at native size, the mean Dice over all classes except the background, with its 95% "
            "interval, is {dice}."
        )
    if folds and scores.subset == "test":
        value = scores.data["out_of_fold"]["native"]["dice"]["per_image"][row]
        figures |= {"out_of_fold": _figure(value)}
        third += " " + _(
            "On the {train} images of the training split, each scored by the network not trained on it, it is "
            "{out_of_fold}."
        )
    fourth = _("In {bad} of {count} images the Dice is below 0.5; the worst are shown below.")
    interval, class_dice = dice[row], _class_dice(dice, labels)
    if interval is not None and interval["low"] is not None and not interval["rough"]:
        half = (interval["high"] - interval["low"]) / 2
        if half >= _FIRST_DECIMAL:
            third += " " + _("So even its first decimal is uncertain.")
        elif half >= _SECOND_DECIMAL:
            third += " " + _("So its second decimal is uncertain.")
    if leaked:
        line = ngettext(
            "It is optimistic: {count} of these images, or another image of its group, is also in another split.",
            "It is optimistic: {count} of these images, or other images of their groups, are also in another split.",
            leaked,
        )
        third += " " + line.format(count=leaked)
    if len(class_dice) > 1:
        worst = min(class_dice, key=class_dice.__getitem__)
        figures |= {"worst": worst, "worst_dice": show_mean(dice[worst])}
        fourth += " " + _("The class with the lowest Dice is {worst}: {worst_dice}.")
    if unlearnt := find_unlearnt(scores, labels):
        figures |= {"unlearnt": ", ".join(unlearnt), "limit": _UNLEARNT_DICE}
        fourth += " " + _("Hardly learnt (Dice below {limit}): {unlearnt}; train longer, or on more images of them.")
    fifth = _("A training with another seed would give different scores; the intervals do not include this variation.")
    if seeds := scores.data.get("seeds"):
        fifth = _(
            "Of {count} trainings with different seeds it is the best on the validation split; the intervals do not "
            "include the variation between seeds, which the scores of all seeds show."
        ).format(count=len(seeds["scores"]))
    expected_error = (scores.data.get("calibration") or {}).get("expected_error")
    if expected_error is not None:
        figures |= {"error": f"{expected_error:.3f}"}
        fifth = _("Its probabilities are off by {error} on average (expected calibration error).") + " " + fifth
    return tuple(line.format(**figures) for line in (first, second, third, fourth, fifth))


def find_unlearnt(scores: Scores, labels: LabelMap) -> list[str]:
    """The classes with a mean Dice below `_UNLEARNT_DICE`."""
    dice = _class_dice(scores.data["intervals"]["dice"], labels)
    return [name for name, value in dice.items() if value < _UNLEARNT_DICE]


def _class_dice(dice: Mapping[str, Any], labels: LabelMap) -> dict[str, float]:
    """The mean Dice of each scored class except the background."""
    background = background_class(labels.names)
    return {
        name: dice[name]["mean"]
        for index, name in enumerate(labels.names)
        if index != background and dice.get(name) is not None
    }


def _figure(value: float | None, is_distance: bool = False) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3g}" if is_distance else f"{value:.3f}"
