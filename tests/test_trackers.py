"""Experiment trackers: what they get, that a resumed training continues their run, that none can end a training."""

import json
import sys
import threading
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

import ubend
from support.refusal import TINY, check, refused_once
from support.training import Listener, press_once
from ubend.core.errors import MissingPackageError
from ubend.training import trackers
from ubend.training.run_folder import RunFolder
from ubend.training.trackers import TrackedRun

SMALL: dict[str, Any] = {"size": 32, "width": 2, "epochs": 3, "batch": 4, "device": "cpu", "encoder": "none"}
SETTINGS = {"train.epochs": "2", "data.folder": "cells"}
ROWS = [
    {"epoch": 1, "train_loss": 1.5, "val_loss": 1.25, "val_dice": {"cell": 0.25, "(odd) name": None}, "lr": 0.5},
    {"epoch": 2, "train_loss": 1.0, "val_loss": 0.75, "val_dice": {"cell": 0.5, "(odd) name": 0.125}, "lr": 0.25},
]
SPEED = {"images_per_s": 8.0}


class Fake(types.ModuleType):
    """A library like trackio, which keeps the calls; `fail_at`: the epoch whose logging `fails`."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.__spec__ = ModuleSpec("trackio", None)
        self.calls: list[tuple[str, Any]] = []
        self.fail_at, self.fails = 0, lambda: None

    def init(self, **named: Any) -> "Fake":
        self.calls.append(("init", named))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if step == self.fail_at:
            self.fails()
        self.calls.append(("log", (step, values)))

    def finish(self) -> None:
        self.calls.append(("finish", None))

    def take(self, kind: str) -> list[Any]:
        return [value for name, value in self.calls if name == kind]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return fake


def read_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_gets_settings_epochs_and_scores(discs: Path, tmp_path: Path, fake: Fake) -> None:
    run, reporter = tmp_path / "run", Listener()
    ubend.fit(discs, out=run, track="trackio", reporter=reporter, **SMALL)
    (begun,) = fake.take("init")
    assert begun["name"].startswith("run-")
    assert (begun["project"], begun["resume"]) == ("ubend", "never")
    assert (begun["config"]["train.epochs"], begun["config"]["data.folder"]) == ("3", str(discs))
    *epochs, (last, scored) = fake.take("log")
    assert [step for step, _values in epochs] == [1, 2, 3]
    for row, (_step, values) in zip(read_rows(run), epochs, strict=True):
        assert values["train_loss"] == row["train_loss"]
        assert values["learning_rate"] == row["lr"]
        assert values["val_dice/foreground"] == row["val_dice"]["foreground"]
        assert values["images_per_s"] > 0
    scores = json.loads((run / "scores.json").read_text())
    assert last == 3
    assert scored["test_dice/foreground"] == scores["native"]["dice"]["per_image"]["foreground"]
    assert scored["test_boundary_f1/foreground"] == scores["boundary"]["f1"]["per_image"]["foreground"]
    assert len(fake.take("finish")) == 1
    assert "trackio failed" not in reporter.said


def test_a_resumed_training_continues_its_run(discs: Path, tmp_path: Path, fake: Fake) -> None:
    run = tmp_path / "run"
    assert ubend.fit(discs, out=run, track="trackio", reporter=Listener(press_once(4)), **SMALL).scores is None
    done = len(read_rows(run))
    assert [step for step, _values in fake.take("log")] == [*range(1, done + 1)]
    assert len(fake.take("finish")) == 1
    about = json.loads((run / "tracker.json").read_text())
    (run / "tracker.json").write_text(json.dumps(about | {"epochs": 0}))  # as if killed before they were sent
    ubend.resume(run, reporter=Listener())
    first, second = fake.take("init")
    assert second["name"] == first["name"]
    assert second["resume"] == "allow"
    assert [step for step, _values in fake.take("log")][done:] == [1, 2, 3, 3]


def test_without_it_nothing_is_imported_or_written(good: Path, fake: Fake) -> None:
    assert not (good / "run" / "tracker.json").exists()
    assert not (good / "run" / "tensorboard").exists()


def test_a_failing_tracker_is_one_line(discs: Path, tmp_path: Path, fake: Fake) -> None:
    def fail() -> None:
        raise OSError("disk full\nin two lines")

    fake.fail_at, fake.fails, reporter = 2, fail, Listener()
    result = ubend.fit(discs, out=tmp_path / "run", track="trackio", reporter=reporter, **SMALL)
    assert result.scores is not None
    assert [step for step, _values in fake.take("log")] == [1]
    (line,) = [line for line in reporter.said.splitlines() if "trackio failed" in line]
    assert "disk full" in line


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    release, reporter = threading.Event(), Listener()
    fake.fail_at, fake.fails = 1, lambda: bool(release.wait(60))
    monkeypatch.setattr(trackers, "_CLOSING_S", 0.05)
    with TrackedRun("trackio", RunFolder(tmp_path), "run", SETTINGS, reporter) as tracked:
        tracked.begin([])
        tracked.log_epoch(ROWS[0], SPEED)
        tracked.log_epoch(ROWS[1], SPEED)
    assert "no answer in 0.05 s" in reporter.said
    release.set()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_a_missing_library_is_refused_at_the_start(
    name: str, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    expected: dict[str, Any] = {"key": "train.track", "named": [f"pip install 'ubend[{name}]'"]}
    for more in ([], ["--folds", "2"]):
        words = ["fit", discs, "--out", tmp_path / "run", *TINY, "--track", name, *more]
        check(refused_once(*words), MissingPackageError, **expected)
    assert not (tmp_path / "run").exists()


def test_a_missing_library_does_not_keep_a_training_from_being_resumed(
    discs: Path, tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, reporter = tmp_path / "run", Listener()
    ubend.fit(discs, out=run, track="trackio", reporter=Listener(press_once(4)), **SMALL)
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert ubend.resume(run, reporter=reporter).scores is not None
    assert reporter.said.count("trackio failed") == 1
    assert "pip install 'ubend[trackio]'" in reporter.said.replace("\n", " ")


# The real libraries, where they are installed.


def track(kind: Any, run: RunFolder) -> str:
    """Two trainings of an epoch, the second a resumed one; returns what was reported."""
    reporter, run_name = Listener(), "run"
    run.path.mkdir()
    summary = {"per_image": {"cell": 0.75, "(odd) name": None}}
    native: dict[str, Any] = dict.fromkeys(("dice", "iou", "precision", "recall"), summary) | {"pixel_accuracy": 0.5}
    scores = {"part": "test", "native": native, "boundary": {"f1": summary}}
    with TrackedRun(kind, run, run_name, SETTINGS, reporter) as tracked:
        tracked.begin([])
        tracked.log_epoch(ROWS[0], SPEED)
        tracked.log_epoch(ROWS[1] | {"train_loss": 99.0}, SPEED)  # lost: the state was saved before it
    with TrackedRun(kind, run, run_name, SETTINGS, reporter) as tracked:
        tracked.begin(ROWS[:1])
        tracked.log_epoch(ROWS[1], SPEED)
        tracked.finish(scores, 2)
    return reporter.said


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path / "run")
    assert track("tensorboard", run) == ""
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("train_loss")] == [(1, 1.5), (2, 1.0)]
    assert [(one.step, one.value) for one in events.Scalars("val_dice/(odd) name")] == [(2, 0.125)]
    assert [(one.step, one.value) for one in events.Scalars("test_dice/cell")] == [(2, 0.75)]
    (text,) = events.Tensors("settings/text_summary")
    assert b"| train.epochs | 2 |" in text.tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "run")
    assert track("mlflow", run) == ""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "ubend"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params == SETTINGS
    assert found.info.status == "FINISHED"
    assert found.data.metrics["train_loss"] == 1.0
    assert found.data.metrics["val_dice/_odd_ name"] == 0.125
    assert found.data.metrics["test_dice/cell"] == 0.75
    assert {one.step for one in client.get_metric_history(found.info.run_id, "val_loss")} == {1, 2}
    run.tracker.unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    reporter = Listener()
    with TrackedRun("mlflow", run, "run", SETTINGS, reporter) as tracked:
        tracked.begin([])
        tracked.log_epoch(ROWS[0], SPEED)
    assert reporter.said.count("mlflow failed") == 1


@pytest.mark.filterwarnings("ignore")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    pytest.importorskip("trackio")
    run = RunFolder(tmp_path / "run")
    assert track("trackio", run) == ""
    place = json.loads(run.tracker.read_text())["place"]
    connection = sqlite3.connect(tmp_path / "kept" / "ubend.db")
    rows = connection.execute("select run_name, step, metrics from metrics order by id").fetchall()
    connection.close()
    assert {name for name, _step, _metrics in rows} == {place["name"]}
    assert [step for _name, step, _metrics in rows] == [1, 2, 2, 2]
    assert json.loads(rows[-2][2])["train_loss"] == 1.0
    assert json.loads(rows[-1][2])["test_dice/cell"] == 0.75
