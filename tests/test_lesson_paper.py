"""The lesson on the original U-Net: what it draws is what the network computes; cells are counted."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy import ndimage

from ubend.cli.app import main
from ubend.core.i18n import choose_language
from ubend.dataset.sample import draw_ids, draw_image
from ubend_lessons.paper import draw_touching_cells, separate_cells
from ubend_lessons.paper_figures import color_ids, draw_sizes, draw_tiles, draw_weights, object_color

TINY = ["model.width=2", "model.depth=1", "train.epochs=1", "train.batch=4", "data.size=32", "train.learning_rate=1e-6"]


def test_cells_are_parted() -> None:
    """Each cell stays one part, touching ones are two, and only pixels beside another cell become background."""
    ids = np.zeros((20, 30), np.uint16)
    ids[4:14, 2:12], ids[4:14, 12:25], ids[14:18, 2:12] = 1, 2, 3
    mask = separate_cells(ids)
    _labels, count = ndimage.label(mask, np.ones((3, 3)))
    assert count == 3
    lost = (ids > 0) & (mask == 0)
    np.testing.assert_array_equal(np.unique(np.argwhere(lost[4:13])[:, 1]), [11, 12])
    assert mask[8, 10] == mask[8, 13] == mask[4, 2] == mask[17, 11] == 1
    assert not mask[ids == 0].any()
    drawn = draw_ids(0, 3, 128)
    parts = separate_cells(drawn)
    # next to each true cell of some size is one part
    assert ndimage.label(parts, np.ones((3, 3)))[1] >= 0.9 * sum(np.bincount(drawn.ravel())[1:] > 60)


def test_images() -> None:
    """Nothing is cut off at the right or below, and what is drawn follows the numbers."""
    for figure in (draw_sizes(572, 4, 64, 1, 2), draw_sizes(60, 2, 8, 3, 5)):
        ink = np.asarray(figure.convert("L")) < 250
        assert not ink[:, -10:].any()
        assert not ink[-3:].any()
    image, ids = draw_image(0, 0, 64)[0], draw_ids(0, 0, 64)
    weights = np.zeros((64, 64), np.float32)
    weights[:, 32:] = 9.5
    heat = np.asarray(draw_weights(image, ids, weights))
    dark = (heat == [60, 0, 20]).all(axis=2)
    assert 0.4 < dark.sum() / 320**2 < 0.55
    tiles = np.asarray(draw_tiles(image, 2, 20))
    assert tiles.shape[1] > 640
    dark = (tiles == [30, 30, 30]).all(axis=2)
    assert dark[:657].sum(axis=0).max() > 200  # the frame of the image is not hidden by the tiles'
    assert dark[:657].sum(axis=1).max() > 200
    assert tuple(color_ids(np.array([[7]]))[0, 0]) == object_color(7)
    colors = color_ids(np.arange(9).reshape(3, 3))
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 9
    assert not colors[0, 0].any()


@pytest.mark.parametrize("language", ["en", "vi"])
def test_command(language: str, tmp_path: Path) -> None:
    draw_touching_cells(tmp_path / "cells", 8, 64)
    words = ["lesson", "paper", "--data", str(tmp_path / "cells"), "--device", "cpu", "--lang", language]
    words += [word for setting in TINY for word in ("--set", setting)]
    run = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    choose_language("en")
    assert run.exit_code == 0, run.output
    assert "572 x 572" in run.output
    assert "388 x 388" in run.output
    assert len(re.findall(r"F1 \d\.\d{3}, Dice \d", run.output)) == 2
    for name in ("sizes", "tiles", "weights", "comparison"):
        with Image.open(tmp_path / "out" / f"{name}.png") as figure:
            assert figure.width > 300
    again = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    choose_language("en")
    assert again.exit_code == 2
    assert len(again.output.splitlines()) == 1
