"""k-means clusters of an image's pixels, and (`rule.py`) of the segments of many images.

Source: Lloyd 1982, IEEE IT 28(2); first centres by k-means++, Arthur & Vassilvitskii 2007.
"""

import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ubend_lessons.baselines.pixels import By, Pixels

_SEEN = 4096  # pixels of an image from which the centres are computed; then all pixels are assigned to the nearest
_SEED = 0  # of the initial centres


@dataclass(frozen=True)
class Clusters:
    """Clusters of vectors.

    Attributes:
        centers: (K, D).
    """

    centers: NDArray[np.float64]

    def nearest(self, values: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
        """(n, D) values -> (n,) index of the nearest centre."""
        far = (self.centers**2).sum(axis=1) - 2 * values @ self.centers.T  # without |value|^2, equal for all centres
        return np.asarray(far.argmin(axis=1))


def find_clusters(
    values: NDArray[np.floating[Any]], count: int, weights: NDArray[np.floating[Any]] | None = None
) -> Clusters:
    """At most `count` clusters of (n, D) values, optionally weighted; fewer if there are fewer distinct values."""
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(values, axis=0)))
    with one_thread():
        found = KMeans(count, n_init=1, random_state=_SEED).fit(values, sample_weight=weights)
    return Clusters(np.asarray(found.cluster_centers_, np.float64))


def one_thread() -> AbstractContextManager[Any]:
    """A context in which OpenMP starts no threads: images are already processed in threads.

    OpenMP's limit applies to the current thread; the limit of linear algebra, which applies to the process, is not
    changed.
    """
    return cast(AbstractContextManager[Any], _find_pools().limit(limits=1, user_api="openmp"))


@functools.cache
def _find_pools() -> Any:
    import skimage.segmentation  # noqa: F401, only the thread pools of imported libraries are found
    import sklearn.cluster  # noqa: F401
    from threadpoolctl import ThreadpoolController  # a dependency of scikit-learn

    return ThreadpoolController()


def cluster_pixels(pixels: Pixels, by: By, clusters: int) -> NDArray[np.intp]:
    """(h, w) number of each pixel's cluster, independent of its position.

    Cluster numbers have no common meaning in different images, so classes are assigned by the clusters' descriptors
    (`segments.py`).
    """
    maps = pixels.maps(by)
    values = maps.reshape(-1, maps.shape[2])
    seen = values[:: max(1, len(values) // _SEEN)]
    return find_clusters(seen, clusters).nearest(values).reshape(maps.shape[:2])
