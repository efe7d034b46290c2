"""click commands and options whose help is translated when it is shown, after `--lang` is read."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import click

from ubend.core.errors import reason
from ubend.core.i18n import LANGUAGES, _, choose_language, later, now
from ubend.core.terminal import echo, printable

_F = TypeVar("_F", bound=Callable[..., Any])
_STATED_DEFAULT = re.compile(r"(.+)  \[([^][]+)\]", re.DOTALL)  # a sentence, and the default that ends it
_NEVER_CUT = 10_000  # characters
NUMBER_TYPES = ("integer", "integer range", "float", "float range")  # type names that click does not translate


class _Translated:
    """A descriptor: `help` stores the English sentence and returns it in the chosen language."""

    _help: str | None = None

    @property
    def help(self) -> str | None:
        return now(self._help) if self._help else self._help

    @help.setter
    def help(self, sentence: str | None) -> None:
        self._help = sentence


class Option(_Translated, click.Option):
    """An option; its help is marked by `later`.

    A default that click does not know ends the help, after two spaces: `Random seed  [0]`.
    """

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """click's record; a default that the help states looks like one that click states."""
        record = super().get_help_record(ctx)
        stated = _STATED_DEFAULT.fullmatch(self.help or "")
        if record is None or stated is None:
            return record
        sentence, default = stated.groups()
        extra = record[1].removeprefix(self.help or "").strip(" []")  # the range of a number, for example
        notes = "; ".join(filter(None, (_("default: {default}").format(default=default), extra)))
        return record[0], f"{sentence.removesuffix('.')}.  [{notes}]"


class Command(_Translated, click.Command):
    """A subcommand; its help is marked by `later`."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The `--help` option; click's own is created once, in the language of that moment."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = _("Show this message and exit.")
        return option

    def get_short_help_str(self, limit: int = 45) -> str:
        """The whole sentence: the list of commands wraps it, where click would cut it."""
        return super().get_short_help_str(_NEVER_CUT)


class Group(Command, click.Group):
    """A group of these commands, listed in the order in which they were added."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class MainGroup(Group):
    """The top-level group, which accepts `--lang` anywhere on the command line."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        says = later("Language of messages and help, English or Vietnamese (tiếng Việt)  [UBEND_LANG, else en]")
        self.params.append(Option(["--lang"], metavar="[en|vi]", expose_value=False, help=says))  # for the help

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; characters that the terminal cannot encode are escaped instead of raising an error."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if not _is_broken(sys.stdout):
                raise
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest, written at exit
            cause = _("cannot write to standard output: {reason}").format(reason=reason(error))
            echo(_("error: {message}").format(message=cause), err=True)
            sys.exit(2)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            with _shown_plainly():
                return super().make_context(*args, **extra)
        except click.UsageError as error:
            raise shorten(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        with _shown_plainly():
            return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        formatter.write_paragraph()
        formatter.write_text(
            _(
                "Exit codes: 0 success; 1 internal error; 2 nothing was done, the error says why (with doctor "
                "--strict: the data have errors); 3 some files failed, all others were written; 130 interrupted (143 "
                "by SIGTERM)."
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read and remove `--lang` before anything else is parsed or printed.

        Raises:
            click.UsageError: the language is unknown.
        """
        rest, language = _take_language(args)
        choose_language(language if language in LANGUAGES else "en")
        if language not in LANGUAGES:
            known = ", ".join(LANGUAGES)
            raise click.UsageError(
                _("unknown language '{language}'; --lang and UBEND_LANG accept: {known}").format(
                    language=language, known=known
                )
            )
        return super().parse_args(ctx, rest)


class OneLineError(click.UsageError):
    """An error in the command line as one line, like all errors, where click prints the usage above it."""

    def show(self, file: IO[Any] | None = None) -> None:
        if self.ctx is None:
            echo(_("error: {message}").format(message=self.message), err=True)
        else:
            line = _("error: {message}; see {command} --help")
            echo(line.format(message=self.message.rstrip("."), command=self.ctx.command_path), err=True)


def shorten(error: click.UsageError) -> click.UsageError:
    """The error as one line; a command that was given nothing still answers with its help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    return OneLineError(" ".join(error.format_message().split()), error.ctx)


@contextmanager
def _shown_plainly() -> Iterator[None]:
    """A context that escapes control characters in click's errors, which quote the command line.

    Also translates number types in them, which click leaves in English.
    """
    try:
        yield
    except click.ClickException as error:
        kind = error.param.type.name if isinstance(error, click.BadParameter) and error.param is not None else ""
        before, kind_found, after = error.message.rpartition(kind) if kind in NUMBER_TYPES else ("", "", error.message)
        error.message = f"{before}{now(kind_found) if kind_found else ''}{after}"  # type: ignore[misc]
        error.message = printable(error.message)  # type: ignore[misc]
        raise


def _is_broken(stream: Any) -> bool:
    """Whether a stream cannot be written, for example a file on a full disk; tries a line feed."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


class Choice(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2
    """One of a few words; the error says which, translated.

    Args:
        choices: the words.
        note: added to the error; marked by `later`.
    """

    def __init__(self, choices: Sequence[str], note: str | None = None) -> None:
        super().__init__(choices)
        self._note = note

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.choices:
            return value
        line = _("'{value}' is unknown; use {choices}")
        line = line.format(value=value, choices=_enumerate(self.choices))
        return self.fail(line if self._note is None else f"{line}; {now(self._note)}", param, ctx)


def _enumerate(choices: Sequence[str]) -> str:
    """`train, val or test`."""
    if len(choices) < 2:
        return "".join(choices)
    return _("{choices} or {last}").format(choices=", ".join(choices[:-1]), last=choices[-1])


def option(*param_decls: str, **attributes: Any) -> Callable[[_F], _F]:
    """`click.option` with help that is translated when it is shown."""
    return click.option(*param_decls, cls=Option, **attributes)


def command(*, help: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A subcommand named after its function; `help` is translated when it is shown."""
    return click.command(cls=Command, help=help)


def _take_language(args: list[str]) -> tuple[list[str], str]:
    """(command line without `--lang`, language), for `fit cells --lang vi` or `--lang=vi fit cells`.

    Arguments after `--` are not changed. A final `--lang` without a value gives the language "", which does not exist.
    """
    language = os.environ.get("UBEND_LANG") or "en"
    end = args.index("--") if "--" in args else len(args)
    rest: list[str] = []
    arguments = iter(args[:end])
    for argument in arguments:
        if argument.startswith("--lang="):
            language = argument.removeprefix("--lang=")
        elif argument == "--lang":
            language = next(arguments, "")
        else:
            rest.append(argument)
    return [*rest, *args[end:]], language
