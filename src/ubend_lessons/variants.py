"""Lessons that train the same network several times, with one setting changed, and compare the results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.files import refuse_existing_results
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.sample import draw_sample
from ubend.dataset.store import read_class_map
from ubend.drawing.panels import draw_grid, show_image
from ubend.inference.predictor import Predictor, load
from ubend.io.images import read_image
from ubend.labels.class_table import background_class
from ubend.layouts.pairs import Pair
from ubend.portable.images import save_png
from ubend.portable.overlay import color_mask, to_rgb
from ubend.tasks.evaluate import read_run_pairs
from ubend.tasks.fit import fit
from ubend_lessons.boundary import boundary_dice
from ubend_lessons.plain_unet import PLAIN_UNET

TOLERANCE_PX = 2.0  # of the boundary Dice
# A minute on two cores for six trainings.
_QUICK = {
    **PLAIN_UNET,
    "data.size": 128,
    "model.width": 8,
    "train.epochs": 20,
    "train.batch": 8,
    "train.warmup": 0.1,
}
_SAMPLE, _SAMPLE_PX = 48, 128  # images, and their side
_SHOWN = 2  # test images in the grid
_MAX_OUTLINES = 200  # test images whose outlines are compared, evenly spaced: computing distances takes long


@dataclass(frozen=True)
class Variant:
    """One training of a lesson.

    Attributes:
        name: translated name.
        settings: by dotted key; the settings that differ from those of the other variants.
    """

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The scores of a variant on the test split.

    Attributes:
        variant: the variant.
        dice: mean over images and over the classes without the background, at native size, 0..1.
        boundary: the same mean of the boundary Dice at `TOLERANCE_PX`, over at most `_MAX_OUTLINES` images.
        masks: (H, W) class index, predictions of the first test images.
    """

    variant: Variant
    dice: float
    boundary: float
    masks: Sequence[NDArray[np.uint8]]


def compare_variants(
    variants: Sequence[Variant],
    out: Path | str,
    *,
    folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    show: bool = False,
    reporter: Reporter,
) -> list[Outcome]:
    """Train each variant on the same images with the same seed; score, draw and report the results.

    Writes `comparison.png` (first test images: input, truth, each prediction) and a run folder for each into `out`.

    Args:
        variants: the trainings to compare.
        folder: images and masks; None: a sample is drawn into `out`.
        settings: for all variants; they override the lesson's own (`_QUICK`).
        device: cuda, mps or cpu; None: the fastest here.
    Raises:
        OutputError: `out` is not empty.
        DataError: there is no test split.
    """
    out = refuse_existing_results(out)
    if folder is None:
        folder = out / "sample"
        draw_sample(folder, _SAMPLE, _SAMPLE_PX)
    outcomes, quiet = [], SilentReporter()
    for number, variant in enumerate(variants, 1):
        run = out / f"run-{number}"
        chosen = {**_QUICK, **(settings or {}), **variant.settings}
        scores = fit(folder, run, settings=chosen, device=device, reporter=quiet).scores
        if scores is None:
            raise KeyboardInterrupt
        outcomes.append(_inspect(variant, run, scores.native.dice.per_image.mean_foreground, device))
        reporter.report(
            _("{name}: Dice {dice:.3f}, boundary Dice at {px:g} px {boundary:.3f}").format(
                name=variant.name, dice=outcomes[-1].dice, px=TOLERANCE_PX, boundary=outcomes[-1].boundary
            )
        )
    image = out / "comparison.png"
    grid = _draw(out / "run-1", outcomes, device)
    save_png(grid, image)
    reporter.report(str(image))
    if show:
        show_image(grid)
    return outcomes


def teach_skips(out: Path | str, **options: Any) -> list[Outcome]:
    """Compare all skip connections, none, and each one removed; for options see `compare_variants`.

    Raises:
        UbendError: see `compare_variants`.
    """
    variants = [Variant(_("all skip connections"), {}), Variant(_("none"), {"model.skips": [False] * 4})]
    for level in range(1, 5):
        kept = [other != level for other in range(1, 5)]
        words = _("level {level} removed").format(level=level)
        variants.append(Variant(words, {"model.skips": kept}))
    return compare_variants(variants, out, **options)


def teach_upsampling(out: Path | str, **options: Any) -> list[Outcome]:
    """Compare four upsampling methods in the decoder; for options see `compare_variants`.

    Raises:
        UbendError: see `compare_variants`.
    """
    names = {
        "transposed": _("transposed convolution"),
        "nearest": _("nearest, then convolution"),
        "bilinear": _("bilinear, then convolution"),
        "unpool": _("convolution, then max unpooling"),
    }
    variants = [Variant(name, {"model.upsampling": upsampling}) for upsampling, name in names.items()]
    return compare_variants(variants, out, **options)


class SilentReporter(Reporter):
    """Reports no messages of a training, only the progress bar in a terminal."""

    def report(self, sentence: str) -> None:
        """Do nothing."""

    def report_epoch(self, row: Mapping[str, Any], timing: Mapping[str, Any], epochs: int) -> None:
        """Do nothing."""


def score_boundaries(predictor: Predictor, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """(pairs, C) boundary Dice at native size of each image and class; NaN if a class has no outline."""
    scores = np.full((len(pairs), predictor.labels.classes), np.nan)
    for number, prediction in predictor.predict([pair.image for pair in pairs]):
        mask = prediction.mask
        truth = read_class_map(pairs[number], (mask.shape[0], mask.shape[1]), predictor.labels).classes
        scores[number] = boundary_dice(mask, truth, predictor.labels.classes, TOLERANCE_PX)
    return scores


def _inspect(variant: Variant, run: Path, dice: float, device: str | None) -> Outcome:
    """Compute the boundary Dice and the first masks of a trained variant."""
    pairs, predictor = _test_pairs(run), load(run, device)
    outlines = score_boundaries(predictor, pairs[:: max(1, math.ceil(len(pairs) / _MAX_OUTLINES))])
    background = background_class(predictor.labels.names)
    kept = [number for number in range(predictor.labels.classes) if number != background]
    shown = predictor.predict([pair.image for pair in pairs[:_SHOWN]])
    masks = {number: prediction.mask for number, prediction in shown}
    return Outcome(variant, dice, float(np.nanmean(outlines[:, kept])), [masks[n] for n in range(len(masks))])


def _test_pairs(run: Path) -> list[Pair]:
    pairs = [pair for pair in read_run_pairs(run) if pair.split == "test"]
    if not pairs:
        raise DataError(
            _("{run}: there is no test split to compare on; add images").format(run=run), path=run, key="test"
        )
    return pairs


def _draw(run: Path, outcomes: Sequence[Outcome], device: str | None) -> Any:
    labels = load(run, device).labels
    rows, names = [], []
    for index, pair in enumerate(_test_pairs(run)[:_SHOWN]):
        image = read_image(pair.image)
        truth = read_class_map(pair, (image.shape[0], image.shape[1]), labels).classes
        masks = [truth, *(outcome.masks[index] for outcome in outcomes)]
        rows.append([to_rgb(image), *(color_mask(mask, labels.colors) for mask in masks)])
        names.append(pair.name)
    headings = [_("input"), _("truth"), *(f"{o.variant.name} {o.dice:.2f}" for o in outcomes)]
    return draw_grid(rows, headings, names, legend=list(zip(labels.names, labels.colors, strict=True)))
