"""What all names of images have before and after what distinguishes them, such as `img_` and `_mask`."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ubend.layouts.naming import (
    mentions,
    side_of_affix,
)
from ubend.layouts.pairs import SplitName
from ubend.layouts.tree import FoundFile

Affix = tuple[str, str]  # before and after the name
_BARE: Affix = ("", "")
_FIRST_CHANNEL = "0000"  # ends the names of all single-channel images of nnU-Net: `case_12_0000.png`


@dataclass(frozen=True)
class NamedFile:
    """An image file or a mask file.

    Attributes:
        file: the file.
        split: named by its folders; None: none is.
        folders: its folders that name neither side nor split, such as `patient1`.
        stem: the name used for matching.
    """

    file: FoundFile
    split: SplitName | None
    folders: tuple[str, ...]
    stem: str

    @property
    def name(self) -> str:
        return "/".join([*([self.split] if self.split else []), *self.folders, self.file.stem])


def strip_affix(stem: str, affix: Affix) -> str:
    """The stem without the affix; unchanged if it does not have it."""
    before, after = affix
    if not (stem.startswith(before) and stem.endswith(after) and len(stem) > len(before) + len(after)):
        return stem
    return stem[len(before) : len(stem) - len(after)]


def common_affixes(
    images: Sequence[NamedFile],
    masks: Sequence[NamedFile],
    given_affixes: tuple[Affix, Affix] | None,
    fold: Callable[[str], str],
    any_affix: bool,
) -> tuple[Affix, Affix]:
    """The affixes of all images and of all masks that make most of their names equal."""
    nothing = (_BARE, _BARE)
    maximum = _count_common(images, masks, nothing)
    if maximum == len(images) == len(masks):
        return nothing
    ours, theirs = _common_ends(images), _common_ends(masks)
    ours, theirs = _beyond(ours, theirs), _beyond(theirs, ours)
    needs_all = {(_BARE, theirs): False, (ours, _BARE): False}  # affixes -> accepted only if all names become equal
    spoken = any(mentions(text, "image") or side_of_affix(text) == "image" for text in ours)
    if any_affix or spoken or any(mentions(text, "mask") or side_of_affix(text) == "mask" for text in theirs):
        needs_all[ours, theirs] = False
    elif not ours[0] and not theirs[0]:  # `1_sat` and `1_lulc`, but not `cat_1` and `dog_1`
        needs_all.setdefault((ours, theirs), True)
    if given_affixes:
        (a, b), (c, d) = given_affixes
        needs_all[(fold(a), fold(b)), (fold(c), fold(d))] = False
    best = nothing
    for candidate, requirement in needs_all.items():
        count = _count_common(images, masks, candidate)
        enough = count == len(images) == len(masks) or (not requirement and 2 * count >= max(len(images), len(masks)))
        if count > maximum and enough:
            best, maximum = candidate, count
    return best


def _beyond(affix: Affix, other: Affix) -> Affix:
    """An affix without what both have in common: `cell_1` and `cell_1_raw` differ only by `_raw`."""
    before, after = ("" if end == theirs else end for end, theirs in zip(affix, other, strict=True))
    return before, after


def _count_common(images: Sequence[NamedFile], masks: Sequence[NamedFile], affixes: tuple[Affix, Affix]) -> int:
    """The number of names that both sides share without the affixes; 0 if a side has a name twice."""
    names = []
    for items, affix in zip((images, masks), affixes, strict=True):
        names.append({(item.split, item.folders, strip_affix(item.stem, affix)) for item in items})
        if len(names[-1]) < len(items) and affixes != (_BARE, _BARE):
            return 0
    return len(names[0] & names[1])


def _common_ends(items: Sequence[NamedFile]) -> Affix:
    """What all stems begin and end with: whole words, no numbers, never an entire stem."""
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
