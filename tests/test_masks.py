"""Every kind of mask file, layers, and masks as text: what they read as, and what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from support.rasters import encode_png
from support.refusal import raises
from ubend.core.errors import DataError
from ubend.core.files import resolve_many
from ubend.labels.label_values import LabelArray, unpack_color
from ubend.labels.mask_files import (
    FileMask,
    Layer,
    LayeredMask,
    Mask,
    Shape,
    ShapeMask,
    hash_masks,
    mask_from_text,
    mask_to_text,
    read_label_values,
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 31)).astype(np.uint8)
CLASSES = (GREY // 64).astype(np.uint8)
COLORS = np.array([[0, 0, 0], [255, 0, 0], [1, 2, 3], [200, 200, 201]], np.uint8)
RGB = COLORS[CLASSES]
PACKED = np.array([0, 0xFF0000, 0x010203, 0xC8C8C9])[CLASSES]


def read(path: Path) -> LabelArray:
    return read_label_values(FileMask(path), (1, 1))


def palette(colors: NDArray[np.uint8] = COLORS) -> Image.Image:
    image = Image.fromarray(CLASSES)
    image.putpalette(colors.tobytes())
    return image


# Values


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_grey(tmp_path: Path, suffix: str) -> None:
    """WebP knows no grey, but grey it is."""
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    codes = read(tmp_path / f"a.{suffix}")
    assert (codes.kind, codes.palette, codes.lossy) == ("value", None, False)
    assert codes.values.dtype == np.uint8
    np.testing.assert_array_equal(codes.values, GREY)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_one_bit(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / f"a.{suffix}")
    codes = read(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(codes.values, 255 * (GREY > 127))
    assert codes.kind == "value"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_palettes_are_read_as_indices(tmp_path: Path, bits: int, suffix: str) -> None:
    palette().save(tmp_path / f"a.{suffix}", **({"bits": bits} if suffix == "png" else {}))
    codes = read(tmp_path / f"a.{suffix}")
    assert codes.kind == "value"
    np.testing.assert_array_equal(codes.values, CLASSES)
    assert codes.palette is not None
    assert codes.palette.shape == (256, 3)
    np.testing.assert_array_equal(codes.palette[:4], COLORS)
    np.testing.assert_array_equal(codes.of_kind("color").values, PACKED)


def test_a_see_through_palette_stays_a_palette(tmp_path: Path) -> None:
    palette().save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(read(tmp_path / "a.png").values, CLASSES)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("rgb", np.dstack([GREY] * 3)),
        ("rgba", np.dstack([GREY] * 3 + [np.full_like(GREY, 255)])),
        ("rgba-holes", np.dstack([GREY] * 3 + [RGB[:, :, 0]])),
    ],
)
def test_grey_in_colour_is_grey(tmp_path: Path, name: str, image: NDArray[np.uint8]) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    codes = read(tmp_path / "a.png")
    assert (codes.kind, codes.values.dtype) == ("value", np.uint8)
    np.testing.assert_array_equal(codes.values, GREY, err_msg=name)


def test_grey_with_alpha(tmp_path: Path) -> None:
    """As labelling programs save 0, 1, 2 beside a full alpha."""
    Image.merge("LA", [Image.fromarray(CLASSES), Image.new("L", CLASSES.shape[::-1], 255)]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png").values, CLASSES)


def test_a_cut_out_is_its_alpha(tmp_path: Path) -> None:
    for color in ((0, 0, 0), (255, 0, 0), (255, 255, 255)):
        cut = np.dstack([np.full((*GREY.shape, 3), color, np.uint8), np.where(GREY > 99, 255, 0).astype(np.uint8)])
        Image.fromarray(cut).save(tmp_path / "a.png")
        codes = read(tmp_path / "a.png")
        assert codes.kind == "value"
        np.testing.assert_array_equal(codes.values, np.where(GREY > 99, 255, 0))


def test_nothing_of_a_photo_editor_changes_the_values(tmp_path: Path) -> None:
    """Gamma, colour profile, resolution, text: metadata only."""
    from PIL import ImageCms

    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (45455).to_bytes(4, "big"))
    info.add_text("Software", "an editor")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for image, want in ((Image.fromarray(GREY), GREY), (Image.fromarray(RGB), PACKED), (palette(), CLASSES)):
        image.save(tmp_path / "a.png", pnginfo=info, icc_profile=profile, dpi=(72, 72))
        np.testing.assert_array_equal(read(tmp_path / "a.png").values, want)


# Colours


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "npy"])
def test_colours(tmp_path: Path, suffix: str, alpha: bool) -> None:
    path = tmp_path / f"a.{suffix}"
    pixels = np.dstack([RGB, np.full_like(GREY, 255)]) if alpha else RGB
    if suffix == "npy":
        np.save(path, RGB)
    else:
        Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    codes = read(path)
    assert (codes.kind, codes.lossy, codes.values.dtype) == ("color", False, np.int32)
    np.testing.assert_array_equal(codes.values, PACKED)


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=12))
def test_any_colours(colors: list[tuple[int, int, int]]) -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([colors], np.uint8)).save(file, "PNG")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(file.getvalue())
        codes = read(path)
    grey = all(r == g == b for r, g, b in colors)
    assert codes.kind == ("value" if grey else "color")
    assert codes.of_kind("color").values[0].tolist() == [r << 16 | g << 8 | b for r, g, b in colors]


def test_orientation_is_applied_as_to_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for image, want in ((Image.fromarray(GREY), GREY), (palette(), CLASSES), (Image.fromarray(RGB), PACKED)):
        image.save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(read(tmp_path / "a.png").values, np.rot90(want, -1))


# Noise


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("name", "options"), [("a.jpg", {}), ("a.png", {"format": "JPEG"}), ("a.webp", {})])
def test_noise_is_known_by_the_content(tmp_path: Path, name: str, options: dict[str, str], mode: str) -> None:
    disc = Image.fromarray((255 * (np.hypot(*np.mgrid[-30:30, -40:40]) < 20)).astype(np.uint8))
    disc.convert(mode).save(tmp_path / name, **options)
    codes = read(tmp_path / name)
    assert codes.lossy
    assert codes.kind == "value"
    assert ((codes.values > 127) == (np.asarray(disc) > 127)).mean() > 0.99


def test_jpeg_in_tiff_is_noisy(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.tif", compression="jpeg")
    assert read(tmp_path / "a.tif").lossy
    Image.fromarray(GREY).save(tmp_path / "b.tif", compression="tiff_lzw")
    assert not read(tmp_path / "b.tif").lossy


def test_colours_of_jpeg_are_near(tmp_path: Path) -> None:
    blocks = COLORS[[[1, 0], [0, 1]]].repeat(32, 0).repeat(32, 1)
    Image.fromarray(blocks).save(tmp_path / "a.jpg", quality=90)
    codes = read(tmp_path / "a.jpg")
    assert (codes.kind, codes.lossy) == ("color", True)
    assert np.median(np.abs(unpack_color(codes.values)[0] - blocks[:, :, 0].astype(int))) <= 4


# More than 8 bits


@pytest.mark.parametrize(
    ("name", "dtype", "top"),
    [("a.tif", np.uint16, 60_000), ("a.tif", np.int32, 300), ("a.tif", np.float32, 9), ("a.png", np.uint16, 65_535),
     ("a.npy", np.uint8, 255), ("a.npy", np.int64, 40_000), ("a.npy", np.float64, 3), ("a.npy", np.bool_, 1)],
)  # fmt: skip
def test_ids(tmp_path: Path, name: str, dtype: Any, top: int) -> None:
    ids = RNG.integers(0, top + 1, (9, 11))
    ids[0, 0] = top
    path = tmp_path / name
    {".tif": tifffile.imwrite, ".npy": np.save, ".png": lambda p, x: Image.fromarray(x).save(p)}[path.suffix](
        path, ids.astype(dtype)
    )
    codes = read(path)
    assert codes.kind == "value"
    assert codes.values.dtype == (np.uint8 if top <= 255 else np.uint16)
    np.testing.assert_array_equal(codes.values, ids)


def test_one_channel_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", CLASSES[:, :, None])
    np.testing.assert_array_equal(read(tmp_path / "a.npy").values, CLASSES)


def test_values_that_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "share.tif", GREY / np.float32(255))
    tifffile.imwrite(tmp_path / "below.tif", GREY.astype(np.int16) - 9)
    tifffile.imwrite(tmp_path / "above.tif", GREY.astype(np.int32) + 65_500)
    np.save(tmp_path / "nan.npy", np.full((3, 3), np.nan))
    np.save(tmp_path / "hot.npy", np.zeros((8, 9, 5), np.uint8))
    np.save(tmp_path / "flat.npy", np.zeros(9, np.uint8))
    np.save(tmp_path / "complex.npy", np.zeros((3, 3), np.complex64))
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    tifffile.imwrite(tmp_path / "deep.tif", RGB.astype(np.uint16), photometric="rgb")
    for name, key, named in (
        ("share.tif", "value", "65535"),
        ("below.tif", "value", "-9"),
        ("above.tif", "value", "65535"),
        ("nan.npy", "value", "nan"),
        ("hot.npy", "dtype", "8x9x5"),
        ("flat.npy", "dtype", "9"),
        ("complex.npy", "dtype", "complex64"),
        ("objects.npy", None, "Python objects"),
        ("deep.tif", "dtype", "20x31x3"),
    ):
        with raises(DataError, path=tmp_path / name, key=key, named=[named]) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)


def test_a_deep_colour_png_is_refused(tmp_path: Path) -> None:
    """Pillow would give its upper bytes: 1, 2, 3 would all be 0."""
    (tmp_path / "a.png").write_bytes(encode_png(np.full((8, 8, 3), 3, np.uint16), 2))
    with raises(DataError, path="a.png", key="dtype", named=["8x8x3", "uint16"]):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "deep.tif", "zip.tif", "npy"])
@pytest.mark.parametrize("damage", ["empty", "text", "head", "half", "missing"])
def test_damaged_files(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"pólyp.{suffix}"
    deep = RNG.integers(0, 60_000, (40, 50)).astype(np.uint16)
    if suffix == "npy":
        np.save(path, deep)
    elif "." in suffix:
        tifffile.imwrite(path, deep, **({"compression": "zlib"} if suffix == "zip.tif" else {}))
    else:
        Image.fromarray(RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    parts = {"empty": b"", "text": b"<html>\nno\n" * 99, "head": whole[:16], "half": whole[: len(whole) // 2]}
    path.unlink()
    if damage != "missing":
        path.write_bytes(parts[damage])
    with pytest.raises(DataError) as caught:
        read(path)
    says = str(caught.value)
    assert says.startswith(f"{path}: ")
    assert "\n" not in says
    assert ("the file is empty" in says) == (damage == "empty")
    assert ("no such file" in says) == (damage == "missing")


# Layers


def write_layer(path: Path, on: NDArray[np.bool_], **options: Any) -> Path:
    Image.fromarray((255 * on).astype(np.uint8)).save(path, **options)
    return path


def test_smaller_layers_lie_on_larger_ones(tmp_path: Path) -> None:
    one, two = GREY > 99, GREY % 3 == 0
    mask = LayeredMask((Layer(write_layer(tmp_path / "1.png", one), 7), Layer(write_layer(tmp_path / "2.png", two), 3)))
    codes = read_label_values(mask, (1, 1))
    assert codes.kind == "value"
    assert 0 < two.sum() < one.sum()
    for turned in (mask, LayeredMask(mask.layers[::-1])):
        codes = read_label_values(turned, (1, 1))
        np.testing.assert_array_equal(codes.values, np.where(two, 3, np.where(one, 7, 0)))
        assert codes.covered == {(7, 3): (one & two).sum()}
    assert (mask.path.name, [path.name for path in mask.files]) == ("1.png", ["1.png", "2.png"])


def test_layers_of_all_kinds(tmp_path: Path) -> None:
    disc = np.hypot(*np.mgrid[-30:30, -40:40]) < 20
    for number, path in enumerate(
        [
            write_layer(tmp_path / "a.jpg", disc),
            write_layer(tmp_path / "b.jpg", np.dstack([disc, np.zeros_like(disc), np.zeros_like(disc)]), quality=95),
            write_layer(tmp_path / "c.png", np.dstack([np.zeros_like(disc), disc, disc])),
            write_layer(tmp_path / "d.tif", disc),
        ],
        1,
    ):
        codes = read_label_values(LayeredMask((Layer(path, number),)), (1, 1))
        assert not codes.lossy
        assert set(np.unique(codes.values)) == {0, number}
        assert ((codes.values == number) == disc).mean() > 0.985, path


def test_layers_of_other_sizes(tmp_path: Path) -> None:
    mask = LayeredMask(
        (
            Layer(write_layer(tmp_path / "1.png", np.ones((4, 6), np.bool_)), 1),
            Layer(write_layer(tmp_path / "2.png", np.ones((5, 6), np.bool_)), 1),
        )
    )
    with raises(DataError, path="2.png", key="size", named=["6x5", "6x4"]):
        read_label_values(mask, (4, 6))


# As text, and by content

PATHS = st.text("ab ö'\"{},", min_size=1, max_size=8).map(lambda name: Path("/") / f"x{name}y.png")
SHAPES = st.builds(
    Shape,
    st.integers(1, 254),
    st.lists(st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=8).map(tuple), max_size=2).map(tuple),
    st.none() | st.just({"size": [3, 4], "counts": [2, 5, 5]}) | st.just({"size": [3, 4], "counts": "abc"}),
    st.booleans(),
)
MASKS = st.one_of(
    st.builds(FileMask, PATHS),
    st.builds(LayeredMask, st.lists(st.builds(Layer, PATHS, st.integers(1, 254)), min_size=1, max_size=3).map(tuple)),
    st.builds(
        ShapeMask, PATHS, st.lists(SHAPES, max_size=2).map(tuple), st.none() | st.tuples(*[st.integers(1, 9)] * 2)
    ),
)


@given(MASKS)
def test_as_text(mask: Mask) -> None:
    text = mask_to_text(mask, resolve_many())
    assert "\n" not in text
    assert mask_from_text(text) == mask


def test_digests_are_of_what_the_mask_says() -> None:
    digest = {Path("a"): "1", Path("b"): "2", Path("c"): "1"}

    def of(mask: Mask) -> str:
        return hash_masks([mask], digest)[0]

    def layers(*parts: tuple[str, int]) -> LayeredMask:
        return LayeredMask(tuple(Layer(Path(name), value) for name, value in parts))

    assert of(FileMask(Path("a"))) == of(FileMask(Path("c"))) != of(FileMask(Path("b")))
    assert of(layers(("a", 1), ("b", 2))) == of(layers(("c", 1), ("b", 2)))
    different = [
        of(FileMask(Path("a"))),
        of(layers(("a", 1), ("b", 2))),
        of(layers(("b", 2), ("a", 1))),
        of(layers(("a", 1), ("b", 3))),
        of(layers(("a", 1))),
        of(ShapeMask(Path("z"), (Shape(1, ((0, 0, 1, 0, 1, 1),)),))),
        of(ShapeMask(Path("z"), (Shape(2, ((0, 0, 1, 0, 1, 1),)),))),
        of(ShapeMask(Path("z"), (Shape(1, ((0, 0, 1, 0, 1, 1),), relative=True),))),
        of(ShapeMask(Path("z"), ())),
    ]
    assert len(set(different)) == len(different)
    assert of(ShapeMask(Path("z"), ())) == of(ShapeMask(Path("elsewhere"), ()))
