"""The network in fewer passes over memory computes what the plain one does, with either kernels.

On a GPU as they are, elsewhere in Triton's interpreter; those in C where there is a compiler.
"""

import copy
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ubend.data.store import list_stores
from ubend.kernels import compiler, cpu
from ubend.model import fused
from ubend.model.unet import UNet, pad_to_multiple


@pytest.fixture(params=["gpu", "cpu"])
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "gpu":
        pytest.importorskip("triton", reason="Triton is not installed: only the plain network runs on GPUs")
        from ubend.kernels import gpu

        return gpu
    if compiler.load_kernels(torch.float32) is None:
        pytest.skip("no gcc here: only the plain network runs on the CPU")
    return cpu


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """No TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def device_of(kernels: ModuleType) -> torch.device:
    """Where these kernels can run here; without a GPU, conftest.py has chosen Triton's interpreter."""
    return torch.device("cuda" if kernels is not cpu and torch.cuda.is_available() else "cpu")


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative, in the 2-norm."""
    return float(
        (found.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm().clamp_min(1e-9)
    )


def run_fused(net: UNet, image: Tensor, kernels: ModuleType) -> Tensor:
    logits = fused.run(net, pad_to_multiple((image - net.mean) / net.std, 2**net.depth), kernels)
    return logits[..., : image.shape[2], : image.shape[3]]


def run_plain(net: UNet, image: Tensor) -> Tensor:
    """Also where there are kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "find_kernels", lambda _net, _features: None)
        logits: Tensor = net(image)
    return logits


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
    logits = [exact(image.double()), run_plain(plain, image), run_fused(fast, image, kernels)]
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
    if kernels is cpu:
        return  # which predicts with the plain network
    for net in (plain, fast):
        net.eval()
    with torch.no_grad():
        assert distance(run_fused(fast, image, kernels), copy.deepcopy(fast).double()(image.double())) < slack


def test_hook_of_gradients(kernels: ModuleType) -> None:
    """It is given every convolution's weight and gradient once, and what it makes of it is what arrives."""
    device = device_of(kernels)
    net = make_net(3, device, classes=2, width=4, depth=1)
    image = torch.rand(2, 3, 8, 8, device=device) * 255
    run_fused(net, image, kernels).square().mean().backward()  # type: ignore[no-untyped-call]
    plain = [parameter.grad for parameter in net.parameters()]
    net.zero_grad(set_to_none=True)
    seen: list[nn.Parameter] = []

    def double(weight: nn.Parameter, gradient: Tensor) -> None:
        seen.append(weight)
        gradient.mul_(2)

    with fused.watch_gradients(double):
        logits = run_fused(net, image, kernels)
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
        rounded, found = run_plain(plain, image).float(), run_fused(fast, image, kernels)
    wanted = exact(image.double())
    assert found.dtype == torch.float32
    assert distance(found, wanted) < 1.5 * distance(rounded, wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: there is one stream alone")
def test_second_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights' gradients from the second stream are those of one stream, to the bit."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    from ubend.kernels import gpu

    device = torch.device("cuda")
    net = make_net(7, device, classes=3, width=32, depth=4)
    image = torch.rand(16, 3, 128, 128, device=device) * 255
    found = []
    for round_ in range(6):
        with pytest.MonkeyPatch.context() as patch:
            if round_ == 0:
                patch.setattr("ubend.model.second_stream._stream_of", lambda _device: torch.cuda.current_stream())
            with torch.autocast(device.type, torch.bfloat16):
                logits = run_fused(net, image, gpu)
            logits.square().mean().backward()
        found.append([parameter.grad for parameter in net.parameters()])
        net.zero_grad(set_to_none=True)
    for some in found[1:]:
        for gradient, alone in zip(some, found[0], strict=True):
            assert gradient is not None
            assert alone is not None
            assert torch.equal(gradient, alone)


def test_equal_maxima_go_to_the_first(kernels: ModuleType) -> None:
    """A constant picture: every window is a tie; the gradient goes where max pooling sends it."""
    device = device_of(kernels)
    plain = make_net(1, device, classes=2, width=4, depth=2)
    fast = copy.deepcopy(plain)
    image = torch.full((1, 3, 16, 16), 90.0, device=device)
    image[..., 8:, :] = 30.0
    target = torch.arange(256, device=device).view(1, 16, 16) % 2
    nn.functional.cross_entropy(run_plain(plain, image), target).backward()  # type: ignore[no-untyped-call]
    nn.functional.cross_entropy(run_fused(fast, image, kernels), target).backward()  # type: ignore[no-untyped-call]
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-2, atol=2e-3 if device.type == "cuda" else 1e-4)


@pytest.mark.skipif(compiler.load_kernels(torch.float32) is None, reason="no gcc here")
class TestOnTheCPU:
    """The kernels in C: when they are taken, and what runs where they cannot be had."""

    def test_for_gradients_alone(self) -> None:
        net, image = make_net(0, torch.device("cpu"), width=4, depth=1), torch.rand(2, 3, 8, 8)
        assert fused.find_kernels(net, image) is cpu
        assert "_NormHead" in str(net(image).grad_fn.next_functions)
        with torch.no_grad():
            assert fused.find_kernels(net, image) is None
        with torch.autocast("cpu", torch.float16):
            assert fused.find_kernels(net, image) is None
        assert fused.find_kernels(copy.deepcopy(net).double(), image) is None

    @pytest.mark.parametrize("low", [False, True])
    def test_the_same_every_time(self, low: bool) -> None:
        """To the bit, as a resumed training needs it; odd numbers of threads, pixels and channels."""
        net, threads = make_net(2, torch.device("cpu"), classes=3, width=6, depth=2), torch.get_num_threads()
        image, found = torch.rand(3, 3, 36, 52) * 255, []
        try:
            torch.set_num_threads(3)
            for _ in range(3):
                again = copy.deepcopy(net)
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    logits = again(image)
                logits.square().mean().backward()
                found.append([*(p.grad for p in again.parameters()), *again.buffers()])
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))

    def test_a_mean_far_from_zero(self) -> None:
        """The variance is that of small differences."""
        y = (1000 + torch.randn(4, 8, 16, 16)).contiguous(memory_format=torch.channels_last)
        mean, inverse, *_rest = cpu.measure_statistics(y, nn.BatchNorm2d(8))
        torch.testing.assert_close(mean, y.mean(dim=(0, 2, 3)), rtol=1e-6, atol=0)
        torch.testing.assert_close(inverse, y.var(dim=(0, 2, 3), unbiased=False).rsqrt(), rtol=1e-4, atol=0)

    def test_a_lone_value(self) -> None:
        """As plain batch norm: not a wrong number."""
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            make_net(0, torch.device("cpu"), width=4, depth=1)(torch.rand(1, 3, 2, 2))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is loaded or kept yet."""
    compiler.load_kernels.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path / "cache"))
    yield
    compiler.load_kernels.cache_clear()


def _write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "broken", ["no compiler", "it fails", "it makes nothing", "nowhere to write", "another system"]
)
def test_without_a_compiler(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain network trains."""
    if broken == "nowhere to write":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    elif broken == "another system":
        monkeypatch.setattr(compiler.sys, "platform", "win32")
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
        if broken != "no compiler":
            _write_program(tmp_path / "gcc", "exit 1" if broken == "it fails" else "exit 0")
    net, image = make_net(0, torch.device("cpu"), width=4, depth=1), torch.rand(2, 3, 8, 8)
    assert fused.find_kernels(net, image) is None
    net(image).sum().backward()
    assert net.head.weight.grad is not None


@pytest.mark.skipif(compiler.load_kernels(torch.float32) is None, reason="no gcc here")
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("words", ["gcc -m64 -Wall", "no-such-compiler -x", "'unclosed", "", "false"])
def test_the_compiler_of_the_environment(words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Words and all; one that is no C compiler is passed over. Nothing is left behind but the library in the cache."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("CC", words)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "empty"))
    assert compiler.load_kernels(torch.float32) is not None
    assert os.listdir(tmp_path / "empty") == []
    assert [path for path, _size in list_stores(tmp_path / "cache")] == list((tmp_path / "cache").iterdir())


@pytest.mark.skipif(compiler.load_kernels(torch.float32) is None, reason="no gcc here")
@pytest.mark.usefixtures("uncompiled")
def test_libraries_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One for each type, for this processor, unless it cannot be loaded; where nothing can be kept, none is."""
    compiled: list[list[str]] = []
    run = subprocess.run

    def count(words: list[str], **how: Any) -> Any:
        compiled.append(words)
        return run(words, **how)

    monkeypatch.setattr(compiler.subprocess, "run", count)

    def load(dtype: torch.dtype) -> int:
        """How many programs are run for it."""
        compiled.clear()
        compiler.load_kernels.cache_clear()
        assert compiler.load_kernels(dtype) is not None
        return len(compiled)

    assert [load(torch.float32), load(torch.float32), load(torch.bfloat16), load(torch.bfloat16)] == [2, 0, 2, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "describe_instructions", lambda: "another processor")
        assert load(torch.float32) == 2
    monkeypatch.setattr(compiler, "_fingerprint", lambda _flags: "0" * 24)
    (tmp_path / "cache" / f"{'0' * 24}{compiler.KERNELS_SUFFIX}").write_bytes(b"no library")
    assert [load(torch.float32), load(torch.float32)] == [2, 0]
    (tmp_path / "file").touch()
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path / "file"))
    assert [load(torch.float32), load(torch.float32)] == [2, 2]
