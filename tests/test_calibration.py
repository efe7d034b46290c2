"""Expected calibration error against torchmetrics, and its two ways of counting against each other."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ubend.labels.class_table import IGNORED
from ubend.metrics import calibration
from ubend.metrics.calibration import BINS, count_calibration, count_calibration_batch, expected_calibration_error

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torchmetrics says while it is imported is not ours to fix
    from torchmetrics.functional.classification import multiclass_calibration_error


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.sampled_from([0.1, 1.0, 4.0]), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=60)
def test_torchmetrics_agrees(seed: int, classes: int, scale: float, ignored: float) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(scale * rng.standard_normal((3, classes, 5, 7)))
    target = rng.integers(0, classes, (3, 5, 7)).astype(np.uint8)
    target[rng.random(target.shape) < ignored] = IGNORED
    counts = count_calibration_batch(logits, torch.from_numpy(target)).numpy()
    assert counts.shape == (3, BINS, 3)
    probs = logits.float().softmax(dim=1).movedim(1, -1)
    confidence, index = (one.numpy() for one in probs.max(dim=-1))
    edge = np.round(confidence * BINS)
    assume(not (np.isclose(confidence * BINS, edge, rtol=0, atol=1e-4) & (edge < BINS)).any())  # rounding decides there
    scored = target != IGNORED
    single = [
        count_calibration(c[s], (i == t)[s]) for c, s, i, t in zip(confidence, scored, index, target, strict=True)
    ]
    np.testing.assert_allclose(counts, single, atol=1e-4)
    assert counts[:, :, 0].sum() == scored.sum()
    found = expected_calibration_error(counts.sum(axis=0))
    if not scored.any():
        assert math.isnan(found)
        return
    t = torch.from_numpy(target[scored]).long()
    judge = multiclass_calibration_error(probs[torch.from_numpy(scored)], t, classes, n_bins=BINS, norm="l1")
    assert found == pytest.approx(float(judge), abs=1e-5)


def test_by_hand() -> None:
    """All pixels sure to 1.0, three of four right."""
    counts = count_calibration(np.ones(4), np.array([True, True, True, False]))
    assert counts[-1].tolist() == [4, 4, 3]
    assert expected_calibration_error(counts) == 0.25


def test_as_on_a_gpu() -> None:
    """Counted by comparison, as where a weighted bincount adds in any order."""
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 8, 9, generator=generator), torch.randint(0, 4, (2, 8, 9), generator=generator)
    want = count_calibration_batch(logits, target)
    np.testing.assert_allclose(calibration._count_by_comparison(*calibration._bin(logits, target)), want, rtol=1e-12)
