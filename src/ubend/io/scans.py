"""Reading scans, slice by slice as they are looked at, and writing masks that lie where the scan lies.

S slices of H x W pixels. Axial slices are seen as radiologists see them: the front of the body above, its right
side on the left.
"""

import gzip
from abc import ABC, abstractmethod
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, SettingError, reason
from ubend.core.files import write_file
from ubend.core.i18n import _

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_DICOM_MAGIC = b"DICM"  # after 128 bytes of anything


class Scan(ABC):
    """A scan of one value for each voxel.

    Attributes:
        path: the file, or the folder of a series.
        slices: (S, H, W) values in the scan's units (Hounsfield units of a computed tomography).
        spacing_mm: from slice to slice, from row to row, from column to column.
        affine: (4, 4) float64; (slice, row, column, 1) -> (x, y, z, 1), mm, which grow to the right, front and top of
            the body (RAS).
    """

    path: Path
    slices: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]

    @property
    def name(self) -> str:
        """The scan's name, without what says its format."""
        return _name(self.path)

    def target(self, out: Path) -> Path:
        """Where its mask goes below `out`: of the scan's own format."""
        return place_mask(self.path, out)

    @abstractmethod
    def write_mask(self, mask: NDArray[np.uint8], path: Path) -> None:
        """Write (S, H, W) class indices with the geometry of the scan.

        Raises:
            OutputError: it cannot be written.
        """


def is_scan(path: Path) -> bool:
    """Whether this is a NIfTI file, a DICOM file, or a folder with DICOM files in it and no pictures of ours."""
    if path.is_dir():
        return bool(_dicom_files(path))
    return path.name.lower().endswith(NIFTI_SUFFIXES) or _is_dicom(path)


def place_mask(path: Path, out: Path) -> Path:
    """Where the mask of a scan goes below `out`; the scan need not be read."""
    return out / f"{_name(path)}_mask{'.nii.gz' if _is_nifti(path) else ''}"


def read_scan(path: Path) -> Scan:
    """Read a whole scan.

    Raises:
        DataError: not readable, of several values for each voxel or several moments, or slices that do not make a
            stack; or nibabel or pydicom is not installed.
    """
    try:
        return _read_nifti(path) if _is_nifti(path) else _read_dicom(path)
    except ModuleNotFoundError:
        kind = "NIfTI" if _is_nifti(path) else "DICOM"
        raise DataError(
            _("{path}: reading {kind} needs pip install 'ubend[medical]'").format(path=path, kind=kind),
            path=path,
            key="nibabel" if kind == "NIfTI" else "pydicom",
        ) from None
    except DataError:
        raise
    except Exception as error:  # the libraries raise whatever comes of a damaged file
        said = " ".join(reason(error).split())
        raise DataError(
            _("{path}: not a readable scan ({reason})").format(path=path, reason=said), path=path
        ) from error


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(NIFTI_SUFFIXES)


def _name(path: Path) -> str:
    if _is_nifti(path):
        return path.name[: path.name.lower().rindex(".nii")]
    return path.stem if path.is_file() else path.resolve().name


# ------------------------------------------------------------------------------------------------------- NIfTI


class NiftiScan(Scan):
    """One file; its axes may stand for any directions, and the mask's stand for the same."""

    def __init__(self, path: Path, image: Any) -> None:
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        self.path, self._image = path, image
        # seen: slices upwards, rows to the back, columns to the left
        stored, wanted = io_orientation(image.affine), axcodes2ornt(("L", "P", "S"))
        self._back = ornt_transform(wanted, stored)
        seen = image.as_reoriented(ornt_transform(stored, wanted))
        self.slices = np.ascontiguousarray(np.asanyarray(seen.dataobj).transpose(2, 1, 0))
        columns, rows, slices = map(float, seen.header.get_zooms())
        self.spacing_mm = slices, rows, columns
        self.affine = np.asarray(seen.affine, np.float64)[:, [2, 1, 0, 3]]

    def write_mask(self, mask: NDArray[np.uint8], path: Path) -> None:
        import nibabel

        stored = nibabel.orientations.apply_orientation(mask.transpose(2, 1, 0), self._back)
        image = nibabel.Nifti1Image(np.ascontiguousarray(stored), self._image.affine, dtype=np.uint8)
        for kind in ("sform", "qform"):  # both, with what they refer to
            affine, code = getattr(self._image, f"get_{kind}")(coded=True)
            getattr(image, f"set_{kind}")(affine, int(code))
        image.header.set_xyzt_units(*self._image.header.get_xyzt_units())
        packed = gzip.compress(image.to_bytes(), mtime=0)

        def write(temporary: Path) -> None:
            temporary.write_bytes(packed)

        write_file(path, write)


def _read_nifti(path: Path) -> NiftiScan:
    import nibabel

    image = nibabel.load(path)
    if len(image.shape) == 4 and image.shape[3] == 1:
        image = image.slicer[..., 0]
    if len(image.shape) != 3:
        line = _("{path}: a scan of shape {shape}; one value for each voxel, of one moment, can be predicted")
        raise DataError(line.format(path=path, shape=image.shape), path=path, key="shape")
    return NiftiScan(path, image)


# ------------------------------------------------------------------------------------------------------- DICOM


class DicomSeries(Scan):
    """The files of one series, sorted by where they lie; the mask is a series of its own with the same geometry."""

    def __init__(self, path: Path, files: list[Any]) -> None:
        from pydicom.pixels import apply_rescale

        self.path, self._files = path, files
        self.slices = np.stack([apply_rescale(file.pixel_array, file) for file in files])
        rows, columns = (float(value) for value in files[0].PixelSpacing)
        self.spacing_mm = _slice_spacing(path, files), rows, columns
        self.affine = _dicom_affine(files, self.spacing_mm)

    def write_mask(self, mask: NDArray[np.uint8], path: Path) -> None:
        from pydicom.uid import generate_uid

        series = generate_uid()
        for number, (file, index) in enumerate(zip(self._files, mask, strict=True), start=1):
            dataset = _mask_of(file, index, series, number)
            write_file(path / f"{number:04d}.dcm", partial(dataset.save_as, enforce_file_format=True))


# What a mask has in common with the slice that it is of: whose it is, and where it lies.
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


def _mask_of(file: Any, index: NDArray[np.uint8], series: str, number: int) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.uid import SecondaryCaptureImageStorage

    made = Dataset()
    made.update({file[keyword].tag: file[keyword] for keyword in _KEPT if keyword in file})
    made.SOPClassUID, made.SeriesInstanceUID = SecondaryCaptureImageStorage, series
    made.Modality, made.ConversionType, made.SeriesDescription = "OT", "WSD", "ubend mask"
    made.SeriesNumber, made.InstanceNumber = int(file.get("SeriesNumber") or 0) + 1000, number
    made.set_pixel_data(index, "MONOCHROME2", 8)
    return made


def _read_dicom(path: Path) -> DicomSeries:
    import pydicom

    files = [pydicom.dcmread(file) for file in ([path] if path.is_file() else _dicom_files(path))]
    files = [file for file in files if "PixelData" in file]
    _refuse_no_stack(path, files)
    return DicomSeries(path, sorted(files, key=_place))


def _refuse_no_stack(path: Path, files: list[Any]) -> None:
    """Slices of one series, one size and one direction, each with a place of its own."""
    problem = None
    if not files:
        problem = _("no slices in it")
    elif len({file.SeriesInstanceUID for file in files}) > 1:
        problem = _("slices of several series in one folder; give each series a folder of its own")
    elif any("ImagePositionPatient" not in file or "PixelSpacing" not in file for file in files):
        problem = _("slices lack ImagePositionPatient or PixelSpacing")
    elif (
        len(
            {
                (file.Rows, file.Columns, *np.round(np.array(file.ImageOrientationPatient, np.float64), 4))
                for file in files
            }
        )
        > 1
    ):
        problem = _("slices of different sizes or directions")
    elif any(file.get("NumberOfFrames", 1) != 1 or file.SamplesPerPixel != 1 for file in files):
        problem = _("slices of several frames or colours")
    elif len({round(_place(file), 3) for file in files}) < len(files):
        problem = _("several slices at one place")
    if problem:
        raise DataError(_("{path}: {problem}").format(path=path, problem=problem), path=path)


def _place(file: Any) -> float:
    """How far along their common normal a slice lies, mm."""
    along_row, along_column = np.reshape(np.array(file.ImageOrientationPatient, np.float64), (2, 3))
    return float(np.cross(along_row, along_column) @ np.array(file.ImagePositionPatient, np.float64))


def _dicom_affine(files: list[Any], spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """As `Scan.affine`, mm; DICOM's own x and y grow to the left and to the back."""
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
    steps = np.diff([_place(file) for file in files])
    if steps.max() > 1.1 * steps.min():
        raise DataError(
            _("{path}: the slices lie {least:g} to {most:g} mm apart; is one missing?").format(
                path=path, least=round(float(steps.min()), 3), most=round(float(steps.max()), 3)
            ),
            path=path,
            key="spacing",
        )
    return float(np.median(steps))


def _dicom_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and _is_dicom(path))


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == _DICOM_MAGIC
    except OSError:
        return False


# Centre and width in Hounsfield units, as radiology reads computed tomography.
PRESETS = {
    "abdomen": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "liver": (60.0, 160.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 350.0),
}


@dataclass(frozen=True)
class Window:
    """What becomes 0..255, and what is beyond.

    Attributes:
        center, width: in the units of the values; width > 0.
    """

    center: float
    width: float

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Values of any shape -> uint8 of it: center - width / 2 and less is 0, center + width / 2 and more is 255."""
        low = self.center - self.width / 2
        scaled: NDArray[np.float32] = (np.asarray(values, dtype=np.float32) - low) * (255.0 / self.width)
        seen: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        return seen


def parse_window(text: str) -> Window:
    """`lung`, or `CENTER,WIDTH` in the units of the values: `40,400`.

    Raises:
        SettingError: neither.
    """
    if text in PRESETS:
        return Window(*PRESETS[text])
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
    return Window(center, width)
