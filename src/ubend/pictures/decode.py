"""A picture or mask file -> its pixels as stored, or its header; damage explained in one line.

Pillow opens everything but TIFF and the plainest JPEG. JPEG and PNG are then decoded by imagecodecs, from
the same libraries to the same pixels in about half the time; it also keeps the 16 bits of colour PNG.
"""

import io
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ubend.errors import DataError
from ubend.language import _
from ubend.pictures.raster import Header, Raster, turn_upright
from ubend.pictures.tiff import is_tiff, read_tiff, read_tiff_header

_ORIENTATION = 0x0112  # the tag of EXIF
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "F")
_PNG_GREY_ALPHA = 4
_HEAD_BYTES = 4096  # the tables of a plain JPEG take 600
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # markers of the size: baseline, extended, progressive
_JPEG_TABLES = (0xC4, 0xDB, 0xDD, 0xE0, 0xFE)  # Huffman, quantisation, restarts; JFIF, comments
_JPEG_SCAN = 0xDA


def read_raster(path: Path, channels: int | None = None, place: NDArray[Any] | None = None) -> Raster:
    """A file's pixels, upright, otherwise as stored.

    Args:
        path: JPEG, PNG, BMP, WebP or TIFF, known by its content, whatever it is called.
        channels: what the user says of the pictures; see `read_tiff`.
        place: see `read_image`.
    Raises:
        DataError: missing, empty, damaged, no picture, or several.
    """
    with explained(path):
        with path.open("rb", buffering=0) as file_on_disk:
            data = file_on_disk.read()
        if is_tiff(data):
            return read_tiff(data, path, channels)
        if (plain := _find_plain_jpeg(data)) is not None:
            fits = place is not None and place.dtype == np.uint8 and place.shape == plain.shape
            return Raster(_decode_jpeg(data, plain.scan, place if fits else None), lossy=True)
        stream = io.BytesIO(data)
        with Image.open(stream) as file:
            _refuse_frames(file, path)
            start = stream.tell()
            if file.format == "PNG":
                _check_png(data)
            alpha, lossy = file.has_transparency_data, _is_lossy(file, data)
            if file.mode == "P" and file.format != "GIF":  # each GIF numbers its colours anew
                pixels, palette = np.asarray(file)[:, :, None], _read_palette(file)
                return Raster(turn_upright(pixels, _orientation(file, stream)), alpha, palette, lossy)
            if file.format in ("JPEG", "MPO") and file.mode in ("L", "RGB"):
                pixels = _decode_jpeg(data, start)
            elif file.format == "PNG" and _is_plain_png(data, file):
                pixels = _decode_png(data)
            else:
                pixels = np.asarray(_convert(file, alpha))
            orientation = _orientation(file, stream)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return Raster(turn_upright(pixels, orientation), alpha, None, lossy)


def read_header(path: Path, channels: int | None = None) -> Header:
    """What `read_image` would give, told from the file's header alone; arguments and errors as there."""
    with explained(path), path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        stream.seek(0)
        if is_tiff(head):
            return read_tiff_header(stream, path, channels)
        if (plain := _find_plain_jpeg(head)) is not None:
            return Header(*plain.shape, "uint8")
        with Image.open(stream) as file:
            _refuse_frames(file, path)
            width, height = file.size
            orientation = _orientation(file, stream)
            png = file.format == "PNG"  # of 16 bits: Pillow's mode says 8 for colours, and RGBA for grey with alpha
            deep = file.mode.startswith("I;16") or (png and head[24] == 16)
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
            _("{path}: holds {count} pictures, an animation; save the one that counts").format(path=path, count=count),
            path=path,
            key="frames",
        )


def _is_lossy(file: Image.Image, data: bytes) -> bool:
    if file.format == "WEBP":
        return b"VP8 " in data[:4096]  # the chunk of lossy pixels; VP8L holds lossless ones
    return file.format in ("JPEG", "MPO")


def _orientation(file: Image.Image, stream: BinaryIO) -> int:
    """1 to 8, of an opened file."""
    if file.format == "PNG" and not _may_be_turned(stream):
        return 1
    value = file.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _may_be_turned(stream: BinaryIO) -> bool:
    """Does a PNG hold EXIF or XMP? They may follow the pixels, so Pillow would decode them to find out."""
    before, place, found = stream.tell(), 8, False
    while not found:
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        found = head[4:] == b"eXIf"
        if head[4:] in (b"tEXt", b"zTXt", b"iTXt"):  # where ImageMagick and Adobe put it
            found = stream.read(21).startswith((b"Raw profile type ", b"XML:"))
        place += 12 + int.from_bytes(head[:4], "big")
    stream.seek(before)  # where Pillow reads on
    return found


def _is_plain_png(data: bytes, file: Image.Image) -> bool:
    """Whole bytes a channel and no transparent colour; Pillow would cut 16-bit colours to 8 bits."""
    return data[24] >= 8 and "transparency" not in file.info


def _check_png(data: bytes) -> None:
    """Fail when a chunk that matters does not have its check sum: decoders give other pixels without a word."""
    place = 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind, stated = data[place + 4 : place + 8], int.from_bytes(data[end - 4 : end], "big")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND") and zlib.crc32(data[place + 4 : end - 4]) != stated:
            raise ValueError(_("wrong check sum in {part}").format(part=kind.decode()))
        if kind == b"IEND":
            return
        place = end
    raise ValueError(_("the end is missing"))


def _decode_png(data: bytes) -> NDArray[Any]:
    """(H, W) or (H, W, C) uint8 or uint16, of the chunks that hold the pixels: libpng prints warnings of others."""
    import imagecodecs

    place, kept = 8, [data[:8]]
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(data[place:end])
        place = end
    return np.asarray(imagecodecs.png_decode(b"".join(kept)))


class _PlainJpeg(NamedTuple):
    """Where things are in a JPEG; `shape` is (height, width, channels), `scan` where its last header begins."""

    shape: tuple[int, int, int]
    scan: int


def _find_plain_jpeg(data: bytes) -> _PlainJpeg | None:
    """A JPEG whose header is complete and says nothing of turning, profiles or previews; None: ask Pillow.

    Pillow takes fifteen times as long, which is a tenth of what decoding a small picture takes.
    """
    if data[:2] != b"\xff\xd8":
        return None
    shape, place = None, 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _JPEG_SCAN:
            return None if shape is None else _PlainJpeg(shape, place)
        if marker in _JPEG_FRAMES and shape is None and length in (11, 17) and place + 10 <= len(data):
            height, width = (int.from_bytes(data[at : at + 2], "big") for at in (place + 5, place + 7))
            depth, count = data[place + 4], data[place + 9]
            most = Image.MAX_IMAGE_PIXELS or height * width
            if depth != 8 or length != 8 + 3 * count or not 0 < height * width <= most:
                return None
            shape = height, width, count
        elif marker not in _JPEG_TABLES:
            return None
        place += 2 + length
    return None


def _decode_jpeg(data: bytes, start: int, place: NDArray[np.uint8] | None = None) -> NDArray[Any]:
    """(H, W) or (H, W, C) uint8. The decoder paints grey what is missing, so the end is looked for.

    Args:
        start: place in the file's entropy-coded data, or before it, behind previews: where the marker of the
            end cannot occur but at the end.
        place: (H, W, C) to decode into; it is returned.
    """
    import imagecodecs

    if not data.endswith(b"\xff\xd9") and data.find(b"\xff\xd9", start) < 0:
        raise ValueError(_("the end is missing"))
    if place is None:
        pixels = np.asarray(imagecodecs.jpeg8_decode(data))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels
    imagecodecs.jpeg8_decode(data, out=place[:, :, 0] if place.shape[2] == 1 else place)
    return place


def _convert(file: Image.Image, alpha: bool) -> Image.Image:
    """The picture in a mode whose array is grey or colour, with alpha or without."""
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


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the decoders raise into one line that names the file."""
    try:
        with without_warnings():
            yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(_("{path}: no such file").format(path=path), path=path) from error
    except UnidentifiedImageError as error:
        reason = _("the file is empty") if _is_empty(path) else _("not a picture, or a kind that is not read")
        raise DataError(_("{path}: {reason}").format(path=path, reason=reason), path=path) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            _("{path}: too large to be read whole ({reason})").format(path=path, reason=error), path=path
        ) from error
    except Exception as error:
        # decoders raise many kinds (OSError, SyntaxError, struct.error, ...) for a damaged file
        if _is_empty(path):
            raise DataError(
                _("{path}: {reason}").format(path=path, reason=_("the file is empty")), path=path
            ) from error
        reason = " ".join(str(error).split())
        raise DataError(
            _("{path}: damaged or truncated ({reason})").format(path=path, reason=reason), path=path
        ) from error


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


_readers = 0
_readers_lock = threading.Lock()
_readers_filters = ExitStack()


@contextmanager
def without_warnings() -> Iterator[None]:
    """No warnings meanwhile: decoders warn of harmless metadata; damage raises.

    The filters are the process's, not the thread's: of the threads that read at once, the first sets
    them and the last one restores them.
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
