"""Separates images from masks where folders do not: by words in file names, by affixes, by what the files look like."""

import re
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
from PIL import Image

from ubend.core.files import regular_file
from ubend.core.i18n import _
from ubend.layouts.affixes import Affix, NamedFile
from ubend.layouts.mask_content import is_field_of_view
from ubend.layouts.matching import match
from ubend.layouts.naming import mentions, side_of_affix, squeeze
from ubend.layouts.problems import Problems
from ubend.layouts.tree import describe_content
from ubend.layouts.unread_formats import describe_unread_format
from ubend.portable.printable import shell_word

_FEW_VALUES = 32  # a file with more distinct values is not considered a mask, unless
_SAME_AS_NEIGHBOR = 0.9  # at least this fraction of its pixels equals the one to the left
_Group = tuple[list[NamedFile], Affix]  # files that share an affix or a suffix


@dataclass(frozen=True)
class Sides:
    """Files separated into images and masks.

    Attributes:
        images, masks: both empty if the files cannot be separated.
        affixes: of the images and of the masks, if only these tell them apart; None: words in the names do.
    """

    images: list[NamedFile]
    masks: list[NamedFile]
    affixes: tuple[Affix, Affix] | None = None


NO_SIDES = Sides([], [])


def _has_masks_beside(root: Path) -> bool:
    """Whether this is the folder `images` of a data set, with a folder `masks` beside it."""
    with suppress(OSError):
        beside = [path.name for path in root.resolve().parent.iterdir()]
        return side_of_affix(root.name) == "image" and any(side_of_affix(name) == "mask" for name in beside)
    return False


def separate_sides(root: Path, items: Sequence[NamedFile], problems: Problems) -> Sides:
    """Separate images from masks by file name, where folders do not; adds a problem if this is not possible."""
    sides = _separate(items)
    if not sides.masks:
        problems.add_line(*_explain_unseparated(root, items))
    return sides


def _separate(items: Sequence[NamedFile]) -> Sides:
    """Images and masks, by the first rule that separates them; both empty if none does."""
    for rule in (_by_mask_words, _by_image_words, _by_affixes, _by_folders):
        if (sides := rule(items)).masks:
            return sides
    return NO_SIDES


def _by_mask_words(items: Sequence[NamedFile]) -> Sides:
    """Files whose names have a word for masks are masks; if these show a field of view, the truth is among the others:
    `x.tif`, `x_vessel.png`, and `x_mask.png`."""
    masks, images = divide(items, lambda item: item.file.suffix == ".npy" or mentions(item.stem, "mask"))
    if not images or not masks:
        return NO_SIDES
    truth = _separate(images) if is_field_of_view([item.file.path for item in masks]) else NO_SIDES
    return replace(truth, masks=truth.masks + masks) if truth.masks else Sides(images, masks)


def _by_image_words(items: Sequence[NamedFile]) -> Sides:
    """Files whose names have a word for images are images, unless the others are fewer."""
    images, masks = divide(items, lambda item: mentions(item.stem, "image"))
    return Sides(images, masks) if images and len(images) <= len(masks) else NO_SIDES


def _by_affixes(items: Sequence[NamedFile]) -> Sides:
    """Of two groups with the same names, the masks are those whose affix says so, or that look like masks."""
    groups = _two_groups(items)
    if groups is None:
        return NO_SIDES
    named = [side_of_affix("".join(affix)) for _some, affix in groups]
    if named[0] == named[1]:
        are_masks = [_look_like_masks(group_items) for group_items, _affix in groups]
    else:
        are_masks = [named[0] == "mask" or named[1] == "image", named[1] == "mask" or named[0] == "image"]
    if are_masks[0] == are_masks[1]:
        return NO_SIDES
    images, masks = groups if are_masks[1] else groups[::-1]
    return Sides(images[0], masks[0], (images[1], masks[1]))


def _by_folders(items: Sequence[NamedFile]) -> Sides:
    """Of two folders with the same file names, apart from an affix, the masks are in the one that looks like it."""
    groups: dict[tuple[str, ...], list[NamedFile]] = defaultdict(list)
    for item in items:
        groups[item.folders[:1]].append(item)
    return images_and_masks(*groups.values()) if len(groups) == 2 else NO_SIDES


def images_and_masks(first: Sequence[NamedFile], second: Sequence[NamedFile]) -> Sides:
    """The images and masks of two groups of files with the same names, exactly one of which looks like masks."""
    if _look_like_masks(first) == _look_like_masks(second):
        return NO_SIDES
    images, masks = (second, first) if _look_like_masks(first) else (first, second)
    matching = match(images, masks, any_affix=True)
    whole = len(matching.claims) == len(images) == len(masks) and not matching.orphans
    return Sides([*images], [*masks], (("", ""), ("", ""))) if whole else NO_SIDES


def _explain_unseparated(root: Path, items: Sequence[NamedFile]) -> tuple[str, str]:
    """(message, key of the problem): why these files cannot be separated into images and masks."""
    if groups := _two_groups(items):
        first, second = (_pattern(root, group_items) for group_items, _affix in groups)
        line = _(
            "{root} has two images for each name, {first} and {second}, and neither name says mask; state which "
            "are the masks: --images '{first}' --masks '{second}', or the other way round"
        )
        return line.format(root=root, first=first, second=second), "unclear sides"
    if line := _describe_several(root, items):
        return line, "several sets"
    if line := describe_unread_format(root):
        return line, "unread format"
    if _has_masks_beside(root):
        line = _("{root} holds the images alone; name the folder that holds images and masks: {parent}")
        return line.format(root=root, parent=root.parent), "no masks"
    line = _(
        "{root} has {count} images but no masks or readable annotations ({content}); to train, put masks with "
        "the same names in a folder masks/ next to the images, or name them NAME_mask.png; if masks are elsewhere "
        "or named otherwise: --images 'PATTERN' --masks 'PATTERN'; to run a model on the images: ubend predict "
        "MODEL {root}"
    )
    return line.format(root=shell_word(root), count=len(items), content=describe_content(root)), "no masks"


def divide(items: Sequence[NamedFile], test: Callable[[NamedFile], bool]) -> tuple[list[NamedFile], list[NamedFile]]:
    """(items that pass the test, the other items)."""
    passed, others = list[NamedFile](), list[NamedFile]()
    for item in items:
        (passed if test(item) else others).append(item)
    return passed, others


def _two_groups(items: Sequence[NamedFile]) -> tuple[_Group, _Group] | None:
    """Split the files into two groups with the same names, distinguished by suffix or affix.

    None if there is no such split, or more than one.
    """
    stems = {(item.split, item.folders, item.stem) for item in items}
    candidates = [_group(items, lambda item: (item.file.suffix, item.stem), None)]
    candidates += [
        _group(items, partial(_cut_words, count=count, end=end), end) for count in (1, 2, 3) for end in (0, -1)
    ]
    candidates += [_group(items, partial(_cut_extension, stems=stems, end=end), end) for end in (0, -1)]
    divisible = [groups for groups in candidates if groups]
    divisions = {
        frozenset(frozenset(item.file.path for item in group_items) for group_items, _affix in groups)
        for groups in divisible
    }
    return divisible[0] if len(divisions) == 1 else None


def _describe_several(root: Path, items: Sequence[NamedFile]) -> str:
    """A message for images with several candidate masks each (`NAME_1stHO`, `NAME_2ndHO`); "" if there are none."""
    kinds: dict[str, list[NamedFile]] = defaultdict(list)
    for item in items:
        kinds[item.file.suffix].append(item)
    if len(kinds) != 2:
        return ""
    images, others = sorted(kinds.values(), key=len)
    rests: dict[str, list[NamedFile]] = defaultdict(list)
    for claims in match(images, others).claims.values():
        for claim in claims:
            rests[claim.rest].append(claim.mask)
    if not images or len(rests) < 2 or any(len(group_items) != len(images) for group_items in rests.values()):
        return ""
    first, *more = (_pattern(root, group_items) for _rest, group_items in sorted(rests.items()))
    return _(
        "{root} has several other files for each image: {names}; state which are the masks: --images '{images}' "
        "--masks '{first}'"
    ).format(root=root, names=", ".join([first, *more]), images=_pattern(root, images), first=first)


def _cut_words(item: NamedFile, count: int, end: int) -> tuple[str, str] | None:
    """(affix, rest) of a stem: the affix is its first (end 0) or last (end -1) `count` words."""
    words = re.findall(r"[^\W_]+|[\W_]+", item.stem)
    cut = 2 * count if end == 0 else max(0, len(words) - 2 * count)
    affix, core = (words[:cut], words[cut:]) if end == 0 else (words[cut:], words[:cut])
    return ("".join(affix), "".join(core)) if core and not any(word.isdigit() for word in affix) else None


def _cut_extension(item: NamedFile, stems: Container[tuple[object, ...]], end: int) -> tuple[str, str]:
    """(affix, stem of another file): `cat_mask` gives (`_mask`, `cat`) if a file `cat` exists.

    Args:
        end: 0: the affix comes before that stem; -1: after it.
    """
    for between in re.finditer(r"[\W_]+", item.stem):
        cut = between.end() if end == 0 else between.start()
        affix, core = (item.stem[:cut], item.stem[cut:]) if end == 0 else (item.stem[cut:], item.stem[:cut])
        if (item.split, item.folders, core) in stems and not squeeze(affix).isdigit():
            return affix, core
    return "", item.stem


def _group(
    items: Sequence[NamedFile], cut: Callable[[NamedFile], tuple[str, str] | None], end: int | None
) -> tuple[_Group, _Group] | None:
    """Group files by what `cut` cuts off their names; None unless this gives two groups with the same names.

    Args:
        cut: returns (affix or suffix, name) of a file.
        end: position of the affix: 0 before the name, -1 after it; None: `cut` returns the suffix.
    """
    groups: dict[str, dict[tuple[object, ...], NamedFile]] = defaultdict(dict)
    for item in items:
        if (words := cut(item)) is None:
            return None
        groups[words[0]][item.split, item.folders, words[1]] = item
    if len(groups) != 2:
        return None
    (first_affix, first), (second_affix, second) = sorted(groups.items())
    if first.keys() != second.keys() or 2 * len(first) != len(items) or (end is not None and len(first) < 2):
        return None
    affixes: list[Affix] = [("", ""), ("", "")] if end is None else [(first_affix, ""), (second_affix, "")]
    affixes = [("", first_affix), ("", second_affix)] if end == -1 else affixes
    return (list(first.values()), affixes[0]), ([second[core] for core in first], affixes[1])


def _look_like_masks(items: Sequence[NamedFile]) -> bool:
    """Whether a sample of the files is lossless, with few distinct values or, as object ids, with large regions."""
    sampled = [items[i] for i in sorted({0, len(items) // 2, len(items) - 1})]
    return all(_looks_like_mask(item.file.path) for item in sampled)


def _looks_like_mask(path: Path) -> bool:
    try:
        with Image.open(regular_file(path)) as image:
            if image.format not in ("PNG", "TIFF", "BMP", "WEBP"):
                return False
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError):
        return False
    if pixels.ndim == 2 and np.mean(pixels[:, 1:] == pixels[:, :-1]) >= _SAME_AS_NEIGHBOR:
        return True
    flat = pixels.reshape(-1, 1) if pixels.ndim == 2 else pixels.reshape(-1, pixels.shape[2])
    return len(np.unique(flat[:: max(1, len(flat) // 100_000)], axis=0)) <= _FEW_VALUES


def _shared_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    return "".join(letter for letter, _same in takewhile(lambda two: two[0] == two[1], zip(first, last, strict=False)))


def _pattern(root: Path, items: Sequence[NamedFile]) -> str:
    """A glob pattern that matches the files of a group: `scans/*_raw.png`."""
    stems, suffixes = [item.stem for item in items], {item.file.suffix for item in items}
    before = re.sub(r"[^\W_]*$", "", _shared_start(stems)) if len(stems) > 1 else ""
    after = re.sub(r"^[^\W_]*(?=[\W_])", "", _shared_start([stem[::-1] for stem in stems])[::-1])
    deep = "**/" if any(item.file.folders for item in items) else ""
    suffix = items[0].file.path.suffix if len(suffixes) == 1 else ".*"
    return f"{root.as_posix()}/{deep}{before}*{after}{suffix}"
