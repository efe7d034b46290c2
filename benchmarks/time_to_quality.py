"""Seconds from the start of `ubend fit` to its end, and the score it ends with: whole processes, several seeds.

    python benchmarks/time_to_quality.py PETS --goal-miou 0.77 --goal-seconds 120 -- \\
        --size 128 --epochs 150 --batch 64 --set data.val_share=0.05 --set train.compile=true

PETS is a folder of images and masks; what stands behind `--` goes to `ubend fit` as it is, so that the schedule
is fixed by the command. Nothing is left out of the seconds: start-up, reading, training, validation, scoring. The
score is the pooled mean IoU over the classes, of the test split at the model's size (`scores.json`).

The processes run one after the other. They share the caches of the machine, so where the folder was never read,
or a network of this shape never compiled, the first one does it; `--cold` gives each process empty caches.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from timing import Row, make_parser, print_facts, read_facts, spread_words, summarise, write_report

CACHES = ("UBEND_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def run_fit(folder: str, words: Sequence[str], seed: int, out: Path, cache: Path | None) -> Row:
    """One process: its seconds, those of its epochs, its speed and its scores.

    Args:
        folder, words: as `ubend fit` takes them.
        out: the run.
        cache: where all that is cached goes; None: where it always goes.
    Raises:
        SystemExit: it failed; what it said.
    """
    command = [sys.executable, "-m", "ubend", "fit", folder, *words, "--seed", str(seed), "--out", str(out)]
    environment = dict(os.environ)
    if cache is not None:
        environment |= {name: str(cache / name) for name in CACHES}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    epochs = [json.loads(line) for line in (out / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    return {
        "name": f"seed {seed}",
        "seed": seed,
        "device": json.loads((out / "run.json").read_text(encoding="utf-8"))["device"],
        "seconds": seconds,
        "epoch_seconds": sum(row["train_s"] + row["validation_s"] for row in epochs),
        "epochs": len(epochs),
        "img_per_s": summarise([row["images_per_s"] for row in epochs])["median"],
        "miou": scores["model_size"]["iou"]["pooled"]["mean"],
        "native_miou": scores["native"]["iou"]["pooled"]["mean"],
        "native_dice": scores["native"]["dice"]["per_image"]["mean_foreground"],
    }


def judge(rows: Sequence[Row], args: argparse.Namespace) -> list[str]:
    """A line for each goal that was given."""
    lines = []
    if args.goal_miou is not None:
        met = sum(row["miou"] >= args.goal_miou for row in rows)
        lines.append(f"goal: mIoU of {args.goal_miou:g} or more, kept by {met} of {len(rows)}")
    if args.goal_seconds is not None:
        met = sum(row["seconds"] <= args.goal_seconds for row in rows)
        lines.append(f"goal: {args.goal_seconds:g} s or less, kept by {met} of {len(rows)}")
    return lines


def main(words: Sequence[str]) -> None:
    end = words.index("--") if "--" in words else len(words)
    own, theirs = words[:end], words[end + 1 :]
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="of images and masks, or a named data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--goal-miou", type=float, help="0..1")
    parser.add_argument("--goal-seconds", type=float)
    parser.add_argument("--cold", action="store_true", help="empty caches for each process")
    parser.add_argument("--out", type=Path, help="keep the runs there; it must not hold runs yet")
    args = parser.parse_args(own)
    print(f"ubend fit {args.folder} {' '.join(theirs)}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = args.out or Path(temporary)
        for seed in args.seeds:
            cache = Path(temporary) / f"cache-{seed}" if args.cold else None
            row = run_fit(args.folder, theirs, seed, place / f"seed-{seed}", cache)
            rows.append(row)
            print(
                f"{row['name']}: {row['seconds']:.1f} s, of which {row['epoch_seconds']:.1f} in {row['epochs']} epochs"
                f" at {row['img_per_s']:,.0f} img/s; mIoU {row['miou']:.4f} at model size, {row['native_miou']:.4f}"
                f" native; Dice per image {row['native_dice']:.4f}",
                flush=True,
            )
    facts = {"device": rows[0]["device"], **read_facts(None), "torch": version("torch")}
    print_facts(facts)
    seconds, miou = (summarise([row[name] for row in rows]) for name in ("seconds", "miou"))
    print(f"seconds {spread_words(seconds, 1)}, mIoU {spread_words(miou, 4)}, n {len(rows)}")
    goals = judge(rows, args)
    print("\n".join(goals))
    write_report(__file__, words, args, facts=facts, unit="s", rows=rows, seconds=seconds, miou=miou, goals=goals)


if __name__ == "__main__":
    main(sys.argv[1:])
