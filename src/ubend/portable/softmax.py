"""Probabilities and class indices from logits, with the same bits wherever it is computed by NumPy."""

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, H, W) logits -> (C, H, W) probabilities; classes are summed one after the other, whatever the shape is."""
    powers: NDArray[np.float32] = logits - logits.max(axis=0)
    np.exp(powers, out=powers)
    total = powers[0].copy()
    for values in powers[1:]:
        total += values
    powers /= total
    return powers


def find_largest(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, H, W) -> (H, W) index of the largest one; of equal ones, the first."""
    best, index = values[0].copy(), np.zeros(values.shape[1:], np.uint8)
    for class_index in range(1, len(values)):
        index[values[class_index] > best] = class_index
        np.maximum(best, values[class_index], out=best)
    return index
