"""The network against one written from the tutorial's words, and one contract for all of its shapes."""

import itertools
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ubend.accel.folded import FoldedUNet
from ubend.core.settings import Upsampling
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.paper import PaperUNet
from ubend.models.segmentation_net import pad_to_multiple
from ubend.models.unet import Decoder, UNet, Unpooling


class Twice(nn.Module):
    """The tutorial's ConvBlock: twice (3x3 convolution, padding 1, no bias; batch norm; ReLU)."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for channels in (a, b):
            self.layers += [nn.Conv2d(channels, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Down(nn.Module):
    """The tutorial's Encoder: 2x2 max pooling, then the ConvBlock."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.twice = Twice(a, b)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(nn.functional.max_pool2d(x, 2))


class Up(nn.Module):
    """The tutorial's Decoder: transposed convolution (4, 2, 1) with bias; skip first, then upsampled."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.grow = nn.ConvTranspose2d(a, b, kernel_size=4, stride=2, padding=1)
        self.twice = Twice(a, b)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.twice(torch.cat((skip, self.grow(x)), 1))


class TutorialNet(nn.Module):
    """The tutorial's U-Net, 64-128-256-512-1024 and back; sizes that divide by 16, images normalised outside."""

    def __init__(self, channels: int, classes: int, w: int = 64) -> None:
        super().__init__()
        self.first = Twice(channels, w)
        self.d1, self.d2, self.d3, self.d4 = (Down(w * k, 2 * w * k) for k in (1, 2, 4, 8))
        self.u1, self.u2, self.u3, self.u4 = (Up(2 * w * k, w * k) for k in (8, 4, 2, 1))
        self.last = nn.Conv2d(w, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.d1(a)
        c = self.d2(b)
        d = self.d3(c)
        return self.last(self.u4(self.u3(self.u2(self.u1(self.d4(d), d), c), b), a))


@pytest.mark.parametrize(("channels", "classes", "count"), [(3, 3, 39_393_603), (1, 2, 39_392_386)])
def test_parameters_are_the_tutorials(channels: int, classes: int, count: int) -> None:
    """The same parameters in the same order, and as many as the tutorial counts."""
    with torch.device("meta"):
        ours, theirs = UNet(channels, classes), TutorialNet(channels, classes)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert sum(p.numel() for p in ours.parameters()) == count


@pytest.mark.parametrize(("channels", "classes", "width", "side"), [(3, 3, 64, 32), (1, 2, 8, 64)])
def test_output_is_the_tutorials(channels: int, classes: int, width: int, side: int) -> None:
    """With the tutorial network's weights, copied in order, the same output, in both modes."""
    torch.manual_seed(0)
    theirs = TutorialNet(channels, classes, width)
    ours = UNet(channels, classes, width=width)
    _copy_state(theirs, ours)
    image = torch.randn(2, channels, side, side)
    with torch.no_grad():
        theirs.train(), ours.train()
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-5, atol=1e-5)
        theirs.eval(), ours.eval()  # with the statistics of that one step
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-5, atol=1e-5)


def _copy_state(source: nn.Module, target: nn.Module) -> None:
    """Tensors in order; the normalisation at the end is the target's own."""
    theirs = [t for name, t in source.state_dict().items()]
    ours = [t for name, t in target.state_dict().items() if name not in ("mean", "std")]
    assert len(theirs) == len(ours)
    for mine, other in zip(ours, theirs, strict=True):
        mine.copy_(other)


def test_upsampling() -> None:
    """Unpooling puts each value where the maximum was; the others enlarge, then convolve."""
    unpooling = Unpooling(2, 1)
    skipped = torch.tensor([[[[1.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 7.0]]]])
    grown = unpooling(torch.randn(1, 2, 1, 2), skipped)
    assert (grown != 0).nonzero()[:, 2:].tolist() == [[0, 1], [1, 3]]
    for upsampling in ("nearest", "bilinear"):
        up = Decoder(2, 2, upsampling=upsampling).up
        flat = up(torch.ones(1, 2, 4, 4))
        torch.testing.assert_close(flat[..., 1:-1, 1:-1], flat[..., 1:2, 1:2].expand(1, 2, 6, 6))


PATTERNS = tuple(itertools.product((False, True), repeat=2))
VARIANTS = [
    *((channels, classes, 4, 2, None, "transposed") for channels in (1, 3, 4) for classes in (2, 3, 7)),
    *((3, 2, width, depth, None, "transposed") for width in (4, 8) for depth in (1, 2, 3, 4)),
    *((1, 3, 4, 2, skips, upsampling) for skips in PATTERNS for upsampling in get_args(Upsampling)),
]


@pytest.mark.parametrize(("channels", "classes", "width", "depth", "skips", "upsampling"), VARIANTS)
def test_contract(
    channels: int,
    classes: int,
    width: int,
    depth: int,
    skips: tuple[bool, ...] | None,
    upsampling: Upsampling,
    tmp_path: Path,
) -> None:
    """What every U-Net does: any size, gradients everywhere, the same after saving, in any memory order."""
    torch.manual_seed(1)
    mean, std = [100.0 + c for c in range(channels)], [50.0 + c for c in range(channels)]
    model = UNet(channels, classes, width=width, depth=depth, skips=skips, upsampling=upsampling, mean=mean, std=std)

    model.train()
    image = torch.rand(2, channels, 33, 64) * 255
    out = model(image)
    assert out.shape == (2, classes, 33, 64)
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert sum(float(p.grad.abs().sum()) for p in model.head.parameters() if p.grad is not None) > 0

    model.eval()
    with torch.no_grad():
        for height, wide in ((1, 1), (17, 31), (33, 64)):
            small = torch.rand(1, channels, height, wide) * 255
            logits = model(small)
            assert logits.shape == (1, classes, height, wide)
            assert torch.isfinite(logits).all()
        expected = model(image)

        bundle = Bundle(model, make_label_map(list(range(classes))), Sizing(32, True, channels))
        save_bundle(tmp_path / "m.safetensors", bundle)
        loaded = load_bundle(tmp_path / "m.safetensors").model
        assert (loaded.channels, loaded.classes, loaded.width, loaded.depth) == (channels, classes, width, depth)
        assert (loaded.skips, loaded.upsampling) == (skips or (True,) * depth, upsampling)
        assert torch.equal(loaded(image), expected)

        last = model.to(memory_format=torch.channels_last)
        other = last(image.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(image)
        spread = float(expected.std())
        assert float((half.float() - expected).abs().max()) < 0.1 * max(1.0, spread) + 0.05


@pytest.mark.parametrize("skips", PATTERNS)
def test_cut_skip_carries_nothing(skips: tuple[bool, bool]) -> None:
    """Noise put on one level's skip changes the output when the skip is there, and nothing when it is cut."""
    torch.manual_seed(2)
    model = UNet(1, 2, width=4, depth=2, skips=skips).eval()
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected = model(image)
        for level in (1, 2):
            decoder = model.decoders[2 - level]  # the deepest comes first
            hook = decoder.register_forward_pre_hook(lambda _, given: (given[0], given[1] + torch.randn_like(given[1])))
            changed = model(image)
            hook.remove()
            assert torch.equal(changed, expected) is not skips[level - 1]
        assert torch.equal(model(image), expected)


def test_normalisation_is_inside() -> None:
    """model(x) is what the same weights without normalisation make of (x - mean) / std, padding included."""
    torch.manual_seed(3)
    mean, std = (120.0, 90.0, 60.0), (40.0, 50.0, 60.0)
    model = UNet(3, 2, width=4, depth=2, mean=mean, std=std).eval()
    plain = UNet(3, 2, width=4, depth=2).eval()
    plain.load_state_dict({**model.state_dict(), "mean": plain.mean, "std": plain.std})
    image = torch.rand(1, 3, 19, 22) * 255
    scaled = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        assert torch.equal(model(image), plain(scaled))
        assert torch.equal(model(image.byte()), model(image.byte().float())), "whole numbers are taken as they are"


@pytest.mark.parametrize("size_hw", [(5, 7), (8, 3), (2, 9), (1, 1), (4, 5)])
def test_padding_mirrors(size_hw: tuple[int, int]) -> None:
    """As numpy's, below and to the right only, also where an image is mirrored several times; sizes that fit stay."""
    image = torch.randn(1, 2, *size_hw)
    missing = [(0, -side % 8) for side in size_hw]
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), *missing), mode="reflect")
    np.testing.assert_array_equal(pad_to_multiple(image, 8).numpy(), expected)
    assert pad_to_multiple(expected_fit := torch.randn(1, 2, 8, 16), 8) is expected_fit


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="3 entries for depth 2"):
        UNet(depth=2, skips=(True, True, False))
    with pytest.raises(ValueError, match="2 values given for 3 channels"):
        UNet(3, width=1, mean=(1.0, 2.0))


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 4, 32, 32), (3, 32, 32)])
@pytest.mark.parametrize(
    "make", [UNet, lambda: PaperUNet(3), lambda: FoldedUNet(UNet(width=4, depth=1).eval(), torch.float32)]
)
def test_inputs_of_another_shape_are_refused(make: Callable[[], Any], shape: tuple[int, ...]) -> None:
    """One channel would be broadcast to three, and an image without a batch dimension too."""
    with pytest.raises(ValueError, match=r"takes \(N, 3, H, W\), got"):
        make()(torch.zeros(shape))


def test_a_batch_of_nothing_does_not_crash_the_interpreter() -> None:
    """In a process of its own, with the default settings of an installed ubend."""
    program = (
        "import torch\n"
        "from ubend import UNet\n"
        "net = UNet(3, 2)\n"
        "assert net.training\n"
        "assert net(torch.zeros(0, 3, 32, 32)).shape == (0, 2, 32, 32)\n"
        "try:\n"
        "    net(torch.zeros(1, 3, 16, 16))\n"
        "except ValueError as error:\n"
        "    assert 'more than 1 value per channel' in str(error)\n"
        "else:\n"
        "    raise AssertionError('one value per channel has no variance')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "UBEND_ACCEL"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="torch.compile needs a compiler")
def test_compiled_equals_eager() -> None:
    torch.manual_seed(4)
    model = UNet(1, 2, width=4, depth=1).eval()
    image = torch.randn(1, 1, 15, 18)
    with torch.no_grad(), warnings.catch_warnings():
        # torch's own: its compiler uses what newer Pythons call deprecated, and forks
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        torch.testing.assert_close(torch.compile(model)(image), model(image), rtol=1e-4, atol=1e-4)
