"""Each file of a command is decoded once and its header read once, whatever models, views and tiles are asked for."""

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import tifffile
from PIL import Image

from support.commands import succeed
from support.models import make_bundle
from ubend.models.model_file import load_bundle, save_bundle
from ubend.portable import decode

Counts = tuple[Counter[str], Counter[str]]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Per file name: headers that are read, images that are decoded."""
    for task in ("cutout", "evaluate", "objects", "predict"):  # what is imported later would keep the counters
        import_module(f"ubend.tasks.{task}")
    lock = Lock()

    def counted(work: Callable[..., Any], found: Counter[str]) -> Callable[..., Any]:
        def call(path: Path, *args: Any) -> Any:
            with lock:
                found["/".join(path.parts[-2:])] += 1
            return work(path, *args)

        for module in [module for name, module in sys.modules.items() if name.startswith("ubend.")]:
            if getattr(module, work.__name__, None) is work:
                monkeypatch.setattr(module, work.__name__, call)
        return call

    headers, decoded = Counter[str](), Counter[str]()
    counted(decode.read_header, headers)
    counted(decode.read_raster, decoded)
    return headers, decoded


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """Pairs: colour, grey, with alpha."""
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in sorted((good / "data" / name).iterdir())[:5]:
            shutil.copy(path, tmp_path / "data" / name)
    grey, clear = sorted((tmp_path / "data" / "images").iterdir())[:2]
    Image.open(grey).convert("L").save(grey)
    Image.open(clear).convert("RGBA").save(clear)
    return tmp_path / "data"


@pytest.fixture
def grey(good: Path, tmp_path: Path) -> Path:
    """A model of grey images, with the classes of `good`."""
    bundle = load_bundle(good / "run")
    bundle.model = make_bundle(classes=2, channels=1).model
    bundle.sizing = replace(bundle.sizing, channels=1)
    save_bundle(tmp_path / "grey.safetensors", bundle)
    return tmp_path / "grey.safetensors"


@pytest.mark.parametrize("command", ["predict", "objects", "cutout"])
@pytest.mark.parametrize("way", [["--tiles", "whole"], ["--tiles", "32"], ["--with"], ["--tta"], ["grey"]])
def test_commands(
    command: str, way: list[str], good: Path, grey: Path, folder: Path, tmp_path: Path, counts: Counts
) -> None:
    if command == "objects":
        pytest.importorskip("skimage")
    model = grey if way == ["grey"] else good / "run"
    flags = [*way, grey] if way == ["--with"] else [] if way == ["grey"] else way
    succeed(command, model, folder / "images", "--out", tmp_path / "out", *flags)
    names = {f"images/{path.name}" for path in (folder / "images").iterdir()}
    for found in counts:
        assert found == dict.fromkeys(names, 1)


@pytest.mark.parametrize("tiles", ["whole", "32"])
def test_evaluate(tiles: str, good: Path, folder: Path, counts: Counts) -> None:
    succeed("evaluate", good / "run", folder, "--tiles", tiles)
    names = {f"images/{path.name}" for path in (folder / "images").iterdir()}
    for found in counts:
        assert {name: count for name, count in found.items() if name in names} == dict.fromkeys(names, 1)


def test_tiff(good: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened twice: for its header with what else it tells, and for its pixels."""
    for path in (folder / "images").iterdir():
        Image.open(path).convert("RGB").save(path.with_suffix(".tif"))
        path.unlink()
    opened: list[object] = []
    init = tifffile.TiffFile.__init__

    def count(self: tifffile.TiffFile, file: Any, *args: Any, **given: Any) -> None:
        opened.append(file)
        init(self, file, *args, **given)

    monkeypatch.setattr(tifffile.TiffFile, "__init__", count)
    succeed("predict", good / "run", folder / "images", "--out", tmp_path / "out")
    assert len(opened) == 2 * 5
