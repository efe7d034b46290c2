"""Pictures and masks -> which mask belongs to which picture, by names alone, never by their order.

A file is known by its part, the other folders above it, and its stem. A mask belongs to the picture of the
same names, or of the same names but for words such as `mask` and `img`, an affix that all masks share, or a
rest that tells an object or a class apart. What is not clear is a problem, not a pair.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ubend.folders.naming import bare_stem, bare_stems, pieces, side_of_affix, speaks_of
from ubend.folders.pairs import Part
from ubend.folders.tree import Found

_Key = tuple[Part | None, tuple[str, ...]]
Affix = tuple[str, str]  # before and after the name
_BARE: Affix = ("", "")
_FIRST_CHANNEL = "0000"  # nnU-Net's pictures of one channel are all called so: `case_12_0000.png`


@dataclass(frozen=True)
class Item:
    """A file of one side.

    Attributes:
        found: the file.
        part: that its folders name.
        folders: those of its folders that have no meaning of their own, such as `patient1`.
        stem: by which it is matched.
    """

    found: Found
    part: Part | None
    folders: tuple[str, ...]
    stem: str

    @property
    def name(self) -> str:
        return "/".join([*([self.part] if self.part else []), *self.folders, self.found.stem])


@dataclass(frozen=True)
class Claim:
    """A mask of a picture.

    Attributes:
        mask: the mask.
        rest: what its name says beyond the picture's.
        folder: the folder that only masks have: `car` of `masks/car/1.png`; "": none.
        own: it lies in a folder of its picture alone.
    """

    mask: Item
    rest: str = ""
    folder: str = ""
    own: bool = False


@dataclass
class Matching:
    """Which masks belong to which pictures.

    Attributes:
        claims: picture (by number) -> its masks; pictures without a mask have none.
        orphans: masks without a picture.
        twins: numbers of the pictures that have another's name, and that one's.
    """

    pictures: list[Item]
    claims: dict[int, list[Claim]] = field(default_factory=dict)
    orphans: list[Item] = field(default_factory=list)
    twins: list[tuple[int, int]] = field(default_factory=list)


def match(
    pictures: Sequence[Item], masks: Sequence[Item], affixes: tuple[Affix, Affix] | None = None, *, sure: bool = False
) -> Matching:
    """Find the masks of each picture.

    Args:
        pictures, masks: all of them.
        affixes: of pictures and masks, where they are known.
        sure: the user says that these belong together: any affix that makes them match is right.
    """
    matching = _match(pictures, masks, affixes, sure, loose=False)
    if not matching.claims and any(item.folders for item in masks):
        loose = _match(pictures, masks, affixes, sure, loose=True)
        if not (loose.orphans or loose.twins) and all(len(some) == 1 for some in loose.claims.values()):
            return loose
    return matching


def _match(
    pictures: Sequence[Item], masks: Sequence[Item], affixes: tuple[Affix, Affix] | None, sure: bool, *, loose: bool
) -> Matching:
    """As `match`; `loose`: whatever the folders are called (`Training_Data/1.jpg`, `Part1_GroundTruth/1.png`)."""
    fold = _folding(pictures, masks)
    plain_parts = not any(item.part for item in pictures) or not any(item.part for item in masks)
    distinct = len({fold(item.stem) for item in pictures}) == len(pictures)
    flat = loose or (not any(i.folders for i in masks) and distinct)

    def normal(item: Item) -> Item:
        folders = () if flat else tuple(map(fold, item.folders))
        return replace(item, part=None if plain_parts else item.part, folders=folders, stem=fold(item.stem))

    normal_pictures, normal_masks = [normal(p) for p in pictures], [normal(m) for m in masks]
    before, after = _common_affixes(normal_pictures, normal_masks, affixes, fold, sure)
    index = _Index([replace(picture, stem=_cut(picture.stem, before)) for picture in normal_pictures])
    matching = Matching(list(pictures), {}, [], index.twins)
    rivals: dict[int, set[int]] = {}
    for original, normal_mask in zip(masks, normal_masks, strict=True):
        mask = replace(normal_mask, stem=_cut(normal_mask.stem, after))
        if claim := index.find(mask):
            number, rest, folder, own = claim
            matching.claims.setdefault(number, []).append(Claim(original, rest, folder, own))
            rivals.setdefault(number, set()).update(index.rivals(mask, number))
        else:
            matching.orphans.append(original)
    for number, others in rivals.items():
        if any(other not in matching.claims for other in others):  # `x_mask` may be the mask of `x`, which has no other
            matching.orphans += [claim.mask for claim in matching.claims.pop(number)]
    return matching


def _folding(pictures: Sequence[Item], masks: Sequence[Item]) -> Callable[[str], str]:
    """Case does not matter, unless some names differ by nothing else."""
    for items in (pictures, masks):
        exact = {(item.part, item.folders, item.stem) for item in items}
        if len({(part, "/".join(folders).casefold(), stem.casefold()) for part, folders, stem in exact}) < len(exact):
            return str
    return str.casefold


class _Index:
    """The pictures by their names."""

    def __init__(self, pictures: Sequence[Item]) -> None:
        self.exact: dict[_Key, dict[str, int]] = {}
        self.bare: dict[_Key, dict[str, int | None]] = {}  # None: several
        self.twins: list[tuple[int, int]] = []
        for number, picture in enumerate(pictures):
            key = (picture.part, picture.folders)
            names = self.exact.setdefault(key, {})
            if picture.stem in names:
                self.twins.append((number, names[picture.stem]))
                continue
            names[picture.stem] = number
            bare, short = self.bare.setdefault(key, {}), bare_stem(picture.stem, "picture")
            bare[short] = None if short in bare else number
        for key, bare in self.bare.items():
            if len(self.exact[key]) > 1:
                bare.pop("", None)  # `image` and `mask` belong together where there is nothing else

    def find(self, mask: Item) -> tuple[int, str, str, bool] | None:
        """Number of the picture that a mask belongs to, rest, folder, own; None: of no picture, or of several."""
        key = (mask.part, mask.folders)
        if (number := self._named(key, mask.stem)) is not None:
            return number, "", "", False
        if mask.folders:
            alone = [*self.exact.get(key, {}).items()]
            above = self.exact.get((mask.part, mask.folders[:-1]), {})
            if len(alone) == 1 and (alone[0][0] == mask.folders[-1] or not bare_stem(alone[0][0], "picture")):
                return alone[0][1], mask.stem, "", True
            if mask.folders[-1] in above:
                return above[mask.folders[-1]], mask.stem, "", True
        if found := self._extended(key, mask.stem):
            return *found, "", False
        claims = []
        for level, folder in enumerate(mask.folders):
            without = (mask.part, mask.folders[:level] + mask.folders[level + 1 :])
            if (number := self._named(without, mask.stem)) is not None:
                claims.append((number, "", folder, False))
            elif found := self._extended(without, mask.stem):
                claims.append((*found, folder, False))
        return claims[0] if len(claims) == 1 else None

    def rivals(self, mask: Item, number: int) -> set[int]:
        """The other pictures whose name is that of a mask but for words around it."""
        names = self.exact.get((mask.part, mask.folders), {})
        return {names[stem] for stem in bare_stems(mask.stem, "mask") if stem in names} - {number}

    def _named(self, key: _Key, stem: str) -> int | None:
        """The picture of this name, perhaps with words for masks and pictures around it."""
        exact, bare = self.exact.get(key, {}), self.bare.get(key, {})
        names = [stem] if stem in exact else list(bare_stems(stem, "mask"))
        number = next((exact[name] for name in names if name in exact), None)
        return number if number is not None else next((bare[name] for name in names if name in bare), None)

    def _extended(self, key: _Key, stem: str) -> tuple[int, str] | None:
        """The picture whose name this one begins or ends with, and what it says beyond that."""
        exact, bare = self.exact.get(key, {}), self.bare.get(key, {})
        found: dict[int, tuple[int, str]] = {}
        for name in bare_stems(stem, "mask"):
            _words, starts = pieces(name)
            for start in starts[1:]:
                first, second = name[:start].rstrip(_BETWEEN), name[start:]
                for piece, rest in ((first, second), (second, first)):
                    number = exact.get(piece, bare.get(piece))
                    if number is not None and len(piece) >= found.get(number, (0, ""))[0]:
                        found[number] = (len(piece), rest)
        longest = max((size for size, _rest in found.values()), default=0)
        fitting = [(number, rest) for number, (size, rest) in found.items() if size == longest]
        return fitting[0] if len(fitting) == 1 else None


_BETWEEN = " _-.,+([#~"  # a closing bracket belongs to the name: `benign (1)_mask_2`


def _cut(stem: str, affix: Affix) -> str:
    """The stem without an affix, if it has it."""
    before, after = affix
    if not (stem.startswith(before) and stem.endswith(after) and len(stem) > len(before) + len(after)):
        return stem
    return stem[len(before) : len(stem) - len(after)]


def _common_affixes(
    pictures: Sequence[Item],
    masks: Sequence[Item],
    told: tuple[Affix, Affix] | None,
    fold: Callable[[str], str],
    sure: bool,
) -> tuple[Affix, Affix]:
    """The affixes of all pictures and of all masks that make most of their names equal."""
    nothing = (_BARE, _BARE)
    most = _count_common(pictures, masks, nothing)
    if most == len(pictures) == len(masks):
        return nothing
    ours, theirs = _common_ends(pictures), _common_ends(masks)
    ours, theirs = _beyond(ours, theirs), _beyond(theirs, ours)
    needs_all = {(_BARE, theirs): False, (ours, _BARE): False}  # affixes -> only if they make all names equal
    spoken = any(speaks_of(text, "picture") or side_of_affix(text) == "picture" for text in ours)
    if sure or spoken or any(speaks_of(text, "mask") or side_of_affix(text) == "mask" for text in theirs):
        needs_all[ours, theirs] = False
    elif not ours[0] and not theirs[0]:  # `1_sat` and `1_lulc`, but not `cat_1` and `dog_1`
        needs_all[ours, theirs] = True
    if told:
        (a, b), (c, d) = told
        needs_all[(fold(a), fold(b)), (fold(c), fold(d))] = False
    best = nothing
    for candidate, need in needs_all.items():
        count = _count_common(pictures, masks, candidate)
        enough = count == len(pictures) == len(masks) or (not need and 2 * count >= max(len(pictures), len(masks)))
        if count > most and enough:
            best, most = candidate, count
    return best


def _beyond(affix: Affix, other: Affix) -> Affix:
    """An affix without the ends that the other shares: `cell_1` and `cell_1_raw` differ by `_raw` alone."""
    before, after = ("" if mine == theirs else mine for mine, theirs in zip(affix, other, strict=True))
    return before, after


def _count_common(pictures: Sequence[Item], masks: Sequence[Item], affixes: tuple[Affix, Affix]) -> int:
    """How many names both sides have without the affixes; 0 when a side has one of them twice."""
    names = []
    for items, affix in zip((pictures, masks), affixes, strict=True):
        names.append({(item.part, item.folders, _cut(item.stem, affix)) for item in items})
        if len(names[-1]) < len(items) and affixes != (_BARE, _BARE):
            return 0
    return len(names[0] & names[1])


def _common_ends(items: Sequence[Item]) -> Affix:
    """What all stems begin and end with: whole words, no numbers, never all of a stem."""
    if len(items) < 2:
        return _BARE
    split = [re.findall(r"[^\W_]+|[\W_]+", item.stem) for item in items]
    before = _common_start(split)
    room = min(map(len, split)) - len(before) - 1
    after = _common_start([words[::-1] for words in split])[: max(0, room)]
    while after and not _is_between(after[-1]):
        after.pop()
    return "".join(before), "".join(after[::-1])


def _common_start(split: Iterable[list[str]]) -> list[str]:
    """The words that all lists begin with, up to a delimiter."""
    lists = list(split)
    common: list[str] = []
    for words in zip(*(words[:-1] for words in lists), strict=False):
        if len(set(words)) > 1 or (words[0].isdigit() and words[0] != _FIRST_CHANNEL):
            break
        common.append(words[0])
    while common and not _is_between(common[-1]):
        common.pop()
    return common


def _is_between(piece: str) -> bool:
    return not piece[0].isalnum()
