"""The lessons that train the network several times, on real images and for several seeds, as a table.

    python benchmarks/variants.py skips FOLDER [--seeds 0 1 2] [--set key=value ...] [--json FILE]
    python benchmarks/variants.py upsampling FOLDER ...

Per variant: Dice and boundary Dice (2 px) of the test split at native size, per image, the classes without the
background; mean over the seeds, least to greatest. The test split chooses nothing.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import make_parser, make_ready, print_facts, read_facts, write_report
from ubend.core.settings import parse_assignment
from ubend_lessons.variants import Outcome, SilentReporter, teach_skips, teach_upsampling

LESSONS = {"skips": teach_skips, "upsampling": teach_upsampling}


def spread(values: Sequence[float]) -> str:
    """`.712 (.709 to .715)`."""
    mean, least, greatest = (f"{v:.3f}".lstrip("0") for v in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {greatest})"


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("lesson", choices=list(LESSONS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for all; --width 32 unless stated"
    )
    parser.add_argument("--device")
    args = parser.parse_args(words)
    facts = read_facts(make_ready(args.device))
    print_facts(facts)
    given: dict[str, Any] = {"model.width": 32, "train.batch": 32, **dict(map(parse_assignment, args.set))}
    found: dict[str, list[Outcome]] = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as place:
            out, settings = Path(place) / "out", {**given, "train.seed": seed}
            options = {"folder": args.folder, "settings": settings, "device": args.device, "reporter": SilentReporter()}
            for outcome in LESSONS[args.lesson](out, **options):
                found.setdefault(outcome.variant.name, []).append(outcome)
                print(seed, outcome.variant.name, f"{outcome.dice:.4f} {outcome.boundary:.4f}", flush=True)
    print("\n| | Dice | outlines within 2 px |\n|---|---|---|")
    rows = []
    for name, outcomes in found.items():
        dice, boundary = [o.dice for o in outcomes], [o.boundary for o in outcomes]
        rows.append({"name": name, "dice": dice, "boundary": boundary})
        print(f"| {name} | {spread(dice)} | {spread(boundary)} |")
    write_report(__file__, words, args, facts=facts, unit="Dice", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
