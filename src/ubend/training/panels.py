"""Drawings after each epoch: a panel of validation images, and the curves."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from ubend.core.i18n import _
from ubend.dataset.dataset import Dataset
from ubend.drawing.curves import LiveCurves
from ubend.drawing.panels import draw_grid, show_image
from ubend.portable.images import save_png
from ubend.portable.overlay import color_mask, to_rgb
from ubend.training.batch_norm_warmup import batch_statistics, shows_batch_statistics
from ubend.training.checkpoint import TrainingState
from ubend.training.loop import validation_batch
from ubend.training.run_folder import RunFolder
from ubend.training.training import Training

_PANEL_IMAGES = 3  # of the validation split


class EpochDrawing:
    """Draws an epoch of a training. Call it with the state; it returns a function for the writing thread.

    Args:
        run: the run folder, for panels and curves.
        show: also display each panel.
    """

    def __init__(self, run: RunFolder, data: Dataset, training: Training, *, show: bool) -> None:
        self._run, self._data, self._training, self._show = run, data, training, show
        self._curves = LiveCurves(data.labels.names, run.curves)

    def __call__(self, state: TrainingState) -> Callable[[], None]:
        draw_panel, history = self._inspect(state), list(state.progress.history)
        if self._show:  # notebooks only display output of their own thread
            draw_panel()

        def write() -> None:
            if not self._show:
                draw_panel()
            self._curves.draw(history)

        return write

    def _inspect(self, state: TrainingState) -> Callable[[], None]:
        """The panel of an epoch: input, prediction and truth of a few fixed validation images.

        The forward pass runs here; the returned function draws and needs neither device nor state.
        """
        training, data = self._training, self._data
        validation = training.validation
        count = min(_PANEL_IMAGES, len(validation))
        items = np.unique(np.linspace(0, len(validation) - 1, count).astype(np.int64))
        image, target = validation.take(items)
        state.ema.eval()
        shows_them = shows_batch_statistics(training, state.progress.step)
        statistics = batch_statistics(state.ema) if shows_them else nullcontext()
        with statistics, torch.inference_mode(), training.autocast():
            parts = torch.split(image.float(), validation_batch(training))
            guesses = [training.forward_ema(batch).argmax(dim=1).to(torch.uint8) for batch in parts]
        index, truth = torch.cat(guesses).cpu().numpy(), target.cpu().numpy()
        epoch = state.progress.history[-1]["epoch"]
        heading = _("prediction after epoch {epoch}")
        if shows_them:
            heading = _("prediction after epoch {epoch} (batch statistics)")

        def draw() -> None:
            colors, rows, labels = data.labels.colors, [], []
            for slot, item in enumerate(items):
                h, w = validation.shapes_hw[item]
                masks = [color_mask(indices[slot, :h, :w], colors) for indices in (index, truth)]
                rows.append([to_rgb(validation.image(int(item))), *masks])
                labels.append(data.folder.pairs[int(validation.image_indices[item])].name)
            panel = draw_grid(
                rows,
                [_("input"), heading.format(epoch=epoch), _("truth")],
                labels,
                legend=list(zip(data.labels.names, colors, strict=True)),
            )
            save_png(panel, self._run.panel(epoch))
            if self._show:
                show_image(panel)

        return draw
