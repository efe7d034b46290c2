"""One truth, written as annotation folders of each format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

SIZE = 30, 40  # height, width of all images
# Image -> (class, x0, y0, x1, y1) in px, larger before smaller, so that all formats draw them alike.
TRUTH = {
    "a": [("dog", 2, 3, 30, 25), ("cat", 10, 10, 20, 20), ("dog", 12, 12, 15, 16)],
    "b c": [("cat", 0, 0, 40, 9)],
    "ü": [],
}
NAMES = ("background", "cat", "dog")


def truth(stem: str) -> np.ndarray:
    drawn = np.zeros(SIZE, np.uint8)
    for name, x0, y0, x1, y1 in TRUTH[stem]:
        drawn[y0:y1, x0:x1] = NAMES.index(name)
    return drawn


def corners(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def flat(points: list[list[float]]) -> list[float]:
    return [c for point in points for c in point]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def draw(folder: Path, *stems: str, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems or TRUTH:
        Image.new("RGB", SIZE[::-1]).save(folder / f"{stem}{suffix}")


def as_polygon(box: tuple[int, ...]) -> Any:
    return [flat(corners(*box))]


def as_flat_polygon(box: tuple[int, ...]) -> Any:
    return flat(corners(*box))


def as_packed(box: tuple[int, ...]) -> Any:
    drawn = np.zeros(SIZE, np.uint8, order="F")
    drawn[box[1] : box[3], box[0] : box[2]] = 1
    rle = coco.encode(drawn)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def as_counts(box: tuple[int, ...]) -> Any:
    drawn = np.zeros(SIZE, np.uint8)
    drawn[box[1] : box[3], box[0] : box[2]] = 1
    ends = np.flatnonzero(np.diff(drawn.T.ravel(), prepend=0, append=2))
    return {"size": list(SIZE), "counts": np.diff(ends, prepend=0).tolist()}


def coco_json(*stems: str, folder: str = "", region: Callable[[tuple[int, ...]], Any] = as_polygon) -> dict[str, Any]:
    """Smaller objects first: COCO draws the larger first by itself."""
    images, annotations = [], []
    for number, stem in enumerate(stems or TRUTH, 7):
        images.append({"id": number, "file_name": f"{folder}{stem}.jpg", "width": SIZE[1], "height": SIZE[0]})
        for name, *box in reversed(TRUTH[stem]):
            annotations.append(
                {
                    "id": 1 + len(annotations),
                    "image_id": number,
                    "category_id": {"cat": 3, "dog": 20}[name],
                    "segmentation": region(tuple(box)),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 20, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def labelme_json(stem: str, **more: Any) -> dict[str, Any]:
    shapes = [
        {"label": name, "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle"}
        if name == "dog"
        else {"label": name, "points": corners(x0, y0, x1, y1), "shape_type": "polygon"}
        for name, x0, y0, x1, y1 in TRUTH[stem]
    ]
    facts = {"imagePath": f"..\\images\\{stem}.jpg", "imageHeight": SIZE[0], "imageWidth": SIZE[1], "imageData": None}
    return {"version": "5.0", "shapes": shapes, **facts, **more}


def task(stem: str, image: str) -> dict[str, Any]:
    result = []
    for name, x0, y0, x1, y1 in TRUTH[stem]:
        value = {"points": [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in corners(x0, y0, x1, y1)]}
        result.append(
            {
                "type": "polygonlabels",
                "value": {**value, "polygonlabels": [name]},
                "original_width": SIZE[1],
                "original_height": SIZE[0],
                "image_rotation": 0,
            }
        )
    return {"id": 5, "data": {"image": image}, "annotations": [{"completed_by": 1, "result": result}]}


def yolo_text(stem: str) -> str:
    lines = []
    for name, x0, y0, x1, y1 in TRUTH[stem]:
        shares = [str(c / side) for point in corners(x0, y0, x1, y1) for c, side in zip(point, SIZE[::-1], strict=True)]
        lines.append(" ".join([str(["cat", "dog"].index(name)), *shares]))
    return "\n".join(lines) + "\n"


def coco_in_annotations(root: Path) -> None:
    draw(root / "images/train2017", "a", "b c")
    draw(root / "images/val2017", "ü")
    write(root / "annotations/instances_train2017.json", coco_json("a", "b c"))
    write(root / "annotations/instances_val2017.json", coco_json("ü", region=as_counts))
    write(root / "annotations/person_keypoints_val2017.json", coco_json("ü"))


def coco_by_roboflow(root: Path) -> None:
    for part, stem in (("train", "a"), ("valid", "b c"), ("test", "ü")):
        draw(root / part, stem)
        content = coco_json(stem, region=as_packed)
        content["categories"] = [
            {"id": 0, "name": "pets", "supercategory": "none"},
            *({**category, "supercategory": "pets"} for category in content["categories"]),
        ]
        write(root / part / "_annotations.coco.json", content)


def coco_result(root: Path) -> None:
    draw(root / "images")
    write(root / "result.json", coco_json(folder="../../data/media/upload/3/0123abcd-", region=as_flat_polygon))


def coco_same_names(root: Path) -> None:
    draw(root / "train", "a", "b c")
    draw(root / "val", "ü", "a")
    write(root / "train.json", coco_json("a", "b c"))
    write(root / "val.json", coco_json("ü"))


def labelme_beside(root: Path) -> None:
    draw(root)
    for stem in TRUTH:
        write(root / f"{stem}.json", labelme_json(stem, imagePath="renamed since.jpg"))


def labelme_apart(root: Path) -> None:
    for part, stem in (("train", "a"), ("train", "b c"), ("val", "ü")):
        draw(root / "images" / part, stem)
        write(root / "labels" / part / f"{stem}.json", labelme_json(stem))


def label_studio(root: Path) -> None:
    draw(root / "images")
    places = ("/data/upload/3/0123abcd-a.jpg", "/data/local-files/?d=x/b%20c.jpg", "s3://bucket/%C3%BC.jpg")
    write(root / "export.json", [task(stem, place) for stem, place in zip(TRUTH, places, strict=True)])


def label_studio_prefixed_images(root: Path) -> None:
    draw(root, *(f"0123abcd-{stem}" for stem in TRUTH))
    tasks = [task(stem, f"{stem}.jpg") for stem in TRUTH]
    other = {"result": [], "was_cancelled": True, "ground_truth": True}
    tasks[0]["annotations"] = [{"result": []}, *tasks[0]["annotations"], other]
    write(root / "export.json", tasks)


def yolo_parts(root: Path) -> None:
    for part, stem in (("train", "a"), ("train", "b c"), ("val", "ü")):
        draw(root / "images" / part, stem)
        if TRUTH[stem]:
            write(root / "labels" / part / f"{stem}.txt", yolo_text(stem))
    write(root / "data.yaml", "path: .\ntrain: images/train\n\nnames:\n  0: cat  # grey\n  1: 'dog'\nnc: 2\n")


def yolo_by_roboflow(root: Path) -> None:
    for part, stem in (("train", "a"), ("valid", "b c"), ("test", "ü")):
        draw(root / part / "images", stem)
        write(root / part / "labels" / f"{stem}.txt", yolo_text(stem).strip())
    write(root / "data.yaml", "train: ../train/images\nnc: 2\nnames: ['cat', \"dog\"]\n")


def yolo_plain(root: Path) -> None:
    draw(root / "images")
    for stem in TRUTH:
        write(root / "labels" / f"{stem}.txt", yolo_text(stem))
    write(root / "labels/classes.txt", "cat\ndog\n")


WRITERS = (
    coco_in_annotations,
    coco_by_roboflow,
    coco_result,
    coco_same_names,
    labelme_beside,
    labelme_apart,
    label_studio,
    label_studio_prefixed_images,
    yolo_parts,
    yolo_by_roboflow,
    yolo_plain,
)
