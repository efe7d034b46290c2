"""Folder layouts -> pairs, and what is reported about folders with faults."""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ubend.core.errors import DataError, Problem
from ubend.labels.mask_files import FileMask
from ubend.layouts.folder import ReadOptions, read_folder
from ubend.layouts.problems import natural_key

DATA = Path(os.environ.get("UBEND_DATA", Path(__file__).parents[1] / "../shared/data"))


MASK_ENDINGS = ("_mask", "_Mask", "_cp_masks", "_masks", "_seg", "_segmentation", "_label", "_gt", "-mask", "_L")


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1)).save(path)


def draw_flat(root: Path, *stems: str) -> Path:
    for stem in stems:
        draw(root / "images" / f"{stem}.jpg", root / "masks" / f"{stem}.png")
    return root


def draw_pets(root: Path) -> Path:
    for stem in ("pug_1", "pug_2", "pug_10", "unlisted"):
        draw(root / f"images/{stem}.jpg", root / f"annotations/trimaps/{stem}.png")
    (root / "annotations/trainval.txt").write_text("pug_1 1 2 3\npug_10 1 2 3\n")
    (root / "annotations/test.txt").write_text("#name class\npug_2 1 2 3\n\n")
    (root / "images/pug_3.mat").write_text("junk")
    (root / "annotations/trimaps/._pug_1.png").write_text("")
    return root


def problems(root: Path, split: Path | None = None) -> list[Problem]:
    with pytest.raises(DataError) as caught:
        read_folder(root, ReadOptions(split))
    assert "{" not in str(caught.value)
    assert caught.value.path == root
    return caught.value.problems


def write_split(root: Path, *lines: str, header: str = "file,split") -> Path:
    path = root / "split.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


# Layouts


def test_flat_in_natural_order(tmp_path: Path) -> None:
    found = read_folder(draw_flat(tmp_path, "a10", "a2", "b1"))
    assert [pair.name for pair in found.pairs] == ["a2", "a10", "b1"]
    assert found.pairs[0].image == tmp_path / "images/a2.jpg"
    assert found.pairs[0].mask == FileMask(tmp_path / "masks/a2.png")
    assert {(pair.split, pair.group) for pair in found.pairs} == {(None, None)}
    assert (found.root, found.classes, found.values) == (tmp_path, None, None)


@pytest.mark.parametrize("ending", MASK_ENDINGS)
def test_mask_endings(tmp_path: Path, ending: str) -> None:
    draw(tmp_path / "images/x.PNG", tmp_path / f"masks/x{ending}.tif")
    assert [pair.name for pair in read_folder(tmp_path).pairs] == ["x"]


def test_image_whose_own_name_ends_like_a_mask(tmp_path: Path) -> None:
    draw_flat(tmp_path, "x", "x_mask")
    assert [pair.mask.path.stem for pair in read_folder(tmp_path).pairs] == ["x", "x_mask"]


def test_accents_composed_and_taken_apart_are_one_name(tmp_path: Path) -> None:
    name = "ảnh"
    draw(tmp_path / "images" / (unicodedata.normalize("NFD", name) + ".png"), tmp_path / f"masks/{name}.png")
    assert read_folder(tmp_path, ReadOptions(write_split(tmp_path, f"{name}.png,train"))).pairs[0].name == name


@pytest.mark.parametrize(
    "words", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "valid", "TEST")]
)
def test_parts(tmp_path: Path, words: tuple[str, str, str]) -> None:
    for word in words:
        draw_flat(tmp_path / word, "1")
    found = read_folder(tmp_path)
    assert {pair.name: pair.split for pair in found.pairs} == {
        "test/1": "test",
        "train/1": "train",
        "val/1": "val",
    }


def test_junk_is_passed_over(tmp_path: Path) -> None:
    draw_flat(tmp_path, "1")
    for junk in ("._1.jpg", "Thumbs.db", ".DS_Store", "a.json", "a.txt", "a.csv", "a.mat", "a.xml"):
        (tmp_path / "images" / junk).write_text("")
        (tmp_path / "masks" / junk).write_text("")
    (tmp_path / "kavsir_bboxes.json").write_text("{}")
    assert len(read_folder(tmp_path).pairs) == 1


@pytest.mark.parametrize("below", ["Kvasir-SEG", "Kvasir-SEG/Kvasir-SEG"])
def test_nested(tmp_path: Path, below: str) -> None:
    draw_flat(tmp_path / below, "1")
    draw_flat(tmp_path / "__MACOSX", "1")
    found = read_folder(tmp_path)
    assert found.root == tmp_path / below
    assert below in found.layout
    assert found.pairs[0].name == "1"


def test_a_wrapper_is_no_part_of_the_names(tmp_path: Path) -> None:
    draw_flat(tmp_path / "a/b/c", "1")
    found = read_folder(tmp_path)
    assert found.root == tmp_path / "a/b/c"
    assert [pair.name for pair in found.pairs] == ["1"]


@pytest.mark.parametrize("below", [".", "oxford-iiit-pet"])
def test_pets(tmp_path: Path, below: str) -> None:
    found = read_folder(draw_pets(tmp_path / below).parent if below != "." else draw_pets(tmp_path))
    assert [(p.name, p.split) for p in found.pairs] == [("pug_1", "train"), ("pug_2", "test"), ("pug_10", "train")]
    assert (found.classes, found.values) == (("pet", "background", "contour"), (1, 2, 3))
    assert "Oxford-IIIT Pet" in found.layout


@pytest.mark.parametrize("place", ["data", "."])
def test_classes_file(tmp_path: Path, place: str) -> None:
    draw_flat(tmp_path / "data", "1")
    (tmp_path / place / "classes.txt").write_text("\ufeffnền\n polyp \n\n", encoding="utf-8")
    assert read_folder(tmp_path).classes == ("nền", "polyp")


# Faults of folders


def test_nothing_found_shows_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (line,) = problems(tmp_path)
    assert line.key == "nothing"
    assert "notes/" in line
    assert "Oxford-IIIT Pet" in line
    assert "\n" not in line


def test_images_alone_are_for_predict(tmp_path: Path) -> None:
    draw(tmp_path / "images/a.jpg", tmp_path / "images/b.jpg")
    (line,) = problems(tmp_path)
    assert line.key == "no masks"
    assert "2" in line


def test_no_folder_or_a_file(tmp_path: Path) -> None:
    assert problems(tmp_path / "absent")[0].path == tmp_path / "absent"
    (tmp_path / "data.zip").write_text("")
    assert problems(tmp_path / "data.zip")[0].path == tmp_path / "data.zip"


def test_two_data_sets(tmp_path: Path) -> None:
    draw_flat(tmp_path / "a", "1")
    draw_pets(tmp_path / "b")
    (line,) = problems(tmp_path)
    assert line.key == "several sets"
    assert "a, b" in line


def test_empty_layout(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    assert "images/, masks/" in problems(tmp_path)[0]


def test_all_problems_at_once_worst_first(tmp_path: Path) -> None:
    draw_flat(tmp_path, "good", "empty", "double", "twice")
    draw(tmp_path / "images/alone.png", tmp_path / "masks/orphan.png", tmp_path / "masks/double_seg.png")
    draw(tmp_path / "images/twice.png", tmp_path / "images/deeper/1.png")
    (tmp_path / "images/empty.jpg").write_bytes(b"")
    (tmp_path / "images/moving.gif").write_bytes(b"x")
    (tmp_path / "classes.txt").write_text("a\na\n")
    found = problems(tmp_path)
    expected = [
        ("no mask", "images/alone.png, images/deeper/1.png"),
        ("no image", "masks/orphan.png"),
        ("two masks", "double (masks/double.png, masks/double_seg.png)"),
        ("two images", "twice (twice.jpg, twice.png)"),
        ("empty", "images/empty.jpg"),
        ("foreign", "images/moving.gif"),
        ("classes", "classes.txt"),
    ]
    assert [line.key for line in found] == [key for key, _names in expected]
    for line, (_key, names) in zip(found, expected, strict=True):
        assert names in line
        assert "good" not in line


def test_broken_link_and_empty_mask(tmp_path: Path) -> None:
    draw_flat(tmp_path, "1", "2")
    (tmp_path / "images/1.jpg").unlink()
    (tmp_path / "images/1.jpg").symlink_to("nowhere")
    (tmp_path / "masks/2.png").write_bytes(b"")
    (line,) = problems(tmp_path)
    assert "(2): images/1.jpg, masks/2.png" in line


def test_long_lists_are_cut(tmp_path: Path) -> None:
    draw_flat(tmp_path, "x")
    draw(*(tmp_path / f"images/{i}.png" for i in range(13)))
    (line,) = problems(tmp_path)
    assert "(13)" in line
    assert "images/9.png, ... and 3 more" in line
    assert "images/10.png" not in line


def test_part_without_masks_and_part_twice(tmp_path: Path) -> None:
    draw_flat(tmp_path / "train", "1")
    draw_flat(tmp_path / "test", "1")
    draw_flat(tmp_path / "testing", "2")
    draw(tmp_path / "val/images/1.png")
    missing, twice = problems(tmp_path)
    assert (missing.key, twice.key) == ("split without masks", "same split")
    assert "(1): val/images;" in missing
    assert "test + testing" in twice


def test_pets_faults(tmp_path: Path) -> None:
    draw_pets(tmp_path)
    (tmp_path / "annotations/trimaps/pug_10.png").unlink()
    (tmp_path / "annotations/test.txt").write_text("pug_1\npug_7\n")
    listed, both = problems(tmp_path)
    assert (listed.key, both.key) == ("listed", "both lists")
    assert "(2): pug_7, pug_10" in listed
    assert "(1): pug_1;" in both
    (tmp_path / "annotations/test.txt").unlink()
    assert "annotations/test.txt" in problems(tmp_path)[0]


# Split files


def test_split_spellings_groups_and_words(tmp_path: Path) -> None:
    draw_flat(tmp_path / "set", "1", "2", "3", "4")
    split = write_split(
        tmp_path,
        "1,train,p1",
        "images\\2.jpg,Validation,",
        "./set/images/3.jpg,testing,p2",
        "",
        "4.jpg,training,p1",
        "4,train,p1",
        header="\ufeffFile,Split,Group",
    )
    found = [(pair.split, pair.group) for pair in read_folder(tmp_path, ReadOptions(split)).pairs]
    assert found == [("train", "p1"), ("val", None), ("test", "p2"), ("train", "p1")]


def test_split_with_semicolons_replaces_the_parts_of_the_layout(tmp_path: Path) -> None:
    for part in ("train", "val"):
        draw_flat(tmp_path / part, "1")
    split = write_split(tmp_path, "train/1;test", "val/images/1.jpg;train", header="file;split")
    assert [pair.split for pair in read_folder(tmp_path, ReadOptions(split)).pairs] == ["test", "train"]


def test_unused_split_file_is_mentioned(tmp_path: Path) -> None:
    """Only if it has the columns, and neither --split nor folders state a split."""
    draw_flat(tmp_path, "1", "2")
    (tmp_path / "names.csv").write_text("file,objects\n1,3\n")
    split = write_split(tmp_path, "1,train", "2,test")
    os.mkfifo(tmp_path / "pipe.csv")

    def mentions(options: ReadOptions) -> list[str]:
        return [remark for remark in read_folder(tmp_path, options).remarks if ".csv" in remark]

    (remark,) = mentions(ReadOptions())
    assert f"--split {split}" in remark
    assert mentions(ReadOptions(split)) == []


def test_split_faults(tmp_path: Path) -> None:
    draw_flat(tmp_path, "1", "2", "3", "4")
    split = write_split(tmp_path, "1,train", "1.jpg,test", "2,trian", "3", "9.jpg,val")
    word, twice, unknown, missing = problems(tmp_path, split)
    assert [line.key for line in (word, twice, unknown, missing)] == [
        "split word",
        "split twice",
        "split unknown",
        "split missing",
    ]
    assert "(2): 2: trian, 3: -" in word
    assert "(1): 1.jpg" in twice
    assert "(1): 9.jpg" in unknown
    assert "(1): 4;" in missing


def test_split_name_that_fits_two_pairs(tmp_path: Path) -> None:
    for part in ("train", "val"):
        draw_flat(tmp_path / part, "1")
    (line,) = problems(tmp_path, write_split(tmp_path, "1.jpg,train"))
    assert line.key == "split unclear"


@pytest.mark.parametrize(
    ("content", "piece"),
    [(b"name,part\n1,train\n", "columns file and split"), (b"", "split.csv"), (b"\xff\xfe\x00", "split.csv")],
)
def test_split_file_unusable(tmp_path: Path, content: bytes, piece: str) -> None:
    draw_flat(tmp_path, "1")
    (tmp_path / "split.csv").write_bytes(content)
    (line,) = problems(tmp_path, tmp_path / "split.csv")
    assert line.key == "split file"
    assert piece in line
    assert "file,split,group" in line


def test_split_file_absent_is_told_with_the_folder_problems(tmp_path: Path) -> None:
    draw_flat(tmp_path, "1")
    draw(tmp_path / "images/2.jpg")
    first, second = problems(tmp_path, tmp_path / "absent.csv")
    assert (first.key, second.key) == ("no mask", "split file")
    assert "absent.csv" in second


@given(st.lists(st.text("ab01_", max_size=6), max_size=8, unique=True))
def test_natural_order_is_total(names: list[str]) -> None:
    other_way = names[::-1]
    assert sorted(names, key=natural_key) == sorted(other_way, key=natural_key)


def test_natural_order() -> None:
    names = ["9", "10", "a2", "a02x", "a10", "b", "b1"]
    assert sorted({*names}, key=natural_key) == names
    assert natural_key("2") < natural_key("9" * 5000)


# Real data


@pytest.mark.skipif(not (DATA / "kvasir-seg").is_dir(), reason="no kvasir-seg under UBEND_DATA")
def test_real_kvasir() -> None:
    found = read_folder(DATA / "kvasir-seg", ReadOptions(DATA / "kvasir-seg/splits.csv"))
    assert Counter(pair.split for pair in found.pairs) == {"train": 800, "val": 100, "test": 100}
    assert all(pair.image.stem == pair.mask.path.stem == pair.name for pair in found.pairs)


@pytest.mark.skipif(not (DATA / "oxford-iiit-pet").is_dir(), reason="no oxford-iiit-pet under UBEND_DATA")
def test_real_pets() -> None:
    found = read_folder(DATA / "oxford-iiit-pet")
    assert Counter(pair.split for pair in found.pairs) == {"train": 1590, "test": 1344}
