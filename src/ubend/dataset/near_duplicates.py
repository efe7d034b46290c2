"""Near-identical images, by their thumbnails: of small sets all pairs are compared, of large ones those that a hash
finds, in bounded memory and far less time.

Two images are near-identical if their thumbnails correlate (Pearson, over the pixels) with at least `Threshold.whole`,
and with `Threshold.details` after subtracting the mean thumbnail of the set, in one of the eight orientations; or if
the first correlation alone is almost 1. So brightness and contrast do not matter.

N images, thumbnails of S x S px, K pairs.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ubend.dataset.image_hashes import find_equal_hashes
from ubend.dataset.orientations import INVERSE, VIEWS, turn, turn_coefficients

# Up to this many images all pairs are compared: some 2 s on one thread. Above it, hashes are faster.
EXACT_IMAGES = 2**13
_SAME = 0.9998  # above this, images are copies without regard to the mean; uneven light alone gives .999
_MIN_CONTRAST = 2.0  # grey levels, standard deviation; flatter thumbnails correlate by rounding alone
_FEW = 2**13  # up to this many pairs, only their rows are multiplied (32 MiB)
_BLOCK_CELLS = 2**22  # correlations in memory at a time: 16 MiB
_PAIRS_AT_ONCE = 2**12  # compared in full: two thumbnails each, 32 MiB
_RECENT_PAIRS = 4194301  # a prime; 32 MiB
_COARSE = 8  # side of the thumbnails compared first; it leaves 12 of 4 million pairs of the pets
_ROUNDING = 1e-4  # generous bound for a sum of 1024 products in float32

_Floats = NDArray[np.float32]
_Numbers = NDArray[np.int64]


class Threshold(NamedTuple):
    """The least correlation of near-identical thumbnails, -1..1: of the whole, and of what differs from the mean."""

    whole: float
    details: float


class Pairs(NamedTuple):
    """K pairs of near-identical images: `turn(turned[k], view[k])` is like `upright[k]`, with the correlation
    `score[k]`; a pair may come several times."""

    turned: _Numbers
    upright: _Numbers
    view: _Numbers
    score: _Floats


Skip = Callable[[_Numbers, _Numbers], NDArray[np.bool_]]


def group_equal(thumbnails: NDArray[np.uint8]) -> _Numbers:
    """(N,) for each image the first one with an equal thumbnail."""
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(plane.tobytes(), digest_size=16).digest() for plane in thumbnails)
    return np.array([first.setdefault(digest, index) for index, digest in enumerate(digests)], np.int64)


def find_similar(
    thumbnails: NDArray[np.uint8], threshold: Threshold, skip: Skip, *, min_mean: int = 1, exact: bool | None = None
) -> Iterator[Pairs]:
    """Yield pairs of near-identical images; thumbnails that are nearly flat are in none.

    Memory is bounded: by blocks of pairs, and beside the thumbnails 2 KiB for each image of a large set.

    Args:
        thumbnails: (N, S, S) grey, 0..255.
        threshold: from which on images are near-identical.
        skip: (K,) and (K,) images -> whether these pairs need not be compared; asked again and again in a large set.
        min_mean: with fewer images, nothing is subtracted.
        exact: compare all pairs; None: if there are at most `EXACT_IMAGES`.
    """
    blocks = (thumbnails[start : start + _PAIRS_AT_ONCE] for start in range(0, len(thumbnails), _PAIRS_AT_ONCE))
    contrast = [block.std(axis=(1, 2), dtype=np.float32) for block in blocks]
    lively = np.flatnonzero(np.concatenate([np.zeros(0), *contrast]) >= _MIN_CONTRAST)
    if len(lively) < 2:
        return
    rows = _Rows(thumbnails, lively, len(lively) >= min_mean)
    if exact is None:
        exact = len(lively) <= EXACT_IMAGES
    for pairs in _compare_all(rows, threshold) if exact else _compare_hashed(rows, threshold, skip):
        turned, upright = lively[pairs.turned], lively[pairs.upright]
        chosen = turned != upright
        yield Pairs(turned[chosen], upright[chosen], pairs.view[chosen], pairs.score[chosen])


class _Rows:
    """Thumbnails as rows of norm 1, whose dot products are correlations; calculated when they are needed."""

    def __init__(self, thumbnails: NDArray[np.uint8], lively: _Numbers, subtract_mean: bool) -> None:
        self._thumbnails, self._lively, self.side = thumbnails, lively, thumbnails.shape[1]
        self.mean = np.zeros(self.side**2, np.float32)
        if subtract_mean:
            blocks = (self.unit(rows).sum(axis=0, dtype=np.float64) for rows in self.blocks())
            self.mean = (np.sum(list(blocks), axis=0) / len(lively)).astype(np.float32)

    def __len__(self) -> int:
        return len(self._lively)

    def blocks(self) -> Iterator[_Numbers]:
        """All rows, a few thousand at a time."""
        for start in range(0, len(self), _PAIRS_AT_ONCE):
            yield np.arange(start, min(start + _PAIRS_AT_ONCE, len(self)))

    def unit(self, rows: _Numbers) -> _Floats:
        """(K, S * S) the rows."""
        grey = self._thumbnails[self._lively[rows]].reshape(len(rows), -1).astype(np.float32)
        grey -= grey.mean(axis=1, keepdims=True)
        grey /= np.linalg.norm(grey, axis=1, keepdims=True)
        return grey

    def details(self, unit: _Floats) -> _Floats:
        """The rows without the mean of all, of norm 1."""
        details = unit - self.mean
        details /= np.maximum(np.linalg.norm(details, axis=1, keepdims=True), 1e-6)
        return details

    def turn(self, rows: _Floats, view: int) -> _Floats:
        """(K, S * S) rows in another orientation."""
        return turn(rows.reshape(-1, self.side, self.side), view).reshape(rows.shape)


def _compare_all(rows: _Rows, threshold: Threshold) -> Iterator[Pairs]:
    """Yield the pairs among all, found by comparing all of them coarsely."""
    unit = rows.unit(np.arange(len(rows)))
    details = rows.details(unit)
    coarse = _coarsen(unit, rows.side)
    step = max(16, _BLOCK_CELLS // len(rows))
    for view in range(VIEWS):
        turned, turned_details = rows.turn(unit, view), rows.turn(details, view)
        turned_coarse = _coarsen(turned, rows.side)
        for start in range(0, len(rows), step):
            block = slice(start, start + step)  # compared with all from `start` on: the upper triangle is enough
            likely = np.flatnonzero(coarse[block] @ turned_coarse[start:].T >= threshold.whole - _ROUNDING)
            left, right = np.divmod(likely, len(rows) - start)
            score = _multiply(unit[block], turned[start:], left, right)
            alike = score >= threshold.whole
            left, right, score = left[alike], right[alike], score[alike]
            near = score >= _SAME
            near |= _multiply(details[block], turned_details[start:], left, right) >= threshold.details
            left, right, score = left[near], right[near], score[near]
            yield Pairs(start + right, start + left, np.full(len(left), view), score)


def _compare_hashed(rows: _Rows, threshold: Threshold, skip: Skip) -> Iterator[Pairs]:
    """Yield most of the pairs: those that have a hash in common, coarsely compared first."""
    coarse_unit, coarse_details = (np.concatenate(parts) for parts in zip(*_coefficients(rows), strict=True))
    lively = rows._lively
    compared = _RecentPairs(len(rows))
    for turned, upright, view in find_equal_hashes(coarse_details[:, :-1], threshold.details):
        chosen = np.flatnonzero((turned != upright) & ~skip(lively[turned], lively[upright]))
        turned, upright, view = compared.leave_out(turned[chosen], upright[chosen], view[chosen])
        for one_view in np.unique(view).tolist():
            left, right = turned[view == one_view], upright[view == one_view]
            likely = _multiply_turned(coarse_unit, left, right, one_view) >= threshold.whole - _ROUNDING
            left, right = left[likely], right[likely]
            for start in range(0, len(left), _PAIRS_AT_ONCE):
                block = slice(start, start + _PAIRS_AT_ONCE)
                yield _compare(rows, threshold, left[block], right[block], one_view)


class _RecentPairs:
    """The pairs that were compared last, so that most are compared once though several hashes are equal."""

    def __init__(self, images: int) -> None:
        self._images, self._keys = images, np.full(_RECENT_PAIRS, -1, np.int64)

    def leave_out(self, turned: _Numbers, upright: _Numbers, view: _Numbers) -> tuple[_Numbers, _Numbers, _Numbers]:
        """The pairs that are new, the smaller number first; from now on they are not."""
        view = np.where(turned < upright, view, INVERSE[view])
        low, high = np.minimum(turned, upright), np.maximum(turned, upright)
        keys = np.unique((low * self._images + high) * VIEWS + view)
        places = keys * 0x9E3779B1 % _RECENT_PAIRS  # of a hash table without chains: a newer key replaces an older one
        keys = keys[self._keys[places] != keys]
        self._keys[keys * 0x9E3779B1 % _RECENT_PAIRS] = keys
        pairs, view = np.divmod(keys, VIEWS)
        return *np.divmod(pairs, self._images), view


def _compare(rows: _Rows, threshold: Threshold, left: _Numbers, right: _Numbers, view: int) -> Pairs:
    """Those of the pairs that are near-identical."""
    units = rows.unit(left), rows.unit(right)
    score = np.einsum("ij,ij->i", rows.turn(units[0], view), units[1])
    details = np.einsum("ij,ij->i", rows.turn(rows.details(units[0]), view), rows.details(units[1]))
    near = (score >= threshold.whole) & ((details >= threshold.details) | (score >= _SAME))
    return Pairs(left[near], right[near], np.full(int(near.sum()), view), score[near])


def _coefficients(rows: _Rows) -> Iterator[tuple[_Floats, _Floats]]:
    """For blocks of rows and of their details: (K, C + 1) coefficients of the cosine transform (DCT-II) of the C
    lowest frequencies, and the norm of the remainder."""
    side = rows.side
    frequency, place = np.arange(min(_COARSE, side))[:, None], np.arange(side)
    basis = np.cos(np.pi * (place + 0.5) * frequency / side) * np.sqrt(np.where(frequency > 0, 2, 1) / side)
    basis = basis.astype(np.float32)

    def transform(planes: _Floats) -> _Floats:
        inside = (basis @ planes.reshape(-1, side, side) @ basis.T).reshape(len(planes), -1)
        return _add_remainder(inside)

    for block in rows.blocks():
        unit = rows.unit(block)
        yield transform(unit), transform(rows.details(unit))


def _multiply_turned(coarse: _Floats, left: _Numbers, right: _Numbers, view: int) -> _Floats:
    """(K,) upper bounds of the correlations of images `left`, turned, with images `right`."""
    bounds = [np.zeros(0, np.float32)]
    for start in range(0, len(left), 8 * _PAIRS_AT_ONCE):
        block = slice(start, start + 8 * _PAIRS_AT_ONCE)
        turned, upright = coarse[left[block]], coarse[right[block]]
        turned[:, :-1] = turn_coefficients(turned[:, :-1], view)
        bounds.append(np.einsum("ij,ij->i", turned, upright))
    return np.concatenate(bounds)


def _coarsen(unit: _Floats, side: int) -> _Floats:
    """(N, S * S) of norm 1 -> (N, C) of norm 1, whose dot products are upper bounds of the original ones.

    These are the projections on _COARSE x _COARSE flat cells, and the norm of the remainder: the dot product of two
    remainders is at most the product of their norms (Cauchy-Schwarz).
    """
    cell = np.arange(side) * min(_COARSE, side) // side  # of each row and of each column
    cells = cell[:, None] * (cell[-1] + 1) + cell
    flat = np.equal.outer(cells.reshape(-1), np.arange(cells[-1, -1] + 1)).astype(np.float32)
    return _add_remainder(unit @ (flat / np.sqrt(flat.sum(axis=0))))


def _add_remainder(inside: _Floats) -> _Floats:
    """(N, C) projections of rows of norm 1 -> (N, C + 1): the norm of what is left is the last."""
    outside = np.sqrt(np.maximum(1 - np.square(inside).sum(axis=1, keepdims=True), 0))
    return np.concatenate([inside, outside], axis=1).astype(np.float32)


def _multiply(rows: _Floats, others: _Floats, left: NDArray[Any], right: NDArray[Any]) -> _Floats:
    """(K,) the dot products rows[left[k]] . others[right[k]]; for many pairs by one matrix product."""
    if len(left) <= _FEW:
        return np.asarray(np.einsum("ij,ij->i", rows[left], others[right]))
    return np.asarray((rows @ others.T)[left, right])
