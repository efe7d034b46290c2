"""Reads only the rectangle of an image that the warp of a training crop samples.

The rectangle is computed from the warp's parameters. Only it is read and copied to the device, where the warp gives
the same result as on the whole image.

N crops, H x W pixels of a crop or canvas, C channels.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.core.plan import AugmentPlan
from ubend.dataset.augment import ELASTIC_POINTS, AugmentParams, elastic_basis
from ubend.dataset.store import Store

_NODES = 33  # points per axis at which the warp is evaluated; between them it deviates by less than _BEND_PX
_BEND_PX = 1
_ELASTIC_DEVIATIONS = 4  # standard deviations of the elastic field that fit on the canvas


@dataclass(frozen=True)
class Rectangles:
    """Rectangles of images.

    Attributes:
        image_indices: (N,) indices of the images in the store.
        corner_yx: (N, 2) first pixel of each rectangle.
        size_hw: (N, 2) size, px.
    """

    image_indices: NDArray[np.int64]
    corner_yx: NDArray[np.int64]
    size_hw: NDArray[np.int64]


def find_rectangles(
    params: AugmentParams,
    shapes_hw: NDArray[np.int64],
    crop_hw: tuple[int, int],
    largest_hw: tuple[int, int],
    points: int = ELASTIC_POINTS,
) -> tuple[AugmentParams, NDArray[np.int64], NDArray[np.int64]]:
    """Find the rectangle that the warp of each crop samples.

    If it is larger than `largest_hw` (about one elastic field in a thousand), it is cut, and the warp reflects the
    image at the cut.

    Args:
        params: relative to whole images.
        shapes_hw: (N, 2) sizes of the images.
        crop_hw: (H, W) px of a crop.
        largest_hw: maximum size of a rectangle, from `rectangle_canvas`.
        points: points per side of the elastic field, see `elastic_basis`.
    Returns:
        The parameters relative to the rectangles, and the (N, 2) corners and sizes of these, px.
    """
    centre = (shapes_hw - 1) / 2 + params.offset_yx.astype(np.float64)
    low, high = _source_bounds(params, crop_hw, points)
    first, last = np.floor(centre + low).astype(np.int64), np.ceil(centre + high).astype(np.int64)
    # Outside the image the warp samples its reflection: -1 is 0, and `side` is `side - 1`.
    mirrored = np.where(first < 0, -1 - first, 0), np.where(last >= shapes_hw, 2 * shapes_hw - 1 - last, shapes_hw)
    first, last = (
        np.clip(np.minimum(first, mirrored[1]), 0, shapes_hw - 1),
        np.clip(np.maximum(last, mirrored[0]), 0, shapes_hw - 1),
    )
    size = np.minimum(last - first + 1, np.array(largest_hw))
    cut = size < last - first + 1
    middle = np.clip(np.rint(centre - size / 2).astype(np.int64), 0, shapes_hw - size)
    corner = np.where(cut, middle, first)
    offset = centre - corner - (size - 1) / 2
    return replace(params, offset_yx=offset.astype(np.float32)), corner, size


def _source_bounds(
    params: AugmentParams, crop_hw: tuple[int, int], points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 2) smallest and largest coordinates that a crop samples, relative to its centre in the image, px."""
    nodes = [np.unique(np.linspace(0, side - 1, min(side, _NODES)).astype(np.int64)) for side in crop_hw]
    cpu = torch.device("cpu")
    basis_y, basis_x = (elastic_basis(s, cpu, points).numpy()[at] for s, at in zip(crop_hw, nodes, strict=True))
    y, x = (at - (side - 1) / 2 for side, at in zip(crop_hw, nodes, strict=True))
    a = params.affine.astype(np.float64)
    source = basis_y @ params.elastic @ basis_x.T  # (N, 2, nodes, nodes)
    source = source + a[:, :, 0, None, None] * y[:, None] + a[:, :, 1, None, None] * x
    return source.min(axis=(2, 3)) - _BEND_PX, source.max(axis=(2, 3)) + _BEND_PX


def rectangle_canvas(crop_hw: tuple[int, int], settings: AugmentPlan, largest_hw: NDArray[np.int64]) -> tuple[int, int]:
    """(H, W) px that contain what a crop samples, except for rare elastic fields."""
    turns = np.linspace(0, np.deg2rad(min(90.0, settings.rotation_deg)), 91)
    zoom = math.exp(settings.scale + settings.stretch / 2)
    deviation = settings.elastic * math.sqrt(math.prod(crop_hw)) if settings.elastic_px is None else settings.elastic_px
    bend = 2 * (_ELASTIC_DEVIATIONS * deviation + _BEND_PX + 1)
    height, width = crop_hw
    sides = [
        (np.cos(turns) * side_px + np.sin(turns) * other_side).max()
        for side_px, other_side in ((height, width), (width, height))
    ]
    high, wide = (
        min(math.ceil(zoom * side + bend), int(maximum)) for side, maximum in zip(sides, largest_hw, strict=True)
    )
    return high, wide


def device_dtype(store: Store) -> torch.dtype:
    """The dtype of images on the device: uint8 or float32, since torch hardly supports uint16."""
    return torch.uint8 if store.dtype == np.uint8 else torch.float32


def read_rectangles(
    store: Store, rectangles: Rectangles, canvas_hw: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Read rectangles to the device, each at the top left of a canvas; the rest repeats the edge and is IGNORED.

    Args:
        canvas_hw: at least as large as each rectangle.
    Returns:
        (N, H, W, C) images, uint8 or float32, and (N, H, W) class indices.
    """
    shape, pinned = (len(rectangles.image_indices), *canvas_hw), device.type == "cuda"
    pixels = torch.empty((*shape, store.channels), dtype=device_dtype(store), pin_memory=pinned)
    index = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
    every = zip(
        rectangles.image_indices.tolist(), rectangles.corner_yx.tolist(), rectangles.size_hw.tolist(), strict=True
    )
    for image, mask, (number, corner_yx, size_hw) in zip(pixels.numpy(), index.numpy(), every, strict=True):
        store.paint(number, image, mask, corner_yx, size_hw)  # writes to the memory of the tensors
    return pixels.to(device, non_blocking=True), index.to(device, non_blocking=True)
