"""Plain functions go in, functions with the same arguments come out: kernels where the gate lets them run, else the
plain function. Importing this needs no Triton."""

from collections.abc import Callable
from typing import Any

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

    def augment(images: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        if not usable(images):
            return plain(images, *given)
        from ubend.accel.augment import blur_and_noise, warp

        masks, items, numbers, (height, width), reach, noise, ignore, points = given
        basis = elastic_basis(height, images.device, points), elastic_basis(width, images.device, points)
        colors = noise is not None
        warped, target = warp(images, masks, items, numbers, basis, reach, colors=colors, ignore_outside=ignore)
        return blur_and_noise(warped, numbers, noise, reach) if colors else warped, target

    return augment
