"""Five sets, several ways to train on them, several seeds: one table, of `ubend fit` and of peers' plain loops.

    python benchmarks/zoo.py --data FOLDER --out FOLDER [--sets camvid drive] [--variants none smp] [--seeds 0 1 2]
        [--subset val|test] [--gpus 2] [--slots 3] [--seconds 500] [--known FILE ...] [--json FILE]

FOLDER of the data holds `camvid`, `nuclei`, `kvasir-seg`, `drive` and `oxford-iiit-pet`; those that are not there are
left out. A row is a set, a variant and a seed: a process of its own, `--slots` of them at a time on each GPU. What is
done lies in OUT/rows and is not done again; a row that --seconds cuts off leaves nothing there, and none is started
that another seed's seconds say cannot end. `--known` takes the rows of files that `--json` wrote, on other machines
too. The variants are the words of `ubend fit`, or peers (`zoo_peer.py`). A row keeps the scores of both splits; the
table shows one. Choose by `--subset val`, and print `--subset test` when all is chosen. Beside each mean stand its
spread (greatest - least) and the median seconds of a row: of `ubend fit`, which scores the test split at its end, or
of a peer's whole process; with several slots these are of a shared GPU. Ranks are of the means, on the sets where every
variant has one.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import NamedTuple

from timing import Row, make_parser, print_facts, read_facts, write_report
from zoo_peer import PEERS, is_here

CAMVID = "0=sky,1=building,2=pole,3=road,4=pavement,5=tree,6=sign,7=fence,8=car,9=pedestrian,10=bicyclist,11=ignored"


@dataclass(frozen=True)
class DataSet:
    """A set, the words that say what it is, and how it is measured.

    Attributes:
        folder: below the folder of the data.
        words: of `ubend fit`; {at} is this folder.
        score: kind and averaging of the mean without background, in the native scores.
        minimum: whether the worst class is reported too.
    """

    folder: str
    words: tuple[str, ...]
    score: tuple[str, str]
    minimum: bool = False


DICE, MIOU = ("dice", "per_image"), ("iou", "pooled")
SETS = {
    "camvid": DataSet("camvid", ("{at}", "--values", CAMVID), MIOU, minimum=True),
    "nuclei": DataSet(
        "nuclei",
        (
            *("--images", "{at}/images", "--masks", "{at}/ids", "--values", "0=background,*=nucleus"),
            *("--split", "{at}/splits.csv"),
        ),
        DICE,
    ),
    "kvasir": DataSet(
        "kvasir-seg", ("{at}/Kvasir-SEG", "--split", "{at}/splits.csv", "--classes", "background,polyp"), DICE
    ),
    "drive": DataSet("drive", ("{at}",), DICE),
    "pets": DataSet("oxford-iiit-pet", ("{at}",), MIOU),
}
VARIANTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "scratch": ("--encoder", "none"),
    "tutorial": ("--recipe", "tutorial"),
    "best": ("--effort", "best"),
    "bilinear": ("--set", "model.upsampling=bilinear"),
    "branches": ("--set", "train.branches=3"),
}
SPLITS = ("val", "test")


class Job(NamedTuple):
    """A row that is to be made."""

    set: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.set}-{self.variant}-{self.seed}"


class Zoo:
    """The rows that there are, and the making of others.

    Args:
        args: of the command line.
        words: as they were given.
    """

    def __init__(self, args: argparse.Namespace, words: Sequence[str]) -> None:
        self.args, self._words, self._lock = args, words, Lock()
        self.ends = time.monotonic() + (args.seconds or float("inf"))
        self.facts, self.failed = read_facts(None), list[str]()
        self.rows: dict[str, Row] = {}
        self.places = SimpleQueue[int]()
        for slot in range(args.gpus * args.slots):
            self.places.put(slot % args.gpus)
        for name in ("rows", "runs"):
            (args.out / name).mkdir(parents=True, exist_ok=True)
        known = [row for file in args.known for row in json.loads(Path(file).read_text())["rows"]]
        for row in [*known, *(json.loads(path.read_text()) for path in sorted((args.out / "rows").glob("*.json")))]:
            self._refuse_other(row)
            self.rows[row["name"]] = row

    def _refuse_other(self, row: Row) -> None:
        """Rows with other words do not stand in one table."""
        if row["words"] != self.args.words:
            raise SystemExit(f"{row['name']} was made with --words {row['words']!r}; choose another --out or --known")

    def make(self, job: Job) -> None:
        """A row, unless it is there, or cannot end in time."""
        gpu = self.places.get()
        try:
            if job.name in self.rows or self.ends - time.monotonic() <= self.expect(job):
                return
            seconds = self._train(job, gpu)
        finally:
            self.places.put(gpu)  # the next training need not wait for the scores
        row = None if seconds is None else self._score(job, gpu, seconds)
        if row is not None:
            with self._lock:
                self.rows[job.name] = row
                path = self.args.out / "rows" / f"{job.name}.json"
                path.with_suffix(".part").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
                path.with_suffix(".part").replace(path)
                self.report()
            shown = measure(row, self.args.subset)["score"]
            print(f"{job.name}: {figure(shown)}, {row['seconds']:.0f} s", flush=True)

    def expect(self, job: Job) -> float:
        """Seconds of a row, at least: the longest of other seeds; 0: none is known."""
        alike = [row["seconds"] for row in [*self.rows.values()] if (row["set"], row["variant"]) == job[:2]]
        return float(max(alike, default=0.0))

    def _train(self, job: Job, gpu: int) -> float | None:
        """Seconds of a training in a process of its own; None: it was cut off, or failed."""
        run = self.args.out / "runs" / job.name
        shutil.rmtree(run, ignore_errors=True)
        for suffix in (".log", ".json"):
            run.with_suffix(suffix).unlink(missing_ok=True)
        at = self.args.data / SETS[job.set].folder
        words = [word.format(at=at) for word in SETS[job.set].words]
        words += [*VARIANTS.get(job.variant, ()), "--seed", str(job.seed), *shlex.split(self.args.words)]
        if job.variant in PEERS:
            peer = str(Path(__file__).with_name("zoo_peer.py"))
            return self._call([peer, job.variant, str(run.with_suffix(".json")), "--", *words], gpu, job.name)
        return self._call(["-m", "ubend", "fit", *words, "--out", str(run)], gpu, job.name)

    def _score(self, job: Job, gpu: int, seconds: float) -> Row | None:
        """The row of a training that has ended; None: scoring was cut off, or failed."""
        run = self.args.out / "runs" / job.name
        if job.variant in PEERS:
            found = json.loads(run.with_suffix(".json").read_text())
        else:
            val = run.with_suffix(".json")  # the test split is scored by fit
            words = ["-m", "ubend", "evaluate", str(run), "--subset", "val", "--out", str(val)]
            if self._call(words, gpu, job.name) is None:
                return None
            found = read_run(run, {"val": val, "test": run / "scores.json"})
        scores = found.pop("scores")
        for subset in SPLITS:
            if scores[subset]["part"] != subset:
                raise SystemExit(f"{job.name}: the scores are of the split {scores[subset]['part']}, not {subset}")
        kept = {subset: scores[subset]["native"] for subset in SPLITS}
        row = {"name": job.name, **job._asdict(), "words": self.args.words, "comparable": not self.args.words}
        return {**row, "slots": self.args.slots, "seconds": seconds, **found, "native": kept}

    def _call(self, words: Sequence[str], gpu: int, name: str) -> float | None:
        """Seconds of a Python process; None: it failed, or was ended because time was up."""
        log, began = self.args.out / "runs" / f"{name}.log", time.monotonic()
        environment = dict(os.environ)
        if self.args.gpus * self.args.slots > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            environment |= {"OMP_NUM_THREADS": str(max(1, cores // (self.args.gpus * self.args.slots)))}
            environment |= {"CUDA_VISIBLE_DEVICES": self._visible(gpu)}
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *words], env=environment, stdout=file, stderr=file, process_group=0
            )
        try:
            while process.poll() is None and time.monotonic() < self.ends:
                time.sleep(0.1)
            code = process.poll()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code is None:
            print(f"{name}: cut off", flush=True)
        elif code:
            print(f"{name}: FAILED\n{log.read_text(errors='replace')[-3000:]}", flush=True)
            self.failed.append(name)
        return None if code or code is None else time.monotonic() - began

    @staticmethod
    def _visible(gpu: int) -> str:
        """The GPU's name, among those that this process may use."""
        names = os.environ.get("CUDA_VISIBLE_DEVICES")
        return names.split(",")[gpu] if names else str(gpu)

    def report(self) -> None:
        """Write what there is, so that a process that is killed leaves it."""
        rows = [self.rows[name] for name in sorted(self.rows)]
        table = make_table(rows, self.args.subset)
        write_report(
            __file__, self._words, self.args, facts=self.facts, unit="0..1", rows=rows, table=table, ranks=rank(table)
        )


def read_run(run: Path, scores: Mapping[str, Path]) -> Row:
    """What belongs beside a run's scores, and these, by split."""
    settings = tomllib.loads((run / "settings.toml").read_text())
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "device": json.loads((run / "run.json").read_text())["device"],
        "batch": settings["train"]["batch"],
        "size": settings["data"].get("size"),
        "window": settings["data"].get("crop"),
        "epochs": len(history),
        "steps": history[-1]["step"],
        "best_step": [line["step"] for line in history if line["best"]][-1],
        "scores": {subset: json.loads(path.read_text()) for subset, path in scores.items()},
    }


def measure(row: Row, subset: str) -> Row:
    """The figures of a row on one split: the mean, and the least class where the set has many."""
    of = SETS[row["set"]]
    kind, averaging = of.score
    classes = dict(row["native"][subset][kind][averaging])
    means = classes.pop("mean"), classes.pop("mean_foreground")
    figures: Row = {"score": means[1 if of.score == DICE else 0]}
    if of.minimum:
        figures["least"] = min((value, name) for name, value in classes.items() if value is not None)
    return figures


def make_table(rows: Iterable[Row], subset: str) -> list[Row]:
    """A line for each set and variant that has rows: means over the seeds, spreads, seconds."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["variant"]), []).append(row)
    table = []
    for (name, variant), some in groups.items():
        figures = [measure(row, subset) for row in some]
        scores = [one["score"] for one in figures]
        line = {"set": name, "variant": variant, "seeds": sorted(row["seed"] for row in some)}
        line |= {"mean": statistics.mean(scores), "spread": max(scores) - min(scores)}
        line["seconds"] = statistics.median(row["seconds"] for row in some)
        if "least" in figures[0]:
            line["least"] = statistics.mean(one["least"][0] for one in figures)
            line["least_classes"] = sorted({one["least"][1] for one in figures})
        table.append(line)
    return table


def rank(table: Sequence[Row]) -> Row:
    """Mean rank of each variant, 1 is the best, equal means share theirs; on the sets where all variants have rows."""
    variants = {line["variant"] for line in table}
    means: dict[str, dict[str, float]] = {}
    for line in table:
        means.setdefault(line["set"], {})[line["variant"]] = line["mean"]
    sets = sorted(name for name, of_set in means.items() if of_set.keys() == variants)

    def place(own: float, all_: Iterable[float]) -> float:
        others = list(all_)
        return 0.5 + sum(other > own for other in others) + 0.5 * sum(other == own for other in others)

    found = {one: [place(means[name][one], means[name].values()) for name in sets] for one in sorted(variants)}
    return {"sets": sets, "mean_rank": {one: statistics.mean(places) for one, places in found.items() if places}}


def figure(value: float) -> str:
    return f"{value:.4f}"


def print_table(table: Sequence[Row], ranks: Row, wanted: Sequence[str]) -> None:
    """As Markdown: sets down, variants across."""
    there = {line["variant"] for line in table}
    variants = [variant for variant in wanted if variant in there]
    variants += sorted(there - {*variants})
    cells = {(line["set"], line["variant"]): line for line in table}
    print("mean (greatest - least over the seeds; median seconds of a row)")
    print(f"| set | {' | '.join(variants)} |\n|---|{'---|' * len(variants)}")
    for name, of in SETS.items():
        lines = [cells.get((name, variant)) for variant in variants]
        if not any(lines):
            continue
        shown = [
            f"{figure(line['mean'])} ({figure(line['spread'])}; {line['seconds']:.0f} s; n {len(line['seeds'])})"
            if line
            else "-"
            for line in lines
        ]
        print(f"| {name}, {'Dice' if of.score == DICE else 'mIoU'} | {' | '.join(shown)} |")
        if of.minimum:
            shown = [f"{figure(one['least'])} {'/'.join(one['least_classes'])}" if one else "-" for one in lines]
            print(f"| {name}, least class | {' | '.join(shown)} |")
    shown = [f"{ranks['mean_rank'][one]:.2f}" if one in ranks["mean_rank"] else "-" for one in variants]
    print(f"| mean rank on {len(ranks['sets'])} sets | {' | '.join(shown)} |", flush=True)


def choose_jobs(args: argparse.Namespace) -> list[Job]:
    """The rows that are asked for and can be made here, seed by seed; says what is left out."""
    sets = [name for name in args.sets if (args.data / SETS[name].folder).is_dir()]
    variants = [name for name in args.variants if name not in PEERS or is_here(name)]
    for name in sorted({*args.sets} - {*sets}):
        print(f"left out: {name} (no {args.data / SETS[name].folder})", flush=True)
    for name in sorted({*args.variants} - {*variants}):
        print(f"left out: {name} (pip install segmentation-models-pytorch)", flush=True)
    return [Job(name, variant, seed) for seed in args.seeds for name in sets for variant in variants]


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="rows, runs and logs; what is there is not done again")
    parser.add_argument("--sets", nargs="+", choices=[*SETS], default=[*SETS])
    known = [*VARIANTS, *PEERS]
    parser.add_argument("--variants", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--subset", choices=SPLITS, default="val", help="split that the table shows  [val]")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--slots", type=int, default=1, help="rows at a time on each GPU  [1]")
    parser.add_argument("--seconds", type=float, help="after which rows that run are ended")
    parser.add_argument("--known", nargs="+", default=[], metavar="FILE", help="rows of earlier --json files")
    parser.add_argument("--words", default="", help="more words of `ubend fit` for every row, for a trial")
    args = parser.parse_args(words)
    zoo = Zoo(args, words)
    print_facts(zoo.facts)
    jobs = choose_jobs(args)
    with ThreadPoolExecutor(2 * args.gpus * args.slots) as pool:  # as many score as train
        try:
            list(pool.map(zoo.make, jobs))
        except KeyboardInterrupt:
            zoo.ends = 0.0  # ends what runs, and starts nothing more
    zoo.report()
    missing = [job.name for job in jobs if job.name not in zoo.rows]
    if missing:
        print(f"not done: {', '.join(missing)}", flush=True)
    if args.words:
        print(f"not comparable: all rows have the words {args.words}", flush=True)
    table = make_table(zoo.rows.values(), args.subset)
    print_table(table, rank(table), args.variants)
    if zoo.failed:
        raise SystemExit(f"failed: {', '.join(zoo.failed)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what runs is ended too
    main(sys.argv[1:])
