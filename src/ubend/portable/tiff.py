"""Reads TIFF with tifffile: bands in any order, alpha, palettes, CMYK; stacks are refused.

Each file is read alone: planes that its OME-XML places in other files are not read.
"""

import io
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .i18n import _
from .raster import MAX_CHANNELS, Header, Raster, depth_name, refuse_large, turn_upright

if TYPE_CHECKING:
    import tifffile

_MIN_IS_WHITE, _PALETTE, _INKS, _YCBCR = 0, 3, 5, 6  # TIFF 6.0, tag PhotometricInterpretation
NODATA = 42113  # GDAL's tag: the value of invalid pixels, as text
_MASK_SUFFIX = ".msk"  # of GDAL's separate file with the mask of valid pixels
_REDUCED, _MASK = 1, 4  # TIFF 6.0, tag NewSubfileType
_CODED_COLORS = (8, 9, 10, 32844, 32845)  # CIELab and similar: values are not red, green, blue
_JPEG_COMPRESSIONS = (6, 7, 33007, 34892)  # their decoder converts YCbCr to RGB
_SLIDE = "Baseline"  # tifffile's name for the scanned slide itself (SVS, NDPI, BIF, QPTIFF, ...)
_BANDS = {"YX": "YX", "YXS": "YXC", "SYX": "CYX", "CYX": "CYX", "YXC": "YXC"}  # tifffile's axes -> ours
_UNNAMED = ("QYX", "IYX")  # pages of one size whose meaning is not stated


@dataclass(frozen=True)
class Plan:
    """How to read the single image of a file.

    Attributes:
        page: the first page of the image, with all tags.
        source: that page, or a series of several pages.
        axes: of the array returned by `source`: YX, YXC or CYX.
        shape: of that array.
        alpha: the last channel is alpha.
        orientation: 1 to 8.
    """

    page: "tifffile.TiffPage"
    source: Any
    axes: str
    shape: tuple[int, ...]
    alpha: bool
    orientation: int

    @property
    def alone(self) -> bool:
        """Whether the first page contains the whole image."""
        return self.source is self.page or (len(self.source.pages) == 1 and self.source.shape == self.page.shape)

    @property
    def stored_hw(self) -> tuple[int, int]:
        """(height, width) as stored, px."""
        return int(self.shape[self.axes.index("Y")]), int(self.shape[self.axes.index("X")])

    @property
    def stored(self) -> int:
        """Channels in the file."""
        return self.shape[self.axes.index("C")] if "C" in self.axes else 1

    @property
    def header(self) -> Header:
        """The header of the image."""
        color = self.page.photometric in (_PALETTE, _INKS)
        return Header(
            *(self.stored_hw[::-1] if self.orientation >= 5 else self.stored_hw),
            3 if color else self.stored - self.alpha,
            depth_name(np.dtype(np.uint8) if self.page.photometric == _PALETTE else self.source.dtype),
            self.alpha,
            self.page.photometric == _INKS,
            self.orientation != 1,
        )


def is_tiff(head: bytes) -> bool:
    """Whether these first bytes are those of a TIFF or BigTIFF file."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff_header(stream: BinaryIO, path: Path, channels: int | None) -> Header:
    """Read the header of a TIFF from its opened file; for other arguments and errors see `read_tiff`."""
    with open_tiff(stream, path) as tiff:
        return make_plan(tiff, path, channels).header


def read_tiff(data: bytes, path: Path, channels: int | None) -> Raster:
    """Read the single image of a TIFF file.

    Args:
        data: the file's content.
        path: for messages.
        channels: the requested number of channels; pages of one size without a stated meaning are taken as channels
            if there are this many.
    Raises:
        DataError: a stack, unsupported colours, or missing pixels.
    """
    with open_tiff(io.BytesIO(data), path) as tiff:
        plan = make_plan(tiff, path, channels)
        values = max(math.prod(plan.shape), math.prod(plan.page.chunks))  # a tile may be larger than the image
        refuse_large(plan.stored_hw, values * np.dtype(plan.source.dtype).itemsize)
        pixels = plan.source.asarray(maxworkers=1)  # several files are read at once already
        if pixels.shape != plan.shape:
            raise _damaged(path, _("its header is contradictory"))
        pixels = pixels[:, :, None] if plan.axes == "YX" else pixels
        pixels = np.moveaxis(pixels, 0, 2) if plan.axes == "CYX" else pixels
        invalid = None
        if (nodata := find_nodata(plan.page)) is not None:
            invalid = match_nodata(pixels, nodata, plan.alpha)
        if len(tiff.pages) > 1 and (mask := find_mask(tiff, plan.stored_hw)) is not None:
            invalid = union_invalid(invalid, mask.asarray(maxworkers=1) == 0)
        if invalid is not None:
            invalid = turn_upright(invalid, plan.orientation)
        palette, alpha = None, plan.alpha
        if plan.page.photometric == _PALETTE:
            palette = np.full((256, 4), (0, 0, 0, 255), np.uint8)
            colors = (np.asarray(plan.page.colormap) >> 8).T
            palette[: len(colors), :3] = colors
        elif plan.page.photometric == _INKS:
            pixels = np.concatenate([_mix_inks(pixels[:, :, :4]), pixels[:, :, 4 : 4 + alpha]], axis=2)
        elif pixels.dtype.kind in "bu":
            pixels = stretch(pixels, plan.page)
    lossy = plan.page.compression in _JPEG_COMPRESSIONS
    return Raster(turn_upright(pixels, plan.orientation), alpha, palette, lossy, invalid)


def find_nodata(page: "tifffile.TiffPage") -> float | None:
    """The nodata value in GDAL's tag; None: not stated."""
    try:
        return float(page.tags.valueof(NODATA))
    except (TypeError, ValueError):
        return None


def match_nodata(pixels: NDArray[Any], nodata: float, alpha: bool) -> NDArray[np.bool_]:
    """(H, W) bool: the stored (H, W, C) pixels with the nodata value.

    As in GDAL, all channels must have it; but in float images one channel is enough, if the nodata value is not 0,
    since values such as -9999 are not measurements.

    Args:
        alpha: the last channel is alpha, which is not compared.
    """
    colors = pixels[:, :, :-1] if alpha and pixels.shape[2] > 1 else pixels
    value: Any = nodata
    if colors.dtype.kind == "f" and np.isfinite(nodata):  # GDAL writes the minimum of float64 also for float32
        limits = np.finfo(colors.dtype)
        value = colors.dtype.type(min(max(nodata, float(limits.min)), float(limits.max)))
    same = colors == value
    one_is_enough = nodata != 0 and depth_name(colors.dtype) == "float32"
    return np.asarray(same.any(axis=2) if one_is_enough else same.all(axis=2))


def union_invalid(first: NDArray[np.bool_] | None, second: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """The union of two masks of invalid pixels."""
    return second if first is None else first if second is None else first | second


def find_mask(tiff: "tifffile.TiffFile", shape_hw: tuple[int, int]) -> "tifffile.TiffPage | None":
    """The page with the mask of valid pixels for an image of this size; None: there is none."""
    for series in tiff.series:
        page = series.keyframe
        if int(page.subfiletype) & (_REDUCED | _MASK) == _MASK and page.axes == "YX" and page.shape == shape_hw:
            return page
    return None


def open_tiff(stream: BinaryIO, path: Path) -> "tifffile.TiffFile":
    """Open a TIFF from its file object or content, without reading other files that it names."""
    import imagecodecs  # noqa: F401 - without it, tifffile reports each compressed file as unreadable
    import tifffile

    logger = logging.getLogger("tifffile")  # logs unusual tags; real damage raises
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    # By this name, tifffile would open the other files of Micro-Manager stacks.
    return tifffile.TiffFile(stream, name=path.name.replace("_MMStack", ""), _multifile=False)


def make_plan(tiff: "tifffile.TiffFile", path: Path, channels: int | None) -> Plan:
    """Plan how to read the single image of an opened file; for arguments and errors see `read_tiff`."""
    if os.path.exists(f"{path}{_MASK_SUFFIX}"):
        line = _(
            "{path}: its mask of valid pixels is a separate file, {name}; put it into the image (gdal_translate "
            "--config GDAL_TIFF_INTERNAL_MASK YES), or delete it"
        )
        raise DataError(line.format(path=path, name=f"{path.name}{_MASK_SUFFIX}"), path=path, key="mask")
    page = tiff.pages.first
    several = len(tiff.pages) > 1 or tiff.is_imagej or tiff.is_ome
    source = _only_series(tiff, path) if several else page
    if several:
        _refuse_missing(source, path)
        page = source.keyframe
    axes, shape = source.axes, source.shape
    if axes in _UNNAMED and channels in (shape[0], shape[2]):
        axes = "CYX" if channels == shape[0] else "YXC"  # an array (H, W, C) written as H pages
    if axes not in _BANDS:
        _refuse_stack(path, axes, shape, channels)
    alpha = bool(page.extrasamples) and "S" in axes and int(page.extrasamples[-1]) in (1, 2)
    plan = Plan(page, source, _BANDS[axes], shape, alpha, int(page.tags.valueof(274, 1)))
    _refuse_unreadable(path, plan)
    _refuse_truncated(tiff, path)
    return plan


def _only_series(tiff: "tifffile.TiffFile", path: Path) -> Any:
    """The series of the full image.

    Skips overviews, masks of valid pixels, and a slide's label, macro image and thumbnail.

    Raises:
        DataError: there are several.
    """
    full = [series for series in tiff.series if not int(series.keyframe.subfiletype) & (_REDUCED | _MASK)]
    slides = [series for series in full if series.name == _SLIDE]
    full = slides[:1] if len(slides) == 1 else full
    if len(full) > 1:
        raise DataError(
            _("{path}: contains {count} images of different kinds; save each as a separate file").format(
                path=path, count=len(full)
            ),
            path=path,
            key="frames",
        )
    return (full or tiff.series)[0]


def _refuse_missing(series: Any, path: Path) -> None:
    """Refuse files with missing planes, which tifffile would fill with zeros."""
    stack = series.kind == "mmstack"
    missing = sum(page is None or (stack and not any(page.databytecounts)) for page in series.pages)
    if missing:
        line = _("{path}: its metadata list {count} planes that are not in the file; export the image as one file")
        raise DataError(line.format(path=path, count=missing), path=path, key="frames")


def _refuse_stack(path: Path, axes: str, shape: tuple[int, ...], channels: int | None) -> None:
    """Refuse several images; if no number of channels is requested, suggest one for pages that may be channels."""
    names, other = {"Z": _("focal planes"), "T": _("time points"), "C": _("channels")}, _("images")
    if axes in _UNNAMED:
        bands = min(shape[0], shape[2])
        suggestion = _("save each as a separate file")
        if bands <= MAX_CHANNELS and channels is None:
            suggestion = _(
                "{suggestion}, or, if they are the channels of one image, train with --channels {bands}"
            ).format(suggestion=suggestion, bands=bands)
        raise DataError(
            _("{path}: a stack of {count} images of {size} px; {suggestion}").format(
                path=path, count=shape[0], size=f"{shape[2]}x{shape[1]}", suggestion=suggestion
            ),
            path=path,
            key="data.channels",
        )
    sides = ", ".join(
        f"{count} {names.get(axis, other)}" for axis, count in zip(axes, shape, strict=False) if axis not in "YXS"
    )
    raise DataError(
        _("{path}: a stack ({sides}); save each of its images as a separate file").format(path=path, sides=sides),
        path=path,
        key="frames",
    )


def _refuse_unreadable(path: Path, plan: Plan) -> None:
    kind, dtype = plan.page.photometric, plan.source.dtype
    coded = kind in _CODED_COLORS or (kind == _YCBCR and plan.page.compression not in _JPEG_COMPRESSIONS)
    inks = kind == _INKS and (plan.stored - plan.alpha != 4 or dtype.kind != "u")
    if dtype is None or dtype.kind not in "biuf" or coded or inks or (kind == _PALETTE and dtype != np.uint8):
        raise DataError(
            _("{path}: a TIFF with {kind} in {dtype} is not supported; save it as RGB or grey").format(
                path=path, kind=getattr(kind, "name", kind), dtype=dtype
            ),
            path=path,
            key="photometric",
        )


def _refuse_truncated(tiff: "tifffile.TiffFile", path: Path) -> None:
    """Refuse truncated files, whose missing pixels tifffile would fill with zeros."""
    size, end = tiff.filehandle.size, 0
    for page in tiff.pages:
        if not len(page.dataoffsets) == len(page.databytecounts) == math.prod(page.chunked):
            raise _damaged(path, _("its header is contradictory"))
        end = max(end, *(o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)))
    if end > size:
        raise _damaged(
            path, _("the file has {size} bytes, but its pixels extend to byte {end}").format(size=size, end=end)
        )


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(_("{path}: damaged or truncated ({reason})").format(path=path, reason=reason), path=path)


def stretch(pixels: NDArray[Any], page: "tifffile.TiffPage") -> NDArray[Any]:
    """Make black 0, and scale values with fewer than 8 bits to 0..255."""
    bits: Any = page.bitspersample
    if not isinstance(bits, int):  # 5, 6, 5 bits of red, green, blue: scaled by tifffile
        return pixels
    white = 2**bits - 1
    if page.photometric == _MIN_IS_WHITE and not _means_nothing_by_white(page):
        pixels = ~pixels if pixels.dtype == np.bool_ else (white - pixels).astype(pixels.dtype)
    if bits < 8:
        table = np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)
        return np.asarray(table[pixels.astype(np.uint8)])
    return pixels


def _means_nothing_by_white(page: "tifffile.TiffPage") -> bool:
    """Whether a file that declares "0 is white" should be read without inverting it.

    tifffile declares it for one-bit arrays. ImageJ declares it for images with an inverting LUT, with which it shows
    masks; but ImageJ's commands, tifffile and scikit-image use the stored values, 255 for the object.
    """
    return bool(page.is_imagej or (page.bitspersample == 1 and page.is_shaped))


def _mix_inks(inks: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 4) cyan, magenta, yellow, black -> (H, W, 3) red, green, blue; no colour profile is applied."""
    white = np.iinfo(inks.dtype).max
    light = (white - inks).astype(np.float32)
    mixed: NDArray[Any] = np.rint(light[:, :, :3] * light[:, :, 3:] / white).astype(inks.dtype)
    return mixed
