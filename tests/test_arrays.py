"""Arrays given to `ubend.fit`: lossless, the same training as of files, and usable when the arrays are gone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ubend
from support.discs import draw_disc
from support.refusal import contents, raises, refused_once
from support.training import FILES
from ubend.core.errors import DataError
from ubend.dataset.arrays import arrays_to_files
from ubend.dataset.store import clear_stores, describe_store, list_stores
from ubend.io.images import load_image
from ubend.labels.mask_files import FileMask, read_label_values
from ubend.portable.decode import read_header
from ubend.tasks.evaluate import read_run_pairs

TINY: dict[str, Any] = {"size": 32, "width": 2, "epochs": 1, "batch": 4, "device": "cpu", "classes": "ground,disc"}
DISCS = [draw_disc(number) for number in range(24)]
IMAGES, MASKS = [image for image, _mask in DISCS], [mask // 255 for _image, mask in DISCS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ubend.fit(images=IMAGES, masks=MASKS, out=tmp_path_factory.mktemp("arrays") / "run", **TINY).run


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("bands", [(), (1,), (2,), (3,), (4,), (16,)])
def test_arrays_are_read_as_they_are(dtype: str, bands: tuple[int, ...], tmp_path: Path) -> None:
    generator = np.random.default_rng(len(bands))
    images = (generator.random((3, 5, 7, *bands)) * 250).astype(dtype)
    masks = generator.integers(0, 300, (3, 5, 7))
    found = arrays_to_files({"images": images, "masks": masks}, tmp_path)
    for number in range(3):
        path = Path(found["images"]) / f"000{number}.tif"
        header, loaded = read_header(path), load_image(path)
        assert (header.channels, header.alpha) == ((1, *bands)[-1], False)
        assert header.dtype == loaded.pixels.dtype == ("float32" if dtype == "float64" else dtype)
        assert loaded.invalid is None
        assert np.array_equal(loaded.pixels, images[number].reshape(5, 7, -1).astype(header.dtype))
        values = read_label_values(FileMask(Path(found["masks"]) / f"000{number}.tif"), (5, 7)).values
        assert np.array_equal(values, masks[number])


def test_equal_arrays_are_written_once(tmp_path: Path) -> None:
    listed = arrays_to_files({"images": IMAGES, "masks": MASKS, "split": ["train"] * 24}, tmp_path)
    before = contents(tmp_path)
    stacked = {"images": np.stack(IMAGES), "masks": np.stack(MASKS).astype(bool), "split": ["train"] * 24}
    assert arrays_to_files(stacked, tmp_path) == listed
    assert contents(tmp_path) == before
    other = arrays_to_files({"images": IMAGES, "masks": MASKS[::-1]}, tmp_path)
    assert other["images"] != listed["images"]
    assert len(list_stores(tmp_path)) == 2
    assert describe_store(list_stores(tmp_path)[0][0])[1]
    clear_stores(tmp_path)
    assert not contents(tmp_path)


def test_the_training_is_that_of_files(trained: Path, tmp_path: Path) -> None:
    for side, arrays in (("images", IMAGES), ("masks", MASKS)):
        (tmp_path / "data" / side).mkdir(parents=True)
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(tmp_path / "data" / side / f"{number:04d}.png")
    ubend.fit(tmp_path / "data", out=tmp_path / "run", **TINY)
    splits = [[(pair.name, pair.split) for pair in read_run_pairs(run)] for run in (trained, tmp_path / "run")]
    assert splits[0] == splits[1]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    scores = [json.loads((run / "scores.json").read_text()) for run in (trained, tmp_path / "run")]
    assert [one.pop("images").keys() for one in scores] == [scores[0]["per_picture"].keys()] * 2  # other files
    assert scores[0] == scores[1]


def test_a_run_is_resumed_and_scored_in_another_process(trained: Path, tmp_path: Path) -> None:
    """As long as the cache is there; when it is not, one line says so, and the same arrays bring it back."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = {name: (run / name).read_bytes() for name in FILES}
    (run / "scores.json").unlink()
    for words in (["fit", "--resume", run], ["evaluate", run, "--device", "cpu"]):
        subprocess.run([sys.executable, "-m", "ubend", *map(str, words)], check=True, capture_output=True, timeout=300)
    assert {name: (run / name).read_bytes() for name in FILES} == before
    folder = next(parent for parent in read_run_pairs(run)[0].image.parents if parent.suffix == ".arrays")
    moved = folder.rename(tmp_path / "moved")
    try:
        for words in (["fit", "--resume", run], ["evaluate", run], ["show", run, "--out", tmp_path / "show.png"]):
            error = refused_once(*words)
            assert (type(error), error.path, error.key) == (DataError, folder, "folder")
        arrays_to_files({"images": IMAGES, "masks": MASKS}, folder.parent)
        assert contents(folder) == contents(moved)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        moved.rename(folder)


def test_training_images_are_recognised(trained: Path) -> None:
    train = [int(pair.name) for pair in read_run_pairs(trained) if pair.split == "train"]
    with raises(DataError, key="--subset"):
        ubend.evaluate(trained, images=[IMAGES[n] for n in train], masks=[MASKS[n] for n in train], device="cpu")
    others = {"images": [IMAGES[train[0]], *IMAGES[:0:-1]], "masks": [MASKS[train[0]], *MASKS[:0:-1]]}
    assert ubend.evaluate(trained, device="cpu", **others).native.images < len(train)


def test_split_and_groups(tmp_path: Path) -> None:
    split = ["train"] * 12 + ["val"] * 6 + ["Test"] * 6
    data = ubend.fit(images=IMAGES, masks=MASKS, split=split, out=tmp_path / "run", **TINY).run
    assert [pair.split for pair in read_run_pairs(data)] == [word.lower() for word in split]
    groups = [number // 4 for number in range(24)]
    data = ubend.fit(images=IMAGES, masks=MASKS, groups=groups, out=tmp_path / "grouped", **TINY).run
    pairs = read_run_pairs(data)
    assert [pair.group for pair in pairs] == [str(group) for group in groups]
    assert len({(pair.group, pair.split) for pair in pairs}) == 6
    assert {pair.split for pair in pairs} == {"train", "val", "test"}


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    images = [*IMAGES, *(np.clip(image.astype(int) + 1, 0, 255).astype(np.uint8) for image in IMAGES)]
    run = ubend.fit(images=images, masks=MASKS * 2, out=tmp_path / "run", **TINY).run
    split = [pair.split for pair in read_run_pairs(run)]
    assert split[:24] == split[24:]


def floats(*highest: float) -> list[np.ndarray]:
    return [np.linspace(0, high, 16, dtype=np.float32).reshape(4, 4) for high in highest]


FLAT = [np.zeros((4, 4), np.uint8)] * 2
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no masks": ({"images": FLAT}, "data.images"),
    "paths and arrays": ({"images": "images", "masks": FLAT}, "data.images"),
    "a number": ({"images": 3, "masks": FLAT}, "data.images"),
    "nothing": ({"images": [], "masks": FLAT}, "data.images"),
    "lengths": ({"images": FLAT * 2, "masks": FLAT}, "data.masks"),
    "paths in a list": ({"images": ["a.png", "b.png"], "masks": FLAT}, "data.images"),
    "int64 images": ({"images": np.zeros((2, 4, 4), np.int64), "masks": FLAT}, "data.images"),
    "flat images": ({"images": np.zeros((2, 16), np.uint8), "masks": FLAT}, "data.images"),
    "channels first": ({"images": np.zeros((2, 3, 4, 4), np.uint8), "masks": FLAT}, "data.masks"),
    "volumes": ({"images": np.zeros((2, 4, 4, 40), np.uint8), "masks": FLAT}, "data.images"),
    "empty images": ({"images": np.zeros((2, 0, 4), np.uint8), "masks": FLAT}, "data.images"),
    "depths": ({"images": [FLAT[0], FLAT[0].astype(np.uint16)], "masks": FLAT}, "data.images"),
    "infinite": ({"images": np.full((2, 4, 4), np.inf), "masks": FLAT}, "data.images"),
    "too large": ({"images": [FLAT[0] + 1e300, FLAT[0] + 1.0], "masks": FLAT}, "data.images"),
    "all NaN": ({"images": np.full((2, 4, 4), np.nan), "masks": FLAT}, "data.images"),
    "0..1 and 0..255": ({"images": floats(1, 255), "masks": FLAT}, "data.images"),
    "masked": ({"images": np.ma.masked_equal(np.stack(FLAT), 0), "masks": FLAT}, "data.images"),
    "float masks": ({"images": FLAT, "masks": floats(1, 1)}, "data.masks"),
    "masks with bands": ({"images": FLAT, "masks": np.zeros((2, 4, 4, 3), np.uint8)}, "data.masks"),
    "size of masks": ({"images": FLAT, "masks": np.zeros((2, 4, 5), np.uint8)}, "data.masks"),
    "negative": ({"images": FLAT, "masks": np.full((2, 4, 4), -1)}, "data.masks"),
    "large values": ({"images": FLAT, "masks": np.full((2, 4, 4), 70_000)}, "data.masks"),
    "short split": ({"images": FLAT, "masks": FLAT, "split": ["train"]}, "data.split"),
    "split word": ({"images": FLAT, "masks": FLAT, "split": ["train", "holdout"]}, "data.split"),
    "short groups": ({"images": FLAT, "masks": FLAT, "groups": [1]}, "data.split"),
    "groups beside a file": ({"images": FLAT, "masks": FLAT, "groups": [1, 2], "split": "split.csv"}, "data.split"),
    "groups of files": ({"images": "images", "masks": "masks", "groups": [1, 2]}, "data.images"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arrays(what: str, tmp_path: Path) -> None:
    words, key = BAD[what]
    with raises(DataError, key=key) as caught:
        ubend.fit(**words, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_float_ranges_that_only_differ_are_taken(tmp_path: Path) -> None:
    for highest in ((0.5, 3.0), (100.0, 255.0), (0.2, 5000.0)):
        assert arrays_to_files({"images": floats(*highest), "masks": FLAT}, tmp_path)["images"].is_dir()


def test_nan_is_as_in_files(tmp_path: Path) -> None:
    images = [image.astype(np.float32) for image in IMAGES]
    images[0][:3] = np.nan
    found = arrays_to_files({"images": images, "masks": MASKS}, tmp_path)
    invalid = load_image(Path(found["images"]) / "0000.tif").invalid
    assert invalid is not None
    assert invalid[:3].all()
    assert not invalid[3:].any()
