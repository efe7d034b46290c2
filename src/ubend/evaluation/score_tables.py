"""Scores as a typed object and as a table: plain text for a terminal, HTML for a notebook."""

import copy
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ubend.core.i18n import _, ngettext
from ubend.evaluation.intervals import explain_rough
from ubend.labels.class_table import background_class
from ubend.metrics.summary import class_keys

_ONE_CLASS_SHARE = 0.999  # of all predicted pixels: nothing but one class
_LOWERED = 0.02  # of the mean Dice, by images without the class: worth a note
_MEANS = ("mean", "mean_foreground")
DISTANCES = ("hausdorff_95", "surface_distance")  # measures without an upper limit
_COLUMNS = (("dice", "per_image"), ("dice", "pooled"), ("iou", "per_image"), ("iou", "pooled"))


@dataclass(frozen=True)
class PerClass:
    """One measure of each class, and the means over the classes; 0..1, NaN where it is undefined.

    `scores["cell"]` is the value of a class.

    Attributes:
        classes: class name -> value; a class that is itself called `mean` is `class mean`, as in scores.json.
        mean: over the classes where it is defined.
        mean_foreground: the same without the background class.
    """

    classes: Mapping[str, float]
    mean: float
    mean_foreground: float

    def __getitem__(self, name: str) -> float:
        """The value of a class.

        Raises:
            KeyError: there is no such class; its text names the classes.
        """
        if name not in self.classes:
            raise KeyError(f"{name!r} is none of the classes {', '.join(self.classes)}")
        return self.classes[name]


@dataclass(frozen=True)
class Averages:
    """A measure under both averagings.

    Attributes:
        per_image: a class's value in each image, averaged over the images where it is defined: every image counts
            the same.
        pooled: the value of the counts summed over all images: every pixel counts the same.
    """

    per_image: PerClass
    pooled: PerClass


@dataclass(frozen=True)
class SizeScores:
    """Scores at one size of the images.

    Attributes:
        dice: 2 |truth and prediction| / (|truth| + |prediction|).
        iou: |truth and prediction| / |truth or prediction|.
        pixel_accuracy: share of the scored pixels that have the right class, 0..1.
        cross_entropy: mean per pixel, nats; NaN of methods without probabilities.
        images: number of scored images.
        defined: class name -> number of images in which the class is in the truth or the prediction.
        true_share, predicted_share: class name -> share of the scored pixels, 0..1.
    """

    dice: Averages
    iou: Averages
    pixel_accuracy: float
    cross_entropy: float
    images: int
    defined: Mapping[str, int]
    true_share: Mapping[str, float]
    predicted_share: Mapping[str, float]


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image at its own size.

    Attributes:
        dice, iou: class name -> value, 0..1; NaN where the class is in neither truth nor prediction.
    """

    dice: Mapping[str, float]
    iou: Mapping[str, float]


@dataclass(frozen=True, repr=False)
class Scores:
    """Scores of a model on images with masks. `print(scores)` gives the table of `ubend evaluate`; notebooks show it.

    For example `scores.native.dice.per_image["cell"]`, `scores.native.iou.pooled.mean`.

    Args:
        data: the content of scores.json. Three of its keys are older than the words used here: `part` is the split that
            was scored, `pictures` the number of images, `per_picture` the scores of each image.
    """

    data: Mapping[str, Any]

    @property
    def native(self) -> SizeScores:
        """At each image's own size, against the untouched mask."""
        return _size_scores(self.data["native"])

    @property
    def model_size(self) -> SizeScores:
        """At the network's input size; the same as `native` if the network sees the images at native size."""
        return _size_scores(self.data["model_size"])

    @property
    def subset(self) -> str:
        """The scored split: train, val or test; all of them; or out-of-fold, the validation images of all folds."""
        return str(self.data["part"])

    @property
    def per_image(self) -> Mapping[str, ImageScores]:
        """Name of the image -> its scores, at native size."""
        return {name: ImageScores(_numbers(row["dice"]), _numbers(row["iou"])) for name, row in self._images.items()}

    @property
    def skipped(self) -> Mapping[str, Sequence[str]]:
        """Name of each pair that could not be used -> what is wrong with it; only with `skip_bad`."""
        return {name: tuple(problems) for name, problems in self.data.get("skipped", {}).items()}

    @property
    def _images(self) -> Mapping[str, Any]:
        images: Mapping[str, Any] = self.data["per_picture"]
        return images

    def to_dict(self) -> dict[str, Any]:
        """A copy of the content of scores.json; None stands for NaN."""
        return copy.deepcopy(dict(self.data))

    def __str__(self) -> str:
        return "\n".join(score_lines(self.data))

    def __repr__(self) -> str:
        means = self.native.dice.per_image
        return (
            f"Scores(subset={self.subset!r}, images={len(self._images)}, native Dice per image: mean {means.mean:.4f}, "
            f"without background {means.mean_foreground:.4f})"
        )

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        parts = [f"<p>{html.escape(line)}</p>" for line in _notes(self.data)]
        for table in _tables(self.data):
            heads = "".join(f"<th>{html.escape(head)}</th>" for head in ("", *table.heads))
            rows = "".join(
                f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
                for name, cells in table.rows
            )
            parts.append(
                f"<table><caption>{html.escape(table.title)}</caption><thead><tr>{heads}</tr></thead>"
                f"<tbody>{rows}</tbody></table>"
            )
        parts += [f"<p>{html.escape(line.strip())}</p>" for line in [*_interval_lines(self.data), *_several(self.data)]]
        return "".join(parts)


def _size_scores(data: Mapping[str, Any]) -> SizeScores:
    def averages(measure: str) -> Averages:
        by_averaging = data[measure]
        return Averages(_per_class(by_averaging["per_image"]), _per_class(by_averaging["pooled"]))

    return SizeScores(
        averages("dice"),
        averages("iou"),
        _number(data["pixel_accuracy"]),
        _number(data["cross_entropy"]),
        data["pictures"],
        dict(data["defined"]),
        dict(data["true_share"]),
        dict(data["predicted_share"]),
    )


def _per_class(data: Mapping[str, float | None]) -> PerClass:
    classes = {name: value for name, value in data.items() if name not in _MEANS}
    return PerClass(_numbers(classes), *(_number(data[name]) for name in _MEANS))


def _numbers(data: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(value) for name, value in data.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


class _Table(NamedTuple):
    """Scores at one size: (name, one cell per column) of each row."""

    title: str
    heads: list[str]
    rows: list[tuple[str, list[str]]]


def _notes(scores: Mapping[str, Any]) -> list[str]:
    """The lines above the tables."""
    lines = []
    if left_out := scores.get("skipped"):
        lines.append(
            ngettext(
                "note: {count} pair that cannot be used is left out of the scores:",
                "note: {count} pairs that cannot be used are left out of the scores:",
                len(left_out),
            ).format(count=len(left_out))
        )
        lines += [f"  {problem}" for problems in left_out.values() for problem in problems]
    if scores["model_size"] == scores["native"]:
        lines.append(_("the model uses these images at native size, so there are no separate scores at model size"))
    return lines


def _tables(scores: Mapping[str, Any]) -> Iterator[_Table]:
    same = scores["model_size"] == scores["native"]
    for size, title in (("native", _("at native size")), ("model_size", _("at model size"))):
        if same and size == "model_size":
            continue
        summary = scores[size]
        title = ngettext(
            "{title}: {count} image of the {split} split, pixel accuracy {accuracy}, cross entropy {loss}",
            "{title}: {count} images of the {split} split, pixel accuracy {accuracy}, cross entropy {loss}",
            summary["pictures"],
        ).format(
            title=title,
            count=summary["pictures"],
            split=scores["part"],
            accuracy=_figure(summary["pixel_accuracy"]),
            loss=_figure(summary["cross_entropy"]),
        )
        names = list(summary["dice"]["per_image"])
        # with two classes it repeats the other class, without a background the mean
        if len(names) == 4 or background_class(names) is None:
            names.remove("mean_foreground")
        yield _Table(
            title,
            [_("Dice per image"), _("Dice pooled"), _("IoU per image"), _("IoU pooled")],
            [
                (row_name(name), [_figure(summary[kind][averaging][name]) for kind, averaging in _COLUMNS])
                for name in names
            ],
        )


def score_lines(scores: Mapping[str, Any]) -> list[str]:
    """The scores as a table in plain text."""
    lines = _notes(scores)
    for table in _tables(scores):
        wide = max(len(name) for name, _cells in table.rows)
        lines += [table.title, " " * (wide + 2) + "  ".join(f"{head:>14}" for head in table.heads)]
        lines += [f"  {name:<{wide}}{'  '.join(f'{cell:>14}' for cell in cells)}" for name, cells in table.rows]
    return lines + _interval_lines(scores) + _false_lines(scores) + _several(scores)


def _several(scores: Mapping[str, Any]) -> list[str]:
    """What scores.json says of groups that were left out, and of several seeds."""
    left_out, seeds = scores.get("left_out"), scores.get("seeds")
    return [*(group_lines(left_out) if left_out else []), *(seed_lines(seeds, scores["part"]) if seeds else [])]


def group_lines(left_out: Mapping[str, Any]) -> list[str]:
    """The score of each group that was left out, and their mean over the groups.

    Args:
        left_out: of scores.json, see `ubend.evaluation.group_scores`.
    """
    groups = left_out["groups"]
    wide = max(map(len, groups))
    lines = [_("Dice of each group by the model that was trained without it, with 95% intervals over its images:")]
    for name, scores in groups.items():
        count = ngettext("{count} image", "{count} images", scores["images"]).format(count=scores["images"])
        lines.append(f"  {name:<{wide}}  {show_mean(scores['dice'])}, {count}")
    line = _("mean over {count} groups, each counted once, with 95% intervals over groups: Dice {dice}, IoU {iou}")
    return [*lines, line.format(count=len(groups), dice=show_mean(left_out["dice"]), iou=show_mean(left_out["iou"]))]


def seed_lines(seeds: Mapping[str, Any], split: str) -> list[str]:
    """The score of each seed, and their mean and spread.

    Args:
        seeds: of scores.json, see `ubend.tasks.seeds`.
        split: the scored one.
    """
    line = _("{count} trainings that differ in the seed alone, on the same images of the {split} split, {row}:")
    lines = [line.format(count=len(seeds["scores"]), split=split, row=row_name(seeds["row"]))]
    for seed, scores in seeds["scores"].items():
        line = _("seed {seed}: Dice {dice}, IoU {iou}; validation, all classes: {validation}")
        if seed == str(seeds["kept"]):
            line = _(
                "seed {seed}: Dice {dice}, IoU {iou}; validation, all classes: {validation}, the best: this model "
                "and its scores"
            )
        texts = {name: _figure(scores[name]) for name in ("dice", "iou", "validation")}
        lines.append("  " + line.format(seed=seed, **texts))
    for measure, name in (("dice", _("Dice")), ("iou", _("IoU"))):
        spread = seeds[measure]
        if spread is not None:
            line = _("{measure} over the seeds: mean {mean:.4f}, standard deviation {std:.4f}, {min:.4f} to {max:.4f}")
            lines.append("  " + line.format(measure=name, **spread))
    return lines


def main_row(names: Sequence[str]) -> str:
    """The key in scores.json of the class that is not the background, or of the mean over all such classes."""
    background = background_class(names)
    if background is None:
        return "mean"
    return class_keys(names)[1 - background] if len(names) == 2 else "mean_foreground"


def measure_names(tolerance_px: float) -> dict[str, str]:
    """Key in scores.json -> name of each measure that has an interval."""
    return {
        "dice": _("Dice"),
        "iou": _("IoU"),
        "precision": _("precision"),
        "recall": _("recall"),
        "boundary_f1": _("boundary F1 at {px:g} px").format(px=tolerance_px),
        "hausdorff_95": _("95th-percentile Hausdorff distance"),
        "surface_distance": _("mean surface distance"),
    }


def show_unit(unit: str) -> str:
    """The displayed unit of distances: µm for `um`."""
    return {"um": "µm"}.get(unit, unit)


def _interval_lines(scores: Mapping[str, Any]) -> list[str]:
    """The main scores with their 95% intervals; empty for scores of an earlier version, without intervals."""
    if "intervals" not in scores:
        return []
    row = main_row([*scores["native"]["predicted_share"]])
    intervals, boundary = scores["intervals"], scores["boundary"]
    names = measure_names(boundary["tolerance_px"])
    unit = show_unit(boundary["unit"])
    row_intervals = {name: intervals[name][row] for name in names}
    cells = {name: show_mean(value, name in DISTANCES) for name, value in row_intervals.items()}
    cells |= {name: f"{cells[name]} {unit}" for name in DISTANCES}
    over = _("{count} images") if intervals["over"] == "images" else _("{count} groups")
    line = _("per image, {row}, with 95% intervals over {units}:").format(
        row=row_name(row), units=over.format(count=intervals["count"])
    )
    overlap = ", ".join(f"{names[name]} {cells[name]}" for name in ("dice", "iou", "precision", "recall"))
    outlines = ", ".join(f"{names[name]} {cells[name]}" for name in ("boundary_f1", *DISTANCES))
    lines = [line, f"  {overlap}", f"  {outlines}"]
    known = {names[name]: value["rough"] for name, value in row_intervals.items() if value is not None}
    if any(known.values()):
        why = explain_rough(intervals["count"], grouped=intervals["over"] != "images")
        rough = ", ".join(name for name, is_rough in known.items() if is_rough)
        lines.append("  " + (why if all(known.values()) else f"{rough}: {why}"))
    if scores["calibration"] is not None:
        error = scores["calibration"]["expected_error"]
        lines.append("  " + _("expected calibration error {error}").format(error=_figure(error)))
    return lines


def _false_lines(scores: Mapping[str, Any]) -> list[str]:
    """A note on the classes of `describe_lowered`."""
    line = _("note: predicted pixels of a class in an image without it count as Dice 0: {classes}")
    found = describe_lowered(scores)
    return [line.format(classes=", ".join(found))] if found else []


def describe_lowered(scores: Mapping[str, Any]) -> list[str]:
    """The classes whose mean Dice is lowered by images without them, in which any predicted pixel counts as 0."""
    if "intervals" not in scores:  # of an earlier version, without recall
        return []
    names = [*scores["native"]["predicted_share"]]
    images = [*scores["per_picture"].values()]
    background, found = background_class(names), list[str]()
    for index, name in enumerate(names):
        dice = [of["dice"][name] for of in images if of["dice"][name] is not None]
        there = [of["dice"][name] for of in images if of["recall"][name] is not None]
        false = len(dice) - len(there)
        if index == background or not there or sum(there) / len(there) - sum(dice) / len(dice) < _LOWERED:
            continue
        line = _("{name} in {false} of {absent} such images (mean of the others {mean:.3f})")
        absent, mean = len(images) - len(there), sum(there) / len(there)
        found.append(line.format(name=name, false=false, absent=absent, mean=mean))
    return found


def show_mean(value: Mapping[str, Any] | None, is_distance: bool = False) -> str:
    """The mean and the ends of its interval; of Student's t if the bootstrap interval is rough."""
    if value is None:
        return "-"
    ends = [value["t_low"], value["t_high"]] if value["rough"] else [value["low"], value["high"]]
    mean, *ends = (
        f"{bound:.3g}" if is_distance else f"{bound:.3f}" for bound in (value["mean"], *ends) if bound is not None
    )
    return _("{mean} ({low} to {high})").format(mean=mean, low=ends[0], high=ends[1]) if ends else mean


def warn_one_class(scores: Mapping[str, Any]) -> str | None:
    """A warning, with the usual causes, if the model predicts one class nearly everywhere."""
    shares = scores["native"]["predicted_share"]
    dominant = [name for name, share in shares.items() if share > _ONE_CLASS_SHARE]
    if not dominant:
        return None
    return _(
        "WARNING: the model predicts one class ({name}) nearly everywhere. Usual causes: too few epochs (batch norm "
        "alone needs about 60 steps), too high a learning rate, masks that do not belong to the images (check them "
        "with `ubend preview FOLDER`)"
    ).format(name=dominant[0])


def row_name(row: str) -> str:
    """The name of a class, or the translated name of a mean over classes."""
    return {"mean": _("mean"), "mean_foreground": _("mean without background")}.get(row, row)


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
