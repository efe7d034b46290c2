"""The lessons on kinds of masks and on augmentation: what is drawn is the image's own, one kind at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from support.refusal import check, raises, refused_once
from ubend.cli.app import main
from ubend.core.errors import SettingError
from ubend.core.i18n import choose_language
from ubend.core.settings import AugmentSettings, make_settings
from ubend.dataset.augment import identity_params, sample_augmentation
from ubend.dataset.store import Store
from ubend.labels.class_table import IGNORED
from ubend_lessons import kinds
from ubend_lessons.augmentation import (
    DRAWS,
    KINDS,
    draw_copies,
    draw_kind,
    fix_warp,
    for_all_images,
    isolate,
    leave_out,
    teach_augmentation,
)
from ubend_lessons.cards import Card, draw_cards, wrap_text
from ubend_lessons.example import Example, make_example, store_example, take_example

NAMES = ("background", "cell", "contour")
FIELDS = {
    "flips": "affine",
    "rotation": "affine",
    "scale": "affine",
    "stretch": "affine",
    "shift": "offset_yx",
    "elastic": "elastic",
    "brightness": "brightness",
    "contrast": "contrast",
    "color": "gain",
    "saturation": "saturation",
    "gamma": "gamma",
    "blur": "blur_px",
    "noise": "noise",
}
ALL = fix_warp(make_settings())


def touching() -> Example:
    """Two cells of 4 x 3 px side by side, with a contour that is theirs, and a pixel of it outside."""
    ids = np.zeros((8, 10), np.int64)
    ids[2:6, 2:5], ids[2:6, 5:8] = 7, 3  # numbers as programs give them
    mask = (ids > 0).astype(np.uint8)
    mask[2:6, 4:6] = 2
    mask[0, 0] = 2
    return make_example(np.zeros((8, 10), np.uint8), mask, NAMES, ids)


def invoke(*words: object, status: int = 0) -> str:
    run = CliRunner().invoke(main, ["lesson", *map(str, words)])
    assert run.exit_code == status, run.output
    return run.output


# Kinds


def test_objects_are_the_true_ones(tmp_path: Path) -> None:
    found = kinds.find_objects(touching())
    assert found.ids.max() == 2
    assert found.classes.tolist() == [1, 1]
    meaning = kinds.dissolve_contour(touching(), found)
    np.testing.assert_array_equal(meaning, (found.ids > 0).astype(np.uint8))
    lines = kinds.teach_kinds(touching(), out=tmp_path)
    assert "detection gives 2 boxes: a class and 4 numbers each" in lines
    assert "  1: cell, left 5, top 2, width 3, height 4; the object takes 100% of the box" in lines
    assert "  connected regions of one class: 1; objects: 2" in lines
    assert "semantic segmentation gives 80 classes, one per pixel: background 70.0%, cell 30.0%" in lines
    assert "instance segmentation gives 2 masks of 8 x 10; 70% of the pixels are in no mask" in lines
    assert lines[-1] == str(tmp_path / "kinds.png")


def test_without_ids_the_mask_is_taken_apart(tmp_path: Path) -> None:
    two = np.zeros((6, 9), np.uint8)
    two[1:3, 1:3], two[3:5, 5:8] = 1, 2
    example = make_example(np.zeros((6, 9, 3), np.uint8), two, ("background", "cat", "dog"))
    found = kinds.find_objects(example)
    assert found.classes.tolist() == [1, 2]
    assert kinds.dissolve_contour(example, found) is two
    assert "a class '" not in "".join(kinds.teach_kinds(example, out=tmp_path))


def test_an_image_without_objects(tmp_path: Path) -> None:
    example = make_example(np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8), ("background", "polyp"))
    assert "detection gives 0 boxes: a class and 4 numbers each" in kinds.teach_kinds(example, out=tmp_path)


def test_objects_have_colours_of_their_own() -> None:
    assert len(np.unique(kinds.object_colors(60), axis=0)) == 61


@pytest.mark.parametrize(
    ("image", "mask", "names", "key"),
    [
        ((4, 4), (4, 5), ("background", "a"), "mask"),
        ((4, 4, 3, 1), (4, 4), ("background", "a"), "mask"),
        ((4, 4), (4, 4), ("background",), "names"),
    ],
)
def test_arrays_that_do_not_fit(
    image: tuple[int, ...], mask: tuple[int, ...], names: tuple[str, ...], key: str
) -> None:
    with raises(SettingError, key=key):
        make_example(np.zeros(image, np.uint8), np.ones(mask, np.uint8), names)


def test_no_object_among_the_classes(tmp_path: Path) -> None:
    example = make_example(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), ("background", "contour"))
    with raises(SettingError, key="names"):
        kinds.teach_kinds(example, out=tmp_path)


@pytest.mark.parametrize(("language", "word"), [("en", "panoptic segmentation gives"), ("vi", "phân đoạn toàn cảnh")])
def test_kinds_of_the_sample(language: str, word: str, tmp_path: Path) -> None:
    said = invoke("kinds", "--number", 2, "--out", tmp_path, "--lang", language)
    choose_language("en")
    assert word in said
    with Image.open(tmp_path / "kinds.png") as page:
        assert page.width > 900


def test_kinds_of_a_folder(discs: Path, tmp_path: Path) -> None:
    said = invoke("kinds", "--data", discs, "--number", 3, "--out", tmp_path)
    assert said.startswith("disc03: 40 x 48 px, 3 values each\ndetection gives 1 boxes")


@pytest.mark.parametrize(
    ("number", "named"),
    [("24", ["24"]), ("-1", [])],
)
def test_refused_numbers(number: str, named: list[str], discs: Path, tmp_path: Path) -> None:
    error = refused_once("lesson", "kinds", "--data", discs, "--number", number, "--out", tmp_path)
    check(error, SettingError, key="--number", named=named)


def test_cards() -> None:
    small, tall = np.zeros((20, 100, 3), np.uint8), np.zeros((90, 100, 3), np.uint8)
    page = draw_cards([Card("a", small, "word " * 40), Card("b", tall, ""), Card("c", small, "")], 2)
    assert page.width > 200
    assert page.height > 20 + 90 + 40
    from ubend.drawing.panels import load_font

    lines = wrap_text("a few words that do not fit", load_font(14), 60)
    assert " ".join(lines) == "a few words that do not fit"
    assert len(lines) > 2


# Augmentation


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_example(take_example(None, 0, size_px=96), 96, tmp_path_factory.mktemp("one"))


def test_a_store_holds_the_image(store: Store) -> None:
    example = take_example(None, 0, size_px=96)
    np.testing.assert_array_equal(store.image(0), example.image)
    np.testing.assert_array_equal(store.mask(0), example.mask)


def test_what_is_open_is_settled() -> None:
    assert (ALL.kind, ALL.orientation, ALL.rotation_deg) == ("warp", "free", 180)
    upright = fix_warp(make_settings(changes={"augment.orientation": "upright"}))
    assert (upright.orientation, upright.rotation_deg) == ("upright", 15)


def test_every_range_belongs_to_a_kind() -> None:
    """A new setting of the warp has to get its row in the gallery."""
    others = {"kind", "anchor_shift_px", "both_flips", "orientation", "out_of_frame"}
    others |= {"elastic_px", "elastic_grid"}  # another form of the elastic field, whose share puts it at rest
    assert {key for keys in KINDS.values() for key in keys} | others == set(AugmentSettings.model_fields)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_kind_is_alone(kind: str) -> None:
    n = 40
    shapes = np.full((n, 2), 64)
    alone = sample_augmentation(for_all_images(isolate(ALL, kind)), 0, np.arange(n), shapes, (64, 64), 3)
    rest = sample_augmentation(leave_out(ALL, list(KINDS)), 0, np.arange(n), shapes, (64, 64), 3)
    changed = set()
    for name, still in vars(identity_params(n, 3)).items():
        if name != "noise_yx":  # where a noise would lie
            np.testing.assert_allclose(getattr(rest, name), still, atol=1e-6)
            if not np.allclose(getattr(alone, name), still, atol=1e-6):
                changed.add(name)
    assert changed == {FIELDS[kind]}
    affine = alone.affine.astype(np.float64)
    product = affine @ affine.transpose(0, 2, 1)
    if kind in ("flips", "rotation"):
        np.testing.assert_allclose(product, np.tile(np.eye(2), (n, 1, 1)), atol=1e-5)
        assert (kind == "flips") == (np.linalg.det(affine) < 0).any()
    if kind == "scale":
        np.testing.assert_allclose(product, product[:, :1, :1] * np.eye(2), atol=1e-6)
    if kind == "stretch":
        np.testing.assert_allclose(np.linalg.det(affine), 1, atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_drawn_kinds(kind: str, store: Store) -> None:
    """Colours leave the mask alone; what moves the image moves the mask."""
    row = draw_kind(store, ALL, kind, seed=1)
    image, mask = store.image(0), store.mask(0)
    assert row.images.shape == (DRAWS, *image.shape)
    assert row.masks.shape == (DRAWS, *mask.shape)
    assert (row.images != image).any()
    moves = FIELDS[kind] in ("affine", "offset_yx", "elastic")
    assert (row.masks != mask).any() == moves
    again = draw_kind(store, ALL, kind, seed=1)
    np.testing.assert_array_equal(row.images, again.images)
    assert (draw_kind(store, ALL, kind, seed=2).images != row.images).any()


def flipped(pixels: NDArray[Any], copy: int) -> NDArray[Any]:
    return (pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1])[copy]


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_the_tutorials_copies(seed: int, store: Store) -> None:
    bent, flips = draw_copies(store, ALL, seed)
    for copy in range(3):
        np.testing.assert_allclose(flips.images[copy], flipped(store.image(0), copy), atol=1e-2)
        np.testing.assert_array_equal(flips.masks[copy], flipped(store.mask(0), copy))
        assert (bent.masks[copy] != store.mask(0)).any()
        assert not np.array_equal(bent.masks[copy], bent.masks[copy - 1])
    assert IGNORED not in bent.masks


def test_the_tutorials_words(store: Store) -> None:
    """Its text says elastic and both flips, its code both flips."""
    bent, flips = draw_copies(store, ALL.model_copy(update={"both_flips": "elastic"}), 0)
    assert flips.name.endswith("both after 'elastic'")
    np.testing.assert_array_equal(flips.masks[0], flipped(store.mask(0), 0))
    assert (flips.masks[2] != flipped(store.mask(0), 2)).any()
    assert (flips.masks[2] != flipped(bent.masks[0], 2)).mean() < 0.02  # a half pixel here or there


def test_deep_images_of_two_channels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 4000, (40, 56, 2)).astype(np.uint16)
    mask = (random.random((40, 56)) < 0.3).astype(np.uint8)
    example = make_example(image, mask, ("background", "x"))
    kept = store_example(example, 47, tmp_path / "store")  # about its own size
    assert (kept.dtype, kept.channels) == (np.uint16, 2)
    np.testing.assert_array_equal(kept.image(0), image)
    np.testing.assert_array_equal(kept.mask(0), mask)
    lines = teach_augmentation(example, out=tmp_path)
    assert sum("values change by" in line for line in lines) == 18
    assert [Path(line).name for line in lines[-3:]] == [
        f"augmentation_{name}.png" for name in ("tutorial", "shape", "color")
    ]


@pytest.mark.parametrize(("language", "word"), [("en", "rotation: values change"), ("vi", "xoay: giá trị thay đổi")])
def test_gallery_command(language: str, word: str, discs: Path, tmp_path: Path) -> None:
    words = ["--data", discs, "--set", "augment.noise=0", "--seed", 3, "--lang", language]
    said = invoke("augmentation", *words, "--out", tmp_path)
    choose_language("en")
    assert word in said
    assert ": 0.0%" not in said
    noise = next(line for line in said.splitlines() if line.startswith(("noise", "nhiễu")))
    assert " 0.0%" in noise  # as was asked for
    for name in ("tutorial", "shape", "color"):
        with Image.open(tmp_path / f"augmentation_{name}.png") as page:
            assert page.width > 800


def test_colour_kinds_are_not_hidden_by_the_mask(tmp_path: Path) -> None:
    """The images are shown as they are drawn; of all rows only that of all kinds together has outlines."""
    teach_augmentation(take_example(size_px=64), out=tmp_path)
    with Image.open(tmp_path / "augmentation_color.png") as page:
        marked = (np.asarray(page.convert("RGB")) == (255, 0, 255)).all(axis=2).any(axis=1)
    assert not marked[: round(0.8 * len(marked))].any()
    assert marked[round(0.8 * len(marked)) : round(0.96 * len(marked))].any()


@pytest.mark.parametrize(
    ("assignment", "key"),
    [
        ("augment.scales=1", "augment.scales"),
        ("augment.scale=9", "augment.scale"),
        ("train.epochs=3", "train.epochs"),
        ("augment.scale", "--set"),
    ],
)
def test_refused_settings(assignment: str, key: str, tmp_path: Path) -> None:
    error = refused_once("lesson", "augmentation", "--set", assignment, "--out", tmp_path)
    check(error, SettingError, key=key)
