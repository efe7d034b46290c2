"""Exported models made by code, without a training."""

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ubend.exporting.graph import build_graph, to_bytes
from ubend.exporting.network_graph import trace_network
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle
from ubend.models.segmentation_net import SegmentationNet
from ubend.portable.openvino_session import import_openvino
from ubend.tasks.export import contract_text, describe

onnx: Any
onnxruntime: Any
try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401

    _IS_HERE = True
except ImportError:
    onnx = onnxruntime = None
    _IS_HERE = False
openvino: Any = None
with suppress(ImportError):
    openvino = import_openvino(importlib.import_module)
NEEDS_OPENVINO = pytest.mark.skipif(openvino is None, reason="the extra `openvino` is not installed")
NEEDS_EXPORT = pytest.mark.skipif(not _IS_HERE, reason="the extra `export` is not installed")


def settle(net: SegmentationNet, top: float = 255.0) -> SegmentationNet:
    """Statistics that fit images of values up to `top`, and weights that tell classes apart."""
    side = 2 * net.input_multiple + net.edge_px + 2 * net.margin
    with torch.no_grad():
        for member in net.averaging().members:
            for _pass in range(3):
                member.train().forward_tiles(torch.rand(2, net.channels, side, side) * top)
    return net.eval()


def make_bundle(net: SegmentationNet, dtype: str = "uint8", **stored: Any) -> Bundle:
    names = [f"class {number}" for number in range(net.classes)]
    labels = make_label_map(list(range(net.classes)), names)
    return Bundle(net, labels, Sizing(32, True, net.channels), dtype=dtype, **stored)


def make_graph(bundle: Bundle) -> Any:
    """An `onnx.ModelProto`, as `ubend export` makes it."""
    cores = [trace_network(member) for member in bundle.model.averaging().members]
    return build_graph(bundle.model, cores, bundle.dtype, tiles=bundle.keeps_scale)


def make_bytes(bundle: Bundle) -> bytes:
    return to_bytes(make_graph(bundle), contract_text(describe(Path("none"), bundle, "fp32")))
