"""Speed of two checkouts of ubend, in processes that take turns: OLD, NEW, NEW, OLD, ...

    python benchmarks/two_trees.py OLD NEW [--pairs 5] [--device cuda] [--megapixels 100 1000] [--json FILE]

Of each: `ubend fit` on the drawn sample, as a whole process, and its epochs; `ubend predict` of the sample, as a whole
process; and images of so many megapixels from memory to mask, in tiles. Every figure is the median of the pairs' ratios
NEW / OLD, with the least and the greatest. Each tree has caches of its own, filled before anything is timed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from timing import Row, make_parser, print_facts, read_facts, spread_words, summarise, write_report

TILES = """
import json, sys, time
import numpy as np, ubend
predictor = ubend.load(sys.argv[1], device=sys.argv[2] or None, tiles=512)
rates = {}
for megapixels in map(float, sys.argv[3:]):
    side = round(1000 * megapixels**0.5)
    block = np.random.default_rng(0).integers(0, 256, (min(side, 4096), side, 3), np.uint8)
    image = np.resize(block, (side, side, 3))
    for turn in range(2):  # the first one warms up
        began = time.perf_counter()
        list(predictor.predict([image]))
        rates[f"{megapixels:g} megapixels, Mpix/s"] = side**2 / 1e6 / (time.perf_counter() - began)
print(json.dumps(rates))
"""


class Tree:
    """A checkout, with a place for its caches and runs."""

    def __init__(self, source: Path, place: Path) -> None:
        self.place, caches = place, {"UBEND_CACHE": str(place / "ubend"), "TRITON_CACHE_DIR": str(place / "triton")}
        paths = [str(source.resolve() / "src"), os.environ.get("PYTHONPATH", "")]
        self._environment = os.environ | caches | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def run(self, *words: str) -> tuple[str, float]:
        """What Python prints with these words, and its seconds."""
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words], env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return done.stdout, time.perf_counter() - began

    def measure(self, turn: int, fit: Sequence[str], device: str, megapixels: Sequence[str]) -> dict[str, float]:
        """Name of a figure -> its value."""
        run = self.place / f"run-{turn}"
        found = {"fit, s": self.run("-m", "ubend", "fit", *fit, "--out", str(run))[1]}
        epochs = [json.loads(line)["images_per_s"] for line in (run / "timing.jsonl").read_text().splitlines()]
        found["epochs, img/s"] = sorted(epochs[2:] or epochs)[len(epochs[2:] or epochs) // 2]
        predict = ["predict", str(run), str(Path(fit[0]) / "images"), "--out", str(self.place / f"masks-{turn}")]
        found["predict, s"] = self.run("-m", "ubend", *predict, *(["--device", device] if device else []))[1]
        if megapixels:
            found |= json.loads(self.run("-c", TILES, str(run), device, *megapixels)[0].splitlines()[-1])
        return found


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="", help="cuda, cpu  [the fastest here]")
    parser.add_argument("--images", type=int, default=800, help="of the sample  [800]")
    parser.add_argument("--megapixels", nargs="*", default=["100", "1000"], help="[100 1000]")
    parser.add_argument("--fit", default="--size 128 --width 64 --batch 64 --epochs 24", help="words of `ubend fit`")
    args = parser.parse_args(words)
    facts = read_facts(None)
    print_facts(facts)
    with tempfile.TemporaryDirectory(prefix="ubend-trees-") as place:
        trees = [Tree(source, Path(place) / name) for source, name in ((args.old, "old"), (args.new, "new"))]
        sample = str(Path(place) / "sample")
        trees[1].run("-m", "ubend", "sample", sample, "--count", str(args.images), "--size", "128")
        fit = [sample, *args.fit.split(), *(["--device", args.device] if args.device else [])]
        for tree in trees:
            tree.measure(-1, fit, args.device, args.megapixels[:1])
        pairs: list[dict[int, dict[str, float]]] = []
        for pair in range(args.pairs):
            order = (0, 1) if pair % 2 == 0 else (1, 0)
            pairs.append({which: trees[which].measure(pair, fit, args.device, args.megapixels) for which in order})
            print(json.dumps(pairs[-1]), flush=True)
    rows: list[Row] = []
    for name in pairs[0][0]:
        values = {which: sorted(found[which][name] for found in pairs) for which in (0, 1)}
        rows.append({"name": name, **summarise([found[1][name] / found[0][name] for found in pairs])})
        rows[-1] |= {"old": values[0][len(pairs) // 2], "new": values[1][len(pairs) // 2]}
        print(f"{name:24} {rows[-1]['old']:10.4g} -> {rows[-1]['new']:10.4g}   {spread_words(rows[-1], 3)}")
    write_report(__file__, words, args, facts=facts, unit="NEW / OLD", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
