"""What pixels between close objects weigh more: the border weights of the U-Net paper.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

d1 and d2 are the distances to the nearest and the second nearest object; w_c, which balances the classes, is left to
the loss. The second term is given to the ground between objects alone, as the paper's figure 3 draws it: inside an
object d1 is 0, so that both sides of a narrow gap would weigh as much as the gap, and together more than it.

H x W pixels.

Source: Ronneberger et al. 2015, arXiv:1505.04597, equation 2.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ubend.core.i18n import _
from ubend.core.plan import TrainPlan
from ubend.dataset.dataset import Dataset
from ubend.dataset.sources import ItemSource
from ubend.instances.instances import choose_method, object_classes, separate
from ubend.instances.truth import find_truth, read_truth
from ubend.labels.class_table import IGNORED

_NEGLIGIBLE = 1e-3  # less weight than this is 0
_THREADS = 4


def border_weights(
    ids: NDArray[np.integer], ground: NDArray[np.bool_], w0: float, sigma_px: float
) -> NDArray[np.float32]:
    """The second term of the weight map.

    Args:
        ids: (H, W), 0 where there is no object, else its number.
        ground: (H, W) where pixels may weigh more.
        w0: the greatest weight, between two objects that touch.
        sigma_px: px; at d1 + d2 of so much, exp(-1/2) of it is left.
    Returns:
        (H, W) float32, 0..w0; what is below 0.001 is 0.
    """
    reach = math.ceil(sigma_px * math.sqrt(2 * math.log(max(1.0, w0 / _NEGLIGIBLE))))
    nearest = np.full(ids.shape, np.inf, np.float32)
    second = nearest.copy()
    # each object is looked at no farther than its weight reaches
    for number, box in enumerate(ndimage.find_objects(ids.astype(np.int32)), 1):
        if box is None:
            continue
        rows, columns = box
        here = (
            slice(max(0, rows.start - reach), rows.stop + reach),
            slice(max(0, columns.start - reach), columns.stop + reach),
        )
        away = ndimage.distance_transform_edt(ids[here] != number).astype(np.float32)
        second[here] = np.minimum(second[here], np.maximum(nearest[here], away))
        nearest[here] = np.minimum(nearest[here], away)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma_px**2))
    weighed: NDArray[np.float32] = np.where(ground & (weights >= _NEGLIGIBLE), weights, 0).astype(np.float32)
    return weighed


def border_weights_of(data: Dataset, images: ItemSource, settings: TrainPlan) -> NDArray[np.float16] | None:
    """The border weights of training images, at the size at which they are learnt; None where none are asked for.

    Objects are those of the true ids beside the images (`find_ids`), else those of the masks, separated as
    `ubend count` does.

    Returns:
        (n, H, W) on the images' canvas, 0 where there is no image; of numpy's smallest float, as they may be many.
    Raises:
        DataError: true ids that are missing or do not fit their image.
    """
    if not settings.border_weight:
        return None
    names, numbers = data.labels.names, images.numbers.tolist()
    paths = [data.folder.pairs[number].image for number in numbers]
    sizes = [(int(height), int(width)) for height, width in data.store.native_hw[numbers]]
    folder, kinds = find_ids(data), object_classes(names)
    files = None if folder is None else find_truth(folder, dict(zip(paths, sizes, strict=True)), names)
    weights = np.zeros((len(numbers), *images.canvas_hw), np.float16)

    def weigh(item: int) -> None:
        mask = data.store.mask(numbers[item])
        found = read_truth(files[paths[item]]) if files else separate(mask, names, choose_method(names))
        rows, columns = (
            ((np.arange(small) + 0.5) * large / small).astype(np.int64)
            for small, large in zip(mask.shape, found.ids.shape, strict=True)
        )
        ground = ~np.isin(mask, [*kinds, IGNORED])
        height, width = mask.shape
        weights[item, :height, :width] = border_weights(
            found.ids[rows[:, None], columns], ground, settings.border_weight, settings.border_sigma_px
        )

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ubend-weigh") as pool:
        list(pool.map(weigh, range(len(numbers))))
    return weights


def find_ids(data: Dataset) -> Path | None:
    """The folder of true ids of a data set with one kind of object, as the drawn sample has it."""
    folder = data.folder.root / "ids"
    return folder if len(object_classes(data.labels.names)) == 1 and folder.is_dir() else None


def describe_objects(data: Dataset) -> str:
    """One line: between which objects borders are weighed."""
    folder = find_ids(data)
    if folder is not None:
        return _("border weights: between the objects of {folder}").format(folder=folder)
    return _(
        "border weights: between the objects of the masks; true ids of touching ones would lie in {folder}"
    ).format(folder=data.folder.root / "ids")
