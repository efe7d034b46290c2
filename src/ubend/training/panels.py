"""The picture of each epoch."""

from collections.abc import Callable

import numpy as np
import torch

from ubend.core.i18n import _
from ubend.core.settings import TrainSettings
from ubend.dataset.dataset import Dataset
from ubend.dataset.sources import Source
from ubend.drawing.overlay import color_mask, to_rgb
from ubend.drawing.panels import draw_grid, save_png, show_picture
from ubend.training.checkpoint import TrainingState
from ubend.training.loop import validation_batch
from ubend.training.run_folder import RunFolder
from ubend.training.step import Forward, autocast

_PANEL_PICTURES = 3  # of the validation part


def draw_panel(
    run: RunFolder,
    data: Dataset,
    validation: Source,
    state: TrainingState,
    forward_average: Forward,
    settings: TrainSettings,
    show: bool,
) -> Callable[[], None]:
    """The panel of an epoch: the same validation pictures, or windows of them, every time, input | prediction | truth.

    The network looks at them here; the drawing is left to what is returned, which needs neither device nor state.
    """
    count = min(_PANEL_PICTURES, len(validation))
    items = np.unique(np.linspace(0, len(validation) - 1, count).astype(np.int64))
    image, target = validation.take(items)
    state.average.eval()
    fitting = validation_batch(validation, state.progress)
    with torch.inference_mode(), autocast(image.device, settings):
        guesses = [forward_average(some.float()).argmax(dim=1).to(torch.uint8) for some in torch.split(image, fitting)]
    index, truth = torch.cat(guesses).cpu().numpy(), target.cpu().numpy()
    epoch = state.progress.history[-1]["epoch"]

    def draw() -> None:
        colors, rows, labels = data.labels.colors, [], []
        for slot, item in enumerate(items):
            h, w = validation.shapes_hw[item]
            number = int(validation.numbers[item])
            masks = [color_mask(one[slot, :h, :w], colors) for one in (index, truth)]
            rows.append([to_rgb(validation.image(int(item))), *masks])
            labels.append(data.folder.pairs[number].name)
        panel = draw_grid(
            rows,
            [_("input"), _("prediction after epoch {epoch}").format(epoch=epoch), _("truth")],
            labels,
            legend=list(zip(data.labels.names, colors, strict=True)),
        )
        save_png(panel, run.panel(epoch))
        if show:
            show_picture(panel)

    if not show:
        return draw
    draw()  # a notebook shows what its own thread gives it
    return lambda: None
