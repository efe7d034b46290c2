"""Makes the table of docs/results.md: every row several times, with other seeds, each a whole process.

    python benchmarks/results.py --data FOLDER --rows kvasir-modern pets-modern --seeds 0 1 2

FOLDER holds `kvasir-seg` and `oxford-iiit-pet`. With `--gpus 2` two processes run at a time, each on a
GPU of its own. `--set key=value` is added to every command, for experiments. Prints mean and spread, and
writes JSON: scores of the test split, the last validation figures, and the seconds of each process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

KVASIR = ["kvasir-seg/Kvasir-SEG", "--split", "kvasir-seg/splits.csv", "--classes", "background,polyp"]
# Official test split; 5% of the rest choose the weights.
# The plain U-Net, as it was trained by default when docs/results.md was written.
PLAIN = ["--encoder", "none", "--loss", "dice+ce", "--set", "train.ema_decay=0.999"]
PETS = ["oxford-iiit-pet", "--size", "128", "--set", "data.val_share=0.05"]
ROWS: dict[str, list[str]] = {
    "kvasir-tutorial": [*KVASIR, "--recipe", "tutorial"],
    "kvasir-modern": [*KVASIR, *PLAIN, "--size", "128", "--batch", "32"],
    "pets-tutorial": ["oxford-iiit-pet", "--recipe", "tutorial"],
    "pets-modern": [*PETS, *PLAIN, "--epochs", "30", "--batch", "32"],
    "pets-modern-16": [*PETS, *PLAIN, "--epochs", "30", "--batch", "16"],
    "pets-long": [*PETS, *PLAIN, "--epochs", "220", "--batch", "64"],
}


def run_row(row: str, seed: int, args: argparse.Namespace, gpus: "SimpleQueue[int]") -> dict[str, Any]:
    """One training in a process of its own."""
    gpu = gpus.get()
    out = args.out / f"{row}-{seed}"
    command = [sys.executable, "-m", "ubend", "fit"]
    command += [str(args.data / word) if "/" in word or word == "oxford-iiit-pet" else word for word in ROWS[row]]
    command += ["--seed", str(seed), "--out", str(out)]
    for assignment in args.set:
        command += ["--set", assignment]
    began = time.perf_counter()
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": str(gpu)} if args.gpus > 1 else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    gpus.put(gpu)
    if done.returncode != 0:
        print(f"{row} seed {seed} FAILED\n{done.stdout[-2000:]}{done.stderr[-2000:]}", flush=True)
        return {"row": row, "seed": seed, "failed": True}
    scores = json.loads((out / "scores.json").read_text())
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [json.loads(line)["images_per_s"] for line in (out / "timing.jsonl").read_text().splitlines()]
    best = [line for line in history if line["best"]][-1]
    result = {
        "row": row,
        "seed": seed,
        "set": args.set,
        "seconds": seconds,
        "img_per_s": statistics.median(rates),
        "epochs": len(history),
        "best": best,
        "native": scores["native"],
        "model_size": scores["model_size"],
    }
    print(summary(result), flush=True)
    return result


def summary(result: dict[str, Any]) -> str:
    native, model = result["native"], result["model_size"]
    return (
        f"{result['row']} seed {result['seed']} {' '.join(result['set'])}: {result['seconds']:.0f} s,"
        f" {result['img_per_s']:.0f} img/s, best epoch {result['best']['epoch']} of {result['epochs']},"
        f" validation {json.dumps({k: round(v, 4) for k, v in result['best']['val_dice'].items()})} |"
        f" native Dice per image {native['dice']['per_image']['mean_foreground']:.4f}"
        f" IoU {native['iou']['per_image']['mean_foreground']:.4f} |"
        f" model size pooled mIoU {model['iou']['pooled']['mean']:.4f},"
        f" native pooled mIoU {native['iou']['pooled']['mean']:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=sorted(ROWS), default=sorted(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--each", type=int, default=1, help="processes on a GPU at a time; timings then mean little")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    gpus: SimpleQueue[int] = SimpleQueue()
    for slot in range(args.gpus * args.each):
        gpus.put(slot % args.gpus)
    jobs = [(row, seed) for row in args.rows for seed in args.seeds]
    with ThreadPoolExecutor(args.gpus * args.each) as pool:
        results = list(pool.map(lambda job: run_row(job[0], job[1], args, gpus), jobs))
    for row in args.rows:
        mine = [r for r in results if r["row"] == row and "failed" not in r]
        if not mine:
            continue
        dice = [r["native"]["dice"]["per_image"]["mean_foreground"] for r in mine]
        miou = [r["model_size"]["iou"]["pooled"]["mean"] for r in mine]
        seconds = [r["seconds"] for r in mine]
        print(
            f"{row}: native mean Dice {statistics.mean(dice):.4f} ({min(dice):.4f} to {max(dice):.4f}),"
            f" mIoU at model size {statistics.mean(miou):.4f} ({min(miou):.4f} to {max(miou):.4f}),"
            f" {statistics.median(seconds):.0f} s"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
