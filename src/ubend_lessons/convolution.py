"""Convolution and transposed convolution, step by step, on small matrices.

Input m x n, kernel h x k, stride (s, t), padding (p, q): rows first. Deliberately slow: every step can be inspected.

Source: Dumoulin & Visin 2016, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import SettingError
from ubend.core.i18n import _

Matrix = NDArray[np.float64]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """One step.

    In a transposed convolution, an input value times the kernel, at its position in the output; in a convolution, the
    products of the kernel with a window of the input, whose sum is an output value.

    Attributes:
        row, column: position of the input value (transposed), or of the output value.
        top, left: position of the window in the larger matrix, which is the output before the padding is cut off
            (transposed), or the padded input.
        values: (h, k) the products.
    """

    row: int
    column: int
    top: int
    left: int
    values: Matrix


@dataclass(frozen=True)
class Steps:
    """All steps of one operation.

    Attributes:
        kernel: (h, k).
        small: (m, n): the input of a transposed convolution, the output of a convolution.
        large: the output or the input, respectively, with padding.
        padding: (p, q) number of padding rows above and below, and padding columns left and right in `large`.
        pieces: the steps, in reading order.
    """

    kernel: Matrix
    small: Matrix
    large: Matrix
    padding: Pair
    pieces: tuple[Piece, ...]

    def inner(self) -> Matrix:
        """`large` without its padding: the output of a transposed convolution, the input of a convolution."""
        (p, q), (height, width) = self.padding, self.large.shape
        return self.large[p : height - p, q : width - q]


def parse_matrix(text: str) -> Matrix:
    """`"2 2; 1 4"` -> [[2, 2], [1, 4]].

    Raises:
        SettingError: the text is empty, rows have different lengths, or a value is not a finite number.
    """
    rows = [row.replace(",", " ").split() for row in text.split(";")]
    if not all(rows) or len({len(row) for row in rows}) != 1:
        raise SettingError(
            _(
                "matrix '{text}': its rows have {counts} numbers; give rows of equal length, separated by ;, such as "
                "'1 2; 3 4'"
            ).format(text=text, counts=", ".join(str(len(row)) for row in rows)),
            key="matrix",
        )
    try:
        matrix = np.array([[float(word) for word in row] for row in rows])
    except ValueError as error:
        raise SettingError(
            _("matrix '{text}': {reason}; give numbers only").format(text=text, reason=error), key="matrix"
        ) from error
    if not np.isfinite(matrix).all():
        raise SettingError(_("matrix '{text}': all numbers must be finite").format(text=text), key="matrix")
    return matrix


def transposed_size(input_hw: Pair, kernel_hw: Pair, stride: Pair, padding: Pair) -> Pair:
    """The output size: H = (m - 1) s - 2 p + (h - 1) + 1, and the same for columns."""
    height, width = (
        (side - 1) * step - 2 * pad + (kernel - 1) + 1
        for side, kernel, step, pad in zip(input_hw, kernel_hw, stride, padding, strict=True)
    )
    return height, width


def convolved_size(input_hw: Pair, kernel_hw: Pair, stride: Pair, padding: Pair) -> Pair:
    """The output size: H = floor((m + 2 p - h) / s) + 1, and the same for columns."""
    height, width = (
        (side + 2 * pad - kernel) // step + 1
        for side, kernel, step, pad in zip(input_hw, kernel_hw, stride, padding, strict=True)
    )
    return height, width


def transpose_convolve(values: Matrix, kernel: Matrix, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> Steps:
    """Place every input value times the kernel at multiples of the stride, add overlaps, and cut off the padding.

    Args:
        values: (m, n).
        kernel: (h, k).
    Raises:
        SettingError: a stride is below 1, a padding is below 0, or the output is empty.
    """
    _refuse(stride, padding)
    size = transposed_size(_shape(values), _shape(kernel), stride, padding)
    _refuse_empty(size)
    large = np.zeros((size[0] + 2 * padding[0], size[1] + 2 * padding[1]))
    pieces = []
    for (row, column), value in np.ndenumerate(values):
        top, left = row * stride[0], column * stride[1]
        pieces.append(Piece(row, column, top, left, value * kernel))
        large[top : top + kernel.shape[0], left : left + kernel.shape[1]] += value * kernel
    return Steps(kernel, values, large, padding, tuple(pieces))


def convolve(values: Matrix, kernel: Matrix, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> Steps:
    """Slide the kernel over the zero-padded input; each sum of products is an output value.

    As in every deep learning library, the kernel is not flipped; in mathematics this is called cross-correlation.

    Args:
        values: (m, n).
        kernel: (h, k).
    Raises:
        SettingError: a stride is below 1, a padding is below 0, or the kernel is larger than the padded input.
    """
    _refuse(stride, padding)
    size = convolved_size(_shape(values), _shape(kernel), stride, padding)
    _refuse_empty(size)
    large = np.pad(values, [(pad, pad) for pad in padding])
    small, pieces = np.zeros(size), []
    for row, column in np.ndindex(*size):
        top, left = row * stride[0], column * stride[1]
        products = large[top : top + kernel.shape[0], left : left + kernel.shape[1]] * kernel
        pieces.append(Piece(row, column, top, left, products))
        small[row, column] = products.sum()
    return Steps(kernel, small, large, padding, tuple(pieces))


def count_overlaps(size: int, kernel: int, stride: int) -> Matrix:
    """How many pieces of a transposed convolution overlap at each output pixel.

    If the count differs between neighbouring pixels, the output of an untrained network has a checkerboard pattern.

    Source: Odena et al. 2016, Deconvolution and Checkerboard Artifacts, doi:10.23915/distill.00003.
    """
    return transpose_convolve(np.ones((size, size)), np.ones((kernel, kernel)), (stride, stride)).large


def _shape(matrix: Matrix) -> Pair:
    return matrix.shape[0], matrix.shape[1]


def _refuse(stride: Pair, padding: Pair) -> None:
    if min(stride) < 1 or min(padding) < 0:
        raise SettingError(
            _("stride {stride} and padding {padding}: give a stride of at least 1 and a padding of at least 0").format(
                stride=stride, padding=padding
            ),
            key="--stride",
        )


def _refuse_empty(size: Pair) -> None:
    if min(size) < 1:
        raise SettingError(
            _("the output would be {height} x {width}; give a larger input or kernel, or less padding").format(
                height=size[0], width=size[1]
            ),
            key="--kernel",
        )
