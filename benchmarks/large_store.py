"""Trains from a store far larger than what it keeps in memory, and prints the anonymous memory it took.

    python benchmarks/large_store.py --gib 10

Makes a store of noise images of 512 px (as `open_store` would have left it), trains a small network on
windows of it, and watches RssAnon in /proc/self/status. Needs Linux and that much free disk.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from timing import make_parser, make_ready, print_facts, read_facts, summarise, write_report
from ubend.core.plan import AugmentPlan
from ubend.dataset.batches import Augmentation, BatchOrder, TrainingBatches
from ubend.dataset.sources import WholeImages
from ubend.dataset.store import THUMBNAIL_PX, Store, _check_sums, _digest, _read_times
from ubend.models.unet import UNet
from ubend.training.losses import Loss

SIDE = 512


def make_store(folder: Path, gib: float) -> Store:
    """A store of `gib` GiB: noise images, masks of 0 and 1."""
    count = int(gib * 2**30 / (SIDE * SIDE * 4))
    generator = np.random.default_rng(0)
    block = generator.integers(0, 256, (64, SIDE * SIDE * 3), np.uint8)
    folder.mkdir()
    for name, width in (("images.bin", SIDE * SIDE * 3), ("masks.bin", SIDE * SIDE)):
        with (folder / name).open("wb") as file:
            for index in range(count):
                row = block[index % 64][:width]
                file.write((row if name == "images.bin" else row & 1).tobytes())
    pixels = SIDE * SIDE
    np.savez(
        folder / "index.npz",
        offsets=np.arange(count + 1, dtype=np.int64) * pixels,
        shapes_hw=np.full((count, 2), SIDE, np.int64),
        native_hw=np.full((count, 2), SIDE, np.int64),
        class_pixels=np.zeros((count, 256), np.int64),
        thumbnails=np.zeros((count, THUMBNAIL_PX, THUMBNAIL_PX), np.uint8),
        has_unseen=np.zeros(count, bool),
        pixel_hashes=np.zeros(count, np.uint64),
    )
    facts = {"channels": 3, "dtype": "uint8", "hashes": [["", ""]] * count}
    facts |= {"files": _check_sums(folder), "changed_ns": _read_times(folder)}
    (folder / "store.json").write_text(json.dumps(facts | {"digest": _digest(facts)}))
    return Store(folder)


def anonymous_mib() -> float:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--place", type=Path, default=None, help="where the store is made, and deleted again")
    args = parser.parse_args(words)
    device = make_ready("cpu")
    facts = read_facts(device)
    print_facts(facts)
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        store = make_store(Path(place) / "store", args.gib)
        size = sum(os.path.getsize(store.folder / name) for name in ("images.bin", "masks.bin"))
        images = WholeImages(store, np.arange(len(store)), device, budget_bytes=2**30)
        settings = AugmentPlan(kind="warp", orientation="free", rotation_deg=180.0)
        augmentation = Augmentation(settings, (128, 128), (np.zeros(3), np.full(3, 255.0)))
        batches = TrainingBatches(images, BatchOrder(0, 16), augmentation)
        model = UNet(3, 2, width=8).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        loss = Loss("dice+ce")
        peak, began = 0.0, time.perf_counter()
        for step in range(args.steps):
            batch = batches.sample(step)
            sums, counts = loss.sum(model(batch.image), batch.target), loss.count(batch.target, 2)
            loss.mean(sums, counts).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            peak = max(peak, anonymous_mib())
        rate = args.steps * 16 / (time.perf_counter() - began)
    print(
        f"a store of {size / 2**30:.1f} GiB, {len(store)} images,"
        f" {'resident' if images.resident else 'read in windows'}, {args.steps} steps"
        f" at {rate:.0f} img/s; peak of anonymous memory {peak:.0f} MiB"
    )
    row = {"name": f"store of {args.gib:g} GiB", **summarise([peak]), "img_per_s": rate}
    write_report(__file__, words, args, facts=facts, unit="MiB", rows=[row])


if __name__ == "__main__":
    main(sys.argv[1:])
