"""Groups that folders state: a folder of images for each patient, video or site."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from ubend.core.i18n import _
from ubend.layouts.naming import folder_meaning
from ubend.layouts.pairs import Pair, Part
from ubend.layouts.problems import enumerate_names, natural_key

_LEAST_GROUPS = 5  # fewer folders cannot be split into train, val and test near the wanted shares


def group_by_folder(pairs: Sequence[Pair], root: Path) -> tuple[list[Pair], str | None]:
    """The pairs with the groups that their images' folders state, and a sentence for the user.

    Folders such as `images` and `train` do not count, nor do those that all images share. A group is the path down
    to the first folder whose name ends with a number (`patient_03`, `TCGA_CS_4941_19960909`); other names
    (`benign`, `003.Albatross`) are rather classes, and only said.

    Args:
        root: above all images.
    """
    folders = [_plain_folders(pair.image, root) for pair in pairs]
    shared = sum(1 for _same in takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False)))
    folders = [names[shared:] for names in folders]
    groups = [_group(names, pair.part) for names, pair in zip(folders, pairs, strict=True)]
    sizes = Counter(group for group in groups if group is not None)
    several = sum(size for size in sizes.values() if size > 1)
    if len(sizes) >= _LEAST_GROUPS and several and 2 * sizes.total() > len(pairs):
        grouped = [
            pair if pair.group or not group or sizes[group] == 1 else replace(pair, group=group)
            for pair, group in zip(pairs, groups, strict=True)
        ]
        example = max(sizes, key=lambda group: sizes[group])
        line = _(
            "images of one folder are kept in one split, as those of one patient or video ({count} folders, such as "
            "{example}); a split file with a column group says otherwise"
        )
        return grouped, line.format(count=len(sizes), example=example)
    tops = Counter(names[0] for names in folders if names)
    if len(tops) < 2 or max(tops.values()) == 1 or all(pair.part or pair.group for pair in pairs):
        return list(pairs), None
    line = _(
        "images of one folder are not kept in one split ({names}); if each is one patient or video, say so in a split "
        "file with a column group"
    )
    return list(pairs), line.format(names=enumerate_names(sorted(tops, key=natural_key)))


def _plain_folders(image: Path, root: Path) -> list[str]:
    return [name for name in image.relative_to(root).parts[:-1] if folder_meaning(name) is None]


def _group(folders: Sequence[str], part: Part | None) -> str | None:
    for level, name in enumerate(folders, 1):
        words = re.findall(r"[^\W_]+", name)
        if words and re.search(r"\d", words[-1]):
            group = "/".join(folders[:level])
            # mere numbers may begin anew in each split
            return f"{part}/{group}" if part and not re.search(r"[^\W\d_]", group) else group
    return None
