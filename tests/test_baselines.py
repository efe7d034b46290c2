"""Traditional methods: where each must succeed, where it must not, and that they are scored as models are."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from support.discs import make_discs
from support.refusal import check, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, MissingPackageError, OutputError, SettingError
from ubend.io.images import Sizing
from ubend.labels.class_table import IGNORED, make_label_map
from ubend.metrics.overlap import count_confusion, dice_from_confusion, summarise_overlap
from ubend_lessons.baselines.baseline import Baseline, Example, learn_baseline
from ubend_lessons.baselines.clusters import Clusters
from ubend_lessons.baselines.methods import METHODS, Method, list_parameters, parse_method, segment
from ubend_lessons.baselines.pixels import describe_pixels
from ubend_lessons.baselines.rule import Kinds, choose_classes, halves, score_classes
from ubend_lessons.baselines.run import run_baseline
from ubend_lessons.baselines.segments import describe_segments

SIDE_PX = 96
LABELS = make_label_map([0, 1])


def draw_place(number: int, radius_px: tuple[float, float] = (14, 22)) -> NDArray[np.bool_]:
    """A disc somewhere in the image, away from its rim."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    radius = generator.uniform(*radius_px)
    cy, cx = generator.uniform(radius + 4, SIDE_PX - radius - 4, 2)
    return np.asarray((y - cy) ** 2 + (x - cx) ** 2 < radius**2)


def draw_flat(number: int) -> Example:
    """A red disc on blue-grey ground: other in colour and in light."""
    disc = draw_place(number)
    image = np.where(disc[..., None], (190, 90, 80), (70, 80, 100)) + np.random.default_rng(number).normal(
        0, 3, (SIDE_PX, SIDE_PX, 3)
    )
    return image.clip(0, 255).astype(np.uint8), disc.astype(np.uint8)


def draw_lit_from_a_side(number: int) -> Example:
    """Small light discs on ground that is far lighter on one side than they are on the other."""
    generator = np.random.default_rng(number)
    discs = np.any([draw_place(10 * number + one, (4, 6)) for one in range(4)], axis=0)
    light = np.linspace(20, 200, SIDE_PX)[:: generator.choice([-1, 1])]
    image = light[None, :, None] + 45.0 * discs[..., None] + generator.normal(0, 2, (SIDE_PX, SIDE_PX, 1))
    return image.clip(0, 255).astype(np.uint8), discs.astype(np.uint8)


def draw_woven(number: int) -> Example:
    """A disc of coarse grain on ground of fine grain, of the same mean and the same greys."""
    disc, generator = draw_place(number, (20, 26)), np.random.default_rng(number)
    coarse = np.kron(generator.choice([60, 190], (SIDE_PX // 4, SIDE_PX // 4)), np.ones((4, 4)))
    image = np.where(disc, coarse, generator.choice([60, 190], (SIDE_PX, SIDE_PX)))
    return np.repeat(image[..., None], 3, axis=2).astype(np.uint8), disc.astype(np.uint8)


def learn(method: Method, examples: list[Example], size_px: int = SIDE_PX) -> Baseline:
    channels = examples[0][0].shape[2]
    most = float(np.iinfo(examples[0][0].dtype).max)
    value_range = np.zeros(channels), np.full(channels, most)
    return learn_baseline(method, examples, LABELS, Sizing(size_px, True, channels), value_range)


def mean_dice(baseline: Baseline, shown: list[Example]) -> float:
    """Of the discs."""
    confusions = np.stack([count_confusion(baseline(image).mask, mask, 2) for image, mask in shown])
    return float(np.nanmean(dice_from_confusion(confusions)[:, 1]))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "local"])
def test_flat_regions_are_found(method: Method) -> None:
    baseline = learn(method, [draw_flat(number) for number in range(6)])
    assert mean_dice(baseline, [draw_flat(number) for number in range(20, 24)]) > 0.95


def test_uneven_light() -> None:
    """One threshold cannot do it; one that follows the light can."""
    examples, shown = ([draw_lit_from_a_side(n) for n in numbers] for numbers in (range(6), range(20, 24)))
    assert mean_dice(learn("local", examples), shown) > 0.9
    assert mean_dice(learn("otsu", examples), shown) < 0.4
    assert mean_dice(learn("multi-otsu", examples), shown) < 0.4


@pytest.mark.parametrize("method", ["kmeans", "growing", "watershed", "felzenszwalb", "slic"])
def test_texture_where_colour_fails(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training split chooses texture; without it the disc is not found."""
    examples, shown = ([draw_woven(n) for n in numbers] for numbers in (range(6), range(20, 24)))
    baseline = learn(method, examples)
    assert baseline.parameters["by"] != "color"
    assert mean_dice(baseline, shown) > 0.8
    assert mean_dice(learn("otsu", examples), shown) < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_any_image_is_taken(method: Method) -> None:
    """Flat ones, tiny ones, long ones, grey ones, many deep channels; a mask of one class; other sizes than learnt."""
    generator = np.random.default_rng(0)
    for shape, dtype in (((9, 70, 1), np.uint8), ((24, 24, 4), np.uint16)):
        image = generator.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
        mask = generator.integers(0, 2, shape[:2]).astype(np.uint8)
        flat = np.full_like(image, 7), np.zeros_like(mask)
        baseline = learn(method, [(image, mask), flat], 24)
        for shown in (image, flat[0], image[:1, :1], image[:3]):
            found = baseline(shown)
            assert found.mask.shape == shown.shape[:2]
            assert found.probabilities is not None
            assert found.probabilities.shape == (2, *shown.shape[:2])
            np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
            np.testing.assert_array_equal(found.mask, found.probabilities.argmax(axis=0))


@pytest.mark.parametrize("method", METHODS)
def test_segments_are_numbered(method: Method) -> None:
    """From 0, and the same ones every time."""
    image, _mask = draw_flat(3)
    pixels = describe_pixels(image, np.zeros(3), np.full(3, 255.0))
    for parameters in list_parameters(method):
        found = segment(method, pixels, parameters)
        assert found.shape == image.shape[:2]
        assert found.min() == 0
        np.testing.assert_array_equal(found, segment(method, pixels, parameters))


def test_what_segments_look_like() -> None:
    """Mean colour, place, rim and area, by hand; a number that no pixel has gives zeros."""
    segments = np.zeros((8, 8), np.intp)
    segments[:, 4:] = 2
    image = np.where(segments[..., None] == 2, 255, 0) * np.ones(2)
    found = describe_segments(segments, describe_pixels(image, np.zeros(2), np.full(2, 255.0)))
    assert found.shape == (3, 2 * (2 + 3) + 4)
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_allclose(found[2, :2], 1)
    np.testing.assert_allclose(found[[0, 2], 5:7], [[-0.5, -0.5], [0.5, 0.5]])
    assert found[0, -3] == pytest.approx(0)  # half way down
    np.testing.assert_allclose(found[[0, 2], -2:], [[0.5, 0.5**0.5]] * 2)


TABLES = arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(2)), elements=st.integers(0, 40))


@given(TABLES)
def test_the_rule_is_no_worse_than_the_majority(tables: NDArray[np.int64]) -> None:
    """And no single change of a kind's class would make it better. Its score is the one that is reported."""
    classes = choose_classes(tables, None)
    majority = tables.sum(axis=0).argmax(axis=1)
    best, plain = score_classes(tables, np.stack([classes, majority]))
    assert best >= plain - 1e-9
    for kind, other in itertools.product(range(len(classes)), range(2)):
        changed = classes.copy()
        changed[kind] = other
        assert score_classes(tables, changed[None])[0] <= best + 1e-6
    confusions = np.einsum("nkt,kp->ntp", tables, np.eye(2, dtype=np.int64)[classes])
    told = summarise_overlap(confusions, ["a", "b"], None).dice.per_image.mean
    assert best == pytest.approx(np.nan_to_num(told))


def test_the_rule_takes_the_side() -> None:
    """Objects may be the dark level or the light one."""
    dark = np.array([[[1, 30], [60, 2]]])
    np.testing.assert_array_equal(choose_classes(dark, None), [1, 0])
    np.testing.assert_array_equal(choose_classes(dark[:, ::-1], None), [0, 1])


def test_a_kind_that_taught_nothing() -> None:
    """It is what the kind most like it is."""
    kinds = Kinds(np.zeros(1), np.ones(1), Clusters(np.array([[0.0], [10.0], [9.0], [-1.0]])))
    tables = np.array([[[50, 0], [0, 50], [0, 0], [0, 0]]])
    np.testing.assert_array_equal(choose_classes(tables, kinds), [0, 1, 1, 0])


@pytest.mark.parametrize("method", METHODS)
def test_levels_that_no_training_image_has(method: Method) -> None:
    """They are what most pixels are."""
    flat = np.full((SIDE_PX, SIDE_PX, 3), 90, np.uint8)
    baseline = learn(method, [(flat, np.ones(flat.shape[:2], np.uint8))] * 2)
    assert baseline(draw_flat(0)[0]).mask.all()


def test_nobody_judges_what_it_taught() -> None:
    for teachers, judges in halves(5):
        assert sorted([*teachers, *judges]) == list(range(5))
    assert [list(part) for part in halves(1)[0]] == [[0], [0]]


def test_ignored_pixels_teach_nothing() -> None:
    examples = [draw_flat(number) for number in range(4)]
    covered = [(image, mask.copy()) for image, mask in examples]
    for number, (_image, mask) in enumerate(covered):
        mask[:, :30] = IGNORED
        examples[number][1][:, :30] ^= 1  # a wrong mask below
        examples[number] = (examples[number][0], np.where(mask == IGNORED, IGNORED, examples[number][1]))
    for method in ("otsu", "slic"):
        one, other = learn(method, covered), learn(method, examples)
        np.testing.assert_array_equal(one.classes, other.classes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("baselines") / "discs"
    make_discs(place, 24)
    return place


def read_indices(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as file:
        assert file.mode == "P"
        return np.asarray(file)


def test_scores_are_those_of_the_masks(folder: Path, tmp_path: Path) -> None:
    """What `evaluate` counts, counted once more from the written files."""
    result = run_baseline("kmeans", folder, tmp_path / "out", size=32)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores == json.loads(json.dumps(result.scores))
    added = {"boundary", "calibration", "confusion", "intervals", "missed_objects"}
    assert set(scores) == {"part", "method", "parameters", "native", "model_size", "per_picture", *added}
    assert scores["native"]["cross_entropy"] is scores["calibration"] is None
    confusions = []
    for name in scores["per_picture"]:
        with Image.open(folder / "masks" / f"{name}.png") as file:
            truth = (np.asarray(file) == 255).astype(np.uint8)
        confusions.append(count_confusion(read_indices(tmp_path / "out" / f"{name}.png"), truth, 2))
        with Image.open(tmp_path / "out" / f"{name}_overlay.png") as file:
            assert file.size == truth.shape[::-1]
    wanted = summarise_overlap(np.stack(confusions), result.baseline.labels.names, 0).to_json()
    assert {key: scores["native"][key] for key in wanted} == wanted
    assert wanted["dice"]["per_image"]["mean_foreground"] > 0.9
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(confusions) + 1
    name = next(iter(scores["per_picture"]))
    found = result.baseline(folder / "images" / f"{name}.png")
    np.testing.assert_array_equal(found.mask, read_indices(tmp_path / "out" / f"{name}.png"))


def test_the_test_part_chooses_nothing(folder: Path, tmp_path: Path) -> None:
    """Other masks there give other scores, and the same masks."""
    first = run_baseline("slic", folder, tmp_path / "one", size=32)
    shutil.copytree(folder, tmp_path / "data")
    for name in first.scores["per_picture"]:
        path = tmp_path / "data" / "masks" / f"{name}.png"
        with Image.open(path) as file:
            turned = Image.fromarray(255 - np.asarray(file))
        turned.save(path)
    second = run_baseline("slic", tmp_path / "data", tmp_path / "two", size=32)
    assert second.scores["per_picture"].keys() == first.scores["per_picture"].keys()
    assert second.scores["native"] != first.scores["native"]
    assert second.baseline.judged_dice == first.baseline.judged_dice
    for name in first.scores["per_picture"]:
        one, two = (read_indices(tmp_path / place / f"{name}.png") for place in ("one", "two"))
        np.testing.assert_array_equal(one, two)


def ubend(*words: object) -> str:
    run = CliRunner().invoke(main, [str(word) for word in words])
    assert run.exit_code == 0, run.output
    return run.output


@pytest.mark.parametrize("language", ["en", "vi"])
def test_command(language: str, folder: Path) -> None:
    said = ubend("baseline", "--lang", language)
    assert [line.split()[0] for line in said.splitlines()] == list(METHODS)
    said = ubend("baseline", "otsu", folder, "--size", 32, "--subset", "val", "--lang", language)
    assert "levels 2" in said
    assert "foreground" in said


def test_methods_by_name() -> None:
    assert [parse_method(method.upper()) for method in METHODS] == list(METHODS)
    for word, near in (("k-means", "kmeans"), ("multiotsu", "multi-otsu"), ("felsenswalb", "felzenszwalb")):
        check(
            refused_once("baseline", word), SettingError, key="method", named=[word, f"{near}?", "otsu, multi-otsu, "]
        )
    check(refused_once("baseline", "xyz"), SettingError, key="method", named=["otsu, multi-otsu, "])


def test_refusals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(refused_once("baseline", "ostu", folder), SettingError, key="method", named=["otsu?"])
    check(refused_once("baseline", "otsu"), SettingError, key="data.folder")
    check(refused_once("baseline", "otsu", tmp_path / "none"), DataError, path=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    check(refused_once("baseline", "otsu", tmp_path / "empty"), DataError, path=tmp_path / "empty", key="nothing")
    check(refused_once("baseline", "otsu", folder, "--size", 1), SettingError, key="data.size")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.json").write_text("{}")
    there = refused_once("baseline", "otsu", folder, "--size", 32, "--out", tmp_path / "out")
    check(there, OutputError, path=tmp_path / "out" / "scores.json", key="--out")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for words in (["baseline", "otsu", folder], ["lesson", "traditional-methods", "--out", tmp_path / "lesson"]):
        check(refused_once(*words), MissingPackageError, key="scikit-image", named=["pip install 'ubend[baselines]'"])
