"""`--resume` keeps what was made from the inputs as they are, whole; one process at a time writes to a folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import succeed
from support.refusal import check, contents, refused, refused_once
from ubend.core.errors import OutputError
from ubend.portable.lock import LOCK, locked


@pytest.fixture
def images(good: Path, tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(4):
        shutil.copy(good / "data" / "images" / f"disc0{number}.png", tmp_path / "in")
    return tmp_path / "in"


@pytest.mark.parametrize("command", ["predict", "cutout"])
def test_what_is_stale_or_damaged_is_made_again(command: str, good: Path, images: Path, tmp_path: Path) -> None:
    """Whatever happens to inputs and outputs, the folder ends as a new one; what is whole is not touched."""
    words, out = [command, good / "run", images, "--out", tmp_path / "out"], tmp_path / "out"
    succeed(*map(str, words[:1]), *words[1:])
    first = contents(out)
    names = [name for name in first if name.startswith("disc")]
    shutil.copy(good / "data" / "images" / "disc07.png", images / "disc00.png")  # another image of this size
    for name in names:
        path = out / name
        if name.startswith("disc01"):
            path.write_bytes(first[name][:-20])
        elif name.startswith("disc02"):
            path.write_bytes(b"")
    kept = {name: (out / name).stat().st_mtime_ns for name in names if name.startswith("disc03")}
    said = succeed(command, *words[1:], "--resume").output
    assert "3 of the files are recreated" in said
    succeed(command, *words[1:-1], tmp_path / "new")
    assert contents(out) == contents(tmp_path / "new")
    assert kept == {name: (out / name).stat().st_mtime_ns for name in kept}
    assert "made again" not in succeed(command, *words[1:], "--resume").output


def test_a_killed_process_loses_no_entry(good: Path, images: Path, tmp_path: Path) -> None:
    """The journal counts as the record does, and a cut line of it is left out."""
    words, out = [good / "run", images, "--out", tmp_path / "out"], tmp_path / "out"
    succeed("predict", *words)
    whole = contents(out)
    record = json.loads((out / "predict.json").read_text())
    files = record.pop("files")
    begun = {name: {**entry, "outputs": dict.fromkeys(entry["outputs"])} for name, entry in files.items()}
    lines = [json.dumps({name: entry}) for some in (begun, files) for name, entry in some.items()]
    (out / "predict.json").write_text(json.dumps({**record, "files": {}}))
    (out / ".predict.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:30]]))
    kept = (out / "disc02.png").stat().st_mtime_ns
    assert "1 of the files are recreated" in succeed("predict", *words, "--resume").output
    assert (out / "disc02.png").stat().st_mtime_ns == kept
    again = contents(out)
    assert json.loads(again.pop("predict.json")) == json.loads(whole.pop("predict.json"))
    assert again == whole


def test_a_mended_mask_stays(good: Path, images: Path, tmp_path: Path) -> None:
    words, out = [good / "run", images, "--out", tmp_path / "out"], tmp_path / "out"
    succeed("predict", *words)
    shutil.copy(out / "disc01.png", out / "disc00.png")
    succeed("predict", *words, "--resume")
    assert (out / "disc00.png").read_bytes() == (out / "disc01.png").read_bytes()


@pytest.mark.parametrize("command", ["predict", "cutout"])
def test_files_of_others_are_not_overwritten(command: str, good: Path, images: Path, tmp_path: Path) -> None:
    """Neither the inputs nor true masks with the names of the outputs, whatever is recorded; --resume is not advised
    where it would be refused."""
    truth = shutil.copytree(good / "data" / "masks", tmp_path / "truth")
    before = contents(tmp_path)
    for out in (images, truth):
        for words in (["--resume"], []):
            error = refused_once(command, good / "run", images, "--out", out, *words)
            check(error, OutputError, path=out / "disc00.png", key="--out")
            assert words or "--resume" not in str(error)
    assert contents(tmp_path) == before
    Image.open(images / "disc00.png").save(images / "disc00.bmp")
    succeed(command, good / "run", images / "disc00.bmp", "--out", truth.with_name("own"))
    shutil.move(truth.with_name("own") / "disc00.png", images / "disc00.png")  # an output, named as an input
    (truth.with_name("own") / "disc00.png").symlink_to(images / "disc00.png")
    error = refused_once(command, good / "run", images / "disc00.png", "--out", tmp_path / "own", "--resume")
    check(error, OutputError, path=tmp_path / "own" / "disc00.png", key="--out", named=["input"])


def test_a_file_that_was_changed_is_not_made_again(good: Path, images: Path, tmp_path: Path) -> None:
    """Of an input that has changed since, or whose other files are gone; one that is damaged is."""
    words, out = [good / "run", images, "--out", tmp_path / "out", "--resume"], tmp_path / "out"
    succeed("predict", *words)
    mended = Image.fromarray(np.eye(40, 48, dtype=np.uint8))
    mended.save(out / "disc01.png")
    succeed("predict", *words)
    (out / "disc01_overlay.png").unlink()
    before = contents(out)
    check(refused_once("predict", *words), OutputError, path=out / "disc01.png", key="--out", named=["predict.json"])
    (out / "disc01_overlay.png").write_bytes(b"")
    shutil.copy(good / "data" / "images" / "disc07.png", images / "disc01.png")
    check(refused_once("predict", *words), OutputError, path=out / "disc01.png", key="--out")
    assert contents(out) == before | {"disc01_overlay.png": b""}
    (out / "disc01.png").write_bytes((out / "disc01.png").read_bytes()[:-20])
    succeed("predict", *words)


def test_a_summary_of_others_is_not_overwritten(good: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "shares.csv").write_text("my own notes")
    error = refused_once("predict", good / "run", images, "--out", out, "--resume")
    check(error, OutputError, path=out / "shares.csv", key="--out")
    (out / "shares.csv").unlink()
    succeed("predict", good / "run", images, "--out", out, "--resume")
    (out / "shares.csv").write_text((out / "shares.csv").read_text() + "my own notes")
    error = refused_once("predict", good / "run", images, "--out", out, "--resume")
    check(error, OutputError, path=out / "shares.csv", key="--out")


def test_a_killed_writer_is_gone_on_with(good: Path, images: Path, tmp_path: Path) -> None:
    """What lies in the folder without being whole in the record was begun by the same command."""
    words, out = [good / "run", images, "--out", tmp_path / "out"], tmp_path / "out"
    program = (
        "import os, sys; from ubend.portable.mask_job import MaskImageJob as job; from ubend.cli.app import main\n"
        "write = job.write_one\n"
        "job.write_one = lambda self, number, *rest: (write(self, number, *rest), os._exit(9))\n"
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "predict", *map(str, words), "--device", "cpu"]
    assert subprocess.run(command, check=False).returncode == 9
    assert [path for path in contents(out) if path.endswith(".png")]
    succeed("predict", *words, "--resume")
    succeed("predict", *words[:-1], tmp_path / "new")
    assert contents(out) == contents(tmp_path / "new")


def test_a_record_outlives_inputs_that_fail(good: Path, images: Path, tmp_path: Path) -> None:
    words = [good / "run", "--out", tmp_path / "out", "--resume"]
    succeed("predict", *words, images)
    (tmp_path / "half.png").write_bytes((images / "disc03.png").read_bytes()[:-200])
    refused("predict", *words, tmp_path / "half.png")
    assert "are kept: 4" in succeed("predict", *words, images).output


@pytest.mark.parametrize("command", ["predict", "cutout", "objects", "fit"])
def test_two_processes(command: str, good: Path, images: Path, tmp_path: Path) -> None:
    """The second one is reported who is writing; nothing of it is left."""
    out = tmp_path / "out"
    words = [good / "data"] if command == "fit" else [good / "run", images]
    with locked(out):
        error = refused_once(command, *words, "--out", out, "--device", "cpu")
        check(error, OutputError, path=out, key="--out", named=[str(os.getpid())])
        assert list(contents(out)) == [LOCK]
    assert not out.exists()


def test_the_system_releases_the_lock(tmp_path: Path) -> None:
    program = "from ubend.portable.lock import locked; from pathlib import Path; import os"
    program += f"\nwith locked(Path({str(tmp_path)!r})): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()
