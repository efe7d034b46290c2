"""Scores: of a predictor that is always right, and of a trained one against scikit-learn's."""

import io
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, log_loss

from support.discs import make_discs
from support.models import prob_of
from support.refusal import raises
from ubend.core.errors import DataError, PairError
from ubend.core.files import json_text
from ubend.core.progress import Reporter
from ubend.dataset.store import read_class_map
from ubend.evaluation.score_tables import score_lines
from ubend.evaluation.scores import evaluate_pairs
from ubend.inference.ensemble import load
from ubend.inference.predictor import Logits, Predictor
from ubend.io.images import read_image, resize_mask
from ubend.labels.class_table import IGNORED, LabelMap, make_label_map
from ubend.labels.mask_files import FileMask
from ubend.layouts.pairs import Pair
from ubend.models.model_file import load_bundle
from ubend.portable.decode import read_header
from ubend.portable.raster import Header
from ubend.portable.tiling import TileSource
from ubend.tasks.evaluate import evaluate, read_run_rows
from ubend.tasks.fit import fit


class Oracle:
    """A predictor that knows the masks; its logits are at the image's own size. Answers come backwards."""

    def __init__(self, labels: LabelMap, pairs: list[Pair], wrong: bool = False) -> None:
        self.labels, self.pairs, self.wrong = labels, pairs, wrong

    def inspect(self, path: Path) -> Header:
        return read_header(path)

    def prepare(self, path: Path, header: Header) -> TileSource:
        return TileSource.of_pixels(read_image(path), header.size_hw)

    def run(self, sources: Iterable[TileSource]) -> Iterator[Logits]:
        for number, source in reversed(list(enumerate(sources))):
            native_hw = source.native_hw
            index = read_class_map(self.pairs[number], native_hw, self.labels).classes % self.labels.classes
            if self.wrong:
                index = (index + 1) % self.labels.classes
            hot = np.arange(self.labels.classes)[:, None, None] == index
            yield Logits([number], native_hw, slice(0, native_hw[0]), torch.from_numpy(60.0 * hot[None]).float())


def write_pairs(folder: Path, masks: list[np.ndarray]) -> list[Pair]:
    pairs = []
    for number, mask in enumerate(masks):
        image, target = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(image)
        Image.fromarray(mask).save(target)
        pairs.append(Pair(str(number), image, FileMask(target), None, None))
    return pairs


def score(labels: LabelMap, pairs: list[Pair], **given: Any) -> dict[str, Any]:
    return evaluate_pairs(Oracle(labels, pairs, **given), pairs)


def test_logits_that_are_not_finite_are_no_score(tmp_path: Path) -> None:
    class Broken(Oracle):
        def run(self, sources: Iterable[TileSource]) -> Iterator[Logits]:
            for logits in super().run(sources):
                if logits.image_indices == [1]:
                    logits.values[0, :, 0, 0] = torch.nan
                yield logits

    labels = make_label_map([0, 1], ["background", "b"])
    pairs = write_pairs(tmp_path, [np.eye(8, dtype=np.uint8)] * 3)
    with raises(DataError, path=pairs[1].image, key="value"):
        evaluate_pairs(Broken(labels, pairs), pairs)


def test_perfect_answers(tmp_path: Path) -> None:
    """1 for every class that occurs, None for one that never does, at native size and odd shapes."""
    generator = np.random.default_rng(0)
    masks = [generator.integers(0, 3, size, dtype=np.uint8) for size in ((17, 31), (40, 48), (1, 1))]
    labels = make_label_map([0, 1, 2, 3], ["background", "b", "c", "never"], ignored=(255,))
    masks[0][:3] = 255
    scores = score(labels, write_pairs(tmp_path, masks))
    for size in ("native", "model_size"):
        for kind in ("dice", "iou"):
            for way in ("per_image", "pooled"):
                found = scores[size][kind][way]
                assert [found[name] for name in ("background", "b", "c")] == [1.0, 1.0, 1.0]
                assert found["never"] is None
                assert (found["mean"], found["mean_foreground"]) == (1.0, 1.0)
        assert scores[size]["pixel_accuracy"] == 1.0
        assert scores[size]["cross_entropy"] == pytest.approx(0.0, abs=1e-9)
        assert scores[size]["pictures"] == 3
    only = int(masks[2][0, 0])
    expected = [1.0 if index == only else None for index in range(4)]
    assert list(scores["per_picture"]["2"]["dice"].values()) == expected
    assert list(scores["per_picture"]) == ["0", "1", "2"]


def test_outlines_of_perfect_answers(tmp_path: Path) -> None:
    """In bands of rows as in one, in px where no file states a size."""

    class Banded(Oracle):
        def run(self, sources: Iterable[TileSource]) -> Iterator[Logits]:
            for logits in super().run(sources):
                half = logits.native_hw[0] // 2
                yield Logits(logits.image_indices, logits.native_hw, slice(0, half), logits.values[:, :, :half])
                yield Logits(
                    logits.image_indices, logits.native_hw, slice(half, logits.native_hw[0]), logits.values[:, :, half:]
                )

    masks = [np.zeros((20, 30), np.uint8) for _mask in range(3)]
    masks[0][3:9, 4:17], masks[1][8:, 20:] = 1, 1
    labels, pairs = make_label_map([0, 1], ["background", "b"]), write_pairs(tmp_path, masks)
    whole, banded = (evaluate_pairs(kind(labels, pairs), pairs) for kind in (Oracle, Banded))
    assert whole == banded
    assert (whole["boundary"]["unit"], whole["boundary"]["f1"]["per_image"]["b"]) == ("px", 1.0)
    assert whole["boundary"]["hausdorff_95"]["per_image"]["b"] == 0.0
    assert whole["per_picture"]["2"]["hausdorff_95"] == {"background": 0.0, "b": None}
    assert whole["calibration"]["expected_error"] == 0.0
    wrong = evaluate_pairs(Banded(labels, pairs, wrong=True), pairs)
    assert wrong["boundary"]["in_truth_or_prediction_only"] == {"background": 1, "b": 1}
    assert wrong["calibration"]["expected_error"] == 1.0


def test_distances_are_in_the_unit_that_all_files_state(tmp_path: Path) -> None:
    """Pixels of 2 x 0.5 µm, an object that lies 3 columns off; in px where one file states nothing."""
    mask, moved = np.zeros((2, 12, 16), np.uint8)
    mask[4:8, 4:8], moved[4:8, 7:11] = 1, 1
    labels, pairs = make_label_map([0, 1], ["background", "b"]), write_pairs(tmp_path, [mask, mask])

    class Moved(Oracle):
        def run(self, sources: Iterable[TileSource]) -> Iterator[Logits]:
            for logits in super().run(sources):
                hot = np.stack([1 - moved, moved])
                yield Logits(
                    logits.image_indices, logits.native_hw, logits.rows, torch.from_numpy(60.0 * hot[None]).float()
                )

    for number, pair in enumerate(pairs):
        metadata = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 2.0, "axes": "YX"}
        image = tmp_path / f"{number}.ome.tif"
        tifffile.imwrite(image, np.zeros((12, 16), np.uint8), metadata=metadata, ome=True)
        pairs[number] = replace(pair, image=image)
    found = evaluate_pairs(Moved(labels, pairs), pairs)["boundary"]
    assert (found["unit"], found["hausdorff_95"]["per_image"]["b"]) == ("um", pytest.approx(1.5))
    tifffile.imwrite(pairs[1].image, np.zeros((12, 16), np.uint8))
    found = evaluate_pairs(Moved(labels, pairs), pairs)["boundary"]
    assert (found["unit"], found["hausdorff_95"]["per_image"]["b"]) == ("px", 3.0)


def test_intervals_are_over_groups_where_there_are_any(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    masks = [generator.integers(0, 2, (8, 8), dtype=np.uint8) for _mask in range(6)]
    labels, pairs = make_label_map([0, 1], ["background", "b"]), write_pairs(tmp_path, masks)
    images = score(labels, pairs, wrong=True)["intervals"]
    assert (images["over"], images["count"]) == ("images", 6)
    groups = [Pair(pair.name, pair.image, pair.mask, None, f"patient {n % 2}") for n, pair in enumerate(pairs)]
    scores = score(labels, groups)
    found = scores["intervals"]
    assert (found["over"], found["count"], found["dice"]["b"]["rough"]) == ("groups", 2, True)
    for kind in ("dice", "iou", "precision", "recall"):
        assert found[kind]["mean"]["mean"] == scores["native"][kind]["per_image"]["mean"]
    assert found["boundary_f1"]["b"]["mean"] == scores["boundary"]["f1"]["per_image"]["b"]
    assert "1.000 (1.000 to 1.000)" in "\n".join(score_lines({"part": "test", **scores}))


def test_answers_that_are_always_wrong(tmp_path: Path) -> None:
    masks = [np.eye(9, 7, dtype=np.uint8) * 255]
    scores = score(make_label_map([0, 255]), write_pairs(tmp_path, masks), wrong=True)
    assert scores["native"]["dice"]["per_image"] == {
        "background": 0.0,
        "foreground": 0.0,
        "mean": 0.0,
        "mean_foreground": 0.0,
    }
    assert scores["native"]["cross_entropy"] == pytest.approx(60.0)


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    """Another size, and values that the model has no class for, are errors that name the mask."""
    pairs = write_pairs(tmp_path, [np.array([[0, 255], [7, 0]], np.uint8)])
    with raises(PairError, path="0_mask.png", key="data.values", named=["7"]):
        score(make_label_map([0, 255]), pairs)
    pairs = write_pairs(tmp_path, [np.array([[0, 255]], np.uint8)])
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(pairs[0].image)
    with raises(PairError, path="0_mask.png", key="size", named=["2x1", "5x5"]):
        score(make_label_map([0, 255]), pairs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    make_discs(folder / "discs", 24)
    reporter = Reporter(Console(file=io.StringIO()))
    settings = {"model.depth": 2, "train.learning_rate": 1e-2, "train.precision": "float32"}
    fit(folder / "discs", folder / "run", settings=settings, size=24, width=4, epochs=6, batch=4, device="cpu",
        reporter=reporter)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    predictor = Predictor(load_bundle(trained / "run"), "cpu")
    predictor.precision = torch.float32
    return predictor


@pytest.fixture(scope="module")
def pairs(trained: Path) -> list[Pair]:
    """All images, one mask with a stretch that is not scored, one without any object."""
    table = sorted((trained / "discs" / "images").iterdir())
    changed = trained / "changed"
    changed.mkdir()
    out = []
    for number, image in enumerate(table):
        mask = np.array(Image.open(trained / "discs" / "masks" / image.name))
        if number == 1:
            mask = np.zeros_like(mask)
        Image.fromarray(mask).save(changed / image.name)
        out.append(Pair(image.stem, image, FileMask(changed / image.name), None, None))
    return out


@pytest.mark.parametrize("size", ["native", "model_size"])
def test_against_sklearn(size: str, predictor: Predictor, pairs: list[Pair]) -> None:
    """Every figure, from the predictor's own probabilities and the masks on disk."""
    scores = evaluate_pairs(predictor, pairs)[size]
    names = predictor.labels.names
    truths, guesses, probs = [], [], []
    for pair in pairs:
        truth = (np.asarray(Image.open(pair.mask.path)) == 255).astype(np.uint8)
        if size == "native":
            prob = prob_of(predictor, pair.image)
        else:
            logits = next(predictor.run([predictor.prepare(pair.image)])).values
            prob = logits.softmax(1)[0].numpy()
            truth = resize_mask(truth, prob.shape[1:])
        assert truth.shape == prob.shape[1:]
        truths.append(truth.ravel())
        guesses.append(prob.argmax(0).ravel())
        probs.append(prob.reshape(2, -1).T.astype(np.float64))
    t, g, p = np.concatenate(truths), np.concatenate(guesses), np.concatenate(probs)
    assert scores["pixel_accuracy"] == pytest.approx(accuracy_score(t, g), rel=1e-9)
    expected = log_loss(t, p / p.sum(axis=1, keepdims=True), labels=[0, 1])
    assert scores["cross_entropy"] == pytest.approx(expected, rel=1e-4)
    for kind, function in (("dice", f1_score), ("iou", jaccard_score)):
        for label, name in enumerate(names):
            pooled = function(t, g, pos_label=label)
            assert scores[kind]["pooled"][name] == pytest.approx(pooled, rel=1e-9)
            single = [
                function(a, b, pos_label=label, zero_division=0.0)
                for a, b in zip(truths, guesses, strict=True)
                if (a == label).any() or (b == label).any()
            ]
            assert scores[kind]["per_image"][name] == pytest.approx(np.mean(single), rel=1e-9)
            assert scores["defined"][name] == len(single)
        values = [scores[kind]["per_image"][name] for name in names]
        assert scores[kind]["per_image"]["mean"] == pytest.approx(np.mean(values))
        assert scores[kind]["per_image"]["mean_foreground"] == pytest.approx(values[1])


def test_the_two_sizes_differ(predictor: Predictor, pairs: list[Pair]) -> None:
    """Native and model size are two measurements; the images named are native ones."""
    scores = evaluate_pairs(predictor, pairs)
    native, small = scores["native"], scores["model_size"]
    assert native["dice"]["pooled"]["foreground"] != small["dice"]["pooled"]["foreground"]
    found = [row["dice"]["foreground"] for row in scores["per_picture"].values()]
    mean = np.mean([value for value in found if value is not None])
    assert mean == pytest.approx(native["dice"]["per_image"]["foreground"], abs=1e-5)


def test_images_without_a_class_that_lower_its_mean_are_told(tmp_path: Path) -> None:
    """One wrong pixel there counts as Dice 0."""
    crack = np.zeros((8, 8), np.uint8)
    crack[2:4] = 1
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    empty, labels = np.zeros_like(crack), make_label_map([0, 1], ["background", "crack"])
    predicted, truth = (
        write_pairs(tmp_path / "a", [crack, crack, crack]),
        write_pairs(tmp_path / "b", [crack, empty, empty]),
    )
    scores = {"part": "test", **evaluate_pairs(Oracle(labels, predicted), truth)}
    told = "crack in 2 of 2 such images (mean of the others 1.000)"
    assert sum(told in line for line in score_lines(scores)) == 1
    right = {"part": "test", **evaluate_pairs(Oracle(labels, truth), truth)}
    assert "Dice 0" not in "\n".join(score_lines(right))


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["road", "sky", "tree"], ["road", "sky", "tree", "mean"]),
        (["sky", "Background", "tree"], ["sky", "Background", "tree", "mean", "mean without background"]),
        (["background", "tree"], ["background", "tree", "mean"]),
        (["road", "tree"], ["road", "tree", "mean"]),
    ],
)
def test_rows_of_the_printed_table(names: list[str], rows: list[str], tmp_path: Path) -> None:
    """The mean without the background is a row where there is one, and another class than one; the JSON has it always.

    Without a background both means are equal.
    """
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8) % len(names)
    labels = make_label_map(list(range(len(names))), names)
    pairs = write_pairs(tmp_path, [mask])
    scores = evaluate_pairs(Oracle(labels, pairs), pairs)
    assert list(scores["native"]["dice"]["per_image"]) == [*names, "mean", "mean_foreground"]
    table = [line for line in score_lines({"part": "test", **scores}) if line.startswith("  ") and "1.0000" in line]
    assert [line.split("  ")[1].strip() for line in table] == rows


def test_sparse_labels_that_are_lost_at_model_size(predictor: Predictor, tmp_path: Path) -> None:
    """They are scored at native size alone."""
    labels = make_label_map([0, 1], ["background", "foreground"], ignored=(255,))
    side = 4 * (predictor.bundle.sizing.size_px or 0)
    mask = np.full((side, side), 255, np.uint8)
    mask[0, :2] = 0, 1
    bundle = predictor.bundle
    other = Predictor(type(bundle)(bundle.model, labels, bundle.sizing), "cpu")
    scores = evaluate_pairs(other, write_pairs(tmp_path, [mask]))
    assert scores["native"]["cross_entropy"] > 0
    assert scores["model_size"]["cross_entropy"] is None
    assert scores["model_size"]["dice"]["pooled"]["foreground"] is None
    assert "NaN" not in json_text(scores)
    assert score_lines({"part": "test", **scores})


def test_ignored_pixels_are_not_scored(predictor: Predictor, pairs: list[Pair], tmp_path: Path) -> None:
    """Where the mask says "not scored", the answer does not matter."""
    labels = make_label_map([0, 100], ["background", "foreground"], ignored=(255,))
    mask = np.asarray(Image.open(pairs[0].mask.path))
    guess = predictor(pairs[0].image).mask
    wrong = guess != (mask == 255)
    assert wrong.any()
    kept = np.where(mask == 255, 100, 0).astype(np.uint8)
    kept[wrong] = IGNORED
    Image.fromarray(kept).save(tmp_path / "m.png")
    bundle = predictor.bundle
    other = Predictor(type(bundle)(bundle.model, labels, bundle.sizing), "cpu")
    other.precision = torch.float32
    scores = evaluate_pairs(other, [Pair("a", pairs[0].image, FileMask(tmp_path / "m.png"), None, None)])
    assert scores["native"]["pixel_accuracy"] == 1.0
    assert scores["native"]["dice"]["pooled"]["mean"] == 1.0


def test_run_scores_are_those_of_its_test_part(trained: Path) -> None:
    """`evaluate` of a run gives the scores that the run was left with."""
    import json

    scores = evaluate(trained / "run", device="cpu")
    saved = json.loads((trained / "run" / "scores.json").read_text())
    assert scores["part"] == "test"
    assert {**scores, "recipe": "modern"} == saved  # to the last digit: the store holds what the files give


def test_test_time_augmentation(trained: Path) -> None:
    """About the Dice of the masks of `predict --tta`, which averages the views at the size of the image instead."""
    pairs = [pair for pair, _hashes in read_run_rows(trained / "run") if pair.split == "test"]
    found, wanted = [], []
    for tta in (True, False):
        scores = evaluate(trained / "run", device="cpu", tta=tta)
        found.append(scores["native"]["dice"]["per_image"]["mean_foreground"])
        predictor = load([trained / "run"], device="cpu", tta=tta)
        dice = []
        for pair in pairs:
            mask = predictor(pair.image).mask
            truth = read_class_map(pair, mask.shape, predictor.labels).classes
            dice.append(f1_score(truth[truth != IGNORED], mask[truth != IGNORED]))
        wanted.append(np.mean(dice))
    assert found == pytest.approx(wanted, abs=0.01)
    assert found[0] != found[1]


def test_files_that_were_changed_are_named(good: Path, tmp_path: Path) -> None:
    """Once, those that are scored; the scores are of the files as they are."""
    data = shutil.copytree(good / "data", tmp_path / "data")
    run = shutil.copytree(good / "run", tmp_path / "run")
    (run / "data.csv").write_text((run / "data.csv").read_text().replace(str(good / "data"), str(data)))
    heard = io.StringIO()

    def score() -> list[str]:
        heard.truncate(heard.seek(0))
        found.append(evaluate(run, device="cpu", reporter=Reporter(Console(file=heard, width=500))))
        return [line for line in heard.getvalue().splitlines() if "changed since the training" in line]

    found: list[dict[str, Any]] = []
    assert score() == []
    first, second, *_others = found[0]["per_picture"]
    Image.fromarray(255 - np.asarray(Image.open(data / "masks" / f"{first}.png"))).save(data / "masks" / f"{first}.png")
    image = Image.open(data / "images" / f"{second}.png").rotate(180)
    image.save(data / "images" / f"{second}.png")
    (line,) = score()
    assert "2 scored pairs" in line
    assert line.endswith(f"{first}, {second}")
    assert found[0]["per_picture"][first] != found[1]["per_picture"][first]
