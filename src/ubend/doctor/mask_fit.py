"""Masks that fit their image far worse than the set's: shifted, flipped, inverted, of another image; or wrongly empty.

A linear model of the set's own pixels (colours at four scales, texture, place; ridge regression on the class, each
image predicted by a model of the others) gives each image a map of each class. The fit of a mask is the correlation
with these maps, plus the correlation of its outlines with the image's edges. The fit is also calculated for the mask
moved, by a Fourier transform, and flipped. What fits badly is not reported if the image alone says that the mask is
right (`mask_evidence.py`). Measured by benchmarks/synthetic_faults.py; see docs/experiments.md.

Axis letters: h, w of a small image; K classes; D features.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.core.i18n import _
from ubend.dataset.scan import threads
from ubend.doctor.finding import Finding
from ubend.doctor.inspection import SIDE_PX, Inspection, lower_bound, upper_bound
from ubend.doctor.mask_evidence import improves_when_moved, measure_place_fit, measure_rank
from ubend.labels.class_table import IGNORED

_Floats = NDArray[np.float32]
_MIN_IMAGES = 12  # fewer do not say what is usual
_LEARNT_IMAGES = 300  # of which the model is made
_LEARNT_PIXELS = 400  # of each
_MAX_CLASSES = 12
_FOLDS = 5
_REACH = 0.12  # of the side: how far a mask is moved
_NEAR = 0.02  # of the side: nearer than this the place is right
_MIN_FLIP_GAIN, _MIN_SHIFT_GAIN = 0.15, 0.2  # of the fit, of which 2 is the most; measured on the pets
_MIN_EDGE = 0.05  # of the median fit of edges: below it edges tell nothing
_EDGE_SHARE = 0.5  # of the usual fit of edges, that is gained
# Share of other images' masks that separate an image's colours as well as its own mask. Measured: right masks that fit
# badly have .07 and less, the wrong one of CamVid .5.
_MAX_RANK = 0.1
_CLEAR_SET = 0.8  # usual correlation of regions: from here on colours tell the class, and a mask must agree with them
# A mask is inverted if its fit of colours and places (-2..2) is below -_INVERTED_SHARE times the set's median; with a
# median below _MIN_INVERTIBLE, colours and places tell nothing, and none is reported. Measured on five sets: inverted
# masks have -.93 and -.69 of the median, right ones -.37 and more.
_INVERTED_SHARE, _MIN_INVERTIBLE = 0.5, 0.4
_EMPTY_QUANTILE = 0.1  # of the images with objects: an empty mask's image that looks more like an object is suspicious
_FLIPS: dict[str, Callable[[Any], Any]] = {
    "left-right": lambda array: array[..., ::-1],
    "up-down": lambda array: array[..., ::-1, :],
    "turned by 180 degrees": lambda array: array[..., ::-1, ::-1],
    "turned by 90 degrees": lambda array: array.swapaxes(-1, -2)[..., ::-1],
    "turned by 270 degrees": lambda array: array.swapaxes(-1, -2)[..., ::-1, :],
    "transposed": lambda array: array.swapaxes(-1, -2),
}


@dataclass(frozen=True)
class Fit:
    """How well a mask fits its image.

    Attributes:
        fit: correlation of regions plus correlation of edges, -2..2.
        edge_fit: the latter alone.
        flip, flip_gain: the best flip, and how much better the mask fits after it.
        flip_edge_gain, shift_edge_gain: how much better the edges do.
        shift_yx, shift_gain: the best move, in shares of the long side, and how much better the mask fits after it.
        object_like: how much the most object-like hundredth of the image looks like an object, about 0..1.
    """

    fit: float
    edge_fit: float
    flip: str
    flip_gain: float
    flip_edge_gain: float
    shift_yx: tuple[float, float]
    shift_gain: float
    shift_edge_gain: float
    object_like: float


def check_mask_fit(inspection: Inspection) -> list[Finding]:
    """Masks that fit far worse than the set's, and empty masks of images that show what others' masks mark."""
    fits = measure_fits(inspection)
    if not fits:
        return []
    empty = np.delete(inspection.class_pixels, _background(inspection), axis=1).sum(axis=1) == 0
    return [*_find_misfits(inspection, fits), *_find_wrongly_empty(inspection, fits, empty)]


def _find_misfits(inspection: Inspection, fits: list[Fit]) -> list[Finding]:
    marked = np.flatnonzero((inspection.class_pixels > 0).sum(axis=1) > 1)
    if len(marked) < _MIN_IMAGES:
        return []
    fit, flips, shifts = (
        np.array([getattr(fits[i], name) for i in marked]) for name in ("fit", "flip_gain", "shift_gain")
    )
    usual, least = float(np.median(fit)), lower_bound(fit)
    flip_bound, shift_bound = max(_MIN_FLIP_GAIN, upper_bound(flips)), max(_MIN_SHIFT_GAIN, upper_bound(shifts))
    usual_edge = float(np.median([fits[i].edge_fit for i in marked]))
    edge_bound = _EDGE_SHARE * usual_edge if usual_edge > _MIN_EDGE else -2.0  # fine structures have no edges here
    inverted = _find_inverted(inspection, fits, marked)
    findings = list(inverted.values())
    for i in marked.tolist():
        if i in inverted:
            continue
        measured = fits[i]
        pixels, mask = inspection.small[i]
        good = max(least, usual / 2)  # what a repaired mask must reach
        is_flipped = (
            measured.flip_gain > flip_bound
            and measured.flip_edge_gain > edge_bound
            and measured.fit + measured.flip_gain >= good
        )
        is_shifted = (
            measured.shift_gain > shift_bound
            and measured.shift_edge_gain > edge_bound
            and measured.fit + measured.shift_gain >= good
        )
        if is_flipped and (not is_shifted or measured.flip_gain >= measured.shift_gain):
            findings.append(_report_flip(inspection, i, measured, flip_bound))
        elif is_shifted:
            if improves_when_moved(pixels, mask, measured.shift_yx):
                findings.append(_report_shift(inspection, i, measured, shift_bound))
        elif measured.fit < least and measured.fit < usual / 2:
            rank = measure_rank(inspection.small, i)
            if rank > _MAX_RANK or usual - usual_edge > _CLEAR_SET:
                findings.append(_report_misfit(inspection, i, measured, usual, min(least, usual / 2), rank))
    return findings


def _report_flip(inspection: Inspection, index: int, measured: Fit, bound: float) -> Finding:
    return Finding(
        "flipped mask",
        "error" if measured.flip_gain > 2 * bound else "warning",
        (inspection.mask_path(index), inspection.image_path(index)),
        _("the mask fits its image far better {flip}").format(flip=name_flip(measured.flip)),
        _("look at both; flip or turn the mask, or annotate it again"),
        {"fit": measured.fit, "flip": measured.flip, "gain": measured.flip_gain, "threshold": bound},
    )


def _report_shift(inspection: Inspection, index: int, measured: Fit, bound: float) -> Finding:
    dy, dx = measured.shift_yx
    return Finding(
        "shifted mask",
        "error" if measured.shift_gain > 2 * bound else "warning",
        (inspection.mask_path(index), inspection.image_path(index)),
        _("the mask may be shifted: moved {direction} it would fit its image far better").format(
            direction=_describe_shift(dx, dy)
        ),
        _("look at image and mask; if it is shifted, move the mask or annotate it again"),
        {"fit": measured.fit, "dx": dx, "dy": dy, "gain": measured.shift_gain, "threshold": bound},
    )


def _report_misfit(
    inspection: Inspection, index: int, measured: Fit, usual: float, bound: float, rank: float
) -> Finding:
    return Finding(
        "unfitting mask",
        "warning",
        (inspection.mask_path(index), inspection.image_path(index)),
        _("the mask fits its image far worse than the other masks fit theirs"),
        _("look at both: it may be another image's mask, or a poor annotation"),
        {"fit": measured.fit, "usual": usual, "threshold": bound, "rank": rank},
    )


def _find_inverted(inspection: Inspection, fits: list[Fit], marked: NDArray[np.int64]) -> dict[int, Finding]:
    """Image -> the finding, where colours and places both contradict the classes."""
    place_fit = measure_place_fit([mask for _pixels, mask in inspection.small], inspection.data.labels.classes)
    fit = np.array([measured.fit - measured.edge_fit for measured in fits]) + place_fit
    usual = float(np.median(fit[marked]))
    if usual < _MIN_INVERTIBLE:
        return {}
    bound = -_INVERTED_SHARE * usual
    return {
        i: Finding(
            "inverted mask",
            "warning",
            (inspection.mask_path(i), inspection.image_path(i)),
            _("the mask marks as background what other masks mark as objects, and the other way round"),
            _("look at both; exchange background and object in the mask, or annotate it again"),
            {"fit": float(fit[i]), "usual": usual, "threshold": bound},
        )
        for i in marked.tolist()
        if fit[i] < bound
    }


def _find_wrongly_empty(inspection: Inspection, fits: list[Fit], empty: NDArray[np.bool_]) -> list[Finding]:
    like = np.array([measured.object_like for measured in fits])
    if not empty.any() or (~empty).sum() < _MIN_IMAGES:
        return []
    bound = float(np.quantile(like[~empty], _EMPTY_QUANTILE))
    suspicious = np.flatnonzero(empty & (like > bound))
    if 2 * len(suspicious) > empty.sum() > 4:  # so many that the measure tells nothing about this set
        return []
    return [
        Finding(
            "missing objects",
            "warning",
            (inspection.mask_path(i), inspection.image_path(i)),
            _("the mask is empty, but the image holds what other masks mark"),
            _("look at the image; annotate it, or leave it out"),
            {"score": float(like[i]), "threshold": bound},
        )
        for i in suspicious.tolist()
    ]


def name_flip(flip: str) -> str:
    """A flip in the chosen language, as the end of a sentence."""
    return {
        "left-right": _("flipped left to right"),
        "up-down": _("flipped upside down"),
        "turned by 180 degrees": _("turned by 180 degrees"),
        "turned by 90 degrees": _("turned by 90 degrees"),
        "turned by 270 degrees": _("turned by 270 degrees"),
        "transposed": _("with rows and columns exchanged"),
    }[flip]


def _background(inspection: Inspection) -> int:
    return next(i for i in range(inspection.data.labels.classes) if i not in set(inspection.data.foreground_classes()))


def measure_fits(inspection: Inspection) -> list[Fit]:
    """The fit of each mask; empty for sets that are too small."""
    if len(inspection) < _MIN_IMAGES:
        return []
    shares = inspection.class_pixels.sum(axis=0)
    classes = np.sort(np.argsort(-shares, kind="stable")[:_MAX_CLASSES])
    objects = np.flatnonzero(classes != _background(inspection))
    models = _learn(inspection, classes)

    def measure(index: int) -> Fit:
        pixels, mask = inspection.small[index]
        image = pixels.astype(np.float32)
        features = _features(image)
        maps = (models[index % _FOLDS].T @ features.reshape(len(features), -1)).reshape(-1, *mask.shape)
        return _measure_fit(image, mask, maps, classes, objects)

    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(measure, range(len(inspection))))


def _learn(inspection: Inspection, classes: NDArray[np.int64]) -> list[_Floats]:
    """(D, K) weights for the images of each fold, learnt of the other folds."""
    chosen = np.linspace(0, len(inspection) - 1, min(len(inspection), _LEARNT_IMAGES)).astype(np.int64)

    def sums(index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        pixels, mask = inspection.small[index]
        flat = mask.reshape(-1)
        places = np.flatnonzero(flat != IGNORED)
        # evenly in an order that no texture has: a multiple of the golden ratio
        places = places[((np.arange(_LEARNT_PIXELS) * 0.6180339887) % 1 * len(places)).astype(np.int64)]
        columns = _features(pixels.astype(np.float32)).reshape(-1, mask.size)[:, places].astype(np.float64)
        return columns @ columns.T, columns @ (flat[places][:, None] == classes)

    with ThreadPoolExecutor(threads()) as pool:
        sums_of_images = list(pool.map(sums, chosen.tolist()))
    folds = chosen % _FOLDS
    models = []
    for fold in range(_FOLDS):
        squares, products = (
            sum(image_sums[k] for image_sums, f in zip(sums_of_images, folds, strict=True) if f != fold) for k in (0, 1)
        )
        ridge = 0.1 * len(chosen) * np.eye(len(np.asarray(squares)))
        models.append(np.linalg.solve(squares + ridge, products).astype(np.float32))
    return models


def _features(image: _Floats) -> _Floats:
    """(h, w, c) -> (D, h, w): values at four scales, relative to the image and absolute, texture, products, place."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))  # sums over whole planes are far faster
    c, h, w = planes.shape
    flat = planes.reshape(c, -1)
    mean, deviation = flat.mean(axis=1), flat.std(axis=1) + 8
    relative = (planes - mean[:, None, None]) / deviation[:, None, None]
    scales = [relative, *(scipy.ndimage.uniform_filter(relative, (1, side, side)) for side in (5, 11, 23))]
    fine, middle, coarse = scales[1:]
    texture = np.sqrt(np.maximum(scipy.ndimage.uniform_filter((relative - fine)[:1] ** 2, (1, 5, 5)), 0))
    products = [fine * fine, fine * middle, middle * middle, middle * coarse]
    if c > 1:
        products.append(fine[:1] * fine[1:2])
    y, x = np.meshgrid(np.linspace(-1, 1, h, dtype=np.float32), np.linspace(-1, 1, w, dtype=np.float32), indexing="ij")
    place = np.stack([y, x, y * y, x * x, y * x, np.ones_like(x)])
    stacked = np.concatenate([*scales, planes / 255, texture, *products, place])
    return np.clip(stacked, -4, 4, out=stacked)


def _measure_fit(
    image: _Floats, mask: NDArray[np.uint8], maps: _Floats, classes: NDArray[np.int64], objects: NDArray[np.int64]
) -> Fit:
    """The fit of (h, w) `mask`, by (K, h, w) `maps` of the classes; `objects`: which of them are foreground."""
    like = np.sort(maps[objects].sum(axis=0), axis=None)
    object_like = float(like[-max(1, like.size // 100) :].mean())
    regions = _center((mask == classes[:, None, None]).astype(np.float32))
    edges, outlines = _edges(image)[None], _center(_outlines(mask)[None])
    pairs = ((regions, _center(maps)), (outlines, edges))
    norms = [float(np.sqrt((a * a).sum() * (b * b).sum())) + 1e-9 for a, b in pairs]
    reach = int(np.ceil(_REACH * max(mask.shape)))
    regions_moved, edges_moved = (_correlate(a, b, reach) / norm for (a, b), norm in zip(pairs, norms, strict=True))
    moved = regions_moved + edges_moved
    fit, edge_fit = float(moved[reach, reach]), float(edges_moved[reach, reach])
    flips = {
        name: [float((flip(a) * b).sum() / norm) for (a, b), norm in zip(pairs, norms, strict=True)]
        for name, flip in _FLIPS.items()
        if flip(mask).shape == mask.shape
    }
    flip = max(flips, key=lambda name: sum(flips[name]))
    y, x = np.unravel_index(moved.argmax(), moved.shape)
    edge_gain, down, across = float(edges_moved[y, x]) - edge_fit, int(y) - reach, int(x) - reach
    side = max(mask.shape)
    # at the end of the reach there is no peak
    far = np.hypot(down, across) > max(1.5, _NEAR * side) and max(abs(down), abs(across)) < reach
    return Fit(
        fit,
        edge_fit,
        flip,
        sum(flips[flip]) - fit,
        flips[flip][1] - edge_fit,
        (down / side, across / side),
        float(moved.max()) - fit if far else 0.0,
        edge_gain if far else 0.0,
        object_like,
    )


def _describe_shift(dx: float, dy: float) -> str:
    """A shift in shares of the long side, in words."""
    moves = [_("{share:.0%} of the side to the right") if dx > 0 else _("{share:.0%} of the side to the left")]
    moves += [_("{share:.0%} of the side down") if dy > 0 else _("{share:.0%} of the side up")]
    return ", ".join(move.format(share=abs(share)) for move, share in zip(moves, (dx, dy), strict=True) if share)


def _center(planes: _Floats) -> _Floats:
    return np.asarray(planes - planes.mean(axis=(1, 2), keepdims=True))


def _edges(image: _Floats) -> _Floats:
    """(h, w) how strongly colours change, relative to the surroundings."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    smooth = scipy.ndimage.uniform_filter(planes, (1, 3, 3))
    down, across = np.zeros_like(smooth), np.zeros_like(smooth)
    down[:, 1:-1], across[:, :, 1:-1] = smooth[:, 2:] - smooth[:, :-2], smooth[:, :, 2:] - smooth[:, :, :-2]
    strength = np.sqrt(np.sqrt((down**2 + across**2).sum(axis=0)))
    return np.asarray(strength - scipy.ndimage.uniform_filter(strength, SIDE_PX // 4))


def _outlines(mask: NDArray[np.uint8]) -> _Floats:
    """(h, w) near 1 on the borders between classes."""
    lines = np.zeros(mask.shape, np.float32)
    lines[1:] = (mask[1:] != mask[:-1]) & (mask[1:] != IGNORED) & (mask[:-1] != IGNORED)
    across = (mask[:, 1:] != mask[:, :-1]) & (mask[:, 1:] != IGNORED) & (mask[:, :-1] != IGNORED)
    lines[:, 1:] = np.maximum(lines[:, 1:], across)
    return np.asarray(scipy.ndimage.uniform_filter(lines, 3), np.float32)


def _correlate(a: _Floats, b: _Floats, reach: int) -> _Floats:
    """(2 reach + 1, 2 reach + 1): the sum of products with `a` moved by -reach..reach rows and columns."""
    shape = a.shape[1] + reach, a.shape[2] + reach
    product = (np.conj(np.fft.rfft2(a, shape)) * np.fft.rfft2(b, shape)).sum(axis=0)
    correlation = np.roll(np.fft.irfft2(product, shape), (reach, reach), (0, 1))
    return np.asarray(correlation[: 2 * reach + 1, : 2 * reach + 1], np.float32)
