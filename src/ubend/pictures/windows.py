"""TIFF pictures read by rows and masks written by rows, for pictures that memory does not hold; georeference kept.

Tiles or strips are decoded one by one as rows are asked for; uncompressed pixels in one piece are mapped. A file
whose pixels come in one compressed piece cannot be read by rows.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.errors import DataError
from ubend.files import write_file
from ubend.language import _
from ubend.masks.labels import LabelMap
from ubend.pictures.decode import explained
from ubend.pictures.images import depth_problem, finish_pixels, read_into
from ubend.pictures.tiff import find_page, is_tiff, stretch

GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)  # GeoTIFF 1.1: scale, tie points, transformation, keys
_MOST_CHUNK_BYTES = 2**28  # decoded, of one tile or strip
_MASK_TILE = 256  # px
_PLACED_PIXELS = 2**22  # of rows that are read at once


class TiffWindows:
    """A TIFF of one picture, read by rows. Use it as a context manager.

    Attributes:
        path: of the file.
        size_hw: (H, W), px.
        georeference: GeoTIFF tags as tifffile's `extratags`; empty without.
    Raises:
        DataError: missing, damaged, no TIFF, or a stack.
    """

    def __init__(self, path: Path, channels: int | None = None) -> None:
        import tifffile

        self.path = path
        self._channels = channels
        self._lock = Lock()
        with explained(path):
            self._stream = path.open("rb")
            try:
                self._tiff = tifffile.TiffFile(self._stream)
                self._page, self._plan, self._alone = find_page(self._tiff, path, channels)
            except BaseException:
                self._stream.close()
                raise
        tags = self._page.tags
        self.georeference = [(t.code, int(t.dtype), t.count, t.value, True) for t in tags if t.code in GEO_TAGS]
        height, width = (self._plan.shape[self._plan.axes.index(axis)] for axis in "YX")
        self.size_hw = int(height), int(width)
        self._mapped: NDArray[Any] | None = None
        if self._alone and self._page.is_memmappable:
            kind = np.dtype(self._page.dtype).newbyteorder(self._tiff.byteorder)
            self._mapped = np.memmap(path, kind, "r", self._page.dataoffsets[0], self._page.shape)

    def __enter__(self) -> "TiffWindows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tiff.close()
        self._stream.close()

    @property
    def is_readable(self) -> bool:
        """Whether rows can be had without the whole, and mean what they hold: one page, upright, no palette, no
        inks."""
        chunk = math.prod(self._page.chunks) * np.dtype(self._page.dtype).itemsize
        small = self._mapped is not None or chunk <= _MOST_CHUNK_BYTES
        return self._alone and small and self._plan.orientation == 1 and self._page.photometric not in (3, 5)

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        """(bottom - top, W, channels) as `read_image` would give these rows; may be called by several threads.

        Raises:
            DataError: damaged, or numbers that are not finite.
        """
        pixels = self.read_stored(top, bottom)
        if pixels.dtype.kind in "bu":
            pixels = stretch(pixels, self._page)
        return finish_pixels(pixels, self._plan.alpha, self._channels, self.path)

    def read_stored(self, top: int, bottom: int) -> NDArray[Any]:
        """(bottom - top, W, channels in the file) as stored."""
        axes = self._plan.axes
        if self._mapped is not None:
            rows = self._mapped[:, top:bottom] if axes == "CYX" else self._mapped[top:bottom]
            rows = np.asarray(rows).astype(self._mapped.dtype.newbyteorder("="), copy=True)
            return np.moveaxis(rows, 0, 2) if axes == "CYX" else rows.reshape(bottom - top, self.size_hw[1], -1)
        out = np.zeros((bottom - top, self.size_hw[1], self._plan.stored), self._page.dtype)
        with explained(self.path):
            for number in self._chunks(top, bottom):
                self._decode(number, top, out)
        return out

    def _chunks(self, top: int, bottom: int) -> Iterator[int]:
        """Numbers of the tiles or strips that hold some of these rows."""
        page = self._page
        grid, axis = page.chunked, page.axes.index("Y")
        high = page.chunks[axis]
        numbers = np.arange(math.prod(grid)).reshape(grid)
        yield from numbers.take(range(top // high, -(-bottom // high)), axis).ravel().tolist()

    def _decode(self, number: int, top: int, out: NDArray[Any]) -> None:
        """Put what a tile or strip has of the rows from `top` on into `out`."""
        page = self._page
        offset, size = page.dataoffsets[number], page.databytecounts[number]
        if not size:
            return  # a hole, as GDAL leaves where nothing was drawn
        with self._lock:
            self._stream.seek(offset)
            data = self._stream.read(size)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.jpegtables else {}
        try:
            if len(data) != size:
                raise ValueError(_("the end is missing"))
            part, place, shape = page.decode(data, number, **tables)
        except Exception as error:  # decoders raise many kinds
            row = np.unravel_index(number, page.chunked)[page.axes.index("Y")] * page.chunks[page.axes.index("Y")]
            reason = " ".join(str(error).split())
            raise ValueError(_("the tile or strip at row {row}: {reason}").format(row=row, reason=reason)) from error
        plane, _depth, y, x, band = place
        first, last = max(y, top), min(y + shape[1], top + len(out))
        bands = slice(plane, plane + 1) if self._plan.axes == "CYX" else slice(band, band + shape[3])
        wide = min(shape[2], out.shape[1] - x)
        if part is not None:
            out[first - top : last - top, x : x + wide, bands] = part[0, first - y : last - y, :wide]


def read_to_place(path: Path, place: NDArray[Any]) -> None:
    """Read a picture into an array of its shape and dtype, (H, W, C), by rows where the file can be read so.

    Raises:
        DataError: unreadable, or not of the place's shape and dtype.
    """
    if may_be_tiff(path):
        with TiffWindows(path, place.shape[2]) as windows:
            if windows.is_readable and windows.size_hw == place.shape[:2]:
                step = max(1, _PLACED_PIXELS // place.shape[1])
                for top in range(0, len(place), step):
                    rows = windows.read(top, min(top + step, len(place)))
                    if rows.dtype != place.dtype:
                        raise DataError(depth_problem(path, rows.dtype, place.dtype))
                    place[top : top + step] = rows
                return
    problems = read_into(place, path)
    if problems:
        raise DataError(problems)


def may_be_tiff(path: Path) -> bool:
    """Whether the file begins as a TIFF does."""
    try:
        with path.open("rb") as stream:
            return is_tiff(stream.read(4))
    except OSError:
        return False


def write_tiff_mask(
    path: Path,
    size_hw: tuple[int, int],
    strips: Iterable[NDArray[np.uint8]],
    labels: LabelMap,
    georeference: list[Any],
) -> None:
    """Write class indices as a palette TIFF in compressed tiles, whole or not at all, while they come.

    Args:
        size_hw: (H, W), px.
        strips: (h, W) class index each, together H rows.
        georeference: of `TiffWindows`.
    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    import tifffile

    colors = np.full((3, 256), 128 * 257, np.uint16)
    colors[:, : labels.classes] = np.array(labels.colors, np.uint16).T * 257

    def write(temporary: Path) -> None:
        tifffile.imwrite(
            temporary,
            _cut_tiles(strips),
            shape=size_hw,
            dtype=np.uint8,
            tile=(_MASK_TILE, _MASK_TILE),
            compression="zlib",
            photometric="palette",
            colormap=colors,
            extratags=georeference,
            metadata=None,
            software=False,
        )

    write_file(path, write)


def _cut_tiles(strips: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Tiles from left to right and from top to bottom; those at the border are filled up."""
    held: list[NDArray[np.uint8]] = []

    def cut(rows: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        filled = np.pad(rows, [(0, -side % _MASK_TILE) for side in rows.shape])
        for top in range(0, filled.shape[0], _MASK_TILE):
            for left in range(0, filled.shape[1], _MASK_TILE):
                yield np.ascontiguousarray(filled[top : top + _MASK_TILE, left : left + _MASK_TILE])

    for strip in strips:
        held.append(strip)
        rows = np.concatenate(held)
        whole = len(rows) - len(rows) % _MASK_TILE
        yield from cut(rows[:whole])
        held = [rows[whole:]]
    if held and len(held[0]):
        yield from cut(held[0])
