"""Progress for the user: a live bar on a terminal, plain lines elsewhere."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ubend.core.i18n import _
from ubend.core.terminal import printable_line


class Reporter(AbstractContextManager["Reporter"]):
    """Prints notes, warnings, progress and epochs, like the commands.

    For silence, use `ubend.Reporter(rich.console.Console(quiet=True))`; to redirect the lines, override `report` in a
    subclass. As a context manager it removes the progress bar at the end.

    Args:
        console: where to print; None: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True, highlight=False)
        self._bar: Progress | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def report(self, sentence: str) -> None:
        """Print one line."""
        self.console.print(escape(printable_line(sentence)))

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Start a progress count up to `total`."""
        self.end()
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(escape(printable_line(what)), total=total, completed=done)

    def count(self, done: int, _total: int = 0) -> None:
        """Set the progress to `done` of the total."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)

    def end(self) -> None:
        """End the progress count."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def report_epoch(self, row: Mapping[str, Any], timing: Mapping[str, Any], epochs: int) -> None:
        """Print a line for an epoch: losses, Dice per class, speed, and the time left, if it is known."""
        scores = " ".join(f"{name} {_number(value)}" for name, value in row["val_dice"].items())
        if warming_up := row.get("batch_statistics_dice"):
            values = " ".join(_number(value) for value in warming_up.values())
            scores += _(" (batch statistics: {scores})").format(scores=values)
        line = _("epoch {epoch}/{epochs}  loss {train}  val {val}  Dice {scores}  {rate:.0f} img/s").format(
            epoch=row["epoch"],
            epochs=epochs,
            train=_number(row["train_loss"]),
            val=_number(row["val_loss"]),
            scores=scores,
            rate=timing["images_per_s"],
        )
        if (left := timing["seconds_left"]) is not None:
            line += _("  {left} left").format(left=show_duration(left))
        self.report(line + (_("  best so far") if row["best"] else ""))


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def rough_duration(seconds: float) -> str:
    """An estimated duration, rounded to meaningful digits."""
    if seconds < 90:
        return _("{seconds} s").format(seconds=max(5, 5 * round(seconds / 5)))
    minutes = round(seconds / 60)
    return _("{minutes} min").format(minutes=minutes) if minutes < 60 else show_duration(60 * minutes)


def show_duration(seconds: float) -> str:
    """A measured duration, to the second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return _("{hours} h {minutes:02d} min").format(hours=hours, minutes=minutes)
    if minutes:
        return _("{minutes} min {seconds:02d} s").format(minutes=minutes, seconds=rest)
    return _("{seconds} s").format(seconds=rest)
