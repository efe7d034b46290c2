"""Sets and exports as they are published: read as they are, or refused with the way out."""

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.annotated import coco_in_annotations, yolo_plain
from support.refusal import raises
from ubend.core.errors import DataError
from ubend.labels.cellpose import read_cellpose
from ubend.labels.mask_files import read_label_values
from ubend.layouts.folder import read_folder
from ubend.layouts.pairs import Folder

SIZE_HW = (12, 16)


def disc(number: int = 0) -> np.ndarray:
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    return np.asarray(((y - 5) ** 2 + (x - 4 - number) ** 2 < 9) * 255, np.uint8)


def draw(root: Path, name: str, pixels: np.ndarray | None = None) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(len(name)).integers(0, 255, SIZE_HW, np.uint8)
    Image.fromarray(pixels).save(root / name)


def masks(folder: Folder) -> list[np.ndarray]:
    return [read_label_values(pair.mask, SIZE_HW).values for pair in folder.pairs]


def test_second_masks_of_some_images(tmp_path: Path) -> None:
    """BUSI: `benign (4)_mask.png` and `benign (4)_mask_1.png` are two objects of one image."""
    for number in range(1, 6):
        draw(tmp_path, f"benign ({number}).png")
        draw(tmp_path, f"benign ({number})_mask.png", disc())
    draw(tmp_path, "benign (4)_mask_1.png", disc(6))
    found = read_folder(tmp_path)
    assert (found.classes, len(found.pairs)) == (("background", "foreground"), 5)
    np.testing.assert_array_equal(masks(found)[3], (disc() | disc(6)) > 0)
    draw(tmp_path, "benign (4)_1.png")  # now the second mask may be this image's
    with raises(DataError, key="no mask", named=["benign (4)_1.png"]):
        read_folder(tmp_path)


def test_a_number_without_a_word_is_no_second_mask(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        draw(tmp_path, f"images/{name}.png")
        draw(tmp_path, f"masks/{name}.png", disc())
    draw(tmp_path, "masks/b_1.png", disc())
    with raises(DataError, key="two masks"):
        read_folder(tmp_path)


def seg_npy(path: Path, ids: np.ndarray, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array({"masks": ids, "outlines": ids * 0, "filename": "a.tif", "flows": [[], ids], **more}))


@pytest.mark.parametrize("dtype", ["uint16", "uint8", "int32", ">i4", "int64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_cellpose_alone(tmp_path: Path, dtype: str, order: Any) -> None:
    """Read as data, beside the image, in the folder of images too."""
    ids = np.array((disc() > 0) + 2 * (disc(6) > 0), dtype, order=order)
    for place in ("", "images/"):
        draw(tmp_path / (place or "flat"), f"{place}a.png")
        seg_npy(tmp_path / (place or "flat") / f"{place}a_seg.npy", ids, diameter=np.float64(3))
        found = read_folder(tmp_path / (place or "flat"))
        np.testing.assert_array_equal(masks(found)[0], ids)


@pytest.mark.parametrize("mask", ["images/{}_cp_masks.png", "masks/{}.png"])
def test_cellpose_beside_masks(tmp_path: Path, mask: str) -> None:
    for name in "abc":
        draw(tmp_path, f"images/{name}.tif")
        draw(tmp_path, mask.format(name), disc())
        seg_npy(tmp_path / f"images/{name}_seg.npy", disc())
    found = read_folder(tmp_path)
    assert all(pair.mask.path.suffix == ".png" for pair in found.pairs)
    assert any("(3)" in line for line in found.remarks)


def test_numbers_called_seg_are_masks(tmp_path: Path) -> None:
    draw(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks/a_seg.npy", disc())
    np.testing.assert_array_equal(masks(read_folder(tmp_path))[0], disc())


class Payload:
    def __init__(self, call: Callable[..., Any], argument: str) -> None:
        self.call, self.argument = call, argument

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.call, (self.argument,)


def test_nothing_in_a_file_of_cellpose_is_executed(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    np.save(tmp_path / "a_seg.npy", np.array(Payload(Path.touch, str(tmp_path / "ran")), dtype=object))
    with raises(DataError, path="a_seg.npy"):
        masks(read_folder(tmp_path))
    seg_npy(tmp_path / "a_seg.npy", disc(), more=Payload(Path, "x"), cry=Payload(print, "ran"))
    np.testing.assert_array_equal(masks(read_folder(tmp_path))[0], disc())
    assert not (tmp_path / "ran").exists()


_MEMO = b"".join(b"(h%ch%ct\x94" % (number, number) for number in range(60))  # each a tuple of the one before, twice


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b"x.",  # BYTEARRAY8 of 8 GiB
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",  # BINBYTES8
        b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",  # FRAME
        b"\x80\x04" + b"N" + b"\x85" * 100_000 + b".",
        b"\x80\x04}]\x94" + _MEMO + b"Ns.",  # a key whose hash would take years
        b"I" + b"9" * 100_000 + b"\n.",
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"(S'touch ran'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch ran'\no.",
        b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch ran\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",
        b"\x82\x01.",  # EXT1
        b"Pid\n.",
    ],
)
def test_pickles_that_are_no_files_of_cellpose(body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs, no object of another module is made, and no more memory is taken than the file has a few times."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a_seg.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(body)
    tracemalloc.start()
    try:
        with raises(DataError, path=path):
            read_cellpose(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a_seg.npy"]


@given(st.binary(max_size=60), st.integers(0, 400), st.booleans())
def test_damaged_files_of_cellpose(noise: bytes, place: int, cut: bool) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "a_seg.npy"
        seg_npy(path, disc())
        whole = path.read_bytes()
        place = whole.index(b"\x80") + place  # behind the header
        path.write_bytes(whole[:place] + noise + (b"" if cut else whole[place + len(noise) :]))
        draw(Path(folder), "a.png")
        with contextlib.suppress(DataError):  # nothing else comes out of it
            masks(read_folder(Path(folder)))


def export(root: Path, result: Callable[[int], list[dict[str, Any]]], count: int = 4) -> None:
    for number in range(count):
        draw(root, f"images/p{number}.png")
    tasks = [
        {
            "id": 30 + number,
            "data": {"image": f"/data/upload/1/0123abcd-p{number}.png"},
            "annotations": [{"id": 7 + number, "completed_by": 1, "result": result(number)}],
        }
        for number in range(count)
    ]
    (root / "project.json").write_text(json.dumps(tasks))


BRUSH = [{"id": "r", "type": "brushlabels", "value": {"format": "rle", "rle": [0, 1], "brushlabels": ["Tree"]}}]


@pytest.mark.parametrize("place", ["masks", "images", "."])
def test_brush_labels_as_png(tmp_path: Path, place: str) -> None:
    """The masks are called after tasks; the JSON export says whose they are. The last task is annotated as empty."""
    export(tmp_path, lambda number: BRUSH if number < 3 else [])
    with raises(DataError, key="brush", named=["JSON"]):
        read_folder(tmp_path)
    for number in range(3):
        name = f"{place}/task-{30 + number}-annotation-{7 + number}-by-1-tag"
        draw(tmp_path, f"{name}-Tree-0.png", disc(number))
        draw(tmp_path, f"{name}-Big bush-0.png", disc(number + 6))
    found = read_folder(tmp_path)
    assert found.classes == ("background", "Big bush", "Tree")
    assert [pair.image.stem for pair in found.pairs] == ["p0", "p1", "p2", "p3"]
    for number, values in enumerate(masks(found)[:3]):
        expected = np.where(disc(number) > 0, 2, disc(number + 6) > 0)
        free = (disc(number) == 0) | (disc(number + 6) == 0)
        np.testing.assert_array_equal(values[free], expected[free])
    assert not masks(found)[3].any()
    (tmp_path / "project.json").unlink()
    with raises(DataError, named=["JSON"]):
        read_folder(tmp_path)


def test_labels_beside_polygons(tmp_path: Path) -> None:
    """`<Labels>` with `<Polygon>`: a region and its labels are two results of one id; so are answers about it."""
    outline = {"points": [[0, 0], [50, 0], [50, 50], [0, 50]], "closed": True}
    box = {"x": 50, "y": 50, "width": 50, "height": 50}
    export(
        tmp_path,
        lambda number: [
            {"id": "a", "type": "polygon", "value": outline},
            {"id": "a", "type": "labels", "value": {**outline, "labels": ["Tree"]}},
            {"id": "a", "type": "choices", "value": {**outline, "choices": ["sure"]}},
            {"id": "b", "type": "rectangle", "value": box},
            {"id": "b", "type": "labels", "value": {**box, "labels": ["Bush"]}},
            {"id": "c", "type": "polygonlabels", "value": {**outline, "polygonlabels": ["Tree"]}},
        ],
    )
    found = read_folder(tmp_path)
    assert found.classes == ("background", "Bush", "Tree")
    expected = np.zeros(SIZE_HW, np.uint8)
    expected[:6, :8], expected[6:, 8:] = 2, 1
    np.testing.assert_array_equal(masks(found)[0], expected)
    export(tmp_path, lambda number: [{"id": "a", "type": "polygon", "value": outline}])
    with raises(DataError, key="one label"):
        read_folder(tmp_path)


def test_annotations_as_a_table(tmp_path: Path) -> None:
    """LIVECell: `annotations` by their ids."""
    coco_in_annotations(tmp_path / "list")
    coco_in_annotations(tmp_path / "table")
    for path in (tmp_path / "table").rglob("instances*.json"):
        content = json.loads(path.read_text())
        for key in ("annotations", "images", "categories"):
            content[key] = {str(number): entry for number, entry in enumerate(content[key])}
        path.write_text(json.dumps(content))
    one, other = read_folder(tmp_path / "list"), read_folder(tmp_path / "table")
    assert [vars(pair.mask)["shapes"] for pair in one.pairs] == [vars(pair.mask)["shapes"] for pair in other.pairs]
    assert one.classes == other.classes


@pytest.mark.parametrize("word", ["_superpixels.png", "-depth.jpg"])
def test_second_files_of_images(tmp_path: Path, word: str) -> None:
    """ISIC 2017 has superpixels beside each image."""
    for number in range(1, 5):
        draw(tmp_path, f"Training_Data/ISIC_{number:04}.jpg")
        draw(tmp_path, f"Training_Data/ISIC_{number:04}{word}")
        draw(tmp_path, f"Part1_GroundTruth/ISIC_{number:04}_segmentation.png", disc())
    found = read_folder(tmp_path)
    assert [pair.image.suffix for pair in found.pairs] == [".jpg"] * 4
    assert any(f"(4): NAME{word}" in line for line in found.remarks)
    draw(tmp_path, "Training_Data/ISIC_0009.jpg")
    with raises(DataError, key="no mask", named=["ISIC_0009"]):
        read_folder(tmp_path)


def test_cityscapes_with_training_ids_only(tmp_path: Path) -> None:
    for where in ("train/aachen/a_1_2", "val/munster/m_1_2"):
        draw(tmp_path, f"leftImg8bit/{where}_leftImg8bit.png")
        draw(tmp_path, f"gtFine/{where}_gtFine_labelTrainIds.png", np.where(disc() > 0, 13, 255).astype(np.uint8))
    found = read_folder(tmp_path)
    assert found.classes is not None
    assert found.values is not None
    assert dict(zip(found.values, found.classes, strict=True))[13] == "car"
    assert (len(found.classes), found.ignored) == (19, (255,))
    for path in tmp_path.rglob("*labelTrainIds.png"):
        path.rename(path.with_name(path.name.replace("labelTrainIds", "color")))
    with raises(DataError, key="no masks", named=["_gtFine_labelIds", "_gtFine_labelTrainIds"]):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["classes.txt", "class_dict.csv", "_classes.csv", "labelmap.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_names_with_accents(tmp_path: Path, name: str, encoding: str) -> None:
    for number in range(3):
        draw(tmp_path, f"images/{number}.png")
        draw(tmp_path, f"masks/{number}.png", disc())
    lines = {
        "classes.txt": "fond\nvélo\n",
        "class_dict.csv": "name,r,g,b\nfond,0,0,0\nvélo,255,255,255\n",
        "_classes.csv": "value,name\n0,fond\n255,vélo\n",
        "labelmap.txt": "fond:0,0,0::\nvélo:255,255,255::\n",
    }
    (tmp_path / name).write_text(lines[name], encoding=encoding)
    if encoding == "cp1252":
        with raises(DataError, key="encoding", named=[name, "UTF-8"]):
            read_folder(tmp_path)
    else:
        assert read_folder(tmp_path).classes == ("fond", "vélo")


def test_names_of_yolo_with_accents(tmp_path: Path) -> None:
    yolo_plain(tmp_path)
    for path in tmp_path.glob("*.yaml"):
        path.unlink()
    (tmp_path / "classes.txt").write_bytes("vélo\nauto\nx\ny\n".encode("cp1252"))
    with raises(DataError, key="encoding", named=["classes.txt"]):
        read_folder(tmp_path)


def test_loveda_is_named(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path, f"Train/Urban/images_png/{number}.png")
        draw(tmp_path, f"Train/Urban/masks_png/{number}.png", disc() // 85)
    assert any("LoveDA" in line and "0=ignored" in line for line in read_folder(tmp_path).remarks)
