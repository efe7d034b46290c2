"""Masks, overlays and class shares for pictures: read ahead, predicted, and written behind, all at once."""

import csv
import glob
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.choices import Choice
from ubend.drawing.overlay import overlay_mask, to_rgb
from ubend.drawing.panels import save_png
from ubend.errors import DataError, OutputError
from ubend.files import Need, clear_leftovers, refuse_full, write_text
from ubend.folders.naming import IMAGE_SUFFIXES
from ubend.inference.conditions import Conditions, Masks, load_masks
from ubend.inference.predictor import Predictor, class_index, map_ahead, refuse_other_kind
from ubend.language import _
from ubend.masks.labels import background_class
from ubend.model.bundle import SAME_SCALE
from ubend.pictures.decode import explained, read_header
from ubend.pictures.images import read_image, write_mask
from ubend.pictures.windows import TiffWindows, may_be_tiff, write_tiff_mask
from ubend.teller import Teller

_SHARES = "shares.csv"
_NONE = Conditions()
_STDIN = Path("-")
_Good = TypeVar("_Good")
_LARGE_PIXELS = 64 * 2**20  # of a TIFF; above, it is read, predicted and written by rows
_ROWS = 1024  # of a written mask, read at once
_MASK_BYTES_PER_PIXEL = 0.1  # compressed; a guess: masks of the sample take 0.02 to 0.05
_BYTES_PER_PIXEL = 1.6  # of a mask and an overlay, as PNG; measured: photographs take 1.5 (1.0 to 2.2)


def predict_files(
    model: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    device: str | None = None,
    tiles: int | None = None,
    overlap: float = 0.25,
    conditions: Conditions = _NONE,
    resume: bool = False,
    teller: Teller,
) -> list[Path]:
    """Predict pictures; for NAME.jpg writes `NAME.png` (class indices with a palette, at the picture's own
    size), `NAME_overlay.png`, and one `shares.csv` for all. A picture with a georeference gets a mask with the same
    one, `NAME.tif`; so does a TIFF above 64 megapixels that goes through the network in tiles: it is read,
    predicted and written by rows, in bounded memory, and gets no overlay.

    Args:
        model: a run folder or a model file.
        paths: pictures, folders of pictures, patterns such as `set/*.png`, or `-`: one path in each line of the
            standard input.
        out: folder for the masks; files in it are not overwritten.
        tiles: side of the tiles in px, 0: whole pictures; None: as the model was trained.
        overlap: share of a tile's side that neighbours have in common.
        conditions: more models, thresholds, smallest parts, holes.
        resume: go on in a folder where some masks are already: those are left as they are.
    Returns:
        The mask files, those of before included.
    Raises:
        DataError: no pictures, or two of one name; at the end, when all others are written: those that could not
            be used.
        OutputError: something of that name is there already, or the folder cannot be written, or has no room.
    """
    masks = load_masks(model, device, conditions, tiles=tiles, overlap=overlap)
    pictures = list_pictures(paths)
    out = Path(out)
    job = _Job(masks, pictures, out)
    found = job.look()
    if not found:
        raise DataError(job.told())
    targets = job.targets
    wanted = [path for number in found for path in job.written(number)]
    _refuse_collisions([pictures[number] for number in found], [job.written(number) for number in found])
    if not resume:
        _refuse_there([*wanted, out / _SHARES])
    todo = [number for number in found if not (resume and targets[number].exists())]
    for path in wanted if resume else []:
        clear_leftovers(path)
    refuse_full([Need(out, int(sum(found[number].bytes for number in todo)), _("choose another --out"))])
    for line in describe_tiling(masks.predictor, tiles):
        teller.say(line)
    if len(todo) < len(found):
        teller.say(_("{count} masks are there already and stay as they are").format(count=len(found) - len(todo)))
    by_rows = [number for number in todo if found[number].by_rows]
    teller.begin(_("predicting"), len(found), len(found) - len(todo))
    for done, _number in enumerate(job.write([n for n in todo if n not in set(by_rows)]), len(found) - len(todo) + 1):
        teller.count(done)
    for number in by_rows:
        job.write_by_rows(number, teller)
    teller.end()
    shares = job.gather_shares(found)
    if shares:
        _write_shares(out / _SHARES, pictures, shares)
        _tell_shares(teller, pictures, shares)
        teller.say(_("{count} masks and overlays in {out}").format(count=len(shares), out=out))
    if job.problems:
        raise DataError(job.told())
    return [targets[number] for number in found]


@dataclass(frozen=True)
class _Found:
    """What is known of a picture before it is read.

    Attributes:
        pixels: their number.
        georeference: as of `TiffWindows`.
        by_rows: read, predicted and written by rows.
    """

    pixels: int
    georeference: list[Any]
    by_rows: bool

    @property
    def bytes(self) -> float:
        """About what its files take."""
        return (_MASK_BYTES_PER_PIXEL if self.by_rows else _BYTES_PER_PIXEL) * self.pixels


class _Job:
    """Pictures on their way to masks; what is wrong with one does not stop the others.

    Attributes:
        problems: number of a picture -> what is wrong with it.
    """

    def __init__(self, masks: Masks, pictures: list[Path], out: Path) -> None:
        self._masks, self._predictor, self._pictures, self._out = masks, masks.predictor, pictures, out
        self._found: dict[int, _Found] = {}
        self._pixels: dict[int, NDArray[np.int64]] = {}  # of each class
        self.problems: dict[int, list[str]] = {}

    def look(self) -> dict[int, _Found]:
        """What the headers say of the pictures that are of the model's kind."""

        def look(number: int) -> _Found | DataError:
            try:
                return _look_at(self._pictures[number], self._masks)
            except DataError as error:
                return error

        self._found = dict(self._good(map_ahead(look, range(len(self._pictures)))))
        return self._found

    @property
    def targets(self) -> dict[int, Path]:
        """The mask of each picture."""
        return {number: self.written(number)[0] for number in self._found}

    def written(self, number: int) -> list[Path]:
        """The files of a picture, the mask first."""
        found, name = self._found[number], self._pictures[number].stem
        mask = self._out / f"{name}{'.tif' if found.by_rows or found.georeference else '.png'}"
        return [mask] if found.by_rows else [mask, self._out / f"{name}_overlay.png"]

    def write(self, numbers: Sequence[int]) -> Iterator[int]:
        """Predict and write; gives each number when its files are there."""
        given: list[int] = []  # in the order in which the predictor is given them

        def read(number: int) -> NDArray[Any] | DataError:
            try:
                return self._masks.hold(self._pictures[number]).pixels
            except DataError as error:
                return error

        def good() -> Iterator[NDArray[Any]]:
            for place, image in self._good(map_ahead(read, numbers), numbers):
                given.append(place)
                yield image

        masks = ((given[number], mask) for number, mask in self._masks.predict_masks(good()))
        yield from map_ahead(self._write_one, masks)

    def _write_one(self, answer: tuple[int, NDArray[np.uint8]]) -> int:
        """The overlay first: a mask that is there says that its picture is done."""
        number, mask = answer
        labels = self._predictor.labels
        self._pixels[number] = self._count(mask)
        image = to_rgb(read_image(self._pictures[number], self._predictor.bundle.sizing.channels))
        overlay = overlay_mask(image, mask, labels.colors, background=background_class(labels.names))
        target, beside = self.written(number)
        save_png(Image.fromarray(overlay), beside)
        if self._found[number].georeference:
            height, width = mask.shape
            write_tiff_mask(target, (height, width), [mask], labels, self._found[number].georeference)
        else:
            write_mask(target, mask, labels)
        return number

    def write_by_rows(self, number: int, teller: Teller) -> None:
        """Predict and write a picture that memory need not hold."""
        labels, pixels = self._predictor.labels, np.zeros(self._predictor.labels.classes, np.int64)

        def predict(windows: TiffWindows) -> Iterator[NDArray[np.uint8]]:
            for strip in self._predictor.strips([windows]):
                rows = class_index(strip.logits).cpu().numpy()
                pixels[:] += self._count(rows)
                teller.count(strip.rows.stop)
                yield rows

        path = self._pictures[number]
        try:
            with TiffWindows(path, self._predictor.bundle.sizing.channels) as windows:
                teller.begin(_("predicting {name}, rows").format(name=path.name), windows.size_hw[0])
                strips = predict(windows)
                write_tiff_mask(self.written(number)[0], windows.size_hw, strips, labels, windows.georeference)
            self._pixels[number] = pixels
        except DataError as error:
            self.problems[number] = error.problems

    def gather_shares(self, numbers: Iterable[int]) -> dict[int, dict[str, float]]:
        """Shares of the classes of each picture that has a mask, those of before included."""
        names, shares = self._predictor.labels.names, {}
        for number in sorted(set(numbers) - set(self.problems)):
            if number not in self._pixels:
                self._pixels[number] = self._count_written(self.written(number)[0])
            pixels = self._pixels[number]
            shares[number] = {n: int(c) / int(pixels.sum()) for n, c in zip(names, pixels, strict=True)}
        return shares

    def _count_written(self, mask: Path) -> NDArray[np.int64]:
        """Pixels of each class in a mask of before."""
        if mask.suffix == ".png":
            with explained(mask), Image.open(mask) as file:
                return self._count(np.asarray(file))
        with TiffWindows(mask) as windows:
            height = windows.size_hw[0]
            parts = (windows.read_stored(top, min(height, top + _ROWS)) for top in range(0, height, _ROWS))
            return sum((self._count(part) for part in parts), np.zeros(self._predictor.labels.classes, np.int64))

    def _count(self, mask: NDArray[np.uint8]) -> NDArray[np.int64]:
        counts = np.bincount(mask.reshape(-1), minlength=self._predictor.labels.classes)
        if len(counts) > self._predictor.labels.classes:
            raise DataError(_("a mask of another model lies in the folder; choose another --out"))
        return counts

    def told(self) -> list[str]:
        """All problems, in the order of the pictures."""
        return [line for number in sorted(self.problems) for line in self.problems[number]]

    def _good(
        self, results: Iterable[_Good | DataError], numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, _Good]]:
        """(number, result) of those that are no errors; the errors are kept."""
        for place, result in enumerate(results):
            number = place if numbers is None else numbers[place]
            if isinstance(result, DataError):
                self.problems[number] = result.problems
            else:
                yield number, result


def list_pictures(paths: Iterable[Path | str]) -> list[Path]:
    """Files as they are; folders give the pictures in them, patterns what they match, both sorted by name; `-`
    the lines of the standard input."""
    pictures: list[Path] = []
    for path in _named(Path(p) for p in paths):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
            if not found:
                raise DataError(_("{path}: no pictures in this folder").format(path=path))
            pictures += found
        elif path.exists():
            pictures.append(path)
        elif matched := sorted(glob.glob(str(path), recursive=True)):
            pictures += [Path(p) for p in matched if Path(p).is_file()]
        else:
            raise DataError(_("{path}: no such file").format(path=path))
    if not pictures:
        raise DataError(_("no pictures to predict; name files or folders"))
    return pictures


def _named(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path == _STDIN:
            yield from (Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip())
        else:
            yield path


def describe_tiling(predictor: Predictor, asked: int | None) -> list[str]:
    """How pictures are taken, and why; a warning where the model has not seen them so."""
    bundle, tiling = predictor.bundle, predictor.tiling
    if asked is None:
        if tiling is not None:
            reason = _("trained on windows of {window} px of pictures at their own scale")
            choice = Choice("--tiles", tiling.tile_px, reason.format(window=bundle.window_px))
        else:
            reason = _("pictures are taken whole and resized to {size} px, as in training")
            choice = Choice("--tiles", 0, reason.format(size=bundle.sizing.size_px))
        return [_("chosen: {choice}").format(choice=choice.line())]
    if tiling is None and bundle.keeps_scale:
        return [
            _(
                "WARNING: the model was trained on windows of pictures at their own scale; pictures of another size, "
                "taken whole, look to it as if seen from another distance. Leave --tiles out"
            )
        ]
    low, high = bundle.scale or (1.0, 1.0)
    if tiling is not None and not bundle.keeps_scale and bundle.scale is None:
        return [_("WARNING: the model file does not say at which scale it was trained; tiles show the picture's own")]
    if tiling is not None and (low < 1 / SAME_SCALE or high > SAME_SCALE):
        return [
            _(
                "WARNING: the model was trained on pictures at {low:.2g} to {high:.2g} of their size; tiles show it "
                "objects at their own size, so its masks may be wrong. Leave --tiles out, or train with data.window"
            ).format(low=low, high=high)
        ]
    return []


def _look_at(picture: Path, masks: Masks) -> _Found:
    """What its header says; fails when it is not of the model's kind."""
    channels = masks.bundle.sizing.channels
    header = read_header(picture, channels)
    refuse_other_kind(picture, header, masks.bundle)
    pixels, georeference, readable = header.height * header.width, [], False
    if may_be_tiff(picture):
        with TiffWindows(picture, channels) as windows:
            georeference, readable = windows.georeference, windows.is_readable
    return _Found(pixels, georeference, readable and pixels > _LARGE_PIXELS and masks.by_rows)


def _refuse_collisions(pictures: list[Path], written: list[list[Path]]) -> None:
    counted = Counter(path for paths in written for path in paths)
    twice = [p for p, paths in zip(pictures, written, strict=True) if any(counted[path] > 1 for path in paths)]
    if twice:
        names = ", ".join(sorted(map(str, twice))[:6])
        raise DataError(
            _(
                "pictures of one name would overwrite each other's mask or overlay: {names}; predict them into "
                "different --out folders"
            ).format(names=names)
        )


def _refuse_there(wanted: Sequence[Path]) -> None:
    there = [path for path in wanted if path.exists()]
    if there:
        raise OutputError(
            _("{path} exists already, and {count} more; choose another --out, or go on with --resume").format(
                path=there[0], count=len(there) - 1
            )
        )


def _write_shares(path: Path, pictures: list[Path], shares: dict[int, dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *next(iter(shares.values()))])
    for number, row in shares.items():
        writer.writerow([pictures[number], *(f"{value:.6f}" for value in row.values())])
    write_text(path, text.getvalue())


def _tell_shares(teller: Teller, pictures: list[Path], shares: dict[int, dict[str, float]]) -> None:
    for number, shown in list(shares.items())[:10]:
        row = ", ".join(f"{name} {value:.1%}" for name, value in shown.items())
        teller.say(f"{pictures[number].name}: {row}")
    if len(shares) > 10:
        teller.say(_("... and {count} more, in shares.csv").format(count=len(shares) - 10))
    whole = {name for row in shares.values() for name, value in row.items() if value == 1.0}
    if len(whole) == 1 and all(1.0 in row.values() for row in shares.values()):
        teller.say(
            _(
                "WARNING: every pixel of every picture is {name}; are these pictures like those it was trained on?"
            ).format(name=whole.pop())
        )
