"""Boundary F1, Hausdorff and surface distance against scipy's distance maps, scikit-image, torchmetrics and MONAI."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff
from skimage.segmentation import find_boundaries

from ubend.labels.class_table import IGNORED
from ubend.metrics import boundary
from ubend.metrics.boundary import (
    BoundaryCounts,
    boundary_f1,
    count_boundaries,
    in_truth_xor_prediction,
    surface_distance,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torchmetrics says while it is imported is not ours to fix
    from torchmetrics.functional.segmentation import hausdorff_distance

Case = tuple[NDArray[np.uint8], NDArray[np.uint8], int]
Spacing = tuple[float, float]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """(H, W) prediction and truth, and C: noise, smooth shapes, one class alone; often with ignored pixels."""
    classes = draw(st.integers(2, 4))
    shape = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def some_classes() -> NDArray[np.uint8]:
        smooth = draw(st.sampled_from([0.0, 1.0, 3.0]))
        used = draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
        fields = np.stack([ndimage.gaussian_filter(rng.random(shape), smooth) for _class in used])
        return np.array(used, np.uint8)[fields.argmax(axis=0)]

    pred, target = some_classes(), some_classes()
    target[rng.random(shape) < draw(st.sampled_from([0.0, 0.0, 0.2]))] = IGNORED
    return pred, target, classes


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~ndimage.binary_erosion(mask)


def by_distance_maps(case: Case, cls: int, tolerance: float, spacing: Spacing) -> tuple[float, float, float]:
    """Boundary F1, 95th-percentile Hausdorff and mean surface distance; NaN where a class is not in both."""
    pred, target, _classes = case
    a, b = (outline((labels == cls) & (target != IGNORED)) for labels in (target, pred))
    if not a.any() or not b.any():
        return math.nan, math.nan, math.nan
    px = [ndimage.distance_transform_edt(~other)[own] for own, other in ((a, b), (b, a))]
    units = [ndimage.distance_transform_edt(~other, sampling=spacing)[own] for own, other in ((a, b), (b, a))]
    recall, precision = (float((some <= tolerance).mean()) for some in px)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return f1, max(np.percentile(some, 95) for some in units), float(np.concatenate(units).mean())


@given(cases(), st.sampled_from([1.0, 1.5, 2.0]), st.sampled_from([(1.0, 1.0), (0.5, 0.5), (2.0, 0.3)]))
@settings(max_examples=150)
def test_distance_maps_agree(case: Case, tolerance: float, spacing: Spacing) -> None:
    pred, target, classes = case
    counts = count_boundaries(pred, target, classes, tolerance, spacing)
    f1, mean = boundary_f1(counts), surface_distance(counts)
    diagonal = math.hypot(pred.shape[0] * spacing[0], pred.shape[1] * spacing[1])
    for cls in range(classes):
        there = [bool(((labels == cls) & (target != IGNORED)).any()) for labels in (pred, target)]
        want = by_distance_maps(case, cls, tolerance, spacing)
        if sum(there) == 1:
            want = 0.0, diagonal, diagonal
        np.testing.assert_allclose((f1[cls], counts.hausdorff_95[cls], mean[cls]), want, atol=1e-9)
        assert in_truth_xor_prediction(counts)[cls] == (sum(there) == 1)


@given(cases())
@settings(max_examples=40)
def test_in_blocks_the_same(case: Case) -> None:
    """Outlines of large images are found some rows at a time, and their distances by a tree; no seam is seen."""
    pred, target, classes = case
    whole = count_boundaries(pred, target, classes, spacing=(1.0, 0.3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundary, "_BLOCK_PX", 2 * pred.shape[1])
        for a, b in zip(whole, count_boundaries(pred, target, classes, spacing=(1.0, 0.3)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_scikit_image_finds_the_same_outline() -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(0).random((60, 70)), 3)
    mask = np.pad(
        (field > field.mean()).astype(np.uint8), 1
    )  # not at the image's border, which scikit-image leaves out
    counts = count_boundaries(mask, mask, 2)
    assert (
        counts.truth_px[1]
        == counts.predicted_px[1]
        == (find_boundaries(mask, connectivity=1, mode="inner") & mask).sum()
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 0.5)])
def test_monai_agrees(spacing: Spacing) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed; it is no dependency")
    rng = np.random.default_rng(1)
    for smooth in (0.0, 1.0, 3.0):
        pred, target = (ndimage.gaussian_filter(rng.random((40, 50)), smooth) > 0.5 for _mask in range(2))
        counts = count_boundaries(pred.astype(np.uint8), target.astype(np.uint8), 2, spacing=spacing)
        p, t = (torch.from_numpy(np.stack([~mask, mask])[None].astype(np.uint8)) for mask in (pred, target))
        given = {"include_background": True, "spacing": spacing}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MONAI's own deprecations
            want = monai.compute_hausdorff_distance(p, t, percentile=95, **given)[0]
            mean = monai.compute_average_surface_distance(p, t, symmetric=True, **given)[0]
        np.testing.assert_allclose(counts.hausdorff_95, want, rtol=1e-5)
        np.testing.assert_allclose(surface_distance(counts), mean, rtol=1e-5)


def test_torchmetrics_and_scipy_agree_on_the_whole_hausdorff_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "_PERCENTILE", 100.0)
    rng = np.random.default_rng(2)
    # not at the image's border, where torchmetrics finds no outline
    pred, target = (np.pad(ndimage.gaussian_filter(rng.random((40, 50)), 2) > 0.5, 1) for _mask in range(2))
    found = count_boundaries(pred.astype(np.uint8), target.astype(np.uint8), 2).hausdorff_95[1]
    points = [np.argwhere(outline(mask)) for mask in (pred, target)]
    assert found == max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
    p, t = (torch.from_numpy(mask[None, None].astype(np.int64)) for mask in (pred, target))
    judge = hausdorff_distance(p, t, num_classes=1, include_background=True, input_format="one-hot")
    assert found == pytest.approx(float(judge.squeeze()), rel=1e-6)


def test_degenerate_masks() -> None:
    """Neither: undefined. One of the two: the worst. Both everywhere: the image's border, which agrees."""
    none, full = np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8)
    nothing = count_boundaries(none, none, 2)
    assert np.isnan([boundary_f1(nothing)[1], nothing.hausdorff_95[1], surface_distance(nothing)[1]]).all()
    for pred, target in ((none, full), (full, none)):
        counts = count_boundaries(pred, target, 2, spacing=(10.0, 10.0))
        assert (boundary_f1(counts)[1], counts.hausdorff_95[1], surface_distance(counts)[1]) == (0.0, 50.0, 50.0)
    both = count_boundaries(full, full, 2)
    assert (both.truth_px[1], boundary_f1(both)[1], both.hausdorff_95[1], surface_distance(both)[1]) == (
        10,
        1.0,
        0.0,
        0.0,
    )
    unscored = count_boundaries(full, np.full((3, 4), IGNORED, np.uint8), 2)
    assert np.isnan(boundary_f1(unscored)).all()


def test_pooled_is_of_the_sums() -> None:
    """A far object in one image and a perfect one in another, by hand: P = R = 4 / 8."""
    a, b = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    a[:2, :2], b[-2:, -2:] = 1, 1
    counts = [count_boundaries(a, b, 2), count_boundaries(a, a, 2)]
    summed = BoundaryCounts(*(np.sum(arrays, axis=0) for arrays in zip(*counts, strict=True)))
    assert boundary_f1(summed)[1] == 0.5


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        count_boundaries(np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8), 2)
