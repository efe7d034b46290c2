"""Leaving out one group at a time: splits, scores of each group, refusals, resuming."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ubend
from support.discs import make_discs
from support.refusal import raises
from support.training import Listener, press_once
from ubend.core.errors import DataError, SettingError
from ubend.dataset.splits import MOST_GROUPS, check_groups, hold_out, number_groups
from ubend.evaluation.group_scores import score_groups
from ubend.labels.class_table import make_label_map
from ubend.models.ensemble_net import EnsembleNet
from ubend.models.model_file import load_bundle
from ubend.training.run_folder import RunFolder

TINY: dict[str, Any] = {"data.size": 32, "model.width": 2, "model.depth": 2, "train.epochs": 1, "train.batch": 4}
IMAGES = 12


def write_groups(path: Path, groups: list[str], splits: list[str] | None = None) -> Path:
    rows = [[f"disc{number:02d}", group] for number, group in enumerate(groups)]
    heads = ["file", "group"]
    if splits is not None:
        rows, heads = [[*row, split] for row, split in zip(rows, splits, strict=True)], [*heads, "split"]
    path.write_text("\n".join(",".join(row) for row in [heads, *rows]) + "\n")
    return path


def fit(folder: Path, run: Path, split: Path | None, reporter: Listener | None = None, **flags: Any) -> ubend.FitResult:
    flags = {"leave_out": "group", **flags}
    reporter = reporter or Listener()
    return ubend.fit(folder, out=run, split=split, settings=TINY, device="cpu", reporter=reporter, **flags)


def splits_of(run: Path) -> dict[str, str]:
    with RunFolder(run).data.open(newline="", encoding="utf-8") as file:
        return {row["name"]: row["split"] for row in csv.DictReader(file)}


def scores_of(run: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads(RunFolder(run).scores.read_text())
    return scores


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leave-out") / "discs"
    make_discs(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def thirds(discs: Path) -> Path:
    return write_groups(discs.parent / "thirds.csv", [f"site{number % 3}" for number in range(IMAGES)])


@pytest.fixture(scope="module")
def run(discs: Path, thirds: Path) -> Path:
    return fit(discs, discs.parent / "run", thirds).run


def test_each_group_is_left_out_once(run: Path) -> None:
    """The group is the test split of its fold; the others are whole in training or validation."""
    scores = scores_of(run)
    assert len(list(run.glob("fold-*"))) == 3
    for fold in (1, 2, 3):
        part = run / f"fold-{fold}"
        splits, own = splits_of(part), scores_of(part)
        assert {int(name[-2:]) % 3 for name, split in splits.items() if split == "test"} == {fold - 1}
        for group in range(3):
            assert len({split for name, split in splits.items() if int(name[-2:]) % 3 == group}) == 1
        assert {*splits.values()} == {"train", "val", "test"}
        assert own["part"] == "test"
        for name, row in own["per_picture"].items():
            assert splits[name] == "test"
            assert scores["per_picture"][name] == row
    assert len(scores["per_picture"]) == IMAGES
    assert scores["part"] == "out-of-fold"


def test_the_score_names_each_group(run: Path) -> None:
    scores = scores_of(run)
    left_out = scores["left_out"]
    assert [*left_out["groups"]] == ["site0", "site1", "site2"]
    means = []
    for number, own in enumerate(left_out["groups"].values()):
        dice = [
            row["dice"]["foreground"] for name, row in scores["per_picture"].items() if int(name[-2:]) % 3 == number
        ]
        assert own["images"] == len(dice) == 4
        assert own["dice"]["mean"] == pytest.approx(np.mean(dice))
        assert own["dice"]["low"] <= own["dice"]["mean"] <= own["dice"]["high"]
        means.append(own["dice"]["mean"])
    assert left_out["dice"]["mean"] == pytest.approx(np.mean(means))
    assert left_out["dice"]["t_low"] <= left_out["dice"]["mean"] <= left_out["dice"]["t_high"]
    text = str(ubend.Scores(scores))
    assert all(group in text for group in left_out["groups"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "without its group" in page
    assert page.count('<th role="rowheader" scope="row">site') == 3


def test_a_group_counts_once_in_the_mean() -> None:
    """Nine images of one group weigh as much as one image of another; a group without a score is not counted."""
    labels = make_label_map([0, 1], ["background", "disc"])
    rows = {f"a{number}": 0.8 for number in range(9)} | {"b": 0.4, "c": None}
    per_picture = {
        name: {measure: {"background": 1.0, "disc": value} for measure in ("dice", "iou")}
        for name, value in rows.items()
    }
    found = score_groups({"per_picture": per_picture}, {name: name[0] for name in rows}, labels)
    assert found["dice"]["mean"] == pytest.approx(0.6)
    assert {group: own["images"] for group, own in found["groups"].items()} == {"a": 9, "b": 1, "c": 1}
    assert found["groups"]["c"]["dice"] is None


def test_the_model_predicts_as_that_of_folds(run: Path, discs: Path) -> None:
    net = load_bundle(run).model
    assert isinstance(net, EnsembleNet)
    assert len(net.members) == 3
    masks = ubend.load(run, device="cpu")(np.zeros((40, 48, 3), np.uint8))
    assert masks.mask.shape == (40, 48)


def test_resumed_in_the_second_group(run: Path, discs: Path, thirds: Path, tmp_path: Path) -> None:
    listener = Listener()

    def press(done: int) -> None:
        if "group site1 is left out (2 of 3)" in listener.said:
            press_once(1)(done)

    listener.at_step = press
    stopped = fit(discs, tmp_path / "run", thirds, listener)
    assert stopped.scores is None
    assert not (stopped.run / "fold-3").exists()
    again = Listener()
    result = ubend.resume(stopped.run, reporter=again)
    assert "(1 of 3)" not in again.said
    assert result.scores is not None
    assert result.scores.data == scores_of(run)


def test_two_groups_and_a_stated_split(discs: Path, tmp_path: Path) -> None:
    """With one group left, its images are divided; a stated split is not used, and that is reported."""
    splits = ["test" if number < 3 else "train" for number in range(IMAGES)]
    halves = write_groups(tmp_path / "halves.csv", ["a", "b"] * (IMAGES // 2), splits)
    listener = Listener()
    run = fit(discs, tmp_path / "run", halves, listener).run
    assert "the given split is not used" in listener.said
    for fold in (1, 2):
        kinds = {0: set[str](), 1: set[str]()}
        for name, split in splits_of(run / f"fold-{fold}").items():
            kinds[int(name[-2:]) % 2].add(split)
        assert kinds == {fold - 1: {"test"}, 2 - fold: {"train", "val"}}
    assert {*splits_of(run).values()} == {"train"}


def test_one_group_alone(discs: Path, thirds: Path, tmp_path: Path) -> None:
    """`data.held_out`, for the queue of a cluster: a plain run."""
    settings = {**TINY, "data.leave_out": "group", "data.held_out": 2}
    result = ubend.fit(
        discs, out=tmp_path / "alone", split=thirds, settings=settings, device="cpu", reporter=Listener()
    )
    assert result.scores is not None
    assert {int(name[-2:]) % 3 for name in result.scores.data["per_picture"]} == {1}
    settings["data.held_out"] = 4
    with raises(DataError, key="data.held_out"):
        ubend.fit(discs, out=tmp_path / "four", split=thirds, settings=settings, device="cpu", reporter=Listener())


def test_groups_with_the_same_images_are_left_out_together() -> None:
    groups = ["a", "a", "b", "b", "c", "c"]
    numbers, names = number_groups(groups, np.array([0, 1, 2, 3, 1, 5]))
    assert numbers.tolist() == [1, 1, 2, 2, 1, 1]
    assert names == {1: "a, c", 2: "b"}
    with raises(DataError, key="data.leave_out"):
        number_groups(groups, np.array([0, 1, 0, 3, 1, 5]))


def test_the_validation_split_depends_on_the_seed_alone() -> None:
    """Not on the order of the images; it never holds the group that is left out."""
    names = [f"image{number:02d}" for number in range(40)]
    groups = [f"group{number % 8}" for number in range(40)]
    alike = np.arange(40)
    numbers, _names = number_groups(groups, alike)
    seen = set[tuple[str, ...]]()
    for seed in range(6):
        splits = hold_out(names, groups, alike, numbers, 3, seed, 0.2).splits
        seen.add(splits)
        order = np.random.default_rng(seed).permutation(40)
        mixed = hold_out(
            [names[i] for i in order], [groups[i] for i in order], alike, numbers[order], 3, seed, 0.2
        ).splits
        assert mixed == tuple(splits[i] for i in order)
        assert [split == "test" for split in splits] == (numbers == 3).tolist()
        assert splits.count("val") in (5, 10)
    assert len(seen) > 1


@pytest.mark.parametrize(
    "groups",
    [[None] * 4, ["a"] * 4, ["a", "b", None, "b"], [f"{number}" for number in range(MOST_GROUPS + 1)]],
    ids=["none", "one", "incomplete", "too many"],
)
def test_groups_that_cannot_be_left_out(groups: list[str | None]) -> None:
    with raises(DataError, key="data.leave_out"):
        check_groups([f"{number}" for number in range(len(groups))], groups)


@pytest.mark.parametrize(
    ("key", "flags"),
    [
        ("data.leave_out", {"folds": 3}),
        ("train.seeds", {"seeds": 2}),
        ("data.leave_out", {"leave_out": "site"}),
        ("data.leave_out", {"split": None}),
        ("train.init_from", {"init_from": "RUN/fold-1"}),
    ],
)
def test_refused(key: str, flags: dict[str, Any], run: Path, discs: Path, thirds: Path, tmp_path: Path) -> None:
    """In one line, before anything is trained or written."""
    if "init_from" in flags:
        flags = {"init_from": str(run / "fold-1")}
    with raises(DataError if "split" in flags else SettingError, key=key):
        fit(discs, tmp_path / "run", **{"split": thirds, **flags})
    assert not (tmp_path / "run").exists()
