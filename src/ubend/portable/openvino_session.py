"""Exported models, computed by OpenVINO on the CPU, in the precision that the file says and no other."""

import math
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import refusal
from .i18n import _
from .session import INPUT, OUTPUTS, Run, memory_limit

_TELEMETRY = "openvino_telemetry"
_PRECISIONS = {"bf16": "bf16"}  # of a file -> what OpenVINO computes in; of all others float32, and int8 where it says
_CRASHES_BELOW_PX = 128  # sides of images; see `can_crash`
_WORTH_FIXING = 512 * 512  # pixels of a batch; see `open_openvino`
_SHAPES = 2  # for which a graph with fixed sides is kept; each has its own memory for all feature maps
_TYPES = {"uint8": "u8", "uint16": "u16", "float32": "f32"}


def import_openvino(load_package: Callable[[str], Any]) -> Any:
    """The module openvino, which else reports to its maker, over the network, that it was imported.

    `load_package` is as in `open_engine`.
    """
    if _TELEMETRY in sys.modules:
        return load_package("openvino")
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # OpenVINO has a stand-in where it is missing
    try:
        return load_package("openvino")
    finally:
        del sys.modules[_TELEMETRY]


@cache
def shared_core(openvino: Any) -> Any:
    """OpenVINO's `Core`, one for the process, which is never released.

    Its CPU plugin (2026.4) gives the thread that loads it a stack for signal handlers, and puts back the previous one
    when it is released. Of two that are released in the order in which they were made, the second puts back the freed
    stack of the first, and the next signal, such as Ctrl-C, ends the process with a segmentation fault.
    """
    return openvino.Core()


def has_bfloat16(openvino: Any) -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor; elsewhere it takes float32."""
    return "BF16" in shared_core(openvino).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def can_crash(openvino: Any, precision: str) -> bool:
    """Whether images with small sides may crash a graph whose sides are not fixed.

    On processors with AMX, OpenVINO 2026.1 to 2026.3 end the process with a segmentation fault when they compute such
    an image (64 px, but not 96) in 8 bits (openvino#37577); 2026.4.1 did not with the tutorial's network. It has no
    property for AMX, but these processors compute in float16, too.
    """
    return precision == "int8" and "FP16" in shared_core(openvino).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_openvino(
    openvino: Any, path: Path, data: bytes, *, precision: str, dtype: str, classes: int, margin: int, threads: int
) -> Run:
    """The graph as a function of images: (N, C, H, W) values -> (N, classes, H - 2 margin, W - 2 margin) logits.

    From the second batch of a shape on, large images in 8 bits are computed by a graph that is compiled for this shape
    alone, if memory suffices for several. It takes up to a quarter less time, and compiling it about half a second; the
    logits are equal to the bit.

    Args:
        openvino: the module.
        precision: of the file.
        path, data, dtype, classes, margin, threads: see `open_session`.
    Raises:
        ModelFileError: OpenVINO does not load it, or it has other inputs and outputs than these.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS.get(precision, "f32"),
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    try:
        core = shared_core(openvino)
        model = core.read_model(data)
        inputs = [(given.any_name, given.get_element_type().get_type_name()) for given in model.inputs]
        outputs = {name: given for given in model.outputs for name in given.names}
        fitting = inputs == [(INPUT, _TYPES[dtype])] and len(model.outputs) == len(OUTPUTS) and {*OUTPUTS} <= {*outputs}
        if fitting:
            model = openvino.Model([outputs[OUTPUTS[0]]], model.get_parameters(), "ubend")
            request = core.compile_model(model, "CPU", settings).create_infer_request()
    except Exception as error:  # of classes that OpenVINO does not document
        raise refusal(path, None, _first_line(error)) from error
    if not fitting:
        raise refusal(path, INPUT, _("other inputs and outputs than the header says"))
    limit = memory_limit() or math.inf
    peak_bytes = dict[tuple[int, ...], float]()  # of the shapes so far; 0 where memory is not limited
    fixes_small_sides = can_crash(openvino, precision)

    @lru_cache(_SHAPES)
    def request_for(shape: tuple[int, ...]) -> Any:
        sized = model.clone()
        sized.reshape(list(shape))
        return core.compile_model(sized, "CPU", settings).create_infer_request()

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        try:
            repeats = images.shape in peak_bytes
            if not repeats:
                peak = _peak_bytes(model, images.shape) if limit < math.inf else 0.0
                if peak > limit:
                    raise MemoryError
                peak_bytes[images.shape] = peak
            is_worth = precision == "int8" and images.size // images.shape[1] >= _WORTH_FIXING
            # the graphs for other shapes and the one for any shape keep their memory
            fits = (_SHAPES + 1) * peak_bytes[images.shape] <= limit
            is_small = min(images.shape[2:]) < _CRASHES_BELOW_PX
            is_fixed = (repeats and is_worth and fits) or (fixes_small_sides and is_small)
            chosen = request_for(images.shape) if is_fixed else request
            logits: NDArray[np.float32] = chosen.infer({INPUT: images})[0]
        except MemoryError:
            raise
        except Exception as error:
            if "alloc" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise refusal(path, None, _first_line(error)) from error
        sides = (side - 2 * margin for side in images.shape[2:])
        if logits.shape != (len(images), classes, *sides):
            raise refusal(path, OUTPUTS[0], _("other inputs and outputs than the header says"))
        return logits

    return run


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _peak_bytes(model: Any, shape: tuple[int, ...]) -> float:
    """Bytes of the values of a graph that are needed at the same time, for an input of this shape; infinite if that
    cannot be said before it is run."""
    sized = model.clone()
    sized.reshape(list(shape))
    operations = sized.get_ordered_ops()
    last: dict[tuple[str, int], int] = {}
    for step, operation in enumerate(operations):
        for given in operation.inputs():
            source = given.get_source_output()
            last[source.get_node().get_name(), source.get_index()] = step
    held, peak, ends = 0, 0, dict[int, int]()
    for step, operation in enumerate(operations):
        for output in () if operation.get_type_name() == "Constant" else operation.outputs():
            if not output.get_partial_shape().is_static:
                return math.inf
            size = math.prod(output.get_shape()) * output.get_element_type().size
            held += size
            end = last.get((operation.get_name(), output.get_index()), step)
            ends[end] = ends.get(end, 0) + size
        peak = max(peak, held)
        held -= ends.pop(step, 0)
    return peak
