"""Cellpose's `NAME_seg.npy`, read as data: a pickled table, of which nothing is executed."""

import contextlib
import io
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.i18n import _


class _Record:
    """Stands for a NumPy object of the file: what it was to be made with."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle._Unpickler):  # the one in Python, whose memo cannot be blown up
    """Makes lists, tables, texts, numbers and records; calls nothing that the file names."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        return _Record


def is_cellpose(path: Path) -> bool:
    """Is this file called as Cellpose does, and does it hold a table, not numbers?"""
    if path.suffix.lower() != ".npy" or not path.stem.casefold().endswith("_seg"):
        return False
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        return _read_header(file).hasobject
    return False


def _read_header(file: BinaryIO) -> np.dtype[Any]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    dtype: np.dtype[Any] = read(file)[2]
    return dtype


def read_cellpose(path: Path) -> NDArray[Any]:
    """(H, W) numbers of the cells, 0 for the background.

    Raises:
        DataError: damaged, not Cellpose's, or of a volume.
    """
    try:
        with path.open("rb") as file:
            _read_header(file)
            (table,) = _Reader(io.BytesIO(file.read())).load().state[4]
        _version, shape, kind, fortran, data = table["masks"].state
        if not re.fullmatch("[iu][1248]", kind.arguments[0]) or len(shape) != 2:
            raise ValueError("masks")
        order = kind.state[1].replace("|", "=")
        values = np.frombuffer(data, np.dtype(kind.arguments[0]).newbyteorder(order))
        return values.reshape(shape, order="F" if fortran else "C")
    except OSError:
        raise
    except Exception as error:  # a damaged or foreign pickle fails in any way
        line = _("{path}: no _seg.npy of Cellpose that can be read; export the masks as PNG or TIFF")
        raise DataError(line.format(path=path), path=path) from error
