"""What tests of bad input share: an error, or a command, that must fail in the one right way. They ask for the class
and the fields of the error; its sentence stands in `golden/messages.txt`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import pytest
from click.testing import CliRunner, Result

from ubend.cli.app import main
from ubend.core.click_i18n import MainGroup
from ubend.core.errors import FilesError, UbendError

TINY = ["--size", "32", "--width", "4", "--epochs", "2", "--batch", "8", "--device", "cpu"]


@contextmanager
def raises(
    kind: type[UbendError], *, path: Path | str | None = None, key: str | None = None, named: Sequence[str] = ()
) -> Iterator[pytest.ExceptionInfo[UbendError]]:
    """An error of this very class.

    Args:
        path: the file or folder that it is about; as a text, its name alone. None: not looked at.
        key: the setting or column that it is about. None: not looked at.
        named: what its sentence must hold, however it is worded: numbers, names, what to type.
    """
    with pytest.raises(kind) as caught:
        yield caught
    check(caught.value, kind, path=path, key=key, named=named)


def check(
    error: UbendError,
    kind: type[UbendError],
    *,
    path: Path | str | None = None,
    key: str | None = None,
    named: Sequence[str] = (),
) -> None:
    """As `raises`, of an error that is available."""
    assert type(error) is kind, repr(error)
    assert path is not None or key is not None or named, "say what the error is about"
    if path is not None:
        assert error.path is not None, repr(error)
        assert (error.path if isinstance(path, Path) else error.path.name) == path
    if key is not None:
        assert error.key == key
    for word in named:
        assert word in str(error)


def invoke(*words: object, **options: Any) -> tuple[Result, UbendError | None]:
    """A command's result, and the error of ours that it ended with."""
    errors: list[UbendError] = []
    real = MainGroup.invoke

    def keep(group: MainGroup, context: click.Context) -> Any:
        try:
            return real(group, context)
        except UbendError as error:
            errors.append(error)
            raise

    with patch.object(MainGroup, "invoke", keep):
        result = CliRunner().invoke(main, [str(word) for word in words], **options)
    return result, errors[0] if errors else None


def refused(*words: object, **options: Any) -> UbendError:
    """The error that a command ends with; it must be all that is reported, and one line for each problem."""
    result, error = invoke(*words, **options)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert error is not None, result.output
    assert result.exit_code == (3 if isinstance(error, FilesError) else 2), result.output
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
