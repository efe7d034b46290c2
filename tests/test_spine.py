"""The files that CONTRIBUTING.md names for the way of `fit` and of `predict` are those that a run goes through."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ubend
from support import ROOT
from support.discs import make_discs
from ubend.accel.folded import FoldedUNet
from ubend.cli.app import main
from ubend.inference.predictor import Logits
from ubend.models.unet import UNet
from ubend.portable import mask_job
from ubend.portable.tiling import Blender
from ubend.tasks import fit as fit_task
from ubend.training import build, loop
from ubend.training.losses import Loss

SOURCE = Path(ubend.__file__).parent
LIMITS = {"fit": (8, 1500), "predict": (9, 1600)}  # files, lines
# Entered at one function each, and left to themselves: their own files are not part of the way.
TINY = ["--size", "32", "--width", "2", "--epochs", "1", "--batch", "4", "--device", "cpu"]
ENTERED = {
    "fit": ("accel/", "core/", "dataset/", "evaluation/"),
    "predict": ("accel/", "core/", "io/", "portable/images.py"),
}


def listed(command: str) -> list[str]:
    """The files of a command's list in CONTRIBUTING.md, below src/ubend."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (table,) = re.findall(rf"\*\*The way of `ubend {command}`\*\*.*?\n\n(\|.*?)\n\n", text, re.DOTALL)
    return re.findall(r"^\| `([\w/]+\.py)`", table, re.MULTILINE)


def files_on_the_stack(command: Path) -> set[str]:
    """Of ubend, from the command's own file on."""
    files, frame = list[str](), sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCE):
            files.append(path.relative_to(SOURCE).as_posix())
        if path == command:
            break
        frame = frame.f_back  # type: ignore[assignment]
    return set(files)


def watch(
    monkeypatch: pytest.MonkeyPatch,
    home: Any,
    name: str,
    seen: list[set[str]],
    command: Path,
    when: Callable[..., bool],
) -> None:
    """Note the files from the command to a function, its own one included, whenever it is called `when` it counts."""
    work: Callable[..., Any] = getattr(home, name)
    own = Path(inspect.getsourcefile(inspect.unwrap(work)) or "").relative_to(SOURCE).as_posix()

    def noted(*given: Any, **named: Any) -> Any:
        if when(*given):
            seen.append({own, *files_on_the_stack(command)})
        return work(*given, **named)

    monkeypatch.setattr(home, name, noted)


def passed(seen: list[set[str]], command: str) -> set[str]:
    return {file for files in seen for file in files if not file.startswith(ENTERED[command])}


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spine") / "discs"
    make_discs(folder, 12)
    return folder


@pytest.fixture(scope="module")
def run(discs: Path) -> Path:
    place = discs.parent / "run"
    CliRunner().invoke(main, ["fit", str(discs), *TINY, "--out", str(place)], catch_exceptions=False)
    return place


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_the_lists_are_short(command: str) -> None:
    files = listed(command)
    lines = sum(len((SOURCE / file).read_text(encoding="utf-8").splitlines()) for file in files)
    most_files, most_lines = LIMITS[command]
    assert 0 < len(files) <= most_files
    assert lines <= most_lines


def test_the_way_of_fit(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command to each stage, and to loss, network and optimizer: all files of the list, and no others."""
    seen, command = list[set[str]](), SOURCE / "cli" / "training.py"

    def note(home: Any, name: str, when: Callable[..., bool] = lambda *_given: True) -> None:
        watch(monkeypatch, home, name, seen, command, when)

    for stage in ("open_dataset", "resolve", "prepare", "build", "train", "evaluate_pairs"):
        note(fit_task, stage)
    note(build, "make_optimizer")
    note(Loss, "of_step")
    note(UNet, "forward", lambda net, _image: net.training)
    note(loop, "update_ema")  # beside the optimizer's step, which is torch's
    CliRunner().invoke(main, ["fit", str(discs), *TINY, "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert passed(seen, "fit") == set(listed("fit"))


def test_the_way_of_predict(discs: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command to network, merging and writing: all files of the list, and no others."""
    seen, command = list[set[str]](), SOURCE / "cli" / "prediction.py"
    for home, name in ((FoldedUNet, "__call__"), (Blender, "add"), (Logits, "native"), (mask_job, "write_mask")):
        watch(monkeypatch, home, name, seen, command, lambda *_given: True)
    for number, tiles in enumerate(("whole", "16")):
        words = ["predict", str(run), str(discs / "images"), "--tiles", tiles, "--out", str(tmp_path / str(number))]
        CliRunner().invoke(main, words, catch_exceptions=False)
    assert passed(seen, "predict") == set(listed("predict"))
