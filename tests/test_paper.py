"""The original U-Net, its weight map, its training."""

import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

import ubend.tasks.fit as job
from support.discs import open_folder, read_store
from support.models import prob_of
from support.refusal import raises
from support.training import Listener, press_once
from ubend.accel.folded import can_fold
from ubend.cli.app import main
from ubend.core.errors import SettingError
from ubend.core.settings import AugmentSettings, TrainSettings, make_settings
from ubend.dataset.augment import ELASTIC_POINTS, DeviceAugmentParams, elastic_basis, sample_augmentation, warp
from ubend.dataset.batches import Augmentation, BatchOrder, TrainingBatches
from ubend.dataset.border_weights import border_weights
from ubend.dataset.sample import draw_sample
from ubend.dataset.sources import WholeImages
from ubend.inference.predictor import Predictor
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.paper import PaperUNet, input_side, mirror_to_fit, valid_margin
from ubend.tasks.info import describe_model
from ubend.training.checkpoint import Saver
from ubend.training.losses import Loss
from ubend.training.optim import SGD, make_optimizer
from ubend_lessons.paper_figures import level_sides


def test_sizes_are_the_papers() -> None:
    """Figure 1 of the paper, every number in it; and each side that the network says fits does."""
    down, up = level_sides(572, 4)
    assert down == [(572, 570, 568), (284, 282, 280), (140, 138, 136), (68, 66, 64), (32, 30, 28)]
    assert up == [(56, 54, 52), (104, 102, 100), (200, 198, 196), (392, 390, 388)]
    assert (valid_margin(4), input_side(388, 4)) == (92, 572)
    for depth, side in itertools.product((1, 2, 3, 4), (1, 4, 5, 20, 33)):
        whole = input_side(side, depth)
        down, up = level_sides(whole, depth)
        assert all(one[2] % 2 == 0 for one in down[:-1])
        assert up[-1][2] == whole - 2 * valid_margin(depth)
        assert side <= up[-1][2] < side + max(4, 2**depth)


def test_parameters_are_the_papers() -> None:
    """Counted by hand from figure 1: weights and biases of 18 3x3, 4 2x2 and one 1x1 convolutions."""
    pairs = [(1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 1024)]
    pairs += [
        (1024, 1024),
        (1024, 512),
        (512, 512),
        (512, 256),
        (256, 256),
        (256, 128),
        (128, 128),
        (128, 64),
        (64, 64),
    ]
    count = sum(9 * a * b + b for a, b in pairs)
    count += sum(4 * 2 * b * b + b for b in (512, 256, 128, 64)) + 64 * 2 + 2
    with torch.device("meta"):
        net = PaperUNet(1, 2)
    assert sum(parameter.numel() for parameter in net.parameters()) == count == 31_030_658


class Written(nn.Module):
    """The network of figure 1, written out once more by its words, at depth 2."""

    def __init__(self, net: PaperUNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        weights = iter(
            [t for n, t in self.net.state_dict().items() if n not in ("mean", "std", "head.weight", "head.bias")]
        )

        def twice(y: Tensor) -> Tensor:
            for _number in range(2):
                y = F.conv2d(y, next(weights), next(weights)).relu()
            return y

        a = twice(x)
        b = twice(F.max_pool2d(a, 2))
        y = twice(F.max_pool2d(b, 2))
        for skipped in (b, a):
            y = F.conv_transpose2d(y, next(weights), next(weights), stride=2)
            cut = (skipped.shape[-1] - y.shape[-1]) // 2
            y = twice(torch.cat([skipped[..., cut:-cut, cut:-cut], y], dim=1))
        return F.conv2d(y, self.net.head.weight, self.net.head.bias)


def test_output_is_the_papers() -> None:
    torch.manual_seed(0)
    net = PaperUNet(2, 3, 4, 2).eval()
    image = torch.randn(2, 2, 60, 60)
    with torch.no_grad():
        torch.testing.assert_close(net.valid(image), Written(net)(image))
    with pytest.raises(ValueError, match="a side of 61 px does not halve 2 times; 64 px does"):
        net.valid(torch.zeros(1, 2, 60, 61))


def test_he_weights() -> None:
    """sqrt(2 / N), N the values that make one of the output, and biases of 0; activations keep their size."""
    torch.manual_seed(0)
    net = PaperUNet(1, 2, 32, 2).eval()
    for layer, values in ((net.encoders[1][0], 9 * 64), (net.decoders[0].up, 128), (net.head, 32)):
        assert float(layer.weight.detach().std()) == pytest.approx((2 / values) ** 0.5, rel=0.2)
        assert not layer.bias.any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (37, 64)])
def test_mirrored(shape: tuple[int, int]) -> None:
    """As numpy mirrors, there and back where the image is smaller than the margin; what it gives is whole."""
    image = torch.rand(1, 2, *shape)
    net = PaperUNet(2, 2, 2, 2).eval()
    mirrored = mirror_to_fit(image, 2)
    pads = [(20, input_side(side, 2) - side - 20) for side in shape]
    np.testing.assert_array_equal(mirrored[0].numpy(), np.pad(image[0].numpy(), [(0, 0), *pads], mode="reflect"))
    with torch.no_grad():
        torch.testing.assert_close(net(image), net.valid(mirrored)[..., : shape[0], : shape[1]])


VARIANTS = [(1, 2, 4, 1), (3, 3, 4, 2), (4, 7, 2, 3), (3, 2, 2, 4)]


@pytest.mark.parametrize(("channels", "classes", "width", "depth"), VARIANTS)
def test_contract(channels: int, classes: int, width: int, depth: int, tmp_path: Path) -> None:
    """What every network here does: any size, gradients everywhere, the same after saving, in any memory order."""
    torch.manual_seed(1)
    mean, std = [100.0 + c for c in range(channels)], [50.0 + c for c in range(channels)]
    model = PaperUNet(channels, classes, width, depth, mean=mean, std=std)
    image = torch.rand(2, channels, 33, 64) * 255
    out = model.train()(image)
    assert out.shape == (2, classes, 33, 64)
    assert not torch.equal(out, model(image)), "dropout"
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval()
    with torch.no_grad():
        for height, wide in ((1, 1), (17, 31), (33, 64)):
            assert model(torch.rand(1, channels, height, wide) * 255).shape == (1, classes, height, wide)
        expected = model(image)
        labels = make_label_map(list(range(classes)))
        save_bundle(tmp_path / "m.safetensors", Bundle(model, labels, Sizing(32, True, channels)))
        loaded = load_bundle(tmp_path / "m.safetensors").model
        assert isinstance(loaded, PaperUNet)
        assert (loaded.channels, loaded.classes, loaded.width, loaded.depth) == (channels, classes, width, depth)
        assert torch.equal(loaded(image), expected)
        last = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        other = last(image.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-4)
    assert not can_fold(model)
    assert any("original U-Net" in line for line in describe_model(tmp_path / "m.safetensors"))


def test_tiles_are_the_whole() -> None:
    """Tiles at multiples of 2^depth, beside each other, mirrored at the border, are the image as a whole."""
    torch.manual_seed(2)
    rng = np.random.default_rng(2)
    net = PaperUNet(3, 2, 4, 3, mean=[120.0] * 3, std=[60.0] * 3)
    bundle = Bundle(net, make_label_map([0, 1]), Sizing(None, True, 3))
    images = [rng.integers(0, 256, (*hw, 3)).astype(np.uint8) for hw in ((90, 131), (24, 200), (3, 5), (89, 131))]
    whole = [prob_of(Predictor(bundle, "cpu", tiles=0), image) for image in images]
    for size in (16, 44, 60):
        tiled = [prob_of(Predictor(bundle, "cpu", tiles=size), image) for image in images]
        for number in range(len(images)):
            np.testing.assert_allclose(tiled[number], whole[number], atol=2e-6)
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy(images[0]).permute(2, 0, 1)[None].float())
    np.testing.assert_allclose(whole[0], logits[0].softmax(dim=0).numpy(), atol=2e-6)


def slow_border_weight(ids: np.ndarray[Any, Any], ground: np.ndarray[Any, Any], w0: float, sigma: float) -> Any:
    """Equation 2 pixel by pixel, each object looked at in all of its pixels."""
    places = {number: np.argwhere(ids == number) for number in np.unique(ids) if number}
    out = np.zeros(ids.shape)
    for y, x in np.argwhere(ground):
        distances = sorted(float(np.hypot(p[:, 0] - y, p[:, 1] - x).min()) for p in places.values())
        if len(distances) > 1:
            out[y, x] = w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return out


@pytest.mark.parametrize("sigma", [1.5, 5.0])
def test_border_weights(sigma: float) -> None:
    """Against the slow count: a narrow and a wide gap, three objects, one inside another, a lone pixel at the rim."""
    ids = np.zeros((34, 40), np.uint16)
    ids[2:14, 3:15], ids[2:14, 17:30], ids[20:30, 8:24], ids[33, 39] = 1, 2, 3, 5  # there is no 4
    ids[5:9, 6:10] = 6
    for ground in (ids == 0, np.ones(ids.shape, bool)):
        fast, slow = border_weights(ids, ground, 10.0, sigma), slow_border_weight(ids, ground, 10.0, sigma)
        np.testing.assert_allclose(fast, slow, atol=1.1e-3)
    assert fast.dtype == np.float32
    gap = border_weights(ids, ids == 0, 10.0, sigma)
    assert gap[6, 15] == pytest.approx(10 * np.exp(-(3**2) / (2 * sigma**2)), rel=1e-5)  # 1 px and 2 px away
    assert not gap[ids > 0].any()
    assert not border_weights(np.zeros((4, 4), np.uint8), np.ones((4, 4), bool), 10.0, sigma).any()
    assert not border_weights((ids == 3).astype(np.uint8), ids == 0, 10.0, sigma).any(), "one object has no second"


def test_loss_with_pixel_weights() -> None:
    """Sum = mean times weight; weights as in the paper's equation 1, counted slowly; parts add up to the whole."""
    torch.manual_seed(3)
    logits, more = torch.randn(3, 4, 6, 5), torch.rand(3, 6, 5) * 9
    target = torch.randint(0, 4, (3, 6, 5)).to(torch.uint8)
    target[0, 0, :2] = 255
    balance = torch.tensor([0.5, 1.0, 2.0, 0.0])
    loss = Loss("ce-sum", balance)
    loss_sums, counts = loss.sum(logits, target, more), loss.count(target, 4, more)
    slow = weight = 0.0
    for n, y, x in itertools.product(range(3), range(6), range(5)):
        label = int(target[n, y, x])
        if label != 255:
            own = float(balance[label] + more[n, y, x])
            slow -= own * float(logits[n, :, y, x].log_softmax(dim=0)[label])
            weight += own
    assert float(loss.of_step(loss_sums, counts)) == pytest.approx(slow, rel=1e-5)
    assert float(counts.pixels) == pytest.approx(weight, rel=1e-5)
    assert float(loss.mean(loss_sums, counts)) == pytest.approx(slow / weight, rel=1e-5)
    parts = [Loss("ce-sum").sum(*part) for part in zip(logits.split(1), target.split(1), more.split(1), strict=True)]
    whole = Loss("ce-sum").sum(logits, target, more)
    assert float(sum(part.cross_entropy for part in parts)) == pytest.approx(float(whole.cross_entropy), rel=1e-5)

    plain = Loss("ce-sum")
    loss_sums, counts = plain.sum(logits, target), plain.count(target, 4)
    mean = Loss("ce").of_step(loss_sums, counts)
    assert float(plain.of_step(loss_sums, counts)) == pytest.approx(float(mean) * (3 * 6 * 5 - 2), rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd(decay: float) -> None:
    """torch.optim.SGD, to rounding; biases are not decayed."""
    torch.manual_seed(4)
    mine, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(mine.state_dict())
    settings = TrainSettings(optimizer="sgd", momentum=0.99, learning_rate=0.1, weight_decay=decay)
    optimizer = make_optimizer(mine, settings)
    assert isinstance(optimizer, SGD)
    groups: list[dict[str, Any]] = [{"params": [theirs.weight], "weight_decay": decay}, {"params": [theirs.bias]}]
    other = torch.optim.SGD(groups, lr=0.1, momentum=0.99)
    for _step in range(4):
        values = torch.randn(5, 3)
        for net, one in ((mine, optimizer), (theirs, other)):
            net(values).square().sum().backward()
            one.step()
            one.zero_grad()
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict())


def test_coarse_elastic_field() -> None:
    """A 3x3 grid bends as three points a side do, with the standard deviation in px; one warp for both."""
    basis = elastic_basis(41, torch.device("cpu"), 3)
    assert basis.shape == (41, ELASTIC_POINTS)
    assert not basis[:, 3:].any()
    expected = F.interpolate(torch.eye(3)[None, None], size=(41, 3), mode="bicubic", align_corners=True)[0, 0]
    torch.testing.assert_close(basis[:, :3], expected)
    settings = make_settings("paper", changes={"augment.orientation": "free", "augment.rotation_deg": 0.0}).augment
    draws = sample_augmentation(settings, 0, np.arange(400), np.full((400, 2), 64), (64, 64), 1)
    assert draws.elastic[:, :, :3, :3].std() == pytest.approx(10.0, rel=0.05)
    image = torch.zeros(400, 1, 64, 64)
    image[:] = torch.arange(64.0)  # each pixel says its column
    numbers = DeviceAugmentParams.unpack(torch.from_numpy(draws.pack()), 1)
    shapes = torch.full((400, 2), 64.0)
    flat = warp(image, torch.zeros(400, 64, 64, dtype=torch.uint8), shapes, numbers, (64, 64), False, 3)[0]
    assert float(flat.std()) > 1


@pytest.mark.parametrize("kind", ["warp", "none"])
def test_weights_go_through_the_warp(kind: Literal["warp", "none"], folder: Path, tmp_path: Path) -> None:
    """A weight map that is the image itself comes out as the image does."""
    store = open_folder(folder, tmp_path, Sizing(None, True, 3), make_label_map([0, 1, 2]))
    images = WholeImages(store, np.arange(3, 8), torch.device("cpu"), 2**30)
    plain = dict.fromkeys(("brightness", "contrast", "color", "saturation", "gamma", "blur_share", "noise_share"), 0.0)
    settings = AugmentSettings(kind=kind, orientation="free", rotation_deg=90, elastic_px=5, elastic_grid=3, **plain)
    more = read_store(store, images.image_indices, (64, 64))[0][..., 0].astype(np.float16)
    limits = np.zeros(3), np.full(3, 255.0)
    order, augmentation = BatchOrder(0, 4), Augmentation(settings, (64, 64), limits)
    batches = TrainingBatches(images, order, augmentation, pixel_weights=more)
    assert batches.weighs_pixels
    for step in (0, 7):
        batch = batches.sample(step)
        assert batch.pixel_weights is not None
        torch.testing.assert_close(batch.pixel_weights, batch.image[:, 0], rtol=0, atol=1e-3)
    assert TrainingBatches(images, order, augmentation).sample(0).pixel_weights is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper") / "sample"
    draw_sample(folder, 10, 64)
    return folder


SMALL = {
    "model.width": 2,
    "model.depth": 1,
    "train.epochs": 3,
    "data.size": 32,
    "data.val_share": 0.2,
    "train.batch": 3,
}


def contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl", "scores.json")}


def test_resumed_to_the_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, momentum and weight map: an interrupted run ends as a whole one."""
    monkeypatch.setattr(Saver, "is_due", lambda self, after_s=0.0: False)
    assert job.fit(folder, tmp_path / "whole", recipe="paper", settings=SMALL, device="cpu").scores is not None
    listener = Listener(press_once(2))
    assert (
        job.fit(folder, tmp_path / "run", recipe="paper", settings=SMALL, device="cpu", reporter=listener).scores
        is None
    )
    assert f"border weights: between the objects of {folder / 'ids'}" in listener.said
    assert job.resume(tmp_path / "run").scores is not None
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    job.fit(folder, tmp_path / "from", settings={"train.epochs": 1}, init_from=tmp_path / "run", device="cpu")
    assert isinstance(load_bundle(tmp_path / "from").model, PaperUNet)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model.skips": [True, False, True, True]}, "model.upsampling"),
        ({"model.upsampling": "nearest"}, "model.upsampling"),
        ({"train.sync_batch_norm": True}, "train.sync_batch_norm"),
        ({"data.resize": "native"}, "train.border_weight"),
        ({"train.momentum": 1.0}, "train.momentum"),
        ({"augment.elastic_grid": 6}, "augment.elastic_grid"),
    ],
)
def test_settings_that_do_not_go(changes: dict[str, Any], key: str) -> None:
    with raises(SettingError, key=key) as caught:
        make_settings("paper", changes=changes)
    assert "\n" not in str(caught.value)


def test_refused_at_the_door(folder: Path, tmp_path: Path) -> None:
    words = ["fit", str(folder), "--recipe", "paper", "--out", str(tmp_path / "run")]
    run = CliRunner().invoke(main, [*words, "--skips", "none"])
    assert run.exit_code == 2
    assert len(run.output.splitlines()) == 1
    assert not (tmp_path / "run").exists()
