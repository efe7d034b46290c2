"""Downloads one file over HTTP: resumes interrupted downloads, and verifies the file before it gets its name.

Data is written to NAME.part. NAME.part.json records its source, so that a later process can request the rest
(RFC 9110: Range, If-Range, Content-Range). A partial file is continued only if the server confirms that its file has
not changed.
"""

import hashlib
import http.client
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from ubend.core.errors import DataError
from ubend.core.files import explain_write_errors, write_json
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.portable.version import __version__

_CHUNK_BYTES = 2**18
_MIN_BYTES_S = 128  # a slower connection counts as stalled, after `Patience.stall_s`
_LONGEST_PAUSE_S = 30.0
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))  # temporary HTTP errors
_MAGIC = {".gz": b"\x1f\x8b", ".zip": b"PK"}


@dataclass(frozen=True)
class Remote:
    """A file to download.

    Attributes:
        name: of the local file.
        urls: addresses, tried in this order.
        size: in bytes; exact if there is a digest, else approximate (more than twice as much is refused).
        md5: hexadecimal; None: not published.
        folder_option: of the command, for a folder with a copy.
    """

    name: str
    urls: tuple[str, ...]
    size: int
    md5: str | None = None
    folder_option: str = "--root"


@dataclass(frozen=True)
class Patience:
    """Retries and timeouts.

    Attributes:
        tries: connections in a row without progress, after which the download fails.
        pause_s: before the second one; doubled each time.
        stall_s: time with almost no data after which a connection counts as broken.
    """

    tries: int = 4
    pause_s: float = 1.0
    stall_s: float = 30.0


PATIENCE = Patience()


class _BrokenError(Exception):
    """The connection failed; a retry may succeed."""


class _RefusedError(Exception):
    """The file cannot be downloaded from this address."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, except from an encrypted connection to an unencrypted one."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise _RefusedError(_("it redirects to {url}, which is not encrypted").format(url=newurl))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass
class _Part:
    """A partly downloaded file."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def origin(self) -> dict[str, Any]:
        """url, validator and total size of the source; empty if unknown."""
        with suppress(OSError, ValueError, TypeError):
            return dict(json.loads(self.note.read_text(encoding="utf-8")))
        return {}

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def download(remote: Remote, target: Path, reporter: Reporter) -> None:
    """Download a file to `target`; continues an earlier partial download.

    Raises:
        DataError: the file could not be downloaded from any address; the message has a reason for each.
        OutputError: the disk is full, or `target` cannot be written.
    """
    part = _Part(target.with_name(target.name + ".part"))
    problems = []
    for url in remote.urls:
        try:
            _download_from(url, remote, part, reporter)
            with explain_write_errors(target):
                part.path.replace(target)
            part.note.unlink(missing_ok=True)
            return
        except _RefusedError as refusal:
            problems.append(f"{url}: {refusal}")
        finally:
            reporter.end()
    raise DataError(
        _(
            "cannot download {name}: {problems}; try again (it continues where it stopped), or download the file by "
            "other means and give its folder with {option} DIR"
        ).format(name=remote.name, problems="; ".join(problems), option=remote.folder_option),
        path=target,
    )


def check_file(path: Path, remote: Remote) -> str | None:
    """Verify a downloaded file: returns what is wrong, or None."""
    with path.open("rb") as file:
        if not (start := file.peek(16)[:16]).startswith(_MAGIC.get(Path(remote.name).suffix, b"")):
            return _("it is not an archive: it begins with {start}").format(start=repr(start)[1:])
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)) if remote.md5 else None
    if digest is None or digest.hexdigest() == remote.md5:
        return None
    if path.stat().st_size != remote.size:
        return _wrong_size(path.stat().st_size, remote)
    return _("its MD5 is {found}, not {published} as published").format(found=digest.hexdigest(), published=remote.md5)


def _download_from(url: str, remote: Remote, part: _Part, reporter: Reporter) -> None:
    """Complete the partial file from one address, with retries."""
    failures, furthest = 0, part.size()
    while True:
        resumed = part.size() > 0
        try:
            if not resumed or part.size() != part.origin().get("total"):  # else it is complete, but not verified yet
                _connect(url, remote, part, reporter)
            if (wrong := check_file(part.path, remote)) is None:
                return
            part.drop()
            raise _BrokenError(wrong) if resumed else _RefusedError(wrong)
        except _BrokenError as broken:
            failures = 0 if part.size() > furthest else failures + 1
            furthest = max(furthest, part.size())
            if failures >= PATIENCE.tries:
                raise _RefusedError(str(broken)) from broken
            time.sleep(min(_LONGEST_PAUSE_S, PATIENCE.pause_s * 2**failures))


def _connect(url: str, remote: Remote, part: _Part, reporter: Reporter) -> None:
    """Download with one connection; returns when the file is complete."""
    origin, have = part.origin(), part.size()
    validator = origin.get("validator") if origin.get("url") == url else None
    if have and not (validator or remote.md5):  # a changed file on the server could not be detected
        part.drop()
        have = 0
    headers = {"User-Agent": f"ubend/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", **({"If-Range": validator} if validator else {})}
    with _explain_failures(part):
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.build_opener(_SafeRedirects).open(request, timeout=PATIENCE.stall_s)
    with response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise _RefusedError(_("received a web page instead of the file"))
        start, total, now = *_position(response), _validator(response.headers)
        if start is not None and (
            start != have or origin.get("total") not in (None, total) or (validator and now and validator != now)
        ):
            part.drop()
            raise _BrokenError(_("the file on the server has changed since its first part was downloaded"))
        if remote.md5 is not None and total not in (None, remote.size):
            raise _RefusedError(_wrong_size(total or 0, remote))
        with explain_write_errors(part.path):
            write_json(part.note, {"url": url, "validator": now, "total": total})
        _receive(response, part, start or 0, total, remote, reporter)


def _position(response: Any) -> tuple[int | None, int | None]:
    """(offset of a partial response, None for a full one; total size of the file, None if not stated)."""
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return None, int(length) if length.isdecimal() else None
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status != 206 or content_range is None:
        raise _RefusedError(_("HTTP {code} instead of the file").format(code=response.status))
    return int(content_range[1]), int(content_range[2])


def _receive(response: Any, part: _Part, have: int, total: int | None, remote: Remote, reporter: Reporter) -> None:
    """Write a response to the partial file, after its first `have` bytes."""
    maximum = 2 * remote.size
    reporter.begin(_("downloading {name} (MiB)").format(name=remote.name), _mib(total or remote.size), _mib(have))
    with explain_write_errors(part.path), part.path.open("r+b" if have else "wb") as file:
        file.seek(have)
        since, came = time.monotonic(), 0
        while total is None or have < total:
            if max(have, total or 0) > maximum:
                raise _RefusedError(_wrong_size(max(have, total or 0), remote))
            with _explain_failures(part):
                data = response.read1(_CHUNK_BYTES if total is None else min(_CHUNK_BYTES, total - have))
            if not data:
                break
            file.write(data)
            have, came = have + len(data), came + len(data)
            reporter.count(_mib(have))
            if time.monotonic() - since > PATIENCE.stall_s:
                if came < _MIN_BYTES_S * PATIENCE.stall_s:
                    raise _BrokenError(_stalled())
                since, came = time.monotonic(), 0
    if total is not None and have < total:
        raise _BrokenError(_("the connection was lost after {have} of {total} bytes").format(have=have, total=total))


def _validator(headers: Message) -> str | None:
    """The validator of the file's version: a strong ETag, else Last-Modified (RFC 9110, 13.1.5)."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


@contextmanager
def _explain_failures(part: _Part) -> Iterator[None]:
    """Turn network errors into `_BrokenError` or `_RefusedError`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the server's file is shorter than the partial one
            part.drop()
        said = _("HTTP {code} {reason}").format(code=error.code, reason=_one_line(error.reason))
        raise (_BrokenError if error.code in {416, *_PASSING} else _RefusedError)(said) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        match reason:
            case TimeoutError():
                raise _BrokenError(_stalled()) from error
            case socket.gaierror():
                raise _RefusedError(_("the server was not found; check the network connection")) from error
            case ssl.SSLCertVerificationError():
                raise _RefusedError(
                    _("the server's certificate could not be verified ({reason})").format(reason=reason.verify_message)
                ) from error
        said = getattr(reason, "strerror", None) or _one_line(reason) or type(reason).__name__
        raise _BrokenError(_("the connection failed ({reason})").format(reason=said)) from error


def _one_line(said: object) -> str:
    """A server's text, shortened and without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(said)).split())[:120]


def _stalled() -> str:
    return _("no data received for {seconds:g} s").format(seconds=PATIENCE.stall_s)


def _wrong_size(size: int, remote: Remote) -> str:
    return _("the file has {size} bytes instead of {expected}").format(size=size, expected=remote.size)


def _mib(size: int) -> int:
    return round(size / 2**20)
