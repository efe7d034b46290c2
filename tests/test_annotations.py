"""Polygon annotations: one truth written in each format reads as the same class maps; faults are named."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from support.annotated import (
    NAMES,
    SIZE,
    TRUTH,
    WRITERS,
    coco_in_annotations,
    coco_json,
    coco_result,
    corners,
    draw,
    label_studio,
    label_studio_prefixed_images,
    labelme_beside,
    labelme_json,
    truth,
    write,
    yolo_by_roboflow,
    yolo_parts,
    yolo_plain,
    yolo_text,
)
from support.refusal import raises
from support.tally import Tally
from support.work import count_calls
from ubend.core.errors import DataError
from ubend.labels.mask_files import FileMask, read_label_values
from ubend.layouts.folder import ReadOptions, read_folder
from ubend.layouts.labelme import LABELME
from ubend.layouts.pairs import Folder
from ubend.layouts.yolo import parse_names


@pytest.mark.parametrize("write_all", WRITERS, ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("inside", ["", "unpacked/once"])
def test_one_truth(tmp_path: Path, write_all: Callable[[Path], None], inside: str) -> None:
    write_all(tmp_path / inside)
    folder = read_folder(tmp_path)
    assert folder.root == tmp_path / inside
    assert folder.classes == NAMES
    assert folder.values == (0, 1, 2)
    found = {pair.image.stem.removeprefix("0123abcd-"): pair for pair in folder.pairs}
    assert found.keys() == TRUTH.keys()
    for stem, pair in found.items():
        np.testing.assert_array_equal(read_label_values(pair.mask, SIZE).values, truth(stem))


def splits(folder: Folder) -> dict[str, str | None]:
    return {pair.name: pair.split for pair in folder.pairs}


def test_parts_and_names(tmp_path: Path) -> None:
    coco_in_annotations(tmp_path / "coco")
    assert splits(read_folder(tmp_path / "coco")) == {"train/a": "train", "train/b c": "train", "val/ü": "val"}
    yolo_by_roboflow(tmp_path / "yolo")
    assert splits(read_folder(tmp_path / "yolo")) == {"train/a": "train", "val/b c": "val", "test/ü": "test"}
    labelme_beside(tmp_path / "labelme")
    assert splits(read_folder(tmp_path / "labelme")) == {"a": None, "b c": None, "ü": None}


def test_names_of_images_are_no_parts(tmp_path: Path) -> None:
    """A file called after an image of a train or a test says nothing of parts, nor does the only file of a set."""
    draw(tmp_path / "labelme", "train_1", "test_2", "bus_3")
    for stem in ("train_1", "test_2", "bus_3"):
        write(tmp_path / f"labelme/{stem}.json", labelme_json("a"))
    assert set(splits(read_folder(tmp_path / "labelme")).values()) == {None}
    yolo_plain(tmp_path / "yolo")
    draw(tmp_path / "yolo/images", "train_1")
    write(tmp_path / "yolo/labels/train_1.txt", yolo_text("a"))
    assert set(splits(read_folder(tmp_path / "yolo")).values()) == {None}
    draw(tmp_path / "coco")
    write(tmp_path / "coco/my test.json", coco_json())
    assert set(splits(read_folder(tmp_path / "coco")).values()) == {None}


def test_remarks(tmp_path: Path) -> None:
    coco_in_annotations(tmp_path / "coco")
    draw(tmp_path / "coco/images/val2017", "new")
    said = "\n".join(read_folder(tmp_path / "coco").remarks)
    assert "without any object in the annotation files, all background: 1" in said
    assert "are skipped (1): images/val2017/new.jpg" in said
    assert "person_keypoints_val2017.json" in said
    label_studio_prefixed_images(tmp_path / "studio")
    assert "several annotations: 1" in "\n".join(read_folder(tmp_path / "studio").remarks)
    yolo_parts(tmp_path / "yolo")
    assert "without a text file, all background: 1" in "\n".join(read_folder(tmp_path / "yolo").remarks)


@pytest.mark.parametrize("write_all", [coco_result, label_studio, yolo_plain])
def test_drawn_masks_go_before_annotations(tmp_path: Path, write_all: Callable[[Path], None]) -> None:
    write_all(tmp_path)
    (tmp_path / "masks").mkdir()
    for stem in TRUTH:
        Image.fromarray(truth(stem)).save(tmp_path / "masks" / f"{stem}.png")
    assert [type(pair.mask) for pair in read_folder(tmp_path).pairs] == [FileMask] * 3


@pytest.mark.parametrize("place", ["masks/train", "SegmentationClass", ""])
def test_annotations_beside_drawn_masks_are_not_read(tmp_path: Path, place: str) -> None:
    labelme_beside(tmp_path)
    assert LABELME.fits(tmp_path)
    draw(tmp_path / place, "a_mask", suffix=".png")
    assert not LABELME.fits(tmp_path)


def test_names_of_the_background_and_of_what_is_not_scored(tmp_path: Path) -> None:
    draw(tmp_path, "a")
    labels = ("cat", "_background_", "__ignore__")
    shapes = [{"label": n, "points": corners(8 * i, 0, 8 * i + 12, 9)} for i, n in enumerate(labels)]
    write(tmp_path / "a.json", labelme_json("a", imagePath="a.jpg", shapes=shapes))
    folder = read_folder(tmp_path)
    assert (folder.classes, folder.values, folder.ignored) == (("background", "cat"), (0, 1), (255,))
    row = read_label_values(folder.pairs[0].mask, SIZE).values[0]
    assert row.tolist() == [1] * 8 + [0] * 8 + [255] * 12 + [0] * 12


def test_circles_and_turned_boxes(tmp_path: Path) -> None:
    draw(tmp_path, "a")
    circle = {"label": "cat", "points": [[20, 15], [20, 5]], "shape_type": "circle"}
    write(tmp_path / "a.json", labelme_json("a", shapes=[circle]))
    drawn = read_label_values(read_folder(tmp_path).pairs[0].mask, SIZE).values
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    radius = np.hypot(x - 20, y - 15)
    assert drawn[radius < 9.7].all()
    assert not drawn[radius > 10.3].any()


def refusal(root: Path) -> dict[str | None, str]:
    """Key of each problem -> its line."""
    with pytest.raises(DataError) as caught:
        read_folder(root)
    assert "{" not in str(caught.value).replace("{count}", "")
    told = {problem.key: problem for problem in caught.value.problems}
    assert len(told) == len(caught.value.problems)
    return told


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write(path, content)


# What is done to the file -> the key of the problem, and what it names.
COCO_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "category": (lambda c: c["annotations"][0].update(category_id=99), "unknown category", "(1): train.json: 1 (99)"),
    "quoted": (
        lambda c: c["annotations"][0].update(category_id=str(c["annotations"][0]["category_id"])),
        "quoted id",
        "train.json: 1 (category_id)",
    ),
    "picture": (lambda c: c["annotations"][1].update(image_id=99), "unknown image", "(1): train.json: 2 (99)"),
    "box": (lambda c: c["annotations"][2].pop("segmentation"), "box only", "(1): train.json: 3;"),
    "no region": (lambda c: c["annotations"][2].update(segmentation=[]), "box only", "(1): train.json: 3;"),
    "two points": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
        "few points",
        "(1): train.json: 1;",
    ),
    "odd": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "odd coordinates",
        "(1): train.json: 1;",
    ),
    "not finite": (
        lambda c: c["annotations"][0]["segmentation"][0].append(float("nan")),
        "annotation entry",
        "annotations[0].segmentation",
    ),
    "text": (
        lambda c: c["annotations"][3].update(segmentation="x"),
        "annotation entry",
        "train.json: annotations[3].segmentation: ",
    ),
    "run lengths": (
        lambda c: c["annotations"][0].update(segmentation={"size": SIZE, "counts": [5]}),
        "run lengths",
        "(1): train.json: 1",
    ),
    "their size": (
        lambda c: c["annotations"][0].update(segmentation={"size": [5, 5], "counts": [25]}),
        "run lengths",
        "train.json: 1 (5x5, 40x30)",
    ),
    "missing": (lambda c: c["images"][0].update(file_name="gone.jpg"), "image missing", "(1): gone.jpg (train.json)"),
    "no name": (lambda c: c["images"][0].pop("file_name"), "annotation entry", "train.json: images[0].file_name: "),
    "twice": (lambda c: c["images"].append({"id": 50, "file_name": "a.jpg"}), "annotated twice", "(1): images/a.jpg"),
    "one id": (
        lambda c: c["images"].append({"id": 7, "file_name": "ü.jpg"}),
        "annotation entry",
        "train.json: images: ",
    ),
    "foreign": (lambda c: c["images"][0].update(file_name="a.gif"), "foreign", "(1): a.gif"),
    "classes": (
        lambda c: c["categories"].extend({"id": 100 + i, "name": f"n{i}"} for i in range(253)),
        "many classes",
        "255",
    ),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_faults_of_coco(tmp_path: Path, fault: str) -> None:
    draw(tmp_path / "images")
    write(tmp_path / "train.json", coco_json())
    change, key, names = COCO_FAULTS[fault]
    edit(tmp_path / "train.json", change)
    assert names in refusal(tmp_path)[key]


def test_all_faults_at_once(tmp_path: Path) -> None:
    draw(tmp_path / "images")
    write(tmp_path / "one.json", coco_json("a", "b c"))
    write(tmp_path / "two.json", json.dumps(coco_json("ü"), indent=1)[:-40])
    for fault in ("category", "box", "missing"):
        edit(tmp_path / "one.json", COCO_FAULTS[fault][0])
    told = refusal(tmp_path)
    assert len(told) == 4
    assert "two.json (Invalid JSON: EOF" in told["annotation file"]
    assert "line " in told["annotation file"]
    assert "column " in told["annotation file"]


def test_an_image_of_another_size_than_stated(tmp_path: Path) -> None:
    coco_result(tmp_path)
    with raises(DataError, path="result.json", key="size"):
        read_label_values(read_folder(tmp_path).pairs[0].mask, SIZE[::-1])


def test_several_images_of_one_name(tmp_path: Path) -> None:
    for place in ("one", "two"):
        draw(tmp_path / place)
    write(tmp_path / "all.json", coco_json("a"))
    assert "(1): a.jpg (one/a.jpg, two/a.jpg)" in refusal(tmp_path)["image unclear"]


def test_faults_of_labelme(tmp_path: Path) -> None:
    labelme_beside(tmp_path)
    edit(tmp_path / "a.json", lambda c: c["shapes"][0].update(shape_type="line"))
    edit(tmp_path / "a.json", lambda c: c["shapes"][1].update(points=[[1, 1], [2, 2]]))
    write(tmp_path / "b c.json", '{"shapes": [')
    write(tmp_path / "far.json", labelme_json("a", imagePath="C:\\pictures\\far.jpg"))
    told = refusal(tmp_path)
    assert "(1): a.json: 1 (line)" in told["shape kind"]
    assert "(1): a.json: 2 (polygon)" in told["few points"]
    assert "(1): b c.json (Invalid JSON: EOF while parsing a list at line 1 column 12)" in told["annotation file"]
    assert "(1): C:\\pictures\\far.jpg (far.json)" in told["image missing"]


STUDIO_FAULTS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "brush": (
        lambda r: r.update(type="brushlabels", value={"format": "rle", "rle": [1, 2]}),
        "brush",
        "export.json: task 5",
    ),
    "ellipse": (
        lambda r: r.update(type="ellipselabels", value={"x": 1, "y": 2}),
        "shape kind",
        "export.json: task 5 (ellipselabels)",
    ),
    "no label": (lambda r: r["value"].update(polygonlabels=[]), "one label", "(1): export.json"),
    "turned": (lambda r: r.update(image_rotation=90), "rotated", "(1): export.json: task 5"),
    "two points": (
        lambda r: r["value"].update(points=[[1, 2], [3, 4]]),
        "few points",
        "(1): export.json: task 5",
    ),
    "text": (lambda r: r["value"].update(points="x"), "annotation entry", "export.json: [0].annotations[0]: "),
}


@pytest.mark.parametrize("fault", STUDIO_FAULTS)
def test_faults_of_label_studio(tmp_path: Path, fault: str) -> None:
    label_studio(tmp_path)
    change, key, names = STUDIO_FAULTS[fault]
    edit(tmp_path / "export.json", lambda tasks: change(tasks[0]["annotations"][0]["result"][0]))
    assert names in refusal(tmp_path)[key]


def test_other_exports_of_label_studio(tmp_path: Path) -> None:
    draw(tmp_path, "a")
    small = [{"id": 1, "image": "/data/upload/1/a.jpg", "label": [{"points": [[1, 2]], "polygonlabels": ["cat"]}]}]
    write(tmp_path / "min.json", small)
    assert "min.json" in refusal(tmp_path)["small json"]


def test_label_studio_rectangles_and_unfinished_tasks(tmp_path: Path) -> None:
    label_studio(tmp_path)

    def change(tasks: list[dict[str, Any]]) -> None:
        box = {"x": 25, "y": 50, "width": 50, "height": 50, "rectanglelabels": ["dog"]}
        tasks[0]["annotations"][0]["result"] = [
            {"type": "rectanglelabels", "value": box},
            {"type": "choices", "value": {"choices": ["good"]}},
        ]
        tasks[1]["annotations"] = []

    edit(tmp_path / "export.json", change)
    folder = read_folder(tmp_path)
    expected = np.zeros(SIZE, np.uint8)
    expected[15:, 10:30] = 1
    np.testing.assert_array_equal(read_label_values(folder.pairs[0].mask, SIZE).values, expected)
    assert "tasks without an annotation are skipped: 1" in folder.remarks


YOLO_FAULTS = {
    "0 .5 .5 .1 .1": ("box only", "(1): labels/a.txt, line 1;"),
    "0 .5 .5 .1": ("odd coordinates", "(1): labels/a.txt, line 1"),
    "\n7 0 0 1 0 1 1": ("unknown category", "(1): labels/a.txt, line 2 (7)"),
    "0 0 0 40 0 40 30": ("not normalised", "(1): labels/a.txt, line 1"),
    "0 0 0 nan 0 1 1": ("annotation entry", "labels/a.txt, line 1: "),
    "cat 0 0 1 0 1 1": ("annotation entry", "labels/a.txt, line 1: "),
}


@pytest.mark.parametrize("line", YOLO_FAULTS)
def test_faults_of_yolo(tmp_path: Path, line: str) -> None:
    yolo_plain(tmp_path)
    write(tmp_path / "labels/a.txt", line)
    write(tmp_path / "labels/lost.txt", "")
    told = refusal(tmp_path)
    key, names = YOLO_FAULTS[line]
    assert names in told[key]
    assert "(1): labels/lost.txt" in told["no image"]


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat, 'big dog']",
        "nc: 2\nnames: [ 'cat' , \"big dog\" ] # two\n",
        "names: ['cat',\n  'big dog',\n]\nnc: 2",
        "names:\n- cat\n- big dog\nnc: 2",
        "names:\n  - cat\n\n  # next\n  - 'big dog'\n",
        "names:\n  0: cat\n  1: big dog\ntrain: x",
        "names: {0: cat, 1: 'big dog'}",
        "x: y\r\nnames:\r\n  1: big dog\r\n  0: cat\r\n",
        '"names": {\'0\': cat, "1": big dog}',
        "classes: &all\n- cat\n- big dog\nnames: *all\n",
        "all: &all\n  0: cat\n  1: dog\nnames:\n  <<: *all\n  1: big dog\n",
        "all: &all {0: cat}\nmore: &more {0: dog, 1: big dog}\nnames:\n  <<: [*all, *more]\n",
        "all: &all\n  names: [cat, big dog]\n<<: *all\n",
    ],
)
def test_names_in_yaml(text: str) -> None:
    assert parse_names(text) == {0: "cat", 1: "big dog"}


@pytest.mark.parametrize("kind", ["coco", "labelme", "yolo"])
def test_images_with_damaged_annotations_are_left_out(kind: str, tmp_path: Path) -> None:
    """With `skip_bad`; without the damaged ones their masks would be wrong."""
    {"coco": coco_result, "labelme": labelme_beside, "yolo": yolo_plain}[kind](tmp_path)
    name = {"coco": "result.json", "labelme": "a.json", "yolo": "labels/a.txt"}[kind]
    content = (tmp_path / name).read_text()
    if kind == "yolo":
        content += "0 .1 .1\n"
    else:
        facts = json.loads(content)
        if kind == "coco":
            facts["annotations"][0]["segmentation"] = [[1, 1, 2, 2]]
        else:
            facts["shapes"][0] |= {"shape_type": "polygon", "points": [[1, 1], [2, 2]]}
        content = json.dumps(facts)
    whole = {pair.image: pair.mask for pair in read_folder(tmp_path).pairs}
    (tmp_path / name).write_text(content)
    with raises(DataError, key="few points"):
        read_folder(tmp_path)
    found = read_folder(tmp_path, ReadOptions(skip_bad=True))
    kept = {pair.image: pair.mask for pair in found.pairs}
    (lost,) = whole.keys() - kept.keys()
    assert all(whole[image] == mask for image, mask in kept.items())
    assert any(lost.name in line for line in found.remarks)
    assert len(found.skipped) == 1


def test_no_names_in_yaml() -> None:
    assert parse_names("nc: 2\nother_names: [a]\n") == {}


def test_words_of_yaml_stay_names() -> None:
    assert parse_names("names: [no, on, 1.0, null]") == {0: "no", 1: "on", 2: "1.0", 3: "null"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("names: " + "[" * 5000, "nested too deeply"),
        ("a: &a [b]\nnames: [*a]", "names must be a list of class names"),
        ("names: {cat: 0}", "names must be a list of class names"),
        ("names: [cat", "expected ',' or ']'"),
        ("names: {<<: [cat]}", "the merge key << must contain mappings"),
        ("names: [cat] #" + "x" * 2**18, "longer than"),
    ],
    ids=["deep", "alias", "inverted", "damaged", "merged", "long"],
)
def test_yaml_without_usable_names_is_refused(tmp_path: Path, text: str, said: str) -> None:
    yolo_plain(tmp_path)
    write(tmp_path / "data.yaml", text)
    assert f"data.yaml ({said}" in refusal(tmp_path)["annotation file"]


def test_an_alias_bomb_is_never_expanded() -> None:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert parse_names("\n".join(["names: [cat]", "a0: &a0 [l]", *lines])) == {0: "cat"}


@pytest.mark.understood(at_least=0.1)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(WRITERS), st.randoms(use_true_random=False), st.integers(1, 4))
def test_damaged_files_are_named_or_read(
    tally: Tally, tmp_path: Path, write_all: Callable[[Path], None], chance: random.Random, changes: int
) -> None:
    """Whatever is changed in an annotation file: either a problem is reported, or masks are drawn."""
    root = tmp_path / write_all.__name__
    shutil.rmtree(root, ignore_errors=True)
    write_all(root)
    path = chance.choice([p for p in sorted(root.rglob("*.*")) if p.suffix in (".json", ".txt", ".yaml")])
    content = bytearray(path.read_bytes())
    for _change in range(changes):
        place = chance.randrange(len(content) + 1)
        junk = chance.choice([b"", b"9", b"e99", b"-", b"null", b"[]", b"{}", b'"', b"\xff", b"\0", b",", b"1e400"])
        content[place : place + chance.choice([0, 1, 5, 10**6])] = junk
    path.write_bytes(content)
    try:
        pairs = read_folder(root).pairs
    except DataError:
        tally.add(False)
        return
    tally.add(True)
    for pair in pairs:
        try:
            assert read_label_values(pair.mask, SIZE).values.shape == SIZE
        except DataError as error:
            assert error.key == "size"  # noqa: PT017


def write_one_file(root: Path, count: int) -> Path:
    """A folder of `count` images with three objects each, in one file."""
    (root / "images").mkdir(parents=True)
    image = root / "images/0.jpg"
    Image.new("L", (8, 8)).save(image)
    polygon = np.random.default_rng(0).uniform(0, 400, 40).round(2).tolist()
    images, annotations = [], []
    for number in range(count):
        if number:
            (root / f"images/{number}.jpg").hardlink_to(image)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 400, "height": 400})
        for _object in range(3):
            one = {"id": len(annotations), "image_id": number, "category_id": 1, "segmentation": [polygon]}
            annotations.append(one)
    categories = [{"id": 1, "name": "cat"}]
    write(root / "all.json", {"images": images, "annotations": annotations, "categories": categories})
    return root


def test_twice_as_many_images_in_one_file_are_twice_the_work(tmp_path: Path) -> None:
    once, twice = (write_one_file(tmp_path / str(count), count) for count in (1000, 2000))
    assert len(read_folder(once).pairs) == 1000
    assert count_calls(lambda: read_folder(twice)) < 2.1 * count_calls(lambda: read_folder(once))
