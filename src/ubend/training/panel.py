"""The picture of each epoch."""

import numpy as np
import torch

from ubend.config import TrainSettings
from ubend.data.batches import Pictures
from ubend.data.dataset import Dataset
from ubend.drawing.overlay import color_mask, to_rgb
from ubend.drawing.panels import draw_grid, save_png, show_picture
from ubend.language import _
from ubend.training.checkpoint import TrainingState
from ubend.training.run_folder import RunFolder
from ubend.training.step import autocast

_PANEL_PICTURES = 3  # of the validation part


def draw_panel(
    run: RunFolder, data: Dataset, validation: Pictures, state: TrainingState, settings: TrainSettings, show: bool
) -> None:
    """The panel of an epoch: the same validation pictures every time, input | prediction | truth."""
    count = min(_PANEL_PICTURES, len(validation))
    items = np.unique(np.linspace(0, len(validation) - 1, count).astype(np.int64))
    image, target = validation.take(items)
    state.average.eval()
    with torch.inference_mode(), autocast(image.device, settings):  # one by one: validation may have had to, too
        guesses = [state.average(one.float()).argmax(dim=1).to(torch.uint8) for one in torch.split(image, 1)]
    index = torch.cat(guesses).cpu().numpy()
    colors, rows, labels = data.labels.colors, [], []
    for slot, item in enumerate(items):
        h, w = validation.shapes_hw[item]
        number = int(validation.numbers[item])
        truth = target[slot, :h, :w].cpu().numpy()
        rows.append(
            [to_rgb(data.store.image(number)), color_mask(index[slot, :h, :w], colors), color_mask(truth, colors)]
        )
        labels.append(data.folder.pairs[number].name)
    epoch = state.progress.history[-1]["epoch"]
    panel = draw_grid(
        rows,
        [_("input"), _("prediction after epoch {epoch}").format(epoch=epoch), _("truth")],
        labels,
        legend=list(zip(data.labels.names, colors, strict=True)),
    )
    save_png(panel, run.panel(epoch))
    if show:
        show_picture(panel)
