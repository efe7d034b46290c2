"""Pairs images with their masks: what the masks that `matching.py` found for each image mean.

Several masks of an image are one per object, or one per class. Ambiguous files are reported as problems, not paired.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ubend.core.i18n import _, ngettext
from ubend.labels.cellpose import is_cellpose
from ubend.labels.mask_files import FileMask, Layer, LayeredMask, Mask, ShapeMask
from ubend.layouts.affixes import NamedFile
from ubend.layouts.mask_content import coincide, is_field_of_view
from ubend.layouts.matching import Claim, Matching
from ubend.layouts.naming import (
    FIELD_WORDS,
    MASK_WORDS,
    OBJECT_WORDS,
    OVERLAY_WORDS,
    TASK_MASK,
    loose_key,
    mentions,
    squeeze,
)
from ubend.layouts.pairs import LayoutResult, Pair
from ubend.layouts.problems import Problems, natural_key
from ubend.layouts.tree import is_empty
from ubend.portable.printable import enumerate_names

# Names of masks of the same objects, which are no classes.
_ANNOTATOR = re.compile(
    r"(annotator|expert|rater|reader|grader|observer|obs|radiologist|manual|auto|automatic|consensus|majority|staple|"
    r"v|ver|version)[\W_]*(\d+|[a-h])?",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"[^\W\d_]?\d*")  # words that name no class: `a`, `a1`, or none
_BACKGROUND_WORDS = frozenset(("background", "bg", "back"))


@dataclass(frozen=True)
class _Label:
    """The rest of a mask's name, interpreted: a word for a class, a number for an object."""

    word: str
    number: str


def read_matching(matching: Matching, problems: Problems, *, mixed_rests: bool = False) -> LayoutResult:
    """Turn matched masks into pairs; adds a problem for what is ambiguous.

    Args:
        mixed_rests: accept masks with different rests, since the user stated both sides.
    """
    claims, remarks = _without_overlays(matching.claims)
    claims, message = _without_cellpose(claims)
    remarks += message
    claims, message = _without_field_of_view(claims, matching.images)
    remarks += message
    labels = {image_index: [_label(claim) for claim in of_image] for image_index, of_image in claims.items()}
    orphans = list(matching.orphans)
    if all(len(of_image) == 1 for of_image in claims.values()):
        for image_index in set() if mixed_rests else _find_odd_masks(claims):
            orphans.append(claims.pop(image_index)[0].mask)
        reading = LayoutResult(
            _pairs(matching, {n: FileMask(of_image[0].mask.file.path) for n, of_image in claims.items()})
        )
    elif (words := _class_words(labels)) and all(map(_ANNOTATOR.fullmatch, words)):
        example = next(of_image for of_image in claims.values() if len(of_image) > 1)
        line = _(
            "several masks for one image, by several annotators or in several versions ({words}), for example "
            "{names}; they are no classes: state which masks to use with --images 'PATTERN' --masks 'PATTERN'"
        )
        shown = enumerate_names([problems.shorten(claim.mask.file.path) for claim in example])
        problems.add_line(line.format(words=", ".join(words), names=shown), "several sets")
        return LayoutResult([])
    elif (words or _are_objects(claims, labels)) and (line := _describe_versions(matching, claims, labels, problems)):
        problems.add_line(line, "several sets")
        return LayoutResult([])
    elif words:
        reading = _by_class(matching, claims, labels, words)
    elif words := _class_words(
        wide := {n: [_label(claim, wide=True) for claim in of_image] for n, of_image in claims.items()}
    ):
        reading = _by_class(matching, claims, wide, words)
    elif _are_objects(claims, labels):
        layers = {n: [Layer(path, 1) for path in sorted(claim.mask.file.path for claim in claims[n])] for n in claims}
        count = sum(map(len, claims.values()))
        layout = _("several masks for one image, one per object ({count} in all)").format(count=count)
        pairs = _pairs(
            matching, {image_index: LayeredMask(tuple(of_image)) for image_index, of_image in layers.items()}
        )
        reading = LayoutResult(pairs, ("background", "foreground"), (0, 1), layout=layout)
    else:
        for image_index, of_image in claims.items():
            if len(of_image) > 1:
                names = sorted((problems.shorten(claim.mask.file.path) for claim in of_image), key=natural_key)
                problems.add("two masks", f"{matching.images[image_index].name} ({', '.join(names)})")
        reading = LayoutResult(
            _pairs(matching, {n: FileMask(of_image[0].mask.file.path) for n, of_image in claims.items()})
        )
    for image_index, first in matching.twins:
        names = [matching.images[i].file.path.name for i in (first, image_index)]
        problems.add("two images", f"{matching.images[first].name} ({', '.join(names)})")
    beside, message = _companions(matching, claims)
    remarks += message
    hidden, message = _unlabelled_test(matching, claims, orphans)
    remarks += message
    unmasked = _report_orphans(matching, claims, orphans, beside | hidden, problems)
    for image_index, of_image in claims.items():
        for path in (matching.images[image_index].file.path, *(claim.mask.file.path for claim in of_image)):
            if is_empty(path):
                problems.add("empty", path)
    return replace(reading, remarks=(*remarks, *reading.remarks), unmasked=unmasked)


def _pairs(matching: Matching, masks: Mapping[int, Mask]) -> list[Pair]:
    items = (
        (matching.images[image_index], matching.claims[image_index][0].mask, mask)
        for image_index, mask in masks.items()
    )
    return [Pair(item.name, item.file.path, mask, item.split or first.split, None) for item, first, mask in items]


def _label(claim: Claim, *, wide: bool = False) -> _Label:
    """Interpret the rest of a mask's name; `wide`: words such as `cell` and `nucleus` without a number are classes."""
    words, numbers = [], []
    for word in re.findall(r"[^\W_]+", claim.rest):
        split = re.fullmatch(r"([^\W\d]*)(\d*)", word)
        letters, digits = (split[1].casefold(), split[2]) if split else (word, "")
        general = (letters in OBJECT_WORDS and not (wide and not digits)) or letters in MASK_WORDS
        if digits and (general or not letters):
            numbers.append(digits)
        elif not general:
            words.append(word)
    return _Label(claim.folder or "_".join(words), "_".join(numbers))


def _without_overlays(claims: Mapping[int, list[Claim]]) -> tuple[dict[int, list[Claim]], list[str]]:
    """(masks without files such as `NAME_overlay.png`, remarks), if every image still has a mask."""
    kept = {
        image_index: [claim for claim in of_image if _label(claim).word.casefold() not in OVERLAY_WORDS]
        for image_index, of_image in claims.items()
    }
    dropped = sum(map(len, claims.values())) - sum(map(len, kept.values()))
    if not dropped or not all(kept.values()):
        return dict(claims), []
    return kept, [
        ngettext(
            "{count} overlay among the masks is skipped", "{count} overlays among the masks are skipped", dropped
        ).format(count=dropped)
    ]


def _without_cellpose(claims: dict[int, list[Claim]]) -> tuple[dict[int, list[Claim]], list[str]]:
    """(masks without Cellpose's `NAME_seg.npy`, remarks), if every image still has a mask."""
    kept = {n: [claim for claim in of_image if not is_cellpose(claim.mask.file.path)] for n, of_image in claims.items()}
    dropped = sum(map(len, claims.values())) - sum(map(len, kept.values()))
    if not dropped or not all(kept.values()):
        return claims, []
    return kept, [cellpose_line(dropped)]


def cellpose_line(count: int) -> str:
    """The remark on skipped Cellpose files."""
    return _("Cellpose's _seg.npy files are skipped, since there are other masks ({count})").format(count=count)


def _without_field_of_view(
    claims: dict[int, list[Claim]], images: Sequence[NamedFile]
) -> tuple[dict[int, list[Claim]], list[str]]:
    """(masks without those that are the camera's field of view, remarks), if every image still has a mask.

    Only masks whose name says nothing but mask or field of view: any other word may be a class.
    """
    kinds: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    for n, claim in ((n, claim) for n, of_image in claims.items() for claim in of_image if len(of_image) > 1):
        if squeeze(_label(claim).word) in FIELD_WORDS:
            path = claim.mask.file.path
            kinds[path.parent, re.sub(re.escape(images[n].file.stem) + r"|\d+", "", path.stem)][n] = path
    fields = [paths for paths in kinds.values() if is_field_of_view([*paths.values()])]
    skipped = {path for paths in fields for path in paths.values()}
    kept = {n: [claim for claim in of_image if claim.mask.file.path not in skipped] for n, of_image in claims.items()}
    if not skipped or not all(kept.values()):
        return claims, []
    line = _(
        "masks that are the same in all images and cover most of each, as a camera's field of view does, are skipped "
        "({count}), for example {names}"
    )
    names = enumerate_names([next(iter(paths.values())).name for paths in fields])
    return kept, [line.format(count=len(skipped), names=names)]


def _find_odd_masks(claims: Mapping[int, Sequence[Claim]]) -> set[int]:
    """Indices of images whose mask has an unusual rest; it may belong to another image."""
    rests = {
        image_index: (of_image[0].folder, of_image[0].rest)
        for image_index, of_image in claims.items()
        if not of_image[0].has_own_folder
    }
    if len(set(rests.values())) < 2:
        return set()
    usual = ("", "") if ("", "") in rests.values() else Counter(rests.values()).most_common(1)[0][0]
    return {image_index for image_index, rest in rests.items() if rest != usual}


def _class_words(labels: Mapping[int, Sequence[_Label]]) -> list[str]:
    """The words that name classes, if the same ones recur in most images; otherwise none."""
    word_counts = Counter(word for of_image in labels.values() for word in {label.word for label in of_image})
    several = sum(len({label.word for label in of_image}) > 1 for of_image in labels.values())
    counts = {len(label.number.split("_")) if label.number else 0 for of_image in labels.values() for label in of_image}
    unclear = (
        any(not word or word.isdigit() for word in word_counts)
        or len(counts) > 1  # `a_car` and `a_1_car` may belong to two images
        or len(word_counts) < 2
        or min(word_counts.values()) < 2
        or 2 * several <= len(labels)
        or any(len(set(of_image)) < len(of_image) for of_image in labels.values())
    )
    return [] if unclear else sorted(word_counts, key=natural_key)


def _describe_versions(
    matching: Matching,
    claims: Mapping[int, Sequence[Claim]],
    labels: Mapping[int, Sequence[_Label]],
    problems: Problems,
) -> str:
    """A message for numbered masks of one image (`NAME_1`, `NAME_a1`) that show the same; "" if they do not."""
    if not all(_NUMBERED.fullmatch(label.word) for of_image in labels.values() for label in of_image):
        return ""
    several = {
        matching.images[n].file.stem: sorted((claim.mask.file.path for claim in of_image), key=lambda path: path.name)
        for n, of_image in claims.items()
        if len(of_image) > 1
    }
    if not coincide(several.values()):
        return ""
    line = _(
        "several masks for one image that cover mostly the same pixels, for example {names}; they are no objects, but "
        "by several annotators or in several versions: state which masks to use with --images 'PATTERN' --masks "
        "'{pattern}'; if they are classes that contain each other, put the names of the classes in place of the numbers"
    )
    stem, (first, *others) = next(iter(several.items()))
    pattern = first.with_name(first.name.replace(stem, "*", 1)) if stem in first.name else "PATTERN"
    return line.format(names=enumerate_names([*map(problems.shorten, (first, *others))]), pattern=pattern)


def _are_objects(claims: Mapping[int, Sequence[Claim]], labels: Mapping[int, Sequence[_Label]]) -> bool:
    """Whether masks are single objects: numbered, or in a folder per image under ids that do not recur."""
    flat = [label for of_image in labels.values() for label in of_image]
    if any(len(set(of_image)) < len(of_image) for of_image in labels.values()):
        return False
    numbered = [label for label in flat if label.number]
    kinds = {(label.word, label.number.count("_")) for label in numbered}  # `a_1` and `a_b_1` may belong to two images
    if len(numbered) == len(flat) and len(kinds) == 1:
        return True
    if kinds == {("", 0)} and not any(label.word for label in flat):  # `a_mask`, `a_mask_1`: the first has no number
        return all(
            mentions(claim.mask.stem, "mask") and claim.mask.stem.endswith(label.number)
            for image_index, of_image in claims.items()
            for claim, label in zip(of_image, labels[image_index], strict=True)
        )
    words = Counter(label.word for label in flat if not label.number)
    ids = all(any(map(str.isdigit, word)) for word in words)
    return (
        ids
        and all(claim.has_own_folder for of_image in claims.values() for claim in of_image)
        and max(words.values(), default=1) == 1
    )


def _by_class(
    matching: Matching,
    claims: Mapping[int, Sequence[Claim]],
    labels: Mapping[int, Sequence[_Label]],
    words: Sequence[str],
) -> LayoutResult:
    """The pairs of images with one mask per class."""
    names = [word for word in words if word.casefold() not in _BACKGROUND_WORDS]
    values = {word: names.index(word) + 1 if word in names else 0 for word in words}
    masks = {}
    for image_index, of_image in claims.items():
        files = (claim.mask.file.path for claim in of_image)
        layers = sorted(zip((values[label.word] for label in labels[image_index]), files, strict=True))
        masks[image_index] = LayeredMask(tuple(Layer(path, value) for value, path in layers))
    names = [_as_written(name, claims) for name in names]
    layout = _("several masks for one image, one per class ({names})").format(names=", ".join(names))
    return LayoutResult(_pairs(matching, masks), ("background", *names), tuple(range(len(names) + 1)), layout=layout)


def _as_written(word: str, claims: Mapping[int, Sequence[Claim]]) -> str:
    """A class name spelled as in most files."""
    spellings: Counter[str] = Counter()
    for of_image in claims.values():
        for claim in of_image:
            text = "/".join((*claim.mask.folders, claim.mask.file.stem))
            spellings.update(set(re.findall(re.escape(word).replace("_", r"[\W_]+"), text, re.IGNORECASE)))
    return spellings.most_common(1)[0][0] if spellings else word


def _companions(matching: Matching, claims: Mapping[int, Sequence[Claim]]) -> tuple[set[int], list[str]]:
    """(indices of images that are extra files of other images, remarks).

    An example is `NAME_superpixels.png` next to `NAME.jpg`, if all images without a mask end in this word and there
    are at least half as many as images with a mask.
    """
    twins = {image_index for image_index, _first in matching.twins}
    lonely = [
        image_index
        for image_index in range(len(matching.images))
        if image_index not in claims and image_index not in twins
    ]
    owners = {
        (item.split, item.folders, item.stem) for item in (matching.images[image_index] for image_index in claims)
    }
    words: set[str] = set()
    for item in (matching.images[image_index] for image_index in lonely):
        cuts = (match.start() for match in re.finditer(r"[\W_]+", item.stem))
        words.add(next((item.stem[cut:] for cut in cuts if (item.split, item.folders, item.stem[:cut]) in owners), ""))
    word = words.pop() if len(words) == 1 else ""
    if len(lonely) < 2 or 2 * len(lonely) < len(claims) or not re.search(r"[^\W\d_]", word):
        return set(), []
    suffix = matching.images[lonely[0]].file.path.suffix
    line = _("images without masks that share a name with another image are skipped ({count}): NAME{word}")
    return set(lonely), [line.format(count=len(lonely), word=word + suffix)]


def _unlabelled_test(
    matching: Matching, claims: Mapping[int, Sequence[Claim]], orphans: Sequence[NamedFile]
) -> tuple[set[int], list[str]]:
    """(indices of the images of a test split without any mask, remarks), as competitions publish it.

    Those of a val split without any mask as well, if there is such a test split.
    """
    masked = {matching.images[index].split for index in claims} | {mask.split for mask in orphans}
    if not claims or "test" in masked:
        return set(), []
    remarks, found = list[str](), set[int]()
    for split in ("test", "val"):
        images = {index for index, image in enumerate(matching.images) if image.split == split}
        if not images or split in masked:
            break
        found |= images
        line = ngettext(
            "the {split} split has no masks: {count} image is not used; the trained model can predict it: ubend "
            "predict",
            "the {split} split has no masks: {count} images are not used; the trained model can predict them: ubend "
            "predict",
            len(images),
        )
        remarks.append(line.format(split=split, count=len(images)))
    return found, remarks


def _report_orphans(
    matching: Matching,
    claims: Mapping[int, Sequence[Claim]],
    orphans: Sequence[NamedFile],
    beside: set[int],
    problems: Problems,
) -> list[Pair]:
    """Add problems for images without masks and masks without images, with a suggestion if a name is similar.

    Returns:
        The images without such a suggestion, with an empty mask.
    """
    settled = {index for index, _first in matching.twins} | claims.keys() | beside
    lonely = [image for index, image in enumerate(matching.images) if index not in settled]
    splits = {matching.images[index].split for index in claims}
    images, masks = _by_loose_name(lonely), _by_loose_name(orphans)
    unmasked = list[Pair]()
    for item in lonely:
        near = _near(item, masks, problems)
        if not near:
            unmasked.append(Pair(item.name, item.file.path, ShapeMask(item.file.path, ()), item.split, None))
        if claims and item.split and item.split not in splits and not near:
            problems.add("split without masks", item.file.path.parent)
        else:
            problems.add("no mask", problems.shorten(item.file.path) + near)
    for item in orphans:
        if TASK_MASK.fullmatch(item.file.stem):
            problems.add("task masks", item.file.path)
            continue
        problems.add("no image", problems.shorten(item.file.path) + _near(item, images, problems))
    return unmasked


def _by_loose_name(items: Sequence[NamedFile]) -> dict[str, list[NamedFile]]:
    index: dict[str, list[NamedFile]] = {}
    for item in items:
        index.setdefault(loose_key(item.stem), []).append(item)
    return index


def _near(item: NamedFile, others: Mapping[str, Sequence[NamedFile]], problems: Problems) -> str:
    """` (did you mean X?)` if exactly one other file has a similar name; otherwise ""."""
    near = [problems.shorten(other.file.path) for other in others.get(loose_key(item.stem), ())]
    return _(" (did you mean {name}?)").format(name=near[0]) if len(near) == 1 else ""
