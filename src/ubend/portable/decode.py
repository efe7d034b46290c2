"""Decodes image and mask files, and reads their headers; reports damage in one line.

Pillow opens everything except TIFF and plain JPEG. JPEG and PNG are decoded by imagecodecs where it is installed: the
same libraries and pixels as with Pillow, in about half the time. 16-bit colour PNG keeps its depth either way.
"""

import io
import os
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .errors import DataError, missing_package
from .errors import reason as system_reason
from .files import regular_file
from .i18n import _
from .image_paths import is_scan_file
from .raster import MAX_PIXELS, Header, Raster, turn_upright
from .tiff import is_tiff, read_tiff, read_tiff_header

_ORIENTATION = 0x0112  # EXIF tag
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "F")
_PNG_GREY_ALPHA = 4
# PNG's colour type -> Pillow's raw modes that give the high and the low bytes of 16 bits; of grey with alpha all four
_PNG_BYTES = {2: ("RGB;16B", "RGB;16L"), 4: ("RGBA",), 6: ("RGBA;16B", "RGBA;16L")}
# The header of a binary PGM (P5) or PPM (P6): width, height, largest value; may contain comments.
_PNM_HEADER = re.compile(rb"P[56]" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s")
_HEAD_BYTES = 4096  # the header of a plain JPEG needs 600
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # markers of the size: baseline, extended, progressive
_JPEG_TABLES = (0xC4, 0xDB, 0xDD, 0xE0, 0xFE)  # Huffman, quantisation, restarts; JFIF, comments
_JPEG_SCAN = 0xDA


def read_raster(path: Path, channels: int | None = None, out: NDArray[Any] | None = None) -> Raster:
    """Decode a file's pixels, upright, otherwise as stored.

    Args:
        path: JPEG, PNG, BMP, WebP, PPM, PGM or TIFF; the format is detected by content, not by suffix.
        channels: the requested number of channels, see `read_tiff`.
        out: see `read_image`.
    Raises:
        DataError: missing, empty, damaged, not an image, or with several images.
    """
    with explain_decode_errors(path):
        with path.open("rb", buffering=0) as file_on_disk:
            data = file_on_disk.read()
        if is_tiff(data):
            return read_tiff(data, path, channels)
        if (plain := _find_plain_jpeg(data)) is not None:
            fits = out is not None and out.dtype == np.uint8 and out.shape == plain[0]
            return Raster(_decode_jpeg(data, plain[1], out if fits else None), lossy=True)
        stream = io.BytesIO(data)
        with Image.open(stream) as file:
            _refuse_frames(file, path)
            start = stream.tell()
            if file.format == "PNG":
                _check_png(data)
            alpha, lossy = file.has_transparency_data, file.format in ("JPEG", "MPO")
            if file.format == "WEBP":
                lossy = b"VP8 " in data[:4096]  # the chunk for lossy pixels; lossless ones are in VP8L
            if file.mode == "P" and file.format != "GIF":  # each GIF has its own colour indices
                pixels, palette = np.asarray(file)[:, :, None], _read_palette(file)
                return Raster(turn_upright(pixels, _orientation(file, stream)), alpha, palette, lossy)
            if file.format in ("JPEG", "MPO") and file.mode in ("L", "RGB"):
                pixels = _decode_jpeg(data, start)
            elif file.format == "PNG" and data[24] >= 8 and "transparency" not in file.info:
                pixels = _decode_png(data)  # Pillow would cut 16-bit colours to 8 bits
            elif file.format == "PPM" and (header := _PNM_HEADER.match(data)):
                pixels = _decode_pnm(data, header)  # the same; and stretch values, as in a mask of classes 0 to 3
            else:
                pixels = np.asarray(_convert(file, alpha))
            orientation = _orientation(file, stream)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return Raster(turn_upright(pixels, orientation), alpha, None, lossy)


def read_header(path: Path, channels: int | None = None) -> Header:
    """Size, channels and dtype of the image that `read_image` would return, from the file's header; see there."""
    with explain_decode_errors(path), path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        stream.seek(0)
        if is_tiff(head):
            return read_tiff_header(stream, path, channels)
        if (plain := _find_plain_jpeg(head)) is not None:
            return Header(*plain[0], "uint8")
        with Image.open(stream) as file:
            _refuse_frames(file, path)
            width, height = file.size
            orientation = _orientation(file, stream)
            png = file.format == "PNG"  # Pillow reports 16-bit colour as 8 bit, and grey with alpha as RGBA
            pnm = _PNM_HEADER.match(head) if file.format == "PPM" else None
            deep = file.mode.startswith("I;16") or (png and head[24] == 16) or (pnm is not None and int(pnm[3]) > 255)
            grey = file.mode in _GREY_MODES or (png and head[25] == _PNG_GREY_ALPHA)
            return Header(
                *((width, height) if orientation >= 5 else (height, width)),
                1 if grey else 3,
                "uint16" if deep else "float32" if file.mode in ("I", "F") else "uint8",
                file.has_transparency_data,
                file.mode == "CMYK",
                orientation != 1,
            )


def _refuse_frames(file: Image.Image, path: Path) -> None:
    count = getattr(file, "n_frames", 1) if file.format in ("PNG", "WEBP", "GIF") else 1  # JPEG: a preview beside it
    if count > 1:
        raise DataError(
            _("{path}: an animation of {count} images; save one of them as an image").format(path=path, count=count),
            path=path,
            key="frames",
        )


def _orientation(file: Image.Image, stream: BinaryIO) -> int:
    """EXIF orientation of an opened file, 1 to 8."""
    if file.format == "PNG" and not _may_be_turned(stream):
        return 1
    value = file.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _may_be_turned(stream: BinaryIO) -> bool:
    """Whether a PNG has EXIF or XMP; these may follow the pixels, which Pillow would decode to find out."""
    before, text = stream.tell(), (b"tEXt", b"zTXt", b"iTXt")  # used by ImageMagick and Adobe
    has_tag = any(
        kind == b"eXIf" or (kind in text and content.startswith((b"Raw profile type ", b"XML:")))
        for kind, content, _start, _end in _png_chunks(stream)
    )
    stream.seek(before)  # where Pillow continues to read
    return has_tag


def _png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, bytes, int, int]]:
    """(kind, first bytes of the content, start, end) of each chunk of a PNG, up to the last complete one."""
    end, kind = 8, b""
    while kind != b"IEND":
        start = stream.seek(end)
        head = stream.read(29)
        if len(head) < 12:
            return
        kind, end = head[4:8], start + 12 + int.from_bytes(head[:4], "big")
        yield kind, head[8:], start, end


def _check_png(data: bytes) -> None:
    """Fail if the checksum of an essential chunk is wrong; decoders would silently return wrong pixels.

    Raises:
        ValueError: it is wrong, or the end is missing.
    """
    kind = b""
    for kind, _content, start, end in _png_chunks(io.BytesIO(data)):
        stated = int.from_bytes(data[end - 4 : end], "big")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND") and zlib.crc32(data[start + 4 : end - 4]) != stated:
            raise ValueError(_("wrong checksum in {part}").format(part=kind.decode()))
    if kind != b"IEND":
        raise ValueError(_("the end is missing"))


def _decode_png(data: bytes) -> NDArray[Any]:
    """(H, W) or (H, W, C) uint8 or uint16, from the pixel chunks only: libpng prints warnings about others."""
    try:
        import imagecodecs
    except ImportError:
        return _decode_png_by_pillow(data)
    chunks = _png_chunks(io.BytesIO(data))
    kept = [data[start:end] for kind, _content, start, end in chunks if kind in (b"IHDR", b"IDAT", b"IEND")]
    return np.asarray(imagecodecs.png_decode(b"".join([data[:8], *kept])))


def _decode_png_by_pillow(data: bytes) -> NDArray[Any]:
    """As `_decode_png`. Pillow cuts 16-bit colours to 8 bits: here it decodes the high and the low bytes by turns."""
    modes = _PNG_BYTES.get(data[25], ()) if data[24] == 16 else ()
    parts = []
    for raw_mode in modes or [None]:
        with Image.open(io.BytesIO(data)) as file:
            if raw_mode is not None:
                file.tile = [file.tile[0]._replace(args=raw_mode)]
            parts.append(np.asarray(file))
    if not modes:
        return parts[0]
    high, low = parts if len(parts) == 2 else (parts[0][:, :, ::2], parts[0][:, :, 1::2])
    return np.asarray(high.astype(np.uint16) << 8 | low)


def _decode_pnm(data: bytes, header: re.Match[bytes]) -> NDArray[Any]:
    """(H, W) or (H, W, 3) uint8 or uint16, the values as stored."""
    width, height, largest = map(int, header.groups())
    shape = (height, width, 3) if data[1:2] == b"6" else (height, width)
    values = np.frombuffer(data, ">u2" if largest > 255 else np.uint8, int(np.prod(shape)), header.end())
    return values.reshape(shape).astype(np.uint16 if largest > 255 else np.uint8)


def _find_plain_jpeg(data: bytes) -> tuple[tuple[int, int, int], int] | None:
    """((height, width, channels) of a JPEG, start of its last header); None: not plain, use Pillow.

    Plain means a complete header without orientation, profiles or previews. Pillow needs fifteen times as long, a
    tenth of the time to decode a small image.
    """
    if data[:2] != b"\xff\xd8":
        return None
    shape, offset = None, 2
    while data[offset : offset + 1] == b"\xff" and offset + 4 <= len(data):
        marker, length = data[offset + 1], int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker == _JPEG_SCAN:
            return None if shape is None else (shape, offset)
        if marker in _JPEG_FRAMES and shape is None and length in (11, 17) and offset + 10 <= len(data):
            height, width = (int.from_bytes(data[at : at + 2], "big") for at in (offset + 5, offset + 7))
            depth, count = data[offset + 4], data[offset + 9]
            maximum = Image.MAX_IMAGE_PIXELS or height * width
            if depth != 8 or length != 8 + 3 * count or not 0 < height * width <= maximum:
                return None
            shape = height, width, count
        elif marker not in _JPEG_TABLES:
            return None
        offset += 2 + length
    return None


def _decode_jpeg(data: bytes, start: int, out: NDArray[np.uint8] | None = None) -> NDArray[Any]:
    """Decode a JPEG: (H, W) or (H, W, C) uint8; fails without end marker, since the decoder would fill with grey.

    Args:
        start: position after any previews; from there, the end marker occurs only at the end.
        out: (H, W, C) array to decode into, which is then returned.
    Raises:
        ValueError: the end is missing.
    """
    if not data.endswith(b"\xff\xd9") and data.find(b"\xff\xd9", start) < 0:
        raise ValueError(_("the end is missing"))
    try:
        import imagecodecs
    except ImportError:
        return _decode_jpeg_by_pillow(data)
    if out is None:
        pixels = np.asarray(imagecodecs.jpeg8_decode(data))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels
    imagecodecs.jpeg8_decode(data, out=out[:, :, 0] if out.shape[2] == 1 else out)
    return out


def _decode_jpeg_by_pillow(data: bytes) -> NDArray[Any]:
    """(H, W, C) uint8, the values of libjpeg: Pillow inverts those of four channels."""
    with Image.open(io.BytesIO(data)) as file:
        pixels = np.asarray(file)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return 255 - pixels if pixels.shape[2] == 4 else pixels


def _convert(file: Image.Image, alpha: bool) -> Image.Image:
    """Convert to a mode whose array is grey or colour, with or without alpha."""
    if file.mode in ("I", "I;16", "I;16B", "F", "L", "LA", "RGB", "RGBA") and not (alpha and file.mode in ("L", "RGB")):
        return file
    grey = "L" if file.mode in _GREY_MODES else "RGB"
    return file.convert(grey + "A" if alpha else grey)


def _read_palette(file: Image.Image) -> NDArray[np.uint8]:
    """(256, 4) uint8: index -> red, green, blue, alpha."""
    table = np.full((256, 4), (0, 0, 0, 255), np.uint8)
    colors = np.array(file.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    table[: len(colors), :3] = colors
    clear = file.info.get("transparency")
    if isinstance(clear, bytes):
        table[: len(clear), 3] = np.frombuffer(clear, np.uint8)
    elif clear is not None:
        table[clear, 3] = 0
    return table


def _describe_size(error: Image.DecompressionBombError) -> str:
    """The size of a too large image, and the limit: our message, or Pillow's, reworded."""
    match = re.match(r"Image size \((\d+) pixels\)", str(error))
    if match is None:
        return str(error)
    line = _("{pixels:.0f} megapixels; at most {maximum:.0f} megapixels")
    return line.format(pixels=int(match[1]) / 1e6, maximum=MAX_PIXELS / 1e6)


@contextmanager
def explain_decode_errors(path: Path) -> Iterator[None]:
    """A context that turns decoder errors into one line that names the file.

    Raises:
        DataError: the file cannot be read.
        MissingPackageError: the library that reads this format is missing.
    """
    try:
        regular_file(path)
        with without_warnings():
            yield
    except DataError:
        raise
    except ImportError as error:
        raise missing_package(error) from error
    except FileNotFoundError as error:
        raise DataError(_("{path}: no such file").format(path=path), path=path) from error
    except Image.DecompressionBombError as error:
        line = _(
            "{path}: too large to be read as a whole ({reason}); cut it into smaller images, or save it as a tiled "
            "TIFF, which can be predicted in tiles row by row"
        )
        raise DataError(line.format(path=path, reason=_describe_size(error)), path=path, key="size") from error
    except Exception as error:
        # Decoders raise many kinds of errors (OSError, SyntaxError, struct.error, ...) for damaged files.
        line, reason = _("{path}: damaged or truncated ({reason})"), " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):
            line, reason = "{path}: {reason}", _("not an image, or an unsupported format")
            if is_scan_file(path):
                reason = _("a scan, which only `ubend predict` takes")
        if isinstance(error, OSError) and error.errno is not None:  # from the system, not from a decoder
            line, reason = "{path}: {reason}", system_reason(error)
        elif isinstance(error, MemoryError):
            line, reason = _("{path}: not enough memory"), ""
        elif os.path.isfile(path) and os.path.getsize(path) == 0:
            line, reason = "{path}: {reason}", _("the file is empty")
        raise DataError(line.format(path=path, reason=reason), path=path) from error


_readers = 0
_readers_lock = threading.Lock()
_readers_filters = ExitStack()


@contextmanager
def without_warnings() -> Iterator[None]:
    """A context that suppresses warnings: decoders warn about harmless metadata, and raise errors for damage.

    Warning filters belong to the process, not the thread: the first of several reading threads sets them, and the last
    one restores them.
    """
    global _readers
    with _readers_lock:
        if not _readers:
            _readers_filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _readers += 1
    try:
        yield
    finally:
        with _readers_lock:
            _readers -= 1
            if not _readers:
                _readers_filters.close()
