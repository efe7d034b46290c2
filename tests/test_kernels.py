"""The kernels compute what their plain counterparts do: on a GPU as they are, elsewhere in Triton's interpreter."""

import copy
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

CUDA = torch.cuda.is_available()  # else conftest.py has chosen the interpreter
pytest.importorskip("triton", reason="Triton is not installed: the plain code runs, there is nothing to compare")

from ubend.config import AugmentSettings
from ubend.data import augment
from ubend.kernels import augment as kernels
from ubend.kernels.loss import SumLosses
from ubend.model import fused
from ubend.model.unet import UNet, pad_to_multiple
from ubend.training.losses import Loss

DEVICE = torch.device("cuda" if CUDA else "cpu")


@pytest.fixture(autouse=True)
def _exact() -> Any:
    """No TF32, and no kernels where the plain code is asked for."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative, in the 2-norm."""
    return float(
        (found.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm().clamp_min(1e-9)
    )


def run_fused(net: UNet, image: Tensor) -> Tensor:
    logits = fused.run(net, pad_to_multiple((image - net.mean) / net.std, 2**net.depth))
    return logits[..., : image.shape[2], : image.shape[3]]


def run_plain(net: UNet, image: Tensor) -> Tensor:
    """Also on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ubend.model.unet.usable", lambda _features: False)
        logits: Tensor = net(image)
    return logits


def make_net(seed: int, **shape: Any) -> UNet:
    torch.manual_seed(seed)
    channels = shape.get("channels", 3)
    net = UNet(**shape, mean=[100.0] * channels, std=[50.0] * channels)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    return net.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


NETS = {
    "plain": ({"classes": 3, "width": 8, "depth": 2}, (2, 16, 24)),
    "a skip cut, odd sides, grey": (
        {"channels": 1, "classes": 5, "width": 4, "depth": 2, "skips": (True, False)},
        (2, 13, 9),
    ),
    "no skips": ({"classes": 2, "width": 6, "depth": 1, "skips": (False,)}, (1, 6, 8)),
    "wider than a tile": ({"classes": 2, "width": 72, "depth": 1}, (1, 4, 6)),
    "wider than the head holds": ({"classes": 2, "width": 130, "depth": 1}, (1, 4, 4)),
}


@pytest.mark.parametrize("name", NETS)
def test_network(name: str) -> None:
    """Logits, every gradient and the running statistics, as near to float64 as the plain network comes."""
    shape, (n, height, width) = NETS[name]
    plain = make_net(3, **shape)
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    image = torch.rand(n, plain.channels, height, width, device=DEVICE) * 255
    target = torch.randint(0, plain.classes, (n, height, width), device=DEVICE)
    logits = [exact(image.double()), run_plain(plain, image), run_fused(fast, image)]
    for some in logits:
        nn.functional.cross_entropy(some, target).backward()  # type: ignore[no-untyped-call]
    slack = 5e-3 if CUDA else 1e-5  # on a GPU the head's products are TF32
    assert distance(logits[2], logits[0]) < max(slack, 4 * distance(logits[1], logits[0]))
    scale = max(float(p.grad.norm()) for p in exact.parameters() if p.grad is not None)
    for (label, a), b in zip(exact.named_parameters(), fast.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert float((a.grad - b.grad).norm()) < slack * (float(a.grad.norm()) + 1e-2 * scale), label
    for a, b in zip(plain.buffers(), fast.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=slack, atol=slack)
    for net in (plain, fast):
        net.eval()
    with torch.no_grad():
        assert distance(run_fused(fast, image), copy.deepcopy(fast).double()(image.double())) < slack


def test_hook_of_gradients() -> None:
    """It is given every convolution's weight and gradient once, and what it makes of it is what arrives."""
    net = make_net(3, classes=2, width=4, depth=1)
    image = torch.rand(2, 3, 8, 8, device=DEVICE) * 255
    run_fused(net, image).square().mean().backward()  # type: ignore[no-untyped-call]
    plain = [parameter.grad for parameter in net.parameters()]
    net.zero_grad(set_to_none=True)
    seen: list[nn.Parameter] = []

    def double(weight: nn.Parameter, gradient: Tensor) -> None:
        seen.append(weight)
        gradient.mul_(2)

    with fused.watch_gradients(double):
        logits = run_fused(net, image)
    logits.square().mean().backward()
    doubled = {id(weight) for weight in seen}
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(seen) == len(doubled) == len(layers) - 1  # the head is no convolution here
    for parameter, before in zip(net.parameters(), plain, strict=True):
        assert parameter.grad is not None
        assert before is not None
        torch.testing.assert_close(parameter.grad, before * (2 if id(parameter) in doubled else 1))


def test_network_in_bfloat16() -> None:
    """As far from float64 as the plain network is in bfloat16."""
    plain = make_net(5, classes=3, width=8, depth=2)
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    image = torch.rand(2, 3, 16, 24, device=DEVICE) * 255
    context: AbstractContextManager[Any] = torch.autocast(DEVICE.type, torch.bfloat16)
    with context:
        rounded, found = run_plain(plain, image).float(), run_fused(fast, image)
    wanted = exact(image.double())
    assert found.dtype == torch.float32
    assert distance(found, wanted) < 1.5 * distance(rounded, wanted)


@pytest.mark.skipif(not CUDA, reason="no GPU: there is one stream alone")
def test_second_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights' gradients from the second stream are those of one stream, to the bit."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    net = make_net(7, classes=3, width=32, depth=4)
    image = torch.rand(16, 3, 128, 128, device=DEVICE) * 255
    found = []
    for round_ in range(6):
        with pytest.MonkeyPatch.context() as patch:
            if round_ == 0:
                patch.setattr("ubend.model.second_stream._stream_of", lambda _device: torch.cuda.current_stream())
            with torch.autocast(DEVICE.type, torch.bfloat16):
                logits = run_fused(net, image)
            logits.square().mean().backward()
        found.append([parameter.grad for parameter in net.parameters()])
        net.zero_grad(set_to_none=True)
    for some in found[1:]:
        for gradient, alone in zip(some, found[0], strict=True):
            assert gradient is not None
            assert alone is not None
            assert torch.equal(gradient, alone)


def test_equal_maxima_go_to_the_first() -> None:
    """A constant picture: every window is a tie; the gradient goes where max pooling sends it."""
    plain = make_net(1, classes=2, width=4, depth=2)
    fast = copy.deepcopy(plain)
    image = torch.full((1, 3, 16, 16), 90.0, device=DEVICE)
    image[..., 8:, :] = 30.0
    target = torch.arange(256, device=DEVICE).view(1, 16, 16) % 2
    nn.functional.cross_entropy(run_plain(plain, image), target).backward()  # type: ignore[no-untyped-call]
    nn.functional.cross_entropy(run_fused(fast, image), target).backward()  # type: ignore[no-untyped-call]
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-2, atol=2e-3 if CUDA else 1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 9, 13), (1, 2, 40, 40), (3, 5, 4, 4), (1, 20, 16, 16)])
@pytest.mark.parametrize("kind", ["ce", "dice+ce"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss(shape: tuple[int, int, int, int], kind: Any, weighted: bool) -> None:
    """Sums and gradients, with ignored pixels and a class that is missing from a picture."""
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
    found = SumLosses.apply(*on, kind == "dice+ce")
    (0.3 * found[0] + 0.7 * found[1]).backward()
    torch.testing.assert_close(torch.stack(found).cpu(), torch.stack(wanted), rtol=1e-5, atol=1e-4)
    assert fast.grad is not None
    torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_loss_of_nothing() -> None:
    """No scored pixel: no loss, no gradient."""
    logits = torch.randn(2, 3, 4, 4, device=DEVICE, requires_grad=True)
    target = torch.full((2, 4, 4), 255, dtype=torch.uint8, device=DEVICE)
    entropy, dice = SumLosses.apply(logits, target, torch.ones(3, device=DEVICE), True)
    (entropy + dice).backward()
    assert entropy.detach().item() == dice.detach().item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation(channels: int, ignore: bool, dtype: torch.dtype) -> None:
    """Warp and colours of pictures of several sizes, within a hundredth of a grey level; masks the same."""
    shapes = np.array([[30, 41], [20, 41], [30, 25], [11, 13], [30, 41]])
    items, window = np.array([3, 0, 2, 3]), (24, 32)
    generator = torch.Generator().manual_seed(channels)
    images = torch.randint(0, 256, (5, 30, 41, channels), generator=generator).to(dtype)
    masks = torch.randint(0, 3, (5, 30, 41), dtype=torch.uint8, generator=generator)
    settings = AugmentSettings(
        kind="warp", orientation="free", rotation_deg=180.0, blur_share=0.6, noise_share=0.6, elastic_share=0.8
    )
    draws = augment.draw_warps(settings, 7, np.arange(4) + 11, shapes[items], window, channels)
    assert 0 < np.count_nonzero(draws.blur_px) < len(items)
    numbers = torch.from_numpy(np.concatenate([draws.pack(), shapes[items].astype(np.float32)], axis=1))
    unpacked = augment.DeviceDraws.unpack(numbers[:, :-2], channels)
    low, high = torch.full((1, channels, 1, 1), 10.0), torch.full((1, channels, 1, 1), 240.0)
    noise = torch.from_numpy(augment.noise_field(0, channels))
    chosen = images[items].permute(0, 3, 1, 2), masks[items]
    warped, target = augment.warp(*chosen, numbers[:, -2:], unpacked, window, ignore)
    colored = augment.change_colors(warped, unpacked, low, high, noise)

    on = [t.to(DEVICE) for t in (images, masks, torch.from_numpy(items).int(), numbers)]
    basis = augment.elastic_basis(window[0], DEVICE), augment.elastic_basis(window[1], DEVICE)
    reach = low.to(DEVICE), high.to(DEVICE)
    raw, index = kernels.warp(*on, basis, reach, colors=False, ignore_outside=ignore)
    shares, same = kernels.warp(*on, basis, reach, colors=True, ignore_outside=ignore)
    found = kernels.blur_and_noise(shares, on[3], noise.to(DEVICE), reach)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(raw.cpu(), warped, rtol=0, atol=0.02)
    torch.testing.assert_close(found.cpu(), colored, rtol=0, atol=0.02)
    assert torch.equal(index, same)
    assert float((index.cpu() != target).float().mean()) < 0.002  # a nearest pixel may fall to the other side
