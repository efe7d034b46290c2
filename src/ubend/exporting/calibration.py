"""What 8 bits need to know of a graph's values: the ranges of the activations, and which layers suffer most.

Both are measured by onnxruntime on inputs of the network, made from training images as for a prediction. The outputs of
the sessions are single numbers, so memory does not grow with the activations.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ubend.exporting.proof import ProofImage
from ubend.exporting.quantise import Layer, Ranges, find_activations, quantise
from ubend.inference.predictor import Predictor
from ubend.models.exported import import_package, open_exported
from ubend.portable.session import INPUT

MAX_IMAGES = 64
MAX_PIXELS = 2e6  # of the network's input, over all images


def collect_inputs(data: bytes, images: Sequence[ProofImage]) -> list[NDArray[Any]]:
    """The (N, C, H, W) inputs that a prediction of the images gives the graph of an exported file."""
    inputs: list[NDArray[Any]] = []

    def record(images: NDArray[Any]) -> NDArray[np.float32]:
        inputs.append(images.copy())
        return run(images)

    bundle = open_exported(Path("calibration.onnx"), data)
    exported: Any = bundle.model  # its `run` computes the graph
    run: Callable[[NDArray[Any]], NDArray[np.float32]] = exported.run
    exported.run = record
    predictor = Predictor(bundle, "cpu")
    for image in images:
        for _logits in predictor.run([predictor.resize_input(image.image)]):
            if sum(map(_pixels, inputs)) > MAX_PIXELS:
                return inputs
    return inputs


def measure_ranges(model: Any, layers: Collection[Layer], inputs: Sequence[NDArray[Any]]) -> Ranges:
    """The least and the greatest value of each activation of an `onnx.ModelProto`, as `quantise` takes them.

    The values are averaged over the images, so that one image with extreme values does not reduce the precision of all
    others.
    """
    names = sorted({*find_activations(model.graph, layers).values()})
    probe = copy_model(model)
    for name in names:
        for operator in ("ReduceMin", "ReduceMax"):
            _add_reduction(probe, operator, name, f"{name}.{operator}")
    rows = _run(probe, [f"{name}.{operator}" for name in names for operator in ("ReduceMin", "ReduceMax")], inputs)
    low, high = rows.reshape(len(inputs), len(names), 2).mean(axis=0).T
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(names)}


def rank_layers(
    model: Any, layers: Sequence[Layer], ranges: Ranges, inputs: Sequence[NDArray[Any]]
) -> list[list[Layer]]:
    """Layers from the one that 8 bits change most to the least changed; those with the same weights together.

    A layer's change is the mean square of the difference, of its output for the same input, over that of the output.
    """
    onnx = import_package("onnx")
    rounded, probe = copy_model(model), copy_model(model)
    quantise(rounded.graph, layers, ranges)
    outputs = {layer.output for layer in layers}
    known = {name for node in model.graph.node for name in node.output}
    for tensor in rounded.graph.initializer:
        if not any(tensor.name == other.name for other in probe.graph.initializer):
            probe.graph.initializer.append(tensor)
    for node in rounded.graph.node:  # the rounded layers beside the plain ones, each for the plain one's input
        if node.output[0] not in known:
            probe.graph.node.append(node)
        elif node.output[0] in outputs:
            node.output[0] += ".8bit"
            probe.graph.node.append(node)
    for layer in layers:
        probe.graph.node.append(
            onnx.helper.make_node("Sub", [f"{layer.output}.8bit", layer.output], [f"{layer.output}.off"])
        )
        for name in (f"{layer.output}.off", layer.output):
            _add_reduction(probe, "ReduceSumSquare", name, f"{name}.power")
    names = [f"{layer.output}{kind}.power" for layer in layers for kind in (".off", "")]
    off, power = _run(probe, names, inputs).reshape(len(inputs), len(layers), 2).sum(axis=0).T
    groups: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        groups.setdefault(layer.weights, []).append(index)
    change = off / np.maximum(power, np.finfo(np.float32).tiny)
    ordered = sorted(groups.values(), key=lambda indices: -float(change[indices].max()))
    return [[layers[index] for index in indices] for indices in ordered]


def _pixels(images: NDArray[Any]) -> int:
    return int(images.size // images.shape[1])


def copy_model(model: Any) -> Any:
    """A copy of an `onnx.ModelProto`."""
    copied = import_package("onnx").ModelProto()
    copied.CopyFrom(model)
    return copied


def _add_reduction(model: Any, operator: str, value: str, name: str) -> None:
    """One more output of a graph: all of a value reduced to a number."""
    onnx = import_package("onnx")
    model.graph.node.append(onnx.helper.make_node(operator, [value], [name], keepdims=0))
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))


def _run(model: Any, outputs: list[str], inputs: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """(inputs, outputs) numbers."""
    runtime = import_package("onnxruntime")
    options, run_options = runtime.SessionOptions(), runtime.RunOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    run_options.only_execute_path_to_fetches = True
    session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    rows = [session.run(outputs, {INPUT: images}, run_options) for images in inputs]
    return np.array(rows, np.float64).reshape(len(inputs), len(outputs))
