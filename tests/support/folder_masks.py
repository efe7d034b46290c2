"""The truth in every kind of mask that people bring, in images/ and masks/."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from support.folders import CLASSES, COLORS, COUNT, HEIGHT, IGNORED, WIDTH, Case, Cases, Maker

MASKS = Cases()
PALETTE = np.array(COLORS, np.uint8)
COLOR_VALUES = "#000000=ground,#dc281e=leaf,#1e78e6=spot"


def _add(key: str, draw: Callable[[NDArray[np.uint8]], Any], suffix: str = "png", **facts: Any) -> None:
    """Masks of one kind; `draw` makes of (H, W) class indices what is saved."""
    options = facts.pop("options", {})

    def write(make: Maker) -> None:
        make.images()
        make.masks(draw, f"masks/cell_{{}}.{suffix}", **options)

    MASKS.append(Case(key, write, **facts))


def _through(*values: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Each class as the value at its place."""
    return lambda index: np.array(values, np.uint8)[index]


def _paint(index: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return PALETTE[index]


def _palette(index: NDArray[np.uint8], table: Any = PALETTE) -> Image.Image:
    image = Image.fromarray(index)
    image.putpalette(np.asarray(table, np.uint8).tobytes())
    return image


# Values.
_add("grey-0-255", _through(0, 255), binary=True, classes=("background", "foreground"))
_add("grey-0-1", _through(0, 1), binary=True, classes=("background", "foreground"))
_add("grey-0-to-n", _through(0, 1, 2))
_add("grey-1-to-n", _through(1, 2, 3))
_add("grey-even", _through(0, 128, 255))
_add("grey-uneven", _through(0, 50, 255), says=("0", "50", "255", "--values"))
_add("grey-uneven-values", _through(0, 50, 255), flags={"values": "0=ground,50=leaf,255=spot"}, classes=CLASSES)
_add("grey-uneven-classes", _through(0, 50, 255), flags={"classes": "ground,leaf,spot"}, classes=CLASSES)
_add("values-two", _through(0, 255), binary=True, flags={"values": "0=background,255=polyp"},
     classes=("background", "polyp"))  # fmt: skip
_add("values-order", _through(7, 0, 3), flags={"values": "3=spot,0=leaf,7=ground"}, classes=CLASSES)
_add("values-beyond", _through(0, 1, 2), flags={"values": "0=ground,1=leaf"}, says=("cell_0.png", "2", "--values"))
_add("classes-too-few", _through(0, 1, 2), flags={"classes": "ground,leaf"}, says=("3 classes", "--classes"))
_add("all-empty", _through(0, 0, 0), says=("empty", "0"))
_add("one-bit", lambda m: Image.fromarray(m > 0).convert("1"), binary=True)
_add("palette", _palette)
_add("palette-one-bit", lambda m: Image.fromarray(m > 0).convert("1").convert("P"), binary=True)
_add("grey-alpha", lambda m: Image.merge("LA", [Image.fromarray(m * 120), Image.new("L", (WIDTH, HEIGHT), 255)]))
_add("rgb-grey", lambda m: np.repeat(m[:, :, None] * 120, 3, axis=2))
_add("rgb-numbers", lambda m: np.repeat(m[:, :, None], 3, axis=2))
_add("alpha-only", lambda m: np.dstack([np.zeros((HEIGHT, WIDTH, 3), np.uint8), m * 255]), binary=True)

# Containers.
_add("bmp", _through(0, 1, 2), "bmp")
_add("pgm", _through(0, 1, 2), "pgm")
_add("tiff", _through(0, 1, 2), "tif")
_add("webp", _through(0, 120, 240), "webp", options={"lossless": True})
_add("gif", _through(0, 255), "gif", binary=True)


def _tiff(key: str, dtype: Any, factor: float = 1, **facts: Any) -> None:
    options = facts.pop("options", {})

    def write(make: Maker) -> None:
        make.images()
        for number in range(COUNT):
            path = make.path(f"masks/cell_{number}.tif")
            tifffile.imwrite(path, (make.maps[number].astype(np.float64) * factor).astype(dtype), **options)

    MASKS.append(Case(key, write, **facts))


_tiff("tiff-lzw", np.uint8, options={"compression": "lzw"})
_tiff("tiff-16-bit", np.uint16, 300)
_tiff("tiff-deflate-16-bit", np.uint16, options={"compression": "zlib", "predictor": True})
_tiff("tiff-int32", np.int32)
_tiff("tiff-float", np.float32)
_tiff("tiff-float-0-255", np.float64, 127.5, flags={"values": "0=ground,127=leaf,255=spot"}, says=("whole numbers",))
_tiff("tiff-half", np.float32, 0.5, says=("cell_0.tif", "whole numbers"))
_tiff("tiff-negative", np.int16, -1, says=("cell_0.tif", "whole numbers", "-2"))
_add("png-16-bit", lambda m: m.astype(np.uint16) * 1000)


def _numpy(key: str, dtype: Any, **facts: Any) -> None:
    def write(make: Maker) -> None:
        make.images()
        for number in range(COUNT):
            np.save(make.path(f"masks/cell_{number}.npy"), make.maps[number].astype(dtype))

    MASKS.append(Case(key, write, **facts))


_numpy("npy-int", np.int64)
_numpy("npy-bool", np.bool_, binary=True)
_numpy("npy-float", np.float32)


@MASKS.add(says=("cell_3.npy",))
def npy_pickle(make: Maker) -> None:
    """A pickle may run anything when it is loaded."""
    make.images()
    for number in range(COUNT):
        pixels = make.maps[number].astype(object if number == 3 else np.uint8)
        np.save(make.path(f"masks/cell_{number}.npy"), pixels, allow_pickle=True)


# Pixels that are not scored.


def _with_ignored(make: Maker) -> None:
    make.images()
    for number in range(COUNT):
        make.maps[number][30:36, 20:30] = IGNORED


@MASKS.add(notes=("255",))
def ignored_255(make: Maker) -> None:
    _with_ignored(make)
    make.masks()


@MASKS.add(flags={"values": "0=ground,100=leaf,200=spot,77=ignored"}, classes=CLASSES)
def ignored_told(make: Maker) -> None:
    _with_ignored(make)
    table = np.zeros(256, np.uint8)
    table[[0, 1, 2, IGNORED]] = 0, 100, 200, 77
    make.masks(lambda index: table[index])


@MASKS.add(flags={"values": COLOR_VALUES + ",#ffffff=ignored"}, classes=CLASSES)
def ignored_color(make: Maker) -> None:
    _with_ignored(make)
    table = np.full((256, 3), 255, np.uint8)
    table[:3] = PALETTE
    make.masks(lambda index: table[index])


@MASKS.add(says=("0", "1", "255", "--values"), binary=True)
def some_0_1_some_0_255(make: Maker) -> None:
    _write_two_people(make)


@MASKS.add(
    binary=True,
    flags={"values": "0=background,1=object,255=object"},
    classes=("background", "object"),
)
def some_0_1_some_0_255_told(make: Maker) -> None:
    _write_two_people(make)


@MASKS.add(says=("255", "--values"))
def some_0_to_n_some_0_255(make: Maker) -> None:
    """Two sets in one folder: no mask says whether 255 is an object or not scored."""
    make.images()
    for number in range(COUNT):
        index = make.maps[number]
        make.save(f"masks/cell_{number}.png", index if number % 2 else (index > 0).astype(np.uint8) * 255)


def _write_two_people(make: Maker) -> None:
    make.images()
    for number in range(COUNT):
        make.save(f"masks/cell_{number}.png", make.maps[number] * (1 if number % 3 else 255))


# Palettes and colours.


@MASKS.add()
def palette_adaptive(make: Maker) -> None:
    """A painting program saves the colours in the order of their first use, so each file has its own indices."""
    make.images()
    for number in range(COUNT):
        order = np.roll([0, 1, 2], number)  # class -> index in this file
        table = np.zeros((3, 3), np.uint8)
        table[order] = PALETTE
        make.save(f"masks/cell_{number}.png", _palette(order.astype(np.uint8)[make.maps[number]], table))


_add("colors", _paint, notes=('--values "#',))  # unquoted, a shell takes it for a comment
_add("colors-alpha", lambda m: np.dstack([_paint(m), np.full((HEIGHT, WIDTH), 255, np.uint8)]))
_add("colors-values", _paint, flags={"values": COLOR_VALUES}, classes=CLASSES)
_add("colors-tiff", _paint, "tif")
_add("colors-bmp", _paint, "bmp")
_add("colors-webp", _paint, "webp", options={"lossless": True})

# JPEG: values and colours are only about those that were saved. Objects of 60 px and more.
_add("colors-jpeg", _paint, "jpg", options={"quality": 90}, scale=6, wrong=0.0)
_add("colors-jpeg-poor", _paint, "jpg", options={"quality": 50}, scale=6, wrong=0.0)
_add("grey-jpeg", _through(0, 255), "jpg", binary=True, scale=6, wrong=0.0)
_add("grey-jpeg-poor", _through(0, 255), "jpg", binary=True, scale=6, wrong=0.0, options={"quality": 30})
_add("grey-jpeg-0-128-255", _through(0, 128, 255), "jpg", scale=6, wrong=0.0)
_add("grey-jpeg-rgb", lambda m: np.repeat(m[:, :, None] * 255, 3, axis=2), "jpg", binary=True, scale=6, wrong=0.0)
_add("grey-jpeg-values", _through(0, 255), "jpg", binary=True, scale=6, wrong=0.0,
     flags={"values": "0=background,255=polyp"}, classes=("background", "polyp"))  # fmt: skip
_add("grey-jpeg-0-1-2", _through(0, 1, 2), "jpg", scale=6, or_error=("masks",), options={"quality": 30})
# Objects of 10 px: right, or an error, but no class that is none.
_add("colors-jpeg-small", _paint, "jpg", wrong=0.0, or_error=("--values",))
_add("colors-jpeg-small-values", _paint, "jpg", wrong=0.01, flags={"values": COLOR_VALUES}, classes=CLASSES)
_add("grey-jpeg-small", _through(0, 255), "jpg", binary=True, wrong=0.0)
_add("grey-jpeg-small-poor", _through(0, 255), "jpg", binary=True, wrong=0.0, options={"quality": 30},
     or_error=("--values",))  # fmt: skip
_add("grey-jpeg-small-three", _through(0, 128, 255), "jpg", wrong=0.01, or_error=("--values",))


@MASKS.add(binary=True, scale=6, wrong=0.0)
def jpeg_called_png(make: Maker) -> None:
    make.images()
    make.masks(lambda m: m * 255, "masks/cell_{}.jpg")
    for path in sorted((make.root / "masks").iterdir()):
        path.rename(path.with_suffix(".png"))


@MASKS.add(classes=CLASSES)
def class_dict_csv(make: Maker) -> None:
    make.images()
    make.masks(_paint)
    make.text("class_dict.csv", "name,r,g,b\nspot,30,120,230\nground,0,0,0\nleaf,220,40,30\n")


@MASKS.add(classes=CLASSES)
def class_dict_with_a_class_that_no_mask_shows(make: Maker) -> None:
    make.images()
    make.masks(_paint)
    make.text("class_dict.csv", "name, r, g, b\nground, 0, 0, 0\nleaf, 220, 40, 30\nspot,30,120,230\nsky,9,9,200\n")


@MASKS.add(says=("#1e78e6", "cell_0.png"))
def class_dict_without_a_class(make: Maker) -> None:
    make.images()
    make.masks(_paint)
    make.text("class_dict.csv", "name,r,g,b\nground,0,0,0\nleaf,220,40,30\n")


@MASKS.add(classes=CLASSES, scale=6, wrong=0.0)
def class_dict_jpeg(make: Maker) -> None:
    make.images()
    make.masks(_paint, "masks/cell_{}.jpg", quality=90)
    make.text("class_dict.csv", "name,r,g,b\nground,0,0,0\nleaf,220,40,30\nspot,30,120,230\n")


@MASKS.add(classes=CLASSES)
def labelmap_txt(make: Maker) -> None:
    make.images()
    make.masks(_paint)
    make.text("labelmap.txt", "# label:color_rgb:parts:actions\nground:0,0,0::\nleaf:220,40,30::\nspot:30,120,230::\n")


@MASKS.add()
def colors_and_a_grey_one(make: Maker) -> None:
    """A mask without objects that a program saved as grey."""
    make.clear(5)
    make.images()
    make.masks(_paint)
    make.save("masks/cell_5.png", np.zeros((HEIGHT, WIDTH), np.uint8))


def _resample(pixels: NDArray[np.uint8]) -> Image.Image:
    """As a viewer does: enlarged by half and back, with blends along the edges."""
    image = Image.fromarray(pixels)
    large = image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BILINEAR)
    return large.resize(image.size, Image.Resampling.BILINEAR)


_add("grey-resampled", lambda m: _resample(m * 255), binary=True, says=("--values",))
_add("grey-resampled-told", lambda m: _resample(m * 255), binary=True, wrong=0.0,
     flags={"values": "0=background,255=object,*=nearest"}, classes=("background", "object"))  # fmt: skip
_add("colors-resampled", lambda m: _resample(_paint(m)), scale=6, wrong=0.0, or_error=("--values",))
_add("colors-resampled-small", lambda m: _resample(_paint(m)), wrong=0.0, or_error=("--values",))
_add("colors-resampled-told", lambda m: _resample(_paint(m)), wrong=0.0,
     flags={"values": COLOR_VALUES + ",*=nearest"}, classes=CLASSES)  # fmt: skip


# Objects counted up.


def _count_up(make: Maker) -> None:
    """Every object in four pieces with numbers of their own, as programs for cells write them."""
    make.images()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(COUNT):
        pieces = make.things[number][: 2 + number % 3]
        ids = np.zeros((HEIGHT, WIDTH), np.uint16)
        for count, thing in enumerate(pieces):
            inside = thing.draw()
            left, top = thing.corners[0]
            quarter = (x >= left + 4).astype(np.uint16) + 2 * (y >= top + 4)
            ids[inside] = (1 + 4 * count + quarter)[inside]
        make.maps[number] = (ids > 0).astype(np.uint8)
        make.save(f"masks/cell_{number}.png", ids)


@MASKS.add(binary=True, classes=("background", "object"), notes=("object ids",))
def objects_counted_up(make: Maker) -> None:
    _count_up(make)


@MASKS.add(binary=True, flags={"values": "0=background,*=cell"}, classes=("background", "cell"))
def objects_counted_up_told(make: Maker) -> None:
    _count_up(make)


@MASKS.add(says=("colours", "cell_1.png", "--values"))
def images_as_masks(make: Maker) -> None:
    """The same folder given twice."""
    make.images()
    for number in range(COUNT):
        make.save(f"masks/cell_{number}.png", np.asarray(Image.open(make.root / f"images/cell_{number}.png")))
