"""A graph with its convolutions in 8 bits: QuantizeLinear and DequantizeLinear around them, which the engine folds.

Activations are uint8 from the least to the greatest value that was measured, with a zero point. Weights are int8 with
one scale for each output channel, and within -64..64: the products of two neighbours then fit into 16 bits, in which
processors without VNNI add them, so that every processor gives the same answer. Sums are 32-bit; biases stay float32.

The first convolutions (on the image) and the last ones (before the logits) stay in float32: they cost little and are
the most sensitive to rounding.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.models.exported import import_package

_WEIGHT_LEVELS = 64
_LAYERS = {"Conv": 0, "ConvTranspose": 1}  # operator -> axis of the output channels of its weights
_ACTIVATIONS = ("Relu", "Clip")  # computed with the convolution before them
_SAME_VALUES = ("MaxPool", "DepthToSpace", "Slice")  # their outputs are some of their inputs

Ranges = dict[str, tuple[float, float]]  # least and greatest value of each activation


@dataclass(frozen=True)
class Layer:
    """A convolution that can be computed in 8 bits.

    Attributes:
        weights: name of its weights; networks that are shown an image in several views have one layer for each view.
        output: of the convolution itself.
        activated: of the ReLU behind it, or else its own.
        input: the activation that it takes.
    """

    weights: str
    input: str
    output: str
    activated: str


def find_layers(graph: Any) -> list[Layer]:
    """The convolutions of an `onnx.GraphProto` between its first and its last ones, in their order."""
    weights = {tensor.name for tensor in graph.initializer}
    users = _find_users(graph)
    convolutions = [node for node in graph.node if node.op_type in _LAYERS and node.input[1] in weights]
    behind = _reached(graph.node, {node.output[0] for node in convolutions}, forwards=True)
    before = _reached(graph.node, {node.input[0] for node in convolutions}, forwards=False)
    layers = []
    for node in convolutions:
        output = node.output[0]
        if node.input[0] not in behind or output not in before:
            continue
        following = users.get(output, [])
        activated = len(following) == 1 and following[0].op_type in _ACTIVATIONS
        layers.append(Layer(node.input[1], node.input[0], output, following[0].output[0] if activated else output))
    return layers


def find_activations(graph: Any, layers: Iterable[Layer]) -> dict[str, str]:
    """The values that are rounded to 8 bits -> those whose range they have: before a pooling, which keeps values."""
    rounded = {name for layer in layers for name in (layer.input, layer.activated)}
    sources: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in _SAME_VALUES:
            name, source = node.output[0], sources.get(node.input[0], node.input[0])
            sources[name] = source
            if not rounded.isdisjoint((node.input[0], name)):
                rounded |= {name, node.input[0], source}
    return {name: sources.get(name, name) for name in rounded}


def quantise(graph: Any, layers: Collection[Layer], ranges: Ranges) -> None:
    """Compute the given layers of an `onnx.GraphProto` in 8 bits.

    Args:
        graph: changed in place.
        layers: some of `find_layers`.
        ranges: of the values of `find_activations`.
    """
    _Quantiser(graph, layers, ranges).run()


@dataclass
class _Quantiser:
    graph: Any
    layers: Collection[Layer]
    ranges: Ranges
    nodes: list[Any] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)  # value -> the same, quantised and back
    weights: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        onnx = import_package("onnx")
        activations = find_activations(self.graph, self.layers)
        scales = {name: scale_of(*self.ranges[source]) for name, source in activations.items()}
        tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        outputs = {layer.output for layer in self.layers}
        for node in list(self.graph.node):
            for index, name in enumerate(node.input):
                node.input[index] = self.renamed.get(name, name)
            if node.output[0] in outputs:
                node.input[1] = self._store(onnx, tensors[node.input[1]], _LAYERS[node.op_type])
            self.nodes.append(node)
            if node.output[0] in scales:
                self._round(onnx, node.output[0], *scales[node.output[0]])
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _round(self, onnx: Any, name: str, scale: np.float32, zero: np.uint8) -> None:
        ends = [self._tensor(onnx, f"{name}.{kind}", value) for kind, value in (("scale", scale), ("zero", zero))]
        node = onnx.helper.make_node
        self.nodes.append(node("QuantizeLinear", [name, *ends], [f"{name}.q"]))
        self.nodes.append(node("DequantizeLinear", [f"{name}.q", *ends], [f"{name}.dq"]))
        self.renamed[name] = f"{name}.dq"

    def _store(self, onnx: Any, tensor: Any, axis: int) -> str:
        """The name of weights in 8 bits, back in float32; once for all layers that share them."""
        name = tensor.name
        if name not in self.weights:
            values, scale = round_weights(onnx.numpy_helper.to_array(tensor), axis)
            parts = [("q", values), ("scale", scale), ("zero", np.zeros(len(scale), np.int8))]
            ends = [self._tensor(onnx, f"{name}.{kind}", value) for kind, value in parts]
            self.nodes.append(onnx.helper.make_node("DequantizeLinear", ends, [f"{name}.dq"], axis=axis))
            self.weights[name] = f"{name}.dq"
        return self.weights[name]

    def _tensor(self, onnx: Any, name: str, values: Any) -> str:
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name


def scale_of(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of values from `low` to `high`, such that 0 is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def round_weights(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights in steps, and the step of each output channel; `axis` is that of the output channels."""
    others = tuple(other for other in range(weights.ndim) if other != axis)
    scale = (np.abs(weights).max(axis=others) / _WEIGHT_LEVELS).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1.0
    steps = np.rint(weights / np.expand_dims(scale, others))
    return steps.clip(-_WEIGHT_LEVELS, _WEIGHT_LEVELS).astype(np.int8), scale


def _find_users(graph: Any) -> dict[str, list[Any]]:
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def _reached(nodes: Iterable[Any], start: set[str], *, forwards: bool) -> set[str]:
    """The values that depend on the given ones, or that these depend on; with the given ones."""
    reached = set(start)
    for node in nodes if forwards else reversed(list(nodes)):
        given, gives = (node.input, node.output) if forwards else (node.output, node.input)
        if not reached.isdisjoint(given):
            reached.update(name for name in gives if name)
    return reached
