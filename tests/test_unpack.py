"""Archives that attack, and archives that are damaged."""

import io
import random
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.refusal import contents, raises
from support.remote_site import MAKERS, make_tar, make_zip
from ubend.core.errors import DataError, OutputError
from ubend.dataset.unpack import Limits, unpack

EVIL_NAMES = [
    "../out.txt",
    "a/../../out.txt",
    "..",
    "/tmp/out.txt",
    "//host/out.txt",
    "C:/out.txt",
    "a\\..\\..\\out.txt",
    "a:stream",
    "a\nb",
    "a//b",
]


def try_unpack(data: bytes, name: str, place: Path, limits: Limits | None = None) -> str:
    """The key of the error with which an archive is refused; nothing beside its folder was touched."""
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(data)
    folder = place / "in" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        unpack(place / name, folder, lambda done: None, limits)
    assert set(place.iterdir()) == {place / name, place / "in"}
    assert set((place / "in").iterdir()) == {folder}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert "\n" not in str(caught.value)
    assert caught.value.path == place / name
    return caught.value.key


@pytest.mark.parametrize("suffix", MAKERS)
def test_an_honest_archive(suffix: str, tmp_path: Path) -> None:
    files = {"images/a.jpg": b"a", "./masks/b c.png": b"", "masks/d/é.txt": bytes(300_000)}
    (tmp_path / f"x{suffix}").write_bytes(MAKERS[suffix](list(files.items())))
    (tmp_path / "out").mkdir()
    done: list[int] = []
    unpack(tmp_path / f"x{suffix}", tmp_path / "out", done.append)
    assert contents(tmp_path / "out") == {name.removeprefix("./"): data for name, data in files.items()}
    assert done == sorted(done)


@pytest.mark.parametrize("suffix", MAKERS)
@pytest.mark.parametrize("name", EVIL_NAMES)
def test_names_that_lead_out(name: str, suffix: str, tmp_path: Path) -> None:
    assert try_unpack(MAKERS[suffix]([("good", b"x"), (name, b"evil")]), f"x{suffix}", tmp_path) == "name"


@pytest.mark.parametrize("suffix", MAKERS)
@pytest.mark.parametrize(
    ("one", "other"),
    [("a/b", "a/b"), ("a/b", "A/b"), ("a/b", "a/B"), ("a", "a/b"), ("a/b", "a"), ("é", "e\u0301"), ("a", "./a")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_names_for_one_file(one: str, other: str, suffix: str, tmp_path: Path) -> None:
    assert try_unpack(MAKERS[suffix]([(one, b"x"), (other, b"y")]), f"x{suffix}", tmp_path) == "twice"


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_of_a_tar(kind: bytes, tmp_path: Path) -> None:
    data = make_tar([("a/link", b"")], kind, "/etc" if kind != tarfile.LNKTYPE else "a/other")
    assert try_unpack(data, "x.tar.gz", tmp_path) == "kind"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_of_a_zip(kind: int, tmp_path: Path) -> None:
    assert try_unpack(make_zip([("link", b"/etc")], kind | 0o777), "x.zip", tmp_path) == "kind"


@pytest.mark.parametrize("suffix", MAKERS)
def test_bombs(suffix: str, tmp_path: Path) -> None:
    data = MAKERS[suffix]([("a", bytes(20 * 2**20))])
    assert len(data) < 50_000
    assert try_unpack(data, f"x{suffix}", tmp_path / "ratio") == "size"
    data = MAKERS[suffix]([("a", bytes(2**20)), ("b", bytes(2**20))])
    assert try_unpack(data, f"x{suffix}", tmp_path / "size", Limits(size=3 * 2**19)) == "size"
    data = MAKERS[suffix]([(f"{number}", b"") for number in range(30)])
    assert try_unpack(data, f"x{suffix}", tmp_path / "entries", Limits(entries=20)) == "entries"


def test_a_bomb_in_the_header_of_a_tar(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"comment": "x" * (20 * 2**20)}
        archive.addfile(info, io.BytesIO())
    assert try_unpack(out.getvalue(), "x.tar.gz", tmp_path) == "size"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_memory_stays_bounded(method: int, tmp_path: Path) -> None:
    """Few bytes of these methods become gigabytes in one step of zipfile's."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("a", bytes(2**20))
    assert try_unpack(out.getvalue(), "x.zip", tmp_path / "zip") == "compression"
    long = make_tar([("x" * (3 * 2**20), b"")])  # a PAX header
    tracemalloc.start()
    try:
        assert try_unpack(long, "x.tar.gz", tmp_path / "tar") == "size"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    data = bytearray(make_zip([("a", bytes(2**20))]))
    at = data.rindex(b"PK\x01\x02") + 24  # the file's size in the central directory
    data[at : at + 4] = (10).to_bytes(4, "little")
    assert try_unpack(bytes(data), "x.zip", tmp_path) == "damage"


def test_an_encrypted_zip(tmp_path: Path) -> None:
    data = bytearray(make_zip([("a", b"x")]))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    assert try_unpack(bytes(data), "x.zip", tmp_path) == "encryption"


@settings(max_examples=60)
@given(suffix=st.sampled_from(sorted(MAKERS)), at=st.floats(0, 1), cut=st.booleans(), flip=st.integers(1, 255))
def test_damaged_archives(
    suffix: str, at: float, cut: bool, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One line, or all as it was: a flipped bit may lie where it means nothing."""
    files = [("images/a.jpg", random.Random(1).randbytes(3000)), ("masks/a.png", b"mask")]
    data = bytearray(MAKERS[suffix](files))
    place = min(len(data) - 1, int(at * len(data)))
    if cut:
        del data[place:]
    else:
        data[place] ^= flip
    folder = tmp_path_factory.mktemp("damaged")
    (folder / f"x{suffix}").write_bytes(data)
    (folder / "out").mkdir()
    try:
        unpack(folder / f"x{suffix}", folder / "out", lambda done: None)
    except DataError:
        return
    found = contents(folder / "out")
    if suffix == ".tar.gz":  # all of it is under the checksum
        assert found == dict(files)
    else:  # only the files' bytes are; names and kinds are for the structure check
        assert all(data in dict(files).values() for data in found.values())


def test_a_full_disk_while_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.zip").write_bytes(make_zip([("a", b"x")]))
    monkeypatch.setattr(Path, "mkdir", lambda *words, **more: (_ for _ in ()).throw(OSError(28, "No space left")))
    with raises(OutputError, path="a", named=["No space left"]):
        unpack(tmp_path / "x.zip", tmp_path / "out", lambda done: None)
