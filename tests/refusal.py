"""What tests of bad input share: an error, or a command, that must fail in the one right way. They ask for the class
and the fields of the error; its sentence stands in `golden/messages.txt`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ubend.cli import main
from ubend.errors import UbendError

TINY = ["--size", "32", "--width", "4", "--epochs", "2", "--batch", "8", "--device", "cpu"]


@contextmanager
def raises(kind: type[UbendError], *, path: Path | str | None = None, key: str | None = None) -> Iterator[None]:
    """An error of this very class about this file and this setting; `path` as a text is the name of the file alone.
    None is not looked at."""
    with pytest.raises(kind) as caught:
        yield
    check(caught.value, kind, path=path, key=key)


def check(
    error: UbendError, kind: type[UbendError], *, path: Path | str | None = None, key: str | None = None
) -> None:
    """As `raises`, of an error that is at hand."""
    assert type(error) is kind, repr(error)
    assert path is not None or key is not None, "say what the error is about"
    if path is not None:
        assert error.path is not None, repr(error)
        assert (error.path if isinstance(path, Path) else error.path.name) == path
    if key is not None:
        assert error.key == key


def error_of(result: Result) -> UbendError:
    """The error that a command ended with."""
    error: BaseException | None = result.exception
    assert isinstance(error, SystemExit), repr(error)
    while not isinstance(error, UbendError):
        assert error is not None, f"it did not end with an error of ours: {result.output}"
        error = error.__context__
    return error


def refused(*words: object) -> UbendError:
    """The error that a command ends with; it must be all that is said, and one line for each problem."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    error = error_of(result)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.rstrip("\n").splitlines()
    while lines[0].startswith("WARNING: "):  # of the scores that were made before
        lines.pop(0)
    assert "\n".join(lines) == f"error: {error}"
    assert all(line.strip() and len(line) < 1000 for line in lines)
    return error


def refused_once(*words: object) -> UbendError:
    """The same, with a single line."""
    error = refused(*words)
    assert "\n" not in str(error)
    return error


def contents(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
