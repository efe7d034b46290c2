"""`ubend predict` on TIFFs of 16 to 1,024 megapixels: seconds, and the greatest memory that the process held.

    python benchmarks/big_images.py 4096 8192 16384 32768
    python benchmarks/big_images.py 32768x4096        # memory depends on the width, time on all pixels

The images are drawn (colour, 8 bit, in compressed tiles) and deleted again; the model is as `ubend fit` would leave
one of windows, with random weights. Each prediction is a process of its own, start and imports included. Needs Linux
or macOS, and about 0.4 bytes of disk for each pixel.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from timing import make_parser, make_ready, print_facts, read_facts, write_report
from ubend.core.device import fastest_precision
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, save_bundle
from ubend.models.unet import UNet

TILE = 512  # px, of the file
KINDS = 16  # of tiles; each is drawn once
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of what the system calls the greatest resident memory


def draw_tiles(count: int) -> Iterator[NDArray[np.uint8]]:
    """Bright discs on a dark, slightly noisy ground."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:TILE, :TILE]
    kinds = []
    for _ in range(KINDS):
        tile = np.full((TILE, TILE, 3), 60.0) + generator.normal(0, 2, (TILE, TILE, 1))
        for cy, cx, radius in generator.uniform((0, 0, 10), (TILE, TILE, 40), (20, 3)):
            tile[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] += (90, 60, 30)
        kinds.append(tile.clip(0, 255).astype(np.uint8))
    for index in range(count):
        yield kinds[index % KINDS]


def draw_image(path: Path, width: int, height: int) -> None:
    """A TIFF of so many px, tile by tile."""
    tiles = -(-width // TILE) * -(-height // TILE)
    tifffile.imwrite(
        path, draw_tiles(tiles), shape=(height, width, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
        compression="zlib", compressionargs={"level": 1}, metadata=None, bigtiff=width * height > 2**29,
    )  # fmt: skip


def save_model(path: Path, width: int) -> None:
    """A model of windows of 256 px at native scale, in the precision that is fastest here."""
    torch.manual_seed(0)
    net = UNet(3, 2, width=width, mean=[80.0] * 3, std=[40.0] * 3).eval()
    precision = fastest_precision(torch.device("cpu"))[0]
    save_bundle(
        path,
        Bundle(
            net, make_label_map([0, 255]), Sizing(1024, True, 3), precision=precision, window_px=256, scale=(1.0, 1.0)
        ),
    )


def predict(model: Path, image: Path, out: Path, words: Sequence[str]) -> dict[str, float]:
    """Seconds and MiB of one `ubend predict`."""
    command = [sys.executable, "-m", "ubend", "predict", str(model), str(image), "--out", str(out), "--device", "cpu"]
    began = time.perf_counter()
    with subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL) as process:
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"ubend predict ended with {process.returncode}")
    return {"seconds": time.perf_counter() - began, "peak_rss_mib": used.ru_maxrss * RSS_UNIT / 2**20}


def measure(size: str, channels: int, place: Path | None, words: Sequence[str]) -> dict[str, Any]:
    """A row of the report: `size` is SIDE or WIDTHxHEIGHT, `channels` those of the network's first level."""
    width, _x, height = size.partition("x")
    across, down = int(width), int(height or width)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        image, model = Path(folder) / "image.tif", Path(folder) / "model.safetensors"
        draw_image(image, across, down)
        save_model(model, channels)
        facts = {"megapixels": across * down / 1e6, "file_mib": os.path.getsize(image) / 2**20}
        return {"name": f"{across}x{down}", **facts, **predict(model, image, Path(folder) / "out", words)}


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("sizes", nargs="+", help="of the images, px: SIDE or WIDTHxHEIGHT")
    parser.add_argument("--width", type=int, default=16, help="of the network  [16]")
    parser.add_argument("--place", type=Path, help="folder for the images  [the system's for temporary files]")
    own, more = list(words), list[str]()
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)
    facts = read_facts(make_ready("cpu"))
    print_facts(facts)
    rows = []
    for size in args.sizes:
        rows.append(measure(size, args.width, args.place, more))
        print(json.dumps(rows[-1]), flush=True)
    write_report(__file__, words, args, facts=facts, unit="MiB", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
