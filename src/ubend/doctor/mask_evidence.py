"""Whether a mask that fits badly by the set's colours is right by other evidence: its own image, and the other masks.

An image of unusual colours fits badly though its mask is right. Such a mask still separates the colours of its image
better than the masks of other images do. Measured on five real sets; see docs/experiments.md.

Axis letters: h, w of a small image; N images; K classes.
"""

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

from ubend.labels.class_table import IGNORED

_Floats = NDArray[np.float32]
_COMPARED_MASKS = 60  # of other images
_GRID = 16  # side of the grid on which the places of classes are compared
_NOISE = 0.01  # of the strongest direction of colour: weaker ones are noise


def measure_separation(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """The share of the variance of the mask's classes that a linear model of the image's colours explains, 0..1.

    Args:
        image: (h, w, c) pixels.
        mask: (h, w) class indices.
    """
    return _separation(_color_basis(image), mask)


def measure_rank(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]], index: int) -> float:
    """The share of other images' masks that separate the colours of this image at least as well as its own, 0..1.

    Args:
        pairs: (h, w, c) image and (h, w) class indices of each image.
        index: the image.
    """
    image, mask = pairs[index]
    basis = _color_basis(image)
    separation = _separation(basis, mask)
    others = []
    for k in np.linspace(0, len(pairs) - 1, min(len(pairs), _COMPARED_MASKS)).astype(np.int64).tolist():
        other_mask = pairs[k][1]
        if k != index and other_mask.min() != other_mask.max():
            size = mask.shape[::-1]
            resized = np.asarray(Image.fromarray(other_mask).resize(size, Image.Resampling.NEAREST))
            others.append(_separation(basis, resized))
    return float(np.mean(np.array(others) >= separation)) if others else 1.0


def improves_when_moved(image: NDArray[np.uint8], mask: NDArray[np.uint8], shift_yx: tuple[float, float]) -> bool:
    """Whether the mask separates the colours of its image better after a move.

    Args:
        image: (h, w, c) pixels.
        mask: (h, w) class indices.
        shift_yx: the move down and to the right, in shares of the long side.
    """
    (h, w), side = mask.shape, max(mask.shape)
    down, across = (round(share * side) for share in shift_yx)
    target = slice(max(0, down), h + min(0, down)), slice(max(0, across), w + min(0, across))
    source = slice(max(0, -down), h + min(0, -down)), slice(max(0, -across), w + min(0, -across))
    basis = _color_basis(image[target])
    return _separation(basis, mask[source]) > _separation(basis, mask[target])


def measure_place_fit(masks: list[NDArray[np.uint8]], classes: int) -> _Floats:
    """(N,) the correlation of the places of a mask's classes with the mean of all masks, -1..1."""
    grids = np.stack([_count_in_cells(mask, classes) for mask in masks])
    grids -= grids.mean(axis=(2, 3), keepdims=True)
    mean = grids.mean(axis=0)
    norms = np.sqrt((grids**2).sum(axis=(1, 2, 3)) * (mean**2).sum())
    return np.asarray((grids * mean).sum(axis=(1, 2, 3)) / np.maximum(norms, 1e-9), np.float32)


def _count_in_cells(mask: NDArray[np.uint8], classes: int) -> _Floats:
    """(K, _GRID, _GRID) share of each class in the cells of a grid."""
    rows, columns = (np.arange(side) * _GRID // side for side in mask.shape)
    cells = (rows[:, None] * _GRID + columns).reshape(-1)
    flat = mask.reshape(-1).astype(np.int64)
    scored = flat < classes
    counts = np.bincount(flat[scored] * _GRID**2 + cells[scored], minlength=classes * _GRID**2)
    shares = counts.reshape(classes, -1) / np.maximum(np.bincount(cells, minlength=_GRID**2), 1)
    return np.asarray(shares.reshape(classes, _GRID, _GRID), np.float32)


def _color_basis(image: NDArray[np.uint8]) -> _Floats:
    """(h * w, R) orthonormal columns that span the image's colours at two scales, their squares and its texture."""
    pixels = image.astype(np.float32)
    fine, coarse = (scipy.ndimage.uniform_filter(pixels, (side, side, 1)) for side in (3, 9))
    rough = (pixels - scipy.ndimage.uniform_filter(pixels, (5, 5, 1))).mean(axis=2)
    texture = np.sqrt(np.maximum(scipy.ndimage.uniform_filter(rough**2, 5), 0))[:, :, None]
    columns = np.concatenate([fine, coarse, fine**2 / 255, texture], axis=-1).reshape(-1, 3 * image.shape[2] + 1)
    columns -= columns.mean(axis=0)
    columns /= columns.std(axis=0) + 1  # grey levels: what varies less than one is noise
    basis, strength, _right = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(basis[:, strength > max(_NOISE * strength[0], 1e-3)], np.float32)


def _separation(basis: _Floats, mask: NDArray[np.uint8]) -> float:
    present = np.unique(mask[mask != IGNORED])
    planes = (mask.reshape(-1, 1) == present).astype(np.float32)
    planes -= planes.mean(axis=0)
    return float(((basis.T @ planes) ** 2).sum() / max(1e-9, float((planes**2).sum())))
