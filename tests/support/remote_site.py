"""What tests of named data sets share: a server on 127.0.0.1 with faults, and archives made by code."""

import hashlib
import io
import random
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from ubend.core.progress import Reporter
from ubend.dataset import download as downloads
from ubend.dataset.download import Patience

QUICK = Patience(tries=3, pause_s=0.0, stall_s=0.3)
DATA = b"\x1f\x8b" + random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(DATA).hexdigest()


class Listener(Reporter):
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
    requested: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requested.append((handler.path, wanted))
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


def make_zip(entries: list[tuple[str, bytes]], mode: int | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.filename = name  # the constructor cuts and fixes names
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
