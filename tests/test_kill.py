"""A training that is killed and resumed ends the same to the bit: the short form of the benchmark."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.discs import draw_disc, make_discs
from support.training import contents
from ubend.inference.predictor import load

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kill_and_resume.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_and_resume", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_and_resume"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "kills"), [("modern", 2), ("tutorial", 1)])
def test_killed_and_resumed_is_the_same(script: ModuleType, tmp_path: Path, recipe: str, kills: int) -> None:
    flags = ("--size", "64", "--width", "4", "--batch", "8", "--epochs", "10")
    plan = script.Plan(recipe, script.draw_data(tmp_path / "sample"), tmp_path, "cpu", flags)
    outcome = script.try_recipe(plan, kills, seed=3)
    assert outcome.moments.total() == kills
    assert outcome.differences == []


TERMINATED = """
import sys
from support.training import MODERN, Listener, press_once
from ubend.tasks.fit import fit
listener = Listener(press_once(4, 15))
try:
    fit(sys.argv[1], sys.argv[2], settings=MODERN, device="cpu", reporter=listener)
finally:
    print("returned")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_terminated_and_resumed_is_the_same(tmp_path: Path) -> None:
    """SIGTERM in the second epoch: the process ends by it, after a model and the state were saved."""
    make_discs(tmp_path / "discs", 24)
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [sys.executable, "-c", TERMINATED, str(tmp_path / "discs"), str(run)]
    ended = subprocess.run(command, env=place, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, ""), ended.stderr
    image = draw_disc(99)[0]
    assert load(run, "cpu")(image).mask.shape == image.shape[:2]
    assert not (run / "scores.json").exists()
    program = "from support.training import MODERN, Listener; from ubend.tasks.fit import fit, resume; import sys; "
    for last in (
        f"resume({str(run)!r}, reporter=Listener())",
        f"fit({str(tmp_path / 'discs')!r}, {str(whole)!r}, settings=MODERN, device='cpu', reporter=Listener())",
    ):
        subprocess.run([sys.executable, "-c", program + last], env=place, check=True)
    assert contents(run) == contents(whole)


def test_a_difference_is_found(script: ModuleType, tmp_path: Path) -> None:
    """The comparison itself: one flipped bit, a changed line, a file too many."""
    import torch
    from safetensors.torch import save_file

    for name, weight in (("one", 1.0), ("other", 1.0000001)):
        run = tmp_path / name
        run.mkdir()
        save_file({"weight": torch.tensor([weight])}, run / "model.safetensors", {"about": "x"})
        save_file({"weight": torch.tensor([2.0])}, run / "resume.safetensors", {"about": name})
        for file in ("metrics.jsonl", "scores.json", "settings.toml", "data.csv"):
            (run / file).write_text("same" if file != "scores.json" else name)
    (tmp_path / "other" / ".resume-12345678.safetensors").touch()
    found = "\n".join(script.compare_runs(tmp_path / "one", tmp_path / "other"))
    for sign in ("model.safetensors: weight", "resume.safetensors: the header", "scores.json", ".resume-12345678"):
        assert sign in found
    assert len(found.splitlines()) == 4
    assert script.compare_runs(tmp_path / "one", tmp_path / "one") == []


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    """And nothing else does."""
    from ubend.training.run_folder import RunFolder

    kept = ["model.safetensors", ".notes-mine.txt", "panels/epoch_0001.png", "panels/.hidden", ".resume-x.safetensors"]
    left = [".resume-a1b2_c3d.safetensors", ".metrics-12345678.jsonl", ".tmpAb3dEf", "panels/.epoch_0002-abcdefgh.png"]
    (tmp_path / "panels").mkdir()
    for name in [*kept, *left]:
        (tmp_path / name).touch()
    RunFolder(tmp_path).clear_leftovers()
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


def test_leftovers_of_many_files_are_found_in_one_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a folder of 10,000 masks is listed 20,000 times before the first is written."""
    from ubend.portable import files

    listed, list_folder = list[Path](), os.listdir
    monkeypatch.setattr(files.os, "listdir", lambda folder: (listed.append(folder), list_folder(folder))[1])
    paths = [tmp_path / f"cell.{number}.png" for number in range(50)]
    left = [tmp_path / f".cell.{number}-0a1b2c3d.png" for number in range(50)]
    other = [tmp_path / name for name in (".cell.60-0a1b2c3d.png", ".cell.1-0a1b2c3d.tif", "cell.1-0a1b2c3d.png")]
    for path in [*paths, *left, *other]:
        path.touch()
    files.clear_leftovers(paths)
    assert listed == [tmp_path]
    assert sorted(tmp_path.iterdir()) == sorted([*paths, *other])
