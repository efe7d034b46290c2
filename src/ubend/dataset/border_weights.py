"""Border weights of the U-Net paper: larger pixel weights in gaps between close objects.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

d1 and d2 are the distances to the nearest and the second nearest object; w_c, which balances the classes, is part of
the loss. The second term is used only outside objects, as in the paper's figure 3: inside an object d1 is 0, so that
both sides of a narrow gap would have the same weights as the gap, and together more weight.

H x W pixels.

Source: Ronneberger et al. 2015, arXiv:1505.04597, equation 2.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.core.i18n import _
from ubend.core.plan import TrainPlan
from ubend.dataset.dataset import Dataset
from ubend.dataset.sources import ItemSource
from ubend.instances.truth import find_truth, read_truth
from ubend.labels.class_table import IGNORED
from ubend.portable.objects import choose_method, object_classes, separate

_NEGLIGIBLE = 1e-3  # smaller weights are set to 0
_THREADS = 4


def border_weights(
    ids: NDArray[np.integer], ground: NDArray[np.bool_], w0: float, sigma_px: float
) -> NDArray[np.float32]:
    """Compute the second term of the weight map.

    Args:
        ids: (H, W) object ids, 0 for none.
        ground: (H, W) pixels that get a weight.
        w0: the largest weight, between two touching objects.
        sigma_px: the value of d1 + d2, in px, at which the weight is w0 exp(-1/2).
    Returns:
        (H, W) float32, 0..w0; values below 0.001 are 0.
    """
    reach = math.ceil(sigma_px * math.sqrt(2 * math.log(max(1.0, w0 / _NEGLIGIBLE))))
    nearest = np.full(ids.shape, np.inf, np.float32)
    second = nearest.copy()
    # Distances of each object are computed only within the reach of its weights.
    for object_id, box in enumerate(scipy.ndimage.find_objects(ids.astype(np.int32)), 1):
        if box is None:
            continue
        rows, columns = box
        here = (
            slice(max(0, rows.start - reach), rows.stop + reach),
            slice(max(0, columns.start - reach), columns.stop + reach),
        )
        away = scipy.ndimage.distance_transform_edt(ids[here] != object_id).astype(np.float32)
        second[here] = np.minimum(second[here], np.maximum(nearest[here], away))
        nearest[here] = np.minimum(nearest[here], away)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma_px**2))
    weighed: NDArray[np.float32] = np.where(ground & (weights >= _NEGLIGIBLE), weights, 0).astype(np.float32)
    return weighed


def border_weights_of(data: Dataset, images: ItemSource, settings: TrainPlan) -> NDArray[np.float16] | None:
    """The border weights of the training images, at the size of training; None if `train.border_weight` is 0.

    Objects are those of the true ids next to the images (`find_id_folder`), else those of the masks, separated as by
    `ubend objects`.

    Returns:
        (n, H, W) on the images' canvas, 0 where there is no image; float16, to save memory.
    Raises:
        DataError: true ids that are missing or do not fit their image.
    """
    if not settings.border_weight:
        return None
    names, image_indices = data.labels.names, images.image_indices.tolist()
    paths = [data.folder.pairs[index].image for index in image_indices]
    sizes = [(int(height), int(width)) for height, width in data.store.native_hw[image_indices]]
    folder, kinds = find_id_folder(data), object_classes(names)
    files = None if folder is None else find_truth(folder, dict(zip(paths, sizes, strict=True)), names)
    weights = np.zeros((len(image_indices), *images.canvas_hw), np.float16)

    def weigh(item: int) -> None:
        mask = data.store.mask(image_indices[item])
        objects = read_truth(files[paths[item]]) if files else separate(mask, names, choose_method(names))
        rows, columns = (
            ((np.arange(small) + 0.5) * large / small).astype(np.int64)
            for small, large in zip(mask.shape, objects.ids.shape, strict=True)
        )
        ground = ~np.isin(mask, [*kinds, IGNORED])
        height, width = mask.shape
        weights[item, :height, :width] = border_weights(
            objects.ids[rows[:, None], columns], ground, settings.border_weight, settings.border_sigma_px
        )

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ubend-weigh") as pool:
        list(pool.map(weigh, range(len(image_indices))))
    return weights


def find_id_folder(data: Dataset) -> Path | None:
    """The folder of true object ids (`ids`), if the data set has it and exactly one kind of object; otherwise None."""
    folder = data.folder.root / "ids"
    return folder if len(object_classes(data.labels.names)) == 1 and folder.is_dir() else None


def describe_objects(data: Dataset) -> str:
    """A message saying which objects the border weights refer to."""
    folder = find_id_folder(data)
    if folder is not None:
        return _("border weights: between the objects of {folder}").format(folder=folder)
    return _(
        "border weights: between the objects of the masks; to separate touching ones, put their true ids in {folder}"
    ).format(folder=data.folder.root / "ids")
