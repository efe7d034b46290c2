"""Shared by all tests: real data when it is there, small folders made by code."""

import atexit
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refusal import TINY
from remote_site import site as site
from ubend.cli import main
from ubend.data.store import Store, hash_pairs, open_store
from ubend.folders.folder import read_folder
from ubend.masks.labels import LabelMap, make_label_map
from ubend.pictures.channels import read_headers
from ubend.pictures.images import Sizing

ROOT = Path(__file__).parent.parent

if not torch.cuda.is_available():
    # Read when a kernel is defined, of Triton's own too: so before anything imports Triton, as torch's counting of
    # FLOPs does.
    os.environ["TRITON_INTERPRET"] = "1"


# What tests keep goes to a folder of their own.
os.environ["UBEND_CACHE"] = tempfile.mkdtemp(prefix="ubend-tests-")
atexit.register(shutil.rmtree, os.environ["UBEND_CACHE"], ignore_errors=True)


def write_distribution(folder: Path, name: str, groups: Mapping[str, Mapping[str, str]]) -> None:
    """The metadata of an installed package: entry points by group and name."""
    place = folder / f"{name}-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{k} = {v}" for k, v in entries.items()))
    ]
    (place / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


# Commands are those of this tree, here and in other processes, whichever ubend is installed.
_OWN = Path(tempfile.mkdtemp(prefix="ubend-metadata-"))
atexit.register(shutil.rmtree, _OWN, ignore_errors=True)
write_distribution(_OWN, "ubend", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"])
sys.path.insert(0, str(_OWN))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_OWN), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with `kvasir-seg` and `oxford-iiit-pet`."""
    folder = Path(os.environ.get("UBEND_DATA", ROOT / ".." / "shared" / "data"))
    if not (folder / "kvasir-seg").exists():
        pytest.skip(f"no real data in {folder}; set UBEND_DATA to a folder with kvasir-seg and oxford-iiit-pet")
    return folder


def draw_disc(seed: int, height: int = 40, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on a dark, noisy ground: (H, W, 3) uint8 picture and (H, W) uint8 mask of 0 and 255."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx, r = generator.uniform(10, height - 10), generator.uniform(10, width - 10), generator.uniform(5, 10)
    disc = (y - cy) ** 2 + (x - cx) ** 2 < r**2
    image = generator.normal(60, 12, (height, width, 3)) + 110 * disc[..., None]
    return image.clip(0, 255).astype(np.uint8), (255 * disc).astype(np.uint8)


def open_folder(root: Path, cache: Path, sizing: Sizing, labels: LabelMap | None = None) -> Store:
    """The store of a folder; its masks hold 0 and 255 unless `labels` say otherwise."""
    pairs = read_folder(root).pairs
    shapes = [header.size_hw for header in read_headers(pairs)]
    return open_store(pairs, shapes, sizing, labels or make_label_map([0, 255]), hash_pairs(pairs), cache)


def read_store(store: Store, numbers: np.ndarray, canvas_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, H, W, C) and masks (n, H, W) of a store, each at the top left of a canvas."""
    images = np.empty((len(numbers), *canvas_hw, store.channels), store.dtype)
    masks = np.empty((len(numbers), *canvas_hw), np.uint8)
    for number, image, mask in zip(numbers, images, masks, strict=True):
        store.lay(int(number), image, mask)
    return images, masks


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """A folder of 24 pictures of discs with masks, small enough to train on in a second."""
    folder = tmp_path / "discs"
    make_discs(folder, 24)
    return folder


def make_discs(folder: Path, count: int) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        image, mask = draw_disc(number)
        Image.fromarray(image).save(folder / "images" / f"disc{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"disc{number:02d}.png")


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and a finished `run`; only to be read."""
    place = tmp_path_factory.mktemp("good")
    make_discs(place / "data", 24)
    result = CliRunner().invoke(main, ["fit", str(place / "data"), "--out", str(place / "run"), *TINY])
    assert result.exit_code == 0, result.output
    return place


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be spoilt."""
    shutil.copytree(good / "run", tmp_path / "run")
    return tmp_path / "run"
