"""Plain functions go in, functions with the same arguments come out: kernels where the gate lets them run, else the
plain function. Importing this needs no Triton."""

from collections.abc import Callable

import torch
from torch import Tensor

from ubend.accel.gate import usable


def accelerate_augmentation(
    plain: Callable[..., tuple[Tensor, Tensor]], elastic_basis: Callable[[int, torch.device, int], Tensor]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """`ubend.dataset.augment.augment`, in two launches on the device of the images.

    Args:
        plain: what it computes, for devices without kernels; its arguments and results are kept.
        elastic_basis: (length, device, points) -> (length, 5) weights of the elastic field.
    """

    def augment(
        images: Tensor,
        masks: Tensor,
        items: Tensor,
        numbers: Tensor,
        window_hw: tuple[int, int],
        value_range: tuple[Tensor, Tensor],
        noise: Tensor | None,
        ignore_outside: bool,
        points: int,
    ) -> tuple[Tensor, Tensor]:
        if not usable(images):
            return plain(images, masks, items, numbers, window_hw, value_range, noise, ignore_outside, points)
        from ubend.accel.augment import blur_and_noise, warp

        basis = elastic_basis(window_hw[0], images.device, points), elastic_basis(window_hw[1], images.device, points)
        colors = noise is not None
        warped, target = warp(
            images, masks, items, numbers, basis, value_range, colors=colors, ignore_outside=ignore_outside
        )
        return warped if noise is None else blur_and_noise(warped, numbers, noise, value_range), target

    return augment
