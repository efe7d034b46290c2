"""The truth's images in every kind of file that people bring; masks are grey indices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from support.folders import COUNT, IMAGES, Case, Cases, Maker

FILES = Cases()


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).convert("L"))


def _add(key: str, draw: Callable[[NDArray[np.uint8]], Any], suffix: str = "png", **facts: Any) -> None:
    options = facts.pop("options", {})

    def write(make: Maker) -> None:
        make.masks()
        for number in range(COUNT):
            make.image(f"images/cell_{number}.{suffix}", number, draw(IMAGES[number]), **options)

    FILES.append(Case(key, write, **facts))


def _tiff(key: str, draw: Callable[[NDArray[np.uint8]], NDArray[Any]], **facts: Any) -> None:
    options = facts.pop("options", {})

    def write(make: Maker) -> None:
        make.masks()
        for number in range(COUNT):
            tifffile.imwrite(make.know(f"images/cell_{number}.tif", number), draw(IMAGES[number]), **options)

    FILES.append(Case(key, write, **facts))


def _same(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def _bands(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """(H, W, 5): the three colours, their mean, and its inverse."""
    mean = pixels.mean(axis=2, keepdims=True)
    return np.concatenate([pixels, mean, 255 - mean], axis=2).astype(np.uint16) * 16


_add("image-png", _same)
_add("image-jpeg", _same, "jpg")
_add("image-jpeg-other-suffix", _same, "JPEG")
_add("image-bmp", _same, "bmp")
_add("image-ppm", _same, "ppm")
_add("image-jfif", _same, "jfif")
_add("image-webp", _same, "webp")
_add("image-tiff", _same, "tiff")
_add("image-grey", _grey, image=(1, "uint8"))
_add("image-grey-jpeg", _grey, "jpg", image=(1, "uint8"))
_add("image-grey-alpha", lambda p: Image.fromarray(_grey(p)).convert("LA"), image=(1, "uint8"), notes=("alpha",))
_add("image-palette", lambda p: Image.fromarray(p).quantize(200))
_add("image-rgba", lambda p: Image.fromarray(p).convert("RGBA"), notes=("alpha",))
_add("image-cmyk-jpeg", lambda p: Image.fromarray(p).convert("CMYK"), "jpg", options={"quality": 95})
_add("image-cmyk-tiff", lambda p: Image.fromarray(p).convert("CMYK"), "tif")
_add("image-png-16-bit", lambda p: _grey(p).astype(np.uint16) * 200, image=(1, "uint16"))
_tiff("image-tiff-16-bit", lambda p: p.astype(np.uint16) * 200, image=(3, "uint16"))
_tiff("image-tiff-16-bit-lzw", lambda p: _grey(p).astype(np.uint16) * 200, image=(1, "uint16"),
      options={"compression": "lzw"})  # fmt: skip
_tiff("image-tiff-float", lambda p: _grey(p).astype(np.float32) / 255, image=(1, "float32"))
_tiff("image-five-bands", _bands, image=(5, "uint16"),
      options={"photometric": "minisblack", "planarconfig": "contig"})  # fmt: skip
_tiff("image-five-planes", lambda p: np.moveaxis(_bands(p), 2, 0), image=(5, "uint16"),
      options={"photometric": "minisblack", "planarconfig": "separate"})  # fmt: skip
_tiff("image-two-bands", lambda p: _bands(p)[:, :, :2], image=(2, "uint16"),
      options={"photometric": "minisblack", "planarconfig": "contig"})  # fmt: skip
_tiff("image-stack", lambda p: np.stack([_grey(p)] * 6), says=("cell_0.tif", "6"),
      options={"photometric": "minisblack"})  # fmt: skip
_add("channels-1", _same, flags={"channels": 1}, image=(1, "uint8"))
_add("channels-3", _grey, flags={"channels": 3})


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """As a camera stores an upright image, by the table of the EXIF standard: which side row 0 and column 0 are."""
    rows = {1: _same, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud}
    sides = {5: _same, 6: np.flipud, 7: lambda p: np.rot90(p, 2), 8: np.fliplr}
    if orientation in rows:
        return np.ascontiguousarray(rows[orientation](pixels))
    return np.ascontiguousarray(sides[orientation](pixels.swapaxes(0, 1)))


def _write_exif(make: Maker, suffix: str) -> None:
    make.masks()
    for number in range(COUNT):
        exif = Image.Exif()
        exif[0x0112] = number + 1
        make.image(f"images/cell_{number}.{suffix}", number, _turned(IMAGES[number], number + 1), exif=exif)


@FILES.add()
def exif_jpeg(make: Maker) -> None:
    _write_exif(make, "jpg")


@FILES.add()
def exif_png(make: Maker) -> None:
    _write_exif(make, "png")


@FILES.add()
def exif_webp(make: Maker) -> None:
    _write_exif(make, "webp")


def _write_some_grey(make: Maker) -> None:
    make.masks()
    for number in range(COUNT):
        pixels = IMAGES[number] if number not in (2, 5) else _grey(IMAGES[number])
        make.image(f"images/cell_{number}.png", number, pixels)


@FILES.add(notes=("grey",))
def some_grey_some_colour(make: Maker) -> None:
    _write_some_grey(make)


@FILES.add(flags={"channels": 3})
def some_grey_told_3(make: Maker) -> None:
    _write_some_grey(make)


@FILES.add(flags={"channels": 1}, image=(1, "uint8"))
def some_grey_told_1(make: Maker) -> None:
    _write_some_grey(make)


@FILES.add(says=("cell_4", "depth"))
def some_of_another_depth(make: Maker) -> None:
    make.masks()
    for number in range(COUNT):
        pixels = IMAGES[number].astype(np.uint16 if number == 4 else np.uint8)
        tifffile.imwrite(make.know(f"images/cell_{number}.tif", number), pixels)


@FILES.add(says=("cell_1.tif",))
def not_finite(make: Maker) -> None:
    make.masks()
    for number in range(COUNT):
        pixels = _grey(IMAGES[number]).astype(np.float32)
        if number == 1:
            pixels[3, 4] = np.inf
        tifffile.imwrite(make.know(f"images/cell_{number}.tif", number), pixels)


@FILES.add(says=("cell_4.heic", "PNG"))
def a_kind_that_is_not_read(make: Maker) -> None:
    make.images()
    make.masks()
    (make.root / "images/cell_4.png").rename(make.root / "images/cell_4.heic")
