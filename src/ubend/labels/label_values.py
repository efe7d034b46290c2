"""Label values of masks, numbers or colours: counting and replacing them.

A *label value* is a pixel of a mask file: a grey value, an id, a palette index, or a colour as 0xRRGGBB. The label
map (`class_table.py`) converts label values to class indices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import DataError
from ubend.core.i18n import _

ValueKind = Literal["value", "color"]

_Value = TypeVar("_Value", int, NDArray[np.int32])
_GREY = 0x010101  # times a grey value: the same grey as 0xRRGGBB
LISTED = 12  # label values shown in messages


@dataclass(frozen=True)
class LabelArray:
    """A mask as label values.

    Attributes:
        values: (H, W) uint8, uint16 or int32: a grey value or id (0..65535) or palette index, or a
            colour as 0xRRGGBB.
        kind: value (including ids and palette indices) or color.
        palette: (256, 3) uint8, index -> colour; None: not a palette image.
        lossy: JPEG, so that values are approximate.
        covered: overlaps of drawn regions: (value below, value above) -> pixels.
    """

    values: NDArray[Any]
    kind: ValueKind
    palette: NDArray[np.uint8] | None = None
    lossy: bool = False
    covered: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def of_kind(self, kind: ValueKind) -> "LabelArray":
        """Convert values to colours: grey values to greys, palette indices by the palette.

        Raises:
            DataError: values above 255 cannot be converted to colours, and colours not to values.
        """
        if self.kind == kind:
            return self
        if kind == "value":
            raise DataError(
                _("the mask is in colour, but the others contain values; save it like the others"), key="color"
            )
        if self.palette is not None:
            return LabelArray(pack_colors(self.palette)[self.values], "color", None, self.lossy)
        if self.values.size and int(self.values.max()) > 255:
            raise DataError(
                _("the mask contains the value {value}, but the others are in colour; save it in colour").format(
                    value=self.values.max()
                ),
                key="color",
            )
        return LabelArray(self.values.astype(np.int32) * _GREY, "color", None, self.lossy)


def pack_colors(colors: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(..., 3) uint8 red, green, blue -> (...) int32 0xRRGGBB."""
    bytes_of = np.zeros((*colors.shape[:-1], 4), np.uint8)  # little-endian
    for i in range(3):
        bytes_of[..., 2 - i] = colors[..., i]
    return bytes_of.view("<i4")[..., 0].astype(np.int32, copy=False)


def unpack_color(value: _Value) -> tuple[_Value, _Value, _Value]:
    """0xRRGGBB -> (red, green, blue), for a number or an array."""
    return value >> 16, value >> 8 & 255, value & 255


def count_label_values(values: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(distinct label values of a mask, ascending; their pixel counts).

    Sorts runs of equal values along rows instead of pixels, which is faster for masks.
    """
    if values.dtype == np.uint8 and values.size:
        counts = np.array(Image.fromarray(values.reshape(1, -1)).histogram(), np.int64)  # faster than bincount
        present = np.flatnonzero(counts)
        return present.astype(np.int32), counts[present]
    starts, lengths = _runs(values)
    run_values, inverse = np.unique(values.reshape(-1)[starts], return_inverse=True)
    return run_values.astype(np.int32), np.bincount(inverse, lengths, len(run_values)).astype(np.int64)


def replace_values(
    values: NDArray[Any], old_values: NDArray[np.int32], replacements: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Replace each value of `old_values` (ascending, all that occur) in an (H, W) array."""
    if values.dtype == np.uint8:
        table = np.zeros(256, np.uint8)
        table[old_values] = replacements
        replaced: NDArray[np.uint8] = table.take(values)  # faster than table[values]
        return replaced
    starts, lengths = _runs(values)
    inverse = np.searchsorted(old_values, values.reshape(-1)[starts])
    out: NDArray[np.uint8] = np.repeat(replacements[inverse], lengths).reshape(values.shape)
    return out


def _runs(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and lengths of runs of equal values in the flattened array."""
    flat = values.reshape(-1)
    if not flat.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return starts, np.diff(np.append(starts, flat.size))


def format_values(values: Sequence[int], kind: ValueKind, maximum: int = 4) -> str:
    """Label values as text, separated by commas; long lists are shortened."""
    texts = [f"#{value:06x}" if kind == "color" else str(value) for value in values[:maximum]]
    return ", ".join([*texts, "..."] if len(values) > maximum else texts)


@dataclass(frozen=True)
class LabelScan:
    """The label values in all masks of a data set: N masks, M entries (mask, label value), sorted by mask.

    Attributes:
        colored: (N,) bool: the mask is read as colours.
        with_palette: (N,) bool: values that are indices of a palette.
        lossy: (N,) bool: a JPEG.
        starts: (N + 1,) index of the first entry of each mask.
        codes: (M,) int32, ascending in each mask.
        pixels: (M,) int64: pixel count of the label value.
        display_colors: (M,) int32: the label value as a colour 0xRRGGBB (values as greys, indices by their palette);
            -1 for values above 255.
        covered: (K, 4) int64: mask, value below, value above, pixels: overlaps of regions of different values.
    """

    colored: NDArray[np.bool_]
    with_palette: NDArray[np.bool_]
    lossy: NDArray[np.bool_]
    starts: NDArray[np.int64]
    codes: NDArray[np.int32]
    pixels: NDArray[np.int64]
    display_colors: NDArray[np.int32]
    covered: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))

    def __len__(self) -> int:
        return len(self.lossy)

    @property
    def mask_of(self) -> NDArray[np.int64]:
        """(M,) the mask of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def palettes_problem(self) -> Literal["differ", "invert"] | None:
        """Why palette indices cannot be used as class indices; None: they can.

        "differ": an index has different colours in different files; "invert": the palettes go from light to dark, so
        that index 0 is not the background.
        """
        inside = self.with_palette[self.mask_of]
        both = np.unique(self.codes[inside].astype(np.int64) << 24 | self.display_colors[inside])
        if (np.diff(both >> 24) == 0).any():
            return "differ"
        colors = both & 0xFFFFFF
        return "invert" if (colors % _GREY == 0).all() and (np.diff(colors) < 0).any() else None

    def kind(self) -> ValueKind:
        """color if any mask is in colour, or if palette indices cannot be used; otherwise value."""
        return "color" if self.colored.any() or self.palettes_problem() else "value"

    def entries(self, kind: ValueKind) -> NDArray[np.int32]:
        """(M,) the label values as values or as colours; -1 if not possible."""
        if kind == "color":
            return self.display_colors
        return np.where(self.colored[self.mask_of], -1, self.codes)

    def tally(self, kind: ValueKind) -> "Tally":
        """The label values of all masks together."""
        entries = self.entries(kind)
        values, inverse = np.unique(entries, return_inverse=True)
        return Tally(values.astype(np.int32), np.bincount(inverse, self.pixels, len(values)).astype(np.int64))


@dataclass(frozen=True)
class Tally:
    """The label values of a data set: (K,) values, ascending; (K,) their pixel counts."""

    codes: NDArray[np.int32]
    pixels: NDArray[np.int64]

    def __getitem__(self, selection: NDArray[Any]) -> "Tally":
        return Tally(self.codes[selection], self.pixels[selection])


def value_table(tally: Tally, kind: ValueKind, total: int | None = None) -> str:
    """The most frequent label values with their fraction of all pixels: `0 (85.10%), 255 (14.90%)`."""
    whole = total or max(1, int(tally.pixels.sum()))
    common = np.sort(np.argsort(-tally.pixels, kind="stable")[:LISTED])
    texts = [f"{format_values([int(tally.codes[i])], kind)} ({tally.pixels[i] / whole:.2%})" for i in common]
    return ", ".join([*texts, "..."] if len(tally.codes) > LISTED else texts)
