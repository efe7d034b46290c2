"""Files to arrays and back: images, TIFF by rows, scans, videos, pixel sizes."""
