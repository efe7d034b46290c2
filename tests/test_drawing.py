"""Overlays, grids and curves: what is painted where, and that a training never falls over its images."""

import itertools
import logging
import math
import os
import subprocess
import sys
import types
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFont, ImageShow

from support.refusal import raises
from ubend.core.errors import OutputError
from ubend.drawing import curves, panels
from ubend.drawing.curves import draw_curves
from ubend.drawing.panels import draw_grid, show_image
from ubend.labels.class_table import IGNORED, default_colors
from ubend.portable.images import save_png
from ubend.portable.overlay import ERROR_COLORS, IGNORED_COLOR, _outline, color_mask, draw_errors, overlay_mask, to_rgb

COLORS = ((0, 0, 0), (230, 159, 0), (86, 180, 233))


@pytest.fixture
def mask() -> NDArray[np.uint8]:
    """A square of class 1, one of class 2, an ignored corner, on background."""
    out = np.zeros((40, 60), dtype=np.uint8)
    out[5:25, 5:25], out[10:30, 35:50], out[35:, 55:] = 1, 2, IGNORED
    return out


def test_color_mask(mask: NDArray[np.uint8]) -> None:
    out = color_mask(mask, COLORS)
    assert out.shape == (40, 60, 3)
    assert out.dtype == np.uint8
    for at, color in (((0, 0), COLORS[0]), ((6, 6), COLORS[1]), ((12, 40), COLORS[2]), ((39, 59), IGNORED_COLOR)):
        assert tuple(out[at]) == color
    with pytest.raises(ValueError, match="class 2, but only 2 colours"):
        color_mask(mask, COLORS[:2])


def test_ignored_wins_over_a_256th_color() -> None:
    """A table that is long enough to reach index 255 does not colour the ignored pixels."""
    assert tuple(color_mask(np.full((1, 1), IGNORED, np.uint8), default_colors(256))[0, 0]) == IGNORED_COLOR


def test_overlay_leaves_background_and_fills_regions(mask: NDArray[np.uint8]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    before = image.copy()
    out = overlay_mask(image, mask, COLORS, opacity=0.5)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(out[mask == 0], image[mask == 0])
    inside = out[6:24, 6:24].astype(int)  # without the 1 px outline
    assert np.abs(inside - (image[6:24, 6:24] + np.array(COLORS[1])) / 2).max() <= 0.5
    rim = np.zeros_like(mask, dtype=bool)
    rim[5:25, 5:25] = True
    rim[6:24, 6:24] = False
    assert (out[rim] == COLORS[1]).all()
    grey = (image[39, 59].astype(int) + IGNORED_COLOR) / 2
    assert np.abs(out[39, 59] - grey).max() <= 0.5
    assert np.abs(out[35, 57] - (image[35, 57].astype(int) + IGNORED_COLOR) / 2).max() <= 0.5  # no outline


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 3, 5]),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([0, 1, None]),
    st.floats(0, 1),
)
@settings(max_examples=80)
def test_overlay_touches_nothing_but_classes(
    seed: int, channels: int, size_hw: tuple[int, int], background: int | None, opacity: float
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size_hw, channels)).astype(np.uint8)
    mask = rng.choice(np.array([0, 1, 2, IGNORED], dtype=np.uint8), size=size_hw)
    out = overlay_mask(image, mask, COLORS, opacity, background)
    assert out.shape == (*size_hw, 3)
    assert out.dtype == np.uint8
    if background is not None:
        np.testing.assert_array_equal(out[mask == background], to_rgb(image)[mask == background])
    # between the image and the colour, nowhere beyond
    low, high = np.minimum(to_rgb(image), color_mask(mask, COLORS)), np.maximum(to_rgb(image), color_mask(mask, COLORS))
    assert ((out >= low) & (out <= high)).all()


def test_overlay_outline_grows_with_the_image() -> None:
    mask = np.zeros((1024, 1024), dtype=np.uint8)
    mask[:, 512:] = 1
    out = overlay_mask(np.zeros((1024, 1024, 1), np.uint8), mask, COLORS)
    assert (out[500] == COLORS[1]).all(axis=-1).sum() == 4


@given(st.integers(1, 6), st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1))
def test_outline_reaches_as_far_as_it_says(width_px: int, height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).choice(3, (height, width), p=[0.9, 0.05, 0.05]).astype(np.uint8)
    found = _outline(mask, width_px)
    for row in range(height):
        for column in range(width):
            rows = slice(max(0, row - width_px), row + width_px + 1)
            columns = slice(max(0, column - width_px), column + width_px + 1)
            cross = np.concatenate([mask[rows, column], mask[row, columns]])
            assert found[row, column] == (cross != mask[row, column]).any()


def test_overlay_refuses_what_does_not_fit(mask: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="size"):
        overlay_mask(np.zeros((40, 61, 3), np.uint8), mask, COLORS)
    with pytest.raises(ValueError, match="opacity"):
        overlay_mask(np.zeros((40, 60, 3), np.uint8), mask, COLORS, opacity=45)


def test_to_rgb_of_8_bit_keeps_values() -> None:
    image = np.arange(4 * 5 * 4, dtype=np.uint8).reshape(4, 5, 4)
    np.testing.assert_array_equal(to_rgb(image), image[:, :, :3])
    np.testing.assert_array_equal(to_rgb(image[:, :, :1]), np.repeat(image[:, :, :1], 3, axis=2))
    np.testing.assert_array_equal(to_rgb(image[:, :, 0]), to_rgb(image[:, :, :1]))
    two = to_rgb(image[:, :, :2])
    np.testing.assert_array_equal(two[:, :, :2], image[:, :, :2])
    assert (two[:, :, 2] == 0).all()
    with pytest.raises(ValueError, match="shape"):
        to_rgb(np.zeros(3, np.uint8))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_to_rgb_stretches_the_rest(dtype: Any) -> None:
    ramp = np.linspace(1000, 2000, 101 * 101).reshape(101, 101, 1).astype(dtype)
    out = to_rgb(ramp)[:, :, 0].astype(float)
    want = np.clip((ramp[:, :, 0].astype(float) - 1010) / 980 * 255, 0, 255)
    assert np.abs(out - want).max() <= 1.5


def test_to_rgb_of_odd_images() -> None:
    spots = np.zeros((100, 100, 1), np.float32)
    spots[3, 3] = 7.0
    assert to_rgb(spots).max() == 255  # both percentiles are 0
    assert to_rgb(np.full((4, 4, 3), 9, np.uint16)).max() == 0
    holes = np.array([[[np.nan], [0.0], [1.0], [np.inf]]])
    assert to_rgb(holes)[0, :, 0].tolist() == [0, 0, 255, 255]
    assert to_rgb(np.full((2, 2, 1), np.nan)).max() == 0
    assert to_rgb(np.eye(4, dtype=bool)).max() == 255


def solid(height: int, width: int, color: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((height, width, 3), color, dtype=np.uint8)


def count_pixels(page: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(page) == color).all(axis=-1).sum())


def test_grid_shows_every_image_whole_and_in_its_aspect() -> None:
    red, green, blue = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    rows = [[solid(10, 20, red), solid(300, 200, green)], [solid(64, 64, blue)]]
    page = draw_grid(rows, ["picture", "truth"], ["first", "second"], cell_px=96)
    assert page.mode == "RGB"
    for color, (height, width) in ((red, (48, 96)), (green, (96, 64)), (blue, (96, 96))):
        at = np.argwhere((np.asarray(page) == color).all(axis=-1))
        assert (np.ptp(at, axis=0) + 1).tolist() == [height, width]
        assert len(at) == height * width


def test_grid_legend_headings_and_labels_take_room_only_when_given() -> None:
    rows = [[solid(50, 50, (9, 9, 9))] * 2]
    bare = draw_grid(rows, (), cell_px=96)
    assert draw_grid(rows, ("a", "b"), cell_px=96).height > bare.height
    assert draw_grid(rows, (), ["x"], cell_px=96).height > bare.height
    assert draw_grid(rows, (), [""], cell_px=96).height == bare.height
    legend = [(f"class number {n}", (n, 200, 50)) for n in range(12)]
    page = draw_grid(rows, (), cell_px=96, legend=legend)
    assert page.width == bare.width  # the legend continues over several lines
    for _, color in legend:
        assert count_pixels(page, color) > 50  # none is pushed off the page


@given(st.text(max_size=60), st.integers(1, 200))
@settings(max_examples=60)
def test_shortened_text_fits(text: str, width_px: int) -> None:
    font = panels.load_font(12)
    short = panels._shorten(text, font, width_px)
    assert font.getlength(short) <= width_px or short == "…"
    assert short == panels._clean(text) or short.endswith("…")


@given(st.lists(st.text("abé", min_size=1, max_size=8), max_size=9), st.integers(80, 200))
def test_headings_are_broken_between_words(words: list[str], width_px: int) -> None:
    font = panels.load_font(12)
    lines = panels._break("  ".join(words), font, width_px)
    assert " ".join(lines) == panels._clean(" ".join(words))
    assert all(font.getlength(line) <= width_px for line in lines)
    for line, after in itertools.pairwise(lines):  # as few as it takes
        assert font.getlength(f"{line} {after.split()[0]}") > width_px


def test_a_broken_heading_stands_above_its_image() -> None:
    rows = [[solid(50, 50, (9, 9, 9))] * 2]
    one, two = (draw_grid(rows, ("a", text), cell_px=96) for text in ("short", "convolution, then max unpooling .87"))
    line = two.height - one.height
    assert line > 10
    assert two.width == one.width
    assert (np.asarray(two)[-one.height :, :100] == np.asarray(one)[:, :100]).all()  # the first is as near to its own


def test_long_text_does_not_widen_the_grid() -> None:
    rows = [[solid(50, 50, (9, 9, 9))]]
    long = "một tên tệp rất dài " * 9
    assert draw_grid(rows, [long], [long], 96, [(long, (1, 2, 3))]).width == draw_grid(rows, (), cell_px=96).width


def test_font_has_vietnamese_letters_also_decomposed() -> None:
    font = panels.load_font(16)
    assert isinstance(font, ImageFont.FreeTypeFont)
    box = bytes(font.getmask("\uffff"))
    for letter in "ếậữđơưỷẵ…":
        assert bytes(font.getmask(letter)) != box
    assert panels._clean(unicodedata.normalize("NFD", "khối u\n đại tràng")) == "khối u đại tràng"


@pytest.mark.parametrize(
    ("rows", "headings", "labels", "says"),
    [
        ([], (), None, "at least one"),
        ([[]], (), None, "at least one"),
        ([[solid(4, 4, (0, 0, 0))] * 2], ["a"], None, "headings"),
        ([[solid(4, 4, (0, 0, 0))]], ["a"], ["x", "y"], "labels"),
        ([[np.zeros((4, 4), np.uint8)]], ["a"], None, "cell"),
        ([[np.zeros((4, 4, 3), np.float32)]], ["a"], None, "cell"),
    ],
)
def test_grid_refuses_what_does_not_fit(rows: Any, headings: Any, labels: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        draw_grid(rows, headings, labels)


def test_save_png(tmp_path: Path) -> None:
    page = draw_grid([[solid(30, 30, (1, 2, 3))]], ["a"])
    save_png(page, tmp_path / "new" / "page.png")
    with Image.open(tmp_path / "new" / "page.png") as back:
        np.testing.assert_array_equal(np.asarray(back), np.asarray(page))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.png"]
    (tmp_path / "file").write_text("in the way")
    with raises(OutputError, path=tmp_path / "file" / "page.png"):
        save_png(page, tmp_path / "file" / "page.png")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server: no notebook, no display."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nowhere")
def test_show_image_says_where_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ImageShow, "show", lambda image: pytest.fail("there is no display"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    page = Image.new("RGB", (8, 8))
    save_png(page, tmp_path / "mine.png")
    with caplog.at_level(logging.WARNING):
        show_image(tmp_path / "mine.png")
        show_image(page)
    first, second = (record.getMessage() for record in caplog.records)
    assert str(tmp_path / "mine.png") in first
    (kept,) = tmp_path.glob("ubend-*.png")
    assert str(kept) in second


@pytest.mark.usefixtures("nowhere")
def test_show_image_opens_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(image.size) or True)
    save_png(Image.new("RGB", (8, 9)), tmp_path / "mine.png")
    show_image(tmp_path / "mine.png")
    assert shown == [(8, 9)]
    monkeypatch.setattr(ImageShow, "show", lambda image: False)  # a display, but no viewer is installed
    show_image(tmp_path / "mine.png")
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("kernel", [object(), None])
def test_show_image_in_a_notebook(
    kernel: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[Image.Image] = []
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=kernel)  # type: ignore[attr-defined]
    display.display = shown.append  # type: ignore[attr-defined]
    ipython.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    page = Image.new("RGB", (8, 9))
    show_image(page)
    assert shown == ([page] if kernel else [])  # IPython in a terminal has no kernel
    assert bool(caplog.records) == (kernel is None)


def row(epoch: int, **more: Any) -> dict[str, Any]:
    dice = {"background": 0.9, "polyp": 0.5}
    return {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 0.8, "val_dice": dice, "lr": 1e-3, **more}


@pytest.mark.parametrize(
    ("history", "plots"),
    [
        ([row(1, best=True)], 3),
        ([row(n, best=n in (2, 5)) for n in range(1, 40)], 3),
        ([row(1, val_dice={"polyp": None}), row(2, val_dice=None, lr=None)], 2),
        ([row(1, val_loss=math.nan, train_loss=math.inf), row(2, val_loss=None)], 3),
        ([{}], 1),
        ([row(1, train_loss=0.0, lr=0.0), row(2, train_loss=-1.0)], 3),
    ],
)
def test_curves(history: list[dict[str, Any]], plots: int, tmp_path: Path) -> None:
    draw_curves(history, ["background", "polyp"], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width == 504 * plots
        assert image.height - 384 in (0, 32, 52)  # the lines of the legend
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_curves_mark_the_last_best_and_name_odd_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    names = ["_hidden", r"$\none$", "ruột 腸"]  # the second is no valid formula
    history = [
        row(n, val_dice=dict.fromkeys(names, 0.1 * n), best=n in (2, 4), train_loss=10.0**-n) for n in range(1, 7)
    ]
    draw_curves(history, names, tmp_path / "curves.png")
    loss, dice, rate = figures[0].axes
    assert [text.get_text() for text in dice.get_legend().get_texts()] == [*names, "best: epoch 4"]
    for axis in (loss, dice, rate):
        assert [list(line.get_xdata()) for line in axis.get_lines()][-1] == [4, 4]
    assert (loss.get_yscale(), rate.get_yscale()) == ("log", "linear")
    np.testing.assert_allclose(dice.get_lines()[0].get_ydata(), 0.1 * np.arange(1, 7))


@pytest.mark.parametrize("count", [2, 5, 30])
def test_the_legend_lies_below_the_curves_and_inside_the_figure(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    names = [f"class {number}" + " with a long name, which goes on and on" * (number == 1) for number in range(count)]
    history = [row(n, val_dice=dict.fromkeys(names, 0.1 * n), best=n == 2) for n in range(1, 7)]
    draw_curves(history, names, tmp_path / "curves.png")
    (figure,) = figures
    for axis in figure.axes:
        legend = axis.get_legend()
        if legend is not None:
            box, below = legend.get_window_extent(), axis.xaxis.label.get_window_extent()
            assert box.y1 <= below.y0 + 1
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0
            assert box.x1 <= axis.get_window_extent().x1 + 4


def test_curves_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, then as often as drawing takes a 20th of the time at most."""
    now, drawn = 0.0, []

    def draw(history: list[Any], _names: object, _path: object) -> None:
        nonlocal now
        drawn.append(len(history))
        now += 1.0

    monkeypatch.setattr(curves, "draw_curves", draw)
    monkeypatch.setattr(curves, "time", types.SimpleNamespace(monotonic=lambda: now))
    live = curves.LiveCurves(["a"], tmp_path / "curves.png")
    for epoch in range(1, 60):
        live.draw([{}] * epoch)
        now += 1.0
    assert drawn == [1, 21, 41]  # a second each, and twenty in between


def test_curves_need_an_epoch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epoch"):
        draw_curves([], ["a"], tmp_path / "curves.png")


def test_heavy_libraries_are_not_imported() -> None:
    code = (
        "import sys, numpy, ubend.portable.overlay, ubend.drawing.panels, ubend.drawing.curves\n"
        "ubend.drawing.panels.draw_grid([[numpy.zeros((8, 8, 3), numpy.uint8)]], ['heading'])\n"
        "print(*(name for name in ('torch', 'matplotlib', 'IPython') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ)
    assert done.stdout.split() == []


def test_errors_by_kind() -> None:
    """Right, too much, too little, another class, ignored; without a background every error is a wrong class."""
    truth = np.array([[0, 0, 1, 1, IGNORED, 2]], np.uint8)
    guess = np.array([[0, 1, 0, 2, 1, 2]], np.uint8)
    image = np.full((1, 6, 3), 200, np.uint8)
    grey = (212, 212, 212)
    positive, negative, other = (ERROR_COLORS[kind] for kind in ("positive", "negative", "class"))
    out = [tuple(pixel) for pixel in draw_errors(image, truth, guess)[0].tolist()]
    assert out == [grey, positive, negative, other, grey, grey]
    out = [tuple(pixel) for pixel in draw_errors(image, truth, guess, background=None)[0].tolist()]
    assert out == [grey, other, other, other, grey, grey]
    assert len({positive, negative, other, *default_colors(20)}) == 23, "no class has the colour of an error"


def test_curves_of_settling_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dotted beside the Dice of the first epochs, with one entry in the legend."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    rows: list[dict[str, Any]] = [
        {"epoch": n, "train_loss": 1.0, "val_loss": 1.0, "val_dice": {"a": 0.1, "b": 0.2}} for n in range(1, 5)
    ]
    for row in rows[:2]:
        row["batch_statistics_dice"] = {"a": 0.5, "b": 0.6}
    draw_curves(rows, ["a", "b"], tmp_path / "curves.png")
    dice = figures[0].axes[1]
    dotted = [line for line in dice.get_lines() if line.get_linestyle() == ":"]
    assert [np.asarray(line.get_ydata()).tolist()[:2] for line in dotted] == [[0.5, 0.5], [0.6, 0.6]]
    assert all(np.isnan(np.asarray(line.get_ydata())[2:]).all() for line in dotted)
    legend = dice.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "with batch statistics"]
    del rows[1]["batch_statistics_dice"]  # a dotted curve of one epoch could not be seen
    draw_curves(rows, ["a", "b"], tmp_path / "curves.png")
    assert [line for line in figures[1].axes[1].get_lines() if line.get_linestyle() == ":"] == []
