"""What others may rely on: the public names, quick imports, docstrings, sentences that can be translated."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ubend

SOURCE = Path(__file__).parent.parent / "src" / "ubend"
FILES = sorted(SOURCE.rglob("*.py"))

# Our errors, and how many of their arguments, from the first on, are sentences.
ERRORS = ("UbendError", "DataError", "PairError", "SettingError", "OutputError", "ModelFileError", "TrainingError")


def test_the_public_names() -> None:
    assert ubend.__all__ == [
        "FitResult",
        "IGNORED",
        "LabelMap",
        "Prediction",
        "Predictor",
        "UNet",
        "UbendError",
        "__version__",
        "draw_sample",
        "evaluate",
        "fit",
        "load",
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
        "from ubend.cli import main; main(['--help'], standalone_mode=False)",
        "from ubend.cli import main; main(['fit', '--help'], standalone_mode=False)",
        "from ubend.cli import main; main(['--version'], standalone_mode=False)",
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


def _has_help(node: ast.AST) -> bool:
    """A subcommand whose help, which is translated, says what it does."""
    calls = [one for one in getattr(node, "decorator_list", []) if isinstance(one, ast.Call)]
    return any(word.arg == "help" for call in calls for word in call.keywords)


def untranslated(tree: ast.AST) -> list[int]:
    """Lines in which one of our errors is made from a bare sentence, or `_` is given what no catalogue can hold."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in ERRORS and any(map(_is_bare, node.args[:1])):
            found.append(node.lineno)
        if name in ("_", "plural"):
            sentences = node.args[:1] if name == "_" else node.args[:2]
            if not all(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in sentences):
                found.append(node.lineno)
    return found


def _is_bare(value: ast.expr) -> bool:
    """Is it a sentence in the code that does not go through `_`?"""
    match value:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.BinOp():
            return _is_bare(value.left) or _is_bare(value.right)
        case ast.List() | ast.Tuple():
            return any(map(_is_bare, value.elts))
        case ast.ListComp() | ast.GeneratorExp():
            return _is_bare(value.elt)
        case ast.Call(func=ast.Attribute(value=inner, attr="format")):
            return _is_bare(inner)
        case ast.IfExp():
            return _is_bare(value.body) or _is_bare(value.orelse)
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_sentences_can_be_translated(path: Path) -> None:
    assert untranslated(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "raise DataError('no pictures')",
        "raise DataError(f'no pictures in {x}')",
        "raise DataError('no pictures in {x}'.format(x=x))",
        "raise errors.OutputError(['one', _('two')])",
        "raise SettingError('a' + _('b'))",
        "x = _(f'{count} pictures')",
        "x = _('a {b}'.format(b=1))",
    ],
)
def test_a_bare_sentence_is_found(line: str) -> None:
    assert untranslated(ast.parse(line)) == [1]


def test_a_translated_sentence_is_fine() -> None:
    assert untranslated(ast.parse("raise DataError(_('no {x}').format(x=x)); raise DataError(problems)")) == []
