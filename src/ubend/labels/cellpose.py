"""Reads Cellpose's `NAME_seg.npy`, a pickled table, without executing anything in it."""

import contextlib
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.i18n import _


class _Record:
    """A placeholder for a NumPy object of the file: its constructor arguments."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Opcodes in NumPy's files. Others could allocate as many bytes as the file states (BYTEARRAY8), or access objects
# registered by other modules (EXT1, PERSID).
_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE
    BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1
    TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD BINPUT LONG_BINPUT BINGET LONG_BINGET
    MEMOIZE
"""


class _Reader(pickle._Unpickler):  # the Python implementation, whose memo cannot be inflated
    """An unpickler for lists, tables, texts, numbers and records, which calls nothing named in the file."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        opcode: pickle._Unpickler.dispatch[opcode] for opcode in (getattr(pickle, name)[0] for name in _OPCODES.split())
    }

    def find_class(self, module: str, name: str) -> type[_Record]:
        return _Record

    def _set_items(self, items: list[Any]) -> None:
        """Set the entries of a table; keys must be plain, since hashing nested tuples could take forever."""
        table, keys = self.stack[-1], items[::2]
        if not all(isinstance(key, str | int) for key in keys):
            raise ValueError("keys")
        table.update(zip(keys, items[1::2], strict=True))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems


def is_cellpose(path: Path) -> bool:
    """Whether this file has Cellpose's name and contains a table instead of numbers."""
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
    """(H, W) cell ids, 0 for the background.

    Raises:
        DataError: damaged, not written by Cellpose, or a volume.
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
    except Exception as error:  # a damaged or foreign pickle may raise anything
        line = _("{path}: not a readable _seg.npy of Cellpose; export the masks as PNG or TIFF")
        raise DataError(line.format(path=path), path=path) from error
