"""The launcher of several processes: places, what is reported, one that fails or is killed ends all, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.refusal import raises
from support.work import no_hang
from ubend.core.errors import TrainingError
from ubend.training import launcher as launch
from ubend.training.launcher import ProcessRank, process_rank

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _alone(monkeypatch: Patch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_place(monkeypatch: Patch) -> None:
    """From torchrun's environment; half an environment, or a group of one, is none."""
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    for name, value in told.items():
        assert process_rank() == ProcessRank()
        monkeypatch.setenv(name, value)
    assert process_rank() == ProcessRank(5, 8, 1)
    assert not process_rank().is_first
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert process_rank() == ProcessRank()


START = "import os, signal, sys, time; rank = int(os.environ['RANK']); "


@pytest.fixture
def quick(monkeypatch: Patch) -> Iterator[None]:
    """Stubborn processes are killed after a second; a test that waits for them is ended."""
    monkeypatch.setattr(launch, "_GRACE_S", 1.0)
    with no_hang():
        yield


def start(program: str, count: int = 2) -> int:
    return launch.launch([sys.executable, "-c", START + program], count)


@pytest.mark.usefixtures("quick")
def test_places_and_what_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """Each knows its place; the first one's words are shown, its exit code is the whole's."""
    words = "' '.join(os.environ[k] for k in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'))"
    assert start(f"print({words}); print('careful', rank, file=sys.stderr)", 3) == 0
    assert tuple(capfd.readouterr()) == ("0 3 0 127.0.0.1\n", "careful 0\n")
    assert start("sys.exit(130 if rank == 0 else 0)") == 130


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_ends_all(failing: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own words and exit code are shown, and no other's; stubborn ones are killed."""
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', file=sys.stderr); time.sleep(600)"
    program = (
        f"\nif rank == {failing}: time.sleep(1); print('error: no luck', file=sys.stderr); sys.exit(2)\n{stubborn}"
    )
    assert start(program) == 2
    assert capfd.readouterr().err == "error: no luck\n"


@pytest.mark.usefixtures("quick")
def test_one_that_is_killed_ends_all() -> None:
    with raises(TrainingError, key="--gpus", named=["1", "2", "SIGKILL", "--resume RUN --gpus 2"]):
        start("\nif rank: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)")


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_reaches_each_once(tmp_path: Path) -> None:
    """So does SIGTERM, if it is the first. The second one gives them a moment only; the launcher ends as they do."""
    program = START + (
        "n = []; signal.signal(signal.SIGINT, lambda *_: n.append(1)); "
        f"open(r'{tmp_path}/ready' + str(rank), 'w').close()\n"
        f"while True: time.sleep(.05); open(r'{tmp_path}/heard' + str(rank), 'w').write(str(len(n)))"
    )
    body = (
        "import sys; from ubend.training import launcher as launch; launch._GRACE_S = 1; "
        f"sys.exit(launch.launch({[sys.executable, '-c', program]!r}, 2))"
    )

    def heard(times: int) -> None:
        while not all(
            (tmp_path / f"heard{r}").exists() and (tmp_path / f"heard{r}").read_text() == str(times) for r in range(2)
        ):
            time.sleep(0.05)

    term = signal.SIGTERM
    for first, last, code in ((signal.SIGINT, signal.SIGINT, 130), (signal.SIGINT, term, 143), (term, term, 143)):
        with subprocess.Popen([sys.executable, "-c", body]) as launcher:
            heard(0)
            launcher.send_signal(first)
            heard(1)
            launcher.send_signal(last)
            assert launcher.wait(60) == code
        for path in tmp_path.iterdir():
            path.unlink()
        time.sleep(0.3)
        assert not list(tmp_path.iterdir()), "one of them is still writing"


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("end", "code"), [("sys.exit(130)", 143), ("sys.exit(0)", 0), ("time.sleep(600)", 143)])
def test_sigterm_once(end: str, code: int, tmp_path: Path) -> None:
    """It leaves them time to save, but not for ever; the exit code says what has ended them."""
    ready = f"open(r'{tmp_path}/ready' + str(rank), 'w').close(); time.sleep(600)"
    program = START + f"\ntry: {ready}\nexcept KeyboardInterrupt: {end}"
    body = (
        "import sys; from ubend.training import launcher as launch; launch._SAVE_S = launch._GRACE_S = 1; "
        f"sys.exit(launch.launch({[sys.executable, '-c', program]!r}, 2))"
    )
    with subprocess.Popen([sys.executable, "-c", body]) as launcher:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        launcher.terminate()
        assert launcher.wait(60) == code
