"""Merging of the tiles' logits on the model's device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.portable.tiling import Blender, TilePlan


class TorchBlender(Blender):
    """A `Blender` of tensors; `add` takes and returns tensors on the device.

    Args:
        fused: whether products are added with one rounding; otherwise with two, as NumPy does in `ubend-runtime`.
    """

    def __init__(self, plan: TilePlan, classes: int, device: torch.device, *, fused: bool = True) -> None:
        self._device, self._fused = device, fused
        super().__init__(plan, classes)

    def _zeros(self, shape: tuple[int, int, int]) -> Tensor:
        return torch.zeros(shape, device=self._device)

    def _convert(self, weights: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(weights).to(self._device)

    def _copy(self, values: Tensor) -> Tensor:
        return values.clone()

    def _multiply_add(self, sums: Tensor, logits: Tensor, weight: Tensor) -> None:
        if self._fused:
            sums.addcmul_(logits, weight)
        else:
            sums += logits * weight
