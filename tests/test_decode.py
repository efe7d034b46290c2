"""Every kind of image file against an independent reader or the array it was made of; header and pixels agree."""

import io
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from support.rasters import DEEP, GREY, RGB, SMOOTH, check, encode_png, turned, write_huge_png
from support.refusal import raises
from support.tally import Tally
from ubend.core.errors import DataError
from ubend.io.images import load_image, read_image
from ubend.portable.decode import read_header, read_raster


def test_modes_of_png(tmp_path: Path) -> None:
    alpha = Image.fromarray(RGB[:, :, 1])
    indexed = Image.fromarray(GREY // 64)
    indexed.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    grey, color = Image.fromarray(GREY), Image.fromarray(RGB)
    for name, drawing, want, options in (
        ("bits", Image.fromarray(GREY > 127), 255 * (GREY > 127).astype(np.uint8)[:, :, None], {}),
        ("grey", grey, GREY[:, :, None], {}),
        ("palette", indexed, palette[GREY // 64], {}),
        ("rgb", color, RGB, {}),
        ("deep", Image.fromarray(DEEP), DEEP[:, :, None], {}),
        ("grey-alpha", Image.merge("LA", [grey, alpha]), GREY[:, :, None], {}),
        ("rgba", Image.merge("RGBA", [*color.split(), alpha]), RGB, {}),
        ("clear-palette", indexed, palette[GREY // 64], {"transparency": 1}),
        ("clear-palette-2", indexed, palette[GREY // 64], {"transparency": b"\x07\xff\x03"}),
        ("clear-grey", grey, GREY[:, :, None], {"transparency": 7}),
        ("clear-rgb", color, RGB, {"transparency": (1, 2, 3)}),
    ):
        path = tmp_path / f"{name}.png"
        drawing.save(path, **options)
        with_alpha = bool(options) or name in ("grey-alpha", "rgba")
        image = check(path, want, alpha=with_alpha)
        if with_alpha:  # is a channel, if it is counted; Pillow is the reference
            count = image.shape[2] + 1
            reference = np.asarray(Image.open(path).convert("LA" if count == 2 else "RGBA"))
            np.testing.assert_array_equal(read_image(path, count), reference, err_msg=name)
            invalid = load_image(path).invalid
            np.testing.assert_array_equal(
                np.zeros(GREY.shape) if invalid is None else invalid, reference[:, :, -1] == 0
            )


@pytest.mark.parametrize(("color_type", "count"), [(0, 1), (4, 2), (2, 3), (6, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_depths_of_png(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], color_type: int, count: int, dtype: Any
) -> None:
    pixels = np.random.default_rng(count).integers(0, np.iinfo(dtype).max + 1, (9, 14, count)).astype(dtype)
    (tmp_path / "a.png").write_bytes(encode_png(pixels, color_type))
    alpha = count in (2, 4)
    check(tmp_path / "a.png", pixels[:, :, :-1] if alpha else pixels, alpha=alpha)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", count), pixels)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}, {"quality": 20}]
)
def test_jpeg_is_pillows(tmp_path: Path, options: dict[str, Any]) -> None:
    for name, image in (("rgb", Image.fromarray(SMOOTH)), ("grey", Image.fromarray(SMOOTH).convert("L"))):
        path = tmp_path / f"{name}.jpg"
        image.save(path, **options)
        want = np.asarray(Image.open(path))
        check(path, want if want.ndim == 3 else want[:, :, None])
        assert read_raster(path).lossy


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_into_a_place(tmp_path: Path, mode: str) -> None:
    """Only where shape and depth fit."""
    Image.fromarray(SMOOTH).convert(mode).save(tmp_path / "a.jpg")
    want = read_image(tmp_path / "a.jpg")
    place = np.zeros((2, *want.shape), np.uint8)
    image = read_image(tmp_path / "a.jpg", want.shape[2], place[1])
    assert np.may_share_memory(image, place)
    np.testing.assert_array_equal(place, [np.zeros_like(want), want])
    for other in (np.zeros(want.shape, np.uint16), np.zeros((*want.shape[:2], 4 - want.shape[2]), np.uint8), want[1:]):
        image = read_image(tmp_path / "a.jpg", want.shape[2], other)
        assert not np.may_share_memory(image, other)
        np.testing.assert_array_equal(image, want)


def test_jpeg_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plainest; Pillow is asked about all that might need turning, or is cut short before its pixels."""
    image, turned = Image.fromarray(SMOOTH), Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "plain.jpg", comment=b"of a comment")
    image.save(tmp_path / "turned.jpg", exif=turned)
    content = (tmp_path / "plain.jpg").read_bytes()
    (tmp_path / "short.jpg").write_bytes(content[:300])
    opened: list[str] = []
    monkeypatch.setattr(Image, "open", lambda file: opened.append("Pillow") or 1 / 0)
    assert read_header(tmp_path / "plain.jpg").size_hw == SMOOTH.shape[:2]
    assert read_raster(tmp_path / "plain.jpg").pixels.shape == SMOOTH.shape
    assert opened == []
    for name in ("turned", "short"):
        for read in (read_header, read_raster):
            with pytest.raises(DataError):
                read(tmp_path / f"{name}.jpg")
    assert len(opened) == 4


def test_a_too_large_jpeg_is_pillows_to_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SMOOTH.shape[0] * SMOOTH.shape[1] // 2 - 1)
    for read in (read_header, read_raster):
        with raises(DataError, path="a.jpg"):
            read(tmp_path / "a.jpg")


def test_printing_inks(tmp_path: Path) -> None:
    """CMYK as Pillow mixes it, from JPEG and from TIFF."""
    inks = Image.merge("CMYK", [*Image.fromarray(SMOOTH).split(), Image.fromarray(SMOOTH[:, :, 0] // 3)])
    for name, off in (("a.jpg", 0), ("a.tif", 1)):
        inks.save(tmp_path / name)
        check(tmp_path / name, np.asarray(Image.open(tmp_path / name).convert("RGB")), off, cmyk=True)


def test_ppm_and_pgm_keep_their_values(tmp_path: Path) -> None:
    """Pillow cuts 16-bit colours to 8 bits, and stretches values to the whole range of the type."""
    deep, classes = GREY.astype(np.uint16) * 200 + 7, GREY % 4
    height, width = GREY.shape
    files = {
        "color.ppm": (b"P6", 255, RGB),
        "grey.pgm": (b"P5", 255, GREY),
        "classes.pgm": (b"P5", 3, classes),
        "deep.pgm": (b"P5", 65535, deep),
        "deep.ppm": (b"P6 # a comment\n", 60000, np.dstack([deep, deep + 1, deep + 2])),
    }
    for name, (kind, largest, values) in files.items():
        pixels = values.astype(">u2" if largest > 255 else np.uint8).tobytes()
        (tmp_path / name).write_bytes(kind + f"\n# drawn\n{width} {height}\n{largest}\n".encode() + pixels)
        check(tmp_path / name, values if values.ndim == 3 else values[:, :, None])


def test_other_kinds_are_pillows(tmp_path: Path) -> None:
    color, grey = Image.fromarray(RGB), Image.fromarray(GREY)
    color.save(tmp_path / "a.bmp")
    grey.save(tmp_path / "grey.bmp")
    color.save(tmp_path / "lossless.webp", lossless=True)
    Image.fromarray(SMOOTH).save(tmp_path / "lossy.webp")
    check(tmp_path / "a.bmp", RGB)
    check(tmp_path / "grey.bmp", GREY[:, :, None])
    check(tmp_path / "lossless.webp", RGB)
    check(tmp_path / "lossy.webp", imagecodecs.webp_decode((tmp_path / "lossy.webp").read_bytes()))
    assert not read_raster(tmp_path / "lossless.webp").lossy
    assert read_raster(tmp_path / "lossy.webp").lossy


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.tif", "PNG")
    Image.fromarray(GREY).save(tmp_path / "a.png", "TIFF")
    for name in ("a.tif", "a.png"):
        check(tmp_path / name, GREY[:, :, None])


def test_a_photograph_with_a_preview(tmp_path: Path) -> None:
    """What telephones write: JPEG, a second image behind it."""
    first, second = Image.fromarray(SMOOTH), Image.fromarray(RGB)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "a.jpg") as file:
        assert getattr(file, "n_frames", 1) == 2
        want = np.asarray(file)
    check(tmp_path / "a.jpg", want)


@pytest.mark.parametrize(("kind", "options"), [("png", {"default_image": False}), ("webp", {"lossless": True})])
def test_animations_are_refused(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    frames = [Image.fromarray(np.roll(RGB, n, 0)) for n in range(3)]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], **options)
    for read in (read_image, read_header):
        with raises(DataError, key="frames", named=["3"]):
            read(tmp_path / f"a.{kind}")


# Orientation

WAYS = range(1, 9)


@pytest.mark.parametrize("orientation", WAYS)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "deep.png"])
def test_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = DEEP if kind.startswith("deep") else SMOOTH
    path = tmp_path / f"picture.{kind}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    check(path, turned(stored, orientation), 255 if kind == "jpg" else 0, turned=orientation != 1)
    if kind == "jpg":
        want = turned(np.asarray(Image.open(path)), orientation)
        np.testing.assert_array_equal(read_image(path), want)


@pytest.mark.parametrize("keyword", ["XML:com.adobe.xmp", "Comment"])
def test_orientation_in_the_texts_of_a_png(tmp_path: Path, keyword: str) -> None:
    """Adobe's programs write it as XMP; other texts say nothing."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt(keyword, '<rdf:Description tiff:Orientation="6"/>')
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=text)
    turns = keyword != "Comment"
    check(tmp_path / "a.png", turned(RGB, 6 if turns else 1), turned=turns)


def test_png_header_is_read_without_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_self: Any) -> None:
        raise AssertionError("the pixels were decoded")

    modes = {"L": 1, "P": 3, "RGB": 3, "RGBA": 3}
    for mode in modes:
        Image.fromarray(RGB).convert(mode).save(tmp_path / f"{mode}.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    for mode, channels in modes.items():
        header = read_header(tmp_path / f"{mode}.png")
        assert (*header.size_hw, header.channels) == (21, 34, channels)


# Damage


@pytest.mark.parametrize(
    "suffix", ["png", "palette.png", "deep.png", "jpg", "bmp", "ppm", "webp", "tif", "deep.tif", "zip.tif"]
)
@pytest.mark.parametrize("damage", ["empty", "text", "head", "half"])
@pytest.mark.parametrize("read", [read_image, read_header])
def test_damaged_files(tmp_path: Path, suffix: str, damage: str, read: Any) -> None:
    path = tmp_path / f"pólyp.{suffix}"
    deep = np.random.default_rng(1).integers(0, 60_000, (40, 50)).astype(np.uint16)
    if suffix.endswith(".tif"):
        tifffile.imwrite(path, deep, **({"compression": "zlib"} if suffix == "zip.tif" else {}))
    elif suffix == "deep.png":
        path.write_bytes(encode_png(np.dstack([deep] * 3), 2))
    else:
        image = Image.fromarray(RGB)
        (image.convert("P") if suffix == "palette.png" else image).save(path)
    whole = path.read_bytes()
    parts = {"empty": b"", "text": b"<html>\nno\n" * 99, "head": whole[:16], "half": whole[: len(whole) // 2]}
    path.write_bytes(parts[damage])
    if read is read_header and (damage == "half" or (suffix, damage) == ("ppm", "head")):
        return  # the header may be whole
    with pytest.raises(DataError) as caught:
        read(path)
    says = str(caught.value)
    assert says.startswith(f"{path}: ")
    assert "\n" not in says
    assert ("the file is empty" in says) == (damage == "empty")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_that_ends_early(tmp_path: Path, options: dict[str, Any]) -> None:
    """Wherever it is cut; the decoder itself would paint the rest grey. Its preview ends with the same mark."""
    preview, buffer = io.BytesIO(), io.BytesIO()
    Image.fromarray(RGB).save(preview, "JPEG")
    exif = Image.Exif()
    exif[0x010E] = preview.getvalue().decode("latin-1")
    Image.fromarray(SMOOTH).save(buffer, "JPEG", exif=exif, **options)
    whole = buffer.getvalue()
    path = tmp_path / "a.jpg"
    path.write_bytes(whole + b"\0" * 64)  # what follows the end means nothing
    want = read_image(path)
    for length in range(len(preview.getvalue()) + 700, len(whole), 97):
        path.write_bytes(whole[:length])
        with raises(DataError, path="a.jpg"):
            read_image(path)
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_image(path), want)


def test_missing_file(tmp_path: Path) -> None:
    for read in (read_image, read_header):
        for name in ("a.png", "a.tif"):
            with raises(DataError, path=tmp_path / name):
                read(tmp_path / name)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).save(buffer, kind)
    return buffer.getvalue()


WHOLE = {kind: encoded(kind) for kind in ("PNG", "JPEG", "BMP", "WEBP", "TIFF")}


@pytest.mark.understood(at_least=0.35)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_flipped_bits_are_one_line_or_an_image(
    tally: Tally, tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Of an image that is read all the same, the header agrees."""
    damaged = bytearray(WHOLE[kind])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / f"flipped.{kind.lower()}"
    path.write_bytes(damaged)
    found: list[Any] = []
    for read in (read_header, read_image):
        try:
            found.append(read(path))
        except DataError as error:
            found.append(error)
    tally.add(not any(isinstance(one, DataError) for one in found))
    for one in found:
        if isinstance(one, DataError):
            assert str(one).startswith(f"{path}: ")
            assert "\n" not in str(one)
            return
    assert (*found[0].size_hw, found[0].channels, found[0].dtype) == (*found[1].shape, found[1].dtype.name)


def test_reading_in_threads_leaves_the_warning_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filters belong to the process; here two readers overlap, and the first one in is the first out."""
    names = ("first.png", "second.png")
    for name in names:
        Image.fromarray(GREY).save(tmp_path / name)
    before, opened = list(warnings.filters), Image.open
    entered = {name: threading.Event() for name in names}
    may_go = {name: threading.Event() for name in names}
    reader = threading.local()

    def wait(file: Any) -> Any:
        entered[reader.name].set()
        may_go[reader.name].wait(20)
        return opened(file)

    def read(name: str) -> NDArray[Any]:
        reader.name = name
        return read_image(tmp_path / name)

    monkeypatch.setattr(Image, "open", wait)
    with ThreadPoolExecutor(2) as pool:
        jobs = []
        for name in names:
            jobs.append(pool.submit(read, name))
            assert entered[name].wait(20)
        for name, job in zip(names, jobs, strict=True):
            may_go[name].set()
            assert job.result(20).shape == (*GREY.shape, 1)
    assert list(warnings.filters) == before


@pytest.mark.parametrize("read", [read_image, read_header])
def test_the_limit_is_told_in_our_words(read: Callable[[Path], object], tmp_path: Path) -> None:
    """Of a PNG whose header says 20000 x 20000 px: how large it is, how large it may be."""
    write_huge_png(tmp_path / "a.png")
    with raises(DataError, path="a.png", key="size", named=["400 megapixels", "179 megapixels", "TIFF"]) as caught:
        read(tmp_path / "a.png")
    assert "bomb" not in str(caught.value)
