"""The truth as polygons and run lengths of the tools that people draw with.

The objects have whole-number corners, so that every rasteriser must give the same pixels.
"""

import base64
import json
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from support.folders import COUNT, HEIGHT, PARTS, WIDTH, Cases, Maker, Thing

ANNOTATIONS = Cases()
NAMES = ("background", "leaf", "spot")


def _flat(thing: Thing) -> list[int]:
    return [number for corner in thing.corners for number in corner]


def _polygons(thing: Thing) -> Any:
    return [_flat(thing)]


def _run_lengths(thing: Thing) -> Any:
    """COCO's uncompressed run lengths: down the columns, the first run counts zeros."""
    pixels = thing.draw().T.reshape(-1)
    changes = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if pixels[0] else counts}


def _packed(thing: Thing) -> Any:
    packed = coco_mask.encode(np.asfortranarray(thing.draw().astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode("ascii")}


def _coco(make: Maker, numbers: Any, name: str, segmentation: Any = _polygons, first: int = 1) -> dict[str, Any]:
    """The COCO dictionary of some images; `name` is the pattern of file_name, `first` the first category's id."""
    annotations: list[dict[str, Any]] = []
    for number in numbers:
        for thing in make.things[number]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 40 - number,  # neither from 0 nor in the order of the names
                    "category_id": {1: first + 4, 2: first}[thing.label],  # nor is the table in order
                    "segmentation": segmentation(thing),
                    "area": int(thing.draw().sum()),
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": 0 if segmentation is _polygons else 1,
                }
            )
    images = [{"id": 40 - n, "file_name": name.format(n), "width": WIDTH, "height": HEIGHT} for n in numbers]
    categories = [{"id": first, "name": "spot"}, {"id": first + 4, "name": "leaf"}]
    return {"info": {}, "licenses": [], "images": images[::-1], "annotations": annotations, "categories": categories}


def _write_coco(make: Maker, segmentation: Any) -> None:
    make.clear(6)  # an image without objects has no annotations
    make.images()
    make.text("annotations.json", json.dumps(_coco(make, range(COUNT), "cell_{}.png", segmentation)))


@ANNOTATIONS.add(classes=NAMES)
def coco_polygons(make: Maker) -> None:
    _write_coco(make, _polygons)


@ANNOTATIONS.add(classes=NAMES)
def coco_run_lengths(make: Maker) -> None:
    _write_coco(make, _run_lengths)


@ANNOTATIONS.add(classes=NAMES)
def coco_packed_run_lengths(make: Maker) -> None:
    _write_coco(make, _packed)


@ANNOTATIONS.add(classes=NAMES)
def coco_several_polygons(make: Maker) -> None:
    """One object in two parts: the two rectangles of the L."""

    def halves(thing: Thing) -> Any:
        (left, top), (right, _), (_, middle), (step, _), (_, bottom), _ = thing.corners
        return [
            [left, top, right, top, right, middle, left, middle],
            [left, middle, step, middle, step, bottom, left, bottom],
        ]

    _write_coco(make, halves)


@ANNOTATIONS.add(classes=NAMES, splits=True)
def coco_parts(make: Maker) -> None:
    """The folders of COCO itself: train2017/, annotations/instances_train2017.json."""
    for part in ("train", "val", "test"):
        numbers = [n for n in range(COUNT) if PARTS[n] == part]
        for number in numbers:
            make.image(f"{part}2017/{number:012d}.jpg", number)
        text = json.dumps(_coco(make, numbers, "{:012d}.jpg"))
        make.text(f"annotations/instances_{part}2017.json", text)


@ANNOTATIONS.add(classes=NAMES, splits=True)
def coco_roboflow(make: Maker) -> None:
    """Roboflow's export: train/, valid/, test/, each with _annotations.coco.json, and an unused category 0."""
    for part, word in (("train", "train"), ("val", "valid"), ("test", "test")):
        numbers = [n for n in range(COUNT) if PARTS[n] == part]
        for number in numbers:
            make.image(f"{word}/cell_{number}_jpg.rf.0a1b{number}.jpg", number)
        found = _coco(make, numbers, "cell_{0}_jpg.rf.0a1b{0}.jpg", first=1)
        found["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"})
        make.text(f"{word}/_annotations.coco.json", json.dumps(found))
    make.text("README.roboflow.txt", "about")


@ANNOTATIONS.add(classes=NAMES)
def coco_cvat(make: Maker) -> None:
    """CVAT's `COCO 1.0`: annotations/instances_default.json beside images/."""
    make.images("images/default/cell_{}.png")
    text = json.dumps(_coco(make, range(COUNT), "cell_{}.png"))
    make.text("annotations/instances_default.json", text)


@ANNOTATIONS.add(says=("cell_3.png",))
def coco_without_an_image(make: Maker) -> None:
    _write_coco(make, _polygons)
    (make.root / "images/cell_3.png").unlink()


@ANNOTATIONS.add(says=("polygon",))
def coco_boxes_only(make: Maker) -> None:
    _write_coco(make, lambda thing: [])


@ANNOTATIONS.add(says=("json", "96x80", "48x40"))
def coco_of_another_size(make: Maker) -> None:
    make.images()
    found = _coco(make, range(COUNT), "cell_{}.png")
    for image in found["images"]:
        image |= {"width": 96, "height": 80}
    make.text("annotations.json", json.dumps(found))


def _labelme(make: Maker, number: int, image: str, **more: Any) -> str:
    shapes = [
        {"label": NAMES[thing.label], "points": thing.corners, "group_id": None, "shape_type": "polygon", "flags": {}}
        for thing in make.things[number]
    ]
    facts = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageHeight": HEIGHT}
    return json.dumps(facts | {"imageWidth": WIDTH, "imageData": None} | more)


@ANNOTATIONS.add(classes=NAMES)
def labelme(make: Maker) -> None:
    """A JSON file beside each image."""
    make.clear(6)
    for number in range(COUNT):
        make.image(f"cell_{number}.jpg", number)
        make.text(f"cell_{number}.json", _labelme(make, number, f"cell_{number}.jpg"))


@ANNOTATIONS.add(classes=NAMES)
def labelme_in_folders(make: Maker) -> None:
    """images/ and labels/ apart, as some exporters write; with the image's bytes inside, as LabelMe does."""
    make.images("images/cell_{}.jpg")
    for number in range(COUNT):
        content = base64.b64encode((make.root / f"images/cell_{number}.jpg").read_bytes()).decode()
        text = _labelme(make, number, f"..\\images\\cell_{number}.jpg", imageData=content)
        make.text(f"labels/cell_{number}.json", text)


@ANNOTATIONS.add(classes=NAMES)
def labelme_rectangles(make: Maker) -> None:
    """Two corners of a box, in any order."""
    for number in range(COUNT):
        shapes = []
        make.maps[number][:] = 0
        for thing in make.things[number]:
            (left, top), (right, _), (_, middle), *_rest = thing.corners
            make.maps[number][top:middle, left:right] = thing.label
            ends = [[right, top], [left, middle]]
            shapes.append({"label": NAMES[thing.label], "points": ends, "shape_type": "rectangle"})
        make.image(f"cell_{number}.png", number)
        make.text(f"cell_{number}.json", _labelme(make, number, f"cell_{number}.png", shapes=shapes))


def _share(corner: tuple[int, int], whole: float) -> list[float]:
    return [corner[0] * whole / WIDTH, corner[1] * whole / HEIGHT]


@ANNOTATIONS.add(classes=NAMES)
def label_studio(make: Maker) -> None:
    """Its JSON export: percentages, and upload names with a prefix."""
    make.clear(6)
    tasks = []
    for number in range(COUNT):
        name = f"{number}f3a9c1b-cell_{number}.png"
        make.image(f"images/{name}", number)
        results = [
            {
                "type": "polygonlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": WIDTH,
                "original_height": HEIGHT,
                "image_rotation": 0,
                "value": {
                    "points": [_share(corner, 100) for corner in thing.corners],
                    "closed": True,
                    "polygonlabels": [NAMES[thing.label]],
                },
            }
            for thing in make.things[number]
        ]
        annotation = {"id": number, "was_cancelled": False, "result": results}
        tasks.append({"id": number, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [annotation]})
    make.text("project-1-at-2024-01-01.json", json.dumps(tasks))


def _yolo_lines(make: Maker, number: int) -> str:
    """`class x y x y ...`, shares of width and height, six digits as ultralytics writes them."""
    lines = []
    for thing in make.things[number]:
        points = [f"{value:.6f}" for corner in thing.corners for value in _share(corner, 1)]
        lines.append(" ".join([str(thing.label - 1), *points]))
    return "\n".join(lines) + "\n"


def _yolo(make: Maker, image: str, label: str, words: tuple[str, str, str]) -> None:
    make.clear(6)
    for number, part in enumerate(PARTS):
        word = words[("train", "val", "test").index(part)]
        make.image(image.format(part=word, n=number), number)
        if make.things[number]:  # an image without objects needs no file
            make.text(label.format(part=word, n=number), _yolo_lines(make, number))
    make.text("data.yaml", "path: ../set\ntrain: images/train\nval: images/val\nnames:\n  0: leaf\n  1: spot\n")


@ANNOTATIONS.add(classes=NAMES, splits=True)
def yolo(make: Maker) -> None:
    _yolo(make, "images/{part}/cell_{n}.png", "labels/{part}/cell_{n}.txt", ("train", "val", "test"))


@ANNOTATIONS.add(classes=NAMES, splits=True)
def yolo_roboflow(make: Maker) -> None:
    """train/images/, train/labels/; the names as a list."""
    _yolo(make, "{part}/images/cell_{n}.jpg", "{part}/labels/cell_{n}.txt", ("train", "valid", "test"))
    make.text("data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['leaf', 'spot']\n")


@ANNOTATIONS.add(says=("cell_0.txt", "box"))
def yolo_boxes(make: Maker) -> None:
    """Boxes are no outlines."""
    _yolo(make, "images/{part}/cell_{n}.png", "labels/{part}/cell_{n}.txt", ("train", "val", "test"))
    for path in make.root.rglob("cell_*.txt"):
        path.write_text("0 0.5 0.5 0.25 0.25\n1 0.25 0.25 0.1 0.1\n")


@ANNOTATIONS.add(says=("json", "line 1"))
def annotation_that_is_no_json(make: Maker) -> None:
    make.images()
    make.text("annotations.json", '{"images": [')
