"""The lesson on transposed convolutions counts as torch does, and draws what it counts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from support.refusal import check, raises, refused_once
from ubend.cli.app import main
from ubend.core.errors import SettingError
from ubend_lessons.convolution import (
    convolve,
    convolved_size,
    count_overlaps,
    parse_matrix,
    transpose_convolve,
    transposed_size,
)
from ubend_lessons.convolution_figures import MAX_STEPS, draw_transposed, stack

NUMBERS = st.integers(-9, 9).map(float)
MATRIX = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=NUMBERS)
STRIDES = st.tuples(st.integers(1, 4), st.integers(1, 4))
PADDINGS = st.tuples(st.integers(0, 3), st.integers(0, 3))


def tensor(matrix: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(matrix)[None, None]


@given(MATRIX, MATRIX, STRIDES, PADDINGS)
def test_transposed_is_torchs(
    values: NDArray[np.float64], kernel: NDArray[np.float64], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    size = transposed_size(values.shape, kernel.shape, stride, padding)  # type: ignore[arg-type]
    if min(size) < 1:
        with raises(SettingError, key="--kernel"):
            transpose_convolve(values, kernel, stride, padding)
        return
    found = transpose_convolve(values, kernel, stride, padding)
    wanted = F.conv_transpose2d(tensor(values), tensor(kernel), stride=stride, padding=padding)[0, 0].numpy()
    assert found.inner().shape == size
    np.testing.assert_allclose(found.inner(), wanted)


@given(MATRIX, MATRIX, STRIDES, PADDINGS)
def test_convolution_is_torchs(
    values: NDArray[np.float64], kernel: NDArray[np.float64], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    assume(min(convolved_size(values.shape, kernel.shape, stride, padding)) >= 1)  # type: ignore[arg-type]
    found = convolve(values, kernel, stride, padding)
    wanted = F.conv2d(tensor(values), tensor(kernel), stride=stride, padding=padding)[0, 0].numpy()
    np.testing.assert_allclose(found.small, wanted)
    np.testing.assert_array_equal(found.inner(), values)


def test_the_texts_examples() -> None:
    """Its input and kernel; stride 1 without padding, and stride 2 with 1."""
    values, kernel = parse_matrix("2 2; 1 4"), parse_matrix("1, 1; 1, 1")
    np.testing.assert_array_equal(transpose_convolve(values, kernel).inner(), [[2, 4, 2], [3, 9, 6], [1, 5, 4]])
    np.testing.assert_array_equal(transpose_convolve(values, kernel, (2, 2), (1, 1)).inner(), [[2, 2], [1, 4]])


def test_checkerboards() -> None:
    """Away from the border a kernel that the stride divides meets every pixel as often as any other."""
    assert len(np.unique(count_overlaps(6, 4, 2)[2:-2, 2:-2])) == 1
    assert set(np.unique(count_overlaps(6, 3, 2)[2:-2, 2:-2])) == {1, 2, 4}


@pytest.mark.parametrize("text", ["", "1 2; 3", "1 2;; 3 4", "a b", "1 nan"])
def test_bad_matrices(text: str) -> None:
    with raises(SettingError, key="matrix"):
        parse_matrix(text)


def test_many_steps_are_not_all_drawn() -> None:
    frames = draw_transposed(transpose_convolve(np.ones((5, 5)), np.ones((1, 1))))
    assert len(frames) == 26
    assert stack(frames).height == MAX_STEPS * frames[0].height


@pytest.mark.parametrize("language", ["en", "vi"])
def test_command(language: str, tmp_path: Path) -> None:
    words = ["lesson", "transposed-convolution", "--stride", "2,1", "--padding", "1,0", "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(main, [*words, "--lang", language])
    assert run.exit_code == 0, run.output
    assert "H = (2 - 1) 2 - 2 x 1 + (2 - 1) + 1 = 2" in run.output
    assert "W = (2 - 1) 1 - 2 x 0 + (2 - 1) + 1 = 3" in run.output
    with Image.open(tmp_path / "out" / "transposed_convolution.gif") as animation:
        assert animation.n_frames == 5  # four values and the output
    for name in ("transposed_convolution", "convolution", "checkerboard"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.width > 100


@pytest.mark.parametrize(
    ("words", "key", "named"),
    [
        (["--padding", "9"], "--kernel", ["-15 x -15"]),
        (["--stride", "0"], "--stride", []),
        (["--stride", "1,2,3"], "--stride", ["1,2,3"]),
        (["--input", "1 2; 3"], "matrix", ["2, 1"]),
    ],
)
def test_refused(words: list[str], key: str, named: list[str], tmp_path: Path) -> None:
    error = refused_once("lesson", "transposed-convolution", *words, "--out", tmp_path)
    check(error, SettingError, key=key, named=named)
