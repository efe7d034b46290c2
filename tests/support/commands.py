"""Commands that must succeed."""

from click.testing import CliRunner, Result

from ubend.cli.app import main


def succeed(command: str, *words: object, **given: object) -> Result:
    result = CliRunner().invoke(main, [command, *map(str, words), "--device", "cpu"], **given)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result


def predict(*words: object, **given: object) -> Result:
    return succeed("predict", *words, **given)
