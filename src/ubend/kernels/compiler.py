"""Compiles and loads norm.c and join.c, where there is a C compiler.

It takes about a second of a training's first step. Nothing is kept: the library fits this processor and this
process, and its file is gone as soon as it is loaded. So there is nothing to go stale, to share or to clean up.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

_SOURCES = [Path(__file__).with_name(name) for name in ("norm.c", "join.c")]
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
_DTYPES = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
_COMPILE_S = 60.0  # then it is given up


@cache
def load_kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The functions of norm.c and join.c for maps of this type; None where they cannot be had: plain torch has to do.

    That is: no gcc, nowhere to write, another type, another system than Linux (untried). `CC` is tried first, as
    people give it to make, words and all.
    """
    if dtype not in _DTYPES or sys.platform != "linux":
        return None
    for words in (os.environ.get("CC", ""), "gcc", "cc"):
        try:
            compiler = shlex.split(words)
            if compiler and shutil.which(compiler[0]):
                return _compile(compiler, (*_FLAGS, *_DTYPES[dtype]))
        except (OSError, ValueError, subprocess.SubprocessError):
            continue  # not C, no OpenMP of this kind, no headers, no room
    return None


def _compile(compiler: list[str], flags: tuple[str, ...]) -> ctypes.CDLL:
    """OpenMP is compiled for but not linked: the library finds torch's, so that both share one set of threads."""
    with tempfile.TemporaryDirectory(prefix="ubend-") as folder:
        for command in (
            [*compiler, *flags, "-c", *map(str, _SOURCES)],
            [*compiler, "-shared", *(source.with_suffix(".o").name for source in _SOURCES), "-o", "cpu.so", "-lm"],
        ):
            subprocess.run(
                command, check=True, capture_output=True, timeout=_COMPILE_S, stdin=subprocess.DEVNULL, cwd=folder
            )
        return ctypes.CDLL(str(Path(folder) / "cpu.so"))
