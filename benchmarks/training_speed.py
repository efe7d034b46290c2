"""Images per second of whole epochs, data and augmentation included: ubend's loop and the tutorial's.

    python benchmarks/training_speed.py                                    # width 16 and batch 16 on a CPU
    python benchmarks/training_speed.py --data PETS --width 64 --compile   # as in docs/benchmarks.md, on a GPU

Without `--data`, `--images` images of 256 px are drawn. ubend's loop takes batches from its store, augments
them as `modern` does, averages the weights and sums the losses. The tutorial's decodes and resizes the files again
in every epoch, in the worker processes of a DataLoader, and does not augment; its network is as wide as ubend's.
Each loop's share is of the rate of the bare step (forward, backward, optimiser on one batch that stays on the
device; see `step_speed.py`) in the same process: what data and augmentation leave of it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from engine import begin_training, make_step, open_data
from step_speed import CLASSES
from step_speed import make_step as make_bare_step
from timing import (
    Row,
    Variant,
    divide_rows,
    make_ready,
    make_turns_parser,
    print_facts,
    read_facts,
    spread_words,
    take_turns,
    write_report,
)
from tutorial import TutorialImages, TutorialUNet, make_epoch
from ubend import UNet
from ubend.accel.gate import usable
from ubend.dataset.dataset import Dataset
from ubend.dataset.sample import draw_sample
from ubend.labels.mask_files import FileMask


def loop_variants(folder: Path, cache: Path, args: argparse.Namespace, device: torch.device) -> list[Variant]:
    """ubend's loops."""
    kinds: dict[str, dict[str, object]] = {
        "ubend's loop": {},
        "ubend's loop, no augmentation": {"augment.kind": "none"},
        "ubend's loop, compiled": {"train.compile": True},
    }
    if not args.compile:
        del kinds["ubend's loop, compiled"]
    variants = []
    for name, changes in kinds.items():
        step = "ubend's step, compiled" if "train.compile" in changes else "ubend's step"
        run = make_step(begin_training(*open_data(folder, cache, device, settings_of(args) | changes), device))
        variants.append(Variant(name, run, args.batch, facts={"of": "ubend", "step": step}))
    return variants


def settings_of(args: argparse.Namespace) -> dict[str, object]:
    """What all of ubend's loops get."""
    return {"data.size": args.size, "model.width": args.width, "train.batch": args.batch, "train.epochs": 10}


def tutorial_variant(data: Dataset, args: argparse.Namespace, device: torch.device) -> Variant:
    """The tutorial's epoch over the same training split."""
    pairs, labels = data.pairs("train"), data.labels
    if labels.kind != "value" or not all(isinstance(pair.mask, FileMask) for pair in pairs):
        raise SystemExit(f"{data.folder.root}: the tutorial's loop reads masks only from files of values")
    files, values = [(pair.image, pair.mask.path) for pair in pairs], [codes[0] for codes in labels.codes]
    images = TutorialImages(files, values, args.size)
    run = make_epoch(images, len(values), args.width, args.batch, args.workers, device)
    facts = {"of": "tutorial", "step": "tutorial's step"}
    return Variant("tutorial's loop", run, len(files), tuning="none", warm_up=1, facts=facts)


def step_variants(args: argparse.Namespace, device: torch.device) -> list[Variant]:
    """The bare steps that the loops are measured by."""
    image = torch.randn(args.batch, 3, args.size, args.size, device=device)
    target = torch.randint(0, CLASSES, (args.batch, args.size, args.size), device=device)
    plain = make_bare_step(TutorialUNet(3, CLASSES, args.width), image, target, "float32", False)
    own = make_bare_step(
        UNet(3, CLASSES, width=args.width), image, target, "captured" if usable(image) else "bfloat16", True
    )
    variants = [
        Variant("tutorial's step", plain, args.batch, tuning="none", facts={"of": "tutorial"}),
        Variant("ubend's step", own, args.batch, facts={"of": "ubend"}),
    ]
    if args.compile:
        compiled = make_bare_step(UNet(3, CLASSES, width=args.width), image, target, "compiled", True)
        variants.append(Variant("ubend's step, compiled", compiled, args.batch, facts={"of": "ubend"}))
    return variants


def add_shares(rows: Sequence[Row]) -> list[Row]:
    """Each loop's row with its share of its step's rate."""
    named = {row["name"]: row for row in rows}
    return [
        {**row, "step_share": divide_rows(row, named[row["step"]])["median"]} if row.get("step") in named else row
        for row in rows
    ]


def main(words: Sequence[str]) -> None:
    parser = make_turns_parser(__doc__)
    parser.add_argument("--data", type=Path, help="a folder of images and mask files; else they are drawn")
    parser.add_argument("--images", type=int, default=128, help="to draw, of 256 px  [128]")
    parser.add_argument("--size", type=int, default=128, help="px  [128]")
    parser.add_argument("--width", type=int, help="channels of the first level  [64 on a GPU, 16 on a CPU]")
    parser.add_argument("--batch", type=int, help="images  [64 on a GPU, 16 on a CPU]")
    parser.add_argument("--workers", type=int, help="of the tutorial's DataLoader  [6, or as many as cores]")
    parser.add_argument("--compile", action="store_true", help="ubend's loop compiled, too")
    args = parser.parse_args(words)
    device = make_ready(args.device)
    gpu, facts = device.type == "cuda", read_facts(device)
    args.width, args.batch = args.width or (64 if gpu else 16), args.batch or (64 if gpu else 16)
    args.workers = min(6, facts["cores"]) if args.workers is None else args.workers
    with tempfile.TemporaryDirectory() as place:
        folder, cache = args.data, Path(place) / "cache"
        if folder is None:
            folder = Path(place) / "sample"
            draw_sample(folder, args.images, 256)
        variants = loop_variants(folder, cache, args, device)
        variants.append(tutorial_variant(open_data(folder, cache, device, settings_of(args))[0], args, device))
        variants += step_variants(args, device)
        rows = add_shares(take_turns(variants, device, args.rounds, args.seconds))
    named = {row["name"]: row for row in rows}
    theirs = named["tutorial's loop"]
    ratios = [divide_rows(row, theirs) for row in rows if "step" in row and row is not theirs]
    print()
    print_facts(facts)
    print(
        f"U-Net of width {args.width}, {args.size} px, batch {args.batch}, {args.rounds} rounds of {args.seconds:g} s"
    )
    for row in rows:
        share = f"{row['step_share']:.0%} of: {row['step']}" if "step_share" in row else ""
        print(f"{row['name']:32}{spread_words(row, int(row['median'] < 100)):^30}{share}")
    for ratio in ratios:
        print(f"{ratio['of']} is {spread_words(ratio, 2)} times as fast as {ratio['to']}")
    write_report(__file__, words, args, facts=facts, unit="img/s", rows=rows, ratios=ratios)


if __name__ == "__main__":
    main(sys.argv[1:])
