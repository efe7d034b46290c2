"""Deterministic split into train, val and test, which keeps groups and near-identical images together.

N images.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, SettingError
from ubend.core.i18n import _
from ubend.dataset.near_duplicates import Threshold, find_similar, group_equal
from ubend.layouts.pairs import SPLITS, SplitName

# Correlation of two thumbnails, measured on 32 px thumbnails (grey, box filter) of two data sets, with the pairs
# checked by eye. Kvasir-SEG (1,000 images): copies and neighbouring frames have .9999, .9999, .9999, .993, .966;
# different polyps in the same black frame have .955 and less (two frames of one video are also below: .949, .943).
# Oxford-IIIT Pet (2,934): ten copies, some sharpened or with a watermark, have .981 and more; the next pair is one dog
# in two poses, .895. At 16 px one pair of different polyps exceeds the threshold (.963); it is only kept together.
# Flipped and turned copies: DRIVE's training images are six photographs in several orientations, correlation 1.0; the
# best flipped pairs of the other two (.945; .885) are different images.
# After subtracting the mean thumbnail of the data set, since uneven light alone makes all images of one microscope
# correlate: copies in Kvasir-SEG have .944 and more, different polyps .931 and less; pets .981.
THRESHOLD = Threshold(0.96, 0.94)
MOST_GROUPS = 50  # that are left out one at a time, each by a training


@dataclass(frozen=True)
class SplitResult:
    """The split of each pair.

    Attributes:
        splits: one per pair, in the order of the pairs.
        remarks: messages for the user about the split.
    """

    splits: tuple[SplitName, ...]
    remarks: tuple[str, ...]


def find_near_duplicates(thumbnails: NDArray[np.uint8], *, exact: bool | None = None) -> NDArray[np.int64]:
    """Group near-identical images: returns a group number for each image; chains of such images share one.

    Images are near-identical if their thumbnails are equal or similar in one of eight orientations, see
    `near_duplicates.py`. Nearly flat thumbnails are only compared for equality. Of more than `EXACT_IMAGES` images, a
    few of the least similar pairs may be missed.

    Args:
        thumbnails: (N, S, S) grey, 0..255, S = 16..32 px.
        exact: compare all pairs; None: if there are at most `EXACT_IMAGES`.
    Returns:
        (N,) numbers from 0, in the order of the first image of each group.
    """
    if len(thumbnails) == 0:
        return np.zeros(0, dtype=np.int64)
    groups = group_equal(thumbnails)

    def are_joined(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(groups[left] == groups[right])

    # Joined after each block, so that a folder of copies of one image does not need N^2 links.
    for pairs in find_similar(thumbnails, THRESHOLD, are_joined, exact=exact):
        groups[:] = _join(groups, pairs.turned, pairs.upright)
    return _renumber(groups)


def split_pairs(
    names: Sequence[str],
    given: Sequence[SplitName | None],
    groups: Sequence[str | None],
    duplicates: NDArray[np.int64],
    seed: int,
    val_share: float,
    test_share: float,
    holds: NDArray[np.bool_] | None = None,
) -> SplitResult:
    """Split the pairs into train, val and test; splits missing from a given split are taken from its train split.

    The result for a name depends on names, groups, near-duplicates and seed, not on the order of the arguments'
    items. Groups that share near-identical images are joined, unless too few would be left to split. Groups are
    processed in the order of a keyed hash of their smallest name: first test is filled, then val, each as close to its
    fraction as whole groups allow; the rest stays in train. Then groups are exchanged where a split lacks a class that
    enough groups hold.

    Args:
        names: N unique names of pairs.
        given: the given split of each pair: for all pairs or for none.
        groups: the group of each pair, or None.
        duplicates: (N,) from `find_near_duplicates`.
        seed: of the random order of groups.
        val_share: requested fraction of val, in (0, 1): of all images, or of the train split of a given split.
        test_share: requested fraction of test, of all images, in (0, 1).
        holds: (N, C) whether the mask of each pair contains each class; None: unknown.
    Raises:
        DataError: the given split is incomplete or has no train split; too few images or groups.
        SettingError: the fractions leave nothing for some split.
    """
    if val_share <= 0 or test_share <= 0 or val_share + test_share >= 1:
        raise SettingError(
            _("val_share {val} and test_share {test} must be above 0 and together below 1").format(
                val=val_share, test=test_share
            ),
            key="data.val_share",
        )
    order = sorted(range(len(names)), key=lambda i: names[i])
    units = _join_groups(groups, duplicates)
    present = _given_splits(names, given)

    splits: list[SplitName] = [split or "train" for split in given]
    remarks = []
    cut: dict[SplitName, float] = {}
    if "test" not in present and "val" not in present:
        cut = {"test": test_share, "val": val_share}
        if present:
            remarks.append(_("only a train split is given: val and test are taken from it"))
    elif "val" not in present:
        cut = {"val": val_share}
        remarks.append(_("no val split is given: it is taken from the train split"))
    elif "test" not in present:
        remarks.append(
            _(
                "no test split is given: scores are those of the val split, which is also used to choose the weights, "
                "so they are optimistic"
            )
        )
    if cut:
        pool = [i for i in order if splits[i] == "train"]
        single = duplicates.max(initial=0) + 1 + np.arange(len(names))
        alone = np.where([group is None for group in groups], duplicates, single)
        apart = _join_groups(groups, alone)
        if len({*units[pool]}) <= len(cut) < len({*apart[pool]}):
            units, duplicates = apart, alone
            remarks.append(
                _(
                    "near-identical images of different groups are not kept together, because too few groups would "
                    "be left to split; scores may be optimistic"
                )
            )
        for i, split in _cut_splits(pool, names, units, seed, cut).items():
            splits[i] = split
        if holds is not None:
            numbers = np.array([SPLITS.index(splits[i]) for i in pool])
            numbers = _spread_classes(numbers, units[pool], holds[pool], [names[i] for i in pool], seed)
            for i, number in zip(pool, numbers.tolist(), strict=True):
                splits[i] = SPLITS[number]
        sizes = Counter(int(duplicates[i]) for i in pool).values()
        if repeated := [size for size in sizes if size > 1]:
            remarks.append(
                _("{count} near-identical images are kept together (sets: {sets})").format(
                    count=sum(repeated), sets=len(repeated)
                )
            )
    if present:
        copies_cut = _(
            "the given split leaks: near-identical images are in more than one split (sets: {count}), for "
            "example {example}; it is used unchanged, so scores may be optimistic"
        )
        groups_cut = _(
            "the given split leaks: images of one group are in more than one split (groups: {count}), for "
            "example {example}; it is used unchanged, so scores may be optimistic"
        )
        remarks += _remark_straddling(order, names, splits, duplicates.tolist(), copies_cut)
        remarks += _remark_straddling(order, names, splits, groups, groups_cut)
    return SplitResult(tuple(splits), tuple(remarks))


def cut_folds(
    names: Sequence[str],
    splits: Sequence[SplitName],
    groups: Sequence[str | None],
    duplicates: NDArray[np.int64],
    seed: int,
    folds: int,
    holds: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Divide train and val into folds for cross-validation, of sizes as equal as groups allow.

    Groups and near-identical images stay in one fold, and each fold has every class that enough of them hold. As in
    `split_pairs`, the result for a name does not depend on the order of the arguments' items: units are assigned from
    the largest to the smallest, those of equal size in the order of a keyed hash, each to the fold that is smallest so
    far.

    Args:
        names, groups, duplicates, seed: see `split_pairs`.
        splits: of the N pairs; those of test are in no fold.
        folds: number of folds, >= 2.
        holds: see `split_pairs`.
    Returns:
        (N,) numbers from 1 to `folds`; 0: test.
    Raises:
        DataError: fewer independent images or groups than folds.
    """
    units, members = _join_groups(groups, duplicates), dict[int, list[int]]()
    for i in sorted(range(len(names)), key=lambda i: names[i]):
        if splits[i] != "test":
            members.setdefault(int(units[i]), []).append(i)
    if len(members) < folds:
        raise DataError(
            _(
                "{folds} folds need as many independent images or groups, but there are only {units} outside the test "
                "split ({count} images; near-identical ones count once); use a smaller --folds, or add images"
            ).format(folds=folds, units=len(members), count=sum(map(len, members.values()))),
            key="data.folds",
        )
    fold_of, sizes = np.zeros(len(names), np.int64), [0] * folds
    for unit in sorted(members.values(), key=lambda unit: (-len(unit), _draw(seed, names[unit[0]]))):
        smallest = sizes.index(min(sizes))
        fold_of[unit] = smallest + 1
        sizes[smallest] += len(unit)
    if holds is not None:
        pool = [i for unit in members.values() for i in unit]
        named = [names[i] for i in pool]
        fold_of[pool] = _spread_classes(fold_of[pool], units[pool], holds[pool], named, seed)
    return fold_of


def check_groups(names: Sequence[str], groups: Sequence[str | None]) -> None:
    """Refuse groups of which each cannot be left out once.

    Raises:
        DataError: images without a group, a single group, or more than `MOST_GROUPS`.
    """
    key, count = "data.leave_out", len({*groups} - {None})
    without = sorted(name for name, group in zip(names, groups, strict=True) if group is None)
    if without and count:
        line = _(
            "--leave-out group needs the group of every image, but {count} of {all} images have none, for example "
            "{name}; complete the column group of --split"
        )
        raise DataError(line.format(count=len(without), all=len(names), name=without[0]), key=key)
    if count < 2:
        line = _(
            "--leave-out group needs two or more groups, but there are {count}; name the group of each image in a CSV "
            "file with the columns file,group (--split), or use --folds"
        )
        raise DataError(line.format(count=count), key=key)
    if count > MOST_GROUPS:
        line = _(
            "--leave-out group would train {count} models, one for each group; at most {most} are possible: use "
            "--folds 5, which keeps groups whole"
        )
        raise DataError(line.format(count=count, most=MOST_GROUPS), key=key)


def number_groups(
    groups: Sequence[str | None], duplicates: NDArray[np.int64]
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Number the groups for cross-validation that leaves out one of them at a time.

    Groups that share near-identical images are joined, since a model trained on one has seen images of the other.

    Args:
        groups: of the N images, checked by `check_groups`.
        duplicates: (N,) from `find_near_duplicates`.
    Returns:
        (N,) numbers from 1, in alphabetical order of the groups' first names; number -> names of its groups.
    Raises:
        DataError: all groups share near-identical images.
    """
    units, named = _join_groups(groups, duplicates), dict[int, set[str]]()
    for unit, group in zip(units.tolist(), groups, strict=True):
        named.setdefault(unit, set()).add(str(group))
    if len(named) < 2:
        line = _(
            "--leave-out group: all groups share near-identical images, so none can be left out; correct the groups, "
            "or remove the copies (`ubend doctor` lists them)"
        )
        raise DataError(line, key="data.leave_out")
    ordered = sorted(named, key=lambda unit: sorted(named[unit]))
    numbers = {unit: number for number, unit in enumerate(ordered, 1)}
    names = {numbers[unit]: ", ".join(sorted(named[unit])) for unit in ordered}
    return np.array([numbers[unit] for unit in units.tolist()], np.int64), names


def hold_out(
    names: Sequence[str],
    groups: Sequence[str | None],
    duplicates: NDArray[np.int64],
    numbers: NDArray[np.int64],
    number: int,
    seed: int,
    val_share: float,
) -> SplitResult:
    """The split in which the groups of one number are the test split; val is taken from the other groups.

    So the group that is left out plays no role in choosing the weights. Val is a choice of whole groups, or, if there
    is only one other group, of its images.

    Args:
        names, groups, duplicates, seed, val_share: see `split_pairs`.
        numbers: (N,) from `number_groups`.
        number: that of the groups to leave out.
    Raises:
        DataError: the other groups have too few images for two splits.
    """
    pool = [i for i in sorted(range(len(names)), key=lambda i: names[i]) if numbers[i] != number]
    units, remarks = _join_groups(groups, duplicates), []
    if len({*units[pool].tolist()}) < 2:
        units = _renumber(duplicates)
        remarks.append(_("only one group is not left out: the validation split is taken from its images"))
    val = _cut_splits(pool, names, units, seed, {"val": val_share})
    splits: list[SplitName] = [
        "test" if left_out == number else val.get(i, "train") for i, left_out in enumerate(numbers.tolist())
    ]
    return SplitResult(tuple(splits), tuple(remarks))


def _given_splits(names: Sequence[str], given: Sequence[SplitName | None]) -> set[SplitName]:
    """The splits that occur in a given split; empty if none is given.

    Raises:
        DataError: it is incomplete, or has no train split.
    """
    present = {split for split in given if split is not None}
    without = sorted(name for name, split in zip(names, given, strict=True) if split is None)
    if present and without:
        raise DataError(
            _(
                "the given split does not include {count} of {total} images, for example {name}; give one for all "
                "images: --split FILE, a CSV with the columns file,split"
            ).format(count=len(without), total=len(names), name=without[0]),
            key="data.split",
        )
    if present and "train" not in present:
        raise DataError(
            _("the given split has only {splits}; training needs a train split").format(
                splits=", ".join(sorted(present))
            ),
            key="data.split",
        )
    return present


def _cut_splits(
    pool: list[int], names: Sequence[str], units: NDArray[np.int64], seed: int, shares: dict[SplitName, float]
) -> dict[int, SplitName]:
    """Choose the pairs of `pool` (sorted by name) that leave train, in whole units: {pair: split}."""
    members: dict[int, list[int]] = {}
    for i in pool:
        members.setdefault(int(units[i]), []).append(i)
    if len(members) < len(shares) + 1:
        raise DataError(
            _(
                "only {units} independent images or groups ({count} images; near-identical ones count "
                "once), but a split into {splits} needs {needed} or more; add images, or give a split file (CSV)"
            ).format(
                units=len(members),
                count=len(pool),
                splits=", ".join(["train", *reversed(shares)]),
                needed=len(shares) + 1,
            ),
            key="data.split",
        )
    waiting = sorted(members.values(), key=lambda unit: _draw(seed, names[unit[0]]))
    out: dict[int, SplitName] = {}
    for index, (split, share) in enumerate(shares.items()):
        needed = len(shares) - index  # units that must remain for the following splits
        target = share * len(pool)
        taken: list[list[int]] = []
        left: list[list[int]] = []
        count = 0
        for unit in waiting:
            nearer = abs(count + len(unit) - target) <= abs(count - target)
            if nearer and len(waiting) - len(taken) > needed:
                taken.append(unit)
                count += len(unit)
            else:
                left.append(unit)
        if not taken:  # all units are bigger than twice the target
            taken = [left.pop(min(range(len(left)), key=lambda k: len(left[k])))]
        waiting = left
        out.update({i: split for unit in taken for i in unit})
    return out


def _spread_classes(
    parts: NDArray[np.int64], units: NDArray[np.int64], holds: NDArray[np.bool_], names: Sequence[str], seed: int
) -> NDArray[np.int64]:
    """Exchange units so that each part has every class that as many units hold as there are parts.

    Args:
        parts: (n,) number of the split or fold of each pair.
        units: (n,) number of the unit of each pair; pairs of a unit are in one part.
        holds: (n, C) whether the mask of each pair contains each class.
        names, seed: of the order in which units are tried.
    Returns:
        (n,) the part of each pair; the same as `parts` if no part lacks a class.
    """
    order = sorted(range(len(parts)), key=lambda i: _draw(seed, names[i]))
    unit_of = np.empty(len(parts), np.int64)
    unit_of[order] = _renumber(units[order])
    sizes = np.bincount(unit_of)
    part = np.zeros(len(sizes), np.int64)
    part[unit_of] = parts
    held = np.zeros((len(sizes), holds.shape[1]), np.int64)
    np.maximum.at(held, unit_of, holds)
    known = np.unique(part)
    spread = np.flatnonzero(held.sum(axis=0) >= len(known))  # the classes that can be in each part
    for number, index in itertools.product(known.tolist(), spread.tolist()):
        if not held[part == number, index].any():
            found = _find_exchange(number, np.flatnonzero(held[:, index]), part, held, sizes)
            if found is not None:
                part[list(found)] = part[list(found[::-1])]
    return part[unit_of]


def _find_exchange(
    number: int,
    holders: NDArray[np.int64],
    part: NDArray[np.int64],
    held: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[int, int] | None:
    """(unit for part `number`, unit of it for the other's part), of most similar size; None: parts would lose classes.

    Args:
        holders: units to choose from, in other parts.
        part: (U,) the part of each unit.
        held: (U, C) 1 where a unit holds a class, else 0.
        sizes: (U,) pairs of each unit.
    """
    counts = np.zeros((part.max() + 1, held.shape[1]), np.int64)
    np.add.at(counts, part, held)
    best: tuple[int, int, int] | None = None  # (difference in size, holder, unit of the part)
    for place in np.flatnonzero(part == number).tolist():
        theirs, ours = counts[part[holders]], counts[number]
        loses = (theirs > 0) & (theirs - held[holders] + held[place] == 0)
        loses |= (ours > 0) & (ours - held[place] + held[holders] == 0)
        fitting = holders[~loses.any(axis=1)]
        if len(fitting):
            differences = np.abs(sizes[fitting] - sizes[place])
            nearest = int(differences.argmin())
            if best is None or differences[nearest] < best[0]:
                best = int(differences[nearest]), int(fitting[nearest]), place
            if best[0] == 0:
                break
    return None if best is None else best[1:]


def _draw(seed: int, name: str) -> tuple[bytes, str]:
    """A sort key for a random order that depends only on seed and name."""
    data = name.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, key=str(seed).encode(), digest_size=16).digest(), name


def _join_groups(groups: Sequence[str | None], duplicates: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) number of the unit to keep together: groups joined with near-duplicates."""
    first: dict[str, int] = {}
    links = [(first.setdefault(group, i), i) for i, group in enumerate(groups) if group is not None]
    left, right = np.array(links, dtype=np.int64).reshape(-1, 2).T
    return _join(_renumber(duplicates), left, right)


def _join(groups: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) group numbers in [0, N) -> the same after joining the groups of images left[k] and right[k]."""
    smallest, left, right = np.arange(len(groups)), groups[left], groups[right]  # found: smallest known linked group
    while (apart := smallest[left] != smallest[right]).any():
        left, right = left[apart], right[apart]
        minimum = np.minimum(smallest[left], smallest[right])
        np.minimum.at(smallest, smallest[left], minimum)
        np.minimum.at(smallest, smallest[right], minimum)
        while (smallest[smallest] != smallest).any():  # follows long chains in steps of doubling length
            smallest = smallest[smallest]
    return smallest[groups]


def _renumber(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) any group numbers -> numbers from 0 in the order of first occurrence."""
    _values, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return np.asarray(rank[inverse.reshape(-1)], dtype=np.int64)


def find_straddling(
    order: Sequence[int], splits: Sequence[SplitName], labels: Sequence[int | str | None]
) -> list[tuple[int, int]]:
    """Two images, in different splits, of each label whose images lie in several splits, in the order of the images.

    Args:
        order: the images, in the order in which they are looked at.
        splits, labels: of each image; None: no label.
    """
    first: dict[int | str | None, int] = {}
    straddling: dict[int | str | None, tuple[int, int]] = {}
    for i in order:
        j = first.setdefault(labels[i], i)
        if labels[i] is not None and splits[i] != splits[j]:
            straddling.setdefault(labels[i], (j, i))
    return list(straddling.values())


def _remark_straddling(
    order: list[int], names: Sequence[str], splits: Sequence[SplitName], labels: Sequence[int | str | None], remark: str
) -> list[str]:
    """The remark, with count and an example, if images with the same label are in more than one split."""
    straddling = find_straddling(order, splits, labels)
    if not straddling:
        return []
    j, i = straddling[0]
    example = _("{one} ({split}) and {other} ({other_split})").format(
        one=names[j], split=splits[j], other=names[i], other_split=splits[i]
    )
    return [remark.format(count=len(straddling), example=example)]
