"""The lesson on training: an animation of a run's panels and curves, epoch by epoch."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from ubend.core.errors import DataError, reason
from ubend.core.files import write_file
from ubend.core.i18n import _
from ubend.drawing.panels import show_image
from ubend.labels.class_table import class_colors
from ubend.portable.decode import without_warnings
from ubend.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_FRAMES = 60  # of more epochs, an evenly spaced selection with the first and the last
_HEIGHT_PX, _CURVES_PX, _DPI = 640, 520, 100
_LAST_TIMES = 8  # the last frame is shown this many times as long as the others
_Row = Mapping[str, Any]


def teach_training(run: Path | str, *, out: Path | str, seconds: float = 0.35, show: bool = False) -> list[str]:
    """Write `training.gif`: input, prediction and truth after each epoch, with losses and Dice up to this epoch.

    Args:
        run: a run folder with its panels, finished or not.
        seconds: duration of a frame.
    Returns:
        Lines with the first and last validation scores; then the file.
    Raises:
        DataError: the folder is not a run, or its panels or metrics are missing or damaged.
        OutputError: the animation cannot be written.
    """
    folder = RunFolder(Path(run))
    history = read_history(folder)
    shown = pick_epochs([row["epoch"] for row in history if folder.panel(row["epoch"]).is_file()])
    if not shown:
        raise DataError(
            _("{path} contains no panels of epochs; `ubend fit` writes them").format(path=folder.panel(0).parent),
            path=folder.panel(0).parent,
        )
    frames = draw_frames(folder, history, shown)
    target = Path(out) / "training.gif"
    _save_animation(frames, target, seconds)
    if show:
        show_image(target)
    lines = [_describe_epoch(row) for row in history if row["epoch"] in (shown[0], shown[-1]) or row.get("best")]
    count = _("{frames} of {epochs} epochs are shown").format(frames=len(frames), epochs=len(history))
    return [*_first_and_last(lines), count, str(target)]


def read_history(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of a run's metrics.

    Raises:
        DataError: there are none, or they are damaged.
    """
    try:
        rows = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
        if not rows or not all(isinstance(row["epoch"], int) and isinstance(row["val_dice"], dict) for row in rows):
            raise ValueError(_("it contains no epochs"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            _("{path}: not a run folder ({name}: {reason}); give a folder written by `ubend fit`").format(
                path=folder.path, name=folder.metrics.name, reason=reason(error)
            ),
            path=folder.path,
        ) from error
    return rows


def pick_epochs(epochs: Sequence[int]) -> list[int]:
    """At most `MAX_FRAMES` of the epochs, evenly spaced."""
    if not epochs:
        return []
    places = np.unique(np.linspace(0, len(epochs) - 1, MAX_FRAMES).round().astype(int))
    return [epochs[place] for place in places]


def draw_frames(folder: RunFolder, history: Sequence[_Row], shown: Sequence[int]) -> list[Image.Image]:
    """A frame for each of these epochs, all of one size.

    Raises:
        DataError: a panel cannot be read.
    """
    panels = [_read_panel(folder.panel(epoch)) for epoch in shown]
    width = max(panel.width for panel in panels)
    frames = []
    for panel, curves in zip(panels, _draw_curves(history, shown), strict=True):
        frame = Image.new("RGB", (width + _CURVES_PX, _HEIGHT_PX), "white")
        frame.paste(panel, (0, 0))
        frame.paste(curves, (width, 0))
        frames.append(frame)
    return frames


def _read_panel(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            panel = file.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a damaged PNG
        raise DataError(
            _("{path}: cannot be read ({reason})").format(path=path, reason=reason(error)), path=path
        ) from error
    return panel.resize((max(1, round(panel.width * _HEIGHT_PX / panel.height)), _HEIGHT_PX), Image.Resampling.LANCZOS)


def _draw_curves(history: Sequence[_Row], shown: Sequence[int]) -> list[Image.Image]:
    """Draw the curves up to each epoch, losses above, Dice below, with the axes of the whole training, which stay."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_CURVES_PX / _DPI, _HEIGHT_PX / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1)
    epochs = [row["epoch"] for row in history]
    names = list(history[-1]["val_dice"])
    colors = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in class_colors(names)]
    curves = []
    plots: list[tuple[Axes, str, list[tuple[str, str, list[float]]]]] = [
        (
            above,
            _("loss"),
            [
                (_("training"), "#0072b2", [_figure(row.get("train_loss")) for row in history]),
                (_("validation"), "#d55e00", [_figure(row.get("val_loss")) for row in history]),
            ],
        ),
        (
            below,
            _("Dice of the validation split"),
            [
                (name, color, [_figure(row["val_dice"].get(name)) for row in history])
                for name, color in zip(names, colors, strict=True)
            ],
        ),
    ]
    for axis, title, lines in plots:
        axis.set_title(title, fontsize=11)
        axis.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        for _name, color, values in lines:
            (line,) = axis.plot([], [], color=color, linewidth=1.8, marker="o", markersize=3)
            curves.append((line, values))
        known = [value for _name, _color, values in lines for value in values if not math.isnan(value)]
        low, high = (min(known), max(known)) if axis is above and known else (0.0, 1.0)
        margin = 0.05 * (high - low) or 0.05
        axis.set_ylim(low - margin, high + margin)
        axis.grid(True, color="#e6e6e6")
        _name_lines(axis, [name for name, _color, _values in lines], "upper right" if axis is above else "lower right")
    below.set_xlabel(_("epoch"))
    figure.subplots_adjust(0.13, 0.09, 0.96, 0.94, hspace=0.3)
    images = []
    for epoch in shown:
        end = epochs.index(epoch) + 1
        for line, values in curves:
            line.set_data(epochs[:end], values[:end])
        with without_warnings():  # about letters that DejaVu lacks
            canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        images.append(Image.fromarray(pixels[:, :, :3].copy()))
    return images


def _name_lines(axis: "Axes", names: Sequence[str], place: Literal["upper right", "lower right"]) -> None:
    # placeholders first: matplotlib would drop a name like "_x" and read "$x$" as a formula
    legend = axis.legend(axis.get_lines(), ["x"] * len(names), fontsize=8, loc=place, frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _figure(value: Any) -> float:
    """The value as a float; NaN, a gap in the curve, if it is not a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _describe_epoch(row: _Row) -> str:
    dice = ", ".join(f"{name} {_figure(value):.3f}" for name, value in row["val_dice"].items())
    return _("epoch {epoch}: validation loss {loss:.3f}, Dice {dice}").format(
        epoch=row["epoch"], loss=_figure(row.get("val_loss")), dice=dice
    )


def _first_and_last(lines: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([lines[0], lines[-1]]))


def _save_animation(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    colors = frames[-1].quantize(256)  # one palette for all frames: the last frame contains every line
    pages = [frame.quantize(palette=colors, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * seconds)] * (len(pages) - 1) + [round(1000 * seconds * _LAST_TIMES)]

    def write(place: Path) -> None:
        pages[0].save(
            place, format="GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0, disposal=1
        )

    write_file(path, write)
