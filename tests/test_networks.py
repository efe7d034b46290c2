"""What every network promises by `SegmentationNet`, for every one that `NETWORKS` lists."""

import json
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from ubend.core.settings import ModelSettings, NetworkKind
from ubend.models.networks import NETWORKS, Network, make_network, network_class, shape_from_settings

# settings of [model] by name of the variant, which begins with the name in NETWORKS
VARIANTS: dict[str, dict[str, Any]] = {
    "unet": {"depth": 3},
    "unet/unpool": {"depth": 2, "upsampling": "unpool", "skips": (True, False)},
    "unet/bilinear": {"depth": 1, "upsampling": "bilinear"},
    "paper": {"kind": "paper", "depth": 2},
    "paper/without dropout": {"kind": "paper", "depth": 1, "dropout": 0.0},
    "encoder": {"encoder": "test_resnet", "depth": 3},
    "encoder/nearest": {"encoder": "test_convnext", "depth": 3, "upsampling": "nearest", "skips": (False, True, True)},
}
SIZES = [(1, 1), (7, 30), (33, 17)]


@pytest.fixture(params=VARIANTS)
def settings(request: pytest.FixtureRequest) -> ModelSettings:
    if request.param.startswith("encoder"):
        pytest.importorskip("timm")
    return ModelSettings(**VARIANTS[request.param])


def make(settings: ModelSettings) -> Network:
    torch.manual_seed(0)
    net = make_network(shape_from_settings(settings, 2, 3, 4), mean=[120.0, 90.0], std=[60.0, 70.0])
    for parameter in net.parameters():  # timm begins residual branches, and scales of them, at 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net.eval()


def images(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 2, height, width, generator=torch.Generator().manual_seed(height)) * 255


def test_every_network_is_tested() -> None:
    assert {name.split("/")[0] for name in VARIANTS} == set(NETWORKS)
    assert set(NETWORKS) == {*get_args(NetworkKind), "encoder"}
    for name, words in VARIANTS.items():
        found = network_class(words.get("kind", "unet"), words.get("encoder"))
        assert found is NETWORKS[name.split("/")[0]]
        assert set(found.options) <= set(ModelSettings.model_fields)
    assert network_class("paper", "test_resnet") is NETWORKS["paper"]
    for encoder in (None, "test_resnet"):
        with pytest.raises(ValueError, match="hexagonal"):
            make_network({"kind": "hexagonal", "encoder": encoder})


@pytest.mark.parametrize("size_hw", SIZES)
def test_any_size(settings: ModelSettings, size_hw: tuple[int, int]) -> None:
    net = make(settings)
    with torch.no_grad():
        logits = net(images(*size_hw))
    assert logits.shape == (2, 3, *size_hw)
    assert logits.isfinite().all()
    for wrong in ((2, 3, 8, 8), (2, 8, 8)):
        with pytest.raises(ValueError, match=r"\(N, 2, H, W\)"):
            net(torch.zeros(wrong))


def test_attributes(settings: ModelSettings) -> None:
    net = make(settings)
    assert (net.channels, net.classes, net.width, net.depth) == (2, 3, 4, settings.depth)
    for name in ("has_batch_norm", "is_stochastic", "can_capture"):
        assert isinstance(getattr(net, name), bool), name
    for name, least in (("input_multiple", 1), ("margin", 0), ("edge_px", 0)):
        assert type(getattr(net, name)) is int, name
        assert getattr(net, name) >= least, name
    assert (net.kind, net.encoder_name) == (settings.kind, settings.encoder)
    assert net.has_batch_norm == any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    lines = net.describe()
    assert all(isinstance(line, str) for line in lines)
    assert f"{sum(p.numel() for p in net.parameters()):,}" in lines[0]
    assert settings.encoder is None or settings.encoder in " ".join(lines)


def test_first_weight_meets_the_image(settings: ModelSettings) -> None:
    net = make(settings)
    met: list[nn.Module] = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda layer, _given: met.append(layer))
    with torch.no_grad():
        net(images(33, 17))
    assert met[0].weight is net.get_parameter(net.first_weight())
    assert net.state_dict()[net.first_weight()].shape[1] == 2


def test_shape_makes_an_equal_network(settings: ModelSettings) -> None:
    net = make(settings)
    shape = json.loads(json.dumps(net.config()))
    assert set(shape) - {"kind"} == {"channels", "classes", "width", *net.options}
    other = make_network(shape)
    assert type(other) is type(net)
    assert other.config() == net.config()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(images(9, 20)), net(images(9, 20)))


@pytest.mark.parametrize("size_hw", SIZES)
def test_padded_images_have_the_same_logits(settings: ModelSettings, size_hw: tuple[int, int]) -> None:
    net = make(settings)
    height, width = net.padded_hw(size_hw)
    assert height >= size_hw[0]
    assert width >= size_hw[1]
    assert net.padded_hw((height, width)) == (height, width)
    image = images(*size_hw)
    missing = ((0, height - size_hw[0]), (0, width - size_hw[1]))
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), *missing), mode="reflect"))
    with torch.no_grad():
        assert torch.equal(net(padded)[..., : size_hw[0], : size_hw[1]], net(image))


def test_tiles_are_parts_of_the_image(settings: ModelSettings) -> None:
    """Of the sides that `input_multiple` and `edge_px` say; begun at a multiple, pixel by pixel as the image itself."""
    net = make(settings)
    multiple = net.input_multiple
    for times in (1, 3):
        side = times * multiple + net.edge_px
        tile = images(side + 2 * net.margin, side + multiple + 2 * net.margin)
        with torch.no_grad():
            logits = net.forward_tiles(tile)
            assert logits.shape == (2, 3, side, side + multiple)
            if net.margin:
                later = net.forward_tiles(tile[..., multiple:])
                torch.testing.assert_close(later, logits[..., multiple:], rtol=1e-4, atol=1e-4)
            else:
                assert torch.equal(logits, net(tile))
    if net.margin:
        with pytest.raises(ValueError, match="px does"):
            net.forward_tiles(images(side + 2 * net.margin + 1, side + 2 * net.margin))


def test_poolings_fit_the_multiple(settings: ModelSettings) -> None:
    """An image moved by the multiple has the moved logits, far from its border; moved by half of that it has others."""
    net = make(settings).double()
    multiple = net.input_multiple
    image = images(2 * multiple, 64 * multiple).double()

    def differ(by: int) -> float:
        middle = slice(28 * multiple, 32 * multiple)
        with torch.no_grad():
            whole, part = net(image)[..., by:], net(image[..., by:])
        return float((whole - part)[..., middle].abs().max())

    assert differ(multiple) < 1e-9
    assert differ(multiple // 2) > 1e-7


def test_stochastic_networks_say_so(settings: ModelSettings) -> None:
    net = make(settings).train()
    passes = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            passes.append(net(images(32, 32)))
    assert torch.equal(passes[0], passes[2])
    if settings.encoder is None:
        assert net.is_stochastic != torch.equal(passes[0], passes[1])
    else:  # some of timm's draw, some do not: never less than it says
        assert net.is_stochastic or torch.equal(passes[0], passes[1])
