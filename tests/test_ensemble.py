"""Several models and several views as one predictor: exact turns, plain means, one line for what does not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import ubend
from support.models import prob_of
from support.refusal import raises
from ubend.core.errors import DataError, ModelFileError, SettingError
from ubend.inference.ensemble import Ensemble, find_views, load
from ubend.inference.predictor import Predictor
from ubend.io.images import Sizing
from ubend.labels.class_table import IGNORED, make_label_map
from ubend.models.ensemble_net import EnsembleNet
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.paper import PaperUNet
from ubend.models.segmentation_net import SegmentationNet
from ubend.models.unet import UNet
from ubend.portable.ensemble import MIRRORED, PLAIN, SQUARE, Member, View
from ubend.tasks.fit import fit

views = st.sampled_from(SQUARE)


class Flat(SegmentationNet):
    """A network of one level."""

    def __init__(self) -> None:
        super().__init__(1, 3, 1, 0, None, "transposed", None, None)


class Symmetric(Flat):
    """A network that commutes with the square's symmetries: each pixel, and the mean of the nine around it."""

    def forward(self, batch: Tensor) -> Tensor:
        plain = batch[:, :1] / 64
        around = nn.functional.avg_pool2d(plain, 3, 1, 1, count_include_pad=False)
        return torch.cat([plain, 3 - around, 2 * (around - plain)], dim=1)


class Gradual(Flat):
    """A network to which left, right, up and down are not the same."""

    def forward(self, batch: Tensor) -> Tensor:
        height, width = batch.shape[-2:]
        ramp = torch.linspace(-1, 1, width).expand(height, width) + 2 * torch.linspace(-1, 1, height)[:, None]
        return torch.stack([ramp.expand(len(batch), height, width), batch[:, 0] / 99, -batch[:, 0] / 99], dim=1)


def make_predictor(model: SegmentationNet, size: int = 24, channels: int = 1) -> Predictor:
    labels = make_label_map([0, 1, 2], ["background", "polyp", "contour"])
    return Predictor(Bundle(model, labels, Sizing(size, True, channels)), "cpu")


def make_unet(seed: int, channels: int = 3, names: tuple[str, ...] = ("background", "polyp"), size: int = 32) -> Bundle:
    torch.manual_seed(seed)
    model = UNet(channels, len(names), width=4, depth=2, mean=[120.0] * channels, std=[60.0] * channels)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.rand(4, channels, 32, 32) * 255)
        model.head.weight.mul_(4)
    return Bundle(model.eval(), make_label_map(list(range(len(names))), names), Sizing(size, True, channels))


def make_image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@given(views, st.integers(1, 5), st.integers(1, 5))
def test_a_view_turns_back_exactly(view: View, height: int, width: int) -> None:
    image = np.arange(height * width * 2).reshape(height, width, 2)
    seen = view.see(image)
    assert seen.shape == ((width, height, 2) if view.turns % 2 else image.shape)
    back = view.back(np.moveaxis(seen, 2, 0))
    np.testing.assert_array_equal(back, np.moveaxis(image, 2, 0))
    np.testing.assert_array_equal(view.see(image[:, :, 0]), seen[:, :, 0])


def test_the_views_are_the_symmetries_of_the_square() -> None:
    image = np.arange(9).reshape(3, 3)
    seen = {view.see(image).tobytes() for view in SQUARE}
    assert len(seen) == 8
    assert {view.see(image).tobytes() for view in MIRRORED} == {image.tobytes(), image[:, ::-1].tobytes()} < seen
    assert [view.see(image).tobytes() for view in PLAIN] == [image.tobytes()]


@settings(max_examples=25)
@given(st.sampled_from([(24, 24), (18, 32), (9, 16), (40, 41), (2, 7), (60, 30)]), st.integers(0, 99))
def test_a_symmetric_network_gains_nothing(size: tuple[int, int], seed: int) -> None:
    """All views say the same of it, resized there and back or not."""
    predictor = make_predictor(Symmetric())
    image = make_image(*size, seed=seed).astype(np.float32)
    expected = prob_of(predictor, image)
    for some in (MIRRORED, SQUARE):
        answer = Ensemble([Member(predictor, some)])(image, probabilities=True)
        assert answer.probabilities is not None
        assert answer.probabilities.shape == (3, *size)
        assert answer.probabilities.flags.c_contiguous
        np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
        np.testing.assert_array_equal(answer.mask, answer.probabilities.argmax(axis=0))
        assert answer.labels is predictor.labels


def test_one_row() -> None:
    """Its mirror image has the strides of a whole array, except for their sign."""
    predictor, image = make_predictor(Symmetric()), make_image(1, 7)
    np.testing.assert_allclose(
        prob_of(Ensemble([Member(predictor, MIRRORED)]), image), prob_of(predictor, image), atol=1e-5
    )


def test_means_by_hand() -> None:
    """Every model counts the same, whatever the number of its views."""
    one, other = make_predictor(Gradual()), make_predictor(Symmetric(), size=12)
    image = make_image(20, 30)
    turned = [view.back(prob_of(one, np.ascontiguousarray(view.see(image)))) for view in SQUARE]
    assert np.abs(turned[0] - turned[1]).max() > 0.1
    mirrored = np.mean(turned[:2], axis=0)
    np.testing.assert_allclose(turned[1], prob_of(one, image[:, ::-1])[:, :, ::-1], atol=1e-6)
    np.testing.assert_allclose(prob_of(Ensemble([Member(one, MIRRORED)]), image), mirrored, atol=1e-5)
    np.testing.assert_allclose(prob_of(Ensemble([Member(one, SQUARE)]), image), np.mean(turned, axis=0), atol=1e-5)
    both = prob_of(Ensemble([Member(one, MIRRORED), Member(other)]), image)
    np.testing.assert_allclose(both, (mirrored + prob_of(other, image)) / 2, atol=1e-5)


def test_tiles_of_the_original_network() -> None:
    """The sides of its tiles are no multiples of 2 ** depth."""
    torch.manual_seed(0)
    net = PaperUNet(1, 3, width=2, depth=3, mean=[120.0], std=[60.0]).eval()
    image = make_image(50, 70)
    one, averaged = (
        Predictor(Bundle(model, make_predictor(Flat()).labels, Sizing(None, True, 1)), "cpu", tiles=32)
        for model in (net, EnsembleNet([net]))
    )
    np.testing.assert_allclose(prob_of(averaged, image), prob_of(one, image), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.* images (is|are) (grey|in colour)")
def test_files_and_order(tmp_path: Path) -> None:
    """Images come in their order, whatever their sizes; grey and colour models read a file each in its way."""
    sizes = [(20, 30), (64, 32), (20, 30), (5, 7), (32, 32)]
    paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.fromarray(make_image(*size, 3, seed=size[1])).save(path)
    colour, grey = Predictor(make_unet(0), "cpu"), Predictor(make_unet(1, channels=1, size=24), "cpu")
    ensemble = Ensemble([Member(colour, SQUARE), Member(grey)])
    answers = list(ensemble.predict(iter(paths), probabilities=True))
    assert [number for number, _answer in answers] == list(range(len(paths)))
    for (_number, answer), path, size in zip(answers, paths, sizes, strict=True):
        assert answer.mask.shape == size
        assert answer.probabilities is not None
        np.testing.assert_array_equal(answer.probabilities, prob_of(ensemble, str(path)))
        np.testing.assert_allclose(answer.probabilities.sum(axis=0), 1, atol=1e-5)
    alone = [prob_of(colour, paths[3]), prob_of(grey, paths[3])]
    np.testing.assert_allclose(
        prob_of(Ensemble([Member(colour), Member(grey)]), paths[3]), np.mean(alone, axis=0), atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:.* images (is|are|has|have) (grey|alpha)")
@pytest.mark.parametrize("channels", [2, 4])
def test_arrays_with_alpha(channels: int) -> None:
    """Pixels of alpha 0 are invalid, as for one model."""
    image = make_image(20, 30, channels)
    image[:, :, -1] = 255
    image[:5, :8, -1] = 0
    one = Predictor(make_unet(0), "cpu")
    expected = one(image, probabilities=True)
    assert set(np.unique(expected.mask[:5, :8])) == {IGNORED}
    for members in ([Member(one)], [Member(one), Member(one)]):
        answer = Ensemble(members)(image, probabilities=True)
        np.testing.assert_array_equal(answer.mask, expected.mask)
        np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-6)
        np.testing.assert_array_equal(answer.image, expected.image)
    turned = Ensemble([Member(one, SQUARE)])(image, probabilities=True)
    np.testing.assert_array_equal(turned.mask == IGNORED, expected.mask == IGNORED)


def test_what_does_not_fit_is_told_as_by_one_model(tmp_path: Path) -> None:
    ensemble = Ensemble([Member(Predictor(make_unet(0), "cpu"), SQUARE)])
    for shape in [(10, 10, 5), (10,), (0, 10, 3), ()]:
        with raises(DataError, key="shape"):
            ensemble(np.zeros(shape, np.uint8))
    for value in (123, None):
        with raises(DataError, key="shape", named=[str(value)]):
            ensemble(value)  # type: ignore[arg-type]
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(tmp_path / "deep.png")
    with raises(DataError, path="deep.png", key="dtype", named=["uint16", "uint8"]):
        list(ensemble.predict([tmp_path / "deep.png"]))
    with raises(DataError, path="none.png"):
        ensemble(tmp_path / "none.png")


def test_load(tmp_path: Path) -> None:
    """One without more is a Predictor; `ubend.load` is this function."""
    for number in range(2):
        save_bundle(tmp_path / str(number) / "model.safetensors", make_unet(number))
    image = make_image(32, 32, 3)
    one, other = (ubend.load(tmp_path / str(number), device="cpu") for number in range(2))
    assert isinstance(one, Predictor)
    assert isinstance(ubend.load([str(tmp_path / "0")], device="cpu"), Predictor)
    both = ubend.load([tmp_path / "0", tmp_path / "1" / "model.safetensors"], device="cpu")
    np.testing.assert_allclose(prob_of(both, image), (prob_of(one, image) + prob_of(other, image)) / 2, atol=1e-6)
    mirrored = prob_of(one, image[:, ::-1])[:, :, ::-1]
    answer = prob_of(ubend.load(tmp_path / "0", device="cpu", tta=True), image)
    np.testing.assert_allclose(answer, (prob_of(one, image) + mirrored) / 2, atol=1e-6)
    with raises(SettingError, key="models"):
        load([])


@pytest.mark.parametrize(
    "names", [("polyp", "background"), ("background", "polyp", "contour"), ("background", "Polyp")]
)
def test_models_of_other_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    save_bundle(tmp_path / "one.safetensors", make_unet(0))
    save_bundle(tmp_path / "other.safetensors", make_unet(0, names=names))
    with pytest.raises(ModelFileError) as caught:
        load([tmp_path / "one.safetensors", tmp_path / "other.safetensors"], device="cpu")
    assert "\n" not in str(caught.value)
    for part in ("one.safetensors", "other.safetensors", ", ".join(names), "background, polyp"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('[augment]\nkind = "warp"\norientation = "free"\n', SQUARE),
        ('[augment]\nkind = "warp"\norientation = "upright"\n', MIRRORED),
        ('[augment]\nkind = "frozen"\n# orientation =\n', MIRRORED),
        ('[augment]\nkind = "none"\norientation = "free"\n', MIRRORED),
        ("augment = 3\n", MIRRORED),
        (None, MIRRORED),
    ],
)
def test_views_follow_the_training(written: str | None, expected: tuple[View, ...], tmp_path: Path) -> None:
    if written is not None:
        (tmp_path / "settings.toml").write_text(written)
    bundle = make_unet(0)
    assert bundle.orientation is None, "a model file of before"
    assert find_views(tmp_path, bundle) == find_views(tmp_path / "model.safetensors", bundle) == expected
    bundle.orientation = "upright"
    assert find_views(tmp_path, bundle) == MIRRORED, "the file is believed before what lies beside it"


def test_a_model_that_saw_no_mirror_image(discs: Path, tmp_path: Path) -> None:
    small = {"data.size": 16, "model.width": 2, "train.epochs": 1, "train.batch": 4, "augment.flip_share": 0.0}
    run = fit(discs, tmp_path / "run", settings=small, device="cpu").run
    assert find_views(run, load_bundle(run)) == PLAIN


def test_a_model_says_how_it_was_trained(good: Path, tmp_path: Path) -> None:
    """Its file alone, moved out of its run; of older ones the settings that the training left."""
    kept = (good / "run" / "settings.toml").read_text()
    free = 'kind = "warp"' in kept and 'orientation = "free"' in kept
    assert ('orientation = "upright"' in kept) != free
    bundle = load_bundle(good / "run")
    assert bundle.orientation == ("free" if free else "upright")
    for orientation, expected in (("free", SQUARE), ("upright", MIRRORED), (None, MIRRORED)):
        bundle.orientation = orientation  # type: ignore[assignment]
        save_bundle(tmp_path / "moved.safetensors", bundle)
        moved = load(tmp_path / "moved.safetensors", device="cpu", tta=True)
        assert isinstance(moved, Ensemble)
        assert moved.members[0].views == expected
    assert find_views(good / "run", bundle) == (SQUARE if free else MIRRORED)
    assert bundle.flips
    bundle.flips = False
    save_bundle(tmp_path / "moved.safetensors", bundle)
    assert find_views(good / "run", load_bundle(tmp_path / "moved.safetensors")) == PLAIN
