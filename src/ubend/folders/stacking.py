"""One or several masks of each picture -> pairs: as they are, one object each, or one class each."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ubend.folders.naming import MASK_WORDS, OBJECT_WORDS, OVERLAY_WORDS, loosened
from ubend.folders.pairing import Claim, Item, Matching
from ubend.folders.pairs import Pair, Reading
from ubend.folders.problems import Problems, natural_key
from ubend.folders.tree import is_empty
from ubend.language import _
from ubend.masks.sources import FileMask, Layer, LayeredMask, Mask

_BACKGROUND_WORDS = frozenset(("background", "bg", "back"))


@dataclass(frozen=True)
class _Label:
    """What the name of a mask says beyond its picture's: a word for a class, a number for an object."""

    word: str
    number: str


def read_matching(matching: Matching, problems: Problems, *, sure: bool = False) -> Reading:
    """The pairs of a matching; what is unclear goes into the problems.

    Args:
        sure: the user says that these belong together: a rest that not all masks have does not matter.
    """
    claims, remarks = _without_overlays(matching.claims)
    labels = {number: [_label(claim) for claim in some] for number, some in claims.items()}
    orphans = list(matching.orphans)
    if all(len(some) == 1 for some in claims.values()):
        for number in set() if sure else _strangers(claims):
            orphans.append(claims.pop(number)[0].mask)
        reading = Reading(_pairs(matching, {n: FileMask(some[0].mask.found.path) for n, some in claims.items()}))
    elif words := _class_words(labels):
        reading = _by_class(matching, claims, labels, words)
    elif _are_objects(claims, labels):
        layers = {n: [Layer(path, 1) for path in sorted(claim.mask.found.path for claim in claims[n])] for n in claims}
        count = sum(map(len, claims.values()))
        told = _("several masks for one picture, one per object ({count} in all)").format(count=count)
        pairs = _pairs(matching, {number: LayeredMask(tuple(some)) for number, some in layers.items()})
        reading = Reading(pairs, ("background", "foreground"), (0, 1), layout=told)
    else:
        for number, some in claims.items():
            if len(some) > 1:
                names = sorted((claim.mask.found.path.name for claim in some), key=natural_key)
                problems.add("two masks", f"{matching.pictures[number].name} ({', '.join(names)})")
        reading = Reading(_pairs(matching, {n: FileMask(some[0].mask.found.path) for n, some in claims.items()}))
    for number, first in matching.twins:
        names = [matching.pictures[i].found.path.name for i in (first, number)]
        problems.add("two images", f"{matching.pictures[first].name} ({', '.join(names)})")
    _tell_orphans(matching, claims, orphans, problems)
    for number, some in claims.items():
        for path in (matching.pictures[number].found.path, *(claim.mask.found.path for claim in some)):
            if is_empty(path):
                problems.add("empty", path)
    return replace(reading, remarks=(*remarks, *reading.remarks))


def _pairs(matching: Matching, masks: Mapping[int, Mask]) -> list[Pair]:
    items = ((matching.pictures[number], matching.claims[number][0].mask, mask) for number, mask in masks.items())
    return [Pair(item.name, item.found.path, mask, item.part or first.part, None) for item, first, mask in items]


def _label(claim: Claim) -> _Label:
    words, numbers = [], []
    for word in re.findall(r"[^\W_]+", claim.rest):
        split = re.fullmatch(r"([^\W\d]*)(\d*)", word)
        letters, digits = (split[1].casefold(), split[2]) if split else (word, "")
        general = letters in OBJECT_WORDS or letters in MASK_WORDS
        if digits and (general or not letters):
            numbers.append(digits)
        elif not general:
            words.append(word)
    return _Label(claim.folder or "_".join(words), "_".join(numbers))


def _without_overlays(claims: Mapping[int, list[Claim]]) -> tuple[dict[int, list[Claim]], list[str]]:
    """Without files such as `NAME_overlay.png`, when every picture has another mask."""
    kept = {
        number: [claim for claim in some if _label(claim).word.casefold() not in OVERLAY_WORDS]
        for number, some in claims.items()
    }
    dropped = sum(map(len, claims.values())) - sum(map(len, kept.values()))
    if not dropped or not all(kept.values()):
        return dict(claims), []
    return kept, [_("{count} overlays beside the masks are passed over").format(count=dropped)]


def _strangers(claims: Mapping[int, Sequence[Claim]]) -> set[int]:
    """Numbers of pictures whose mask has a rest that is not the others'; it may be another picture's."""
    rests = {number: (some[0].folder, some[0].rest) for number, some in claims.items() if not some[0].own}
    if len(set(rests.values())) < 2:
        return set()
    usual = ("", "") if ("", "") in rests.values() else Counter(rests.values()).most_common(1)[0][0]
    return {number for number, rest in rests.items() if rest != usual}


def _class_words(labels: Mapping[int, Sequence[_Label]]) -> list[str]:
    """The words for classes, when the same ones come back in most pictures; else none."""
    found = Counter(word for some in labels.values() for word in {label.word for label in some})
    several = sum(len({label.word for label in some}) > 1 for some in labels.values())
    counts = {len(label.number.split("_")) if label.number else 0 for some in labels.values() for label in some}
    unclear = (
        any(not word or word.isdigit() for word in found)
        or len(counts) > 1  # `a_car` and `a_1_car` may be of two pictures
        or len(found) < 2
        or min(found.values()) < 2
        or 2 * several <= len(labels)
        or any(len(set(some)) < len(some) for some in labels.values())
    )
    return [] if unclear else sorted(found, key=natural_key)


def _are_objects(claims: Mapping[int, Sequence[Claim]], labels: Mapping[int, Sequence[_Label]]) -> bool:
    """Are the masks of a picture numbered, or in a folder of their own under ids that do not come back?"""
    flat = [label for some in labels.values() for label in some]
    if any(len(set(some)) < len(some) for some in labels.values()):
        return False
    kinds = {(label.word, label.number.count("_")) for label in flat}  # `a_1` and `a_b_1` may be of two pictures
    if all(label.number for label in flat) and len(kinds) == 1:
        return True
    words = Counter(label.word for label in flat if not label.number)
    ids = all(any(map(str.isdigit, word)) for word in words)
    return ids and all(claim.own for some in claims.values() for claim in some) and max(words.values(), default=1) == 1


def _by_class(
    matching: Matching,
    claims: Mapping[int, Sequence[Claim]],
    labels: Mapping[int, Sequence[_Label]],
    words: Sequence[str],
) -> Reading:
    names = [word for word in words if word.casefold() not in _BACKGROUND_WORDS]
    value = {word: names.index(word) + 1 if word in names else 0 for word in words}
    masks = {}
    for number, some in claims.items():
        files = (claim.mask.found.path for claim in some)
        layers = sorted(zip((value[label.word] for label in labels[number]), files, strict=True))
        masks[number] = LayeredMask(tuple(Layer(path, worth) for worth, path in layers))
    names = [_as_written(name, claims) for name in names]
    told = _("several masks for one picture, one per class ({names})").format(names=", ".join(names))
    return Reading(_pairs(matching, masks), ("background", *names), tuple(range(len(names) + 1)), layout=told)


def _as_written(word: str, claims: Mapping[int, Sequence[Claim]]) -> str:
    """A word for a class with its capitals, as most files have it."""
    spellings: Counter[str] = Counter()
    for some in claims.values():
        for claim in some:
            text = "/".join((*claim.mask.folders, claim.mask.found.stem))
            spellings.update(set(re.findall(re.escape(word).replace("_", r"[\W_]+"), text, re.IGNORECASE)))
    return spellings.most_common(1)[0][0] if spellings else word


def _tell_orphans(
    matching: Matching, claims: Mapping[int, Sequence[Claim]], orphans: Sequence[Item], problems: Problems
) -> None:
    """Pictures without masks and masks without pictures, with those that nearly have their name."""
    twins = {number for number, _first in matching.twins}
    lonely = [p for number, p in enumerate(matching.pictures) if number not in claims and number not in twins]
    parts = {matching.pictures[number].part for number in claims}
    pictures, masks = _by_loose_name(lonely), _by_loose_name(orphans)
    for item in lonely:
        near = _near(item, masks, problems)
        if claims and item.part and item.part not in parts and not near:
            problems.add("part without masks", item.found.path.parent)
        else:
            problems.add("no mask", problems.shorten(item.found.path) + near)
    for item in orphans:
        problems.add("no image", problems.shorten(item.found.path) + _near(item, pictures, problems))


def _by_loose_name(items: Sequence[Item]) -> dict[str, list[Item]]:
    index: dict[str, list[Item]] = {}
    for item in items:
        index.setdefault(loosened(item.stem), []).append(item)
    return index


def _near(item: Item, others: Mapping[str, Sequence[Item]], problems: Problems) -> str:
    """` (did you mean X?)` of the only other that nearly has the name, or nothing."""
    near = [problems.shorten(other.found.path) for other in others.get(loosened(item.stem), ())]
    return _(" (did you mean {name}?)").format(name=near[0]) if len(near) == 1 else ""
