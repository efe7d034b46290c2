"""Measures whether the objects of a data set show a direction: up and down, or along the rows or columns."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ubend.core.plan import Directions
from ubend.labels.class_table import IGNORED

_FEW_IMAGES = 8  # of fewer, no direction is measured
_FEW_EDGES_PX = 20  # masks with fewer border pixels say nothing about the direction of edges


def measure_directions(masks: Iterable[NDArray[np.uint8]], background: int) -> Directions:
    """The directions of the objects in (H, W) masks, of which `background` and IGNORED are no objects."""
    offsets, edges = [], []
    for mask in masks:
        objects = (mask != background) & (mask != IGNORED)
        if not objects.any():
            continue
        centre = [
            counts @ np.arange(len(counts)) / counts.sum() for counts in (objects.sum(axis=1), objects.sum(axis=0))
        ]
        offsets.append([2 * (at + 0.5) / side - 1 for at, side in zip(centre, mask.shape, strict=True)])
        along_rows, along_columns = (int((np.diff(mask, axis=axis) != 0).sum()) for axis in (0, 1))
        if along_rows + along_columns >= _FEW_EDGES_PX:
            edges.append((along_rows - along_columns) / (along_rows + along_columns))
    vertical, sideways = _mean_in_deviations(np.array(offsets).reshape(-1, 2))
    (edge_t,) = _mean_in_deviations(np.array(edges)[:, None])
    return Directions(
        upright_t=float(vertical * len(offsets) ** 0.5),
        upright_offset=float(vertical - sideways),
        edge_t=float(edge_t * len(edges) ** 0.5),
        edges=float(np.mean(edges)) if len(edges) >= _FEW_IMAGES else 0.0,
    )


def _mean_in_deviations(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """(columns,) absolute mean of the (images, columns) values in standard deviations; 0 for few images."""
    if len(table) < _FEW_IMAGES:
        return np.zeros(table.shape[1])
    return np.asarray(np.abs(table.mean(axis=0)) / (table.std(axis=0) + 1e-9))
