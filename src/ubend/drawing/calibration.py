"""The calibration plot: the accuracy of a model over its confidence."""

from collections.abc import Mapping, Sequence

from ubend.core.i18n import _
from ubend.drawing.encoding import write_svg

_SMALLEST, _LARGEST = 3.0, 12.0  # points, of the dots


def draw_calibration(bins: Sequence[Mapping[str, float | None]]) -> str:
    """The SVG of a calibration plot; the area of a dot grows with the pixels in its bin.

    Args:
        bins: `pixels`, `confidence` (mean probability of the predicted class) and `accuracy` (share that is right) of
            each, 0..1; None where a bin holds no pixel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.6), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.15, 0.14, 0.82, 0.82))
    axis.plot([0, 1], [0, 1], color="#666666", linestyle="--", linewidth=1)
    filled = [bin_ for bin_ in bins if bin_["pixels"]]
    sure, right, pixels = ([bin_[key] or 0.0 for bin_ in filled] for key in ("confidence", "accuracy", "pixels"))
    most = max(pixels, default=1)
    axis.plot(sure, right, color="#0072b2", linewidth=1.6)
    sizes = [(_SMALLEST + (_LARGEST - _SMALLEST) * (count / most) ** 0.5) ** 2 for count in pixels]
    axis.scatter(sure, right, s=sizes, color="#0072b2", zorder=3)
    axis.set_xlim(0, 1.03)
    axis.set_ylim(0, 1.03)
    axis.set_xlabel(_("probability of the predicted class"), fontsize=9)
    axis.set_ylabel(_("share of pixels that is right"), fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(True, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return write_svg(figure)
