"""A local page that shows a training while it runs: `ubend fit --watch`.

It is served from this computer to this computer (127.0.0.1), reads the files of the run folder, and ends with the
training.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.drawing.pages import render_page
from ubend.training.run_folder import RunFolder

_HOST = "127.0.0.1"
_PANEL = re.compile(r"/panels/(\d{1,6})\.png")


@contextmanager
def watch_page(run: RunFolder, epochs: int, reporter: Reporter) -> Iterator[None]:
    """Serve the page while the block runs, on a free port; its address is reported.

    Args:
        epochs: number of epochs of the training.
    """
    page = render_page(Path(__file__).with_name("watch.html"), title=_("Training {run}").format(run=run.path.name))
    server = ThreadingHTTPServer((_HOST, 0), partial(_Handler, run, epochs, page))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    address = f"http://{_HOST}:{server.server_port}/"
    reporter.report(_("watch the training in a browser: {address}").format(address=address))
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers with the page, its state as JSON, and images of the run folder; nothing else can be read."""

    def __init__(self, run: RunFolder, epochs: int, page: str, *connection: Any) -> None:
        self._run, self._epochs, self._page = run, epochs, page
        super().__init__(*connection)

    def do_GET(self) -> None:
        host, _colon, _port = self.headers.get("Host", "").rpartition(":")
        if host not in (_HOST, "localhost"):  # a foreign site has pointed its own name here (DNS rebinding)
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        path = self.path.partition("?")[0]
        panel = _PANEL.fullmatch(path)
        if path == "/":
            self._send("text/html; charset=utf-8", self._page.encode())
        elif path == "/state.json":
            self._send("application/json", json.dumps(read_state(self._run, self._epochs)).encode())
        elif path == "/curves.png" or panel:
            file = self._run.panel(int(panel[1])) if panel else self._run.curves
            try:
                self._send("image/png", file.read_bytes())
            except OSError:  # not drawn yet
                self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, content_type: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for a request."""


def read_state(run: RunFolder, epochs: int) -> dict[str, Any]:
    """What the page shows of a run.

    Returns:
        `epoch`: number of finished epochs; `epochs`; `best`: the epoch whose weights are kept; `dice`: (class,
        validation Dice) of the last epoch; `seconds_left`: None if not known; `panels`: the epochs that have one;
        `curves`: when they were drawn, None if not yet.
    """
    history, timing = _read_rows(run.metrics), _read_rows(run.timing)
    last = history[-1] if history else {}
    return {
        "epoch": len(history),
        "epochs": epochs,
        "best": max((row["epoch"] for row in history if row["best"]), default=None),
        "dice": list(last.get("val_dice", {}).items()),
        "seconds_left": timing[-1].get("seconds_left") if timing else None,
        "panels": sorted(int(path.stem.rpartition("_")[2]) for path in run.panel(0).parent.glob("epoch_????.png")),
        "curves": str(run.curves.stat().st_mtime_ns) if run.curves.exists() else None,
    }


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a file with one JSON object per line; none if there is no file yet."""
    rows = []
    with suppress(OSError, ValueError):  # the last line may be half written
        for line in path.read_text(encoding="utf-8").splitlines():
            rows.append(json.loads(line))
    return rows
