"""Prediction of images on a Ray cluster: Ray Data passes paths to processes on its nodes, which write the files.

The command that the user starts (the driver) does everything else as on one machine: it inspects all images, holds the
lock of the output folder, keeps its record and writes the summary files. No pixels pass through it.
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ubend.core.errors import (
    MissingPackageError,
    ModelFileError,
    OutputError,
    Problem,
    SettingError,
    UbendError,
    reason,
)
from ubend.core.i18n import _, current_language, ngettext, now
from ubend.inference.mask_predictor import MaskPredictor, load_mask_predictor
from ubend.io.scans import is_scan
from ubend.portable.describe import describe_masks
from ubend.portable.file_jobs import FileJob
from ubend.portable.mask_job import MaskImageJob, run_mask_jobs
from ubend.portable.mask_predictor import PredictionOptions
from ubend.portable.probabilities import ProbKind
from ubend.portable.reporter import Reporter
from ubend.tasks.cluster_worker import Attempts, ImageWorker, WorkerTask
from ubend.tasks.expand import expand_input, is_video, read_file_list
from ubend.tasks.predict import predict_paths
from ubend.tasks.url_storage import UrlInputs, as_path, expand_url, is_url, storage_for

_NONE = PredictionOptions()
_AUTO = "auto"
_CONNECT_S = 10
_CHUNKS_PER_PROCESS = 4  # at least, so that no process waits long for the last one
_CHUNK_IMAGES = (32, 128)  # at most, passed to a process together (CPU, GPU): the batches of `Predictor`
_FATAL = {error.__name__: error for error in (SettingError, MissingPackageError, OutputError, ModelFileError)}


def choose_task(cluster: str | None, gpu_share: float | None) -> Callable[..., list[Path]]:
    """`predict_paths`, or `predict_on_cluster` with these arguments.

    Raises:
        SettingError: `gpu_share` without a cluster, or not above 0 and at most 1.
    """
    if gpu_share is not None and cluster is None:
        raise SettingError(_("--gpu-share applies with --cluster; leave it out"), key="--gpu-share")
    if gpu_share is not None and not 0 < gpu_share <= 1:
        line = _("--gpu-share {value}: give a part of a GPU, above 0 and at most 1, such as 0.5")
        raise SettingError(line.format(value=gpu_share), key="--gpu-share")
    if cluster is None:
        return predict_paths
    return partial(predict_on_cluster, cluster=(cluster, gpu_share or 1.0))


def predict_on_cluster(
    model: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    cluster: tuple[str, float],
    device: str | None = None,
    window: str | None = None,
    options: PredictionOptions = _NONE,
    prob: ProbKind | None = None,
    resume: bool = False,
    reporter: Reporter,
) -> list[Path]:
    """Predict masks of images on a cluster; for the other arguments, result and errors see `predict_paths`.

    Args:
        cluster: address and part of a GPU, see `Cluster`.
        device: of the cluster's processes.
    Raises:
        SettingError: there is no such cluster, or `paths` name a video or a scan.
    """
    out = as_path(out)
    images = [expanded for path in paths for expanded in _expand(as_path(path), reporter)]
    if window is not None or any(is_scan(path) or is_video(path) for path in images):
        line = _("--cluster applies to images, not to videos and scans; predict these separately")
        raise SettingError(line, key="--cluster")
    loading = model, device, options
    with Cluster(*cluster) as connection:
        masks = load_mask_predictor(model, "cpu", options)  # its facts only; devices are those of the nodes
        job = ClusterImageJob(masks, images, out, prob=prob, resume=resume, cluster=connection, loading=loading)
        return run_mask_jobs([job], out, window=None, prob=prob, reporter=reporter)


def _expand(path: Path, reporter: Reporter) -> list[Path]:
    """The images that a path or URL stands for."""
    if not is_url(path):
        return expand_input(path, reporter)
    inputs = UrlInputs()
    if path.suffix.lower() == ".csv":
        return read_file_list(path, inputs.read_object)
    return expand_url(path, inputs)


class Cluster:
    """A connection to a Ray cluster, opened by `connect`; as a context manager it is closed at the end.

    Args:
        address: of the cluster; `auto`: the one that runs on this machine, or else one that is started here and ends
            with the command.
        gpu_share: part of a GPU that each process takes.
    Raises:
        MissingPackageError: the extra `cluster` is not installed.
    """

    def __init__(self, address: str, gpu_share: float = 1.0) -> None:
        self._address, self._gpu_share, self._connected = address, gpu_share, False
        _set_environment()
        try:
            import ray.data
        except ImportError as error:
            line = _("--cluster needs {package}; install it with: pip install 'ubend[cluster]'")
            raise MissingPackageError(line.format(package=error.name or "ray"), key="ray") from error
        self._ray = ray

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connected:
            self._ray.shutdown()

    def connect(self) -> str:
        """Connect, unless it is done; returns a sentence about the cluster.

        Raises:
            SettingError: there is no such cluster, or it refuses the connection.
        """
        if not self._ray.is_initialized():
            try:
                self._start()
            except Exception as error:  # of many kinds
                line = _("--cluster {address}: no connection ({reason}); start Ray there, or see docs/cluster.md")
                raise SettingError(
                    line.format(address=self._address, reason=" ".join(reason(error).split())[:200]), key="--cluster"
                ) from error
            self._connected = True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised, too
        self._ray.data.DataContext.get_current().enable_progress_bars = False
        nodes, cpus, gpus = sum(node["Alive"] for node in self._ray.nodes()), self._count("CPU"), self._count("GPU")
        line = ngettext(
            "cluster: {count} node, {cpus} CPUs, {gpus} GPUs", "cluster: {count} nodes, {cpus} CPUs, {gpus} GPUs", nodes
        )
        return line.format(count=nodes, cpus=cpus, gpus=gpus)

    def _start(self) -> None:
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._address != _AUTO:
            host, _colon, port = self._address.rpartition(":")
            if port.isdecimal() and "/" not in host:  # Ray itself tries for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
            self._ray.init(self._address, **quiet)
            return
        try:
            self._ray.init(_AUTO, **quiet)
        except ConnectionError:  # none runs here
            self._ray.init("local", include_dashboard=False, **quiet)

    def _count(self, resource: str) -> int:
        return int(self._ray.cluster_resources().get(resource, 0))

    def map_images(self, images: Sequence[tuple[int, Path]], task: WorkerTask) -> Iterator[dict[str, Any]]:
        """Predict images; yields a row for each in order of completion, see `ImageWorker`.

        Args:
            images: index and path of each.
        Raises:
            SettingError: the cluster fails.
        """
        import pyarrow
        from ray.data import ActorPoolStrategy
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = self._ray
        gpus = self._count("GPU") if task.device is None or task.device.startswith("cuda") else 0
        processes, needs = share_processors(gpus, self._count("CPU"), self._gpu_share)
        count = min(-(-len(images) // (_CHUNKS_PER_PROCESS * processes)), _CHUNK_IMAGES[gpus > 0])
        indices, paths = [index for index, _path in images], [json.dumps(str(path)) for _index, path in images]
        tables = [
            pyarrow.table({"index": indices[start : start + count], "path": paths[start : start + count]})
            for start in range(0, len(images), count)
        ]
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
        rows = ray.data.from_arrow(tables).map_batches(
            ImageWorker,
            batch_size=count if gpus else None,  # a table at a time; with GPUs Ray Data wants its size
            batch_format="numpy",
            compute=ActorPoolStrategy(min_size=1, initial_size=min(processes, len(tables))),
            fn_constructor_args=(task, attempts.options(scheduling_strategy=here).remote()),
            **needs,
        )
        try:
            for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
                yield from map(json.loads, batch["row"])
        except ray.exceptions.RayError as error:
            line = _("--cluster {address}: Ray failed ({reason}); what is done is kept, continue with --resume")
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            raise SettingError(line.format(address=self._address, reason=why), key="--cluster") from error


def _set_environment() -> None:
    """Set what Ray reads from the environment when it is imported, unless the user has."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ code, on standard error
    if os.path.exists(os.path.expanduser("~/.ray/auth_token")):  # `ray start --head` asks for it then
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def share_processors(gpus: int, cpus: int, gpu_share: float) -> tuple[int, dict[str, float]]:
    """How many processes these processors are enough for, and what each one takes, in Ray's words.

    Args:
        gpu_share: part of a GPU for each process; no process has parts of two GPUs.
    """
    if not gpus:
        return max(1, cpus), {"num_cpus": 1, "num_gpus": 0}
    return gpus * int(1 / gpu_share + 1e-6), {"num_cpus": 0, "num_gpus": gpu_share}


class ClusterImageJob(MaskImageJob):
    """Predicts masks of images on a cluster; the files are those of `MaskImageJob`.

    Args:
        cluster: connected when it is known that there are images to predict.
        loading: model, device and options for the processes, see `load_mask_predictor`; `predictor` is of the driver
            alone.
    """

    def __init__(
        self,
        predictor: MaskPredictor,
        paths: Sequence[Path | str],
        out: Path,
        *,
        prob: ProbKind | None,
        resume: bool,
        cluster: Cluster,
        loading: tuple[Path | str, str | None, PredictionOptions],
    ) -> None:
        super().__init__(predictor, paths, out, prob=prob, resume=resume)
        self.paths = [*map(as_path, self.paths)]
        self.storage = storage_for(self.paths, out)
        self._cluster = cluster
        model, device, options = loading
        models = describe_masks(predictor)["models"]
        self._task = WorkerTask(model, device, options, out, prob, models, os.getcwd(), current_language())

    def notes(self) -> list[str]:
        """As of `MaskImageJob`; the cluster is connected here, before anything is written."""
        return [*super().notes(), *([self._cluster.connect()] if self.todo else [])]

    def is_done(self, index: int) -> bool:
        """As of `MaskImageJob`; masks and images in object storage are not read for it."""
        if is_url(self.out) or is_url(self.paths[index]):
            return FileJob.is_done(self, index)
        return super().is_done(index)

    def make(self, reporter: Reporter) -> None:
        assert self.record is not None
        for index in self.todo:  # a process may write before the driver hears of it
            self.record.begin(self.files(index), {})
        self.storage.flush()
        existing = len(self.usable) - len(self.todo)
        reporter.begin(now(self.title), existing + len(self.todo), existing)
        missing = {*self.todo}
        if self.todo:
            rows = self._cluster.map_images([(index, self.paths[index]) for index in self.todo], self._task)
            for row in rows:
                self._take(row, reporter)
                missing.discard(row["index"])
                reporter.count(existing + len(self.todo) - len(missing))
        reporter.end()
        for index in missing:
            path, line = self.paths[index], _("{path}: the cluster gave no result; continue with --resume")
            self.failed[index] = [Problem(line.format(path=path), path, "--cluster")]
        self.storage.clear_leftovers(
            path for index in self.todo for path in self.files(index)
        )  # of processes that were ended
        self.extremes.tell(reporter)

    def _take(self, row: dict[str, Any], reporter: Reporter) -> None:
        """Enter an image's row into the record, the shares and the problems.

        Raises:
            UbendError: from a process, if it concerns all images.
        """
        assert self.record is not None
        if "fatal" in row:
            kind, message, place, key = row["fatal"]
            raise _FATAL.get(kind, UbendError)(message, path=place, key=key)
        index = row["index"]
        path, files = self.paths[index], self.files(index)
        for line in row.get("notes", ()):
            reporter.report(line)
        if row["problems"]:
            self.failed[index] = [Problem(text, where and Path(where), key) for text, where, key in row["problems"]]
        elif [*row["outputs"]] != [file.name for file in files]:
            line = _("{path}: changed while it was read; run the command again")
            self.failed[index] = [Problem(line.format(path=path), path)]
        else:
            self.record.add_entry(files[0].name, {**row["source"], "outputs": row["outputs"]})
            self._shares.add(path, np.array(row["pixels"], np.int64))
            if row["extremes"]:
                self.extremes.add(path, np.array(row["extremes"]))
