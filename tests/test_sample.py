"""The drawn sample: repeatable, labelled as promised, and no toy."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import expand_labels

from support.refusal import raises
from ubend.core.errors import OutputError, SettingError
from ubend.dataset.sample import SAMPLE_CLASSES, draw_ids, draw_image, draw_sample
from ubend.labels.class_table import default_colors
from ubend.layouts.folder import read_folder

Pictures = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]


@pytest.fixture(scope="module")
def images() -> Pictures:
    return [draw_image(0, number, 256) for number in range(24)]


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


@settings(max_examples=8)
@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.integers(64, 150))
def test_an_image_is_a_pure_function_of_its_three_numbers(seed: int, number: int, size_px: int) -> None:
    image, mask = draw_image(seed, number, size_px)
    again, mask_again = draw_image(seed, number, size_px)
    assert image.shape == (size_px, size_px, 3)
    assert mask.shape == (size_px, size_px)
    assert image.dtype == mask.dtype == np.uint8
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    assert mask.max() <= 2
    assert not np.array_equal(image, draw_image(seed, number + 1, size_px)[0])
    assert not np.array_equal(image, draw_image(seed ^ 1, number, size_px)[0])


def test_the_draws_do_not_touch_numpys_global_generator() -> None:
    np.random.seed(3)  # noqa: NPY002  the global generator is what is looked at
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    draw_image(0, 0, 64)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


def test_every_image_holds_all_classes_in_believable_shares(images: Pictures) -> None:
    for image, mask in images:
        background, cell, contour = np.bincount(mask.ravel(), minlength=3) / mask.size
        assert 0.25 < background < 0.9
        assert 0.08 < cell < 0.65
        assert 0.01 < contour < 0.25
        assert image.std() > 8
        assert (image == 255).mean() < 0.2
        channels = image.reshape(-1, 3).astype(float)
        assert np.ptp(channels.mean(0)) > 3, "a stain has a colour"


def test_the_contour_closes_around_every_cell_and_is_three_px_wide(images: Pictures) -> None:
    cross = ndimage.generate_binary_structure(2, 1)
    for _image, mask in images:
        grown = ndimage.binary_dilation(mask == 1, cross)
        assert not (grown & (mask == 0)).any(), "a cell touches the background without a contour between"
        line = mask == 2
        # 3 px squares fit into the line, 5 px squares only where lines cross
        assert ndimage.binary_erosion(line, np.ones((3, 3))).sum() > 0
        assert ndimage.binary_erosion(line, np.ones((5, 5))).sum() < 0.02 * line.sum()


def test_cells_are_of_the_promised_size(images: Pictures) -> None:
    across = []
    for _image, mask in images:
        labels, _count = ndimage.label(mask == 1)
        whole = expand_labels(labels, 2)  # the contour takes 1 to 2 px of a cell
        whole = whole * (mask > 0)
        border = set(whole[0]) | set(whole[-1]) | set(whole[:, 0]) | set(whole[:, -1])
        areas = np.bincount(whole.ravel())
        across += [2 * np.sqrt(a / np.pi) for k, a in enumerate(areas) if k not in border and a]
    assert 24 < np.median(across) < 40
    assert np.quantile(across, 0.02) > 14
    assert max(across) < 50


def test_cells_touch(images: Pictures) -> None:
    cells = sum(ndimage.label(mask == 1)[1] for _image, mask in images)
    clumps = sum(ndimage.label(mask > 0)[1] for _image, mask in images)
    assert cells > 20 * len(images)
    assert clumps < 0.4 * cells


@pytest.mark.parametrize("target", ["cell and contour", "cell"])
def test_otsus_threshold_does_badly(images: Pictures, target: str) -> None:
    scores = []
    for image, mask in images:
        truth = mask > 0 if target == "cell and contour" else mask == 1
        grey = np.asarray(Image.fromarray(image).convert("L"))
        bright = grey > threshold_otsu(grey)
        scores.append(max(dice(bright, truth), dice(~bright, truth)))  # the kinder side, told by the truth
    assert np.mean(scores) < 0.80
    assert np.mean(scores) > 0.30, "cells that no threshold sees at all would not be believable"


def test_a_membrane_can_be_seen_nearly_everywhere(images: Pictures) -> None:
    """Contour pixels are darker than the cell and the ground within 6 px of them, as a person sees it."""
    for image, mask in images:
        grey = ndimage.gaussian_filter(image.astype(float).mean(2), 0.7)
        near = ndimage.uniform_filter((mask != 2).astype(float), 13)
        around = ndimage.uniform_filter(grey * (mask != 2), 13) / np.maximum(near, 1e-6)
        assert ((grey < around) & (mask == 2)).sum() > 0.7 * (mask == 2).sum()


def test_the_folder_is_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cells"
    draw_sample(folder, count=3, size_px=96, seed=7)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "classes.txt",
        *(f"ids/cell_00{i}.png" for i in range(3)),
        *(f"images/cell_00{i}.png" for i in range(3)),
        *(f"masks/cell_00{i}.png" for i in range(3)),
    ]
    assert (folder / "classes.txt").read_text(encoding="utf-8").splitlines() == list(SAMPLE_CLASSES)
    for number in range(3):
        image, mask = draw_image(7, number, 96)
        with Image.open(folder / "images" / f"cell_00{number}.png") as opened:
            assert opened.mode == "RGB"
            assert np.array_equal(np.asarray(opened), image)
        with Image.open(folder / "masks" / f"cell_00{number}.png") as opened:
            assert opened.mode == "P"
            assert np.array_equal(np.asarray(opened), mask), "indices must come back as they were"
            colors = np.array(default_colors(3), dtype=np.uint8)
            assert np.array_equal(np.asarray(opened.convert("RGB")), colors[mask])


def test_true_ids(tmp_path: Path) -> None:
    """Counted up without gaps; a cell of the mask lies in one of them, the contour two px in it and one outside.

    The folder is read as it is without them, and says that they are skipped.
    """
    draw_sample(tmp_path / "cells", count=3, size_px=128, seed=7)
    for number in range(3):
        ids, (_image, mask) = draw_ids(7, number, 128), draw_image(7, number, 128)
        with Image.open(tmp_path / "cells" / "ids" / f"cell_00{number}.png") as opened:
            assert np.array_equal(np.asarray(opened), ids)
        assert ids.dtype == np.uint16
        assert np.array_equal(np.unique(ids), np.arange(ids.max() + 1))
        assert ids.max() > 3
        assert (ids[mask == 1] > 0).all()
        near = ndimage.binary_dilation(ids > 0, ndimage.generate_binary_structure(2, 1))
        assert near[mask > 0].all()
        for cell in range(1, ids.max() + 1):
            assert ((ids == cell) & (mask > 0)).sum() == (ids == cell).sum()
    with_ids = read_folder(tmp_path / "cells")
    assert any("ids/" in remark for remark in with_ids.remarks)
    shutil.rmtree(tmp_path / "cells" / "ids")
    assert replace(with_ids, remarks=()) == read_folder(tmp_path / "cells")


def test_two_folders_of_one_seed_are_equal_byte_for_byte(tmp_path: Path) -> None:
    sums = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()  # an empty folder is welcome
        draw_sample(tmp_path / name, count=2, size_px=64, seed=1)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        sums.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert sums[0] == sums[1]
    assert len(sums[0]) == 7


def test_a_longer_sample_starts_with_the_shorter_one(tmp_path: Path) -> None:
    draw_sample(tmp_path / "short", count=1, size_px=64)
    draw_sample(tmp_path / "long", count=2, size_px=64)
    name = Path("images") / "cell_000.png"
    assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "long" / name).read_bytes()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with raises(OutputError, path=tmp_path):
        draw_sample(tmp_path, count=1, size_px=64)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with raises(OutputError, path="thesis.txt"):
        draw_sample(tmp_path / "thesis.txt", count=1, size_px=64)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [({"count": 0}, "--count"), ({"size_px": 63}, "--size"), ({"seed": -1}, "--seed")],
)
def test_arguments_out_of_range_are_named(tmp_path: Path, wrong: dict[str, int], key: str) -> None:
    with raises(SettingError, key=key):
        draw_sample(tmp_path / "x", **wrong)
    assert not (tmp_path / "x").exists()
