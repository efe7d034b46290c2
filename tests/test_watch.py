"""`ubend fit --watch`: a local page that shows a training while it runs."""

import http.client
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ubend
from support.discs import make_discs
from support.refusal import raises
from support.training import Listener
from ubend.core.errors import SettingError
from ubend.tasks.watch import watch_page
from ubend.training.run_folder import RunFolder

CHROMIUM = shutil.which("chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
TRAINING: dict[str, Any] = {"size": 32, "width": 2, "epochs": 3, "batch": 4, "device": "cpu", "encoder": "none"}


def address_of(listener: Listener) -> tuple[str, int]:
    (found,) = re.findall(r"http://(127\.0\.0\.1):(\d+)/", listener.said)
    return found[0], int(found[1])


def get(place: tuple[str, int], path: str, host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*place, timeout=20)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    make_discs(folder / "discs", 16)
    ubend.fit(folder / "discs", out=folder / "<run> & co", reporter=Listener(), **TRAINING)
    return folder / "<run> & co"


def test_it_follows_a_training_and_ends_with_it(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = []
    pages: list[bytes] = []

    def look(done: int) -> None:
        pages.append(get(address_of(listener), "/")[1])
        states.append(json.loads(get(address_of(listener), "/state.json")[1]))

    listener = Listener(look)
    make_discs(tmp_path / "discs", 16)
    ubend.fit(tmp_path / "discs", out=tmp_path / "run", watch=True, reporter=listener, **TRAINING)
    assert states[0]["epoch"] == 0
    assert states[0]["epochs"] == 3
    assert {state["epoch"] for state in states} >= {0, 1, 2}
    assert states[-1]["best"] in (1, 2)
    assert dict(states[-1]["dice"]).keys() == {"background", "foreground"}
    assert b"</html>" in pages[0]
    with pytest.raises(ConnectionRefusedError):
        get(address_of(listener), "/")


def test_it_gives_the_page_its_state_and_images_and_no_other_file(run: Path) -> None:
    listener = Listener()
    with watch_page(RunFolder(run), 3, listener):
        place = address_of(listener)
        state = json.loads(get(place, "/state.json")[1])
        assert state["panels"] == [1, 2, 3]
        assert state["epoch"] == state["epochs"] == 3
        assert state["seconds_left"] == 0
        for path in ("/curves.png?drawn=1", "/panels/3.png"):
            status, body = get(place, path)
            assert status == 200
            assert Image.open(io.BytesIO(body)).format == "PNG"
        for path in (
            "/settings.toml",
            "/panels/4.png",
            "/panels/../settings.toml",
            "/../run/settings.toml",
            "/%2e%2e/",
        ):
            assert get(place, path)[0] == 404
        assert get(place, "/", "attacker.example")[0] == 403
        assert get(place, "/", f"localhost:{place[1]}")[0] == 200
        assert b"<run>" not in get(place, "/")[1]


def test_a_half_written_line_is_left_out(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    timing = RunFolder(tmp_path / "run").timing
    rows = timing.read_text(encoding="utf-8").splitlines()
    timing.write_text(f'{rows[0]}\n{{"epoch": 2, "sec', encoding="utf-8")
    listener = Listener()
    with watch_page(RunFolder(tmp_path / "run"), 3, listener):
        state = json.loads(get(address_of(listener), "/state.json")[1])
    assert state["seconds_left"] == json.loads(rows[0])["seconds_left"]


def test_of_several_trainings_it_is_refused(tmp_path: Path) -> None:
    make_discs(tmp_path / "discs", 16)
    with raises(SettingError, key="--watch"):
        ubend.fit(tmp_path / "discs", out=tmp_path / "run", folds=2, watch=True, reporter=Listener())
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no browser to look at the page with; apt-get install chromium")
def test_in_a_browser(run: Path, tmp_path: Path) -> None:
    listener = Listener()
    words = [str(CHROMIUM), *FLAGS, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
    with watch_page(RunFolder(run), 3, listener):
        page = "http://{}:{}/".format(*address_of(listener))
        done = subprocess.run([*words, "--dump-dom", page], capture_output=True, text=True, check=True, timeout=120)
    assert "epoch 3 of 3" in done.stdout
    assert "Validation images after epoch 3" in done.stdout
    assert 'src="/panels/3.png"' in done.stdout
    assert len(re.findall(r"<td>\d\.\d{4}</td>", done.stdout)) == 2
    assert "CONSOLE" not in done.stderr
