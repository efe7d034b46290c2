"""Scans of many slices: NIfTI files and DICOM series."""
