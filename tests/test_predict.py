"""The `predict` job: what is named, written, left out, gone on with; what is wrong is told at the end."""

import csv
import io
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from refusal import contents, refused, refused_once
from ubend import files
from ubend.cli import main
from ubend.model.bundle import load_bundle, save_bundle


def predict(*words: object, **given: object) -> Result:
    result = CliRunner().invoke(main, ["predict", *map(str, words), "--device", "cpu"], **given)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result


def masks(out: Path) -> list[str]:
    return sorted(path.stem for path in out.glob("*.png") if not path.stem.endswith("_overlay"))


def rows(out: Path) -> list[str]:
    return [Path(row["file"]).name for row in csv.DictReader(io.StringIO((out / "shares.csv").read_text()))]


@pytest.fixture
def images(good: Path) -> Path:
    return good / "data" / "images"


@pytest.fixture
def tiler(good: Path, tmp_path: Path) -> Path:
    """The model of `good` as if it had been trained on windows of pictures at their own scale."""
    bundle = load_bundle(good / "run")
    bundle.window_px, bundle.scale = 32, (1.0, 1.0)
    save_bundle(tmp_path / "tiler.safetensors", bundle)
    return tmp_path / "tiler.safetensors"


def test_patterns_and_a_list(good: Path, images: Path, tmp_path: Path) -> None:
    run = good / "run"
    predict(run, images / "disc0[12].png", "--out", tmp_path / "pattern")
    assert masks(tmp_path / "pattern") == ["disc01", "disc02"]
    predict(run, good / "**" / "images" / "disc03.png", "--out", tmp_path / "deep")
    assert masks(tmp_path / "deep") == ["disc03"]
    listed = f"{images / 'disc04.png'}\n\n{images / 'disc05.png'}\r\n"
    predict(run, "-", images / "disc06.png", "--out", tmp_path / "list", input=listed)
    assert masks(tmp_path / "list") == ["disc04", "disc05", "disc06"]
    assert "none*.png" in refused_once("predict", run, images / "none*.png", "--out", tmp_path / "none")
    assert "no pictures" in refused_once("predict", run, "-", "--out", tmp_path / "none")


def test_broken_files_do_not_stop_the_rest(good: Path, images: Path, tmp_path: Path) -> None:
    """Told at the end, all of them; exit code 2; the others are written, and are in shares.csv."""
    out = tmp_path / "out"
    (tmp_path / "none.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes((images / "disc03.png").read_bytes()[:-2000])
    named = [tmp_path / "none.png", images / "disc01.png", tmp_path / "half.png", images / "disc02.png"]
    told = refused("predict", good / "run", *named, "--out", out)
    assert told[0] == "2 problems:"
    assert "none.png" in told[1]
    assert "half.png" in told[2]
    assert masks(out) == ["disc01", "disc02"]
    assert rows(out) == ["disc01.png", "disc02.png"]
    predict(good / "run", images / "disc01.png", images / "disc02.png", "--out", tmp_path / "alone")
    for name, data in contents(out).items():
        assert name == "shares.csv" or data == contents(tmp_path / "alone")[name], "numbers were mixed up"


def test_resume(good: Path, images: Path, tmp_path: Path) -> None:
    """What is there stays; a picture without its mask is made again, its overlay too; shares.csv holds all."""
    out = tmp_path / "out"
    predict(good / "run", images, "--out", out)
    whole = contents(out)
    (out / "disc05.png").unlink()
    (out / "disc07.png").unlink()
    (out / "disc05_overlay.png").write_bytes(b"half")
    (out / "shares.csv").unlink()
    before = (out / "disc01.png").stat().st_mtime_ns
    said = predict(good / "run", images, "--out", out, "--resume").output
    assert "22 masks are there already" in said
    assert contents(out) == whole
    assert (out / "disc01.png").stat().st_mtime_ns == before
    assert predict(good / "run", images, "--out", out, "--resume").exit_code == 0
    assert contents(out) == whole
    assert "--resume" in refused_once("predict", good / "run", images, "--out", out)
    Image.fromarray(np.full((40, 48), 9, np.uint8)).save(out / "disc01.png")
    assert "another model" in refused_once("predict", good / "run", images, "--out", out, "--resume")


def test_no_room_is_told_before_anything_is_written(
    good: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 1000))
    line = refused_once("predict", good / "run", images, "--out", tmp_path / "out")
    assert "will be written" in line
    assert "choose another --out" in line
    assert not (tmp_path / "out").exists()


def test_how_pictures_are_taken_is_said(good: Path, images: Path, tiler: Path, tmp_path: Path) -> None:
    picture = images / "disc01.png"
    said = predict(good / "run", picture, "--out", tmp_path / "a").output
    assert "chosen: tiles = 0: pictures are taken whole and resized to 32 px" in said
    said = predict(tiler, picture, "--out", tmp_path / "b").output
    assert "chosen: tiles = 512: trained on windows of 32 px of pictures at their own scale" in said
    said = predict(tiler, picture, "--out", tmp_path / "c", "--tiles", "whole").output
    assert "WARNING: the model was trained on windows" in said
    said = predict(good / "run", picture, "--out", tmp_path / "d", "--tiles", 64, "--overlap", 0.5).output
    assert "WARNING: the model was trained on pictures at 0.73 to 0.73 of their size" in said
    assert "WARNING: the model" not in predict(tiler, picture, "--out", tmp_path / "e", "--tiles", 64).output
    bundle = load_bundle(tiler)
    bundle.scale = None
    save_bundle(tmp_path / "old.safetensors", bundle)
    said = predict(tmp_path / "old.safetensors", picture, "--out", tmp_path / "f", "--tiles", 64).output
    assert "does not say at which scale" in said


def test_bad_tiles(good: Path, images: Path, tmp_path: Path) -> None:
    for words in (["--tiles", "-3"], ["--tiles", "some"], ["--overlap", "1"], ["--overlap", "-0.1"]):
        line = refused_once("predict", good / "run", images, "--out", tmp_path / "out", *words)
        assert words[0] in line
    assert not (tmp_path / "out").exists()
