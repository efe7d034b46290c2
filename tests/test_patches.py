"""Windows of images at native size: what a crop shows is what the image shows, each pixel is scored once, and
everything is a function of (seed, position)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from support.discs import make_discs, open_folder, read_store
from support.refusal import check, raises, refused_once
from support.training import Listener, contents, make_runtime, press_twice
from ubend.core.errors import SettingError
from ubend.core.settings import AugmentSettings, make_settings
from ubend.dataset import sources
from ubend.dataset.augment import AugmentParams, DeviceAugmentParams, sample_augmentation, warp
from ubend.dataset.batches import Augmentation, Batch, BatchOrder, TrainingBatches
from ubend.dataset.foreground import Foreground
from ubend.dataset.rectangles import Rectangles, find_rectangles, read_rectangles
from ubend.dataset.sources import FixedCrops, RandomCrops, share_crops
from ubend.dataset.store import Store
from ubend.evaluation.score_tables import score_lines
from ubend.inference.predictor import Predictor, load
from ubend.io.images import Sizing
from ubend.metrics.overlap import dice_from_confusion
from ubend.models.model_file import load_bundle
from ubend.tasks import fit as job
from ubend.tasks.evaluate import evaluate
from ubend.tasks.user_settings import read_user_settings
from ubend.training import loop
from ubend.training.run_folder import RunFolder

CPU = torch.device("cpu")
WARP = AugmentSettings(kind="warp", orientation="free", rotation_deg=180.0)
SHAPES = [(150, 210), (40, 300), (64, 64), (23, 31), (220, 90), (97, 101)]
PATCHES: dict[str, Any] = {
    "data.resize": "native", "data.crop": 32, "data.crops_per_epoch": 30, "model.width": 2, "model.depth": 2,
    "train.precision": "float32", "train.epochs": 2, "train.batch": 6,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    """Networks this small are many times faster with one thread where processors are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Images of noise of many shapes; a ninth of each is an object, in one corner."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for k, (h, w) in enumerate(SHAPES):
        coarse = rng.integers(0, 255, (h // 8 + 2, w // 8 + 2, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC).save(root / f"images/{k}.png")
        mask = np.zeros((h, w), np.uint8)
        mask[: h // 3, : w // 3] = 255
        Image.fromarray(mask).save(root / f"masks/{k}.png")
    return open_folder(root, root / "cache", Sizing(None, True, 3))


def make(
    store: Store, share: float = 0.0, batch: int = 6, shard: tuple[int, int] = (0, 1), windows: int = 90
) -> TrainingBatches:
    patches = RandomCrops(store, np.arange(len(store)), CPU, windows, (32, 32), WARP)
    foreground = Foreground(patches.mask, len(patches), (1,), share, 3) if share else None
    augmentation = Augmentation(WARP, (32, 32), (np.zeros(3), np.full(3, 255.0)))
    return TrainingBatches(patches, BatchOrder(3, batch, shard), augmentation, foreground=foreground)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.target, other.target)


# --------------------------------------------------------------------------------------------------- for training


def test_images_keep_their_size(store: Store) -> None:
    assert store.shapes_hw.tolist() == [list(shape) for shape in SHAPES]
    assert store.native_hw.tolist() == store.shapes_hw.tolist()


@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("window_hw", [(32, 32), (48, 16), (64, 64)])
@pytest.mark.parametrize(("elastic", "shift"), [(0.0, 0.1), (0.03, 0.9), (0.1, 0.3)])
def test_crops_show_what_images_show(
    store: Store, window_hw: tuple[int, int], elastic: float, shift: float, ignore: bool
) -> None:
    """The warp of a crop is the warp of the image, at its border and beyond."""
    settings = WARP.model_copy(update={"elastic": elastic, "elastic_share": 1.0, "shift": shift})
    patches = RandomCrops(store, np.arange(len(store)), CPU, 90, window_hw, settings)
    positions = np.arange(200)
    numbers = positions % len(store)
    shapes = store.shapes_hw[numbers]
    draws = sample_augmentation(settings, 1, positions, shapes, window_hw, 3)
    canvas = (int(shapes[:, 0].max()), int(shapes[:, 1].max()))
    moved, corners, sizes = find_rectangles(draws, shapes, window_hw, patches.canvas_hw)
    images, masks = read_store(store, numbers, canvas)
    whole = look((torch.from_numpy(images), torch.from_numpy(masks)), shapes, draws, window_hw, ignore)
    crops = read_rectangles(store, Rectangles(numbers, corners, sizes), patches.canvas_hw, CPU)
    found = look(crops, sizes, moved, window_hw, ignore)
    assert (corners >= 0).all()
    assert (corners + sizes <= shapes).all()
    assert (sizes <= np.array(patches.canvas_hw)).all()
    agree = (whole[1] == found[1]).float().mean(dim=(1, 2))  # rounding may turn a pixel on the border of an object
    assert (agree > 0.97).float().mean() > 0.99, agree.min()
    apart = (whole[0] - found[0]).abs().amax(dim=(1, 2, 3))
    assert (apart < 0.5).float().mean() > 0.99, apart.max()
    assert (sizes.prod(axis=1) < shapes.prod(axis=1)).any(), "less than the image is read"


def test_crops_of_images_on_the_device(store: Store) -> None:
    """Kept on the device or read crop by crop, a batch is the same, up to rounding; nothing is read for it."""
    settings = WARP.model_copy(update={"elastic": 0.0})
    read, kept = (RandomCrops(store, np.arange(len(store)), CPU, 90, (32, 32), settings, room) for room in (0, 2**30))
    assert (read.resident, kept.resident) == (False, True)
    assert not RandomCrops(store, np.arange(len(store)), CPU, 90, (32, 32), settings, kept.bytes - 1).resident
    augmentation = Augmentation(settings, (32, 32), (np.zeros(3), np.full(3, 255.0)))
    foreground = Foreground(read.mask, len(read), (1,), 0.5, 3)
    one, other = (
        TrainingBatches(source, BatchOrder(3, 16), augmentation, foreground=foreground) for source in (read, kept)
    )
    for step in range(9):
        expected, found = one.sample(step), other.sample(step)
        assert (expected.target == found.target).float().mean() > 0.99
        assert (expected.image - found.image).abs().mean() < 0.05
        assert ((expected.image - found.image).abs() < 1).float().mean() > 0.999
    assert other.waited_s == 0


def look(
    images: tuple[Tensor, Tensor], shapes: Any, draws: AugmentParams, window_hw: tuple[int, int], ignore: bool
) -> tuple[Tensor, Tensor]:
    packed = DeviceAugmentParams.unpack(torch.from_numpy(draws.pack()), 3)
    sizes = torch.from_numpy(shapes.astype(np.float32))
    return warp(images[0].permute(0, 3, 1, 2), images[1], sizes, packed, window_hw, ignore)


def test_batches_belong_to_steps(store: Store) -> None:
    """Whoever asks, and in whatever order; another seed is another batch."""
    wanted = [make(store, 0.5).sample(step) for step in range(9)]
    batches = make(store, 0.5)
    for step in (0, 1, 2, 3, 3, 8, 1, 0, 7, 8, 4, 5):  # in order, again, onward and back
        assert same(batches.sample(step), wanted[step])
    assert len({batch.image.numpy().tobytes() for batch in wanted}) == 9


@pytest.mark.parametrize("count", [2, 3])
def test_processes_draw_the_batch_of_one(store: Store, count: int) -> None:
    for step in (0, 7):
        whole = make(store, 0.5).sample(step)
        parts = [make(store, 0.5, shard=(rank, count)).sample(step) for rank in range(count)]
        assert torch.equal(torch.cat([shard.image for shard in parts]), whole.image)
        assert torch.equal(torch.cat([shard.target for shard in parts]), whole.target)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=40), st.integers(1, 10**4))
def test_windows_are_shared_by_area(areas: list[int], windows: int) -> None:
    counts = share_crops(np.array(areas, np.int64), windows)
    assert (counts >= 1).all()
    exact = windows * np.array(areas) / sum(areas)
    assert (np.abs(counts - np.maximum(exact, 1)) <= 0.5 + 1e-6).all()


def test_an_image_is_shown_by_its_area(store: Store) -> None:
    """In every epoch, whatever its crops show."""
    batches = make(store, batch=1)
    patches = batches.source
    assert isinstance(patches, RandomCrops)
    assert batches.items_per_epoch == patches.repeats.sum()
    for epoch in (0, 3):
        steps = range(epoch * batches.items_per_epoch, (epoch + 1) * batches.items_per_epoch)
        numbers = [int(batches._items(step)[2][0]) for step in steps]
        assert np.bincount(numbers, minlength=len(store)).tolist() == patches.repeats.tolist()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_windows_over_objects(store: Store, share: float) -> None:
    """An object has a ninth of each image; crops laid over it all show some of it."""
    batches = make(store, share, batch=30, windows=900)
    seen = np.concatenate([(batches.sample(step).target == 1).any(dim=2).any(dim=1).numpy() for step in range(20)])
    anywhere = 0.26  # of crops drawn at random: more than a ninth, as a crop is a fifth of an image wide
    assert abs(seen.mean() - (share + (1 - share) * anywhere)) < 0.05


def test_objects_of_large_masks_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((61, 37)) < 0.4).astype(np.uint8)
    items, positions = np.zeros(200, np.int64), np.arange(200)
    at_once = Foreground(lambda _item: mask, 1, (1,), 1.0, 0).sample(items, positions)
    monkeypatch.setattr("ubend.dataset.foreground._PART_PIXELS", 100)
    in_parts = Foreground(lambda _item: mask, 1, (1,), 1.0, 0).sample(items, positions)
    np.testing.assert_array_equal(at_once, in_parts)
    assert (mask[tuple(in_parts[:, :2].astype(int).T)] == 1).all()


# ------------------------------------------------------------------------------------------------- for validation


class _Shapes:
    """A store of which only the images' sizes matter; pixels are numbered."""

    channels, dtype = 1, np.dtype(np.uint8)

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        self.shapes_hw = np.array(shapes, np.int64)

    paint = Store.paint

    def image(self, number: int) -> np.ndarray:
        return np.zeros((*self.shapes_hw[number], 1), np.uint8)

    def mask(self, number: int) -> np.ndarray:
        h, w = self.shapes_hw[number]
        return (np.arange(h * w).reshape(h, w) % 251).astype(np.uint8)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_windows_cover_and_count_each_pixel_once(shapes: list[tuple[int, int]], window_hw: tuple[int, int]) -> None:
    there = _Shapes(shapes)
    windows = FixedCrops(there, np.arange(len(shapes)), CPU, window_hw, 10**6)  # type: ignore[arg-type]
    assert len(windows) == windows.cover
    _image, target = windows.take(np.arange(len(windows)))
    for number, (h, w) in enumerate(shapes):
        mine = target[torch.from_numpy(windows.image_of_item == number)]
        counts = torch.bincount(mine.flatten().long(), minlength=256)[:251]
        expected = np.bincount(there.mask(number).reshape(-1), minlength=251)
        assert counts.tolist() == expected.tolist(), (h, w)


def test_of_many_windows_some_are_taken_evenly() -> None:
    there = _Shapes([(100, 100), (300, 100), (10, 10)])
    windows = FixedCrops(there, np.array([2, 0, 1]), CPU, (10, 10), 40)  # type: ignore[arg-type]
    assert (windows.cover, len(windows)) == (401, 40)
    assert np.bincount(windows.image_of_item, minlength=3).tolist() == [1, 10, 29]
    assert set(windows.image_indices[windows.image_of_item == 1]) == {0}
    corners = [windows.corner_yx[windows.image_of_item == number].tolist() for number in (1, 2)]
    assert [50, 50] in corners[0], "the middle of each image"
    assert [150, 50] in corners[1]
    assert len(np.unique(np.c_[windows.image_of_item, windows.corner_yx], axis=0)) == 40
    windows = FixedCrops(there, np.array([0, 1]), CPU, (10, 10), 40)  # type: ignore[arg-type]
    assert np.bincount(windows.image_of_item).tolist() == [10, 30]
    rows = windows.corner_yx[windows.image_of_item == 1][:, 0]
    assert (np.diff(rows) == 10).all(), "one of each row"


def test_a_very_large_image_leaves_the_others_their_windows() -> None:
    there = _Shapes([(64, 64)] * 10 + [(4000, 4000)] + [(64, 64)] * 9)
    for maximum, images in ((200, 20), (20, 20), (5, 1)):
        windows = FixedCrops(there, np.arange(20), CPU, (128, 128), maximum)  # type: ignore[arg-type]
        assert len(windows) == maximum
        assert len(np.unique(windows.image_of_item)) == images


# ---------------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patches") / "discs"
    make_discs(folder, 24)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "whole"
    listener = Listener()
    job.fit(folder, run, settings=PATCHES, device="cpu", reporter=listener)
    assert "data.foreground_share = 0.5" in (run / "run.json").read_text(encoding="utf-8")
    return run


def test_a_run_with_patches(whole: Path, folder: Path) -> None:
    """It is scored at native size, its model cuts tiles by itself, and says so."""
    saved = json.loads((whole / "scores.json").read_text())
    assert saved["model_size"] == saved["native"]
    assert {**evaluate(whole, device="cpu"), "recipe": "modern"} == saved
    lines = score_lines(saved)
    assert sum("pixel accuracy" in line for line in lines) == 1
    bundle = load_bundle(whole)
    assert (bundle.sizing.size_px, bundle.window_px, bundle.scale) == (None, 32, (1.0, 1.0))
    assert bundle.keeps_scale
    predictor = load(whole, "cpu")
    assert predictor.tiling is not None
    image = np.asarray(Image.open(folder / "images" / "disc00.png"))
    mask = predictor(image).mask
    assert mask.shape == image.shape[:2]
    taken_whole = Predictor(bundle, "cpu", tiles=0)(image).mask
    assert (mask == taken_whole).mean() > 0.99
    with Image.open(RunFolder(whole).panel(2)) as panel:
        assert panel.height > 3 * 40, "three crops"


@pytest.mark.parametrize("tiles", [16, 0])
def test_scores_in_tiles_and_whole(whole: Path, tiles: int) -> None:
    """Tiles of a model that takes whole images at native scale come near to it."""
    scores, other = evaluate(whole, device="cpu"), evaluate(whole, device="cpu", tiles=tiles)
    names = list(scores["native"]["true_share"])
    assert other["native"]["true_share"] == scores["native"]["true_share"]
    for name in names:
        assert abs(other["native"]["predicted_share"][name] - scores["native"]["predicted_share"][name]) < 0.2


def test_tiles_on_the_command_line(whole: Path) -> None:
    check(refused_once("evaluate", whole, "--tiles", "big"), SettingError, key="--tiles")


def test_killed_and_resumed(whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is the same to the bit."""
    monkeypatch.setattr(job, "EpochDrawing", lambda *_args, **_named: lambda _state: lambda: None)
    run = tmp_path / "run"
    assert job.fit(folder, run, settings=PATCHES, device="cpu", reporter=Listener(press_twice(3))).scores is None
    assert job.resume(run, reporter=Listener(press_twice(7))).scores is None
    assert job.resume(run, reporter=Listener()).scores is not None
    assert contents(run) == contents(whole)


def test_trained_on_images_that_are_kept_on_the_device(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the run is the same up to rounding."""
    monkeypatch.setattr(sources, "native_budget", lambda _device: 2**30)
    job.fit(folder, tmp_path / "run", settings=PATCHES, device="cpu", reporter=Listener())
    one, other = (
        [json.loads(line) for line in RunFolder(path).metrics.read_text().splitlines()]
        for path in (whole, tmp_path / "run")
    )
    assert len(one) == len(other) == 2
    for expected, found in zip(one, other, strict=True):
        assert found["train_loss"] == pytest.approx(expected["train_loss"], abs=0.01)
        assert found["val_loss"] == pytest.approx(expected["val_loss"], abs=0.05)


def test_validation_counts_each_image_as_a_whole(folder: Path, tmp_path: Path) -> None:
    """Confusions of an image's crops are added up before they become a Dice; each pixel counts once."""
    changes = {**PATCHES, "data.size": None, "data.crop": 16, "data.crops_per_epoch": 200, "data.foreground_share": 0.5}
    runtime = make_runtime(folder, changes)
    windows, state = runtime.training.validation, runtime.training.state
    assert isinstance(windows, FixedCrops)
    assert len(windows) == windows.cover == 4 * windows.image_count
    state.progress.validation_batch = 3  # so that an image's crops are not all looked at together
    _loss, dice = loop.validate(runtime)
    confusions = np.zeros((windows.image_count, 2, 2), np.int64)
    for item, source in enumerate(windows.image_of_item.tolist()):
        image, target = windows.take(np.array([item]))
        with torch.inference_mode():
            guess = state.ema(image.float()).argmax(dim=1)
        for truth in range(2):
            for said in range(2):
                confusions[source, truth, said] += int(((target == truth) & (guess == said)).sum())
    assert (confusions.sum(axis=(1, 2)) == 40 * 48).all()
    expected = np.nanmean(dice_from_confusion(confusions), axis=0)
    np.testing.assert_allclose(dice, expected, atol=1e-3)  # batches of another size may round otherwise


def test_a_set_of_deep_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for k in range(4):
        tifffile.imwrite(tmp_path / f"images/{k}.tif", rng.integers(0, 60_000, (70, 50 + k)).astype(np.uint16))
        Image.fromarray((255 * (rng.random((70, 50 + k)) < 0.3)).astype(np.uint8)).save(tmp_path / f"masks/{k}.png")
    store = open_folder(tmp_path, tmp_path / "cache", Sizing(None, True, 1))
    patches = RandomCrops(store, np.arange(4), CPU, 20, (32, 32), WARP)
    ends = (np.zeros(1), np.full(1, 60_000.0))
    batch = TrainingBatches(patches, BatchOrder(0, 4), Augmentation(WARP, (32, 32), ends)).sample(3)
    assert batch.image.shape == (4, 1, 32, 32)
    assert batch.image.isfinite().all()
    assert batch.image.max() > 30_000


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_large_images_are_laid_down_by_rows(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store and its thumbnails are those of images that are read as a whole."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for k, (h, w) in enumerate([(300, 260), (400, 260), (20, 900)]):
        image = rng.integers(0, 255, (h, w, 3)).astype(np.uint8)
        image[: h // 3 + k] //= 4
        target = tmp_path / f"images/{k}.{suffix}"
        tifffile.imwrite(target, image) if suffix == "tif" else Image.fromarray(image).save(target)
        Image.fromarray((255 * (rng.random((h, w)) < 0.3)).astype(np.uint8)).save(tmp_path / f"masks/{k}.png")
    at_once = open_folder(tmp_path, tmp_path / "one", Sizing(None, True, 3))
    monkeypatch.setattr("ubend.dataset.store._LARGE_PIXELS", 0)
    monkeypatch.setattr("ubend.io.images._ROWS_PIXELS", 5000)
    by_rows = open_folder(tmp_path, tmp_path / "other", Sizing(None, True, 3))
    assert at_once.folder != by_rows.folder
    np.testing.assert_array_equal(at_once.images, by_rows.images)
    np.testing.assert_array_equal(at_once.masks, by_rows.masks)
    np.testing.assert_array_equal(at_once.class_pixels, by_rows.class_pixels)
    assert np.abs(at_once.thumbnails.astype(int) - by_rows.thumbnails).mean() < 40
    blurred = [one.thumbnails.astype(float).mean(axis=2) for one in (at_once, by_rows)]
    assert np.abs(blurred[0] - blurred[1]).mean() < 12


# ----------------------------------------------------------------------------------------------------- settings


def test_the_flag() -> None:
    """`size` is the crop's side; that of a file is left out."""
    settings = read_user_settings("here", flags={"patches": True, "size": 64, "images": "a", "masks": "b"}).settings
    assert (settings.data.resize, settings.data.crop, settings.data.size) == ("native", 64, None)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"recipe": "tutorial", "data.resize": "native"}, "data.resize"),
        ({"augment.kind": "frozen", "data.resize": "native"}, "data.resize"),
        ({"data.size": 128, "data.resize": "native"}, "data.size"),
        ({"data.crops_per_epoch": 100, "data.size": 128}, "data.crops_per_epoch"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], key: str) -> None:
    with raises(SettingError, key=key) as caught:
        make_settings(changes=changes)
    assert "\n" not in str(caught.value)


def test_the_tutorial_is_refused_in_one_line(folder: Path) -> None:
    check(refused_once("fit", folder, "--patches", "--recipe", "tutorial"), SettingError, key="data.resize")


def test_a_window_larger_than_every_image(folder: Path, tmp_path: Path) -> None:
    listener = Listener()
    changes = {**PATCHES, "data.crop": 512, "train.epochs": 1, "data.crops_per_epoch": 6}
    job.fit(folder, tmp_path / "run", settings=changes, device="cpu", reporter=listener)
    chosen = (tmp_path / "run" / "run.json").read_text(encoding="utf-8")
    replaced = "data.crop = 48: 512 was requested, but the median image has 48x40 px"
    assert replaced in chosen
    assert f"chosen: {replaced}" in listener.said
