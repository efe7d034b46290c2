"""TIFF of every kind: what was written is what is read, and what the header tells; stacks are refused."""

import io
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from support.rasters import DEEP, GREY, RGB, SMOOTH, check, turned
from support.refusal import raises
from ubend.core.errors import DataError
from ubend.io.images import read_image
from ubend.portable.decode import read_header, read_raster
from ubend.portable.row_windows import TiffRowReader

DEEP_RGB = RGB.astype(np.uint16) * 257
BANDS = np.random.default_rng(3).integers(0, 65_536, (21, 34, 5)).astype(np.uint16)
BIT = np.asarray(GREY > 127)
SHOWN = (255 * BIT).astype(np.uint8)[..., None]
COLORMAP = np.random.default_rng(4).integers(0, 256, (3, 256)).astype(np.uint16) * 257
GREY_SAMPLES = {"photometric": "minisblack", "planarconfig": "contig"}
PLANES = {"photometric": "minisblack", "planarconfig": "separate"}

# name: what is written, how, what is to be read
KINDS: dict[str, tuple[NDArray[Any], dict[str, Any], NDArray[Any]]] = {
    "grey8": (GREY, {}, GREY[..., None]),
    "rgb8": (RGB, {"photometric": "rgb"}, RGB),
    "planes8": (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
    "grey16": (DEEP, {}, DEEP[..., None]),
    "rgb16": (DEEP_RGB, {"photometric": "rgb"}, DEEP_RGB),
    "planes16": (DEEP_RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, DEEP_RGB),
    "float": (GREY / np.float32(7) - 3, {}, (GREY / np.float32(7) - 3)[..., None]),
    "double": (GREY / 8, {}, (GREY / 8)[..., None].astype(np.float32)),
    "half": (GREY.astype(np.float16), {}, GREY[..., None].astype(np.float32)),
    "signed": (GREY.astype(np.int16) - 100, {}, (GREY.astype(np.float32) - 100)[..., None]),
    "long": (GREY.astype(np.uint32) * 257, {}, (GREY.astype(np.float32) * 257)[..., None]),
    "bits": (BIT, {"photometric": "minisblack"}, SHOWN),
    "bits, by tifffile": (BIT, {}, SHOWN),
    "bits, black is 1": (BIT, {"photometric": "miniswhite", "metadata": None}, 255 - SHOWN),
    "4 bits": (GREY // 16, {"bitspersample": 4}, (GREY // 16 * 17)[..., None]),
    "12 bits": (DEEP // 16, {"bitspersample": 12}, (DEEP // 16)[..., None]),
    "white is 0": (GREY, {"photometric": "miniswhite"}, 255 - GREY[..., None]),
    "white is 0, 16 bits": (DEEP, {"photometric": "miniswhite"}, 65_535 - DEEP[..., None]),
    "palette": (GREY, {"photometric": "palette", "colormap": COLORMAP}, (COLORMAP >> 8).T[GREY].astype(np.uint8)),
    "two bands": (BANDS[..., :2], GREY_SAMPLES, BANDS[..., :2]),
    "four bands": (BANDS[..., :4], GREY_SAMPLES, BANDS[..., :4]),
    "five bands": (BANDS, GREY_SAMPLES, BANDS),
    "five planes": (BANDS.transpose(2, 0, 1), PLANES, BANDS),
    "colour and two more": (BANDS, {"photometric": "rgb", "planarconfig": "contig"}, BANDS),
    "ImageJ channels": (BANDS.transpose(2, 0, 1), {"imagej": True, "metadata": {"axes": "CYX"}}, BANDS),
    "OME channels": (BANDS.transpose(2, 0, 1), {"ome": True, "metadata": {"axes": "CYX"}}, BANDS),
    "OME grey": (DEEP, {"ome": True}, DEEP[..., None]),
    "ImageJ colour": (RGB, {"imagej": True}, RGB),
    "ImageJ, inverting table": (GREY, {"imagej": True, "photometric": "miniswhite"}, GREY[..., None]),
    "ImageJ, inverting table, 16 bits": (DEEP, {"imagej": True, "photometric": "miniswhite"}, DEEP[..., None]),
    "named axes": (BANDS, {"photometric": "minisblack", "metadata": {"axes": "YXC"}}, BANDS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path: Path, kind: str) -> None:
    stored, options, want = KINDS[kind]
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    check(tmp_path / "a.tif", want)


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("white", [False, True])
def test_few_bits(tmp_path: Path, bits: int, white: bool) -> None:
    """Stretched to 0..255; packed here, since tifffile writes few of them."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 13)).astype(np.uint8)
    rows = np.unpackbits(values[:, :, None], axis=2)[:, :, 8 - bits :].reshape(5, -1)
    tifffile.imwrite(tmp_path / "a.tif", np.packbits(rows, axis=1), metadata=None, photometric=int(not white))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        tags = file.pages[0].tags
        tags["ImageWidth"].overwrite(13)
        tags["BitsPerSample"].overwrite(bits)
    shown = np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)[..., None]
    check(tmp_path / "a.tif", 255 - shown if white else shown)


@pytest.mark.parametrize("name", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_alpha(tmp_path: Path, name: str, count: int, dtype: Any) -> None:
    """Dropped, unless it is counted."""
    stored = np.random.default_rng(count).integers(0, 256, (9, 14, count + 1)).astype(dtype)
    kind = "rgb" if count == 3 else "minisblack"
    extra = [name] if count < 5 else [0] * (count - 1) + [name]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=kind, planarconfig="contig", extrasamples=extra)
    check(tmp_path / "a.tif", stored[:, :, :-1], alpha=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", count + 1), stored)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "packbits", "jpeg2000", "lzma", "png"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_compressions(tmp_path: Path, compression: str, tile: tuple[int, int] | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression=compression, tile=tile)
    check(tmp_path / "a.tif", RGB)
    tifffile.imwrite(tmp_path / "b.tif", DEEP, compression=compression if compression != "png" else "zstd", tile=tile)
    check(tmp_path / "b.tif", DEEP[..., None])


def test_jpeg_in_tiff(tmp_path: Path) -> None:
    """As Pillow's libtiff decodes it; the values are only about those that were saved."""
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH, photometric="rgb", compression="jpeg")
    with Image.open(tmp_path / "a.tif") as file:
        want = np.asarray(file.convert("RGB"))
    check(tmp_path / "a.tif", want, 2)
    assert read_raster(tmp_path / "a.tif").lossy


@settings(max_examples=150)
@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 17)),
    st.sampled_from(["uint8", "uint16", "float32", "int16", "float64"]),
    st.booleans(),
    st.sampled_from([None, "lzw", "zlib", "zstd"]),
    st.sampled_from("<>"),
    st.sampled_from([None, (16, 16), (32, 16)]),
    st.booleans(),
)
def test_bands(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    dtype: str,
    planes: bool,
    compression: str | None,
    byteorder: Any,
    tile: tuple[int, int] | None,
    big: bool,
) -> None:
    pixels = np.random.default_rng(shape).integers(0, 256, shape).astype(dtype)
    path = tmp_path_factory.getbasetemp() / "bands.tif"
    stored = pixels[..., 0] if shape[2] == 1 else np.moveaxis(pixels, 2, 0) if planes else pixels
    options = {} if shape[2] == 1 else PLANES if planes else GREY_SAMPLES
    tifffile.imwrite(path, stored, compression=compression, byteorder=byteorder, tile=tile, bigtiff=big, **options)
    check(path, pixels if dtype in ("uint8", "uint16") else pixels.astype(np.float32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    tag = [(0x0112, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "grey.tif", DEEP, extratags=tag)
    check(tmp_path / "grey.tif", turned(DEEP, orientation), turned=orientation != 1)
    tifffile.imwrite(tmp_path / "bands.tif", BANDS.transpose(2, 0, 1), extratags=tag, **PLANES)
    want = np.concatenate([turned(BANDS[..., i], orientation) for i in range(5)], axis=2)
    check(tmp_path / "bands.tif", want, turned=orientation != 1)


@pytest.mark.parametrize("kind", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_written_by_pillow(tmp_path: Path, kind: str) -> None:
    if kind == "I;16":
        image = Image.fromarray(DEEP)
    else:
        image = Image.fromarray(SMOOTH).convert("L" if kind == "F" else kind).convert(kind)
    image.save(tmp_path / "a.tif", compression="raw" if kind in ("I;16", "F") else "tiff_lzw")
    pixels = np.asarray(image if kind in ("I;16", "F") else image.convert("L" if kind in "1L" else "RGB"))
    want = pixels if pixels.ndim == 3 else pixels[:, :, None]
    check(tmp_path / "a.tif", want, 1 if kind == "CMYK" else 0, alpha=kind == "RGBA", cmyk=kind == "CMYK")


def write_pages(path: Path, pages: list[NDArray[Any]], **options: Any) -> None:
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            writer.write(page, metadata=None, **options)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"photometric": "minisblack"}, "data.channels"),
        ({"imagej": True, "metadata": {"axes": "ZYX"}}, "frames"),
        ({"imagej": True, "metadata": {"axes": "TYX"}}, "frames"),
        ({"ome": True, "metadata": {"axes": "ZYX"}}, "frames"),
    ],
)
def test_stacks_are_refused(tmp_path: Path, options: dict[str, Any], key: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BANDS.transpose(2, 0, 1), **options)
    for read in (read_image, read_header):
        with raises(DataError, path=tmp_path / "a.tif", key=key, named=["5"]):
            read(tmp_path / "a.tif")


def test_stacks_are_described_in_words(tmp_path: Path) -> None:
    """Without tifffile's letters, and with --channels only where no model already fixes the channels."""
    tifffile.imwrite(tmp_path / "color.tif", np.zeros((4, 21, 34, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(tmp_path / "grey.tif", np.zeros((5, 21, 34), np.uint8))
    with raises(DataError, key="frames", named=["a stack (4 images);"]):
        read_header(tmp_path / "color.tif")
    with raises(DataError, key="data.channels", named=["a stack of 5 images", "--channels 5"]):
        read_header(tmp_path / "grey.tif")
    with raises(DataError, key="data.channels") as caught:
        read_header(tmp_path / "grey.tif", 3)
    assert "--channels" not in str(caught.value)


def test_pages_are_bands_where_the_user_says_so(tmp_path: Path) -> None:
    """Arrays (C, H, W) and (H, W, C), written by tifffile without a word what they are; and plain pages."""
    tifffile.imwrite(tmp_path / "chw.tif", BANDS.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "hwc.tif", BANDS)
    write_pages(tmp_path / "pages.tif", list(BANDS.transpose(2, 0, 1)))
    for name in ("chw.tif", "hwc.tif", "pages.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name, 5), BANDS)
        header = read_header(tmp_path / name, 5)
        assert (*header.size_hw, header.channels, header.dtype) == (21, 34, 5, "uint16")
        for other in (None, 1, 3, 4):
            with raises(DataError, key="data.channels"):
                read_image(tmp_path / name, other)


def write_ome(folder: Path, planes: list[NDArray[Any]], held: list[list[int]], others: bool = True) -> list[Path]:
    """An image of several channels, whose planes lie in several files, as microscopes write them.

    Args:
        held: numbers of the planes in each file.
        others: whether the text says where the planes of other files are.
    """
    names = [f"x_{number}.ome.tif" for number in range(len(held))]
    ids = [str(uuid.UUID(int=number + 1)) for number in range(len(held))]
    height, width = planes[0].shape
    for number, own in enumerate(held):
        data = "".join(
            f'<TiffData FirstC="{plane}" IFD="{ifd}" PlaneCount="1">'
            f'<UUID FileName="{names[file]}">urn:uuid:{ids[file]}</UUID></TiffData>'
            for file, some in enumerate(held)
            for ifd, plane in enumerate(some)
            if others or file == number
        )
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{ids[number]}">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{width}" '
            f'SizeY="{height}" SizeC="{len(planes)}" SizeZ="1" SizeT="1">{data}</Pixels></Image></OME>'
        )
        with tifffile.TiffWriter(folder / names[number]) as writer:
            for ifd, plane in enumerate(own):
                writer.write(planes[plane], description="" if ifd else xml, metadata=None, photometric="minisblack")
    return [folder / name for name in names]


@pytest.mark.parametrize("absent", [False, True])
def test_a_channel_in_a_file_of_its_own(tmp_path: Path, absent: bool) -> None:
    """A file is the planes that it holds, whether the others lie beside it or not."""
    planes = list(BANDS.transpose(2, 0, 1)[:3])
    files = write_ome(tmp_path, planes, [[0], [1], [2]])
    if absent:
        files.pop().unlink()
    for file, plane in zip(files, planes, strict=False):
        check(file, plane[..., None])


def test_planes_that_are_nowhere(tmp_path: Path) -> None:
    """Not made up of zeros."""
    planes = list(BANDS.transpose(2, 0, 1)[:3])
    (file,) = write_ome(tmp_path, planes, [[0, 1]], others=False)
    for read in (read_image, read_header):
        with raises(DataError, path=file, key="frames", named=["1"]):
            read(file)
    files = write_ome(tmp_path, planes, [[0, 1], [2]])
    with raises(DataError, path=files[0], key="data.channels", named=["--channels 2"]):
        read_image(files[0])
    np.testing.assert_array_equal(read_image(files[0], 2), BANDS[..., :2])


def test_the_slide_of_several_images(tmp_path: Path) -> None:
    """An SVS file: the slide, a thumbnail, a smaller copy, the label and an overview."""
    slide = np.random.default_rng(6).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
        options = {"photometric": "rgb", "metadata": None}
        writer.write(slide, tile=(32, 32), description="Aperio Image Library v11\n128x96 |AppMag = 20", **options)
        writer.write(slide[::3, ::3], description="Aperio Image Library v11\nthumbnail", **options)
        writer.write(slide[::2, ::2], tile=(32, 32), description="Aperio Image Library v11\nlevel", **options)
        writer.write(RGB, description="Aperio Image Library v11\nlabel 34x21", subfiletype=1, **options)
        writer.write(RGB, description="Aperio Image Library v11\nmacro 34x21", subfiletype=9, **options)
    check(tmp_path / "a.svs", slide)
    with TiffRowReader(tmp_path / "a.svs") as windows:
        np.testing.assert_array_equal(windows.read(10, 50), slide[10:50])


def test_the_limit_of_what_is_decoded_whole(tmp_path: Path) -> None:
    """A small file of a huge empty image; by rows it can be read."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        tiles = (np.zeros((4096, 4096), np.uint8) for _ in range(16))
        writer.write(tiles, shape=(16_384, 16_384), dtype="uint8", tile=(4096, 4096), compression="zlib")
    assert (tmp_path / "a.tif").stat().st_size < 10**6
    for read in (read_image, read_raster):
        with raises(DataError, path="a.tif", named=["268 megapixels"]):
            read(tmp_path / "a.tif")
    with TiffRowReader(tmp_path / "a.tif") as windows:
        assert windows.read(16_000, 16_001).shape == (1, 16_384, 1)
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((32, 32)), tile=(32, 32), compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "b.tif", mode="r+b") as file:
        for name in ("TileWidth", "TileLength"):
            file.pages[0].tags[name].overwrite(60_000)
    with raises(DataError, path="b.tif"):
        read_image(tmp_path / "b.tif")


def test_smaller_copies_are_passed_over(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(DEEP, subifds=1)
        writer.write(DEEP[::2, ::2], subfiletype=1)
        writer.write(DEEP[::4, ::4], subfiletype=1)
    check(tmp_path / "a.tif", DEEP[..., None])


@pytest.mark.parametrize(
    ("pixels", "options", "key", "named"),
    [
        (GREY.astype(np.complex64), {}, "photometric", ["complex64"]),
        (RGB, {"photometric": "cielab", "planarconfig": "contig"}, "photometric", ["CIELAB"]),
        (np.zeros((3, 21, 34, 3), np.uint8), {"photometric": "rgb"}, "frames", []),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, pixels: Any, options: dict[str, Any], key: str, named: list[str]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    for read in (read_image, read_header):
        with raises(DataError, path=tmp_path / "a.tif", key=key, named=named):
            read(tmp_path / "a.tif")


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_pages(tmp_path / "a.tif", [DEEP, DEEP[:9]])
    for read in (read_image, read_header):
        with raises(DataError, path="a.tif", key="frames", named=["2"]):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values(tmp_path: Path, value: float) -> None:
    pixels = np.zeros((8, 9), np.float32)
    pixels[2, 3:6] = value
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with raises(DataError, path="a.tif", key="value", named=["3"]):
        read_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", np.full((2, 2), 1e300))
    with raises(DataError, path="b.tif", key="value", named=["4"]):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "zlib", "tile": (16, 16)}, PLANES])
def test_cut_anywhere(tmp_path: Path, options: dict[str, Any]) -> None:
    """tifffile itself would fill what is missing with zeros."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, BANDS.transpose(2, 0, 1) if options is PLANES else DEEP, **options)
    whole = buffer.getvalue()
    for length in range(5, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "a.tif").write_bytes(whole[:length])
        with raises(DataError, path="a.tif"):
            read_image(tmp_path / "a.tif")
