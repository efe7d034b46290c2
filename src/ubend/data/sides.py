"""Pictures and masks side by side in one folder: which is which, by their names, else by their looks."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from PIL import Image

from ubend.data.naming import speaks_of
from ubend.data.pairing import Item
from ubend.data.problems import Problems
from ubend.language import _

_LOOKED_AT = 3  # files of each group
_FEW_VALUES = 32  # masks hold no more
_Split = tuple[list[Item], list[Item]]


def tell_sides(root: Path, items: Sequence[Item], problems: Problems) -> _Split:
    """Pictures and masks among files that no folder tells apart; what is unclear goes into the problems."""
    masks = [item for item in items if item.found.suffix == ".npy" or speaks_of(item.stem, "mask")]
    pictures = [item for item in items if item not in set(masks)] if masks else []
    if pictures and masks:
        return pictures, masks
    pictures = [item for item in items if speaks_of(item.stem, "picture")]
    others = [item for item in items if item not in set(pictures)] if pictures else []
    if pictures and others and len(pictures) <= len(others):
        return pictures, others
    groups = _two_groups(items)
    if groups is None:
        problems.tell(
            _(
                "{root} holds {count} pictures but no masks; to train, put masks of the same names into a folder "
                "masks/ beside them, or name them NAME_mask.png; to use a model on pictures: ubend predict MODEL {root}"
            ).format(root=root, count=len(items))
        )
        return [], []
    alike = [_look_like_masks(group) for group in groups]
    if alike == [False, True]:
        return groups
    if alike == [True, False]:
        return groups[1], groups[0]
    first, second = (_pattern(root, group) for group in groups)
    problems.tell(
        _(
            "{root} holds two pictures of each name, {first} and {second}, and neither is called a mask; say which "
            "are the masks: --images '{first}' --masks '{second}', or the other way round"
        ).format(root=root, first=first, second=second)
    )
    return [], []


def _two_groups(items: Sequence[Item]) -> _Split | None:
    """The files as two of each name: of two suffixes, or with and without an affix; None: no such, or several."""
    found = []
    for split in (_by_suffix(items), *(_by_affix(items, end) for end in (0, -1))):
        if split:
            found.append(split)
    return found[0] if len(found) == 1 else None


def _by_suffix(items: Sequence[Item]) -> _Split | None:
    kinds = sorted({item.found.suffix for item in items})
    if len(kinds) != 2:
        return None
    first, second = ([item for item in items if item.found.suffix == kind] for kind in kinds)
    return (first, second) if _names(first) == _names(second) else None


def _names(items: Sequence[Item]) -> set[tuple[object, ...]]:
    return {(item.part, item.folders, item.stem) for item in items}


def _by_affix(items: Sequence[Item], end: int) -> _Split | None:
    """Two groups that differ by the first (end 0) or last (end -1) word of the stem, or by having none."""
    stems = _names(items)
    cores: dict[tuple[object, ...], dict[str, Item]] = defaultdict(dict)
    for item in items:
        words = re.findall(r"[^\W_]+|[\W_]+", item.stem)
        core, affix = item.stem, ""
        if len(words) > 2 and not words[end].isdigit():
            affix = "".join(words[:2] if end == 0 else words[-2:])
            core = "".join(words[2:] if end == 0 else words[:-2])
        key = (item.part, item.folders, core)
        if (item.part, item.folders, core) not in stems and not affix:
            key = (item.part, item.folders, item.stem)
        cores[key][affix] = item
    kinds = {affix for some in cores.values() for affix in some}
    if len(kinds) != 2 or any(len(some) != 2 for some in cores.values()) or 2 * len(cores) != len(items):
        return None
    first, second = ([some[kind] for some in cores.values()] for kind in sorted(kinds))
    return first, second


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
