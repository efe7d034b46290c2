"""Published sets as their archives unpack: the right file of several, and names that nobody else would choose."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.refusal import raises
from ubend.core.errors import DataError
from ubend.labels.mask_files import FileMask, read_label_values
from ubend.layouts.folder import ReadOptions, read_folder, read_pairs

SIZE_HW = (6, 8)


def draw(root: Path, *names: str, noise: bool = False) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.arange(48).reshape(SIZE_HW) * 5 if noise else np.eye(*SIZE_HW) * 255
        Image.fromarray(pixels.astype(np.uint8)).save(root / name)


def pairs(root: Path, *, skip_bad: bool = False) -> dict[str, str]:
    """Image -> mask, as paths below the root."""
    found = read_folder(root, ReadOptions(skip_bad=skip_bad))
    return {
        pair.image.relative_to(root).as_posix(): pair.mask.path.relative_to(root).as_posix() for pair in found.pairs
    }


def test_drive_takes_the_vessels_not_the_field_of_view(tmp_path: Path) -> None:
    for part, numbers in (("training", ("21", "22")), ("test", ("01", "02"))):
        for number in numbers:
            draw(tmp_path / part, f"images/{number}_{part}.tif", f"mask/{number}_{part}_mask.gif")
            draw(tmp_path / part, f"1st_manual/{number}_manual1.gif")
    draw(tmp_path / "test", "2nd_manual/01_manual2.gif")
    assert pairs(tmp_path) == {
        f"{part}/images/{number}_{part}.tif": f"{part}/1st_manual/{number}_manual1.gif"
        for part, number in (("test", "01"), ("test", "02"), ("training", "21"), ("training", "22"))
    }
    assert [pair.split for pair in read_folder(tmp_path).pairs] == ["test", "test", "train", "train"]
    assert read_folder(tmp_path / "training").classes == ("background", "vessel")
    (tmp_path / "training/1st_manual/22_manual1.gif").unlink()
    with raises(DataError, key="no mask", named=["(1): training/images/22_training.tif"]):
        read_folder(tmp_path)


def test_hrf_takes_the_vessels_not_the_field_of_view(tmp_path: Path) -> None:
    for name in ("01_dr", "02_g", "03_h"):
        draw(tmp_path, f"images/{name}.jpg", f"manual1/{name}.tif", f"mask/{name}_mask.tif")
    assert pairs(tmp_path) == {f"images/{name}.jpg": f"manual1/{name}.tif" for name in ("01_dr", "02_g", "03_h")}
    (remark,) = (line for line in read_folder(tmp_path).remarks if "by hand" in line)
    assert "(manual1/)" in remark
    assert "skipped: mask/" in remark


def test_cityscapes_takes_the_label_ids(tmp_path: Path) -> None:
    for where in ("train/aachen/aachen_000000_000019", "val/munster/munster_000000_000019", "test/berlin/berlin_1_2"):
        draw(tmp_path, f"leftImg8bit/{where}_leftImg8bit.png")
        draw(tmp_path, *(f"gtFine/{where}_gtFine_{kind}.png" for kind in ("labelIds", "color", "instanceIds")))
    found = read_folder(tmp_path)
    assert [pair.split for pair in found.pairs] == ["train", "val"]
    assert all(pair.mask.path.name.endswith("_gtFine_labelIds.png") for pair in found.pairs)
    assert found.classes is not None
    assert found.values is not None
    assert dict(zip(found.values, found.classes, strict=True))[26] == "car"
    assert sorted([*found.values, *found.ignored]) == list(range(34))
    (tmp_path / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png").unlink()
    with raises(DataError, key="no mask"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("image", "mask", "part"),
    [
        ("ISIC2018_Task1-2_Training_Input/{}.jpg", "ISIC2018_Task1_Training_GroundTruth/{}_segmentation.png", "train"),
        ("ISIC-2017_Training_Data/{}.jpg", "ISIC-2017_Training_Part1_GroundTruth/{}_segmentation.png", None),
        ("2_Ortho_RGB/top_{}_RGB.tif", "5_Labels_all/top_{}_label.tif", None),
        ("imagesTr/{}_0000.png", "labelsTr/{}.png", "train"),
        ("Train/Urban/images_png/{}.png", "Train/Urban/masks_png/{}.png", "train"),
        ("train_img/{}.jpg", "train_lab/{}.png", "train"),
        ("train/{}.jpg", "train_masks/{}_mask.gif", "train"),
        ("benign/benign ({}).png", "benign/benign ({})_mask.png", None),
        ("701_StillsRaw_full/{}.png", "LabeledApproved_full/{}_L.png", None),
    ],
)
def test_names_of_published_sets(tmp_path: Path, image: str, mask: str, part: str | None) -> None:
    stems = ("a_01", "a_02", "b_15")
    for stem in stems:
        draw(tmp_path, image.format(stem), noise=True)
        draw(tmp_path, mask.format(stem))
    assert pairs(tmp_path) == {image.format(stem): mask.format(stem) for stem in stems}
    assert {pair.split for pair in read_folder(tmp_path).pairs} == {part}


def test_folders_that_disagree_are_paired_by_unique_names_only(tmp_path: Path) -> None:
    draw(tmp_path, "one/1.jpg", "two/1.jpg", "red/1_mask.png", "blue/1_mask.png")
    with pytest.raises(DataError, match="without a mask"):
        read_folder(tmp_path)


def test_second_observer_is_requested_for(tmp_path: Path) -> None:
    for stem in ("Image_01L", "Image_01R", "Image_02L"):
        draw(tmp_path, f"{stem}.jpg", f"{stem}_1stHO.png", f"{stem}_2ndHO.png")
    with raises(DataError, key="several sets") as caught:
        read_folder(tmp_path)
    _told, images, _masks, masks, _end = caught.value.problems[0].split("'")
    found = read_pairs(images, masks)
    assert [pair.mask.path.name for pair in found.pairs] == [f"Image_{n}_1stHO.png" for n in ("01L", "01R", "02L")]


def test_a_test_split_without_masks_is_left_out(tmp_path: Path) -> None:
    """As competitions publish it: nobody has these masks. Images without masks elsewhere are a mistake."""
    draw(tmp_path, "train/images/1.tif", "train/gt/1.tif", "train/images/2.tif", "train/gt/2.tif", "test/images/9.tif")
    found = read_folder(tmp_path)
    assert [(pair.name, pair.split) for pair in found.pairs] == [("train/1", "train"), ("train/2", "train")]
    assert any("test split has no masks: 1 image" in remark for remark in found.remarks)
    draw(tmp_path, "val/images/7.tif")  # DeepGlobe
    assert sorted(pairs(tmp_path)) == ["train/images/1.tif", "train/images/2.tif"]
    draw(tmp_path, "val/gt/7.tif", "test/images/8.tif", "test/gt/8.tif")
    with raises(DataError, key="no mask", named=["(1): test/images/9.tif", "--skip-bad"]):
        read_folder(tmp_path)


def test_parts_without_masks_are_left_out_when_requested(tmp_path: Path) -> None:
    draw(tmp_path, "train/images/1.tif", "train/gt/1.tif", "train/images/2.tif", "train/gt/2.tif", "val/images/9.tif")
    with raises(DataError, key="split without masks", named=["--skip-bad"]):
        read_folder(tmp_path)
    assert list(pairs(tmp_path, skip_bad=True)) == ["train/images/1.tif", "train/images/2.tif"]


SPLIT_LAYOUTS = {  # as UAVid, ISIC 2017, CRACK500, TrainDataset of polyps, and GlaS name their files
    "folders": ("uavid_{}/seq1/Images/{}.png", "uavid_{}/seq1/Labels/{}.png", ("train", "val", "test")),
    "words between": (
        "ISIC-2017_{}_Data/ISIC_{}.jpg",
        "ISIC-2017_{}_Part1_GroundTruth/ISIC_{}_segmentation.png",
        ("Training", "Validation", "Test_v2"),
    ),
    "glued": ("{}crop/{}.jpg", "{}crop/{}.png", ("train", "val", "test")),
    "camel": ("{}Dataset/image/{}.png", "{}Dataset/mask/{}.png", ("Train", "Val", "Test")),
    "file names": ("{}_{}.bmp", "{}_{}_anno.bmp", ("train", "val", "testA")),
    "file names end": ("images/{1}_{0}.png", "masks/{1}_{0}_mask.png", ("training", "validation", "test")),
}


@pytest.mark.parametrize("layout", SPLIT_LAYOUTS)
def test_splits_in_longer_names(tmp_path: Path, layout: str) -> None:
    image, mask, words = SPLIT_LAYOUTS[layout]
    for number in range(6):
        draw(tmp_path, image.format(words[number % 3], number + 10), noise=True)
        draw(tmp_path, mask.format(words[number % 3], number + 10))
    found = {pair.image.relative_to(tmp_path).as_posix(): pair.split for pair in read_folder(tmp_path).pairs}
    names = ("train", "val", "test")
    assert found == {image.format(words[number % 3], number + 10): names[number % 3] for number in range(6)}


@pytest.mark.parametrize("place", ["", "splits/", "ImageSets/Segmentation/"])
@pytest.mark.parametrize("form", ["{}", "images/{}.png", "{}.png masks/{}.png", "./images/{}.png,masks/{}.png"])
def test_lists_of_splits(tmp_path: Path, place: str, form: str) -> None:
    """As in Kvasir-Instrument, LandCover.ai and DeepLab's lists."""
    stem = "a_b" if " masks" in form else "a b"
    for number in range(4):
        draw(tmp_path, f"images/{stem}{number}.png", f"masks/{stem}{number}.png")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for word, numbers in {"train": (0, 2), "val": (1,), "test": (3,)}.items():
        lines = [form.replace("{}", f"{stem}{number}") for number in numbers]
        (tmp_path / f"{place}{word}.txt").write_text("\n".join([*lines, ""]))
    found = read_folder(tmp_path)
    assert [pair.split for pair in found.pairs] == ["train", "val", "train", "test"]
    assert f"the split is taken from {place}test.txt, {place}train.txt, {place}val.txt" in found.remarks
    (tmp_path / f"{place}val.txt").unlink()
    found = read_folder(tmp_path)
    assert {pair.split for pair in found.pairs} == {None}
    assert any("are not used" in remark and "--split" in remark for remark in found.remarks)


def test_lists_beside_a_split_file(tmp_path: Path) -> None:
    """A split file with groups alone keeps the lists, and says so; one with splits replaces them."""
    for number in range(3):
        draw(tmp_path, f"images/{number}.png", f"masks/{number}.png")
    for number, word in enumerate(("train", "val", "test")):
        (tmp_path / f"{word}.txt").write_text(f"{number}\n")
    (tmp_path / "groups.csv").write_text("file,group\n0,a\n1,b\n2,c\n")
    found = read_folder(tmp_path, ReadOptions(tmp_path / "groups.csv"))
    assert [pair.split for pair in found.pairs] == ["train", "val", "test"]
    assert any("is taken from" in remark for remark in found.remarks)
    (tmp_path / "splits.csv").write_text("file,split\n0,test\n1,val\n2,train\n")
    found = read_folder(tmp_path, ReadOptions(tmp_path / "splits.csv"))
    assert [pair.split for pair in found.pairs] == ["test", "val", "train"]
    assert not any("is taken from" in remark for remark in found.remarks)


def test_a_list_whose_names_are_ambiguous_is_not_used(tmp_path: Path) -> None:
    for place in ("a", "b"):
        for number in range(2):
            draw(tmp_path, f"images/{place}/{number}.png", f"masks/{place}/{number}.png")
    (tmp_path / "train.txt").write_text("0\n")
    (tmp_path / "test.txt").write_text("1\n")
    assert {pair.split for pair in read_folder(tmp_path).pairs} == {None}
    (tmp_path / "train.txt").write_text("a/0\n/data/images/b/0.png\na/1\n")
    assert {pair.split for pair in read_folder(tmp_path).pairs} == {None}  # the last path matches two images


@pytest.mark.parametrize("names", [("{}_v1", "{}_v2"), ("annotator1/{}", "annotator2/{}"), ("{}_expertA", "{}_manual")])
def test_annotators_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    for number in range(3):
        draw(tmp_path, f"images/c{number}.png", *(f"masks/{name.format(f'c{number}')}.png" for name in names))
    with raises(DataError, key="several sets", named=["--masks", f"masks/{names[0].format('c0')}.png"]):
        read_folder(tmp_path)
    found = read_pairs(f"{tmp_path}/images", f"{tmp_path}/masks/{names[0].replace('{}', '*')}.png")
    assert len(found.pairs) == 3


def test_an_image_without_a_mask_does_not_hide_the_suffix_of_the_others(tmp_path: Path) -> None:
    """nnU-Net's images end in _0000, its labels do not."""
    for number in range(5):
        draw(tmp_path, f"images/case_{number}_0000.png")
        draw(tmp_path, *([f"labels/case_{number}.png"] if number else []))
    with raises(DataError, key="no mask", named=["(1): images/case_0_0000.png"]):
        read_folder(tmp_path)
    assert len(pairs(tmp_path, skip_bad=True)) == 4


@pytest.mark.parametrize("folders", [("crash_test", "street"), ("atrain", "atest", "more")])
def test_names_that_state_no_split_of_all_images(tmp_path: Path, folders: tuple[str, ...]) -> None:
    """`crash_test` has no neighbour that differs by the word alone; `more` would be in no split."""
    for folder in folders:
        draw(tmp_path, f"{folder}/images/{folder}.png", f"{folder}/masks/{folder}.png")
    found = read_folder(tmp_path).pairs
    assert [(pair.name, pair.split) for pair in found] == [(f"{name}/{name}", None) for name in sorted(folders)]


def test_numbers_without_leading_zeros(tmp_path: Path) -> None:
    draw(tmp_path, "images/0001.png", "images/0010.png", "masks/1.png", "masks/10.png")
    assert pairs(tmp_path) == {"images/0001.png": "masks/1.png", "images/0010.png": "masks/10.png"}
    draw(tmp_path, "images/01.png")  # now 1.png may be the mask of either
    with raises(DataError, named=["images/0001.png", "images/01.png"]):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("image", "mask", "splits"),
    [
        ("DUTS-TR/DUTS-TR-Image/{}.jpg", "DUTS-TR/DUTS-TR-Mask/{}.png", {"train"}),
        ("train/train-org-img/{}.jpg", "train/train-label-img/{}_lab.png", {"train"}),  # FloodNet
        ("stare-images/{}.ppm", "labels-ah/{}.ah.ppm", {None}),
        ("CXR_png/{}.png", "ManualMask/{}.png", {None}),
        ("tissue images/{}.png", "mask binary/{}.png", {None}),
        ("1. Original Images/{}.jpg", "2. All Segmentation Groundtruths/{}_EX.tif", {None}),  # IDRiD
        ("dev/images/{}.jpg", "dev/masks/{}.png", {"val"}),
        ("train_val/images/{}.jpg", "train_val/masks/{}.bmp", {"train"}),  # SUIM
        ("images/{}.png", "lesions/{}.png", {None}),
        ("images/{}.png", "ids/{}.png", {None}),
    ],
)
def test_longer_names_of_folders(tmp_path: Path, image: str, mask: str, splits: set[str | None]) -> None:
    stems = ("a_01", "a_02", "b_15")
    for stem in stems:
        draw(tmp_path, image.format(stem), noise=True)
        draw(tmp_path, mask.format(stem))
    assert pairs(tmp_path) == {image.format(stem): mask.format(stem) for stem in stems}
    assert {pair.split for pair in read_folder(tmp_path).pairs} == splits


def test_masks_numbered_with_a_letter(tmp_path: Path) -> None:
    """As in ETIS-LaribPolypDB; two letters may be two things."""
    for number in (1, 2, 13):
        draw(tmp_path, f"polyps/{number}.tif", f"Ground Truth/p{number}.tif", f"x/images/a{number}.png")
        draw(tmp_path, f"x/masks/b{number}.png")
    (tmp_path / "x").rename(tmp_path.parent / "letters")
    assert pairs(tmp_path) == {f"polyps/{number}.tif": f"Ground Truth/p{number}.tif" for number in (1, 2, 13)}
    with raises(DataError, named=["images/a13.png", "masks/b13.png"]):
        read_folder(tmp_path.parent / "letters")


def test_idrid_states_a_split(tmp_path: Path) -> None:
    expected = {}
    for split, number in (("a. Training Set", "01"), ("a. Training Set", "02"), ("b. Testing Set", "55")):
        image = f"1. Original Images/{split}/IDRiD_{number}.jpg"
        mask = f"2. All Segmentation Groundtruths/{split}/3. Hard Exudates/IDRiD_{number}_EX.tif"
        draw(tmp_path, image, noise=True)
        draw(tmp_path, mask)
        expected[image] = mask
    assert pairs(tmp_path) == expected
    assert [pair.split for pair in read_folder(tmp_path).pairs] == ["test", "train", "train"]


def test_masks_in_colours_beside_others_are_skipped(tmp_path: Path) -> None:
    """As in BDD100K."""
    expected = {f"images/10k/{part}/a.jpg": f"labels/sem_seg/masks/{part}/a.png" for part in ("train", "val")}
    draw(tmp_path, *expected, noise=True)
    draw(tmp_path, *expected.values(), *(f"labels/sem_seg/colormaps/{part}/a.png" for part in ("train", "val")))
    assert pairs(tmp_path) == expected
    assert any("labels/sem_seg/colormaps/train/" in remark for remark in read_folder(tmp_path).remarks)
    shutil.rmtree(tmp_path / "labels/sem_seg/masks")
    assert set(pairs(tmp_path).values()) == {name.replace("/masks/", "/colormaps/") for name in expected.values()}


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"Iout")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("annotations.xml", b'<?xml version="1.0"?>\n<annotations>', "CVAT"),
        ("via_region_data.json", b'{"1.png9": {"regions": [{"shape_attributes": {}}]}}', "VIA"),
        ("via_export.csv", b"#filename,file_size,region_shape_attributes", "VIA"),
        ("ds/ann/1.png.json", b'{"objects": [{"classTitle": "cat"}]}', "Supervisely"),
        ("train.csv", b'ImageId,"EncodedPixels"\r\n1.png,1 3', "run lengths"),
        ("labels/1.mat", b"MATLAB 5.0", "MATLAB"),
        ("geojson/1.geojson", b"{}", "vector maps"),
        ("houses.json", b'{"type": "FeatureCollection"}', "vector maps"),
        ("1.roi", b"Iout", "ImageJ"),
        ("rois.zip", zipped("0001.roi"), "ImageJ"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    draw(tmp_path, "images/1.png", "images/2.png", noise=True)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with raises(DataError, key="unread format", named=[name]) as caught:
        read_folder(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("notes.csv", b"file,age"), ("a.json", b"{}"), ("b.zip", b"PK"), ("c.zip", zipped("1.png"))]
)
def test_other_files_are_no_annotations(tmp_path: Path, name: str, content: bytes) -> None:
    draw(tmp_path, "images/1.png", "images/2.png", noise=True)
    (tmp_path / name).write_bytes(content)
    with raises(DataError, key="no masks"):
        read_folder(tmp_path)


def test_numbered_folders_of_images_and_of_masks(tmp_path: Path) -> None:
    """As in TNBC; what the files show tells the two kinds apart."""
    slides = {f"Slide_{n:02}/{n:02}_{k}.png": f"GT_{n:02}/{n:02}_{k}.png" for n in (1, 2, 11) for k in (1, 2)}
    draw(tmp_path, *slides, noise=True)
    draw(tmp_path, *slides.values())
    assert pairs(tmp_path) == slides
    draw(tmp_path, "GT_11/11_3.png")
    with raises(DataError, named=["GT_11/11_3.png"]):
        read_folder(tmp_path)


@pytest.mark.parametrize(("image", "mask"), [("raw", "Labels"), ("scan", "mask"), ("t1", "gt"), ("raw", "seg_label")])
def test_one_image_and_one_mask_in_each_folder(tmp_path: Path, image: str, mask: str) -> None:
    cases = {f"P{n:02}/{image}.tif": f"P{n:02}/{mask}.tif" for n in (1, 2, 3)}
    draw(tmp_path, *cases, *cases.values())
    assert pairs(tmp_path) == cases
    draw(tmp_path, f"P02/{image}2.tif")
    with raises(DataError, named=[f"P02/{image}2.tif", "P02/" + mask]):  # which of the two?
        read_folder(tmp_path)


def test_overlays_and_thumbnails_are_skipped(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{folder}/1.png" for folder in ("images", "masks", "overlays", "images/thumbnails")))
    assert pairs(tmp_path) == {"images/1.png": "masks/1.png"}
    (remark,) = read_folder(tmp_path).remarks
    assert "(2 images): images/thumbnails/, overlays/" in remark


@pytest.mark.parametrize("inverted", [False, True])
def test_gif_counts_by_its_colours(tmp_path: Path, inverted: bool) -> None:
    """Programs number the colours of a GIF as they like."""
    truth = np.eye(*SIZE_HW, dtype=np.uint8)
    image = Image.fromarray(truth ^ inverted).convert("P")
    image.putdata((truth ^ inverted).ravel().tolist())
    image.putpalette([255, 255, 255, 0, 0, 0] if inverted else [0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "mask.gif", optimize=False)
    codes = read_label_values(FileMask(tmp_path / "mask.gif"), SIZE_HW)
    assert codes.kind == "value"
    np.testing.assert_array_equal(codes.values, truth * 255)


def test_moving_gif(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 6), level) for level in (0, 255)]
    frames[0].save(tmp_path / "mask.gif", save_all=True, append_images=frames[1:])
    with raises(DataError, path="mask.gif", key="frames", named=["2"]):
        read_label_values(FileMask(tmp_path / "mask.gif"), SIZE_HW)
