"""Seconds of the processor for a mask of one image, by torch and by exported files in every precision.

python benchmarks/export_speed.py --network unet --side 1024
python benchmarks/export_speed.py --network lite0 --width 16 --side 1000

From the image file to the mask, without the start of the process and the loading of the model. The networks have
untrained weights: time does not depend on them. Seconds of the processor over the number of threads are what the wall
clock shows on idle cores, and depend less on what else the machine does; memory and caches are shared all the same.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from timing import make_parser, print_facts, read_facts, spread_words, summarise, write_report
from ubend.exporting.graph import build_graph, to_bytes
from ubend.exporting.network_graph import trace_network
from ubend.exporting.precisions import Attempt, PrecisionMaker
from ubend.exporting.proof import draw_images
from ubend.exporting.targets import PRECISIONS, Target
from ubend.inference.predictor import Predictor
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.encoders import EncodedUNet
from ubend.models.model_file import Bundle
from ubend.models.segmentation_net import SegmentationNet
from ubend.models.unet import UNet
from ubend.portable import model as runtime
from ubend.tasks.export import contract_text, describe


def make_bundle(network: str, width: int, side: int) -> Bundle:
    """A model for colour images of `side` px and two classes."""
    mean, std = [120.0] * 3, [60.0] * 3
    net: SegmentationNet = UNet(3, 2, width=width, depth=4, mean=mean, std=std)
    if network == "lite0":
        net = EncodedUNet("tf_efficientnet_lite0", 3, 2, width=width, mean=mean, std=std)
    return Bundle(net.eval(), make_label_map([0, 1], ["background", "object"]), Sizing(side, True, 3))


def write_files(bundle: Bundle, folder: Path) -> dict[str, Path]:
    """The exported files in every precision, calibrated on drawn images of 256 px."""
    graph = build_graph(bundle.model, [trace_network(bundle.model)], "uint8", tiles=False)
    small = replace(bundle, sizing=Sizing(256, True, 3))
    calibrated = contract_text(describe(Path("none"), small, "fp32"))
    files = {}
    targets: tuple[Target, ...] = ("onnx", "openvino")
    for to in targets:
        contract = describe(Path("none"), bundle, "fp32", to)
        maker = PrecisionMaker(graph, to, lambda model: to_bytes(model, calibrated), lambda: draw_images(small))
        for precision in PRECISIONS[to]:
            path = files[f"{to} {precision}"] = folder / f"{to}-{precision}.onnx"
            text = contract_text(replace(contract, precision=precision))
            path.write_bytes(to_bytes(maker.make(Attempt(precision)).model, text))
    return files


def time_rounds(run: Callable[[Path], Any], image: Path, threads: int, rounds: int) -> list[float]:
    """Seconds of the processor over the threads, of each round after a warm-up."""
    seconds = []
    for _round in range(rounds + 1):
        began = time.process_time()
        run(image)
        seconds.append((time.process_time() - began) / threads)
    return seconds[1:]


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--network", choices=["unet", "lite0"], default="lite0", help="the tutorial's, or with an encoder"
    )
    parser.add_argument("--width", type=int, default=64, help="of the first level, or of the decoder  [64]")
    parser.add_argument("--side", type=int, default=1024, help="of the image and of the model, px  [1024]")
    parser.add_argument("--threads", type=int, default=2, help="[2]")
    parser.add_argument("--rounds", type=int, default=5, help="after one warm-up  [5]")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="such as: torch\\ float32, onnx\\ int8  [all]")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    facts = read_facts(None)
    print_facts(facts)
    bundle = make_bundle(args.network, args.width, args.side)
    with tempfile.TemporaryDirectory() as place:
        folder, rows = Path(place), list[dict[str, Any]]()
        drawn = np.random.default_rng(0).integers(0, 256, (args.side, args.side, 3), np.uint8)
        Image.fromarray(drawn).save(folder / "image.jpg")
        image, files = folder / "image.jpg", write_files(bundle, folder)
        loaders: dict[str, Callable[[], Callable[[Path], Any]]] = {
            "torch float32": lambda: Predictor(replace(bundle, precision="float32"), "cpu"),
            **{name: partial(runtime.load, path, threads=args.threads) for name, path in files.items()},
        }
        for name in args.only or loaders:
            row = {"name": name, **summarise(time_rounds(loaders[name](), image, args.threads, args.rounds))}
            rows.append(row)
            print(f"{name:18} {spread_words(row, 3)} s", flush=True)
    write_report(__file__, words, args, facts=facts, unit="s", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
