"""The same image several times: exactly, or recompressed, resized, brightened, flipped or turned; above all across
splits."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.core.i18n import _
from ubend.dataset.near_duplicates import Pairs, Threshold, find_similar
from ubend.dataset.orientations import INVERSE, turn
from ubend.dataset.splits import find_near_duplicates, find_straddling
from ubend.doctor.finding import Finding, Grade
from ubend.doctor.inspection import Inspection, shrink, to_bytes
from ubend.layouts.pairs import SplitName

# Candidates: correlation of 32 px thumbnails, and of what sets them off from the mean of the set. Lower than in
# `dataset/splits.py`, because each is confirmed on pixels.
CANDIDATE = Threshold(0.9, 0.8)
_MAX_CANDIDATES = 20  # for each image, the likeliest
_WAITING_PAIRS = 2**20  # held before the likeliest are chosen: 32 MiB
_MIN_MEAN = 8  # images that have a mean to speak of
_DETAILS_HELD = 2**11  # images on which candidates are confirmed: 128 MiB
_SIDE_PX, _TILES = 128, 4  # of the images on which candidates are confirmed: in tiles, without the outer ones' border
_DETAIL_PX = 7  # larger structures than this do not count: frames and vignettes are alike in unlike images
# Median over tiles of the correlation of details. Measured on Kvasir-SEG, the pets and DRIVE, candidates looked at by
# eye: the same image or neighbouring frames have .57 and more, different images .31 and less.
_CONFIRMED = 0.45
_FLAT = 0.3  # grey levels: details below this are rounding


def check_exact_duplicates(inspection: Inspection) -> list[Finding]:
    """Images whose pixels are equal."""
    alike: dict[int, list[int]] = {}
    for index, value in enumerate(inspection.data.store.pixel_hashes.tolist()):
        alike.setdefault(value, []).append(index)
    return [_exact(inspection, group) for group in alike.values() if len(group) > 1]


def _exact(inspection: Inspection, group: list[int]) -> Finding:
    data = inspection.data
    splits, masks = {data.splits[i] for i in group}, {data.store.hashes[i][1] for i in group}
    files = tuple(inspection.image_path(i) for i in group)
    if len(splits) > 1:
        return _leak(inspection, group, "leaked image", 1.0)
    if len(masks) > 1:
        return Finding(
            "contradicting masks",
            "error",
            files,
            _("the same image with different masks"),
            _("keep one of them, with the better mask"),
            {"images": len(group), "masks": len(masks)},
        )
    return Finding(
        "duplicate image",
        "warning",
        files,
        _("the same image more than once"),
        _("keep one of them"),
        {"images": len(group)},
    )


def _leak(inspection: Inspection, group: list[int], check: str, score: float) -> Finding:
    splits = inspection.data.splits
    names = ", ".join(f"{inspection.data.folder.pairs[i].name} ({splits[i]})" for i in group[:4])
    return Finding(
        check,
        "error",
        tuple(inspection.image_path(i) for i in group),
        _("one image lies in several splits: {names}; scores of the scored split are too good").format(names=names),
        _("keep copies of an image in one split: correct the split file, or take the copy away"),
        {"images": len(group), "score": score, "threshold": _CONFIRMED},
    )


def check_near_duplicates(inspection: Inspection) -> list[Finding]:
    """Images that show the same, confirmed on their pixels; exact duplicates are not named again."""
    data = inspection.data
    findings = []
    details = lru_cache(_DETAILS_HELD)(lambda index: _small_grey(inspection, index))
    groups: list[tuple[set[int], list[float], set[int]]] = []  # images, scores, turns
    group_of: dict[int, int] = {}
    for image, other_image, view in find_candidates(data.store.thumbnails):
        first, second = group_of.get(image), group_of.get(other_image)
        if data.store.pixel_hashes[image] == data.store.pixel_hashes[other_image] or (
            first is not None and first == second
        ):
            continue
        score = _same_details(details(image), details(other_image), view)
        if score < _CONFIRMED:
            continue
        members, scores, turns = {image, other_image}, [score], {view}
        for known in {known for known in (first, second) if known is not None}:
            members |= groups[known][0]
            scores += groups[known][1]
            turns |= groups[known][2]
            groups[known] = (set(), [], set())
        group_of.update(dict.fromkeys(members, len(groups)))
        groups.append((members, scores, turns))
    for members, scores, turns in groups:
        group = sorted(members)
        if not group:
            continue
        if len({data.splits[i] for i in group}) > 1:
            findings.append(_leak(inspection, group, "leaked near-duplicate", min(scores)))
        else:
            turned = any(turns)
            message = (
                _("the same image more than once, flipped or turned") if turned else _("nearly the same image twice")
            )
            evidence = {"images": len(group), "score": min(scores), "threshold": _CONFIRMED}
            files = tuple(inspection.image_path(i) for i in group)
            repair = _("keep one of them, or keep them in one split")
            findings.append(Finding("near-duplicate image", "warning", files, message, repair, evidence))
    return findings


def check_group_leaks(inspection: Inspection) -> list[Finding]:
    """Groups (patients, videos) whose images lie in several splits."""
    data, findings = inspection.data, []
    names, groups = [pair.name for pair in data.folder.pairs], [pair.group for pair in data.folder.pairs]
    order = sorted(range(len(names)), key=lambda i: names[i])
    for image, other_image in find_straddling(order, data.splits, groups):
        members = [i for i, group in enumerate(groups) if group == groups[image]]
        findings.append(
            Finding(
                "leaked group",
                "error",
                (inspection.image_path(image), inspection.image_path(other_image)),
                _("images of the group {group} lie in several splits: {splits}").format(
                    group=groups[image], splits=_count_splits(data.splits[i] for i in members)
                ),
                _("keep the images of a group in one split: correct the split file"),
                {"images": len(members)},
            )
        )
    return findings


def check_shared_masks(inspection: Inspection) -> list[Finding]:
    """Files that are used twice: an image that is its own mask, and one mask for different images."""
    findings, alike = [], dict[str, list[int]]()
    background = inspection.class_pixels.max(axis=1) == inspection.class_pixels.sum(axis=1)
    for index, (image, mask) in enumerate(inspection.data.store.hashes):
        if image == mask:
            findings.append(
                Finding(
                    "image as mask",
                    "error",
                    (inspection.mask_path(index), inspection.image_path(index)),
                    _("image and mask are the same file"),
                    _("put the mask in its place"),
                )
            )
        elif not background[index]:
            alike.setdefault(mask, []).append(index)
    groups = [group for group in alike.values() if len(group) > 1]
    near = find_near_duplicates(inspection.data.store.thumbnails) if groups else np.zeros(0, np.int64)
    for group in groups:
        if near is not None and len({int(near[i]) for i in group}) > 1:  # copies of an image may have one mask
            grade: Grade = "error" if len(group) < max(3, len(inspection) // 10) else "warning"
            findings.append(
                Finding(
                    "shared mask",
                    grade,
                    tuple(inspection.mask_path(i) for i in group),
                    _("different images have the same mask"),
                    _("look at them; give each image its own mask"),
                    {"images": len(group)},
                )
            )
    return findings


def _count_splits(splits: Iterable[SplitName]) -> str:
    counts: dict[str, int] = {}
    for split in splits:
        counts[split] = counts.get(split, 0) + 1
    return ", ".join(f"{count} {split}" for split, count in counts.items())


def find_candidates(thumbnails: NDArray[np.uint8], *, exact: bool | None = None) -> list[tuple[int, int, int]]:
    """(one, other, view) of images whose thumbnails are alike after `turn(one, view)`, the likeliest first.

    Args:
        thumbnails: (N, S, S) grey.
        exact: see `find_near_duplicates`.
    """
    best = _BestPairs(len(thumbnails))
    for pairs in find_similar(thumbnails, CANDIDATE, best.are_enough, min_mean=_MIN_MEAN, exact=exact):
        best.add(pairs)
    return best.listed()


class _BestPairs:
    """Of each image the pairs with the highest scores, at most _MAX_CANDIDATES, each in its best view."""

    def __init__(self, images: int) -> None:
        self._images, self._waiting, self._count = images, list[Pairs](), 0
        self._pairs_of = np.zeros(images, np.int64)

    def add(self, pairs: Pairs) -> None:
        """Add pairs, the smaller number first."""
        first = pairs.turned < pairs.upright
        view = np.where(first, pairs.view, INVERSE[pairs.view])
        low, high = np.minimum(pairs.turned, pairs.upright), np.maximum(pairs.turned, pairs.upright)
        self._waiting.append(Pairs(low, high, view, pairs.score))
        self._count += len(low)
        self._pairs_of += np.bincount(low, minlength=self._images) + np.bincount(high, minlength=self._images)
        if self._count > max(_WAITING_PAIRS, 2 * _MAX_CANDIDATES * self._images):
            self._reduce()

    def are_enough(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether both images of a pair have many pairs already."""
        return np.asarray(np.minimum(self._pairs_of[left], self._pairs_of[right]) >= 2 * _MAX_CANDIDATES)

    def listed(self) -> list[tuple[int, int, int]]:
        """The pairs, the likeliest first."""
        if not self._waiting:
            return []
        low, high, view, _score = self._reduce()
        return list(zip(low.tolist(), high.tolist(), view.tolist(), strict=True))

    def _reduce(self) -> Pairs:
        low, high, view, score = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        order = np.lexsort((view, -score, high, low))
        low, high, view, score = low[order], high[order], view[order], score[order]
        new = np.ones(len(low), bool)
        new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        low, high, view, score = low[new], high[new], view[new], score[new]
        order = np.lexsort((high, low, -score))
        low, high, view, score = low[order], high[order], view[order], score[order]
        likely = (_rank(low, high) < _MAX_CANDIDATES).any(axis=0)
        kept = Pairs(low[likely], high[likely], view[likely], score[likely])
        self._waiting, self._count = [kept], 0
        return kept


def _rank(low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
    """(2, K) how many earlier pairs hold the first and the second image of a pair."""
    images = np.stack([low, high], axis=1).reshape(-1)
    order = np.argsort(images, kind="stable")
    ordered = images[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else order
    rank = np.empty(len(images), np.int64)
    rank[order] = np.arange(len(images)) - np.repeat(starts, np.diff(np.r_[starts, len(images)]))
    return rank.reshape(-1, 2).T


def _small_grey(inspection: Inspection, index: int) -> NDArray[np.float32]:
    """(_SIDE_PX, _SIDE_PX) details of an image: what is left without structures larger than _DETAIL_PX."""
    pixels = shrink(to_bytes(inspection.data.store.image(index)), (_SIDE_PX, _SIDE_PX))
    grey = pixels.mean(axis=2, dtype=np.float32)
    details = np.asarray(grey - scipy.ndimage.uniform_filter(grey, _DETAIL_PX))
    strength = np.abs(details)
    bound = 2 * np.median(strength[strength > _FLAT]) if (strength > _FLAT).any() else 1.0
    return details.clip(-bound, bound)  # so that the edge of a round field of view, alike in all images, counts little


def _same_details(turned: NDArray[np.float32], upright: NDArray[np.float32], view: int) -> float:
    """Median over tiles of the correlation of details; tiles without any do not count."""
    border = _SIDE_PX // 16
    inner = slice(border, _SIDE_PX - border)
    turned, upright = turn(turned, view)[inner, inner], upright[inner, inner]
    side = turned.shape[0] // _TILES
    a, b = (_centered_tiles(details, side) for details in (turned, upright))
    deviations = a.std(axis=1), b.std(axis=1)
    lively = np.minimum(*deviations) > _FLAT
    if lively.sum() < _TILES:
        return 0.0
    scores = (a * b).mean(axis=1)[lively] / (deviations[0] * deviations[1])[lively]
    return float(np.median(scores))


def _centered_tiles(details: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """(H, H) -> (_TILES^2, side^2) tiles less their means."""
    whole = details[: _TILES * side, : _TILES * side].reshape(_TILES, side, _TILES, side)
    tiles = whole.swapaxes(1, 2).reshape(_TILES**2, side**2)
    return np.asarray(tiles - tiles.mean(axis=1, keepdims=True))
