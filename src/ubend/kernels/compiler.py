"""Compiles and loads norm.c and join.c, where there is a C compiler.

That takes about a second, once: the library is kept in the cache, under a name that says what it was made of and
for which processor.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ubend.device import describe_instructions
from ubend.errors import OutputError
from ubend.files import default_cache, write_file
from ubend.kernels.gate import is_off

if TYPE_CHECKING:
    import torch

KERNELS_SUFFIX = ".kernels.so"
_SOURCES = [Path(__file__).with_name(name) for name in ("norm.c", "join.c")]
_HEADERS = [Path(__file__).with_name("map.h")]
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
_DTYPES = {"torch.float32": (), "torch.bfloat16": ("-DBFLOAT16",)}
_COMPILE_S = 60.0  # then it is given up


@cache
def load_kernels(dtype: "torch.dtype") -> ctypes.CDLL | None:
    """The functions of norm.c and join.c for maps of this type; None where they cannot be had: plain torch has to do.

    That is: no gcc, nowhere to write, another type, another system than Linux (untried). `CC` is tried first, as
    people give it to make, words and all.
    """
    if is_off() or str(dtype) not in _DTYPES or sys.platform != "linux":
        return None
    flags = (*_FLAGS, *_DTYPES[str(dtype)])
    kept = default_cache() / (_fingerprint(flags) + KERNELS_SUFFIX)
    with contextlib.suppress(OSError):  # not there, or not to be loaded
        return ctypes.CDLL(str(kept))
    for words in (os.environ.get("CC", ""), "gcc", "cc"):
        try:
            compiler = shlex.split(words)
            if compiler and shutil.which(compiler[0]):
                return _compile(compiler, flags, kept)
        except (OSError, ValueError, subprocess.SubprocessError):
            continue  # not C, no OpenMP of this kind, no headers, no room
    return None


def _fingerprint(flags: tuple[str, ...]) -> str:
    """24 hexadecimal digits of all that decides what the library is, but the compiler."""
    parts = [source.read_bytes() for source in (*_SOURCES, *_HEADERS)]
    parts += [" ".join(flags).encode(), platform.machine().encode(), describe_instructions().encode()]
    return hashlib.blake2b(b"\0".join(parts), digest_size=12).hexdigest()


def _copy(made: Path, place: Path) -> None:
    shutil.copyfile(made, place)


def _compile(compiler: list[str], flags: tuple[str, ...], kept: Path) -> ctypes.CDLL:
    """OpenMP is compiled for but not linked: the library finds torch's, so that both share one set of threads."""
    with tempfile.TemporaryDirectory(prefix="ubend-") as folder:
        for command in (
            [*compiler, *flags, "-c", *map(str, _SOURCES)],
            [*compiler, "-shared", *(source.with_suffix(".o").name for source in _SOURCES), "-o", "cpu.so", "-lm"],
        ):
            subprocess.run(
                command, check=True, capture_output=True, timeout=_COMPILE_S, stdin=subprocess.DEVNULL, cwd=folder
            )
        made = Path(folder) / "cpu.so"
        library = ctypes.CDLL(str(made))
        with contextlib.suppress(OutputError):  # then the next process compiles again
            write_file(kept, lambda place: _copy(made, place))
    return library
