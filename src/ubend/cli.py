"""One subcommand = one function call. Nothing heavy is imported before a subcommand runs."""

import time
import traceback
from typing import Any

import click

from ubend import __version__
from ubend.commands import folders, lessons, training, using
from ubend.errors import UbendError
from ubend.language import _, later
from ubend.translated import MainGroup, Option

_FIRST_SPEAKS_S = 1.0  # of several processes that all have to say the same, the first one does, and ends the others


class _Group(MainGroup):
    """Turns our errors into one clear line and exit code 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[training.WORDS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UbendError as error:
            from ubend.training.launch import find_place, leave_at_once

            if not find_place().is_first:
                time.sleep(_FIRST_SPEAKS_S)
            click.echo(_("error: {message}").format(message=error), err=True)
            leave_at_once(2)
            ctx.exit(2)
        except KeyboardInterrupt:
            from ubend.training.launch import leave_at_once

            click.echo(_("interrupted"), err=True)
            leave_at_once(130)
            ctx.exit(130)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):  # click's own business
            raise
        except Exception:
            from ubend.training.launch import find_place, leave_at_once

            if find_place().count > 1:
                traceback.print_exc()
                leave_at_once(1)
            raise


@click.group(
    cls=_Group,
    help=later("A folder of pictures and masks in; a trained, honestly scored U-Net out."),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="ubend", cls=Option, help=later("Show the version and exit."))
def main() -> None:
    """A folder of pictures and masks in; a trained, honestly scored U-Net out."""


for _command in (
    training.fit,
    training.evaluate,
    training.baseline,
    using.predict,
    using.cutout,
    using.objects,
    using.show,
    folders.data,
    folders.samples,
    using.info,
    folders.sample,
    folders.demo,
    lessons.lesson,
    folders.cache,
):
    main.add_command(_command)
