"""Several trainings in one run: each is a normal run in a folder of its own within the run folder.

They are trained one after another, or at once on several GPUs. A training that has scores is finished; resuming trains
the others.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ubend.core.errors import SettingError, TrainingError
from ubend.core.i18n import _
from ubend.core.plan import Plan
from ubend.core.progress import Reporter
from ubend.dataset.dataset import Dataset
from ubend.portable.printable import shell_word
from ubend.tasks import fit as one
from ubend.tasks.fit_result import FitResult
from ubend.training.launcher import process_rank, run_processes, share_of_cores
from ubend.training.run_folder import RunFolder

_INTERRUPTED = (130, 143)  # exit codes


@dataclass(frozen=True)
class SubRun:
    """One of several trainings.

    Attributes:
        run: its run folder, within that of all trainings.
        title: what distinguishes it from the others.
        changes: dotted key -> value of its settings that differ from those of the whole run.
    """

    run: RunFolder
    title: str
    changes: Mapping[str, int]


class Several(Protocol):
    """A run of several trainings.

    Attributes:
        run: the run folder of all trainings.
        plan: of all trainings; `SubRun.changes` differ.
    """

    @property
    def run(self) -> RunFolder: ...

    @property
    def plan(self) -> Plan: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def whole(self) -> Dataset:
        """The data set as it is for all trainings together."""

    def sub_runs(self) -> list[SubRun]:
        """The trainings, in their order."""

    def describe(self) -> str:
        """A line on what is trained."""

    def finish(self, reporter: Reporter) -> FitResult:
        """Write the model and the scores, when all trainings are finished."""


def refuse_ranks(key: str) -> None:
    """Raise SettingError under torchrun."""
    if process_rank().count > 1:
        line = _(
            "--folds, --leave-out, --seeds and --effort best do not work under torchrun; use --gpus N, which trains "
            "N models at once"
        )
        raise SettingError(line, key=key)


def refuse_gpus(gpus: int | None, device: str | None) -> None:
    """Raise SettingError if the models cannot be trained on this number of GPUs."""
    if gpus in (None, 1) or device == "cpu":
        return
    if device not in (None, "cuda"):
        line = _(
            "device {name} is a single device, but there are {count} processes; give --device "
            "cuda or cpu, or leave it out"
        )
        raise SettingError(line.format(name=device, count=gpus), key="device")
    if torch.cuda.device_count() < gpus:
        line = _(
            "this computer has {there} GPUs, too few for {count} processes; give a smaller --gpus, or --device "
            "cpu for processes on the CPU"
        )
        raise SettingError(line.format(there=torch.cuda.device_count(), count=gpus), key="--gpus")


def train_sub_runs(several: Several, gpus: int, show: bool, reporter: Reporter) -> bool:
    """Train the unfinished ones; returns False if interrupted.

    Args:
        gpus: the number of models to train at once, each in a process of its own; 1: in this process.
    Raises:
        TrainingError: one of several processes failed; its error is already printed.
    """
    waiting = [sub for sub in several.sub_runs() if not sub.run.scores.exists()]
    if gpus > 1:
        return _train_at_once(several.run, waiting, gpus, show, reporter)
    for sub in waiting:
        path = sub.run.path
        reporter.report(_("{training}: {run}").format(training=sub.title, run=path))
        if sub.run.facts.is_file():
            result = one.resume(path, show=show, reporter=reporter)
        else:
            config = several.run.settings
            result = one.fit(None, path, config=config, settings=sub.changes, show=show, reporter=reporter)
        if result.scores is None:
            return False
    return True


def _train_at_once(run: RunFolder, waiting: Sequence[SubRun], gpus: int, show: bool, reporter: Reporter) -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    for batch in (waiting[start : start + gpus] for start in range(0, len(waiting), gpus)):
        commands, environments = [], []
        for sub, gpu in zip(batch, [*visible.split(","), *map(str, range(gpus))], strict=False):
            commands.append([*_command(run.settings, sub), *(["--show"] if show else [])])
            environments.append({"OMP_NUM_THREADS": share_of_cores(gpus), **os.environ, "CUDA_VISIBLE_DEVICES": gpu})
        line = _("training at once: {trainings}; the following lines are from the first of them")
        reporter.report(line.format(trainings="; ".join(sub.title for sub in batch)))
        code = run_processes(commands, environments, together=False)
        if code in _INTERRUPTED:
            return False
        failed = [sub for sub in batch if not sub.run.scores.exists()]
        if code or failed:
            line = _("the training of {name} failed; `ubend fit --resume {run} --gpus {count}` trains the rest")
            name = (failed or batch)[0].run.path.name
            raise TrainingError(line.format(name=name, run=shell_word(run.path), count=gpus), path=run.path, key=name)
    return True


def _command(settings: Path, sub: SubRun) -> list[str]:
    """The command line of one training."""
    start = [sys.executable, "-m", "ubend", "fit"]
    if sub.run.facts.is_file():
        return [*start, "--resume", str(sub.run.path)]
    changes = [word for key, value in sub.changes.items() for word in ("--set", f"{key}={value}")]
    return [*start, "--config", str(settings), *changes, "--out", str(sub.run.path)]
