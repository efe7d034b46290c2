"""Pairs masks with images by name alone, never by order.

A file is identified by its split, its other folders, and its stem. A mask belongs to the image with the same
names, apart from words such as `mask` and `img`, an affix common to all masks, or a rest that identifies an object
or a class. Several masks of an image are one per object, or one per class. Ambiguous files are reported as
problems, not paired.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ubend.core.i18n import _, ngettext
from ubend.labels.cellpose import is_cellpose
from ubend.labels.mask_files import FileMask, Layer, LayeredMask, Mask
from ubend.layouts.naming import (
    MASK_WORDS,
    OBJECT_WORDS,
    OVERLAY_WORDS,
    TASK_MASK,
    bare_stem,
    bare_stems,
    loose_key,
    mentions,
    pieces,
    side_of_affix,
)
from ubend.layouts.pairs import LayoutResult, Pair, SplitName
from ubend.layouts.problems import Problems, natural_key
from ubend.layouts.tree import FoundFile, is_empty

_Key = tuple[SplitName | None, tuple[str, ...]]
Affix = tuple[str, str]  # before and after the name
_BARE: Affix = ("", "")
_FIRST_CHANNEL = "0000"  # ends the names of all single-channel images of nnU-Net: `case_12_0000.png`


@dataclass(frozen=True)
class Item:
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


@dataclass(frozen=True)
class Claim:
    """A mask matched to an image.

    Attributes:
        mask: the mask.
        rest: the part of its name that the image's name does not have.
        folder: the folder that only masks have: `car` in `masks/car/1.png`; "": none.
        has_own_folder: it is in a folder used by its image only.
    """

    mask: Item
    rest: str = ""
    folder: str = ""
    has_own_folder: bool = False


@dataclass
class Matching:
    """Masks matched to images.

    Attributes:
        images: all images.
        claims: index of an image -> its masks; images without a mask are missing.
        orphans: masks without an image.
        twins: (index of an image, index of an earlier image with the same name).
    """

    images: list[Item]
    claims: dict[int, list[Claim]] = field(default_factory=dict)
    orphans: list[Item] = field(default_factory=list)
    twins: list[tuple[int, int]] = field(default_factory=list)


def match(
    images: Sequence[Item], masks: Sequence[Item], affixes: tuple[Affix, Affix] | None = None, *, sure: bool = False
) -> Matching:
    """Find the masks of each image.

    Args:
        images, masks: all files of the data set.
        affixes: of images and masks, if known.
        sure: the user stated both sides: accept any affix that makes the names match.
    """
    matching = _match(images, masks, affixes, sure, loose=False)
    if not matching.claims and any(item.folders for item in masks):
        loose = _match(images, masks, affixes, sure, loose=True)
        if not (loose.orphans or loose.twins) and all(len(claims) == 1 for claims in loose.claims.values()):
            return loose
    return matching


def _match(
    images: Sequence[Item], masks: Sequence[Item], affixes: tuple[Affix, Affix] | None, sure: bool, *, loose: bool
) -> Matching:
    """Like `match`; `loose` ignores folder names (`Training_Data/1.jpg`, `Part1_GroundTruth/1.png`)."""
    fold = _folding(images, masks)
    ignore_splits = not any(item.split for item in images) or not any(item.split for item in masks)
    distinct = len({fold(item.stem) for item in images}) == len(images)
    flat = loose or (not any(i.folders for i in masks) and distinct)

    def normal(item: Item) -> Item:
        folders = () if flat else tuple(map(fold, item.folders))
        return replace(item, split=None if ignore_splits else item.split, folders=folders, stem=fold(item.stem))

    normal_images, normal_masks = [normal(p) for p in images], [normal(m) for m in masks]
    before, after = _common_affixes(normal_images, normal_masks, affixes, fold, sure)
    index = _Index([replace(image, stem=_cut(image.stem, before)) for image in normal_images])
    matching = Matching(list(images), {}, [], index.twins)
    rivals: dict[int, set[int]] = {}
    for original, normal_mask in zip(masks, normal_masks, strict=True):
        mask = replace(normal_mask, stem=_cut(normal_mask.stem, after))
        if match := index.find(mask, original):
            image_index, claim = match
            matching.claims.setdefault(image_index, []).append(claim)
            rivals.setdefault(image_index, set()).update(index.rivals(mask, image_index))
        else:
            matching.orphans.append(original)
    for image_index, others in rivals.items():
        # the images `x` and `x_mask`, and a mask `x_mask`, which may also be that of `x` if `x` has no mask
        if any(other not in matching.claims for other in others):
            matching.orphans += [claim.mask for claim in matching.claims.pop(image_index)]
    return matching


def _folding(images: Sequence[Item], masks: Sequence[Item]) -> Callable[[str], str]:
    """The function that normalises case: casefold, or the identity if some names differ only by case."""
    for items in (images, masks):
        exact = {(item.split, item.folders, item.stem) for item in items}
        if len({(split, "/".join(folders).casefold(), stem.casefold()) for split, folders, stem in exact}) < len(exact):
            return str
    return str.casefold


class _Index:
    """Index of the images by name."""

    def __init__(self, images: Sequence[Item]) -> None:
        self.exact: dict[_Key, dict[str, int]] = {}
        self.bare: dict[_Key, dict[str, int | None]] = {}  # None: several images
        self.twins: list[tuple[int, int]] = []
        for index, image in enumerate(images):
            key = (image.split, image.folders)
            names = self.exact.setdefault(key, {})
            if image.stem in names:
                self.twins.append((index, names[image.stem]))
                continue
            names[image.stem] = index
            bare, short = self.bare.setdefault(key, {}), bare_stem(image.stem, "image")
            bare[short] = None if short in bare else index
        for key, bare in self.bare.items():
            if len(self.exact[key]) > 1:
                bare.pop("", None)  # `image` and `mask` are a pair only if the folder has no other image

    def find(self, mask: Item, original: Item) -> tuple[int, Claim] | None:
        """(index of the image, claim) of a mask; None: it matches no image, or several.

        Args:
            original: the mask as found, which the claim gets.
        """
        key = (mask.split, mask.folders)
        if (image_index := self._named(key, mask.stem)) is not None:
            return image_index, Claim(original)
        if mask.folders:
            alone = [*self.exact.get(key, {}).items()]
            above = self.exact.get((mask.split, mask.folders[:-1]), {})
            if len(alone) == 1 and (alone[0][0] == mask.folders[-1] or not bare_stem(alone[0][0], "image")):
                return alone[0][1], Claim(original, mask.stem, has_own_folder=True)
            if mask.folders[-1] in above:
                return above[mask.folders[-1]], Claim(original, mask.stem, has_own_folder=True)
        if extended := self._extended(key, mask.stem):
            return extended[0], Claim(original, extended[1])
        claims = []
        for level, folder in enumerate(mask.folders):
            without = (mask.split, mask.folders[:level] + mask.folders[level + 1 :])
            if (image_index := self._named(without, mask.stem)) is not None:
                claims.append((image_index, Claim(original, folder=folder)))
            elif extended := self._extended(without, mask.stem):
                claims.append((extended[0], Claim(original, extended[1], folder)))
        return claims[0] if len(claims) == 1 else None

    def rivals(self, mask: Item, image_index: int) -> set[int]:
        """The other images whose name equals the mask's after removing words for masks."""
        names = self.exact.get((mask.split, mask.folders), {})
        return {names[stem] for stem in bare_stems(mask.stem, "mask") if stem in names} - {image_index}

    def _named(self, key: _Key, stem: str) -> int | None:
        """The image with this name, ignoring words for masks and images around it."""
        exact, bare = self.exact.get(key, {}), self.bare.get(key, {})
        names = [stem] if stem in exact else list(bare_stems(stem, "mask"))
        image_index = next((exact[name] for name in names if name in exact), None)
        return image_index if image_index is not None else next((bare[name] for name in names if name in bare), None)

    def _extended(self, key: _Key, stem: str) -> tuple[int, str] | None:
        """(index of the image whose name this one begins or ends with, the rest of the name)."""
        exact, bare = self.exact.get(key, {}), self.bare.get(key, {})
        lengths: dict[int, tuple[int, str]] = {}
        for name in bare_stems(stem, "mask"):
            _words, starts = pieces(name)
            for start in starts[1:]:
                first, second = name[:start].rstrip(_BETWEEN), name[start:]
                for piece, rest in ((first, second), (second, first)):
                    image_index = exact.get(piece, bare.get(piece))
                    if image_index is not None and len(piece) >= lengths.get(image_index, (0, ""))[0]:
                        lengths[image_index] = (len(piece), rest)
        longest = max((size for size, _rest in lengths.values()), default=0)
        fitting = [(image_index, rest) for image_index, (size, rest) in lengths.items() if size == longest]
        return fitting[0] if len(fitting) == 1 else None


_BETWEEN = " _-.,+([#~"  # no closing bracket: it belongs to the name, as in `benign (1)_mask_2`


def _cut(stem: str, affix: Affix) -> str:
    """The stem without the affix; unchanged if it does not have it."""
    before, after = affix
    if not (stem.startswith(before) and stem.endswith(after) and len(stem) > len(before) + len(after)):
        return stem
    return stem[len(before) : len(stem) - len(after)]


def _common_affixes(
    images: Sequence[Item],
    masks: Sequence[Item],
    given_affixes: tuple[Affix, Affix] | None,
    fold: Callable[[str], str],
    sure: bool,
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
    if sure or spoken or any(mentions(text, "mask") or side_of_affix(text) == "mask" for text in theirs):
        needs_all[ours, theirs] = False
    elif not ours[0] and not theirs[0]:  # `1_sat` and `1_lulc`, but not `cat_1` and `dog_1`
        needs_all[ours, theirs] = True
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


def _count_common(images: Sequence[Item], masks: Sequence[Item], affixes: tuple[Affix, Affix]) -> int:
    """The number of names that both sides share without the affixes; 0 if a side has a name twice."""
    names = []
    for items, affix in zip((images, masks), affixes, strict=True):
        names.append({(item.split, item.folders, _cut(item.stem, affix)) for item in items})
        if len(names[-1]) < len(items) and affixes != (_BARE, _BARE):
            return 0
    return len(names[0] & names[1])


def _common_ends(items: Sequence[Item]) -> Affix:
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


_BACKGROUND_WORDS = frozenset(("background", "bg", "back"))


@dataclass(frozen=True)
class _Label:
    """The rest of a mask's name, interpreted: a word for a class, a number for an object."""

    word: str
    number: str


def read_matching(matching: Matching, problems: Problems, *, sure: bool = False) -> LayoutResult:
    """Turn matched masks into pairs; adds a problem for what is ambiguous.

    Args:
        sure: the user stated both sides: accept masks with different rests.
    """
    claims, remarks = _without_overlays(matching.claims)
    claims, message = _without_cellpose(claims)
    remarks += message
    labels = {image_index: [_label(claim) for claim in of_image] for image_index, of_image in claims.items()}
    orphans = list(matching.orphans)
    if all(len(of_image) == 1 for of_image in claims.values()):
        for image_index in set() if sure else _find_odd_masks(claims):
            orphans.append(claims.pop(image_index)[0].mask)
        reading = LayoutResult(
            _pairs(matching, {n: FileMask(of_image[0].mask.file.path) for n, of_image in claims.items()})
        )
    elif words := _class_words(labels):
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
    _report_orphans(matching, claims, orphans, beside, problems)
    for image_index, of_image in claims.items():
        for path in (matching.images[image_index].file.path, *(claim.mask.file.path for claim in of_image)):
            if is_empty(path):
                problems.add("empty", path)
    return replace(reading, remarks=(*remarks, *reading.remarks))


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
    value = {word: names.index(word) + 1 if word in names else 0 for word in words}
    masks = {}
    for image_index, of_image in claims.items():
        files = (claim.mask.file.path for claim in of_image)
        layers = sorted(zip((value[label.word] for label in labels[image_index]), files, strict=True))
        masks[image_index] = LayeredMask(tuple(Layer(path, worth) for worth, path in layers))
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


def _report_orphans(
    matching: Matching,
    claims: Mapping[int, Sequence[Claim]],
    orphans: Sequence[Item],
    beside: set[int],
    problems: Problems,
) -> None:
    """Add problems for images without masks and masks without images, with a suggestion if a name is similar."""
    settled = {index for index, _first in matching.twins} | claims.keys() | beside
    lonely = [image for index, image in enumerate(matching.images) if index not in settled]
    splits = {matching.images[index].split for index in claims}
    images, masks = _by_loose_name(lonely), _by_loose_name(orphans)
    for item in lonely:
        near = _near(item, masks, problems)
        if claims and item.split and item.split not in splits and not near:
            problems.add("split without masks", item.file.path.parent)
        else:
            problems.add("no mask", problems.shorten(item.file.path) + near)
    for item in orphans:
        if TASK_MASK.fullmatch(item.file.stem):
            problems.add("task masks", item.file.path)
            continue
        problems.add("no image", problems.shorten(item.file.path) + _near(item, images, problems))


def _by_loose_name(items: Sequence[Item]) -> dict[str, list[Item]]:
    index: dict[str, list[Item]] = {}
    for item in items:
        index.setdefault(loose_key(item.stem), []).append(item)
    return index


def _near(item: Item, others: Mapping[str, Sequence[Item]], problems: Problems) -> str:
    """` (did you mean X?)` if exactly one other file has a similar name; otherwise ""."""
    near = [problems.shorten(other.file.path) for other in others.get(loose_key(item.stem), ())]
    return _(" (did you mean {name}?)").format(name=near[0]) if len(near) == 1 else ""
