"""Every layout, annotation, mask and image of docs/formats.md gives the same class maps, or the named error."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import ImageColor
from scipy.ndimage import binary_erosion

from support.folder_annotations import ANNOTATIONS
from support.folder_images import FILES
from support.folder_layouts import LAYOUTS
from support.folder_masks import MASKS
from support.folders import COLORS, COUNT, IGNORED, IMAGES, PARTS, Case, Maker, Understood, read_class_maps
from ubend.cli.app import main
from ubend.core.errors import UbendError

CASES = [*LAYOUTS, *ANNOTATIONS, *MASKS, *FILES]
PAGE = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_folder(case: Case, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker(tmp_path / "set", case.binary, case.scale)
    case.write(make)
    monkeypatch.chdir(make.root)
    monkeypatch.setenv("UBEND_CACHE", str(cache))
    found, refusal = attempt(case, make, cache)
    if found is None:
        assert case.says or case.or_error, f"must be read, but: {refusal}"
        for word in case.says or case.or_error:
            assert word in refusal
        assert all(line.strip() and len(line) < 1000 for line in refusal.splitlines())
        return
    assert not case.says, f"read as {found.classes}, but nobody can know that"
    compare(case, make, found)
    for word in case.notes:
        assert word in found.said
    again = read_written(case, make, tmp_path / "said", cache)
    assert again.classes == found.classes
    assert {path: part for path, (part, _index) in again.maps.items()} == {
        path: part for path, (part, _index) in found.maps.items()
    }
    compare(case, make, again)


def attempt(case: Case, make: Maker, cache: Path) -> tuple[Understood | None, str]:
    """What is understood, or the error."""
    try:
        return read_class_maps(make.root, cache, case.flags, case.scale), ""
    except UbendError as error:
        return None, str(error)


def read_written(case: Case, make: Maker, out: Path, cache: Path) -> Understood:
    """`ubend data` writes down what it understood; this reads what it wrote."""
    folder = [] if "images" in case.flags else [str(make.root)]
    told = [word for key, value in case.flags.items() for word in (f"--{key}", str(value))]
    result = CliRunner().invoke(main, ["data", *folder, "--out", str(out), *told])
    assert result.exit_code == 0, result.output
    assert (out / "samples.png").stat().st_size > 1000
    return read_class_maps(out / "data.toml", cache, {}, case.scale)


def compare(case: Case, make: Maker, found: Understood) -> None:
    """Images, their order, parts, classes and class maps are those of the truth."""
    assert list(found.maps) == list(found.images)
    assert sorted(make.numbers[path] for path in found.maps) == list(range(COUNT))
    for part in dict.fromkeys(PARTS):
        numbers = [make.numbers[path] for path, (mine, _index) in found.maps.items() if mine == part]
        assert numbers == sorted(numbers), "the pairs are not in the order of their names"
        if case.splits:
            assert numbers == [n for n in range(COUNT) if PARTS[n] == part]
    index_of = class_indices(case, make, found.classes)
    for path, (_part, index) in found.maps.items():
        number = make.numbers[path]
        truth = index_of[make.maps[number]]
        assert index.shape == truth.shape
        if case.wrong is None:
            assert np.array_equal(index, truth), f"{path.name}: {np.mean(index != truth):.2%} of the pixels are wrong"
        else:
            safe = inside(truth)
            wrong = np.mean(index[safe] != truth[safe])
            assert wrong <= case.wrong, f"{path.name}: {wrong:.2%} of the pixels inside regions are wrong"
            assert np.mean(index != truth) < 0.25
        assert found.images[path].shape[:2] == truth.shape
        assert is_image(found.images[path][:: case.scale, :: case.scale], number)
        assert (found.images[path].shape[2], found.images[path].dtype.name) == case.image


def class_indices(case: Case, make: Maker, names: tuple[str, ...]) -> NDArray[np.uint8]:
    """(256,): class of the truth -> class index of the reading."""
    table = np.full(256, IGNORED, np.uint8)
    count = max(int(index[index != IGNORED].max(initial=0)) for index in make.maps) + 1
    if case.classes is None:
        assert len(names) == count
        table[:count] = order_of_colors(names, count)
    else:
        assert set(case.classes) <= set(names), names
        table[:count] = [names.index(name) for name in case.classes[:count]]
    return table


def order_of_colors(names: tuple[str, ...], count: int) -> list[int]:
    """Classes named by their colours are in an order of their own; all others in that of the truth."""
    found = [ImageColor.getrgb(name) if name.startswith("#") else (0, 0, 0) for name in names]
    if sum(name.startswith("#") for name in names) != len(COLORS) - 1:
        return list(range(count))
    return [int(np.abs(np.subtract(found, color)).sum(axis=1).argmin()) for color in COLORS]


def inside(truth: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W): more than 2 px away from every other class."""
    regions = [truth == value for value in np.unique(truth)]
    return np.any([binary_erosion(region, iterations=2, border_value=1) for region in regions], axis=0)


def is_image(pixels: NDArray[np.generic], number: int) -> bool:
    """Does an image show this number, rather than another of the truth?"""
    bands = min(3, pixels.shape[2])
    mine = pixels[:, :, :bands].astype(float).mean(axis=2).reshape(-1)
    others = [(other if bands == 1 else other[:, :, :bands]).mean(axis=2).reshape(-1) for other in IMAGES]
    likeness = [np.corrcoef(mine, other)[0, 1] for other in others]
    return int(np.argmax(likeness)) == number and max(likeness) > 0.95


def test_every_case_is_told_and_every_row_is_tested() -> None:
    """The last column of the tables of docs/formats.md, except for the one of named sets, names their cases."""
    tables = [block for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.M) if "| verified by |" not in block]
    told = []
    for table in tables:
        head, _line, *rows = [line.rstrip(" |\n").rsplit("|", 1)[1].strip() for line in table.splitlines()]
        assert head == "test"
        for cell in rows:
            assert re.fullmatch(r"`[a-z0-9-]+`(, `[a-z0-9-]+`)*", cell), cell
            told += re.findall(r"`([a-z0-9-]+)`", cell)
    keys = [case.key for case in CASES]
    assert len(set(keys)) == len(keys)
    assert sorted(set(told)) == sorted(keys)


def test_the_truth_can_fail() -> None:
    """A comparison that is right for every image is no test: each differs from each other one."""
    for number in range(COUNT):
        assert is_image(IMAGES[number], number)
        assert not is_image(IMAGES[number], (number + 1) % COUNT)
        assert not is_image(IMAGES[number][:, ::-1], number)
        assert 0.4 < np.mean(inside(Maker(Path(), False).maps[number])) < 0.9
