"""Words for images, masks and splits in the names of folders and files."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal

from ubend.layouts.pairs import SplitName
from ubend.portable.image_paths import IMAGE_SUFFIXES

Side = Literal["image", "mask"]

# In folder names and in split files.
SPLIT_WORDS: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".npy", ".gif")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Unsupported image formats, which are reported as a problem: skipping them would silently lose data. All other
# suffixes (.json, .txt, .csv, .mat, .xml, .db, ...) are skipped.
FOREIGN_SUFFIXES = _words(".gif .dcm .nii .nii.gz .mha .nrrd .npy .npz .jp2 .heic .svg .czi .nd2")
_IMAGE_WORDS = _words(
    "image images img imgs photo photos picture pictures pic pics x original originals input inputs jpegimages"
)
MASK_WORDS = _words(
    "mask masks label labels labelids annotation annotations annot seg segs segmentation segmentations "
    "segmentationclass segmentationmask segmentationmasks gt gts groundtruth groundtruths y target targets "
    "trimap trimaps cpmasks"
)
_SIDES: dict[str, Side] = {**dict.fromkeys(_IMAGE_WORDS, "image"), **dict.fromkeys(MASK_WORDS, "mask")}
MANUAL_FOLDERS = _words("manual manual1 manuals 1stmanual firstmanual manualannotation manualsegmentation")
COLORED_FOLDERS = _words("color colors colour colours colormap colormaps colored coloured rgb")
# Words that have no such meaning in a file name.
_FOLDER_SIDES: dict[str, Side] = {**_SIDES, "lab": "mask", **dict.fromkeys(MANUAL_FOLDERS, "mask")}
_FOLDER_SPLITS: dict[str, SplitName] = {**SPLIT_WORDS, "trainval": "train"}
_SPLIT_ENDS: dict[str, SplitName] = {**SPLIT_WORDS, "tr": "train", "ts": "test", "te": "test"}  # imagesTr
_NEUTRAL_FOLDERS = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)  # images/png, masks/tif
OVERLAY_WORDS = _words("viz overlay overlays blend blended vis visualization visualisation preview")
# Folders of images made for viewing. `vis` is not among them: it may be visible light.
PREVIEW_FOLDERS = _words(
    "overlay overlays preview previews thumb thumbs thumbnail thumbnails visualization visualizations visualisation "
    "visualisations"
)
# The rest of a mask's name that may be a camera's field of view; what the mask shows decides.
FIELD_WORDS = _words("fov fieldofview") | {""}
OBJECT_WORDS = _words(
    "obj object objects inst instance instances cell cells nucleus nuclei lesion region roi part no nr"
)

# Masks exported by Label Studio from brush labels: `task-3-annotation-7-by-1-tag-Tree-0.png`.
TASK_MASK = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-(?:by-.*?-)?tag-(?P<tag>.+)-\d+")

_PLAIN_FOLDERS: dict[Side, str] = {"mask": "masks", "image": "images"}  # `gt_image_2` has masks
OBJECT_IDS = "ids"  # a folder next to images and masks: the object id of each pixel


_GAP = r"(?:[^\w()\[\]{}]|_)"  # between words; brackets belong to their content: `benign (1)_mask`


def _pattern(words: frozenset[str]) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Patterns of a word alone, before, and after a name; single letters are left out: `x_1` may be a position."""
    spelled = {word for word in words if len(word) > 1}
    if "mask" in words:
        spelled |= {"ground[ _-]truth", "cp[ _-]masks?"}
    every = "|".join(sorted(spelled, key=len, reverse=True))
    return (
        re.compile(f"(?:{every})", re.IGNORECASE),
        re.compile(rf"(?:{every})(?:{_GAP}+|(?=[0-9]))", re.IGNORECASE),
        re.compile(rf"(?:{_GAP}+|(?<=[0-9]))(?:{every})$", re.IGNORECASE),
    )


_PATTERNS: dict[Side, tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]] = {
    "image": _pattern(_IMAGE_WORDS),
    "mask": _pattern(MASK_WORDS),
}


def squeeze(name: str) -> str:
    """The name in lower case, letters and digits only: `Ground Truth` and `ground_truth` become `groundtruth`."""
    return re.sub(r"[\W_]+", "", name.casefold())


@lru_cache(maxsize=4096)
def folder_meaning(name: str) -> tuple[Side | None, SplitName | None, str] | None:
    """(side, split, word for the split) named by a folder; None: an ordinary name.

    `("image", None, "")` for `Images` and `images_png`, `("mask", "train", "train")` for `train_labels` and
    `("mask", "train", "training")` for `ISIC2018_Task1_Training_GroundTruth`. A name to be ignored, such as `png`,
    gives `(None, None, "")`.
    """
    bare = squeeze(name)
    if bare in _NEUTRAL_FOLDERS:
        return None, None, ""
    if bare in _FOLDER_SIDES:
        return _FOLDER_SIDES[bare], None, ""
    if bare in _FOLDER_SPLITS:
        return None, _FOLDER_SPLITS[bare], bare
    words, _starts = split_words(name)
    for word in sorted(_SPLIT_ENDS, key=len, reverse=True):
        for rest in (bare.removeprefix(word), bare.removesuffix(word)):
            if rest != bare and rest in _FOLDER_SIDES and (len(rest) > 1 or rest in words):
                return _FOLDER_SIDES[rest], _SPLIT_ENDS[word], word
    if len(words) > 1 and words[-1] in _NEUTRAL_FOLDERS:
        return folder_meaning("".join(words[:-1]))
    if len(words) > 2 and words[-2] in SPLIT_WORDS and words[-1] in _SIDES:
        return _SIDES[words[-1]], SPLIT_WORDS[words[-2]], words[-2]
    return None


def plain_folder(name: str) -> str | None:
    """The plain name of a folder whose name mentions a side: `tr_masks` for `DUTS-TR-Mask`; None: it does not."""
    side = next((side for side in _PLAIN_FOLDERS if mentions(name, side)), None)
    split = next((word for word in split_words(name)[0] if word in _SPLIT_ENDS), "")
    return f"{split}_{_PLAIN_FOLDERS[side]}".lstrip("_") if side else None


def splits_of_siblings(folders: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], SplitName]:
    """Path -> split of the folders whose names differ only by the word for the split from others beside them.

    `uavid_train` and `uavid_val`, `traincrop` and `testcrop`, `ISIC-2017_Training_Data` and `ISIC-2017_Test_v2_Data`;
    digits and versions do not count. A folder `crash_test` with no such neighbour names no split.

    Args:
        folders: the names of the folders between the root and each file.
    """
    neighbours: dict[tuple[str, ...], dict[tuple[str, ...], SplitName]] = defaultdict(dict)
    for path in {names[: level + 1] for names in folders for level in range(len(names))}:
        for split, rest in _without_split_word(path[-1]):
            neighbours[(*path[:-1], rest)][path] = split
    several = (found for found in neighbours.values() if len({*found.values()}) > 1)
    return {path: split for found in several for path, split in found.items()}


def _without_split_word(name: str) -> Iterator[tuple[SplitName, str]]:
    """(split, rest of the name without digits and versions) for each way to find a word for a split in a name."""
    words = [re.sub(r"\d+|^v\d+$", "", word) for word in split_words(name)[0]]
    words = words[1:] if len(words) > 1 and len(words[0]) == 1 else words  # `a. Training Set`
    for position, word in enumerate(words):
        if word in SPLIT_WORDS:
            yield SPLIT_WORDS[word], "".join(words[:position] + words[position + 1 :])
    bare = "".join(words)
    for word, split in SPLIT_WORDS.items():
        for rest in (bare.removeprefix(word), bare.removesuffix(word)):
            if rest != bare:
                yield split, rest


def split_in_name(stem: str) -> SplitName | None:
    """The split that a file name begins or ends with: train for `train_12` and `21_training`, test for `testA_3`."""
    words = re.findall(r"[^\W\d_]+", stem)
    found = {
        SPLIT_WORDS.get(word.casefold()) or SPLIT_WORDS.get(re.sub(r"[A-Z]$", "", word).casefold())
        for word in (*words[:1], *words[-1:])
    } - {None}
    return found.pop() if len(found) == 1 else None


def split_words(stem: str) -> tuple[list[str], list[int]]:
    """The words of a name in lower case, and where each begins: `Cat_mask 1` -> cat, mask, 1."""
    words = list(re.finditer(r"[^\W_]+", stem))
    return [word.group().casefold() for word in words], [word.start() for word in words]


def bare_stems(stem: str, side: Side) -> Iterator[str]:
    """The stem, then the stem with words of its side removed from its ends one by one.

    `mask_1_gt` -> `mask_1_gt`, `1_gt`, `1`; a stem that is itself such a word becomes `""`.
    """
    alone, before, after = _PATTERNS[side]
    while True:
        yield stem
        if alone.fullmatch(stem):
            yield ""
            return
        shorter = stem[match.end() :] if (match := before.match(stem)) else after.sub("", stem)
        if shorter == stem:
            return
        stem = shorter


def bare_stem(stem: str, side: Side) -> str:
    """The stem with all words of its side removed from its ends."""
    *_longer, last = bare_stems(stem, side)
    return last


def mentions(text: str, side: Side) -> bool:
    """Whether the text contains a word of the side longer than one letter; `gtFine` contains `gt`."""
    words, _starts = split_words(re.sub(r"([a-z])([A-Z0-9])", r"\1 \2", text))
    return any(len(word) > 1 and _SIDES.get(word) == side for word in words)


def side_of_affix(affix: str) -> Side | None:
    """The side named by an affix such as `_mask` or `x_`; None: no side."""
    return _SIDES.get(squeeze(affix))


def loose_key(stem: str) -> str:
    """A key that is equal for names that differ only by case, spaces, underscores, leading zeros or a file suffix."""
    stem = stem.casefold()
    for suffix in IMAGE_SUFFIXES:
        stem = stem.removesuffix(suffix)
    return re.sub(r"[\W_]+", "", without_leading_zeros(stem))


def without_leading_zeros(stem: str) -> str:
    """The name with its numbers in their shortest form: `img_1` for `img_0001`."""
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", stem)
