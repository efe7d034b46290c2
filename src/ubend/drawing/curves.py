"""Draws training curves: loss, Dice of each class, learning rate."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ubend.core.files import write_file
from ubend.core.i18n import _
from ubend.drawing.encoding import write_svg
from ubend.labels.class_table import class_colors
from ubend.portable.decode import without_warnings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG_RATIO = 20.0  # ratio of largest to smallest value from which the axis is logarithmic
_SHARE = 20  # the pause between two drawings is this many times the duration of a drawing
_MARKED_EPOCHS = 20  # up to this number, each epoch has a dot: without it, a single epoch would be invisible
_BEST_COLOR = "#666666"
_LINE_IN, _ENTRY_IN, _LETTER_IN = 0.17, 0.45, 0.062  # inches, of the legend: a line, an entry without name, a letter
_LETTERS = 40  # of a name in the legend, at most


class _Plot(NamedTuple):
    """One plot: (name, values, colour) of each line; dotted ones have no entry of their own in the legend."""

    title: str
    lines: list[tuple[str, list[float], str]]
    dotted: list[tuple[str, list[float], str]]


def draw_curves(history: Sequence[Mapping[str, Any]], class_names: Sequence[str], path: Path) -> None:
    """Write a PNG with small plots side by side: loss, Dice of each class, learning rate.

    Curves without any number are left out, and so are plots without curves, except the loss. None, NaN and infinity are
    gaps. The last row with `"best": True` is marked in every plot.

    Args:
        history: one row per epoch: `epoch` (else counted from 1), `train_loss`, `val_loss`, `val_dice`
            (class name -> 0..1 or None), `batch_statistics_dice` (the same for the first epochs; dotted), `lr`, `best`;
            each may be missing.
        class_names: the classes to draw, in the order of the class table.
        path: the PNG; written atomically.
    Raises:
        ValueError: the history is empty.
        OutputError: the file cannot be written.
    """
    figure = _draw_plots(history, _find_plots(history, class_names))
    with without_warnings():  # class names in scripts that DejaVu lacks are drawn as boxes
        write_file(path, lambda temporary: figure.savefig(temporary, format="png"))


def draw_curve_svgs(history: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> dict[str, str]:
    """Title -> SVG of each plot of `draw_curves`, for a page."""
    return {
        plot.title: write_svg(_draw_plots(history, [plot._replace(title="")]))
        for plot in _find_plots(history, class_names)
    }


def _find_plots(history: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> list[_Plot]:
    if not history:
        raise ValueError("curves need at least one epoch")
    losses = [
        (_("training"), _numbers(row.get("train_loss") for row in history), "#0072b2"),
        (_("validation"), _numbers(row.get("val_loss") for row in history), "#d55e00"),
    ]
    dices, warming_up = (
        [
            (name, _numbers((row.get(key) or {}).get(name) for row in history), f"#{r:02x}{g:02x}{b:02x}")
            for name, (r, g, b) in zip(class_names, class_colors(class_names), strict=True)
        ]
        for key in ("val_dice", "batch_statistics_dice")
    )
    rates = [("", _numbers(row.get("lr") for row in history), "#009e73")]
    loss = _Plot(_("loss"), losses, [])
    others = [_Plot(_("Dice of the validation split"), dices, warming_up), _Plot(_("learning rate"), rates, [])]
    return [loss, *(plot for plot in others if any(_known(values) for _name, values, _color in plot.lines))]


def _draw_plots(history: Sequence[Mapping[str, Any]], plots: Sequence[_Plot]) -> "Figure":
    """The plots side by side."""
    # without pyplot: no global state, no window system, safe in a thread
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [float(row.get("epoch", index)) for index, row in enumerate(history, start=1)]
    best = next((epoch for epoch, row in zip(epochs[::-1], history[::-1], strict=True) if row.get("best")), None)
    width, height = 4.2 * len(plots), 3.2  # inches, as the edges below
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)  # becomes the canvas of the figure
    # margins that fit the longest numbers; matplotlib's automatic layout would draw everything twice
    left, right, between, top, bottom = 0.75, 0.1, 0.75, 0.3, 0.5
    plot_width = (width - left - right - between * (len(plots) - 1)) / len(plots)
    plot_height, legend_height = height - top - bottom, 0.0
    for axis, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
        for name, values, color in plot.lines:
            if _known(values):
                marker = "o" if len(epochs) <= _MARKED_EPOCHS else ""
                (line,) = axis.plot(epochs, values, color=color, linewidth=1.6, marker=marker, markersize=3.5)
                line.set_gid(name)
        if plot.dotted:
            axis.set_ylim(-0.02, 1.02)
            for index, (_name, values, color) in enumerate(
                dotted_line for dotted_line in plot.dotted if len(_known(dotted_line[1])) > 1
            ):
                (dotted,) = axis.plot(epochs, values, color=color, linewidth=1.2, linestyle=":", marker="")
                dotted.set_gid("" if index else _("with batch statistics"))
        else:
            _set_scale(axis, [value for _name, values, _color in plot.lines for value in _known(values)])
        axis.set_title(plot.title, fontsize=10)
        _finish(axis, epochs, best)
        legend_height = max(legend_height, _add_legend(axis, best, plot_width, -bottom / plot_height))
    height += legend_height
    figure.set_size_inches(width, height)
    bottom = (bottom + legend_height) / height
    figure.subplots_adjust(left / width, bottom, 1 - right / width, 1 - top / height, between / plot_width)
    return figure


class LiveCurves:
    """Draws the curves of a running training, as often as this takes at most a 20th of the time.

    Args:
        class_names, path: see `draw_curves`.
    """

    def __init__(self, class_names: Sequence[str], path: Path) -> None:
        self._class_names, self._path = class_names, path
        self._ended, self._elapsed_s = -math.inf, 0.0

    def draw(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Draw the curves, unless the last drawing was too recent; for arguments and errors see `draw_curves`."""
        started = time.monotonic()
        if started - self._ended >= _SHARE * self._elapsed_s:
            draw_curves(history, self._class_names, self._path)
            self._ended = time.monotonic()
            self._elapsed_s = self._ended - started


def _numbers(values: Iterable[Any]) -> list[float]:
    """The values as floats; None and infinity become NaN, a gap in the curve."""
    return [float(value) if value is not None and math.isfinite(value) else math.nan for value in values]


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _set_scale(axis: "Axes", known: Sequence[float]) -> None:
    """Make the axis logarithmic if the values are positive and far apart; label ticks with plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    if known and min(known) > 0 and max(known) / min(known) >= _LOG_RATIO:
        axis.set_yscale("log")
        few_decades = max(known) / min(known) < 1e3
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _position: f"{value:.4g}")


def _finish(axis: "Axes", epochs: Sequence[float], best: float | None) -> None:
    """Add the epoch axis, the grid and the best epoch."""
    from matplotlib.ticker import MaxNLocator

    first, last = min(epochs), max(epochs)
    margin = max(0.5, 0.03 * (last - first))
    axis.set_xlim(first - margin, last + margin)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_xlabel(_("epoch"), fontsize=9)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if best is not None:
        axis.axvline(best, color=_BEST_COLOR, linestyle="--", linewidth=1, zorder=1)


def _add_legend(axis: "Axes", best: float | None, width: float, y: float) -> float:
    """Add a legend below the plot, where it lies over no curve, and return its height in inches.

    Args:
        width: of the plot, inches.
        y: upper edge of the legend, in heights of the plot above its lower edge.
    """
    lines = {str(line.get_gid()): line for line in axis.get_lines() if line.get_gid()}
    if not lines:
        return 0.0
    if best is not None:
        lines[_("best: epoch {epoch}").format(epoch=round(best))] = axis.get_lines()[-1]
    names = [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in lines]
    columns = int(width / (_ENTRY_IN + _LETTER_IN * max(map(len, names))))
    columns = min(len(lines), max(1, columns))
    # placeholders first: matplotlib would drop a name like "_x" and read "$x$" as a formula
    legend = axis.legend(
        [*lines.values()],
        ["x"] * len(lines),
        loc="upper left",
        bbox_to_anchor=(0, y),
        borderaxespad=0,
        borderpad=0,
        handlelength=1.6,
        columnspacing=1.2,
        fontsize=8,
        frameon=False,
        ncols=columns,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return _LINE_IN * math.ceil(len(lines) / columns) + 0.1
