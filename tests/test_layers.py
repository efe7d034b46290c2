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
TORCH_FREE = ["portable", "core", "io", "labels", "layouts", "metrics", "drawing", "instances", "cli"]
TORCH_FREE_MODULES = [
    "api",
    "evaluation.score_tables",
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


NOT_IN_THE_RUNTIME = ["torch", "pydantic", "click", "rich", "scipy", "imagecodecs", "tifffile", "ubend.core"]


def test_portable_modules_import_their_neighbours_and_three_libraries() -> None:
    """By relative imports, so that a copy in another package works; libraries of other formats inside functions."""
    allowed = {*sys.stdlib_module_names, "numpy", "PIL"}
    for path in sorted((SOURCE / "portable").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{path}:{node.lineno}"
                modules = [node.module] if node.module else [alias.name for alias in node.names]
                for name in modules:
                    assert (SOURCE / "portable" / f"{name}.py").is_file(), f"{path}:{node.lineno}"
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.partition(".")[0] for name in names} <= allowed, f"{path}:{node.lineno}"


def test_portable_modules_without_the_rest() -> None:
    names = [path.stem for path in sorted((SOURCE / "portable").glob("[!_]*.py"))]
    assert "model" in names
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({NOT_IN_THE_RUNTIME!r}))\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module('ubend.portable.' + name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def names_of_networks() -> set[str]:
    """The classes below `models` that are networks, from the syntax alone."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (SOURCE / "models").glob("*.py")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: {base.id for base in node.bases if isinstance(base, ast.Name)} for node in classes}
    found = {"SegmentationNet"}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found


def test_nobody_asks_which_network_it_has() -> None:
    """Outside `models` and `accel` the interface is asked: no network class in isinstance, match, or a comparison."""
    networks = names_of_networks()
    assert {"UNet", "PaperUNet", "EncodedUNet"} <= networks

    def named(tree: ast.AST) -> set[str]:
        ids = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        return ids | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    def requested(node: ast.AST) -> set[str]:
        match node:
            case ast.Call(func=ast.Name("isinstance" | "issubclass"), args=[_, classes]):
                return named(classes)
            case ast.MatchClass(cls=cls):
                return named(cls)
            case ast.Compare():
                return named(node)
        return set()

    assert requested(ast.parse("type(net) is UNet").body[0].value) & networks  # type: ignore[attr-defined]
    for path in sorted(SOURCE.rglob("*.py")):
        if path.parent.name not in ("models", "accel"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not requested(node) & networks, f"{path}:{getattr(node, 'lineno', 0)}"


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
