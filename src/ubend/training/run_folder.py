"""The files of a run folder."""

import contextlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ubend.core.errors import OutputError, reason
from ubend.core.files import MODEL_FILE, clear_leftovers, read_text, write_json, write_text
from ubend.core.i18n import _
from ubend.core.settings import dump_toml
from ubend.portable.lock import LOCK
from ubend.portable.printable import shell_word
from ubend.portable.version import __version__

if TYPE_CHECKING:
    from ubend.core.plan import Plan
    from ubend.dataset.dataset import Dataset

FORMAT = 2  # of run.json; increased when older runs cannot be resumed
INITIAL_MODEL = "begun_with"  # key in run.json: the model from which the training was initialised


class RunFolder:
    """The folder of one training.

    Attributes:
        settings: resolved settings; `--config` takes it back.
        facts: data folder, class table, versions, device, reasons of automatic choices.
        data: `name,image,mask,split,group,image_hash,mask_hash` of every pair.
        skipped: `name,problem` of the pairs skipped by `--skip-bad`; missing if there are none.
        findings: of the quick checks of the data, as `ubend doctor --json` writes them.
        metrics: one JSON line per epoch; nothing in it depends on the clock.
        timing: one JSON line per epoch: seconds, images per second.
        curves: losses and Dice of all epochs.
        model_path: the best weights and everything needed to use them.
        state_path: the training state for `--resume`.
        scores: of the test split.
        predictions: made by `ubend show`: test images, input | truth | prediction.
        worst: made by `ubend show --worst`: the same and the errors, the worst image first.
        report: a page for the browser.
        tracker: where the run of an experiment tracker is continued (`--track`).
        started: an empty file that exists until the first files are complete; marks files of a killed process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.toml"
        self.facts = path / "run.json"
        self.data = path / "data.csv"
        self.skipped = path / "skipped.csv"
        self.findings = path / "findings.json"
        self.metrics = path / "metrics.jsonl"
        self.timing = path / "timing.jsonl"
        self.curves = path / "curves.png"
        self.model_path = path / MODEL_FILE
        self.state_path = path / "resume.safetensors"
        self.scores = path / "scores.json"
        self.predictions = path / "predictions.png"
        self.worst = path / "worst.png"
        self.report = path / "report.html"
        self.tracker = path / "tracker.json"
        self.started = path / ".begun"

    def panel(self, epoch: int) -> Path:
        return self.path / "panels" / f"epoch_{epoch:04d}.png"

    def refuse_existing_results(self) -> None:
        """Fail early if the folder is not empty.

        Raises:
            OutputError: it exists and is not empty.
        """
        if not self.path.exists():
            return
        # run.json is the last file written at the start: a run killed before that contains nothing.
        early = (self.settings, self.data, self.skipped, self.findings, self.state_path)
        written = early if self.started.exists() else ()
        names = {path.name for path in written}
        if self.path.is_dir() and all(p.name in names or p.name[0] == "." for p in self.path.iterdir()):
            return
        line = _("{path} exists already and is not a run folder; choose another --out (nothing was written)")
        if self.facts.is_file():
            line = _("{path} exists already; choose another --out, or resume it with --resume {path}")
        if self.scores.is_file():
            line = _("{path} is a finished run; choose another --out")
        raise OutputError(line.format(path=shell_word(self.path)), path=self.path, key="--out")

    def read_facts(self) -> dict[str, Any]:
        """The content of run.json: device, threads, torch, processes, ...

        Raises:
            OutputError: the folder is not a run; its version is incompatible; or it has no state, although it had
                saved one or was initialised from a model.
        """
        try:
            facts: dict[str, Any] = json.loads(read_text(self.facts))
            current = facts.get("format") == FORMAT
            missing = [key for key in ("device", "threads", "torch", "processes") if current and key not in facts]
            if missing:
                raise ValueError(_("no {key}").format(key=missing[0]))
            self.data.stat()
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise OutputError(
                _(
                    "{path}: not a run that can be resumed ({name}: {reason}); start one with `ubend "
                    "fit FOLDER --out NEW`"
                ).format(path=self.path, name=self.facts.name, reason=reason(error)),
                path=self.path,
            ) from error
        if not current:
            raise OutputError(
                _(
                    "{path}: a run of another version of ubend ({version}), which cannot be resumed; initialise a new "
                    "training from its model: `ubend fit FOLDER --from {path}`"
                ).format(path=self.path, version=facts.get("ubend", "?")),
                path=self.path,
                key="format",
            )
        was_killed = (self.path / LOCK).exists()  # it may have been killed in its first save, between model and state
        if self.state_path.exists():
            return facts
        if facts.get(INITIAL_MODEL) or (self.model_path.exists() and not was_killed):
            line = _(
                "{path} is missing, so the training cannot be resumed; its model is still usable: initialise a new "
                "training from it with `ubend fit FOLDER --from {run}`"
            )
            if not self.model_path.exists():
                line = _("{path} is missing, so the training cannot be resumed; start a new one")
            raise OutputError(line.format(path=self.state_path, run=self.path), path=self.state_path)
        if not was_killed and self.metrics.exists() and read_text(self.metrics).strip():
            raise OutputError(
                _(
                    "{path}: {model} and {state} are missing, so the training cannot be resumed; restore them, or "
                    "start a new one: `ubend fit --config {settings} --out NEW`"
                ).format(
                    path=self.path, model=self.model_path.name, state=self.state_path.name, settings=self.settings
                ),
                path=self.state_path,
            )
        return facts

    def create(self) -> None:
        """Create the folder.

        Raises:
            OutputError: it exists and is not empty, or cannot be created.
        """
        self.refuse_existing_results()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OutputError(
                _("cannot write {path}: {reason}; choose another --out").format(path=self.path, reason=reason(error)),
                path=self.path,
                key="--out",
            ) from error

    def begin(self, plan: "Plan", data: "Dataset", facts: Mapping[str, Any]) -> None:
        """Write the initial files; `facts` go to run.json, with layout, classes, choices and versions."""
        write_text(self.settings, dump_toml(plan))
        write_text(self.data, data.table())
        if data.skipped or data.folder.skipped:
            write_text(self.skipped, data.skipped_table())
        import torch  # imported late: most users of run folders need no torch

        about = {
            "format": FORMAT,
            "layout": data.folder.layout,
            "classes": asdict(data.labels),
            "stated_split": any(pair.split for pair in data.folder.pairs),
            "remarks": data.remarks,
            "choices": [choice.line() for choice in plan.choices],
        }
        versions = {
            "threads": torch.get_num_threads(),
            "ubend": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        write_json(self.facts, {**about, **facts, **versions})  # last: it marks a complete run folder
        self.started.unlink(missing_ok=True)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl with all epochs so far."""
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in history))

    def append_timing(self, row: dict[str, Any]) -> None:
        """Append an epoch to timing.jsonl.

        Raises:
            OutputError: the disk is full, or the file cannot be written.
        """
        try:
            with self.timing.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                _("cannot write {path}: {reason}; free some space, then continue with --resume {run}").format(
                    path=self.timing, reason=reason(error), run=shell_word(self.path)
                ),
                path=self.timing,
            ) from error

    def trim_timing(self, epochs: int) -> None:
        """Keep the first `epochs` epochs; a killed run may have written later ones, or half a line."""
        if not self.timing.exists():
            return
        rows: dict[int, str] = {}
        for line in read_text(self.timing).splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                rows.setdefault(int(json.loads(line)["epoch"]), line)
        write_text(self.timing, "".join(f"{rows[epoch]}\n" for epoch in sorted(rows) if epoch <= epochs))

    def clear_leftovers(self) -> None:
        """Delete temporary files of a killed process."""
        clear_leftovers([self.settings, self.facts, self.data, self.findings, self.metrics, self.curves])
        clear_leftovers([self.model_path, self.state_path, self.scores, self.report, self.tracker])
        for path in [*self.path.glob(".tmp??????"), *self.panel(0).parent.glob(".epoch_*-????????.png")]:
            path.unlink(missing_ok=True)  # the first are safetensors' own


def free_run_name(data: Path, parent: Path = Path("runs")) -> Path:
    """`runs/NAME-1`, or the first free number."""
    stem = data.resolve().name.lower().replace(" ", "-") or "run"
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"
