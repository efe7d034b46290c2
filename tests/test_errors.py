"""Errors and what they say of themselves: the class, `path`, `key`."""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

from support.sentences import ERRORS
from ubend.core.errors import DataError, PairError, Problem, SettingError, UbendError

SOURCE = Path(__file__).parents[1] / "src"

# Functions that hand on problems which have fields of their own.
HAND_ON = {
    "_build",
    "_run_locked",
    "scan_masks_uncached",
    "draw_pairs",
    "evaluate_pairs",
    "find_truth",
    "hash_pairs",
    "match_folder",
    "read_headers",
    "read_usable",
}


def test_every_error_says_what_it_is_about() -> None:
    silent = {
        function or path.name: path
        for path in sorted(SOURCE.rglob("*.py"))
        for function, call in _errors_made(ast.parse(path.read_text(encoding="utf-8")))
        if not _says_what_it_is_about(call)
    }
    assert silent.keys() == HAND_ON, silent


def test_the_silent_ones_are_found() -> None:
    tree = ast.parse(
        "def a():\n raise DataError('x')\n"
        "def b():\n return SettingError(_('x'), key='k')\n"
        "def c():\n raise PairError({1: [size_problem(pair)]})\n"
        "raise ValueError('x')\n"
    )
    assert [(name, _says_what_it_is_about(call)) for name, call in _errors_made(tree)] == [
        ("a", False),
        ("b", True),
        ("c", True),
    ]


def _errors_made(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """(function, call) of every error of ours that is made, outermost function."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef) and not function else function
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            yield function, node
        yield from _errors_made(node, inner)


def _says_what_it_is_about(call: ast.Call) -> bool:
    lines = [node.func.id for node in ast.walk(call) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    if any(name == "Problem" or name.endswith("_problem") for name in lines):
        return True
    return any(word.arg in ("path", "key") for word in call.keywords)


def test_fields() -> None:
    error = SettingError("wrong", path="a/b", key="data.size")
    assert (str(error), error.path, error.key) == ("wrong", Path("a/b"), "data.size")
    assert (UbendError("wrong").path, UbendError("wrong").key) == (None, None)


def test_a_single_problem_gives_its_fields_to_the_error() -> None:
    error = DataError([Problem("wrong", "a.png", "size")])
    assert (str(error), error.path, error.key) == ("wrong", Path("a.png"), "size")
    assert error.problems == ["wrong"]
    again = copy.copy(error.problems[0])
    assert (again, again.path, again.key) == ("wrong", Path("a.png"), "size")


def test_several_problems_share_or_differ() -> None:
    error = DataError([Problem("one", "a.png", "size"), Problem("two", "b.png", "size")])
    assert str(error).splitlines() == ["2 problems:", "  - one", "  - two"]
    assert (error.path, error.key) == (None, "size")
    assert [line.path for line in error.problems] == [Path("a.png"), Path("b.png")]
    plain = DataError(["one", Problem("two", "b.png")], path="folder")
    assert [line.path for line in plain.problems] == [Path("folder"), Path("b.png")]
    assert plain.path == Path("folder")


def test_pairs_keep_the_fields_of_their_problems() -> None:
    line = Problem("one", "a.png", "size")
    error = PairError({"a": [line], "b": [line]})
    assert (error.problems, error.path, error.key) == ([line], Path("a.png"), "size")
    assert error.bad == {"a": ["one"], "b": ["one"]}


def test_problems_that_differ_in_their_file_alone_are_one_line() -> None:
    problems = [Problem(f"masks/{i}.png: has 2", Path(f"masks/{i}.png"), "data.values") for i in range(13)]
    problems.append(Problem("masks/x.png: has 3", Path("masks/x.png"), "data.values"))
    error = DataError(problems)
    heading, first, rest, other = str(error).splitlines()
    assert (heading, first, other) == ("2 problems:", "  - masks/0.png: has 2", "  - masks/x.png: has 3")
    names = ", ".join(f"{i}.png" for i in range(1, 11))
    assert rest.strip() == f"the same in 12 other files: {names}, ..."
    assert error.problems == problems
    assert "other files" not in str(DataError(problems[:3]))
    assert str(DataError(problems[:13])).splitlines() == ["masks/0.png: has 2", rest]
