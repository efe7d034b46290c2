"""The losses against torch's cross entropy and a Dice written out image by image."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from support.refusal import raises
from ubend.core.errors import SettingError
from ubend.core.settings import LossKind, make_settings
from ubend.labels.class_table import IGNORED
from ubend.training.build import make_loss
from ubend.training.losses import Loss, LossSums, one_hot, sum_cross_entropy

BOTH, PLAIN = Loss("dice+ce"), Loss("ce")


def draw(
    seed: int, n: int = 3, classes: int = 3, h: int = 7, w: int = 5, ignored: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Logits of some spread, and a target with ignored pixels in which classes may be missing."""
    generator = np.random.default_rng(seed)
    logits = 3 * generator.standard_normal((n, classes, h, w))
    target = generator.integers(0, generator.integers(1, classes + 1, (n, 1, 1)), (n, h, w)).astype(np.uint8)
    target[generator.random((n, h, w)) < ignored] = IGNORED
    return torch.tensor(logits, dtype=torch.float32), torch.from_numpy(target)


def naive_dice(logits: np.ndarray, target: np.ndarray) -> tuple[float, int]:
    """Sum of 1 - Dice over every class that an image's target holds, and how many those are."""
    total, regions = 0.0, 0
    for image, truth in zip(logits.astype(np.float64), target, strict=True):
        prob = np.exp(image - image.max(axis=0))
        prob /= prob.sum(axis=0)
        scored = truth != IGNORED
        for c in range(len(image)):
            here = truth == c
            if here.any():
                total += 1 - 2 * prob[c][here].sum() / (prob[c][scored].sum() + here.sum())
                regions += 1
    return total, regions


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_against_references(seed: int, classes: int) -> None:
    logits, target = draw(seed, classes=classes)
    loss_sums, counts = BOTH.sum(logits, target), BOTH.count(target, classes)
    expected = F.cross_entropy(logits, target.long(), ignore_index=IGNORED)
    assert float(loss_sums.cross_entropy / counts.pixels) == pytest.approx(float(expected), rel=1e-5)
    dice, regions = naive_dice(logits.numpy(), target.numpy())
    assert float(counts.dice_terms) == regions
    assert float(counts.pixels) == int((target != IGNORED).sum())
    assert float(loss_sums.dice) == pytest.approx(dice, rel=1e-5, abs=1e-6)
    whole = BOTH.mean(loss_sums, counts)
    assert float(whole) == pytest.approx(float(expected) + dice / regions, rel=1e-5)
    plain = PLAIN.mean(PLAIN.sum(logits, target), PLAIN.count(target, classes))
    assert float(plain) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("cuts", [(1, 4), (2, 3), (1, 1, 1, 1, 1)])
def test_micro_batches_add_up(cuts: tuple[int, ...]) -> None:
    """However the batch is cut, loss and gradients are those of the whole batch."""
    logits, target = draw(7, n=5)
    counts = BOTH.count(target, 3)
    whole = logits.clone().requires_grad_()
    loss = BOTH.mean(BOTH.sum(whole, target), counts)
    loss.backward()
    parts = logits.clone().requires_grad_()
    total = 0.0
    for some, truth in zip(parts.split(cuts), target.split(cuts), strict=True):
        part = BOTH.mean(BOTH.sum(some, truth), counts)
        part.backward(retain_graph=True)
        total += float(part.detach())
    assert total == pytest.approx(float(loss.detach()), rel=1e-6)
    assert parts.grad is not None
    assert whole.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_against_autograd(seed: int) -> None:
    """The gradients are those of the loss written out, in float64, one region after another."""
    logits, target = draw(seed, classes=4)
    mine = logits.clone().requires_grad_()
    BOTH.mean(BOTH.sum(mine, target), BOTH.count(target, 4)).backward()
    naive = logits.double().requires_grad_()
    prob, terms = naive.softmax(1), []
    for n, c in np.ndindex(len(target), 4):
        here, scored = target[n] == c, target[n] != IGNORED
        if here.any():
            terms.append(1 - 2 * prob[n, c][here].sum() / (prob[n, c][scored].sum() + here.sum()))
    (F.cross_entropy(naive, target.long(), ignore_index=IGNORED) + torch.stack(terms).mean()).backward()
    assert mine.grad is not None
    assert naive.grad is not None
    torch.testing.assert_close(mine.grad.double(), naive.grad, rtol=1e-4, atol=1e-7)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 5),
    ignored=st.sampled_from([0.0, 0.3, 0.95]),
    weights=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
)
def test_class_weights_against_torch(seed: int, classes: int, ignored: float, weights: list[float]) -> None:
    """The weighted mean is torch's: sum(w l) / sum(w) over the scored pixels; Dice is as without weights."""
    logits, target = draw(seed, classes=classes, ignored=ignored)
    given_weights = torch.tensor(weights[:classes])
    loss = Loss("ce", given_weights)
    if bool((target != IGNORED).any()):
        expected = F.cross_entropy(logits, target.long(), given_weights, ignore_index=IGNORED)
        mine = loss.mean(loss.sum(logits, target), loss.count(target, classes))
        assert float(mine) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    weighted = Loss("dice+ce", given_weights).sum(logits, target)
    assert float(weighted.dice) == float(BOTH.sum(logits, target).dice)
    assert float(weighted.cross_entropy) == float(loss.sum(logits, target).cross_entropy)


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 7.0, 3.0)])
def test_focal_against_its_formula(weights: tuple[float, ...] | None) -> None:
    """-w (1 - p)^2 log p of the true class, in float64, pixel by pixel; Dice is as without focus."""
    logits, target = draw(5, classes=4, ignored=0.2)
    w = np.ones(4) if weights is None else np.array(weights)
    prob = logits.double().softmax(1).numpy()
    total = scale = 0.0
    for n, y, x in np.ndindex(*target.shape):
        c = int(target[n, y, x])
        if c != IGNORED:
            p = prob[n, c, y, x]
            total += -w[c] * (1 - p) ** 2 * np.log(p)
            scale += w[c]
    loss = Loss("dice+focal", None if weights is None else torch.tensor(weights))
    loss_sums, counts = loss.sum(logits, target), loss.count(target, 4)
    assert float(loss_sums.cross_entropy / counts.pixels) == pytest.approx(total / scale, rel=1e-5)
    assert float(loss_sums.dice) == float(BOTH.sum(logits, target).dice)
    assert float(loss.mean(loss_sums, counts)) == pytest.approx(
        total / scale + float(loss_sums.dice / counts.dice_terms), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["ce", "dice+ce", "dice+focal"])
@pytest.mark.parametrize("weights", [None, (0.1, 1.0, 20.0)])
def test_every_loss_is_the_same_in_parts(kind: LossKind, weights: tuple[float, ...] | None) -> None:
    """Also a weighted one, where one part holds nearly all of the weight; and gradients stay finite."""
    logits, target = draw(7, n=5)
    target[0] = 2
    loss = Loss(kind, None if weights is None else torch.tensor(weights))
    counts = loss.count(target, 3)
    gradients = []
    for cuts in ((5,), (1, 4), (2, 2, 1)):
        given_logits = (30 * logits).requires_grad_()
        for some, truth in zip(given_logits.split(cuts), target.split(cuts), strict=True):
            loss.mean(loss.sum(some, truth), counts).backward(retain_graph=True)
        assert given_logits.grad is not None
        assert torch.isfinite(given_logits.grad).all()
        gradients.append(given_logits.grad)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-5, atol=1e-7)


def test_weights_that_leave_nothing() -> None:
    """Only a class of weight 0 occurs: the cross entropy is 0, not 0 / 0."""
    logits = torch.randn(1, 2, 4, 4)
    loss = Loss("ce", torch.tensor([0.0, 1.0]))
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    assert float(loss.mean(loss.sum(logits, target), loss.count(target, 2))) == 0.0


def test_ignored_pixels_have_no_gradient() -> None:
    logits, target = draw(3, ignored=0.5)
    logits.requires_grad_()
    BOTH.mean(BOTH.sum(logits, target), BOTH.count(target, 3)).backward()
    assert logits.grad is not None
    ignored = (target == IGNORED)[:, None].expand_as(logits.grad)
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).any()


def test_nothing_to_score() -> None:
    """All pixels ignored: loss 0, gradients 0 and finite."""
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.full((2, 4, 4), IGNORED, dtype=torch.uint8)
    loss = BOTH.mean(BOTH.sum(logits, target), BOTH.count(target, 3))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    classes=st.integers(2, 6),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_bounds(seed: int, scale: float, classes: int, ignored: float) -> None:
    """Cross entropy is not negative, 1 - Dice lies in 0..1, and both stay finite for large logits."""
    logits, target = draw(seed, classes=classes, ignored=ignored)
    logits = (scale * logits).requires_grad_()
    loss_sums, counts = BOTH.sum(logits, target), BOTH.count(target, classes)
    assert float(loss_sums.cross_entropy.detach()) >= 0
    assert -1e-5 <= float(loss_sums.dice.detach()) <= float(counts.dice_terms) + 1e-5
    BOTH.mean(loss_sums, counts).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_perfect_and_opposite() -> None:
    target = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)
    sure = 100.0 * (2 * one_hot(target, 2).float() - 1)
    right, wrong = BOTH.sum(sure, target), BOTH.sum(-sure, target)
    assert float(right.cross_entropy) == 0.0
    assert float(right.dice) == pytest.approx(0.0, abs=1e-6)
    assert float(wrong.dice) == pytest.approx(2.0)  # two regions, each missed whole
    assert float(wrong.cross_entropy) == pytest.approx(4 * 200.0)


def test_low_precision_logits_are_summed_in_float32() -> None:
    """A large image's count and sum are beyond what bfloat16 can hold."""
    logits = torch.zeros(1, 2, 300, 300, dtype=torch.bfloat16)
    target = torch.zeros(1, 300, 300, dtype=torch.uint8)
    loss_sums, counts = BOTH.sum(logits, target), BOTH.count(target, 2)
    assert loss_sums.cross_entropy.dtype is torch.float32
    assert float(counts.pixels) == 90_000
    assert float(loss_sums.cross_entropy / counts.pixels) == pytest.approx(np.log(2), rel=1e-6)


def test_loss_of_nothing_is_zero() -> None:
    """Counts are plain sums, so that those of several processes add up; the mean minds that they may be zero."""
    target = torch.full((1, 2, 2), IGNORED, dtype=torch.uint8)
    assert [float(count) for count in BOTH.count(target, 2)] == [0.0, 0.0]
    nothing = LossSums(torch.tensor(0.0), torch.tensor(0.0))
    assert float(BOTH.mean(nothing, BOTH.count(target, 2))) == 0.0


def test_class_weights_need_a_number_for_each_class() -> None:
    labels = SimpleNamespace(classes=2, names=("background", "polyp"))
    data: Any = SimpleNamespace(labels=labels)
    told = make_settings(changes={"train.loss": "ce", "train.class_weights": (1.0, 4.0)})
    weights = make_loss(data, told, torch.device("cpu")).class_weights
    assert weights is not None
    assert weights.tolist() == [1.0, 4.0]
    labels.classes = 3
    with raises(SettingError, key="train.class_weights", named=["2", "3", "background, polyp"]):
        make_loss(data, told, torch.device("cpu"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.class_weights", ()),
        ("train.class_weights", (1.0, -0.5)),
        ("train.class_weights", (0.0, 0.0)),
        ("train.loss", "dice"),
        ("data.foreground_share", 0.5),  # without data.crop
        ("data.foreground_share", 1.5),
    ],
)
def test_settings_that_do_not_fit(key: str, value: object) -> None:
    with raises(SettingError, key=key):
        make_settings(changes={key: value})


def test_cross_entropy_of_each_image() -> None:
    """To the bit what it is alone; an image of which nothing is scored has none."""
    logits, target = draw(3, n=5)
    target[2] = IGNORED
    found = sum_cross_entropy(logits.contiguous(memory_format=torch.channels_last), target)
    assert found.shape == (5,)
    assert float(found[2]) == 0
    for number in range(5):
        alone = logits[number : number + 1], target[number : number + 1]
        assert found[number] == PLAIN.sum(*alone).cross_entropy
