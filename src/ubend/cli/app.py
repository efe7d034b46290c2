"""The command line: each subcommand is one function call. Heavy imports happen only when a subcommand runs."""

import errno
import os
import time
import traceback
import warnings
from typing import Any

import click

from ubend.cli import folders, models, training
from ubend.cli import objects as object_commands
from ubend.cli.extensions import find_extensions, load_extension
from ubend.cli.prediction import predict
from ubend.core.click_i18n import MainGroup, Option, shorten
from ubend.core.errors import FilesError, SettingError, UbendError, reason
from ubend.core.i18n import _, later
from ubend.core.terminal import echo
from ubend.portable.version import __version__

_SOME_FAILED = 3  # exit code; the others: 0 success, 1 internal error, 2 refused, 130 interrupted
# System errors caused by the user's file names and permissions, in any call.
_OF_NAMES = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)
_RENAMED = {"samples": "preview"}
_SYNONYMS = {"train": "fit", "eval": "evaluate", "test": "evaluate", "infer": "predict", "segment": "predict"}
_FIRST_SPEAKS_S = 1.0  # if several processes fail alike, the first one reports and ends the others


class _Group(MainGroup):
    """Built-in commands and those of installed packages. Turns errors into one line and an exit code.

    Installed packages are searched only for the list of commands and for names that are not built in.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        built_in = super().list_commands(ctx)
        return [*built_in, *(name for name in sorted(find_extensions()) if name not in built_in)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and (extension := find_extensions().get(cmd_name)):
            return load_extension(extension)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names.

        Raises:
            SettingError: the command was renamed.
            click.UsageError: there is no such command; the error suggests the nearest one.
        """
        name = args[0]
        if name in _RENAMED:
            new = _RENAMED[name]
            raise SettingError(_("'ubend {old}' is now 'ubend {new}'").format(old=name, new=new), key=name)
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            if near := self._nearest_command(ctx, name):
                line = _("no command '{name}'; did you mean '{near}'?").format(name=name, near=near)
                raise click.UsageError(line, ctx) from None
            raise

    def _nearest_command(self, ctx: click.Context, name: str) -> str | None:
        import difflib

        names = {known: known for known in self.list_commands(ctx)} | _SYNONYMS
        similar = difflib.get_close_matches(name.lower(), names, 1)
        return names[similar[0]] if similar else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[training.ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UbendError as error:
            from ubend.training.launcher import exit_at_once, process_rank

            if not process_rank().is_first:
                time.sleep(_FIRST_SPEAKS_S)
            echo(_("error: {message}").format(message=error), err=True)
            code = _SOME_FAILED if isinstance(error, FilesError) else 2
            exit_at_once(code)
            ctx.exit(code)
        except click.NoSuchOption as error:
            raise shorten(_name_setting(error)) from None
        except click.UsageError as error:
            raise shorten(error) from None
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):  # handled by click
            raise
        except OSError as error:
            if error.errno not in _OF_NAMES or error.filename is None:
                raise
            path = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename)
            line = _("{path}: {reason}").format(path=path.replace("\n", "\\n"), reason=reason(error))
            echo(_("error: {message}").format(message=line), err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            from ubend.training.launcher import exit_at_once

            echo(_("interrupted"), err=True)
            exit_at_once(130)
            ctx.exit(130)
        except Exception:
            from ubend.training.launcher import exit_at_once, process_rank

            if process_rank().count > 1:
                traceback.print_exc()
                exit_at_once(1)
            raise


def _name_setting(error: click.NoSuchOption) -> click.UsageError:
    """The error for an unknown flag of `fit`; one that is called like a setting is explained."""
    from ubend.core.settings import find_setting

    key = find_setting(error.option_name.lstrip("-").replace("-", "_"))
    if key is None or error.ctx is None or error.ctx.info_name != "fit":
        return error
    line = _("no flag {flag}; it is a setting: --set {key}=VALUE").format(flag=error.option_name, key=key)
    return click.UsageError(line, error.ctx)


@click.group(
    cls=_Group,
    help=later("Train a U-Net on a folder of images and masks, score it on a test split, and use it."),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="ubend", cls=Option, help=later("Show the version and exit."))
def main() -> None:
    """Train a U-Net on a folder of images and masks, score it on a test split, and use it."""
    warnings.formatwarning = _format_warning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning for users as one line, without the place in the code."""
    if category is UserWarning:
        return _("note: {text}").format(text=message) + "\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


for _command in (
    training.fit,
    training.evaluate,
    predict,
    object_commands.cutout,
    object_commands.objects,
    models.export,
    models.show,
    folders.data,
    folders.doctor,
    folders.preview,
    models.info,
    models.runs,
    models.compare,
    models.report,
    folders.sample,
    folders.demo,
    folders.cache,
):
    main.add_command(_command)
