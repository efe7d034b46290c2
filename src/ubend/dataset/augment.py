"""Augmentation: warps images with their masks and changes colours, a whole batch at a time, on the device.

Parameters are drawn with NumPy, as a pure function of (seed, purpose, position): `sample_augmentation` and
`sample_frozen`. They are applied with torch on the device: `warp`, `change_colors`. Image and mask are each sampled
once, at the same coordinates (bilinear / nearest).

N images, C channels, H x W pixels out, G x G points of the elastic field.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ubend.core.counter_rng import random_normal, random_uniform
from ubend.core.plan import AugmentPlan
from ubend.labels.class_table import IGNORED

ELASTIC_POINTS = 5  # points per side of the coarse displacement field
_BLUR_REACH = 3  # px; the kernel has 2 * 3 + 1 taps: three standard deviations of the default, 1 px
# A crop shows a chosen pixel at most this far from its centre, as a fraction of half its side. The margin is for the
# elastic field, which could push the pixel out.
_SHOWN_WITHIN = 0.5
_SHOWN_WITHIN_AT_BORDER = 0.75  # where the crop would otherwise leave the image
_NOISE_SIDE = 256  # px; side of the noise field from which images take their noise

# Columns of the rows in which `TrainingBatches.pack` sends the images of a step to the device, float32.
PARAMS = slice(None, -3)  # `AugmentParams.pack`
SIZE_HW = slice(-3, -1)  # height and width of the image as stored, px
ITEM = -1  # index of the item in its `ItemSource`: the bits of an int32


@dataclass(frozen=True)
class AugmentConstants:
    """What is the same in all batches of a training.

    Attributes:
        crop_hw: (H, W) px of the output.
        value_range: (low, high), each (1, C, 1, 1).
        noise: (C, S, S), from `noise_field`; None: colours do not change.
        ignore_outside: set the mask to IGNORED outside the image, instead of reflecting it with the image.
        elastic_points: points per side of the elastic field, see `elastic_basis`.
    """

    crop_hw: tuple[int, int]
    value_range: tuple[Tensor, Tensor]
    noise: Tensor | None
    ignore_outside: bool
    elastic_points: int


# images, masks, items, packed, constants -> images, masks; see `augment`
Augment = Callable[[Tensor, Tensor, Tensor, Tensor, AugmentConstants], tuple[Tensor, Tensor]]


Values = TypeVar("Values", NDArray[np.float32], Tensor)


@dataclass(frozen=True)
class _AugmentParams(Generic[Values]):
    """Augmentation parameters of a batch; arrays or tensors of length N, float32.

    Attributes:
        affine: (N, 2, 2) output (y, x) offset from the centre -> source offset, in stored px.
        offset_yx: (N, 2) source px added to that.
        elastic: (N, 2, G, G) source px added, on a coarse grid over the output.
        gamma: (N,) exponent.
        contrast, saturation: (N,) factors.
        brightness: (N,) added, as a fraction of the value range.
        gain: (N, C) factor of each channel.
        blur_px: (N,) standard deviation, px.
        noise: (N,) standard deviation, as a fraction of the value range.
        noise_yx: (N, 2) position of the image in the noise field, px.
    """

    affine: Values
    offset_yx: Values
    elastic: Values
    gamma: Values
    contrast: Values
    brightness: Values
    gain: Values
    saturation: Values
    blur_px: Values
    noise: Values
    noise_yx: Values

    def pack(self: "_AugmentParams[NDArray[np.float32]]") -> NDArray[np.float32]:
        """(N, K) all parameters in one array, so that one copy sends them to the device."""
        return np.concatenate([getattr(self, f.name).reshape(len(self.affine), -1) for f in fields(self)], axis=1)

    @staticmethod
    def unpack(packed: Tensor, channels: int) -> "_AugmentParams[Tensor]":
        """The inverse of `pack`, on the device."""
        g, n = ELASTIC_POINTS, packed.shape[0]
        shapes = ((2, 2), (2,), (2, g, g), (), (), (), (channels,), (), (), (), (2,))
        parts = torch.split(packed, [int(np.prod(shape)) for shape in shapes], dim=1)
        return _AugmentParams(*(part.reshape(n, *shape) for part, shape in zip(parts, shapes, strict=True)))


AugmentParams = _AugmentParams[NDArray[np.float32]]
DeviceAugmentParams = _AugmentParams[Tensor]


def identity_params(count: int, channels: int) -> AugmentParams:
    """Parameters that leave images unchanged."""
    ones, zeros = np.ones(count, np.float32), np.zeros(count, np.float32)
    return AugmentParams(
        affine=np.tile(np.eye(2, dtype=np.float32), (count, 1, 1)),
        offset_yx=np.zeros((count, 2), np.float32),
        elastic=np.zeros((count, 2, ELASTIC_POINTS, ELASTIC_POINTS), np.float32),
        gamma=ones,
        contrast=ones,
        brightness=zeros,
        gain=np.ones((count, channels), np.float32),
        saturation=ones,
        blur_px=zeros,
        noise=zeros,
        noise_yx=np.zeros((count, 2), np.float32),
    )


# What the columns of the uniform draws are for; another number or order would change all trainings.
_WARP_DRAWS = (
    *("angle", "scale", "stretch", "flip y", "flip x", "shift y", "shift x", "has elastic", "gamma", "contrast"),
    *("brightness", "saturation", "blur", "has blur", "noise", "has noise", "noise y", "noise x", "unused", "unused 2"),
)


def sample_augmentation(
    settings: AugmentPlan,
    seed: int,
    positions: NDArray[np.int64],
    shapes_hw: NDArray[np.int64],
    crop_hw: tuple[int, int],
    channels: int,
    target: NDArray[np.float64] | None = None,
) -> AugmentParams:
    """Draw the default augmentation, new for each position of the endless sequence.

    Args:
        settings: ranges.
        positions: (N,) positions in the sequence.
        shapes_hw: (N, 2) stored size of the image at each.
        crop_hw: size of the output; larger images are cropped to it.
        target: (N, 4) the pixel (y, x) that the crop must show, px, and its place (y, x) in the crop, each -1..1 from
            the centre; from `Foreground.sample`. NaN: the crop is placed at random.
    """
    n = len(positions)
    u = dict(zip(_WARP_DRAWS, random_uniform(seed, "warp", positions, len(_WARP_DRAWS)).T, strict=True))
    signed = {name: 2.0 * values - 1.0 for name, values in u.items()}
    side = np.sqrt(np.prod(np.minimum(shapes_hw, np.array(crop_hw)), axis=1))

    angle = np.deg2rad(settings.rotation_deg) * signed["angle"]
    source_px_per_px = np.exp(-settings.scale * signed["scale"])
    stretch = np.exp(0.5 * settings.stretch * signed["stretch"])
    flip_y = np.where((u["flip y"] < settings.flip_share) & (settings.orientation == "free"), -1.0, 1.0)
    flip_x = np.where(u["flip x"] < settings.flip_share, -1.0, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    affine = (
        rotation * np.stack([flip_y * source_px_per_px * stretch, flip_x * source_px_per_px / stretch], -1)[:, None, :]
    )

    max_offset = np.maximum(0, shapes_hw - np.array(crop_hw)) / 2.0 + settings.shift * side[:, None]
    offset = np.stack([signed["shift y"], signed["shift x"]], -1) * max_offset  # from the image's centre to the crop's
    if target is not None:
        forced = ~np.isnan(target[:, 0])
        offset[forced] = _offset_to_show(
            target[forced], affine[forced], shapes_hw[forced], max_offset[forced], np.array(crop_hw)
        )

    grid = random_normal(seed, "elastic", positions, 2 * ELASTIC_POINTS**2)
    deviation = settings.elastic * side if settings.elastic_px is None else np.full(n, settings.elastic_px)
    grid = grid.reshape(n, 2, ELASTIC_POINTS, ELASTIC_POINTS) * deviation[:, None, None, None]
    grid *= (u["has elastic"] < settings.elastic_share)[:, None, None, None]

    gain = 2.0 * random_uniform(seed, "gain", positions, channels) - 1.0
    return AugmentParams(
        affine=affine.astype(np.float32),
        offset_yx=offset.astype(np.float32),
        elastic=grid.astype(np.float32),
        gamma=np.exp(settings.gamma * signed["gamma"]).astype(np.float32),
        contrast=np.exp(settings.contrast * signed["contrast"]).astype(np.float32),
        brightness=(settings.brightness * signed["brightness"]).astype(np.float32),
        gain=np.exp(settings.color * (channels > 1) * gain).astype(np.float32),
        saturation=np.exp(settings.saturation * signed["saturation"]).astype(np.float32),
        blur_px=(settings.blur_px * u["blur"] * (u["has blur"] < settings.blur_share)).astype(np.float32),
        noise=(settings.noise * u["noise"] * (u["has noise"] < settings.noise_share)).astype(np.float32),
        noise_yx=np.floor(_NOISE_SIDE * np.stack([u["noise y"], u["noise x"]], -1)).astype(np.float32),
    )


def _offset_to_show(
    target: NDArray[np.float64],
    affine: NDArray[np.float64],
    shapes_hw: NDArray[np.int64],
    max_offset: NDArray[np.float64],
    crop_hw: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(n, 2) offset from the image's centre to the crop's, so that the crop shows a pixel near the drawn position.

    The offset stays within the range of all crops (`max_offset`), unless the pixel would then be outside the crop.
    """
    pixel = target[:, :2] - (shapes_hw - 1) / 2
    position = target[:, 2:] * _SHOWN_WITHIN * crop_hw / 2
    centre = np.clip(pixel - np.einsum("nij,nj->ni", affine, position), -max_offset, max_offset)
    position = np.linalg.solve(affine, (pixel - centre)[:, :, None])[:, :, 0]
    reach = _SHOWN_WITHIN_AT_BORDER * crop_hw / 2
    return np.asarray(pixel - np.einsum("nij,nj->ni", affine, np.clip(position, -reach, reach)))


def sample_frozen(
    settings: AugmentPlan,
    seed: int,
    images: NDArray[np.int64],
    copies: NDArray[np.int64],
    shapes_hw: tuple[NDArray[np.int64], NDArray[np.int64]],
    channels: int,
) -> AugmentParams:
    """Draw the tutorial's fixed copies: a function of (seed, image, copy), so the same in every epoch.

    "Elastic" is the tutorial's word for an affine map given by three anchor points around the centre: each of their
    coordinates is shifted by a uniform +-`anchor_shift_px`. The anchors are those of the original recipe (Simard et
    al. 2003 as published on Kaggle): centre + (s, s), (s, -s) and (-s, -s), with s a third of the shorter side.

    Args:
        images, copies: (N,) image index, and copy 0..4, see FROZEN_COPIES.
        shapes_hw: (N, 2) stored and (N, 2) native sizes: the shift is in native px.
    """
    stored, native = shapes_hw
    n = len(images)
    params = identity_params(n, channels)
    third = native.min(axis=1) / 3.0
    # At most half the anchors' distance from the centre: larger shifts would turn tiny images inside out.
    shift_px = np.minimum(settings.anchor_shift_px, third / 2)[:, None, None]
    moved = (2.0 * random_uniform(seed, "anchors", images, 6) - 1.0).reshape(n, 3, 2) * shift_px
    anchors = third[:, None, None] * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])[None]
    # The map takes anchors to moved anchors; sampling needs its inverse: output px -> source px.
    ones = np.ones((n, 3, 1))
    inverse = np.linalg.solve(np.concatenate([anchors + moved, ones], axis=2), anchors)  # (N, 3, 2), row vectors
    to_stored = stored / native  # the solution is in native px
    linear = np.swapaxes(inverse[:, :2], 1, 2) * to_stored[:, :, None] / to_stored[:, None, :]
    shift = inverse[:, 2] * to_stored

    elastic = (copies == 1) | ((copies == 4) & (settings.both_flips == "elastic"))
    affine = np.where(elastic[:, None, None], linear, np.eye(2)[None])
    flips = np.stack(
        [
            np.where((copies == 3) | (copies == 4), -1.0, 1.0),
            np.where((copies == 2) | (copies == 4), -1.0, 1.0),
        ],
        -1,
    )
    params.affine[:] = affine * flips[:, None, :]
    params.offset_yx[:] = np.where(elastic[:, None], shift, 0.0)
    return params


def augment(
    images: Tensor,
    masks: Tensor,
    items: Tensor,
    packed: Tensor,
    constants: AugmentConstants,
) -> tuple[Tensor, Tensor]:
    """Warp images with their masks, and change their colours, on the device only.

    On NVIDIA GPUs `ubend.accel.augment` does the same in its own kernels: what changes one changes both.

    Args:
        images, masks: (n, h, w, C) of any dtype and (n, h, w) uint8 class index or IGNORED, each at the top left.
        items: (N,) int32, indices of the images to use.
        packed: (N, K) float32 with the columns PARAMS and SIZE_HW; ITEM is not read here, see `items`.
    Returns:
        (N, C, H, W) float32 raw values, channels last, and (N, H, W) uint8.
    """
    params = DeviceAugmentParams.unpack(packed[:, PARAMS], images.shape[3])
    chosen = images[items].permute(0, 3, 1, 2), masks[items]
    crop_hw, ignore_outside, points = constants.crop_hw, constants.ignore_outside, constants.elastic_points
    warped, target = warp(*chosen, packed[:, SIZE_HW], params, crop_hw, ignore_outside, points)
    if constants.noise is not None:
        warped = change_colors(warped, params, *constants.value_range, constants.noise)
    return warped.contiguous(memory_format=torch.channels_last), target


def warp(
    image: Tensor,
    mask: Tensor,
    shapes_hw: Tensor,
    params: DeviceAugmentParams,
    crop_hw: tuple[int, int],
    ignore_outside: bool,
    points: int = ELASTIC_POINTS,
) -> tuple[Tensor, Tensor]:
    """Sample image and mask once at the same coordinates; beyond its border the image is reflected.

    Args:
        image: (N, C, h, w) any dtype; each image is at the top left.
        mask: (N, h, w) uint8 class index or IGNORED.
        shapes_hw: (N, 2) float32, size of each image within (h, w).
        crop_hw: (H, W) of the output.
        ignore_outside: set the mask to IGNORED outside the image, instead of reflecting it with the image.
        points: points per side of the elastic field, see `elastic_basis`.
    Returns:
        (N, C, H, W) float32 and (N, H, W) uint8.
    """
    (height, width), (h, w) = crop_hw, image.shape[-2:]
    y = torch.arange(height, device=image.device, dtype=torch.float32) - (height - 1) / 2
    x = torch.arange(width, device=image.device, dtype=torch.float32) - (width - 1) / 2
    basis_y, basis_x = (elastic_basis(side, image.device, points) for side in crop_hw)
    source = torch.matmul(torch.matmul(basis_y, params.elastic), basis_x.T)  # (N, 2, H, W) px
    a = params.affine[:, :, :, None, None]
    centre = (shapes_hw - 1) / 2 + params.offset_yx
    source = source + a[:, :, 0] * y[:, None] + a[:, :, 1] * x + centre[:, :, None, None]

    size = shapes_hw[:, :, None, None]
    inside = _reflect(source, size)
    # grid_sample wants (x, y) in -1..1
    grid = torch.stack([(2 * inside[:, 1] + 1) / w - 1, (2 * inside[:, 0] + 1) / h - 1], dim=-1)
    out = F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)

    nearest = (inside + 0.5).floor().long()  # not round(), which rounds halves to even
    flat = (nearest[:, 0] * w + nearest[:, 1]).flatten(1)
    target = mask.flatten(1).gather(1, flat).view(-1, height, width)
    if ignore_outside:
        outside = ((source < -0.5) | (source > size - 0.5)).any(dim=1)
        target = target.masked_fill(outside, IGNORED)
    return out, target


def change_colors(image: Tensor, params: DeviceAugmentParams, low: Tensor, high: Tensor, noise: Tensor) -> Tensor:
    """Apply gamma, brightness, contrast, channel gain, saturation, blur and noise; clips to the value range.

    Args:
        image: (N, C, H, W) float32 raw values.
        low, high: (1, C, 1, 1) the value range of each channel.
        noise: (C, S, S) standard normal field, from `noise_field`.
    Returns:
        (N, C, H, W) float32 raw values.
    """
    x = ((image - low) / (high - low)).clamp(0, 1)

    def each(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    x = x ** each(params.gamma)
    factor = params.contrast[:, None] * params.gain  # contrast is relative to mid-range
    x = x * factor[:, :, None, None] + (each(params.brightness) + 0.5 - 0.5 * each(params.contrast))
    if image.shape[1] == 3:
        grey = x.mean(dim=1, keepdim=True)
        x = grey + each(params.saturation) * (x - grey)

    def add_noise(chosen: Tensor, which: Tensor | slice) -> Tensor:
        sides = zip(params.noise_yx[which].long().unbind(1), x.shape[-2:], noise.shape[-2:], strict=True)
        rows, columns = ((first[:, None] + torch.arange(s, device=x.device)) % wrap for first, s, wrap in sides)
        windows = noise[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
        return chosen + each(params.noise[which]) * windows

    x = _change_some(x, params.blur_px, lambda chosen, which: _blur(chosen, params.blur_px[which]))
    x = _change_some(x, params.noise, add_noise)
    return x.clamp(0, 1) * (high - low) + low


def _change_some(x: Tensor, strength: Tensor, change: Callable[[Tensor, Tensor | slice], Tensor]) -> Tensor:
    """Apply `change(images, indices)` to the images whose strength is not 0.

    On a GPU it is applied to all, since counting them would wait for the device; strength 0 changes nothing.
    """
    if x.device.type != "cpu":
        return change(x, slice(None))
    which = strength.nonzero().flatten()
    if len(which):
        x[which] = change(x[which], which)
    return x


def noise_field(seed: int, channels: int) -> NDArray[np.float32]:
    """(C, S, S) standard normal numbers, S = 256; images use cut-outs of it that wrap around."""
    normal = random_normal(seed, "noise field", np.arange(channels), _NOISE_SIDE**2)
    return normal.reshape(channels, _NOISE_SIDE, _NOISE_SIDE).astype(np.float32)


def _reflect(source: Tensor, size: Tensor) -> Tensor:
    """Coordinates reflected at the pixel borders -0.5 and size - 0.5 until they are in [0, size - 1]."""
    folded = torch.remainder(source + 0.5, 2 * size)
    folded = torch.where(folded >= size, 2 * size - folded, folded) - 0.5
    return torch.minimum(folded.clamp_min(0), size - 1)


@lru_cache(maxsize=16)
def elastic_basis(length: int, device: torch.device, points: int = ELASTIC_POINTS) -> Tensor:
    """(length, G) bicubic weights of the coarse points at each pixel; each row adds up to 1.

    With fewer points per side than G, the first ones are used and the others have weight 0.
    """
    coarse = torch.eye(points)[None, None]
    weights = F.interpolate(coarse, size=(length, points), mode="bicubic", align_corners=True)
    return F.pad(weights[0, 0], (0, ELASTIC_POINTS - points)).to(device).contiguous()


def _blur(x: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur of each image with its own standard deviation; 0 changes nothing."""
    n, c, h, w = x.shape
    taps = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1, device=x.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (taps / sigma_px.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(c, dim=0)  # (N * C, taps)
    planes = x.reshape(1, n * c, h, w)
    for shape, pad in (
        ((-1, 1), (0, 0, _BLUR_REACH, _BLUR_REACH)),
        ((1, -1), (_BLUR_REACH, _BLUR_REACH, 0, 0)),
    ):
        weight = kernel.view(n * c, 1, *(len(taps) if s == -1 else 1 for s in shape))
        planes = F.conv2d(F.pad(planes, pad, mode="replicate"), weight, groups=n * c)
    return planes.view(n, c, h, w)
