"""Scans written by code: a NIfTI file of any axes, a slice of a DICOM series."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SEEN = np.random.default_rng(0).integers(-1000, 1000, (5, 4, 3)).astype(np.int16)  # slices upwards, rows, columns


def write_nifti(path: Path, codes: str, seen: NDArray[Any] = SEEN) -> Any:
    """A scan whose axes stand for `codes`; 2 mm from slice to slice, 0.5 from row to row, 0.25 between columns."""
    standing = np.diag([0.25, 0.5, 2.0, 1.0])
    standing[:3, 3] = 7, -8, 9
    standing[:2] *= -1  # left and back are the negative sides of the file's world
    there = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(tuple(codes)))
    values = nibabel.orientations.apply_orientation(seen.transpose(2, 1, 0), there)
    affine = standing @ inv_ornt_aff(there, seen.transpose(2, 1, 0).shape)
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return image


def write_slice(path: Path, values: NDArray[Any], z: float, series: str, **changes: Any) -> None:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, generate_uid()
    made.SeriesInstanceUID, made.StudyInstanceUID, made.FrameOfReferenceUID = series, "1.2.3", "1.2.4"
    made.PatientID, made.PatientName, made.Modality, made.SeriesNumber = "p1", "A^B", "CT", 3
    made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = *values.shape, 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 0
    made.RescaleSlope, made.RescaleIntercept = 1, -1024
    made.PixelSpacing, made.SliceThickness = [0.5, 0.25], 2
    made.ImageOrientationPatient, made.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [7, -8, z]
    made.PixelData = (values + 1024).astype(np.uint16).tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.save_as(path, enforce_file_format=True)
