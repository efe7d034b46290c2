"""The contract of data sources, the same for each kind; nobody outside dataset/ asks which kind it has."""

import ast
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from support import ROOT
from support.discs import open_folder, read_store
from ubend.core.settings import AugmentSettings
from ubend.dataset.batches import Augmentation, BatchOrder, TrainingBatches
from ubend.dataset.sources import FixedCrops, ItemSource, RandomCrops, WholeImages
from ubend.dataset.store import Store
from ubend.io.images import Sizing
from ubend.labels.class_table import IGNORED

CPU = torch.device("cpu")
WARP = AugmentSettings(kind="warp", orientation="free", rotation_deg=20, out_of_frame="ignored")
NUMBERS = np.array([5, 0, 3, 2])  # not all images of the store, not in order
KINDS: dict[str, Callable[[Store], ItemSource]] = {
    "whole": lambda store: WholeImages(store, NUMBERS, CPU, 0),
    "whole, resident": lambda store: WholeImages(store, NUMBERS, CPU, 2**30),
    "patches": lambda store: RandomCrops(store, NUMBERS, CPU, 60, (16, 16), WARP),
    "patches, resident": lambda store: RandomCrops(store, NUMBERS, CPU, 60, (16, 16), WARP, 2**30),
    "windows": lambda store: FixedCrops(store, NUMBERS, CPU, (24, 16), 10**6),
    "windows, resident": lambda store: FixedCrops(store, NUMBERS, CPU, (24, 16), 10**6, 2**30),
    "some windows": lambda store: FixedCrops(store, NUMBERS, CPU, (24, 16), 7),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six images of noise, of different shapes, at native size."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for k in range(6):
        size_hw = (30 + 10 * k, 70 - 8 * k)
        Image.fromarray(rng.integers(0, 255, (*size_hw, 3)).astype(np.uint8)).save(root / f"images/{k}.png")
        Image.fromarray((255 * (rng.random(size_hw) < 0.3)).astype(np.uint8)).save(root / f"masks/{k}.png")
    return open_folder(root, root / "cache", Sizing(None, True, 3))


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, store: Store) -> ItemSource:
    return KINDS[request.param](store)


def test_every_kind_is_looked_at(store: Store) -> None:
    assert {type(make(store)) for make in KINDS.values()} == set(ItemSource.__subclasses__())


def test_items_belong_to_images(source: ItemSource) -> None:
    assert len(source) == len(source.image_indices) == len(source.image_of_item) == len(source.repeats)
    assert source.image_count == len(NUMBERS)
    np.testing.assert_array_equal(source.image_indices, NUMBERS[source.image_of_item])
    assert set(source.image_of_item.tolist()) == set(range(len(NUMBERS)))
    ends = source.corner_yx + source.shapes_hw
    assert (source.corner_yx >= 0).all()
    assert (source.shapes_hw >= 1).all()
    assert (ends <= source.store.shapes_hw[source.image_indices]).all()
    crops = source.rectangles(np.arange(len(source)))
    for found, known in (
        (crops.image_indices, source.image_indices),
        (crops.corner_yx, source.corner_yx),
        (crops.size_hw, source.shapes_hw),
    ):
        np.testing.assert_array_equal(found, known)


def test_take(source: ItemSource) -> None:
    """What lies on an item's canvas is the item, so far as it reaches; a pixel without a class is IGNORED."""
    items = np.array([len(source) - 1, 0, 0, 2])
    image, target = source.take(items)
    assert (image.shape, image.dtype) == ((4, 3, *source.canvas_hw), torch.uint8)
    assert (target.shape, target.dtype) == ((4, *source.canvas_hw), torch.uint8)
    assert image.is_contiguous(memory_format=torch.channels_last)
    for slot, item in enumerate(items.tolist()):
        h, w = np.minimum(source.shapes_hw[item], source.canvas_hw)
        found = target[slot].numpy()
        assert (image[slot, :, :h, :w].permute(1, 2, 0).numpy() == source.image(item)[:h, :w]).all()
        assert ((found[:h, :w] == source.mask(item)[:h, :w]) | (found[:h, :w] == IGNORED)).all()
        assert (found[h:] == IGNORED).all()
        assert (found[:, w:] == IGNORED).all()
        assert (found != IGNORED).any()
    assert source.fetched_bytes == image[0].nbytes + target[0].nbytes


def test_read_ahead(source: ItemSource) -> None:
    """By another thread: the same tensors as `read` gives; `take` adds to them which pixels are not scored."""
    window_hw = (16, 16)
    crops = source.rectangles(np.array([1, 0]))
    crops = replace(crops, size_hw=np.minimum(crops.size_hw, window_hw))
    image, target = source.prefetch(crops).result(20)
    assert image.shape == (2, *source.canvas_hw, 3)
    for found, known in zip((image, target), source.read(crops), strict=True):
        assert torch.equal(found, known)


def test_shown_sums_to_the_items_of_an_epoch(source: ItemSource) -> None:
    ends = np.zeros(3), np.full(3, 255.0)
    assert (source.repeats >= 1).all()
    assert (
        TrainingBatches(source, BatchOrder(0, 2), Augmentation(WARP, (16, 16), ends)).items_per_epoch
        == source.repeats.sum()
    )


def test_batches_of_every_kind(source: ItemSource) -> None:
    """A training is given any of them."""
    augmentation = Augmentation(WARP, (16, 16), (np.zeros(3), np.full(3, 255.0)))
    batch = TrainingBatches(source, BatchOrder(0, 2), augmentation).sample(1)
    assert (batch.image.shape, batch.image.dtype) == ((2, 3, 16, 16), torch.float32)
    assert (batch.target.shape, batch.target.dtype) == ((2, 16, 16), torch.uint8)


def test_resident_and_read(store: Store) -> None:
    there, read = KINDS["whole, resident"](store), KINDS["whole"](store)
    assert (there.resident, read.resident) == (True, False)
    assert there.bytes == read.bytes == there.images.nbytes + there.masks.nbytes
    assert len(read.images) == len(read.masks) == 0
    items = np.array([3, 1, 1, 0])
    for one, other in zip(there.take(items), read.take(items), strict=True):
        assert torch.equal(one, other)
    images, masks = read_store(store, NUMBERS[items], there.canvas_hw)
    np.testing.assert_array_equal(there.images[items].numpy(), images)
    np.testing.assert_array_equal(there.masks[items].numpy(), masks)


def test_only_windows_left_out_are_noted(store: Store) -> None:
    notes = {name: make(store).note() for name, make in KINDS.items()}
    some = notes.pop("some windows")
    assert set(notes.values()) == {None}
    assert some is not None
    assert str(len(KINDS["some windows"](store))) in some
    assert str(len(KINDS["windows"](store))) in some


def test_a_forward_pass_has_room_for_one_item(source: ItemSource) -> None:
    assert source.validation_pixels >= math.prod(source.canvas_hw)


# ------------------------------------------------------------------------------------ nobody asks which kind it is

NAMES = {"ItemSource", *(kind.__name__ for kind in ItemSource.__subclasses__())}
OUTSIDE = [path for path in (ROOT / "src").rglob("*.py") if path.parent.name != "dataset"]


def questions(program: str) -> list[int]:
    """Lines of a program that ask for the class of something, where the class is a kind of source."""
    found = []
    for node in ast.walk(ast.parse(program)):
        requested: list[ast.AST] = []
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            requested = list(node.args[1:])
        elif isinstance(node, ast.Compare):
            requested = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchClass):
            requested = [node.cls]
        names = [getattr(part, "id", getattr(part, "attr", "")) for root in requested for part in ast.walk(root)]
        if not NAMES.isdisjoint(names):
            found.append(getattr(node, "lineno", 0) or node.cls.lineno)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    "program",
    [
        "isinstance(a, FixedCrops)",
        "isinstance(a, sources.WholeImages | int)",
        "isinstance(a, (int, RandomCrops))",
        "type(a) is WholeImages",
        "match a:\n case FixedCrops(cover=3): pass",
    ],
)
def test_questions_are_found(program: str) -> None:
    assert questions(program)
    assert not questions(program.replace("FixedCrops", "W").replace("WholeImages", "P").replace("RandomCrops", "Q"))


def test_nobody_outside_asks_which_kind_it_is() -> None:
    assert len(OUTSIDE) > 100
    asking = {str(path): lines for path in OUTSIDE if (lines := questions(path.read_text(encoding="utf-8")))}
    assert not asking


def test_the_toolkit_outside_names_no_kind() -> None:
    """It takes a ItemSource; the course makes one itself here and there."""
    for path in (path for path in OUTSIDE if "ubend_lessons" not in path.parts):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ubend.dataset")
            for alias in node.names
        }
        assert imported.isdisjoint(NAMES - {"ItemSource"}), path
