"""The network for prediction computes what the plain one does; on a GPU as it is, elsewhere in Triton's interpreter."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ubend.accel import folded
from ubend.accel.folded import FoldedUNet
from ubend.models.unet import UNet

NETS = {
    "plain": ({"classes": 3, "width": 8, "depth": 2}, (2, 16, 24)),
    "grey, odd sides, a skip cut": ({"channels": 1, "width": 8, "depth": 2, "skips": (True, False)}, (1, 13, 9)),
    "no skips, channels that fit no kernel": ({"width": 5, "depth": 1, "skips": (False,)}, (2, 6, 7)),
    "many channels, one pixel": ({"channels": 16, "width": 8, "depth": 1}, (1, 1, 1)),
    "wider than the head holds": ({"width": 136, "depth": 1}, (1, 4, 4)),
}


def make_net(**shape: Any) -> UNet:
    torch.manual_seed(1)
    channels = shape.get("channels", 3)
    net = UNet(**shape, mean=[100.0 + c for c in range(channels)], std=[50.0 + c for c in range(channels)])
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.normal_(layer.weight, 1, 0.3)
            nn.init.normal_(layer.bias, 0, 0.3)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def images(net: UNet, size: tuple[int, int, int]) -> Tensor:
    n, height, width = size
    values = torch.randint(0, 256, (n, height, width, net.channels), dtype=torch.uint8)
    return values.permute(0, 3, 1, 2).to(net.mean.device)


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("name", NETS)
def test_float32(name: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels:
        pytest.importorskip("triton", reason="Triton is not installed: GPUs go the plain way")
    monkeypatch.setattr(folded, "usable", lambda _image: kernels)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    shape, size = NETS[name]
    net = make_net(**shape)
    image = images(net, size)
    with torch.inference_mode():
        wanted = net.double()(image.double())
        found = FoldedUNet(net.float(), torch.float32)(image)
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    slack = 5e-3 if image.is_cuda else 1e-5  # on a GPU the head's products are TF32
    torch.testing.assert_close(found.double(), wanted, rtol=slack, atol=slack * float(wanted.abs().max()))


def test_bfloat16() -> None:
    """About as near to float32 as autocast comes."""
    net = make_net(classes=3, width=16, depth=3)
    image = images(net, (2, 64, 48))
    with torch.inference_mode():
        wanted = net(image.float())
        with torch.autocast(image.device.type, torch.bfloat16):
            cast = net(image.float()).float()
        found = FoldedUNet(net, torch.bfloat16)(image)
    assert float((found - wanted).norm()) < 2 * float((cast - wanted).norm()) + 1e-3 * float(wanted.norm())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_convolution_with_its_relu() -> None:
    """cuDNN's one kernel against torch's three."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 20, 24, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(24, 16, 3, 3, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(24, device="cuda")
    layer = folded._Layer(weight.contiguous(memory_format=torch.channels_last), bias.bfloat16(), bias)
    wanted = nn.functional.conv2d(x.float(), layer.weight.float(), layer.bias.float(), padding=1).relu()
    torch.testing.assert_close(folded.convolve(x, layer).float(), wanted, rtol=2e-2, atol=0.3)
