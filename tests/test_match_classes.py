"""Scores on another folder: its classes are those of the model by name, whatever their numbers."""

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from support.refusal import raises
from ubend.core.errors import DataError
from ubend.core.progress import Reporter
from ubend.labels.class_table import make_label_map
from ubend.labels.match_classes import match_classes
from ubend.tasks import evaluate as evaluate_task
from ubend.tasks.fit import fit

NAMES = ("background", "cat", "dog", "owl")
COLORS = ((0, 0, 0), (200, 30, 30), (30, 200, 30), (30, 30, 200))


def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (24, 32, 3) and its class indices: one block of each class."""
    random = np.random.default_rng(number)
    index = np.zeros((24, 32), np.uint8)
    for label, column in enumerate(random.permutation(3), 1):
        size = 4 + label
        index[4 : 4 + size, 1 + 10 * column : 1 + 10 * column + size] = label
    return (random.integers(0, 40, (*index.shape, 3)) + 60 * index[..., None]).astype(np.uint8), index


def write(root: Path, order: Sequence[int], kind: str, count: int = 4) -> Path:
    """Images and masks; the class `c` has the number `order[c]`, and the folder says so in its own way."""
    random = np.random.default_rng(sum(place * number for place, number in enumerate(order)))
    names = [NAMES[order.index(number)] for number in range(len(order))]
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
    for number in range(count):
        pixels, index = draw(number + 100 * count)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        mask = Image.fromarray(np.array(order, np.uint8)[index])
        if kind == "palette":
            mask.putpalette([channel for name in names for channel in COLORS[NAMES.index(name)]])
        mask.save(root / "masks" / f"{number}.png")
    if kind == "classes.txt":
        (root / "classes.txt").write_text("\n".join(names))
    elif kind == "numbered":
        lines = [f"{number} {name}\n" for number, name in enumerate(names)]
        (root / "classes.txt").write_text("".join(random.permutation(lines)))
    return root


def write_coco(root: Path, categories: Sequence[str], shown: Sequence[str] = NAMES[1:], count: int = 4) -> Path:
    (root / "images").mkdir(parents=True)
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        pixels, index = draw(number + 100 * count)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        for name in shown:
            y, x = np.nonzero(index == NAMES.index(name))
            x0, x1, y0, y1 = (int(v) for v in (x.min(), x.max() + 1, y.min(), y.max() + 1))
            annotations.append(
                {
                    "image_id": number,
                    "category_id": categories.index(name),
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                }
            )
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 24} for n in range(count)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories)],
    }
    (root / "all.json").write_text(json.dumps(content))
    return root


def evaluate(*given: Any, **settings: Any) -> dict[str, Any]:
    """The scores, without the hashes of the files that were scored."""
    scores = evaluate_task.evaluate(*given, **settings)
    return {key: value for key, value in scores.items() if key != "images"}


def train(folder: Path, run: Path) -> Path:
    quiet = Reporter(Console(file=io.StringIO()))
    fit(folder, run, settings={"model.depth": 1}, size=24, width=2, epochs=1, batch=4, device="cpu", reporter=quiet)
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("match")


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    return train(write(place / "train", range(4), "classes.txt", 9), place / "run")


@pytest.mark.parametrize("kind", ["classes.txt", "numbered"])
def test_numbers_do_not_matter(kind: str, run: Path, place: Path) -> None:
    orders = [tuple(np.random.default_rng(seed).permutation(4).tolist()) for seed in range(1, 4)]
    same, *others = (
        evaluate(run, write(place / f"{kind}{n}", order, kind), device="cpu")
        for n, order in enumerate([(0, 1, 2, 3), *orders])
    )
    assert len(set(same["native"]["true_share"].values())) == 4
    assert all(other == same for other in others)


def test_colours_of_palettes_matter(place: Path) -> None:
    run = train(write(place / "palette_train", range(4), "palette", 9), place / "palette_run")
    same = evaluate(run, write(place / "palette_same", range(4), "palette"), device="cpu")
    assert evaluate(run, write(place / "palette_other", (2, 0, 3, 1), "palette"), device="cpu") == same
    mixed = write(place / "palette_mixed", range(4), "palette")
    mask = Image.open(mixed / "masks/1.png")
    mask.putpalette([channel for color in COLORS[::-1] for channel in color])
    mask.save(mixed / "masks/1.png")
    with raises(DataError, key="data.values"):
        evaluate(run, mixed, device="cpu")


def test_annotations_are_matched_by_name(run: Path, place: Path) -> None:
    one = evaluate(run, write_coco(place / "coco", ("cat", "dog", "owl")), device="cpu")
    assert evaluate(run, write_coco(place / "coco_more", ("Owl", "ant", "Dog", "Cat"), ()), device="cpu")
    assert evaluate(run, write_coco(place / "coco_order", ("owl", "ant", "dog", "cat")), device="cpu") == one
    dogs = evaluate(run, write_coco(place / "coco_dogs", ("dog",), ("dog",)), device="cpu")["native"]["true_share"]
    assert dogs["cat"] == dogs["owl"] == 0
    assert dogs["dog"] == one["native"]["true_share"]["dog"]
    folder = write_coco(place / "coco_unknown", ("cat", "dog", "owl"))
    (folder / "all.json").write_text((folder / "all.json").read_text().replace("owl", "eagle"))
    with raises(DataError, key="data.values", named=["eagle", "0=background,1=cat,2=dog,3=ignored"]):
        evaluate(run, folder, device="cpu")
    told = evaluate(run, folder, values="0=background,1=cat,2=dog,3=ignored", device="cpu")["native"]["true_share"]
    assert told["owl"] == 0 < told["dog"]


@given(st.permutations(range(4)), st.permutations(range(4)))
@settings(max_examples=30)
def test_each_value_goes_to_the_class_of_its_name(ours: list[int], theirs: list[int]) -> None:
    model = make_label_map(range(4), [NAMES[i] for i in ours])
    labels = make_label_map([10 * i for i in range(4)], [NAMES[i].upper() for i in theirs])
    index, found = match_classes(labels, model, set(range(4)), numbered=True).classify(np.arange(0, 40, 10, np.int32))
    assert found.all()
    assert [model.names[i].upper() for i in index] == list(labels.names)


def test_classes_that_training_joined() -> None:
    """`--values 1=pet,2..3=background` in training, and a folder that names the three: its values are the same."""
    three = make_label_map((1, 2, 3), ("pet", "background", "contour"))
    model = make_label_map((1, 2), ("pet", "background"))
    model = type(model)(model.names, "value", ((1,), (2, 3)), model.colors)
    assert match_classes(three, model, {0, 1, 2}, numbered=True).codes == ((1,), (2, 3))
    for labels, numbered in ((three, False), (make_label_map((1, 2, 3), ("background", "pet", "contour")), True)):
        with raises(DataError, key="data.values", named=["contour"]):
            match_classes(labels, model, {0, 1, 2}, numbered=numbered)


@pytest.mark.parametrize("names", [*itertools.permutations((("bg", "cell"), ("background", "foreground")))])
def test_two_classes_that_nobody_named(names: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    labels, model = make_label_map((0, 1), names[0]), make_label_map((0, 255), names[1])
    assert match_classes(labels, model, {0, 1}, numbered=True).codes == ((0,), (1,))
