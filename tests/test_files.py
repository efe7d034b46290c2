"""Files are written whole or not at all."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from support.refusal import raises
from ubend.core.errors import OutputError
from ubend.core.files import DiskRequirement, check_disk_space, resolve_many, write_file, write_json, write_text


def test_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.json"
    write_json(path, {"tên": "khối u", "n": [1, 2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"tên": "khối u", "n": [1, 2]}
    write_text(path, "second\n")
    assert path.read_bytes() == b"second\n"
    assert os.listdir(path.parent) == ["a.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_null(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "a.json", {"a": [value, 1.5], "b": (value, "x")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.5], "b": [None, "x"]}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write(temporary: Path) -> None:
        assert temporary.parent == path.parent  # on another disk a rename would be a copy
        assert temporary.suffix == path.suffix
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise error

    wanted = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted) as caught:
        write_file(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    if wanted is OutputError:
        assert str(caught.value).startswith(f"cannot write {path}: No space left;")
        assert "\n" not in str(caught.value)


def test_failure_of_sync_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", fail)
    with raises(OutputError, path="a.txt"):
        write_text(tmp_path / "a.txt", "new")
    monkeypatch.undo()
    (tmp_path / "folder").mkdir()
    with raises(OutputError, path="folder"):
        write_text(tmp_path / "folder", "new")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "folder"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_place_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(OutputError, path="a.txt"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wanted on one disk counts together, also in folders that are not there yet."""
    cache, run = (
        DiskRequirement(tmp_path / "a" / "cache", 60 * 2**20, "move it"),
        DiskRequirement(tmp_path / "run", 50 * 2**20, "shrink it"),
    )
    requested = []

    def usage(path: Path) -> shutil._ntuple_diskusage:
        requested.append(path)
        return shutil._ntuple_diskusage(10**12, 10**12 - free, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    free = 110 * 2**20
    check_disk_space([cache, run])
    check_disk_space([])
    free -= 1
    check_disk_space([cache])
    with pytest.raises(OutputError) as caught:
        check_disk_space([cache, run])
    for part in (str(cache.folder), str(run.folder), "110.0 MiB will be written", "move it, shrink it"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(requested) == {tmp_path}
    assert list(tmp_path.iterdir()) == []


def test_many_are_resolved_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a.png").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "b.png").symlink_to(tmp_path / "real" / "deep" / "a.png")
    monkeypatch.chdir(tmp_path / "link")
    names = (
        "b.png",
        "deep/a.png",
        "../link/deep/a.png",
        "deep/../b.png",
        "missing.png",
        "missing/c.png",
        ".",
        "..",
        "/",
    )
    paths = [*map(Path, names), *(tmp_path / "link" / name for name in names)]
    resolve = resolve_many()
    for _again in range(2):
        assert [resolve(path) for path in paths] == [str(path.resolve()) for path in paths]


def test_permissions_are_as_the_umask_says(tmp_path: Path) -> None:
    """Also where a library replaces the file, as safetensors does."""

    def write(temporary: Path) -> None:
        other = tmp_path / "other"
        other.touch(mode=0o600)
        other.replace(temporary)

    write_file(tmp_path / "a", write)
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
