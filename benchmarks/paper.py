"""What the weight map of the original U-Net is worth: touching cells counted, with it and without, for several seeds.

    python benchmarks/paper.py [--folder FOLDER] [--seeds 0 1 2] [--set key=value ...] [--json FILE]

The recipe `paper` on drawn cells (two classes, touching cells parted by lines of background), or on a folder. Per
variant, of the test split: count error per image (mean of the absolute), F1 of the objects at an IoU of .5, Dice;
mean over the seeds, least to greatest. The test split chooses nothing.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import make_parser, make_ready, print_facts, read_facts, write_report
from ubend.core.settings import parse_assignment
from ubend_lessons.paper import TrainingResult, draw_touching_cells, teach_paper
from ubend_lessons.variants import SilentReporter
from variants import spread

# The recipe's own optimiser, where the lesson takes a faster one.
_GIVEN: dict[str, Any] = {
    "model.width": 32,
    "model.depth": 3,
    "model.dropout": 0.5,
    "train.epochs": 30,
    "train.batch": 1,
    "train.optimizer": "sgd",
    "train.schedule": "constant",
    "train.learning_rate": None,
}


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="of images and masks, and ids/; drawn unless given")
    parser.add_argument("--count", type=int, default=96, help="images that are drawn")
    parser.add_argument("--size", type=int, default=192, help="their side, px")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all")
    parser.add_argument("--device")
    args = parser.parse_args(words)
    facts = read_facts(make_ready(args.device))
    print_facts(facts)
    given = {**_GIVEN, **dict(map(parse_assignment, args.set))}
    found: dict[float, list[TrainingResult]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = args.folder or Path(place) / "cells"
        if args.folder is None:
            draw_touching_cells(folder, args.count, args.size)
            given.setdefault("data.size", args.size)
        for seed in args.seeds:
            out, settings = Path(place) / f"out-{seed}", {**given, "train.seed": seed}
            for own in teach_paper(
                out, folder=folder, settings=settings, device=args.device, reporter=SilentReporter()
            ):
                found.setdefault(own.border_weight, []).append(own)
                error, f1 = own.absolute_error, own.quality.recognition
                print(f"seed {seed}, w0 {own.border_weight:g}: {error:.2f} {f1:.3f} {own.dice:.3f}", flush=True)
    print("\n| | count error per image | F1 of the objects | Dice |\n|---|---|---|---|")
    rows = []
    for weight, counts in found.items():
        name = f"border weight {weight:g}"
        errors, f1s = [own.absolute_error for own in counts], [own.quality.recognition for own in counts]
        dice = [own.dice for own in counts]
        rows.append({"name": name, "count_error": errors, "f1": f1s, "dice": dice})
        print(f"| {name} | {spread(errors)} | {spread(f1s)} | {spread(dice)} |")
    write_report(__file__, words, args, facts=facts, unit="objects per image", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
