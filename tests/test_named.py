"""Named data sets: downloads that break off, lie and stall; archives that attack. Only from 127.0.0.1."""

import hashlib
import io
import random
import re
import socket
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from conftest import draw_disc
from refusal import TINY, contents, refused_once
from ubend.cli import main
from ubend.data import download as downloads
from ubend.data import named
from ubend.data.download import Patience, Remote, download
from ubend.data.named import NAMED_SETS, NamedSet, find_dataset
from ubend.data.unpack import Limits, unpack
from ubend.errors import DataError, OutputError
from ubend.teller import Teller

QUICK = Patience(tries=3, pause_s=0.0, stall_s=0.3)
DATA = b"\x1f\x8b" + random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(DATA).hexdigest()


class Listener(Teller):
    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), soft_wrap=True))

    @property
    def said(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()


@dataclass
class Site:
    """A server of one file, with faults.

    Attributes:
        files: path -> bytes.
        etag: of every file; None: none is sent.
        cuts: how many bytes each of the next answers gives before it breaks off; then all.
        ranges: whether Range is understood.
        behave: for a path, what happens instead of sending the file.
        asked: (path, Range or None) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    behave: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        if handler.path in self.behave:
            self.behave[handler.path](handler)
            return
        data = self.files.get(handler.path)
        if data is None:
            handler.send_error(404)
            return
        start = 0
        same = handler.headers.get("If-Range") in (None, self.etag)
        if wanted and self.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) - start))
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        body = data[start:]
        handler.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "PATIENCE", QUICK)
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            here.serve(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    here.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield here
    server.shutdown()
    server.server_close()
    thread.join(5)


def answer(code: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def remote(site: Site, md5: str | None = MD5, size: int = len(DATA), *paths: str) -> Remote:
    return Remote("pets.tar.gz", tuple(site.url + path for path in paths or ("/pets",)), size, md5)


def fails(file: Remote, target: Path, *words: str) -> str:
    """The one line with which a download ends; nothing stands under the file's name."""
    with pytest.raises(DataError) as caught:
        download(file, target, Listener())
    line = str(caught.value)
    assert "\n" not in line
    assert "--root DIR" in line
    assert file.urls[0] in line
    for word in words:
        assert word in line, line
    assert not target.exists()
    return line


def test_a_whole_download(site: Site, tmp_path: Path) -> None:
    site.files["/pets"] = DATA
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}
    assert site.asked == [("/pets", None)]


@pytest.mark.parametrize("md5", [MD5, None])
def test_it_goes_on_where_it_broke_off(md5: str | None, site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts = DATA, [100_000, 50_000]
    download(remote(site, md5), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}
    assert site.asked == [("/pets", None), ("/pets", "bytes=100000-"), ("/pets", "bytes=150000-")]


def test_a_later_process_goes_on(site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts = DATA, [100_000, 0, 0, 0]
    fails(remote(site), tmp_path / "pets.tar.gz", "broke off after 100000 of 300002 bytes", "goes on where it stopped")
    assert (tmp_path / "pets.tar.gz.part").read_bytes() == DATA[:100_000]
    site.asked.clear()
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}
    assert site.asked == [("/pets", "bytes=100000-")]


def test_ctrl_c_keeps_the_part(site: Site, tmp_path: Path) -> None:
    class Impatient(Listener):
        def count(self, done: int, _total: int = 0) -> None:
            raise KeyboardInterrupt

    site.files["/pets"] = DATA
    with pytest.raises(KeyboardInterrupt):
        download(remote(site), tmp_path / "pets.tar.gz", Impatient())
    part = (tmp_path / "pets.tar.gz.part").read_bytes()
    assert part
    assert DATA.startswith(part)
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}


def test_killed_between_the_last_byte_and_the_name(site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts = DATA, [100_000, 0, 0, 0]
    fails(remote(site), tmp_path / "pets.tar.gz")
    (tmp_path / "pets.tar.gz.part").write_bytes(DATA)
    site.asked.clear()
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert site.asked == []
    assert contents(tmp_path) == {"pets.tar.gz": DATA}


@pytest.mark.parametrize("md5", [MD5, None])
def test_a_server_without_ranges(md5: str | None, site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts, site.ranges = DATA, [100_000], False
    download(remote(site, md5), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}


def test_a_server_that_always_breaks_off_at_one_place(site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts, site.ranges = DATA, [100_000] * 50, False
    fails(remote(site), tmp_path / "pets.tar.gz", "broke off after 100000 of 300002 bytes")
    assert len(site.asked) == 1 + QUICK.tries


@pytest.mark.parametrize("ranged", [True, False])
def test_the_file_changed_in_between(ranged: bool, site: Site, tmp_path: Path) -> None:
    """With If-Range the server sends all of it; one that ignores If-Range is found out by its ETag."""
    site.files["/pets"], site.cuts = DATA, [100_000, 0, 0, 0]
    fails(remote(site, None), tmp_path / "pets.tar.gz")
    new = b"\x1f\x8b" + bytes(300_000)
    site.files["/pets"], site.etag = new, '"two"'
    if ranged:
        once = [True]

        def careless(handler: BaseHTTPRequestHandler) -> None:
            del handler.headers["If-Range"]
            del site.behave["/pets"]
            site.serve(handler)
            once.clear()

        site.behave["/pets"] = careless
    download(remote(site, None), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": new}


def test_without_a_tag_or_a_digest_nothing_is_pieced_together(site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts, site.etag = DATA, [100_000], None
    download(remote(site, None), tmp_path / "pets.tar.gz", Listener())
    assert [asked for _path, asked in site.asked] == [None, None]
    assert contents(tmp_path) == {"pets.tar.gz": DATA}


def test_a_damaged_part_is_found_by_the_digest(site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts = DATA, [100_000, 0, 0, 0]
    fails(remote(site), tmp_path / "pets.tar.gz")
    (tmp_path / "pets.tar.gz.part").write_bytes(b"\x1f\x8b" + bytes(99_998))
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}


def test_a_wrong_file_of_the_right_size(site: Site, tmp_path: Path) -> None:
    site.files["/pets"] = b"\x1f\x8b" + bytes(300_000)
    found = hashlib.md5(site.files["/pets"]).hexdigest()
    fails(remote(site), tmp_path / "pets.tar.gz", found, MD5)
    assert len(site.asked) == 1
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("md5", [MD5, None])
@pytest.mark.parametrize("told", [100, 200_000, 400_000, 10**9])
def test_a_server_that_lies_about_the_length(told: int, md5: str | None, site: Site, tmp_path: Path) -> None:
    def lie(handler: BaseHTTPRequestHandler) -> None:
        answer(200, DATA, Content_Length=str(told))(handler)

    site.behave["/pets"] = lie
    if md5 is None and told < len(DATA):  # nothing tells, but the unpacking
        download(remote(site, md5), tmp_path / "pets.tar.gz", Listener())
        assert (tmp_path / "pets.tar.gz").stat().st_size == told
    else:
        fails(remote(site, md5), tmp_path / "pets.tar.gz", f"{told}")


def test_an_endless_file(site: Site, tmp_path: Path) -> None:
    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(DATA)

    site.behave["/pets"] = pour
    fails(remote(site, None), tmp_path / "pets.tar.gz", "instead of 300002")


@pytest.mark.parametrize("trickle", [False, True])
def test_a_server_that_stalls(trickle: bool, site: Site, tmp_path: Path) -> None:
    def stall(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        try:
            for _ in range(20):
                time.sleep(0.05)
                handler.wfile.write(b"\x1f" * trickle)
                handler.wfile.flush()
        except OSError:
            pass

    site.behave["/pets"] = stall
    began = time.monotonic()
    fails(remote(site), tmp_path / "pets.tar.gz", "nothing came for 0.3 s")
    assert time.monotonic() - began < 5


def test_redirects(site: Site, tmp_path: Path) -> None:
    site.files["/new"] = DATA
    site.behave["/pets"] = answer(302, Location=f"{site.url}/new")
    site.cuts = [100_000]
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}
    assert site.asked[-1] == ("/new", "bytes=100000-")
    site.behave["/loop"] = answer(302, Location=f"{site.url}/loop")
    fails(remote(site, MD5, len(DATA), "/loop"), tmp_path / "other.gz", "HTTP 302")
    site.behave["/file"] = answer(302, Location="file:///etc/passwd")
    fails(remote(site, MD5, len(DATA), "/file"), tmp_path / "other.gz", "HTTP 302")


def test_no_way_from_an_encrypted_address_to_an_open_one() -> None:
    request = downloads.urllib.request.Request("https://example.org/pets")
    with pytest.raises(downloads._RefusedError, match="not encrypted"):
        downloads._SafeRedirects().redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.org/pets")


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (answer(404), "HTTP 404 Not Found"),
        (answer(403), "HTTP 403"),
        (answer(500), "HTTP 500"),
        (answer(503), "HTTP 503"),
        (answer(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8"), "a web page came"),
        (answer(200, b"<html>log in</html>" + bytes(len(DATA) - 19)), "begins with '<html>log in"),
        (answer(204), "HTTP 204"),
        (answer(206, DATA, Content_Range="bytes 5-300001/300002"), "not the one whose first part"),
        (answer(206, DATA), "HTTP 206"),
        (lambda handler: handler.wfile.write(b"garbage\r\n\r\n"), "garbage"),
        (lambda handler: None, "Remote end closed"),
    ],
)
def test_wrong_answers(
    behave: Callable[[BaseHTTPRequestHandler], None], words: str, site: Site, tmp_path: Path
) -> None:
    site.behave["/pets"] = behave
    fails(remote(site), tmp_path / "pets.tar.gz", words)


def test_a_passing_fault_is_waited_for(site: Site, tmp_path: Path) -> None:
    def busy(handler: BaseHTTPRequestHandler) -> None:
        del site.behave["/pets"]
        handler.send_error(503)

    site.files["/pets"], site.behave["/pets"] = DATA, busy
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert len(site.asked) == 2


def test_the_second_address_is_asked(site: Site, tmp_path: Path) -> None:
    site.files["/old"] = DATA
    download(remote(site, MD5, len(DATA), "/gone", "/old"), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}
    line = fails(remote(site, MD5, len(DATA), "/gone", "/away"), tmp_path / "other.gz", "/away: HTTP 404")
    assert "/gone: HTTP 404" in line


def test_no_server(tmp_path: Path, site: Site) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    fails(Remote("x.gz", (url,), 1, MD5), tmp_path / "x.gz", "Connection refused")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    def unknown(*_words: object, **_more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    fails(Remote("x.gz", ("http://example.org/x",), 1, MD5), tmp_path / "x.gz", "is there a network?")


def test_a_certificate_that_cannot_be_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    def doubt(*_words: object, **_more: object) -> None:
        error = downloads.ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_message = "unable to get local issuer certificate"
        raise error

    monkeypatch.setattr(socket, "create_connection", doubt)
    fails(Remote("x.gz", ("https://example.org/x",), 1, MD5), tmp_path / "x.gz", "unable to get local issuer")


# Archives


def make_zip(entries: list[tuple[str, bytes]], mode: int | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.filename = name  # the constructor cuts and mends names
            info.compress_type = zipfile.ZIP_DEFLATED
            if mode is not None:
                info.external_attr = mode << 16
            archive.writestr(info, data)
    return out.getvalue()


def make_tar(entries: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


MAKERS = {".zip": make_zip, ".tar.gz": make_tar}
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
    """The line with which an archive is refused; nothing beside its folder was touched."""
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(data)
    folder = place / "in" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        unpack(place / name, folder, lambda done: None, limits)
    assert set(place.iterdir()) == {place / name, place / "in"}
    assert set((place / "in").iterdir()) == {folder}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    line = str(caught.value)
    assert "\n" not in line
    assert str(place / name) in line
    return line


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
    assert "leads out" in try_unpack(MAKERS[suffix]([("good", b"x"), (name, b"evil")]), f"x{suffix}", tmp_path)


@pytest.mark.parametrize("suffix", MAKERS)
@pytest.mark.parametrize(
    ("one", "other"),
    [("a/b", "a/b"), ("a/b", "A/b"), ("a/b", "a/B"), ("a", "a/b"), ("a/b", "a"), ("é", "e\u0301"), ("a", "./a")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_names_for_one_file(one: str, other: str, suffix: str, tmp_path: Path) -> None:
    assert "one file" in try_unpack(MAKERS[suffix]([(one, b"x"), (other, b"y")]), f"x{suffix}", tmp_path)


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_of_a_tar(kind: bytes, tmp_path: Path) -> None:
    data = make_tar([("a/link", b"")], kind, "/etc" if kind != tarfile.LNKTYPE else "a/other")
    assert "link or a device" in try_unpack(data, "x.tar.gz", tmp_path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_of_a_zip(kind: int, tmp_path: Path) -> None:
    assert "link or a device" in try_unpack(make_zip([("link", b"/etc")], kind | 0o777), "x.zip", tmp_path)


@pytest.mark.parametrize("suffix", MAKERS)
def test_bombs(suffix: str, tmp_path: Path) -> None:
    data = MAKERS[suffix]([("a", bytes(20 * 2**20))])
    assert len(data) < 50_000
    assert "unpacks to more than 16 MiB" in try_unpack(data, f"x{suffix}", tmp_path / "ratio")
    data = MAKERS[suffix]([("a", bytes(2**20)), ("b", bytes(2**20))])
    line = try_unpack(data, f"x{suffix}", tmp_path / "size", Limits(size=3 * 2**19))
    assert "unpacks to more than 2 MiB" in line
    data = MAKERS[suffix]([(f"{number}", b"") for number in range(30)])
    assert "more than 20 entries" in try_unpack(data, f"x{suffix}", tmp_path / "entries", Limits(entries=20))


def test_a_bomb_in_the_header_of_a_tar(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"comment": "x" * (20 * 2**20)}
        archive.addfile(info, io.BytesIO())
    assert "unpacks to more than" in try_unpack(out.getvalue(), "x.tar.gz", tmp_path)


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    data = bytearray(make_zip([("a", bytes(2**20))]))
    at = data.rindex(b"PK\x01\x02") + 24  # the file's size in the central directory
    data[at : at + 4] = (10).to_bytes(4, "little")
    assert "damaged" in try_unpack(bytes(data), "x.zip", tmp_path)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    data = bytearray(make_zip([("a", b"x")]))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    assert "encrypted" in try_unpack(bytes(data), "x.zip", tmp_path)


@settings(max_examples=60, deadline=None)
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
    with pytest.raises(OutputError, match="No space left"):
        unpack(tmp_path / "x.zip", tmp_path / "out", lambda done: None)


# Whole sets


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
    assert "its terms: for tests; see https://example.org" in result.output
    assert "0 -> ground, 255 -> disc" in result.output
    assert (tmp_path / "runs" / "tiny-1" / "scores.json").exists()
    place = tmp_path / "cache" / "datasets" / "tiny-set"
    assert {path.name for path in place.iterdir()} == {".lock", "tiny-folder"}  # no archive, no part
    asked = len(site.asked)
    every = (["samples", "tiny-set"], ["data", "tiny-set"], ["evaluate", "runs/tiny-1", "tiny-set", "--device", "cpu"])
    for words in every:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        assert "download" not in result.output
    assert len(site.asked) == asked
    listed = CliRunner().invoke(main, ["cache"]).output
    assert "datasets/tiny-set" in listed
    CliRunner().invoke(main, ["cache", "--clear"])
    assert not place.exists()


def test_a_folder_of_that_name_is_a_folder(tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    (tmp_path / "tiny-set").mkdir()
    assert find_dataset("tiny-set", None, Listener()) == Path("tiny-set")
    assert named.class_names("tiny-set", None) is None
    assert site.asked == []


def test_other_folders_are_taken_as_they_are(tiny: NamedSet) -> None:
    assert find_dataset("nowhere", None, Listener()) == Path("nowhere")
    for near in ("Tiny-Set", "tiny_set", "tinyset"):
        with pytest.raises(DataError, match="did you mean the data set tiny-set"):
            find_dataset(near, None, Listener())
    with pytest.raises(DataError, match="--root goes with a data set by name"):
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
    assert site.asked == []


@pytest.mark.parametrize("below", ["", "tiny-folder", "tiny-set"])
def test_archives_at_hand_are_used(below: str, tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    (root / below).mkdir(parents=True)
    (root / below / "tiny.zip").write_bytes(site.files["/tiny.zip"])
    found = find_dataset("tiny-set", root, Listener())
    assert found == root / "tiny-set" / "tiny-folder" / "Tiny"
    assert contents(found) == {name.removeprefix("Tiny/"): data for name, data in tiny_files()}
    assert (root / below / "tiny.zip").exists()
    assert site.asked == []


def test_a_damaged_archive_at_hand(tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    (tmp_path / "tiny.zip").write_bytes(site.files["/tiny.zip"][:-1] + b"x")
    line = refused_once("fit", "tiny-set", "--root", tmp_path, *TINY)
    assert str(tmp_path / "tiny.zip") in line
    assert "MD5" in line
    assert (tmp_path / "tiny.zip").exists()


def test_a_part_of_the_set(tiny: NamedSet, tmp_path: Path) -> None:
    found = find_dataset("tiny-set", None, Listener())
    next((found / "masks").iterdir()).unlink()
    line = refused_once("fit", "tiny-set", *TINY)
    assert f"{found} is not the whole of tiny-set: 11 of 12 files .png in masks/" in line
    assert f"ubend fit {found}" in line


def test_another_archive_than_expected(tiny: NamedSet, site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    """Where no digest was published, the structure tells; what came is deleted, so that the next time is new."""
    url = tiny.files[0].urls
    for data, words in ((make_zip(tiny_files(3)), "3 of 12 files"), (make_zip([("../x", b"x")]), "leads out")):
        site.files["/tiny.zip"] = data
        monkeypatch.setitem(
            NAMED_SETS, "tiny-set", NamedSet(**{**vars(tiny), "files": (Remote("tiny.zip", url, len(data)),)})
        )
        assert words in refused_once("fit", "tiny-set", *TINY)
        place = tmp_path / "cache" / "datasets" / "tiny-set"
        assert {path.name for path in place.iterdir()} <= {".lock"}


def test_an_error_of_the_server_is_one_line(tiny: NamedSet, site: Site) -> None:
    site.behave["/tiny.zip"] = answer(500)
    line = refused_once("fit", "tiny-set", *TINY)
    assert line.startswith("cannot download tiny.zip: http://127.0.0.1:")
    assert "HTTP 500" in line
    assert line.endswith("--root DIR")


def test_too_little_room(tiny: NamedSet, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    assert "needs 0 MiB" in refused_once("fit", "tiny-set", *TINY)
    assert site.asked == []


def test_two_processes_at_once(tiny: NamedSet, site: Site, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "datasets" / "tiny-set"
    place.mkdir(parents=True)
    other, found = Listener(), []
    lock = FileLock(place / ".lock")
    with lock:
        thread = threading.Thread(target=lambda: found.append(find_dataset("tiny-set", None, other)), daemon=True)
        thread.start()
        until = time.monotonic() + 5
        while "waiting" not in other.said and time.monotonic() < until:
            time.sleep(0.01)
        assert site.asked == []
    thread.join(10)
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
    with pytest.raises(DataError, match="of 7349 files"):
        find_dataset("oxford-pet", real_data, Listener())
