"""Several seeds: the same split, mean and spread of the scores, the model that is best on the validation split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ubend
from support.discs import make_discs
from support.refusal import raises
from support.tensors import same_tensors
from support.training import Listener, press_once
from ubend.core.errors import SettingError, TrainingError
from ubend.tasks.runs import read_summary
from ubend.tasks.seeds import summarise_seeds
from ubend.training.run_folder import RunFolder

TINY: dict[str, Any] = {"data.size": 32, "model.width": 4, "model.depth": 2, "train.epochs": 2, "train.batch": 4}
RATE = {"train.learning_rate": 0.01, "train.warmup": 0.0}  # so that three steps give scores that differ


def fit(folder: Path, run: Path, reporter: Listener | None = None, **flags: Any) -> ubend.FitResult:
    flags = {"seeds": 3, "seed": 5, **flags}
    settings = {**TINY, **RATE}
    return ubend.fit(folder, out=run, settings=settings, device="cpu", reporter=reporter or Listener(), **flags)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds") / "discs"
    make_discs(folder, 16)
    return folder


@pytest.fixture(scope="module")
def run(discs: Path) -> Path:
    return fit(discs, discs.parent / "run").run


def test_only_the_seed_differs(run: Path, discs: Path, tmp_path: Path) -> None:
    """The split is that of a training with the first seed, whose model and scores are the same."""
    parts = [run / f"seed-{number}" for number in (1, 2, 3)]
    tables = {RunFolder(part).data.read_text() for part in (run, *parts)}
    assert len(tables) == 1
    settings = [RunFolder(part).settings.read_text().splitlines() for part in parts]
    for lines in settings[1:]:
        assert {line.partition(" = ")[0] for line in {*lines} ^ {*settings[0]}} == {"seed"}
    assert not same_tensors(parts[0], parts[1])
    alone = fit(discs, tmp_path / "alone", seeds=None).run
    assert same_tensors(alone, parts[0])
    assert read(RunFolder(alone).scores) == read(RunFolder(parts[0]).scores)


def test_mean_and_spread(run: Path) -> None:
    scores = read(RunFolder(run).scores)
    parts = [read(RunFolder(run / f"seed-{number}").scores) for number in (1, 2, 3)]
    seeds = scores["seeds"]
    assert [*seeds["scores"]] == ["5", "6", "7"]
    assert seeds["row"] == "foreground"
    for measure in ("dice", "iou"):
        values = [part["native"][measure]["per_image"]["foreground"] for part in parts]
        assert [own[measure] for own in seeds["scores"].values()] == values
        assert seeds[measure]["mean"] == pytest.approx(np.mean(values))
        assert seeds[measure]["std"] == pytest.approx(np.std(values, ddof=1))
        assert (seeds[measure]["min"], seeds[measure]["max"]) == (min(values), max(values))
    assert len({own["validation"] for own in seeds["scores"].values()}) > 1
    text = str(ubend.Scores(scores))
    assert f"{seeds['dice']['mean']:.4f}" in text
    assert f"{seeds['dice']['std']:.4f}" in text
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Of 3 trainings with different seeds" in page
    assert f"{seeds['dice']['std']:.4f}" in page


def test_the_model_is_the_best_on_the_validation_split(run: Path) -> None:
    seeds = read(RunFolder(run).scores)["seeds"]
    best = max(seeds["scores"], key=lambda seed: seeds["scores"][seed]["validation"])
    assert seeds["kept"] == int(best)
    kept = run / f"seed-{int(best) - 4}"
    assert same_tensors(run, kept)
    assert read(RunFolder(run).scores)["native"] == read(RunFolder(kept).scores)["native"]
    assert RunFolder(run).metrics.read_bytes() == RunFolder(kept).metrics.read_bytes()
    summary = read_summary(run)
    assert (summary.seed, summary.done) == (int(best), 2)
    assert ubend.load(run, device="cpu")(np.zeros((40, 48, 3), np.uint8)).mask.shape == (40, 48)


def test_the_test_split_does_not_choose() -> None:
    """Better on the test split, worse on the validation split: not kept; equal: the first."""

    def scores(dice: float | None) -> dict[str, Any]:
        measure = {"per_image": {"background": 1.0, "disc": dice}}
        return {"native": {"dice": measure, "iou": measure, "predicted_share": {"background": 0.9, "disc": 0.1}}}

    found = summarise_seeds({0: scores(0.9), 1: scores(0.5), 2: scores(0.4)}, {0: 0.6, 1: 0.7, 2: 0.7})
    assert found["kept"] == 1
    assert found["dice"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.2645751), "min": 0.4, "max": 0.9}
    undefined = summarise_seeds({0: scores(None), 1: scores(0.5)}, {0: 0.6, 1: float("-inf")})
    assert undefined["dice"] is None
    assert undefined["scores"]["1"]["validation"] is None


def test_resumed_in_the_second_seed(run: Path, discs: Path, tmp_path: Path) -> None:
    listener = Listener()

    def press(done: int) -> None:
        if "seed 6 (2 of 3)" in listener.said:
            press_once(2)(done)

    listener.at_step = press
    stopped = fit(discs, tmp_path / "run", listener)
    assert stopped.scores is None
    assert not RunFolder(stopped.run).model_path.exists()
    again = Listener()
    result = ubend.resume(stopped.run, reporter=again)
    assert "seed 5 (1 of 3)" not in again.said
    assert result.scores is not None
    assert result.scores.data == read(RunFolder(run).scores)
    assert same_tensors(result.run, run)
    image = discs / "images" / "disc00.png"
    content = image.read_bytes()
    image.write_bytes((discs / "images" / "disc01.png").read_bytes())
    try:
        with raises(TrainingError, path=discs):
            ubend.resume(result.run, reporter=Listener())
    finally:
        image.write_bytes(content)


def test_from_a_model(run: Path, discs: Path, tmp_path: Path) -> None:
    """All seeds start from the same weights."""
    start = run / "seed-1"
    settings = {"train.epochs": 1, "train.batch": 4, "data.size": 32}
    result = ubend.fit(
        discs, out=tmp_path / "run", init_from=start, seeds=2, settings=settings, device="cpu", reporter=Listener()
    )
    for number in (1, 2):
        begun = read(RunFolder(result.run / f"seed-{number}").facts)["begun_with"]
        assert begun["path"].endswith("seed-1")


@pytest.mark.parametrize(
    ("key", "flags"),
    [
        ("train.seeds", {"folds": 3}),
        ("train.seeds", {"effort": "best"}),
        ("train.seeds", {"seeds": 0}),
        ("train.seeds", {"seeds": 101}),
        ("train.seeds", {"seed": 2**63 - 2}),
        ("train.seeds", {"network": torch.nn.Conv2d(3, 2, 1)}),
        ("--gpus", {"gpus": 99, "device": None}),
    ],
)
def test_refused(key: str, flags: dict[str, Any], discs: Path, tmp_path: Path) -> None:
    """In one line, before anything is trained or written."""
    with raises(SettingError, key=key):
        ubend.fit(
            discs, out=tmp_path / "run", settings=TINY, reporter=Listener(), **{"seeds": 3, "device": "cpu", **flags}
        )
    assert not (tmp_path / "run").exists()
