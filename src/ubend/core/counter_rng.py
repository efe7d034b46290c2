"""Random numbers as a pure function of (seed, purpose, position).

There is no generator state: the numbers at a position do not depend on the caller, the order of calls or the number of
processes. So a run can be resumed exactly, and any batch drawn again.

Source of the mixing function: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64),
applied to a counter.
"""

import functools
import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Purposes of draws. The text enters every draw: if it changes, a resumed run draws other numbers.
Purpose = Literal[
    "anchors",
    "bootstrap",
    "candidates",
    "dropout",
    "elastic",
    "export",
    "foreground",
    "gain",
    "hyperplanes",
    "noise field",
    "order of round",
    "warp",
]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd: the counter's step


def random_uniform(
    seed: int, purpose: Purpose, positions: NDArray[np.int64], count: int, number: int | None = None
) -> NDArray[np.float64]:
    """(n,) positions -> (n, count) numbers in [0, 1), 53 random bits each; for arguments see `random_bits`."""
    bits = random_bits(seed, purpose, positions, count, number)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_normal(seed: int, purpose: Purpose, positions: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(n,) positions -> (n, count) standard normal numbers (Box and Muller 1958)."""
    uniform = random_uniform(seed, purpose, positions, 2 * count)
    radius = np.sqrt(-2.0 * np.log1p(-uniform[:, :count]))
    return radius * np.cos(2.0 * np.pi * uniform[:, count:])


def random_bits(
    seed: int, purpose: Purpose, positions: NDArray[np.int64], count: int, number: int | None = None
) -> NDArray[np.uint64]:
    """(n,) positions -> (n, count) words of 64 random bits; `number` separates several streams of one purpose."""
    stream_name = purpose if number is None else f"{purpose} {number}"
    digest = hashlib.blake2b(f"{seed}/{stream_name}".encode(), digest_size=8).digest()
    key = np.uint64(int.from_bytes(digest, "little"))
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is intended
        stream = _mix(positions.astype(np.uint64) * _GOLDEN + key)
        return _mix(stream[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None, :] * _GOLDEN)


def shuffled_item(seed: int, items: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The item at each position of an endless shuffled sequence: each round of `items` positions has each item once."""
    out = np.empty(len(positions), np.int64)
    rounds = positions // items
    for round_number in np.unique(rounds):
        here = rounds == round_number
        out[here] = _order_of_round(seed, items, int(round_number))[positions[here] % items]
    return out


@functools.lru_cache(maxsize=4)  # a batch needs the order of its own round, and possibly of the next
def _order_of_round(seed: int, items: int, round_number: int) -> NDArray[np.int64]:
    keys = random_bits(seed, "order of round", np.arange(items), 1, round_number)[:, 0]
    return np.argsort(keys, kind="stable")


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
