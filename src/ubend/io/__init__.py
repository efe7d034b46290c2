"""Reads and writes files as arrays: images, TIFF by rows, scans, videos, pixel sizes."""
