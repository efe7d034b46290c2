"""What is wrong with a folder: collected while it is read, told at once, worst first, one line per kind."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ubend.core.errors import DataError, Problem
from ubend.core.i18n import _

_SHOWN = 10  # names shown of a long list
# What `--skip-bad` continues without: what is left is read as if these files were not there.
_SKIPPABLE = frozenset(
    ("no mask", "part without masks", "no image", "empty", "foreign", "image missing", "annotation entry",
     "few points", "odd coordinates", "run lengths", "not normalised", "split unknown")
)  # fmt: skip


@dataclass
class Problems:
    """What is wrong with a folder.

    Attributes:
        root: the folder asked for; names are reported relative to it.
        names: kind -> the names it concerns; each kind has a sentence below.
        lines: whole lines that no kind is made for.
    """

    root: Path
    names: dict[str, list[str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.names or self.lines)

    def add(self, kind: str, name: str | Path) -> None:
        """A name with a problem of a kind of `_sentences`."""
        self.names.setdefault(kind, []).append(name if isinstance(name, str) else self.shorten(name))

    def add_line(self, line: str, key: str) -> None:
        """A problem that no kind is made for; such lines are reported first. `key` is for the error."""
        if line not in self.lines:
            self.lines.append(Problem(line, self.root, key))

    def shorten(self, path: Path) -> str:
        """A path as messages name it: relative to the root, when it lies below."""
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        return str(self.root) if name == "." else name

    def take_skippable(self) -> tuple[tuple[str, str], ...]:
        """(name, problem) of everything that can be gone on without; it is a problem no more."""
        sentences = _sentences()
        return tuple(
            (name, sentences[kind].format(names=name, count=1))
            for kind in sorted(self.names.keys() & _SKIPPABLE)
            for name in sorted(set(self.names.pop(kind)), key=natural_key)
        )

    def raise_any(self, more: Iterable[str] = ()) -> None:
        """Tell everything, and then `more`.

        Raises:
            DataError: there is a problem.
        """
        lines = list(self.lines)
        for kind, sentence in _sentences().items():
            if found := self.names.get(kind):
                names = enumerate_names(sorted(dict.fromkeys(found), key=natural_key))
                lines.append(Problem(sentence.format(names=names, count=len(set(found))), self.root, kind))
        if lines:
            raise DataError([*lines, *more], path=self.root)


def enumerate_names(names: list[str]) -> str:
    """`a, b, c`; of a long list the first ten and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        shown = _("{names}, ... and {count} more").format(names=shown, count=len(names) - _SHOWN)
    return shown


def natural_key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sorts numbers inside names by their size; the name itself settles `1` against `01`."""
    pieces = re.findall(r"0*([0-9]+)|([^0-9]+)", name)  # numbers without zeros before them, of any length
    return [(True, 0, text) if text else (False, len(digits), digits) for digits, text in pieces], name


def _sentences() -> dict[str, str]:
    """Kind of problem -> its sentence; the worst kind comes first."""
    return {
        "no pictures": _("no images in: {names}; images are files ending in .png .jpg .jpeg .bmp .tif .tiff .webp"),
        "no folder": _("missing folders or lists ({count}): {names}; every part needs its own"),
        "part without masks": _(
            "parts without any mask ({count}): {names}; every part needs its own; add masks, or leave "
            "these parts out with --skip-bad"
        ),
        "same split": _("two folders for one split: {names}; keep one of them"),
        "no mask": _(
            "images without a mask ({count}): {names}; a mask has its image's name, perhaps with a word such "
            "as _mask, _gt or _label before or after it; add the mask or take the image away"
        ),
        "no image": _("masks without an image ({count}): {names}; add the image or take the mask away"),
        "annotation file": _("annotation files that cannot be read ({count}): {names}; export them again"),
        "annotation entry": _("damaged entries of annotation files ({count}): {names}; fix them or export again"),
        "small json": _("exported without their tasks (JSON-MIN): {names}; in Label Studio choose Export, then JSON"),
        "brush": _(
            "regions drawn with the brush ({count}): {names}; in Label Studio choose Export, then "
            "Brush labels to PNG, and put these masks and the JSON export beside the images"
        ),
        "task masks": _(
            "masks called after tasks of Label Studio ({count}): {names}; put the project's JSON export beside them, "
            "which says which image each task is about"
        ),
        "box only": _(
            "bounding boxes without a region ({count}): {names}; boxes do not say which pixels are meant: export "
            "polygons or masks (segmentation), or take them away"
        ),
        "many classes": _("{names} classes beside the background, but a mask holds at most 254; join some"),
        "image missing": _("annotated images that are not in the folder ({count}): {names}; copy them into it"),
        "image unclear": _("annotated images of which there are several ({count}): {names}; keep one each"),
        "annotated twice": _("images annotated twice ({count}): {names}; keep one annotation of each"),
        "unknown category": _(
            "annotations of an unknown class ({count}): {names}; add the class to the list of classes"
        ),
        "quoted id": _(
            'annotations whose ids are text ("7") where the list of images or categories has numbers (7), or the '
            "reverse ({count}): {names}; write the ids alike"
        ),
        "unknown image": _("annotations of an unknown image ({count}): {names}; export again"),
        "shape kind": _(
            "shapes that enclose no region, or of a kind that is not read ({count}): {names}; draw them as polygons"
        ),
        "rotated": _("turned rectangles or images ({count}): {names}; draw polygons on the upright image"),
        "one label": _("regions without a label, or with several ({count}): {names}; give each one label"),
        "few points": _("polygons of fewer than 3 points ({count}): {names}; draw them again or take them away"),
        "odd coordinates": _(
            "polygons with an odd count of coordinates ({count}): {names}; a point has an x and a y: export them again"
        ),
        "run lengths": _("run lengths (RLE) that do not fill their image ({count}): {names}; export them again"),
        "not normalised": _(
            "coordinates that are no shares of the image's width and height ({count}): {names}; divide x by the "
            "width and y by the height"
        ),
        "listed": _("on a list of the data set, but without image or mask ({count}): {names}; unpack them again"),
        "both lists": _("names on several lists ({count}): {names}; an image belongs to one split"),
        "two masks": _(
            "several masks for one image ({count}): {names}; keep one each, or name them alike for all images: "
            "NAME_1, NAME_2, ... for objects, or NAME_CLASS or CLASS/NAME with the same classes for most"
        ),
        "two images": _("several images of one name ({count}): {names}; keep one each, or rename"),
        "empty": _("empty files (0 bytes) or links to nothing ({count}): {names}; copy them again"),
        "foreign": _("images of a kind that is not read ({count}): {names}; save them as PNG or TIFF"),
        "skipped": _(
            "folders with images that are neither with the images nor with the masks ({count}): {names}; move "
            "them away, or name both sides with --images and --masks"
        ),
        "classes": _(
            "unusable {names}; it needs one class name of at most 200 characters per line, each once, as UTF-8 text"
        ),
        "encoding": _("no UTF-8 text ({count}): {names}; save as UTF-8, or names with accents would be others"),
        "class table": _(
            "unusable class table ({count}): {names}; each line is a class with its colour, name,r,g,b, each once"
        ),
        "split file": _(
            "{names}; a split file is CSV text (UTF-8) with the columns file,split, file,group or file,split,group"
        ),
        "split word": _("unknown words in the column split ({count}): {names}; use train, val or test"),
        "split twice": _("named twice in the split file, differently ({count}): {names}; keep one line"),
        "split unclear": _("in the split file, but fits several images ({count}): {names}; write the path"),
        "split unknown": _("in the split file, but not a pair of the folder ({count}): {names}"),
        "split missing": _("pairs that the split file does not name ({count}): {names}; add a line for each"),
    }
