"""TIFF by rows: the same pixels as read whole, in any layout; damage is reported; masks are written as they come."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from support.geotiff import GEO
from support.refusal import raises
from ubend.core.errors import DataError
from ubend.io.images import read_image
from ubend.labels.class_table import make_label_map
from ubend.portable.row_windows import TiffRowReader, may_be_tiff, write_tiff_mask

KINDS = {
    "tiled": {"tile": (64, 48), "compression": "zlib"},
    "jpeg": {"tile": (64, 64), "compression": "jpeg"},
    "strips": {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
    "one row each": {"rowsperstrip": 1},
    "mapped": {},
    "planes": {"planarconfig": "separate", "tile": (64, 64), "compression": "zlib"},
    "planes of strips": {"planarconfig": "separate", "rowsperstrip": 7, "compression": "zlib"},
    "planes of oblong tiles": {"planarconfig": "separate", "tile": (32, 96), "compression": "zlib"},
    "mapped planes": {"planarconfig": "separate"},
    "big": {"bigtiff": True, "byteorder": ">", "tile": (64, 64)},
    "big endian": {"byteorder": ">"},
}


def pixels(channels: int = 3, dtype: str = "uint8") -> np.ndarray:
    y, x, c = np.mgrid[:200, :171, :channels]
    return ((y * 3 + x * 2 + c * 40) % 251).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_rows_are_those_of_the_whole(tmp_path: Path, kind: str, dtype: str) -> None:
    if kind == "jpeg" and dtype != "uint8":
        pytest.skip("JPEG holds 8 bits")
    path, image = tmp_path / "a.tif", pixels(3, dtype)
    stored = np.moveaxis(image, 2, 0) if "planes" in kind else image
    tifffile.imwrite(path, stored, photometric="rgb", metadata=None, **KINDS[kind])
    whole = read_image(path)
    with TiffRowReader(path) as windows:
        assert windows.is_readable
        assert windows.size_hw == (200, 171)
        assert windows.georeference == []
        for top, bottom in [(0, 200), (0, 1), (63, 65), (70, 71), (120, 200), (199, 200)]:
            rows = windows.read(top, bottom)
            assert rows.dtype == whole.dtype
            np.testing.assert_array_equal(rows, whole[top:bottom])


def test_channels_as_requested(tmp_path: Path) -> None:
    """Grey of colour, colour of grey, alpha dropped, white that is 0, bits."""
    tifffile.imwrite(tmp_path / "a.tif", pixels(4), photometric="rgb", extrasamples=["unassalpha"], rowsperstrip=9)
    tifffile.imwrite(tmp_path / "g.tif", pixels(1)[:, :, 0], photometric="miniswhite", tile=(64, 64))
    tifffile.imwrite(tmp_path / "b.tif", pixels(1)[:, :, 0] > 99, photometric="minisblack", rowsperstrip=9)
    for name in "agb":
        path = tmp_path / f"{name}.tif"
        for channels in (1, 3):
            with TiffRowReader(path, channels) as windows:
                np.testing.assert_array_equal(windows.read(60, 140), read_image(path, channels)[60:140])


def test_what_cannot_be_read_by_rows(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", pixels(1)[:, :, 0], photometric="palette", colormap=np.zeros((3, 256), "u2"))
    tifffile.imwrite(tmp_path / "t.tif", pixels(), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    tifffile.imwrite(tmp_path / "s.tif", np.moveaxis(pixels(5), 2, 0), photometric="minisblack")
    for name in ("p.tif", "t.tif", "s.tif"):
        with TiffRowReader(tmp_path / name, 5) as windows:
            assert not windows.is_readable
    (tmp_path / "x.tif").write_bytes(b"no")
    assert not may_be_tiff(tmp_path / "x.tif")
    assert not may_be_tiff(tmp_path / "none.tif")
    assert may_be_tiff(tmp_path / "p.tif")
    for name in ("x.tif", "none.tif"):
        with raises(DataError, path=tmp_path / name):
            TiffRowReader(tmp_path / name)


def test_a_damaged_tile(tmp_path: Path) -> None:
    """One line with its row; rows that do not touch it are read."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(), photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        place, size = file.pages.first.dataoffsets[4], file.pages.first.databytecounts[4]
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\x55" * size
    path.write_bytes(data)
    with TiffRowReader(path) as windows:
        assert windows.read(0, 64).shape == (64, 171, 3)
        with raises(DataError, path="a.tif", named=["64"]) as caught:
            windows.read(60, 70)
        assert "\n" not in str(caught.value)
        assert windows.read(128, 200).shape == (72, 171, 3)


@pytest.mark.parametrize("heights", [[200], [1] * 200, [100, 27, 73], [199, 1]])
def test_masks_as_they_come(tmp_path: Path, heights: list[int]) -> None:
    """The same file however the rows are cut; indices, colours and georeference are there."""
    labels = make_label_map([0, 1, 2])
    for width in (171, 256, 300):
        mask = np.random.default_rng(0).integers(0, 3, (200, width), np.uint8)
        strips = (part for part in np.split(mask, np.cumsum(heights)[:-1]))
        write_tiff_mask(tmp_path / "m.tif", (200, width), strips, labels.colors, GEO)
        with tifffile.TiffFile(tmp_path / "m.tif") as file:
            page = file.pages.first
            np.testing.assert_array_equal(page.asarray(), mask)
            assert page.is_tiled
            assert page.compression == 8
            for code, _dtype, _count, value, _once in GEO:
                found = page.tags[code].value
                assert np.all(np.asarray(found) == np.asarray(value if len(value) > 1 else value[0])), code
            np.testing.assert_array_equal(np.asarray(page.colormap).T[:3] >> 8, labels.colors)
        with TiffRowReader(tmp_path / "m.tif") as windows:
            assert [tag[0] for tag in windows.georeference] == [tag[0] for tag in GEO]
            np.testing.assert_array_equal(windows.read_stored(10, 150)[:, :, 0], mask[10:150])
