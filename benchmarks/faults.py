"""The tutorial's faults on real images, for several seeds: what its way says, and what is so.

    python benchmarks/faults.py FOLDER [--seeds 0 1 2] [--set key=value ...] [--json FILE]
    python benchmarks/faults.py kvasir-seg/Kvasir-SEG --set data.split=kvasir-seg/splits.csv
    python benchmarks/faults.py oxford-iiit-pet

Width 32, 20 epochs, batch 64 and 128 px unless stated; four trainings for each seed. A seed also draws the images
that are kept apart from the copies. Each figure: mean over the seeds, least to greatest; the difference likewise, of
the same seed.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import make_parser, make_ready, print_facts, read_facts, write_report
from ubend.core.progress import Reporter
from ubend.core.settings import parse_assignment
from ubend_lessons.faults import Finding, find_faults, read_sized

_GIVEN: dict[str, Any] = {"model.width": 32, "train.batch": 64, "train.epochs": 20}
_COPIED = 1000  # images


def spread(values: Sequence[float], form: str) -> str:
    """`0.712 (0.709 to 0.715)`."""
    mean, least, greatest = (f"{value:{form}}" for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {greatest})"


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all trainings")
    parser.add_argument("--device")
    args = parser.parse_args(words)
    facts = read_facts(make_ready(args.device))
    print_facts(facts)
    given = {**_GIVEN, **dict(map(parse_assignment, args.set))}
    sized = read_sized(args.folder, given)
    found: dict[str, list[Finding]] = {}
    for seed in args.seeds:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as place, Reporter() as reporter:
            more: dict[str, Any] = {"settings": {**given, "train.seed": seed}, "copied": _COPIED}
            for finding in find_faults(sized, Path(place), device=args.device, reporter=reporter, **more):
                found.setdefault(finding.measure, []).append(finding)
                print(seed, *finding.row(), sep=" | ", flush=True)
        print(f"seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    print("\n| | as the text does | fixed | difference |\n|---|---|---|---|")
    rows = []
    for measure, findings in found.items():
        form = findings[0].form
        columns = {
            "text": [finding.text for finding in findings],
            "mended": [finding.mended for finding in findings],
            "difference": [finding.text - finding.mended for finding in findings],
        }
        rows.append({"name": measure, "fault": findings[0].fault, **columns})
        print(f"| {measure} | {' | '.join(spread(values, form) for values in columns.values())} |")
    write_report(__file__, words, args, facts=facts, unit="see each row", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
