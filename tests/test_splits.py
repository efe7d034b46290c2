"""Splits: deterministic, near their shares, never through a group."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from support.refusal import raises
from ubend.core.errors import DataError, SettingError
from ubend.dataset import near_duplicates, orientations, splits
from ubend.dataset.splits import SplitResult, cut_folds, find_near_duplicates, split_pairs
from ubend.layouts.folder import ReadOptions, read_folder
from ubend.layouts.pairs import SplitName

DATA = Path(os.environ.get("UBEND_DATA", Path(__file__).parents[1] / "../shared/data"))


def split(
    names: list[str],
    given: list[SplitName | None] | None = None,
    groups: list[str | None] | None = None,
    duplicates: list[int] | None = None,
    seed: int = 1,
    shares: tuple[float, float] = (0.15, 0.15),
) -> SplitResult:
    count = len(names)
    return split_pairs(
        names,
        given or [None] * count,
        groups or [None] * count,
        np.array(range(count) if duplicates is None else duplicates, dtype=np.int64),
        seed,
        *shares,
    )


def draw_names(count: int) -> list[str]:
    return [f"{i:04}" for i in range(count)]


# Near-duplicates


def draw_noise(count: int, size: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size), dtype=np.uint8)


@pytest.mark.parametrize("size", [16, 32])
def test_copies_brightened_and_noisy_are_found(size: int) -> None:
    images = draw_noise(6, size)
    images[3] = images[0]
    images[4] = (images[1] * 0.6 + 20).astype(np.uint8)
    images[5] = np.clip(images[1] + np.random.default_rng(1).normal(0, 8, (size, size)), 0, 255)
    assert find_near_duplicates(images).tolist() == [0, 1, 2, 0, 1, 1]


@pytest.mark.parametrize("turn", range(1, 8))
def test_flipped_and_turned_copies_are_found(turn: int) -> None:
    images = draw_noise(3)
    images[2] = np.rot90(images[0].T if turn >= 4 else images[0], turn % 4)
    assert find_near_duplicates(images).tolist() == [0, 1, 0]


def test_flat_images_join_only_when_equal() -> None:
    images = np.zeros((6, 16, 16), np.uint8)
    images[1] = 200
    images[3] = 200
    images[4, 0, 0] = 1  # one pixel of rounding: its correlation with the next is 1
    images[5, 0, 0] = 2
    assert find_near_duplicates(images).tolist() == [0, 1, 0, 1, 2, 3]


def test_nothing_and_one() -> None:
    assert find_near_duplicates(np.zeros((0, 16, 16), np.uint8)).shape == (0,)
    assert find_near_duplicates(np.zeros((1, 16, 16), np.uint8)).tolist() == [0]


def test_few_of_many_pairs_are_compared_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_noise(3000)
    images[2999] = 255 - (255 - images[5]) // 2  # in another block than its original
    multiply, compared = near_duplicates._multiply, []

    def multiplying(*given: NDArray[Any]) -> NDArray[np.float32]:
        compared.append(len(given[2]))
        return multiply(*given)

    monkeypatch.setattr(near_duplicates, "_multiply", multiplying)
    found = find_near_duplicates(images)
    assert sum(compared) < 0.05 * orientations.VIEWS * 3000**2 / 2
    assert found[2999] == found[5] == 5
    assert len(set(found.tolist())) == 2999


def test_thousands_of_copies_of_one_image() -> None:
    images = np.repeat(draw_noise(1), 2500, axis=0)
    images[:, 0, 0] = np.arange(2500) % 251
    assert set(find_near_duplicates(images).tolist()) == {0}


@pytest.mark.parametrize("size", [5, 16, 20, 32])
def test_the_coarse_look_misses_nothing(size: int) -> None:
    """Of images that correlate with some other by about the threshold, smooth and noisy ones; against all pairs."""
    rng = np.random.default_rng(size)
    first = np.add.outer(*rng.normal(0, 25, (2, size))) / 4 + rng.normal(0, 35, (20, size, size))
    drawn = np.repeat(first, 6, axis=0) + rng.uniform(2, 10, (120, 1, 1)) * rng.normal(0, 1, (120, size, size))
    images = np.clip(drawn + 128, 0, 255).astype(np.uint8)
    flat = images.reshape(120, -1)
    unit = flat - flat.mean(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    own = unit - unit.mean(axis=0)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    near = (unit @ unit.T >= 0.96) & (own @ own.T >= 0.94)
    assert 60 < np.count_nonzero(np.triu(near, 1)) < 290
    groups = np.arange(120)
    for _ in range(120):  # each takes the least number of those near it
        groups = np.where(near, groups, 120).min(axis=1)
    np.testing.assert_array_equal(find_near_duplicates(images), np.unique(groups, return_inverse=True)[1])


# Cutting


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[str | None], list[int], int]:
    names = draw(st.lists(st.text("abc/0123é", min_size=1, max_size=6), min_size=1, max_size=40, unique=True))
    count = len(names)
    groups = draw(st.lists(st.none() | st.integers(0, 12).map("g{}".format), min_size=count, max_size=count))
    duplicates = draw(st.lists(st.integers(0, 60), min_size=count, max_size=count))
    return names, groups, duplicates, draw(st.integers(0, 2**40))


def count_units(groups: list[str | None], duplicates: list[int]) -> int:
    """Sets of images tied by a group or a near-duplicate, counted the slow way."""
    units: list[set[str | int]] = []
    for group, copy in zip(groups, duplicates, strict=True):
        tie: set[str | int] = {copy} if group is None else {copy, group}
        for unit in [unit for unit in units if unit & tie]:
            tie |= unit
            units.remove(unit)
        units.append(tie)
    return len(units)


@given(cases(), st.randoms(use_true_random=False))
def test_no_group_is_cut_and_order_is_no_matter(
    case: tuple[list[str], list[str | None], list[int], int], shuffler: random.Random
) -> None:
    names, groups, duplicates, seed = case
    order = list(range(len(names)))
    shuffler.shuffle(order)
    shuffled = [names[i] for i in order]
    shuffled_groups = [groups[i] for i in order]
    shuffled_duplicates = [1000 - duplicates[i] for i in order]  # other numbers, the same sets
    are_joined = count_units(groups, duplicates) >= 3
    alone = [100 + i if groups[i] else number for i, number in enumerate(duplicates)]
    if not are_joined and count_units(groups, alone) < 3:
        with raises(DataError, key="data.split"):
            split(names, None, groups, duplicates, seed)
        return
    splits = split(names, None, groups, duplicates, seed).splits
    assert set(splits) == {"train", "val", "test"}
    for labels in (groups, duplicates if are_joined else alone):
        for label in {label for label in labels if label is not None}:
            assert len({part for part, own in zip(splits, labels, strict=True) if own == label}) == 1
    again = split(shuffled, None, shuffled_groups, shuffled_duplicates, seed).splits
    assert dict(zip(names, splits, strict=True)) == dict(zip(shuffled, again, strict=True))


@given(st.integers(3, 300), st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 99))
@settings(max_examples=50)
def test_shares_of_single_images(count: int, val: float, test: float, seed: int) -> None:
    found = Counter(split(draw_names(count), seed=seed, shares=(val, test)).splits)
    assert found["test"] == pytest.approx(max(1, count * test), abs=0.5 + 1e-9) or found["train"] == 1
    assert found["val"] == pytest.approx(max(1, count * val), abs=0.5 + 1e-9) or found["train"] == 1


def test_seeds_differ_and_the_split_of_a_seed_is_pinned() -> None:
    names = draw_names(100)
    assert split(names, seed=1).splits == split(names, seed=1).splits
    assert split(names, seed=1).splits != split(names, seed=2).splits
    test = [name for name, part in zip(names, split(names, seed=1).splits, strict=True) if part == "test"]
    assert test[:5] == ["0002", "0003", "0005", "0009", "0011"]


def test_a_new_image_moves_few_others() -> None:
    names = draw_names(200)
    before, after = split(names).splits, split([*names, "new"]).splits
    assert sum(a != b for a, b in zip(before, after[:200], strict=True)) <= 4


def test_a_big_group_stays_in_train() -> None:
    groups: list[str | None] = ["big"] * 60 + [None] * 40
    for seed in range(20):
        splits = split(draw_names(100), None, groups, seed=seed).splits
        assert set(splits[:60]) == {"train"}
        assert Counter(splits) == {"train": 70, "val": 15, "test": 15}


def test_three_big_groups_still_fill_three_parts() -> None:
    groups: list[str | None] = [f"g{i // 10}" for i in range(30)]
    assert Counter(split(draw_names(30), None, groups).splits) == {"train": 10, "val": 10, "test": 10}


def test_groups_joined_by_duplicates_are_one() -> None:
    groups: list[str | None] = ["a", "a", "b", "b", None, None]
    duplicates = [0, 1, 1, 2, 2, 3]  # a - b - the fifth image: one unit; the sixth alone
    found = split(draw_names(8), None, [*groups, None, None], [*duplicates, 4, 5])
    assert len({*found.splits[:5]}) == 1
    found = split(draw_names(6), None, groups, duplicates)  # two units are no split, four are
    assert found.splits[0] == found.splits[1]
    assert found.splits[2] == found.splits[3]
    assert len(found.remarks) == 1
    with raises(DataError, key="data.split", named=["2", "6"]):
        split(draw_names(6), None, ["a", "a", "a", "a", None, None], [0, 1, 1, 2, 3, 3])


def test_near_identical_images_are_remarked() -> None:
    found = split(draw_names(10), duplicates=[0, 0, 0, 3, 3, 5, 6, 7, 8, 9])
    assert found.remarks == ("5 near-identical images are kept together (sets: 2)",)
    assert split(draw_names(10)).remarks == ()


# Given splits


def test_train_and_test_given_val_is_cut_from_train() -> None:
    given_parts: list[SplitName | None] = ["train"] * 80 + ["test"] * 20
    groups: list[str | None] = [f"g{i // 4}" for i in range(100)]
    found = split(draw_names(100), given_parts, groups)
    assert Counter(found.splits) == {"train": 68, "val": 12, "test": 20}
    assert set(found.splits[80:]) == {"test"}
    assert all(len(set(found.splits[i : i + 4])) == 1 for i in range(0, 100, 4))
    assert "taken from the train split" in found.remarks[0]


def test_train_and_val_given_scores_are_optimistic() -> None:
    given_parts: list[SplitName | None] = ["train", "train", "val"]
    found = split(draw_names(3), given_parts)
    assert found.splits == ("train", "train", "val")
    assert "optimistic" in found.remarks[0]


def test_only_train_given_is_cut() -> None:
    found = split(draw_names(20), ["train"] * 20)
    assert found.splits == split(draw_names(20)).splits
    assert "only a train split" in found.remarks[0]


def test_all_given_is_kept_and_leaks_are_told() -> None:
    given_parts: list[SplitName | None] = ["train", "train", "val", "test"]
    clean = split(draw_names(4), given_parts)
    assert clean == SplitResult(("train", "train", "val", "test"), ())
    found = split(["d", "c", "b", "a"], given_parts, ["p", "q", "p", None], [0, 1, 2, 0])
    assert found.splits == clean.splits
    copies, groups = found.remarks
    assert "near-identical images are in more than one split (sets: 1)" in copies
    assert "a (test) and d (train)" in copies
    assert "(groups: 1)" in groups
    assert "b (val) and d (train)" in groups


@pytest.mark.parametrize(
    ("given_parts", "named"),
    [
        (["test", "test", "test"], ["test"]),
        (["val", "test", "val"], ["test, val"]),
        (["train", None, "test"], ["1", "3", "0001"]),
        (["train", "test", "test"], ["1", "2"]),
    ],
)
def test_given_splits_that_cannot_be(given_parts: list[SplitName | None], named: list[str]) -> None:
    with raises(DataError, key="data.split", named=named):
        split(draw_names(3), given_parts)


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.1, 0.0), (0.5, 0.5)])
def test_shares_that_cannot_be(shares: tuple[float, float]) -> None:
    with raises(SettingError, key="data.val_share"):
        split(draw_names(9), shares=shares)


# Real data


def read_thumbnails(paths: list[Path]) -> NDArray[np.uint8]:
    out = np.empty((len(paths), 32, 32), np.uint8)
    for i, path in enumerate(paths):
        with Image.open(path) as file:
            file.draft("L", (64, 64))
            out[i] = file.convert("L").resize((32, 32), Image.Resampling.BOX)
    return out


@pytest.mark.skipif(not (DATA / "kvasir-seg").is_dir(), reason="no kvasir-seg under UBEND_DATA")
def test_real_kvasir_copies() -> None:
    pairs = read_folder(DATA / "kvasir-seg", ReadOptions(DATA / "kvasir-seg/splits.csv")).pairs
    names = [pair.name for pair in pairs]
    numbers = find_near_duplicates(read_thumbnails([pair.image for pair in pairs]))
    where = dict(zip(names, numbers.tolist(), strict=True))
    for one, other in (("0510", "0593"), ("0222", "0916"), ("0459", "0620"), ("0300", "0667")):
        assert where[one] == where[other]
    assert 994 <= len(set(where.values())) <= 996
    found = split_pairs(names, [p.split for p in pairs], [None] * 1000, numbers, 1, 0.15, 0.15)
    assert "leaks" in found.remarks[0]


@pytest.mark.skipif(not (DATA / "oxford-iiit-pet").is_dir(), reason="no oxford-iiit-pet under UBEND_DATA")
def test_real_pet_copies() -> None:
    pairs = read_folder(DATA / "oxford-iiit-pet").pairs
    numbers = find_near_duplicates(read_thumbnails([pair.image for pair in pairs]))
    assert len(set(numbers.tolist())) == len(pairs) - 10
    found = split_pairs([p.name for p in pairs], [p.split for p in pairs], [None] * len(pairs), numbers, 1, 0.15, 0.15)
    assert Counter(found.splits)["val"] == pytest.approx(1590 * 0.15, abs=1)


def test_uneven_light_alone_makes_no_duplicates() -> None:
    """Images of one microscope correlate by their light; what is in them decides."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    light = 160 - 80 * (x**2 + y**2)
    rng = np.random.default_rng(0)
    images = np.stack([light + rng.normal(0, 6, (32, 32)) for _ in range(20)]).clip(0, 255).astype(np.uint8)
    raw = np.corrcoef(images.reshape(20, -1).astype(float))
    assert raw[np.triu_indices(20, 1)].min() > 0.96  # the plain correlation would join them all
    assert len(set(find_near_duplicates(images).tolist())) == 20
    copied = np.concatenate([images, images[3:4] // 2 + 40])
    groups = find_near_duplicates(copied)
    assert groups[20] == groups[3]
    assert len(set(groups.tolist())) == 20


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40), st.integers(0, 99))
def test_joined_groups_are_the_connected_ones(count: int, links: list[tuple[int, int]], seed: int) -> None:
    """As scipy finds them, whose import takes 0.2 s."""
    groups = np.random.default_rng(seed).integers(0, count, count)
    left, right = np.array(links, dtype=np.int64).reshape(-1, 2).T % count
    graph = coo_array((np.ones(len(left), bool), (groups[left], groups[right])), shape=(count, count))
    wanted = connected_components(graph, directed=False)[1][groups]
    found = splits._join(groups, left, right)
    np.testing.assert_array_equal(found[:, None] == found, wanted[:, None] == wanted)


# Classes that few images hold


@given(st.integers(6, 60), st.data())
def test_each_split_and_fold_has_what_enough_images_hold(count: int, data: st.DataObject) -> None:
    """Here one class, besides a background that all hold; nothing moves that need not."""
    names, single = draw_names(count), np.arange(count)
    holders = data.draw(st.sets(st.integers(0, count - 1), min_size=3))
    holds = np.stack([np.ones(count, bool), np.isin(single, sorted(holders))], axis=1)
    seed = data.draw(st.integers(0, 99))
    before = split(names, seed=seed).splits
    after = split_pairs(names, [None] * count, [None] * count, single, seed, 0.15, 0.15, holds).splits
    assert {after[i] for i in holders} == {"train", "val", "test"}
    assert Counter(after) == Counter(before)
    if {before[i] for i in holders} == {"train", "val", "test"}:
        assert after == before
    order = data.draw(st.permutations(range(count)))
    shuffled = split_pairs(
        [names[i] for i in order], [None] * count, [None] * count, single, seed, 0.15, 0.15, holds[order]
    )
    assert [shuffled.splits[order.index(i)] for i in range(count)] == list(after)

    tested: list[SplitName] = ["train"] * count
    folds = cut_folds(names, tested, [None] * count, single, seed, 3, holds)
    assert {*folds[sorted(holders)].tolist()} == {1, 2, 3}
    assert sorted(Counter(folds.tolist()).values()) == sorted(
        Counter(cut_folds(names, tested, [None] * count, single, seed, 3).tolist()).values()
    )


@given(st.integers(6, 40), st.integers(1, 5), st.integers(0, 2**31))
def test_exchanges_take_no_class_from_a_split_and_keep_groups_whole(count: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    names, single = draw_names(count), np.arange(count)
    groups: list[str | None] = [str(number) for number in random.integers(0, count // 2 + 2, count)]
    if len({*groups}) < 3:
        return
    holds = random.random((count, classes)) < random.random(classes)
    before, after = (
        split_pairs(names, [None] * count, groups, single, 1, 0.2, 0.2, known).splits for known in (None, holds)
    )
    for part in ("train", "val", "test"):
        held, was_held = (holds[[name == part for name in splits]].any(axis=0) for splits in (after, before))
        assert (held | ~was_held).all()
    assert all(len({after[i] for i in range(count) if groups[i] == group}) == 1 for group in groups)
