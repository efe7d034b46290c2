"""Functions shared by the readers of annotation files: find and check JSON files, match images, number classes."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from ubend.core.errors import reason, validation_reason
from ubend.core.files import regular_file
from ubend.core.i18n import _
from ubend.labels.class_table import IGNORED, MAX_CLASSES, background_class
from ubend.labels.mask_files import Mask, ShapeMask
from ubend.layouts.naming import SPLIT_WORDS, TASK_MASK, Side, bare_stem, folder_meaning
from ubend.layouts.pairs import LayoutResult, Pair, SplitName
from ubend.layouts.problems import Problems, natural_key
from ubend.layouts.tree import is_empty, list_entries, subfolders, walk
from ubend.portable.image_paths import IMAGE_SUFFIXES
from ubend.portable.printable import enumerate_names

Coordinate = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Polygon = tuple[float, ...]  # x0, y0, x1, y1, ...
AnnotationKind = Literal["coco", "labelme", "labelstudio"]
T = TypeVar("T")

_FOLDER_WORDS = frozenset(("ann", "anns", "coco", "json", "jsons", "labelme"))  # besides those of images and masks
_SNIFFED = 8  # files of a folder that are read to find its kind
_BOM = b"\xef\xbb\xbf"
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's prefix for the names of uploaded files
_LABEL_STUDIO = (b'"polygonlabels"', b'"rectanglelabels"', b'"brushlabels"', b'"completed_by"', b'"to_name"')


def find_jsons(root: Path) -> list[Path]:
    """The `.json` files in a folder and in its subfolders named after images, splits or annotations."""
    return [file for folder in annotation_folders(root) for file in _jsons(folder)]


def annotation_folders(root: Path, depth: int = 2) -> Iterator[Path]:
    """A folder and its subfolders named after images, splits or annotations."""
    yield root
    if depth:
        for name, path in subfolders(root).items():
            if name in _FOLDER_WORDS or side_of(name) or split_of(name):
                yield from annotation_folders(path, depth - 1)


def _jsons(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in list_entries(folder, lambda entry: entry.name.lower().endswith(".json"))]


def has_annotations(root: Path, kind: AnnotationKind) -> bool:
    """Whether there are annotation files of this kind (among the first of each folder) and no mask images."""
    files = (path for folder in annotation_folders(root) for path in _jsons(folder)[:_SNIFFED])
    return any(guess_kind(path) == kind for path in files) and not has_masks(root)


def has_masks(root: Path) -> bool:
    """Whether there are mask images: a folder named after masks, or many files `NAME` with `NAME_mask`.

    These are preferred over annotation files. A few files `NAME_mask` among annotated images are images.
    """
    for place in dict.fromkeys([*annotation_folders(root), *subfolders(root).values()]):
        names = [Path(entry.name) for entry in list_entries(place)]
        stems = {name.stem for name in names if name.suffix.lower() in IMAGE_SUFFIXES}
        if stems and "mask" in map(side_of, place.relative_to(root).parts):
            return True
        doubles = sum((bare := bare_stem(stem, "mask")) != stem and bare in stems for stem in stems)
        if 4 * doubles >= len(stems) > 0:
            return True
    return False


def guess_kind(path: Path) -> AnnotationKind | None:
    """The kind of a JSON file, from words in its text, so that damaged files are recognised too."""
    try:
        text = regular_file(path).read_bytes().removeprefix(_BOM).lstrip()
    except OSError:
        return None
    if text.startswith(b"["):
        return "labelstudio" if any(word in text for word in _LABEL_STUDIO) else None
    if not text.startswith(b"{"):
        return None
    if b'"shapes"' in text and (b'"imagePath"' in text or b'"imageHeight"' in text):
        return "labelme"
    if b'"images"' not in text:
        return None
    if b'"annotations"' in text and (b'"categories"' in text or b'"file_name"' in text):
        return "coco"
    try:
        from_json(text)
    except ValueError:
        return "coco"
    return None


def load_json(path: Path, shape: TypeAdapter[T], problems: Problems) -> T | None:
    """The validated content of a JSON file; None, and a problem, if it is damaged."""
    try:
        return shape.validate_json(regular_file(path).read_bytes().removeprefix(_BOM))
    except OSError as error:
        problems.add("annotation file", f"{problems.shorten(path)} ({reason(error)})")
    except ValidationError as error:
        deepest: dict[tuple[int | str, ...], ErrorDetails] = {}
        for failure in error.errors(include_url=False, include_input=False):
            if failure["type"] == "json_invalid":
                problems.add("annotation file", f"{problems.shorten(path)} ({failure['msg']})")
                return None
            best = deepest.setdefault(tuple(failure["loc"][:3]), failure)
            if len(failure["loc"]) > len(best["loc"]):  # of several alternatives for an entry, the best match
                deepest[tuple(failure["loc"][:3])] = failure
        for place, failure in deepest.items():  # spelled `annotations[17].segmentation`
            spelled = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".") or "-"
            problems.add("annotation entry", f"{problems.shorten(path)}: {spelled}: {validation_reason(failure)}")
    return None


def find_damaged(root: Path, problems: Problems) -> None:
    """Add a problem for each JSON file that cannot be read; used if nothing else is found."""
    for path in find_jsons(root):
        load_json(path, TypeAdapter(object), problems)


def split_of(word: str) -> SplitName | None:
    """The split named by a folder: `train`, `Valid`, `test2017`; None: no split."""
    return (folder_meaning(word.rstrip("0123456789_-")) or (None, None))[1]


def side_of(word: str) -> Side | None:
    """The side (image or mask) named by a folder; None: neither."""
    return (folder_meaning(word.rstrip("0123456789_-")) or (None, None))[0]


def split_of_path(path: Path, root: Path) -> SplitName | None:
    """The split named by a path below `root`: by a folder, else by a word of the file name (`instances_train2017`)."""
    *folders, _name = path.relative_to(root).parts
    words = map(SPLIT_WORDS.get, re.findall(r"[a-z]+", path.stem.lower()))
    return next((split for split in (*map(split_of, reversed(folders)), *words) if split is not None), None)


def polygon_problem(polygon: Sequence[float]) -> str | None:
    """The kind of problem with a polygon's coordinates; None: they are at least three pairs of x and y."""
    if len(polygon) % 2:
        return "odd coordinates"
    return "few points" if len(polygon) < 6 else None


def number_classes(names: Iterable[str], problems: Problems) -> tuple[tuple[str, ...], dict[str, int]]:
    """(class names, background first; given name -> label value), in the given order.

    Leading, trailing and repeated spaces in names are ignored. Names of the background (`background`,
    `_background_`, ...) have the value 0, `__ignore__` has IGNORED.
    """
    values: dict[str, int] = {}
    classes = ["background"]
    for name in dict.fromkeys(names):
        plain = " ".join(name.split())
        if plain == "__ignore__":
            values[name] = IGNORED
        elif plain == "_background_" or background_class([plain]) == 0:
            values[name] = 0
        else:
            if plain not in classes:
                classes.append(plain)
            values[name] = classes.index(plain)
    if len(classes) > MAX_CLASSES + 1:
        problems.add("many classes", f"{len(classes) - 1}")
    return tuple(classes), {name: min(value, IGNORED) for name, value in values.items()}


class Collection:
    """The annotated images of a folder, filled by the reader of an annotation format.

    Attributes:
        root: the folder.
        problems: collects problems.
        remarks: messages for the user.
    """

    def __init__(self, root: Path, problems: Problems) -> None:
        self.root, self.problems = root, problems
        self.remarks: list[str] = []
        self._pairs: dict[Path, Pair] = {}
        self._damaged: set[Path] = set()
        self._by_name: dict[str, list[Path]] = {}
        self._by_bare: dict[str, list[Path]] = {}
        for file in walk(root):
            if file.suffix in IMAGE_SUFFIXES and not TASK_MASK.fullmatch(file.stem):
                name = file.stem.lower() + file.suffix
                self._by_name.setdefault(name, []).append(file.path)
                self._by_bare.setdefault(_UPLOAD.sub("", name), []).append(file.path)

    @property
    def images(self) -> list[Path]:
        """All images of the folder, annotated or not."""
        return [path for paths in self._by_name.values() for path in paths]

    def find(self, stated: str, source: Path) -> Path | None:
        """Find the image that an annotation file names; None, and a problem, if there is none or several.

        Args:
            stated: the image's name or path in the annotation file.
            source: the annotation file.

        The search is by name, with and without an upload prefix. Of several images, those at the stated path relative
        to the annotation file or to the root come first; then the order is by how many folders agree with the stated
        path, by a split equal to the annotation file's, and by being in a folder of images.
        """
        pieces = [p for p in unicodedata.normalize("NFC", stated).replace("\\", "/").split("/") if p.strip(". ")]
        name = pieces[-1].lower() if pieces else ""
        bare = _UPLOAD.sub("", name)
        candidates = self._by_name.get(name) or self._by_name.get(bare) or self._by_bare.get(bare, [])
        if len(candidates) > 1:
            exact = {source.parent.joinpath(*pieces), self.root.joinpath(*pieces)} & set(candidates)
            split = split_of_path(source, self.root)
            ranks = {path: self._rank(path, pieces, split) for path in exact or candidates}
            candidates = [path for path, rank in ranks.items() if rank == max(ranks.values())]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = ", ".join(self.problems.shorten(path) for path in candidates)
            self.problems.add("image unclear", f"{stated} ({names})")
        elif name and not name.endswith(IMAGE_SUFFIXES) and "." in name:
            self.problems.add("foreign", stated)
        else:
            self.problems.add("image missing", f"{stated or '-'} ({self.problems.shorten(source)})")
        return None

    def _rank(self, path: Path, pieces: Sequence[str], split: SplitName | None) -> tuple[int, bool, bool]:
        backwards = zip(reversed(path.parts[:-1]), reversed(pieces[:-1]), strict=False)
        agreeing = next((n for n, (a, b) in enumerate(backwards) if a.lower() != b.lower()), len(pieces) - 1)
        same_split = split is not None and split_of_path(path.parent / "-", self.root) == split
        return agreeing, same_split, "image" in map(side_of, path.relative_to(self.root).parts[:-1])

    def add(self, image: Path, mask: Mask, split: SplitName | None = None, *, damaged: bool = False) -> None:
        """Add an image with its mask.

        Args:
            split: None: the one named by the folders of mask or image.
            damaged: some annotations cannot be read, so that the mask would be wrong: the image is left out (if
                `skip_bad` allows to continue).
        """
        if damaged:
            self._damaged.add(image)
        if image in self._pairs:
            files = sorted({self.problems.shorten(path) for path in (mask.path, self._pairs[image].mask.path)})
            self.problems.add("annotated twice", f"{self.problems.shorten(image)} ({', '.join(files)})")
        if is_empty(image):
            self.problems.add("empty", image)
        for path in (mask.path, image):
            split = split or split_of_path(path.parent / "-", self.root)
        self._pairs[image] = Pair(self._name(image), image, mask, split, None)

    def _name(self, image: Path) -> str:
        """The relative path without suffix and folders such as `images`, with standard split names: `train/0001`."""
        *folders, _file = image.relative_to(self.root).parts
        kept = [split_of(word) or word for word in folders if split_of(word) or side_of(word) != "image"]
        return "/".join([*kept, unicodedata.normalize("NFC", image.stem)])

    def reading(self, classes: tuple[str, ...]) -> LayoutResult:
        """The result: all pairs, without images that no annotation file names, which are reported."""
        owners: dict[str, Path] = {}
        for image, pair in self._pairs.items():
            first = owners.setdefault(pair.name, image)
            if first != image:
                both = ", ".join(self.problems.shorten(path) for path in (first, image))
                self.problems.add("two images", f"{pair.name} ({both})")
        for sentence, paths in (
            (_("images without annotations are skipped ({count}): {names}"), {*self.images} - {*self._pairs}),
            (_("images with invalid annotations are skipped ({count}): {names}"), self._damaged),
        ):
            if paths:
                names = enumerate_names(sorted(map(self.problems.shorten, paths), key=natural_key))
                self.remarks.append(sentence.format(count=len(paths), names=names))
        values = tuple(range(len(classes)))
        pairs = [pair for image, pair in self._pairs.items() if image not in self._damaged]
        painted = {shape.value for pair in pairs if isinstance(pair.mask, ShapeMask) for shape in pair.mask.shapes}
        ignored = (IGNORED,) if IGNORED in painted else ()
        return LayoutResult(pairs, classes, values, remarks=tuple(self.remarks), ignored=ignored)
