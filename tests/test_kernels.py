"""Every kernel computes what its plain counterpart does: loss, augmentation, and those of the network.

On a GPU as they are, elsewhere in Triton's interpreter. The whole network: test_fused.py.
"""

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

CUDA = torch.cuda.is_available()  # else conftest.py has chosen the interpreter
pytest.importorskip("triton", reason="Triton is not installed: the plain code runs, there is nothing to compare")

from ubend.accel import accelerate, gpu, reference
from ubend.accel.loss import SumLosses
from ubend.accel.norm import Activation
from ubend.core.settings import AugmentSettings
from ubend.dataset import augment
from ubend.training.losses import Loss

DEVICE = torch.device("cuda" if CUDA else "cpu")
ACTIVATIONS = get_args(Activation)


@pytest.mark.parametrize("shape", [(2, 3, 9, 13), (1, 2, 40, 40), (3, 5, 4, 4), (1, 20, 16, 16)])
@pytest.mark.parametrize("kind", ["ce", "dice+ce", "logdice+ce"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss(shape: tuple[int, int, int, int], kind: Any, weighted: bool) -> None:
    """Sums and gradients, with ignored pixels and a class that is missing from an image."""
    generator = torch.Generator().manual_seed(sum(shape))
    n, classes, height, width = shape
    target = torch.randint(0, classes, (n, height, width), generator=generator).to(torch.uint8)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    target[0][target[0] == 1] = 0
    weights = torch.rand(classes, generator=generator) if weighted else torch.ones(classes)
    logits = 3 * torch.randn(shape, generator=generator)
    plain, fast = (logits.clone().requires_grad_() for _ in range(2))
    loss = Loss(kind, weights if weighted else None)
    wanted = loss.sum(plain, target)
    (0.3 * wanted.cross_entropy + 0.7 * wanted.dice).backward()  # type: ignore[no-untyped-call]
    on = [tensor.to(DEVICE) for tensor in (fast, target, weights)]
    found = SumLosses.apply(*on, kind)
    (0.3 * found[0] + 0.7 * found[1]).backward()
    torch.testing.assert_close(torch.stack(found).cpu(), torch.stack(wanted), rtol=1e-5, atol=1e-4)
    assert fast.grad is not None
    torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_loss_of_nothing() -> None:
    """No scored pixel: no loss, no gradient."""
    logits = torch.randn(2, 3, 4, 4, device=DEVICE, requires_grad=True)
    target = torch.full((2, 4, 4), 255, dtype=torch.uint8, device=DEVICE)
    entropy, dice = SumLosses.apply(logits, target, torch.ones(3, device=DEVICE), "dice+ce")
    (entropy + dice).backward()
    assert entropy.detach().item() == dice.detach().item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation(channels: int, ignore: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warp and colours of images of several sizes, within a hundredth of a grey level; masks the same."""
    shapes = np.array([[30, 41], [20, 41], [30, 25], [11, 13], [30, 41]])
    items, window = np.array([3, 0, 2, 3]), (24, 32)
    generator = torch.Generator().manual_seed(channels)
    images = torch.randint(0, 256, (5, 30, 41, channels), generator=generator).to(dtype)
    masks = torch.randint(0, 3, (5, 30, 41), dtype=torch.uint8, generator=generator)
    settings = AugmentSettings(
        kind="warp", orientation="free", rotation_deg=180.0, blur_share=0.6, noise_share=0.6, elastic_share=0.8
    )
    draws = augment.sample_augmentation(settings, 7, np.arange(4) + 11, shapes[items], window, channels)
    assert 0 < np.count_nonzero(draws.blur_px) < len(items)
    rows = [draws.pack(), shapes[items].astype(np.float32), np.zeros((len(items), 1), np.float32)]
    stored = images, masks, torch.from_numpy(items).int(), torch.from_numpy(np.concatenate(rows, axis=1))
    reach = torch.full((1, channels, 1, 1), 10.0), torch.full((1, channels, 1, 1), 240.0)
    noise = torch.from_numpy(augment.noise_field(0, channels))

    monkeypatch.setattr(accelerate, "usable", lambda _tensor: True)
    fast = accelerate.accelerate_augmentation(pytest.fail)
    on, low, high = [t.to(DEVICE) for t in stored], reach[0].to(DEVICE), reach[1].to(DEVICE)
    found = {}
    for field in (None, noise):
        plain = augment.AugmentConstants(window, reach, field, ignore, augment.ELASTIC_POINTS)
        wanted, target = augment.augment(*stored, plain)
        field_on = None if field is None else field.to(DEVICE)
        image, index = fast(*on, dataclasses.replace(plain, value_range=(low, high), noise=field_on))
        assert image.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(image.cpu(), wanted, rtol=0, atol=0.02)
        assert float((index.cpu() != target).float().mean()) < 0.002  # a nearest pixel may fall to the other side
        found[field is None] = index
    assert torch.equal(*found.values())


def test_the_reference_has_the_same_names() -> None:
    called = [name for name, one in vars(gpu).items() if callable(one)]
    assert len(called) == 8
    assert all(hasattr(reference, name) for name in called)
    assert (reference.ALIGNED, reference.HEAD_CHANNELS) == (gpu.ALIGNED, gpu.HEAD_CHANNELS)


MAPS = {"(2, 8, 6, 10)": (2, 8, 6, 10), "odd channels": (1, 5, 4, 6), "wider than a tile": (1, 72, 8, 2)}


@pytest.fixture(params=MAPS.values(), ids=MAPS)
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    shape: tuple[int, ...] = request.param
    return shape


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


def draw_map(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Multiples of 1/4 below 2, channels last: bfloat16 holds y * scale + shift exactly, and some maxima are equal."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-7, 8, shape, generator=generator) / 4
    return values.to(DEVICE, dtype, memory_format=torch.channels_last)


def draw_statistics(channels: int) -> Tensor:
    """(4, C) mean, 1 / deviation, scale, shift."""
    mean, scale, shift = draw_map((3, channels, 1, 1), torch.float32, 5).flatten(1)
    return torch.stack([mean, 0.5 + mean.abs(), scale, shift])


def halves(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """The first and the second half of the channels of one map, twice as wide as `shape`."""
    n, channels, height, width = shape
    return draw_map((n, 2 * channels, height, width), dtype, seed).chunk(2, dim=1)  # type: ignore[return-value]


def assert_same(found: Any, wanted: Any, dtype: torch.dtype) -> None:
    """Sums are made in another order, and then rounded to `dtype`."""
    slack = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **slack)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1000.0])  # the variance is that of small differences
def test_statistics(offset: float, training: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Also against torch's own batch norm, which moves its running statistics the same way."""
    y, channels = draw_map(shape, dtype, 0) + offset, shape[1]
    found, norms = [], [nn.BatchNorm2d(channels, momentum=0.3).to(DEVICE).train(training) for _ in range(3)]
    for norm in norms:
        norm.weight.data, norm.bias.data = draw_statistics(channels)[2:]
        norm.running_mean = torch.full((channels,), offset, device=DEVICE)
    found = [kernel.measure_statistics(y, norm) for kernel, norm in zip((gpu, reference), norms, strict=False)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4 * (1 + offset))
    bright = norms[2](y.float()).relu()
    for stats, norm in zip(found, norms, strict=False):
        torch.testing.assert_close(reference.apply(y.float(), stats), bright, rtol=1e-4, atol=1e-4 * (1 + offset))
        for buffer, wanted in zip(norm.buffers(), norms[2].buffers(), strict=True):
            if buffer.ndim:  # not the number of batches, which the network counts
                torch.testing.assert_close(buffer, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_apply(activation: Activation, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y, stats = 3 * draw_map(shape, dtype, 0), draw_statistics(shape[1])
    found = gpu.apply(y, stats, activation)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, reference.apply(y, stats, activation))


@pytest.mark.parametrize("kept", [True, False])
def test_apply_and_pool(kept: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What lies beside `z` in the wider map is left alone."""
    y, stats = draw_map(shape, dtype, 0), draw_statistics(shape[1])
    found = []
    for kernel in (gpu, reference):
        z, beside = halves(shape, dtype, 1)
        found.append((kernel.apply_and_pool(y, stats, z if kept else None), z, beside))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert torch.equal(found[0][1], gpu.apply(y, stats)) is kept


@pytest.mark.parametrize(
    ("of", "activation"), [("pool", "relu"), ("both", "relu"), *(("z", activation) for activation in ACTIVATIONS)]
)
def test_differentiate(of: str, activation: Activation, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """With equal maxima."""
    n, channels, height, width = shape
    y, stats = 3 * draw_map(shape, dtype, 0), draw_statistics(channels)
    dz = None if of == "pool" else halves(shape, dtype, 2)[0]
    dpool = None if of == "z" else draw_map((n, channels, height // 2, width // 2), dtype, 3)
    found, wanted = (kernels.differentiate(y, stats, dz, dpool, activation) for kernels in (gpu, reference))
    assert_same(found, wanted, dtype)


@pytest.mark.parametrize("activation", ["none", "relu6"])
def test_the_reference_is_the_gradient_of_other_activations(activation: Activation) -> None:
    torch.manual_seed(0)
    y = (4 * torch.randn(2, 3, 4, 6, dtype=torch.float64)).requires_grad_()
    norm = nn.BatchNorm2d(3).double()
    nn.init.normal_(norm.weight, std=5)
    dz = torch.randn(y.shape)
    z = norm(y) if activation == "none" else nn.functional.relu6(norm(y))
    z.backward(dz.double())
    assert activation == "none" or (z == 6).any()
    single = y.detach().float()
    stats = reference.measure_statistics(single, norm.float())
    torch.testing.assert_close(reference.apply(single, stats, activation).double(), z, rtol=1e-4, atol=1e-4)
    dy, (dbias, dweight) = reference.differentiate(single, stats, dz, None, activation)
    for found, wanted in ((dy, y.grad), (dbias, norm.bias.grad), (dweight, norm.weight.grad)):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-4)


def test_the_reference_is_the_gradient() -> None:
    """Of batch norm, ReLU and pooling as autograd finds it, in float64."""
    torch.manual_seed(0)
    y, shape = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True), (2, 3, 4, 6)
    norm = nn.BatchNorm2d(3).double()
    nn.init.normal_(norm.weight)
    dz, dpool = torch.randn(shape), torch.randn(2, 3, 2, 3)
    z = norm(y).relu()
    torch.autograd.backward([z, nn.functional.max_pool2d(z, 2)], [dz.double(), dpool.double()])
    single = y.detach().float()
    dy, (dbias, dweight) = reference.differentiate(
        single, reference.measure_statistics(single, norm.float()), dz, dpool
    )
    for found, wanted in ((dy, y.grad), (dbias, norm.bias.grad), (dweight, norm.weight.grad)):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-5)


def test_add_bias(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    up, bias = draw_map(shape, dtype, 0), draw_statistics(shape[1])[3]
    found = []
    for kernel in (gpu, reference):
        before, half = halves(shape, dtype, 1)
        kernel.add_bias(up, bias, half)
        found.append((before, half))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_copy_and_sum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    half = halves(shape, dtype, 1)[1]
    found, wanted = gpu.copy_and_sum(half), reference.copy_and_sum(half)
    assert torch.equal(found[0], half)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert_same(found, wanted, torch.float32)


@pytest.mark.parametrize("classes", [1, 3, 20])
def test_head(classes: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Forward and backward; on a GPU the products are TF32, which these numbers fit."""
    n, channels, height, width = shape
    y, stats = draw_map(shape, dtype, 0), draw_statistics(channels)
    weight = draw_map((classes, channels, 1, 1), torch.float32, 6).contiguous()
    bias, dlogits = weight[:, 0, 0, 0].contiguous(), draw_map((n, classes, height, width), torch.float32, 7)
    assert_same([gpu.head(y, stats, weight, bias)], [reference.head(y, stats, weight, bias)], torch.float32)
    found = gpu.differentiate_head(y, stats, weight, dlogits)
    assert_same(found, reference.differentiate_head(y, stats, weight, dlogits), dtype)
