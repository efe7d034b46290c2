"""The U-Net on timm's encoders keeps the contract of the U-Net: any size, gradients everywhere, whole in its file."""

import builtins
import errno
import hashlib
import logging
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import dropout

import ubend
from support.discs import make_discs
from support.refusal import check, raises, refused_once
from support.training import Listener, press_once
from ubend.core.errors import MissingPackageError, OutputError, SettingError, UbendError
from ubend.core.settings import make_settings
from ubend.inference.predictor import Predictor
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.tasks.info import describe_model
from ubend.training.checkpoint import Saver
from ubend.training.transfer import load_initial_model, shape_settings

timm = pytest.importorskip("timm")

from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: E402

from ubend.models import encoders  # noqa: E402
from ubend.models.encoders import EncodedUNet, encoder_channels, pretrained_normalisation  # noqa: E402

# strides from 2, from 4 (convnext), from 1 (vgg)
NAMES = ["test_resnet", "test_convnext", "vgg11"]
SMALL: dict[str, Any] = {"size": 32, "width": 2, "epochs": 1, "batch": 8, "device": "cpu", "encoder": "test_resnet"}


def make(name: str = "test_resnet", channels: int = 3, **more: Any) -> EncodedUNet:
    torch.manual_seed(0)
    return EncodedUNet(name, channels, 3, 2, **{"depth": 3, **more})


def save(net: EncodedUNet, path: Path) -> Path:
    save_bundle(path, Bundle(net, make_label_map([0, 1, 2], ["ground", "a", "b"]), Sizing(32, True, net.channels)))
    return path


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, channels: int, tmp_path: Path) -> None:
    net = make(name, channels, mean=[100.0] * channels, std=[50.0] * channels)
    for size in ((1, 1), (17, 40), (32, 32)):
        assert net.eval()(torch.rand(1, channels, *size) * 255).shape == (1, 3, *size)
    for parameter in net.parameters():  # timm begins residual branches, and scales of them, at 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    net.train()(torch.rand(2, channels, 33, 24) * 255).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    image = torch.rand(1, channels, 21, 30) * 255
    loaded = load_bundle(save(net, tmp_path / "m.safetensors")).model
    assert isinstance(loaded, EncodedUNet)
    torch.testing.assert_close(loaded(image), net.eval()(image), rtol=0, atol=0)
    assert (loaded.skips, loaded.depth, loaded.width) == (net.skips, 3, 2)


def test_skips_lie_where_the_encoder_has_maps() -> None:
    assert encoder_channels("test_resnet") == {2: 32, 3: 32, 4: 48, 5: 192, 6: 96}
    assert make("test_resnet").skips == (True, True, True)  # of full size the image itself
    assert make("test_resnet", skips=[False, True, True]).skips == (False, True, True)
    assert make("test_convnext").skips == (True, False, True)
    assert make("vgg11").skips == (True, True, True)
    assert make("vgg11", skips=[False, True, False]).skips == (False, True, False)


def test_a_skip_reaches_the_result() -> None:
    """The map of level 2 goes to the decoder of level 2, not to another."""
    net = make("test_resnet").eval()
    image, first = torch.rand(1, 3, 32, 32), torch.rand(1, 32, 16, 16)
    before = net(image)
    maps = net.encoder(image)
    net.encoder = Replaced([first, *maps[1:]])
    assert not torch.allclose(net(image), before)


class Replaced(torch.nn.Module):
    """An encoder with these maps."""

    def __init__(self, maps: list[torch.Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.maps


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("resnet81", "resnet81"),
        ("qqqqqq", "timm.list_models"),
        ("test_vit", "test_vit"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
    ],
)
def test_encoders_that_cannot_be_used(name: str, part: str, tmp_path: Path) -> None:
    make_discs(tmp_path / "data", 8)
    error = refused_once("fit", tmp_path / "data", "--out", tmp_path / "run", "--encoder", name)
    check(error, SettingError, key="model.encoder", named=[part])


def test_too_deep() -> None:
    with raises(SettingError, key="model.depth", named=["7", "1, 2, 3, 4, 5"]):
        make(depth=7)


def test_timm_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved model too says in one line what to install."""
    model = save(make(), tmp_path / "m.safetensors")
    encoder_channels.cache_clear()
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "timm":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with raises(MissingPackageError, key="model.encoder", named=["ubend[encoders]"]):
        load_bundle(model)


def test_the_hub_lacks_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no fault of the network."""

    def fail(*_args: Any, **_named: Any) -> None:
        raise ModuleNotFoundError("No module named 'huggingface_hub'", name="huggingface_hub")

    monkeypatch.setattr(timm, "create_model", fail)
    with raises(MissingPackageError, key="huggingface_hub", named=["pip install huggingface_hub"]):
        encoders.make_encoder("resnet18", 3, 1, pretrained=True)


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    """An error with the one that caused it, as the hub's client raises them."""
    error.__cause__ = cause
    return error


MISSED = LocalEntryNotFoundError("cannot find the requested files\nin the local cache")  # a kind of FileNotFoundError
UNMATCHED = RuntimeError("size mismatch for conv1.weight\nand more")


@pytest.mark.parametrize(
    ("error", "kind", "named"),
    [
        (raised(MISSED, ConnectionRefusedError(111, "Connection refused")), SettingError, ["(Connection refused)"]),
        (
            HTTPError("https://x", 503, "Unavailable", Message(), None),
            SettingError,
            ["(HTTP 503)", "model.weights=FILE"],
        ),
        (HTTPError("https://x", 404, "Not Found", Message(), None), SettingError, ["timm/resnet18", "(HTTP 404)"]),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError, ["No space left on device;", "HF_HOME"]),
        (UNMATCHED, SettingError, ["(size mismatch for conv1.weight)", "another version of timm"]),
    ],
    ids=["no network", "server", "not found", "disk", "does not fit"],
)
def test_weights_that_are_not_had(
    error: Exception, kind: type[UbendError], named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cause has its own line, with what to do."""

    def fail(*_args: Any, **_more: Any) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with raises(kind, key="model.weights", named=named) as e:
        encoders.make_encoder("resnet18", 3, 1, True)
    assert type(e.value) is kind
    assert "\n" not in str(e.value)


def test_an_encoder_without_weights(tmp_path: Path) -> None:
    name = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with raises(SettingError, key="model.weights", named=[name, "model.pretrained=false"]):
        encoders.make_encoder(name, 3, 1, True)


def test_the_network_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_args: Any, **_more: Any) -> None:
        logging.getLogger("huggingface_hub.utils").warning("Retrying")
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(encoders._load_timm(), "create_model", fail)
    with raises(SettingError, key="model.weights", named=["no route to host"]) as e:
        encoders.make_encoder("resnet18", 3, 1, True)
    assert "\n" not in str(e.value)
    assert caplog.records == []  # what the hub's client says of its attempts


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_weights_of_a_file(channels: int, tmp_path: Path) -> None:
    """An image of equal channels is answered as by the original."""
    torch.manual_seed(1)
    original = timm.create_model("test_resnet", pretrained=False)
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    net = make(channels=channels, depth=5, pretrained=tmp_path / "w.safetensors").eval()
    grey = torch.rand(1, 1, 64, 64)
    wanted = original.eval().forward_intermediates(grey.expand(-1, 3, -1, -1), intermediates_only=True)
    for mine, theirs in zip(net.encoder(grey.expand(-1, channels, -1, -1)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert net.state_dict()[net.first_weight()].shape[1] == channels


def test_bad_files_of_weights(tmp_path: Path) -> None:
    with raises(SettingError, path="none.safetensors", key="model.weights"):
        make(pretrained=tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with raises(SettingError, path="other.safetensors", key="model.weights", named=["conv1.0.weight"]):
        make(pretrained=tmp_path / "other.safetensors")


def test_damaged_weights_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit would train on as if nothing were; the file is named, and is to be deleted."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, revision = tmp_path / "models--timm--test_resnet.r160_in1k", "0" * 40
    for name in ("blobs", "refs", f"snapshots/{revision}"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    blob = repository / "blobs" / hashlib.sha256(whole).hexdigest()
    (repository / "snapshots" / revision / "model.safetensors").symlink_to(blob)
    blob.write_bytes(whole)
    net = encoders.make_encoder("test_resnet", 3, 5, pretrained=True)
    assert torch.equal(encoders.first_convolution(net, 3).weight, load_file(blob)["conv1.0.weight"])
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100], b""):
        blob.write_bytes(damaged)
        with raises(SettingError, path=blob, key="model.weights", named=["test_resnet"]):
            encoders.make_encoder("test_resnet", 3, 5, pretrained=True)


def test_damaged_weights_in_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    config = timm.get_pretrained_cfg("resnet18")
    config.hf_hub_id, config.url = None, "https://example.org/net-01234567.pth"
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)
    path = tmp_path / "checkpoints" / "net-01234567.pth"
    path.write_bytes(b"x")
    with raises(SettingError, path=path, key="model.weights", named=["resnet18"]):
        encoders.make_encoder("resnet18", 3, 5, pretrained=True)


def test_normalisation_of_the_weights() -> None:
    assert pretrained_normalisation("resnet18", 3)[0] == (0.485, 0.456, 0.406)
    assert pretrained_normalisation("resnet18", 1)[0] == pytest.approx((0.449,))
    assert len(pretrained_normalisation("resnet18", 4)[1]) == 4


def test_fit(tmp_path: Path) -> None:
    """Trained, scored, described; used to begin another with; resumed without its weights."""
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    make_discs(tmp_path / "data", 16)
    run = tmp_path / "run"
    result = ubend.fit(tmp_path / "data", out=run, settings={"model.weights": str(tmp_path / "w.safetensors")}, **SMALL)
    assert result.scores is not None
    lines = describe_model(run)
    assert "encoder: test_resnet (timm)" in lines
    net = load_bundle(run).model
    assert net.depth == 5
    assert net.mean.flatten().tolist() == pytest.approx([127.5] * 3)  # as timm says of this one
    assert Predictor(load_bundle(run), "cpu")(tmp_path / "data" / "images" / "disc00.png").mask.shape == (40, 48)
    (tmp_path / "w.safetensors").unlink()
    assert ubend.resume(run).scores is not None
    again = ubend.fit(tmp_path / "data", out=tmp_path / "again", init_from=str(run), **{**SMALL, "encoder": None})
    assert isinstance(load_bundle(again.run).model, EncodedUNet)


def test_what_an_encoder_drops_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of timm's drop paths at random; an interrupted run still ends as a whole one, to the bit."""
    forward = EncodedUNet.forward
    monkeypatch.setattr(
        EncodedUNet, "forward", lambda self, image: forward(self, dropout(image, 0.3, training=self.training))
    )
    monkeypatch.setattr(Saver, "is_due", lambda self, after_s=0.0: False)
    make_discs(tmp_path / "data", 16)
    chosen: dict[str, Any] = {**SMALL, "epochs": 3, "settings": {"train.precision": "float32"}}
    assert ubend.fit(tmp_path / "data", out=tmp_path / "whole", **chosen).scores is not None
    assert ubend.fit(tmp_path / "data", out=tmp_path / "run", reporter=Listener(press_once(2)), **chosen).scores is None
    assert ubend.resume(tmp_path / "run").scores is not None
    whole, resumed = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_contradictions(tmp_path: Path) -> None:
    for changes, key in (
        ({"model.encoder": "none", "model.pretrained": True}, "model.encoder"),
        ({"model.encoder": "resnet18", "model.upsampling": "unpool"}, "model.upsampling"),
    ):
        with raises(SettingError, key=key):
            make_settings(changes=changes)
    start = load_initial_model(save(make(), tmp_path / "m.safetensors"))
    assert shape_settings(start, {})["model.encoder"] == "test_resnet"
    with raises(SettingError, path="m.safetensors", key="model.encoder", named=["resnet18", "test_resnet"]):
        shape_settings(start, {"model.encoder": "resnet18"})
