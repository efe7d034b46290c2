"""How large a pixel is: told by files of each kind, or not stated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from support.geotiff import PIXEL_SCALE, TIE, keys
from support.refusal import raises
from ubend.core.errors import DataError, SettingError
from ubend.portable.object_files import measure, summarize, write_table
from ubend.portable.objects import separate
from ubend.portable.pixel_size import GeoTransform, PixelSize, SpatialInfo, parse_pixel_size, read_spatial_info

IMAGE = np.zeros((8, 9), np.uint8)
MATRIX = (34264, 12, 16, (3.0, 4.0, 0, 100.0, 4.0, -3.0, 0, 200.0, 0, 0, 0, 0, 0, 0, 0, 1.0), True)


def scale_of(tmp_path: Path, **words: Any) -> SpatialInfo:
    tifffile.imwrite(tmp_path / "x.tif", IMAGE, **words)
    return read_spatial_info(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("words", "pixel"),
    [
        ({"resolution": (2540, 5080), "resolutionunit": "INCH"}, (5, 10)),
        ({"resolution": (1000, 1000), "resolutionunit": "CENTIMETER"}, (10, 10)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, (254 / 3, 254 / 3)),  # a scanner's
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}, (0.25, 0.25)),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, (0.25, 0.25)),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "mm"}}, (500, 250)),
        ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}}, (0.25, 0.5)),
        (
            {
                "ome": True,
                "metadata": {
                    "axes": "YX",
                    "PhysicalSizeX": 500,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 0.001,
                    "PhysicalSizeYUnit": "mm",
                },
            },
            (1, 0.5),
        ),
    ],
)
def test_told(words: dict[str, Any], pixel: tuple[float, float], tmp_path: Path) -> None:
    found = scale_of(tmp_path, **words)
    assert found.pixel is not None
    assert (found.pixel.height, found.pixel.width) == pytest.approx(pixel)
    assert found.pixel.unit == "um"
    assert found.transform is None


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"resolution": (72, 72), "resolutionunit": "INCH"},
        {"resolution": (96, 96), "resolutionunit": "INCH"},
        {"resolution": (1, 1), "resolutionunit": "INCH"},
        {"resolution": (28.346, 28.346), "resolutionunit": "CENTIMETER"},  # 72 in an inch
        {"resolution": (4, 4), "resolutionunit": "NONE"},
        {"imagej": True},
        {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}},
        {"ome": True},
        {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.5}},
        {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0}},
        {"resolution": (300, 300), "resolutionunit": "INCH", "extratags": [(271, 2, 0, "Camera", True)]},
    ],
)
def test_not_told(words: dict[str, Any], tmp_path: Path) -> None:
    assert scale_of(tmp_path, **words) == SpatialInfo()


@pytest.mark.parametrize("unit", ["&#181;m", "&#xB5;m", "&#956;m", "\u00b5m", "um", "micron"])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_units_of_ome_as_writers_spell_them(unit: str, quote: str, tmp_path: Path) -> None:
    sizes = " ".join(f"PhysicalSize{axis}={quote}{side}{quote} PhysicalSize{axis}Unit={quote}{unit}{quote}"
                     for axis, side in (("X", 0.5), ("Y", 0.25)))  # fmt: skip
    height, width = IMAGE.shape[:2]
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?><OME><Image ID="Image:0"><Pixels DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="{width}" SizeY="{height}" SizeC="1" SizeZ="1" SizeT="1" {sizes}><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "x.tif", IMAGE, description=xml.encode(), metadata=None)
    assert read_spatial_info(tmp_path / "x.tif").pixel == PixelSize(0.25, 0.5, "um")


@pytest.mark.parametrize(
    ("text", "side", "unit"),
    [
        ("0.325um", 0.325, "um"),
        ("0.325 µm", 0.325, "um"),
        ("0.325 \u03bcm", 0.325, "um"),  # Greek mu
        (" 325nm ", 0.325, "um"),
        ("1.2mm", 1200, "um"),
        ("30cm", 0.3, "m"),
        (".5 m", 0.5, "m"),
        ("1e-1m", 0.1, "m"),
    ],
)
def test_words_for_a_pixel_size(text: str, side: float, unit: str) -> None:
    size = parse_pixel_size(text)
    assert (size.height, size.width) == pytest.approx((side, side))
    assert size.unit == unit


@pytest.mark.parametrize(
    "text", ["", "um", "0.325", "0um", "-1um", "0,325um", "1.2.3um", "nanum", "1e400um", "1e-300nm", "2 miles", "1x2um"]
)
def test_words_that_are_no_pixel_size(text: str) -> None:
    with raises(SettingError, key="--pixel-size", named=[f"--pixel-size {text}", "0.325um"]):
        parse_pixel_size(text)


def test_the_density_of_photographs_is_no_size(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "x.bmp", "x.webp"):
        Image.fromarray(IMAGE).save(tmp_path / name, dpi=(1200, 1200))
        assert read_spatial_info(tmp_path / name) == SpatialInfo()


def test_a_turned_file(tmp_path: Path) -> None:
    """Its rows are the image's columns."""
    extratags = [(274, 3, 1, 6, True)]
    found = scale_of(tmp_path, resolution=(2540, 5080), resolutionunit="INCH", extratags=extratags)
    assert found.pixel == PixelSize(pytest.approx(10), pytest.approx(5), "um")


@pytest.mark.parametrize(
    ("tags", "place", "pixel"),
    [
        (
            [PIXEL_SCALE, TIE, keys(model=1, raster=1, projected=32633)],
            GeoTransform((10, 0, 499990, 0, -20, 4600040), 32633),
            PixelSize(20, 10, "m"),
        ),
        (
            [PIXEL_SCALE, TIE, keys(model=1, raster=2, projected=2154, unit=9001)],  # of pixels' middles
            GeoTransform((10, 0, 499985, 0, -20, 4600050), 2154),
            PixelSize(20, 10, "m"),
        ),
        (
            [MATRIX, keys(model=1, projected=25832, unit=9001)],
            GeoTransform((3, 4, 100, 4, -3, 200), 25832),
            PixelSize(5, 5, "m"),
        ),
        (
            [PIXEL_SCALE, TIE, keys(model=1, projected=2263, unit=9003)],
            GeoTransform((10, 0, 499990, 0, -20, 4600040), 2263),
            None,
        ),
        ([PIXEL_SCALE, TIE, keys(model=1, projected=2263)], GeoTransform((10, 0, 499990, 0, -20, 4600040), 2263), None),
        (
            [PIXEL_SCALE, TIE, keys(model=1, projected=3857, unit=9001)],
            GeoTransform((10, 0, 499990, 0, -20, 4600040), 3857),
            None,
        ),
        (
            [PIXEL_SCALE, TIE, keys(model=2, geographic=4326)],
            GeoTransform((10, 0, 499990, 0, -20, 4600040), 4326),
            None,
        ),
        (
            [PIXEL_SCALE, TIE, keys(model=1, projected=32767)],
            GeoTransform((10, 0, 499990, 0, -20, 4600040), None),
            None,
        ),
        ([PIXEL_SCALE, TIE], GeoTransform((10, 0, 499990, 0, -20, 4600040), None), None),
    ],
    ids=["utm", "points", "turned", "feet", "unit unknown", "web mercator", "degrees", "user's own", "no keys"],
)
def test_maps(tags: list[Any], place: GeoTransform, pixel: PixelSize | None, tmp_path: Path) -> None:
    """Metres only where they are true metres."""
    found = scale_of(tmp_path, extratags=tags, metadata=None)
    assert found.transform == place
    assert found.pixel == pixel
    tifffile.imwrite(tmp_path / "copy.tif", IMAGE, extratags=found.tags, metadata=None)
    assert read_spatial_info(tmp_path / "copy.tif") == found


def test_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(b"II*\0\x08\0\0\0")
    with raises(DataError, path="x.tif"):
        read_spatial_info(tmp_path / "x.tif")


def test_table(tmp_path: Path) -> None:
    """Two images, one of which tells: the other's row says nothing there."""
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 1
    names = ("background", "cell")
    found, image = separate(mask, names, "parts"), np.full((4, 6, 1), 7, np.uint8)
    pixels = [PixelSize(0.5, 0.25, "um"), None, PixelSize(10.0, 10.0, "m")]
    rows = [row for pixel in pixels for row in measure(Path("x.tif"), image, found, names, pixel)]
    micro, plain, geo = rows
    assert (micro["row"], micro["column"], micro["area_px"], micro["mean_0"]) == (1.5, 3.0, 6, 7.0)
    assert (micro["row_um"], micro["column_um"], micro["area_um2"]) == (1.0, 0.875, 0.75)
    assert micro["perimeter_um"] == ""  # pixels are not square
    assert (geo["row_m"], geo["column_m"], geo["area_m2"]) == (20.0, 35.0, 600.0)
    assert geo["perimeter_m"] == 10 * float(geo["perimeter_px"])
    assert "area_um2" not in plain
    write_table(tmp_path / "all.csv", rows, 1, pixels)
    head, first, second, third = (line.split(",") for line in (tmp_path / "all.csv").read_text().splitlines())
    place = head.index("area_um2")
    assert head[place : place + 4] == ["area_um2", "perimeter_um", "row_um", "column_um"]
    assert head[place + 4 : place + 8] == ["area_m2", "perimeter_m", "row_m", "column_m"]
    assert first[place] == "0.75"
    assert second[place : place + 8] == [""] * 8
    assert third[place + 4] == "600.0"
    write_table(tmp_path / "none.csv", rows[1:2], 1, [None])
    assert "_um" not in (tmp_path / "none.csv").read_text()


def test_summary_of_classes() -> None:
    """A row for each class of objects; invalid pixels count in neither density nor share."""
    names = ("background", "a", "b", "contour")
    rows = [{"class": "a", "area_px": 6}, {"class": "a", "area_px": 4}]
    first, second = summarize(Path("x.tif"), rows, names, 100, PixelSize(0.5, 2.0, "um"))
    assert first == {
        "file": "x.tif",
        "class": "a",
        "count": 2,
        "mean_area_px": 5.0,
        "density_per_px2": 0.02,
        "mean_area_um2": 5.0,
        "density_per_mm2": 20000.0,
        "foreground_share": 0.1,
    }
    assert (second["class"], second["count"], second["mean_area_um2"], second["foreground_share"]) == ("b", 0, "", 0.0)
    invalid, _b = summarize(Path("x.tif"), [], names, 0, None)
    assert (invalid["density_per_px2"], invalid["foreground_share"]) == (0.0, 0.0)


def test_measures_of_tiny_and_large() -> None:
    """One pixel, a line, and a middle beyond the four digits of old."""
    mask = np.zeros((4, 12000), np.uint8)
    mask[1, 11111], mask[3, 5:9] = 1, 1
    rows = measure(
        Path("x"),
        np.zeros((4, 12000, 3), np.uint8),
        separate(mask, ("background", "cell"), "parts"),
        ("background", "cell"),
        None,
    )
    assert [row["column"] for row in rows] == [11111.0, 6.5]
    assert [row["left"] for row in rows] == [11111, 5]
    assert all(np.isfinite(value) for row in rows for value in row.values() if not isinstance(value, str))
