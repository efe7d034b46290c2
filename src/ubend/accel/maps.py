"""How maps lie in memory."""

from torch import Tensor


class Map:
    """A (N, C, H, W) channels-last tensor as kernels see it: rows, their length, and how far they lie apart.

    Args:
        tensor: channels last; its channels may be a slice of a wider map's.
    """

    def __init__(self, tensor: Tensor) -> None:
        n, self.channels, self.height, self.width = tensor.shape
        self.rows = n * self.height * self.width
        # a side of length 1 may have any stride
        self.stride = next((tensor.stride(side) for side in (3, 2, 0) if tensor.shape[side] > 1), self.channels)
        laid = (self.height * self.width * self.stride, 1, self.width * self.stride, self.stride)
        if any(s != want for s, want, size in zip(tensor.stride(), laid, tensor.shape, strict=True) if size > 1):
            raise ValueError(f"not channels last: {tuple(tensor.shape)} with strides {tensor.stride()}")
        self.tensor = tensor
