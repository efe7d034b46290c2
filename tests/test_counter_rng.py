"""Draws are pure functions of (seed, purpose, position), and as random as they should be."""

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ubend.core.counter_rng import random_bits, random_normal, random_uniform, shuffled_item

POSITIONS = st.lists(st.integers(0, 2**62), min_size=1, max_size=30)


@given(st.integers(0, 2**63 - 1), POSITIONS, st.integers(1, 9))
def test_numbers_belong_to_positions(seed: int, positions: list[int], count: int) -> None:
    places = np.array(positions, np.int64)
    order = np.random.default_rng(len(positions)).permutation(len(places))
    for draw in (random_bits, random_uniform, random_normal):
        whole = draw(seed, "a", places, count)
        assert whole.shape == (len(places), count)
        np.testing.assert_array_equal(draw(seed, "a", places[order], count), whole[order])
        np.testing.assert_array_equal(draw(seed, "a", places[:1], count), whole[:1])
    # more columns leave the first ones alone (of the normals the second half is drawn after them)
    np.testing.assert_array_equal(
        random_uniform(seed, "a", places, count + 3)[:, :count], random_uniform(seed, "a", places, count)
    )


def test_same_in_another_process() -> None:
    code = (
        "import numpy as np; from ubend.core.counter_rng import random_bits; "
        "print(random_bits(7, 'warp', np.arange(3), 2))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(random_bits(7, "warp", np.arange(3), 2))


def test_pinned_numbers() -> None:
    """A run that was started with an older version must continue with the same numbers."""
    assert random_bits(0, "warp", np.array([0, 1]), 2).tolist() == PINNED


PINNED = [[12495185904042890319, 18227821898679262723], [6708035848971452311, 13725676001223252833]]


def test_seeds_and_purposes_differ() -> None:
    places = np.arange(2000)
    columns = [random_uniform(seed, purpose, places, 2) for seed, purpose in ((0, "a"), (1, "a"), (0, "b"), (10, ""))]
    numbers = np.concatenate(columns, axis=1).T
    off = np.abs(np.corrcoef(numbers) - np.eye(len(numbers)))
    assert off.max() < 0.1  # 4.5 standard errors of 2000 pairs
    assert len(np.unique(numbers)) == numbers.size


def test_uniform() -> None:
    numbers = random_uniform(3, "warp", np.arange(20_000), 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert stats.kstest(numbers.reshape(-1), "uniform").pvalue > 1e-3
    # neighbours in position and in column know nothing of each other
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.03


def test_bits_are_even() -> None:
    bits = random_bits(5, "x", np.arange(20_000), 1)[:, 0]
    shares = ((bits[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(axis=0)
    assert np.abs(shares - 0.5).max() < 0.02


def test_normal() -> None:
    numbers = random_normal(3, "elastic", np.arange(20_000), 3)
    assert np.isfinite(numbers).all()
    for column in numbers.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    flat = numbers.reshape(-1)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs((flat**power).mean() - moment) < 0.15
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.03


@settings(max_examples=60)
@given(st.integers(0, 2**63 - 1), st.integers(1, 50), st.integers(0, 2000))
def test_each_round_is_a_permutation(seed: int, items: int, number: int) -> None:
    here = np.arange(number * items, (number + 1) * items)
    order = shuffled_item(seed, items, here)
    assert sorted(order.tolist()) == list(range(items))
    # across the seam, in any order and one at a time, it is the same order
    around = np.arange(max(0, here[0] - 7), here[-1] + 8)
    whole = shuffled_item(seed, items, around)
    np.testing.assert_array_equal(whole[np.searchsorted(around, here)], order)
    np.testing.assert_array_equal(shuffled_item(seed, items, around[::-1]), whole[::-1])


def test_rounds_and_seeds_are_ordered_anew() -> None:
    orders = [
        shuffled_item(seed, 40, np.arange(40 * number, 40 * number + 40)) for seed in (0, 1) for number in (0, 1, 2)
    ]
    assert len({tuple(order) for order in orders}) == 6
    # every item stands first about equally often
    first = shuffled_item(9, 8, np.arange(0, 8 * 2000, 8))
    assert stats.chisquare(np.bincount(first, minlength=8)).pvalue > 1e-3
