"""Scans a folder: image headers, and the label values in each mask.

`labels/classes.py` finds what the values mean. The scan of the masks is cached under a hash of their content.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, OutputError, PairError, Problem, reason
from ubend.core.files import write_file
from ubend.core.i18n import _, ngettext
from ubend.io.file_cache import FileCache
from ubend.io.images import read_image
from ubend.labels.class_table import LabelMap
from ubend.labels.label_values import LabelScan as LabelScan
from ubend.labels.label_values import count_label_values, format_values, pack_colors
from ubend.labels.mask_files import ShapeMask, read_label_values
from ubend.layouts.pairs import Pair, common_folder
from ubend.portable.decode import read_header
from ubend.portable.printable import some_names
from ubend.portable.raster import MAX_CHANNELS, Header

_Kind = TypeVar("_Kind", int, str)


def read_headers(
    pairs: Sequence[Pair], channels: int | None = None, file_cache: FileCache | None = None
) -> list[Header]:
    """Read the header of each image.

    Args:
        channels: `data.channels`.
        file_cache: has headers of unchanged files from earlier runs; new headers are added.
    Raises:
        PairError: headers that cannot be read.
    """
    file_cache = file_cache or FileCache()
    headers: list[Header] = []
    bad: dict[str, list[str]] = {}
    for pair in pairs:
        try:
            file = file_cache.look(pair.image)
            file.header = file.header or read_header(pair.image, channels)
            headers.append(file.header)
        except DataError as error:
            bad[pair.name] = error.problems
    if bad:
        raise PairError(bad)
    return headers


def agree_channels(headers: Sequence[Header], pairs: Sequence[Pair], wanted: int | None) -> tuple[int, list[str]]:
    """Choose the number of channels in which all images are read.

    Args:
        headers: of the pairs' images.
        wanted: `data.channels`; None: that of the images, if equal; a mix of grey and colour is read in colour.
    Returns:
        (channels, messages for the user).
    Raises:
        DataError: the images differ in channels in another way, and `wanted` is None.
        PairError: images that cannot be read with these channels, or bit depths that differ: pairs with other than
            the most common depth are the bad ones.
    """
    names = [pair.name for pair in pairs]
    channels = wanted or _common_channels(headers, names)
    odd = [i for i, header in enumerate(headers) if not header.gives(channels)]
    if odd:
        line = _("--channels {wanted} does not fit {found}; give the number of channels of the images").format(
            wanted=channels, found=_table([headers[i].channels for i in odd], [names[i] for i in odd])
        )
        if len(odd) < len(pairs):
            line += _(", or continue without these with --skip-bad")
        raise PairError({names[i]: [line] for i in odd}, key="data.channels")
    depths = Counter(header.dtype for header in headers)
    if len(depths) > 1:
        table = _table([header.dtype for header in headers], names)
        line = _("the images differ in depth: {table}; save all with the same depth").format(table=table)
        common = depths.most_common(1)[0][0]
        raise PairError(
            {name: [line] for name, h in zip(names, headers, strict=True) if h.dtype != common}, key="dtype"
        )
    remarks = _remarks(headers, channels)
    grey = [name for name, header in zip(names, headers, strict=True) if header.channels == 1]
    if wanted is None and channels == 3 and grey:
        line = ngettext(
            "{count} of {all} images is grey ({names}); all are read in colour (three equal channels for grey); "
            "--channels 1 reads all in grey",
            "{count} of {all} images are grey ({names}); all are read in colour (three equal channels for grey); "
            "--channels 1 reads all in grey",
            len(grey),
        )
        remarks.append(line.format(count=len(grey), all=len(names), names=some_names(grey)))
    return channels, remarks


def _common_channels(headers: Sequence[Header], names: Sequence[str]) -> int:
    kinds = Counter(header.channels for header in headers)
    maximum = kinds.most_common(1)[0][0]
    if len(kinds) == 1 and maximum <= MAX_CHANNELS:
        return maximum
    if len(kinds) == 1:
        line = _("the images have {count} channels; at most {maximum} are supported: keep the most informative ones")
        raise DataError(line.format(count=maximum, maximum=MAX_CHANNELS), key="data.channels")
    if set(kinds) == {1, 3}:
        return 3
    suggestion = _("--channels {maximum} --skip-bad uses only those that have {maximum}").format(maximum=maximum)
    table = _table([header.channels for header in headers], names)
    raise DataError(
        _("the images differ in channels: {table}; {suggestion}").format(table=table, suggestion=suggestion),
        key="data.channels",
    )


def _table(kinds: Sequence[_Kind], names: Sequence[str]) -> str:
    """`12 grey (a, b, c, ...), 3 in colour (d, e, f)`, the most common kind first."""
    kind_names = {
        1: _("grey"),
        3: _("in colour"),
        "uint8": _("with 8 bit"),
        "uint16": _("with 16 bit"),
        "float32": _("with float or signed values"),
    }
    parts = []
    for kind, count in Counter(kinds).most_common():
        of_kind: list[str] = [names[i] for i, image_kind in enumerate(kinds) if image_kind == kind]
        kind_name = kind_names.get(kind) or _("with {channels} channels").format(channels=kind)
        parts.append(_("{count} {kind} ({examples})").format(count=count, kind=kind_name, examples=some_names(of_kind)))
    return ", ".join(parts)


def _remarks(headers: Sequence[Header], channels: int) -> list[str]:
    """Messages on conversions made when reading images that users may not expect."""
    dropped = [header.channels + 1 for header in headers if header.alpha and header.channels + 1 != channels]
    more, turned = max(dropped, default=0), sum(h.turned for h in headers)
    lines = (
        (len(dropped), _("alpha is dropped in {count} of {all} images; --channels {more} keeps it, if all have it")),
        (sum(h.cmyk for h in headers), _("CMYK is converted to RGB in {count} of {all} images")),
        (
            turned,
            ngettext(
                "{count} of {all} images is rotated according to its EXIF orientation",
                "{count} of {all} images are rotated according to their EXIF orientation",
                turned,
            ),
        ),
    )
    return [line.format(count=count, all=len(headers), more=more) for count, line in lines if count]


LABEL_SCAN_VERSION = 3
_STORED_KEYS = {"display_colors": "shown"}  # of the file, where it is not that of the field
LABEL_SCAN_SUFFIX, WIDTHS_SUFFIX = ".survey.npz", ".widths.npz"
_MAX_VALUES = 4096  # kept of one mask, the most common ones; only a photograph has more


def scan_masks(
    pairs: Sequence[Pair],
    sizes_hw: Sequence[tuple[int, int]],
    digests: Sequence[str],
    cache: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda sentence: None,
) -> LabelScan:
    """Find the label values in the masks; from the cache if the same masks were scanned before.

    Args:
        pairs: images with masks.
        sizes_hw: native (height, width) of each image.
        digests: of each mask's content.
        cache: the cache folder.
        report: called with (masks done, all masks).
        log: called with a message if the file in the cache was damaged and is recreated.
    Raises:
        PairError: masks that cannot be read, or differ in size from their images; all together.
        OutputError: the cache cannot be written.
    """
    contents = [LABEL_SCAN_VERSION, list(zip(digests, map(tuple, sizes_hw), strict=True))]
    folder = common_folder(path for pair in pairs for path in (pair.image, *pair.mask.files))  # for `ubend cache`
    keys = {name: _STORED_KEYS.get(name, name) for name in LabelScan.__dataclass_fields__}

    def make() -> dict[str, Any]:
        made = scan_masks_uncached(pairs, sizes_hw, report)
        return {"folder": folder, **{key: getattr(made, name) for name, key in keys.items()}}

    arrays = cached_arrays(cache, contents, LABEL_SCAN_SUFFIX, list(keys.values()), make, log)
    return LabelScan(**{name: arrays[key] for name, key in keys.items()})


def cached_arrays(
    cache: Path,
    contents: Any,
    suffix: str,
    names: Sequence[str],
    make: Callable[[], Mapping[str, Any]],
    log: Callable[[str], None] = lambda sentence: None,
) -> Mapping[str, Any]:
    """Load named arrays from a file in the cache, or make them and write the file.

    Args:
        contents: everything the arrays depend on; a hash of its `repr` names the file.
        suffix: of the file.
        names: of the arrays needed.
        make: called if the file does not exist or is damaged; returns the arrays.
        log: called with a message if the file was damaged.
    Raises:
        OutputError: the cache cannot be written.
    """
    path = cache / (hashlib.blake2b(repr(contents).encode(), digest_size=12).hexdigest() + suffix)
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return {name: stored[name] for name in names}
    except FileNotFoundError:
        pass
    except Exception:  # damaged zip files and NumPy arrays raise many kinds of errors
        log(damaged_cache(path))
    arrays = make()

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    try:
        write_file(path, save)
    except OutputError as error:
        raise cache_error(cache, error) from error
    return arrays


def damaged_cache(path: Path) -> str:
    """The message for a damaged file in the cache."""
    return _("note: {path} in the cache was damaged and is recreated").format(path=path)


def cache_error(cache: Path, error: Exception) -> OutputError:
    """The error for a cache that cannot be written."""
    if isinstance(error, OutputError) and isinstance(error.__cause__, OSError):
        error = error.__cause__
    return OutputError(
        _("cannot write the cache {path}: {reason}; free some space or set UBEND_CACHE to another folder").format(
            path=cache, reason=reason(error)
        ),
        path=cache,
    )


def scan_masks_uncached(
    pairs: Sequence[Pair],
    sizes_hw: Sequence[tuple[int, int]],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> LabelScan:
    """`scan_masks` without a cache."""
    bad: dict[str, list[str]] = {}
    rows: list[tuple[Any, ...]] = []

    def look(index: int) -> tuple[Any, ...] | DataError:
        try:
            return _inspect(pairs[index], sizes_hw[index])
        except DataError as error:
            return error

    with ThreadPoolExecutor(threads()) as pool:
        for done, facts in enumerate(pool.map(look, range(len(pairs))), 1):
            if isinstance(facts, DataError):
                bad[pairs[done - 1].name] = facts.problems
            else:
                rows.append(facts)
            report(done, len(pairs))
    if bad:
        raise PairError(bad)
    columns = list(zip(*rows, strict=True))
    colored, with_palette, lossy = (np.array(column, np.bool_) for column in columns[:3])
    values, pixels, display_colors = map(np.concatenate, columns[3:6])
    covered = [(mask, *pair, count) for mask, column in enumerate(columns[6]) for pair, count in column.items()]
    starts = np.cumsum([0, *map(len, columns[3])], dtype=np.int64)
    table = np.array(covered, np.int64).reshape(-1, 4)
    return LabelScan(colored, with_palette, lossy, starts, values, pixels, display_colors, table)


def _inspect(
    pair: Pair, size_hw: tuple[int, int]
) -> tuple[bool, bool, bool, NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], Mapping[tuple[int, int], int]]:
    """The entry of one mask in `LabelScan`: colored, with_palette, lossy, values, pixels, display_colors, covered."""
    mask_values = read_label_values(pair.mask, size_hw)
    if mask_values.values.shape != tuple(size_hw):
        raise DataError(mask_size_problem(pair, mask_values.values.shape, size_hw))
    present, pixels = count_label_values(mask_values.values)
    if len(present) > _MAX_VALUES:
        common = np.sort(np.argsort(-pixels, kind="stable")[:_MAX_VALUES])
        present, pixels = present[common], pixels[common]
    if mask_values.kind == "color":
        display_colors = present
    elif mask_values.palette is not None:
        display_colors = pack_colors(mask_values.palette[present])
    else:
        display_colors = np.where(present > 255, -1, present * 0x010101)
    facts = mask_values.kind == "color", mask_values.palette is not None, mask_values.lossy
    return *facts, present, pixels, display_colors.astype(np.int32), mask_values.covered


def mask_size_problem(pair: Pair, mask_hw: tuple[int, ...], image_hw: tuple[int, ...]) -> str:
    """The problem of a mask that differs in size from its image."""
    line = _(
        "{mask}: the mask is {mask_size} px but its image is {size} px (width x height); export the mask at "
        "the image's size"
    )
    if mask_hw == tuple(image_hw)[::-1]:
        line = _(
            "{mask}: the mask is {mask_size} px but its image is {size} px (width x height): "
            "width and height are swapped; save the mask transposed"
        )
        if read_header(pair.image).turned:
            line = _(
                "{mask}: the mask is {mask_size} px but its image, rotated according to its EXIF orientation, "
                "is {size} px (width x height); rotate the mask too, or save the image without EXIF"
            )
    line = line.format(
        mask=pair.mask.path,
        mask_size=f"{mask_hw[1]}x{mask_hw[0]}",
        size=f"{image_hw[1]}x{image_hw[0]}",
    )
    return Problem(line, pair.mask.path, "size")


def unknown_values_problem(pair: Pair, values: NDArray[np.int32], labels: LabelMap) -> str:
    """The problem of a mask with label values that are not in the class table.

    Args:
        values: of these; -1: of another kind than those of the table (a value instead of a colour, or vice versa).
    """
    if -1 in values:
        other = (
            _("{mask}: the mask is in colour, but the classes are values: {known}; name its colours with --values")
            if labels.kind == "value"
            else _("{mask}: has values above 255, but the classes are colours: {known}; save all masks in one way")
        )
        return Problem(other.format(mask=pair.mask.path, known=labels.describe()), pair.mask.path, "data.values")
    line = _(
        "{mask}: has {values}, which is no class of {known}; fix the mask, or name all its values with --values "
        "(VALUE=ignored leaves one out)"
    ).format(mask=pair.mask.path, values=format_values(values.tolist(), labels.kind, 8), known=labels.describe())
    return Problem(line, pair.mask.path, "data.values")


def threads() -> int:
    """The number of files that are decoded at the same time."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1))


def find_damage(pairs: Sequence[Pair], channels: int | None = None) -> dict[str, list[str]]:
    """Decode all files; returns {name of a pair: problems of its files}.

    Empty files are skipped, since `read_folder` reports them.

    Args:
        channels: `data.channels`.
    """

    def look(pair: Pair) -> list[str]:
        if not all(path.is_file() and path.stat().st_size for path in (pair.image, *pair.mask.files)):
            return []
        problems: list[str] = []
        shape: tuple[int, int] | None = None
        try:
            shape = read_image(pair.image, channels).shape[:2]
        except DataError as error:
            problems += error.problems
            if isinstance(pair.mask, ShapeMask):
                return problems  # it is drawn in the size of the image
        try:
            mask_values = read_label_values(pair.mask, shape or (1, 1))
            if shape is not None and mask_values.values.shape != shape:
                problems.append(mask_size_problem(pair, mask_values.values.shape, shape))
        except DataError as error:
            problems += error.problems
        return problems

    with ThreadPoolExecutor(threads()) as pool:
        return {pair.name: damage for pair, damage in zip(pairs, pool.map(look, pairs), strict=True) if damage}
