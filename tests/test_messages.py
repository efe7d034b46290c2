"""The words of errors: what people read stands in `golden/messages.txt`; other tests ask for class, path and key.

UPDATE_GOLDEN=1 python -m pytest tests/test_messages.py

writes the file again; its difference is the list of sentences that changed.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import save_file

from support.codings import colors, survey, values
from support.rasters import write_huge_png
from support.refusal import TINY, refused
from support.remote_site import make_tar, make_zip
from support.sentences import ERRORS
from ubend.cli.app import main
from ubend.core.device import pick_device
from ubend.core.errors import UbendError
from ubend.core.files import explain_write_errors, refuse_existing_results
from ubend.core.settings import make_settings, parse_assignment, read_config
from ubend.dataset import named_sets as named
from ubend.dataset.sample import draw_sample
from ubend.dataset.splits import split_pairs
from ubend.dataset.store import read_class_map
from ubend.dataset.unpack import Limits, unpack
from ubend.inference.ensemble import load
from ubend.inference.predictor import Predictor
from ubend.instances.truth import find_truth, read_truth
from ubend.io.images import Sizing, read_image
from ubend.io.scans import parse_intensity_window, read_scan
from ubend.io.video import open_video
from ubend.labels.class_table import make_label_map
from ubend.labels.classes import LabelHints, find_classes
from ubend.labels.label_values import LabelArray
from ubend.labels.mask_files import FileMask, Layer, LayeredMask, read_label_values
from ubend.labels.match_classes import match_classes
from ubend.labels.value_table import parse_table
from ubend.layouts.folder import ReadOptions, read_folder, read_pairs
from ubend.layouts.pairs import Pair
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.unet import UNet
from ubend.portable.decode import read_header
from ubend.portable.postprocess import parse_areas, parse_thresholds
from ubend.tasks.evaluate import read_run_pairs
from ubend.tasks.runs import read_summary
from ubend.tasks.user_settings import parse_skips
from ubend.training.distributed import ProcessGroup
from ubend.training.launcher import launch
from ubend.training.run_folder import RunFolder

GOLDEN = Path(__file__).parent / "golden" / "messages.txt"
MIN = 120


@dataclass
class Place:
    """Where a case works: an empty folder, and data and a trained run that are only to be read."""

    tmp: Path
    good: Path

    def __truediv__(self, name: str) -> Path:
        return self.tmp / name

    def fit(self, *words: object, data: Path | None = None) -> UbendError:
        return refused("fit", data or self.good / "data", "--out", self / "out", *TINY, *words)

    def predict(self, *words: object, command: str = "predict") -> UbendError:
        image = self.good / "data" / "images" / "disc00.png"
        return refused(command, self.good / "run", image, "--device", "cpu", "--out", self / "out", *words)


Case = Callable[[Place], object]
CASES: dict[str, Case] = {}


def write_scan(place: Place, changes: dict[str, Any]) -> Path:
    """A NIfTI file whose header is changed after it was made."""
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    nibabel.save(image, place / "scan.nii")
    image = nibabel.load(place / "scan.nii")
    for name, stated in changes.items():
        image.header[name] = stated
    header = image.header.binaryblock
    (place / "scan.nii").write_bytes(header + (place / "scan.nii").read_bytes()[len(header) :])
    return place / "scan.nii"


def case(function: Case) -> Case:
    CASES[getattr(function, "__name__", "").replace("_", " ")] = function
    return function


# ------------------------------------------------------------------------------------------------ folders


def draw(place: Place, *names: str, size: tuple[int, int] = (4, 4)) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(place / name)
    return place.tmp


def flat(place: Place, *more: str) -> Path:
    return draw(place, *(f"{side}/{stem}.png" for side in ("images", "masks") for stem in "123"), *more)


def folder_of(*names: str) -> Case:
    return lambda place: read_folder(flat(place, *names))


CASES |= {
    "folder: absent": lambda place: read_folder(place / "nowhere"),
    "folder: nothing": lambda place: read_folder(place.tmp),
    "folder: images alone": lambda place: read_folder(draw(place, "images/a.png", "images/b.png")),
    "folder: unclear folders": lambda place: read_folder(draw(place, "photos/1.png", "regions/1.png")),
    "folder: unclear sides": lambda place: read_folder(draw(place, *(f"{i}_{k}.png" for i in "123" for k in "uv"))),
    "folder: no mask": folder_of("images/4.png", "images/5.png"),
    "folder: no image": folder_of("masks/4.png"),
    "folder: several masks": folder_of("masks/3_seg.png"),
    "folder: two images of one name": folder_of("images/3.jpg"),
    "folder: near misses": folder_of("images/cell 1.png", "masks/cell_1.png"),
    "folder: neither side": folder_of("more/4.png"),
    "folder: split without masks": lambda place: read_folder(
        draw(place, "train/images/1.png", "train/masks/1.png", "val/images/1.png")
    ),
    "folder: two words for a part": lambda place: read_folder(
        draw(place, *(f"{part}/{side}/1.png" for part in ("val", "valid") for side in ("images", "masks")))
    ),
    "lists: nothing there": lambda place: read_pairs(f"{place.tmp}/a/*.png", f"{place.tmp}/b/*.png"),
    "lists: files on both sides": lambda place: read_pairs(f"{flat(place)}/images", f"{place.tmp}/images"),
}


@case
def folder_that_is_a_file(place: Place) -> object:
    (place / "data.zip").write_bytes(b"PK")
    return read_folder(place / "data.zip")


@case
def folder_with_a_long_list(place: Place) -> object:
    return read_folder(flat(place, *(f"images/x{number}.png" for number in range(13))))


@case
def folder_with_several_faults(place: Place) -> object:
    flat(place, "images/alone.png", "masks/orphan.png")
    (place / "images" / "1.png").write_bytes(b"")
    (place / "images" / "moving.gif").write_bytes(b"x")
    (place / "classes.txt").write_text("a\na\n")
    return read_folder(place.tmp)


@case
def folder_of_several_sets(place: Place) -> object:
    draw(place, "a/images/1.png", "a/masks/1.png", "b/images/1.png", "b/annotations/trimaps/1.png")
    for name in ("trainval.txt", "test.txt"):
        (place / "b" / "annotations" / name).touch()
    return read_folder(place.tmp)


@case
def pets_lists(place: Place) -> object:
    draw(place, *(f"{side}/{stem}.png" for side in ("images", "annotations/trimaps") for stem in ("a_1", "a_2")))
    (place / "annotations" / "trainval.txt").write_text("a_1 1 1 1\na_7 1 1 1\n")
    (place / "annotations" / "test.txt").write_text("a_1 1 1 1\na_2 1 1 1\n")
    return read_folder(place.tmp)


def split_of(text: str, header: str = "file,split\n") -> Case:
    def read(place: Place) -> object:
        flat(place)
        (place / "split.csv").write_text(header + text)
        return read_folder(place.tmp, ReadOptions(place / "split.csv"))

    return read


CASES |= {
    "split file: absent": lambda place: read_folder(flat(place), ReadOptions(place / "absent.csv")),
    "split file: no columns": split_of("1,train\n", "name,part\n"),
    "split file: unknown word": split_of("1,trian\n2,val\n3,test\n"),
    "split file: twice": split_of("1,train\n1.png,val\n2,val\n3,test\n"),
    "split file: unknown image": split_of("1,train\n2,val\n3,test\n9,test\n"),
    "split file: missing": split_of("1,train\n"),
}


def split(names: int, given: list[Any], shares: tuple[float, float] = (0.2, 0.2)) -> object:
    return split_pairs([f"p{i}" for i in range(names)], given, [None] * names, np.arange(names), 0, *shares)


CASES |= {
    "split: too few": lambda place: split(2, [None, None]),
    "split: some without": lambda place: split(3, ["train", "val", None]),
    "split: nothing to train on": lambda place: split(2, ["val", "test"]),
    "split: shares": lambda place: split(9, [None] * 9, (0.5, 0.5)),
}

COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "1.png", "width": 4, "height": 4}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]}],
    "categories": [{"id": 1, "name": "cat"}],
}


def coco(change: Callable[[Any], Any]) -> Case:
    def read(place: Place) -> object:
        draw(place, "images/1.png")
        content = json.loads(json.dumps(COCO))
        change(content)
        (place / "train.json").write_text(json.dumps(content))
        return read_folder(place.tmp)

    return read


def yolo(line: str) -> Case:
    def read(place: Place) -> object:
        draw(place, "images/1.png")
        (place / "labels").mkdir()
        (place / "labels" / "1.txt").write_text(line)
        (place / "data.yaml").write_text("names: [cat]\n")
        return read_folder(place.tmp)

    return read


CASES |= {
    "coco: unknown class": coco(lambda c: c["annotations"][0].update(category_id=9)),
    "coco: ids as text": coco(lambda c: c["annotations"][0].update(category_id=str(c["categories"][0]["id"]))),
    "coco: unknown image": coco(lambda c: c["annotations"][0].update(image_id=9)),
    "coco: box only": coco(lambda c: c["annotations"][0].pop("segmentation")),
    "coco: two points": coco(lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]])),
    "coco: run lengths": coco(lambda c: c["annotations"][0].update(segmentation={"size": [4, 4], "counts": [5]})),
    "coco: missing image": coco(lambda c: c["images"][0].update(file_name="gone.png")),
    "coco: no name": coco(lambda c: c["images"][0].pop("file_name")),
    "coco: too many classes": coco(lambda c: c["categories"].extend({"id": i, "name": f"n{i}"} for i in range(2, 300))),
    "yolo: box only": yolo("0 .5 .5 .1 .1"),
    "yolo: unknown class": yolo("7 0 0 1 0 1 1"),
    "yolo: not normalised": yolo("0 0 0 40 0 40 30"),
    "yolo: no numbers": yolo("cat 0 0 1 0 1 1"),
}

# --------------------------------------------------------------------------------------------- class tables


def classes(*masks: LabelArray, **told: Any) -> Case:
    return lambda place: find_classes(survey(*masks), LabelHints(**told))


def noisy(share: int) -> LabelArray:
    random = np.random.default_rng(0).integers(0, 1 << 24, share)
    return colors({0: 900, **{int(code): 1 for code in random}})


CASES |= {
    "classes: empty masks": classes(values({0: 9})),
    "classes: resampled": classes(values({0: 900, 255: 90}), values({0: 90, 13: 1, 64: 2, 200: 1, 255: 9})),
    "classes: numbered objects": classes(values(dict.fromkeys(range(120), 5))),
    "classes: 255 alone": classes(values({0: 5, 1: 5, 2: 5}), values({0: 5, 255: 5})),
    "classes: other count of names": classes(values({0: 5, 255: 5}), names=("a", "b", "c")),
    "classes: unknown to the model": lambda place: match_classes(
        make_label_map([0, 1], ["background", "moon"]),
        make_label_map([0, 1, 2], ["background", "sun", "star"]),
        {0, 1},
        numbered=True,
    ),
    "classes: names twice": classes(values({0: 5, 1: 5}), names=("a", "a")),
    "classes: colours and deep values": classes(colors({0: 5, 0xFF0000: 5}), values({0: 5, 300: 5})),
    "classes: photographs": classes(noisy(5000)),
    "classes: colours nearly alike": classes(colors({0: 500, 0xFF0000: 300, 0xFE0000: 100})),
    "classes: reserved name": lambda place: make_label_map([0, 1], ["background", "ignored"]),
    "classes: mask of colours": lambda place: make_label_map([0, 255]).translate(
        LabelArray(np.full((1, 1), 0xFF0000, np.int32), "color")
    ),
    "classes: value among colours": lambda place: make_label_map([0, 255], kind="color").translate(
        LabelArray(np.full((1, 1), 300, np.uint16), "value")
    ),
    "classes: other than the model's": lambda place: make_label_map([0, 1], ["background", "moon"]).in_order_of(
        ("background", "cell"), ((0, 0, 0), (9, 9, 9))
    ),
    "values: unreadable": lambda place: parse_table(["0=background", "polyp"]),
    "values: twice": lambda place: parse_table(["0=a", "0=b"]),
    "values: too many": lambda place: parse_table([f"{i}=c{i}" for i in range(300)]),
}

# --------------------------------------------------------------------------------------------- images, masks


def file_of(name: str, data: Any, read: Callable[[Path], object] = lambda path: read_image(path, 3)) -> Case:
    """A file of bytes, or of an array, that cannot be read."""

    def look(place: Place) -> object:
        path = place / name
        if isinstance(data, bytes):
            path.write_bytes(data)
        elif path.suffix == ".tif":
            tifffile.imwrite(path, data, photometric="minisblack")
        elif path.suffix == ".npy":
            np.save(path, data)
        else:
            Image.fromarray(data).save(path)
        return read(path)

    return look


def mask_of(path: Path) -> object:
    return read_label_values(FileMask(path), (4, 4))


def known_mask(path: Path) -> object:
    return read_class_map(Pair("a", path, FileMask(path), None, None), (4, 4), make_label_map([0, 255]))


def without(package: str, one: Case) -> Case:
    """The same where a package is not installed."""

    def provoke_without(place: Place) -> object:
        with patch.dict(sys.modules, {package: None}):
            return one(place)

    return provoke_without


CASES |= {
    "package: imagecodecs": without("imagecodecs", file_of("a.tif", np.zeros((4, 4), np.uint8))),
    "package: nibabel": without("nibabel", file_of("scan.nii", b"", read_scan)),
    "image: absent": lambda place: read_image(place / "none.png", 3),
    "image: empty": file_of("a.png", b""),
    "image: none": file_of("a.png", b"%PDF-1.7 this is none" * 9),
    "image: truncated": file_of("a.png", b"\x89PNG\r\n\x1a\n" + bytes(20)),
    "image: other channels": file_of("a.tif", np.zeros((4, 4, 5), np.uint8)),
    "image: not finite": file_of("a.tif", np.full((4, 4), np.inf, np.float32)),
    "image: stack": file_of("a.tif", np.zeros((30, 9, 9), np.uint8), read_image),
    "image: complex": file_of("a.tif", np.zeros((9, 9), np.complex64)),
    "mask: shape and type": file_of("a.npy", np.zeros((4, 4, 3), np.float32), mask_of),
    "mask: no whole numbers": file_of("a.npy", np.full((4, 4), 0.5, np.float32), mask_of),
    "mask: NaN": file_of("a.npy", np.full((4, 4), np.nan, np.float32), mask_of),
    "mask: negative": file_of("a.npy", np.full((4, 4), -1, np.int32), mask_of),
    "mask: other size": file_of("a.png", np.zeros((7, 9), np.uint8), known_mask),
    "mask: beyond the classes": file_of("a.png", np.full((4, 4), 7, np.uint8), known_mask),
    "mask: coloured": file_of("a.png", np.full((4, 4, 3), (255, 0, 0), np.uint8), known_mask),
    "truth: no ids": file_of("a.tif", np.full((4, 4), 0.5, np.float32), lambda path: read_truth({1: path})),
    "truth: none": lambda place: find_truth(place.tmp, {place / "x.png": (4, 4)}, ("background", "cell")),
    "truth: no folder": lambda place: find_truth(place / "none", {}, ("background", "cell")),
}


@case
def image_with_frames(place: Place) -> object:
    frames = [Image.new("L", (4, 4), level) for level in (0, 99)]
    frames[0].save(place / "a.gif", save_all=True, append_images=frames[1:])
    return read_image(place / "a.gif", 3)


@case
def layers_of_different_sizes(place: Place) -> object:
    draw(place, "1.png")
    draw(place, "2.png", size=(4, 5))
    return read_label_values(LayeredMask((Layer(place / "1.png", 1), Layer(place / "2.png", 1))), (4, 4))


@case
def layer_with_many_values(place: Place) -> object:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(place / "1.png")
    return read_label_values(LayeredMask((Layer(place / "1.png", 1),)), (8, 8))


@case
def layers_that_hide_a_class(place: Place) -> object:
    hidden = survey(values({0: 9, 2: 3}))
    hidden = replace(hidden, covered=np.array([[0, 1, 2, 3]]))
    return find_classes(hidden, LabelHints(names=("background", "organ", "tumor"), values=(0, 1, 2)))


@case
def jpeg_masks_of_three_levels(place: Place) -> object:
    return find_classes(survey(values({0: 900, 128: 20, 255: 80}, lossy=True)), LabelHints())


@case
def mask_of_exchanged_size(place: Place) -> object:
    draw(place, "a.png", size=(4, 5))
    pair = Pair("a", place / "a.png", FileMask(place / "a.png"), None, None)
    return read_class_map(pair, (4, 5), make_label_map([0, 255]))


@case
def polygon_of_odd_coordinates(place: Place) -> object:
    draw(place, "images/a.png")
    (place / "labels").mkdir()
    (place / "labels" / "a.txt").write_text("0 .1 .1 .2 .2 .3 .3 .4\n")
    return read_folder(place.tmp)


@case
def truth_on_truth(place: Place) -> object:
    for name in "ab":
        Image.new("L", (4, 4), 1).save(place / f"{name}.png")
    return read_truth({1: place / "a.png", 2: place / "b.png"})


@case
def truth_of_another_size(place: Place) -> object:
    draw(place, "x.png")
    return find_truth(place.tmp, {place / "x.jpg": (9, 9)}, ("background", "cell"))


@case
def image_beyond_the_limit(place: Place) -> object:
    write_huge_png(place / "a.png")
    return read_header(place / "a.png")


def copy_run(place: Place) -> Path:
    return shutil.copytree(place.good / "run", place / "run")


@case
def data_of_a_run_moved(place: Place) -> UbendError:
    table = copy_run(place) / "data.csv"
    table.write_text(table.read_text().replace(str(place.good / "data"), str(place / "before")))
    return refused("evaluate", place / "run")


@case
def data_list_of_a_run_is_empty(place: Place) -> UbendError:
    (copy_run(place) / "data.csv").write_text("")
    return refused("evaluate", place / "run")


@case
def run_with_a_damaged_line(place: Place) -> object:
    (copy_run(place) / "metrics.jsonl").write_text("{}\n[\n")
    return read_summary(place / "run")


@case
def video_without_ffmpeg(place: Place) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(place.tmp))
        return open_video(place / "a.mp4")


# -------------------------------------------------------------------------------------------------- settings

for _words in (
    {"train.epoch": 3}, {"learning_rat": 3}, {"nonsense": 1}, {"data.window": 64}, {"recipe": "classic"},
    {"train.epochs": 0}, {"train.epochs": "x"}, {"data.size": 2}, {"train.loss": "none"}, {"data.skip_bad": 3},
    {"train.learning_rate": -1}, {"train.epochs": True},
    {"data.classes": 3}, {"data.folder": 3}, {"train.learning_rate": float("nan")},
    {"train.dropout": 1}, {"model.dropout": 1}, {"data": 3}, {"model.skips": [True]},
    {"model.encoder": "none", "model.pretrained": True}, {"model.encoder": "efficientnet_lite0"},
    {"model.encoder": "resnet18", "model.upsampling": "unpool"}, {"train.class_weights": [0, 0]},
    {"data.foreground_share": 0.5}, {"data.crops_per_epoch": 3, "data.size": 64},
    {"data.crop": 64, "data.resize": "squash"},
    {"data.mean": [0.5]}, {"data.mean": [0.5], "data.std": [0]}, {"model.kind": "paper", "model.upsampling": "unpool"},
    {"model.kind": "paper", "train.sync_batch_norm": True}, {"data.resize": "native", "augment.kind": "none"},
    {"data.resize": "native", "train.border_weight": 1}, {"data.resize": "native", "data.size": 64},
):  # fmt: skip
    CASES[f"settings: {_words}"] = lambda place, words=_words: make_settings(changes=words)  # type: ignore[misc]

CASES |= {
    "--set: no value": lambda place: parse_assignment("train.epochs"),
    "--config: absent": lambda place: read_config(place / "none.toml"),
    "--window: unknown": lambda place: parse_intensity_window("lun"),
    "--window: no width": lambda place: parse_intensity_window("1,0"),
    "scan: sform against pixdim": lambda place: read_scan(write_scan(place, {"pixdim": [1, 1, 1, 3, 1, 1, 1, 1]})),
    "scan: unit": lambda place: read_scan(write_scan(place, {"xyzt_units": 5})),
    "--threshold": lambda place: parse_thresholds(["polyp=2"], ("background", "polyp")),
    "--threshold: unknown class": lambda place: parse_thresholds(["polip=0.3"], ("background", "polyp")),
    "--threshold: no such class": lambda place: parse_thresholds(["x=0.3"], ("background", "polyp")),
    "--min-area": lambda place: parse_areas("--min-area", ["x"], ("background", "polyp")),
    "--device": lambda place: pick_device("abacus"),
    "--device: several processes": lambda place: ProcessGroup(0, 2, 0).pick_device("cuda:1"),
    "--batch: several processes": lambda place: ProcessGroup(0, 2, 0).refuse_uneven(7),
    "--skips": lambda place: parse_skips("9", 4),
    "sample: count": lambda place: draw_sample(place / "new", 0),
    "sample: size": lambda place: draw_sample(place / "new", 1, 4),
    "sample: seed": lambda place: draw_sample(place / "new", 1, seed=-1),
    "processes: ended": lambda place: launch(
        [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], 1
    ),
}


@case
def config_of_another_kind(place: Place) -> object:
    (place / "scores.json").write_text("{}")
    return read_config(place / "scores.json")


@case
def config_with_a_fault(place: Place) -> object:
    (place / "settings.toml").write_text("[train\n")
    return read_config(place / "settings.toml")


# --------------------------------------------------------------------------------------- commands, outputs

CASES |= {
    "fit: no folder": lambda place: refused("fit"),
    "fit: --images alone": lambda place: refused("fit", "--images", "a", "--out", place / "out"),
    "fit: other count of classes": lambda place: place.fit("--classes", "a,b,c"),
    "fit: too small": lambda place: place.fit("--size", 16, "--batch", 1),
    "fit: mean of other channels": lambda place: place.fit("--set", "data.mean=[0.5]", "--set", "data.std=[0.2]"),
    "fit: class weights": lambda place: place.fit("--set", "train.class_weights=[1, 2, 3]"),
    "fit: another shape than the model": lambda place: place.fit("--from", place.good / "run", "--width", 8),
    "fit: --resume of none": lambda place: refused("fit", "--resume", place / "none"),
    "fit: run is there": lambda place: refused("fit", place.good / "data", "--out", place.good / "run", *TINY),
    "predict: no such model": lambda place: refused("predict", place / "none", "a.png", "--out", place / "out"),
    "predict: no such image": lambda place: place.predict(place / "none.png"),
    "predict: nothing": lambda place: refused("predict", place.good / "run", "-", "--out", place / "out"),
    "predict: empty folder": lambda place: place.predict(place.tmp),
    "predict: --tiles": lambda place: place.predict("--tiles", "big"),
    "predict: --tiles below 0": lambda place: place.predict("--tiles", "-3"),
    "predict: --overlap": lambda place: place.predict("--overlap", "1"),
    "predict: --window": lambda place: place.predict("--window", "lung"),
    "evaluate: no such subset": lambda place: refused(
        "evaluate", place.good / "run", flat(place), "--subset", "test", "--device", "cpu"
    ),
    "evaluate: no run": lambda place: refused(
        "evaluate", shutil.copy(place.good / "run" / "model.safetensors", place.tmp)
    ),
    "evaluate: --out is there": lambda place: refused("evaluate", place.good / "run", "--out", place.good / "run"),
    "show: no run": lambda place: refused("show", place.good / "data"),
    "show: --out is there": lambda place: refused("show", place.good / "run", "--out", place.good / "run"),
    "runs: no folder": lambda place: refused("runs", place / "none"),
    "runs: no run": lambda place: refused("runs", place.tmp),
    "preview: --out is there": lambda place: refused("preview", place.good / "data", "--out", place.good / "run"),
    "sample: folder is there": lambda place: refused("sample", place.good / "data"),
    "cutout: --soft": lambda place: place.predict("--soft", "-1", command="cutout"),
    "cutout: --class": lambda place: place.predict("--class", "foreground=2", command="cutout"),
    "cutout: --background": lambda place: place.predict("--background", "nowhere.png", command="cutout"),
    "objects: --method contour": lambda place: place.predict("--method", "contour", command="objects"),
    "objects: --pixel-size": lambda place: place.predict("--pixel-size", "0.325", command="objects"),
    "baseline: unknown method": lambda place: refused("baseline", "otsi", place.good / "data"),
    "baseline: no such method": lambda place: refused("baseline", "zzz", place.good / "data"),
    "lesson: --number": lambda place: refused("lesson", "kinds", "--number", "-1", "--out", place / "out"),
    "lesson: matrix": lambda place: refused(
        "lesson", "transposed-convolution", "--input", "1 2; 3", "--out", place / "out"
    ),
    "lesson: --size": lambda place: refused("lesson", "architecture", "--size", 5000, "--out", place / "out"),
    "lesson: no run": lambda place: refused("lesson", "training", place / "none", "--out", place / "out"),
    "output: folder is there": lambda place: refuse_existing_results(place.good),
    "data set: near its name": lambda place: named.find_dataset("kvasirseg", None, named_reporter()),
    "data set: --root": lambda place: named.find_dataset("nowhere", "there", named_reporter()),
}


def named_reporter() -> Any:
    return None  # nothing is reported before these are refused


@case
def output_that_cannot_be_written(place: Place) -> object:
    with explain_write_errors(place / "a.png"):
        raise OSError(28, "No space left on device")


@case
def fit_into_a_folder_with_other_things(place: Place) -> object:
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").touch()
    return place.fit()


@case
def fit_on_damaged_pairs(place: Place) -> object:
    shutil.copytree(place.good / "data", place / "data")
    (place / "data" / "images" / "disc01.png").write_bytes(b"no picture" * 50)
    draw(place, "data/masks/disc02.png", size=(9, 7))
    return place.fit(data=place / "data")


@case
def fit_on_changed_pairs(place: Place) -> object:
    for name in ("data", "run"):
        shutil.copytree(place.good / name, place / name)
    settings = place / "run" / "settings.toml"
    settings.write_text(settings.read_text().replace(str(place.good / "data"), str(place / "data")))
    shutil.copy(place / "data" / "images" / "disc04.png", place / "data" / "images" / "disc03.png")
    return refused("fit", "--resume", place / "run")


@case
def predict_over_masks(place: Place) -> object:
    draw(place, "out/disc00.png")
    return place.predict()


@case
def predict_two_of_one_name(place: Place) -> object:
    draw(place, "disc00.png")
    return place.predict(place / "disc00.png")


@case
def predict_broken_files(place: Place) -> object:
    (place / "none.png").write_bytes(b"")
    (place / "text.png").write_bytes(b"text" * 100)
    return place.predict(place / "none.png", place / "text.png", "--out", place / "elsewhere")


@case
def predict_images_of_another_kind(place: Place) -> object:
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(place / "deep.png")
    return place.predict(place / "deep.png")


@case
def predict_under_other_conditions(place: Place) -> object:
    (place / "out").mkdir()
    (place / "out" / "predict.json").write_text('{"models": []}')
    return place.predict("--resume")


@case
def predict_into_a_file(place: Place) -> UbendError:
    (place / "out").touch()
    return place.predict()


@case
def predict_over_an_input(place: Place) -> object:
    image = shutil.copy(place.good / "data" / "images" / "disc01.png", place.tmp)
    return place.predict(image, "--out", place.tmp)


@case
def predict_over_a_file_of_the_user(place: Place) -> object:
    (place / "out").mkdir()
    shutil.copy(place.good / "data" / "masks" / "disc00.png", place / "out")
    return place.predict("--resume")


# ------------------------------------------------------------------------------------------------- models


def model_of(spoil: Callable[[Path], object]) -> Case:
    def open_model(place: Place) -> object:
        path = Path(shutil.copy(place.good / "run" / "model.safetensors", place.tmp))
        spoil(path)
        return load_bundle(path)

    return open_model


def edit_header(**changes: object) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header["__metadata__"]["ubend"] = json.dumps({**json.loads(header["__metadata__"]["ubend"]), **changes})
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

    return edit


def save_small(path: Path, names: tuple[str, ...], dtype: str = "uint8") -> Path:
    net = UNet(1, len(names), width=2, depth=1)
    save_bundle(path, Bundle(net.eval(), make_label_map(range(len(names)), names), Sizing(32, True, 1), dtype=dtype))
    return path


CASES |= {
    "model: gone": model_of(Path.unlink),
    "model: cut": model_of(lambda path: path.write_bytes(path.read_bytes()[:100])),
    "model: foreign": model_of(lambda path: save_file({"weight": np.zeros(3, np.float32)}, path)),
    "model: newer": model_of(edit_header(format=99)),
    "model: older": model_of(edit_header(format=0)),
    "model: field out of range": model_of(edit_header(window_px=4)),
    "model: fields that differ": model_of(edit_header(scale=[2.0, 1.0])),
    "model: wrong word": model_of(edit_header(dtype="int8")),
    "model: changed": model_of(edit_header(flips=False)),
    "model: other width": model_of(edit_header(network={"channels": 3, "classes": 2, "width": 3, "depth": 4})),
    "model: fewer layers": model_of(edit_header(network={"channels": 3, "classes": 2, "width": 4, "depth": 3})),
    "model: more layers": model_of(edit_header(network={"channels": 3, "classes": 2, "width": 4, "depth": 5})),
    "class name: none": lambda place: make_label_map([0, 1], ["ground", ""]),
    "models: none": lambda place: load([]),
    "models: other classes": lambda place: load(
        [save_small(place / "one", ("ground", "cell")), save_small(place / "two", ("ground", "polyp"))], device="cpu"
    ),
    "models: other depth": lambda place: load(
        [save_small(place / "one", ("ground", "cell")), save_small(place / "two", ("ground", "cell"), "uint16")],
        device="cpu",
    ),
    "model: array of another type": lambda place: small(place)(np.zeros((8, 8), np.int64)),
    "model: array of another shape": lambda place: small(place)(np.zeros((8, 8, 7), np.uint8)),
    "model: array of 0 to 1": lambda place: small(place)(np.linspace(0, 1, 64).reshape(8, 8)),
    "model: array not finite": lambda place: small(place)(np.full((8, 8), np.nan)),
}


def small(place: Place) -> Predictor:
    return Predictor(load_bundle(save_small(place / "m", ("ground", "cell"))), "cpu")


@case
def run_with_a_damaged_list(place: Place) -> object:
    shutil.copytree(place.good / "run", place / "run")
    (place / "run" / "data.csv").write_text("")
    return refused("fit", "--resume", place / "run")


@case
def run_with_a_damaged_state(place: Place) -> object:
    shutil.copytree(place.good / "run", place / "run")
    RunFolder(place / "run").state_path.write_bytes(b"")
    return refused("fit", "--resume", place / "run")


@case
def run_without_its_state(place: Place) -> object:
    shutil.copytree(place.good / "run", place / "run")
    RunFolder(place / "run").state_path.unlink()
    return refused("fit", "--resume", place / "run")


@case
def only_training_images(place: Place) -> object:
    pairs = [pair for pair in read_run_pairs(place.good / "run") if pair.split == "train"]
    for kind in ("images", "masks"):
        (place / kind).mkdir()
    for pair in pairs:
        shutil.copy(pair.image, place / "images")
        shutil.copy(pair.mask.path, place / "masks")
    return refused("evaluate", place.good / "run", place.tmp, "--device", "cpu")


# ------------------------------------------------------------------------------------------------ archives


def archive(data: bytes, name: str = "x.zip", limits: Limits | None = None) -> Case:
    def open_archive(place: Place) -> object:
        (place / name).write_bytes(data)
        (place / "in").mkdir()
        unpack(place / name, place / "in", lambda done: None, limits)
        return None

    return open_archive


def scores_of(place: Place, drop: int = 0, name: str = "foreground", mask: str = "") -> Path:
    """A file of the run's scores, changed."""
    scores = json.loads((place.good / "run" / "scores.json").read_text().replace('foreground"', f'{name}"'))
    for key in ("per_picture", "images"):
        scores[key] = dict([*scores[key].items()][drop:])
    for about in scores["images"].values():
        about["mask_hash"] += mask
    (place / "scores.json").write_text(json.dumps(scores))
    return place / "scores.json"


CASES |= {
    "compare: one run": lambda place: refused("compare", place.good / "run"),
    "compare: no scores": lambda place: refused("compare", place.good / "run", place.good / "data"),
    "compare: margin": lambda place: refused("compare", place.good / "run", scores_of(place), "--margin", 2),
    "compare: other images": lambda place: refused("compare", place.good / "run", scores_of(place, drop=1)),
    "compare: other classes": lambda place: refused("compare", place.good / "run", scores_of(place, name="cell")),
    "compare: other masks": lambda place: refused("compare", place.good / "run", scores_of(place, mask="x")),
}


CASES |= {
    "archive: leads out": archive(make_zip([("../evil", b"x")])),
    "archive: one file twice": archive(make_zip([("a/b", b"x"), ("A/b", b"y")])),
    "archive: link": archive(make_tar([("link", b"")], b"2", "/etc"), "x.tar.gz"),
    "archive: damaged": archive(make_zip([("a", b"x")])[:-9]),
    "archive: bomb": archive(make_zip([("a", bytes(20 * 2**20))])),
    "archive: many entries": archive(make_zip([(f"{i}", b"") for i in range(30)]), limits=Limits(entries=20)),
}


def onnx_of(data: bytes, *words: object) -> Case:
    """A command with an exported model that holds `data`; refused before a package of the extra is asked for."""

    def run(place: Place) -> object:
        path = place / "model.onnx"
        path.write_bytes(data)
        return refused(words[0], path, *words[1:], *(["--out", place / "out"] if len(words) > 1 else []))

    return run


CASES |= {
    "exported: cut off": onnx_of(b"\x08\x08:\xff", "info"),
    "exported: no graph": onnx_of(b"\x08\x08", "predict", "a.png"),
    "exported: another operator": onnx_of(b"\x3a\x08\x0a\x06\x22\x04Loop\x72\x09\x0a\x05ubend\x12\x00", "info"),
    "exported: by another program": onnx_of(b"\x3a\x00", "info"),
    "export: of an exported model": onnx_of(b"", "export"),
    "export: another ending": lambda place: refused("export", place.good / "run", "--out", place / "a.bin"),
}

# ---------------------------------------------------------------------------------------- what runs tell

RUNS: dict[str, Callable[[Place], list[object]]] = {
    "run: fit": lambda place: ["fit", place.good / "data", "--out", place / "out", *TINY, "--epochs", 1],
    "run: data": lambda place: ["data", place.good / "data", "--out", place / "data.toml"],
    "run: data, too small": lambda place: [
        "data", place.good / "data", "--out", place / "small", "--set", "data.size=16"
    ],
    "run: predict": lambda place: [
        "predict", place.good / "run", place.good / "data" / "images", "--out", place / "out", "--device", "cpu"
    ],
    "run: evaluate": lambda place: ["evaluate", place.good / "run", "--device", "cpu"],
}  # fmt: skip


# Of the machine, or of weights that are as good as random.
OF_THE_MACHINE = ("device: ", "chosen: train.precision", "WARNING: ")


def tell_run(words: list[object], hide: Callable[[str], str]) -> str:
    """The lines that a command prints, once each; numbers are not words."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    lines = re.sub(r"\d+([.,]\d+)*", "#", hide(result.output)).replace("\r", "\n").splitlines()
    told = [line.rstrip() for line in lines if line.strip() and not line.startswith(OF_THE_MACHINE)]
    return "\n".join(dict.fromkeys(told))


# ------------------------------------------------------------------------------------------------ the test


def provoke(one: Case, place: Place) -> UbendError:
    try:
        answer = one(place)
    except UbendError as error:
        return error
    assert isinstance(answer, UbendError), "it raises no error of ours any more"
    return answer


def tell(error: UbendError, hide: Callable[[str], str]) -> str:
    """Class and fields on one line, and what people read; what libraries say is left out, for it is not ours."""
    text, cause = str(error), error.__cause__
    if cause is not None and not type(cause).__module__.startswith("ubend"):
        said = [str(cause), " ".join(str(cause).split()), next(iter(str(cause).splitlines()), "")]
        for one in (some for some in said if " " in some):  # a sentence, not the word that was given
            text = text.replace(one, "CAUSE")
    fields = [type(error).__name__]
    fields += [f"path={error.path.as_posix()}"] if error.path is not None else []
    fields += [f"key={error.key}"] if error.key is not None else []
    return hide(f"{' '.join(fields)}\n{text}")


def hider(place: Place) -> Callable[[str], str]:
    def hide(text: str) -> str:
        for folder, name in ((place.tmp, "TMP"), (place.good, "GOOD")):
            text = text.replace(str(folder), name)
        return text.replace("on this device", "on a CPU")  # where the tests run on a GPU

    return hide


class Golden:
    """The file: `[name of the case]`, then its text."""

    def __init__(self) -> None:
        self.update = bool(os.environ.get("UPDATE_GOLDEN"))
        parts = re.split(r"^\[(.+)\]\n", GOLDEN.read_text(encoding="utf-8") if GOLDEN.exists() else "", flags=re.M)
        self.texts = {name: text.strip("\n") for name, text in zip(parts[1::2], parts[2::2], strict=True)}
        self.seen: dict[str, str] = {}

    def check(self, name: str, text: str) -> None:
        self.seen[name] = text.strip("\n")
        if not self.update:
            assert self.seen[name] == self.texts.get(name)

    def write(self) -> None:
        GOLDEN.parent.mkdir(exist_ok=True)
        texts = {name: self.seen.get(name, self.texts.get(name)) for name in (*CASES, *RUNS)}
        told = "\n\n".join(f"[{name}]\n{text}" for name, text in texts.items() if text is not None)
        GOLDEN.write_text(told + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def golden() -> Iterator[Golden]:
    file = Golden()
    yield file
    if file.update:
        file.write()


@pytest.fixture
def place(tmp_path: Path, good: Path) -> Place:
    (tmp_path / "x").mkdir()
    return Place(tmp_path / "x", good)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_words_of_an_error(name: str, place: Place, golden: Golden) -> None:
    golden.check(name, tell(provoke(CASES[name], place), hider(place)))


@pytest.mark.parametrize("name", RUNS)
def test_words_of_a_run(name: str, place: Place, golden: Golden) -> None:
    golden.check(name, tell_run(RUNS[name](place), hider(place)))


def test_the_file_is_whole(golden: Golden) -> None:
    """No case is left that is gone; every class of errors and many sentences are in it."""
    texts = golden.seen if golden.update else golden.texts
    assert list(texts) == [*CASES, *RUNS]
    told = [text.split("\n", 1) for name, text in texts.items() if name in CASES]
    assert len({sentence for _fields, sentence in told}) >= MIN
    assert {fields.split()[0] for fields, _sentence in told} >= {name for name in ERRORS if name != "UbendError"}


def test_a_case_that_no_longer_raises_fails(place: Place) -> None:
    with pytest.raises(AssertionError, match="raises no error"):
        provoke(lambda _place: None, place)
