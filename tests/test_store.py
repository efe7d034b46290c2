"""The store: built once, named by its content, whole or absent."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import ubend.dataset.store as store_module
from support.discs import open_folder as open_any
from support.discs import read_store
from support.refusal import raises
from ubend.core.errors import DataError, OutputError, PairError
from ubend.core.files import default_cache
from ubend.dataset.scan import read_headers
from ubend.dataset.splits import find_near_duplicates
from ubend.dataset.store import Store, clear_stores, hash_pairs, list_stores, open_store
from ubend.io.images import Sizing, model_size, read_image, resize_array, resize_mask
from ubend.labels.class_table import IGNORED, LabelMap, make_label_map
from ubend.labels.mask_files import FileMask
from ubend.layouts.folder import read_folder
from ubend.layouts.pairs import Pair

LAYOUT = Sizing(24, True, 3)
LABELS = make_label_map([0, 255])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of six sizes, with masks of 0 and 255."""
    rng = np.random.default_rng(0)
    root = tmp_path / "set"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(6):
        size = (20 + 3 * number, 40 - 4 * number)
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(root / f"images/{number}.png")
        Image.fromarray((255 * (rng.random(size) < 0.4)).astype(np.uint8)).save(root / f"masks/{number}.png")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def open_folder(root: Path, cache: Path, sizing: Sizing = LAYOUT, labels: LabelMap = LABELS) -> Store:
    return open_any(root, cache, sizing, labels)


def stores(cache: Path) -> list[str]:
    return sorted(path.parent.name for path in cache.glob("*/store.json"))


def test_holds_what_the_files_hold(folder: Path, cache: Path) -> None:
    store = open_folder(folder, cache)
    assert len(store) == 6
    for number, pair in enumerate(read_folder(folder).pairs):
        image = read_image(pair.image)
        mask = (np.asarray(Image.open(pair.mask.path)) // 255).astype(np.uint8)
        size = model_size(mask.shape, 24, True)  # type: ignore[arg-type]
        assert tuple(store.native_hw[number]) == mask.shape
        assert tuple(store.shapes_hw[number]) == size
        np.testing.assert_array_equal(store.image(number), resize_array(image, size))
        np.testing.assert_array_equal(store.mask(number), resize_mask(mask, size))
        np.testing.assert_array_equal(store.class_pixels[number], np.bincount(mask.reshape(-1), minlength=256))
    assert store.thumbnails.shape == (6, 32, 32)
    assert store.thumbnails.std() > 5
    with pytest.raises(ValueError, match="read-only"):
        store.image(0)[:] = 0


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 60_000), (np.float32, 1.5)])
def test_keeps_the_depth(folder: Path, cache: Path, dtype: type, top: float) -> None:
    for path in (folder / "images").iterdir():
        tifffile.imwrite(path.with_suffix(".tif"), (read_image(path, 1)[:, :, 0] / 255 * top).astype(dtype))
        path.unlink()
    store = open_folder(folder, cache, Sizing(24, True, 1))
    assert store.dtype == dtype
    assert top * 0.5 < store.images.max() <= top
    first = read_image(folder / "images/0.tif")
    np.testing.assert_array_equal(store.image(0), resize_array(first, tuple(store.shapes_hw[0])))
    assert store.thumbnails.std() > 5


@pytest.mark.parametrize(("dtype", "extreme"), [(np.float32, -9999), (np.uint16, 65535)])
def test_extreme_values_are_left_out_of_thumbnails(folder: Path, cache: Path, dtype: type, extreme: float) -> None:
    """Images that differ stay different, although each has an undeclared nodata value or a hot pixel."""
    rng = np.random.default_rng(0)
    for corner in (0, 1, 9):
        for path in list((folder / "images").iterdir()):
            pixels = (100 + 50 * rng.random((*read_image(path).shape[:2], 1))).astype(dtype)
            pixels[:corner, :corner] = extreme
            path.unlink()
            tifffile.imwrite(path.with_suffix(".tif"), pixels)
        thumbnails = open_folder(folder, cache, Sizing(24, True, 1)).thumbnails
        assert thumbnails.reshape(6, -1).std(axis=1).min() > 10
        assert len(set(find_near_duplicates(thumbnails).tolist())) == 6


def test_canvas(folder: Path, cache: Path) -> None:
    store = open_folder(folder, cache)
    canvas = (int(store.shapes_hw[:, 0].max()) + 2, int(store.shapes_hw[:, 1].max()) + 1)
    numbers = np.array([4, 0, 5, 0])
    images, masks = read_store(store, numbers, canvas)
    assert images.shape == (4, *canvas, 3)
    assert masks.dtype == np.uint8
    for image, mask, number in zip(images, masks, numbers, strict=True):
        h, w = store.shapes_hw[number]
        padding = ((0, canvas[0] - h), (0, canvas[1] - w))
        np.testing.assert_array_equal(image, np.pad(store.image(number), (*padding, (0, 0)), mode="edge"))
        np.testing.assert_array_equal(mask, np.pad(store.mask(number), padding, constant_values=IGNORED))


def test_second_opening_builds_nothing(folder: Path, cache: Path) -> None:
    first = open_folder(folder, cache)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    told: list[int] = []
    pairs = read_folder(folder).pairs
    shapes, hashes = [header.size_hw for header in read_headers(pairs)], hash_pairs(pairs)
    second = open_store(pairs, shapes, LAYOUT, LABELS, hashes, cache, lambda done, total: told.append(done))
    assert second.folder == first.folder
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_named_by_content(folder: Path, cache: Path) -> None:
    first = open_folder(folder, cache).folder
    folder = folder.rename(folder.with_name("renamed"))
    for path in (folder / "images").iterdir():
        os.utime(path)
    assert open_folder(folder, cache).folder == first
    others = [
        open_folder(folder, cache, replace(LAYOUT, size_px=25)),
        open_folder(folder, cache, replace(LAYOUT, keep_aspect=False)),
        open_folder(folder, cache, replace(LAYOUT, channels=1)),
        open_folder(folder, cache, labels=make_label_map([255, 0])),
        open_folder(folder, cache, labels=make_label_map([0], ["background"], ignored=(255,))),
    ]
    path = folder / "masks/3.png"
    path.write_bytes(path.read_bytes() + b"\0")  # after PNG's end: the same image, other bytes
    others.append(open_folder(folder, cache))
    assert len({first, *(store.folder for store in others)}) == 7
    assert len(stores(cache)) == 7
    same = make_label_map([0, 255], ["ground", "object"])  # names are no part of what is stored
    assert len(stores(cache)) == 7
    assert open_folder(folder, cache, labels=same).folder in {store.folder for store in others}


OPEN = """
import sys
import tracemalloc
from pathlib import Path
from ubend.layouts.folder import read_folder
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.dataset.store import hash_pairs, open_store
from ubend.dataset.scan import read_headers
pairs = read_folder(Path(sys.argv[1])).pairs
told = []
store = open_store(
    pairs, [h.size_hw for h in read_headers(pairs)], Sizing(24, True, 3), make_label_map([0, 255]),
    hash_pairs(pairs), Path(sys.argv[2]),
    lambda d, t: told.append(d),
)
print(store.folder.name, bool(told), int(store.images.astype("int64").sum()))
"""


def test_two_processes_build_once(folder: Path, cache: Path) -> None:
    jobs = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(folder), str(cache)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [job.communicate(timeout=100)[0].split() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert sorted(built for _name, built, _sum in answers) == ["False", "False", "True"]
    assert len({(name, total) for name, _built, total in answers}) == 1
    assert [path.name for path, _size in list_stores(cache)] == [answers[0][0]]


KILLED = OPEN.replace("lambda d, t: told.append(d)", "lambda d, t: os.kill(os.getpid(), signal.SIGKILL)")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_while_building(folder: Path, cache: Path) -> None:
    code = "import os, signal\n" + KILLED
    job = subprocess.run([sys.executable, "-c", code, str(folder), str(cache)], check=False, capture_output=True)
    assert job.returncode == -signal.SIGKILL
    assert stores(cache) == []
    store = open_folder(folder, cache)
    assert stores(cache) == [store.folder.name]
    assert [path for path, _size in list_stores(cache)] == [store.folder]  # what was left is gone
    assert store.class_pixels.sum() == store.native_hw.prod(axis=1).sum()


def test_half_deleted_store_is_built_again(folder: Path, cache: Path) -> None:
    store = open_folder(folder, cache)
    (store.folder / "store.json").unlink()
    (store.folder / "index.npz").unlink()
    again = open_folder(folder, cache)
    np.testing.assert_array_equal(again.images, store.images)


def test_all_problems_at_once(folder: Path, cache: Path) -> None:
    first = folder / "images/0.png"  # the image from which the depth is known
    first.write_bytes(first.read_bytes()[:200])
    other = folder / "masks/1.png"
    other.write_bytes(other.read_bytes()[:60])
    Image.new("L", (5, 7)).save(folder / "masks/2.png")
    Image.fromarray(np.zeros(tuple(read_image(folder / "images/4.png").shape[:2]), np.uint16)).save(
        folder / "images/4.png"
    )
    with pytest.raises(DataError) as caught:
        open_folder(folder, cache)
    problems = caught.value.problems
    assert len(problems) == 4
    for path, says, problem in zip(
        (first, other, folder / "masks/2.png", folder / "images/4.png"),
        ("truncated", "", "5x7 px but its image is 32x26", "uint16 image in a data set of uint8"),
        problems,
        strict=True,
    ):
        assert problem.startswith(str(path))
        assert says in problem
        assert "\n" not in problem
    assert stores(cache) == []
    assert list_stores(cache) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate here")
def test_parts_are_of_one_size(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the images are cut into parts, the store is the same."""
    for number in (1, 4):
        for kind in ("images", "masks"):
            shutil.copy(folder / kind / "0.png", folder / kind / f"{number}.png")
    whole = open_folder(folder, cache)
    for most in (1, 2):
        monkeypatch.setattr(store_module, "_PART_IMAGES", most)
        other = open_folder(folder, cache.with_name(f"cache-{most}"))
        np.testing.assert_array_equal(other.images, whole.images)
        np.testing.assert_array_equal(other.masks, whole.masks)
        np.testing.assert_array_equal(other.thumbnails, whole.thumbnails)


def test_an_image_that_changes_meanwhile(folder: Path, cache: Path) -> None:
    pairs = read_folder(folder).pairs
    shapes = [header.size_hw for header in read_headers(pairs)]
    hashes = hash_pairs(pairs)
    shutil.copy(pairs[1].image, pairs[0].image)
    with raises(PairError, path="0.png"):
        open_store(pairs, shapes, LAYOUT, LABELS, hashes, cache)


def test_no_room(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with raises(OutputError, path="cache", named=["No space left on device"]) as caught:
            open_folder(folder, cache)
    assert str(cache) in str(caught.value)
    assert "UBEND_CACHE" in str(caught.value)
    assert list_stores(cache) == []
    assert len(open_folder(folder, cache)) == 6


def test_room_runs_out_at_the_end(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with raises(OutputError, path="cache", named=["No space left on device"]):
        open_folder(folder, cache)
    assert list_stores(cache) == []


def test_store_appears_whole(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one moment is the renaming of the finished folder."""

    def fail(source: Path, _target: Path) -> None:
        assert {path.name for path in source.iterdir()} == {"images.bin", "masks.bin", "index.npz", "store.json"}
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", fail)
    with raises(OutputError, path="cache", named=["Input/output error"]):
        open_folder(folder, cache)
    assert stores(cache) == []


def test_cache_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(OutputError, path="file"):
        open_folder(folder, tmp_path / "file")


def test_missing_file_between(folder: Path, cache: Path) -> None:
    pairs: list[Pair] = list(read_folder(folder).pairs)
    shapes, hashes = [header.size_hw for header in read_headers(pairs)], hash_pairs(pairs)
    pairs[2].mask.path.unlink()
    with raises(PairError, path="2.png"):
        open_store(pairs, shapes, LAYOUT, LABELS, hashes, cache)
    with raises(PairError, path="2.png"):
        hash_pairs(pairs)


def test_list_and_clear(folder: Path, cache: Path) -> None:
    assert list_stores(cache) == []
    assert clear_stores(cache) == 0
    made = [open_folder(folder, cache, replace(LAYOUT, size_px=size)).folder for size in (16, 32)]
    found = list_stores(cache)
    assert sorted(path for path, _size in found) == sorted(made)
    assert all(size == sum(f.stat().st_size for f in path.iterdir()) > 0 for path, size in found)
    assert clear_stores(cache) == sum(size for _path, size in found)
    assert list(cache.iterdir()) == []
    assert len(open_folder(folder, cache)) == 6
    shutil.rmtree(cache)


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("UBEND_CACHE")
    assert default_cache().name in ("ubend", "Cache")


def test_libraries_of_earlier_versions_are_deleted(tmp_path: Path) -> None:
    """They were compiled from C and executed; the cache may still hold some."""
    (tmp_path / f"{'0' * 24}.kernels.so").write_bytes(b"library")
    (tmp_path / "mine.so").write_bytes(b"not ubend's")
    assert clear_stores(tmp_path) == len(b"library")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.so"]


def test_hashing_reads_a_file_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    with path.open("wb") as file:
        file.truncate(2**26)
    tracemalloc.start()
    try:
        ((image, mask),) = hash_pairs([Pair("image", path, FileMask(path), None, None)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert image == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert mask
    assert peak < 2**24
