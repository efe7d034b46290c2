"""The dataset doctor with a model: masks beside its predictions."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from support.discs import make_discs
from support.refusal import raises
from support.training import Listener
from ubend.api import fit
from ubend.cli.app import main
from ubend.core.errors import DataError
from ubend.core.settings import make_settings
from ubend.doctor.finding import Finding
from ubend.doctor.predictions import compare_prediction
from ubend.labels.class_table import IGNORED
from ubend.tasks.doctor import examine_data

BY_MODEL = ("missing objects", "unlike prediction")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """discs/, and run/ with two folds of it."""
    place = tmp_path_factory.mktemp("doctor-model")
    make_discs(place / "discs", 24)
    settings = {"model.depth": 2, "train.learning_rate": 1e-2, "train.precision": "float32", "data.folds": 2}
    fit(place / "discs", out=place / "run", settings=settings, size=24, width=4, epochs=16, batch=4, device="cpu",
        encoder="none", reporter=Listener())  # fmt: skip
    return place


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the discs, to put faults into."""
    return Path(shutil.copytree(trained / "discs", tmp_path / "discs"))


def examine(folder: Path, model: Path) -> tuple[list[Finding], str]:
    listener = Listener()
    findings = examine_data(
        make_settings(changes={"data.folder": str(folder), "device": "cpu"}), model=model, reporter=listener
    )
    return [finding for finding in findings if finding.check in BY_MODEL], listener.said


def read_mask(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as file:
        return np.array(file)


def empty(path: Path) -> None:
    Image.fromarray(np.zeros_like(read_mask(path))).save(path)


def exchange(path: Path) -> None:
    """Replace a mask by that of another image that overlaps least, without one pixel: equal files are an error."""
    mask, others = read_mask(path), [read_mask(other) for other in sorted(path.parent.iterdir())]
    other = min(others, key=lambda other: int(np.count_nonzero((other > 0) & (mask > 0))))
    other[tuple(np.argwhere(other)[0])] = 0
    Image.fromarray(other).save(path)


def test_clean_data_has_no_finding(trained: Path) -> None:
    found, said = examine(trained / "discs", trained / "run")
    assert not found
    assert "did not see" not in said  # each image is predicted by the model of its fold, or is a test image


def test_an_emptied_mask_is_found(folder: Path, trained: Path) -> None:
    empty(folder / "masks" / "disc07.png")
    found, _said = examine(folder, trained / "run")
    assert [(finding.check, finding.files[0].name) for finding in found] == [("missing objects", "disc07.png")]
    assert float(found[0].evidence["score"]) > float(found[0].evidence["threshold"]) > 0


def test_another_images_mask_is_found(folder: Path, trained: Path) -> None:
    exchange(folder / "masks" / "disc07.png")
    found, _said = examine(folder, trained / "run")
    assert [(finding.check, finding.files[0].name) for finding in found] == [("unlike prediction", "disc07.png")]


def test_training_images_of_a_single_model_are_counted(trained: Path) -> None:
    found, said = examine(trained / "discs", trained / "run" / "fold-1")
    assert not found
    assert "did not see" in said


def test_a_model_that_does_not_fit(folder: Path, trained: Path) -> None:
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 255 + 7).save(path)
    with raises(DataError, path=folder.name, key="--model"):
        examine(folder, trained / "run")
    result = CliRunner().invoke(main, ["doctor", str(folder), "--model", str(trained / "run"), "--set", "device=cpu"])
    assert result.exit_code == 2
    assert "--model" in result.output
    assert "Traceback" not in result.output


def test_no_model(trained: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", str(trained / "discs"), "--model", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "none" in result.output


def test_only_confident_and_scored_pixels_count() -> None:
    mask = np.array([[0, 0, 1, 1, IGNORED]], np.uint8)
    object_probability = np.array([[0.01, 0.8, 0.95, 0.02, 0.99]], np.float32)
    comparison = compare_prediction(np.stack([1 - object_probability, object_probability]), mask)
    np.testing.assert_allclose(comparison.marked, [0.5, 0.5])
    np.testing.assert_allclose(comparison.predicted, [0.5, 0.25])
    np.testing.assert_allclose(comparison.claimed, [0.75, 0.75])
    np.testing.assert_allclose(comparison.confident, [0.5, 0.5])
    np.testing.assert_allclose(comparison.dice, [2 / 3, 2 / 3])
