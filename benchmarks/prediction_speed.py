"""Prediction: one image through the network, and a large one from memory to mask in tiles.

    python benchmarks/prediction_speed.py [--side 1024] [--big 10240] [--tiles 512 1024] [--json FILE]

Of an image of --side px: the network as `ubend predict` runs it, and the plain module. Of one of --big px:
megapixels a second of `Predictor.predict`; of the network alone on as many tiles, which lie on the device
already; and of MONAI's sliding window (`pip install monai`), blended by its Gaussian, with the same tiles, overlap,
precision and batch, of the plain module and of the network as ubend runs it. The ways take turns.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from ubend.core.device import fastest_precision
from ubend.inference.predictor import TILE_BATCH_PIXELS, Predictor
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle
from ubend.models.unet import UNet
from ubend.portable.tiling import Tiling

CLASSES, OVERLAP = 3, 0.25
Forward = Callable[[Tensor], Tensor]


def make_predictor(device: torch.device, width: int, tiles: int) -> Predictor:
    """Of a network with random weights, in the fastest precision."""
    torch.manual_seed(0)
    net = UNet(3, CLASSES, width=width, mean=[120.0] * 3, std=[60.0] * 3).eval()
    precision = fastest_precision(device)[0]
    bundle = Bundle(net, make_label_map(list(range(CLASSES))), Sizing(256, True, 3), precision=precision)
    return Predictor(bundle, device, tiles=tiles, overlap=OVERLAP)


def plain(predictor: Predictor) -> Forward:
    """The module itself, under autocast where the precision is bfloat16."""

    @torch.inference_mode()
    def forward(batch: Tensor) -> Tensor:
        low = predictor.precision != torch.float32
        batch = batch.to(predictor.device, torch.float32, memory_format=torch.channels_last)
        with torch.autocast(predictor.device.type, predictor.precision, enabled=low):
            logits: Tensor = predictor.model(batch)
        return logits

    return forward


def image_variants(device: torch.device, width: int, side: int) -> list[Variant]:
    """One image that lies on the device, to its logits."""
    predictor = make_predictor(device, width, 0)
    image = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    ways: dict[str, Forward] = {"plain module": plain(predictor), "ubend": predictor.forward}
    return [Variant(name, lambda way=way: way(image), 1) for name, way in ways.items()]  # type: ignore[misc]


def big_variants(device: torch.device, width: int, side: int, tile: int) -> list[Variant]:
    """One image in main memory to its mask there."""
    predictor = make_predictor(device, width, tile)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    megapixels = side * side / 1e6
    count = max(1, TILE_BATCH_PIXELS[device.type != "cpu"] // tile**2)
    tiles = Tiling(tile, OVERLAP).plan((side, side)).count
    batch = torch.zeros(count, 3, tile, tile, dtype=torch.uint8, device=device)

    def alone() -> None:
        for start in range(0, tiles, count):
            predictor.forward(batch[: tiles - start])

    variants = [
        Variant("network alone", alone, megapixels, warm_up=1),
        Variant("ubend", lambda: list(predictor.predict([image])), megapixels, warm_up=1),
    ]
    if not find_spec("monai"):
        print("left out: MONAI (pip install monai)", flush=True)
        return variants
    window: Any = importlib.import_module("monai.inferers").sliding_window_inference

    def slide(forward: Forward) -> None:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            options = {"overlap": OVERLAP, "mode": "gaussian", "sw_device": device, "device": device}
            window(pixels, (tile, tile), count, forward, **options).argmax(1).to(torch.uint8).cpu().numpy()

    ways = {"MONAI, plain module": plain(predictor), "MONAI, ubend's network": predictor.forward}
    return variants + [
        Variant(name, lambda way=way: slide(way), megapixels, warm_up=1)  # type: ignore[misc]
        for name, way in ways.items()
    ]


def measure(variants: Sequence[Variant], device: torch.device, args: argparse.Namespace, words: str) -> Any:
    """Rows and ratios, printed; `words` say of what."""
    rows = take_turns(variants, device, args.rounds, args.seconds)
    own = next(row for row in rows if row["name"] == "ubend")
    ratios = [divide_rows(own, row) for row in rows if row is not own]
    print(f"\n{words}")
    for row in rows:
        print(f"{row['name']:28}{spread_words(row, 1):>32}")
    for ratio in ratios:
        print(f"{ratio['of']} is {spread_words(ratio, 2)} times as fast as {ratio['to']}", flush=True)
    return {"of": words, "rows": rows, "ratios": ratios}


def main(words: Sequence[str]) -> None:
    parser = make_turns_parser(__doc__)
    parser.add_argument("--width", type=int, help="channels of the first level  [64 on a GPU, 16 on a CPU]")
    parser.add_argument("--side", type=int, default=1024, help="of the image, px  [1024]")
    parser.add_argument("--big", type=int, help="side of the large image, px  [10240 on a GPU, 2048 on a CPU]")
    parser.add_argument("--tiles", type=int, nargs="+", default=[512], help="sides, px  [512]")
    args = parser.parse_args(words)
    device = make_ready(args.device)
    gpu = device.type == "cuda"
    width, big = args.width or (64 if gpu else 16), args.big or (10240 if gpu else 2048)
    facts = read_facts(device, ["monai"] if find_spec("monai") else [])
    print_facts(facts)
    tables = [
        measure(image_variants(device, width, args.side), device, args, f"{args.side} px, width {width}; images/s")
    ]
    for tile in args.tiles:
        of = f"{big} px in tiles of {tile} px, overlap {OVERLAP:.0%}; megapixels/s"
        tables.append(measure(big_variants(device, width, big, tile), device, args, of))
    write_report(__file__, words, args, facts=facts, unit="per s", tables=tables)


if __name__ == "__main__":
    main(sys.argv[1:])
