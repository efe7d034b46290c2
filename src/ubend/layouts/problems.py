"""Problems of a folder: collected while reading, reported together, worst first, one line per kind."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ubend.core.errors import DataError, Problem
from ubend.core.i18n import _
from ubend.portable.printable import enumerate_names

# Kinds of problem with which `--skip-bad` continues: the remaining files are read as if these did not exist.
_SKIPPABLE = frozenset(
    ("no mask", "split without masks", "no image", "empty", "foreign", "image missing", "annotation entry",
     "few points", "odd coordinates", "run lengths", "not normalised", "split unknown")
)  # fmt: skip


@dataclass
class Problems:
    """Problems found in a folder.

    Attributes:
        root: the folder given by the user; names are reported relative to it.
        names: kind of problem -> names of the affected files; `_sentences` has a message for each kind.
        lines: complete messages that belong to no kind.
    """

    root: Path
    names: dict[str, list[str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.names or self.lines)

    def add(self, kind: str, name: str | Path) -> None:
        """Add a file or other name with a problem; `kind` is a key of `_sentences`."""
        self.names.setdefault(kind, []).append(name if isinstance(name, str) else self.shorten(name))

    def add_line(self, line: str, key: str) -> None:
        """Add a complete message; these are reported first. `key` identifies the problem in the error."""
        if line not in self.lines:
            self.lines.append(Problem(line, self.root, key))

    def shorten(self, path: Path) -> str:
        """A path as shown in messages: relative to the root if it is below it."""
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        return str(self.root) if name == "." else name

    def drop_unmasked(self, images: Iterable[Path]) -> None:
        """Remove the problem that these images have no masks."""
        left = set(self.names.pop("no mask", [])) - {self.shorten(path) for path in images}
        self.names |= {"no mask": [*left]} if left else {}
        self.names.pop("split without masks", None)

    def take_skippable(self) -> tuple[tuple[str, str], ...]:
        """Remove the problems that can be skipped, and return (name, problem) for each."""
        sentences = _sentences()
        return tuple(
            (name, Problem(sentences[kind].format(names=name, count=1), self.root / name, kind))
            for kind in sorted(self.names.keys() & _SKIPPABLE)
            for name in sorted(set(self.names.pop(kind)), key=natural_key)
        )

    def raise_any(self, more: Iterable[str] = ()) -> None:
        """Raise all problems, followed by the messages in `more`; does nothing if there is no problem.

        Raises:
            DataError: there is a problem.
        """
        lines = list(self.lines)
        for kind, sentence in _sentences().items():
            if named := self.names.get(kind):
                names = enumerate_names(sorted(dict.fromkeys(named), key=natural_key))
                lines.append(Problem(sentence.format(names=names, count=len(set(named))), self.root, kind))
        if lines:
            raise DataError([*lines, *more], path=self.root)


def natural_key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key that compares numbers inside names by value; the name itself decides between `1` and `01`."""
    pieces = re.findall(r"0*([0-9]+)|([^0-9]+)", name)  # numbers without leading zeros, of any length
    return [(True, 0, text) if text else (False, len(digits), digits) for digits, text in pieces], name


def _sentences() -> dict[str, str]:
    """Kind of problem -> its message, worst kind first."""
    return {
        "no images": _(
            "no images in: {names}; images are files ending in .png .jpg .jpeg .jfif .bmp .tif .tiff .webp .ppm .pgm"
        ),
        "no folder": _("missing folders or lists ({count}): {names}; each split needs its own"),
        "split without masks": _(
            "splits without any mask ({count}): {names}; each split needs its own; add masks, skip these splits with "
            "--skip-bad, or read their images as background alone: --set data.unmasked=background"
        ),
        "same split": _("two folders for one split: {names}; keep one of them"),
        "no mask": _(
            "images without a mask ({count}): {names}; a mask has the same name as its image, optionally with a word "
            "such as _mask, _gt or _label before or after it; add the mask, remove the image, skip it with --skip-bad, "
            "state which files are masks: --images 'PATTERN' --masks 'PATTERN', or, if such images show nothing but "
            "background: --set data.unmasked=background"
        ),
        "no image": _(
            "masks without an image ({count}): {names}; add the image, remove the mask, or skip it with --skip-bad"
        ),
        "annotation file": _("annotation files that cannot be read ({count}): {names}; export them again"),
        "annotation entry": _("invalid entries in annotation files ({count}): {names}; fix them or export again"),
        "small json": _("exported without their tasks (JSON-MIN): {names}; in Label Studio choose Export, then JSON"),
        "brush": _(
            "regions drawn with the brush ({count}): {names}; in Label Studio choose Export, then "
            "Brush labels to PNG, and put these masks and the JSON export next to the images"
        ),
        "task masks": _(
            "masks named after Label Studio tasks ({count}): {names}; put the project's JSON export next to them: "
            "it says which image each task belongs to"
        ),
        "box only": _(
            "bounding boxes without a region ({count}): {names}; a box does not say which pixels belong to the object: "
            "export polygons or masks (segmentation), or remove the boxes"
        ),
        "many classes": _("{names} classes besides the background, but a mask can have at most 254; merge some"),
        "image missing": _("annotated images that are not in the folder ({count}): {names}; copy them into it"),
        "image unclear": _("annotated images that exist more than once ({count}): {names}; keep one of each"),
        "annotated twice": _("images annotated twice ({count}): {names}; keep one annotation of each"),
        "unknown category": _(
            "annotations of an unknown class ({count}): {names}; add the class to the list of classes"
        ),
        "quoted id": _(
            'annotations whose ids are text ("7") where the list of images or categories has numbers (7), or vice '
            "versa ({count}): {names}; use the same type of id"
        ),
        "unknown image": _("annotations of an unknown image ({count}): {names}; export again"),
        "shape kind": _("shapes without an area, or of an unsupported kind ({count}): {names}; draw them as polygons"),
        "rotated": _("rotated rectangles or images ({count}): {names}; draw polygons on the upright image"),
        "one label": _("regions without a label, or with several ({count}): {names}; give each exactly one label"),
        "few points": _("polygons with fewer than 3 points ({count}): {names}; draw them again or remove them"),
        "odd coordinates": _(
            "polygons with an odd number of coordinates ({count}): {names}; a point has an x and a y: export them again"
        ),
        "run lengths": _("run lengths (RLE) that do not fill their image ({count}): {names}; export them again"),
        "not normalised": _(
            "coordinates that are not fractions of the image's width and height ({count}): {names}; divide x by the "
            "width and y by the height"
        ),
        "listed": _("in a list of the data set, but without image or mask ({count}): {names}; unpack them again"),
        "both lists": _("names in several lists ({count}): {names}; an image belongs to one split"),
        "two masks": _(
            "several masks for one image ({count}): {names}; keep one of each, or name them in the same way for all "
            "images: NAME_1, NAME_2, ... for objects, or NAME_CLASS or CLASS/NAME with the same classes for most images"
        ),
        "two images": _("several images with the same name ({count}): {names}; keep one of each, or rename them"),
        "empty": _("empty files (0 bytes) or broken links ({count}): {names}; copy them again"),
        "foreign": _("images in an unsupported format ({count}): {names}; save them as PNG or TIFF"),
        "skipped": _(
            "folders with images that belong neither to the images nor to the masks ({count}): {names}; move "
            "them elsewhere, or state both sides with --images and --masks"
        ),
        "classes": _(
            "unusable {names}; it needs one class name of at most 200 characters per line, each once, as UTF-8 text"
        ),
        "encoding": _("not UTF-8 text ({count}): {names}; save as UTF-8, otherwise accents in names are read wrongly"),
        "class table": _(
            "unusable class table ({count}): {names}; each line is a class with its colour, name,r,g,b, each once"
        ),
        "split file": _(
            "{names}; a split file is CSV text (UTF-8) whose first line is `file,split`, `file,group` or "
            "`file,split,group`"
        ),
        "split word": _(
            "unknown words in the column split of the split file ({count}): {names}; use train, val or test"
        ),
        "split twice": _("listed twice in the split file, with different values ({count}): {names}; keep one line"),
        "split unclear": _("in the split file, but matches several images ({count}): {names}; write the path"),
        "split unknown": _(
            "in the split file, but not in the folder ({count}): {names}; remove these lines, or use --skip-bad"
        ),
        "split missing": _("pairs missing from the split file ({count}): {names}; add a line for each"),
    }
