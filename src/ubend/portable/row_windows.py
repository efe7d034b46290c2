"""Reads TIFF images and writes masks by rows, for images larger than memory; keeps the georeference.

Tiles or strips are decoded one by one as rows are requested; uncompressed contiguous pixels are memory-mapped. A file
whose pixels are one compressed block cannot be read by rows.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import explain_decode_errors
from .files import regular_file, write_file
from .i18n import _
from .images import LoadedImage, finish_pixels, mean_valid
from .tiff import (
    NODATA,
    find_mask,
    find_nodata,
    is_tiff,
    make_plan,
    match_nodata,
    open_tiff,
    stretch,
    union_invalid,
)

# GeoTIFF 1.1: scale, tie points, transformation, keys; and rational polynomial coefficients (satellite cameras)
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 50844)
_INVALID = 255  # the ignored value in masks
_MAX_CHUNK_BYTES = 2**28  # decoded, of one tile or strip
_MASK_TILE = 256  # px


class TiffRowReader(AbstractContextManager["TiffRowReader"]):
    """A TIFF of one image, read by rows. Use it as a context manager.

    Attributes:
        path: of the file.
        header: see `read_header`.
        size_hw: (H, W), px.
        georeference: GeoTIFF tags as tifffile's `extratags`; empty if there are none.
        has_invalid: whether pixels may be invalid: the file has a nodata value, an internal mask, alpha that is
            dropped, or float values, which may be NaN.
    Raises:
        DataError: missing, damaged, not a TIFF, or a stack.
    """

    def __init__(self, path: Path, channels: int | None = None) -> None:
        self.path = path
        self._channels = channels
        self._lock = Lock()
        with explain_decode_errors(path), ExitStack() as files:
            self._stream = files.enter_context(path.open("rb"))
            tiff = files.enter_context(open_tiff(self._stream, path))
            self._plan = make_plan(tiff, path, channels)
            self._page, self.size_hw, self.header = self._plan.page, self._plan.stored_hw, self._plan.header
            self._seen = find_mask(tiff, self.size_hw)
            self._files = files.pop_all()
        tags = self._page.tags
        self.georeference = [(t.code, int(t.dtype), t.count, t.value, True) for t in tags if t.code in GEO_TAGS]
        self._nodata, self._filling = find_nodata(self._page), Lock()
        drops_alpha = self._plan.alpha and self._plan.stored != channels
        is_float = np.dtype(self._page.dtype).kind == "f"
        self.has_invalid = self._nodata is not None or self._seen is not None or drops_alpha or is_float
        self._fill: NDArray[Any] | None = None
        self._mapped: NDArray[Any] | None = None
        if self._plan.alone and self._page.is_memmappable:
            kind = np.dtype(self._page.dtype).newbyteorder(tiff.byteorder)
            self._mapped = np.memmap(path, kind, "r", self._page.dataoffsets[0], self._page.shape)

    def __exit__(self, *_error: object) -> None:
        self._files.close()

    @property
    def is_readable(self) -> bool:
        """Whether rows can be read without the whole image: one page, upright, no palette, no CMYK, small chunks."""
        chunk = math.prod(self._page.chunks) * np.dtype(self._page.dtype).itemsize
        small = self._mapped is not None or chunk <= _MAX_CHUNK_BYTES
        return self._plan.alone and small and self._plan.orientation == 1 and self._page.photometric not in (3, 5)

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        """Read rows: (bottom - top, W, channels) as `read_image` would return them; thread-safe.

        Raises:
            DataError: damaged, or values that are not finite.
        """
        rows = self.load(top, bottom)
        if rows.invalid is None:
            return rows.pixels
        pixels = rows.pixels.copy()
        pixels[rows.invalid] = self._mean()
        return pixels

    def load(self, top: int, bottom: int) -> LoadedImage:
        """Read rows and their invalid pixels, which keep the values of the file. For errors see `read`."""
        pixels, invalid = self.read_stored(top, bottom), None
        if self._nodata is not None:
            invalid = match_nodata(pixels, self._nodata, self._plan.alpha)
        if self._seen is not None:
            seen = np.zeros((*pixels.shape[:2], 1), self._seen.dtype)
            self._read_rows(self._seen, "YX", top, seen)
            invalid = union_invalid(invalid, seen[:, :, 0] == 0)
        if pixels.dtype.kind in "bu":
            pixels = stretch(pixels, self._page)
        return finish_pixels(pixels, self._plan.alpha, self._channels, self.path, invalid)

    def _mean(self) -> NDArray[Any]:
        """(C,) fill value for invalid pixels: the mean of the valid ones, computed in one pass over the file."""
        with self._filling:
            if self._fill is None:
                self._fill = mean_valid(self.load, self.size_hw)
            return self._fill

    def read_stored(self, top: int, bottom: int) -> NDArray[Any]:
        """(bottom - top, W, channels in the file) as stored."""
        axes = self._plan.axes
        if self._mapped is not None:
            rows = self._mapped[:, top:bottom] if axes == "CYX" else self._mapped[top:bottom]
            rows = np.asarray(rows).astype(self._mapped.dtype.newbyteorder("="), copy=True)
            return np.moveaxis(rows, 0, 2) if axes == "CYX" else rows.reshape(bottom - top, self.size_hw[1], -1)
        out = np.zeros((bottom - top, self.size_hw[1], self._plan.stored), self._page.dtype)
        self._read_rows(self._page, axes, top, out)
        return out

    def invalid(self, top: int, bottom: int) -> NDArray[np.bool_] | None:
        """(bottom - top, W): invalid pixels of these rows, see `LoadedImage`; None: all are valid."""
        return self.load(top, bottom).invalid if self.has_invalid else None

    def _read_rows(self, page: Any, axes: str, top: int, out: NDArray[Any]) -> None:
        """Read the rows of a page from `top` into (rows, W, channels in the file)."""
        grid, high = page.chunked, _chunk_height(page)
        chunks = np.arange(math.prod(grid)).reshape(grid)
        wanted = range(top // high, -(-(top + len(out)) // high))
        with explain_decode_errors(self.path):
            for chunk in chunks.take(wanted, page.axes.index("Y")).ravel().tolist():
                self._decode(page, axes, chunk, top, out)

    def _decode(self, page: Any, axes: str, chunk: int, top: int, out: NDArray[Any]) -> None:
        """Copy the overlap of a tile or strip with the rows from `top` into `out`."""
        with self._lock:
            self._stream.seek(page.dataoffsets[chunk])
            data = self._stream.read(page.databytecounts[chunk])
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.jpegtables else {}
        try:
            if len(data) != page.databytecounts[chunk]:
                raise ValueError(_("the end is missing"))
            # An empty tile is an area without data, as written by GDAL.
            part, place, shape = page.decode(data or None, chunk, **tables)
        except ImportError:
            raise
        except Exception as error:  # decoders raise many kinds of errors
            row = np.unravel_index(chunk, page.chunked)[page.axes.index("Y")] * _chunk_height(page)
            reason = " ".join(str(error).split())
            raise ValueError(_("the tile or strip at row {row}: {reason}").format(row=row, reason=reason)) from error
        if part is not None:
            plane, _depth, y, x, band = place
            first, last = max(y, top), min(y + shape[1], top + len(out))
            bands = slice(plane, plane + 1) if axes == "CYX" else slice(band, band + shape[3])
            wide = min(shape[2], out.shape[1] - x)
            out[first - top : last - top, x : x + wide, bands] = part[0, first - y : last - y, :wide]


def _chunk_height(page: Any) -> int:
    """Rows of a tile or strip; tifffile's `chunks` omit the axis of separate planes."""
    return int(page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength))


def may_be_tiff(path: Path) -> bool:
    """Whether the file starts like a TIFF."""
    try:
        with regular_file(path).open("rb") as stream:
            return is_tiff(stream.read(4))
    except OSError:
        return False


def write_tiff_mask(
    path: Path,
    size_hw: tuple[int, int],
    strips: Iterable[NDArray[np.uint8]],
    colors: Sequence[tuple[int, int, int]],
    georeference: list[Any],
    *,
    has_invalid: bool = False,
) -> None:
    """Write class indices from a stream of strips as a palette TIFF with compressed tiles, atomically.

    Args:
        size_hw: (H, W), px.
        strips: (h, W) class index each, or 255, together H rows.
        colors: (red, green, blue) of each class.
        georeference: of `TiffRowReader`.
        has_invalid: declare 255 as nodata, for GDAL.
    Raises:
        OutputError: the disk is full, or the file cannot be written.
    """
    import tifffile

    palette = np.full((3, 256), 128 * 257, np.uint16)
    palette[:, : len(colors)] = np.array(colors, np.uint16).T * 257
    invalid = [(NODATA, 2, len(str(_INVALID)) + 1, str(_INVALID), True)] if has_invalid else []

    def write(temporary: Path) -> None:
        tifffile.imwrite(
            temporary,
            cut_tiles(strips, _MASK_TILE),
            shape=size_hw,
            dtype=np.uint8,
            tile=(_MASK_TILE, _MASK_TILE),
            compression="zlib",
            photometric="palette",
            colormap=palette,
            extratags=[*georeference, *invalid],
            metadata=None,
            software=False,
        )

    write_file(path, write)


def cut_tiles(strips: Iterable[NDArray[Any]], side: int) -> Iterator[NDArray[Any]]:
    """Cut (h, W) or (h, W, C) strips into square tiles, left to right and top to bottom, padded at the border."""
    pending: list[NDArray[Any]] = []

    def cut(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
        height, width = rows.shape[:2]
        filled = np.pad(rows, [(0, -height % side), (0, -width % side), *[(0, 0)] * (rows.ndim - 2)])
        for top in range(0, filled.shape[0], side):
            for left in range(0, filled.shape[1], side):
                yield np.ascontiguousarray(filled[top : top + side, left : left + side])

    for strip in strips:
        pending.append(strip)
        rows = np.concatenate(pending)
        whole = len(rows) - len(rows) % side
        yield from cut(rows[:whole])
        pending = [rows[whole:]]
    if pending and len(pending[0]):
        yield from cut(pending[0])
