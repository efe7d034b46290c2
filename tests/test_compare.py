"""`ubend compare`: the same images, whatever they are called; verdicts; what changed; what is refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import ubend
from support.refusal import check, raises, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError, SettingError
from ubend.evaluation.comparison import compare_scores, read_scores
from ubend.evaluation.intervals import compare_means, holm
from ubend.evaluation.score_tables import Scores

CLASSES = ("background", "cell", "edge")


def show(*words: object) -> str:
    result = CliRunner().invoke(main, [*map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def make_scores(dice: NDArray[np.float64], first: int = 0, groups: list[str] | None = None, **changes: Any) -> Scores:
    """Scores of N images by (N, 2) Dice of cell and edge, NaN where undefined; image number n is `first` + n."""
    names = [f"image{number + first:03d}" for number in range(len(dice))]
    rows = [[1.0, *row] for row in dice.tolist()]
    images = {
        name: {"image_hash": f"i{n:03d}", "mask_hash": f"m{n:03d}", "group": groups[n] if groups else None}
        for n, name in enumerate(names)
    }
    plain = [[None if math.isnan(value) else value for value in row] for row in rows]
    return Scores(
        {
            "native": {"predicted_share": dict.fromkeys(CLASSES, 0.3)},
            "per_picture": {
                name: {"dice": dict(zip(CLASSES, row, strict=True))} for name, row in zip(names, plain, strict=True)
            },
            "images": images,
            **changes,
        }
    )


def draw_dice(seed: int, images: int = 60) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((images, 2)) < 0.2, np.nan, rng.beta(8, 2, (images, 2)))


def test_verdicts_are_those_of_the_paired_bootstrap_over_groups() -> None:
    a, noise = draw_dice(0), np.random.default_rng(1).normal(0, 0.004, (60, 2))
    groups = [f"patient{n // 2}" for n in range(60)]
    dice = {"a": a, "b": a - 0.05 + noise, "c": a - 0.051}
    found = compare_scores({name: make_scores(one, groups=groups) for name, one in dice.items()})
    assert list(found.scores) == ["a", "b", "c"]
    assert (found.images, found.groups) == (60, 30)
    alone = [compare_means(dice[pair.a], dice[pair.b], groups) for pair in found.pairs]
    assert [(pair.a, pair.b) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.difference for pair in found.pairs] == [one.interval for one in alone]
    assert [pair.p for pair in found.pairs] == holm([one.p for one in alone]) != [one.p for one in alone]
    assert [pair.p_equal for pair in found.pairs] == holm([one.p_equal for one in alone])
    assert [pair.verdict for pair in found.pairs] == ["A is better", "A is better", "equal"]
    strict = compare_scores({name: make_scores(one, groups=groups) for name, one in dice.items()}, margin=0.0001)
    assert strict.pairs[2].verdict == "not shown"
    edge = compare_means(dice["a"][:, 1], dice["b"][:, 1], groups).interval
    assert found.pairs[0].classes["edge"] == edge
    ungrouped = compare_scores({name: make_scores(one) for name, one in dice.items()})
    assert ungrouped.groups is None
    assert ungrouped.scores["a"] != found.scores["a"]


def test_images_are_known_by_their_contents_and_without_them_by_name() -> None:
    a = draw_dice(2)
    other_names = make_scores(a[::-1], first=500)
    images = dict(zip(other_names.data["images"], reversed(make_scores(a).data["images"].values()), strict=True))
    found = compare_scores({"a": make_scores(a), "b": Scores({**other_names.data, "images": images})})
    assert found.pairs[0].difference.mean == pytest.approx(0)
    assert found.pairs[0].p == 1
    plain = Scores({key: value for key, value in make_scores(a).data.items() if key != "images"})
    assert compare_scores({"a": make_scores(a), "b": plain}).pairs[0].verdict == "equal"
    with raises(DataError, key="images"):
        compare_scores({"a": plain, "b": other_names})


def test_copies_of_an_image_stay_apart() -> None:
    a = make_scores(draw_dice(3))
    images = {name: {**about, "image_hash": "same", "mask_hash": "same"} for name, about in a.data["images"].items()}
    twice = Scores({**a.data, "images": images})
    assert compare_scores({"a": twice, "b": Scores({**twice.data})}).images == 60


def test_what_changed_most_comes_first() -> None:
    a = np.full((60, 2), 0.8)
    b = a.copy()
    b[7] = 0.1
    b[9, 0] = 0.2
    b[11] = 0.95
    b[12] = 0.81  # not worth a line
    pair = compare_scores({"a": make_scores(a), "b": make_scores(b)}).pairs[0]
    assert [(one.name, one.a, one.b) for one in pair.better_by_a] == [
        ("image007", pytest.approx(0.8), pytest.approx(0.1)),
        ("image009", pytest.approx(0.8), pytest.approx(0.5)),
    ]
    assert [one.name for one in pair.better_by_b] == ["image011"]


def test_other_images_masks_or_classes_are_refused() -> None:
    a, dice = make_scores(draw_dice(4)), draw_dice(4)
    with raises(DataError, key="images", named=["59", "1 (image059)"]):
        compare_scores({"a": a, "b": make_scores(dice[:59])})
    masks = {name: {**about, "mask_hash": "other"} for name, about in a.data["images"].items()}
    with raises(DataError, key="images"):
        compare_scores({"a": a, "b": Scores({**a.data, "images": masks})})
    with raises(DataError, key="classes", named=["spot"]):
        renamed = json.loads(json.dumps(a.data).replace('"edge"', '"spot"'))
        compare_scores({"a": a, "b": Scores(renamed)})
    with raises(SettingError, key="runs"):
        compare_scores({"a": a})
    for margin in (0, 1, math.nan):
        with raises(SettingError, key="--margin"):
            compare_scores({"a": a, "b": a}, margin)


def test_command_and_function_say_the_same(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "again.json"
    scores = ubend.evaluate(run, device="cpu", out=file)
    shutil.copytree(run, tmp_path / "copy")
    found = ubend.compare([run, file], margin=0.02, json=tmp_path / "found.json")
    assert (found.pairs[0].difference.mean, found.pairs[0].p) == (0, 1)
    assert found.pairs[0].verdict == "not shown"  # four images are too few
    assert json.loads((tmp_path / "found.json").read_text()) == found.to_dict()
    said = show("compare", run, file, "--margin", 0.02)
    assert said == f"{found}\n"
    assert ubend.compare([scores, run]).pairs[0].difference.mean == 0
    check(refused_once("compare", run, file, "--json", file), OutputError, path=file)
    check(refused_once("compare", run, run), SettingError, key="runs")
    for alone in (str(run), run, scores):
        with raises(SettingError, key="runs"):
            ubend.compare(alone)  # type: ignore[arg-type]


def test_runs_are_ranked_where_their_test_images_are_equal(run: Path, tmp_path: Path) -> None:
    for name in ("middle", "best", "elsewhere", "earlier"):
        shutil.copytree(run, tmp_path / name)
    file = tmp_path / "best" / "scores.json"
    scores = json.loads(file.read_text())
    mean = scores["intervals"]["dice"]["mean_foreground"]
    mean |= {"mean": mean["mean"] + 0.001}
    file.write_text(json.dumps(scores))
    scores["images"] = {name: {**about, "image_hash": "other"} for name, about in scores["images"].items()}
    (tmp_path / "elsewhere" / "scores.json").write_text(json.dumps(scores))
    del scores["images"], scores["intervals"]
    (tmp_path / "earlier" / "scores.json").write_text(json.dumps(scores))
    lines = show("runs", tmp_path).splitlines()
    (ranking,) = [line for line in lines if "best, middle" in line]
    assert "elsewhere" not in ranking
    assert "earlier" not in ranking
    row = next(line for line in lines if line.startswith("middle"))
    ends = [mean["t_low"], mean["t_high"]] if mean["rough"] else [mean["low"], mean["high"]]
    assert all(f"{end:.3f}" in row for end in ends)


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[]",
        "{}",
        '{"native": {"predicted_share": {"a": 1}}, "per_picture": {}}',
        '{"native": {"predicted_share": {"a": 1}}, "per_picture": {"x": {"dice": {"b": 1}}}}',
        '{"native": {"predicted_share": {"a": 1}}, "per_picture": {"x": {"dice": {"a": 1}}}, "images": {}}',
    ],
)
def test_a_damaged_file_of_scores_is_one_line(text: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(text)
    check(refused_once("compare", run, tmp_path / "scores.json"), OutputError, path=tmp_path / "scores.json")
    check(refused_once("compare", run, tmp_path), OutputError, path=tmp_path / "scores.json")
    assert read_scores(run).native.images > 0
