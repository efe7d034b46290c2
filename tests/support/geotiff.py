"""TIFF tags of georeferenced images."""

from typing import Any

GEO = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 4200000.0, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 1024, 0, 1, 1), True),
    (34736, 12, 1, (6378137.0,), True),
    (34737, 2, 8, "WGS 84|", True),
]
PIXEL_SCALE = (33550, 12, 3, (10.0, 20.0, 0.0), True)
TIE = (33922, 12, 6, (1.0, 2.0, 0.0, 500000.0, 4600000.0, 0.0), True)


def keys(**told: int) -> tuple[Any, ...]:
    """The directory of GeoTIFF's keys."""
    codes = {"model": 1024, "raster": 1025, "geographic": 2048, "projected": 3072, "unit": 3076}
    words = [number for name, value in told.items() for number in (codes[name], 0, 1, value)]
    return (34735, 3, len(words) + 4, (1, 1, 0, len(told), *words), True)
