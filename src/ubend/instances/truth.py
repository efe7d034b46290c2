"""True objects (images of ids, drawn by people), and the scores of found objects. H x W pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.core.errors import DataError, SettingError
from ubend.core.i18n import _
from ubend.metrics.panoptic import Quality
from ubend.portable.decode import read_header, read_raster
from ubend.portable.objects import Objects, object_classes

_SUFFIXES = (".png", ".tif", ".tiff")
Files = dict[int, Path]  # class index -> id image
ObjectScores = dict[str, Any]


def find_truth(folder: Path, images: Mapping[Path, tuple[int, int]], names: Sequence[str]) -> dict[Path, Files]:
    """Find the id image of each image: `NAME.png` or `NAME_ids.tif` (also `.tiff`) for NAME.jpg.

    An id image contains whole numbers, 0 where there is no object. With several classes of objects, each has its own id
    images, in `FOLDER/CLASS/`.

    Args:
        folder: the folder of id images.
        images: image -> (H, W), px.
        names: class names.
    Raises:
        SettingError: the folder does not exist.
        DataError: lists all id images that are missing, ambiguous, or of another size than their image.
    """
    kinds = object_classes(names)
    places = {index: folder / names[index] if len(kinds) > 1 else folder for index in kinds}
    for class_folder in places.values():
        if not class_folder.is_dir():
            raise SettingError(
                _("--truth {folder}: no such folder; give a folder with an id image, NAME.png, for each image").format(
                    folder=class_folder
                ),
                path=class_folder,
                key="--truth",
            )
    problems: list[str] = []
    files_of: dict[Path, Files] = {}
    for image, size_hw in images.items():
        files_of[image] = {}
        for index, class_folder in places.items():
            try:
                files_of[image][index] = _find_file(class_folder, image, size_hw)
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(problems)
    return files_of


def _find_file(class_folder: Path, image: Path, size_hw: tuple[int, int]) -> Path:
    files = [class_folder / f"{image.stem}{end}{suffix}" for end in ("", "_ids") for suffix in _SUFFIXES]
    region = [path for path in files if path.exists()]
    if len(region) != 1:
        listed = ", ".join(path.name for path in region or files[:1])
        missing = _("{image}: no true ids in {folder}; add {names}, or leave the image out")
        several = _("{image}: several true ids in {folder}: {names}; keep one")
        raise DataError(
            (several if region else missing).format(image=image, folder=class_folder, names=listed),
            path=image,
            key="--truth",
        )
    header = read_header(region[0])
    if header.size_hw != size_hw:
        raise DataError(
            _("{path}: {found} px, but {image} has {size}; an id image must be as large as its image").format(
                path=region[0],
                found=f"{header.width}x{header.height}",
                image=image,
                size=f"{size_hw[1]}x{size_hw[0]}",
            ),
            path=region[0],
            key="--truth",
        )
    return region[0]


def read_truth(files: Files) -> Objects:
    """The true objects of an image, renumbered.

    Raises:
        DataError: a file is unreadable, has several channels, or values that are not whole numbers; or objects of two
            classes overlap.
    """
    ids, classes = np.zeros((0, 0), np.uint32), list[int]()
    for index, path in files.items():
        layer = _read_ids(path)
        ids = ids if ids.size else np.zeros(layer.shape, np.uint32)
        if (ids[layer > 0] > 0).any():
            raise DataError(
                _(
                    "{path}: some of its objects overlap those of another class; each pixel can belong to one object"
                ).format(path=path),
                path=path,
                key="--truth",
            )
        ids[layer > 0] = layer[layer > 0] + len(classes)
        classes += [index] * int(layer.max(initial=0))
    return Objects(ids, np.array(classes, np.uint8))


def keep_valid(truth: Objects, valid: NDArray[np.bool_]) -> Objects:
    """The valid parts of objects; objects without valid pixels are removed, and the others renumbered.

    Args:
        truth: the objects.
        valid: (H, W) whether a pixel of the image is valid.
    """
    ids = np.where(valid, truth.ids, 0)
    left = np.unique(ids[ids > 0])
    new = np.zeros(len(truth.classes) + 1, np.uint32)
    new[left] = np.arange(1, len(left) + 1)
    return Objects(new[ids], truth.classes[left.astype(np.int64) - 1])


def _read_ids(path: Path) -> NDArray[np.uint32]:
    """(H, W) ids 1, 2, ... without gaps; 0: no object."""
    raster = read_raster(path)
    pixels = raster.pixels[:, :, 0]
    if raster.pixels.shape[2] != 1 or pixels.dtype.kind not in "bui" or pixels.min(initial=0) < 0 or raster.lossy:
        raise DataError(
            _("{path}: not an id image; save one channel of whole numbers (8, 16 or 32 bit) as PNG or TIFF").format(
                path=path
            ),
            path=path,
            key="--truth",
        )
    values, inverse = np.unique(pixels, return_inverse=True)
    return (inverse.reshape(pixels.shape) + int(values[0] != 0)).astype(np.uint32)


def looks_like_mask(truth: Objects) -> bool:
    """Whether an id has two connected regions or more on average: probably a class mask instead of ids."""
    boxes = enumerate(scipy.ndimage.find_objects(truth.ids), start=1)
    regions = sum(scipy.ndimage.label(truth.ids[box] == i, np.ones((3, 3)))[1] for i, box in boxes if box is not None)
    return int(regions) >= 2 * len(truth.classes) > 0


def score(qualities: Mapping[Path, Sequence[Quality]], names: Sequence[str]) -> ObjectScores:
    """The scores of each class of objects, over all images and for each image.

    Args:
        qualities: image -> the quality of each class.
        names: class names.
    """
    kinds = object_classes(names)
    total = {names[i]: sum((image_quality[i] for image_quality in qualities.values()), Quality()) for i in kinds}
    summary = {}
    for index, (name, quality) in zip(kinds, total.items(), strict=True):
        errors = [abs(image_quality[index].count_error) for image_quality in qualities.values()]
        mean = round(float(np.mean(errors)), 6) if errors else None
        summary[name] = _figures(quality) | {"mean_absolute_count_error": mean}
    each = {
        str(path): {names[i]: _figures(image_quality[i]) for i in kinds} for path, image_quality in qualities.items()
    }
    return {"pictures": len(qualities), "classes": summary, "per_picture": each}


def _figures(quality: Quality) -> ObjectScores:
    """The scores for JSON; None where they are undefined."""
    ratios = {
        "pq": quality.panoptic,
        "sq": quality.segmentation,
        "rq": quality.recognition,
        "f1": quality.recognition,  # RQ is the F1 score of objects
    }
    return {name: None if np.isnan(value) else round(float(value), 6) for name, value in ratios.items()} | {
        "true": quality.matched + quality.missed,
        "found": quality.matched + quality.extra,
        "matched": quality.matched,
        "count_error": quality.count_error,
    }


def score_lines(scores: ObjectScores) -> list[str]:
    """The scores of all images as a table in plain text."""
    wide = max(5, *(len(name) for name in scores["classes"]))
    heads = ["PQ", "SQ", "RQ = F1", _("true"), _("found"), _("error"), _("error per image")]
    lines = [" " * (wide + 2) + "".join(f"{head:>{max(9, len(head) + 2)}}" for head in heads)]
    for name, figures in scores["classes"].items():
        ratios = ["-" if figures[key] is None else f"{figures[key]:.4f}" for key in ("pq", "sq", "rq")]
        counts = [str(figures["true"]), str(figures["found"]), f"{figures['count_error']:+d}"]
        error = figures["mean_absolute_count_error"]
        cells = [*ratios, *counts, "-" if error is None else f"{error:.2f}"]
        row = "".join(f"{cell:>{max(9, len(head) + 2)}}" for cell, head in zip(cells, heads, strict=True))
        lines.append(f"  {name:<{wide}}{row}")
    return lines
