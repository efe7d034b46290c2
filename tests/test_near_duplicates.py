"""Near-identical images: pairs by hashes against all pairs, whose number stays bounded."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ubend.dataset import near_duplicates
from ubend.dataset.near_duplicates import Pairs, Threshold, find_similar
from ubend.dataset.orientations import BETWEEN, INVERSE, VIEWS, turn, turn_coefficients
from ubend.dataset.splits import THRESHOLD, find_near_duplicates
from ubend.doctor.duplicates import find_candidates

SIDE_PX = 32


def draw_textures(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count, SIDE_PX, SIDE_PX) smooth, unlike images, 40..200."""
    place = (np.arange(SIDE_PX) + 0.5) / SIDE_PX
    waves = np.cos(np.pi * np.arange(7)[:, None] * place)
    weights = rng.normal(0, 1, (count, 7, 7)) / (1 + np.add.outer(np.arange(7), np.arange(7)))
    planes = waves.T @ weights @ waves
    low, high = planes.min(axis=(1, 2), keepdims=True), planes.max(axis=(1, 2), keepdims=True)
    return np.asarray(40 + 160 * (planes - low) / (high - low))


def change(plane: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Another orientation, brightness and noise."""
    turned = turn(plane, int(rng.integers(VIEWS)))
    return np.asarray(turned * rng.uniform(0.7, 1.1) + rng.normal(0, rng.uniform(0, 6), turned.shape))


def list_pairs(thumbnails: NDArray[np.uint8], threshold: Threshold, exact: bool) -> set[tuple[int, int]]:
    pairs = find_similar(thumbnails, threshold, lambda left, right: left == right, exact=exact)
    return {
        (min(pair), max(pair))
        for some in pairs
        for pair in zip(some.turned.tolist(), some.upright.tolist(), strict=True)
    }


def brute_force(thumbnails: NDArray[np.uint8], threshold: Threshold) -> set[tuple[int, int]]:
    """All pairs in all orientations, as the definition says."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(float)
    unit = flat - flat.mean(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    details = unit - unit.mean(axis=0)
    details /= np.linalg.norm(details, axis=1, keepdims=True)
    pairs = set()
    for view in range(VIEWS):
        whole, part = (
            turn(rows.reshape(-1, SIDE_PX, SIDE_PX), view).reshape(rows.shape) @ rows.T for rows in (unit, details)
        )
        near = (whole >= threshold.whole) & ((part >= threshold.details) | (whole >= 0.9998))
        pairs |= {(min(pair), max(pair)) for pair in np.argwhere(near).tolist() if pair[0] != pair[1]}
    return pairs


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(0, 30))
@settings(max_examples=15)
def test_pairs_are_those_of_brute_force(seed: int, images: int, copies: int) -> None:
    """Exactly, where all pairs are compared; hashes find no other pair."""
    rng = np.random.default_rng(seed)
    drawn = draw_textures(images, rng)
    drawn = np.concatenate([drawn, *(change(drawn[rng.integers(images)], rng)[None] for _copy in range(copies))])
    thumbnails = drawn.clip(0, 255).astype(np.uint8)
    wanted = brute_force(thumbnails, THRESHOLD)
    assert list_pairs(thumbnails, THRESHOLD, exact=True) == wanted
    assert list_pairs(thumbnails, THRESHOLD, exact=False) <= wanted


def test_hashes_find_copies_among_many() -> None:
    rng = np.random.default_rng(0)
    images = draw_textures(1000, rng)
    copies = np.stack([change(images[index], rng) for index in range(200)])
    thumbnails = np.concatenate([images, copies]).clip(0, 255).astype(np.uint8)
    for threshold, recall in ((THRESHOLD, 0.995), (Threshold(0.9, 0.8), 0.97)):
        wanted = list_pairs(thumbnails, threshold, exact=True)
        found = list_pairs(thumbnails, threshold, exact=False)
        assert len(wanted) >= 190
        assert found <= wanted
        assert len(found) >= recall * len(wanted)
    np.testing.assert_array_equal(*(find_near_duplicates(thumbnails, exact=exact) for exact in (True, False)))


def draw_alike(count: int, noise: float) -> NDArray[np.uint8]:
    """(count, SIDE_PX, SIDE_PX): the first half is one image with noise, the others are unlike."""
    rng = np.random.default_rng(1)
    images = draw_textures(count // 2 + 1, rng)
    images = np.concatenate([np.repeat(images[:1], count // 2, axis=0), images[1:]])
    return (images + rng.normal(0, noise, images.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_many_alike_are_one_group(noise: float) -> None:
    """Frames of a video that stands still."""
    thumbnails = draw_alike(2000, noise)
    assert set(find_near_duplicates(thumbnails, exact=False)[:1000].tolist()) == {0}


def test_few_pairs_of_many_alike_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 500 thousand pairs in one group, each in two orientations by chance."""
    compared, compare = [], near_duplicates._compare

    def comparing(*given: Any) -> Pairs:
        compared.append(len(given[2]))
        return compare(*given)

    monkeypatch.setattr(near_duplicates, "_compare", comparing)
    thumbnails = draw_alike(2000, 2)
    find_near_duplicates(thumbnails, exact=False)
    assert sum(compared) < 20 * 2000
    compared.clear()
    find_candidates(thumbnails, exact=False)
    assert sum(compared) < 100 * 2000


@pytest.mark.parametrize("exact", [True, False])
def test_candidates_are_few_for_each_image(exact: bool) -> None:
    candidates = find_candidates(draw_alike(800, 2), exact=exact)
    assert 400 <= len(candidates) <= 20 * 400 + 100
    assert {number for pair in candidates for number in pair[:2]} >= set(range(400))


@pytest.mark.parametrize("view", range(VIEWS))
def test_turned_coefficients_are_those_of_turned_images(view: int) -> None:
    planes = np.random.default_rng(3).normal(0, 1, (5, 12, 12)).astype(np.float32)
    frequency, place = np.arange(4)[:, None], np.arange(12)
    basis = np.cos(np.pi * (place + 0.5) * frequency / 12).astype(np.float32)
    before, after = (np.asarray(basis @ shown @ basis.T).reshape(5, -1) for shown in (planes, turn(planes, view)))
    np.testing.assert_allclose(turn_coefficients(before, view), after, atol=1e-4)


def test_views_between_views() -> None:
    plane = np.arange(9).reshape(3, 3)
    for first in range(VIEWS):
        np.testing.assert_array_equal(turn(turn(plane, first), INVERSE[first]), plane)
        for other in range(VIEWS):
            between = turn(turn(plane, int(BETWEEN[first, other])), other)
            np.testing.assert_array_equal(between, turn(plane, first))
