"""The wheel: what is in it, and that it works where it is installed, from any folder. The sdist's tests are whole."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support import ROOT
from support.exports import NEEDS_EXPORT, make_bundle, make_bytes, settle
from ubend.models.unet import UNet
from ubend.portable.version import __version__

pytestmark = pytest.mark.slow


def _run(*words: str | Path, cwd: Path, status: int = 0, packages: str = "") -> subprocess.CompletedProcess[str]:
    # without the caller's PYTHONPATH, so that only what is installed is found, and without an index
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "UBEND_LANG")}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "100", "PYTHONPATH": packages}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def _build(kind: str, out: Path, source: Path = ROOT) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    packages = os.pathsep.join(path for path in sys.path if path and Path(path) != ROOT / "src")
    _run(sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", out, source, cwd=out, packages=packages)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("--wheel", tmp_path_factory.mktemp("wheel"))


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {"ubend/py.typed", "ubend_lessons/py.typed"} <= names
    assert "ubend/locale/vi/LC_MESSAGES/ubend.mo" in names
    page = {"index.html", "page.js", "predict.js", "worker.js", "onnxruntime-license.txt"}
    assert {f"ubend/exporting/web/{name}" for name in page} <= names
    assert any(name.endswith("LICENSE") and ".dist-info/" in name for name in names)
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"ubend", "ubend_lessons"}, (
        "tests or other things came along"
    )
    source = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*") if path.suffix == ".py"}
    assert source <= names
    assert not [name for name in names if "test" in name.lower() or "__pycache__" in name]
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def _make_environment(place: Path) -> Path:
    """The folder of programs of a new environment that sees this one's packages, except ubend."""
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    base = {"base": str(place), "platbase": str(place)}
    scripts = Path(sysconfig.get_path("scripts", "venv", base))
    library = Path(sysconfig.get_path("purelib", "venv", base))
    # plain paths: .pth files in those folders (an editable ubend) are not read from there
    others = [path for path in sys.path if path and any(Path(path).glob("*.dist-info"))]
    (library / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return scripts


def _install(scripts: Path, wheel: Path) -> None:
    words = ("-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    _run(scripts / "python", *words, cwd=scripts)


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment that holds the wheel and sees this one's other packages."""
    scripts = _make_environment(tmp_path_factory.mktemp("venv"))
    _install(scripts, wheel)
    return scripts


def test_installed(scripts: Path, tmp_path: Path) -> None:
    where = _run(scripts / "python", "-c", "import ubend; print(ubend.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(scripts.parent), "another ubend was found"
    version = _run(scripts / "ubend", "--version", cwd=tmp_path).stdout
    assert version.strip() == f"ubend, version {__version__}"
    assert "fit" in _run(scripts / "ubend", "--help", cwd=tmp_path).stdout
    assert "Huấn luyện" in _run(scripts / "ubend", "--help", "--lang", "vi", cwd=tmp_path).stdout
    done = _run(scripts / "python", "-m", "ubend", "info", "nowhere", cwd=tmp_path, status=2)
    assert done.stderr.strip() == "error: nowhere: no such model file; give a run folder or a model file"
    assert not any(tmp_path.iterdir())


def test_installed_lessons(scripts: Path, tmp_path: Path) -> None:
    """Every command of the tutorial map has its help, and one lesson runs: entry points and catalogue are there."""
    page = (ROOT / "docs" / "tutorial-map.md").read_text(encoding="utf-8")
    commands = {tuple(found.split()) for found in re.findall(r"`ubend ((?:lesson )?[a-z-]+)", page)}
    assert {("lesson", "kinds"), ("baseline",), ("fit",)} <= commands
    for words in sorted(commands):
        said = _run(scripts / "ubend", *words, "--help", cwd=tmp_path).stdout
        assert said.startswith(f"Usage: ubend {' '.join(words)} ")
    listed = _run(scripts / "ubend", "lesson", cwd=tmp_path, status=2).stderr
    assert {words[1] for words in commands if len(words) == 2} <= set(re.findall(r"^  ([a-z-]+)  ", listed, re.M))
    said = _run(scripts / "ubend", "lesson", "transposed-convolution", "--lang", "vi", cwd=tmp_path).stdout
    assert "tích chập chuyển vị" in said
    assert (tmp_path / "lesson" / "transposed_convolution.gif").exists()


def test_tests_of_the_sdist_are_collected(tmp_path: Path) -> None:
    """What tests read (documents, benchmarks, tools) is in it."""
    (tmp_path / "built").mkdir()
    with tarfile.open(_build("--sdist", tmp_path / "built")) as archive:
        archive.extractall(tmp_path, filter="data")
    (place,) = tmp_path.glob("ubend-*")
    words = ("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")
    said = _run(sys.executable, *words, cwd=place, packages=str(place / "src")).stdout
    for path in (ROOT / "tests").glob("test_*.py"):
        assert f"tests/{path.name}::" in said


@pytest.fixture(scope="module")
def runtime_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("--wheel", tmp_path_factory.mktemp("runtime"), ROOT / "runtime")


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheels_have_no_file_in_common(wheel: Path, runtime_wheel: Path) -> None:
    """And the runtime's has all that the two share."""
    names = _names(runtime_wheel)
    assert not names & _names(wheel)
    assert runtime_wheel.name.startswith(f"ubend_runtime-{__version__}-")
    shared = {path.name for path in (ROOT / "src" / "ubend" / "portable").glob("*.py")}
    assert {f"ubend_runtime/portable/{name}" for name in shared} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"ubend_runtime"}
    with zipfile.ZipFile(runtime_wheel) as archive:
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    needed = re.findall(r"^Requires-Dist: ([a-z]+)[^;\n]*$", metadata, re.M)
    assert sorted(needed) == ["numpy", "onnxruntime", "pillow"]


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "ubend", "pydantic", "click", "rich", "scipy", "imagecodecs", "tifffile")))
import runpy
sys.argv[0] = "ubend-runtime"
runpy.run_module("ubend_runtime", run_name="__main__")
"""


@NEEDS_EXPORT
def test_runtime_alone_with_ubend_and_alone_again(wheel: Path, runtime_wheel: Path, tmp_path: Path) -> None:
    """It predicts where nothing else of ubend is, and nothing that ubend asks for; neither needs or breaks the
    other."""
    torch.manual_seed(2)
    (tmp_path / "model.onnx").write_bytes(make_bytes(make_bundle(settle(UNet(3, 2, width=2, depth=1)))))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    place = tmp_path / "venv"
    scripts = _make_environment(place)
    _install(scripts, runtime_wheel)
    flags = ["--min-area", "5", "--fill-holes", "all", "--tta", "--prob", "npz"]
    words = ["predict", "model.onnx", "image.jpg", *flags, "--out"]
    _run(scripts / "python", "-c", WITHOUT, *words, "alone", cwd=tmp_path)
    where = _run(scripts / "python", "-c", "import ubend_runtime as r; print(r.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(place)
    _install(scripts, wheel)
    _run(scripts / "ubend-runtime", *words, "both", cwd=tmp_path)
    _run(scripts / "ubend", *words, "ubend", cwd=tmp_path)
    _run(scripts / "python", "-m", "pip", "uninstall", "--yes", "ubend", cwd=tmp_path)
    _run(scripts / "ubend-runtime", *words, "again", cwd=tmp_path)
    said = _run(scripts / "ubend-runtime", "info", "nowhere.onnx", cwd=tmp_path, status=2).stderr
    assert said.strip() == "error: nowhere.onnx: no such model file"
    as_tiff = ("predict", "model.onnx", "image.jpg", "--prob", "uint8", "--out", "tiff")
    said = _run(scripts / "python", "-c", WITHOUT, *as_tiff, cwd=tmp_path, status=2).stderr
    assert said.endswith("install it with: pip install 'ubend-runtime[tiff]'\n")
    outs = ("alone", "both", "again")
    folders = [{path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in outs]
    assert folders[0] == folders[1] == folders[2]
    assert {"image.png", "image_prob.npz", "predict.json"} <= folders[0].keys()
    _install(scripts, wheel)
    _run(scripts / "python", "-m", "pip", "uninstall", "--yes", "ubend-runtime", cwd=tmp_path)
    _run(scripts / "ubend", *words, "last", cwd=tmp_path)
    for out in ("ubend", "last"):
        assert (tmp_path / out / "image.png").read_bytes() == folders[0]["image.png"]
