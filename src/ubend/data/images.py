"""Read and write pictures and masks; the one resize.

Pictures at every border: (H, W, C) uint8, uint16 or float32, values as in the file. Masks: (H, W) uint8,
values as in the file until `LabelMap.index` makes class indices of them.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ubend.data.labels import LabelMap
from ubend.errors import DataError
from ubend.files import write_file
from ubend.language import _

if TYPE_CHECKING:
    import torch

TIFF_SUFFIXES = (".tif", ".tiff")
_ORIENTATION = 0x0112  # the tag of EXIF and TIFF


def read_image(path: Path, channels: int | None = None) -> NDArray[Any]:
    """A picture, upright (EXIF orientation applied), alpha dropped.

    Args:
        path: PNG, JPEG, BMP, WebP or TIFF.
        channels: 1 gives grey (ITU-R 601 luma), 3 gives colour; None: 1 or 3, as the file is.
    Returns:
        (H, W, C) uint8, or uint16 / float32 when the file has that depth.
    Raises:
        DataError: missing, empty, truncated, or no picture.
    """
    with explained(path):
        refuse_deep_color(path)
        image = read_deep(path)
        if image is None:
            with Image.open(path) as file:
                upright = ImageOps.exif_transpose(file)
                grey = upright.mode in ("1", "L", "LA", "I", "I;16", "F")
                mode = "L" if channels == 1 or (channels is None and grey) else "RGB"
                image = np.asarray(
                    upright.convert("RGB").convert(mode) if upright.mode == "P" else upright.convert(mode)
                )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError(_("{path}: holds values that are no finite numbers; replace them").format(path=path))
    if image.ndim == 2:
        image = image[:, :, None]
    if channels == 3 and image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    if channels == 1 and image.shape[2] == 3:
        luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        image = (luma if image.dtype == np.float32 else np.rint(luma)).astype(image.dtype)[:, :, None]
    return np.ascontiguousarray(image)


def read_shape(path: Path) -> tuple[int, int, int]:
    """(height, width, channels) of a picture as `read_image` would give it, from its header alone."""
    with explained(path):
        if path.suffix.lower() in TIFF_SUFFIXES:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                if page.samplesperpixel > 4:
                    raise DataError(
                        _("{path}: has {count} channels; only 1 or 3 can be read").format(
                            path=path, count=page.samplesperpixel
                        )
                    )
                width, height, grey = int(page.imagewidth), int(page.imagelength), int(page.samplesperpixel) < 3
                turned = page.tags.valueof(_ORIENTATION, 1) >= 5
                deep = page.dtype not in (np.dtype(np.uint8), np.dtype(bool))
        else:
            deep = False
        if not deep:
            with Image.open(path) as file:
                if path.suffix.lower() not in TIFF_SUFFIXES:  # of TIFF, newer Pillows tell the turned size
                    width, height = file.size
                    tells = file.format != "PNG" or _has_exif(path)
                    turned = tells and file.getexif().get(_ORIENTATION, 1) >= 5  # 5 to 8 lie on their side
                grey = file.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "F")
    return (width, height, 1 if grey else 3) if turned else (height, width, 1 if grey else 3)


def _has_exif(path: Path) -> bool:
    """Does a PNG hold EXIF? It may follow the pixels, so Pillow would decode the whole picture to find out."""
    with path.open("rb") as file:
        place = 8
        while True:
            file.seek(place)
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                return False
            texts = (b"tEXt", b"zTXt", b"iTXt")  # where ImageMagick puts it
            if head[4:] == b"eXIf" or (head[4:] in texts and file.read(21) == b"Raw profile type exif"):
                return True
            place += 12 + int.from_bytes(head[:4], "big")


def refuse_deep_color(path: Path) -> None:
    """Pillow would cut a colour PNG of 16 bits a channel to 8 without a word."""
    with path.open("rb") as file:
        head = file.read(26)
    if head.startswith(b"\x89PNG") and head[24:26] in (b"\x10\x02", b"\x10\x06"):  # depth 16, colour or with alpha
        raise DataError(_("{path}: colour PNG of 16 bits a channel cannot be read; save it as TIFF").format(path=path))


def write_mask(path: Path, index: NDArray[np.uint8], label_map: LabelMap) -> None:
    """Write class indices as a palette PNG: the values are the indices, the colours those of the classes.

    Args:
        index: (H, W) uint8 class index; IGNORED is drawn grey.
    """
    picture = Image.fromarray(index)
    palette = np.full((256, 3), 128, dtype=np.uint8)
    palette[: label_map.classes] = label_map.colors
    picture.putpalette(palette.tobytes())
    write_file(path, lambda temporary: picture.save(temporary, format="PNG"))


def resize_image(image: "torch.Tensor", size_hw: tuple[int, int]) -> "torch.Tensor":
    """The one resize of pictures: bilinear, antialiased when it shrinks, pixel centres aligned.

    Args:
        image: (N, C, H, W), uint8 or float; values keep their range.
        size_hw: (height, width) in px.
    Returns:
        (N, C, height, width) of the same dtype; uint8 is rounded.
    """
    from torch.nn.functional import interpolate

    if tuple(image.shape[-2:]) == tuple(size_hw):
        return image
    return interpolate(image, size=size_hw, mode="bilinear", align_corners=False, antialias=True)


def resize_array(image: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """`resize_image` for one (H, W, C) array; dtype kept, whole numbers rounded."""
    import torch

    if image.shape[:2] == tuple(size_hw):
        return image
    dtype = np.uint8 if image.dtype == np.uint8 else np.float32
    planes = torch.from_numpy(np.array(image, dtype)).permute(2, 0, 1)[None]
    out = resize_image(planes, size_hw)[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(out if image.dtype.kind == "f" or out.dtype == image.dtype else np.rint(out)).astype(
        image.dtype
    )


def resize_mask(mask: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Nearest pixel centre: (H, W) -> (height, width), no value is invented."""
    if mask.shape == tuple(size_hw):
        return mask
    rows = ((np.arange(size_hw[0]) + 0.5) * mask.shape[0] / size_hw[0]).astype(np.int64)
    columns = ((np.arange(size_hw[1]) + 0.5) * mask.shape[1] / size_hw[1]).astype(np.int64)
    return np.ascontiguousarray(mask[rows[:, None], columns[None, :]])


@dataclass(frozen=True)
class Sizing:
    """How pictures are brought to the network's size; kept with the model, and part of a store's name.

    Attributes:
        size_px: as in `model_size`.
        keep_aspect: as in `model_size`.
        channels: 1 reads grey, 3 colour.
    """

    size_px: int
    keep_aspect: bool
    channels: int


def model_size(shape_hw: tuple[int, int], size_px: int, keep_aspect: bool) -> tuple[int, int]:
    """(height, width) to which a picture is resized for the network.

    `keep_aspect`: the area of a `size_px` square, the aspect kept (so that the cost of a picture does not
    depend on its shape); else that square.
    """
    if not keep_aspect:
        return size_px, size_px
    height, width = shape_hw
    factor = size_px / (height * width) ** 0.5
    return max(1, round(height * factor)), max(1, round(width * factor))


def read_deep(path: Path) -> NDArray[Any] | None:
    """Files of more than 8 bits a channel, as uint16 or float32; None for all others."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        import tifffile

        with tifffile.TiffFile(io.BytesIO(path.read_bytes())) as tiff:
            if len(tiff.series[0].pages) > 1:
                raise DataError(
                    _("{path}: a stack of {count} pictures; save each as a file of its own").format(
                        path=path, count=len(tiff.series[0].pages)
                    )
                )
            if tiff.pages[0].dtype in (np.dtype(np.uint8), np.dtype(bool)):
                return None
            page = tiff.pages.first
            image = page.asarray()
            if page.axes == "SYX":  # one plane per channel
                image = np.moveaxis(image, 0, 2)
            image = _turn(image, page.tags.valueof(_ORIENTATION, 1))
    else:
        with Image.open(path) as file:
            if not file.mode.startswith(("I", "F")):
                return None
            image = np.asarray(ImageOps.exif_transpose(file))
    if image.ndim > 3 or (image.ndim == 3 and image.shape[2] > 4):
        raise DataError(
            _("{path}: a picture of shape {shape}; save it with 1 or 3 channels").format(path=path, shape=image.shape)
        )
    if image.ndim == 3:
        image = image[:, :, :3] if image.shape[2] > 2 else image[:, :, 0]  # without alpha
    if image.dtype.kind in "iu" and (not image.size or (image.min() >= 0 and image.max() <= 65535)):
        return image.astype(np.uint16)
    return image.astype(np.float32)


def _turn(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, ...) as stored -> upright; EXIF's orientations 1 to 8."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the decoders raise into one line that names the file."""
    try:
        with _without_warnings():
            yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(_("{path}: no such file").format(path=path)) from error
    except UnidentifiedImageError as error:
        reason = _("the file is empty") if _is_empty(path) else _("not a picture, or a kind that is not read")
        raise DataError(_("{path}: {reason}").format(path=path, reason=reason)) from error
    except Image.DecompressionBombError as error:
        raise DataError(_("{path}: too large to be read whole ({reason})").format(path=path, reason=error)) from error
    except Exception as error:
        # decoders raise many kinds (OSError, SyntaxError, struct.error, ...) for a damaged file
        if _is_empty(path):
            raise DataError(_("{path}: {reason}").format(path=path, reason=_("the file is empty"))) from error
        reason = " ".join(str(error).split())
        raise DataError(_("{path}: damaged or truncated ({reason})").format(path=path, reason=reason)) from error


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


_readers = 0
_readers_lock = threading.Lock()
_readers_filters = ExitStack()


@contextmanager
def _without_warnings() -> Iterator[None]:
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
