"""Finds groups in folder or file names: the images of one patient, video or site."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from ubend.core.i18n import _
from ubend.layouts.naming import folder_meaning
from ubend.layouts.pairs import Pair, SplitName
from ubend.layouts.problems import natural_key
from ubend.portable.printable import enumerate_names

_MIN_GROUPS = 3  # train, val and test need one each
_MANY_GROUPS = 5  # fewer groups cannot be split close to the requested fractions
_CLASS_WORDS = frozenset(("category", "class", "cls", "grade", "label", "level", "species", "stage", "type"))
_MEMBER_WORDS = frozenset(("aug", "c", "col", "crop", "f", "field", "fov", "frame", "patch", "r", "row", "slice", "t",
                           "tile", "view", "x", "y", "z"))  # fmt: skip
_ROBOFLOW = re.compile(r"\.rf\.[0-9a-f]{32}$")  # ends the name of each copy that Roboflow makes of an image
_DATE = re.compile(r"(19|20)\d\d([01]\d[0-3]\d)?")  # a year, or year, month and day


def find_groups(pairs: Sequence[Pair], root: Path) -> tuple[list[Pair], str | None]:
    """Set the groups of pairs from folder names, else from file names; returns (pairs, message for the user or None).

    Folders such as `images` and `train`, and folders common to all images, do not count. A group is the path down
    to the first folder whose name ends in a number (`patient_03`, `TCGA_CS_4941_19960909`); other names
    (`benign`, `003.Albatross`) are more likely classes, and are only reported. In file names, a group is a word
    common to most of them with the number after it, if another number distinguishes the images of the group:
    `patient00_slice0`, `P12-03`, `caseA_001`; else an image and its copies, whose names add a recurring word: `a`,
    `a_flip`. Fewer than three groups, or too few for the missing splits, are only reported.

    Args:
        root: a folder that contains all images.
    """
    folders = [_plain_folders(pair.image, root) for pair in pairs]
    shared = sum(1 for _same in takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False)))
    folders = [names[shared:] for names in folders]
    of_folders = [_folder_group(names, pair.split) for names, pair in zip(folders, pairs, strict=True)]
    stems = [pair.image.relative_to(root).with_suffix("").as_posix() for pair in pairs]
    originals = _originals([_ROBOFLOW.sub("", stem) for stem in stems])
    names, folders_said = _("{count} names, such as {example}"), _("{count} folders, such as {example}")
    candidates = (
        (of_folders, folders_said),
        (_name_groups([path.rpartition("/")[2] for path in originals]), names),
        (originals, names),
    )
    splits = {pair.split for pair in pairs}
    is_split = {"train", "val"} <= splits  # then images keep their split
    is_cut = not is_split and bool(splits & {None, "train"})
    minimum = 0 if not is_cut else 2 if "test" in splits else _MIN_GROUPS  # one group per split to be created
    few = None
    for groups, words in candidates:
        sizes = Counter(group for group in groups if group is not None)
        several = sum(size > 1 for size in sizes.values())
        if not several or 2 * sizes.total() <= len(pairs):
            continue
        example = max(sizes, key=lambda group: sizes[group])
        cut = {group for group, pair in zip(groups, pairs, strict=True) if group and pair.split in (None, "train")}
        if len(sizes) >= _MIN_GROUPS and len(cut) >= minimum:
            grouped = [
                pair if pair.group or not group or sizes[group] == 1 else replace(pair, group=group)
                for pair, group in zip(pairs, groups, strict=True)
            ]
            line = _(
                "images of one patient or video, according to folder or file names, are kept in one split ({found}); "
                "to change the groups, give a split file with the columns file,group"
            )
            if len(sizes) < _MANY_GROUPS:
                line = _(
                    "images of one patient or video, according to folder or file names, are kept in one split "
                    "({found}); these groups are few, so the splits differ much from the requested fractions; to "
                    "change the groups, give a split file with the columns file,group"
                )
            return grouped, None if is_split else line.format(found=words.format(count=several, example=example))
        few = few or sorted(sizes, key=natural_key)
    tops = Counter(names[0] for names in folders if names)
    unsure = few or sorted(tops, key=natural_key)
    if len(unsure) < 2 or (not few and max(tops.values()) == 1) or all(pair.split or pair.group for pair in pairs):
        return list(pairs), None
    if few:
        line = _(
            "images of one patient or video, according to folder or file names, are not kept in one split, because "
            "there are too few patients or videos ({names}), so scores say little about others; a split file with the "
            "columns file,split can reserve one of them for the test"
        )
        return list(pairs), line.format(names=enumerate_names(few))
    line = _(
        "images of one folder or name are not kept in one split ({names}); if each is one patient or video, give "
        "a split file with the columns file,group"
    )
    return list(pairs), line.format(names=enumerate_names(unsure))


def _plain_folders(image: Path, root: Path) -> list[str]:
    return [name for name in image.relative_to(root).parts[:-1] if folder_meaning(name) is None]


def _folder_group(folders: Sequence[str], split: SplitName | None) -> str | None:
    for level, name in enumerate(folders, 1):
        words = re.findall(r"[^\W_]+", name)
        if words and re.search(r"\d", words[-1]):
            group = "/".join(folders[:level])
            # Plain numbers may start again in each split.
            return f"{split}/{group}" if split and not re.search(r"[^\W\d_]", group) else group
    return None


def _originals(stems: Sequence[str]) -> list[str]:
    """The original of each path without suffix: the path that it extends by a recurring word such as `_flip`.

    An image without such an original is its own. An image and its copies are in one folder.
    """
    every, divisions = set(stems), list[tuple[str, str]]()
    for stem in stems:
        start = stem.rfind("/") + 1
        cuts = (start + gap.start() for gap in re.finditer(r"[\W_]+", stem[start:]))
        cut = next((cut for cut in cuts if stem[:cut] in every and re.search(r"[^\W\d_]", stem[cut:])), len(stem))
        divisions.append((stem[:cut], re.sub(r"\d+$", "", stem[cut:])))
    rests = Counter(rest for _stem, rest in set(divisions))
    return [name if rests[rest] > 1 else stem for stem, (name, rest) in zip(stems, divisions, strict=True)]


def _name_groups(stems: Sequence[str]) -> list[str | None]:
    """The group of each file name; None if it has none, or lacks the word most common in such names."""
    named = [_name_group(stem) for stem in stems]
    words = Counter(word for name in named if name for word in name[1])
    common = max(words, key=lambda word: words[word], default="")
    return [name[0] if name and common in name[1] else None for name in named]


def _name_group(stem: str) -> tuple[str, set[str]] | None:
    """(group, words in it) of a file name: `patient00`, {"patient"} for `patient00_slice0`; None: no group."""
    words = list(re.finditer(r"[^\W_]+", stem))
    numbers = [bool(re.search(r"\d$", word.group())) for word in words]
    seen, start = list[str](), 0
    for position, match in enumerate(words):
        word = match.group()
        matched = re.fullmatch(r"([^\W\d_]*)(\d+)", word) or re.fullmatch(r"([^\W\d_]*[^\W\d_A-Z])([A-Z])", word)
        letters, number = matched.groups() if matched else (word, "")
        stands_after = bool(letters) or (position > 0 and words[position - 1].group().isalpha())
        seen += [letters.casefold()] if letters else []
        others = sum(numbers) - numbers[position]
        if number and stands_after and others and not _DATE.fullmatch(number):
            if seen[-1] not in _CLASS_WORDS | _MEMBER_WORDS:
                return stem[start : match.end()], set(seen)
            start = words[position + 1].start() if position + 1 < len(words) else 0
    return None
