"""Where the seconds of whole `ubend fit` processes go, from their start to their end: cold caches first, then warm.

    python benchmarks/whole_fit.py FOLDER [--rounds 3] [--epochs 20] [--size 128] [--width 32] [--batch 32]
        [--set KEY=VALUE ...] [--keep RUN] [--json FILE]

Beyond imports, to the end of the first step: of the sum, what a second fit on the same folder waits before it trains.

Each round is a process of its own. Every second of it is counted once, with the innermost phase that it falls into;
work of other threads is not. The first process finds ubend's and Triton's caches empty; the rounds do not. The
device is waited for after each of the first five steps (workspaces, kernels and algorithms are found in them, and the
step is captured), and where training waits for it anyway.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ubend.core.settings import parse_assignment

PHASES = {
    "CUDA's beginning": "ubend.training.distributed:ProcessGroup.pick_device",
    "folder": "ubend.dataset.dataset:find_folder ubend.dataset.dataset:read_headers ubend.dataset.dataset:hash_pairs",
    "masks and classes": "ubend.dataset.dataset:scan_masks ubend.dataset.dataset:find_classes",
    "store": "ubend.dataset.dataset:open_store",
    "near-duplicates": "ubend.dataset.dataset:find_near_duplicates",
    "facts": "ubend.dataset.dataset:Dataset.facts",
    "network and optimiser": "ubend.tasks.fit:build",
    "batches": "ubend.tasks.fit:prepare",
    "run folder": "ubend.tasks.fit:_begin",
    "first step": "",
    "steps 2 to 5": "",
    "later steps": "ubend.training.loop:Runtime.training_step ubend.accel.captured:CapturedRuntime.training_step",
    "waiting for steps": "ubend.training.loop:mean_loss",
    "validation": "ubend.training.loop:validate",
    "panels, all but drawing": "ubend.training.panels:EpochDrawing.__call__",
    "metrics": "ubend.training.run_folder:RunFolder.write_metrics ubend.training.run_folder:RunFolder.append_timing",
    "states": "ubend.training.checkpoint:Saver.save ubend.training.checkpoint:Saver.wait",
    "model for scoring": "ubend.tasks.fit:load_bundle ubend.tasks.fit:Predictor.__init__",
    "scoring": "ubend.tasks.fit:evaluate_pairs",
}
TO_FIRST_STEP = "beyond imports, to the end of the first step"
CHILD = """
import atexit, functools, gc, importlib, json, sys, threading, time
began = time.time()
seconds, phases = {"start of Python": began - float(sys.argv[1])}, json.loads(sys.argv[2])
folder, out, settings, report = sys.argv[3], sys.argv[4], json.loads(sys.argv[5]), sys.argv[6]
from ubend.core.device import prepare_process
prepare_process(False)
atexit.register(gc.freeze)  # as of the command
import torch
seconds["import of torch"] = time.time() - began
import ubend.tasks.fit, ubend.training.loop
from ubend.core.device import describe_device, pick_device
seconds["other imports"] = time.time() - began - seconds["import of torch"]
imported = time.time()

stack, since, steps = ["the rest"], time.time(), 0

def change(enter=None):
    global since
    now = time.time()
    seconds[stack[-1]] = seconds.get(stack[-1], 0) + now - since
    since = now
    stack.append(enter) if enter else stack.pop()

def timed(name, work):
    @functools.wraps(work)
    def run(*args, **words):
        global steps
        if threading.current_thread() is not threading.main_thread():
            return work(*args, **words)
        own = name
        if name == "later steps":
            steps += 1
            own = "first step" if steps == 1 else "steps 2 to 5" if steps <= 5 else name
        change(own)
        try:
            return work(*args, **words)
        finally:
            if own != name and torch.cuda.is_available():
                torch.cuda.synchronize()
            change()
            if own == "first step":
                seconds["beyond imports, to the end of the first step"] = time.time() - imported
    return run

for name, place in [(name, place) for name, places in phases.items() for place in places.split()]:
    module, _, path = place.partition(":")
    home, words = importlib.import_module(module), path.split(".")
    for word in words[:-1]:
        home = getattr(home, word)
    setattr(home, words[-1], timed(name, getattr(home, words[-1])))
result = ubend.tasks.fit.fit(folder, out, **settings)
change()
facts = {"device": describe_device(pick_device(settings.get("device"))), "torch": torch.__version__}
heavy = ("torch._dynamo", "torch._inductor", "sympy", "scipy", "matplotlib", "triton")
facts["imported"] = [name for name in heavy if name in sys.modules]
facts["native mIoU"] = result.scores.native.iou.pooled.mean
with open(report, "w") as file:
    json.dump({"seconds": seconds, "facts": facts, "ended": time.time()}, file)
"""


def run_once(
    folder: Path, run: Path, caches: Path, settings: dict[str, object]
) -> tuple[dict[str, float], dict[str, object]]:
    """One process: its seconds by phase and as a whole, and its facts."""
    report = run.with_suffix(".json")
    environment = os.environ | {"UBEND_CACHE": str(caches / "ubend"), "TRITON_CACHE_DIR": str(caches / "triton")}
    began = time.time()
    words = [str(began), json.dumps(PHASES), str(folder), str(run), json.dumps(settings), str(report)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], env=environment, capture_output=True, text=True, check=False
    )
    ended = time.time()
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found = json.loads(report.read_text())
    found["seconds"] |= {"end of Python": ended - found["ended"], "whole process": ended - began}
    return found["seconds"], found["facts"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("size", 128), ("width", 32), ("batch", 32), ("epochs", 20), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path, help="where the last run is to be")
    parser.add_argument("--device")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, see `ubend fit`", dest="changes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings: dict[str, object] = {name: getattr(args, name) for name in ("size", "width", "batch", "epochs", "device")}
    settings["settings"] = {"data.val_share": 0.05} | dict(parse_assignment(change) for change in args.changes)
    rounds = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        cold, facts = run_once(args.folder, place / "cold", place / "caches", settings)
        time.sleep(3)  # until the files are old enough to be remembered
        for index in range(args.rounds):
            last = args.keep if args.keep and index == args.rounds - 1 else place / f"run-{index}"
            seconds, facts = run_once(args.folder, last, place / "caches", settings)
            rounds.append(seconds)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {**facts, "cores": cores, "python": platform.python_version(), **settings}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"n = {args.rounds}; median (least to greatest) s; in brackets the first, with cold caches")
    names = [
        "start of Python",
        "import of torch",
        "other imports",
        *PHASES,
        "the rest",
        "end of Python",
        "whole process",
        TO_FIRST_STEP,
    ]
    rows = {name: [one.get(name, 0.0) for one in rounds] for name in names}
    for name, values in rows.items():
        print(
            f"{name:45} {statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"
            f"  ({cold.get(name, 0.0):.2f})"
        )
    if args.json:
        args.json.write_text(json.dumps({"facts": facts, "first": cold, "seconds": rows}, indent=1))


if __name__ == "__main__":
    main()
