"""Seconds from the end of the imports to the end of the first training step, of a folder seen before.

    python benchmarks/second_fit.py FOLDER [--size 128] [--width 8] [--rounds 5] [--json FILE]

Each round is a process of its own; one before them fills the cache, and waits until the files are old enough
to be remembered. Phases that are not named are "the rest".
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

PHASES = {
    "folder": "ubend.data.dataset:find_folder",
    "headers": "ubend.data.dataset:read_headers",
    "hashes": "ubend.data.dataset:hash_pairs",
    "survey of the masks": "ubend.data.dataset:survey_masks",
    "class table": "ubend.data.dataset:find_classes",
    "store": "ubend.data.dataset:open_store",
    "near-duplicates": "ubend.data.dataset:find_near_duplicates",
    "facts": "ubend.data.dataset:Dataset.facts",
    "network and optimiser": "ubend.jobs.fit:make_state",
    "batches": "ubend.jobs.fit:make_batches",
    "run folder": "ubend.jobs.fit:_write_beginning",
    "first step": "ubend.training.step:Step.__call__ ubend.training.captured:CapturedStep.__call__",
}
CHILD = """
import functools, importlib, json, sys, time
began = time.perf_counter()
import torch
torch_s = time.perf_counter() - began
import ubend.jobs.fit, ubend.training.loop
from ubend.device import describe_device, pick_device

phases, folder, out, settings = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
seconds = {"imports": time.perf_counter() - began, "of them torch": torch_s}

class FirstStep(BaseException):
    pass

def timed(name, work):
    @functools.wraps(work)
    def run(*args, **words):
        began = time.perf_counter()
        try:
            return work(*args, **words)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name] = seconds.get(name, 0) + time.perf_counter() - began
            if name == "first step":
                raise FirstStep
    return run

for name, place in [(name, place) for name, places in phases.items() for place in places.split()]:
    module, _, path = place.partition(":")
    home, words = importlib.import_module(module), path.split(".")
    for word in words[:-1]:
        home = getattr(home, word)
    setattr(home, words[-1], timed(name, getattr(home, words[-1])))
began = time.perf_counter()
try:
    ubend.jobs.fit.fit(folder, out, **settings)
except FirstStep:
    seconds["all but imports"] = time.perf_counter() - began
facts = {"device": describe_device(pick_device(settings.get("device"))), "torch": torch.__version__}
print(json.dumps({"seconds": seconds, "facts": facts}))
"""


def run_once(folder: Path, cache: Path, settings: dict[str, object]) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as place:
        words = [json.dumps(PHASES), str(folder), str(Path(place) / "run"), json.dumps(settings)]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *words],
            env=os.environ | {"UBEND_CACHE": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = {"size": args.size, "width": args.width, "epochs": 1}
    with tempfile.TemporaryDirectory() as cache:
        first = run_once(args.folder, Path(cache), settings)["seconds"]
        time.sleep(3)
        run_once(args.folder, Path(cache), settings)
        found = [run_once(args.folder, Path(cache), settings) for _round in range(args.rounds)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {**found[0]["facts"], "cores": cores, "python": platform.python_version(), **settings}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"n = {args.rounds}; median (least to greatest) s; in brackets the first fit of the folder")
    rows = {name: [one["seconds"].get(name, 0.0) for one in found] for name in first}
    named = [sum(one["seconds"].get(name, 0.0) for name in PHASES) for one in found]
    rows["the rest"] = [all_s - part for all_s, part in zip(rows["all but imports"], named, strict=True)]
    for name, values in rows.items():
        once = f"({first[name]:.2f})" if name in first else ""
        print(f"{name:24} {statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})  {once}")
    if args.json:
        args.json.write_text(json.dumps({"facts": facts, "first": first, "seconds": rows}, indent=1))


if __name__ == "__main__":
    main()
