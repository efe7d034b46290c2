"""Averages of a measure over images and classes, by hand."""

import math

import numpy as np

from ubend.metrics.summary import ClassMean


def test_each_averaging_by_hand() -> None:
    """21 images: the worst decile is of three of them; undefined images are left out; the third class has no score."""
    first = np.arange(21) / 20
    second = np.where(np.arange(21) < 10, np.nan, 0.5)
    scores = np.stack([first, second, first], axis=1)[::-1]
    found = ClassMean(["a", "b", "c"], background=0, unmapped=[2]).summarise(scores, pooled=np.array([0.1, 0.3, 0.2]))
    np.testing.assert_allclose(found.per_image.classes, [0.5, 0.5, np.nan])
    np.testing.assert_allclose(found.median.classes, [0.5, 0.5, np.nan])
    np.testing.assert_allclose(found.worst_decile.classes, [0.05, 0.5, np.nan])
    assert found.pooled is not None
    np.testing.assert_allclose((found.pooled.mean, found.pooled.mean_foreground), (0.2, 0.3))
    np.testing.assert_allclose((found.worst_decile.mean, found.worst_decile.mean_foreground), (0.275, 0.5))


def test_of_distances_the_greatest_are_the_worst() -> None:
    found = ClassMean(["a"], None).summarise(np.arange(21.0)[:, None], worst="highest")
    assert found.worst_decile.classes == (19.0,)
    assert "pooled" not in found.to_json(["a"])


def test_without_images_nothing_is_defined() -> None:
    found = ClassMean(["a"], None).summarise(np.zeros((0, 1)))
    assert all(math.isnan(scores.mean) for scores in (found.per_image, found.median, found.worst_decile))
