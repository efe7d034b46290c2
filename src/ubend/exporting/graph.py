"""The graph of an exported file: image -> normalise, pad, networks, views, mean -> logits, probabilities, class index.

Normalisation is the first thing in each network's own graph; padding mirrors the image, as the network does, which
gives the same values before normalisation as after it. N images, C channels, K classes, H x W pixels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.exporting.network_graph import CORE_INPUT, CORE_OUTPUT, fold_constants
from ubend.models.exported import import_package
from ubend.models.segmentation_net import SegmentationNet
from ubend.portable.contract import ENTRY
from ubend.portable.onnx_scan import MAX_BYTES, OPSET
from ubend.portable.session import INPUT, OUTPUTS
from ubend.portable.version import __version__

_IR_VERSION = 8  # that of opset 18: read by every onnxruntime since 1.14
_LARGEST_HALF = 65504.0
_ROWS, _COLUMNS = 2, 3  # axes


class _Builder:
    """Nodes and tensors of a graph; values are named by numbers."""

    def __init__(self) -> None:
        self._onnx = import_package("onnx")
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """The value of one more node."""
        output = output or self.name()
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, values: Any, kind: Any = np.int64) -> str:
        """A tensor; equal ones are one."""
        array = np.array(values, kind)
        name = f"c_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if len(name) > 200:
            name = self.name()
        self.tensors[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def paste(self, graph: Any, prefix: str, value: str) -> str:
        """The output of a network for one more input; its tensors are shared by all pastes of this prefix."""
        renamed = {tensor.name: f"{prefix}.{tensor.name}" for tensor in graph.initializer}
        for tensor in graph.initializer:
            if renamed[tensor.name] not in self.tensors:
                copied = self._onnx.TensorProto()
                copied.CopyFrom(tensor)
                copied.name = renamed[tensor.name]
                self.tensors[copied.name] = copied
        names = renamed | {CORE_INPUT: value, "": ""}
        for node in graph.node:
            copied = self._onnx.NodeProto()
            copied.CopyFrom(node)
            for index, name in enumerate(node.input):
                copied.input[index] = names[name]
            for index, name in enumerate(node.output):
                names[name] = copied.output[index] = self.name() if name else ""
            self.nodes.append(copied)
        return names[CORE_OUTPUT]


def build_graph(net: SegmentationNet, cores: Sequence[Any], dtype: str, *, tiles: bool) -> Any:
    """The whole graph as an `onnx.ModelProto`: (N, C, H, W) -> the `OUTPUTS` of docs/deploy.md.

    Args:
        net: the model.
        cores: `trace_network` of each of `net.averaging().members`.
        dtype: of the images: uint8, uint16 or float32.
        tiles: whether images come with their margin, if the network takes one; else they are mirrored here.
    Raises:
        SettingError: it is too large for one file.
    """
    onnx, build, averaging = import_package("onnx"), _Builder(), net.averaging()
    for core in cores:
        fold_constants(core.graph)
    size = sum(len(tensor.raw_data) for core in cores for tensor in core.graph.initializer)
    if size > MAX_BYTES - 2**26:
        line = _("the model has {size:.1f} GB of weights, but one ONNX file holds 2; train a narrower one (--width)")
        raise SettingError(line.format(size=size / 1e9), key="model.width")
    values, total = build.add("Cast", INPUT, to=onnx.TensorProto.FLOAT), ""
    for number, core in enumerate(cores):
        for turns, mirrored in averaging.views:
            shown = _turn(build, values, turns, mirrored)
            logits = _apply(build, net, core.graph, f"n{number}", shown, tiles=tiles)
            if averaging.class_bias is None:
                total = logits
                continue
            prob = _turn_back(build, build.add("Softmax", logits, axis=1), turns, mirrored)
            total = build.add("Add", total, prob) if total else prob
    if averaging.class_bias is not None:
        mean = build.add("Div", total, build.constant(len(cores) * len(averaging.views), np.float32))
        least = build.constant(np.finfo(np.float32).tiny, np.float32)
        bias = build.constant(averaging.class_bias.cpu().numpy().reshape(-1, 1, 1), np.float32)
        total = build.add("Add", build.add("Log", build.add("Clip", mean, least)), bias)
    logits, prob, index = OUTPUTS
    build.add("Identity", total, output=logits)
    build.add("Softmax", total, axis=1, output=prob)
    best = build.add("ArgMax", total, axis=1, keepdims=0)
    build.add("Cast", best, to=onnx.TensorProto.UINT8, output=index)
    return _finish(onnx, build, net, dtype)


def _finish(onnx: Any, build: _Builder, net: SegmentationNet, dtype: str) -> Any:
    kinds = {"uint8": onnx.TensorProto.UINT8, "uint16": onnx.TensorProto.UINT16, "float32": onnx.TensorProto.FLOAT}
    value, (logits, prob, index) = onnx.helper.make_tensor_value_info, OUTPUTS
    graph = onnx.helper.make_graph(
        build.nodes,
        "ubend",
        [value(INPUT, kinds[dtype], ["n", net.channels, "height", "width"])],
        [
            value(logits, onnx.TensorProto.FLOAT, ["n", net.classes, "out_height", "out_width"]),
            value(prob, onnx.TensorProto.FLOAT, ["n", net.classes, "out_height", "out_width"]),
            value(index, onnx.TensorProto.UINT8, ["n", "out_height", "out_width"]),
        ],
        list(build.tensors.values()),
    )
    return onnx.helper.make_model(
        graph,
        producer_name="ubend",
        producer_version=__version__,
        ir_version=_IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )


def store_weights(model: Any, precision: Literal["fp16", "bf16"]) -> None:
    """Store the weights of a graph in half precision, or as bfloat16; a node makes them float32 again.

    What has fewer than two dimensions (biases, means) stays as it is, and so do weights that half precision has no
    number for.
    """
    onnx = import_package("onnx")
    casts = []
    for tensor in model.graph.initializer:
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.ndim < 2 or array.size < 256 or np.abs(array).max() > _LARGEST_HALF:
            continue
        name = tensor.name
        kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
        stored = array.astype(np.float16) if precision == "fp16" else _to_bfloat16(array)
        tensor.CopyFrom(onnx.helper.make_tensor(f"{name}.half", kind, array.shape, stored.tobytes(), raw=True))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, of two the even one."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def round_to_bfloat16(graph: Any) -> None:
    """Round what the nodes of an `onnx.GraphProto` compute to bfloat16, and add up in float32, as processors with
    bfloat16 do; from the first convolution to the logits. The graph is changed in place."""
    onnx = import_package("onnx")
    first = {node.input[0] for node in graph.node if node.op_type == "Conv"}
    nodes, behind = list(graph.node), set[str]()
    del graph.node[:]
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in behind:
                node.input[index] = f"{name}.rounded"
        graph.node.append(node)
        depends = any(name.removesuffix(".rounded") in behind for name in node.input)
        value = node.output[0]
        if value not in OUTPUTS and node.op_type not in ("ArgMax", "Shape") and (depends or value in first):
            behind.add(value)
            for given, rounded, kind in (
                (value, f"{value}.bits", onnx.TensorProto.BFLOAT16),
                (f"{value}.bits", f"{value}.rounded", onnx.TensorProto.FLOAT),
            ):
                graph.node.append(onnx.helper.make_node("Cast", [given], [rounded], to=kind))


def to_bytes(model: Any, metadata: str) -> bytes:
    """The file: a graph with its metadata entry."""
    import_package("onnx").helper.set_model_props(model, {ENTRY: metadata})
    data: bytes = model.SerializeToString()
    return data


def _apply(build: _Builder, net: SegmentationNet, core: Any, prefix: str, values: str, *, tiles: bool) -> str:
    """Logits of an image of any size: mirrored, through the network, cut to the image."""
    if (net.margin and tiles) or net.input_multiple == 1:
        return build.paste(core, prefix, values)
    sides = build.add("Shape", values, start=2, end=4)
    for axis in (_ROWS, _COLUMNS):
        values = _mirror(build, net, values, axis)
    logits = build.paste(core, prefix, values)
    return build.add("Slice", logits, build.constant([0, 0]), sides, build.constant([_ROWS, _COLUMNS]))


def _mirror(build: _Builder, net: SegmentationNet, values: str, axis: int) -> str:
    """As `ubend.models.segmentation_net.pad_to_multiple` and `ubend.models.paper.mirror_to_fit`, along one axis."""
    unit = build.constant([1])
    side = build.add("Shape", values, start=axis, end=axis + 1)
    steps = build.add("Div", build.add("Add", side, build.constant([net.input_multiple - net.edge_px - 1])),
                      build.constant([net.input_multiple]))  # fmt: skip
    steps = build.add("Max", steps, build.constant([0]))
    inner = build.add("Mul", steps, build.constant([net.input_multiple]))
    end = build.add("Add", inner, build.constant([net.edge_px + net.margin]))
    # without a margin the image itself is kept, and only what lies beyond it is gathered: gathering all takes 15 times
    # as long as copying
    begin = build.constant(-net.margin) if net.margin else build.add("Squeeze", side)
    places = build.add("Range", begin, build.add("Squeeze", end), build.constant(1))
    last = build.add("Sub", side, unit)
    there_and_back = build.add("Max", build.add("Mul", last, build.constant([2])), unit)
    places = build.add("Mod", places, there_and_back)
    places = build.add("Min", places, build.add("Sub", there_and_back, places), last)
    mirrored = build.add("Gather", values, places, axis=axis)
    return mirrored if net.margin else build.add("Concat", values, mirrored, axis=axis)


def _turn(build: _Builder, values: str, turns: int, mirrored: bool) -> str:
    """Quarter turns against the clock, then left and right exchanged if asked; as `torch.rot90` and `flip`."""
    if turns % 2:
        values = build.add("Transpose", values, perm=[0, 1, 3, 2])
    flipped = {0: [], 1: [_ROWS], 2: [_ROWS, _COLUMNS], 3: [_COLUMNS]}[turns % 4]
    return _flip(build, values, sorted({*flipped} ^ ({_COLUMNS} if mirrored else set())))


def _turn_back(build: _Builder, values: str, turns: int, mirrored: bool) -> str:
    values = _flip(build, values, [_COLUMNS] if mirrored else [])
    return _turn(build, values, -turns % 4, False)


def _flip(build: _Builder, values: str, axes: Sequence[int]) -> str:
    if not axes:
        return values
    count, least = len(axes), -(2**63)
    ends = build.constant([-1] * count), build.constant([least] * count), build.constant(list(axes))
    return build.add("Slice", values, *ends, build.constant([-1] * count))
