"""Masks of object ids and masks of classes: what tells them apart, and what is made of them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support.codings import survey
from support.refusal import raises
from support.training import Listener
from ubend.core.errors import DataError
from ubend.core.settings import make_settings
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.labels.classes import LabelHints
from ubend.labels.label_values import LabelArray
from ubend.labels.object_ids import read_object_ids
from ubend.labels.value_table import parse_table
from ubend.layouts.folder import read_folder

SIDE = 96


def discs(values: list[int]) -> NDArray[np.uint16]:
    """(SIDE, SIDE): discs that do not touch, one for each value."""
    mask, (y, x) = np.zeros((SIDE, SIDE), np.uint16), np.mgrid[:SIDE, :SIDE]
    for number, value in enumerate(values):
        cy, cx = 8 + 13 * (number // 7), 8 + 13 * (number % 7)
        mask[(y - cy) ** 2 + (x - cx) ** 2 < 25] = value
    return mask


def read(*masks: NDArray[np.uint16], **stated: tuple[str, ...]) -> tuple[tuple[str, ...] | None, list[str]]:
    """(class names of object ids, or None; remarks) of masks with these values."""
    arrays = [LabelArray(mask, "value") for mask in masks]
    hints, remarks = read_object_ids(survey(*arrays), LabelHints(**stated), lambda index: arrays[index].values)
    return parse_table(hints.table, hints.names).names if hints.table else None, remarks


RANDOM = np.random.default_rng(3)
GAPS = [sorted(RANDOM.choice(np.arange(1, 50), 30, replace=False).tolist()) for _mask in range(6)]


@pytest.mark.parametrize(
    "ids",
    [
        [list(range(1, 1 + k)) for k in (5, 20, 33)],
        [list(range(1, 21))] * 4,  # as many in each
        GAPS,
        [list(range(300 + 40 * mask, 330 + 40 * mask)) for mask in range(3)],  # numbered through all masks
    ],
    ids=["counted up", "equal counts", "gaps", "numbered through"],
)
def test_many_values_of_one_region_each_are_objects(ids: list[list[int]]) -> None:
    names, (remark,) = read(*map(discs, ids))
    assert names == ("background", "object")
    assert f"({len(set().union(*ids))} values" in remark
    assert '"0=background,*=NAME"' in remark
    for stated in (("background", "cell"), ("cell",)):
        names, (remark,) = read(*map(discs, ids), names=stated)
        assert names == ("background", "cell")
        assert "NAME" not in remark


def test_many_classes_of_several_regions_are_classes() -> None:
    """Also if each mask shows all of them."""
    masks = [discs([1 + (disc + mask) % 20 for disc in range(40)]) for mask in range(4)]
    assert read(*masks) == (None, [])


def test_a_photograph_is_refused_at_its_first_values() -> None:
    masks = [LabelArray(RANDOM.integers(0, 250, (SIDE, SIDE)).astype(np.uint8), "value") for _mask in range(4)]
    masks_read: list[int] = []

    def read_one(index: int) -> NDArray[np.uint8]:
        masks_read.append(index)
        return masks[index].values

    assert read_object_ids(survey(*masks), LabelHints(), read_one) == (LabelHints(), [])
    assert len(masks_read) == 1


def test_names_and_tables_are_kept() -> None:
    masks = [discs(list(range(1, 21)))] * 3
    assert read(*masks, table=("0=background", "1..20=spot")) == (("background", "spot"), [])
    assert read(*masks, names=tuple(f"class {i}" for i in range(21))) == (None, [])
    assert read(*masks, names=("cell", "other")) == (None, [])  # which of them is 0?
    assert read(*(mask + 1 for mask in masks)) == (None, [])
    assert read(*(np.where(mask == 20, 255, mask) for mask in masks)) == (None, [])  # perhaps what is not scored


def test_few_values_are_objects_if_two_classes_are_named() -> None:
    masks = [discs(list(range(1, 1 + k))) for k in (1, 3, 2, 3, 1, 3)]
    assert read(*masks, names=("background", "cell"))[0] == ("background", "cell")
    names, (remark,) = read(*masks)
    assert names is None
    assert '"0=background,*=object"' in remark
    assert read(*[discs([1, 2, 3])] * 6) == (None, [])  # nothing differs, as in classes
    assert read(*masks[:3]) == (None, [])  # too little to tell
    assert read(*(discs([*range(1, 1 + k), *range(1, 1 + k)]) for k in (1, 3, 2, 3, 1, 3))) == (None, [])


def save(root: Path, folder: str, name: str, pixels: NDArray[np.generic]) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / folder / name)


def open_in(root: Path, classes: list[str] | None) -> Dataset:
    changes = {"data.folder": str(root), "data.size": 32, "data.classes": classes}
    return open_dataset(make_settings(changes=changes), "cpu", root.parent / "cache", Listener())


def test_a_folder_of_object_ids_needs_no_setting(tmp_path: Path) -> None:
    """Neither what the folder of masks is, nor what its values mean."""
    root = tmp_path / "cells"
    for number, k in enumerate((5, 20, 33, 40, 12, 8)):
        save(root, "images", f"{number}.png", RANDOM.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8))
        save(root, "ids", f"{number}.png", discs(list(range(1, 1 + k))))
    dataset = open_in(root, None)
    assert dataset.labels.names == ("background", "object")
    assert sum("ids" in remark for remark in dataset.remarks) == 2  # the folder, and what the values mean
    assert open_in(root, ["background", "cell"]).labels.names == ("background", "cell")
    (root / "ids/3.png").rename(root / "ids/x.png")
    with raises(DataError, key="unclear folders"):
        read_folder(root)
