"""What others may rely on: the public names, quick imports, docstrings."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ubend

SOURCE = Path(__file__).parent.parent / "src"
FILES = sorted(SOURCE.rglob("*.py"))


def test_the_public_names() -> None:
    assert ubend.__all__ == [
        "Comparison",
        "DataError",
        "Ensemble",
        "FilesError",
        "FitResult",
        "IGNORED",
        "LabelMap",
        "MissingPackageError",
        "ModelFileError",
        "OutputError",
        "PairError",
        "Prediction",
        "Predictor",
        "Reporter",
        "Scores",
        "SettingError",
        "TrainingError",
        "UNet",
        "UbendError",
        "__version__",
        "compare",
        "cutout",
        "data",
        "draw_sample",
        "evaluate",
        "export",
        "fit",
        "load",
        "objects",
        "predict",
        "read_folder",
        "read_image",
        "read_scan",
        "report",
        "resume",
    ]
    assert dir(ubend) == ubend.__all__
    for name in ubend.__all__:
        assert getattr(ubend, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        ubend.train  # noqa: B018


@pytest.mark.parametrize(
    "program",
    [
        "import ubend",
        "from ubend.cli.app import main; main(['--help'], standalone_mode=False)",
        "from ubend.cli.app import main; main(['fit', '--help'], standalone_mode=False)",
        "from ubend.cli.app import main; main(['--version'], standalone_mode=False)",
        "from ubend.cli.app import main; main(['lesson', 'kinds', '--help'], standalone_mode=False)",
        "from ubend.cli.app import main; main(['baseline', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported(program: str) -> None:
    check = "; import sys; print('heavy', sorted({'torch', 'numpy', 'scipy', 'matplotlib', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program + check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy []"


def _public(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if tree.body:
        assert ast.get_docstring(tree), "the file says nothing of itself"
    assert [node.name for node in _public(tree) if not (ast.get_docstring(node) or _has_help(node))] == []


@pytest.mark.parametrize("path", sorted((SOURCE / "ubend_lessons").rglob("*.py")), ids=lambda path: path.name)
def test_the_lessons_use_what_is_public(path: Path) -> None:
    """No names with an underscore but gettext's."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [
        f"{node.module}.{one.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names
    ]
    imported += [one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names]
    for name in imported:
        if name.startswith("ubend.") and name != "ubend.core.i18n._":
            assert not any(word.startswith("_") for word in name.split(".")), name


def _has_help(node: ast.AST) -> bool:
    """A subcommand whose help, which is translated, says what it does."""
    calls = [one for one in getattr(node, "decorator_list", []) if isinstance(one, ast.Call)]
    return any(word.arg == "help" for call in calls for word in call.keywords)


@pytest.mark.parametrize(
    "path", sorted(SOURCE.glob("ubend*/**/*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix()
)
def test_documented_names_exist(path: Path) -> None:
    """Names under Args and Attributes are arguments and attributes."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not (text := ast.get_docstring(node)):
            continue
        function, attributes = node, set[str]()
        if isinstance(node, ast.ClassDef):
            made = [
                one for one in node.body if isinstance(one, ast.FunctionDef) and one.name in ("__init__", "__new__")
            ]
            function = made[0] if made else None
            attributes = attributes_of(node)
        names = {arg.arg for arg in arguments_of(function)} if isinstance(function, ast.FunctionDef) else attributes
        wrong += [f"{node.name}: {name}" for name in entries_of(text, "Args:") if name not in names]
        wrong += [f"{node.name}: {name}" for name in entries_of(text, "Attributes:") if name not in attributes]
    assert wrong == []


def attributes_of(node: ast.ClassDef) -> set[str]:
    """Names that the body of a class declares, and those that its methods set on `self` or read from it."""
    declared = {
        one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
    declared |= {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    declared |= {
        target.id
        for one in node.body
        if isinstance(one, ast.Assign)
        for target in one.targets
        if isinstance(target, ast.Name)
    }
    used = (one for one in ast.walk(node) if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name))
    return declared | {one.attr for one in used if one.value.id == "self"}  # type: ignore[attr-defined]


def arguments_of(node: ast.FunctionDef) -> list[ast.arg]:
    own = node.args
    return [*own.posonlyargs, *own.args, *own.kwonlyargs, *(arg for arg in (own.vararg, own.kwarg) if arg)]


def entries_of(text: str, head: str) -> list[str]:
    """Names that a docstring's section explains: `name: ...` or `name, other: ...`."""
    found, inside = list[str](), False
    for line in text.splitlines():
        if line == head:
            inside = True
        elif inside and line and not line.startswith("    "):
            break
        elif inside and (entry := re.match(r"    ([a-z_][\w, *]*):(?: |$)", line)):
            found += [name.strip(" *") for name in entry[1].split(",")]
    return found
