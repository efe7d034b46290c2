"""Files that have not changed are not read again; files that have are."""

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ubend.dataset.scan as channels_module
import ubend.dataset.store as store_module
import ubend.io.file_cache as known_module
from ubend.core.progress import Reporter
from ubend.core.settings import make_settings
from ubend.dataset.dataset import open_dataset
from ubend.dataset.scan import read_headers
from ubend.dataset.store import clear_stores, hash_pairs, list_stores
from ubend.io.file_cache import FILE_CACHE_SUFFIX, CachedFile, FileCache
from ubend.layouts.folder import read_folder
from ubend.portable.raster import Header


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock on."""

    def move(seconds: float) -> None:
        ahead = time.time_ns() + int(seconds * 1e9)
        monkeypatch.setattr(known_module.time, "time_ns", lambda: ahead)

    return move


def learn(cache: Path, root: Path, path: Path, digest: str = "of before") -> None:
    known = FileCache(cache, root)
    known.look(path).digest = digest
    known.save()


def recall(cache: Path, root: Path, path: Path) -> str | None:
    return FileCache(cache, root).look(path).digest


def make_file(folder: Path) -> Path:
    path = folder / "a.png"
    path.write_bytes(b"12345")
    return path


def test_what_is_known(tmp_path: Path, cache: Path, later: Callable[[float], None]) -> None:
    path, header = make_file(tmp_path), Header(4, 5, 3, "uint8", turned=True)
    later(10)
    known = FileCache(cache, tmp_path)
    file = known.look(path)
    assert (file.digest, file.header) == (None, None)
    file.digest, file.header = "some", header
    assert known.look(path) is file
    known.save()
    again = FileCache(cache, tmp_path).look(path)
    assert (again.digest, again.header) == ("some", header)
    for other in (FileCache(cache, tmp_path / "other"), FileCache(cache, tmp_path, channels=1), FileCache()):
        assert other.look(path).digest is None
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert FileCache(cache, Path()).look(Path("a.png")).digest == "some"


def rewrite_in_place(path: Path) -> None:
    path.write_bytes(b"54321")


def replace_by_another(path: Path) -> None:
    other = path.with_name("b.png")
    other.write_bytes(b"54321")
    other.replace(path)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"6")


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", [rewrite_in_place, replace_by_another, append, touch])
@pytest.mark.parametrize("restored", [False, True])
def test_a_change_is_noticed(
    tmp_path: Path, cache: Path, later: Callable[[float], None], change: Callable[[Path], None], restored: bool
) -> None:
    """Also one of the same size whose time was put back: the entry's own time tells, where a system has one."""
    if restored and sys.platform == "win32" and change is rewrite_in_place:
        pytest.skip("Windows has no time of change of the entry")
    path = make_file(tmp_path)
    before = path.stat()
    later(10)
    learn(cache, tmp_path, path)
    assert recall(cache, tmp_path, path) == "of before"
    time.sleep(0.05)  # a tick of the file system's clock
    change(path)
    if restored:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if restored and change is not append:
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert recall(cache, tmp_path, path) is None


def test_a_young_file_is_not_remembered(tmp_path: Path, cache: Path, later: Callable[[float], None]) -> None:
    """It may change within the tick in which it was read, and keep its times."""
    path = make_file(tmp_path)
    for seconds, wanted in ((0, None), (1.5, None), (3, "of before")):
        later(seconds)
        learn(cache, tmp_path, path)
        assert recall(cache, tmp_path, path) == wanted
    os.utime(path, ns=(0, time.time_ns() + 10**12))  # in the future: of another clock
    learn(cache, tmp_path, path)
    assert recall(cache, tmp_path, path) is None


def test_a_change_while_it_is_read(tmp_path: Path, cache: Path, later: Callable[[float], None]) -> None:
    """What is known belongs to the file as it was before it was read."""
    path = make_file(tmp_path)
    later(10)
    known = FileCache(cache, tmp_path)
    file = known.look(path)
    time.sleep(0.05)
    rewrite_in_place(path)
    file.digest = "of either"
    known.save()
    assert recall(cache, tmp_path, path) is None


def test_only_what_was_looked_at_is_kept(tmp_path: Path, cache: Path, later: Callable[[float], None]) -> None:
    path = make_file(tmp_path)
    later(10)
    learn(cache, tmp_path, path)
    (place,) = cache.iterdir()
    before = place.stat()
    FileCache(cache, tmp_path).look(path)
    known = FileCache(cache, tmp_path)
    known.look(path)
    known.save()
    assert place.stat().st_mtime_ns == before.st_mtime_ns  # nothing new: not written
    path.unlink()
    known = FileCache(cache, tmp_path)
    assert known.look(path) == CachedFile(None)
    known.save()
    assert json.loads(place.read_text().partition("\n")[2]) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": [1, 2, 3, 4, "x", [1]]}', "\xff", "null"])
def test_damaged(tmp_path: Path, cache: Path, later: Callable[[float], None], text: str) -> None:
    """It is recreated."""
    path = make_file(tmp_path)
    later(10)
    learn(cache, tmp_path, path)
    (place,) = cache.iterdir()
    place.write_bytes(text.encode("latin-1"))
    assert recall(cache, tmp_path, path) is None
    learn(cache, tmp_path, path)
    assert recall(cache, tmp_path, path) == "of before"


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path, later: Callable[[float], None]) -> None:
    path = make_file(tmp_path)
    later(10)
    cache.write_text("a file")
    learn(cache, tmp_path, path)
    assert recall(cache, tmp_path, path) is None


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_names_that_are_no_unicode(tmp_path: Path, cache: Path, later: Callable[[float], None]) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    root.mkdir()
    path = make_file(root)
    later(10)
    learn(cache, root, path)
    assert recall(cache, root, path) == "of before"


def test_the_second_time_nothing_is_read(
    discs: Path, cache: Path, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a mask that was exchanged is; the data set is then another."""
    later(10)
    settings = make_settings(None, {"data.folder": str(discs), "data.size": 16})

    def open_it() -> list[list[str]]:
        return open_dataset(settings, "cpu", cache, Reporter()).store.hashes

    first, reads = open_it(), []
    assert any(path.name.endswith(FILE_CACHE_SUFFIX) for path, _size in list_stores(cache))
    file_digest, read_header = hashlib.file_digest, channels_module.read_header

    def note(file: Any, digest: Any) -> Any:
        reads.append(Path(file.name))
        return file_digest(file, digest)

    def note_header(path: Path, channels: int | None = None) -> Header:
        reads.append(path)
        return read_header(path, channels)

    monkeypatch.setattr(hashlib, "file_digest", note)
    monkeypatch.setattr(channels_module, "read_header", note_header)
    assert open_it() == first
    assert [path for path in reads if discs in path.parents] == []

    mask = next((discs / "masks").iterdir())
    pixels = np.asarray(Image.open(mask)).copy()
    pixels[:8, :8] = 255
    Image.fromarray(pixels).save(mask)
    assert open_it() != first
    assert mask in reads
    assert clear_stores(cache) > 0
    assert list(cache.iterdir()) == []


def test_same_answers_with_and_without(discs: Path, cache: Path, later: Callable[[float], None]) -> None:
    later(10)
    pairs = read_folder(discs).pairs
    for _time in range(2):
        known = FileCache(cache, discs)
        assert read_headers(pairs, None, known) == read_headers(pairs)
        assert hash_pairs(pairs, known) == hash_pairs(pairs)
        known.save()


def test_a_file_that_went_unreadable(discs: Path, cache: Path, later: Callable[[float], None]) -> None:
    """Its rights are of its entry, so their change shows."""
    if os.name == "nt" or os.geteuid() == 0:
        pytest.skip("everything can be read here")
    later(10)
    pairs = read_folder(discs).pairs
    known = FileCache(cache, discs)
    hash_pairs(pairs, known)
    known.save()
    pairs[0].image.chmod(0)
    with pytest.raises(store_module.PairError):
        hash_pairs(pairs, FileCache(cache, discs))
    pairs[0].image.chmod(stat.S_IRUSR)
