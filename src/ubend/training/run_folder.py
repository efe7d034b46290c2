"""Every file name in a run folder, and what is in each."""

import contextlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ubend._version import __version__
from ubend.core.errors import OutputError, reason
from ubend.core.files import MODEL_FILE, clear_leftovers, read_text, write_json, write_text
from ubend.core.i18n import _
from ubend.core.lock import LOCK
from ubend.core.settings import dump_toml

if TYPE_CHECKING:
    from ubend.core.plan import Plan
    from ubend.dataset.dataset import Dataset

FORMAT = 2  # of run.json; grows when this version could not continue with an older run


class RunFolder:
    """One training, everything about it.

    Attributes:
        settings: resolved settings; `--config` takes it back.
        facts: data folder, class table, versions, device, the reasons of what was chosen.
        data: `name,image,mask,split,group,image_hash,mask_hash` of every pair.
        skipped: `name,problem` of the pairs that `--skip-bad` left out; not there when there are none.
        metrics: one JSON line per epoch; nothing in it depends on the clock.
        timing: one JSON line per epoch: seconds, images per second.
        curves: losses and Dice of all epochs.
        model_path: the best weights and everything needed to use them.
        state_path: what `--resume` continues from.
        scores: of the test split.
        predictions: made by `ubend show`: test images, input | truth | prediction.
        worst: made by `ubend show --worst`: the same and the errors, the worst image first.
        begun: empty; there until the first files are written, by which those of a killed process are known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.toml"
        self.facts = path / "run.json"
        self.data = path / "data.csv"
        self.skipped = path / "skipped.csv"
        self.metrics = path / "metrics.jsonl"
        self.timing = path / "timing.jsonl"
        self.curves = path / "curves.png"
        self.model_path = path / MODEL_FILE
        self.state_path = path / "resume.safetensors"
        self.scores = path / "scores.json"
        self.predictions = path / "predictions.png"
        self.worst = path / "worst.png"
        self.started = path / ".begun"

    def panel(self, epoch: int) -> Path:
        return self.path / "panels" / f"epoch_{epoch:04d}.png"

    def refuse_existing_results(self) -> None:
        """Before anything slow happens: fail when the folder holds something already.

        Raises:
            OutputError: it exists and is not empty.
        """
        if not self.path.exists():
            return
        # A run that was killed before run.json was written, the last file of its beginning, holds nothing.
        written = (self.settings, self.data, self.skipped, self.state_path) if self.started.exists() else ()
        names = {path.name for path in written}
        if self.path.is_dir() and all(p.name in names or p.name[0] == "." for p in self.path.iterdir()):
            return
        line = _("{path} exists already and is no run; choose another --out, nothing was written")
        if self.facts.is_file():
            line = _("{path} exists already; choose another --out, or resume it with --resume {path}")
        raise OutputError(line.format(path=self.path), path=self.path, key="--out")

    def read_facts(self) -> dict[str, Any]:
        """The content of run.json: device, threads, torch, processes, ...

        Raises:
            OutputError: there is no run to resume, or one of an older version, or its state is missing, unless it
                ended before the first one was saved.
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
                _("{path}: no run to resume ({name}: {reason}); begin one with `ubend fit FOLDER --out NEW`").format(
                    path=self.path, name=self.facts.name, reason=reason(error)
                ),
                path=self.path,
            ) from error
        if not current:
            raise OutputError(
                _(
                    "{path}: a run of another version of ubend ({version}), which this one cannot resume; use its "
                    "model, initialise from it: `ubend fit FOLDER --from {path}`"
                ).format(path=self.path, version=facts.get("ubend", "?")),
                path=self.path,
                key="format",
            )
        was_killed = (self.path / LOCK).exists()  # perhaps in its first save, when the model is there and no state yet
        if self.state_path.exists():
            return facts
        if facts.get("begun_with") or (self.model_path.exists() and not was_killed):
            line = _(
                "{path} is missing, so the training cannot continue; its model stays usable, and `ubend fit FOLDER "
                "--from {run}` begins another training with it"
            )
            if not self.model_path.exists():
                line = _("{path} is missing, so the training cannot continue; begin another one")
            raise OutputError(line.format(path=self.state_path, run=self.path), path=self.state_path)
        if not was_killed and self.metrics.exists() and read_text(self.metrics).strip():
            raise OutputError(
                _(
                    "{path}: {model} and {state} are missing, so the training cannot continue; put them back, or begin "
                    "another one: `ubend fit --config {settings} --out NEW`"
                ).format(
                    path=self.path, model=self.model_path.name, state=self.state_path.name, settings=self.settings
                ),
                path=self.state_path,
            )
        return facts

    def create(self) -> None:
        """Make the folder.

        Raises:
            OutputError: it exists and is not empty, or cannot be made.
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
        """Write what a run begins with; `facts` go to run.json, beside layout, classes, choices and versions."""
        write_text(self.settings, dump_toml(plan))
        write_text(self.data, data.table())
        if data.skipped or data.folder.skipped:
            write_text(self.skipped, data.skipped_table())
        import torch  # late: most that asks for a run's files needs no torch

        about = {
            "format": FORMAT,
            "layout": data.folder.layout,
            "classes": asdict(data.labels),
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
        write_json(self.facts, {**about, **facts, **versions})  # last: a run folder with it is whole
        self.started.unlink(missing_ok=True)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """All epochs so far, as the whole file."""
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in history))

    def append_timing(self, row: dict[str, Any]) -> None:
        """One more epoch.

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
                    path=self.timing, reason=reason(error), run=self.path
                ),
                path=self.timing,
            ) from error

    def trim_timing(self, epochs: int) -> None:
        """Keep the first `epochs` epochs; a killed run may have reported later ones, or half a line."""
        if not self.timing.exists():
            return
        rows: dict[int, str] = {}
        for line in read_text(self.timing).splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                rows.setdefault(int(json.loads(line)["epoch"]), line)
        write_text(self.timing, "".join(f"{rows[epoch]}\n" for epoch in sorted(rows) if epoch <= epochs))

    def clear_leftovers(self) -> None:
        """Delete what a killed process was writing: the hidden files that `write_file` makes beside its targets."""
        clear_leftovers([self.settings, self.facts, self.data, self.metrics, self.curves])
        clear_leftovers([self.model_path, self.state_path, self.scores])
        for path in [*self.path.glob(".tmp??????"), *self.panel(0).parent.glob(".epoch_*-????????.png")]:
            path.unlink(missing_ok=True)  # the first are safetensors' own


def free_run_name(data: Path, parent: Path = Path("runs")) -> Path:
    """`runs/NAME-1`, or the first number that is not taken."""
    stem = data.resolve().name.lower().replace(" ", "-") or "run"
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"
