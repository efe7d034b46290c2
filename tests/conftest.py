"""Shared by all tests: real data when it is there, small folders made by code."""

import atexit
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from click.testing import CliRunner

from support import ROOT
from support.discs import make_discs
from support.distribution import write_distribution
from support.refusal import TINY
from support.remote_site import site as site
from support.tally import Tally
from ubend.cli.app import main

if not torch.cuda.is_available():
    # Read when a kernel is defined, of Triton's own too: so before anything imports Triton, as torch's counting of
    # FLOPs does.
    os.environ["TRITON_INTERPRET"] = "1"


# How long an example takes is nobody's assertion.
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")

# What tests keep goes to a folder of their own.
os.environ["UBEND_CACHE"] = tempfile.mkdtemp(prefix="ubend-tests-")
atexit.register(shutil.rmtree, os.environ["UBEND_CACHE"], ignore_errors=True)


# Commands are those of this tree, here and in other processes, whichever ubend is installed.
_OWN = Path(tempfile.mkdtemp(prefix="ubend-metadata-"))
atexit.register(shutil.rmtree, _OWN, ignore_errors=True)
write_distribution(_OWN, "ubend", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"])
sys.path.insert(0, str(_OWN))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_OWN), os.environ.get("PYTHONPATH")]))


@pytest.fixture
def ray_home() -> Iterator[dict[str, str]]:
    """The environment of commands that start Ray: its files go to a folder of their own, with a short name."""
    folder = tempfile.mkdtemp(prefix="ray-")  # the paths of its sockets have a limit
    yield {"RAY_TMPDIR": folder, "HOME": folder, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    shutil.rmtree(folder, ignore_errors=True)


REAL_SETS = ("kvasir-seg", "oxford-iiit-pet")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real sets."""
    folder = Path(os.environ.get("UBEND_DATA", ROOT / ".." / "shared" / "data"))
    missing = [name for name in REAL_SETS if not (folder / name).exists()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {folder}; set UBEND_DATA to a folder with {', '.join(REAL_SETS)}")
    return folder


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Of random inputs, those that are understood; the mark `understood` says how many at least."""
    tally = Tally()
    yield tally
    tally.check(**request.node.get_closest_marker("understood").kwargs)


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """A folder of 24 images of discs with masks, small enough to train on in a second."""
    folder = tmp_path / "discs"
    make_discs(folder, 24)
    return folder


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and a finished `run`; only to be read."""
    place = tmp_path_factory.mktemp("good")
    make_discs(place / "data", 24)
    result = CliRunner().invoke(main, ["fit", str(place / "data"), "--out", str(place / "run"), *TINY])
    assert result.exit_code == 0, result.output
    return place


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be spoilt."""
    shutil.copytree(good / "run", tmp_path / "run")
    return tmp_path / "run"
