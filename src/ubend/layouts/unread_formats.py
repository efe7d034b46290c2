"""Annotation formats that are not read, named in the error for images without masks, with the way to use them."""

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ubend.core.i18n import later, now
from ubend.layouts.tree import list_entries

_LEVELS_DOWN = 3  # folders below the root that are searched
_START_BYTES = 4096


def describe_unread_format(root: Path) -> str:
    """A message that names an annotation file below `root` of a known format that is not read; "": there is none."""
    for path in _files(root, _LEVELS_DOWN):
        for is_format, line in _FORMATS.get(path.suffix.lower(), ()):
            with suppress(OSError, zipfile.BadZipFile):
                if is_format(path):
                    return now(line).format(path=path)
    return ""


def _files(folder: Path, levels: int) -> Iterator[Path]:
    """The files of a folder, then those of its subfolders."""
    entries = list_entries(folder)
    yield from (Path(entry.path) for entry in entries if entry.is_file())
    for entry in entries if levels else ():
        if entry.is_dir():
            yield from _files(Path(entry.path), levels - 1)


def _contains(*words: bytes) -> Callable[[Path], bool]:
    """A test for files that contain all of these words near their start, in any case."""

    def test(path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(_START_BYTES).lower()
        return all(word.lower() in start for word in words)

    return test


def _has_rle_column(path: Path) -> bool:
    with path.open("rb") as file:
        names = [name.strip(b' "\r').lower() for name in file.readline(_START_BYTES).rstrip(b"\n").split(b",")]
    return any(name in (b"encodedpixels", b"encoded_pixels", b"rle", b"rle_mask", b"rle_encoding") for name in names)


def _has_rois(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(os.path.splitext(name)[1].lower() == ".roi" for name in archive.namelist())


def _any(path: Path) -> bool:
    return True


_CVAT = later('{path}: "CVAT for images" is not read; export from CVAT as "COCO 1.0", or as "Segmentation mask 1.1"')
_VIA = later("{path}: VIA's format is not read; export from VIA as COCO")
_SUPERVISELY = later("{path}: Supervisely's format is not read; export from Supervisely as COCO, or as masks")
_RLE = later("{path}: run lengths in a table are not read; save a mask for each image, as PNG")
_MATLAB = later("{path}: MATLAB files are not read; save each mask as PNG, TIFF or .npy")
_VECTOR = later("{path}: vector maps are not read; rasterize them to a mask for each image, as TIFF or PNG")
_ROIS = later("{path}: ROIs of ImageJ are not read; save a label image for each image, as TIFF or PNG")

# Suffix -> (test of the file, message).
_FORMATS: dict[str, list[tuple[Callable[[Path], bool], str]]] = {
    ".xml": [(_contains(b"<annotations>"), _CVAT)],
    ".json": [
        (_contains(b'"shape_attributes"'), _VIA),
        (_contains(b'"classTitle"'), _SUPERVISELY),
        (_contains(b'"FeatureCollection"'), _VECTOR),
    ],
    ".csv": [(_has_rle_column, _RLE), (_contains(b"region_shape_attributes"), _VIA)],
    ".mat": [(_any, _MATLAB)],
    ".geojson": [(_any, _VECTOR)],
    ".shp": [(_any, _VECTOR)],
    ".gpkg": [(_any, _VECTOR)],
    ".roi": [(_any, _ROIS)],
    ".zip": [(_has_rois, _ROIS)],
}
