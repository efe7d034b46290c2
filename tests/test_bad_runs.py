"""Outputs in the way, full disks, spoilt models and runs, through the command line: exit code 2, one clear line
per problem, no traceback, and nothing lost."""

import contextlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.commands import succeed
from support.refusal import TINY, check, contents, raises, refused, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, ModelFileError, OutputError, TrainingError
from ubend.portable.lock import LOCK


@contextlib.contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: writes fail half-way, as on a full disk."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))  # Python itself ignores the signal
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ------------------------------------------------------------------------------------------------ outputs


def test_outputs_are_not_overwritten(good: Path, run: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    before = contents(tmp_path)
    for out in (full, tmp_path / "file", tmp_path / "file" / "below"):
        error = refused_once("fit", good / "data", "--out", out, *TINY)
        check(error, OutputError, path=out, key="--out")
        assert "--resume" not in str(error)  # there is no run to resume
    error = refused_once("fit", good / "data", "--out", run, *TINY)
    check(error, OutputError, path=run, key="--out")
    assert "--resume" not in str(error)  # it is finished
    (run / "scores.json").rename(tmp_path.parent / "scores.json")
    assert "--resume" in str(refused_once("fit", good / "data", "--out", run, *TINY))
    (tmp_path.parent / "scores.json").rename(run / "scores.json")
    image = good / "data" / "images" / "disc00.png"
    for command, out in (
        (["predict", run, image], tmp_path / "file"),
        (["evaluate", run], tmp_path / "file"),
        (["show", run], tmp_path / "file" / "x.png"),
        (["preview", good / "data"], tmp_path / "file" / "x.png"),
    ):
        error = refused_once(*command, "--out", out)
        assert type(error) is OutputError
        assert tmp_path / "file" in (error.path, *error.path.parents)
    for name in ("sample", "demo"):
        for out in (full, tmp_path / "file"):
            words = [out] if name == "sample" else ["--out", out]
            check(refused_once(name, *words), OutputError, path=out)
    assert contents(tmp_path) == before


def test_the_outputs_are_looked_at_before_the_images(tmp_path: Path) -> None:
    """Nobody waits for an hour of decoding to be reported that --out is taken."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    check(refused_once("fit", tmp_path / "nowhere", "--out", tmp_path / "out"), OutputError, path=tmp_path / "out")


def test_predict_keeps_what_is_there(good: Path, tmp_path: Path) -> None:
    run, out = good / "run", tmp_path / "masks"
    image, other = (good / "data" / "images" / f"disc0{number}.png" for number in (1, 2))
    assert CliRunner().invoke(main, ["predict", str(run), str(image), "--out", str(out)]).exit_code == 0
    before = contents(out)
    check(refused_once("predict", run, image, "--out", out), OutputError, path=out / "disc01.png", key="--out")
    # another image: the masks would have room, but shares.csv of the first ones would be lost
    check(refused_once("predict", run, other, "--out", out), OutputError, path=out / "shares.csv", key="--out")
    (out / "shares.csv").unlink()
    (out / "disc01.png").unlink()
    check(refused_once("predict", run, image, "--out", out), OutputError, path=out / "disc01_overlay.png")
    assert contents(out) == {
        name: data for name, data in before.items() if name in ("disc01_overlay.png", "predict.json")
    }
    images = contents(good / "data")
    check(refused_once("predict", run, image, "--out", image.parent), OutputError, path="disc01.png")
    assert contents(good / "data") == images


def test_predict_refuses(good: Path, tmp_path: Path) -> None:
    run, images, out = good / "run", good / "data" / "images", tmp_path / "out"
    for name in ("disc01.bmp", "disc02_overlay.png"):
        Image.open(images / "disc01.png").save(tmp_path / name)
    twins = refused_once("predict", run, images / "disc01.png", tmp_path / "disc01.bmp", "--out", out)
    check(twins, DataError, key="--out")
    assert "disc01.bmp" in str(twins)
    overlays = refused_once("predict", run, images / "disc02.png", tmp_path / "disc02_overlay.png", "--out", out)
    check(overlays, DataError, key="--out")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere.png"):
        check(refused_once("predict", run, path, "--out", out), DataError, path=path)
    (tmp_path / "none.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"text" * 100)
    told = refused("predict", run, tmp_path / "none.png", tmp_path / "text.png", "--out", out)
    assert [problem.path for problem in told.problems] == [tmp_path / "none.png", tmp_path / "text.png"]
    (tmp_path / "half.png").write_bytes((images / "disc03.png").read_bytes()[:-2000])
    check(refused_once("predict", run, tmp_path / "half.png", "--out", out), DataError, path=tmp_path / "half.png")
    assert not out.exists()


def test_a_full_disk_while_training(good: Path, run: Path, tmp_path: Path) -> None:
    """The state and the previous model stay whole, and training continues when there is room again."""
    before = contents(run)
    with full_disk(100_000):
        error = refused_once("fit", "--resume", run)
    assert type(error) is OutputError
    assert error.path.is_relative_to(run)
    assert contents(run) == before
    assert CliRunner().invoke(main, ["fit", "--resume", str(run)]).exit_code == 0
    assert contents(run)["model.safetensors"] == before["model.safetensors"]
    with full_disk(100_000):
        error = refused_once("fit", good / "data", "--out", tmp_path / "new", *TINY)
    assert type(error) is OutputError
    assert error.path.is_relative_to(tmp_path / "new")
    left = sorted(path.name for path in (tmp_path / "new").rglob("*") if path.name.startswith("."))
    assert left == [], "half a file stayed"


def test_a_full_disk_elsewhere(good: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = good / "data" / "images"
    with full_disk(200):
        error = refused_once("predict", run, images / "disc01.png", "--out", tmp_path / "masks", "--device", "cpu")
        assert type(error) is OutputError
        assert error.path.is_relative_to(tmp_path / "masks")
        assert contents(tmp_path / "masks") == {}
        (tmp_path / "samples.png").write_bytes(b"an earlier one")
        refused_once("preview", good / "data", "--out", tmp_path / "samples.png")
        assert (tmp_path / "samples.png").read_bytes() == b"an earlier one"
        refused_once("evaluate", run, "--device", "cpu", "--out", tmp_path / "scores.json")
        assert not (tmp_path / "scores.json").exists()
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path / "cache"))
    with full_disk(10_000):
        error = refused_once("fit", good / "data", "--out", tmp_path / "new", *TINY)
    check(error, OutputError, path=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    (tmp_path / "in-the-way").touch()
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path / "in-the-way"))
    error = refused_once("fit", good / "data", "--out", tmp_path / "new", *TINY)
    check(error, OutputError, path=tmp_path / "in-the-way")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_within_an_epoch(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small file that is only added to."""
    from ubend.training.run_folder import RunFolder

    timing = RunFolder(run).timing
    with full_disk(timing.stat().st_size), raises(OutputError, path=timing):
        RunFolder(run).append_timing({"epoch": 3})


# ------------------------------------------------------------------------------------------------- models


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _clear(path: Path) -> None:
    path.write_bytes(b"")


def _other_kind(path: Path) -> None:
    path.write_bytes(b"\x80\x04 a pickle, perhaps" * 100)


def _foreign(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.float32)}, path)


def _edit(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change what the header says of the model; the tensors stay."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    entry = json.loads(header["__metadata__"]["ubend"])
    change(entry)
    header["__metadata__"]["ubend"] = json.dumps(entry)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def _newer(path: Path) -> None:
    _edit(path, lambda entry: entry.update(format=99, network="a shape that is not known yet"))


def _other_shape(path: Path) -> None:
    _edit(path, lambda entry: entry["network"].update(width=5))  # type: ignore[attr-defined]


def _no_labels(path: Path) -> None:
    _edit(path, lambda entry: entry.pop("labels") and None)


@pytest.mark.parametrize("command", ["predict", "evaluate", "info", "show"])
@pytest.mark.parametrize(
    ("spoil", "key"),
    [
        (Path.unlink, None),
        (_cut, "header"),
        (_cut_in_header, "header"),
        (_clear, "header"),
        (_other_kind, "header"),
        (_other_shape, "stem.0.weight"),
        (_no_labels, "labels"),
        (_foreign, "metadata"),
        (_newer, "format"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models(
    command: str, spoil: Callable[[Path], None], key: str | None, run: Path, good: Path, tmp_path: Path
) -> None:
    spoil(run / "model.safetensors")
    words = [good / "data" / "images", "--out", tmp_path / "out"] if command == "predict" else []
    error = refused_once(command, run, *words)
    check(error, ModelFileError, path=run / "model.safetensors")
    assert error.key == key
    assert not (tmp_path / "out").exists()


def test_a_model_without_its_run(good: Path, tmp_path: Path) -> None:
    """`evaluate` and `show` need the data list, which a model file alone does not have."""
    shutil.copy(good / "run" / "model.safetensors", tmp_path)
    for command in ("evaluate", "show"):
        error = refused_once(command, tmp_path / "model.safetensors")
        check(error, OutputError, path=tmp_path / "model.safetensors")
    succeed("evaluate", tmp_path / "model.safetensors", good / "data", "--subset", "test")  # the model knows its images


@pytest.mark.parametrize("command", ["evaluate", "show"])
def test_a_run_whose_data_was_moved(command: str, run: Path, good: Path, tmp_path: Path) -> None:
    """One line that says where the images were, and how to name where they are; a few that are gone are listed."""
    table = (run / "data.csv").read_text()
    (run / "data.csv").write_text(table.replace(str(good / "data"), str(tmp_path / "before")))
    error = refused_once(command, run)
    check(error, DataError, path=tmp_path / "before" / "images", key="folder", named=[f"ubend evaluate {run} FOLDER"])
    succeed("evaluate", run, good / "data")


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("command", ["evaluate", "show"])
def test_an_empty_data_list(command: str, rows: int, run: Path) -> None:
    """Empty, or with its header alone."""
    (run / "data.csv").write_text("".join((run / "data.csv").read_text().splitlines(keepends=True)[:rows]))
    error = refused_once(command, run)
    check(error, OutputError, path=run / "data.csv", named=[f"ubend evaluate {run} FOLDER"])


# ------------------------------------------------------------------------------------------------- resume


def test_resume_of_what_is_no_run(good: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "empty", good / "data", run / "model.safetensors"):
        check(refused_once("fit", "--resume", place), OutputError, path=place)
    for text in ('{"format": 2}', "[]", '{"folder": 3, "threads": 1, "torch": ""}', "half a fi"):
        (run / "run.json").write_text(text)
        check(refused_once("fit", "--resume", run), OutputError, path=run)


@pytest.mark.parametrize(
    "text", ["{}", '{"format": 3}', '{"ubend": "0.1.0", "device": "x", "threads": 1, "torch": "2"}']
)
def test_resume_of_a_run_of_another_version(text: str, run: Path) -> None:
    """One line; nothing in it changes, and its model can be used."""
    (run / "run.json").write_text(text)
    before = contents(run)
    check(refused_once("fit", "--resume", run), OutputError, path=run, key="format")
    assert contents(run) == before


@pytest.mark.parametrize("name", ["settings.toml", "data.csv", "resume.safetensors"])
def test_resume_of_a_damaged_run(name: str, run: Path) -> None:
    _clear(run / name) if name != "settings.toml" else (run / name).unlink()
    before = contents(run)
    error = refused_once("fit", "--resume", run)
    assert error.key == name or error.path == run / name
    assert contents(run) == before


def test_resume_without_the_state(run: Path) -> None:
    """The model is not replaced by that of a new training; one that was killed in its first save begins again."""
    (run / "resume.safetensors").unlink()
    before = contents(run)
    check(refused_once("fit", "--resume", run), OutputError, path=run / "resume.safetensors", named=["--from"])
    assert contents(run) == before
    (run / LOCK).touch()
    assert CliRunner().invoke(main, ["fit", "--resume", str(run)]).exit_code == 0
    assert contents(run).keys() == before.keys() | {"resume.safetensors"}


def test_resume_without_state_and_model(run: Path) -> None:
    """Begun before the first save: from the start, which is reported. With epochs, or an initial model: refused."""
    for name in ("resume.safetensors", "model.safetensors"):
        (run / name).unlink()
    before, facts, epochs = contents(run), (run / "run.json").read_text(), (run / "metrics.jsonl").read_text()
    error = refused_once("fit", "--resume", run)
    named = ["model.safetensors", "resume.safetensors", f"--config {run / 'settings.toml'}"]
    check(error, OutputError, path=run / "resume.safetensors", named=named)
    assert contents(run) == before
    (run / "metrics.jsonl").unlink()
    (run / "run.json").write_text(json.dumps(json.loads(facts) | {"begun_with": {"path": "x", "kept": []}}))
    check(refused_once("fit", "--resume", run), OutputError, path=run / "resume.safetensors")
    (run / "run.json").write_text(facts)
    result = CliRunner().invoke(main, ["fit", "--resume", str(run)])
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if line.startswith(f"{run} ")]
    assert (run / "metrics.jsonl").read_text() == epochs


def _change_image(data: Path) -> None:
    shutil.copy(data / "images" / "disc04.png", data / "images" / "disc03.png")


def _change_mask(data: Path) -> None:
    shutil.copy(data / "masks" / "disc04.png", data / "masks" / "disc03.png")


def _take_pair(data: Path) -> None:
    (data / "images" / "disc03.png").unlink()
    (data / "masks" / "disc03.png").unlink()


@pytest.mark.parametrize("change", [_change_image, _change_mask, _take_pair])
def test_resume_with_changed_images(change: Callable[[Path], None], run: Path, good: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(good / "data", data)
    settings = (run / "settings.toml").read_text()
    assert str(good / "data") in settings
    (run / "settings.toml").write_text(settings.replace(str(good / "data"), str(data)))
    change(data)
    before = contents(run)
    error = refused_once("fit", "--resume", run)
    check(error, TrainingError, path=data)
    assert "disc03" in str(error)
    shutil.rmtree(data)
    check(refused_once("fit", "--resume", run), TrainingError, path=data, key="data.folder")
    assert contents(run) == before
