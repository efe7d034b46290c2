"""The lesson on the original U-Net: sizes, tiles, and the weight map, which helps to separate touching cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import DataError
from ubend.core.files import refuse_existing_results, write_text
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.border_weights import border_weights
from ubend.dataset.sample import draw_ids, draw_image
from ubend.dataset.store import read_class_map
from ubend.drawing.panels import draw_grid, show_image
from ubend.inference.predictor import load
from ubend.instances.truth import read_truth
from ubend.io.images import read_image
from ubend.labels.class_table import LabelMap
from ubend.layouts.pairs import Pair
from ubend.metrics.panoptic import Quality, compare_objects
from ubend.models.paper import input_side
from ubend.portable.images import save_png
from ubend.portable.objects import Objects, choose_method, object_classes, separate
from ubend.portable.overlay import to_rgb
from ubend.tasks.evaluate import read_run_pairs
from ubend.tasks.fit import fit
from ubend_lessons.paper_figures import color_ids, draw_sizes, draw_tiles, draw_weights, object_color
from ubend_lessons.variants import SilentReporter

W0, SIGMA_PX = 10.0, 5.0  # as in the paper
_GIVEN_PX, _DEPTH, _WIDTH = 388, 4, 64  # as in figure 1
_SAMPLE, _SAMPLE_PX = 48, 128  # images, and their side
# A minute on two cores for two trainings. The paper's optimizer needs far more steps (momentum 0.99 alone averages over
# 100 of them), and a network of 8 channels is too narrow for dropout; measured (docs/experiments.md).
_QUICK: dict[str, Any] = {
    "data.test_share": 0.25,
    "model.width": 8,
    "model.depth": 2,
    "model.dropout": 0.0,
    "train.epochs": 40,
    "train.batch": 4,
    "train.optimizer": "adamw",
    "train.learning_rate": 3e-3,
    "train.schedule": "one-cycle",
    "train.precision": "float32",  # separates 78 of 88 cells; bfloat16: 55
}
_FRAGMENT = 0.05  # share of the true objects' median area: smaller objects are not counted
_SHOWN, _CELL_PX = 2, 240  # test images in the grid, and their side there
_TILES = 2.5  # tiles along the longer side of the image in the drawing


@dataclass(frozen=True)
class TrainingResult:
    """The scores of a training with or without the weight map on the test split.

    Attributes:
        border_weight: w0.
        dice: mean over images and over the classes without the background, 0..1.
        quality: of all objects of all images.
        count_errors: number of found objects minus number of true objects, for each image.
        found: (H, W) ids found in the first images.
    """

    border_weight: float
    dice: float
    quality: Quality
    count_errors: tuple[int, ...]
    found: tuple[NDArray[np.uint32], ...]

    @property
    def absolute_error(self) -> float:
        """Mean over images of the absolute count error."""
        return float(np.abs(self.count_errors).mean())


def teach_paper(
    out: Path | str,
    *,
    folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    show: bool = False,
    reporter: Reporter,
) -> list[TrainingResult]:
    """Draw the paper's network, tiles and weight map; train without and with the weight map, and count objects.

    Writes `sizes.png`, `tiles.png`, `weights.png`, `comparison.png` and a run folder for each training into `out`.

    Args:
        folder: images and masks, and true ids in `ids/` if objects touch; None: touching cells are drawn.
        settings: for both trainings; they override the recipe `paper` and the lesson's own (`_QUICK`).
        device: cuda, mps or cpu; None: the fastest here.
    Raises:
        OutputError: `out` is not empty.
        DataError: there is no test split.
    """
    out = refuse_existing_results(out)
    if folder is None:
        folder = out / "cells"
        draw_touching_cells(folder, _SAMPLE, _SAMPLE_PX)
    side = input_side(_GIVEN_PX, _DEPTH)
    figures = {"sizes": draw_sizes(side, _DEPTH, _WIDTH, 1, 2)}
    reporter.report(
        _(
            "without padding, every 3x3 convolution removes 2 px: {given} x {given} of {side} x {side} px are left"
        ).format(side=side, given=_GIVEN_PX)
    )
    counted: list[TrainingResult] = []
    quiet = SilentReporter()
    for weight in (0.0, W0):
        run = out / f"run-{len(counted) + 1}"
        chosen = {**_QUICK, **(settings or {}), "train.border_weight": weight}
        scores = fit(folder, run, recipe="paper", settings=chosen, device=device, reporter=quiet).scores
        if scores is None:
            raise KeyboardInterrupt
        dice = scores.native.dice.per_image.mean_foreground
        counted.append(count_objects(run, weight, dice, device))
        reporter.report(_describe(counted[-1]))
    labels, pairs = load(out / "run-1", "cpu").labels, _test_pairs(out / "run-1")
    rows = []
    for pair, *found in zip(pairs, *(own.found for own in counted), strict=False):
        truth = find_objects(Path(folder), pair, labels)
        rows.append([to_rgb(read_image(pair.image)), color_ids(truth.ids), *map(color_ids, found)])
    headings = [_("input"), _("truth"), *(_variant(own.border_weight) for own in counted)]
    legend = [(_("background"), (0, 0, 0)), (_("each other colour: one object"), object_color(1))]
    figures["comparison"] = draw_grid(rows, headings, [pair.name for pair in pairs[: len(rows)]], _CELL_PX, legend)
    image, truth = read_image(pairs[0].image), find_objects(Path(folder), pairs[0], labels)
    figures["weights"] = draw_weights(image, truth.ids, _weigh(pairs[0], truth, labels))
    depth = int(chosen["model.depth"])
    figures["tiles"] = draw_tiles(image, depth, round(max(image.shape[:2]) / _TILES))
    for name, figure in figures.items():
        save_png(figure, out / f"{name}.png")
        reporter.report(str(out / f"{name}.png"))
        if show:
            show_image(figure)
    return counted


def draw_touching_cells(folder: Path, count: int, size_px: int, seed: int = 0) -> None:
    """Draw the sample in the form of the paper's cells: two classes, touching cells separated by lines of background.

    FOLDER/images, FOLDER/masks (0 background, 1 cell), FOLDER/ids (0, or the number of the cell), FOLDER/classes.txt
    """
    for index in range(count):
        ids, name = draw_ids(seed, index, size_px), f"cell_{index:03d}.png"
        image = draw_image(seed, index, size_px)[0]
        for kind, pixels in (("images", image), ("masks", separate_cells(ids)), ("ids", ids)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            save_png(Image.fromarray(pixels), folder / kind / name)
    write_text(folder / "classes.txt", "background\ncell\n")


def separate_cells(ids: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """(H, W) ids -> (H, W) mask: 1 inside a cell, 0 outside and on lines of 2 px where cells touch."""
    known = ids.astype(np.int64)
    highest = scipy.ndimage.maximum_filter(known, 3)
    lowest = scipy.ndimage.minimum_filter(np.where(known > 0, known, highest.max() + 1), 3)
    mask: NDArray[np.uint8] = ((known > 0) & (lowest == highest)).astype(np.uint8)
    return mask


def count_objects(run: Path, border_weight: float, dice: float, device: str | None) -> TrainingResult:
    """Count the objects of a run's test split, separated as by `ubend objects`, and compare with the true ones."""
    predictor, pairs = load(run, device), _test_pairs(run)
    names, root = predictor.labels.names, _root(pairs)
    quality, errors, shown = Quality(), [], []
    found = dict(predictor.predict([pair.image for pair in pairs]))
    for index, pair in enumerate(pairs):
        truth = find_objects(root, pair, predictor.labels)
        areas = np.bincount(truth.ids.ravel())[1:]
        minimum = max(1, round(_FRAGMENT * float(np.median(areas)))) if len(areas) else 1
        own = separate(found[index].mask, names, choose_method(names), minimum)
        each = compare_objects(own.ids, own.classes, truth.ids, truth.classes, len(names))
        total = sum((each[kind] for kind in object_classes(names)), Quality())
        quality += total
        errors.append(total.count_error)
        if index < _SHOWN:
            shown.append(own.ids)
    return TrainingResult(border_weight, dice, quality, tuple(errors), tuple(shown))


def find_objects(root: Path, pair: Pair, labels: LabelMap) -> Objects:
    """The true objects of an image: from `ids/` next to the folder of images if it exists, else from its mask."""
    kinds = object_classes(labels.names)
    path = root / "ids" / f"{pair.image.stem}.png"
    if path.is_file() and len(kinds) == 1:
        return read_truth({kinds[0]: path})
    return separate(_read_mask(pair, labels), labels.names, choose_method(labels.names))


def _weigh(pair: Pair, truth: Objects, labels: LabelMap) -> NDArray[np.float32]:
    ground = ~np.isin(_read_mask(pair, labels), object_classes(labels.names))
    return border_weights(truth.ids, ground, W0, SIGMA_PX)


def _read_mask(pair: Pair, labels: LabelMap) -> NDArray[np.uint8]:
    image = read_image(pair.image)
    return read_class_map(pair, (image.shape[0], image.shape[1]), labels).classes


def _root(pairs: list[Pair]) -> Path:
    """The parent of the folder of images."""
    return pairs[0].image.parent.parent


def _test_pairs(run: Path) -> list[Pair]:
    pairs = [pair for pair in read_run_pairs(run) if pair.split == "test"]
    if not pairs:
        raise DataError(
            _("{run}: there is no test split to compare on; add images").format(run=run), path=run, key="test"
        )
    return pairs


def _variant(border_weight: float) -> str:
    return _("with the weight map") if border_weight else _("without the weight map")


def _describe(counted: TrainingResult) -> str:
    own = counted.quality
    return _(
        "{name}: {found} objects found, {true} true; count error {error:.2f} per image, F1 {f1:.3f}, Dice {dice:.3f}"
    ).format(
        name=_variant(counted.border_weight),
        found=own.matched + own.extra,
        true=own.matched + own.missed,
        error=counted.absolute_error,
        f1=own.recognition,
        dice=counted.dice,
    )
