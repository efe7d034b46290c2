"""Reads pixel size and georeference from image files.

Sources, in order of precedence:

- GeoTIFF: pixel scale or transformation of a projected CRS with the unit metre; not degrees, not feet, and not web
  Mercator, whose metres are correct only at the equator.
- OME-TIFF: PhysicalSizeX and PhysicalSizeY with their units (default: µm, as defined by OME).
- ImageJ: pixels per unit, if the unit is a length.
- TIFF: resolution in px per inch or centimetre, unless it is 72 or 96 px per inch or at most 1 (defaults of
  programs), or the file is from a camera: the print size of a photograph says nothing about the scene.

The resolution in PNG, JPEG, WebP and BMP is ignored: programs write it for printing.

Sources: OME schema 2016-06; ImageJ's FileInfo; OGC GeoTIFF 1.1 (19-008r4); TIFF 6.0, section 8.
"""

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .decode import explain_decode_errors
from .errors import SettingError
from .i18n import _
from .row_windows import GEO_TAGS, may_be_tiff
from .tiff import open_tiff

if TYPE_CHECKING:
    import tifffile

_UM = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "mm": 1e3,
       "cm": 1e4, "m": 1e6, "inch": 25400.0, "inches": 25400.0, "in": 25400.0}  # fmt: skip
_MIN_UM, _MAX_UM = 1e-6, 1e12  # limits of --pixel-size: smaller than an atom, larger than the earth
_DENSITY_UM = {2: 25400.0, 3: 10000.0}  # of TIFF's ResolutionUnit: inch, centimetre
_PLACEHOLDER_DPI = (72.0, 96.0)  # px per inch, defaults of programs
_PRINT_DPI = 300.0  # of scanners, but also a default of programs for printing
_ORIENTATION, _MAKE, _EXIF = 274, 271, 34665
_PROJECTED, _METRE = 1, 9001  # of GeoTIFF: GTModelTypeGeoKey, ProjLinearUnitsGeoKey
_USER_DEFINED = 32767  # of GeoTIFF: the CRS has no number
_WEB_MERCATOR = (3857, 3785, 900913)
# UTM on WGS 84, ETRS89 and NAD83: always in metres
_UTM = (range(32601, 32661), range(32701, 32761), range(25828, 25839), range(26901, 26924))
_PIXEL_IS_POINT = 2  # of GeoTIFF's GTRasterTypeGeoKey: coordinates refer to pixel centres


@dataclass(frozen=True)
class PixelSize:
    """The size of one pixel.

    Attributes:
        height, width: in `unit`.
        unit: um (µm), or m of a map.
    """

    height: float
    width: float
    unit: Literal["um", "m"]

    @property
    def is_square(self) -> bool:
        """Whether height and width differ by less than a thousandth, so that lengths do not depend on direction."""
        return bool(abs(self.height / self.width - 1) < 1e-3)

    @property
    def may_be_print(self) -> bool:
        """Whether this is 300 px per inch, which programs also write for printing."""
        return self.unit == "um" and self.is_square and abs(25400 / self.width - _PRINT_DPI) < 0.5


@dataclass(frozen=True)
class GeoTransform:
    """Georeference: maps pixel edges to coordinates.

    Attributes:
        matrix: a, b, c, d, e, f with x = a column + b row + c and y = d column + e row + f; the upper left corner of
            the first pixel is column 0, row 0.
        epsg: number of the CRS, if the file states it.
    """

    matrix: tuple[float, float, float, float, float, float]
    epsg: int | None


@dataclass(frozen=True)
class SpatialInfo:
    """Pixel size and georeference of a file.

    Attributes:
        pixel: None: not stated.
        transform: None: no georeference.
        tags: GeoTIFF tags as tifffile's `extratags`.
    """

    pixel: PixelSize | None = None
    transform: GeoTransform | None = None
    tags: tuple[Any, ...] = ()


def parse_pixel_size(text: str) -> PixelSize:
    """Parse the side of a square pixel: 0.325um, 1.2 mm, 30cm. The result is in m for cm and m, otherwise in µm.

    Raises:
        SettingError: not a positive number, or an unknown unit.
    """
    matched = re.fullmatch(r"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*([^\W\d]+)\s*", str(text))
    try:
        side_um = float(matched[1]) * _UM[matched[2]] if matched else 0.0
    except (KeyError, ValueError):
        side_um = 0.0
    if matched is None or not _MIN_UM <= side_um <= _MAX_UM:
        raise SettingError(
            _(
                "--pixel-size {text}: give the side of a pixel as a positive number with a unit (nm, um, mm, cm, m),"
                " such as 0.325um or 30cm"
            ).format(text=text),
            key="--pixel-size",
        )
    return (
        PixelSize(side_um / 1e6, side_um / 1e6, "m") if matched[2] in ("cm", "m") else PixelSize(side_um, side_um, "um")
    )


def read_spatial_info(path: Path) -> SpatialInfo:
    """Read pixel size and georeference of an image file; empty if it states none.

    Raises:
        DataError: a damaged TIFF.
    """
    if not may_be_tiff(path):
        return SpatialInfo()
    with explain_decode_errors(path), path.open("rb") as stream, open_tiff(stream, path) as tiff:
        page = tiff.pages.first
        upright = page.tags.valueof(_ORIENTATION, 1)
        if upright == 1 and (transform := _read_geo_transform(page)):
            tags = tuple((t.code, int(t.dtype), t.count, t.value, True) for t in page.tags if t.code in GEO_TAGS)
            return SpatialInfo(_measure_map(page, transform), transform, tags)
        pixel = _read_ome(tiff) or _read_density(tiff, page)
        if pixel is not None and upright >= 5:  # rows of the file are columns of the image
            pixel = PixelSize(pixel.width, pixel.height, pixel.unit)
        return SpatialInfo(pixel)


def _size(height: float, width: float) -> PixelSize | None:
    """A pixel size in µm; None unless both sides are valid."""
    good = np.isfinite([height, width]).all() and height > 0 and width > 0
    return PixelSize(float(height), float(width), "um") if good else None


def _read_ome(tiff: "tifffile.TiffFile") -> PixelSize | None:
    if not tiff.is_ome:
        return None
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", tiff.ome_metadata or "")  # of the first image, the only one read
    matched = re.findall(r"(\w+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", pixels.group()) if pixels else []
    attributes = {name: html.unescape(double or single) for name, double, single in matched}  # &#181;m is µm
    try:
        sides = [
            float(attributes[f"PhysicalSize{axis}"]) * _UM.get(attributes.get(f"PhysicalSize{axis}Unit", "µm"), np.nan)
            for axis in "YX"
        ]
    except (KeyError, ValueError):
        return None
    return _size(*sides)


def _read_density(tiff: "tifffile.TiffFile", page: "tifffile.TiffPage") -> PixelSize | None:
    """Pixel size from XResolution and YResolution."""
    lengths = [None if _MAKE in page.tags or _EXIF in page.tags else _DENSITY_UM.get(int(page.tags.valueof(296, 2)))]
    if tiff.is_imagej:
        unit = str((tiff.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ").strip()
        lengths.insert(0, _UM.get(unit.lower()))
    for um in filter(None, lengths):
        ratios = (page.tags.valueof(code, (0, 1)) for code in (283, 282))
        densities = [above / below / um if below else 0.0 for above, below in ratios]
        per_inch = [density * 25400 for density in densities]
        blank = any(abs(dpi - known) < 0.5 for dpi in per_inch for known in _PLACEHOLDER_DPI)
        if not blank and min(per_inch) > 1:
            return _size(1 / densities[0], 1 / densities[1])
    return None


def _read_geo_transform(page: "tifffile.TiffPage") -> GeoTransform | None:
    scale, tie, matrix = (page.tags.valueof(code) for code in (33550, 33922, 34264))
    if matrix is not None and len(matrix) == 16:
        a, b, c, d, e, f = (float(matrix[i]) for i in (0, 1, 3, 4, 5, 7))
    elif scale is not None and tie is not None and len(scale) >= 2 and len(tie) >= 6:
        a, b, d, e = float(scale[0]), 0.0, 0.0, -float(scale[1])
        c, f = tie[3] - a * tie[0], tie[4] - e * tie[1]
    else:
        return None
    keys = page.geotiff_tags or {}
    if keys.get("GTRasterTypeGeoKey") == _PIXEL_IS_POINT:
        c, f = c - (a + b) / 2, f - (d + e) / 2
    if not np.isfinite([a, b, c, d, e, f]).all() or a * e == b * d:
        return None
    epsg = int(keys.get("ProjectedCSTypeGeoKey") or keys.get("GeographicTypeGeoKey") or 0)
    return GeoTransform((a, b, float(c), d, e, float(f)), epsg if 0 < epsg < _USER_DEFINED else None)


def _measure_map(page: "tifffile.TiffPage", transform: GeoTransform) -> PixelSize | None:
    """Pixel size in metres, for projections whose unit is a true metre; otherwise None."""
    keys = page.geotiff_tags or {}
    if keys.get("GTModelTypeGeoKey") != _PROJECTED or transform.epsg in _WEB_MERCATOR:
        return None
    unit = keys.get("ProjLinearUnitsGeoKey")
    if unit != _METRE and not (unit is None and any(transform.epsg in zones for zones in _UTM)):
        return None
    a, b, _c, d, e, _f = transform.matrix
    return PixelSize(float(np.hypot(b, e)), float(np.hypot(a, d)), "m")
