"""Images per second of training steps of the default network, a U-Net on EfficientNet-Lite0, and of a peer's.

    python benchmarks/encoder_speed.py --compile          # as in docs/benchmarks.md, on a GPU

ubend's rows are steps of its training loop on drawn images: data, `modern` augmentation, loss, optimizer and EMA. The
peer is segmentation_models.pytorch's U-Net on the same encoder (timm's), a bare step on one batch that stays on the
device (forward, backward, fused Adam; bfloat16, channels last), with `--compile` also compiled by torch, which takes
minutes: no data and no augmentation, which flatters the peer.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engine import begin_training, make_step, open_data
from step_speed import make_step as make_bare_step
from timing import (
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
from ubend.dataset.sample import draw_sample
from zoo_peer import ENCODER, PeerNet, is_here

CLASSES = 3  # of the drawn images


def peer_steps(batch: int, size: int, compiled: bool, device: torch.device) -> list[Variant]:
    """The peer's bare steps."""
    image = torch.randn(batch, 3, size, size, device=device)
    target = torch.randint(0, CLASSES, (batch, size, size), device=device)

    def step(form: str) -> Callable[[], None]:
        network = PeerNet("smp", 3, CLASSES, [0.0] * 3, [1.0] * 3)
        return make_bare_step(network, image, target, form, True)  # type: ignore[arg-type]

    forms = {"smp's bare step": "bfloat16"} | ({"smp's bare step, compiled": "compiled"} if compiled else {})
    return [Variant(name, step(form), batch, tuning="all") for name, form in forms.items()]


def main(words: Sequence[str]) -> None:
    parser = make_turns_parser(__doc__)
    parser.add_argument("--images", type=int, default=128, help="to draw  [128]")
    parser.add_argument("--size", type=int, default=256, help="px  [256]")
    parser.add_argument("--width", type=int, default=32, help="channels of the decoder's last level  [32]")
    parser.add_argument("--batch", type=int, default=32, help="images  [32]")
    parser.add_argument("--compile", action="store_true", help="the peer's step compiled, too")
    args = parser.parse_args(words)
    device = make_ready(args.device)
    facts = read_facts(device)
    fixed = {"data.size": args.size, "train.batch": args.batch, "train.epochs": 10}
    fixed |= {"model.encoder": ENCODER, "model.width": args.width}  # a width alone stands for the plain U-Net
    kinds: dict[str, dict[str, object]] = {
        "ubend's loop": {},
        "ubend's loop, no augmentation": {"augment.kind": "none"},
    }
    with tempfile.TemporaryDirectory() as place:
        draw_sample(Path(place) / "sample", args.images, args.size)
        variants = []
        for name, changes in kinds.items():
            data, settings = open_data(Path(place) / "sample", Path(place) / "cache", device, fixed | changes)
            variants.append(Variant(name, make_step(begin_training(data, settings, device)), args.batch))
        if is_here("smp"):
            variants += peer_steps(args.batch, args.size, args.compile, device)
        rows = take_turns(variants, device, args.rounds, args.seconds)
    ratios = [divide_rows(rows[0], row) for row in rows[2:]]
    print()
    print_facts(facts)
    print(f"{args.size} px, batch {args.batch}, width {args.width}, {args.rounds} rounds of {args.seconds:g} s")
    for row in rows:
        print(f"{row['name']:32}{spread_words(row, int(row['median'] < 100)):^30}")
    for ratio in ratios:
        print(f"{ratio['of']} is {spread_words(ratio, 2)} times as fast as {ratio['to']}")
    write_report(__file__, words, args, facts=facts, unit="img/s", rows=rows, ratios=ratios)


if __name__ == "__main__":
    main(sys.argv[1:])
