"""Matches masks to images by name alone, never by order.

A file is identified by its split, its other folders, and its stem. A mask belongs to the image with the same names,
apart from words such as `mask` and `img`, an affix common to all masks, or a rest that identifies an object or a class.
What the masks of an image mean is decided in `pairing.py`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ubend.layouts.affixes import Affix, NamedFile, common_affixes, strip_affix
from ubend.layouts.naming import (
    bare_stem,
    bare_stems,
    split_words,
    without_leading_zeros,
)
from ubend.layouts.pairs import SplitName

_Key = tuple[SplitName | None, tuple[str, ...]]
_BETWEEN = " _-.,+([#~"  # no closing bracket: it belongs to the name, as in `benign (1)_mask_2`


@dataclass(frozen=True)
class Claim:
    """A mask matched to an image.

    Attributes:
        mask: the mask.
        rest: the part of its name that the image's name does not have.
        folder: the folder that only masks have: `car` in `masks/car/1.png`; "": none.
        has_own_folder: it is in a folder used by its image only.
    """

    mask: NamedFile
    rest: str = ""
    folder: str = ""
    has_own_folder: bool = False


@dataclass
class Matching:
    """Masks matched to images.

    Attributes:
        images: all images.
        claims: index of an image -> its masks; images without a mask are missing.
        orphans: masks without an image.
        twins: (index of an image, index of an earlier image with the same name).
    """

    images: list[NamedFile]
    claims: dict[int, list[Claim]] = field(default_factory=dict)
    orphans: list[NamedFile] = field(default_factory=list)
    twins: list[tuple[int, int]] = field(default_factory=list)


def match(
    images: Sequence[NamedFile],
    masks: Sequence[NamedFile],
    affixes: tuple[Affix, Affix] | None = None,
    *,
    any_affix: bool = False,
) -> Matching:
    """Find the masks of each image.

    Args:
        images, masks: all files of the data set.
        affixes: of images and masks, if known.
        any_affix: accept any affix that makes the names match, since both sides are known to be what they are.
    """
    matching = _match(images, masks, affixes, any_affix, loose=False)
    if not matching.claims and any(item.folders for item in masks):
        loose = _match(images, masks, affixes, any_affix, loose=True)
        if _is_one_to_one(loose):
            return loose
    if not matching.claims:
        for shorten in (_without_leading_zeros, _without_letters):
            short_images, short_masks = shorten(images, masks)
            numbered = _match(short_images, short_masks, affixes, any_affix, loose=False)
            if _is_one_to_one(numbered) and len(numbered.claims) == len(images):
                return numbered
    return matching


def _without_leading_zeros(*sides: Sequence[NamedFile]) -> list[list[NamedFile]]:
    """Images `0001.png` and masks `1.png`, both called `1`."""
    return [[replace(item, stem=without_leading_zeros(item.stem)) for item in items] for items in sides]


def _without_letters(*sides: Sequence[NamedFile]) -> list[list[NamedFile]]:
    """Images `1.png` and masks `p1.png`, both called `1`; unchanged if both sides have letters, or differing ones."""
    names = [[re.fullmatch(r"([^\W\d_]*)0*(\d+)", item.stem) for item in items] for items in sides]
    letters = [{name[1] for name in side if name} for side in names]
    if not all(map(all, names)) or {""} not in letters or any(len(found) != 1 for found in letters):
        return [*map(list, sides)]
    return [
        [replace(item, stem=name[2]) for item, name in zip(items, side, strict=True) if name]
        for items, side in zip(sides, names, strict=True)
    ]


def _is_one_to_one(matching: Matching) -> bool:
    """Whether no mask is left over, and no image has several masks or the name of another."""
    return not (matching.orphans or matching.twins) and all(len(claims) == 1 for claims in matching.claims.values())


def _match(
    images: Sequence[NamedFile],
    masks: Sequence[NamedFile],
    affixes: tuple[Affix, Affix] | None,
    any_affix: bool,
    *,
    loose: bool,
) -> Matching:
    """Like `match`; `loose` ignores folder names (`Training_Data/1.jpg`, `Part1_GroundTruth/1.png`)."""
    fold = _folding(images, masks)
    ignore_splits = not any(item.split for item in images) or not any(item.split for item in masks)
    distinct = len({fold(item.stem) for item in images}) == len(images)
    flat = loose or (not any(i.folders for i in masks) and distinct)

    def normal(item: NamedFile) -> NamedFile:
        folders = () if flat else tuple(map(fold, item.folders))
        return replace(item, split=None if ignore_splits else item.split, folders=folders, stem=fold(item.stem))

    normal_images, normal_masks = [normal(p) for p in images], [normal(m) for m in masks]
    before, after = common_affixes(normal_images, normal_masks, affixes, fold, any_affix)
    index = _Index([replace(image, stem=strip_affix(image.stem, before)) for image in normal_images])
    matching = Matching(list(images), {}, [])
    rivals: dict[int, set[int]] = {}
    for original, normal_mask in zip(masks, normal_masks, strict=True):
        mask = replace(normal_mask, stem=strip_affix(normal_mask.stem, after))
        if match := index.find(mask, original):
            image_index, claim = match
            matching.claims.setdefault(image_index, []).append(claim)
            rivals.setdefault(image_index, set()).update(index.rivals(mask, image_index))
        else:
            matching.orphans.append(original)
    for image_index, others in rivals.items():
        # the images `x` and `x_mask`, and a mask `x_mask`, which may also be that of `x` if `x` has no mask
        if any(other not in matching.claims for other in others):
            matching.orphans += [claim.mask for claim in matching.claims.pop(image_index)]
    # without a mask that could be of either, images of two splits may share a name
    matching.twins = [
        (index, first)
        for index, first in index.twins
        if first in matching.claims or images[index].split == images[first].split
    ]
    return matching


def _folding(images: Sequence[NamedFile], masks: Sequence[NamedFile]) -> Callable[[str], str]:
    """The function that normalises case: casefold, or the identity if some names differ only by case."""
    for items in (images, masks):
        exact = {(item.split, item.folders, item.stem) for item in items}
        if len({(split, "/".join(folders).casefold(), stem.casefold()) for split, folders, stem in exact}) < len(exact):
            return str
    return str.casefold


class _Index:
    """Index of the images by name."""

    def __init__(self, images: Sequence[NamedFile]) -> None:
        self.exact: dict[_Key, dict[str, int]] = {}
        self.bare: dict[_Key, dict[str, int | None]] = {}  # None: several images
        self.twins: list[tuple[int, int]] = []
        for index, image in enumerate(images):
            key = (image.split, image.folders)
            names = self.exact.setdefault(key, {})
            if image.stem in names:
                self.twins.append((index, names[image.stem]))
                continue
            names[image.stem] = index
            bare, short = self.bare.setdefault(key, {}), bare_stem(image.stem, "image")
            bare[short] = None if short in bare else index
        for key, bare in self.bare.items():
            if len(self.exact[key]) > 1:
                bare.pop("", None)  # `image` and `mask` are a pair only if the folder has no other image

    def find(self, mask: NamedFile, original: NamedFile) -> tuple[int, Claim] | None:
        """(index of the image, claim) of a mask; None: it matches no image, or several.

        Args:
            original: the mask as found, which the claim gets.
        """
        key = (mask.split, mask.folders)
        if (image_index := self._named(key, mask.stem)) is not None:
            return image_index, Claim(original)
        if mask.folders:
            alone = [*self.exact.get(key, {}).items()]
            above = self.exact.get((mask.split, mask.folders[:-1]), {})
            if len(alone) == 1 and (alone[0][0] == mask.folders[-1] or not bare_stem(alone[0][0], "image")):
                return alone[0][1], Claim(original, mask.stem, has_own_folder=True)
            if len(alone) == 1 and not bare_stem(mask.stem, "mask"):  # `P01/raw.tif` and `P01/labels.tif`
                return alone[0][1], Claim(original)
            if mask.folders[-1] in above:
                return above[mask.folders[-1]], Claim(original, mask.stem, has_own_folder=True)
        if extended := self._extended(key, mask.stem):
            return extended[0], Claim(original, extended[1])
        claims = []
        for level, folder in enumerate(mask.folders):
            without = (mask.split, mask.folders[:level] + mask.folders[level + 1 :])
            if (image_index := self._named(without, mask.stem)) is not None:
                claims.append((image_index, Claim(original, folder=folder)))
            elif extended := self._extended(without, mask.stem):
                claims.append((extended[0], Claim(original, extended[1], folder)))
        return claims[0] if len(claims) == 1 else None

    def rivals(self, mask: NamedFile, image_index: int) -> set[int]:
        """The other images whose name equals the mask's after removing words for masks."""
        names = self.exact.get((mask.split, mask.folders), {})
        return {names[stem] for stem in bare_stems(mask.stem, "mask") if stem in names} - {image_index}

    def _named(self, key: _Key, stem: str) -> int | None:
        """The image with this name, ignoring words for masks and images around it."""
        exact, bare = self.exact.get(key, {}), self.bare.get(key, {})
        names = [stem] if stem in exact else list(bare_stems(stem, "mask"))
        image_index = next((exact[name] for name in names if name in exact), None)
        return image_index if image_index is not None else next((bare[name] for name in names if name in bare), None)

    def _extended(self, key: _Key, stem: str) -> tuple[int, str] | None:
        """(index of the image whose name this one begins or ends with, the rest of the name)."""
        exact, bare = self.exact.get(key, {}), self.bare.get(key, {})
        lengths: dict[int, tuple[int, str]] = {}
        for name in bare_stems(stem, "mask"):
            _words, starts = split_words(name)
            for start in starts[1:]:
                first, second = name[:start].rstrip(_BETWEEN), name[start:]
                for piece, rest in ((first, second), (second, first)):
                    image_index = exact.get(piece, bare.get(piece))
                    if image_index is not None and len(piece) >= lengths.get(image_index, (0, ""))[0]:
                        lengths[image_index] = (len(piece), rest)
        longest = max((size for size, _rest in lengths.values()), default=0)
        fitting = [(image_index, rest) for image_index, (size, rest) in lengths.items() if size == longest]
        return fitting[0] if len(fitting) == 1 else None
