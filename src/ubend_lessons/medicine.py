"""Draws computed tomography: slices of an abdomen in Hounsfield units, with an organ and its lesions.

S slices of H x W pixels, H = W. Hounsfield units (HU): air -1000, fat about -100, water 0, soft tissue 30 to 120,
bone from 300. An organ differs from its surroundings by a few tens of HU, in a range of several thousand; therefore
slices are viewed through an intensity window.
"""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import tifffile
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.files import write_file, write_text
from ubend.core.i18n import _
from ubend.io.scans import read_scan
from ubend.portable.image_paths import NIFTI_SUFFIXES

CLASSES = ("background", "organ", "lesion")
SPACING_MM = (5.0, 3.0, 3.0)  # of drawn volumes: from slice to slice, row to row, column to column
_MAX_SLICES = 24  # slices taken from a scan, of those with a label
_SPLITS = ("train", "train", "train", "train", "val", "test")  # splits of the patients, in turn


def draw_volume(seed: int, number: int, slices: int, size_px: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw a patient: (S, H, W) int16 HU, and (S, H, W) uint8 class index of `CLASSES`.

    Slices are ordered upwards; in a slice, the front of the body is at the top, its right side on the left.
    """
    random = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    z, y, x = np.meshgrid(
        np.linspace(-0.8, 0.8, slices), *[np.linspace(-1.15, 1.15, size_px)] * 2, indexing="ij", sparse=True
    )
    wave = 0.05 * np.sin(3 * np.arctan2(y, x) + random.uniform(0, 6)) * random.uniform(0.3, 1)
    wide, deep = random.uniform(0.92, 1.04), random.uniform(0.68, 0.8)

    def inside(centre: Sequence[float], radii: Sequence[float]) -> NDArray[np.bool_]:
        """(S, H, W) an ellipsoid with a slightly wavy outline; centre and radii are (z, y, x)."""
        offsets = ((axis - c) / r for axis, c, r in zip((z, y, x), centre, radii, strict=True))
        return np.asarray(sum(offset**2 for offset in offsets) < (1 + wave) ** 2)

    values = np.full((slices, size_px, size_px), -1000.0)
    body = inside((0, 0, 0), (9, deep, wide))
    values[body] = -100  # fat
    values[inside((0, 0, 0), (9, deep - 0.1, wide - 0.1))] = 55  # muscle and bowel
    values[inside((0, 0.03, 0), (9, deep - 0.2, wide - 0.2))] = -60 + random.uniform(-25, 25)
    for _loop in range(9):  # bowel, some of it with gas
        centre = random.uniform(-0.6, 0.6), random.uniform(-0.35, 0.15), random.uniform(-0.1, 0.6)
        values[inside(centre, (random.uniform(0.1, 0.17, 3) * (2, 1, 1)).tolist())] = random.choice(
            [30.0, 45.0, -700.0]
        )
    values[inside((0.1, -0.02, 0.58), (0.7, 0.26, 0.17))] = random.uniform(85, 115)  # spleen: like the organ
    for side in (-1, 1):
        values[inside((-0.3, 0.28, 0.42 * side), (0.6, 0.14, 0.12))] = random.uniform(130, 170)  # kidneys
    values[inside((0, 0.38, 0), (9, 0.13, 0.15))] = random.uniform(350, 600)  # spine
    values[inside((0, 0.36, 0), (9, 0.05, 0.06))] = 30
    values[inside((0, 0.16, 0.07), (9, 0.07, 0.07))] = random.uniform(150, 190)  # aorta
    organ = inside((0.1, random.uniform(-0.1, 0), -0.4), (0.85, 0.42, random.uniform(0.36, 0.44)))
    organ |= inside((0.2, -0.28, -0.08), (0.5, 0.16, 0.34))
    organ &= inside((0, 0, 0), (9, deep - 0.12, wide - 0.12))
    soft = random.uniform(95, 120)
    values[organ] = soft
    for _vessel in range(5):
        centre = random.uniform(-0.4, 0.5), random.uniform(-0.25, 0.2), random.uniform(-0.6, -0.15)
        values[organ & inside(centre, (0.4, 0.025, 0.03))] = soft + 45
    mask = organ.astype(np.uint8)
    for _lesion in range(int(random.integers(2, 5))):
        radius = random.uniform(0.09, 0.18)
        centre = random.uniform(-0.4, 0.5), random.uniform(-0.3, 0.2), random.uniform(-0.65, -0.15)
        spot = organ & inside(centre, (2 * radius, radius, radius))
        values[spot] = soft - random.uniform(50, 75)
        mask[spot] = 2
    values = scipy.ndimage.gaussian_filter(values, (0, 0.7, 0.7))
    noise = scipy.ndimage.gaussian_filter(random.standard_normal(values.shape), (0, 0.6, 0.6))
    values += noise * 12 / noise.std()
    return np.rint(values.clip(-1024, 3000)).astype(np.int16), mask


def draw_slices(folder: Path, patients: int = 18, slices: int = 6, size_px: int = 96, seed: int = 0) -> None:
    """Write 16-bit slices of drawn patients; all slices of a patient are in one split.

    FOLDER/images/patient00_slice00.tif   (size_px, size_px) int16, HU
    FOLDER/masks/patient00_slice00.tif    class index
    FOLDER/split.csv                      file, split, group (the patient)
    FOLDER/classes.txt
    """
    rows = []
    for index in range(patients):
        values, mask = draw_volume(seed, index, slices, size_px)
        rows += _write_scan(folder, f"patient{index:02d}", values, mask, _SPLITS[index % len(_SPLITS)])
    _write_lists(folder, rows, CLASSES)


def cut_scans(scans: Path, folder: Path) -> None:
    """Write slices of NIfTI scans in the same form; at most 24 of each scan, evenly spaced among those with a label.

    Args:
        scans: a folder as in the Medical Segmentation Decathlon: imagesTr/ and labelsTr/ with NIfTI files of equal
            names, and optionally dataset.json with the names of the labels.
        folder: the folder to write.
    Raises:
        DataError: there are fewer than three scans, or one cannot be read.
    """
    found = sorted(
        path
        for path in (scans / "imagesTr").glob("*")
        if path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")
    )
    if len(found) < 3:
        raise DataError(
            _("{folder}: needs imagesTr/ and labelsTr/ with at least three NIfTI scans").format(folder=scans),
            path=scans,
        )
    rows, highest = [], 0
    for index, path in enumerate(found):
        scan, truth = read_scan(path), read_scan(scans / "labelsTr" / path.name).slices
        if truth.shape != scan.slices.shape:
            raise DataError(_("{path}: its labels have another shape").format(path=path), path=path, key="shape")
        marked = np.flatnonzero((truth > 0).any(axis=(1, 2)))
        kept = marked[np.unique(np.linspace(0, len(marked) - 1, _MAX_SLICES).astype(int))] if len(marked) else marked
        split = ("val", "test")[index] if index < 2 else _SPLITS[index % len(_SPLITS)]
        mask = truth[kept].astype(np.uint8)
        highest = max(highest, int(mask.max(initial=0)))
        rows += _write_scan(folder, scan.name, scan.slices[kept], mask, split)
    _write_lists(folder, rows, _label_names(scans / "dataset.json", highest + 1))


def write_nifti(path: Path, values: NDArray[np.int16]) -> None:
    """Write (S, H, W) values of `draw_volume` as .nii.gz; needs nibabel."""
    import nibabel

    # columns go to the left and rows to the back, opposite to NIfTI's axes
    affine = np.diag([-SPACING_MM[2], -SPACING_MM[1], SPACING_MM[0], 1.0])
    image = nibabel.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    packed = gzip.compress(image.to_bytes(), mtime=0)

    def write(temporary: Path) -> None:
        temporary.write_bytes(packed)

    write_file(path, write)


def measure_ml(mask: NDArray[np.uint8]) -> dict[str, float]:
    """The volume in millilitres of each class of a drawn mask, except the background."""
    voxel = float(np.prod(SPACING_MM)) / 1000
    return {name: voxel * int((mask == index).sum()) for index, name in enumerate(CLASSES) if index}


def _write_scan(
    folder: Path, name: str, values: NDArray[Any], mask: NDArray[np.uint8], split: str
) -> list[tuple[str, str, str]]:
    """Write the slices of a scan; returns their rows of the split file."""
    rows = []
    kind = np.int16 if np.issubdtype(values.dtype, np.integer) else np.float32
    for number, (pixels, index) in enumerate(zip(values.astype(kind), mask, strict=True)):
        stem = f"{name}_slice{number:02d}"
        _write_tiff(folder / "images" / f"{stem}.tif", pixels)
        _write_tiff(folder / "masks" / f"{stem}.tif", index)
        rows.append((f"{stem}.tif", split, name))
    return rows


def _write_tiff(path: Path, pixels: NDArray[Any]) -> None:
    def write(temporary: Path) -> None:
        tifffile.imwrite(temporary, pixels, photometric="minisblack", compression="deflate")

    write_file(path, write)


def _write_lists(folder: Path, rows: Sequence[tuple[str, str, str]], names: Sequence[str]) -> None:
    table = io.StringIO()
    csv.writer(table).writerows([("file", "split", "group"), *rows])
    write_text(folder / "split.csv", table.getvalue())
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in names))


def _label_names(path: Path, count: int) -> list[str]:
    """The names of the labels 0, 1, ..., from the Decathlon's dataset.json if it exists."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["labels"]
        return [str(names[str(number)]) for number in range(max(count, len(names)))]
    except (OSError, ValueError, KeyError, TypeError):
        return ["background", *(f"label {number}" for number in range(1, count))]
