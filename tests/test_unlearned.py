"""Classes that stay at a validation Dice of 0 are named, with what helps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.discs import draw_disc
from support.training import SMALL, Listener, press_once
from ubend.tasks import fit as job
from ubend.training.unlearned import describe_unlearned, find_unlearned

EPOCHS = 9
SETTINGS = {
    **SMALL,
    "data.values": ["0=ground", "1=disc", "2=fence", "3=[sign]"],
    "model.width": 4,
    "train.epochs": EPOCHS,
    "train.batch": 4,
    "train.learning_rate": 2e-2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright discs, and one pixel of each of two classes that nothing in the image shows."""
    folder = tmp_path_factory.mktemp("unlearned")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(24):
        image, mask = draw_disc(number, 32, 32)
        mask //= 255
        y, x = np.random.default_rng(number).integers(0, 32, (2, 2))
        mask[y, x] = 2, 3
        Image.fromarray(image).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02d}.png")
    return folder


def notes(said: str) -> list[str]:
    return [line for line in said.splitlines() if "validation Dice is still" in line]


@pytest.fixture(scope="module")
def said(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    reporter = Listener()
    job.fit(folder, tmp_path_factory.mktemp("run") / "run", settings=SETTINGS, device="cpu", reporter=reporter)
    return reporter.said


def test_named_after_a_third_and_at_the_end(said: str) -> None:
    """The discs are learned and not named."""
    found = notes(said)
    for line, epoch in zip(found, (EPOCHS // 3, EPOCHS), strict=True):
        assert line.startswith(f"note: fence, [sign]: validation Dice is still 0.000 after {epoch} of {EPOCHS} epochs;")
        assert all(way in line for way in ("--epochs", "--batch", "--patches", "--set train.learning_rate=0.06"))
    assert said.index(f"epoch {EPOCHS // 3}/{EPOCHS}") < said.index(found[0]) < said.index(f"epoch {EPOCHS // 3 + 1}/")


@pytest.mark.parametrize("step", [3, 20])
def test_resumed_runs_say_the_same(step: int, folder: Path, said: str, tmp_path: Path) -> None:
    """Interrupted before and after the first note."""
    first, second = Listener(press_once(step)), Listener()
    assert job.fit(folder, tmp_path / "run", settings=SETTINGS, device="cpu", reporter=first).scores is None
    job.resume(tmp_path / "run", reporter=second)
    assert notes(first.said + second.said) == notes(said)
    assert len(notes(first.said)) == (step > 3)


def make_training(*rows: dict[str, Any], epochs: int = 6, stop_reason: str | None = None) -> Any:
    """A training whose only validation mask holds the classes 0, 1 and 2, not 3."""
    return SimpleNamespace(
        settings=SimpleNamespace(epochs=epochs, learning_rate=1e-3),
        class_names=("a", "b", "c", "d"),
        state=SimpleNamespace(progress=SimpleNamespace(history=list(rows), stop_reason=stop_reason)),
        validation=Validation([0]),
    )


class Validation(list[int]):
    def mask(self, _item: int) -> np.ndarray:
        return np.array([[0, 1], [2, 255]], np.uint8)


def row(*dice: float | None, **more: Any) -> dict[str, Any]:
    return {"val_dice": dict(zip("abcd", dice, strict=True)), **more}


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([row(0.9, 0.0, 0.0004, 0.0)], ["b", "c"]),  # as shown; d is predicted by mistake
        ([row(0.9, 0.0005, 0.1, None)], []),
        ([row(0.9, 0.0, None, None)], ["b"]),
        ([row(0.9, 0.01, 0.0, 0.0), row(0.9, 0.0, 0.0, 0.0)], ["b", "c"]),  # what the initial weights found is luck
        ([*4 * [row(0.9, 0.1, 0.0, 0.0)], row(0.9, 0.0, 0.0, 0.0)], ["c"]),  # b was learned, and may come back
        ([row(0.9, 0.0, 0.0, 0.0, batch_statistics_dice={"a": 0.9, "b": 0.3, "c": 0.0, "d": 0.0})], ["c"]),
    ],
)
def test_which_classes(rows: list[dict[str, Any]], names: list[str]) -> None:
    training = make_training(*rows)
    assert find_unlearned(training) == names


@pytest.mark.parametrize(
    ("epochs", "stop_reason", "after"),
    [(6, None, [2, 6]), (7, None, [3, 7]), (1, None, [1]), (2, None, [1, 2]), (100, "no better figure", [1, 2, 3])],
)
def test_when(epochs: int, stop_reason: str | None, after: list[int]) -> None:
    """Early stopping is an end, too."""
    said = []
    for epoch in range(1, min(epochs, 3 if stop_reason else epochs) + 1):
        training = make_training(*epoch * [row(0.9, 0.0, 0.5, None)], epochs=epochs, stop_reason=stop_reason)
        said += [epoch] if describe_unlearned(training) else []
    assert said == after
