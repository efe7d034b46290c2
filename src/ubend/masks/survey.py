"""Every mask read once: which codes it holds, on how many pixels. What they mean, `classes.py` says.

The survey of a set is kept in the cache, named by the content of its masks, so that it is made once.
"""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.errors import DataError, OutputError, PairError, Problem, reason
from ubend.files import write_file
from ubend.folders.pairs import Pair
from ubend.language import _
from ubend.masks.codes import CodeKind, code_words, count_codes, unpack_color
from ubend.masks.labels import LabelMap
from ubend.masks.sources import read_codes

SURVEY_VERSION = 1
SURVEY_SUFFIX = ".survey.npz"
LISTED = 12  # codes shown in messages
_MOST_CODES = 4096  # of one mask that are kept, the commonest; a photograph holds more


@dataclass(frozen=True)
class Survey:
    """What the masks of a data set hold. Axis letters: N masks, M entries (mask, code), mask by mask.

    Attributes:
        colored: (N,) bool: the mask is read as colours.
        with_palette: (N,) bool: values that are indices of a palette.
        lossy: (N,) bool: a JPEG.
        starts: (N + 1,) where the entries of each mask begin.
        codes: (M,) int32, ascending in each mask.
        pixels: (M,) int64: how many pixels hold the code.
        shown: (M,) int32: the code as a colour 0xRRGGBB (grey values their grey, indices by their palette);
            -1 where a value is above 255.
    """

    colored: NDArray[np.bool_]
    with_palette: NDArray[np.bool_]
    lossy: NDArray[np.bool_]
    starts: NDArray[np.int64]
    codes: NDArray[np.int32]
    pixels: NDArray[np.int64]
    shown: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lossy)

    @property
    def mask_of(self) -> NDArray[np.int64]:
        """(M,) the mask of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def palettes_differ(self) -> bool:
        """Does one palette index stand for different colours in different files?"""
        index, _shown = self._palette_entries()
        return bool((np.diff(index) == 0).any())

    def palettes_invert(self) -> bool:
        """Are the palettes grey, with a darker grey after a lighter one? Then index 0 is not the background."""
        _index, shown = self._palette_entries()
        r, g, b = unpack_color(shown)
        return bool((r == g).all() and (g == b).all() and (np.diff(shown) < 0).any())

    def _palette_entries(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The distinct pairs of palette index and colour that occur, ascending."""
        inside = self.with_palette[self.mask_of]
        both = np.unique(self.codes[inside].astype(np.int64) << 24 | self.shown[inside])
        return (both >> 24).astype(np.int32), (both & 0xFFFFFF).astype(np.int32)

    def kind(self) -> CodeKind:
        """Colours if any mask is coloured, or if palettes differ or run from light to dark; else values."""
        return "color" if self.colored.any() or self.palettes_differ() or self.palettes_invert() else "value"

    def entries(self, kind: CodeKind) -> NDArray[np.int32]:
        """(M,) the codes read as values or as colours; -1 where that cannot be."""
        if kind == "color":
            return self.shown
        return np.where(self.colored[self.mask_of], -1, self.codes)

    def tally(self, kind: CodeKind) -> "Tally":
        """The codes of all masks together."""
        entries = self.entries(kind)
        codes, which = np.unique(entries, return_inverse=True)
        pixels = np.bincount(which, self.pixels, len(codes)).astype(np.int64)
        return Tally(codes.astype(np.int32), pixels, np.bincount(which, minlength=len(codes)))


@dataclass(frozen=True)
class Tally:
    """The codes of a data set: (K,) codes, ascending; (K,) their pixels; (K,) in how many masks they occur."""

    codes: NDArray[np.int32]
    pixels: NDArray[np.int64]
    masks: NDArray[np.int64]


def value_table(tally: Tally, kind: CodeKind, total: int | None = None) -> str:
    """The commonest codes with their share of all pixels: `0 (85.10%), 255 (14.90%)`."""
    whole = total or max(1, int(tally.pixels.sum()))
    common = np.sort(np.argsort(-tally.pixels, kind="stable")[:LISTED])
    words = [f"{code_words([int(tally.codes[i])], kind)} ({tally.pixels[i] / whole:.2%})" for i in common]
    return ", ".join([*words, "..."] if len(tally.codes) > LISTED else words)


def survey_masks(
    pairs: Sequence[Pair],
    sizes_hw: Sequence[tuple[int, int]],
    digests: Sequence[str],
    cache: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """What the masks hold; from the cache if they were surveyed before.

    Args:
        pairs: pictures with masks.
        sizes_hw: native (height, width) of each picture.
        digests: of each mask's content.
        cache: folder of stores and surveys.
        report: called with (masks done, masks in all).
    Raises:
        PairError: masks that cannot be read, or are not of the size of their pictures; all at once.
        OutputError: the cache cannot be written.
    """
    contents = repr([SURVEY_VERSION, list(zip(digests, map(tuple, sizes_hw), strict=True))])
    path = cache / (hashlib.blake2b(contents.encode(), digest_size=12).hexdigest() + SURVEY_SUFFIX)
    damage = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with (
        contextlib.suppress(*damage),
        path.open("rb") as file,
        np.load(file) as arrays,
    ):  # not there, or damaged: made anew
        return Survey(**{name: arrays[name] for name in Survey.__dataclass_fields__})
    survey = _survey(pairs, sizes_hw, report)
    try:
        write_file(path, lambda temporary: _save(temporary, survey))
    except OutputError as error:
        raise cache_error(cache, error) from error
    return survey


def cache_error(cache: Path, error: Exception) -> OutputError:
    """What to say when nothing can be written to the cache."""
    if isinstance(error, OutputError) and isinstance(error.__cause__, OSError):
        error = error.__cause__
    return OutputError(
        _("cannot write the cache {path}: {reason}; free some space or set UBEND_CACHE to another folder").format(
            path=cache, reason=reason(error)
        ),
        path=cache,
    )


def _save(path: Path, survey: Survey) -> None:
    with path.open("wb") as file:
        np.savez(file, **vars(survey))


def _survey(pairs: Sequence[Pair], sizes_hw: Sequence[tuple[int, int]], report: Callable[[int, int], None]) -> Survey:
    bad: dict[str, list[str]] = {}
    facts: list[tuple[bool, bool, bool]] = []
    entries: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []

    def look(number: int) -> Any:
        try:
            return _look(pairs[number], sizes_hw[number])
        except DataError as error:
            return error

    with ThreadPoolExecutor(threads()) as pool:
        for done, found in enumerate(pool.map(look, range(len(pairs))), 1):
            if isinstance(found, DataError):
                bad[pairs[done - 1].name] = found.problems
            else:
                facts.append(found[0])
                entries.append(found[1])
            report(done, len(pairs))
    if bad:
        raise PairError(bad)
    colored, with_palette, lossy = np.array(facts, np.bool_).reshape(-1, 3).T
    codes, pixels, shown = (np.concatenate([entry[i] for entry in entries]) for i in range(3))
    starts = np.concatenate([[0], np.cumsum([len(entry[0]) for entry in entries])]).astype(np.int64)
    return Survey(colored.copy(), with_palette.copy(), lossy.copy(), starts, codes, pixels, shown)


def _look(
    pair: Pair, size_hw: tuple[int, int]
) -> tuple[tuple[bool, bool, bool], tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]]:
    codes = read_codes(pair.mask, size_hw)
    if codes.values.shape != tuple(size_hw):
        raise DataError(mask_size_problem(pair, codes.values.shape, size_hw))
    present, pixels = count_codes(codes.values)
    if len(present) > _MOST_CODES:
        common = np.sort(np.argsort(-pixels, kind="stable")[:_MOST_CODES])
        present, pixels = present[common], pixels[common]
    if codes.kind == "color":
        shown = present
    elif codes.palette is not None:
        shown = codes.palette[present].astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    else:
        shown = np.where(present > 255, -1, present * 0x010101)
    facts = codes.kind == "color", codes.palette is not None, codes.lossy
    return facts, (present, pixels, shown.astype(np.int32))


def mask_size_problem(pair: Pair, mask_hw: tuple[int, ...], image_hw: tuple[int, ...]) -> str:
    """The line for a mask that is not of the size of its picture."""
    line = _("{mask}: the mask is {mask_size} px but its picture {image} is {size} px (width x height)").format(
        mask=pair.mask.path,
        image=pair.image.name,
        mask_size=f"{mask_hw[1]}x{mask_hw[0]}",
        size=f"{image_hw[1]}x{image_hw[0]}",
    )
    return Problem(line, pair.mask.path, "size")


def unknown_codes_problem(pair: Pair, codes: NDArray[np.int32], labels: LabelMap) -> str:
    """The line for a mask that holds codes beyond the class table; -1: of another kind than the table's."""
    if -1 in codes:
        other = (
            _("{mask}: the mask is coloured, but the classes are values: {known}; name its colours with --values")
            if labels.kind == "value"
            else _("{mask}: holds values above 255, but the classes are colours: {known}; save all masks alike")
        )
        return Problem(other.format(mask=pair.mask.path, known=labels.describe()), pair.mask.path, "data.values")
    line = _(
        "{mask}: holds {codes}, beyond the classes {known}; mend the mask, or say what they are with --values"
    ).format(mask=pair.mask.path, codes=code_words(codes.tolist(), labels.kind, 8), known=labels.describe())
    return Problem(line, pair.mask.path, "data.values")


def threads() -> int:
    """How many files are decoded at once."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1))
