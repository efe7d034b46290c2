"""What a process on a cluster does: it predicts images and writes their files, and answers with a row for each.

Nothing here imports Ray: `cluster.py` passes the class to it. A row is a JSON object, see `ImageWorker`.
"""

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import OutputError, Problem, SettingError, UbendError
from ubend.core.i18n import _, choose_language
from ubend.inference.mask_predictor import MaskPredictor, load_mask_predictor
from ubend.portable.describe import describe_masks
from ubend.portable.mask_job import MaskImageJob
from ubend.portable.mask_predictor import PredictionOptions
from ubend.portable.probabilities import ProbKind
from ubend.portable.raster import Header
from ubend.portable.reporter import LineReporter
from ubend.portable.storage import LOCAL, Staged, Storage, describe_source
from ubend.portable.version import __version__
from ubend.tasks.url_storage import as_path, is_shared, is_url, storage_for

_MAX_STARTS = 2  # of an image alone, in processes that died; a third one is not tried


@dataclass(frozen=True)
class WorkerTask:
    """What the processes on all nodes do alike.

    Attributes:
        model, device, options: see `load_mask_predictor`.
        out, prob: see `MaskImageJob`.
        models: the description of the models, see `describe_masks`; other models on a node are refused.
        folder: the folder that relative paths start from.
        language: of messages.
        version: of ubend.
    """

    model: Path | str
    device: str | None
    options: PredictionOptions
    out: Path
    prob: ProbKind | None
    models: Sequence[dict[str, Any]]
    folder: str
    language: str
    version: str = __version__


class Attempts:
    """Which images were started by which process, so that one that ends its process is found; an actor of its own."""

    def __init__(self) -> None:
        self._starts = Counter[tuple[int, ...]]()
        self._rows: dict[int, str] = {}

    def start(self, indices: tuple[int, ...]) -> int:
        """Note that these images are started together; returns how often they were before."""
        self._starts[indices] += 1
        return self._starts[indices] - 1

    def finish(self, index: int, row: str) -> None:
        """Keep the row of an image that was started alone."""
        self._rows[index] = row

    def row(self, index: int) -> str | None:
        """The row of an image, if it is finished."""
        return self._rows.get(index)

    def forget(self, indices: tuple[int, ...]) -> None:
        """These images are done."""
        self._starts.pop(indices, None)


class ImageWorker:
    """Predicts images, some at a time, with the models loaded once; an actor of Ray Data.

    A row has `index`, `seconds` (its share of the time of all images of the call), `problems` ([text, path, key]; empty
    if its files are written), and unless it has problems `source` and `outputs` (see `Record`), `pixels` (of each
    class) and `extremes` (see `ExtremeValues`); `notes` are lines for the user. A row with `fatal` ends the command.

    Args:
        task: what to do.
        attempts: handle of an actor of `Attempts`.
    """

    def __init__(self, task: WorkerTask, attempts: Any) -> None:
        self._task, self._attempts = task, attempts
        self._predictor: MaskPredictor | None = None

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Predict the images of a batch: `index`, and `path` as JSON string; returns the column `row`."""
        given = {
            int(index): as_path(json.loads(path)) for index, path in zip(batch["index"], batch["path"], strict=True)
        }
        try:
            rows = self._predict(given)
        except UbendError as error:
            facts = [type(error).__name__, str(error), error.path and str(error.path), error.key]
            rows = [json.dumps({"index": min(given), "fatal": facts})]
        return {"row": np.array(rows, dtype=object)}

    def _predict(self, given: dict[int, Path]) -> list[str]:
        """The rows of images; one by one, if a process that had them died."""
        if self._predictor is None:
            self._predictor = load_checked(self._task)
        together = (-1, *given)
        if self._ask("start", together) == 0:
            rows = predict_images(self._task, self._predictor, given)
        else:
            rows = [self._predict_alone(index, path, self._predictor) for index, path in given.items()]
        self._ask("forget", together)
        return rows

    def _predict_alone(self, index: int, path: Path, predictor: MaskPredictor) -> str:
        row: str | None = self._ask("row", index)
        if row is None:
            if self._ask("start", (index,)) >= _MAX_STARTS:
                line = _("{path}: the process that predicts it was ended several times, by lack of memory or a crash")
                row = _row(index, 0.0, [Problem(line.format(path=path), path, "memory")])
            else:
                (row,) = predict_images(self._task, predictor, {index: path})
            self._ask("finish", index, row)
        return row

    def _ask(self, method: str, *values: Any) -> Any:
        import ray

        return ray.get(getattr(self._attempts, method).remote(*values))


def load_checked(task: WorkerTask) -> MaskPredictor:
    """Load the models on this node, and check that it has the command's version, models and folders.

    Raises:
        SettingError: another version or model, or a folder is missing.
        OutputError: the output folder is not that of the command.
        ModelFileError: the model cannot be read.
    """
    choose_language(task.language)
    node = platform.node()
    if task.version != __version__:
        line = _("node {node} has ubend {there}, this command is of {here}; install the same version on all nodes")
        raise SettingError(line.format(node=node, there=__version__, here=task.version), key="--cluster")
    try:
        os.chdir(task.folder)
    except OSError as error:
        line = _("node {node} cannot read {folder}, which relative paths start from; give absolute paths")
        if not all(is_url(path) or os.path.isabs(path) for path in (task.model, task.out)):
            raise SettingError(line.format(node=node, folder=task.folder), key="--cluster") from error
    if not is_shared(task.out):
        line = _("{path} is not the same folder on node {node}; give a folder that all nodes share")
        raise OutputError(line.format(path=task.out, node=node), path=task.out, key="--out")
    predictor = load_mask_predictor(task.model, task.device, task.options)
    if describe_masks(predictor)["models"] != list(task.models):
        line = _("{path} is another model on node {node}; give a path that is the same file on all nodes")
        raise SettingError(line.format(path=task.model, node=node), path=Path(task.model), key="--cluster")
    return predictor


def predict_images(task: WorkerTask, predictor: MaskPredictor, given: dict[int, Path]) -> list[str]:
    """Predict images and write their files; returns the rows.

    Args:
        given: index in the command -> path.
    Raises:
        OutputError: the disk is full, or cannot be written.
        MissingPackageError: a package is missing.
    """
    began, paths, reporter = time.monotonic(), [*given.values()], _Lines()
    storage = storage_for(paths, task.out)
    with storage.staged(paths, task.out) as staged:
        job = _WorkerJob(predictor, staged, task, storage)
        job.inspect_here()
        job.make(reporter)
        notes = [staged.restore(line) for line in reporter.take(job.extremes.describe())]
    seconds, rows = (time.monotonic() - began) / len(given), []
    for position, index in enumerate(given):
        problems = [_restore(staged, line) for line in job.failed.get(position, [])]
        rows.append(_row(index, seconds, problems, notes=notes, **job.describe(position)))
        notes = []
    return rows


def _restore(staged: Staged, line: str) -> Problem:
    path, key = (line.path, line.key) if isinstance(line, Problem) else (None, None)
    return Problem(staged.restore(line), path and as_path(staged.restore(str(path))), key)


def _row(index: int, seconds: float, problems: Sequence[str], **facts: Any) -> str:
    lines = []
    for line in problems:
        path, key = (line.path, line.key) if isinstance(line, Problem) else (None, None)
        lines.append([str(line), path and str(path), key])
    return json.dumps({"index": index, "seconds": seconds, "problems": lines, **facts})


class _WorkerJob(MaskImageJob):
    """The images of one call; what the record of the folder needs is kept for the rows."""

    def __init__(self, predictor: MaskPredictor, staged: Staged, task: WorkerTask, storage: Storage) -> None:
        super().__init__(predictor, [os.devnull], staged.out, prob=task.prob, resume=False)
        self.paths = staged.paths  # listed already: the name of a file that has vanished is no pattern
        self._unfetched, self._out, self._publish = staged.wrong, task.out, storage.publish
        self._written: dict[int, dict[str, Any]] = {}

    def inspect_here(self) -> None:
        """Inspect the images."""
        self.usable = dict(self.map_inputs(self.inspect, range(len(self.paths))))
        self.todo = [*self.usable]

    def inspect(self, index: int) -> Header:
        if index in self._unfetched:
            raise self._unfetched[index]
        return super().inspect(index)

    def note_source(self, index: int) -> None:
        self._sources[index] = describe_source(self.paths[index])

    def note_done(self, index: int) -> None:
        facts = {"source": self._sources.pop(index), "outputs": LOCAL.describe_outputs(self.files(index))}
        self._publish(self.files(index), self._out)
        self._written[index] = facts

    def describe(self, index: int) -> dict[str, Any]:
        """What a row says of an image whose files are written; nothing of others."""
        if index not in self._written or index in self.failed:
            return {}
        path = self.paths[index]
        return {**self._written[index], "pixels": self._shares.pixels(path), "extremes": self.extremes.commonest(path)}


class _Lines(LineReporter):
    """Keeps the lines for the command's own reporter."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def report(self, sentence: str) -> None:
        self._lines.append(sentence)

    def take(self, without: Sequence[str]) -> list[str]:
        """The lines, except some."""
        return [line for line in self._lines if line not in without]
