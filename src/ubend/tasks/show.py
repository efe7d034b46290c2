"""Pictures to look at: a data set before training, a model's answers after it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, PairError
from ubend.core.files import default_cache, refuse_existing
from ubend.core.i18n import _
from ubend.core.progress import Teller
from ubend.core.settings import Settings
from ubend.dataset.dataset import read_usable, survey_folder
from ubend.dataset.store import read_class_map
from ubend.drawing.overlay import color_mask, overlay_mask, to_rgb
from ubend.drawing.panels import draw_grid, save_png, show_picture
from ubend.inference.predictor import load
from ubend.io.images import read_image, resize_array, resize_mask
from ubend.labels.class_table import LabelMap, background_class
from ubend.layouts.pairs import Folder, Pair
from ubend.tasks.evaluate import read_run_pairs
from ubend.training.run_folder import RunFolder

_CELL_PX = 192


def draw_samples(settings: Settings, out: Path | str, *, count: int = 8, show: bool = False) -> Path:
    """A grid of pictures with their masks, evenly taken from a folder, before any training.

    Args:
        settings: of which only the section `data` matters.
        out: the PNG to write.
        count: pictures.
        show: also display it.
    """
    refuse_existing([Path(out)])

    def draw(found: Folder, _skipped: list[tuple[Pair, list[str]]]) -> Path:
        survey = survey_folder(found, settings, default_cache(), Teller())
        return draw_pairs(found.pairs, survey.labels, survey.channels, Path(out), count=count, show=show)

    return read_usable(settings, draw)


def draw_pairs(
    pairs: Sequence[Pair], labels: LabelMap, channels: int, out: Path, *, count: int = 8, show: bool = False
) -> Path:
    """A grid of pictures, read with `channels`, and their masks, evenly taken from `pairs`: picture, mask, both.

    Raises:
        PairError: of these pairs, those that cannot be read.
    """
    chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, count).astype(int))]
    rows, bad = [], dict[str, list[str]]()
    for pair in chosen:
        try:
            image, truth = _read_small(pair, labels, channels)
        except DataError as error:
            bad[pair.name] = error.problems
            continue
        both = overlay_mask(image, truth, labels.colors, background=background_class(labels.names))
        rows.append([image, color_mask(truth, labels.colors), both])
    if bad:
        raise PairError(bad)
    return _draw(rows, [_("picture"), _("mask"), _("both")], chosen, labels, out, show)


def draw_predictions(
    run: Path | str, out: Path | str | None = None, *, count: int = 10, show: bool = False, device: str | None = None
) -> Path:
    """The first test pictures of a run: input, truth, prediction.

    Args:
        run: a run folder.
        out: the PNG to write; None: `predictions.png` in the run folder, drawn anew.
        count: pictures.
    """
    refuse_existing([] if out is None else [Path(out)])
    pairs = read_run_pairs(Path(run))
    predictor = load(run, device)
    part = "test" if any(pair.part == "test" for pair in pairs) else "val"
    chosen = [pair for pair in pairs if pair.part == part][:count]
    labels = predictor.labels
    rows: list[list[NDArray[np.uint8]]] = [[] for _pair in chosen]
    for number, prediction in predictor.predict(pair.image for pair in chosen):
        image, truth = _read_small(chosen[number], labels, predictor.bundle.sizing.channels)
        mask = resize_mask(prediction.mask, truth.shape)
        rows[number] = [image, color_mask(truth, labels.colors), color_mask(mask, labels.colors)]
    target = RunFolder(Path(run)).predictions if out is None else Path(out)
    return _draw(rows, [_("input"), _("truth"), _("prediction")], chosen, labels, target, show)


def _read_small(pair: Pair, labels: LabelMap, channels: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Picture and class indices, shrunk to twice the size at which they are drawn."""
    image = read_image(pair.image, channels)
    truth = read_class_map(pair, image.shape[:2], labels).classes
    factor = min(1.0, 2 * _CELL_PX / max(truth.shape))
    size = (max(1, round(truth.shape[0] * factor)), max(1, round(truth.shape[1] * factor)))
    return to_rgb(resize_array(image, size)), resize_mask(truth, size)


def _draw(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    headings: Sequence[str],
    pairs: Sequence[Pair],
    labels: LabelMap,
    out: Path,
    show: bool,
) -> Path:
    legend = list(zip(labels.names, labels.colors, strict=True))
    grid = draw_grid(rows, headings, [pair.name for pair in pairs], legend=legend)
    save_png(grid, out)
    if show:
        show_picture(grid)
    return out
