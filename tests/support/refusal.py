"""What tests of bad input share: a command that must fail in the one right way."""

from pathlib import Path

from click.testing import CliRunner

from ubend.cli import main

TINY = ["--size", "32", "--width", "4", "--epochs", "2", "--batch", "8", "--device", "cpu"]


def refused(*words: object) -> list[str]:
    """The lines of the problem that a command ends with, after `error: `."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.rstrip("\n").splitlines()
    while lines[0].startswith("WARNING: "):  # of the scores that were made before
        lines.pop(0)
    assert lines[0].startswith("error: ")
    assert all(line.strip() and len(line) < 1000 for line in lines)
    return [lines[0].removeprefix("error: "), *lines[1:]]


def refused_once(*words: object) -> str:
    """The one line."""
    (line,) = refused(*words)
    return line


def contents(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
