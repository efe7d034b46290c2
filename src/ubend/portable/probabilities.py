"""Writes probability maps row by row. C classes, H x W px."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html import escape
from pathlib import Path
from queue import Full, Queue
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .files import write_file
from .row_windows import cut_tiles

ProbKind = Literal["uint8", "uint16", "npz"]
BYTES_PER_VALUE = {"uint8": 0.4, "uint16": 1.2, "npz": 4.0}  # compressed; an estimate for a mostly confident model
_TILE = 256  # px
_GDAL_METADATA = 42112  # TIFF tag in which GDAL keeps names and scales of bands
_T = TypeVar("_T")


def prob_path(mask: Path, kind: ProbKind) -> Path:
    """The path of the probabilities of an image, next to its mask."""
    return mask.with_name(f"{mask.stem}_prob{'.npz' if kind == 'npz' else '.tif'}")


def write_probabilities(
    path: Path,
    size_hw: tuple[int, int],
    strips: Iterable[NDArray[np.float32]],
    names: Sequence[str],
    kind: ProbKind,
    georeference: Sequence[Any] = (),
) -> None:
    """Write probabilities from a stream of strips, atomically.

    uint8, uint16: a TIFF (BigTIFF from 4 GiB on) with compressed tiles, a channel for each class in the order of the
    class table; probability = value / 255, or / 65535. This is stated in its description as JSON, and in GDAL's names
    and scales of the bands. npz: `prob`, (H, W, C) float32 as computed by the network, and `classes`, the names.

    Args:
        size_hw: (H, W), px.
        strips: (C, h, W) probabilities 0..1 each, together H rows.
        names: of the classes.
        georeference: of `TiffRowReader`; only for TIFF.
    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    rows = (np.ascontiguousarray(strip.transpose(1, 2, 0)) for strip in strips)
    if kind == "npz":
        write_file(path, lambda temporary: _write_npz(temporary, size_hw, rows, names))
    else:
        write_file(path, lambda temporary: _write_tiff(temporary, size_hw, rows, names, np.dtype(kind), georeference))


def _write_npz(path: Path, size_hw: tuple[int, int], rows: Iterable[NDArray[np.float32]], names: Sequence[str]) -> None:
    import zipfile

    shape = (*size_hw, len(names))
    with zipfile.ZipFile(path, "w") as file:  # in the format of np.savez
        with file.open("prob.npy", "w", force_zip64=True) as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for part in rows:
                stream.write(part.astype("<f4", copy=False).data)
        with file.open("classes.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array(names), allow_pickle=False)


def _write_tiff(
    path: Path,
    size_hw: tuple[int, int],
    rows: Iterable[NDArray[np.float32]],
    names: Sequence[str],
    dtype: np.dtype[Any],
    georeference: Sequence[Any],
) -> None:
    import tifffile

    white = int(np.iinfo(dtype).max)
    description = json.dumps({"classes": list(names), "value": f"probability = value / {white}"})  # ASCII, for TIFF
    bands = "".join(
        f'<Item name="DESCRIPTION" sample="{band}" role="description">{escape(name, quote=False)}</Item>'
        f'<Item name="SCALE" sample="{band}" role="scale">{1 / white!r}</Item>'
        for band, name in enumerate(names)
    )
    metadata = f"<GDALMetadata>{bands}</GDALMetadata>".encode() + b"\0"
    values = (np.rint(part * np.float32(white)).astype(dtype) for part in rows)
    tifffile.imwrite(
        path,
        cut_tiles(values, _TILE),
        shape=(*size_hw, len(names)),
        dtype=dtype,
        tile=(_TILE, _TILE),
        compression="zlib",
        predictor=True,
        photometric="minisblack",
        planarconfig="contig",
        description=description,
        extratags=[*georeference, (_GDAL_METADATA, 2, len(metadata), metadata, True)],
        metadata=None,
        software=False,
        bigtiff=size_hw[0] * size_hw[1] * len(names) * dtype.itemsize >= 2**32,  # uncompressed, the worst case
    )


@contextmanager
def written_beside(write: Callable[[Iterator[_T]], None]) -> Iterator[Callable[[_T], None]]:
    """A context that writes a second file from one stream; yields a function to pass on items.

    `write` runs in a thread and consumes these items. The file is complete when the context ends; after an error it
    is not written.
    """
    queue: Queue[_T | _End] = Queue(1)

    def items() -> Iterator[_T]:
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.failed:
            raise _Stopped

    with ThreadPoolExecutor(1, thread_name_prefix="ubend-write") as pool:
        writing = pool.submit(write, items())

        def push(item: "_T | _End") -> None:
            while not writing.done():  # if it has failed, nothing reads the queue any more
                try:
                    return queue.put(item, timeout=0.1)
                except Full:
                    pass
            return writing.result()

        try:
            yield push
        except BaseException:
            if not writing.done():
                push(_End(failed=True))
            raise
        push(_End(failed=False))
        writing.result()


class _End:
    def __init__(self, *, failed: bool) -> None:
        self.failed = failed


class _Stopped(Exception):
    """The stream ended early."""
