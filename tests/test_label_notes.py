"""What is reported of labels that may be misread: overlaps, classes that a split lacks, grey levels, names, sizes."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from support.models import make_bundle
from support.refusal import raises
from ubend import read_folder
from ubend.core.errors import DataError, PairError, SettingError
from ubend.core.files import default_cache
from ubend.core.progress import Reporter
from ubend.core.settings import Settings, make_settings, parse_assignment
from ubend.dataset.dataset import open_dataset
from ubend.labels.label_values import Tally
from ubend.labels.main_values import find_main_values
from ubend.layouts.collection import number_classes
from ubend.layouts.problems import Problems
from ubend.models.model_file import save_bundle
from ubend.portable.image_paths import list_images
from ubend.portable.input_checks import inspect_file
from ubend.tasks.evaluate import evaluate
from ubend.tasks.user_settings import read_user_settings

SIZE = 24, 32


def disc(radius: float, y: float = 12, x: float = 16) -> NDArray[np.bool_]:
    return np.hypot(*(np.mgrid[: SIZE[0], : SIZE[1]] - np.array([y, x])[:, None, None])) < radius


def save(path: Path, pixels: NDArray[np.generic], **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels).astype(np.uint8)).save(path, **options)


def write(root: Path, mask: Callable[[int], NDArray[np.generic]], count: int = 8, suffix: str = "png") -> Path:
    """Images of noise, and the masks that `mask` gives."""
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (*SIZE, 3))
        save(root / "images" / f"{number}.png", noise)
        save(root / "masks" / f"{number}.{suffix}", mask(number))
    return root


def write_layers(root: Path, **layers: NDArray[np.bool_]) -> Path:
    """Images, and a mask for each class, `NAME_CLASS.png`."""
    for number in range(6):
        save(root / "images" / f"{number}.png", np.random.default_rng(number).integers(0, 255, (*SIZE, 3)))
        for name, on in layers.items():
            save(root / "masks" / f"{number}_{name}.png", 255 * on)
    return root


def remarks(root: Path) -> str:
    """What is reported of a folder that is opened for a training."""
    return "\n".join(open_dataset(read_user_settings(root).settings, "cpu", default_cache(), Reporter()).remarks)


@pytest.mark.parametrize(("inner", "outer"), [("atumor", "organ"), ("tumor", "organ")])
def test_a_class_within_another_is_kept(tmp_path: Path, inner: str, outer: str) -> None:
    found = read_folder(write_layers(tmp_path, **{inner: disc(4), outer: disc(9)}))
    index = found.pairs[0].class_map()
    np.testing.assert_array_equal(index == found.class_names.index(inner), disc(4))
    np.testing.assert_array_equal(index == found.class_names.index(outer), disc(9) & ~disc(4))
    line = next(line for line in found.notes if f"{inner} on {outer} in 6" in line)
    assert f"{disc(4).sum() / disc(9).sum():.1%}" in line


def test_a_class_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    with raises(DataError, key="data.masks", named=["one", "two"]):
        read_folder(write_layers(tmp_path, one=disc(6), two=disc(6)))


def test_classes_apart_are_not_said_to_overlap(tmp_path: Path) -> None:
    found = read_folder(write_layers(tmp_path, left=disc(4, 12, 6), right=disc(4, 12, 24)))
    assert not any(" on " in line for line in found.notes)


def test_words_of_objects_may_be_classes(tmp_path: Path) -> None:
    found = read_folder(write_layers(tmp_path, cell=disc(9), nucleus=disc(4)))
    assert found.class_names == ("background", "cell", "nucleus")


def test_annotations_that_overlap_are_said(tmp_path: Path) -> None:
    whole, part = "0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9", "0.2 0.2 0.4 0.2 0.4 0.4 0.2 0.4"
    for number in range(3):
        save(tmp_path / "images" / f"{number}.png", np.zeros((*SIZE, 3)))
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{number}.txt").write_text(f"0 {whole}\n1 {part}\n")
    (tmp_path / "data.yaml").write_text("names: [organ, tumor]")
    assert any("tumor on organ in 3" in line for line in read_folder(tmp_path).notes)
    (tmp_path / "labels" / "1.txt").write_text(f"0 {whole} 0.5\n")
    with raises(DataError, key="odd coordinates", named=["labels/1.txt"]):
        read_folder(tmp_path)


def test_a_class_that_one_split_alone_holds(tmp_path: Path) -> None:
    for part, values in {"train": (1, 2), "val": (1, 3), "test": (1, 3)}.items():
        write(tmp_path / part, lambda number, values=values: values[number % 2] * disc(6))  # type: ignore[misc]
    said = remarks(tmp_path).splitlines()
    untrained, unscored = ([line for line in said if f"(1): {name};" in line] for name in ("class 3", "class 2"))
    assert len(untrained) == len(unscored) == 1
    assert untrained != unscored


def jpeg(levels: dict[int, NDArray[np.bool_]], quality: int, blurred: bool = False) -> Tally:
    """What a JPEG mask of these grey levels holds."""
    pixels = np.zeros(SIZE, np.uint8)
    for level, on in levels.items():
        pixels[on] = level
    image = Image.fromarray(np.pad(pixels, 16)).resize((SIZE[1] * 10, SIZE[0] * 10), 2 if blurred else 0)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    counts = np.bincount(np.asarray(Image.open(stream)).reshape(-1), minlength=256)
    codes = np.flatnonzero(counts)
    return Tally(codes.astype(np.int32), counts[codes].astype(np.int64))


@given(st.integers(80, 170), st.sampled_from([80, 90, 95]), st.floats(7, 10))
@settings(max_examples=25)
def test_a_third_grey_level_of_jpeg_masks_is_requested_about(level: int, quality: int, radius: float) -> None:
    block = np.zeros(SIZE, bool)
    block[0:3, 0:5] = True
    two, three = {255: disc(radius)}, {255: disc(radius), level: block}
    assert find_main_values(jpeg(two, quality)) == find_main_values(jpeg(two, quality, blurred=True)) == [0, 255]
    with raises(DataError, key="data.values", named=["*=nearest"]) as caught:
        find_main_values(jpeg(three, quality))
    assert any(f"{near}=name2" in str(caught.value) for near in range(level - 3, level + 4))
    assert find_main_values(jpeg(three, quality), 2) == [0, 255]
    assert abs(find_main_values(jpeg(three, quality), 3)[1] - level) <= 3


def test_names_that_differ_by_case_or_spaces(tmp_path: Path) -> None:
    classes, values = number_classes(["cell", "Cell", "cell ", "two  words"], Problems(tmp_path))
    assert classes == ("background", "cell", "Cell", "two words")
    assert values["cell"] == values["cell "] != values["Cell"]
    root = write(tmp_path, lambda number: number % 3 * disc(6))
    (root / "classes.txt").write_text("background\ncell\nCell\n")
    line = next(line for line in read_folder(root).notes if "'Cell'" in line)
    suggestion = line.partition('--values "')[2].rstrip('"')
    assert read_folder(root, values=tuple(suggestion.split(","))).class_names == ("background", "cell")


def test_classes_that_masks_cannot_hold_have_no_score(tmp_path: Path) -> None:
    bundle = make_bundle(classes=3)
    save_bundle(tmp_path / "model.safetensors", bundle)
    root = write(tmp_path / "set", lambda number: disc(6))
    said = io.StringIO()
    reporter = Reporter(Console(file=said, width=1000))
    scores = evaluate(tmp_path / "model.safetensors", root, device="cpu", reporter=reporter)
    assert "WARNING" in said.getvalue()
    assert "class 2" in said.getvalue()
    for way in ("per_image", "pooled"):
        dice = scores["native"]["dice"][way]
        assert dice["class 2"] is None
        assert dice["mean_foreground"] == pytest.approx(dice["class 1"])
    assert scores["per_picture"]["0"]["dice"]["class 2"] is None
    whole = evaluate(tmp_path / "model.safetensors", write(tmp_path / "whole", lambda n: disc(6) * (1 + n % 2)))
    assert whole["native"]["dice"]["pooled"]["class 2"] is not None


def test_sizes_that_exif_exchanges(tmp_path: Path) -> None:
    root = write(tmp_path, lambda number: disc(6).T)
    with raises(PairError, key="size", named=["transposed"]):
        read_folder(root)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (root / "masks").iterdir():
        save(path, disc(6))
        save(root / "images" / path.name, np.zeros((*SIZE, 3)), exif=exif)
    with raises(PairError, key="size", named=["EXIF"]):
        read_folder(root)


def test_values_that_are_no_classes(tmp_path: Path) -> None:
    root = write(tmp_path / "void", lambda number: np.where(disc(3), 255, (0, 1, 15)[number % 3]))
    with raises(DataError, key="data.values", named=["15=name3,255=ignored"]):
        read_folder(root)
    (root / "masks" / "0.png").unlink()
    tifffile.imwrite(root / "masks" / "0.tif", np.where(disc(3), np.nan, 0).astype(np.float32))
    with raises(PairError, key="value", named=[f"({disc(3).sum()})", "NaN"]):
        read_folder(root)


def test_a_class_of_a_stray_pixel_is_said(tmp_path: Path) -> None:
    def mask(number: int) -> NDArray[np.generic]:
        drawn = disc(6).astype(np.uint8)
        drawn[0, 0] = 2 * (number == 3)
        return drawn

    root = write(tmp_path / "set", mask, count=14)
    line = next(line for line in read_folder(root).notes if "class 2 0.0093%" in line)
    suggestion = line.partition('--values "')[2].rstrip('"')
    assert suggestion == "0=background,1=class 1,2=ignored"
    assert read_folder(root, values=tuple(suggestion.split(","))).class_names == ("background", "class 1")


def test_signed_images_are_not_called_float(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(SIZE, np.int16))
    with raises(DataError, key="dtype", named=["signed"]):
        inspect_file(tmp_path / "a.tif", make_bundle(channels=1))


def test_no_image_of_a_folder_is_skipped_invalid(tmp_path: Path) -> None:
    for name in ("a.png", "b.gif", "c.ppm"):
        save(tmp_path / name, np.zeros((*SIZE, 3)))
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in list_images([tmp_path])] == ["a.png", "b.gif", "c.ppm"]
    assert list_images([tmp_path / "**"]) == list_images([tmp_path])  # as in a folder
    assert list_images([tmp_path / "*.txt"]) == [tmp_path / "notes.txt"]  # refused when it is read


def test_an_image_that_is_named_twice_is_taken_once(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.zeros((*SIZE, 3)))
    assert list_images([tmp_path / "a.png", tmp_path, tmp_path / "*.png"]) == [tmp_path / "a.png"]
    assert len(list_images([tmp_path / "a.png", os.path.relpath(tmp_path / "a.png")])) == 1


@pytest.mark.parametrize(
    "text", ["train.batch=true", "train.learning_rate=false", "data.mean=[true]", "data.size=true"]
)
def test_true_is_no_number(text: str) -> None:
    key, value = parse_assignment(text)
    with raises(SettingError, key=key):
        make_settings(changes={key: value, "data.std": [1.0]} if key == "data.mean" else {key: value})


def test_true_and_false_are_settings() -> None:
    changed = make_settings(changes={"train.deterministic": True, "model.skips": [True, False, True, True]})
    assert isinstance(changed, Settings)
    assert changed.train.deterministic is True
