"""Traditional methods: where each must succeed, where it must not, and that they are scored as models are."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from conftest import make_discs
from refusal import refused, refused_once
from ubend.baselines.baseline import Baseline, Example, learn_baseline
from ubend.baselines.methods import METHODS, Method, list_parameters, parse_method, segment
from ubend.baselines.pixels import describe_pixels
from ubend.baselines.rule import choose_classes, halves, score_classes
from ubend.baselines.segments import describe_segments
from ubend.cli import main
from ubend.errors import SettingError
from ubend.jobs.baseline import run_baseline
from ubend.masks.labels import IGNORED, make_label_map
from ubend.metrics.overlap import count_confusion, dice_from_confusion, summarise_overlap
from ubend.pictures.images import Sizing

SIDE_PX = 96
LABELS = make_label_map([0, 1])


def draw_place(number: int, radius_px: tuple[float, float] = (14, 22)) -> NDArray[np.bool_]:
    """A disc somewhere in the picture, away from its rim."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    radius = generator.uniform(*radius_px)
    cy, cx = generator.uniform(radius + 4, SIDE_PX - radius - 4, 2)
    return np.asarray((y - cy) ** 2 + (x - cx) ** 2 < radius**2)


def draw_flat(number: int) -> Example:
    """A red disc on blue-grey ground: other in colour and in light."""
    disc = draw_place(number)
    image = np.where(disc[..., None], (190, 90, 80), (70, 80, 100)) + np.random.default_rng(number).normal(
        0, 3, (SIDE_PX, SIDE_PX, 3)
    )
    return image.clip(0, 255).astype(np.uint8), disc.astype(np.uint8)


def draw_lit_from_a_side(number: int) -> Example:
    """Small light discs on ground that is far lighter on one side than they are on the other."""
    generator = np.random.default_rng(number)
    discs = np.any([draw_place(10 * number + one, (4, 6)) for one in range(4)], axis=0)
    light = np.linspace(20, 200, SIDE_PX)[:: generator.choice([-1, 1])]
    image = light[None, :, None] + 45.0 * discs[..., None] + generator.normal(0, 2, (SIDE_PX, SIDE_PX, 1))
    return image.clip(0, 255).astype(np.uint8), discs.astype(np.uint8)


def draw_woven(number: int) -> Example:
    """A disc of coarse grain on ground of fine grain, of the same mean and the same greys."""
    disc, generator = draw_place(number, (20, 26)), np.random.default_rng(number)
    coarse = np.kron(generator.choice([60, 190], (SIDE_PX // 4, SIDE_PX // 4)), np.ones((4, 4)))
    image = np.where(disc, coarse, generator.choice([60, 190], (SIDE_PX, SIDE_PX)))
    return np.repeat(image[..., None], 3, axis=2).astype(np.uint8), disc.astype(np.uint8)


def learn(method: Method, examples: list[Example], size_px: int = SIDE_PX) -> Baseline:
    channels = examples[0][0].shape[2]
    most = float(np.iinfo(examples[0][0].dtype).max)
    value_range = np.zeros(channels), np.full(channels, most)
    return learn_baseline(method, examples, LABELS, Sizing(size_px, True, channels), value_range)


def mean_dice(baseline: Baseline, shown: list[Example]) -> float:
    """Of the discs."""
    confusions = np.stack([count_confusion(baseline(image).mask, mask, 2) for image, mask in shown])
    return float(np.nanmean(dice_from_confusion(confusions)[:, 1]))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "local"])
def test_flat_regions_are_found(method: Method) -> None:
    baseline = learn(method, [draw_flat(number) for number in range(6)])
    assert mean_dice(baseline, [draw_flat(number) for number in range(20, 24)]) > 0.95


def test_uneven_light() -> None:
    """One threshold cannot do it; one that follows the light can."""
    examples, shown = ([draw_lit_from_a_side(n) for n in numbers] for numbers in (range(6), range(20, 24)))
    assert mean_dice(learn("local", examples), shown) > 0.9
    assert mean_dice(learn("otsu", examples), shown) < 0.4
    assert mean_dice(learn("multi-otsu", examples), shown) < 0.4


@pytest.mark.parametrize("method", ["kmeans", "growing", "watershed", "felzenszwalb", "slic"])
def test_texture_where_colour_fails(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training part chooses texture; without it the disc is not found."""
    examples, shown = ([draw_woven(n) for n in numbers] for numbers in (range(6), range(20, 24)))
    baseline = learn(method, examples)
    assert baseline.parameters["by"] != "color"
    assert mean_dice(baseline, shown) > 0.8
    assert mean_dice(learn("otsu", examples), shown) < 0.5
