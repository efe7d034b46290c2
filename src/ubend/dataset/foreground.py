"""Foreground oversampling: places a fraction of the training crops on objects.

If crops are smaller than the images, a random crop seldom shows a small object. So a fraction of the crops is placed
to show a foreground pixel: first a class is drawn, with equal probability for each class in the image, then a pixel
of it. Every draw is a function of (seed, purpose, position) or (seed, purpose, image).

After Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ubend.core.counter_rng import random_uniform

_MAX_CANDIDATES = 256  # pixels kept of each class in each image
_MAX_BYTES = 2**26  # of all candidates together
_PART_PIXELS = 2**22  # of a mask, searched at a time


class Foreground:
    """Draws foreground pixels for crops to show.

    Args:
        mask: item -> (h, w) uint8 class index or IGNORED, at the stored size.
        items: number of images.
        classes: class indices of the foreground.
        share: fraction of the crops to be placed on the foreground, 0..1.
        seed: of the run.
    """

    def __init__(
        self, mask: Callable[[int], NDArray[np.uint8]], items: int, classes: tuple[int, ...], share: float, seed: int
    ) -> None:
        self._mask, self._classes, self.share, self._seed = mask, classes, share, seed
        self._count = int(np.clip(_MAX_BYTES // (8 * max(1, items * len(classes))), 1, _MAX_CANDIDATES))
        self._known: dict[int, list[NDArray[np.int32]]] = {}

    def sample(self, items: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 4): the pixel (y, x), and its position in the crop relative to the centre, each -1..1.

        NaN if the crop is to be placed at random, also in images without foreground.
        """
        uniform = random_uniform(self._seed, "foreground", positions, 5)
        out = np.full((len(items), 4), np.nan)
        for slot in np.flatnonzero(uniform[:, 0] < self.share):
            there = self._candidates(int(items[slot]))
            if there:
                pixels = there[int(uniform[slot, 1] * len(there))]
                out[slot, :2] = pixels[int(uniform[slot, 2] * len(pixels))]
                out[slot, 2:] = 2.0 * uniform[slot, 3:] - 1.0
        return out

    def _candidates(self, item: int) -> list[NDArray[np.int32]]:
        """(k, 2) pixels of each foreground class in an image; computed on first use."""
        if item not in self._known:
            mask = self._mask(item)
            candidates = []
            for class_index in self._classes:
                step = max(1, _PART_PIXELS // mask.shape[1])
                parts = [mask[start : start + step] for start in range(0, len(mask), step)]
                counts = [int(np.count_nonzero(part == class_index)) for part in parts]
                total = sum(counts)
                ranks = np.arange(total)
                if total > self._count:
                    chosen = random_uniform(self._seed, "candidates", np.array([item]), self._count, class_index)[0]
                    ranks = (chosen * total).astype(np.int64)
                positions, before = np.empty(len(ranks), np.int64), 0
                for row, part, count in zip(range(0, len(mask), step), parts, counts, strict=True):
                    here = (ranks >= before) & (ranks < before + count)
                    if here.any():
                        positions[here] = (
                            row * mask.shape[1] + np.flatnonzero(part == class_index)[ranks[here] - before]
                        )
                    before += count
                if len(positions):
                    candidates.append(np.stack(np.divmod(positions, mask.shape[1]), axis=1).astype(np.int32))
            self._known[item] = candidates
        return self._known[item]
