"""The layers of the source: `make lint` checks the contracts of pyproject.toml, this file the rest."""

import ast
import subprocess
import sys
import tomllib

import pytest

from support import ROOT

SOURCE = ROOT / "src" / "ubend"

# Importable without torch, package by package and file by file: start-up time depends on it, and a runtime without
# torch can be built from the first group.
TORCH_FREE = ["core", "io", "labels", "layouts", "metrics", "drawing", "objects", "cli"]
TORCH_FREE_MODULES = [
    "inference.tiling",
    "inference.strips",
    "inference.postprocess",
    "tasks.options",
    "tasks.reading",
    "dataset.scan",
    "dataset.dataset",
    "dataset.foreground",
    "dataset.named_sets",
    "dataset.sample",
    "training.launcher",
    "training.run_folder",
]


def test_every_package_is_a_layer() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert contract["exhaustive"]
    assert packages <= set(contract["layers"])


def test_packages_import_nothing() -> None:
    """Only the outermost `__init__` names things, and those lazily."""
    for path in SOURCE.rglob("*/__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)), path


@pytest.mark.parametrize("package", [*TORCH_FREE, "others"])
def test_imported_without_torch(package: str) -> None:
    """In an interpreter of its own: one after the other, so that the first that imports torch is named."""
    names = [f"{package}.{path.stem}" for path in sorted((SOURCE / package).glob("[!_]*.py"))] or TORCH_FREE_MODULES
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module('ubend.' + name)\n"
        "    assert 'torch' not in sys.modules, name + ' imports torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
