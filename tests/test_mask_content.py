"""Masks that are no truth of their own: a camera's field of view, and one image's masks by several annotators."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support.refusal import raises
from ubend.core.errors import DataError
from ubend.layouts.folder import read_folder, read_pairs
from ubend.layouts.mask_content import is_field_of_view

ROWS, COLUMNS = np.mgrid[:60, :64]
NUMBERS = range(21, 25)


def disc(radius: int, shift: int = 0) -> NDArray[np.bool_]:
    return np.asarray((ROWS - 30 + shift) ** 2 + (COLUMNS - 32) ** 2 < radius**2)


def write(root: Path, name: str, mask: NDArray[np.bool_] | None = None) -> None:
    """A mask, or noise as an image."""
    pixels = (
        np.random.default_rng(len(name)).integers(0, 255, ROWS.shape)
        if mask is None
        else mask * (255 if mask.dtype == bool else 100)
    )
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(root / name)


def masks_of(root: Path) -> list[str]:
    return [pair.mask.path.relative_to(root).as_posix() for pair in read_folder(root).pairs]


@pytest.mark.parametrize(
    ("image", "truth", "field"),
    [
        ("{}.tif", "{}_vessel.png", "{}_mask.png"),
        ("{}.png", "{}_manual.png", "{}_mask.png"),
        ("{}.jpg", "{}_gt.png", "{}_mask.png"),
        ("images/{}.jpg", "label/{}.png", "mask/{}_mask.png"),
        ("images/{}.jpg", "masks/{}_vessel.png", "masks/{}_fov.png"),
    ],
)
def test_the_truth_beside_a_field_of_view(tmp_path: Path, image: str, truth: str, field: str) -> None:
    for number in NUMBERS:
        write(tmp_path, image.format(number))
        write(tmp_path, truth.format(number), disc(9, number - 20))
        write(tmp_path, field.format(number), disc(28, number % 2))
    assert masks_of(tmp_path) == [truth.format(number) for number in NUMBERS]
    (remark,) = (line for line in read_folder(tmp_path).remarks if "field of view" in line)
    assert f"(4), for example {Path(field.format(21)).name}" in remark


@pytest.mark.parametrize(
    ("image", "field"),
    [("images/{}_test.tif", "mask/{}_test_mask.gif"), ("{}.tif", "{}_mask.png"), ("{}.tif", "{}_fov.png")],
)
def test_a_field_of_view_alone_is_named(tmp_path: Path, image: str, field: str) -> None:
    for number in NUMBERS:
        write(tmp_path, image.format(number))
        write(tmp_path, field.format(number), disc(28, number % 2))
    (remark,) = (line for line in read_folder(tmp_path).remarks if "field of view" in line)
    assert f"such as {field.format(21)} " in remark
    assert "NAME_gt.png" in remark
    stated = (f"{tmp_path}/{pattern.replace('{}', '*')}" for pattern in (image, field))
    assert not any("field of view" in line for line in read_pairs(*stated).remarks)  # it was asked for
    for number in NUMBERS:
        write(tmp_path, f"{Path(field).parent}/{Path(image.format(number)).stem}_gt.png", disc(9, number - 20))
    if "fov" not in field:  # no name of these says mask: it is asked
        assert all(name.endswith("_gt.png") for name in masks_of(tmp_path))


def test_a_field_of_view_in_one_split_is_named(tmp_path: Path) -> None:
    for number in NUMBERS:
        for split in ("train", "test"):
            write(tmp_path, f"{split}/images/{number}.tif")
            write(tmp_path, f"{split}/mask/{number}_mask.png", disc(28))
        write(tmp_path, f"train/label/{number}.png", disc(9, number - 20))
    read = read_folder(tmp_path)
    assert [line for line in read.remarks if "such as test/mask/21_mask.png" in line]
    assert not [line for line in read.remarks if "such as train/" in line]


@pytest.mark.parametrize(
    "masks",
    [
        [disc(12)] * 4,
        [disc(99)] * 4,
        [disc(28)] * 2,
        [disc(28), disc(28), disc(28), disc(24)],
        [~disc(6, 9 * number) for number in range(4)],
        [disc(28) * np.uint8(1 + disc(9, number)) for number in range(4)],
    ],
    ids=["small", "everywhere", "two", "one differs", "gaps that differ", "three values"],
)
def test_masks_that_are_no_field_of_view(tmp_path: Path, masks: list[NDArray[np.bool_]]) -> None:
    for number, mask in enumerate(masks):
        write(tmp_path, f"{number}.png", mask)
    assert not is_field_of_view(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("image", "mask", "numbers"),
    [
        ("images/{}.png", "masks/{}_{}.png", "12"),
        ("images/{}.png", "masks/{}_a{}.png", "12"),
        ("images/{}.png", "masks/{}_{}.png", "abc"),
        ("{}.jpg", "{}_mask{}.png", "123"),
    ],
)
def test_numbered_masks_that_coincide_are_by_annotators(tmp_path: Path, image: str, mask: str, numbers: str) -> None:
    for number in NUMBERS:
        write(tmp_path, image.format(number))
        for shift, annotator in enumerate(numbers):
            write(tmp_path, mask.format(number, annotator), disc(12, 4 * shift) & (number > 21))  # one saw nothing
    example = mask.format(21, numbers[0])
    with raises(DataError, key="several sets", named=[example, "annotators"]) as caught:
        read_folder(tmp_path)
    pattern = caught.value.problems[0].split("'")[-2]
    found = read_pairs(f"{tmp_path}/{image.replace('{}', '*')}", pattern).pairs
    assert [pair.mask.path.relative_to(tmp_path).as_posix() for pair in found] == [
        mask.format(number, numbers[0]) for number in NUMBERS
    ]


def test_numbered_masks_that_hardly_overlap_are_objects(tmp_path: Path) -> None:
    for number in NUMBERS:
        write(tmp_path, f"images/{number}.png")
        for shift in range(3):
            write(tmp_path, f"masks/{number}_{shift}.png", disc(9, 15 * (shift - 1)))
    assert [len(pair.mask.files) for pair in read_folder(tmp_path).pairs] == [3] * 4


def test_classes_that_contain_each_other_need_names(tmp_path: Path) -> None:
    for folder, (whole, core) in {"numbers": ("c1", "c2"), "names": ("whole", "core")}.items():
        for number in NUMBERS:
            write(tmp_path / folder, f"images/{number}.png")
            write(tmp_path / folder, f"masks/{number}_{whole}.png", disc(14))
            write(tmp_path / folder, f"masks/{number}_{core}.png", disc(12))
    with raises(DataError, key="several sets", named=["21_c1.png", "names of the classes"]):
        read_folder(tmp_path / "numbers")
    assert read_folder(tmp_path / "names").classes == ("background", "core", "whole")
