"""Transposed convolutions that double the sides, as plain ones: engines compute these in 8 bits, and several times as
fast (onnxruntime 1.32 has no other way).

Each output pixel depends on 1x1 (of a 2x2 kernel) or 2x2 (of a 4x4 kernel) inputs, by one of four kernels. So one
convolution with four times the outputs gives all four, and DepthToSpace puts them into place; with a 4x4 kernel, one
row and column too many on each side, which are cut off. The products are the same, and as many.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.models.exported import import_package

# Kernel -> padding, and which of its rows make the upper and the lower output row, in the order of the inputs.
_KERNELS: dict[tuple[int, ...], tuple[int, tuple[tuple[int, ...], ...]]] = {
    (2, 2): (0, ((0,), (1,))),
    (4, 4): (1, ((2, 0), (3, 1))),  # of the padded grid: the row below, the row above
}


def replace_transposed(graph: Any) -> None:
    """Replace the transposed convolutions of an `onnx.GraphProto` that double the sides; it is changed in place."""
    onnx = import_package("onnx")
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes, added = list(graph.node), dict[str, Any]()
    del graph.node[:]
    for node in nodes:
        attributes = {given.name: onnx.helper.get_attribute_value(given) for given in node.attribute}
        kernel = tuple(attributes.get("kernel_shape", ()))
        if node.op_type != "ConvTranspose" or not _doubles(attributes, kernel) or node.input[1] not in tensors:
            graph.node.append(node)
            continue
        pad, rows = _KERNELS[kernel]
        weights = node.input[1]
        added[f"{weights}.up"] = regroup(onnx.numpy_helper.to_array(tensors[weights]), rows)
        given = [node.input[0], f"{weights}.up"]
        if len(node.input) > 2 and node.input[2]:
            added[f"{node.input[2]}.up"] = np.tile(onnx.numpy_helper.to_array(tensors[node.input[2]]), 4)
            given.append(f"{node.input[2]}.up")
        graph.node.extend(_make_nodes(onnx, given, node.output[0], kernel, pad))
        if pad:
            added |= {"up.start": np.array([1, 1]), "up.end": np.array([-1, -1]), "up.axes": np.array([2, 3])}
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *(onnx.numpy_helper.from_array(array, name) for name, array in added.items())])


def regroup(weights: NDArray[np.float32], rows: tuple[tuple[int, ...], ...]) -> NDArray[np.float32]:
    """(inputs, outputs, kH, kW) of a transposed convolution -> (4 outputs, inputs, kH / 2, kW / 2)."""
    parts = [weights[:, :, upper][:, :, :, left] for upper in rows for left in rows]
    return np.ascontiguousarray(np.concatenate(parts, axis=1).transpose(1, 0, 2, 3))


def _doubles(attributes: dict[str, Any], kernel: tuple[int, ...]) -> bool:
    if kernel not in _KERNELS:
        return False
    plain = {"group": 1, "dilations": [1, 1], "output_padding": [0, 0], "strides": [], "pads": [0] * 4}
    wanted = {**plain, "strides": [2, 2], "pads": [_KERNELS[kernel][0]] * 4}
    return all(attributes.get(name, plain[name]) == value for name, value in wanted.items())


def _make_nodes(onnx: Any, given: list[str], output: str, kernel: tuple[int, ...], pad: int) -> list[Any]:
    make = onnx.helper.make_node
    steps = [f"{output}.four", f"{output}.whole" if pad else output]
    nodes = [
        make("Conv", given, steps[:1], kernel_shape=[side // 2 for side in kernel], pads=[pad] * 4),
        make("DepthToSpace", steps[:1], steps[1:], blocksize=2),
    ]
    if pad:
        nodes.append(make("Slice", [steps[1], "up.start", "up.end", "up.axes"], [output]))
    return nodes
