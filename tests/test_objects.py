"""Objects of hand-made masks; panoptic quality against a slow reference and torchmetrics."""

import csv
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from support.models import brighter_than_half
from support.refusal import raises
from ubend.accel.folded import FoldedUNet
from ubend.cli.app import main
from ubend.core.errors import SettingError
from ubend.dataset.sample import SAMPLE_CLASSES
from ubend.metrics.panoptic import Quality, compare_objects
from ubend.portable.object_job import describe_method
from ubend.portable.objects import Objects, choose_method, separate

PLAIN = ("background", "cell")
CELLS = ("background", "cell", "contour")
SMALL = arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 2))


def read(*rows: str) -> NDArray[np.uint8]:
    return np.array([[int(c) for c in row.replace(".", "0")] for row in rows], np.uint8)


def discs(*places: tuple[int, int, int], size: int = 40) -> NDArray[np.uint8]:
    y, x = np.mgrid[:size, :size]
    return np.any([(y - a) ** 2 + (x - b) ** 2 <= r**2 for a, b, r in places], axis=0).astype(np.uint8)


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        (read("..", ".."), 0),
        (read("1"), 1),
        (read("1.", ".1"), 1),  # across a corner
        (read("111", "1.1", "111"), 1),  # a ring
        (read("1..", "...", "..1"), 2),  # at the rim
        (read("1.1", "1.1"), 2),
    ],
)
def test_parts(mask: NDArray[np.uint8], count: int) -> None:
    found = separate(mask, PLAIN, "parts")
    assert found.ids.max() == len(found.classes) == count
    np.testing.assert_array_equal(found.ids > 0, mask == 1)
    assert (found.classes == 1).all()


def test_numbers_are_in_reading_order_and_small_ones_are_left_out() -> None:
    found = separate(read("..1.2", "....2", "1...."), ("background", "a", "b"), "parts")
    np.testing.assert_array_equal(found.ids, read("..1.2", "....2", "3...."))
    np.testing.assert_array_equal(found.classes, [1, 2, 1])
    large = separate(read("..1.2", "....2", "1...."), ("background", "a", "b"), "parts", min_area=2)
    np.testing.assert_array_equal(large.ids, read("....1", "....1", "....."))
    np.testing.assert_array_equal(large.classes, [2])


def test_contour() -> None:
    """A line one pixel wide separates, also at corners, and goes to the nearest; a contour alone is no object."""
    assert choose_method(SAMPLE_CLASSES) == choose_method(CELLS) == "contour"
    mask = read("11211", "11211", "22222", "11211", ".....", "..2..")
    found = separate(mask, CELLS, "contour")
    assert len(found.classes) == 4
    assert (found.ids[:4] > 0).all()
    assert (found.ids[4:] == 0).all()
    for row, column in ((0, 0), (0, 3), (3, 0), (3, 3)):
        assert len(np.unique(found.ids[row, column : column + 2])) == 1
    assert (found.classes == 1).all()
    with raises(SettingError, key="--method"):
        separate(mask, PLAIN, "contour")
    assert choose_method(PLAIN) == choose_method(("background", "a", "b", "contour")) == "parts"


def test_touching_discs_by_distance() -> None:
    """Two that touch are two, one is one, and a thin line, which stands out nowhere, is one."""
    touching = discs((20, 12, 9), (20, 27, 9))
    assert len(separate(touching, PLAIN, "parts").classes) == 1
    found = separate(touching, PLAIN, "distance")
    assert len(found.classes) == 2
    assert found.ids[20, 12] != found.ids[20, 27]
    np.testing.assert_array_equal(found.ids > 0, touching == 1)
    assert len(separate(discs((20, 20, 12)), PLAIN, "distance").classes) == 1
    assert len(separate(read("1111", "....", "1..."), PLAIN, "distance").classes) == 2


@pytest.mark.parametrize("turn", np.linspace(0, np.pi / 2, 12).tolist())
def test_a_shape_alone_is_whole_by_distance(turn: float) -> None:
    """A rod, whose ridge is equally high in many places, a ring and an ellipse; two of them that touch are two."""
    y, x = np.mgrid[:96, :96] - 47.7
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    rod = np.hypot(np.maximum(abs(along) - 30, 0), across) <= 5.5
    ring = abs(np.hypot(x, y) - 30) <= 3 + turn
    ellipse = np.hypot(along / 24, across / 12) <= 1
    for shape in (rod, ring, ellipse):
        assert len(separate(shape.astype(np.uint8), PLAIN, "distance").classes) == 1
    beside = np.hypot(along / 24, (across - 21) / 12) <= 1
    found = separate((ellipse | beside).astype(np.uint8), PLAIN, "distance")
    assert len(found.classes) == 2
    assert abs((found.ids == 1).sum() / (found.ids == 2).sum() - 1) < 0.1


def test_what_becomes_of_a_contour_class_is_said() -> None:
    chosen, inside = describe_method(CELLS, "contour", is_chosen=True)
    assert "--method contour" in chosen
    assert "class contour" in inside
    assert "those of class cell" in inside
    (outside,) = describe_method(CELLS, "parts", is_chosen=False)
    assert "class contour" in outside
    assert outside != inside
    assert describe_method(PLAIN, "parts", is_chosen=False) == []


def test_fragments_in_the_contour_are_no_objects() -> None:
    """A pixel of cell in a line between cells goes to its neighbours; small cells among their like stay, and so does
    what stands alone."""
    half = "1" * 13
    rows, fragment = [f"{half}2{half}"] * 6, f"{half[2:]}22122{half[2:]}"
    mask = np.pad(read(*rows, fragment, *rows), 2)
    mask[0, 0] = 1
    found = separate(mask, CELLS, "contour")
    assert len(found.classes) == 3
    assert (found.ids[mask > 0] > 0).all()
    assert len(separate(read("1212", "2222", "1212"), CELLS, "contour").classes) == 4


def test_more_objects_than_16_bits() -> None:
    mask = np.zeros((520, 520), np.uint8)
    mask[::2, ::2] = 1
    found = separate(mask, PLAIN, "parts")
    assert found.ids.max() == len(found.classes) == 260 * 260 > 2**16


@given(SMALL, st.sampled_from(["parts", "distance", "contour"]))
def test_objects_are_whole(mask: NDArray[np.uint8], method: str) -> None:
    """Numbers 1 to n, each connected; what is of an object class belongs to one; the same when done again."""
    found = separate(mask, CELLS, method)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.unique(found.ids[found.ids > 0]), np.arange(1, len(found.classes) + 1))
    assert (found.ids[mask == 1] > 0).all()
    assert (found.ids[mask == 0] == 0).all()
    for number in range(1, len(found.classes) + 1):
        assert ndimage.label(found.ids == number, np.ones((3, 3)))[1] == 1
    np.testing.assert_array_equal(found.ids, separate(mask, CELLS, method).ids)  # type: ignore[arg-type]


def slow_quality(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> Quality:
    """By sets of pixels, of one class."""
    sets = [[set(np.flatnonzero(ids == n)) for n in range(1, int(ids.max()) + 1)] for ids in (a, b)]
    ious = [len(x & y) / len(x | y) for x in sets[0] for y in sets[1]]
    matches = [iou for iou in ious if iou > 0.5]
    return Quality(len(matches), len(sets[0]) - len(matches), len(sets[1]) - len(matches), sum(matches))


@given(st.data())
def test_quality(data: st.DataObject) -> None:
    """As counted slowly, and as torchmetrics has it, where all objects are of one class."""
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    masks = [data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1))) for _ in range(2)]
    a, b = (separate(mask, PLAIN, "parts") for mask in masks)
    background, cell = compare_objects(a.ids, a.classes, b.ids, b.classes, 2)
    slow = slow_quality(a.ids, b.ids)
    assert (cell.matched, cell.extra, cell.missed) == (slow.matched, slow.extra, slow.missed)
    assert cell.iou == pytest.approx(slow.iou)
    assert background == Quality()
    assert cell.count_error == len(a.classes) - len(b.classes)
    if len(a.classes) + len(b.classes):
        from torchmetrics.detection import PanopticQuality

        judge = PanopticQuality(things={1}, stuffs={0}, return_per_class=True, allow_unknown_preds_category=True)
        coded = [torch.from_numpy(np.stack([o.ids > 0, o.ids], axis=-1).astype(np.int64))[None] for o in (a, b)]
        assert cell.panoptic == pytest.approx(float(judge(*coded)[0, 0]), abs=1e-5)
        assert cell.panoptic == pytest.approx(
            0 if math.isnan(cell.segmentation) else cell.segmentation * cell.recognition
        )


def dense_quality(found: Objects, truth: Objects, classes: int) -> list[Quality]:
    """`compare_objects` by a table of all pairs of found and true objects."""
    rows, columns = len(found.classes) + 1, len(truth.classes) + 1
    pairs = found.ids.astype(np.int64).reshape(-1) * columns + truth.ids.reshape(-1)
    table = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
    union = table.sum(axis=1)[1:, None] + table.sum(axis=0)[None, 1:] - table[1:, 1:]
    iou = table[1:, 1:] / np.maximum(union, 1)
    same = (iou > 0.5) & (found.classes[:, None] == truth.classes[None, :])
    qualities = []
    for index in range(classes):
        matches = same & (truth.classes == index)
        found_count, true_count = ((objects.classes == index).sum() for objects in (found, truth))
        matched = int(matches.sum())
        qualities.append(
            Quality(matched, int(found_count) - matched, int(true_count) - matched, float(iou[matches].sum()))
        )
    return qualities


@given(st.data())
@settings(max_examples=60)
def test_quality_is_that_of_all_pairs(data: st.DataObject) -> None:
    """Also of objects without a pixel, which neither match nor have an IoU."""
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    counts = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    found, truth = (
        Objects(
            data.draw(arrays(np.uint32, shape, elements=st.integers(0, count))),
            data.draw(arrays(np.uint8, count, elements=st.integers(0, 2))),
        )
        for count in counts
    )
    assert compare_objects(found.ids, found.classes, truth.ids, truth.classes, 3) == dense_quality(found, truth, 3)


def test_quality_of_many_objects() -> None:
    """40,000 objects in memory of their pixels; a table of all pairs would have 12 GiB."""
    ids = np.arange(1, 40_001, dtype=np.uint32).reshape(200, 200)
    classes = np.ones(ids.size, np.uint8)
    tracemalloc.start()
    try:
        cell = compare_objects(ids, classes, ids, classes, 2)[1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cell == Quality(ids.size, 0, 0, float(ids.size))
    assert peak < 100 * 2**20


def test_quality_of_classes() -> None:
    """The same pixels under another class match nothing."""
    ids = read("11.2").astype(np.uint32)
    one, other = np.array([0, 1], np.uint8), np.array([0, 0], np.uint8)
    assert compare_objects(ids, one, ids, one, 2) == [Quality(1, 0, 0, 1.0), Quality(1, 0, 0, 1.0)]
    assert compare_objects(ids, one, ids, other, 2) == [Quality(1, 0, 1, 1.0), Quality(0, 1, 0, 0.0)]
    nothing = compare_objects(ids * 0, one[:0], ids * 0, one[:0], 2)
    assert all(math.isnan(quality.panoptic) for quality in nothing)
    assert sum(compare_objects(ids, one, ids, one, 2), Quality()) == Quality(2, 0, 0, 2.0)


def test_command(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, table and outlines belong together; nothing is overwritten."""
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    words = ["objects", good / "run", good / "data" / "images", "--out", tmp_path / "out", "--device", "cpu"]
    run = CliRunner().invoke(main, [*map(str, words), "--method", "parts", "--min-area", "20"])
    assert run.exit_code == 0, run.output
    rows = list(csv.DictReader((tmp_path / "out" / "objects.csv").read_text().splitlines()))
    assert rows
    for path in sorted((tmp_path / "out").glob("*_ids.tif")):
        ids = tifffile.imread(path)
        own = [row for row in rows if Path(row["file"]).stem == path.stem.removesuffix("_ids")]
        assert ids.dtype == np.uint16
        assert [int(row["id"]) for row in own] == list(range(1, ids.max() + 1))
        for row in own:
            there = np.argwhere(ids == int(row["id"]))
            assert int(row["area_px"]) == len(there) >= 20
            assert float(row["row"]) == pytest.approx(there[:, 0].mean(), rel=1e-3)
            assert [int(row[key]) for key in ("top", "left")] == there.min(axis=0).tolist()
            assert [int(row[key]) for key in ("bottom", "right")] == (there.max(axis=0) + 1).tolist()
        with Image.open(path.with_name(path.name.replace("_ids.tif", "_objects.png"))) as image:
            scale = image.width // ids.shape[1]  # small images are enlarged
            assert image.size == (ids.shape[1] * scale, ids.shape[0] * scale)
    again = CliRunner().invoke(main, list(map(str, words)))
    assert again.exit_code == 2
    assert "exists already" in again.output
    refused = CliRunner().invoke(main, [*map(str, words), "--method", "contour"])
    assert refused.exit_code == 2
    assert "class named contour" in refused.output
