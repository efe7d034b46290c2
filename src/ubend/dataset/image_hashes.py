"""Pairs of images whose hashes are equal, in any of the eight orientations.

The method is locality-sensitive hashing with random hyperplanes (Charikar 2002, "Similarity estimation techniques from
rounding algorithms"): each bit of a hash says on which side of a hyperplane through the mean of the set an image lies.
Two images at an angle a have an equal bit with probability 1 - a / pi. Each of several tables has its own hyperplanes,
and images are compared if they agree in all of the first bits in one of them: 16, and one more for each doubling of a
large set, so that the time is nearly proportional to the number of images. As proposed there, a table is sorted by
longer hashes, and an image is compared only with its nearest neighbours in this order: so the number of pairs, and with
it time and memory, is bounded also where thousands of images are nearly the same.

N images, C coefficients.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ubend.core.counter_rng import random_normal
from ubend.dataset.orientations import BETWEEN, VIEWS, turn_coefficients

# Measured by benchmarks/near_duplicates.py; see docs/experiments.md. An image is in a table in all orientations, each
# of which is another hash of it: a pair has _TABLES * VIEWS chances to have equal hashes.
_TABLES = 6
_BITS = 64
_MIN_EQUAL_BITS = 16
_NEIGHBOURS = 16  # in the order of a table
_DEVIATIONS = 2.5  # of the number of bits that differ, from what is expected at the threshold

_Numbers = NDArray[np.int64]


def find_equal_hashes(
    coefficients: NDArray[np.float32], correlation: float
) -> Iterator[tuple[_Numbers, _Numbers, _Numbers]]:
    """Yield (turned, upright, view): images that have a hash in common; `turned` in this view is like `upright`.

    Those with the most similar hashes come first within a table; a pair may come several times.

    Args:
        coefficients: (N, C) of the cosine transform of each image less the mean image, see `turn_coefficients`.
        correlation: of the images that are looked for, 0..1; pairs whose other bits differ too much are left out.
    """
    count = len(coefficients)
    planes = random_normal(0, "hyperplanes", np.arange(_TABLES * _BITS), coefficients.shape[1]).astype(np.float32)
    share = np.arccos(correlation) / np.pi  # of the bits that differ
    other_bits = _BITS - max(_MIN_EQUAL_BITS, 1 + round(np.log2(count)))
    most = other_bits * share + _DEVIATIONS * np.sqrt(other_bits * share * (1 - share))
    for table in range(_TABLES):
        normals = planes[table * _BITS : (table + 1) * _BITS].T
        hashes = np.concatenate([_hash(turn_coefficients(coefficients, view), normals) for view in range(VIEWS)])
        order = np.argsort(hashes, kind="stable")  # of equal hashes, those of consecutive images are neighbours
        hashes = hashes[order]
        bucket = hashes >> np.uint64(other_bits)
        for distance in range(1, _NEIGHBOURS + 1):
            place = np.flatnonzero(bucket[distance:] == bucket[:-distance])
            if not len(place):
                break
            place = place[np.bitwise_count(hashes[place] ^ hashes[place + distance]) <= most]
            (first_view, first), (other_view, other) = (
                np.divmod(order[places], count) for places in (place, place + distance)
            )
            yield first, other, BETWEEN[first_view, other_view]


def _hash(coefficients: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(N,) the sides of _BITS hyperplanes, the first as the highest bit."""
    bits = np.packbits(coefficients @ normals > 0, axis=1)
    return bits.view(">u8")[:, 0].astype(np.uint64)
