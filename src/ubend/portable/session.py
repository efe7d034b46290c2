"""Exported models in onnxruntime: read with checks, and run within the machine's memory."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import ENTRY, Contract, read_contract, refusal
from .errors import DataError, ModelFileError, reason
from .files import regular_file
from .i18n import _
from .onnx_scan import MAX_BYTES, OnnxRefusedError, scan

INPUT, OUTPUTS = "image", ("logits", "probabilities", "class_index")
_MEMORY_SHARE = 0.8  # of the machine's memory, for the values inside a graph

Run = Callable[[NDArray[Any]], NDArray[np.float32]]


def read_exported(path: Path) -> bytes:
    """The bytes of an exported file.

    Raises:
        ModelFileError: it cannot be read, or is too large for its format.
    """
    try:
        size = os.path.getsize(regular_file(path))
        if size > MAX_BYTES:
            raise refusal(path, None, _("{count} bytes").format(count=size))
        return path.read_bytes()
    except OSError as error:
        cause = _("no such model file") if isinstance(error, FileNotFoundError) else reason(error)
        raise ModelFileError(_("{path}: {reason}").format(path=path, reason=cause), path=path) from error


def check_exported(path: Path, data: bytes) -> Contract:
    """The contract of an exported file that is safe to load; `path` is for messages.

    Raises:
        ModelFileError: it is cut off, not ours, of a newer contract, or holds what ubend does not write.
    """
    try:
        text = scan(memoryview(data), ENTRY)
    except OnnxRefusedError as error:
        raise refusal(path, None, str(error)) from error
    if text is None:
        line = _("{path}: an ONNX file, but not exported by ubend; `ubend export RUN` writes one")
        raise ModelFileError(line.format(path=path), path=path, key="metadata")
    return read_contract(path, text)


def open_session(runtime: Any, path: Path, data: bytes, *, dtype: str, classes: int, margin: int, threads: int) -> Run:
    """The graph as a function of images: (N, C, H, W) values -> (N, classes, H - 2 margin, W - 2 margin) logits.

    Args:
        runtime: the module onnxruntime.
        path: for messages.
        data: the whole file, checked by `check_exported`.
        dtype: of the images.
        classes, margin: what the outputs must have.
        threads: of the CPU.
    Raises:
        ModelFileError: onnxruntime does not load it, or it has other inputs and outputs than these.
    """
    options, run_options = runtime.SessionOptions(), runtime.RunOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = run_options.log_severity_level = 4  # the one line is ours
    run_options.only_execute_path_to_fetches = True
    if _limit_memory(runtime):
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        # its own fallback prints, and tries the same again
        session = runtime.InferenceSession(data, options, ["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # of many classes, which have no name in common
        raise refusal(path, None, next(iter(str(error).splitlines()), "")) from error
    wanted = [(INPUT, f"tensor({ {'float32': 'float'}.get(dtype, dtype) })")]
    inputs = [(given.name, given.type) for given in session.get_inputs()]
    if inputs != wanted or {*OUTPUTS} != {given.name for given in session.get_outputs()}:
        raise refusal(path, INPUT, _("other inputs and outputs than the header says"))

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        try:
            logits: NDArray[np.float32] = session.run(OUTPUTS[:1], {INPUT: images}, run_options)[0]
        except Exception as error:
            if any(word in str(error).lower() for word in ("alloc", "arena")):
                raise MemoryError(str(error)) from error
            raise refusal(path, None, next(iter(str(error).splitlines()), "")) from error
        sides = (side - 2 * margin for side in images.shape[2:])
        if logits.shape != (len(images), classes, *sides):
            raise refusal(path, OUTPUTS[0], _("other inputs and outputs than the header says"))
        return logits

    return run


def refuse_not_finite(finite: bool) -> None:
    """Fail if logits are not finite, which would give the first class for every pixel.

    Raises:
        DataError: they are not.
    """
    if not finite:
        line = _("the model's logits are not finite: the values of the image, or the model's weights, are too large")
        raise DataError(line, key="value")


def memory_limit() -> int | None:
    """Bytes that the values inside a graph may take, since their sizes are the file's own: most of this machine's
    memory; None: the system (Windows) does not say how much there is."""
    try:
        return int(_MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return None


@cache
def _limit_memory(runtime: Any) -> bool:
    """Hold onnxruntime to `memory_limit`; whether there is one."""
    limit = memory_limit()
    if limit is None:
        return False
    place = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    runtime.create_and_register_allocator(place, runtime.OrtArenaCfg({"max_mem": limit}))
    return True
