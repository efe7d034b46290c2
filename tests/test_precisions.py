"""Exports in 8 bits, bfloat16 and half precision, for onnxruntime and OpenVINO: answers, fallbacks, refusals."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

import ubend
from support.discs import make_discs
from support.exports import (
    NEEDS_EXPORT,
    NEEDS_OPENVINO,
    make_bundle,
    make_graph,
    onnx,
    onnxruntime,
    settle,
)
from support.refusal import TINY, check, invoke, raises, refused_once
from support.training import Listener
from ubend.core.errors import MissingPackageError, ModelFileError, SettingError
from ubend.exporting import network_graph, proof
from ubend.exporting.calibration import measure_ranges, rank_layers
from ubend.exporting.graph import round_to_bfloat16, store_weights, to_bytes
from ubend.exporting.precisions import Attempt, PrecisionMaker, list_attempts
from ubend.exporting.proof import draw_images
from ubend.exporting.quantise import find_layers, quantise, round_weights, scale_of
from ubend.exporting.targets import PRECISIONS, Precision, Target
from ubend.exporting.upsampling import replace_transposed
from ubend.inference.predictor import Predictor
from ubend.io.images import read_image
from ubend.models.encoders import EncodedUNet
from ubend.models.ensemble_net import EnsembleNet
from ubend.models.exported import ExportedNetwork, load_exported, open_exported
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.paper import PaperUNet
from ubend.models.segmentation_net import SegmentationNet
from ubend.models.unet import UNet
from ubend.portable import model as runtime
from ubend.portable.openvino_session import has_bfloat16, import_openvino, shared_core
from ubend.portable.session import Run
from ubend.tasks.export import contract_text, describe

pytestmark = NEEDS_EXPORT
CROPS: dict[str, Any] = {"window_px": 32, "scale": (1.0, 1.0)}
TARGETS: list[Any] = ["onnx", pytest.param("openvino", marks=NEEDS_OPENVINO)]
WAYS = [pytest.param("onnx", name) for name in PRECISIONS["onnx"]]
WAYS += [pytest.param("openvino", name, marks=NEEDS_OPENVINO) for name in PRECISIONS["openvino"]]
LOOSE = {"fp32": 1e-5, "fp16": 0.002, "bf16": 0.03, "int8": 0.1}  # of a probability


def unet(channels: int, classes: int, top: float = 255.0, **shape: Any) -> UNet:
    mean, std = [top / 2] * channels, [top / 4] * channels
    return UNet(channels, classes, width=4, depth=2, mean=mean, std=std, **shape)


def averaged() -> EnsembleNet:
    return EnsembleNet([unet(3, 3), unet(3, 3)], "mirror")


def paper() -> PaperUNet:
    return PaperUNet(1, 2, width=4, depth=2, mean=[120.0], std=[60.0])


def encoded() -> EncodedUNet:
    return EncodedUNet("tf_efficientnet_lite0", 3, 2, width=4, mean=[127.5] * 3, std=[127.5] * 3)


NETWORKS: dict[str, tuple[Callable[[], SegmentationNet], str, dict[str, Any]]] = {
    "colour": (lambda: unet(3, 3), "uint8", {}),
    "4 channels, 16 bit, crops": (lambda: unet(4, 2, 65535.0, upsampling="unpool"), "uint16", CROPS),
    "ensemble, mirrored": (averaged, "uint8", {}),
    "1 channel, paper, tiles": (paper, "uint8", CROPS),
}


@cache
def made(name: str) -> tuple[Bundle, Any]:
    """A model and its graph in float32; not to be changed."""
    make_net, dtype, stored = {**NETWORKS, "encoder": (encoded, "uint8", {})}[name]
    torch.manual_seed(5)
    bundle = make_bundle(settle(make_net(), {"uint8": 255.0, "uint16": 65535.0}[dtype]), dtype, **stored)
    return bundle, make_graph(bundle)


def make_file(name: str, to: Target, attempt: Attempt) -> bytes:
    """An exported file, calibrated on the drawn images that it is compared on."""
    bundle, graph = made(name)
    contract = describe(Path("none"), bundle, "fp32", to)
    plain = contract_text(dataclasses.replace(contract, target="onnx"))
    maker = PrecisionMaker(graph, to, lambda model: to_bytes(model, plain), lambda: draw_images(bundle))
    return to_bytes(
        maker.make(attempt).model, contract_text(dataclasses.replace(contract, precision=attempt.precision))
    )


def compare(name: str, to: Target, attempt: Attempt, tmp_path: Path) -> None:
    """The file against the model in torch, and the runtime against `ubend predict` of the file."""
    bundle, _graph = made(name)
    path = tmp_path / "model.onnx"
    path.write_bytes(make_file(name, to, attempt))
    exported = load_exported(path)
    assert attempt.precision in exported.model.describe()[0]
    (image, *_others) = draw_images(bundle)
    pixels = image.image.pixels
    wanted, found = (Predictor(one, "cpu")(pixels, probabilities=True) for one in (bundle, exported))
    assert wanted.probabilities is not None
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=0, atol=LOOSE[attempt.precision])
    alone = runtime.load(path, threads=1)(pixels, probabilities=True)
    np.testing.assert_allclose(alone.probabilities, found.probabilities, rtol=0, atol=1e-5)
    weights = sum(one.numel() for one in bundle.model.parameters())
    sizes = {"fp32": 4.0, "fp16": 2.5, "bf16": 2.5, "int8": 2.5}  # small networks are mostly ends and names
    text = len(load_metadata(path))
    assert path.stat().st_size - text < sizes[attempt.precision] * weights + 60_000


def load_metadata(path: Path) -> str:
    (entry,) = onnx.load(path).metadata_props
    value: str = entry.value
    return value


@pytest.mark.parametrize(("to", "precision"), WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_precision(name: str, to: Target, precision: Precision, tmp_path: Path) -> None:
    compare(name, to, Attempt(precision), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("to", "precision"), [way for way in WAYS if way.values[1] in ("int8", "bf16")])
def test_encoders(to: Target, precision: Precision, tmp_path: Path) -> None:
    compare("encoder", to, Attempt(precision), tmp_path)


def kinds_of(data: bytes) -> dict[int, int]:
    """Data type of the stored tensors -> number of values."""
    kinds: dict[int, int] = {}
    for tensor in onnx.load_model_from_string(data).graph.initializer:
        kinds[tensor.data_type] = kinds.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    return kinds


def test_what_is_stored() -> None:
    """Of 8 bits, nearly all weights, and those of an ensemble once for all views; of bfloat16 and half, the large."""
    types = onnx.TensorProto
    for name in ("colour", "ensemble, mirrored"):
        weights = sum(one.numel() for one in made(name)[0].model.parameters())
        assert 0.85 * weights < kinds_of(make_file(name, "onnx", Attempt("int8")))[types.INT8] < 1.1 * weights
        assert kinds_of(make_file(name, "onnx", Attempt("fp16")))[types.FLOAT16] > 0.85 * weights
        half = kinds_of(make_file(name, "onnx", Attempt("int8", 0.5)))
        assert 0 < half[types.INT8] < 0.8 * weights


def test_the_engine_computes_in_8_bits(tmp_path: Path) -> None:
    """onnxruntime folds the nodes around each layer into one of 8 bits."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(make_file("colour", "onnx", Attempt("int8")), options, ["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    layers = len(find_layers(made("colour")[1].graph))
    assert operators.count("QLinearConv") == layers == 11
    assert "ConvTranspose" not in operators


@NEEDS_OPENVINO
def test_openvino_computes_in_8_bits() -> None:
    model = openvino_model(make_file("colour", "openvino", Attempt("int8")))
    compiled = shared_core(import_openvino(__import__)).compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        details = operation.get_rt_info()
        if details["layerType"].value == "Convolution":
            kinds.append(operation.input(0).get_element_type().get_type_name())
    assert sum(kind in ("u8", "i8") for kind in kinds) == 11


def openvino_model(data: bytes) -> Any:
    return shared_core(import_openvino(__import__)).read_model(data)


# --- quantisation ---


@pytest.mark.parametrize(("kernel", "pad"), [(2, 0), (4, 1)])
def test_transposed_convolutions_are_replaced_exactly(kernel: int, pad: int) -> None:
    random = np.random.default_rng(3)
    image, weights, bias = (
        random.normal(size=shape).astype(np.float32) for shape in [(1, 3, 5, 7), (3, 4, kernel, kernel), (4,)]
    )
    node = onnx.helper.make_node(
        "ConvTranspose", ["x", "w", "b"], ["y"], kernel_shape=[kernel] * 2, strides=[2, 2], pads=[pad] * 4
    )
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in (("w", weights), ("b", bias))]
    graph = onnx.helper.make_graph([node], "one", values[:1], values[1:], tensors)
    replace_transposed(graph)
    assert "ConvTranspose" not in [node.op_type for node in graph.node]
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["y"], {"x": image})
    wanted = F.conv_transpose2d(*map(torch.from_numpy, (image, weights, bias)), stride=2, padding=pad)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_other_transposed_convolutions_stay() -> None:
    for given in ({"strides": [1, 1]}, {"group": 2, "strides": [2, 2]}, {"strides": [2, 2], "pads": [1, 0, 1, 0]}):
        node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], kernel_shape=[2, 2], **given)
        tensor = onnx.numpy_helper.from_array(np.zeros((2, 2, 2, 2), np.float32), "w")
        graph = onnx.helper.make_graph([node], "one", [], [], [tensor])
        replace_transposed(graph)
        assert [node.op_type for node in graph.node] == ["ConvTranspose"], given


def test_steps() -> None:
    """0 is exact, and so is a range that does not hold it; weights lose at most half a step, in each channel."""
    for low, high in ((-1.3, 4.0), (0.0, 6.0), (2.0, 5.0), (-3.0, -1.0), (0.0, 0.0)):
        scale, zero = scale_of(low, high)
        assert 0 <= int(zero) <= 255
        for value in (min(low, 0.0), 0.0, max(high, 0.0)):
            step = np.clip(np.rint(value / scale) + int(zero), 0, 255)
            assert abs((step - int(zero)) * scale - value) <= (0 if value == 0 else 0.51 * scale)
    weights = (
        np.random.default_rng(2).normal(size=(3, 4, 3, 3)).astype(np.float32)
        * np.array([1, 0, 50])[:, None, None, None]
    )
    steps, scale = round_weights(weights.astype(np.float32), 0)
    assert np.abs(steps.astype(int)).max() == 64  # sums of two products fit into 16 bits
    error = np.abs(steps * scale[:, None, None, None] - weights)
    assert (error <= 0.501 * scale[:, None, None, None]).all()


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    values = np.random.default_rng(4).normal(size=(40, 40)).astype(np.float32)
    values[0, :4] = [1 + 2**-8, 1 + 3 * 2**-8, -0.0, 2**-130]  # two ties
    model = onnx.helper.make_model(
        onnx.helper.make_graph([], "none", [], [], [onnx.numpy_helper.from_array(values, "w")])
    )
    store_weights(model, "bf16")
    (tensor,) = model.graph.initializer
    wanted = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(np.frombuffer(tensor.raw_data, np.int16).reshape(40, 40), wanted.view(torch.int16))


def test_values_rounded_to_bfloat16_are_rounded() -> None:
    """The stand-in for processors without bfloat16 is neither exact nor far off."""
    bundle, graph = made("colour")
    rounded = onnx.ModelProto()
    rounded.CopyFrom(graph)
    round_to_bfloat16(rounded.graph)
    text = contract_text(describe(Path("none"), bundle, "fp32"))
    pixels = draw_images(bundle)[0].image.pixels
    plain, coarse = (
        Predictor(open_exported(Path("model.onnx"), to_bytes(one, text)), "cpu")(pixels, probabilities=True)
        for one in (graph, rounded)
    )
    assert plain.probabilities is not None
    assert coarse.probabilities is not None
    assert 1e-5 < np.abs(plain.probabilities - coarse.probabilities).max() < 0.03


# --- a network that 8 bits ruin: one weight of a value that is always 0 makes the steps of all others far too large ---


def spoil_layers(net: SegmentationNet, count: int | None = None) -> None:
    """Give the first `count` of the inner convolutions such a weight; None: all but those that enlarge."""
    assert isinstance(net, UNet)
    blocks = [net.stem, *(encoder.block for encoder in net.encoders), *(decoder.block for decoder in net.decoders)]
    layers: list[Any] = [block[number] for block in blocks for number in (0, 3)][1:]
    with torch.no_grad():
        for norm in (block[number] for block in blocks for number in (1, 4)):
            norm.weight[0], norm.bias[0] = 0.0, -1.0  # after the ReLU, the first channel is 0
        for layer in layers[:count]:
            layer.weight[:, 0] = 1e3 * layer.weight.abs().max()


_TRACED: dict[int, Any] = {}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and a finished `run` that is sure of its one class, so that 8 bits change no pixel.

    Without an EMA, batch norm's statistics are still the initial ones after so few steps.
    """
    place = tmp_path_factory.mktemp("good")
    make_discs(place / "data", 24)
    result, error = invoke("fit", place / "data", "--out", place / "run", *TINY, "--set", "train.ema_decay=0")
    assert (result.exit_code, error) == (0, None), result.output
    return place


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are traced once for all exports of this module."""

    def trace(net: SegmentationNet) -> Any:
        key = hash(tuple(one.detach().numpy().tobytes() for one in net.state_dict().values()))
        if key not in _TRACED:
            _TRACED[key] = network_graph.trace_network(net)
        copied = onnx.ModelProto()
        copied.CopyFrom(_TRACED[key])
        return copied

    monkeypatch.setattr("ubend.tasks.export.trace_network", trace)


def spoilt_run(run: Path, image: Path, count: int | None) -> Path:
    """The run with spoilt layers, and a head that gives both classes for an image."""
    path = run / "model.safetensors"
    bundle = load_bundle(path)
    spoil_layers(bundle.model, count)
    pixels = torch.from_numpy(read_image(image)).permute(2, 0, 1)[None].float()
    net = bundle.model.eval()
    assert isinstance(net, UNet)
    assert net.head.bias is not None
    with torch.no_grad():
        net.head.bias -= net(pixels).flatten(2).median(dim=2).values[0]
    path.unlink()
    save_bundle(path, bundle)
    return run


def test_partly_in_8_bits(good: Path, run: Path, tmp_path: Path) -> None:
    """One bad layer: it stays in float32, all others are in 8 bits."""
    reporter = Listener()
    spoilt_run(run, min((good / "data" / "images").iterdir()), 1)
    out = ubend.export(run, out=tmp_path / "model.onnx", precision="int8", reporter=reporter)
    entry = json.loads(load_metadata(out))
    assert "; trying int8 with 25% of the layers in float32" in reporter.said
    assert entry["precision"] == "int8"
    assert entry["proof"]["layers"]["int8"] > 2
    assert proof.find_difference(entry["proof"], "int8") is None
    model = onnx.load(out)
    spoilt = [tensor for tensor in model.graph.initializer if tensor.name.endswith("net.stem.3.weight")]
    assert [tensor.data_type for tensor in spoilt] == [onnx.TensorProto.FLOAT]


@pytest.mark.parametrize(("to", "better"), [("onnx", "fp16"), pytest.param("openvino", "bf16", marks=NEEDS_OPENVINO)])
def test_the_next_better_precision(to: Target, better: Precision, good: Path, run: Path, tmp_path: Path) -> None:
    reporter = Listener()
    spoilt_run(run, min((good / "data" / "images").iterdir()), None)
    out = ubend.export(run, to=to, out=tmp_path / "m.onnx", precision="int8", reporter=reporter)
    entry = json.loads(load_metadata(out))
    assert (entry["target"], entry["precision"]) == (to, better)
    assert "layers" not in entry["proof"]
    assert reporter.said.count("; trying ") == 3
    assert f"; trying {better}" in reporter.said


def test_the_order_of_attempts() -> None:
    assert [attempt.describe() for attempt in list_attempts("openvino", "int8")] == [
        "int8",
        "int8 with 25% of the layers in float32",
        "int8 with 50% of the layers in float32",
        "bf16",
        "fp32",
    ]
    assert list(list_attempts("onnx", "fp16")) == [Attempt("fp16"), Attempt("fp32")]
    assert list(list_attempts("onnx", "fp32")) == [Attempt("fp32")]


def test_layers_are_ranked_by_what_8_bits_change() -> None:
    net = settle(unet(3, 3))
    spoil_layers(net, 1)
    bundle = make_bundle(net)
    graph = make_graph(bundle)
    layers = find_layers(graph.graph)
    inputs = [
        np.ascontiguousarray(image.image.pixels.transpose(2, 0, 1)[None, :, :32, :32]) for image in draw_images(bundle)
    ]
    ranges = measure_ranges(graph, layers, inputs)
    ranked = rank_layers(graph, layers, ranges, inputs)
    assert len(ranked) == len(layers)
    (worst,) = ranked[0]
    assert worst.weights.endswith("net.stem.3.weight")


# --- the command ---


INTERRUPTED = """
import faulthandler, gc, signal, sys
import numpy as np
from ubend.portable.model import load

faulthandler.enable()  # handlers then run on a stack of their own
models = [load(sys.argv[1]) for _ in range(3)]
while models:
    models.pop(0)(np.zeros((9, 9, 3), np.uint8))
    gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


@NEEDS_OPENVINO
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_after_models_are_released(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make_file("colour", "openvino", Attempt("fp32")))
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.fixture(scope="module")
def files(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], Path]:
    """The good run in 8 bits; only to be read."""
    folder = tmp_path_factory.mktemp("files")

    def make(to: Target) -> Path:
        out = folder / f"{to}.onnx"
        if not out.exists():
            result, error = invoke("export", good / "run", "--to", to, "--precision", "int8", "--out", out)
            assert (result.exit_code, error) == (0, None), result.output
        return out

    return make


@pytest.mark.parametrize("to", TARGETS)
def test_a_file_in_8_bits_is_used_as_a_run_is(
    to: Target, files: Callable[[Target], Path], good: Path, tmp_path: Path
) -> None:
    path, images = files(to), good / "data" / "images"
    entry = json.loads(load_metadata(path))
    assert (entry["contract"], entry["target"], entry["precision"]) == (1, to, "int8")
    measured = entry["proof"]
    assert {*measured["seconds_per_megapixel"]} == {"torch", to}
    assert measured["layers"]["float32"] >= 2
    assert proof.find_difference(measured, "int8") is None
    result, error = invoke("predict", path, images, "--out", tmp_path / "masks")
    assert (result.exit_code, error) == (0, None), result.output
    model = runtime.load(path, threads=1)
    for image in sorted(images.iterdir())[:3]:
        with Image.open(tmp_path / "masks" / f"{image.stem}.png") as mask:
            assert (np.asarray(mask) != model(image).mask).mean() < 1e-3
    scores = ubend.evaluate(path, folder=good / "data", reporter=Listener())
    assert scores.native.dice.per_image.mean == pytest.approx(measured["dice"]["after"], abs=0.02)
    result, error = invoke("info", path)
    assert error is None
    assert {"onnx": "ONNX, int8", "openvino": "OpenVINO, int8"}[to] in result.output
    assert "convolutions in 8 bits" in result.output


@pytest.mark.parametrize(("to", "precision"), [("onnx", "bf16"), ("openvino", "fp16")])
def test_wrong_combinations(to: str, precision: str, good: Path, tmp_path: Path) -> None:
    words = ["export", good / "run", "--to", to, "--precision", precision, "--out", tmp_path / "model.onnx"]
    check(refused_once(*words), SettingError, key="--precision")
    assert not list(tmp_path.iterdir())


def test_unknown_targets(good: Path) -> None:
    with raises(SettingError, key="--to"):
        ubend.export(good / "run", to="coreml", reporter=Listener())  # type: ignore[arg-type]


def test_without_training_images(run: Path, tmp_path: Path) -> None:
    """Other images would give other ranges."""
    out = tmp_path / "model.onnx"
    (run / "data.csv").unlink()
    check(refused_once("export", run, "--precision", "int8", "--out", out), SettingError, key="--precision")
    assert not out.exists()


@NEEDS_OPENVINO
def test_missing_openvino(
    good: Path, files: Callable[[Target], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files("openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    expected: dict[str, Any] = {"key": "openvino", "named": ["pip install"]}
    words = ["export", good / "run", "--to", "openvino", "--out", tmp_path / "model.onnx"]
    check(refused_once(*words), MissingPackageError, **expected)
    images = good / "data" / "images"
    check(refused_once("predict", path, images, "--out", tmp_path / "out"), MissingPackageError, **expected)
    with raises(MissingPackageError, **expected):
        runtime.load(path)
    assert not list(tmp_path.iterdir())


def test_openvino_does_not_report_that_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its telemetry package counts as missing while it is imported, and only then."""
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    seen = []

    def load(name: str) -> str:
        seen.append((name, "openvino_telemetry" in sys.modules and sys.modules["openvino_telemetry"]))
        return name

    assert import_openvino(load) == "openvino"
    assert seen == [("openvino", None)]
    assert "openvino_telemetry" not in sys.modules


# --- files from others ---


@NEEDS_OPENVINO
@pytest.mark.parametrize("spoil", ["input", "margin", "damaged"])
def test_files_that_do_not_fit(spoil: str) -> None:
    model = onnx.load_model_from_string(make_file("colour", "openvino", Attempt("fp32")))
    entry = json.loads(model.metadata_props[0].value)
    if spoil == "input":
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT16
    elif spoil == "margin":
        entry["tiles"]["margin"] = 4
    else:
        model.graph.initializer[0].dims.append(1)
    model.metadata_props[0].value = json.dumps(entry)
    with raises(ModelFileError, path=Path("model.onnx")):
        Predictor(open_exported(Path("model.onnx"), model.SerializeToString()))(np.zeros((9, 9, 3), np.uint8))


@NEEDS_OPENVINO
def test_openvino_is_not_given_more_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes inside a graph are the file's own, and known before it is run."""
    monkeypatch.setattr("ubend.portable.openvino_session.memory_limit", lambda: 2**27)
    predictor = Predictor(open_exported(Path("model.onnx"), make_file("colour", "openvino", Attempt("fp32"))))
    assert predictor(np.zeros((9, 9, 3), np.uint8)).mask.shape == (9, 9)
    model = onnx.load_model_from_string(make_file("colour", "openvino", Attempt("fp32")))
    value = model.graph.node[0].output[0]
    model.graph.node[0].output[0] = "small"
    sizes = onnx.numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 0, 2**12, 2**12]), "more_values")
    model.graph.initializer.append(sizes)
    model.graph.node.insert(1, onnx.helper.make_node("Pad", ["small", "more_values"], [value]))
    with raises(SettingError, key="device"):
        Predictor(open_exported(Path("model.onnx"), model.SerializeToString()))(np.zeros((9, 9, 3), np.uint8))


@NEEDS_OPENVINO
def test_small_images_in_8_bits_where_openvino_may_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs with fixed sides give the same, and are kept; larger images, and other precisions, do not need them."""

    def open_graph(precision: Literal["int8", "fp32"]) -> Run:
        network = open_exported(Path("model.onnx"), make_file("colour", "openvino", Attempt(precision))).model
        assert isinstance(network, ExportedNetwork)
        return network.run

    images = [np.random.default_rng(0).integers(0, 256, (1, 3, *sides), np.uint8) for sides in [(40, 32), (128, 136)]]
    wanted = [open_graph("int8")(image) for image in images]
    core, compiled = shared_core(import_openvino(__import__)), Counter[bool]()

    class Core:
        """Of a processor with AMX, which counts graphs with variable and with fixed sides."""

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def get_property(self, *_names: str) -> list[str]:
            return ["INT8", "BF16", "FP16"]

        def compile_model(self, model: Any, *given: Any) -> Any:
            compiled.update([model.input().partial_shape.is_static])
            return core.compile_model(model, *given)

    monkeypatch.setattr("ubend.portable.openvino_session.shared_core", lambda _openvino: Core())
    run = open_graph("int8")
    for image, logits in zip(images * 2, wanted * 2, strict=True):
        np.testing.assert_allclose(run(image), logits, rtol=0, atol=1e-5)
    assert compiled == {False: 1, True: 1}
    open_graph("fp32")(images[0])
    assert compiled == {False: 2, True: 1}


@NEEDS_OPENVINO
def test_repeated_shapes_in_8_bits_get_a_graph_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second large batch on, with the same logits to the bit; small batches never do."""
    core, compiled = shared_core(import_openvino(__import__)), Counter[bool]()

    class Core:
        """Counts graphs with variable and with fixed sides."""

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def compile_model(self, model: Any, *given: Any) -> Any:
            compiled.update([model.input().partial_shape.is_static])
            return core.compile_model(model, *given)

    monkeypatch.setattr("ubend.portable.openvino_session.shared_core", lambda _openvino: Core())
    network = open_exported(Path("model.onnx"), make_file("colour", "openvino", Attempt("int8"))).model
    assert isinstance(network, ExportedNetwork)
    large, small = (np.random.default_rng(0).integers(0, 256, (2, 3, 512, side), np.uint8) for side in (512, 130))
    first, _small, again, third, _again = (network.run(images) for images in (large, small, large, large, small))
    assert compiled == {False: 1, True: 1}
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(third, first)
    monkeypatch.setattr("ubend.portable.openvino_session.memory_limit", lambda: 1000)
    monkeypatch.setattr("ubend.portable.openvino_session._peak_bytes", lambda _model, _shape: 400)
    network = open_exported(Path("model.onnx"), make_file("colour", "openvino", Attempt("int8"))).model
    assert isinstance(network, ExportedNetwork)
    for _repeat in range(2):
        network.run(large)
    assert compiled == {False: 2, True: 1}, "memory for several graphs was taken although there is none"


def test_weights_are_widened_once() -> None:
    """A file that widens the same weights again and again could take any amount of memory when it is loaded."""
    model = onnx.load_model_from_string(make_file("colour", "onnx", Attempt("int8")))
    (node, *_others) = (node for node in model.graph.node if node.input[0].endswith(".weight.q"))
    again = model.graph.node.add()
    again.CopyFrom(node)
    again.output[0] = "again"
    with raises(ModelFileError, key="graph"):
        open_exported(Path("model.onnx"), model.SerializeToString())


@NEEDS_OPENVINO
def test_bfloat16_of_this_processor() -> None:
    assert has_bfloat16(import_openvino(__import__)) in (True, False)


def test_shared_activations_have_one_scale() -> None:
    """What a pooling gives has the steps of what it takes: no value is rounded twice."""
    _bundle, graph = made("colour")
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    layers = find_layers(model.graph)
    inputs: list[NDArray[Any]] = [np.random.default_rng(0).integers(0, 255, (1, 3, 32, 32), np.uint8)]
    quantise(model.graph, layers, measure_ranges(graph, layers, inputs))
    scales = {tensor.name: float(onnx.numpy_helper.to_array(tensor)) for tensor in model.graph.initializer
              if tensor.name.endswith(".scale") and not tensor.dims}  # fmt: skip
    pools = [node for node in model.graph.node if node.op_type == "MaxPool"]
    assert len(pools) == 2
    for node in pools:
        assert scales[f"{node.input[0].removesuffix('.dq')}.scale"] == scales[f"{node.output[0]}.scale"]
