"""Downloads that break off, lie and stall. Only from 127.0.0.1."""

import hashlib
import io
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from support.refusal import contents
from support.remote_site import DATA, MD5, QUICK, Listener, Site, answer
from support.work import no_hang
from ubend.core.errors import DataError
from ubend.dataset import download as downloads
from ubend.dataset.download import Remote, download


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
    assert site.requested == [("/pets", None)]


@pytest.mark.parametrize("md5", [MD5, None])
def test_it_goes_on_where_it_broke_off(md5: str | None, site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts = DATA, [100_000, 50_000]
    download(remote(site, md5), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}
    assert site.requested == [("/pets", None), ("/pets", "bytes=100000-"), ("/pets", "bytes=150000-")]


def test_a_later_process_goes_on(site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts = DATA, [100_000, 0, 0, 0]
    fails(remote(site), tmp_path / "pets.tar.gz", "lost after 100000 of 300002 bytes", "continues where it stopped")
    assert (tmp_path / "pets.tar.gz.part").read_bytes() == DATA[:100_000]
    site.requested.clear()
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}
    assert site.requested == [("/pets", "bytes=100000-")]


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
    site.requested.clear()
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert site.requested == []
    assert contents(tmp_path) == {"pets.tar.gz": DATA}


@pytest.mark.parametrize("md5", [MD5, None])
def test_a_server_without_ranges(md5: str | None, site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts, site.ranges = DATA, [100_000], False
    download(remote(site, md5), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}


def test_a_server_that_always_breaks_off_at_one_place(site: Site, tmp_path: Path) -> None:
    site.files["/pets"], site.cuts, site.ranges = DATA, [100_000] * 50, False
    fails(remote(site), tmp_path / "pets.tar.gz", "lost after 100000 of 300002 bytes")
    assert len(site.requested) == 1 + QUICK.tries


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
    assert [requested for _path, requested in site.requested] == [None, None]
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
    assert len(site.requested) == 1
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
    with no_hang():
        fails(remote(site), tmp_path / "pets.tar.gz", "no data received for 0.3 s")
    assert len(site.requested) >= QUICK.tries


def test_redirects(site: Site, tmp_path: Path) -> None:
    site.files["/new"] = DATA
    site.behave["/pets"] = answer(302, Location=f"{site.url}/new")
    site.cuts = [100_000]
    download(remote(site), tmp_path / "pets.tar.gz", Listener())
    assert contents(tmp_path) == {"pets.tar.gz": DATA}
    assert site.requested[-1] == ("/new", "bytes=100000-")
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
        (answer(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8"), "received a web page"),
        (answer(200, b"<html>log in</html>" + bytes(len(DATA) - 19)), "begins with '<html>log in"),
        (answer(204), "HTTP 204"),
        (answer(206, DATA, Content_Range="bytes 5-300001/300002"), "has changed since its first part"),
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
    assert len(site.requested) == 2


def test_the_second_address_is_requested(site: Site, tmp_path: Path) -> None:
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
    fails(Remote("x.gz", ("http://example.org/x",), 1, MD5), tmp_path / "x.gz", "check the network connection")


def test_a_certificate_that_cannot_be_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    def doubt(*_words: object, **_more: object) -> None:
        error = downloads.ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_message = "unable to get local issuer certificate"
        raise error

    monkeypatch.setattr(socket, "create_connection", doubt)
    fails(Remote("x.gz", ("https://example.org/x",), 1, MD5), tmp_path / "x.gz", "unable to get local issuer")
