"""The predictor: any image it can be given, the same answer alone or in company, its own size back."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from support.models import make_bundle, prob_of
from support.refusal import raises
from ubend.core.errors import DataError, ModelFileError, SettingError
from ubend.inference import predictor as subject
from ubend.inference.prediction import Prediction, class_index
from ubend.inference.predictor import Predictor, load
from ubend.io.images import model_size, resize_array
from ubend.models.model_file import save_bundle
from ubend.portable import prefetch as ahead
from ubend.portable.input_checks import refuse_other_kind
from ubend.portable.raster import Header

SIZES = [(40, 48), (17, 31), (1, 1), (33, 64), (3, 200), (40, 48), (64, 33), (32, 32), (7, 7)]


def make_predictor(**given: object) -> Predictor:
    predictor = Predictor(make_bundle(**given), "cpu")  # type: ignore[arg-type]
    predictor.precision = torch.float32
    return predictor


def make_image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("keep_aspect", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size(keep_aspect: bool, channels: int) -> None:
    """Own size, probabilities that add up to 1, the mask is their largest; extreme shapes too."""
    predictor = make_predictor(channels=channels, keep_aspect=keep_aspect)
    for number, size in enumerate(SIZES):
        answer = predictor(make_image((*size, channels), number), probabilities=True)
        assert answer.probabilities is not None
        assert answer.mask.shape == size
        assert answer.mask.dtype == np.uint8
        assert answer.probabilities.shape == (3, *size)
        assert answer.probabilities.dtype == np.float32
        np.testing.assert_allclose(answer.probabilities.sum(axis=0), 1, atol=1e-5)
        np.testing.assert_array_equal(answer.mask, answer.probabilities.argmax(axis=0))


def test_against_the_network_by_hand() -> None:
    """Resized, through the network, back to the image's size, softmax."""
    predictor = make_predictor()
    image = make_image((50, 70, 3))
    small = resize_array(image, model_size((50, 70), 32, True))
    with torch.no_grad():
        logits = predictor.model(torch.from_numpy(small).permute(2, 0, 1)[None].float())
    native = torch.nn.functional.interpolate(logits, (50, 70), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(prob_of(predictor, image), native.softmax(1)[0].numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.* images (is|are) (grey|in colour)")
def test_kinds_of_input(tmp_path: Path) -> None:
    """An array, a path, a path as text; grey with and without its third axis; not contiguous; other dtypes."""
    image = make_image((20, 30, 3))
    Image.fromarray(image).save(tmp_path / "a.png")
    predictor = make_predictor()
    expected = prob_of(predictor, image)
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), image.astype(np.float32), image.astype(np.float64)):
        np.testing.assert_allclose(prob_of(predictor, given), expected, atol=2e-2)
    np.testing.assert_array_equal(prob_of(predictor, tmp_path / "a.png"), expected)
    square = make_image((32, 32, 3))  # of a whole number of tiles, so that nothing has to be repeated
    frozen = square.copy()
    frozen.flags.writeable = False  # as of Pillow's images
    for model in (predictor, Predictor(make_bundle(), "cpu", tiles=16)):
        np.testing.assert_array_equal(prob_of(model, frozen), prob_of(model, square))
    for part in (image, image[:1], image[:, :1], image[:1, :1]):  # one row counts as contiguous, whatever its stride
        for turned in (part[::-1, ::-1], part[:, ::-1], part[::-1]):
            for model in (predictor, Predictor(make_bundle(), "cpu", tiles=16)):
                np.testing.assert_array_equal(prob_of(model, turned), prob_of(model, turned.copy()))

    grey = make_predictor(channels=1)
    plane = make_image((20, 30))
    Image.fromarray(plane).save(tmp_path / "g.png")
    expected = prob_of(grey, plane[:, :, None])
    for given in (plane, tmp_path / "g.png"):
        np.testing.assert_array_equal(prob_of(grey, given), expected)
    assert grey(tmp_path / "a.png").mask.shape == (20, 30), "a colour file is read grey for a grey model"
    assert make_predictor()(tmp_path / "g.png").mask.shape == (20, 30), "and a grey one in colour"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_files_and_arrays_of_other_channels(channels: int, alpha: bool, tmp_path: Path) -> None:
    """One rule: grey for a colour model is repeated, alpha is no channel; each is reported, the rest is refused."""
    image = make_image((20, 30, channels + alpha))
    image[:, :, -1] |= 1  # no alpha of 0
    Image.fromarray(image if channels + alpha > 1 else image[:, :, 0]).save(tmp_path / "a.png")
    predictor = make_predictor()
    plain = np.broadcast_to(image[:, :, :channels], (20, 30, 3)).copy()
    expected = prob_of(predictor, plain)
    for given in (tmp_path / "a.png", image):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            np.testing.assert_array_equal(prob_of(predictor, given), expected)
        assert len(said) == (channels == 1) + alpha
    with raises(DataError, key="shape"):
        make_predictor(channels=5)(image)
    with raises(DataError, key="data.channels"):
        make_predictor(channels=5)(tmp_path / "a.png")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(value: float) -> None:
    image = make_image((20, 30, 3)).astype(np.float64)
    image[3, 4:6, 0] = value
    for predictor in (make_predictor(), make_tiler(16)):
        with raises(DataError, key="value", named=["2"]):
            predictor(image)


@pytest.mark.parametrize("tiles", [0, 16])
def test_logits_that_are_not_finite(tiles: int) -> None:
    """Of finite weights, but too large ones; never a mask that is all background."""
    bundle = make_bundle()
    with torch.no_grad():
        for weights in bundle.model.parameters():
            weights.mul_(1e30)
    predictor = Predictor(bundle, "cpu", tiles=tiles)
    image = make_image((40, 40, 3))
    for probabilities in (False, True):
        with raises(DataError, key="value"):
            predictor(image, probabilities=probabilities)


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.floats(1e-3, 1), st.integers(0, 99))
def test_values_scaled_to_one(most: float, seed: int) -> None:
    """Refused with the factor, in an array and as a file."""
    image = np.random.default_rng(seed).random((8, 8, 3)) * most
    for dtype, factor in (("uint8", "255"), ("uint16", "65535")):
        predictor = make_predictor()
        predictor.bundle.dtype = dtype
        with raises(DataError, key="value", named=[factor]):
            predictor(image.astype(np.float32))
        header = Header(8, 8, 3, "float32")
        with raises(DataError, key="dtype", named=[factor]):
            refuse_other_kind(Path("a.tif"), header, predictor.bundle)


def test_deep_images() -> None:
    """16 bit values keep their range; another depth than the model's is refused, floats are taken as they are."""
    predictor = make_predictor(channels=1)
    predictor.bundle.dtype = "uint16"
    deep = (make_image((32, 32, 1)).astype(np.uint16) * 257)[:, :, :1]
    expected = prob_of(predictor, deep.astype(np.float32))
    np.testing.assert_allclose(prob_of(predictor, deep), expected, atol=1e-5)
    for other in (np.uint8, bool, np.int64):
        with raises(DataError, key="dtype", named=["uint16"]):
            predictor((deep > 99).astype(other))


def test_file_of_another_depth(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(tmp_path / "deep.png")
    with raises(DataError, path="deep.png", key="dtype", named=["uint16", "uint8"]):
        make_predictor(channels=1)(tmp_path / "deep.png")


def test_company_changes_nothing() -> None:
    """Images of mixed sizes at once are what each is alone, and their numbers are right."""
    predictor = make_predictor()
    images = [make_image((*size, 3), number) for number, size in enumerate(SIZES * 2)]
    answers = dict(predictor.predict(iter(images), probabilities=True))
    assert sorted(answers) == list(range(len(images)))
    for number, image in enumerate(images):
        prob = answers[number].probabilities
        assert prob is not None
        np.testing.assert_allclose(prob, prob_of(predictor, image), atol=1e-4)


def test_batches_of_one_size_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor()
    passes: list[tuple[int, ...]] = []
    forward = predictor.forward
    monkeypatch.setattr(predictor, "forward", lambda small: (passes.append(tuple(small.shape)), forward(small))[1])
    numbers = [number for number, _ in predictor.predict(make_image((32, 32, 3), n) for n in range(70))]
    assert numbers == list(range(70))
    assert [shape[0] for shape in passes] == [32, 32, 6]
    passes.clear()
    monkeypatch.setattr(predictor, "_batch_pixels", 3 * 32 * 32)
    assert len(list(predictor.predict(make_image((32, 32, 3), n) for n in range(7)))) == 7
    assert [shape[0] for shape in passes] == [3, 3, 1]


def test_images_of_one_padded_size_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the network pads each alone; the answers are parted by size, and cut where they would be large."""
    predictor = make_predictor()
    passes: list[tuple[int, ...]] = []
    forward = predictor.forward
    monkeypatch.setattr(predictor, "forward", lambda small: (passes.append(tuple(small.shape)), forward(small))[1])
    images = [make_image((*size, 3), n) for n, size in enumerate([(33, 31), (34, 30), (33, 31), (66, 62), (33, 31)])]
    prepared = [predictor.prepare(image) for image in images]
    assert {one.size_hw for one in prepared} == {(33, 31), (34, 30)}
    answers = list(predictor.run(prepared))
    assert passes == [(5, 3, 36, 32)]
    assert [(one.image_indices, one.native_hw) for one in answers] == [
        ([0, 2, 4], (33, 31)),
        ([1], (34, 30)),
        ([3], (66, 62)),
    ]
    for one in answers:
        for number, values in zip(one.image_indices, one.values, strict=True):
            (alone,) = predictor.run([prepared[number]])
            np.testing.assert_allclose(values.numpy(), alone.values[0].numpy(), atol=1e-4)
    monkeypatch.setattr(subject, "_NATIVE_VALUES", 2 * 3 * 33 * 31)
    assert [one.image_indices for one in predictor.run(prepared)] == [[0, 2], [4], [1], [3]]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are not all read before the first is answered, though every one has a size of its own."""
    monkeypatch.setattr(ahead, "_READ_PREFETCH", 2)
    monkeypatch.setattr(ahead, "_READERS", 2)
    monkeypatch.setattr(subject, "_HELD_BYTES", 6 * 32 * 32 * 3)
    requested = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal requested
        for n in range(60):
            requested += 1
            yield make_image((20, 20 + n, 3), n)

    most, answered = 0, []
    for number, answer in make_predictor().predict(source()):
        answered.append(number)
        most = max(most, requested - len(answered))
        assert answer.mask.shape == (20, 20 + number)
    assert sorted(answered) == list(range(60))
    assert most <= 6 + 4 + 1


@pytest.mark.parametrize("shape", [(10, 10, 5), (10, 10, 3, 1), (10,), (0, 10, 3), (10, 0, 3), (10, 10, 0)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with raises(DataError, key="shape") as caught:
        make_predictor()(np.zeros(shape, np.uint8))
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    """The error names the file, also in the middle of many."""
    (tmp_path / "bad.png").write_bytes(b"no picture")
    predictor = make_predictor()
    for name in ("bad.png", "none.png"):
        with raises(DataError, path=tmp_path / name):
            list(predictor.predict([make_image((8, 8, 3)), tmp_path / name, make_image((8, 8, 3))]))
    assert list(predictor.predict([])) == []


def test_shares() -> None:
    """Of the pixels, by name; a class that is nowhere has 0."""
    predictor = make_predictor()
    answer = predictor(make_image((30, 40, 3)))
    shares = answer.shares()
    assert list(shares) == list(predictor.labels.names)
    assert sum(shares.values()) == pytest.approx(1)
    for index, name in enumerate(predictor.labels.names):
        assert shares[name] == (answer.mask == index).mean()
    empty = Prediction(np.zeros((2, 2), np.uint8), predictor.labels, answer.image)
    assert list(empty.shares().values()) == [1.0, 0.0, 0.0]


def test_load(tmp_path: Path) -> None:
    """A file or its folder; the same answers as before saving; bad files and devices are reported."""
    bundle = make_bundle()
    image = make_image((25, 35, 3))
    expected = prob_of(make_predictor(), image)
    save_bundle(tmp_path / "model.safetensors", bundle)
    for path in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        predictor = load(path, "cpu")
        predictor.precision = torch.float32
        np.testing.assert_array_equal(prob_of(predictor, image), expected)
    with pytest.raises(ModelFileError):
        load(tmp_path / "none.safetensors")
    with raises(SettingError, key="device", named=["nonsense"]):
        load(tmp_path, "nonsense")


def test_bfloat16_is_close() -> None:
    """The precision that the device may choose moves probabilities a little only."""
    predictor = make_predictor()
    image = make_image((40, 40, 3))
    expected = prob_of(predictor, image)
    predictor.precision = torch.bfloat16
    assert np.abs(prob_of(predictor, image) - expected).mean() < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_agrees_with_the_cpu() -> None:
    image = make_image((40, 50, 3))
    expected = prob_of(make_predictor(), image)
    other = Predictor(make_bundle(), "cuda")
    other.precision = torch.float32
    np.testing.assert_allclose(prob_of(other, image), expected, atol=2e-2)  # TF32


def make_tiler(tiles: int | None, **given: object) -> Predictor:
    bundle = make_bundle(**given)  # type: ignore[arg-type]
    bundle.window_px, bundle.scale = 32, (1.0, 1.0)
    predictor = Predictor(bundle, "cpu", tiles=tiles)
    predictor.precision = torch.float32
    return predictor


def whole_logits(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        values: np.ndarray = predictor.model(torch.from_numpy(image).permute(2, 0, 1)[None].float()).numpy()[0]
    return values


def test_tiles_are_chosen_by_the_training() -> None:
    """Tiles for windows at native scale; whole images in all other cases, older files among them."""
    bundle = make_bundle()
    assert Predictor(bundle, "cpu").tiling is None
    for window, scale, tile in [
        (None, (1.0, 1.0), None),
        (128, None, None),
        (128, (0.5, 0.5), None),
        (128, (0.7, 1.0), None),
        (128, (0.95, 1.05), 512),
        (640, (1.0, 1.0), 640),
    ]:
        bundle.window_px, bundle.scale = window, scale
        tiling = Predictor(bundle, "cpu").tiling
        assert (tiling and tiling.tile_px) == tile
        assert Predictor(bundle, "cpu", tiles=0).tiling is None
        assert Predictor(bundle, "cpu", tiles=64).tiling is not None
    for given, word in [({"tiles": -1}, "--tiles"), ({"overlap": 1.0}, "--overlap"), ({"overlap": -0.1}, "--overlap")]:
        with raises(SettingError, key=word):
            Predictor(bundle, "cpu", **given)  # type: ignore[arg-type]


def test_small_images_in_tiles_are_whole_at_their_own_scale() -> None:
    """One tile, no larger than the image: what the network says of it as it is, at its border too."""
    predictor = make_tiler(None)
    for number, size in enumerate(SIZES):
        image = make_image((*size, 3), number)
        answer = predictor(image, probabilities=True)
        assert answer.probabilities is not None
        expected = torch.from_numpy(whole_logits(predictor, image)).softmax(0).numpy()
        np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
        np.testing.assert_array_equal(answer.mask, answer.probabilities.argmax(axis=0))
        assert answer.mask.dtype == np.uint8


def test_tiles_of_many_images_share_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each image is what it is alone; masks are the probabilities' largest."""
    predictor = make_tiler(32)
    passes: list[tuple[int, ...]] = []
    forward = predictor.forward
    monkeypatch.setattr(predictor, "forward", lambda small: (passes.append(tuple(small.shape)), forward(small))[1])
    monkeypatch.setattr(predictor, "_batch_pixels", 8 * 32 * 32)
    images = [make_image((50, 60 + n, 3), n) for n in range(5)] + [make_image((9, 70, 3), 9), make_image((1, 1, 3), 10)]
    answers = dict(predictor.predict(iter(images), probabilities=True))
    assert sorted(answers) == list(range(7))
    assert max(shape[0] for shape in passes) == 8
    assert {shape[2:] for shape in passes} == {(32, 32), (12, 32), (4, 4)}
    alone = dict(predictor.predict(iter(images)))
    for number, image in enumerate(images):
        prob = answers[number].probabilities
        assert prob is not None
        np.testing.assert_allclose(prob, prob_of(predictor, image), atol=1e-4)
        np.testing.assert_array_equal(alone[number].mask, answers[number].mask)
        np.testing.assert_allclose(prob.sum(axis=0), 1, atol=1e-5)


def test_the_one_generator() -> None:
    """Whole or in tiles, alone or in one pass with images of more tiles: all rows once, from top to bottom."""
    images = [make_image((*size, 3), n) for n, size in enumerate([(32, 32), (70, 50), (32, 32), (31, 64), (90, 32)])]
    for predictor in (make_tiler(0), make_tiler(32)):
        rows: dict[int, list[int]] = {number: [] for number in range(len(images))}
        parts: dict[int, list[torch.Tensor]] = {number: [] for number in rows}
        for one in predictor.run(map(predictor.prepare, images)):
            assert one.native().shape[-2:] == (one.rows.stop - one.rows.start, one.native_hw[1])
            for number, logits in zip(one.image_indices, one.native().clone(), strict=True):
                assert one.native_hw == images[number].shape[:2]
                rows[number] += range(one.rows.start, one.rows.stop)
                parts[number].append(logits)
                assert one.is_last == (rows[number][-1] + 1 == one.native_hw[0])
        for number, image in enumerate(images):
            assert rows[number] == list(range(len(image)))
            prob = torch.cat(parts[number], dim=1).softmax(0)
            np.testing.assert_allclose(prob, prob_of(predictor, image), atol=1e-4)


def test_masks_of_whole_images() -> None:
    predictor = make_predictor()
    images = [make_image((*size, 3), number) for number, size in enumerate(SIZES)]
    answers = dict(predictor.predict(images, probabilities=True))
    for number, prediction in predictor.predict(images):
        assert prediction.probabilities is None
        np.testing.assert_array_equal(prediction.mask, answers[number].mask)
        np.testing.assert_array_equal(prediction.image, images[number])


def test_tiles_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer at once; and one clear line where one is too many."""
    predictor = make_tiler(32)
    image = make_image((100, 100, 3))
    expected = prob_of(predictor, image)
    forward, most = predictor.forward, 3

    def tight(tiles: torch.Tensor) -> torch.Tensor:
        if len(tiles) > most:
            raise MemoryError
        return forward(tiles)

    monkeypatch.setattr(predictor, "forward", tight)
    np.testing.assert_allclose(prob_of(predictor, image), expected, atol=1e-5)
    most = 0
    with raises(SettingError, key="--tiles", named=["32"]):
        predictor(image)


def test_deep_images_in_tiles() -> None:
    predictor = make_tiler(32, channels=1)
    predictor.bundle.dtype = "uint16"
    deep = make_image((70, 50, 1)).astype(np.uint16) * 3
    np.testing.assert_allclose(prob_of(predictor, deep), prob_of(predictor, deep.astype(np.float32)), atol=1e-5)


def test_class_index() -> None:
    """torch's argmax, the first of equals."""
    logits = torch.randint(0, 4, (5, 40, 50)).float()
    assert class_index(logits).dtype == torch.uint8
    np.testing.assert_array_equal(class_index(logits), logits.numpy().argmax(axis=0))
    assert class_index(logits[:1]).max() == 0


@pytest.mark.parametrize(("sizes", "most"), [([0] * 20, 9), ([40] * 20, 4), ([1000] * 20, 2), ([40, 1000, 0, 0], 4)])
def test_reading_ahead(sizes: list[int], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order; by count and by bytes, the one in work aside; one is read ahead whatever its size."""
    monkeypatch.setattr(ahead, "_PREFETCH_BYTES", 100)
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number

    for done, number in enumerate(ahead.prefetch(work, range(len(sizes)), lambda n: sizes[n])):
        assert number == done
        assert len(begun) - done <= most
    assert sorted(begun) == list(range(len(sizes)))
    assert list(ahead.prefetch(str, [], lambda _item: 1)) == []


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_values_that_no_file_holds(dtype: str) -> None:
    """Float arrays hold what files of the model's depth can; of a model of float values there is no such range."""
    predictor, most = make_predictor(), np.iinfo(dtype).max
    predictor.bundle.dtype = dtype
    image = np.full((9, 9, 3), most / 2)
    for value in (0.0, float(most)):
        image[0, 0, 0] = value
        predictor(image)
    for value in (-0.5, most + 0.5, 1e9):
        image[0, 0, 0] = value
        with raises(DataError, key="value", named=[f"0..{most}"]):
            predictor(image)
    predictor.bundle.dtype = "float32"
    predictor(image)
