"""Kills trainings at random moments and checks that the resumed ones end the same to the bit.

    python benchmarks/kill_and_resume.py --kills 20 --recipe both [--data FOLDER] [--device cpu|cuda]

For each recipe one `ubend fit` runs undisturbed. Then the same training is started again, killed with
SIGKILL, resumed by `ubend fit --resume`, killed again, ..., and at last left to finish; when it has
finished and kills are left, another one is begun. Compared with the undisturbed run: every tensor and the
header of model.safetensors and resume.safetensors, metrics.jsonl, scores.json, every panel, and the names
of all files. Prints a table; the exit code is 1 when anything differs.

The killed trainings save their state every 0.2 s, also inside an epoch, where an undisturbed one waits for
minutes: when a state is saved must not matter, and the test is harder so.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import safe_open

Recipe = Literal["modern", "tutorial"]
Aim = Literal["at once", "any time", "saving", "drawing", "scoring"]

# `ubend fit`, saving its state more often.
_EAGER_FIT = (
    "import ubend.core.device; ubend.core.device.prepare_process(True); "
    "import ubend.training.recorder as recorder; recorder._SAVE_AFTER_S = 0.2; "
    "from ubend.cli.app import main; main(prog_name='ubend')"
)
# Where a process writes when it is inside a save or a drawing: temporary files begin so.
_WRITING: dict[Aim, tuple[str, ...]] = {
    "saving": (".resume-", ".model-", ".metrics-", ".tmp"),
    "drawing": (".epoch_", ".curves-"),
}
_AIMS: tuple[Aim, ...] = ("at once", "any time", "saving", "any time", "drawing", "scoring")  # of one training
_PATIENCE_S = 600.0  # for any one process


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        recipe: of ubend.
        data: folder of images and masks.
        work: where runs and the cache go.
        device: "cpu" or "cuda".
        flags: further words of `ubend fit`.
    """

    recipe: Recipe
    data: Path
    work: Path
    device: str = "cpu"
    flags: tuple[str, ...] = ("--size", "96", "--width", "8", "--batch", "8", "--epochs", "12")

    def arguments(self, run: Path) -> list[str]:
        """The words after `ubend fit` for a new run."""
        words = [str(self.data), "--out", str(run), "--recipe", self.recipe, "--device", self.device, *self.flags]
        if self.recipe == "tutorial":
            words += ["--set", "augment.kind=frozen"]  # else nothing is drawn when there are not two classes
        if self.device != "cpu":
            words.append("--deterministic")
        return words


@dataclass
class Outcome:
    """What happened to one recipe.

    Attributes:
        recipe: of ubend.
        whole_s: seconds of the undisturbed run, from its first output on.
        trainings: killed and resumed ones.
        moments: what the processes were doing when they were killed -> how often.
        differences: between a resumed run and the undisturbed one, one line each.
    """

    recipe: Recipe
    whole_s: float = 0.0
    trainings: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


class Training:
    """A process of `ubend fit`; `began` is when its training began, that is after it named its device."""

    def __init__(self, plan: Plan, run: Path, *, resumed: bool = False, eager: bool = True) -> None:
        words = ["--resume", str(run)] if resumed else plan.arguments(run)
        start = ["-c", _EAGER_FIT] if eager else ["-m", "ubend"]
        self.run, self.lines, self.started = run, list[str](), threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, *start, "fit", *words],
            env=os.environ
            | {"PYTHONUNBUFFERED": "1", "UBEND_LANG": "en", "UBEND_CACHE": str(plan.work / "cache"), "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("device: "):
                self.started.set()
        self.started.set()  # nothing more will come

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Look without a pause, so that a moment of milliseconds is met; False when the process ended first."""
        end = time.monotonic() + _PATIENCE_S
        while self.process.poll() is None:
            if reached():
                return True
            if time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"{self.run}: no progress for {_PATIENCE_S:.0f} s\n" + "\n".join(self.lines[-20:]))
        return False

    def kill(self) -> bool:
        """SIGKILL; whether that is what ended it."""
        self.process.kill()
        return self.end() < 0 if os.name == "posix" else self.end() != 0

    def end(self) -> int:
        """Wait for the end; the exit status."""
        status = self.process.wait(_PATIENCE_S)
        self._reader.join(_PATIENCE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status


def run_whole(plan: Plan, run: Path) -> float:
    """The undisturbed training; returns the seconds from its beginning to its end."""
    training = Training(plan, run, eager=False)
    training.started.wait(_PATIENCE_S)
    began = time.monotonic()
    if training.end() != 0:
        raise RuntimeError("ubend fit failed:\n" + "\n".join(training.lines[-20:]))
    return time.monotonic() - began


def run_killed(plan: Plan, run: Path, kills: int, whole_s: float, draws: random.Random) -> Counter[str]:
    """Start, kill, resume, kill, ..., resume and finish; returns what was going on at each kill.

    Fewer than `kills` are returned when the training was done before.
    """
    moments: Counter[str] = Counter()
    for index in range(kills):
        there = _temporaries(run)
        training = Training(plan, run, resumed=index > 0)
        aim = _AIMS[index % len(_AIMS)]
        killed = _await_moment(training, aim, whole_s / 3, there, draws) and training.kill()
        if not killed:
            _refuse_failure(training)
            return moments
        moments[_name_moment(run, _temporaries(run) - there)] += 1
    training = Training(plan, run, resumed=kills > 0)
    _refuse_failure(training)
    return moments


def _await_moment(training: Training, aim: Aim, spread_s: float, there: set[str], draws: random.Random) -> bool:
    """Wait for the moment to kill; False when the training has ended before it."""
    training.started.wait(_PATIENCE_S)
    if not training.wait_until((training.run / "run.json").exists):
        return False
    until = time.monotonic() + draws.uniform(0, 0.1 if aim == "at once" else spread_s)
    if not training.wait_until(lambda: time.monotonic() > until):
        return False
    if aim in _WRITING:
        begins = draws.choice(_WRITING[aim])
        return training.wait_until(lambda: any(name.startswith(begins) for name in _temporaries(training.run) - there))
    if aim == "scoring":
        return training.wait_until(lambda: any(line.startswith("scoring ") for line in list(training.lines)))
    return True


def _refuse_failure(training: Training) -> None:
    if training.end() != 0:
        raise RuntimeError("ubend fit --resume failed:\n" + "\n".join(training.lines[-20:]))


def _temporaries(run: Path) -> set[str]:
    """Names of files that are being written, or were when their writer was killed."""
    found: set[str] = set()
    for folder in (run, run / "panels"):
        try:
            found |= {name for name in os.listdir(folder) if name.startswith(".")}
        except FileNotFoundError:
            continue
    return found


def _name_moment(run: Path, fresh: set[str]) -> str:
    """What a killed process was doing, by what it left."""
    for aim, begins in _WRITING.items():
        if any(name.startswith(begins) for name in fresh):
            return aim
    if not (run / "resume.safetensors").exists():
        return "before the first state"
    with safe_open(run / "resume.safetensors", "numpy") as file:
        progress = json.loads(file.metadata()["ubend_state"])
    rows = (run / "settings.toml").read_text(encoding="utf-8").splitlines()
    epochs = next(int(row.split("=")[1]) for row in rows if row.startswith("epochs"))
    return "scoring" if len(progress["history"]) == epochs else "training"


def compare_runs(whole: Path, other: Path) -> list[str]:
    """What differs between two runs, to the bit; one line each."""
    found: list[str] = []
    names = [{path.relative_to(run).as_posix() for path in run.rglob("*")} for run in (whole, other)]
    found += [
        f"{name}: only in {'the undisturbed' if name in names[0] else 'the resumed'} run"
        for name in sorted(names[0] ^ names[1])
    ]
    for name in ("model.safetensors", "resume.safetensors"):
        found += _compare_tensors(whole / name, other / name)
    panels = sorted(name for name in names[0] & names[1] if name.endswith(".png") and name.startswith("panels/"))
    for name in ("metrics.jsonl", "scores.json", "settings.toml", "data.csv", *panels):
        if (whole / name).read_bytes() != (other / name).read_bytes():
            found.append(f"{name}: differs")
    return found


def _compare_tensors(one: Path, other: Path) -> list[str]:
    found = []
    with safe_open(one, "numpy") as first, safe_open(other, "numpy") as second:
        if first.metadata() != second.metadata():
            found.append(f"{one.name}: the header differs")
        names = set(first.keys()), set(second.keys())
        found += [f"{one.name}: {name} is in one of them only" for name in sorted(names[0] ^ names[1])]
        for name in sorted(names[0] & names[1]):
            a, b = first.get_tensor(name), second.get_tensor(name)
            if (a.dtype, a.shape) != (b.dtype, b.shape) or a.tobytes() != b.tobytes():
                found.append(f"{one.name}: {name} differs {_distance(a, b)}")
    return found


def _distance(a: Any, b: Any) -> str:
    if a.shape != b.shape:
        return f"in shape, {a.shape} and {b.shape}"
    return f"by up to {np.abs(a.astype(np.float64) - b.astype(np.float64)).max():.3g}"


def try_recipe(plan: Plan, kills: int, seed: int) -> Outcome:
    """One undisturbed training, then killed ones until `kills` processes have been killed."""
    draws = random.Random(seed)
    outcome = Outcome(plan.recipe)
    whole = plan.work / f"{plan.recipe}-whole"
    outcome.whole_s = run_whole(plan, whole)
    while (left := kills - outcome.moments.total()) > 0:
        outcome.trainings += 1
        run = plan.work / f"{plan.recipe}-killed-{outcome.trainings}"
        moments = run_killed(plan, run, min(left, len(_AIMS)), outcome.whole_s, draws)
        if not moments:
            raise RuntimeError("a training was done before it could be killed; give more --epochs")
        outcome.moments += moments
        outcome.differences += [f"{run.name}: {line}" for line in compare_runs(whole, run)]
    return outcome


def print_table(outcomes: list[Outcome]) -> None:
    """A row per recipe."""
    moments = ["before the first state", "training", "saving", "drawing", "scoring"]
    print("| recipe | undisturbed, s | trainings | kills | " + " | ".join(moments) + " | differences |")
    print("|---" * (5 + len(moments)) + "|")
    for outcome in outcomes:
        counts = " | ".join(str(outcome.moments[moment]) for moment in moments)
        cells = [outcome.recipe, f"{outcome.whole_s:.1f}", outcome.trainings, outcome.moments.total(), counts]
        print(f"| {' | '.join(map(str, cells))} | {len(outcome.differences)} |")
    for outcome in outcomes:
        for line in outcome.differences:
            print(line)


def main() -> int:
    """Read the command line and do it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20, help="of all recipes together")
    parser.add_argument("--recipe", choices=["modern", "tutorial", "both"], default="both")
    parser.add_argument("--data", type=Path, help="folder of images and masks; else a sample is drawn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=96, help="px")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help="keep the runs in this folder, which must be empty")
    args = parser.parse_args()
    recipes: list[Recipe] = ["modern", "tutorial"] if args.recipe == "both" else [args.recipe]
    with tempfile.TemporaryDirectory(prefix="ubend-kill-") as temporary:
        work = (args.work or Path(temporary)).resolve()
        data = args.data.resolve() if args.data else draw_data(work / "sample")
        flags = ("--size", args.size, "--width", args.width, "--batch", 8, "--epochs", args.epochs)
        outcomes = []
        for index, recipe in enumerate(recipes):
            kills = (args.kills + index) // len(recipes)
            if kills:
                plan = Plan(recipe, data, work, args.device, tuple(map(str, flags)))
                outcomes.append(try_recipe(plan, kills, args.seed + index))
                print_table(outcomes[-1:])
    print()
    print_table(outcomes)
    return 1 if any(outcome.differences for outcome in outcomes) else 0


def draw_data(folder: Path) -> Path:
    """24 drawn images of 96 px."""
    from ubend.dataset.sample import draw_sample

    draw_sample(folder, 24, 96)
    return folder


if __name__ == "__main__":
    sys.exit(main())
