"""What the benchmarks share: variants that take turns, median and spread, and the facts that belong beside a figure.

A figure is only worth what stands beside it, so every benchmark writes, with `--json FILE`, one object:

    {"benchmark": ..., "command": ..., "options": {...}, "facts": {device, versions}, "unit": ...,
     "rows": [{"name", "median", "least", "greatest", "n", "values", ...}], ...}
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import ubend
from ubend.core.device import describe_device, pick_device, prepare_process, set_up
from ubend.portable.errors import is_out_of_memory

Row = dict[str, Any]
Tuning = Literal["ubend", "none", "all"]


@dataclass(frozen=True)
class Variant:
    """One way to do the work.

    Attributes:
        name: in the table.
        run: does the work once.
        images: of one `run`, or megapixels of them.
        tuning: of torch's settings: "ubend", as `ubend.core.device.set_up` leaves them; "none", as torch is installed;
            "all", with TF32 products and cuDNN's search of algorithms.
        warm_up: runs before anything is timed.
        facts: further columns of its row.
    """

    name: str
    run: Callable[[], object]
    images: float
    tuning: Tuning = "ubend"
    warm_up: int = 5
    facts: Row = field(default_factory=dict)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """With what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser


def make_turns_parser(description: str | None) -> argparse.ArgumentParser:
    """With what every benchmark of variants takes, too."""
    parser = make_parser(description)
    parser.add_argument("--device", help="cuda, cuda:1, cpu  [CUDA if there is one]")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant  [5]")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn, about  [3]")
    return parser


def make_ready(device: str | None) -> torch.device:
    """This process as `ubend fit` would have it."""
    prepare_process(False)
    found = pick_device(device)
    set_up(found, False)
    return found


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def tuned(way: Tuning) -> Iterator[None]:
    """In here, torch is set as a variant wants it; on the CPU nothing changes.

    (Convolutions use TF32 by torch's default, and continue to.)
    """
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    if way != "ubend":
        torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = way == "all"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = before


def time_runs(run: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of `count` runs; the device is waited for before and after, not in between."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(count):
        run()
    synchronise(device)
    return time.perf_counter() - began


def take_turns(variants: Sequence[Variant], device: torch.device, rounds: int, seconds: float) -> list[Row]:
    """A row of images per second for each variant that memory suffices for.

    All are warmed up, then they take turns, `rounds` times, each for about `seconds`: what the machine does
    beside it then hits all alike. Before each turn a run goes untimed, which gets the last variant's memory back,
    unless one run fills a turn (a whole epoch does).
    """
    counts: dict[str, int] = {}
    rows = {variant.name: {"name": variant.name, **variant.facts} for variant in variants}
    values: dict[str, list[float]] = {}
    for variant in variants:
        try:
            with tuned(variant.tuning):
                rows[variant.name]["warm_up_s"] = time_runs(variant.run, variant.warm_up, device)
                counts[variant.name] = max(1, round(seconds / time_runs(variant.run, 1, device)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            print(f"left out: {variant.name} (out of memory)", flush=True)
        else:
            values[variant.name] = []
            words = f"{rows[variant.name]['warm_up_s']:.1f} s for the first {variant.warm_up}"
            print(f"warmed up: {variant.name}, {words}", flush=True)
    for _ in range(rounds):
        for variant in variants:
            if variant.name in values:
                with tuned(variant.tuning):
                    if counts[variant.name] > 1:
                        variant.run()
                    taken = time_runs(variant.run, counts[variant.name], device)
                values[variant.name].append(counts[variant.name] * variant.images / taken)
    return [{**rows[name], **summarise(rates)} for name, rates in values.items()]


def summarise(values: Sequence[float]) -> Row:
    """Median, least, greatest, n, and the values themselves."""
    found = list(values)
    return {
        "median": statistics.median(found),
        "least": min(found),
        "greatest": max(found),
        "n": len(found),
        "values": found,
    }


def divide_rows(row: Row, by: Row) -> Row:
    """How many times faster `row` is than `by`: of each round, then summarised."""
    ratios = summarise([a / b for a, b in zip(row["values"], by["values"], strict=True)])
    return {"of": row["name"], "to": by["name"], **ratios}


def spread_words(row: Mapping[str, Any], digits: int = 0) -> str:
    """`1,301 (1,300 to 1,303)`."""
    median, least, greatest = (f"{row[name]:,.{digits}f}" for name in ("median", "least", "greatest"))
    return f"{median} ({least} to {greatest})"


def read_facts(device: torch.device | None, packages: Sequence[str] = ()) -> Row:
    """Device and versions; `packages` are further ones that are installed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"cores": cores, "python": platform.python_version(), "ubend": ubend.__version__}
    if device is not None:
        facts = {"device": describe_device(device), **facts, "torch": torch.__version__, "numpy": np.__version__}
        if device.type == "cuda":
            facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return facts | {name: version(name) for name in packages}


def print_facts(facts: Row) -> None:
    """On one line."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)


def write_report(script: str, words: Sequence[str], args: argparse.Namespace, **figures: Any) -> None:
    """The figures as JSON, where `--json` asked for them; the form is at the top of this file.

    Args:
        script: its `__file__`.
        words: of its command line, and `args`, what they were read as.
        figures: facts, unit, rows, and what else there is.
    """
    if args.json is None:
        return
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    name = Path(script).stem
    command = shlex.join(["python", f"benchmarks/{name}.py", *words])
    report = {"benchmark": name, "command": command, "options": options, **figures}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
