"""Commands that must succeed, or parse."""

import click
from click.testing import CliRunner, Result

from ubend.cli.app import main


def succeed(command: str, *words: object, **given: object) -> Result:
    result = CliRunner().invoke(main, [command, *map(str, words), "--device", "cpu"], **given)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result


def predict(*words: object, **given: object) -> Result:
    return succeed("predict", *words, **given)


def parse(words: list[str]) -> None:
    """As the command line would, up to where the command would be run."""
    command: click.Command = main
    context = None
    while isinstance(command, click.Group):
        if not words:
            return  # a group alone lists its commands
        name, words = words[0], words[1:]
        context = click.Context(command, parent=context, info_name=name)
        found = command.get_command(context, name)
        assert found is not None, f"no command {name}"
        command = found
    command.make_context(command.name, words, parent=context)
