"""What each kind of augmentation is worth, in Dice: trainings without any, with all, with all but one, with only one.

    python benchmarks/augmentation_ablation.py kvasir-seg/Kvasir-SEG --split kvasir-seg/splits.csv \\
        --classes background,polyp --size 128 --width 32 --epochs 20 --seeds 0 1 2 --jobs 4

Each training is `ubend.fit` with `augment` settings alone changed; settings that are left open are chosen from the
images, so they are the same in all. The figure is the test split's native Dice, the mean over images and classes
but the background; weights are kept by the validation split, and nothing is chosen by the test split. Differences are
between trainings of the same seed. `--jobs` trainings run at a time, in processes of their own. Prints a table in
markdown and writes JSON.
"""

import io
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

import ubend
from timing import Row, make_parser, print_facts, read_facts, summarise, write_report
from ubend.core.device import pick_device
from ubend.core.plan import AugmentPlan
from ubend.core.progress import Reporter
from ubend_lessons.augmentation import KINDS, isolate, leave_out

GROUPS = ("none", "all", "without", "only")


def list_variants(groups: Sequence[str], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name of a variant -> the settings that it changes, by dotted keys."""
    default = AugmentPlan(kind="warp", orientation="free", rotation_deg=180.0)
    variants: dict[str, dict[str, Any]] = {}
    if "none" in groups:
        variants["none"] = {"augment.kind": "none"}
    if "all" in groups:
        variants["all"] = _changes(default, default)
    if "without" in groups:
        variants |= {f"without {kind}": _changes(leave_out(default, [kind]), default) for kind in kinds}
    if "only" in groups:
        variants |= {f"only {kind}": _changes(isolate(default, kind), default) for kind in kinds}
    return variants


def _changes(settings: AugmentPlan, default: AugmentPlan) -> dict[str, Any]:
    """What differs from the default; the kind is always said."""
    return {
        f"augment.{key}": value
        for key, value in settings.model_dump().items()
        if key == "kind" or value != getattr(default, key)
    }


def train_one(folder: str, name: str, changes: Mapping[str, Any], seed: int, flags: Mapping[str, Any]) -> Row:
    """One training, scored; its folder is not kept."""
    silent = Reporter(Console(file=io.StringIO(), quiet=True))
    began = perf_counter()
    with tempfile.TemporaryDirectory() as place:
        result = ubend.fit(folder, out=Path(place) / "run", settings=dict(changes), seed=seed, reporter=silent, **flags)
    assert result.scores is not None
    dice = result.scores.native.dice.per_image.mean_foreground
    return {
        "variant": name,
        "seed": seed,
        "part": result.scores.subset,
        "dice": math.nan if dice is None else float(dice),
        "seconds": perf_counter() - began,
    }


def summarise_variants(trained: Sequence[Row], against: str) -> list[Row]:
    """A row for each variant, the best first: its Dice, and its difference to `against`, seed by seed."""
    dice: dict[str, dict[int, float]] = {}
    for one in trained:
        dice.setdefault(one["variant"], {})[one["seed"]] = one["dice"]
    rows = []
    for name, mine in dice.items():
        row = {"name": name, **summarise([mine[seed] for seed in sorted(mine)])}
        both = sorted(mine.keys() & dice.get(against, {}).keys())
        if both and name != against:
            row["difference"] = summarise([mine[seed] - dice[against][seed] for seed in both])
        rows.append(row)
    return sorted(rows, key=lambda row: -statistics.mean(row["values"]))


def table_lines(rows: Sequence[Row], against: str) -> list[str]:
    """The table in markdown."""
    lines = [
        f"| augmentation | native Dice, mean (least to greatest) | difference to {against}, same seed |",
        "|---|---|---|",
    ]
    for row in rows:
        words = f"{statistics.mean(row['values']):.4f} ({row['least']:.4f} to {row['greatest']:.4f})"
        other = row.get("difference")
        change = (
            ""
            if other is None
            else f"{statistics.mean(other['values']):+.4f} ({other['least']:+.4f} to {other['greatest']:+.4f})"
        )
        lines.append(f"| {row['name']} | {words} | {change} |")
    return lines


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="of images and masks, or a named data set")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time  [1]")
    for name, kind in (("split", str), ("classes", str), ("device", str), ("size", int), ("width", int)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int)
    args = parser.parse_args(words)
    flags = {name: getattr(args, name) for name in ("split", "classes", "device", "size", "width", "epochs", "batch")}
    variants = list_variants(args.groups, args.kinds)
    trained: list[Row] = []
    began = perf_counter()
    # not forked: CUDA does not survive that
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [
            pool.submit(train_one, args.folder, name, changes, seed, flags)
            for seed in args.seeds
            for name, changes in variants.items()
        ]
        for done in as_completed(waiting):
            trained.append(done.result())
            one = trained[-1]
            print(f"{one['variant']}, seed {one['seed']}: Dice {one['dice']:.4f}, {one['seconds']:.1f} s", flush=True)
    against = "all" if "all" in variants else next(iter(variants))
    rows = summarise_variants(trained, against)
    facts = read_facts(pick_device(args.device))
    print_facts(facts)
    print(f"{len(trained)} trainings in {perf_counter() - began:.0f} s; scored: {trained[0]['part']}")
    print("\n".join(table_lines(rows, against)))
    trained.sort(key=lambda one: (one["seed"], list(variants).index(one["variant"])))
    write_report(
        __file__, words, args, facts=facts, unit="Dice", rows=rows, against=against, variants=variants, trained=trained
    )


if __name__ == "__main__":
    main(sys.argv[1:])
