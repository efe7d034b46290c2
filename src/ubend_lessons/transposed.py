"""The lesson on transposed convolutions: the size formula, every step, and checkerboard patterns."""

from pathlib import Path

from PIL import Image

from ubend.core.i18n import _
from ubend.drawing.panels import show_image
from ubend.portable.images import save_png
from ubend_lessons.convolution import (
    Matrix,
    Pair,
    convolve,
    convolved_size,
    count_overlaps,
    transpose_convolve,
)
from ubend_lessons.convolution_figures import draw_convolution, draw_overlaps, draw_transposed, save_animation, stack

_OVERLAP_INPUT = 5  # px of the input whose overlaps are counted


def teach_transposed_convolution(
    values: Matrix,
    kernel: Matrix,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    out: Path | str,
    show: bool = False,
) -> list[str]:
    """Draw every step, a plain convolution with the same numbers, and the cause of checkerboard patterns.

    Writes into `out`: `transposed_convolution.png` and `.gif`, `convolution.png` (unless its output would be empty),
    `checkerboard.png`.

    Args:
        values: (m, n); kernel: (h, k).
        stride: (s, t) rows, columns; padding: (p, q).
        show: also display the images.
    Returns:
        Lines: the size formula with these numbers, the output, the output of the plain convolution, and the files.
    Raises:
        SettingError: the output would be empty, or a stride or padding is out of range.
        OutputError: an image cannot be written.
    """
    out, steps = Path(out), transpose_convolve(values, kernel, stride, padding)
    frames = draw_transposed(steps)
    strip = stack(frames)
    files = [out / "transposed_convolution.png", out / "transposed_convolution.gif"]
    save_png(strip, files[0])
    save_animation(frames, files[1])
    lines = [
        _("transposed convolution: H = (m - 1) s - 2 p + (h - 1) + 1, and the same for columns"),
        *_fill_in(values, kernel, stride, padding),
        _matrix_words(steps.inner()),
    ]
    images = [strip]
    if min(convolved_size(_hw(values), _hw(kernel), stride, padding)) >= 1:
        plain = convolve(values, kernel, stride, padding)
        images.append(stack(draw_convolution(plain)))
        files.append(out / "convolution.png")
        save_png(images[-1], files[-1])
        lines += [
            _("the plain convolution with the same numbers, whose output is smaller instead of larger:"),
            _matrix_words(plain.small),
        ]
    images.append(_draw_checkerboards(kernel, stride))
    files.append(out / "checkerboard.png")
    save_png(images[-1], files[-1])
    lines += [str(path) for path in files]
    if show:
        for image in images:
            show_image(image)
    return lines


def _fill_in(values: Matrix, kernel: Matrix, stride: Pair, padding: Pair) -> list[str]:
    (m, n), (h, k), (s, t), (p, q) = _hw(values), _hw(kernel), stride, padding
    return [
        f"H = ({m} - 1) {s} - 2 x {p} + ({h} - 1) + 1 = {(m - 1) * s - 2 * p + h}",
        f"W = ({n} - 1) {t} - 2 x {q} + ({k} - 1) + 1 = {(n - 1) * t - 2 * q + k}",
    ]


def _draw_checkerboards(kernel: Matrix, stride: Pair) -> Image.Image:
    words = _("kernel {kernel}, stride {stride}")
    own = [] if stride[0] < 2 else [(kernel.shape[0], stride[0])]
    pairs = dict.fromkeys([*own, (3, 2), (4, 2), (2, 2)])
    return draw_overlaps([(words.format(kernel=k, stride=s), count_overlaps(_OVERLAP_INPUT, k, s)) for k, s in pairs])


def _hw(matrix: Matrix) -> Pair:
    return matrix.shape[0], matrix.shape[1]


def _matrix_words(matrix: Matrix) -> str:
    return "\n".join("  " + " ".join(f"{value:6.4g}" for value in row) for row in matrix)
