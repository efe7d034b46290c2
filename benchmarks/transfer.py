"""The lessons `transfer` and `breeds` on real images and for several seeds, as tables.

    python benchmarks/transfer.py FOLDER [--only transfer breeds] [--seeds 0 1 2] [--counts 50 200] [--set k=v]

transfer: Dice of the test split (at most 1,000 images of it, at native size, per image, the classes without the
background) from scratch, and initialised from an encoder that learnt the breeds of the training split.
breeds: share of the test split whose breed comes from a second head on a segmentation network's encoder, from the whole
image, from the mask's pixels, from the animal cut out. Mean over the seeds, least to greatest. The test split chooses
nothing.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import make_parser, make_ready, print_facts, read_facts, write_report
from ubend.core.progress import Reporter
from ubend.core.settings import parse_assignment
from ubend_lessons.breeds import VIEWS, teach_breeds
from ubend_lessons.transfer import COUNTS, teach_transfer


def spread(values: Sequence[float]) -> str:
    """`.712 (.709 to .715)`."""
    mean, least, greatest = (f"{v:.3f}".lstrip("0") for v in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {greatest})"


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=["transfer", "breeds"], default=["transfer", "breeds"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="of training images, before all")
    parser.add_argument("--breed-epochs", type=int, default=30)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for all, over width 32, 128 px"
    )
    parser.add_argument("--device")
    args = parser.parse_args(words)
    facts = read_facts(make_ready(args.device))
    print_facts(facts)
    given: dict[str, Any] = {"model.width": 32, "data.size": 128, "train.epochs": 12, "train.batch": 32}
    given |= dict(map(parse_assignment, args.set))
    found: dict[str, list[float]] = {}
    for seed in args.seeds:
        options = {"folder": args.folder, "settings": {**given, "train.seed": seed}, "device": args.device}
        options |= {"epochs": args.breed_epochs, "reporter": Reporter()}
        with tempfile.TemporaryDirectory() as place:
            if "transfer" in args.only:
                for row in teach_transfer(Path(place) / "transfer", counts=args.counts, **options):
                    found.setdefault(f"{row.images} images, from scratch", []).append(row.scratch)
                    found.setdefault(f"{row.images} images, initialised from breeds", []).append(row.transferred)
            if "breeds" in args.only:
                shares = teach_breeds(Path(place) / "breeds", **options)
                for view in VIEWS:
                    found.setdefault(f"breeds, {view}", []).append(shares[view])
    print("\n| | mean (least to greatest) |\n|---|---|")
    for name, values in found.items():
        print(f"| {name} | {spread(values)} |")
    rows = [{"name": name, "values": values} for name, values in found.items()]
    write_report(__file__, words, args, facts=facts, unit="Dice, accuracy", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
