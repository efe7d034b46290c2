"""The lesson on the network's architecture: a drawing made by tracing an image through the network.

Boxes are feature maps and arrows are layers, as in the figure of Ronneberger et al. 2015, arXiv:1505.04597.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ubend.core.errors import SettingError
from ubend.core.files import write_file
from ubend.core.i18n import _
from ubend.drawing.panels import show_image
from ubend.models.networks import Network
from ubend.models.unet import UNet
from ubend_lessons.trace import Kind, Step, trace_network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS: dict[Kind, tuple[str, ...]] = {  # colours of arrows; used in turn if a network has several layers of a kind
    "convolution": ("#1f4e9c", "#7a6ad8", "#b04fb0"),
    "pooling": ("#c0282d", "#e0793a"),
    "upsampling": ("#2e8b3d", "#8aa818"),
    "last": ("#0f9aa8",),
}
_SKIP_COLOR, _BOX_COLOR, _EDGE_COLOR, _INK = "#8a8a8a", "#9cc3e6", "#2f5f8f", "#1e1e1e"
# inches of the drawing
_MIN_WIDE, _MORE_WIDE, _MIN_HIGH, _MORE_HIGH = 0.07, 0.45, 0.25, 1.55
_ARROW, _DROP, _MARGIN, _LEGEND_LINE = 0.42, 0.62, 0.45, 0.24
MAX_PX, _MAX_PARAMETERS = 1024, 200_000_000  # the course text's has 39 million


@dataclass(frozen=True)
class Box:
    """A feature map in the drawing, inches; (left, top) with y downwards.

    Attributes:
        step: index of the step that computed it, or of which it is a copy.
        copied: whether it is the copy of a skip connection, which is white.
        channels, size_hw: of the feature map.
    """

    step: int
    copied: bool
    channels: int
    size_hw: tuple[int, int]
    left: float
    top: float
    width: float
    height: float


def teach_architecture(net: Network, size_px: int, *, out: Path | str, show: bool = False) -> list[str]:
    """Draw a network by tracing an image through it: `architecture.png` and `architecture.svg`.

    Args:
        net: a network, trained or not.
        size_px: side of the image.
    Returns:
        A line for each feature map: number, channels x height x width, layers, parameters; then the files.
    Raises:
        SettingError: the image is too small or too large.
        OutputError: an image cannot be written.
    """
    if not 1 <= size_px <= MAX_PX:
        raise SettingError(
            _("--size {size}: give a side from 1 to {maximum} px; the drawing is similar at any size").format(
                size=size_px, maximum=MAX_PX
            ),
            key="--size",
        )
    drawn = torch.rand((1, net.channels, size_px, size_px), generator=torch.Generator().manual_seed(0))
    steps = trace_network(net.eval(), drawn)
    files = [Path(out) / "architecture.png", Path(out) / "architecture.svg"]
    draw_architecture(steps, files)
    if show:
        show_image(files[0])
    return [*_describe_steps(steps), *map(str, files)]


def lay_out(steps: Sequence[Step]) -> list[Box]:
    """A box for each feature map: convolutions lead to the right, pooling down, upsampling up; a copy is to the left of
    the feature map with which it is concatenated."""
    most_channels = max(step.shape[0] for step in steps)
    tallest = max(step.shape[1] for step in steps)

    def wide(channels: int) -> float:
        return _MIN_WIDE + _MORE_WIDE * math.sqrt(channels / most_channels)

    def high(pixels: int) -> float:
        return _MIN_HIGH + _MORE_HIGH * math.sqrt(pixels / tallest)

    rows = [0]
    for step in steps[1:]:
        rows.append(rows[-1] + {"pooling": 1, "upsampling": -1}.get(step.kind, 0))
    first_row = min(rows)
    rooms = [
        max((high(s.shape[1]) for s, own in zip(steps, rows, strict=True) if own == row), default=0.0)
        for row in range(first_row, max(rows) + 1)
    ]
    tops = [sum(rooms[:index]) + _DROP * index for index in range(len(rooms))]
    boxes: list[Box] = []
    left = 0.0
    for index, (step, row) in enumerate(zip(steps, rows, strict=True)):
        channels, height, width = step.shape
        if step.source is not None:  # to the left of the previous box, with which it is concatenated
            before = boxes[-1]
            copied = steps[step.source].shape[0]
            across = wide(copied)
            boxes.append(
                replace(before, step=step.source, copied=True, channels=copied, left=before.left - across, width=across)
            )
        if boxes:
            before = next(box for box in reversed(boxes) if not box.copied)
            left = before.left + before.width + _ARROW
            coming = steps[index + 1].source if index + 1 < len(steps) else None
            if step.kind == "convolution" and coming is not None:
                left += wide(steps[coming].shape[0])  # room for the copy
            if step.kind in ("pooling", "upsampling"):  # directly below or above
                left = before.left + (before.width - wide(channels)) / 2
        room = rooms[row - first_row]
        top = tops[row - first_row] + (room - high(height)) / 2
        boxes.append(Box(index, False, channels, (height, width), left, top, wide(channels), high(height)))
    return boxes


def draw_architecture(steps: Sequence[Step], files: Sequence[Path]) -> None:
    """Write the drawing in the format of each file's name.

    Raises:
        OutputError: a file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    boxes = lay_out(steps)
    entries = _legend_words(steps)
    right = max(box.left + box.width for box in boxes)
    bottom = max(box.top + box.height for box in boxes)
    width, height = max(right, 6.0) + 2 * _MARGIN, bottom + 2 * _MARGIN + _LEGEND_LINE * (len(entries) + 3)
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_xlim(-_MARGIN, width - _MARGIN)
    axis.set_ylim(height - _MARGIN, -_MARGIN)
    axis.axis("off")
    for index, box in enumerate(boxes):
        _draw_box(axis, box)
        if not box.copied:
            copy = boxes[index + 1] if index + 1 < len(boxes) and boxes[index + 1].copied else None
            _write_channels(axis, box, copy)
    for box in _with_sizes(boxes):
        text = " x ".join(map(str, box.size_hw))
        axis.text(box.left - 0.03, box.top + box.height, text, ha="right", va="bottom", rotation=90, fontsize=8)
    _draw_arrows(axis, steps, boxes)
    _draw_legend(axis, entries, bottom + _MARGIN + _LEGEND_LINE)
    # text stays text; the salt and the missing date make the file reproducible
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ubend"}):
        for path in files:
            facts = {"Date": None} if path.suffix == ".svg" else {}
            write_file(path, partial(figure.savefig, format=path.suffix[1:], metadata=facts))


def _draw_box(axis: "Axes", box: Box) -> None:
    from matplotlib.patches import Rectangle

    face = "white" if box.copied else _BOX_COLOR
    axis.add_patch(
        Rectangle((box.left, box.top), box.width, box.height, facecolor=face, edgecolor=_EDGE_COLOR, linewidth=1)
    )


def _write_channels(axis: "Axes", box: Box, copy: Box | None) -> None:
    """Write the number of channels above a box, or above the box and the copy to its left."""
    left = box.left if copy is None else copy.left
    text = f"{box.channels}" if copy is None else f"{copy.channels} + {box.channels}"
    middle = (left + box.left + box.width) / 2
    axis.text(middle, box.top - 0.05, text, ha="center", va="bottom", fontsize=9, color=_INK)


def _with_sizes(boxes: Sequence[Box]) -> list[Box]:
    """The boxes at which the size is written: the first of each size in a row, including copies."""
    chosen: list[Box] = []
    for index, box in enumerate(boxes):
        before = boxes[index - 1] if index else None
        if box.copied:  # it is to the left of the previous box in the list
            chosen = [other for other in chosen if other is not before] + [box]
        elif before is None or (before.top, before.size_hw) != (box.top, box.size_hw):
            chosen.append(box)
    return chosen


def _draw_arrows(axis: "Axes", steps: Sequence[Step], boxes: Sequence[Box]) -> None:
    own = {box.step: box for box in boxes if not box.copied}
    copies = {number - 1: box.left for number, box in enumerate(boxes) if box.copied}  # left of the previous box
    edges = {box.step: copies.get(number, box.left) for number, box in enumerate(boxes) if not box.copied}
    colors = _color_words(steps)
    for number, step in enumerate(steps[1:], 1):
        start, end = own[number - 1], own[number]
        if step.kind == "pooling":
            tail, head = (
                (start.left + start.width / 2, start.top + start.height),
                (end.left + end.width / 2, end.top - 0.2),
            )
        elif step.kind == "upsampling":
            tail, head = (
                (start.left + start.width / 2, start.top - 0.2),
                (end.left + end.width / 2, end.top + end.height),
            )
        else:
            y = start.top + start.height / 2
            tail, head = (start.left + start.width, y), (edges[number], y)
        _draw_arrow(axis, tail, head, colors[step.label])
    for copy in (box for box in boxes if box.copied):
        source = own[copy.step]
        y = copy.top + copy.height / 4  # above the arrows of the convolutions
        _draw_arrow(axis, (source.left + source.width, y), (copy.left, y), _SKIP_COLOR)


def _draw_arrow(axis: "Axes", tail: tuple[float, float], head: tuple[float, float], color: str) -> None:
    from matplotlib.patches import FancyArrowPatch

    axis.add_patch(
        FancyArrowPatch(
            tail, head, arrowstyle="-|>", mutation_scale=9, linewidth=1.6, color=color, shrinkA=1, shrinkB=1, zorder=0.5
        )
    )


def _legend_words(steps: Sequence[Step]) -> list[tuple[str, str]]:
    """(text, colour) of the legend: each kind of layer, and skip connections."""
    entries = list(_color_words(steps).items())
    joined = [(steps[n - 1], steps[step.source]) for n, step in enumerate(steps) if step.source is not None]
    if joined:
        cropped = any(upsampled.shape[1:] != copied.shape[1:] for upsampled, copied in joined)
        says = (
            _("skip connection: copied, cropped and concatenated")
            if cropped
            else _("skip connection: copied and concatenated")
        )
        entries.append((says, _SKIP_COLOR))
    return entries


def _color_words(steps: Sequence[Step]) -> dict[str, str]:
    """Label of a step's layers -> the colour of its arrow."""
    colors: dict[str, str] = {}
    for step in steps[1:]:
        shades = _COLORS[step.kind]
        taken = sum(color in shades for color in colors.values())
        colors.setdefault(step.label, shades[taken % len(shades)])
    return colors


def _draw_legend(axis: "Axes", entries: Sequence[tuple[str, str]], top: float) -> None:
    from matplotlib.patches import Rectangle

    for number, (text, color) in enumerate(entries):
        y = top + number * _LEGEND_LINE
        _draw_arrow(axis, (0.0, y), (_ARROW, y), color)
        axis.text(_ARROW + 0.15, y, text, va="center", fontsize=9, color=_INK)
    notes = [
        (_BOX_COLOR, _("feature map: channels above, height x width at the lower left")),
        ("white", _("copied feature map")),
    ]
    for number, (face, text) in enumerate(notes, len(entries)):
        y = top + number * _LEGEND_LINE
        axis.add_patch(Rectangle((0.12, y - 0.08), 0.18, 0.16, facecolor=face, edgecolor=_EDGE_COLOR, linewidth=1))
        axis.text(_ARROW + 0.15, y, text, va="center", fontsize=9, color=_INK)


def _describe_steps(steps: Sequence[Step]) -> list[str]:
    lines = []
    for index, step in enumerate(steps):
        channels, height, width = step.shape
        label = step.label or _("the image, normalised")
        if step.source is not None:
            label = _("{label}, after concatenation with map {source}").format(label=label, source=step.source)
        count = f", {step.parameters:,}" if step.parameters else ""
        lines.append(f"{index:3}  {channels:5} x {height} x {width}  {label}{count}")
    total = sum(step.parameters for step in steps)
    return [
        *lines,
        _("{total:,} parameters in total; the last number of a line is that of its layers").format(total=total),
    ]


def untrained(width: int = 64, depth: int = 4) -> UNet:
    """The network of the course text for colour images and two classes, with random weights.

    Raises:
        SettingError: it would have too many parameters.
    """
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in UNet(3, 2, width=width, depth=depth).parameters())
    if count > _MAX_PARAMETERS:
        raise SettingError(
            _("width {width} and depth {depth} give {count:,} parameters; reduce one of them").format(
                width=width, depth=depth, count=count
            ),
            key="--width",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet(3, 2, width=width, depth=depth)
