"""Models compared on the same test images: which is better, and which images changed most.

The score is the Dice of each image, averaged as in `ubend.metrics.summary`: over images of each class, then over the
classes without the background. Statistics: `ubend.evaluation.intervals`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, OutputError, SettingError, reason
from ubend.core.files import read_text
from ubend.core.i18n import _, ngettext
from ubend.evaluation.intervals import (
    MARGIN,
    Difference,
    Interval,
    Verdict,
    adjust,
    compare_means,
    explain_rough,
    mean_intervals,
)
from ubend.evaluation.score_tables import Scores
from ubend.labels.class_table import background_class
from ubend.metrics.summary import mean_defined
from ubend.portable.printable import some_names
from ubend.training.run_folder import RunFolder

ImageKey = tuple[str, str, int]  # hash of the image, hash of its mask, number among copies
_CHANGED = 5  # images with the largest differences that are listed, in each direction
_SHOWN_CHANGE = 0.05  # smaller differences of an image's Dice are not listed


@dataclass(frozen=True)
class ChangedImage:
    """The Dice of one image by two models, 0..1: the mean over its classes without the background."""

    name: str
    a: float
    b: float


@dataclass(frozen=True)
class ModelPair:
    """Two models on the same images.

    Attributes:
        a, b: names of the models.
        difference: the mean Dice of A minus that of B, with its 95% interval.
        p: p-value of no difference, adjusted by Holm's method for all compared pairs of models.
        p_equal: p-value of a difference of at least the margin, adjusted in the same way.
        verdict: the conclusion at a level of 5%.
        classes: class name -> the difference of its Dice, with an interval that is not adjusted; without a verdict.
        better_by_a, better_by_b: the images whose Dice differs most, the largest difference first.
    """

    a: str
    b: str
    difference: Interval
    p: float
    p_equal: float
    verdict: Verdict
    classes: Mapping[str, Interval]
    better_by_a: tuple[ChangedImage, ...]
    better_by_b: tuple[ChangedImage, ...]


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models compared on the same images. `print(comparison)` gives the lines of `ubend compare`.

    Attributes:
        margin: the largest difference of Dice that does not matter.
        images: number of images.
        groups: number of groups, which are resampled instead of images; None: images are resampled.
        scores: name of each model, the best first -> its mean Dice over the classes without the background.
        pairs: all pairs of models.
    """

    margin: float
    images: int
    groups: int | None
    scores: Mapping[str, Interval]
    pairs: tuple[ModelPair, ...]

    def to_dict(self) -> dict[str, Any]:
        """What `ubend compare --json` writes; None stands for NaN."""
        return {
            "margin": self.margin,
            "images": self.images,
            "groups": self.groups,
            "scores": {name: interval.to_json() for name, interval in self.scores.items()},
            "pairs": [
                {
                    "a": pair.a,
                    "b": pair.b,
                    "verdict": pair.verdict,
                    "difference": pair.difference.to_json(),
                    "p": pair.p,
                    "p_equal": pair.p_equal,
                    "classes": {name: interval.to_json() for name, interval in pair.classes.items()},
                    **{way: [vars(image) for image in getattr(pair, way)] for way in ("better_by_a", "better_by_b")},
                }
                for pair in self.pairs
            ],
        }

    def __str__(self) -> str:
        return "\n".join(comparison_lines(self))

    def __repr__(self) -> str:
        verdicts = ", ".join(f"{pair.a} | {pair.b}: {pair.verdict}" for pair in self.pairs)
        return f"Comparison({verdicts})"


def read_scores(path: Path) -> Scores:
    """The scores of a run folder, or of a file that `ubend evaluate --out` wrote.

    Raises:
        OutputError: there are none, or the file is damaged.
    """
    file = RunFolder(path).scores if path.is_dir() else path
    try:
        scores = json.loads(read_text(file))
        names = set(scores["native"]["predicted_share"])
        rows, known = scores["per_picture"], scores.get("images")
        if not rows or any(set(row["dice"]) != names for row in rows.values()):
            raise ValueError(_("no scores of images"))
        for name in rows if known is not None else ():
            {key: str(known[name][key]) for key in ("image_hash", "mask_hash", "group")}  # there, all of them
    except KeyError as error:
        cause = _("no {key}").format(key=error.args[0])
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        cause = reason(error)
    else:
        return Scores(scores)
    line = _(
        "{path}: no scores ({reason}); name a run folder whose training is finished (`ubend fit --resume RUN` does "
        "that), or a file that `ubend evaluate MODEL --out FILE` wrote"
    )
    raise OutputError(line.format(path=file, reason=" ".join(cause.split())), path=file)


def compare_scores(scores_of: Mapping[str, Scores], margin: float = MARGIN) -> Comparison:
    """Compare models on the same images, each with each.

    Args:
        scores_of: name -> scores of each model.
        margin: the largest difference of Dice that does not matter, 0 < margin < 1.
    Raises:
        DataError: their images, masks or classes are not the same.
        SettingError: fewer than two models, or the margin is out of range.
    """
    if len(scores_of) < 2:
        raise SettingError(_("nothing to compare: name at least two different runs or files of scores"), key="runs")
    if not 0 < margin < 1:
        line = _("--margin {margin}: give a difference of Dice above 0 and below 1")
        raise SettingError(line.format(margin=margin), key="--margin")
    hashed = all("images" in scores.data for scores in scores_of.values())
    (first, *_others), keys = scores_of, {name: find_images(scores, hashed) for name, scores in scores_of.items()}
    classes = [*scores_of[first].data["native"]["predicted_share"]]
    for name, scores in scores_of.items():
        _refuse_other_images(first, name, keys[first], keys[name])
        if {*scores.data["native"]["predicted_share"]} != {*classes}:
            line = _("{a} and {b} have different classes ({ours} and {theirs}), so their scores cannot be compared")
            theirs = ", ".join(scores.data["native"]["predicted_share"])
            raise DataError(line.format(a=first, b=name, ours=", ".join(classes), theirs=theirs), key="classes")
    order, background = sorted(keys[first]), background_class(classes)
    foreground = [name for index, name in enumerate(classes) if index != background]
    dice = {name: _dice(scores, [keys[name][key] for key in order], foreground) for name, scores in scores_of.items()}
    groups = next(
        (
            group_column
            for group_column in (_groups(scores_of[name], keys[name], order) for name in scores_of)
            if any(group_column)
        ),
        None,
    )
    intervals = dict(zip(dice, mean_intervals([*dice.values()], groups), strict=True))
    ranked = sorted(scores_of, key=lambda name: -np.nan_to_num(intervals[name].mean))
    pairs = [*combinations(ranked, 2)]
    differences = adjust([compare_means(dice[a], dice[b], groups, margin) for a, b in pairs])
    image_names = [keys[first][key] for key in order]
    return Comparison(
        margin,
        len(order),
        intervals[first].units if groups else None,
        {name: intervals[name] for name in ranked},
        tuple(
            _pair(a, b, difference, dice, foreground, groups, image_names)
            for (a, b), difference in zip(pairs, differences, strict=True)
        ),
    )


def find_images(scores: Scores, hashed: bool) -> dict[ImageKey, str]:
    """What an image is recognised by -> its name, of each scored image.

    Args:
        hashed: by its contents and those of its mask; else by its name, as where files of earlier versions and of
            baselines hold no hashes.
    """
    names_of = dict[ImageKey, str]()
    for name in sorted(scores.data["per_picture"]):
        about = scores.data["images"][name] if hashed else {"image_hash": name, "mask_hash": ""}
        copies = 0
        while (key := (about["image_hash"], about["mask_hash"], copies)) in names_of:
            copies += 1
        names_of[key] = name
    return names_of


def image_dice(dice: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, C) Dice -> (N,) mean over the classes in an image's truth or prediction; 1 if there are none."""
    means = mean_defined(dice.T)
    return np.where(np.isnan(means), 1.0, means)


def comparison_lines(comparison: Comparison) -> list[str]:
    """The comparison as plain text."""
    over = ngettext("{count} image", "{count} images", comparison.images).format(count=comparison.images)
    if comparison.groups is not None:
        over += ngettext(" of {count} group", " of {count} groups", comparison.groups).format(count=comparison.groups)
    wide = max(map(len, comparison.scores))
    lines = [_("Dice on the same {images}, mean without background, with 95% intervals:").format(images=over)]
    lines += [f"  {name:<{wide}}  {show_interval(interval)}" for name, interval in comparison.scores.items()]
    for pair in comparison.pairs:
        lines.append(verdict_line(pair, comparison.margin))
        for better, images in ((pair.a, pair.better_by_a), (pair.b, pair.better_by_b)):
            if images:
                named = ", ".join(f"{image.name} ({image.a:.2f}, {image.b:.2f})" for image in images)
                lines.append(
                    "  " + _("images on which {better} is better: {images}").format(better=better, images=named)
                )
    return [*lines, *note_lines(comparison)]


def note_lines(comparison: Comparison) -> list[str]:
    """Notes on the intervals and p-values."""
    lines = []
    if any(pair.difference.rough for pair in comparison.pairs):
        units = comparison.images if comparison.groups is None else comparison.groups
        lines.append(explain_rough(units, grouped=comparison.groups is not None))
    if len(comparison.pairs) > 1:
        lines.append(_("p-values are adjusted for {count} comparisons").format(count=len(comparison.pairs)))
    return lines


def verdict_line(pair: ModelPair, margin: float) -> str:
    """The difference of two models and the verdict."""
    line = _("{a} compared with {b}: Dice {difference}, p {p}: {verdict}")
    p = "< 0.001" if pair.p < 0.001 else f"= {pair.p:.3f}"
    difference, verdict = show_interval(pair.difference, "+"), _describe_verdict(pair, margin)
    return line.format(a=pair.a, b=pair.b, difference=difference, p=p, verdict=verdict)


def _describe_verdict(pair: ModelPair, margin: float) -> str:
    """The verdict in words."""
    if pair.verdict == "equal":
        return _("equal within {margin:g}").format(margin=margin)
    if pair.verdict == "not shown":
        return _("undecided which is better")
    return _("{model} is better").format(model=pair.a if pair.verdict == "A is better" else pair.b)


def show_interval(interval: Interval, sign: str = "") -> str:
    """The mean and the ends of its interval, with three digits; `sign` "+" also shows the sign, for a difference."""
    if math.isnan(interval.mean):
        return "-"
    mean, *ends = (f"{bound:{sign}.3f}" for bound in (interval.mean, *interval.reported) if not math.isnan(bound))
    return _("{mean} ({low} to {high})").format(mean=mean, low=ends[0], high=ends[1]) if ends else mean


def _refuse_other_images(a: str, b: str, ours: Mapping[ImageKey, str], theirs: Mapping[ImageKey, str]) -> None:
    """Raise DataError if two models were scored on different images, or on the same images with different masks."""
    if ours.keys() == theirs.keys():
        return
    if {(image, copy) for image, _mask, copy in ours} == {(image, copy) for image, _mask, copy in theirs}:
        line = _("{a} and {b} were scored on the same images with different masks, so they cannot be compared")
        raise DataError(line.format(a=a, b=b), key="images")
    only = [
        sorted(names_of[key] for key in names_of.keys() - others.keys())
        for names_of, others in ((ours, theirs), (theirs, ours))
    ]
    counts = [f"{len(names)} ({some_names(names)})" for names in only if names]
    line = _(
        "{a} and {b} were scored on different images, so they cannot be compared: {shared} are in both, in one only: "
        "{others}; score both on one folder: `ubend evaluate MODEL FOLDER --out FILE`, then compare these files"
    )
    shared = len(ours.keys() & theirs.keys())
    raise DataError(line.format(a=a, b=b, shared=shared, others=" + ".join(counts)), key="images")


def _dice(scores: Scores, names: Sequence[str], classes: Sequence[str]) -> NDArray[np.float64]:
    """(N, C) Dice of these images and classes, NaN where undefined."""
    rows = scores.data["per_picture"]
    return np.array([[rows[name]["dice"][class_name] for class_name in classes] for name in names], np.float64)


def _groups(scores: Scores, names: Mapping[ImageKey, str], order: Sequence[ImageKey]) -> list[str | None]:
    """The group of each image of `order`; None: its own."""
    images = scores.data.get("images", {})
    return [images.get(names[key], {}).get("group") for key in order]


def _pair(
    a: str,
    b: str,
    difference: Difference,
    dice: Mapping[str, NDArray[np.float64]],
    classes: Sequence[str],
    groups: Sequence[str | None] | None,
    names: Sequence[str],
) -> ModelPair:
    ours, theirs = image_dice(dice[a]), image_dice(dice[b])
    gain = ours - theirs

    def changed(gain: NDArray[np.float64]) -> tuple[ChangedImage, ...]:
        order = [n for n in np.argsort(-gain, kind="stable")[:_CHANGED] if gain[n] >= _SHOWN_CHANGE]
        return tuple(ChangedImage(names[n], float(ours[n]), float(theirs[n])) for n in order)

    columns = {name: compare_means(dice[a][:, n], dice[b][:, n], groups).interval for n, name in enumerate(classes)}
    verdict = difference.verdict()
    results = difference.interval, difference.p, difference.p_equal, verdict
    return ModelPair(a, b, *results, columns, changed(gain), changed(-gain))
