"""Seconds, memory and recall of the search for near-identical images, by the number of thumbnails.

    python benchmarks/near_duplicates.py [--data ../shared/data] [--counts 5000 20000 50000 100000] [--json FILE]

Sets: `mixed` are thumbnails of the images in --data, random parts of these, drawn textures, and for a fifth changed
copies (brightness, noise, orientation); of `video` half are one view that changes slowly into another, with noise, and
half are mixed; of `noise` half are one image, each time with its own noise, so that they correlate with about .96. The
search for groups is that of `ubend fit`, the search for candidates that of `ubend doctor`. Each is timed in a process
of its own; memory is the peak of that process less what it held before, with the thumbnails. Recall is against the
comparison of all pairs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from timing import Row, make_parser, print_facts, read_facts, write_report
from ubend.dataset.near_duplicates import Threshold, find_similar
from ubend.dataset.orientations import VIEWS, turn
from ubend.dataset.splits import THRESHOLD, find_near_duplicates
from ubend.doctor.duplicates import CANDIDATE, find_candidates

SIDE_PX, LARGE_PX = 32, 128
COPIES, TEXTURES = 0.2, 0.4  # shares of the mixed set
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif")
EXACT_COUNT = 5000  # thumbnails of which recall is given

_Bytes = NDArray[np.uint8]


def read_images(data: Path) -> list[Image.Image]:
    """The images of all sets in grey, LARGE_PX x LARGE_PX; masks are left out."""
    images = []
    for path in sorted(data.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.parent.name == "images":
            with Image.open(path) as file:
                file.draft("L", (LARGE_PX, LARGE_PX))
                images.append(file.convert("L").resize((LARGE_PX, LARGE_PX), Image.Resampling.BOX))
    return images


def draw_mixed(count: int, images: Sequence[Image.Image]) -> _Bytes:
    """(count, SIDE_PX, SIDE_PX) in random order."""
    rng, out = np.random.default_rng(0), np.empty((count, SIDE_PX, SIDE_PX), np.uint8)
    copies, textures = int(COPIES * count), int(TEXTURES * count)
    size = SIDE_PX, SIDE_PX
    for index in range(count - copies):
        if index < textures:
            cells = rng.integers(20, 235, (int(rng.integers(3, 9)),) * 2, np.uint8)
            out[index] = np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC))
        elif index - textures < len(images):
            out[index] = np.asarray(images[index - textures].resize(size, Image.Resampling.BOX))
        else:
            side = rng.uniform(0.35, 0.7) * LARGE_PX
            left, top = rng.uniform(0, LARGE_PX - side, 2)
            part = (left, top, left + side, top + side)
            out[index] = np.asarray(images[int(rng.integers(len(images)))].resize(size, Image.Resampling.BOX, part))
    for index in range(count - copies, count):
        plane = turn(out[rng.integers(count - copies)].astype(float), int(rng.integers(VIEWS)))
        noise = rng.normal(0, rng.uniform(0, 4), plane.shape)
        out[index] = (plane * rng.uniform(0.7, 1.1) + rng.uniform(-10, 10) + noise).clip(0, 255)
    rng.shuffle(out)
    return out


def draw_alike(count: int, images: Sequence[Image.Image], kind: str) -> _Bytes:
    """(count, SIDE_PX, SIDE_PX): the first half is of a video, or of one image with noise; the others are mixed."""
    rng, out = np.random.default_rng(1), draw_mixed(count, images)
    first, last = (np.asarray(images[k].resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), float) for k in (0, 1))
    for index in range(count // 2):
        share = 2 * index / count if kind == "video" else 0.0
        deviation = 3.0 if kind == "video" else 0.12 * first.std()
        plane = (1 - share) * first + share * last
        out[index] = (plane * 0.6 + 40 + rng.normal(0, deviation, plane.shape)).clip(0, 255)
    return out


def measure(path: str, kind: str) -> tuple[float, float, int]:
    """(seconds of processor time, peak in MiB, groups or candidates)."""
    thumbnails = np.load(path)
    search = find_near_duplicates if kind == "groups" else find_candidates
    before, began = _peak_mib() - thumbnails.nbytes / 2**20, time.process_time()
    result = search(thumbnails)
    seconds = time.process_time() - began
    return seconds, _peak_mib() - before, int(np.max(result)) + 1 if kind == "groups" else len(result)


def _peak_mib() -> float:
    """Peak of resident memory of this process; `ru_maxrss` would include that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def find_pairs(thumbnails: _Bytes, threshold: Threshold, exact: bool) -> set[tuple[int, int]]:
    """The pairs of near-identical images."""
    found = set[tuple[int, int]]()
    for pairs in find_similar(thumbnails, threshold, lambda left, right: left == right, exact=exact):
        found |= {(min(pair), max(pair)) for pair in zip(pairs.turned.tolist(), pairs.upright.tolist(), strict=True)}
    return found


def print_recall(images: Sequence[Image.Image], rows: list[Row]) -> None:
    sets = {"mixed": draw_mixed(EXACT_COUNT, images), "real images": draw_mixed(0, images)}
    size = SIDE_PX, SIDE_PX
    sets["real images"] = np.stack([np.asarray(image.resize(size, Image.Resampling.BOX)) for image in images])
    for name, thumbnails in sets.items():
        whole, part = (find_near_duplicates(thumbnails, exact=exact) for exact in (True, False))
        equal = np.array_equal(whole, part)
        for kind, threshold in (("groups", THRESHOLD), ("candidates", CANDIDATE)):
            exact, hashed = (find_pairs(thumbnails, threshold, exact) for exact in (True, False))
            row = {"name": f"{name}, {len(thumbnails)}, {kind}", "pairs": len(exact), "found": len(exact & hashed)}
            rows.append(row)
            print(f"{row['name']}: {row['found']} of {row['pairs']} pairs, wrong {len(hashed - exact)}", flush=True)
        print(f"{name}: groups equal: {equal}", flush=True)


def main(words: Sequence[str]) -> None:
    parser: argparse.ArgumentParser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--counts", type=int, nargs="+", default=[5000, 20_000, 50_000, 100_000])
    parser.add_argument("--sets", nargs="+", default=["mixed", "video", "noise"])
    args = parser.parse_args(words)
    facts, rows = read_facts(None), list[Row]()
    print_facts(facts)
    images = read_images(args.data)
    print_recall(images, rows)
    print(
        "| set | thumbnails | groups: s | MiB | number | candidates: s | MiB | number |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for kind in args.sets:
            for count in args.counts if kind == "mixed" else args.counts[-1:]:
                path = Path(temporary) / "thumbnails.npy"
                np.save(path, draw_mixed(count, images) if kind == "mixed" else draw_alike(count, images, kind))
                cells = []
                for search in ("groups", "candidates"):
                    with get_context("spawn").Pool(1) as pool:
                        seconds, peak, number = pool.apply(measure, (str(path), search))
                    cells.append(f"{seconds:.1f} | {peak:.0f} | {number}")
                    rows.append({"name": f"{kind} {count} {search}", "seconds": seconds, "mib": peak, "number": number})
                print(f"| {kind} | {count} | {' | '.join(cells)} |", flush=True)
    write_report(__file__, words, args, facts=facts, unit="see each row", rows=json.loads(json.dumps(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
