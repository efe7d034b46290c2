"""Rare classes are learned without a flag: eight drawn classes, two of them below .3% of the pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ubend.cli.app import main

NAMES = ("ground", "sky", "road", "house", "tree", "car", "sign", "person")
COLORS = np.array(
    [
        (120, 110, 90),
        (120, 170, 230),
        (90, 90, 95),
        (170, 80, 60),
        (40, 120, 50),
        (200, 190, 40),
        (220, 30, 30),
        (230, 120, 200),
    ],
    np.float32,
)
COUNT, SIDE = 40, 96  # images, px


def draw_street(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(SIDE, SIDE, 3) image and (SIDE, SIDE) class index of a street: flat colours with noise."""
    rng = np.random.default_rng([7, number])
    mask = Image.new("L", (SIDE, SIDE), NAMES.index("ground"))
    draw = ImageDraw.Draw(mask)
    horizon, middle = SIDE * rng.uniform(0.3, 0.45), SIDE * rng.uniform(0.3, 0.7)
    draw.rectangle((0, 0, SIDE, horizon), fill=NAMES.index("sky"))
    top, bottom = SIDE * rng.uniform(0.04, 0.1), SIDE * rng.uniform(0.2, 0.35)
    corners = [(middle - top, horizon), (middle + top, horizon), (middle + bottom, SIDE), (middle - bottom, SIDE)]
    draw.polygon(corners, fill=NAMES.index("road"))

    def box(x: float, y: float, half_x: float, half_y: float) -> tuple[float, float, float, float]:
        return x - half_x, y - half_y, x + half_x, y + half_y

    for _ in range(rng.integers(1, 3)):
        half_x, half_y = SIDE * rng.uniform(0.06, 0.12, 2)
        draw.rectangle(box(rng.uniform(0, SIDE), horizon - half_y / 2, half_x, half_y), fill=NAMES.index("house"))
    for _ in range(rng.integers(1, 4)):
        radius = SIDE * rng.uniform(0.05, 0.1)
        x, y = rng.uniform(0, SIDE), horizon + SIDE * rng.uniform(0, 0.2)
        draw.ellipse(box(x, y, radius, radius), fill=NAMES.index("tree"))
    x, y = middle + SIDE * rng.uniform(-0.1, 0.1), SIDE * rng.uniform(0.6, 0.85)
    draw.rectangle(box(x, y, SIDE * rng.uniform(0.06, 0.09), SIDE * rng.uniform(0.035, 0.05)), fill=NAMES.index("car"))
    x, y = SIDE * rng.uniform(0.1, 0.9), horizon + SIDE * rng.uniform(0, 0.1)
    draw.ellipse(box(x, y, 2, 2), fill=NAMES.index("sign"))
    x, y = SIDE * rng.uniform(0.1, 0.9), SIDE * rng.uniform(0.5, 0.9)
    draw.rectangle(box(x, y, 1, 2.5), fill=NAMES.index("person"))
    classes = np.array(mask)
    image = COLORS[classes] + rng.normal(0, 14, (SIDE, SIDE, 3)) + rng.normal(0, 10, 3)
    return image.clip(0, 255).astype(np.uint8), classes


@pytest.mark.slow
def test_rare_classes(tmp_path: Path) -> None:
    """In 168 steps; with one step an epoch, as in batches of 28 images, they stay at 0."""
    pixels = np.zeros(len(NAMES), np.int64)
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for number in range(COUNT):
        image, classes = draw_street(number)
        Image.fromarray(image).save(tmp_path / "set" / "images" / f"{number:02}.png")
        Image.fromarray(classes).save(tmp_path / "set" / "masks" / f"{number:02}.png")
        pixels += np.bincount(classes.ravel(), minlength=len(NAMES))
    assert (pixels / pixels.sum() < 0.003).sum() == 2
    assert (pixels > 0).all()
    words = ["fit", str(tmp_path / "set"), "--epochs", "24", "--device", "cpu", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    dice = json.loads((tmp_path / "run" / "scores.json").read_text())["native"]["dice"]["pooled"]
    assert min(dice.values()) > 0.5
