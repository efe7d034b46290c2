"""Batches are pure functions of the step, resident or read ahead, on the CPU bit for bit."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.discs import open_folder, read_store
from ubend.core.counter_rng import shuffled_item
from ubend.core.settings import AugmentSettings
from ubend.dataset.batches import Augmentation, Batch, BatchOrder, TrainingBatches
from ubend.dataset.rectangles import Rectangles
from ubend.dataset.sources import WholeImages
from ubend.dataset.store import Store
from ubend.io.images import Sizing
from ubend.labels.class_table import IGNORED

CPU = torch.device("cpu")
KINDS = {
    "none": AugmentSettings(kind="none"),
    "frozen": AugmentSettings(kind="frozen", anchor_shift_px=3),
    "warp": AugmentSettings(
        kind="warp", orientation="free", rotation_deg=180, blur_share=0.5, noise_share=0.5, out_of_frame="reflected"
    ),
    "ignored": AugmentSettings(kind="warp", orientation="free", rotation_deg=180, out_of_frame="ignored"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Eleven images of different shapes; image k is filled with about 20 k."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for k in range(11):
        size = (30 + 2 * k, 52 - 2 * k)
        Image.fromarray((20 * k + rng.integers(0, 10, (*size, 3))).astype(np.uint8)).save(root / f"images/{k}.png")
        Image.fromarray((255 * (rng.random(size) < 0.3)).astype(np.uint8)).save(root / f"masks/{k}.png")
    return open_folder(root, root / "cache", Sizing(32, True, 3))


NUMBERS = np.array([9, 2, 4, 7, 0, 5, 10])  # the training split: not all, not in order


def make(store: Store, kind: str, resident: bool = True, batch: int = 3, seed: int = 4) -> TrainingBatches:
    images = WholeImages(store, NUMBERS, CPU, 2**30 if resident else 0)
    assert images.resident == resident
    window = images.canvas_hw if KINDS[kind].kind != "warp" else (32, 32)
    augmentation = Augmentation(KINDS[kind], window, (np.zeros(3), np.full(3, 255.0)))
    return TrainingBatches(images, BatchOrder(seed, batch), augmentation)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.target, other.target)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_belong_to_steps(store: Store, kind: str, resident: bool) -> None:
    wanted = [make(store, kind).sample(step) for step in range(9)]
    batches = make(store, kind, resident)
    for step in (0, 1, 2, 3, 3, 8, 1, 0, 7, 8, 4, 5):  # in order, again, onward and back
        assert same(batches.sample(step), wanted[step])
    assert len({batch.image.numpy().tobytes() for batch in wanted}) == 9
    assert not same(make(store, kind, resident, seed=5).sample(0), wanted[0])


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_ranges(store: Store, kind: str) -> None:
    batches = make(store, kind)
    for step in range(4):
        batch = batches.sample(step)
        assert batch.image.shape == (3, 3, *batches.crop_hw)
        assert batch.image.dtype == torch.float32
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        assert batch.target.shape == (3, *batches.crop_hw)
        assert batch.target.dtype == torch.uint8
        assert set(batch.target.unique().tolist()) <= {0, 1, IGNORED}
        assert 0 <= batch.image.min() <= batch.image.max() <= 255.01


def test_steps_take_their_positions(store: Store) -> None:
    """Step k shows what stands at positions k B to (k + 1) B of the endless order."""
    batches = make(store, "none")
    for step in range(8):
        items = shuffled_item(4, len(NUMBERS), np.arange(3 * step, 3 * step + 3))
        images, masks = read_store(store, NUMBERS[items], batches.source.canvas_hw)
        batch = batches.sample(step)
        np.testing.assert_array_equal(batch.image.permute(0, 2, 3, 1).numpy(), images)
        np.testing.assert_array_equal(batch.target.numpy(), masks)


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_once_a_round(store: Store, kind: str) -> None:
    plain = AugmentSettings(
        kind=KINDS[kind].kind, orientation="free", rotation_deg=180, brightness=0, contrast=0, color=0, saturation=0,
        gamma=0, blur_share=0, noise_share=0, anchor_shift_px=2,
    )  # fmt: skip
    batches = make(store, kind, batch=1)
    batches.settings = plain
    assert batches.items_per_epoch == len(NUMBERS) * (5 if kind == "frozen" else 1)
    rounds = []
    for number in range(2):
        steps = range(number * batches.items_per_epoch, (number + 1) * batches.items_per_epoch)
        rounds.append([round((float(batches.sample(step).image.mean()) - 4.5) / 20) for step in steps])
        assert sorted(rounds[-1]) == sorted(NUMBERS.tolist() * batches.copies)
    assert rounds[0] != rounds[1]


def test_frozen_copies_return_in_every_epoch(store: Store) -> None:
    batches = make(store, "frozen", batch=1)

    def epoch(number: int) -> set[bytes]:
        steps = range(number * batches.items_per_epoch, (number + 1) * batches.items_per_epoch)
        drawn = [batches.sample(step) for step in steps]
        return {batch.image.numpy().tobytes() + batch.target.numpy().tobytes() for batch in drawn}

    first = epoch(0)
    assert len(first) == batches.items_per_epoch
    assert epoch(3) == first


def test_warps_do_not_return(store: Store) -> None:
    batches = make(store, "warp", batch=1)
    masks = {batches.sample(step).target.numpy().tobytes() for step in range(3 * batches.items_per_epoch)}
    assert len(masks) == 3 * batches.items_per_epoch


def test_padding_is_never_seen_by_a_warp(store: Store) -> None:
    """The canvas beside an image is no image: the reflection of the image itself is seen."""
    batches = make(store, "warp")
    for step in range(7):
        assert not (batches.sample(step).target == IGNORED).any()
    assert (make(store, "none").sample(0).target == IGNORED).any()
    assert any((make(store, "ignored").sample(step).target == IGNORED).any() for step in range(7))


def test_images(store: Store) -> None:
    resident, ahead = (WholeImages(store, NUMBERS, CPU, room) for room in (2**30, 0))
    assert len(resident) == len(NUMBERS)
    assert resident.canvas_hw == tuple(store.shapes_hw[NUMBERS].max(axis=0))
    assert resident.bytes == len(NUMBERS) * resident.canvas_hw[0] * resident.canvas_hw[1] * 4
    assert WholeImages(store, NUMBERS, CPU, resident.bytes).resident
    assert not WholeImages(store, NUMBERS, CPU, resident.bytes - 1).resident
    items = np.array([6, 0, 0, 3])
    for one, other in zip(resident.take(items), ahead.take(items), strict=True):
        assert torch.equal(one, other)
    image, mask = ahead.prefetch(ahead.rectangles(items)).result(20)
    assert torch.equal(image.permute(0, 3, 1, 2), resident.take(items)[0])
    assert torch.equal(mask, resident.take(items)[1])


def test_reading_runs_ahead_in_one_thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = make(store, "none", resident=False)
    readers: list[str] = []
    read = WholeImages.read

    def watch(self: WholeImages, crops: Rectangles) -> Any:
        readers.append(threading.current_thread().name)
        return read(self, crops)

    monkeypatch.setattr(WholeImages, "read", watch)
    for step in range(6):
        batches.sample(step)
    batches.source.prefetch(batches.source.rectangles(np.array([0]))).result(20)  # after all that waits
    assert len(readers) == 6 + 2 + 1  # each once, and two ahead
    assert len(set(readers)) == 1
    assert readers[0].startswith("ubend-read")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_images(tmp_path: Path, dtype: Any) -> None:
    import tifffile

    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for k in range(4):
        tifffile.imwrite(tmp_path / f"images/{k}.tif", rng.integers(0, 60_000, (20, 24)).astype(dtype))
        Image.fromarray((255 * (rng.random((20, 24)) < 0.3)).astype(np.uint8)).save(tmp_path / f"masks/{k}.png")
    store = open_folder(tmp_path, tmp_path / "cache", Sizing(16, False, 1))
    assert store.dtype == dtype
    ends = (np.zeros(1), np.full(1, 60_000.0))
    augmentation, drawn = Augmentation(KINDS["warp"], (16, 16), ends), []
    for room in (2**30, 0):
        images = WholeImages(store, np.arange(4), CPU, room)
        drawn.append(TrainingBatches(images, BatchOrder(0, 4), augmentation).sample(3))
    assert same(*drawn)
    assert drawn[0].image.max() > 30_000
