"""A headless Chromium that is driven through a pipe, by the DevTools protocol; for tests and benchmarks of pages."""

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import RawIOBase
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
_PATIENCE_S = 120


class Browser:
    """One page of a browser.

    Attributes:
        complaints: what the page wrote to its console, and errors.
        requests: addresses that were asked for, without `data:` and `blob:`.
    """

    def __init__(self, read: RawIOBase, write: RawIOBase, process: int) -> None:
        self._read, self._write, self._process = read, write, process
        self._rest, self._count, self._session, self._is_loaded = b"", 0, "", True
        self.complaints, self.requests = list[str](), list[str]()
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self._call(f"{domain}.enable")

    def open(self, url: str, width: int = 1200, height: int = 900) -> None:
        """Load a page in a window of this size."""
        self.resize(width, height)
        self.complaints, self.requests = [], []
        self._is_loaded = False
        self._call("Page.navigate", url=url)
        while not self._is_loaded:
            self._note(self._receive())

    def resize(self, width: int, height: int) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def evaluate(self, script: str) -> Any:
        """The value of an expression, also of a promise."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        self.evaluate(
            f"new Promise((resolve, reject) => {{ const began = Date.now(); (function look() {{ if ({condition}) "
            f"resolve(true); else if (Date.now() - began > {_PATIENCE_S * 1000}) reject(new Error("
            "'waited in vain; ' + document.body.innerText)); else setTimeout(look, 20); })(); })"
        )

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in a file input, as a person would."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop(self, *files: Path) -> None:
        """Drop files on the page."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self._call("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    def press(self, key: str) -> None:
        """Press and release a key, such as Tab."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=9)

    def download(self, selector: str, folder: Path) -> Path:
        """Click on a link that saves a file; the file."""
        before = {*folder.iterdir()}
        session, self._session = self._session, ""
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self._session = session
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        for _turn in range(50 * _PATIENCE_S):
            new = {*folder.iterdir()} - before
            if new and all(path.suffix != ".crdownload" and path.stat().st_size for path in new):  # none is unfinished
                return new.pop()
            time.sleep(0.02)
        raise AssertionError("nothing was saved")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def processor_seconds(self) -> float:
        """Of all its processes so far (Linux)."""
        parents, ticks = dict[int, int](), dict[int, int]()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                fields = path.read_text().rpartition(")")[2].split()
                number = int(path.parent.name)
                parents[number], ticks[number] = int(fields[1]), int(fields[11]) + int(fields[12])
        ours = {self._process}
        while more := {number for number, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return sum(ticks.get(number, 0) for number in ours) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._session = ""
        self._call("Browser.close")

    def _call(self, method: str, **given: Any) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _receive(self) -> Any:
        while b"\0" not in self._rest:
            data = self._read.read(2**20)
            assert data, "the browser has ended"
            self._rest += data
        line, _end, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def _note(self, event: Any) -> None:
        method, given = event["method"], event["params"]
        if method == "Page.loadEventFired":
            self._is_loaded = True
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str([part.get("value", part.get("description")) for part in given["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(given["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(str(given["entry"]["text"]))
        elif method == "Network.requestWillBeSent":
            url = given["request"]["url"]
            if not url.startswith(("data:", "blob:")):
                self.requests.append(url)


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser with a new profile; it ends with the context."""
    assert CHROMIUM is not None
    ours_read, theirs_write = os.pipe()
    theirs_read, ours_write = os.pipe()
    words = [CHROMIUM, *_FLAGS, *_QUIET, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    shell = f'exec "$@" 3<&{theirs_read} 4>&{theirs_write}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "browser", *words],
        pass_fds=(theirs_read, theirs_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_read)
    os.close(theirs_write)
    watch = threading.Timer(5 * _PATIENCE_S, process.kill)  # then reading ends
    watch.start()
    with open(ours_read, "rb", buffering=0) as read, open(ours_write, "wb", buffering=0) as write:
        try:
            browser = Browser(read, write, process.pid)
            yield browser
            browser.close()
        finally:
            watch.cancel()
            process.kill()
            process.wait()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a file server on 127.0.0.1 that ends with the context."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
