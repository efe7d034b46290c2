"""Where the fast paths run: Triton kernels and the captured step, on NVIDIA GPUs.

Each has a plain counterpart that computes the same and that runs everywhere else; tests compare the two. This is the
one module that reads UBEND_ACCEL.
"""

import os
from functools import cache

import torch
from torch import Tensor


def is_off() -> bool:
    """Whether UBEND_ACCEL=off or --deterministic turns every fast path off."""
    return os.environ.get("UBEND_ACCEL") == "off" or torch.are_deterministic_algorithms_enabled()


def usable(tensor: Tensor) -> bool:
    """Whether work on this tensor goes to a fast path."""
    if not tensor.is_cuda or torch.compiler.is_compiling() or is_off():
        return False
    return _has_triton() and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


@cache
def _has_triton() -> bool:
    """It comes with torch for CUDA on Linux."""
    try:
        import triton
    except ImportError:
        return False
    return hasattr(triton, "jit")
