"""Seconds from the start of a process to the mask written, and of the processor: `ubend-runtime` and `ubend`, by turns.

python -m venv ENV; ENV/bin/pip install WHEEL            # the wheel of runtime/; its size is printed, too
python benchmarks/runtime_speed.py IMAGE --runtime ENV/bin/python

The model is a U-Net with EfficientNet-Lite0 of untrained weights: time does not depend on them.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from timing import make_parser, print_facts, read_facts, spread_words, summarise, write_report
from ubend.exporting.graph import build_graph, to_bytes
from ubend.exporting.network_graph import trace_network
from ubend.exporting.precisions import Attempt, PrecisionMaker
from ubend.exporting.proof import draw_images
from ubend.exporting.targets import PRECISIONS, Precision
from ubend.io.images import Sizing, read_image
from ubend.labels.class_table import make_label_map
from ubend.models.encoders import EncodedUNet
from ubend.models.model_file import Bundle
from ubend.tasks.export import contract_text, describe

MEASURE = """
import pathlib, sys
print(sum(path.stat().st_size for path in pathlib.Path(sys.prefix).rglob("*") if path.is_file()))
"""  # bytes of an environment


def write_model(path: Path, size: int, width: int, precision: Precision) -> None:
    """A model of `size` px for colour images and two classes, as `ubend export` writes it, calibrated on drawn images.

    Args:
        width: of the decoder.
    """
    net = EncodedUNet("tf_efficientnet_lite0", 3, 2, width=width, mean=[120.0] * 3, std=[60.0] * 3)
    bundle = Bundle(net.eval(), make_label_map([0, 1], ["background", "object"]), Sizing(size, True, 3))
    graph = build_graph(net, [trace_network(net)], "uint8", tiles=False)
    contract = describe(Path("none"), bundle, "fp32")
    plain = contract_text(contract)
    maker = PrecisionMaker(graph, "onnx", lambda model: to_bytes(model, plain), lambda: draw_images(bundle))
    text = contract_text(replace(contract, precision=precision))
    path.write_bytes(to_bytes(maker.make(Attempt(precision)).model, text))


def time_process(words: Sequence[str | Path], folder: Path) -> tuple[float, float]:
    """(seconds, seconds of a processor) of a command that writes a mask into a new folder."""
    out = folder / str(time.perf_counter_ns())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" or "ubend" in words}
    began, used = time.perf_counter(), _processor_seconds()
    subprocess.run([*map(str, words), "--out", str(out)], check=True, capture_output=True, env=environment)
    seconds = time.perf_counter() - began, _processor_seconds() - used
    assert list(out.glob("*.png"))
    return seconds


def _processor_seconds() -> float:
    """Of all processes that have ended: they do not depend on what else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("image", type=Path, help="a colour image of 8 bits")
    parser.add_argument("--runtime", type=Path, default=Path(sys.executable), help="a Python with ubend-runtime")
    parser.add_argument("--size", type=int, default=352, help="of the model, px  [352]")
    parser.add_argument("--width", type=int, default=32, help="of the decoder; 16 is the default of a CPU  [32]")
    parser.add_argument("--precision", choices=PRECISIONS["onnx"], default="fp32", help="[fp32]")
    parser.add_argument("--alone", action="store_true", help="without ubend beside it")
    parser.add_argument("--rounds", type=int, default=11, help="after one warm-up  [11]")
    args = parser.parse_args(words)
    facts = read_facts(None)
    print_facts(facts)
    size = subprocess.run([args.runtime, "-c", MEASURE], check=True, capture_output=True, text=True).stdout
    print(f"image {read_image(args.image).shape}, environment of the runtime {int(size) / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_model(folder / "model.onnx", args.size, args.width, args.precision)
        given = ["predict", folder / "model.onnx", args.image.resolve()]
        commands = {
            "ubend-runtime": [args.runtime, "-m", "ubend_runtime", *given],
            "ubend": [sys.executable, "-m", "ubend", *given],
        }
        if args.alone:
            del commands["ubend"]
        turns = [[time_process(command, folder) for command in commands.values()] for _ in range(args.rounds + 1)][1:]
    rows = []
    for name, times in zip(commands, zip(*turns, strict=True), strict=True):
        for what, seconds in zip(("", ", processor"), zip(*times, strict=True), strict=True):
            rows.append({"name": name + what, **summarise(seconds)})
            print(f"{rows[-1]['name']:24} {spread_words(rows[-1], 3)} s")
    write_report(__file__, words, args, facts=facts, unit="s", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
