"""Seconds that `ubend data FOLDER` takes on 10,000 pairs that it has never seen, as a whole process.

python benchmarks/data_check.py [--pairs 10000] [--place FOLDER]

Images are JPEG and masks PNG, 256 px; once with masks of values, once of colours. They are a hundred
drawn images, each in a hundred crops, turned and mirrored, so that no two are alike.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from timing import Row, make_parser, print_facts, read_facts, summarise, write_report

SIZE_PX, LARGE_PX, DRAWN = 256, 400, 100
COLORS = np.array([(0, 0, 0), (220, 40, 30), (30, 120, 230), (240, 200, 40)], np.uint8)


def draw(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(LARGE_PX, LARGE_PX, 3) image and (LARGE_PX, LARGE_PX) class index of ellipses on a shaded ground."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:LARGE_PX, :LARGE_PX]
    index = np.zeros((LARGE_PX, LARGE_PX), np.uint8)
    for _ in range(25):
        cy, cx, ry, rx = *random.uniform(0, LARGE_PX, 2), *random.uniform(10, 45, 2)
        index[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = random.integers(1, len(COLORS))
    shade = np.asarray(Image.fromarray(random.integers(40, 140, (6, 6), np.uint8)).resize((LARGE_PX, LARGE_PX)), float)
    image = shade[:, :, None] + COLORS[index] * 0.4 + random.normal(0, 6, (LARGE_PX, LARGE_PX, 3))
    return image.clip(0, 255).astype(np.uint8), index


def make(root: Path, pairs: int) -> None:
    """`root/values` and `root/colors`, each with images/ and masks/; they share the images."""
    for folder in ("values/images", "values/masks", "colors/masks"):
        (root / folder).mkdir(parents=True)
    (root / "colors" / "images").symlink_to(root / "values" / "images")
    images = [draw(number) for number in range(min(DRAWN, pairs))]

    def save(number: int) -> None:
        random = np.random.default_rng([7, number])
        turns, mirror = int(random.integers(4)), int(random.choice([-1, 1]))
        image, index = (np.rot90(pixels, turns)[:, ::mirror] for pixels in images[number % len(images)])
        top, left = random.integers(0, LARGE_PX - SIZE_PX, 2)
        crop = slice(top, top + SIZE_PX), slice(left, left + SIZE_PX)
        name = f"{number:05d}"
        Image.fromarray(image[crop]).save(root / "values/images" / f"{name}.jpg", quality=90)
        Image.fromarray(index[crop]).save(root / "values/masks" / f"{name}.png")
        Image.fromarray(COLORS[index[crop]]).save(root / "colors/masks" / f"{name}.png")

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(pairs)))


def measure(folder: Path, place: Path, cache: Path) -> float:
    """Seconds of the whole process."""
    environment = os.environ | {"UBEND_CACHE": str(cache)}
    began = time.perf_counter()
    command = [sys.executable, "-m", "ubend", "data", str(folder), "--out", str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return seconds


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--place", type=Path, help="where to keep the pairs; a second run takes them from there")
    options = parser.parse_args(words)
    facts, rows = read_facts(None), list[Row]()
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.place or Path(temporary)) / f"pairs-{options.pairs}"
        if not root.exists():
            make(root, options.pairs)
        print_facts(facts)
        print(f"{options.pairs} pairs of {SIZE_PX} px, files in the page cache")
        for kind in ("values", "colors"):
            for index, state in enumerate(("cold", "again")):
                cache = Path(temporary) / f"cache-{kind}"
                seconds = measure(root / kind, Path(temporary) / f"said-{kind}-{index}", cache)
                rows.append({"name": f"masks of {kind}, {state}", **summarise([seconds])})
                print(f"{rows[-1]['name']:24} {seconds:7.1f} s", flush=True)
    write_report(__file__, words, options, facts=facts, unit="s", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
