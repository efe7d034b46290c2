"""Pascal VOC and CVAT folders, and class tables beside images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import ubend
from ubend.core.errors import DataError
from ubend.layouts.class_files import read_class_table
from ubend.layouts.folder import read_folder
from ubend.layouts.official import _voc_color
from ubend.layouts.problems import Problems


def draw_voc(root: Path, *stems: str, palette: list[int] | None = None) -> Path:
    for kind in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation", "Annotations"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for stem in stems:
        Image.new("RGB", (4, 3)).save(root / f"JPEGImages/{stem}.jpg")
        for kind in ("SegmentationClass", "SegmentationObject"):
            mask = Image.fromarray(np.zeros((3, 4), np.uint8))
            if palette is not None:
                mask = mask.convert("P")
                mask.putpalette(palette)
            mask.save(root / kind / f"{stem}.png")
    return root


def write_list(root: Path, name: str, *stems: str) -> None:
    (root / "ImageSets/Segmentation" / name).write_text("".join(f"{stem}\n" for stem in stems))


@pytest.mark.parametrize("below", [".", "VOCdevkit/VOC2012"])
def test_voc_lists_make_the_parts(tmp_path: Path, below: str) -> None:
    root = draw_voc(tmp_path / below, "2007_1", "2007_2", "2007_10")
    Image.new("RGB", (4, 3)).save(root / "JPEGImages/2007_99.jpg")
    write_list(root, "train.txt", "2007_10", "2007_1")
    write_list(root, "val.txt", "2007_2")
    write_list(root, "trainval.txt", "2007_1", "2007_2", "2007_10")
    write_list(root, "test.txt", "2007_99")  # its masks are not public
    found = read_folder(tmp_path)
    assert [(pair.name, pair.split) for pair in found.pairs] == [
        ("2007_1", "train"),
        ("2007_2", "val"),
        ("2007_10", "train"),
    ]
    assert all(pair.mask.path.parent.name == "SegmentationClass" for pair in found.pairs)
    assert "test.txt" in found.remarks[0]
    assert "1 image in no list" in found.remarks[1]


def draw_cells(root: Path, masks: dict[str, tuple[int, ...]], frames: int = 4) -> Path:
    """Two sequences of the Cell Tracking Challenge; folder of masks -> the frames that it has."""
    rng = np.random.default_rng(0)
    for sequence in ("01", "02"):
        ids = {f"{sequence}/t{frame:03d}.tif": 0 for frame in range(frames)}
        for folder, numbers in masks.items():
            ids |= {f"{sequence}_{folder}/SEG/man_seg{frame:03d}.tif": frame + 1 for frame in numbers}
        ids |= {f"{sequence}_GT/TRA/man_track{frame:03d}.tif": 9 for frame in range(frames)}
        for name, value in ids.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60_000, (24, 24)) if value == 0 else value * (np.indices((24, 24)).sum(0) < 20)
            tifffile.imwrite(root / name, pixels.astype(np.uint16))
    return root


@pytest.mark.parametrize("below", [".", "Fluo-N2DH-SIM+"])
@pytest.mark.parametrize(
    ("masks", "folder", "frames", "skipped"),
    [
        ({"ST": (0, 1, 2, 3), "GT": (1, 3)}, "ST", (0, 1, 2, 3), False),
        ({"GT": (1, 3)}, "GT", (1, 3), True),
    ],
)
def test_cell_tracking(
    tmp_path: Path, below: str, masks: Any, folder: str, frames: tuple[int, ...], skipped: bool
) -> None:
    draw_cells(tmp_path / below, masks)
    found = read_folder(tmp_path)
    assert [(pair.name, pair.mask.path.parts[-3:]) for pair in found.pairs] == [
        (f"{sequence}/t{frame:03d}", (f"{sequence}_{folder}", "SEG", f"man_seg{frame:03d}.tif"))
        for sequence in ("01", "02")
        for frame in frames
    ]
    assert found.table == ("0=background", "*=cell")
    assert f"01_{folder}/SEG/, 02_{folder}/SEG/" in found.remarks[0]
    assert any("4 frames without a mask" in remark for remark in found.remarks) == skipped


def test_a_mask_of_a_cell_sequence_without_its_frame(tmp_path: Path) -> None:
    draw_cells(tmp_path, {"GT": (1, 3)})
    (tmp_path / "02/t003.tif").unlink()
    with pytest.raises(DataError, match=r"02_GT/SEG/man_seg003\.tif"):
        read_folder(tmp_path)


def test_cells_are_one_class(tmp_path: Path) -> None:
    draw_cells(tmp_path / "cells", {"ST": (0, 1, 2, 3)})
    assert '"*=cell"' in ubend.data(tmp_path / "cells", out=tmp_path / "out").read_text()


def test_voc_classes_by_their_palette(tmp_path: Path) -> None:
    """The first colours as the challenge's page shows them."""
    assert [_voc_color(index) for index in (1, 2, 3, 8, 15, 20)] == [
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (64, 0, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]
    voc = [channel for index in range(256) for channel in _voc_color(index)]
    found = read_folder(draw_voc(tmp_path / "voc", "2007_000001", "2011_003255", palette=voc))
    assert found.classes is not None
    assert (found.classes[0], found.classes[15], found.values) == ("background", "person", tuple(range(21)))
    assert found.ignored == (255,)
    grey = [level for level in range(256) for _channel in range(3)]
    for name, stem, palette in (("grey", "2007_000001", grey), ("own", "a", voc)):  # LabelMe exports have it too
        other = read_folder(draw_voc(tmp_path / name, stem, palette=palette))
        assert (other.classes, other.values, other.ignored) == (None, None, ())
    own = draw_voc(tmp_path / "named", "2011_000001", palette=voc)
    (own / "class_names.txt").write_text("_background_\ncat\n")
    assert (read_folder(own).classes, read_folder(own).values) == (("_background_", "cat"), None)


def test_cvat_labelmap(tmp_path: Path) -> None:
    draw_voc(tmp_path, "a", "b", "c")
    write_list(tmp_path, "default.txt", "a", "b")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:255,0,16::\n")
    found = read_folder(tmp_path)
    assert [(pair.name, pair.split) for pair in found.pairs] == [("a", None), ("b", None)]
    assert (found.classes, found.colors) == (("background", "car"), ((0, 0, 0), (255, 0, 16)))


def test_voc_list_without_files(tmp_path: Path) -> None:
    draw_voc(tmp_path, "a")
    write_list(tmp_path, "train.txt", "a", "gone")
    write_list(tmp_path, "val.txt", "a")
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    listed, both = caught.value.problems
    assert "(1): gone;" in listed
    assert "(1): a;" in both


@pytest.mark.parametrize(
    ("file", "text", "names", "values", "colors"),
    [
        ("class_dict.csv", "name,r,g,b\nsky,1,2,3\nroad,4,5,6\n", "sky road", None, ((1, 2, 3), (4, 5, 6))),
        ("class_dict.csv", "\ufeffR;G;B;Name\n1;2;3;sky\n4;5;6;road\n", "sky road", None, ((1, 2, 3), (4, 5, 6))),
        ("labelmap.txt", "sky:1,2,3::\n\nroad:4,5,6:a,b:c\n", "sky road", None, ((1, 2, 3), (4, 5, 6))),
        ("classes.txt", "sky\nroad\n", "sky road", None, None),
        ("_classes.txt", "0 sky\n2 road\n", "sky road", (0, 2), None),
        ("label_names.txt", "0,sky\n1, road\n", "sky road", (0, 1), None),
        ("_classes.csv", "Pixel Value, Class\n0, sky\n2, road\n", "sky road", (0, 2), None),
        ("classes.txt", "7up\n8\n", "7up 8", None, None),
    ],
)
def test_class_tables(
    tmp_path: Path,
    file: str,
    text: str,
    names: str,
    values: tuple[int, ...] | None,
    colors: tuple[tuple[int, int, int], ...] | None,
) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    problems = Problems(tmp_path)
    table = read_class_table([tmp_path], problems)
    assert not problems
    assert table is not None
    assert (table.names, table.values, table.colors) == (tuple(names.split()), values, colors)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("class_dict.csv", "name,r,g\nsky,1,2\n"),
        ("class_dict.csv", "name,r,g,b\nsky,1,2\n"),
        ("class_dict.csv", "name,r,g,b\nsky,1,2,300\n"),
        ("class_dict.csv", "name,r,g,b\nsky,1,2,3\nroad,1,2,3\n"),
        ("class_dict.csv", ""),
        ("labelmap.txt", "sky\n"),
        ("labelmap.txt", "sky:1,2::\n"),
        ("classes.txt", "sky\nsky\n"),
        ("_classes.csv", "Pixel Value, Class\n0, sky, 1\n"),
        ("classes.txt", "0 sky\n0 road\n"),
        ("classes.txt", "sky\n" + 201 * "a"),
    ],
)
def test_unusable_class_tables(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    problems = Problems(tmp_path)
    assert read_class_table([tmp_path], problems) is None
    with pytest.raises(DataError, match=file):
        problems.raise_any()
