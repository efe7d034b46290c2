"""Images per second from JPEG files to 128 px, as a store is built, and what other decoders take for it.

    python benchmarks/decoding.py FOLDER [--threads 2] [--rounds 9] [--json FILE]

FOLDER holds the images, all of one size (docs/benchmarks.md: the 1,000 of Kvasir-SEG, 352 px), in the page
cache. The ways take turns. Each way's pixels are compared with those of a full decode by Pillow and the
antialiased resize that training uses: the greatest difference in grey levels, over all images.
OpenCV takes part if it is installed.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image

from ubend.core.device import describe_device, set_up
from ubend.io.images import read_resized, resize_array

SIDE_PX = 128
Pixels = NDArray[np.uint8]
Way = Callable[[Sequence[Path], ThreadPoolExecutor], Pixels]


def by_store(paths: Sequence[Path], pool: ThreadPoolExecutor) -> Pixels:
    """The function that fills a store, with the parts that it is given there."""
    with Image.open(paths[0]) as first:
        native_hw = (first.height, first.width)
    parts = [paths[start : start + 32] for start in range(0, len(paths), 32)]
    read = pool.map(lambda part: read_resized(part, 3, native_hw, (SIDE_PX, SIDE_PX), np.dtype(np.uint8)), parts)
    return np.concatenate([small for small, *_others in read])


def one_by_one(read: Callable[[Path], Pixels]) -> Way:
    """Each file is a task of its own."""
    return lambda paths, pool: np.stack(list(pool.map(read, paths)))


def by_pillow(path: Path) -> Pixels:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))


def by_pillow_draft(path: Path) -> Pixels:
    with Image.open(path) as file:
        file.draft("RGB", (SIDE_PX, SIDE_PX))
        return np.asarray(file.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))


def exact(path: Path) -> Pixels:
    """What the others are compared with."""
    with Image.open(path) as file:
        pixels: Pixels = resize_array(np.asarray(file.convert("RGB")), (SIDE_PX, SIDE_PX))
    return pixels


def ways() -> dict[str, Way]:
    found = {
        "ubend": by_store,
        "Pillow": one_by_one(by_pillow),
        "Pillow, draft": one_by_one(by_pillow_draft),
    }
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError:
        return found
    cv2.setNumThreads(1)

    def by_opencv(flag: int) -> Callable[[Path], Pixels]:
        def read(path: Path) -> Pixels:
            small = cv2.resize(cv2.imread(str(path), flag), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
            return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB), np.uint8)

        return read

    return found | {
        "OpenCV, area": one_by_one(by_opencv(cv2.IMREAD_COLOR)),
        "OpenCV, reduced, area": one_by_one(by_opencv(cv2.IMREAD_REDUCED_COLOR_2)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the threads are those of the pool
    set_up(torch.device("cpu"), False)  # as before every reading: freed memory is kept
    paths = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    rates: dict[str, list[float]] = {name: [] for name in ways()}
    differences = dict.fromkeys(rates, 0)
    with ThreadPoolExecutor(args.threads) as pool:
        want = np.stack(list(pool.map(exact, paths))).astype(np.int16)
        for _ in range(args.rounds):
            for name, way in ways().items():
                began = time.perf_counter()
                found = way(paths, pool)
                rates[name].append(len(paths) / (time.perf_counter() - began))
                differences[name] = max(differences[name], int(np.abs(found - want).max()))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "device": describe_device(torch.device("cpu")),
        "cores": cores,
        "threads": args.threads,
        "pictures": len(paths),
        "rounds": args.rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "imagecodecs": imagecodecs.__version__,
        "libjpeg": imagecodecs.jpeg8_version(),
        "Pillow": PIL.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    for name, found_rates in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["ubend"], found_rates, strict=True)]
        spread = f"({min(found_rates):.0f} to {max(found_rates):.0f})"
        print(
            f"{name:22} {statistics.median(found_rates):6.0f} img/s {spread:15} ubend is "
            f"{statistics.median(ratios):.2f} times as fast; off by {differences[name]} grey levels at most"
        )
    if args.json:
        args.json.write_text(json.dumps({"facts": facts, "img_per_s": rates, "difference": differences}, indent=1))


if __name__ == "__main__":
    main()
