"""Pictures and masks side by side in one folder: which is which, by their names, else by their looks."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from PIL import Image

from ubend.folders.naming import side_of_affix, speaks_of, squeeze
from ubend.folders.pairing import Affix, Item, match
from ubend.folders.problems import Problems
from ubend.folders.tree import name_held
from ubend.language import _

_LOOKED_AT = 3  # files of each group
_FEW_VALUES = 32  # masks hold no more


@dataclass(frozen=True)
class Sides:
    """Files told apart.

    Attributes:
        pictures, masks: empty when they cannot be told apart.
        affixes: of pictures and of masks, where they differ by nothing else; None: words tell them apart.
    """

    pictures: list[Item]
    masks: list[Item]
    affixes: tuple[Affix, Affix] | None = None


def tell_sides(root: Path, items: Sequence[Item], problems: Problems) -> Sides:
    """Pictures and masks among files that no folder tells apart; what is unclear goes into the problems."""
    masks, pictures = _divide(items, lambda item: item.found.suffix == ".npy" or speaks_of(item.stem, "mask"))
    if pictures and masks:
        return Sides(pictures, masks)
    pictures, masks = _divide(items, lambda item: speaks_of(item.stem, "picture"))
    if pictures and len(pictures) <= len(masks):
        return Sides(pictures, masks)
    groups = _two_groups(items)
    if groups is None and (folders := _two_folders(items)):
        return folders
    if groups is None and (line := _describe_several(root, items)):
        problems.tell(line, "several sets")
        return Sides([], [])
    if groups is None:
        problems.tell(
            _(
                "{root} holds {count} pictures but no masks or readable annotations ({held}); to train, put masks of "
                "the same names into a folder masks/ beside them, or name them NAME_mask.png; to use a model on "
                "pictures: ubend predict MODEL {root}"
            ).format(root=root, count=len(items), held=name_held(root)),
            "no masks",
        )
        return Sides([], [])
    named = [side_of_affix("".join(group.affix)) for group in groups]
    if named[0] == named[1]:
        alike = [_look_like_masks(group.items) for group in groups]
    else:
        alike = [named[0] == "mask" or named[1] == "picture", named[1] == "mask" or named[0] == "picture"]
    if alike[0] != alike[1]:
        ours, theirs = groups if alike[1] else groups[::-1]
        return Sides(ours.items, theirs.items, (ours.affix, theirs.affix))
    first, second = (_pattern(root, group.items) for group in groups)
    problems.tell(
        _(
            "{root} holds two pictures of each name, {first} and {second}, and neither is called a mask; say which "
            "are the masks: --images '{first}' --masks '{second}', or the other way round"
        ).format(root=root, first=first, second=second),
        "unclear sides",
    )
    return Sides([], [])


def _divide(items: Sequence[Item], test: Callable[[Item], bool]) -> tuple[list[Item], list[Item]]:
    """Those that pass the test, and the others."""
    passed, others = list[Item](), list[Item]()
    for item in items:
        (passed if test(item) else others).append(item)
    return passed, others


@dataclass(frozen=True)
class _Group:
    """Files that have an affix, or a suffix, in common."""

    items: list[Item]
    affix: Affix = ("", "")


def _two_groups(items: Sequence[Item]) -> tuple[_Group, _Group] | None:
    """The files as two of each name, which a suffix or an affix tells apart; None: nothing does, or several do."""
    ways = [_by_suffix(items), *(_by_affix(items, words, end) for words in (1, 2, 3) for end in (0, -1))]
    ways += [_by_extension(items, end) for end in (0, -1)]
    found = [groups for groups in ways if groups]
    divisions = {frozenset(frozenset(item.found.path for item in group.items) for group in groups) for groups in found}
    return found[0] if len(divisions) == 1 else None


def _two_folders(items: Sequence[Item]) -> Sides | None:
    """Two folders with the same names (but for an affix), of which one alone looks like masks."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.folders[0] if item.folders else ""].append(item)
    if len(groups) != 2:
        return None
    first, second = groups.values()
    if _look_like_masks(first) == _look_like_masks(second):
        return None
    pictures, masks = (second, first) if _look_like_masks(first) else (first, second)
    matching = match(pictures, masks, sure=True)
    whole = len(matching.claims) == len(pictures) == len(masks) and not matching.orphans
    return Sides(pictures, masks, (("", ""), ("", ""))) if whole else None


def _describe_several(root: Path, items: Sequence[Item]) -> str:
    """The question which of several others of each picture (`NAME_1stHO`, `NAME_2ndHO`) is the mask; "": no such."""
    kinds: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        kinds[item.found.suffix].append(item)
    if len(kinds) != 2:
        return ""
    pictures, others = sorted(kinds.values(), key=len)
    rests: dict[str, list[Item]] = defaultdict(list)
    for claims in match(pictures, others).claims.values():
        for claim in claims:
            rests[claim.rest].append(claim.mask)
    if not pictures or len(rests) < 2 or any(len(some) != len(pictures) for some in rests.values()):
        return ""
    first, *more = (_pattern(root, some) for _rest, some in sorted(rests.items()))
    return _(
        "{root} holds several others of each picture: {names}; say which are the masks: --images '{images}' "
        "--masks '{first}'"
    ).format(root=root, names=", ".join([first, *more]), images=_pattern(root, pictures), first=first)


def _by_suffix(items: Sequence[Item]) -> tuple[_Group, _Group] | None:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.found.suffix].append(item)
    if len(groups) != 2:
        return None
    first, second = groups.values()
    names = [{(item.part, item.folders, item.stem) for item in group} for group in (first, second)]
    return (_Group(first), _Group(second)) if names[0] == names[1] else None


def _by_affix(items: Sequence[Item], count: int, end: int) -> tuple[_Group, _Group] | None:
    """Two groups that differ by the first (end 0) or last (end -1) words of the stem."""
    groups: dict[str, dict[tuple[object, ...], Item]] = defaultdict(dict)
    for item in items:
        words = re.findall(r"[^\W_]+|[\W_]+", item.stem)
        cut = 2 * count if end == 0 else max(0, len(words) - 2 * count)
        affix, core = (words[:cut], words[cut:]) if end == 0 else (words[cut:], words[:cut])
        if not core or any(word.isdigit() for word in affix):
            return None
        groups["".join(affix)][item.part, item.folders, "".join(core)] = item
    return _as_groups(groups, end, len(items))


def _by_extension(items: Sequence[Item], end: int) -> tuple[_Group, _Group] | None:
    """Two groups of which one has the stems of the other with something before (end 0) or after (end -1) them."""
    stems = {(item.part, item.folders, item.stem) for item in items}
    groups: dict[str, dict[tuple[object, ...], Item]] = defaultdict(dict)
    for item in items:
        affix, core = "", item.stem
        for between in re.finditer(r"[\W_]+", item.stem):
            cut = between.end() if end == 0 else between.start()
            rest, short = (item.stem[:cut], item.stem[cut:]) if end == 0 else (item.stem[cut:], item.stem[:cut])
            if (item.part, item.folders, short) in stems and not squeeze(rest).isdigit():
                affix, core = rest, short
                break
        groups[affix][item.part, item.folders, core] = item
    return _as_groups(groups, end, len(items))


def _as_groups(
    groups: Mapping[str, Mapping[tuple[object, ...], Item]], end: int, count: int
) -> tuple[_Group, _Group] | None:
    """Affix -> its files by what else they are called; None unless these are two groups of the same names."""
    if len(groups) != 2:
        return None
    (one, first), (two, second) = sorted(groups.items())
    if len(first) < 2 or first.keys() != second.keys() or 2 * len(first) != count:
        return None
    affixes: list[Affix] = [(one, ""), (two, "")] if end == 0 else [("", one), ("", two)]
    return _Group(list(first.values()), affixes[0]), _Group([second[core] for core in first], affixes[1])


def _look_like_masks(items: Sequence[Item]) -> bool:
    """Do a few of the files hold few values, without loss?"""
    some = [items[i] for i in sorted({0, len(items) // 2, len(items) - 1})][:_LOOKED_AT]
    return all(_holds_few_values(item.found.path) for item in some)


def _holds_few_values(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            if image.format not in ("PNG", "TIFF", "BMP", "WEBP"):
                return False
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError):
        return False
    flat = pixels.reshape(-1, 1) if pixels.ndim == 2 else pixels.reshape(-1, pixels.shape[2])
    return len(np.unique(flat[:: max(1, len(flat) // 100_000)], axis=0)) <= _FEW_VALUES


def _shared_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    return "".join(letter for letter, _same in takewhile(lambda two: two[0] == two[1], zip(first, last, strict=False)))


def _pattern(root: Path, items: Sequence[Item]) -> str:
    """A pattern of the files of a group: `scans/*_raw.png`."""
    stems, suffixes = [item.stem for item in items], {item.found.suffix for item in items}
    before = re.sub(r"[^\W_]*$", "", _shared_start(stems)) if len(stems) > 1 else ""
    after = re.sub(r"^[^\W_]*(?=[\W_])", "", _shared_start([stem[::-1] for stem in stems])[::-1])
    deep = "**/" if any(item.found.folders for item in items) else ""
    suffix = items[0].found.path.suffix if len(suffixes) == 1 else ".*"
    return f"{root.as_posix()}/{deep}{before}*{after}{suffix}"
