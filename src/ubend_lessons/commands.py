"""The commands of the course: lesson, baseline. Found through the entry points of the group `ubend.commands`.

The list of all commands imports this module for two help lines; the lessons are imported when one is called.
"""

from pathlib import Path
from typing import Any

import click

from ubend.core.click_i18n import Group, command, option
from ubend.core.i18n import later
from ubend.core.terminal import echo
from ubend.tasks.options import PATH, folder_options, make_reporter, options, prepare_command


class _Lessons(Group):
    """The subcommands of `lessons.py`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._import_lessons()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self._import_lessons()
        return super().get_command(ctx, cmd_name)

    def _import_lessons(self) -> None:
        from ubend_lessons.lessons import LESSONS

        for one in LESSONS:
            self.add_command(one)


@click.group(cls=_Lessons, help=later("Lessons of a course on U-Nets, to run, look at and change."))
def lesson() -> None:
    """Lessons."""


@lesson.result_callback()
@click.pass_context
def _explain(ctx: click.Context, _result: None) -> None:
    from ubend_lessons.explain import explain

    for line in explain(str(ctx.invoked_subcommand)):
        click.echo(line)


@command(help=later("Score a traditional METHOD on FOLDER in the same way as a model; without METHOD, list them."))
@click.argument("method", required=False)
@click.argument("folder", type=PATH, required=False)
@folder_options()
@option("--size", type=int, help=later("Size in pixels at which the method works  [the images' own, at most 256]"))
@options("subset")
@option("--seed", type=int, help=later("Random seed of the split  [0]"))
@option("--out", type=PATH, help=later("Folder for masks, overlays and scores.json."))
def baseline(method: str | None, folder: Path | None, **flags: Any) -> None:
    if method is None:
        from ubend_lessons.baselines.methods import METHODS, describe_method

        for name in METHODS:
            echo(f"{name:<14}{describe_method(name)}")
        return
    prepare_command(False)
    from ubend.evaluation.score_tables import score_lines
    from ubend_lessons.baselines.run import run_baseline

    with make_reporter() as reporter:
        result = run_baseline(method, folder, reporter=reporter, **flags)
        for line in score_lines(result.scores):
            echo(line)
