"""Reads scans (NIfTI, DICOM) as axial slices, and writes masks with the geometry of the scan.

S slices of H x W pixels. Scans of any orientation are read as axial slices from feet to head in radiological
convention: the front of the body is up, its right side is on the left. An oblique scan keeps its axes; each is treated
as the nearest anatomical direction.
"""

import gzip
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, MissingPackageError, SettingError, missing_package, reason
from ubend.core.files import regular_file, write_file
from ubend.core.i18n import _
from ubend.portable.decode import without_warnings
from ubend.portable.image_paths import NIFTI_SUFFIXES, is_dicom, is_scan_file
from ubend.portable.printable import some_names

_NIFTI_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # nifti1.h: unknown, metre, mm, micron
_SPACING_TOLERANCE = 0.005  # relative tolerance between sform and pixdim; some programs round one of them
_MAX_VOXELS = 2**30  # 4,096 slices of 512 x 512 px
_MAX_DEFLATED = 1100  # bytes per byte of a gzip file: the maximum of deflate
_SHIFT_TOLERANCE = 0.1  # of the distance between slices


class Scan(ABC):
    """A scan with one value per voxel.

    Attributes:
        path: the file, or the folder of a series.
        slices: (S, H, W) values in the scan's units (Hounsfield units for computed tomography).
        spacing_mm: distance between slices, rows, columns.
        affine: (4, 4) float64; (slice, row, column, 1) -> (x, y, z, 1), mm, in RAS coordinates (right, anterior,
            superior).
        has_spacing: whether the file states `spacing_mm`; missing values are 1.
        notes: messages for the user.
    """

    path: Path
    slices: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    has_spacing: bool = True
    notes: tuple[str, ...] = ()

    def _reorient(self, values: NDArray[Any], affine: NDArray[np.float64], spacing_mm: Sequence[float]) -> None:
        """Set `slices`, `affine` and `spacing_mm`.

        Args:
            values: as stored; the three axes may have any directions.
            affine: (4, 4), indices of `values` -> mm (RAS).
            spacing_mm: along the axes of `values`.
        Raises:
            DataError: the geometry is not finite, or degenerate.
        """
        from nibabel.orientations import (
            apply_orientation,
            axcodes2ornt,
            inv_ornt_aff,
            io_orientation,
            ornt_transform,
        )

        sizes = np.array([*spacing_mm, *np.linalg.norm(affine[:3, :3], axis=0)])
        if not (np.isfinite(affine).all() and np.isfinite(sizes).all() and sizes.min() > 0):
            raise _no_geometry(self.path)
        stored, wanted = io_orientation(affine), axcodes2ornt(("L", "P", "S"))
        if not np.isfinite(stored).all() or np.linalg.matrix_rank(affine[:3, :3] / sizes[3:]) < 3:
            raise _no_geometry(self.path)
        there, self._back = ornt_transform(stored, wanted), ornt_transform(wanted, stored)
        self.slices = np.ascontiguousarray(apply_orientation(values, there).transpose(2, 1, 0))
        self.affine = (affine @ inv_ornt_aff(there, values.shape))[:, [2, 1, 0, 3]]
        columns, rows, slices = (float(spacing_mm[axis]) for axis in np.argsort(there[:, 0]))
        self.spacing_mm = slices, rows, columns

    def _as_stored(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert (S, H, W) slices to the axes of the stored values."""
        from nibabel.orientations import apply_orientation

        return np.ascontiguousarray(apply_orientation(mask.transpose(2, 1, 0), self._back))

    @property
    def name(self) -> str:
        """The scan's name, without the suffix of its format."""
        return _name(self.path)

    def target(self, out: Path) -> Path:
        """The path of its mask below `out`, in the scan's own format."""
        return mask_path(self.path, out)

    @abstractmethod
    def write_mask(self, mask: NDArray[np.uint8], path: Path) -> None:
        """Write (S, H, W) class indices with the geometry of the scan.

        Raises:
            OutputError: the mask cannot be written.
        """


def is_scan(path: Path) -> bool:
    """Whether this is a NIfTI file, a DICOM file, or a folder that contains DICOM files and no other images."""
    if os.path.isdir(path):
        with suppress(OSError):  # unreadable folders are reported when they are read
            return bool(_dicom_files(path))
        return False
    return is_scan_file(path)


def mask_path(path: Path, out: Path) -> Path:
    """The path of a scan's mask below `out`, without reading the scan."""
    return out / f"{_name(path)}_mask{'.nii.gz' if _is_nifti(path) else ''}"


def read_scan(path: Path) -> Scan:
    """Read a whole scan.

    Raises:
        DataError: unreadable; several values per voxel or several time points; values that are not finite; a
            contradictory or missing geometry; or slices that do not form a stack.
        MissingPackageError: see `require_reader`.
    """
    require_reader(path)
    try:
        regular_file(path)
        with without_warnings():
            scan = _read_nifti(path) if _is_nifti(path) else _read_dicom(path)
        _refuse_values(scan)
        return scan
    except DataError:
        raise
    except ImportError as error:
        raise missing_package(error) from error
    except Exception as error:  # the libraries raise many kinds of errors for damaged files
        detail = " ".join(reason(error).split())
        raise DataError(
            _("{path}: not a readable scan ({reason})").format(path=path, reason=detail), path=path
        ) from error


def require_reader(path: Path) -> None:
    """Import the library that reads a scan.

    Raises:
        MissingPackageError: nibabel (NIfTI) or pydicom (DICOM) is missing.
    """
    kind, package = ("NIfTI", "nibabel") if _is_nifti(path) else ("DICOM", "pydicom")
    try:
        import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            _("reading {kind} needs {package}; install it with: pip install 'ubend[medical]'").format(
                kind=kind, package=package
            ),
            key=package,
        ) from error


def _refuse_values(scan: Scan) -> None:
    """Refuse values that are not real numbers, or not representable in float32, the type of the network's input."""
    kind = scan.slices.dtype
    if kind.kind not in "biuf":
        line = _("{path}: voxels have the type {found}; save the scan with one real number per voxel")
        raise DataError(line.format(path=scan.path, found=kind), path=scan.path, key="dtype")
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            good = sum(int(np.isfinite(values.astype(np.float32, copy=False)).sum()) for values in scan.slices)
        if good < scan.slices.size:
            raise DataError(
                _("{path}: contains values that are not finite ({count}); replace them").format(
                    path=scan.path, count=scan.slices.size - good
                ),
                path=scan.path,
                key="value",
            )


def _no_geometry(path: Path) -> DataError:
    line = _("{path}: the header has no usable geometry: spacing and directions must be finite and not 0")
    return DataError(line.format(path=path), path=path, key="geometry")


def _is_nifti(path: Path) -> bool:
    return os.path.isfile(path) and path.name.lower().endswith(NIFTI_SUFFIXES)


def _name(path: Path) -> str:
    if _is_nifti(path):
        return path.name[: path.name.lower().rindex(".nii")]
    return path.stem if os.path.isfile(path) else path.resolve().name


# ------------------------------------------------------------------------------------------------------- NIfTI


class NiftiScan(Scan):
    """A NIfTI file; its axes may have any directions, which its mask keeps."""

    def __init__(self, path: Path, image: Any) -> None:
        self.path, self._image = path, image
        mm = _nifti_unit_mm(path, image.header)
        affine, zooms = np.asarray(image.affine, np.float64), np.array(image.header.get_zooms(), np.float64)
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        if np.isfinite(affine).all() and (np.abs(sides - zooms) > _SPACING_TOLERANCE * sides).any():
            line = _(
                "{path}: the voxel size is {sform} according to the header's sform, but {pixdim} according to its "
                "pixdim; correct one of them"
            )
            texts = (" x ".join(f"{side:.4g}" for side in lengths) for lengths in (sides, zooms))
            raise DataError(
                line.format(path=path, **dict(zip(("sform", "pixdim"), texts, strict=True))), path=path, key="pixdim"
            )
        if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
            line = _(
                "note: {path} does not state its orientation; its axes are assumed to point to the left, front and top "
                "of the body"
            )
            self.notes = (line.format(path=path),)
        if not _states_spacing(path, type(image.header)):
            self.has_spacing = False
            line = _(
                "note: {path} does not state its voxel size (pixdim is 0), so no volumes in ml are given; set pixdim, "
                "in mm"
            )
            self.notes += (line.format(path=path),)
        elif int(image.header["xyzt_units"]) % 8 == 0:
            line = _(
                "note: {path} does not state its unit of length (xyzt_units is 0); its voxel size is assumed to be in "
                "mm"
            )
            self.notes += (line.format(path=path),)
        self._reorient(np.asanyarray(image.dataobj), np.diag([mm, mm, mm, 1.0]) @ affine, tuple(zooms * mm))

    def write_mask(self, mask: NDArray[np.uint8], path: Path) -> None:
        import nibabel

        image = nibabel.Nifti1Image(self._as_stored(mask), self._image.affine, dtype=np.uint8)
        for kind in ("sform", "qform"):  # both, with their codes
            affine, code = getattr(self._image, f"get_{kind}")(coded=True)
            getattr(image, f"set_{kind}")(affine, int(code))
        image.header.set_xyzt_units(*self._image.header.get_xyzt_units())
        packed = gzip.compress(image.to_bytes(), mtime=0)

        def write(temporary: Path) -> None:
            temporary.write_bytes(packed)

        write_file(path, write)


def _nifti_unit_mm(path: Path, header: Any) -> float:
    """The unit of length, in mm; 1 if the header states none, as other programs assume, too.

    Raises:
        DataError: the header contains an unknown unit.
    """
    code = int(header["xyzt_units"]) % 8
    if code not in _NIFTI_UNITS_MM:
        line = _("{path}: xyzt_units is {found}, which is not a unit of length; set it to 2 (mm)")
        raise DataError(line.format(path=path, found=code), path=path, key="xyzt_units")
    return _NIFTI_UNITS_MM[code]


def _states_spacing(path: Path, header: Any) -> bool:
    """Whether all three pixdim are stated (not 0), read before nibabel replaces 0 by 1; `header` is the class."""
    from nibabel.openers import ImageOpener

    with ImageOpener(path) as file:
        return bool((header.from_fileobj(file, check=False)["pixdim"][1:4] != 0).all())


def _read_nifti(path: Path) -> NiftiScan:
    import nibabel

    # It logs unusual headers; real damage raises. nibabel's LoggingOutputSuppressor would pass the messages on to
    # Python's last-resort handler.
    log = logging.getLogger("nibabel.global")
    before, log.disabled = log.disabled, True
    try:
        image = nibabel.load(path)
    finally:
        log.disabled = before
    if len(image.shape) == 4 and image.shape[3] == 1:
        image = image.slicer[..., 0]
    if len(image.shape) != 3:
        line = _(
            "{path}: a scan of shape {shape}; only scans with one value per voxel and one time point can be predicted"
        )
        raise DataError(line.format(path=path, shape=image.shape), path=path, key="shape")
    _refuse_large(path, image.shape)
    stored, size = math.prod(image.shape) * image.get_data_dtype().itemsize, path.stat().st_size
    if stored > size * (_MAX_DEFLATED if path.name.lower().endswith(".gz") else 1):
        line = _("{path}: damaged or truncated ({reason})")
        detail = _("{size} bytes, but its voxels need {stored}").format(size=size, stored=stored)
        raise DataError(line.format(path=path, reason=detail), path=path)
    return NiftiScan(path, image)


def _refuse_large(path: Path, shape: Sequence[int]) -> None:
    """Refuse scans with too many voxels before memory is allocated: small files can contain huge empty scans."""
    if math.prod(map(int, shape)) > _MAX_VOXELS:
        line = _("{path}: a scan of {shape} voxels; at most {maximum} can be read, so crop it")
        detail = " x ".join(map(str, shape))
        raise DataError(line.format(path=path, shape=detail, maximum=_MAX_VOXELS), path=path, key="shape")


# ------------------------------------------------------------------------------------------------------- DICOM


class DicomSeries(Scan):
    """A DICOM series, sorted by slice position; its mask is written as a new series with the same geometry."""

    def __init__(self, path: Path, files: list[Any]) -> None:
        from pydicom.pixels import apply_rescale

        self.path, self._files = path, files
        rows, columns = (float(value) for value in files[0].PixelSpacing)
        spacing_mm = _slice_spacing(path, files), rows, columns
        if len(files) == 1 and not files[0].get("SliceThickness"):
            self.has_spacing = False
            line = _("note: {path} does not state its SliceThickness, so no volumes in ml are given; set it, in mm")
            self.notes = (line.format(path=path),)
        values = np.stack([apply_rescale(_read_pixels(path, file), file) for file in files])
        self._reorient(values, _dicom_affine(files, spacing_mm), spacing_mm)

    def write_mask(self, mask: NDArray[np.uint8], path: Path) -> None:
        from pydicom.uid import generate_uid

        series = generate_uid()
        for instance, (file, index) in enumerate(zip(self._files, self._as_stored(mask), strict=True), start=1):
            dataset = _mask_of(file, index, series, instance)
            write_file(path / f"{instance:04d}.dcm", partial(dataset.save_as, enforce_file_format=True))


def _read_pixels(path: Path, file: Any) -> NDArray[Any]:
    """Read the stored values of a slice.

    Raises:
        DataError: they are damaged.
    """
    try:
        return np.asarray(file.pixel_array)
    except (ValueError, AttributeError, IndexError, RuntimeError) as error:
        detail = " ".join(reason(error).split())
        line = _("{path}: the slice {name} cannot be read ({reason})")
        name = Path(str(file.filename)).name
        raise DataError(line.format(path=path, name=name, reason=detail), path=path, key="slices") from error


_PLACE_TAGS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}  # numbers in each
# Tags that a mask copies from its slice: patient, study and geometry.
_KEPT = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "PatientPosition",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SliceLocation",
)


def _mask_of(file: Any, index: NDArray[np.uint8], series: str, instance: int) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.uid import SecondaryCaptureImageStorage

    made = Dataset()
    made.update({file[keyword].tag: file[keyword] for keyword in _KEPT if keyword in file})
    made.SOPClassUID, made.SeriesInstanceUID = SecondaryCaptureImageStorage, series
    made.Modality, made.ConversionType, made.SeriesDescription = "OT", "WSD", "ubend mask"
    made.SeriesNumber, made.InstanceNumber = int(file.get("SeriesNumber") or 0) + 1000, instance
    made.set_pixel_data(index, "MONOCHROME2", 8)
    return made


def _read_dicom(path: Path) -> DicomSeries:
    import pydicom

    files = _read_slices(path) if path.is_dir() else [file for file in [pydicom.dcmread(path)] if "PixelData" in file]
    _refuse_no_stack(path, files)
    _refuse_large(path, (len(files), files[0].Rows, files[0].Columns))
    return DicomSeries(path, sorted(files, key=_slice_position))


def _read_slices(folder: Path) -> list[Any]:
    """Read the slices in a folder; other DICOM files (a DICOMDIR, reports) and other files (notes) are ignored.

    Raises:
        DataError: damaged slices, without which the volume would be too small: files named like slices that are not
            DICOM, and DICOM files without pixels that have the slices' kind, or do not state it.
    """
    import pydicom

    read, bad = dict[Path, Any](), list[Path]()
    for path in _dicom_files(folder):
        try:
            read[path] = pydicom.dcmread(path)
        except Exception:  # many kinds of errors for damaged files
            bad.append(path)
    slices = {path: file for path, file in read.items() if "PixelData" in file}
    kinds, endings = {_kind(file) for file in slices.values()}, {_ending(path) for path in slices}
    for path in read.keys() - slices.keys():
        if "Rows" in read[path] or any(kind.startswith(_kind(read[path])) for kind in kinds):
            bad.append(path)
    others = {path for path in folder.iterdir() if path.is_file() and path.name[0] != "."} - {*read, *bad}
    bad += [path for path in others if _ending(path) in endings]
    if bad:
        line = _(
            "{path}: {count} files of the series cannot be read ({names}), and without them the volume would be too "
            "small; restore them, or move files that are not slices to another folder"
        )
        names = some_names(sorted(path.name for path in bad))
        raise DataError(line.format(path=folder, count=len(bad), names=names), path=folder, key="slices")
    return [*slices.values()]


def _kind(file: Any) -> str:
    """The kind (SOP class) of a DICOM file; only its readable beginning if the file is truncated there."""
    return str(file.file_meta.get("MediaStorageSOPClassUID") or file.get("SOPClassUID") or "")


def _ending(path: Path) -> str:
    """The suffix of a file; empty if it has none, or is named by a number such as 1.2.840.7."""
    return "" if path.suffix[1:].isdecimal() else path.suffix.lower()


def _refuse_no_stack(path: Path, files: list[Any]) -> None:
    """Fail unless the slices have one series, one size and one direction, each at its own position.

    Raises:
        DataError: they do not.
    """
    problem = None
    if not files:
        problem = _("it has no slices")
    elif len({file.get("SeriesInstanceUID") for file in files}) > 1:
        problem = _("slices of several series in one folder; put each series into its own folder")
    elif any(file.get("NumberOfFrames", 1) != 1 or file.SamplesPerPixel != 1 for file in files):
        problem = _("slices with several frames or colours")
    elif lacking := [name for name, count in _PLACE_TAGS.items() if any(not _has(file, name, count) for file in files)]:
        problem = _("slices lack {tags}; export the series again with them").format(tags=", ".join(lacking))
    elif len({(file.Rows, file.Columns, *_geometry(file)) for file in files}) > 1:
        problem = _("slices of different sizes, pixel spacings or directions")
    elif not _is_orthonormal(files[0]):
        problem = _("ImageOrientationPatient must be two perpendicular directions of length 1")
    elif len({round(_slice_position(file), 3) for file in files}) < len(files):
        problem = _("several slices at the same position")
    if problem:
        raise DataError(_("{path}: {problem}").format(path=path, problem=problem), path=path)


def _has(file: Any, name: str, count: int) -> bool:
    """Whether a tag exists and has this number of finite values."""
    values = np.array(file.get(name) if file.get(name) is not None else [], np.float64).reshape(-1)
    return len(values) == count and bool(np.isfinite(values).all())


def _geometry(file: Any) -> tuple[float, ...]:
    """Pixel spacing and directions, shared by all slices of a stack."""
    values = [*file.PixelSpacing, *file.ImageOrientationPatient]
    return tuple(np.round(np.array(values, np.float64), 4) + 0.0)  # no negative zeros


def _is_orthonormal(file: Any) -> bool:
    directions = np.reshape(np.array(file.ImageOrientationPatient, np.float64), (2, 3))
    return bool(np.abs(directions @ directions.T - np.eye(2)).max() < 0.01)


def _slice_position(file: Any) -> float:
    """The position of a slice along the common normal, mm."""
    along_row, along_column = np.reshape(np.array(file.ImageOrientationPatient, np.float64), (2, 3))
    return float(np.cross(along_row, along_column) @ np.array(file.ImagePositionPatient, np.float64))


def _dicom_affine(files: list[Any], spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """See `Scan.affine`; converts from DICOM's coordinates, whose x and y point to the left and back (LPS)."""
    along_row, along_column = np.reshape(np.array(files[0].ImageOrientationPatient, np.float64), (2, 3))
    first, last = (np.array(file.ImagePositionPatient, np.float64) for file in (files[0], files[-1]))
    step = np.cross(along_row, along_column) * spacing_mm[0] if len(files) == 1 else (last - first) / (len(files) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([step, along_column * spacing_mm[1], along_row * spacing_mm[2], first], axis=1)
    affine[:2] *= -1
    return affine


def _slice_spacing(path: Path, files: list[Any]) -> float:
    if len(files) == 1:
        return float(files[0].get("SliceThickness") or 1.0)
    steps = np.diff([_slice_position(file) for file in files])
    if steps.max() > 1.1 * steps.min():
        raise DataError(
            _(
                "{path}: the distances between slices are {minimum:g} to {maximum:g} mm; restore the "
                "missing slice, or export the series again"
            ).format(path=path, minimum=round(float(steps.min()), 3), maximum=round(float(steps.max()), 3)),
            path=path,
            key="spacing",
        )
    positions = np.array([file.ImagePositionPatient for file in files], np.float64)
    line = positions[0] + np.linspace(0, 1, len(files))[:, None] * (positions[-1] - positions[0])
    if np.linalg.norm(positions - line, axis=1).max() > max(_SHIFT_TOLERANCE * steps.min(), 0.05):
        raise DataError(
            _("{path}: the slices are not on one straight line; put each stack into its own folder").format(path=path),
            path=path,
            key="ImagePositionPatient",
        )
    return float(np.median(steps))


def _dicom_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and is_dicom(path))


# Centre and width in Hounsfield units, as used in radiology for computed tomography.
PRESETS = {
    "abdomen": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "liver": (60.0, 160.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 350.0),
}


@dataclass(frozen=True)
class IntensityWindow:
    """An intensity window: the range of values that is mapped to 0..255.

    Attributes:
        center, width: in the units of the values; width > 0.
    """

    center: float
    width: float

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Map values of any shape to uint8: up to center - width / 2 is 0, from center + width / 2 on is 255."""
        low = self.center - self.width / 2
        scaled: NDArray[np.float32] = (np.asarray(values, dtype=np.float32) - low) * (255.0 / self.width)
        seen: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        return seen


def parse_intensity_window(text: str) -> IntensityWindow:
    """Parse `lung`, or `CENTER,WIDTH` in the units of the values: `40,400`.

    Raises:
        SettingError: neither.
    """
    if text in PRESETS:
        return IntensityWindow(*PRESETS[text])
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        near = get_close_matches(text, PRESETS, 1)
        meant = _("; did you mean {name}?").format(name=near[0]) if near else ""
        raise SettingError(
            _("--window {text}: give one of {names}, or CENTER,WIDTH as in 40,400{meant}").format(
                text=text, names=", ".join(PRESETS), meant=meant
            ),
            key="--window",
        ) from None
    if not (np.isfinite(center) and np.isfinite(width) and width > 0):
        raise SettingError(_("--window {text}: the width must be greater than 0").format(text=text), key="--window")
    return IntensityWindow(center, width)
