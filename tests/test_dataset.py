"""A folder, understood: classes, choices, splits, statistics; on real data where it is there."""

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from support.refusal import raises
from ubend.core.autoconfig import resolve
from ubend.core.errors import DataError, PairError, TrainingError
from ubend.core.progress import Reporter
from ubend.core.settings import Recipe, make_settings
from ubend.dataset.dataset import Dataset, MissingClasses, find_missing_classes, open_dataset
from ubend.io.images import read_image
from ubend.labels.class_table import ANY_DISTANCE, background_class
from ubend.layouts.pairs import SplitName


def understand(root: Path, cache: Path, recipe: Recipe = "modern", **changes: Any) -> Dataset:
    given = {"data.folder": str(root)} | {key.replace("__", "."): value for key, value in changes.items()}
    return open_dataset(make_settings(recipe, changes=given), "cpu", cache, Reporter())


def chosen(data: Dataset, recipe: Recipe = "modern") -> dict[str, Any]:
    """All automatic choices, by key."""
    plan = resolve(make_settings(recipe), data.facts("cpu", ("float32", "a CPU")))
    return {choice.key: choice.value for choice in plan.choices}


@pytest.fixture(scope="session")
def some_polyps(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fourth pair of Kvasir-SEG, for speed."""
    root = tmp_path_factory.mktemp("kvasir")
    source = real_data / "kvasir-seg/Kvasir-SEG"
    for kind in ("images", "masks"):
        (root / kind).mkdir()
        for path in sorted((source / kind).iterdir())[::4]:
            (root / kind / path.name).symlink_to(path.resolve())
    return root


@pytest.fixture(scope="session")
def some_pets(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fifth pair of the pets."""
    root = tmp_path_factory.mktemp("pets")
    source = real_data / "oxford-iiit-pet"
    (root / "annotations").mkdir()
    (root / "images").symlink_to((source / "images").resolve())
    (root / "annotations/trimaps").symlink_to((source / "annotations/trimaps").resolve())
    for name in ("trainval.txt", "test.txt"):
        lines = (source / "annotations" / name).read_text().splitlines()
        (root / "annotations" / name).write_text("\n".join(lines[::5]) + "\n")
    return root


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def test_polyps(some_polyps: Path, shared_cache: Path) -> None:
    data = understand(some_polyps, shared_cache, data__size=64)
    assert data.labels.codes == ((0,), (255,))
    assert data.labels.classes == 2
    assert data.store.channels == 3
    assert data.labels.reach == ANY_DISTANCE  # JPEG
    assert any("in-between values" in remark for remark in data.remarks)
    assert chosen(data)["augment.orientation"] == "free"
    assert chosen(data)["augment.rotation_deg"] == 180
    counts = [len(data.indices(part)) for part in ("train", "val", "test")]
    assert sum(counts) == len(data.store) == 250
    assert abs(counts[1] - 37.5) <= 2
    assert abs(counts[2] - 37.5) <= 2
    assert set(np.unique(data.store.mask(0))) == {0, 1}


def test_pets(some_pets: Path, shared_cache: Path) -> None:
    data = understand(some_pets, shared_cache, data__size=64)
    assert data.labels.names == ("pet", "background", "contour")
    assert data.labels.codes == ((1,), (2,), (3,))
    assert chosen(data)["augment.orientation"] == "upright"
    assert chosen(data)["augment.rotation_deg"] == 15
    official = (some_pets / "annotations/test.txt").read_text().split("\n")
    assert {pair.name for pair in data.pairs("test")} == {line.split()[0] for line in official if line}
    assert data.scored_split == "test"


def test_tutorials_two_jobs(some_polyps: Path, some_pets: Path, shared_cache: Path) -> None:
    polyps = understand(some_polyps, shared_cache, "tutorial", data__size=64)
    assert polyps.store.channels == 1
    assert chosen(polyps, "tutorial")["augment.kind"] == "frozen"
    assert chosen(polyps, "tutorial")["data.mean"] == (0.485,)
    assert (polyps.store.shapes_hw == 64).all()
    pets = understand(some_pets, shared_cache, "tutorial", data__size=64)
    assert pets.store.channels == 3
    assert chosen(pets, "tutorial")["augment.kind"] == "none"
    assert chosen(pets, "tutorial")["data.std"] == (0.229, 0.224, 0.225)


# Drawn data


def test_splits_are_the_seeds(discs: Path, shared_cache: Path, tmp_path: Path) -> None:
    first = understand(discs, shared_cache)
    moved = shutil.copytree(discs, tmp_path / "elsewhere")
    again = understand(moved, tmp_path / "cache")
    assert first.splits == again.splits
    assert sorted(set(first.splits)) == ["test", "train", "val"]
    others = {understand(discs, shared_cache, train__seed=seed).splits for seed in range(1, 5)}
    assert len(others | {first.splits}) == 5
    numbers = np.concatenate([first.indices(part) for part in ("train", "val", "test")])
    assert sorted(numbers.tolist()) == list(range(24))
    for part in ("train", "val", "test"):
        assert [first.folder.pairs[i] for i in first.indices(part)] == first.pairs(part)


def test_copies_stay_together(discs: Path, shared_cache: Path) -> None:
    """An image saved twice never lies in two parts."""
    for name in ("disc03", "disc08"):
        for kind in ("images", "masks"):
            for copy in range(3):
                shutil.copy(discs / kind / f"{name}.png", discs / kind / f"{name}_copy{copy}.png")
    for seed in range(4):
        data = understand(discs, shared_cache, train__seed=seed)
        for name in ("disc03", "disc08"):
            parts = {
                part for pair, part in zip(data.folder.pairs, data.splits, strict=True) if pair.name.startswith(name)
            }
            assert len(parts) == 1
        assert any("near-identical" in remark for remark in data.remarks)


def test_statistics_are_numpys(discs: Path, shared_cache: Path) -> None:
    data = understand(discs, shared_cache, data__size=32)
    pixels = np.concatenate([data.store.image(int(i)).reshape(-1, 3) for i in data.indices("train")]).astype(float)
    mean, std = data.mean_std()
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-9)
    low, high = data.value_range()
    assert low.tolist() == [0, 0, 0]
    assert high.tolist() == [255, 255, 255]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_statistics_of_deep_images(discs: Path, shared_cache: Path, dtype: Any) -> None:
    for path in sorted((discs / "images").iterdir()):
        values = read_image(path, 1)[:, :, 0].astype(np.float64) * 100 - (0 if dtype == np.uint16 else 5000)
        tifffile.imwrite(path.with_suffix(".tif"), values.astype(dtype))
        path.unlink()
    data = understand(discs, shared_cache, data__size=32)
    assert data.store.dtype == dtype
    assert data.store.channels == 1
    train = np.concatenate([data.store.image(int(i)).reshape(-1) for i in data.indices("train")]).astype(np.float64)
    low, high = data.value_range()
    assert (low[0], high[0]) == (train.min(), train.max())
    mean, std = data.mean_std()
    np.testing.assert_allclose([mean[0], std[0]], [train.mean(), train.std()], rtol=1e-6)


def test_saved_list_gives_the_split_back(discs: Path, shared_cache: Path) -> None:
    data = understand(discs, shared_cache)
    rows = list(csv.DictReader(io.StringIO(data.table())))
    assert [row["name"] for row in rows] == [pair.name for pair in data.folder.pairs]
    assert [row["split"] for row in rows] == list(data.splits)
    other = understand(discs, shared_cache, train__seed=3)
    assert other.splits != data.splits
    assert other.with_splits_of(data.table()).splits == data.splits
    path = discs / "masks/disc05.png"
    path.write_bytes(path.read_bytes() + b"\0")
    with raises(TrainingError, path="discs", named=["disc05"]) as caught:
        understand(discs, shared_cache).with_splits_of(data.table())
    assert "1 pair" in str(caught.value)
    with raises(TrainingError, path="discs", named=["disc00"]):
        data.with_splits_of(data.table().replace("disc00,", "disc99,"))


def test_faults_are_told_before_training(discs: Path, shared_cache: Path) -> None:
    with raises(DataError, path="discs", key="data.classes", named=["3"]):
        understand(discs, shared_cache, data__classes=["a", "b", "c"])
    for path in (discs / "masks").iterdir():
        Image.new("L", (48, 40)).save(path)
    with raises(DataError, path="discs", key="data.masks"):
        understand(discs, shared_cache)


def test_mask_without_any_class(discs: Path, shared_cache: Path) -> None:
    for number, path in enumerate(sorted((discs / "masks").iterdir())):
        index = (np.asarray(Image.open(path)) // 255).astype(np.uint8)
        index[:2] = 255
        Image.fromarray(np.full_like(index, 255) if number == 4 else index).save(path)
    with raises(PairError, path="disc04.png"):
        understand(discs, shared_cache)


def test_settings_that_are_hardly_meant(discs: Path, shared_cache: Path) -> None:
    """Both are used, and said: names in another order than the folder's, and images enlarged more than four times."""
    (discs / "classes.txt").write_text("background\ndisc\n")
    side = understand(discs, shared_cache, **{"data.size": None}).input_format.size
    assert side is not None

    def remarks(**changes: Any) -> list[str]:
        found = understand(discs, shared_cache, **changes).remarks
        return [line for line in found if "--classes" in line or "enlarged" in line]

    assert remarks(**{"data.size": side, "data.classes": ["background", "disc"]}) == []
    assert remarks(**{"data.size": side, "data.classes": ["ground", "circle"]}) == []
    (swapped,) = remarks(**{"data.size": side, "data.classes": ["disc", "background"]})
    assert "the classes are disc, background" in swapped
    (enlarged,) = remarks(**{"data.size": 5 * side})
    assert f"{5 * side} px" in enlarged


@pytest.mark.parametrize(
    ("splits", "present", "expected"),
    [
        (("train", "val", "test"), (1, 1, 0), MissingClasses([], ["cell"], [])),
        (("train", "val", "test"), (1, 0, 0), MissingClasses([], ["cell"], [])),
        (("train", "val", "test"), (1, 0, 1), MissingClasses([], [], ["cell"])),
        (("train", "val", "test"), (0, 1, 1), MissingClasses(["cell"], [], [])),
        (("train", "train", "val"), (1, 1, 0), MissingClasses([], ["cell"], [])),
        (("train", "train", "test"), (1, 1, 1), MissingClasses([], [], [])),  # all folds: no validation split
        (("train", "val", "test"), (0, 0, 0), MissingClasses([], [], [])),
    ],
)
def test_classes_missing_from_a_split(
    splits: tuple[SplitName, ...], present: tuple[int, ...], expected: MissingClasses
) -> None:
    pixels = np.zeros((3, 256), np.int64)
    pixels[:, 0], pixels[:, 1] = 9, present
    assert find_missing_classes(("background", "cell"), pixels, splits) == expected


def test_background_is_the_most_common_class_if_none_is_called_so(discs: Path, shared_cache: Path) -> None:
    data = understand(discs, shared_cache)
    index = data.background_index
    assert index == background_class(data.labels.names)
    unnamed = replace(data, labels=replace(data.labels, names=("soil", "plant")))
    commonest = int(data.class_shares().argmax())
    assert unnamed.background_index == commonest
    assert unnamed.foreground_classes() == (1 - commonest,)
