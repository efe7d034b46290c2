"""Checks of an ONNX file before anything of it is run, with memory that does not depend on what the file claims.

The file is walked as protobuf fields, in place: nothing is built from it but its metadata, and the names of values.
Only what `ubend.exporting` writes is let through: operators of a list, tensors whose bytes are in the file and as many
as their shapes say, no functions, subgraphs or training, and no node that could be computed while the file is loaded.

Source of the field numbers: onnx.proto of ONNX 1.23, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from .i18n import _

OPSET = 18  # of what we write; OpenVINO, TensorRT and onnxruntime-web know it
MAX_BYTES = 2**31 - 1  # of a protobuf message
_MAX_NODES = 100_000  # five members of eight views of EfficientNet-Lite 2 have 11,000
_MAX_TEXT = 2**23  # bytes of metadata; the header of a model file takes 2**22 characters at most
_MAX_STRUCTURE = 2**26  # bytes of everything but metadata and tensors
_MAX_WHOLE = 2**20  # of whole numbers: shapes, strides, pads
_FOREVER = 2**62  # "to the end", of a slice
# fmt: off
_OPERATORS = frozenset((
    "Abs", "Add", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat",
    "ConstantOfShape", "Conv", "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Div", "Elu", "Erf", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log",
    "MatMul", "Max", "MaxPool", "Min", "Mish", "Mod", "Mul", "Neg", "PRelu", "Pad", "Pow", "QuantizeLinear",
    "Range", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "ScatterND", "Selu",
    "Shape", "Sigmoid", "Sign", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh",
    "Transpose", "Unsqueeze", "Where",
))
# fmt: on
_DECODERS = ("Cast", "DequantizeLinear")  # of weights
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}  # of TensorProto.DataType
_INT64 = 7
# The fields that may be there: those that we write.
_MODEL, _GRAPH, _NODE = {1, 2, 3, 7, 8, 14}, {1, 2, 5, 11, 12}, {1, 2, 3, 4, 5, 7}
_ATTRIBUTE, _TENSOR = {1, 2, 3, 4, 7, 8, 20}, {1, 2, 8, 9}


class OnnxRefusedError(ValueError):
    """An ONNX file that is not loaded; the text says why, in the user's language."""


@dataclass
class _Seen:
    """What was found so far.

    Attributes:
        constants: names of the tensors.
        decoded: those of them that a node widens to float32: weights of half precision, or of 8 bits.
        computed: names of values that do.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    decoded: set[str] = field(default_factory=set)
    computed: set[str] = field(default_factory=set)
    nodes: int = 0
    structure: int = 0
    text: int = 0


def scan(data: memoryview, entry: str) -> str | None:
    """A metadata entry of an ONNX file that is safe to load; None: it has no such entry, and its graph was not read.

    Args:
        data: the whole file.
        entry: the key of the metadata entry.
    Raises:
        OnnxRefusedError: it is cut off or damaged, or holds what ubend does not write.
    """
    seen, graph = _Seen(), None
    for number, value in _fields(data, _MODEL):
        if number == 7:
            if graph is not None:
                raise OnnxRefusedError(_("two graphs"))
            graph = _message(value)
        elif number == 8:
            _check_opset(_message(value))
        elif number == 14:
            _add_metadata(_message(value), seen)
    if graph is None:
        raise OnnxRefusedError(_("no graph"))
    if entry in seen.metadata:
        _scan_graph(graph, seen)
    return seen.metadata.get(entry)


def _scan_graph(graph: memoryview, seen: _Seen) -> None:
    nodes: list[memoryview] = []
    for number, value in _fields(graph, _GRAPH):
        part = _message(value)
        seen.structure += 64 + len(part)
        if number == 5:
            name, size = _check_tensor(part)
            seen.constants.add(name)
            seen.structure -= size
        if number == 1:
            nodes.append(part)
        elif number == 11:
            seen.computed.add(next(_text(of) for key, of in _fields(part, {1, 2}) if key == 1))
        if len(nodes) > _MAX_NODES or seen.structure > _MAX_STRUCTURE:
            raise OnnxRefusedError(_("more nodes than any network has"))
    for node in nodes:
        _check_node(node, seen)


def _check_node(node: memoryview, seen: _Seen) -> None:
    """Refuse a node of another kind, or one that could be computed without an image."""
    inputs, outputs, operator = list[str](), list[str](), ""
    for number, value in _fields(node, _NODE):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            operator = _text(value)
        elif number == 5:
            _check_attribute(_message(value))
        elif number == 7 and _text(value):
            raise OnnxRefusedError(_("an operator of another library: {name}").format(name=_text(value)))
    if operator not in _OPERATORS:
        raise OnnxRefusedError(_("an operator that ubend does not use: {name}").format(name=operator))
    if operator in _DECODERS and seen.constants.issuperset(inputs) and not seen.decoded.issuperset(inputs[:1]):
        seen.decoded.update(inputs[:1])  # each once, so that memory stays within a few times the size of the file
        return
    if not seen.computed.intersection(inputs):
        raise OnnxRefusedError(_("a node that does not depend on the image"))
    seen.computed.update(outputs)


def _check_attribute(attribute: memoryview) -> None:
    for number, value in _fields(attribute, _ATTRIBUTE):
        if number == 3:
            _check_whole(_number(value))
        elif number == 8:
            for whole in [value] if isinstance(value, int) else _varints(value):
                _check_whole(whole)


def _check_tensor(tensor: memoryview) -> tuple[str, int]:
    """Name and bytes of a tensor; refused where its bytes are elsewhere, or not as many as its shape says."""
    dims, kind, name, raw = list[int](), 0, "", memoryview(b"")
    for number, value in _fields(tensor, _TENSOR):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
            if len(dims) > 8:
                raise OnnxRefusedError(_("a tensor of more than 8 dimensions"))
        elif number == 2:
            kind = _number(value)
        elif number == 8:
            name = _text(value)
        else:
            raw = _message(value)
    if kind not in _ITEM_BYTES or math.prod(dims) * _ITEM_BYTES[kind] != len(raw):
        raise OnnxRefusedError(_("the bytes of the tensor {name} are not those of its shape").format(name=name[:100]))
    if kind == _INT64:
        for whole in raw.cast("q"):
            _check_whole(whole)
    return name, len(raw)


def _check_whole(value: int) -> None:
    value = value - 2**64 if value >= 2**63 else value
    if _MAX_WHOLE < abs(value) < _FOREVER:
        raise OnnxRefusedError(_("a size of {value}").format(value=value))


def _check_opset(entry: memoryview) -> None:
    domain, version = "", 0
    for number, value in _fields(entry, {1, 2}):
        domain, version = (_text(value), version) if number == 1 else (domain, _number(value))
    if domain or version != OPSET:
        raise OnnxRefusedError(_("an operator of another library: {name}").format(name=f"{domain} {version}".strip()))


def _add_metadata(entry: memoryview, seen: _Seen) -> None:
    seen.text += len(entry)
    if seen.text > _MAX_TEXT:
        raise OnnxRefusedError(_("{count} bytes of metadata").format(count=seen.text))
    key_and_value = {number: _text(value) for number, value in _fields(entry, {1, 2})}
    seen.metadata[key_and_value.get(1, "")] = key_and_value.get(2, "")


def _fields(data: memoryview, known: set[int]) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field of a message: a whole number, or the bytes of what has a length or is a float."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if number not in known:
            raise OnnxRefusedError(_("a part that ubend does not write (field {number})").format(number=number))
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind not in (1, 2, 5):
            raise OnnxRefusedError(_("cut off or damaged"))
        size = 8 if kind == 1 else 4
        if kind == 2:
            size, place = _varint(data, place)
        if size > len(data) - place:
            raise OnnxRefusedError(_("cut off or damaged"))
        yield number, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise OnnxRefusedError(_("cut off or damaged"))


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise OnnxRefusedError(_("cut off or damaged"))
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise OnnxRefusedError(_("cut off or damaged"))
    return value


def _text(value: int | memoryview) -> str:
    try:
        return str(_message(value), "utf-8")
    except UnicodeDecodeError as error:
        raise OnnxRefusedError(_("cut off or damaged")) from error
