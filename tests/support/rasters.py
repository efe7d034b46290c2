"""Arrays written as image files, and what reading them must give."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ubend.io.images import load_image, read_image
from ubend.portable.decode import read_header

RGB = np.random.default_rng(0).integers(0, 256, (21, 34, 3)).astype(np.uint8)
GREY = RGB[:, :, 0].copy()
DEEP = GREY.astype(np.uint16) * 257
SMOOTH = np.asarray(Image.fromarray(RGB).resize((67, 45), Image.Resampling.BICUBIC))


def check(path: Path, want: NDArray[Any], off: float = 0, **facts: bool) -> NDArray[Any]:
    """The pixels that were seen are those that are wanted, within `off`; the header tells the same, and these facts."""
    loaded = load_image(path)
    image, seen = loaded.pixels, True if loaded.invalid is None else ~loaded.invalid[:, :, None]
    assert image.flags.c_contiguous
    assert image.dtype == want.dtype, path.name
    assert image.shape == want.shape, path.name
    assert np.abs((image.astype(np.float64) - want) * seen).max(initial=0) <= off, path.name
    header = read_header(path)
    assert (header.height, header.width, header.channels, header.dtype) == (*image.shape, image.dtype.name), path.name
    assert {name for name in ("alpha", "cmyk", "turned") if getattr(header, name)} == {n for n in facts if facts[n]}
    for channels in (1, 3) if image.shape[2] in (1, 3) else ():
        assert read_image(path, channels).shape == (*image.shape[:2], channels)
        assert read_image(path, channels).dtype == image.dtype
    return image


def encode_png(pixels: NDArray[Any], color_type: int, extra: bytes = b"") -> bytes:
    """A PNG of (H, W, C) uint8 or uint16, written here because Pillow has no 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    depth = 8 * pixels.dtype.itemsize
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    profile = chunk(b"iCCP", b"broken\0\0" + zlib.compress(b"x" * 300))  # libpng would print a warning
    parts = [chunk(b"IHDR", head), profile, extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_huge_png(path: Path) -> None:
    """A small PNG whose header says 20000 x 20000 px."""
    data = encode_png(np.zeros((2, 2, 1), np.uint8), 0)
    head = b"IHDR" + struct.pack(">II", 20_000, 20_000) + data[24:29]
    path.write_bytes(data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:])


def turned(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pillow's own turning of a plain image."""
    plain = Image.fromarray(stored)
    plain.getexif()[0x0112] = orientation
    want = np.asarray(ImageOps.exif_transpose(plain))
    return want[:, :, None] if want.ndim == 2 else want
