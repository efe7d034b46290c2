"""`--resume` keeps what was made from the inputs as they are, whole; one process at a time writes to a folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import succeed
from support.refusal import check, contents, refused_once
from ubend.core.errors import OutputError
from ubend.core.lock import LOCK, locked


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
    assert "3 of the files are made again" in said
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
    lines = [json.dumps({name: entry}) for name, entry in files.items()]
    (out / "predict.json").write_text(json.dumps({**record, "files": {}}))
    (out / ".predict.jsonl").write_text("\n".join([*lines[:3], lines[3][:30]]))
    kept = (out / "disc02.png").stat().st_mtime_ns
    assert "1 of the files are made again" in succeed("predict", *words, "--resume").output
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


@pytest.mark.parametrize("command", ["predict", "cutout", "objects", "fit"])
def test_two_processes(command: str, good: Path, images: Path, tmp_path: Path) -> None:
    """The second one is told who is writing; nothing of it is left."""
    out = tmp_path / "out"
    words = [good / "data"] if command == "fit" else [good / "run", images]
    with locked(out):
        error = refused_once(command, *words, "--out", out, "--device", "cpu")
        check(error, OutputError, path=out, key="--out", named=[str(os.getpid())])
        assert list(contents(out)) == [LOCK]
    assert not out.exists()


def test_the_system_releases_the_lock(tmp_path: Path) -> None:
    program = "from ubend.core.lock import locked; from pathlib import Path; import os"
    program += f"\nwith locked(Path({str(tmp_path)!r})): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()
