"""Exported models answer as the models do, in every architecture; the command proves it, or writes nothing."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import ubend
from support.exports import NEEDS_EXPORT, make_bundle, make_bytes, make_graph, onnx, onnxruntime, settle
from support.refusal import check, invoke, raises, refused_once
from support.training import Listener
from ubend.core.errors import MissingPackageError, ModelFileError, OutputError, SettingError
from ubend.core.settings import Upsampling
from ubend.exporting import network_graph, proof
from ubend.exporting.targets import Precision
from ubend.inference.ensemble import load
from ubend.inference.predictor import Predictor
from ubend.labels.mask_files import FileMask
from ubend.layouts.pairs import Pair
from ubend.models import networks
from ubend.models.custom import CustomNetwork
from ubend.models.encoders import EncodedUNet
from ubend.models.ensemble_net import EnsembleNet
from ubend.models.exported import load_exported, open_exported
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.paper import PaperUNet
from ubend.models.segmentation_net import SegmentationNet
from ubend.models.unet import UNet
from ubend.portable.contract import describe_proof

pytestmark = NEEDS_EXPORT
LITE = "tf_efficientnet_lite0"
CROPS: dict[str, Any] = {"window_px": 32, "scale": (1.0, 1.0)}
NAMES = ["logits", "probabilities", "class_index"]


def unets(count: int, **shape: Any) -> list[SegmentationNet]:
    return [UNet(3, 3, width=4, depth=2, mean=[100.0] * 3, std=[60.0] * 3, **shape) for _member in range(count)]


def averaged(views: Any) -> EnsembleNet:
    net = EnsembleNet(unets(2), views)
    net.class_bias[:] = torch.tensor([0.0, 0.3, -0.2])
    return net


NETWORKS: dict[str, tuple[Callable[[], SegmentationNet], str, dict[str, Any]]] = {
    "tutorial": (lambda: UNet(3, 3, width=2, depth=4, mean=[120.0] * 3, std=[60.0] * 3), "uint8", {}),
    "unpool, grey": (lambda: UNet(1, 2, width=4, depth=2, upsampling="unpool"), "uint8", {}),
    "bilinear, 4 channels": (lambda: UNet(4, 2, width=4, depth=2, upsampling="bilinear"), "uint8", {}),
    "nearest, 16 bit": (
        lambda: UNet(1, 2, width=4, depth=2, skips=[True, False], upsampling="nearest", mean=[30000], std=[15000]),
        "uint16",
        {},
    ),
    "crops, float": (lambda: UNet(2, 2, width=4, depth=2, mean=[0.5] * 2, std=[0.3] * 2), "float32", CROPS),
    "paper": (lambda: PaperUNet(1, 2, width=4, depth=2, mean=[120.0], std=[60.0]), "uint8", {}),
    "paper, tiles": (lambda: PaperUNet(1, 2, width=4, depth=2, mean=[120.0], std=[60.0]), "uint8", CROPS),
    "folds": (lambda: averaged("plain"), "uint8", {}),
    "folds, mirrored": (lambda: averaged("mirror"), "uint8", {}),
    "folds, square": (lambda: averaged("square"), "uint8", {}),
}


def images_of(bundle: Bundle, size_hw: tuple[int, int]) -> NDArray[Any]:
    drawn = np.random.default_rng(7).random((2, bundle.model.channels, *size_hw))
    return (drawn * {"uint8": 255, "uint16": 65535, "float32": 1}[bundle.dtype]).astype(bundle.dtype)


def compare(bundle: Bundle) -> None:
    """All outputs, at sizes that are padded, mirrored there and back, or neither."""
    data, net = make_bytes(bundle), bundle.model
    session = onnxruntime.InferenceSession(data)
    network = open_exported(Path("model.onnx"), data).model
    multiple, rest = net.input_multiple, net.edge_px + 2 * net.margin
    tiles = bundle.keeps_scale and net.margin
    sizes = [(multiple + rest, 3 * multiple + rest)] if tiles else [(1, 1), (2, 35), (64, 32), (101, 53)]
    differing = pixels = 0
    for size_hw in sizes:
        images = images_of(bundle, size_hw)
        with torch.inference_mode():
            given = torch.from_numpy(images).float()
            wanted = net.forward_tiles(given) if tiles else net(given)
            again = network.forward_tiles(given) if tiles else network(given)
        logits, prob, index = session.run(NAMES, {"image": images})
        assert logits.shape == wanted.shape
        np.testing.assert_allclose(again, logits, rtol=0, atol=1e-6 * max(1.0, float(np.abs(logits).max())))
        spread = float(wanted.abs().max())
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * max(1.0, spread))
        np.testing.assert_allclose(prob, torch.from_numpy(logits).softmax(dim=1), rtol=0, atol=1e-6)
        assert index.dtype == np.uint8
        differing += int((index != wanted.argmax(dim=1).numpy()).sum())
        pixels += index.size
    assert differing <= 1e-5 * pixels


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str) -> None:
    torch.manual_seed(3)
    make, dtype, stored = NETWORKS[name]
    top = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[dtype]
    compare(make_bundle(settle(make(), top), dtype, **stored))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [LITE, "resnet18", "efficientnet_b0", "convnext_atto"])
def test_encoders(encoder: str) -> None:
    if encoder != LITE:
        pytest.importorskip("timm")
    torch.manual_seed(3)
    compare(make_bundle(settle(EncodedUNet(encoder, 3, 2, width=4, mean=[120.0] * 3, std=[60.0] * 3))))


@pytest.mark.slow
def test_encoders_of_other_images() -> None:
    """An ensemble of encoders, on crops with 4 channels of 16 bits."""
    torch.manual_seed(3)
    nets = [EncodedUNet(LITE, 4, 2, width=4, depth=2, mean=[30000.0] * 4, std=[15000.0] * 4) for _member in range(2)]
    compare(make_bundle(settle(EnsembleNet(nets, "plain"), 65535.0), "uint16", **CROPS))


def test_every_kind_is_compared() -> None:
    """A new network, upsampling, or dtype of images is missed here."""
    nets = [(make(), dtype, stored) for make, dtype, stored in NETWORKS.values()]
    members = [member for net, _dtype, _stored in nets for member in net.averaging().members]
    assert {*map(type, members)} | {EncodedUNet} == {*networks.NETWORKS.values()}
    assert {member.upsampling for member in members if isinstance(member, UNet)} == {*get_args(Upsampling)}
    assert {dtype for _net, dtype, _stored in nets} == {"uint8", "uint16", "float32"}
    assert {1, 3, 4} <= {net.channels for net, _dtype, _stored in nets}
    assert any(stored for _net, _dtype, stored in nets)


@pytest.fixture(scope="module")
def folds() -> Bundle:
    torch.manual_seed(4)
    return make_bundle(settle(averaged("mirror")), about={"encoder_weights": "weights, Apache-2.0"})


@pytest.fixture(scope="module")
def exported(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported file of the good run; only to be read."""
    out = tmp_path_factory.mktemp("exported") / "model.onnx"
    result, error = invoke("export", good / "run", "--out", out)
    assert (result.exit_code, error) == (0, None), result.output
    return out


def metadata(path: Path) -> Any:
    (entry,) = onnx.load(path).metadata_props
    assert entry.key == "ubend"
    return json.loads(entry.value)


def test_the_metadata(good: Path, exported: Path) -> None:
    """All that the model file's header says, and what is needed to use the graph without ubend."""
    entry = metadata(exported)
    assert entry["contract"] == 1
    bundle, found = load_bundle(good / "run"), load_exported(exported)
    assert (found.labels, found.sizing, found.about) == (bundle.labels, bundle.sizing, bundle.about)
    for name in ("dtype", "window_px", "scale", "orientation", "flips", "image_hashes"):
        assert getattr(found, name) == getattr(bundle, name), name
    assert entry["model"]["labels"]["names"] == list(bundle.labels.names)
    assert entry["mean"] == bundle.model.mean.flatten().tolist()
    assert entry["tiles"]["multiple"] == bundle.model.input_multiple
    scores = json.loads((good / "run" / "scores.json").read_text())
    assert entry["scores"]["subset"] == "test"
    assert entry["scores"]["dice"].items() <= scores["native"]["dice"]["per_image"].items()
    shown = entry["proof"]
    assert (shown["compared_on"], shown["images"]) == ("test", scores["native"]["pictures"])
    assert shown["share_of_pixels"] <= 1e-5
    assert 0 < shown["dice"]["before"] == pytest.approx(shown["dice"]["after"], abs=1e-4)
    assert min(shown["seconds_per_megapixel"].values()) > 0


def test_the_licence(folds: Bundle, tmp_path: Path) -> None:
    save_bundle(tmp_path / "model.safetensors", folds)
    out = ubend.export(tmp_path / "model.safetensors", reporter=Listener())
    assert out == tmp_path / "model.onnx"
    entry = metadata(out)
    assert entry["licence"] == {"encoder_weights": "weights, Apache-2.0"}
    assert (entry["scores"], entry["proof"]["compared_on"], entry["proof"]["dice"]) == (None, "drawn", None)
    image = np.random.default_rng(1).integers(0, 255, (50, 70, 3), np.uint8)
    wanted, found = (
        load(path, device="cpu")(image, probabilities=True) for path in (tmp_path / "model.safetensors", out)
    )
    assert wanted.probabilities is not None
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=0, atol=1e-5)


def test_an_exported_file_is_used_as_a_run_is(good: Path, exported: Path, tmp_path: Path) -> None:
    images = good / "data" / "images"
    result, error = invoke("predict", exported, images, "--out", tmp_path / "masks")
    assert (result.exit_code, error) == (0, None), result.output
    plain = Predictor(dataclasses.replace(load_bundle(good / "run"), precision="float32"), "cpu")
    for path in sorted(images.iterdir()):
        with Image.open(tmp_path / "masks" / f"{path.stem}.png") as mask:
            np.testing.assert_array_equal(np.asarray(mask), plain(path).mask)
    scores = ubend.evaluate(exported, folder=good / "data", reporter=Listener())
    wanted = ubend.evaluate(good / "run", folder=good / "data", device="cpu", reporter=Listener())
    assert scores.subset == wanted.subset == "test"  # the training images are recognised
    assert scores.native.images == wanted.native.images
    assert scores.native.dice.per_image.mean == pytest.approx(wanted.native.dice.per_image.mean, abs=0.01)
    result, error = invoke("info", exported)
    assert (result.exit_code, error) == (0, None), result.output
    assert "onnx" in result.output.lower()
    assert load([exported, good / "run"], tta=True)(np.zeros((20, 30, 3), np.uint8)).mask.shape == (20, 30)


def test_tiles_of_a_network_without_padding(tmp_path: Path) -> None:
    """With and without its margin; a graph that mirrors whole images takes no tiles."""
    torch.manual_seed(5)
    net = settle(PaperUNet(1, 2, width=4, depth=2, mean=[120.0], std=[60.0]))
    image = np.random.default_rng(1).integers(0, 255, (90, 130), np.uint8)
    for stored, tiles in (({}, [None]), (CROPS, [None, 0, 40])):
        bundle = make_bundle(net, **stored)
        found = open_exported(tmp_path / "model.onnx", make_bytes(bundle))
        for px in tiles:
            wanted, mask = (Predictor(one, "cpu", tiles=px)(image).mask for one in (bundle, found))
            np.testing.assert_array_equal(mask, wanted)
        if not stored:
            with raises(SettingError, key="--tiles"):
                Predictor(found, tiles=40)(image)


def test_float_arrays_are_rounded(tmp_path: Path) -> None:
    bundle = make_bundle(settle(UNet(1, 2, width=4, depth=1, mean=[120.0], std=[60.0])))
    predictor = Predictor(open_exported(tmp_path / "model.onnx", make_bytes(bundle)))
    image = np.random.default_rng(1).integers(0, 255, (32, 32, 1)).astype(np.float32)
    wanted, found = (predictor(one, probabilities=True).probabilities for one in (image, image + 0.4))
    np.testing.assert_array_equal(found, wanted)


def test_half_precision(good: Path, exported: Path, tmp_path: Path) -> None:
    out = ubend.export(good / "run", out=tmp_path / "half.onnx", precision="fp16", reporter=Listener())
    entry = metadata(out)
    assert entry["precision"] == "fp16"
    assert 0 < entry["proof"]["largest_probability_difference"] < 0.05
    weights = sum(one.numel() for one in load_bundle(good / "run").model.parameters())
    assert exported.stat().st_size - out.stat().st_size > 1.7 * weights


def spoil(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """Exports get other weights than the model has."""
    real = network_graph.trace_network

    def export_other(net: SegmentationNet) -> Any:
        other = real(net)
        for tensor in other.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.ndim == 4:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1 + by), tensor.name))
        return other

    monkeypatch.setattr("ubend.tasks.export.trace_network", export_other)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_differs_is_not_written(
    good: Path, precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, -2.0)
    check(
        refused_once("export", good / "run", "--out", tmp_path / "model.onnx", "--precision", precision),
        ModelFileError,
        key="share_of_pixels",
    )
    assert not list(tmp_path.iterdir())


def test_limits_of_half_precision() -> None:
    """The mean is judged by the end of its interval, and so is the worst image."""
    dice = {"before": 0.9, "after": 0.899, "difference": -0.001, "interval": [-0.002, 0.0], "worst_image": -0.01}
    found = {"share_of_pixels": 0.001, "dice": dice}
    assert proof.find_difference(found, "fp16") is None
    beyond: list[tuple[str, dict[str, Any], Precision]] = [
        ("share_of_pixels", found, "fp32"),
        ("dice", {**found, "dice": {**dice, "interval": [-0.006, 0.004]}}, "fp16"),
        ("dice", {**found, "dice": {**dice, "interval": None, "difference": -0.006}}, "bf16"),
        ("worst_image", {**found, "dice": {**dice, "worst_image": -0.06}}, "int8"),
    ]
    for key, measured, precision in beyond:
        difference = proof.find_difference(measured, precision)
        assert difference is not None
        assert difference[0] == key


def test_no_negative_zero() -> None:
    dice = {"before": 0.9, "after": 0.9, "difference": -1e-9, "interval": [-1e-8, -1e-9]}
    measured = {"images": 2, "compared_on": "test", "largest_probability_difference": 1e-6, "share_of_pixels": 0.0}
    lines = describe_proof({**measured, "dice": dice, "seconds_per_megapixel": {}})
    assert any("difference +0.00000 (95% interval +0.00000 to +0.00000)" in line for line in lines)


def test_images_of_the_run_that_are_gone(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good / "run", tmp_path / "run")
    text = (tmp_path / "run" / "data.csv").read_text()
    (tmp_path / "run" / "data.csv").write_text(text.replace(str(good / "data"), str(tmp_path / "gone")))
    out = ubend.export(tmp_path / "run", reporter=Listener())
    assert metadata(out)["proof"]["compared_on"] == "drawn"


class Doubled(nn.Module):
    """A network of somebody's own; `shape` decides by a value what torch.export cannot know."""

    def __init__(self, by_value: bool = False) -> None:
        super().__init__()
        self.head, self.by_value = nn.Conv2d(3, 2, 3, padding=1), by_value

    def forward(self, image: Tensor) -> Tensor:
        if self.by_value and float(image.mean()) > 0:
            image = -image
        logits: Tensor = self.head(image)
        return logits


def test_own_networks(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_bundle(path, make_bundle(CustomNetwork(3, 2, module=Doubled(), mean=[120.0] * 3, std=[60.0] * 3)))
    with raises(ModelFileError, path=path, key="network"):
        ubend.export(path, reporter=Listener())
    out = ubend.export(path, network=Doubled(), reporter=Listener())
    image = np.random.default_rng(1).integers(0, 255, (33, 47, 3), np.uint8)
    wanted = ubend.load(path, network=Doubled(), device="cpu")(image).mask
    np.testing.assert_array_equal(ubend.load(out)(image).mask, wanted)
    with raises(SettingError, key="network"):
        ubend.export(path, network=Doubled(True), out=tmp_path / "other.onnx", reporter=Listener())
    assert not (tmp_path / "other.onnx").exists()


def test_refusals(good: Path, exported: Path, tmp_path: Path) -> None:
    check(refused_once("export", good / "run", "--out", exported), OutputError, path=exported)
    check(refused_once("export", good / "run", "--out", tmp_path / "a.bin"), OutputError, path=tmp_path / "a.bin")
    check(refused_once("export", exported, "--out", tmp_path / "b.onnx"), ModelFileError, path=exported)
    check(refused_once("export", tmp_path / "none"), ModelFileError, path=tmp_path / "none")
    with raises(SettingError, key="--precision"):
        ubend.export(good / "run", precision="int4", reporter=Listener())  # type: ignore[arg-type]
    words = ["--out", tmp_path / "out"]
    check(refused_once("fit", good / "data", "--from", exported, *words), ModelFileError, path=exported)
    predict = ["predict", exported, good / "data" / "images", *words]
    check(refused_once(*predict, "--device", "cuda"), SettingError, key="--device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages(
    package: str, good: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    expected: dict[str, Any] = {"key": package, "named": ["pip install 'ubend[export]'"]}
    words = ["export", good / "run", "--out", tmp_path / "model.onnx"]
    check(refused_once(*words), MissingPackageError, **expected)
    images = good / "data" / "images"
    if package == "onnxruntime":
        check(refused_once("predict", exported, images, "--out", tmp_path / "out"), MissingPackageError, **expected)
    else:
        result, error = invoke("evaluate", exported, good / "data")
        assert (result.exit_code, error) == (0, None), result.output
    assert not list(tmp_path.iterdir())


def test_graphs_share_weights(folds: Bundle) -> None:
    """Views of one network hold its weights once."""
    size = sum(len(one.raw_data) for one in make_graph(folds).graph.initializer)
    assert size < 1.1 * sum(one.numel() * 4 for one in folds.model.parameters())


@pytest.mark.parametrize(("images", "largest_gap"), [(40, 1), (10, 6), (3, 20)])
def test_images_of_the_proof_are_spread_evenly(images: int, largest_gap: int, tmp_path: Path) -> None:
    """Also where the limit of pixels ends them: a video's first frames would be all alike."""
    pairs = []
    for number in range(40):
        image, mask = tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(image)
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(mask)
        pairs.append(Pair(str(number), image, FileMask(mask), None, None))
    bundle = make_bundle(UNet(3, 2, width=4, depth=2))
    found = proof.read_images(bundle, pairs, max_pixels=images * 32 * 32)
    numbers = [int(one.image.pixels[0, 0, 0]) for one in found]
    assert len(numbers) == images
    assert numbers == sorted(numbers)
    assert max(np.diff([-1, *numbers, 40])) <= largest_gap
