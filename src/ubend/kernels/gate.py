"""Which work goes to the kernels: what an NVIDIA GPU does in one pass over memory where torch takes several.

Each function here has a plain counterpart elsewhere that computes the same, and whose file says what; tests
compare the two. Where Triton is missing, on other devices, with --deterministic, and where the environment says
UBEND_ACCEL=off, the plain ones run.
"""

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def is_off() -> bool:
    """Whether the environment turns every fast path off."""
    return os.environ.get("UBEND_ACCEL") == "off"


def usable(tensor: "Tensor") -> bool:
    """Whether work on this tensor goes to the kernels."""
    import torch

    if is_off() or not tensor.is_cuda or torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled():
        return False
    return has_triton() and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


@cache
def has_triton() -> bool:
    """It comes with torch for CUDA on Linux."""
    try:
        import triton
    except ImportError:
        return False
    return hasattr(triton, "jit")
