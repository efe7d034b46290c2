"""Experiment trackers: TensorBoard, MLflow and trackio receive settings, the metrics of each epoch, and the scores.

A tracker runs in a thread of its own, so that the training waits for no server, and its errors end in one line: they
never end a training. Each library is imported when it is used.
"""

import json
import math
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol, Self

from ubend.core.errors import MissingPackageError
from ubend.core.files import read_text, write_json
from ubend.core.i18n import _
from ubend.core.plan import Plan
from ubend.core.progress import Reporter
from ubend.core.settings import TrackerName, flatten
from ubend.training.run_folder import RunFolder

PROJECT = "ubend"  # MLflow's experiment, unless MLFLOW_EXPERIMENT_NAME names another, and trackio's project
_CLOSING_S = 60.0  # seconds that the end of a training waits for the tracker
_PARAMETERS = 100  # parameters that MLflow accepts in one call
_PARAMETER_LENGTH = 500  # characters of the value of a parameter in MLflow
_NO_METRIC = re.compile(r"[^\w.\-: /]")  # characters that names of metrics cannot contain in MLflow

Values = Mapping[str, float]


class Tracker(Protocol):
    """A run of a tracker; the calls come from one thread, in this order.

    Attributes:
        place: where the run is continued when the training is resumed: what `open` takes.
    """

    place: dict[str, str]

    def log(self, epoch: int, values: Values) -> None:
        """Log the metrics of an epoch, or the scores."""

    def close(self, *, finished: bool) -> None:
        """End the run; `finished`: the training has ended and is scored."""


def check_tracker(name: TrackerName | None) -> None:
    """Fail early if the library of a tracker is not installed.

    Raises:
        MissingPackageError: it is not.
    """
    packages = {"tensorboard": ["tensorboard"], "mlflow": ["mlflow", "sqlalchemy"], "trackio": ["trackio"]}
    for package in packages[name] if name else []:
        if find_spec(package) is None:
            line = _("--track {name} needs {package}; install it with: pip install 'ubend[{name}]'")
            raise MissingPackageError(line.format(name=name, package=package), key="train.track")


class TrackedRun:
    """Sends a training to a tracker, in a thread; a context manager that ends the tracker's run.

    Args:
        kind: the tracker; None: nothing is sent.
        run: the run folder; `tracker.json` in it says how the tracker's run is continued.
        name: of the run, for people.
        settings: dotted key -> value.
        reporter: reports that the tracker failed, once.
    """

    def __init__(
        self, kind: TrackerName | None, run: RunFolder, name: str, settings: Mapping[str, str], reporter: Reporter
    ) -> None:
        self._kind, self._run, self._name, self._settings = kind, run, name, settings
        self._reporter, self._failure, self._was_reported = reporter, "", False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._tracker: Tracker | None = None
        self._logged = 0  # epochs that the tracker has
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._put(self._close)
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(_CLOSING_S)
            if self._thread.is_alive():
                self._failure = self._failure or _("no answer in {seconds:g} s").format(seconds=_CLOSING_S)
        self._report_failure()

    def begin(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Start the tracker's run, or continue it; epochs that it does not have yet are sent."""
        if self._kind is None:
            return
        rows = [dict(row) for row in history]
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()
        self._put(lambda: self._open(rows))

    def log_epoch(self, row: Mapping[str, Any], timing: Mapping[str, float]) -> None:
        """Send an epoch: a row of metrics.jsonl, and of timing.jsonl."""
        row, speed = dict(row), {"images_per_s": timing["images_per_s"]}
        self._put(lambda: self._log(row, speed))
        self._report_failure()

    def finish(self, scores: Mapping[str, Any], epoch: int) -> None:
        """Send the scores, which are those of scores.json."""
        values = flatten_scores(scores)

        def log() -> None:
            assert self._tracker is not None
            self._tracker.log(epoch, values)
            self._finished = True

        self._put(log)

    def _put(self, job: Callable[[], None]) -> None:
        if self._thread is not None and not self._failure:
            self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._failure:
                continue
            try:
                job()
            except Exception as error:  # whatever a library raises
                lines = str(error).strip().splitlines()
                self._failure = lines[0] if lines else type(error).__name__

    def _report_failure(self) -> None:
        if self._failure and not self._was_reported:
            self._was_reported = True
            line = _("note: {tracker} failed and gets nothing more of this training: {reason}")
            self._reporter.report(line.format(tracker=self._kind, reason=self._failure))

    def _open(self, history: Sequence[Mapping[str, Any]]) -> None:
        assert self._kind is not None
        place: dict[str, str] = {}
        if self._run.tracker.exists():
            known = json.loads(read_text(self._run.tracker))
            if known["tracker"] == self._kind:
                place, self._logged = known["place"], min(int(known["epochs"]), len(history))
        check_tracker(self._kind)
        kinds: dict[TrackerName, type[_TensorBoard] | type[_MLflow] | type[_Trackio]]
        kinds = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "trackio": _Trackio}
        self._tracker = kinds[self._kind](self._run, self._name, self._settings, place, self._logged)
        self._remember()
        for row in history[self._logged :]:
            self._log(row, {})

    def _log(self, row: Mapping[str, Any], speed: Values) -> None:
        assert self._tracker is not None
        self._tracker.log(int(row["epoch"]), {**flatten_epoch(row), **speed})
        self._logged = int(row["epoch"])
        self._remember()

    def _remember(self) -> None:
        assert self._tracker is not None
        about = {"tracker": self._kind, "place": self._tracker.place, "epochs": self._logged}
        write_json(self._run.tracker, about)

    def _close(self) -> None:
        if self._tracker is not None:
            self._tracker.close(finished=self._finished)


def track_run(plan: Plan, run: RunFolder, reporter: Reporter) -> TrackedRun:
    """The run of the experiment tracker that the plan names, if any; it starts with the training."""
    path = run.path.resolve()
    name = path.name if plan.data.held_out is None else f"{path.parent.name}-{path.name}"
    settings = {key: str(value) for key, value in flatten(plan.model_dump(mode="json"))}
    return TrackedRun(plan.train.track, run, name, settings, reporter)


def flatten_epoch(row: Mapping[str, Any]) -> dict[str, float]:
    """Name -> value of a row of metrics.jsonl, such as `val_dice/cell`; what is None is left out."""
    names = {"train_loss": "train_loss", "val_loss": "val_loss", "lr": "learning_rate"}
    values = {name: row.get(key) for key, name in names.items()}
    values |= {f"val_dice/{name}": value for name, value in (row.get("val_dice") or {}).items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def flatten_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """Name -> value of scores.json, such as `test_dice/cell`: the per-image means at native size."""
    native, boundary, part = scores["native"], scores["boundary"], scores["part"]
    measures = {name: native[name] for name in ("dice", "iou", "precision", "recall")} | {"boundary_f1": boundary["f1"]}
    means = {
        f"{part}_{measure}/{key}": value
        for measure, summary in measures.items()
        for key, value in summary["per_image"].items()
    }
    means[f"{part}_pixel_accuracy"] = native["pixel_accuracy"]
    return {name: float(value) for name, value in means.items() if value is not None and math.isfinite(value)}


class _TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(
        self, run: RunFolder, name: str, settings: Mapping[str, str], place: Mapping[str, str], epochs: int
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.place: dict[str, str] = {}
        # what was logged after the saved state is dropped, since it is logged again
        self._writer: Any = SummaryWriter(str(run.path / "tensorboard"), purge_step=epochs + 1 if epochs else None)
        if not epochs:
            table = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{table}", 0)

    def log(self, epoch: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class _MLflow:
    """A run of MLflow at its tracking URI (MLFLOW_TRACKING_URI, else mlflow.db in the working folder)."""

    def __init__(
        self, run: RunFolder, name: str, settings: Mapping[str, str], place: Mapping[str, str], epochs: int
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # what is tracked is for the user alone
        import mlflow
        from mlflow.entities import Metric, Param

        uri = mlflow.get_tracking_uri()
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            uri = place.get("uri", uri)
        self._metric = Metric
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if "id" in place:
            self._id = place["id"]
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(self._find_experiment(), run_name=name).info.run_id
            items = [Param(key, value[:_PARAMETER_LENGTH]) for key, value in settings.items()]
            for start in range(0, len(items), _PARAMETERS):
                self._client.log_batch(self._id, params=items[start : start + _PARAMETERS])
        # the address of a server may contain a password, so it stays in the environment
        self.place = {"id": self._id} | ({"uri": uri} if uri.startswith(("sqlite:", "file:")) else {})

    def _find_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self._client.create_experiment(name))

    def log(self, epoch: int, values: Values) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [self._metric(_NO_METRIC.sub("_", name), value, now_ms, epoch) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._id, metrics=metrics[start : start + 1000])

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class _Trackio:
    """A run of the project `ubend` in trackio's folder (TRACKIO_DIR), on this computer by default."""

    def __init__(
        self, run: RunFolder, name: str, settings: Mapping[str, str], place: Mapping[str, str], epochs: int
    ) -> None:
        import trackio

        # runs are continued by name, so it must be unique
        self.place = {"name": place.get("name", f"{name}-{secrets.token_hex(3)}")}
        resume = "allow" if "name" in place else "never"
        self._run: Any = trackio.init(
            project=PROJECT, name=self.place["name"], resume=resume, config=dict(settings), embed=False
        )

    def log(self, epoch: int, values: Values) -> None:
        self._run.log(dict(values), step=epoch)

    def close(self, *, finished: bool) -> None:
        self._run.finish()
