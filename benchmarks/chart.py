"""Draws figures of the other benchmarks as bars: the speed of each variant, and what the device would allow.

    python benchmarks/chart.py step.json training.json --out docs/images/speed.png

The files are what `step_speed.py --json` and `training_speed.py --json` wrote; each becomes a panel, in that order.
A bar is the median, its whisker the least and the greatest turn. Dashed lines are the limits of ubend's network.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWN, OTHER, LIMITS = "#0072b2", "#b3b3b3", {"traffic_limit": "#d55e00", "arithmetic_limit": "#333333"}
LIMIT_WORDS = {"traffic_limit": "arithmetic and memory traffic", "arithmetic_limit": "arithmetic alone"}
TITLES = {
    "step_speed": "Training step: forward, backward, Adam on one batch that stays on the device",
    "training_speed": "Whole epochs, data included",
}
_ROW_INCH, _PANEL_INCH, _WIDTH_INCH = 0.30, 1.15, 9.0


def draw_speed(reports: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the PNG; one panel for each report, whose images per second share an axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [_PANEL_INCH + _ROW_INCH * len(report["rows"]) for report in reports]
    figure = Figure(figsize=(_WIDTH_INCH, sum(heights)), dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", h_pad=0.12)
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(reports), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, report in zip(panels, reports, strict=True):
        _draw_panel(axis, report)
    panels[0].set_xlim(0, 1.12 * max(_reach(row) for report in reports for row in report["rows"]))
    panels[-1].set_xlabel("images per second", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def _reach(row: Row) -> float:
    """How far to the right a row has something to show."""
    limit = row.get("arithmetic_limit", 0) if row["of"] == "ubend" else 0
    return float(max(row["greatest"], limit))


def _draw_panel(axis: "Axes", report: dict[str, Any]) -> None:
    rows = sorted(report["rows"], key=lambda row: row["median"])
    medians = [row["median"] for row in rows]
    whiskers = [[row["median"] - row["least"] for row in rows], [row["greatest"] - row["median"] for row in rows]]
    colors = [OWN if row["of"] == "ubend" else OTHER for row in rows]
    axis.barh(range(len(rows)), medians, color=colors, height=0.72, xerr=whiskers, error_kw={"elinewidth": 1})
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8.5)
    for place, row in enumerate(rows):
        axis.annotate(
            f"{row['median']:,.0f}" if row["median"] >= 100 else f"{row['median']:.1f}",
            (row["greatest"], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color="#222222",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            zorder=4,
        )
    own = next((row for row in rows if row["of"] == "ubend" and "traffic_limit" in row), None)
    if own:
        for name, color in LIMITS.items():
            label = f"{LIMIT_WORDS[name]}: {own[name]:,.0f}"
            axis.axvline(own[name], color=color, linestyle="--", linewidth=1.2, zorder=1, label=label)
        axis.legend(loc="lower right", fontsize=8, title="limits of ubend's network", title_fontsize=8, framealpha=1)
    facts, options = report["facts"], report["options"]
    words = f"{facts['device']}, torch {facts['torch']}; {options['size']} px, batch {options['batch']}"
    title = TITLES[report["benchmark"]]
    axis.set_title(f"{title}\n{words}, width {options['width']}", fontsize=9.5, loc="left")
    axis.tick_params(axis="x", labelsize=8.5, labelbottom=True)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_ylim(-0.6, len(rows) - 0.4)


def _label(row: Row) -> str:
    """A network that needs other arithmetic than ubend's says how much."""
    return f"{row['name']} ({row['flops'] / 1e9:.3g} GFLOP)" if "flops" in row else str(row["name"])


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("docs/images/speed.png"))
    args = parser.parse_args(words)
    draw_speed([json.loads(path.read_text(encoding="utf-8")) for path in args.reports], args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
