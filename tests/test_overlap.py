"""Overlap scores against independent judges: sets, scikit-learn, torchmetrics."""

import json
import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from ubend.labels.class_table import IGNORED
from ubend.metrics import overlap
from ubend.metrics.overlap import (
    accuracy_from_confusion,
    count_confusion,
    count_confusion_batch,
    dice_from_confusion,
    iou_from_confusion,
    precision_from_confusion,
    recall_from_confusion,
    summarise_overlap,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torchmetrics says while it is imported is not ours to fix
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

Case = tuple[NDArray[np.uint8], NDArray[np.uint8], int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """(N, H, W) prediction and truth, and C; often with absent classes, often with ignored pixels."""
    classes = draw(st.integers(2, 6))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def some_classes() -> NDArray[np.uint8]:
        used = draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
        return rng.choice(np.array(used, dtype=np.uint8), size=shape)

    pred, target = some_classes(), some_classes()
    target[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = IGNORED
    return pred, target, classes


def dice_and_iou_of_sets(pred: NDArray[np.uint8], target: NDArray[np.uint8], cls: int) -> tuple[float, float]:
    """One image or a stack, by sets of coordinates."""
    scored = {tuple(at) for at in np.argwhere(target != IGNORED)}
    a = {tuple(at) for at in np.argwhere(pred == cls)} & scored
    b = {tuple(at) for at in np.argwhere(target == cls)} & scored
    if not a | b:
        return math.nan, math.nan
    return 2 * len(a & b) / (len(a) + len(b)), len(a & b) / len(a | b)


@given(cases())
@settings(max_examples=150)
def test_scores_equal_those_of_sets(case: Case) -> None:
    pred, target, classes = case
    counts = np.stack([count_confusion(p, t, classes) for p, t in zip(pred, target, strict=True)])
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts.sum(axis=0), count_confusion(pred, target, classes))
    dice, iou = dice_from_confusion(counts), iou_from_confusion(counts)
    assert dice.shape == iou.shape == (len(pred), classes)
    for n in range(len(pred)):
        for cls in range(classes):
            want = dice_and_iou_of_sets(pred[n], target[n], cls)
            np.testing.assert_allclose((dice[n, cls], iou[n, cls]), want, rtol=1e-12)
    scored = target != IGNORED
    share = (pred == target)[scored].mean() if scored.any() else math.nan
    np.testing.assert_allclose(accuracy_from_confusion(counts.sum(axis=0)), share)

    names = [f"c{cls}" for cls in range(classes)]
    scores = summarise_overlap(counts, names, background=0)
    for cls in range(classes):
        each = [dice_and_iou_of_sets(p, t, cls) for p, t in zip(pred, target, strict=True)]
        each = [pair for pair in each if not math.isnan(pair[0])]
        assert scores.defined[cls] == len(each)
        want_dice, want_iou = np.mean(each, axis=0) if each else (math.nan, math.nan)
        np.testing.assert_allclose(scores.dice.per_image.classes[cls], want_dice)
        np.testing.assert_allclose(scores.iou.per_image.classes[cls], want_iou)
        pooled = dice_and_iou_of_sets(pred, target, cls)
        np.testing.assert_allclose((scores.dice.pooled.classes[cls], scores.iou.pooled.classes[cls]), pooled)
    json.dumps(scores.to_json(), allow_nan=False)


@given(cases(), st.booleans())
@settings(max_examples=100)
def test_batch_equals_single(case: Case, as_int64: bool) -> None:
    pred, target, classes = case
    want = np.stack([count_confusion(p, t, classes) for p, t in zip(pred, target, strict=True)])
    p, t = torch.from_numpy(pred), torch.from_numpy(target)
    if as_int64:
        p, t = p.long(), t.long()
    # the second is what runs on a GPU
    for count in (count_confusion_batch, overlap._count_by_comparison):
        got = count(p, t, classes)
        assert got.dtype == torch.int64
        np.testing.assert_array_equal(got.numpy(), want)


def test_batch_under_autocast_and_determinism_counts_exactly() -> None:
    """Counts above 256 are not all bfloat16 numbers: a product under autocast would round them."""
    pred, target = torch.zeros(1, 41, 41, dtype=torch.uint8), torch.ones(1, 41, 41, dtype=torch.uint8)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            for count in (count_confusion_batch, overlap._count_by_comparison):
                assert count(pred, target, 2).tolist() == [[[0, 0], [1681, 0]]]
    finally:
        torch.use_deterministic_algorithms(False)


def test_batch_leaves_out_values_beyond_the_classes() -> None:
    pred = torch.tensor([[[0, 1, 7, -1, 0]]])
    target = torch.tensor([[[0, 1, 1, 1, -1]]])
    for count in (count_confusion_batch, overlap._count_by_comparison):
        assert count(pred, target, 2).tolist() == [[[1, 0], [0, 1]]]
    with pytest.raises(ValueError, match="shape"):
        count_confusion_batch(pred, target[:, :, :3], 2)


@pytest.fixture(scope="module")
def masks() -> Case:
    """Three images where all four classes occur; predictions right in about two of three pixels."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, (3, 20, 30)).astype(np.uint8)
    pred = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, 4, target.shape)).astype(np.uint8)
    target[rng.random(target.shape) < 0.1] = IGNORED
    return pred, target, 4


def test_scikit_learn_agrees(masks: Case) -> None:
    pred, target, classes = masks
    scored = target != IGNORED
    truth, predicted, labels = target[scored], pred[scored], list(range(classes))
    counts = count_confusion(pred, target, classes)
    np.testing.assert_array_equal(counts, confusion_matrix(truth, predicted, labels=labels))
    dice = f1_score(truth, predicted, labels=labels, average=None)
    np.testing.assert_allclose(dice_from_confusion(counts), dice)
    iou = jaccard_score(truth, predicted, labels=labels, average=None)
    np.testing.assert_allclose(iou_from_confusion(counts), iou)
    assert accuracy_from_confusion(counts) == accuracy_score(truth, predicted)


@given(cases())
@settings(max_examples=60)
def test_scikit_learn_agrees_on_precision_and_recall(case: Case) -> None:
    pred, target, classes = case
    counts = np.stack([count_confusion(p, t, classes) for p, t in zip(pred, target, strict=True)])
    for formula, judge in ((precision_from_confusion, precision_score), (recall_from_confusion, recall_score)):
        for one, p, t in zip(counts, pred, target, strict=True):
            kept, labels = t != IGNORED, list(range(classes))
            want: Any = np.full(classes, np.nan)
            if kept.any():  # scikit-learn refuses what is empty
                want = judge(t[kept], p[kept], labels=labels, average=None, zero_division=np.nan)
            np.testing.assert_allclose(formula(one), want)


def test_torchmetrics_agrees(masks: Case) -> None:
    pred, target, classes = masks
    pooled = summarise_overlap(count_confusion(pred, target, classes)[None], list("abcd"), None)
    setting = {"num_classes": classes, "average": "none", "ignore_index": IGNORED}
    p, t = torch.from_numpy(pred).long(), torch.from_numpy(target).long()
    dice, iou = multiclass_f1_score(p, t, **setting), multiclass_jaccard_index(p, t, **setting)
    np.testing.assert_allclose(pooled.dice.pooled.classes, dice.numpy(), rtol=1e-6)
    np.testing.assert_allclose(pooled.iou.pooled.classes, iou.numpy()[:classes], rtol=1e-6)


def test_rows_are_truth() -> None:
    pred = np.array([[0, 1, 1]], dtype=np.uint8)
    target = np.array([[0, 0, IGNORED]], dtype=np.uint8)
    assert count_confusion(pred, target, 2).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("pred", "target", "says"),
    [
        ([[0, 2]], [[0, 1]], "pred holds 0..2"),
        ([[0, 2]], [[0, 255]], "pred holds 0..2"),  # under an ignored pixel too
        ([[0, 1]], [[0, 3]], "target holds 0..3"),
        ([[-1, 1]], [[0, 1]], "pred holds -1..1"),
        ([[0.0, 1.0]], [[0, 1]], "argmax"),
        ([[0, 1, 1]], [[0, 1]], "shape"),
    ],
)
def test_wrong_masks_are_refused(pred: Any, target: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        count_confusion(np.array(pred), np.array(target), 2)


def test_summary_by_hand() -> None:
    """Two images: perfect; polyp predicted where there is none; class `never` occurs nowhere."""
    first = [[6, 0, 0], [0, 4, 0], [0, 0, 0]]
    second = [[8, 2, 0], [0, 0, 0], [0, 0, 0]]
    scores = summarise_overlap(np.array([first, second]), ["background", "polyp", "never"], background=0)
    background = (1 + 16 / 18) / 2
    found = scores.to_json()
    assert found["precision"]["per_image"]["polyp"] == 0.5
    assert found["recall"]["per_image"]["polyp"] == 1.0  # the image without a polyp has no recall
    assert found["precision"]["pooled"] == pytest.approx(
        {"background": 1.0, "polyp": 2 / 3, "never": None, "mean": 5 / 6, "mean_foreground": 2 / 3}
    )
    assert found["dice"]["worst_decile"]["polyp"] == 0.0
    assert found["dice"]["median"]["polyp"] == 0.5
    kept = {kind: {way: found[kind][way] for way in ("per_image", "pooled")} for kind in ("dice", "iou")}
    assert {key: kept.get(key, found[key]) for key in found.keys() - {"precision", "recall"}} == {
        "dice": {
            "per_image": {
                "background": pytest.approx(background),
                "polyp": 0.5,  # 1 and 0: absent from one of the two is 0
                "never": None,
                "mean": pytest.approx((background + 0.5) / 2),
                "mean_foreground": 0.5,
            },
            "pooled": {
                "background": pytest.approx(28 / 30),
                "polyp": 0.8,
                "never": None,
                "mean": pytest.approx((28 / 30 + 0.8) / 2),
                "mean_foreground": 0.8,
            },
        },
        "iou": {
            "per_image": {
                "background": 0.9,
                "polyp": 0.5,
                "never": None,
                "mean": 0.7,
                "mean_foreground": 0.5,
            },
            "pooled": {
                "background": 0.875,
                "polyp": pytest.approx(2 / 3),
                "never": None,
                "mean": pytest.approx((0.875 + 2 / 3) / 2),
                "mean_foreground": pytest.approx(2 / 3),
            },
        },
        "pixel_accuracy": 0.9,
        "pictures": 2,
        "defined": {"background": 2, "polyp": 2, "never": 0},
    }


def test_without_background_both_means_are_equal(masks: Case) -> None:
    pred, target, classes = masks
    scores = summarise_overlap(count_confusion(pred, target, classes)[None], list("abcd"), None)
    assert scores.dice.pooled.mean == scores.dice.pooled.mean_foreground


def test_no_images_and_odd_names() -> None:
    scores = summarise_overlap(np.zeros((0, 2, 2), dtype=np.int64), ["mean", "x"], 0).to_json()
    assert scores["pictures"] == 0
    assert scores["defined"] == {"class mean": 0, "x": 0}
    assert set(scores["dice"]["pooled"].values()) == {scores["pixel_accuracy"]} == {None}


@pytest.mark.parametrize(("names", "background"), [(["a"], 0), (["a", "b"], 2), (["a", "b"], -1)])
def test_summary_refuses_what_does_not_fit(names: list[str], background: int) -> None:
    with pytest.raises(ValueError, match=r"outside|shape"):
        summarise_overlap(np.zeros((1, 2, 2), dtype=np.int64), names, background)


def test_torch_is_not_imported() -> None:
    code = "import sys, ubend.metrics.overlap; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
