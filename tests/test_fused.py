"""The fused network computes what the plain one does, with Triton's kernels and with their reference.

On a GPU the kernels run as they are, elsewhere in Triton's interpreter. Each kernel alone: test_kernels.py.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ubend.accel import fused, reference
from ubend.models.unet import UNet


@pytest.fixture(params=["gpu", "reference"])
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "reference":
        return reference
    pytest.importorskip("triton", reason="Triton is not installed: only the plain network runs on GPUs")
    from ubend.accel import gpu

    return gpu


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """No TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def device_of(kernels: ModuleType) -> torch.device:
    """Where these kernels run in tests; without a GPU, conftest.py has chosen Triton's interpreter."""
    return torch.device("cuda" if kernels is not reference and torch.cuda.is_available() else "cpu")


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative, in the 2-norm."""
    return float(
        (found.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm().clamp_min(1e-9)
    )


def make_net(seed: int, device: torch.device, **shape: Any) -> UNet:
    torch.manual_seed(seed)
    channels = shape.get("channels", 3)
    net = UNet(**shape, mean=[100.0] * channels, std=[50.0] * channels)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


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
def test_network(name: str, kernels: ModuleType) -> None:
    """Logits, every gradient and the running statistics, as near to float64 as the plain network comes."""
    shape, (n, height, width) = NETS[name]
    device = device_of(kernels)
    plain = make_net(3, device, **shape)
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    image = torch.rand(n, plain.channels, height, width, device=device) * 255
    target = torch.randint(0, plain.classes, (n, height, width), device=device)
    logits = [exact(image.double()), plain(image), fused.run(fast, image, kernels)]
    for some in logits:
        nn.functional.cross_entropy(some, target).backward()  # type: ignore[no-untyped-call]
    slack = 5e-3 if device.type == "cuda" else 1e-5  # on a GPU the head's products are TF32
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
        assert distance(fused.run(fast, image, kernels), copy.deepcopy(fast).double()(image.double())) < slack


def test_hook_of_gradients(kernels: ModuleType) -> None:
    """It is given every convolution's weight and gradient once, and what it makes of it is what arrives."""
    device = device_of(kernels)
    net = make_net(3, device, classes=2, width=4, depth=1)
    image = torch.rand(2, 3, 8, 8, device=device) * 255
    fused.run(net, image, kernels).square().mean().backward()  # type: ignore[no-untyped-call]
    plain = [parameter.grad for parameter in net.parameters()]
    net.zero_grad(set_to_none=True)
    seen: list[nn.Parameter] = []

    def double(weight: nn.Parameter, gradient: Tensor) -> None:
        seen.append(weight)
        gradient.mul_(2)

    logits = fused.run(net, image, kernels, double)
    logits.square().mean().backward()
    doubled = {id(weight) for weight in seen}
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(seen) == len(doubled) == len(layers) - 1  # the head is no convolution here
    for parameter, before in zip(net.parameters(), plain, strict=True):
        assert parameter.grad is not None
        assert before is not None
        torch.testing.assert_close(parameter.grad, before * (2 if id(parameter) in doubled else 1))


def test_network_in_bfloat16(kernels: ModuleType) -> None:
    """As far from float64 as the plain network is in bfloat16."""
    device = device_of(kernels)
    plain = make_net(5, device, classes=3, width=8, depth=2)
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    image = torch.rand(2, 3, 16, 24, device=device) * 255
    context: AbstractContextManager[Any] = torch.autocast(device.type, torch.bfloat16)
    with context:
        rounded, found = plain(image).float(), fused.run(fast, image, kernels)
    wanted = exact(image.double())
    assert found.dtype == torch.float32
    assert distance(found, wanted) < 1.5 * distance(rounded, wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: there is one stream alone")
def test_second_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights' gradients from the second stream are those of one stream, to the bit."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    from ubend.accel import gpu

    device = torch.device("cuda")
    net = make_net(7, device, classes=3, width=32, depth=4)
    image = torch.rand(16, 3, 128, 128, device=device) * 255
    found = []
    for round_ in range(6):
        with pytest.MonkeyPatch.context() as patch:
            if round_ == 0:
                patch.setattr("ubend.accel.fused._stream_of", lambda _device: torch.cuda.current_stream())
            with torch.autocast(device.type, torch.bfloat16):
                logits = fused.run(net, image, gpu)
            logits.square().mean().backward()
        found.append([parameter.grad for parameter in net.parameters()])
        net.zero_grad(set_to_none=True)
    for some in found[1:]:
        for gradient, alone in zip(some, found[0], strict=True):
            assert gradient is not None
            assert alone is not None
            assert torch.equal(gradient, alone)


def test_equal_maxima_go_to_the_first(kernels: ModuleType) -> None:
    """A constant image: every window is a tie; the gradient goes where max pooling sends it."""
    device = device_of(kernels)
    plain = make_net(1, device, classes=2, width=4, depth=2)
    fast = copy.deepcopy(plain)
    image = torch.full((1, 3, 16, 16), 90.0, device=device)
    image[..., 8:, :] = 30.0
    target = torch.arange(256, device=device).view(1, 16, 16) % 2
    nn.functional.cross_entropy(plain(image), target).backward()  # type: ignore[no-untyped-call]
    nn.functional.cross_entropy(fused.run(fast, image, kernels), target).backward()  # type: ignore[no-untyped-call]
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-2, atol=2e-3 if device.type == "cuda" else 1e-4)


@pytest.mark.parametrize("size", [(1, 3, 2, 2), (0, 3, 8, 8)])
def test_a_map_without_two_values_a_channel(size: tuple[int, ...], kernels: ModuleType) -> None:
    """As plain batch norm: an error, not a wrong number."""
    net = make_net(0, device_of(kernels), width=4, depth=1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused.run(net, torch.rand(size, device=device_of(kernels)), kernels)
