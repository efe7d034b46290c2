"""Image grids: samples of a data set, and predictions of a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, PairError
from ubend.core.files import default_cache, refuse_existing
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.core.settings import Settings
from ubend.dataset.dataset import read_usable, scan_folder
from ubend.dataset.store import read_class_map
from ubend.drawing.panels import draw_grid, show_image
from ubend.evaluation.comparison import image_dice
from ubend.evaluation.scores import evaluate_pairs
from ubend.inference.predictor import load
from ubend.io.images import read_image, resize_array, resize_mask
from ubend.labels.class_table import LabelMap, background_class
from ubend.layouts.pairs import Folder, Pair, SplitName
from ubend.metrics.boundary import TOLERANCE_PX
from ubend.portable.images import save_png
from ubend.portable.overlay import ERROR_COLORS, NEAR_COLOR, Color, color_mask, draw_errors, overlay_mask, to_rgb
from ubend.tasks.evaluate import read_run_subset
from ubend.tasks.user_settings import source_name
from ubend.training.run_folder import RunFolder

_CELL_PX = 192


def draw_samples(settings: Settings, out: Path | str, *, count: int = 8, show: bool = False) -> Path:
    """Draw a grid of images with masks, evenly spaced in a folder.

    Args:
        settings: only the section `data` is used.
        out: the PNG to write.
        count: images.
        show: also display it.
    """
    refuse_existing([Path(out)])

    def draw(usable: Folder, _skipped: list[tuple[Pair, list[str]]]) -> Path:
        label_scan = scan_folder(usable, settings, default_cache(), Reporter())
        return draw_pairs(usable.pairs, label_scan.labels, label_scan.channels, Path(out), count=count, show=show)

    return read_usable(settings, draw)


def free_preview_name(settings: Settings) -> Path:
    """`NAME-preview-1.png` of the data folder, or the first free number."""
    name, number = Path(source_name(settings)).resolve().name, 1
    while (path := Path(f"{name}-preview-{number}.png")).exists():
        number += 1
    return path


def draw_pairs(
    pairs: Sequence[Pair], labels: LabelMap, channels: int, out: Path, *, count: int = 8, show: bool = False
) -> Path:
    """A grid of images, read with `channels`, and their masks, evenly taken from `pairs`: image, mask, both.

    Raises:
        PairError: some of these pairs cannot be read.
    """
    chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, count).astype(int))]
    rows, bad = [], dict[str, list[str]]()
    for pair in chosen:
        try:
            image, truth = read_small(pair, labels, channels)
        except DataError as error:
            bad[pair.name] = error.problems
            continue
        both = overlay_mask(image, truth, labels.colors, background=background_class(labels.names))
        rows.append([image, color_mask(truth, labels.colors), both])
    if bad:
        raise PairError(bad)
    legend = list(zip(labels.names, labels.colors, strict=True))
    return _draw(rows, [_("image"), _("mask"), _("both")], [pair.name for pair in chosen], legend, out, show)


def draw_predictions(
    run: Path | str,
    out: Path | str | None = None,
    *,
    count: int = 10,
    subset: SplitName | None = None,
    worst: bool = False,
    show: bool = False,
    device: str | None = None,
) -> Path:
    """Draw the first or the worst images of a run's subset: input, truth, prediction.

    Args:
        run: a run folder.
        out: the PNG to write; None: `predictions.png` (or `worst.png`) in the run folder, which is overwritten.
        count: images.
        subset: None: the test split, or validation where there is no test split.
        worst: score all images of the subset, and draw the worst first, each with its score and its errors.
    Raises:
        DataError: the subset is empty, or its images are missing.
        OutputError: `run` is not a run folder, its data list is empty, or `out` exists.
    """
    refuse_existing([] if out is None else [Path(out)])
    _subset, chosen = read_run_subset(Path(run), subset)
    predictor = load(run, device)
    labels = predictor.labels
    headings, legend = [_("input"), _("truth"), _("prediction")], list(zip(labels.names, labels.colors, strict=True))
    scores: dict[str, float] = {}
    if worst:
        scores = score_images(evaluate_pairs(predictor, chosen)["per_picture"], labels)
        chosen = sorted(chosen, key=lambda pair: scores[pair.name])
        headings, legend = [*headings, _("errors")], [*legend, *error_legend(labels)]
    chosen = chosen[:count]
    rows: list[list[NDArray[np.uint8]]] = [[] for _pair in chosen]
    for index, prediction in predictor.predict(pair.image for pair in chosen):
        image, truth = read_small(chosen[index], labels, predictor.bundle.sizing.channels)
        mask = resize_mask(prediction.mask, truth.shape)
        rows[index] = [image, color_mask(truth, labels.colors), color_mask(mask, labels.colors)]
        if worst:
            rows[index].append(draw_error_map(image, truth, mask, labels, prediction.mask.shape))
    folder = RunFolder(Path(run))
    target = (folder.worst if worst else folder.predictions) if out is None else Path(out)
    captions = [
        f"{pair.name}: " + _("Dice {dice:.3f}").format(dice=scores[pair.name]) if worst else pair.name
        for pair in chosen
    ]
    return _draw(rows, headings, captions, legend, target, show)


def score_images(per_image: Mapping[str, Any], labels: LabelMap) -> dict[str, float]:
    """One score for each image: the mean Dice of its classes without the background, 0..1.

    Args:
        per_image: `per_picture` of `evaluate_pairs`.
    Returns:
        1 where an image has none of these classes, and none is predicted.
    """
    background = background_class(labels.names)
    foreground = [name for index, name in enumerate(labels.names) if index != background]
    dice = np.array([[row["dice"][name] for name in foreground] for row in per_image.values()], np.float64)
    return dict(zip(per_image, image_dice(dice).tolist(), strict=True))


def error_legend(labels: LabelMap) -> list[tuple[str, Color]]:
    """Legend of the possible kinds of errors between these classes."""
    background = background_class(labels.names)
    names = {"positive": _("false positive"), "negative": _("false negative"), "class": _("wrong class")}
    if background is None:
        kinds = ["class"]
    else:
        kinds = ["positive", "negative", "class"] if labels.classes > 2 else ["positive", "negative"]
    near = (_("wrong, within {px:g} px of a true outline").format(px=TOLERANCE_PX), NEAR_COLOR)
    return [*((names[kind], ERROR_COLORS[kind]) for kind in kinds), near]


def draw_error_map(
    image: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    labels: LabelMap,
    native_hw: tuple[int, ...],
) -> NDArray[np.uint8]:
    """The wrong pixels of a reduced image in the colours of `error_legend`.

    Args:
        image: (H, W, 3) uint8, reduced, as from `read_small`.
        truth: (H, W) uint8 class index, or IGNORED.
        prediction: (H, W) uint8 class index.
        native_hw: height and width before the reduction, px.
    Returns:
        (H, W, 3) uint8.
    """
    near_px = max(1, round(TOLERANCE_PX * max(truth.shape) / max(native_hw)))
    return draw_errors(image, truth, prediction, background_class(labels.names), near_px)


def read_small(pair: Pair, labels: LabelMap, channels: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read an image and class indices, reduced to twice the drawing size."""
    image = read_image(pair.image, channels)
    truth = read_class_map(pair, image.shape[:2], labels).classes
    factor = min(1.0, 2 * _CELL_PX / max(truth.shape))
    size = (max(1, round(truth.shape[0] * factor)), max(1, round(truth.shape[1] * factor)))
    return to_rgb(resize_array(image, size)), resize_mask(truth, size)


def _draw(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    headings: Sequence[str],
    captions: Sequence[str],
    legend: Sequence[tuple[str, Color]],
    out: Path,
    show: bool,
) -> Path:
    grid = draw_grid(rows, headings, captions, legend=legend)
    save_png(grid, out)
    if show:
        show_image(grid)
    return out
