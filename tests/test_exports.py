"""Outlines hold exactly the pixels of objects; COCO files give them back; GeoJSON lies where the image does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from ubend.portable.object_files import (
    describe_image,
    describe_instances,
    describe_panoptic,
    list_categories,
    trace,
    write_coco,
    write_geojson,
    write_panoptic,
)
from ubend.portable.objects import Objects, separate
from ubend.portable.pixel_size import GeoTransform

KINDS = ("background", "a", "b", "contour")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
SMALL = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2))


def read(*rows: str) -> NDArray[np.uint8]:
    return np.array([[int(c) for c in row.replace(".", "0")] for row in rows], np.uint8)


HAND_MADE = {
    "touching": read("1122", "1122", "...."),
    "ring": read(".....", ".111.", ".1.1.", ".111.", "....."),
    "ring in the corner": read("1111", "1.11", "1111"),
    "at the border": read("11.2", "1..2"),
    "one pixel": read("...", ".1.", "..."),
    "one pixel alone": read("1"),
    "empty": read("...", "..."),
    "across a corner": read("1..", ".1.", "..1"),
    "hole that meets the rim": read("1111", "1.11", "11.1", "111."),
    "whole image": read("111", "111"),
    "a in b": read("22222", "2...2", "2.1.2", "2...2", "22222"),
}


@pytest.fixture(params=HAND_MADE)
def found(request: pytest.FixtureRequest) -> Objects:
    return separate(HAND_MADE[request.param], KINDS, "parts")


def dump(place: Path, found: Objects) -> COCO:
    """Written, and read by pycocotools."""
    entries = describe_instances(found, trace(found.ids), KINDS)
    image = describe_image(4, Path("some/cell.png"), (found.ids.shape[0], found.ids.shape[1]))
    numbered = [{"id": n, "image_id": 5} | entry for n, entry in enumerate(entries, 1)]
    write_coco(place / "coco.json", [image], numbered, KINDS)
    return COCO(place / "coco.json")


def test_outlines(found: Objects) -> None:
    for number, outline in enumerate(trace(found.ids), 1):
        refuse_wrong_outline(outline, found.ids == number)


def refuse_wrong_outline(outline: Any, there: NDArray[np.bool_]) -> None:
    assert outline.is_valid
    assert outline.area == there.sum()
    middles = shapely.points([(x + 0.5, y + 0.5) for y, x in np.ndindex(*there.shape)])
    np.testing.assert_array_equal(shapely.contains(outline, middles).reshape(there.shape), there)


@given(SMALL)
def test_outlines_of_anything(mask: NDArray[np.uint8]) -> None:
    found = separate(mask, KINDS, "parts")
    for number, outline in enumerate(trace(found.ids), 1):
        refuse_wrong_outline(outline, found.ids == number)


def test_holes() -> None:
    (ring,) = trace(separate(HAND_MADE["ring"], KINDS, "parts").ids)
    assert len(ring.interiors) == 1
    assert len(ring.exterior.coords) == 5  # corners alone, the first one twice
    (chain,) = trace(separate(HAND_MADE["across a corner"], KINDS, "parts").ids)
    assert len(chain.geoms) == 3


def test_coco(found: Objects, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loads, and gives back each object's pixels, box and area."""
    coco = dump(tmp_path, found)
    capsys.readouterr()
    assert coco.imgs[5]["file_name"] == "cell.png"
    assert [kind["name"] for kind in coco.loadCats(coco.getCatIds())] == ["a", "b"]
    assert len(coco.anns) == len(found.classes)
    for number, entry in coco.anns.items():
        there = found.ids == number
        np.testing.assert_array_equal(coco.annToMask(entry), there)
        rows, columns = np.nonzero(there)
        assert entry["area"] == there.sum()
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert entry["bbox"] == box
        assert entry["iscrowd"] == 0
        assert entry["category_id"] == found.classes[number - 1]
        assert isinstance(entry["segmentation"], dict) == any(
            len(part.interiors)
            for part in getattr(trace(found.ids)[number - 1], "geoms", [trace(found.ids)[number - 1]])
        ), "polygons where they can, run lengths where they cannot"


@given(mask=SMALL)
def test_coco_of_anything(mask: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> None:
    found = separate(mask, KINDS, "parts")
    coco = dump(tmp_path_factory.mktemp("coco"), found)
    for number, entry in coco.anns.items():
        np.testing.assert_array_equal(coco.annToMask(entry), found.ids == number)


def test_panoptic(found: Objects, tmp_path: Path) -> None:
    write_panoptic(tmp_path / "p.png", found.ids)
    with Image.open(tmp_path / "p.png") as image:
        assert image.mode == "RGB"
        red, green, blue = np.moveaxis(np.asarray(image).astype(np.int64), 2, 0)
    np.testing.assert_array_equal(red + 256 * green + 65536 * blue, found.ids)
    segments = describe_panoptic(found, KINDS)
    assert [segment["id"] for segment in segments] == list(range(1, len(found.classes) + 1))
    for segment in segments:
        assert segment["area"] == (found.ids == segment["id"]).sum()
        assert KINDS[found.classes[segment["id"] - 1]] == list_categories(KINDS)[segment["category_id"] - 1]["name"]


def test_panoptic_of_many(tmp_path: Path) -> None:
    ids = np.array([[0, 255, 256, 65535, 65536, 70000, 2**24 - 1]], np.uint32)
    write_panoptic(tmp_path / "p.png", ids)
    pixels = np.asarray(Image.open(tmp_path / "p.png")).astype(np.int64)
    np.testing.assert_array_equal(pixels @ [1, 256, 65536], ids)


def test_geojson_in_pixels(found: Objects, tmp_path: Path) -> None:
    write_geojson(tmp_path / "x.geojson", trace(found.ids), [{"class": KINDS[i]} for i in found.classes], None)
    told = json.loads((tmp_path / "x.geojson").read_text(encoding="utf-8"))
    assert told["type"] == "FeatureCollection"
    assert "crs" not in told
    assert [feature["id"] for feature in told["features"]] == list(range(1, len(found.classes) + 1))
    for feature in told["features"]:
        shape = shapely.geometry.shape(feature["geometry"])
        refuse_wrong_outline(shape, found.ids == feature["id"])
        assert feature["properties"] == {"class": KINDS[found.classes[feature["id"] - 1]]}
        for part in getattr(shape, "geoms", [shape]):
            assert part.exterior.is_ccw
            assert not any(hole.is_ccw for hole in part.interiors)


@pytest.mark.parametrize(
    ("place", "corner"),
    [
        (GeoTransform((10.0, 0.0, 500000.0, 0.0, -10.0, 4600000.0), 32633), (500010.0, 4599990.0)),
        (GeoTransform((3.0, 4.0, 100.0, 4.0, -3.0, 200.0), None), (107.0, 201.0)),  # turned
    ],
)
def test_geojson_on_the_map(place: GeoTransform, corner: tuple[float, float], tmp_path: Path) -> None:
    """Column 1, row 1 is where the file says; the ring keeps its hole and goes against the clock; north is up."""
    found = separate(HAND_MADE["ring"], KINDS, "parts")
    write_geojson(tmp_path / "x.geojson", trace(found.ids), [{}], place)
    told = json.loads((tmp_path / "x.geojson").read_text(encoding="utf-8"))
    shape = shapely.geometry.shape(told["features"][0]["geometry"])
    a, b, _c, d, e, _f = place.matrix
    assert shape.is_valid
    assert shape.area == pytest.approx(8 * abs(a * e - b * d))
    assert corner in shape.exterior.coords
    assert shape.exterior.is_ccw
    assert ("crs" in told) == (place.epsg is not None)
    if place.epsg:
        assert told["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
