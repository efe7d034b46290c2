"""The main job's own rules: its words, its run folder, what it says."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ubend
from support.discs import make_discs
from support.refusal import raises
from ubend.core.errors import OutputError, PairError, SettingError
from ubend.evaluation.score_tables import warn_one_class
from ubend.tasks import fit as fit_task
from ubend.tasks.user_settings import parse_skips
from ubend.training import build, transfer
from ubend.training.run_folder import RunFolder

TINY = {"size": 32, "width": 2, "epochs": 1, "device": "cpu"}


def test_parse_skips() -> None:
    assert parse_skips("all", 3) == (True, True, True)
    assert parse_skips("none", 2) == (False, False)
    assert parse_skips("1,3", 3) == (True, False, True)
    assert parse_skips([False, True], 2) == (False, True)
    for wrong in ("0", "4", "one", ""):
        with raises(SettingError, key="model.skips"):
            parse_skips(wrong, 3)


def test_python_takes_the_words_of_the_command_line(discs: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.csv"
    names = sorted(path.name for path in (discs / "images").iterdir())
    parts = ["train"] * 16 + ["val"] * 4 + ["test"] * 4
    split.write_text("file,split\n" + "".join(f"{n},{p}\n" for n, p in zip(names, parts, strict=True)))
    run = tmp_path / "run"
    result = ubend.fit(discs, out=run, split=split, classes="ground, disc", skips="none", **TINY)
    assert result.run == run
    assert result.scores is not None
    assert {"ground", "disc"} <= set(result.scores.native.dice.pooled.classes)
    assert result.scores.native.images == 4
    assert ubend.load(run).bundle.model.skips == (False,) * 4
    with raises(SettingError, named=["train.epoch"]):
        ubend.fit(discs, out=tmp_path / "other", settings={"train.epoch": 3})


@pytest.mark.parametrize("sparse", ["train", "val"])
def test_a_split_without_labelled_pixels_is_refused(sparse: str, tmp_path: Path) -> None:
    """Single labelled pixels that a mask of a quarter of the size does not contain."""
    rng = np.random.default_rng(0)
    points = np.full((64, 64), 255, np.uint8)
    points[::8, ::16], points[::8, 8::16] = 0, 1
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "set" / split / kind).mkdir(parents=True)
        for number in range(4):
            mask = points if split == sparse else rng.integers(0, 2, (64, 64)).astype(np.uint8)
            image = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "set" / split / f"images/{number}.png")
            Image.fromarray(mask).save(tmp_path / "set" / split / f"masks/{number}.png")
    given: dict[str, Any] = {"values": ["0=background", "1=cell", "255=ignored"], "width": 2, "device": "cpu"}
    with raises(SettingError, key="data.size", named=[f"the {sparse} split", "--patches"]):
        ubend.fit(tmp_path / "set", out=tmp_path / "run", size=16, epochs=1, **given)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    ubend.fit(tmp_path / "set", out=tmp_path / "run", size=64, epochs=1, **given)


def test_a_run_is_scored_from_anywhere(discs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(discs.parent)
    result = ubend.fit(discs.name, out="run", **TINY)
    monkeypatch.chdir("/")
    again = ubend.evaluate(discs.parent / "run", device="cpu")
    assert result.scores is not None
    assert again.to_dict()["native"] == result.scores.to_dict()["native"]


def test_the_compiler_is_not_imported(discs: Path, tmp_path: Path) -> None:
    """torch's compiler takes 1.3 s and more to import; torch's optimisers do so at their first step."""
    program = (
        "import sys, ubend\n"
        f"ubend.fit({str(discs)!r}, out={str(tmp_path / 'run')!r}, **{TINY!r})\n"
        "print(*sorted(name for name in sys.modules if name in ('torch._dynamo', 'torch._inductor', 'sympy')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_masks_of_another_coding_are_refused(discs: Path, tmp_path: Path) -> None:
    """A model that learnt 0 and 255 must not score 1 as background."""
    ubend.fit(discs, out=tmp_path / "run", **TINY)
    other = tmp_path / "other"
    make_discs(other, 4)
    for path in (other / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    with raises(PairError, key="data.values", named=["1", "0 -> background, 255 -> foreground"]):
        ubend.evaluate(tmp_path / "run", folder=other, device="cpu")


def test_one_class_is_said_by_its_share() -> None:
    def scores(share: float) -> dict[str, object]:
        return {"native": {"predicted_share": {"meander": share, "ground": 1 - share}}}

    assert "meander" in str(warn_one_class(scores(1.0)))
    assert warn_one_class(scores(0.5)) is None


def test_timing_of_a_killed_run_is_trimmed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [{"epoch": 1, "s": 1}, {"epoch": 2, "s": 2}, {"epoch": 3, "s": 3}, {"epoch": 3, "s": 9}]
    run.timing.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"epoch": 4, "s')
    run.trim_timing(2)
    assert [json.loads(line) for line in run.timing.read_text().splitlines()] == rows[:2]


def test_a_beginning_that_was_killed_is_no_run(tmp_path: Path) -> None:
    """Before run.json is written nothing is lost, so the same --out works; with anything else it is refused."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.settings.write_text("settings of the user's own")
    with pytest.raises(OutputError):
        run.refuse_existing_results()
    run.started.touch()
    run.refuse_existing_results()
    (run.path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError):
        run.refuse_existing_results()


def test_without_a_compiler_it_goes_on(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ubend.accel.accelerate.has_compiler", lambda: False)
    result = ubend.fit(discs, out=tmp_path / "run", settings={"train.compile": True}, **TINY)
    assert result.scores is not None
    assert "no C compiler was found" in capsys.readouterr().out


def test_each_stage_runs_once(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is opened once, the plan resolved once, the network built once, the initial model read once."""
    ubend.fit(discs, out=tmp_path / "first", **TINY)
    calls: list[str] = []
    homes = {fit_task: ("open_dataset", "resolve", "prepare", "build", "train", "evaluate_pairs")}
    homes |= {build: ("make_network",), transfer: ("load_bundle",)}
    for home, names in homes.items():
        for name in names:
            work = getattr(home, name)

            def noted(*given: Any, name: str = name, work: Callable[..., Any] = work, **named: Any) -> Any:
                calls.append(name)
                return work(*given, **named)

            monkeypatch.setattr(home, name, noted)
    ubend.fit(discs, out=tmp_path / "second", init_from=tmp_path / "first", size=32, epochs=1, device="cpu")
    stages = ["load_bundle", "open_dataset", "resolve", "prepare", "build", "make_network", "train", "evaluate_pairs"]
    assert calls == stages
