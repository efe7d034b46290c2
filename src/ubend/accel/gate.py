"""Decides where the fast paths (Triton kernels and the captured step) run: on NVIDIA GPUs.

Each fast path has a plain counterpart with the same results, which runs everywhere else; tests compare the two. This
is the only module that reads UBEND_ACCEL.
"""

import os
from functools import cache

import torch
from torch import Tensor


def is_off() -> bool:
    """Whether UBEND_ACCEL=off or --deterministic turns every fast path off."""
    return os.environ.get("UBEND_ACCEL") == "off" or torch.are_deterministic_algorithms_enabled()


def usable(tensor: Tensor) -> bool:
    """Whether fast paths can process this tensor."""
    if not tensor.is_cuda or torch.compiler.is_compiling() or is_off():
        return False
    return _has_triton() and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


@cache
def _has_triton() -> bool:
    """Whether Triton is installed; it comes with torch for CUDA on Linux."""
    try:
        import triton
    except ImportError:
        return False
    return hasattr(triton, "jit")
