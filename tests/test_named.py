"""Data sets by name: from a name to a model; copies available; what is wrong in one line. Only from 127.0.0.1."""

import hashlib
import io
import itertools
import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image

from support.discs import draw_disc
from support.refusal import TINY, check, contents, raises, refused_once
from support.remote_site import Listener, Site, answer, make_zip
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError
from ubend.dataset import named_sets as named
from ubend.dataset.download import Remote
from ubend.dataset.named_sets import NAMED_SETS, NamedSet, find_dataset


def tiny_files(count: int = 12) -> list[tuple[str, bytes]]:
    files = []
    for number in range(count):
        for kind, pixels in zip(("images", "masks"), draw_disc(number), strict=True):
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            files.append((f"Tiny/{kind}/{number:02d}.png", out.getvalue()))
    return files


@pytest.fixture
def tiny(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NamedSet:
    """A named set `tiny-set` on the local server; the cache is the test's own."""
    data = make_zip(tiny_files())
    site.files["/tiny.zip"] = data
    tiny = NamedSet(
        "Tiny (Nobody 2020)",
        "https://example.org",
        lambda: "for tests",
        (Remote("tiny.zip", (f"{site.url}/tiny.zip",), len(data), hashlib.md5(data).hexdigest()),),
        "tiny-folder",
        "Tiny",
        {"images": (".png", 12), "masks": (".png", 12)},
        ("ground", "disc"),
    )
    monkeypatch.setitem(NAMED_SETS, "tiny-set", tiny)
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tiny


def test_from_a_name_to_a_model(tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["fit", "tiny-set", *TINY, "--epochs", "1"])
    assert result.exit_code == 0, result.output
    assert "Tiny (Nobody 2020), 0 MiB to download to" in result.output
    assert "terms of use: for tests; see https://example.org" in result.output
    assert "0 -> ground, 255 -> disc" in result.output
    assert (tmp_path / "runs" / "tiny-1" / "scores.json").exists()
    place = tmp_path / "cache" / "datasets" / "tiny-set"
    assert {path.name for path in place.iterdir()} == {".lock", "tiny-folder"}  # no archive, no part
    requested = len(site.requested)
    every = (["preview", "tiny-set"], ["data", "tiny-set"], ["evaluate", "runs/tiny-1", "tiny-set", "--device", "cpu"])
    for words in every:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        assert "download" not in result.output
    assert len(site.requested) == requested
    listed = CliRunner().invoke(main, ["cache"]).output
    assert "datasets/tiny-set" in listed
    CliRunner().invoke(main, ["cache", "--clear"])
    assert not place.exists()


def test_a_folder_of_that_name_is_a_folder(tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    (tmp_path / "tiny-set").mkdir()
    assert find_dataset("tiny-set", None, Listener()) == Path("tiny-set")
    assert named.named_set("tiny-set", None) is None
    assert site.requested == []


def test_other_folders_are_taken_as_they_are(tiny: NamedSet) -> None:
    assert find_dataset("nowhere", None, Listener()) == Path("nowhere")
    for near in ("Tiny-Set", "tiny_set", "tinyset"):
        with pytest.raises(DataError, match="tiny-set"):
            find_dataset(near, None, Listener())
    with raises(DataError, key="--root"):
        find_dataset("nowhere", "there", Listener())


@pytest.mark.parametrize("below", ["", "Tiny", "tiny-folder", "tiny-set", "tiny-set/Tiny", "tiny-folder/Tiny"])
def test_a_copy_at_hand_is_used(below: str, tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for name, data in tiny_files():
        path = root / below / name.removeprefix("Tiny/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    before = contents(root)
    assert find_dataset("tiny-set", root, Listener()) == root / below
    assert contents(root) == before
    assert site.requested == []


@pytest.mark.parametrize("below", ["", "tiny-folder", "tiny-set"])
def test_archives_at_hand_are_used(below: str, tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    (root / below).mkdir(parents=True)
    (root / below / "tiny.zip").write_bytes(site.files["/tiny.zip"])
    found = find_dataset("tiny-set", root, Listener())
    assert found == root / "tiny-set" / "tiny-folder" / "Tiny"
    assert contents(found) == {name.removeprefix("Tiny/"): data for name, data in tiny_files()}
    assert (root / below / "tiny.zip").exists()
    assert site.requested == []


def test_a_damaged_archive_at_hand(tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    (tmp_path / "tiny.zip").write_bytes(site.files["/tiny.zip"][:-1] + b"x")
    error = refused_once("fit", "tiny-set", "--root", tmp_path, *TINY)
    check(error, DataError, path=tmp_path / "tiny.zip")
    assert "MD5" in str(error)
    assert (tmp_path / "tiny.zip").exists()


def test_a_part_of_the_set(tiny: NamedSet, tmp_path: Path) -> None:
    """Under --root it is somebody's."""
    for name, data in tiny_files(11):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    error = refused_once("fit", "tiny-set", "--root", tmp_path / "mine", *TINY)
    check(error, DataError, path=tmp_path / "mine" / "Tiny", key="contents")
    assert "11 of 12" in str(error)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "delete": lambda path: path.unlink(),
    "flip": flip,
    "cut": lambda path: os.truncate(path, 40),
    "empty": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize(
    ("below", "damage"),
    [
        *itertools.product(["Tiny/masks/03.png", "Tiny/masks", "Tiny"], DAMAGES),
        ("Tiny", "remove"),
        (".files.json", "cut"),
        (".files.json", "empty"),
    ],
)
def test_a_damaged_set_in_the_cache(below: str, damage: str, tiny: NamedSet, site: Site) -> None:
    """It is downloaded again, which is reported once."""
    found = find_dataset("tiny-set", None, Listener())
    before, path = contents(found), found.parent / below
    if damage == "remove":
        shutil.rmtree(path)
    else:
        for file in [*path.rglob("*.png")] or [path]:
            DAMAGES[damage](file)
    requested, log = len(site.requested), Listener()
    assert find_dataset("tiny-set", None, log) == found
    assert contents(found) == before
    assert log.said.count("note: ") == 1
    assert len(site.requested) == requested + 1
    quiet = Listener()
    assert find_dataset("tiny-set", None, quiet) == found
    assert quiet.said == ""


def test_a_copied_cache_is_whole(tiny: NamedSet, site: Site) -> None:
    found = find_dataset("tiny-set", None, Listener())
    for path in found.rglob("*"):
        os.utime(path, (1, 1))
    assert find_dataset("tiny-set", None, Listener()) == found
    assert len(site.requested) == 1


def test_a_damaged_set_without_a_network(tiny: NamedSet, site: Site) -> None:
    """What is left of it stays, and an error says why."""
    found = find_dataset("tiny-set", None, Listener())
    flip(found / "masks" / "03.png")
    before, site.behave["/tiny.zip"] = contents(found), answer(500)
    with raises(DataError, path="tiny.zip"):
        find_dataset("tiny-set", None, Listener())
    assert contents(found) == before


def test_a_damaged_archive_in_the_cache(tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    """As a process leaves it that is killed before it unpacks; then the disk spoils it."""
    place, log = tmp_path / "cache" / "datasets" / "tiny-set", Listener()
    place.mkdir(parents=True)
    (place / "tiny.zip").write_bytes(site.files["/tiny.zip"][:-1] + b"x")
    assert find_dataset("tiny-set", None, log).is_dir()
    assert log.said.count("note: ") == 1
    assert len(site.requested) == 1


def test_another_archive_than_expected(tiny: NamedSet, site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    """Where no digest was published, the structure tells; what came is deleted, so that the next time is new."""
    url = tiny.files[0].urls
    for data, key in ((make_zip(tiny_files(3)), "contents"), (make_zip([("../x", b"x")]), "name")):
        site.files["/tiny.zip"] = data
        monkeypatch.setitem(
            NAMED_SETS, "tiny-set", NamedSet(**{**vars(tiny), "files": (Remote("tiny.zip", url, len(data)),)})
        )
        check(refused_once("fit", "tiny-set", *TINY), DataError, path="tiny.zip", key=key)
        place = tmp_path / "cache" / "datasets" / "tiny-set"
        assert {path.name for path in place.iterdir()} <= {".lock"}


def test_an_error_of_the_server_is_one_line(tiny: NamedSet, site: Site) -> None:
    site.behave["/tiny.zip"] = answer(500)
    error = refused_once("fit", "tiny-set", *TINY)
    check(error, DataError, path="tiny.zip")
    assert "http://127.0.0.1:" in str(error)
    assert "HTTP 500" in str(error)


def test_too_little_room(tiny: NamedSet, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    assert type(refused_once("fit", "tiny-set", *TINY)) is OutputError
    assert site.requested == []


def test_two_processes_at_once(tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "datasets" / "tiny-set"
    place.mkdir(parents=True)
    other, found = Listener(), []
    lock = FileLock(place / ".lock")
    with lock:
        thread = threading.Thread(target=lambda: found.append(find_dataset("tiny-set", None, other)), daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while "waiting" not in other.said and time.monotonic() < until:
            time.sleep(0.01)
        assert site.requested == []
    thread.join(60)
    assert found == [place / "tiny-folder" / "Tiny"]
    assert "waiting for another process" in other.said


def test_the_table() -> None:
    """Addresses, digests and sizes have their forms, and no two files of a set one name."""
    for name, known in NAMED_SETS.items():
        assert re.fullmatch("[a-z-]+", name)
        assert known.terms()
        assert len({file.name for file in known.files}) == len(known.files)
        for file in known.files:
            assert all(url.startswith("https://") for url in file.urls)
            assert file.md5 is None or re.fullmatch("[0-9a-f]{32}", file.md5)
            assert file.size > 10**7


def test_real_copies_at_hand(real_data: Path) -> None:
    """Kvasir-SEG as its archive unpacks; of the pets there is a subset, which is no named set."""
    found = find_dataset("kvasir-seg", real_data, Listener())
    assert found == real_data / "kvasir-seg" / "Kvasir-SEG"
    with raises(DataError, key="contents"):
        find_dataset("oxford-pet", real_data, Listener())
