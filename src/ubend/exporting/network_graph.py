"""A network as an ONNX graph: padded raw values in, logits out. Everything around it is in `graph.py`.

The sides stay open, as multiples of what the network halves: then no padding is left to trace, and each layer's own
padding is a constant. N images, C channels, K classes.
"""

import copy
import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.models.exported import import_package
from ubend.models.segmentation_net import SegmentationNet
from ubend.portable.onnx_scan import OPSET

CORE_INPUT, CORE_OUTPUT = "values", "core_logits"


class _Tiles(nn.Module):
    """`forward_tiles` as a module, whose input already has all its margin and padding."""

    def __init__(self, net: SegmentationNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net.forward_tiles(image)


def trace_network(net: SegmentationNet) -> Any:
    """The graph of one network: an `onnx.ModelProto` of plain nodes and of tensors whose bytes are in it.

    Its input is (N, C, h, w) float32 raw values with sides of k * `input_multiple` + `edge_px` + 2 * `margin`, its
    output (N, K, h - 2 * margin, w - 2 * margin) float32 logits.

    Raises:
        SettingError: the network uses what ONNX or the exporter does not have.
        MissingPackageError: see `import_package`.
    """
    onnx = import_package("onnx")
    import_package("onnxscript")
    module = _Tiles(copy.deepcopy(net).cpu().float()).eval()
    multiple, rest = net.input_multiple, net.edge_px + 2 * net.margin
    example = torch.zeros(2, net.channels, 2 * multiple + rest, 3 * multiple + rest)
    sides = [multiple * torch.export.Dim(name) + rest if multiple > 1 else torch.export.Dim(name) for name in "hw"]
    disabled = logging.root.manager.disable
    logging.disable()  # the one line is ours
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            shapes = ({0: torch.export.Dim("n"), 2: sides[0], 3: sides[1]},)
            program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[CORE_INPUT],
                output_names=[CORE_OUTPUT],
                verbose=False,
            )
            assert made is not None
            model = made.model_proto
            return onnx.load_model_from_string(model.SerializeToString())
    except Exception as error:  # whatever the network's own code, torch and the exporter raise
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        line = _("the network cannot be exported to ONNX: {reason}")
        raise SettingError(line.format(reason=cause[:300]), key="network") from error
    finally:
        logging.disable(disabled)


def fold_constants(graph: Any) -> None:
    """Turn the Constant nodes of an `onnx.GraphProto` into tensors, and leave out what only describes it."""
    helper = import_package("onnx.numpy_helper")
    nodes = list(graph.node)
    del graph.node[:], graph.value_info[:], graph.metadata_props[:]
    for node in nodes:
        if node.op_type == "Constant":
            graph.initializer.append(helper.from_array(_constant(node, helper), node.output[0]))
            continue
        del node.metadata_props[:]
        for name in ("doc_string", "name"):
            node.ClearField(name)
        graph.node.append(node)
    tensors = [helper.from_array(helper.to_array(tensor), tensor.name) for tensor in graph.initializer]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _constant(node: Any, helper: Any) -> np.ndarray[Any, Any]:
    (value,) = node.attribute
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if value.name == "value":
        array: np.ndarray[Any, Any] = helper.to_array(value.t)
        return array
    attribute_values = {
        "value_int": value.i,
        "value_ints": value.ints,
        "value_float": value.f,
        "value_floats": value.floats,
    }
    return np.array(attribute_values[value.name], kinds[value.name])
