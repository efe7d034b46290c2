"""ONNX files that are cut off, changed, or made to do harm: one line, nothing run, bounded memory."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.exports import NEEDS_EXPORT, make_bundle, make_bytes, onnx, onnxruntime, settle
from support.refusal import check, raises, refused_once
from ubend.core.errors import ModelFileError
from ubend.inference.predictor import Predictor
from ubend.models.exported import open_exported
from ubend.models.unet import UNet
from ubend.portable import onnx_scan

pytestmark = NEEDS_EXPORT
PATH = Path("model.onnx")
Model = Any


@pytest.fixture(scope="module")
def whole() -> bytes:
    """An exported file."""
    torch.manual_seed(6)
    return make_bytes(make_bundle(settle(UNet(3, 2, width=2, depth=1, mean=[120.0] * 3, std=[60.0] * 3))))


@pytest.fixture
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """onnxruntime must not be asked."""
    calls = []

    def run(*_args: Any, **_named: Any) -> None:
        calls.append("InferenceSession")
        raise ValueError

    monkeypatch.setattr(onnxruntime, "InferenceSession", run)
    yield
    assert calls == []


def add_node(model: Model, operator: str, inputs: list[str], **attributes: Any) -> None:
    model.graph.node.insert(0, onnx.helper.make_node(operator, inputs, ["more"], **attributes))


def add_tensor(model: Model, values: Any, name: str = "more_values") -> Any:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
    return model.graph.initializer[-1]


def outside(model: Model) -> None:
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../etc/passwd")
    tensor.ClearField("raw_data")


def other_library(model: Model) -> None:
    add_node(model, "Relu", ["image"], domain="com.microsoft")


def other_library_imported(model: Model) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("com.evil", 1))


def unknown_operator(model: Model) -> None:
    add_node(model, "Loop", ["image"])


def subgraph(model: Model) -> None:
    graph = onnx.helper.make_graph([], "inner", [], [])
    add_node(model, "Relu", ["image"], body=graph)


def function(model: Model) -> None:
    model.functions.append(onnx.helper.make_function("", "Relu", ["x"], ["y"], [], [onnx.helper.make_opsetid("", 18)]))


def claimed_size(model: Model) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**20]


def listed_values(model: Model) -> None:
    model.graph.initializer.append(onnx.helper.make_tensor("more", onnx.TensorProto.FLOAT, [2], [1.0, 2.0]))


def computed_when_loaded(model: Model) -> None:
    add_tensor(model, [2**15, 2**15])
    add_node(model, "ConstantOfShape", ["more_values"])


def constant_node(model: Model) -> None:
    add_node(model, "Constant", [], value=onnx.numpy_helper.from_array(np.zeros(3, np.float32)))


def huge_side(model: Model) -> None:
    add_tensor(model, [2**30])


def huge_stride(model: Model) -> None:
    add_node(model, "MaxPool", ["image"], kernel_shape=[2**40, 1])


def many_nodes(model: Model) -> None:
    for _number in range(100_001):
        model.graph.node.add(op_type="Relu", input=["image"], output=["x"])


def newer_contract(model: Model) -> None:
    change(model, lambda entry: entry.update(contract=2))


def other_channels(model: Model) -> None:
    change(model, lambda entry: entry.update(mean=[0.0]))


def damaged_header(model: Model) -> None:
    change(model, lambda entry: entry["model"]["network"].update(classes=7))


def no_metadata(model: Model) -> None:
    del model.metadata_props[:]


def long_metadata(model: Model) -> None:
    onnx.helper.set_model_props(model, {"ubend": "{}", "more": "x" * 2**24})


def training(model: Model) -> None:
    model.training_info.add()


def change(model: Model, work: Callable[[Any], object]) -> None:
    entry = json.loads(model.metadata_props[0].value)
    work(entry)
    model.metadata_props[0].value = json.dumps(entry)


HOSTILE = [
    outside, other_library, other_library_imported, unknown_operator, subgraph, function, claimed_size, listed_values,
    computed_when_loaded, constant_node, huge_side, huge_stride, many_nodes, newer_contract, other_channels,
    damaged_header, no_metadata, long_metadata, training,
]  # fmt: skip


@pytest.mark.usefixtures("nothing_is_run")
@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_hostile_files(spoil: Callable[[Model], None], whole: bytes, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(whole)
    spoil(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    for words in (["info", path], ["predict", path, tmp_path, "--out", tmp_path / "out"]):
        check(refused_once(*words), ModelFileError, path=path)
    assert not (tmp_path / "out").exists()


def test_the_whole_file_is_loaded(whole: bytes) -> None:
    mask = Predictor(open_exported(PATH, whole))(np.zeros((9, 9, 3), np.uint8)).mask
    assert mask.shape == (9, 9)


@pytest.mark.usefixtures("nothing_is_run")
def test_cut_off_files(whole: bytes) -> None:
    for length in [*range(40), *np.linspace(40, len(whole) - 1, 200).astype(int).tolist()]:
        with raises(ModelFileError, path=PATH):
            open_exported(PATH, whole[:length])


@pytest.mark.understood(at_least=0.3)
def test_changed_bytes(whole: bytes, tally: Any) -> None:
    """Of weights a changed byte is not noticed; elsewhere a file is refused, or says the same."""
    random = np.random.default_rng(8)
    for _turn in range(1500):
        data = bytearray(whole)
        for place in random.integers(len(data), size=2):
            data[place] = random.integers(256)
        try:
            onnx_scan.scan(memoryview(bytes(data)), "ubend")
            tally.add(True)
        except onnx_scan.OnnxRefusedError:
            tally.add(False)


@pytest.mark.parametrize("field", [b"\x0a\x00", b"\x2a\x00"], ids=["nodes", "tensors"])
def test_memory_of_many_small_parts(field: bytes) -> None:
    graph = field * 10_000_000
    data = b"\x3a" + varint(len(graph)) + graph + b"\x72\x09\x0a\x05ubend\x12\x00"
    tracemalloc.start()
    try:
        with pytest.raises(onnx_scan.OnnxRefusedError):
            onnx_scan.scan(memoryview(data), "ubend")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def test_graphs_that_onnxruntime_refuses(whole: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a word of its own."""
    model = onnx.load_model_from_string(whole)
    model.graph.initializer[0].dims.append(1)
    with raises(ModelFileError, path=PATH, key="graph"):
        open_exported(PATH, model.SerializeToString())
    assert capfd.readouterr() == ("", "")


def test_other_inputs(whole: bytes) -> None:
    model = onnx.load_model_from_string(whole)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT16
    with raises(ModelFileError, path=PATH):
        open_exported(PATH, model.SerializeToString())


def test_other_outputs(whole: bytes) -> None:
    model = onnx.load_model_from_string(whole)
    change(model, lambda entry: entry["tiles"].update(margin=4))
    predictor = Predictor(open_exported(PATH, model.SerializeToString()))
    with raises(ModelFileError, path=PATH, key="logits"):
        predictor(np.zeros((9, 9, 3), np.uint8))


SMALL_MACHINE = """
import os, sys, pathlib, numpy
from ubend.core.errors import SettingError
from ubend.inference.predictor import load
from ubend.portable import session

session._MEMORY_SHARE = 2**27 / (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
try:
    load(sys.argv[1])(numpy.zeros((9, 9, 3), numpy.uint8))
except SettingError as error:
    print(error.key)
"""


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system does not say how much memory there is")
def test_sizes_computed_from_the_image(whole: bytes, tmp_path: Path) -> None:
    """What only the run shows ends for want of memory, and not the machine with it: here 128 MiB, and 200 are asked
    for."""
    model, path = onnx.load_model_from_string(whole), tmp_path / "model.onnx"
    add_tensor(model, [0, 0, 0, 0, 0, 0, 2**12, 2**12])
    value = model.graph.node[0].output[0]
    model.graph.node[0].output[0] = "small"
    model.graph.node.insert(1, onnx.helper.make_node("Pad", ["small", "more_values"], [value]))
    path.write_bytes(model.SerializeToString())
    done = subprocess.run([sys.executable, "-c", SMALL_MACHINE, path], capture_output=True, text=True, check=True)
    assert done.stdout == "device\n"


def test_another_ubend_wrote_it(whole: bytes) -> None:
    """A newer contract is named as such; of an unknown field nothing is made."""
    model = onnx.load_model_from_string(whole)
    newer_contract(model)
    with raises(ModelFileError, key="contract", named=["pip install -U ubend"]):
        open_exported(PATH, model.SerializeToString())
    change(model, lambda entry: entry.update(contract=1, more=[1, 2]))
    open_exported(PATH, model.SerializeToString())
