"""Masks, overlays, probabilities, class shares of pictures: read ahead, predicted, and written behind, all at once."""

import csv
import glob
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ubend.drawing.overlay import overlay_mask, to_rgb
from ubend.drawing.panels import save_png
from ubend.errors import DataError
from ubend.files import Need, clear_leftovers, write_text
from ubend.folders.naming import IMAGE_SUFFIXES
from ubend.inference.ahead import map_ahead
from ubend.inference.conditions import Masks
from ubend.jobs.many import Problems, refuse_collisions, refuse_there
from ubend.language import _
from ubend.masks.labels import IGNORED, background_class
from ubend.pictures.decode import explained, read_header
from ubend.pictures.images import read_image, write_mask
from ubend.pictures.probabilities import BYTES_PER_VALUE, ProbKind, prob_path, write_probabilities, written_beside
from ubend.pictures.windows import TiffWindows, may_be_tiff, write_tiff_mask
from ubend.teller import Teller

_SHARES = "shares.csv"
_STDIN = Path("-")
_LARGE_PIXELS = 64 * 2**20  # of a TIFF; above, it is read, predicted and written by rows
_ROWS = 1024  # of a written mask, read at once
_MASK_BYTES_PER_PIXEL = 0.1  # compressed; a guess: masks of the sample take 0.02 to 0.05
_BYTES_PER_PIXEL = 1.6  # of a mask and an overlay, as PNG; measured: photographs take 1.5 (1.0 to 2.2)


@dataclass(frozen=True)
class _Found:
    """What is known of a picture before it is read.

    Attributes:
        pixels: their number.
        bytes: of all of them in memory.
        georeference: as of `TiffWindows`.
        has_unseen: so is this: whether some value stands for pixels that were not seen.
        by_rows: read, predicted and written by rows.
    """

    pixels: int
    bytes: int
    georeference: list[Any]
    has_unseen: bool
    by_rows: bool


class _Answer(NamedTuple):
    """(H, W) class index of a picture, and (C, H, W) probabilities where they are asked for."""

    mask: NDArray[np.uint8]
    prob: NDArray[np.float32] | None

    @property
    def bytes(self) -> int:
        """In memory."""
        return self.mask.nbytes + (0 if self.prob is None else self.prob.nbytes)


class PictureJob:
    """Pictures on their way to masks; what is wrong with one does not stop the others.

    For NAME.jpg writes `NAME.png` (class indices with a palette, at the picture's own size), `NAME_overlay.png`,
    with `prob` the probabilities `NAME_prob.tif` or `.npz`, and one `shares.csv` for all. A picture with a
    georeference gets a mask with the same one, `NAME.tif`, in which pixels without data are 255; so does a TIFF
    above 64 megapixels that goes through the network in tiles: it is read, predicted and written by rows, in bounded
    memory, and gets no overlay.

    Args:
        masks: the models.
        paths: pictures, folders of pictures, patterns such as `set/*.png`, or `-`: one path in each line of the
            standard input.
        out: folder for the masks; files in it are not overwritten.
        prob: as of `write_probabilities`.
        resume: go on in a folder where some masks are already: those are left as they are.
    Raises:
        DataError: no pictures.
    """

    def __init__(
        self,
        masks: Masks,
        paths: Sequence[Path | str],
        out: Path,
        *,
        prob: ProbKind | None = None,
        resume: bool = False,
    ) -> None:
        self._masks, self._out, self._prob, self._resume = masks, out, prob, resume
        self._pictures = list_pictures(paths)
        self._labels = masks.labels
        self._found: dict[int, _Found] = {}
        self._pixels: dict[int, NDArray[np.int64]] = {}  # of each class
        self._problems = Problems()
        self._todo: list[int] = []

    def look(self) -> list[Need]:
        """Read all headers, before anything is written; gives the room that is wanted.

        Raises:
            DataError: two of one name.
            OutputError: something of that name is there already.
        """
        numbers = range(len(self._pictures))
        self._found = dict(self._problems.work(lambda number: _look_at(self._pictures[number], self._masks), numbers))
        if not self._found:
            return []
        written = [self.written(number) for number in self._found]
        refuse_collisions([self._pictures[number] for number in self._found], written, _("mask or overlay"))
        self._todo = list(self._found)
        if self._resume:
            self._todo = [number for number in self._todo if not self._is_done(number)]
        else:
            refuse_there([*(path for paths in written for path in paths), self._out / _SHARES])
        return [Need(self._out, int(sum(map(self._bytes_written, self._todo))), _("choose another --out"))]

    @property
    def problems(self) -> list[str]:
        """What is wrong with pictures, so far."""
        return self._problems.told()

    def write(self, teller: Teller) -> list[Path]:
        """Predict and write all that `look` found; gives the masks, those of before included."""
        for path in (path for number in self._found if self._resume for path in self.written(number)):
            clear_leftovers(path)
        there = len(self._found) - len(self._todo)
        if there:
            teller.say(_("{count} masks are there already and stay as they are").format(count=there))
        by_rows = [number for number in self._todo if self._found[number].by_rows]
        for number in sorted({*self._todo} - {*by_rows}):
            if self._found[number].pixels > _LARGE_PIXELS:
                said = _("note: {path} has {count:.0f} megapixels and is held in memory as a whole")
                teller.say(said.format(path=self._pictures[number], count=self._found[number].pixels / 1e6))
        teller.begin(_("predicting"), len(self._found), there)
        for done, _number in enumerate(self._write_held(sorted({*self._todo} - {*by_rows})), there + 1):
            teller.count(done)
        for number in by_rows:
            with self._problems.keeping(number):
                self._write_by_rows(number, teller)
        teller.end()
        shares = self._gather_shares()
        if shares:
            _write_shares(self._out / _SHARES, self._pictures, shares)
            _tell_shares(teller, self._pictures, shares)
            teller.say(_("{count} masks and overlays in {out}").format(count=len(shares), out=self._out))
        return [self.written(number)[0] for number in self._found if number not in self._problems]

    def written(self, number: int) -> list[Path]:
        """The files of a picture, the mask first."""
        found, name = self._found[number], self._pictures[number].stem
        mask = self._out / f"{name}{'.tif' if found.by_rows or found.georeference else '.png'}"
        beside = [] if self._prob is None else [prob_path(mask, self._prob)]
        return [mask, *beside] if found.by_rows else [mask, *beside, self._out / f"{name}_overlay.png"]

    def _is_done(self, number: int) -> bool:
        """The mask is written last; one that was made without probabilities lacks them."""
        return all(path.exists() for path in self.written(number)[: 1 if self._prob is None else 2])

    def _bytes_written(self, number: int) -> float:
        """About what its files take."""
        found = self._found[number]
        values = BYTES_PER_VALUE[self._prob] * self._labels.classes if self._prob is not None else 0.0
        return ((_MASK_BYTES_PER_PIXEL if found.by_rows else _BYTES_PER_PIXEL) + values) * found.pixels

    def _write_held(self, numbers: Sequence[int]) -> Iterator[int]:
        """Predict and write those that memory holds; gives each number when its files are there."""

        def predict(images: Iterator[NDArray[Any]]) -> Iterator[tuple[int, _Answer]]:
            if self._prob is None:
                yield from ((place, _Answer(mask, None)) for place, mask in self._masks.predict_masks(images))
            else:
                yield from ((place, _Answer(found.mask, found.prob)) for place, found in self._masks.predict(images))

        def read(number: int) -> NDArray[Any]:
            return self._masks.read(self._pictures[number])

        def write(answer: tuple[int, _Answer]) -> int:
            with self._problems.keeping(answer[0]):
                self._write_one(*answer)
            return answer[0]

        answers = self._problems.predict(predict, read, numbers, lambda number: self._found[number].bytes)
        yield from map_ahead(write, answers, lambda answer: self._found[answer[0]].bytes + answer[1].bytes)

    def _write_one(self, number: int, answer: _Answer) -> None:
        """The mask last: one that is there says that its picture is done."""
        picture, found, labels = self._pictures[number], self._found[number], self._labels
        mask, prob = answer
        size_hw = mask.shape[0], mask.shape[1]
        unseen = None
        if found.has_unseen:
            with TiffWindows(picture) as windows:
                unseen = windows.unseen(0, size_hw[0])
            mask[unseen] = IGNORED
        self._pixels[number] = self._count(mask)
        image = to_rgb(read_image(picture, self._masks.channels))
        overlay = overlay_mask(image, mask, labels.colors, background=background_class(labels.names))
        target, *beside = self.written(number)
        save_png(Image.fromarray(overlay), beside[-1])
        if prob is not None and self._prob is not None:
            seen = prob if unseen is None else prob * ~unseen
            write_probabilities(beside[0], size_hw, [seen], labels.names, self._prob, found.georeference)
        if found.georeference:
            write_tiff_mask(target, size_hw, [mask], labels, found.georeference, has_unseen=found.has_unseen)
        else:
            write_mask(target, mask, labels)

    def _write_by_rows(self, number: int, teller: Teller) -> None:
        """Predict and write a picture that memory need not hold."""
        picture, found, labels = self._pictures[number], self._found[number], self._labels
        target, *beside = self.written(number)
        with TiffWindows(picture, self._masks.channels) as windows:
            teller.begin(_("predicting {name}, rows").format(name=picture.name), windows.size_hw[0])
            answers = self._predict_rows(number, windows, teller)

            def write(rows: Iterable[NDArray[np.uint8]]) -> None:
                write_tiff_mask(target, windows.size_hw, rows, labels, found.georeference, has_unseen=found.has_unseen)

            if self._prob is None:
                write(rows for rows, _logits in answers)
                return
            with written_beside(write) as add_rows:  # the mask is whole last

                def take_prob() -> Iterator[NDArray[np.float32]]:
                    for rows, logits in answers:
                        add_rows(rows)
                        prob = logits.softmax(dim=0).cpu().numpy()
                        yield prob * (rows != IGNORED) if found.has_unseen else prob

                write_probabilities(
                    beside[0], windows.size_hw, take_prob(), labels.names, self._prob, found.georeference
                )

    def _predict_rows(
        self, number: int, windows: TiffWindows, teller: Teller
    ) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
        """(h, W) mask and (C, h, W) logits of strips, from top to bottom."""
        pixels = np.zeros(self._labels.classes, np.int64)
        for strip, rows in self._masks.predict_rows(windows):
            if self._found[number].has_unseen:
                rows[windows.unseen(strip.rows.start, strip.rows.stop)] = IGNORED
            pixels += self._count(rows)
            yield rows, strip.logits
            teller.count(strip.rows.stop)
        self._pixels[number] = pixels

    def _gather_shares(self) -> dict[int, dict[str, float]]:
        """Shares of the classes of each picture that has a mask, those of before included."""
        shares = {}
        for number in (number for number in sorted(self._found) if number not in self._problems):
            if number not in self._pixels:
                self._pixels[number] = self._count_written(self.written(number)[0])
            pixels = self._pixels[number]
            seen = max(1, int(pixels.sum()))
            shares[number] = {n: int(c) / seen for n, c in zip(self._labels.names, pixels, strict=True)}
        return shares

    def _count_written(self, mask: Path) -> NDArray[np.int64]:
        """Pixels of each class in a mask of before."""
        if mask.suffix == ".png":
            with explained(mask), Image.open(mask) as file:
                return self._count(np.asarray(file))
        with TiffWindows(mask) as windows:
            height = windows.size_hw[0]
            parts = (windows.read_stored(top, min(height, top + _ROWS)) for top in range(0, height, _ROWS))
            return sum((self._count(part) for part in parts), np.zeros(self._labels.classes, np.int64))

    def _count(self, mask: NDArray[np.uint8]) -> NDArray[np.int64]:
        counts = np.bincount(mask.reshape(-1), minlength=IGNORED + 1)
        if counts[self._labels.classes : IGNORED].any():
            raise DataError(
                _("a mask of another model lies in the folder; choose another --out"), path=self._out, key="--out"
            )
        return counts[: self._labels.classes]


def list_pictures(paths: Iterable[Path | str]) -> list[Path]:
    """Files as they are; folders give the pictures in them, patterns what they match, both sorted by name; `-`
    the lines of the standard input."""
    pictures: list[Path] = []
    for path in _named(Path(p) for p in paths):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
            if not found:
                raise DataError(_("{path}: no pictures in this folder").format(path=path), path=path)
            pictures += found
        elif path.exists():
            pictures.append(path)
        elif matched := sorted(glob.glob(str(path), recursive=True)):
            pictures += [Path(p) for p in matched if Path(p).is_file()]
        else:
            raise DataError(_("{path}: no such file").format(path=path), path=path)
    if not pictures:
        raise DataError(_("no pictures to predict; name files or folders"), key="paths")
    return pictures


def _named(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path == _STDIN:
            yield from (Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip())
        else:
            yield path


def _look_at(picture: Path, masks: Masks) -> _Found:
    """What its header says; fails when it is not of the models' kind."""
    masks.refuse_unfit(picture)
    header = read_header(picture, masks.channels)
    pixels, georeference, has_unseen, readable = header.height * header.width, [], False, False
    if may_be_tiff(picture):
        with TiffWindows(picture, masks.channels) as windows:
            georeference, readable = windows.georeference, windows.is_readable
            has_unseen = bool(georeference) and windows.has_unseen
    by_rows = readable and pixels > _LARGE_PIXELS and masks.by_rows
    size = pixels * masks.channels * np.dtype(header.dtype).itemsize
    return _Found(pixels, size, georeference, has_unseen, by_rows)


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
