"""Every mask read once: which codes it holds, on how many pixels. What they mean, `classes.py` says.

The survey of a set is kept in the cache, named by the content of its masks, so that it is made once.
"""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, OutputError, PairError, Problem, reason
from ubend.core.files import write_file
from ubend.core.i18n import _
from ubend.labels.class_table import LabelMap
from ubend.labels.label_values import Survey as Survey
from ubend.labels.label_values import code_words, count_codes, pack_colors
from ubend.labels.mask_files import read_codes
from ubend.layouts.pairs import Pair

SURVEY_VERSION = 1
SURVEY_SUFFIX = ".survey.npz"
_MOST_CODES = 4096  # of one mask that are kept, the commonest; a photograph holds more


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
    with contextlib.suppress(*damage), path.open("rb") as file, np.load(file) as arrays:  # else it is made again
        return Survey(**{name: arrays[name] for name in Survey.__dataclass_fields__})
    survey = _survey(pairs, sizes_hw, report)

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **vars(survey))

    try:
        write_file(path, save)
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


def _survey(pairs: Sequence[Pair], sizes_hw: Sequence[tuple[int, int]], report: Callable[[int, int], None]) -> Survey:
    bad: dict[str, list[str]] = {}
    found: list[tuple[Any, ...]] = []

    def look(number: int) -> tuple[Any, ...] | DataError:
        try:
            return _look(pairs[number], sizes_hw[number])
        except DataError as error:
            return error

    with ThreadPoolExecutor(threads()) as pool:
        for done, facts in enumerate(pool.map(look, range(len(pairs))), 1):
            if isinstance(facts, DataError):
                bad[pairs[done - 1].name] = facts.problems
            else:
                found.append(facts)
            report(done, len(pairs))
    if bad:
        raise PairError(bad)
    columns = list(zip(*found, strict=True))
    colored, with_palette, lossy = (np.array(some, np.bool_) for some in columns[:3])
    codes, pixels, shown = map(np.concatenate, columns[3:])
    starts = np.cumsum([0, *map(len, columns[3])], dtype=np.int64)
    return Survey(colored, with_palette, lossy, starts, codes, pixels, shown)


def _look(
    pair: Pair, size_hw: tuple[int, int]
) -> tuple[bool, bool, bool, NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """Of a mask what `Survey` keeps: colored, with_palette, lossy, codes, pixels, shown."""
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
        shown = pack_colors(codes.palette[present])
    else:
        shown = np.where(present > 255, -1, present * 0x010101)
    return codes.kind == "color", codes.palette is not None, codes.lossy, present, pixels, shown.astype(np.int32)


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
