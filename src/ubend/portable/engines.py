"""The engine that computes an exported file: onnxruntime, or OpenVINO where the file was made for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contract import Contract
from .openvino_session import import_openvino, open_openvino
from .session import Run, open_session

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}  # target -> the package that computes it


def open_engine(
    load_package: Callable[[str], Any],
    path: Path,
    data: bytes,
    contract: Contract,
    *,
    dtype: str,
    classes: int,
    threads: int,
) -> Run:
    """The graph of an exported file as a function of images, see `Run`.

    Args:
        load_package: imports a package by name, or fails with the command that installs it.
        path: for messages.
        data: the whole file, checked by `check_exported`.
        contract: of the file; it says which engine, and in which precision.
        dtype: of the images.
        classes: what the outputs must have.
        threads: of the CPU.
    Raises:
        MissingPackageError: the engine is not installed.
        ModelFileError: it does not load the file, or the file has other inputs and outputs than these.
    """
    expected: dict[str, Any] = {"dtype": dtype, "classes": classes, "margin": contract.tiles.margin, "threads": threads}
    if contract.target == "openvino":
        openvino = import_openvino(load_package)
        return open_openvino(openvino, path, data, precision=contract.precision, **expected)
    return open_session(load_package(PACKAGES[contract.target]), path, data, **expected)
