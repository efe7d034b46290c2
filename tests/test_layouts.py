"""One truth in many layouts; random trees give exactly their pairs or an error, never other pairs."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.discs import make_discs
from support.files import touch
from support.folder_annotations import labelme
from support.folders import Maker
from support.refusal import raises
from support.work import count_calls
from ubend.core.errors import DataError
from ubend.labels.mask_files import FileMask, LayeredMask
from ubend.layouts.folder import ReadOptions, read_folder, read_pairs
from ubend.layouts.pairs import Folder

STEMS = ("a1", "b2", "scan 3")


def paint(path: Path, values: int, mode: str = "L") -> None:
    """An image of this many values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.arange(4096) % values).astype(np.uint8).reshape(64, 64)).convert(mode).save(path)


def found_pairs(folder: Folder, root: Path) -> dict[str, tuple[str, ...]]:
    """Image -> its masks, as relative paths."""
    return {
        pair.image.relative_to(root).as_posix(): tuple(path.relative_to(root).as_posix() for path in pair.mask.files)
        for pair in folder.pairs
    }


def problems(read: Callable[[], object]) -> list[str]:
    with pytest.raises(DataError) as caught:
        read()
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


# One mask for each image


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("IMAGES/{}.PNG", "Labels/{}.tif"),
        ("img/{}.jpg", "gt/{}.npy"),
        ("Photos/{}.jpg", "Ground Truth/{}.png"),
        ("x/{}.png", "y/{}.png"),
        ("original/{}.png", "ground_truth/{}.png"),
        ("inputs/{}.png", "targets/{}_label.png"),
        ("pictures/png/{}.png", "annotations/trimaps/{}.png"),
        ("{}.jpg", "masks/{}.png"),
        ("{}.jpg", "{}_mask.png"),
        ("{}.jpg", "mask_{}.png"),
        ("{}.png", "{}_GT.png"),
        ("img_{}.png", "mask_{}.png"),
        ("images/img_{}.png", "masks/mask_{}.png"),
        ("images/{}_leftImg8bit.png", "masks/{}_gtFine_labelIds.png"),
        ("images/{}.png", "masks/{}_L.png"),
        ("images/{}.png", "masks/drawn by anna-{}.png"),
        ("images/{}_sat.jpg", "masks/{}_lulc.png"),
        ("images/{}.jpg", "masks/{}.jpg.png"),
        ("{}/image.png", "{}/mask.png"),
        ("{}/images/{}.png", "{}/masks/0f3e.png"),
    ],
)
def test_names_of_two_sides(tmp_path: Path, image: str, mask: str) -> None:
    expected = {}
    for stem in STEMS:
        one, other = image.replace("{}", stem), mask.replace("{}", stem)
        touch(tmp_path / one, tmp_path / other)
        expected[one] = (other,)
    found = read_folder(tmp_path)
    assert found_pairs(found, tmp_path) == expected
    assert all(isinstance(pair.mask, FileMask) for pair in found.pairs)


@pytest.mark.parametrize(
    ("image", "mask", "name"),
    [
        ("{part}/images/{stem}.png", "{part}/masks/{stem}.png", "{part}/{stem}"),
        ("images/{part}/{stem}.png", "masks/{part}/{stem}.png", "{part}/{stem}"),
        ("{part}/{stem}.png", "{part}_labels/{stem}_L.png", "{part}/{stem}"),
        ("{part}_images/{stem}.png", "{part}_masks/{stem}.png", "{part}/{stem}"),
        ("X_{part}/{stem}.png", "y_{part}/{stem}.png", "{part}/{stem}"),
        ("images/{part}/{stem}.png", "masks/{stem}.png", "{part}/{stem}"),
        ("images/{part}/p7/{stem}.png", "masks/{part}/P7/{stem}.png", "{part}/p7/{stem}"),
        ("{part}/{stem}.jpg", "{part}/{stem}_mask.png", "{part}/{stem}"),
    ],
)
def test_parts(tmp_path: Path, image: str, mask: str, name: str) -> None:
    expected = {}
    for number, part in enumerate(("train", "val", "test")):
        facts = {"part": part, "stem": f"s{number}"}
        touch(tmp_path / image.format(**facts), tmp_path / mask.format(**facts))
        expected[name.format(**facts)] = (part, image.format(**facts), (mask.format(**facts),))
    found = read_folder(tmp_path)
    pairs = found_pairs(found, tmp_path)
    assert {
        pair.name: (pair.split, image, pairs[image]) for pair, image in zip(found.pairs, pairs, strict=True)
    } == expected


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}/{}.png", "masks/{}/{}.png"),
        ("{}/images/{}.png", "{}/masks/{}.png"),
        ("images/{}/{}.png", "masks/{}/{}_mask.png"),
        ("{}/{}.png", "{}/{}_mask.png"),
    ],
)
def test_subfolders(tmp_path: Path, image: str, mask: str) -> None:
    """The same names come back in every folder."""
    for patient in ("p1", "p2"):
        for stem in ("001", "002"):
            touch(tmp_path / image.format(patient, stem), tmp_path / mask.format(patient, stem))
    found = read_folder(tmp_path)
    assert [pair.name for pair in found.pairs] == ["p1/001", "p1/002", "p2/001", "p2/002"]
    for pair in found.pairs:
        assert pair.image.relative_to(tmp_path).as_posix() == image.format(*pair.name.split("/"))
        assert pair.mask.path.relative_to(tmp_path).as_posix() == mask.format(*pair.name.split("/"))


@pytest.mark.parametrize(
    ("image", "mask"),
    [("{}_raw.png", "{}_manual1.png"), ("{}.png", "{}-by_anna v2.png"), ("{}.jpg", "{}.png"), ("a_{}.png", "b_{}.png")],
)
def test_looks_decide_where_names_do_not(tmp_path: Path, image: str, mask: str) -> None:
    for stem in STEMS:
        paint(tmp_path / image.format(stem), 251, "RGB")
        paint(tmp_path / mask.format(stem), 3)
    expected = {image.format(stem): (mask.format(stem),) for stem in STEMS}
    assert found_pairs(read_folder(tmp_path), tmp_path) == expected


@pytest.mark.parametrize("names", [("scans", "annotations"), ("raw", "drawn")])
def test_folders_within_folders_by_patterns(names: tuple[str, str], tmp_path: Path) -> None:
    """Each patient has a folder of images and one of masks, of any names; numbers begin again for each."""
    expected = {}
    for patient, number in itertools.product(("p1", "p2"), (1, 2)):
        image, mask = f"{patient}/{names[0]}/{number}.png", f"{patient}/{names[1]}/{number}_mask.png"
        paint(tmp_path / image, 251)
        paint(tmp_path / mask, 2)
        expected[image] = (mask,)
    assert found_pairs(read_pairs(*(f"{tmp_path}/*/{name}/*.png" for name in names)), tmp_path) == expected


def test_unclear_sides_are_requested_for_and_the_answer_works(tmp_path: Path) -> None:
    for stem in STEMS:
        paint(tmp_path / f"{stem}_raw.png", 251)
        paint(tmp_path / f"{stem}_manual1.png", 251)
    (line,) = problems(lambda: read_folder(tmp_path))
    assert f"--images '{tmp_path}/*_manual1.png' --masks '{tmp_path}/*_raw.png'" in line
    found = read_pairs(f"{tmp_path}/*_raw.png", f"{tmp_path}/*_manual1.png")
    assert found_pairs(found, tmp_path) == {f"{stem}_raw.png": (f"{stem}_manual1.png",) for stem in STEMS}


# Several masks for each image


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{0}/images/{0}.png", "{0}/masks/{1}f0.png"),
        ("images/{0}.png", "masks/{0}/{1}f0.png"),
        ("images/{0}.png", "masks/{0}_{1}.png"),
        ("images/{0}.png", "masks/{0}_mask_{1}.png"),
        ("{0}.png", "{0}_mask{1}.png"),
        ("images/{0}.png", "masks/{0}_obj{1}.png"),
        ("{0}/image.png", "{0}/mask_{1}.png"),
    ],
)
def test_one_mask_per_object(tmp_path: Path, image: str, mask: str) -> None:
    expected = {}
    for number, stem in enumerate(STEMS):
        masks = tuple(mask.format(stem, f"{number}{i}") for i in range(number + 1))
        touch(tmp_path / image.format(stem), *(tmp_path / one for one in masks))
        expected[image.format(stem)] = masks
    found = read_folder(tmp_path)
    assert found_pairs(found, tmp_path) == expected
    assert (found.classes, found.values) == (("background", "foreground"), (0, 1))
    assert {
        layer.value for pair in found.pairs if isinstance(pair.mask, LayeredMask) for layer in pair.mask.layers
    } == {1}
    assert "per object" in found.layout


@pytest.mark.parametrize(
    "mask", ["masks/{1}/{0}.png", "masks/{0}_{1}.png", "masks/{1}_{0}.png", "masks/{0}/{1}.png", "masks/{1}/{0}_gt.png"]
)
def test_one_mask_per_class(tmp_path: Path, mask: str) -> None:
    expected = {}
    for stem in (*STEMS, "d4"):
        words = ["car", "road", "Tree"] if stem != "d4" else ["road"]
        masks = [mask.format(stem, word) for word in words]
        touch(tmp_path / f"images/{stem}.png", *(tmp_path / one for one in masks))
        expected[f"images/{stem}.png"] = set(masks)
    found = read_folder(tmp_path)
    assert {image: set(masks) for image, masks in found_pairs(found, tmp_path).items()} == expected
    assert found.values == (0, 1, 2, 3)
    assert found.classes is not None
    for pair in found.pairs:
        assert isinstance(pair.mask, LayeredMask)
        assert all(found.classes[layer.value] in layer.path.as_posix() for layer in pair.mask.layers)
    assert "per class (car, road, Tree)" in found.layout


def test_folders_that_are_neither_classes_nor_the_images(tmp_path: Path) -> None:
    """Batches of masks look like classes of which each image has one: that is not guessed."""
    for stem, batch in (("1", "x1"), ("2", "x1"), ("3", "x2"), ("4", "x2")):
        touch(tmp_path / f"images/{stem}.png", tmp_path / f"masks/{batch}/{stem}.png")
    assert problems(lambda: read_folder(tmp_path))[0].key == "no mask"
    found = read_pairs(f"{tmp_path}/images", f"{tmp_path}/masks/*/*.png")
    assert len(found.pairs) == 4


# Junk, overlays, what is not on any side


def test_overlays_are_passed_over_when_each_image_has_a_mask(tmp_path: Path) -> None:
    for stem in STEMS:
        touch(
            tmp_path / f"images/{stem}.png", tmp_path / f"masks/{stem}_mask.png", tmp_path / f"masks/{stem}_overlay.png"
        )
    found = read_folder(tmp_path)
    assert found_pairs(found, tmp_path) == {f"images/{s}.png": (f"masks/{s}_mask.png",) for s in STEMS}
    assert "3 overlays" in found.remarks[0]
    (tmp_path / f"masks/{STEMS[0]}_mask.png").unlink()
    assert problems(lambda: read_folder(tmp_path))


def test_images_that_would_be_lost(tmp_path: Path) -> None:
    touch(tmp_path / "images/1.png", tmp_path / "masks/1.png", tmp_path / "more/2.png", tmp_path / "preview.png")
    (line,) = problems(lambda: read_folder(tmp_path))
    assert line.key == "skipped"
    assert "(1): more;" in line
    shutil.rmtree(tmp_path / "more")
    assert "preview.png" in read_folder(tmp_path).remarks[0]


def test_the_annotations_of_cvat(tmp_path: Path) -> None:
    touch(tmp_path / "images/1.png", tmp_path / "images/2.png")
    (tmp_path / "annotations.xml").write_text(
        '<?xml version="1.0"?>\n<annotations><version>1.1</version></annotations>'
    )
    (line,) = problems(lambda: read_folder(tmp_path))
    assert line.key == "unread format"
    assert "annotations.xml" in line
    (tmp_path / "annotations.xml").write_text("<root/>")
    (line,) = problems(lambda: read_folder(tmp_path))
    assert line.key == "no masks"


def test_an_unknown_folder_beside_the_images(tmp_path: Path) -> None:
    touch(tmp_path / "images/1.png", tmp_path / "regions/1.png")
    (line,) = problems(lambda: read_folder(tmp_path))
    assert line.key == "unclear folders"
    assert f"--images '{tmp_path}/images' --masks '{tmp_path}/regions'" in line
    assert len(read_pairs(f"{tmp_path}/images", f"{tmp_path}/regions").pairs) == 1


# Near misses


def test_a_mask_that_may_be_of_either_image_is_of_none(tmp_path: Path) -> None:
    touch(tmp_path / "images/x.png", tmp_path / "images/x_mask.png", tmp_path / "masks/x_mask.png")
    touch(tmp_path / "images/y.png", tmp_path / "masks/y.png")
    first, second = problems(lambda: read_folder(tmp_path))
    assert "(2): images/x.png, images/x_mask.png (did" in first
    assert "(1): masks/x_mask.png (did" in second
    found = read_folder(tmp_path, ReadOptions(skip_bad=True))
    assert [pair.name for pair in found.pairs] == ["y"]


def test_other_things_with_the_same_numbers(tmp_path: Path) -> None:
    touch(*(tmp_path / f"images/cat_{i}.png" for i in range(3)), *(tmp_path / f"masks/dog_{i}.png" for i in range(3)))
    first, second = problems(lambda: read_folder(tmp_path))
    assert "images/cat_0.png" in first
    assert "masks/dog_0.png" in second


@pytest.mark.parametrize(("image", "mask"), [("cell 1", "cell_1"), ("cell_01", "cell_1"), ("cell-1", "Cell1")])
def test_near_misses_are_named(tmp_path: Path, image: str, mask: str) -> None:
    touch(tmp_path / "images/x.png", tmp_path / "masks/x.png")
    touch(tmp_path / f"images/{image}.png", tmp_path / f"masks/{mask}.png")
    first, second = problems(lambda: read_folder(tmp_path))
    assert f"images/{image}.png (did you mean masks/{mask}.png?)" in first
    assert f"masks/{mask}.png (did you mean images/{image}.png?)" in second


def test_case_counts_only_where_names_differ_by_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path / "images/A.png", tmp_path / "masks/a.png")
    assert len(read_folder(tmp_path).pairs) == 1
    touch(tmp_path / "images/b.png", tmp_path / "images/B.png", tmp_path / "masks/b.png", tmp_path / "masks/B.png")
    assert "images/A.png (did you mean masks/a.png?)" in problems(lambda: read_folder(tmp_path))[0]


# Two lists


def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stem in STEMS:
        touch(tmp_path / f"here/raw/{stem}.png", tmp_path / f"there/{stem}.tif")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = read_pairs("~/here/raw", "~/there/*.tif")
    assert found_pairs(found, tmp_path) == {f"here/raw/{s}.png": (f"there/{s}.tif",) for s in STEMS}
    first, second = problems(lambda: read_pairs("~/nowhere/*.png", "~/there/*.png"))
    assert "~/nowhere/*.png" in first
    assert "~/there/*.png" in second
    (line,) = problems(lambda: read_pairs("~/there", "~/there"))
    assert line.key == "both sides"
    assert "3" in line


def test_twice_as_many_pairs_are_twice_the_work(tmp_path: Path) -> None:
    for count in (1000, 2000):
        for side, ending in (("images", ".jpg"), ("masks", "_mask.png")):
            touch(*(tmp_path / str(count) / side / f"picture_{number}{ending}" for number in range(count)))
    assert len(read_folder(tmp_path / "2000").pairs) == 2000
    once, twice = (count_calls(lambda: read_folder(tmp_path / name)) for name in ("1000", "2000"))  # noqa: B023
    assert twice < 2.1 * once


def test_one_image_called_a_mask_among_annotated_ones(tmp_path: Path) -> None:
    """It is an image without annotations; the others keep theirs."""
    labelme(Maker(tmp_path))
    (tmp_path / "cell_3.jpg").rename(tmp_path / "cell_6_mask.jpg")
    with raises(DataError, named=["cell_3.jpg"]) as caught:
        read_folder(tmp_path)
    assert "cell_0.jpg" not in str(caught.value)


def test_the_folder_images_alone_names_the_one_above(tmp_path: Path) -> None:
    make_discs(tmp_path / "data", 3)
    (line,) = problems(lambda: read_folder(tmp_path / "data" / "images"))
    assert line.key == "no masks"
    assert line.endswith(str(tmp_path / "data"))
