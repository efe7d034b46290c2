"""`data.unmasked`: images without a mask file are refused, or read as background alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.commands import succeed
from support.refusal import TINY, check, raises, refused_once
from support.training import Listener
from ubend.cli.app import main
from ubend.core.errors import DataError, SettingError
from ubend.core.settings import make_settings
from ubend.dataset.dataset import Dataset, open_dataset

ON, COLORED = 255, (255, 0, 0)


def draw(root: Path, image: str, mask: str | None = None, value: int | tuple[int, ...] = ON) -> None:
    """An image of noise, and a mask with a rectangle of this value on 0."""
    rng = np.random.default_rng(len(image) + sum(map(ord, image)))
    for name in filter(None, (image, mask)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(root / image)
    if mask is not None:
        values = np.zeros((48, 48, *np.shape(value)), np.uint8)
        values[8:30, 8:30] = value
        Image.fromarray(values).save(root / mask)


def flat(root: Path, value: int | tuple[int, ...] = ON) -> Path:
    """12 images, the last four without a mask."""
    for n in range(12):
        draw(root, f"images/{n:02}.png", f"masks/{n:02}.png" if n < 8 else None, value)
    return root


def inspected(root: Path) -> Path:
    """As inspections of parts are published: parts without defects have no masks, and names recur between splits."""
    for n in range(4):
        draw(root, f"train/good/{n}.png")
        draw(root, f"test/good/{n}.png")
        draw(root, f"test/hole/{n}.png", f"ground_truth/hole/{n}_mask.png")
    return root


def read(root: Path, tmp_path: Path, values: Sequence[str] | None = None) -> Dataset:
    settings = make_settings(
        changes={"data.folder": str(root), "data.unmasked": "background", "data.size": 32, "data.values": values}
    )
    return open_dataset(settings, "cpu", tmp_path / "cache", Listener())


def empty(data: Dataset) -> set[str]:
    """The names of the images whose mask is background alone."""
    background = data.labels.names.index("background")
    pairs = enumerate(data.folder.pairs)
    return {pair.name for index, pair in pairs if (np.asarray(data.store.mask(index)) == background).all()}


@pytest.mark.parametrize("draw_folder", [flat, inspected])
def test_it_is_refused_with_what_to_do(draw_folder: type, tmp_path: Path) -> None:
    settings = make_settings(changes={"data.folder": str(draw_folder(tmp_path / "data"))})
    with pytest.raises(DataError) as caught:
        open_dataset(settings, "cpu", tmp_path / "cache", Listener())
    assert all("data.unmasked=background" in problem for problem in caught.value.problems)


@pytest.mark.parametrize("value", [ON, COLORED])
def test_it_is_background(value: int | tuple[int, ...], tmp_path: Path) -> None:
    data = read(
        flat(tmp_path / "data", value), tmp_path, None if value == ON else ["#000000=background", "#ff0000=red"]
    )
    assert len(data.folder.pairs) == 12
    assert empty(data) == {"08", "09", "10", "11"}


def test_names_may_recur_between_splits(tmp_path: Path) -> None:
    data = read(inspected(tmp_path / "data"), tmp_path)
    assert empty(data) == {f"{split}/good/{n}" for split in ("train", "test") for n in range(4)}
    assert {pair.name: pair.split for pair in data.folder.pairs if "/good/" in pair.name} == {
        f"{split}/good/{n}": split for split in ("train", "test") for n in range(4)
    }


def test_a_misnamed_mask_is_still_a_problem(tmp_path: Path) -> None:
    root = flat(tmp_path / "data")
    (root / "images/03.png").rename(root / "images/x-3.png")
    (root / "masks/03.png").rename(root / "masks/x_3.png")
    with pytest.raises(DataError) as caught:
        read(root, tmp_path)
    assert "did you mean masks/x_3.png?" in str(caught.value)


def test_zero_must_be_the_background(tmp_path: Path) -> None:
    root = flat(tmp_path / "data")
    with raises(SettingError, key="data.unmasked", named=["--values"]):
        read(root, tmp_path, ["255=background", "0=hole"])


def test_without_any_mask_there_is_nothing_to_learn(tmp_path: Path) -> None:
    for n in range(6):
        draw(tmp_path / "data", f"images/{n}.png")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "data", tmp_path)
    check(caught.value, DataError, path=tmp_path / "data")


def test_a_folder_to_score_may_lack_masks(tmp_path: Path) -> None:
    """`evaluate` and `preview` take the option that their error suggests."""
    trained, other = flat(tmp_path / "trained"), flat(tmp_path / "other", ON)
    for number, path in enumerate(sorted((other / "images").iterdir())):  # other images than those of the training
        Image.fromarray(255 - np.asarray(Image.open(path)) // (1 + number % 2)).save(path)
    run = tmp_path / "run"
    setting = ("--set", "data.unmasked=background")
    succeed("fit", trained, *TINY, *setting, "--out", run)
    refusal = refused_once("evaluate", run, other)
    assert " ".join(setting) in str(refusal)
    scores = tmp_path / "scores.json"
    succeed("evaluate", run, other, *setting, "--out", scores)
    assert len(json.loads(scores.read_text())["per_picture"]) == 12
    drawn = CliRunner().invoke(main, ["preview", str(other), *setting, "--out", str(tmp_path / "preview.png")])
    assert drawn.exit_code == 0, drawn.output
    check(refused_once("evaluate", run, other, "--set", "data.size=64"), SettingError, key="data.size")
    check(refused_once("evaluate", run, other, "--set", "data.unmasked=sky"), SettingError, key="data.unmasked")
