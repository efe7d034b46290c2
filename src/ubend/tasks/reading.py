"""Read folders, images and scans in Python, without torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.files import default_cache
from ubend.core.progress import Reporter
from ubend.core.settings import Settings
from ubend.dataset.dataset import read_usable, scan_folder
from ubend.dataset.store import read_class_map
from ubend.io import scans
from ubend.io.images import finish_pixels
from ubend.labels.class_table import ClassMap
from ubend.layouts.pairs import Folder, Pair, SplitName
from ubend.portable.decode import read_raster
from ubend.portable.pixel_size import PixelSize, read_spatial_info


@dataclass(frozen=True)
class DataPair:
    """An image and its mask.

    Attributes:
        name: unique in the folder: the relative stem, such as `0001` or `train/0001`.
        image: the image file; relative to the working folder, if the folder was given so.
        split: train, val or test, as the folder or the split file states it; None: not stated.
        group: images of one group (one patient, one video) stay in one split; None: no group.
    """

    name: str
    image: Path
    split: SplitName | None
    group: str | None
    _read: Callable[[], ClassMap] = field(repr=False, compare=False)

    def class_map(self) -> NDArray[np.uint8]:
        """(H, W) class index, an index into `DataFolder.class_names`, or 255 (not scored); at native size.

        Raises:
            DataError: the mask has changed since the folder was read.
        """
        return self._read().classes


@dataclass(frozen=True)
class DataFolder:
    """A data set.

    Attributes:
        class_names: in the order of the class index.
        notes: what the user should know, one sentence each; with `skip_bad` also what was skipped.
        pairs: in the natural order of their names (`2` before `10`).
    """

    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    pairs: tuple[DataPair, ...]

    def __repr__(self) -> str:
        return f"DataFolder(class_names={self.class_names!r}, notes={self.notes!r}, {len(self.pairs)} pairs)"


@dataclass(frozen=True)
class ImageData:
    """An image.

    Attributes:
        pixels: (H, W, C) uint8, uint16 or float32, upright, values as in the file; without alpha.
        valid: (H, W) bool; False where it is invalid: nodata value or inner mask of a TIFF, alpha 0, NaN.
        pixel_size: height and width of a pixel in um or m; None: the file does not state.
    """

    pixels: NDArray[Any]
    valid: NDArray[np.bool_]
    pixel_size: PixelSize | None


@dataclass(frozen=True)
class ScanData:
    """A scan.

    Attributes:
        slices: (N, H, W) values in the scan's units (Hounsfield units of a computed tomography).
        spacing: from slice to slice, from row to row, from column to column, mm.
        affine: (4, 4) float64; (slice, row, column, 1) -> (x, y, z, 1) in mm, which grow to the right, front and
            top of the body (RAS).
    """

    slices: NDArray[Any]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]


def read_folder(settings: Settings, folder: Path | str | None = None) -> DataFolder:
    """The image and mask pairs of the folder that the settings name, and their classes; see `ubend.read_folder`.

    Args:
        folder: the folder as the user gave it; the images' paths begin with it.
    """

    def as_given(path: Path) -> Path:
        whole = Path(folder or path).absolute()
        return Path(folder) / path.relative_to(whole) if folder and path.is_relative_to(whole) else path

    def read(usable: Folder, skipped: list[tuple[Pair, list[str]]]) -> DataFolder:
        label_scan = scan_folder(usable, settings, default_cache(), Reporter())
        left_out = [problem for _name, problem in usable.skipped] + [line for _pair, cause in skipped for line in cause]
        pairs = (
            DataPair(
                pair.name,
                as_given(pair.image),
                pair.split,
                pair.group,
                partial(read_class_map, pair, size_hw, label_scan.labels),
            )
            for pair, size_hw in zip(usable.pairs, label_scan.shapes_hw, strict=True)
        )
        return DataFolder(label_scan.labels.names, (*label_scan.remarks, *left_out), tuple(pairs))

    return read_usable(settings, read)


def read_image(path: Path | str) -> ImageData:
    """Read an image file: JPEG, PNG, BMP, WebP, PPM, PGM or TIFF.

    Args:
        path: the file.
    Raises:
        DataError: the file is missing, damaged, not an image, or has several images or infinite values.
    """
    path = Path(path)
    raster = read_raster(path)
    image = finish_pixels(raster.colors(), raster.alpha, None, path, raster.invalid)
    valid = np.ones(image.pixels.shape[:2], bool) if image.invalid is None else ~image.invalid
    return ImageData(image.pixels, valid, read_spatial_info(path).pixel)


def read_scan(path: Path | str) -> ScanData:
    """Read a scan: a NIfTI file, a DICOM file, or a folder of one DICOM series.

    Args:
        path: the file or the folder.
    Raises:
        DataError: the scan is not readable, has several values per voxel, or its slices do not form a stack.
        MissingPackageError: nibabel (NIfTI) or pydicom (DICOM) is not installed.
    """
    scan = scans.read_scan(Path(path))
    return ScanData(scan.slices, scan.spacing_mm, scan.affine)
