"""The store: images and masks decoded once into memory-mapped arrays.

A store is a folder in the cache. Its name is a hash of the source files and of how they were processed:

    images.bin   all pixels of all images, (P, C) uint8 | uint16 | float32, row by row, image by image
    masks.bin    the same for the masks, (P,) uint8 class index
    unseen.bin   only if there are any: (P,) bool, invalid pixels (see `LoadedImage`); IGNORED in the mask
    index.npz    offset of each image, its shapes, pixels of each class at native size, a thumbnail, a hash
    store.json   description; length and checksums of each other file

It is built in a temporary folder, synced, and renamed when complete; runs started at the same time build it only
once. A store whose files do not match the recorded lengths and checksums is built again.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, PairError, Problem, reason
from ubend.core.files import DiskRequirement, check_disk_space, regular_file
from ubend.core.i18n import _
from ubend.dataset.arrays import ARRAYS_SUFFIX
from ubend.dataset.scan import (
    LABEL_SCAN_SUFFIX,
    WIDTHS_SUFFIX,
    cache_error,
    mask_size_problem,
    threads,
    unknown_values_problem,
)
from ubend.io.file_cache import FILE_CACHE_SUFFIX, FileCache
from ubend.io.images import (
    Sizing,
    hash_pixels,
    model_size,
    read_into_array,
    read_resized,
    resize_arrays,
    resize_mask,
)
from ubend.labels.class_table import IGNORED, ClassMap, LabelMap
from ubend.labels.mask_files import ShapeMask, hash_masks, read_label_values
from ubend.layouts.pairs import Pair, common_folder
from ubend.portable.decode import read_header
from ubend.portable.extreme_values import find_normal_range

STORE_VERSION = 5
_IMAGES, _MASKS, _INDEX, _FACTS = "images.bin", "masks.bin", "index.npz", "store.json"
_INVALID = "unseen.bin"
_PIECE_BYTES = 2**24  # of a file, for one checksum
_LARGE_PIXELS = 2**24  # larger images that keep their size are read by rows, if the format allows
_PART_VALUES, _PART_IMAGES = 2**24, 32  # at most, of a group of images that one thread decodes and resizes together
THUMBNAIL_PX = 32  # side of the grey thumbnails for finding near-duplicates (threshold measured at this size)
_STORE_NAME = re.compile(r"[0-9a-f]{24}|\.[0-9a-f]{24}[-.].*")  # the hash; hidden and longer while being built
_OLD_SUFFIX = ".kernels.so"  # written by earlier versions; never loaded, still deleted
_SUFFIX = re.compile(
    f"({'|'.join(map(re.escape, (LABEL_SCAN_SUFFIX, WIDTHS_SUFFIX, FILE_CACHE_SUFFIX, ARRAYS_SUFFIX, _OLD_SUFFIX)))})$"
)


class DamagedStoreError(Exception):
    """The files of a store are missing or have changed since they were written."""


class Store:
    """An opened store; arrays are memory-mapped, images are in the order of the pairs it was built from."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            DamagedStoreError: a file is missing or has changed since it was written.
        """
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            if facts.pop("digest") != _digest(facts) or not _is_as_written(folder, facts):
                raise ValueError("check sum")
            self._open(folder, facts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedStoreError from error

    def _open(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.channels: int = facts["channels"]
        self.dtype = np.dtype(facts["dtype"])
        self.hashes: list[list[str]] = facts["hashes"]  # of each pair: image file, mask file
        with np.load(folder / _INDEX) as index:
            self.offsets: NDArray[np.int64] = index["offsets"]
            self.shapes_hw: NDArray[np.int64] = index["shapes_hw"]
            self.native_hw: NDArray[np.int64] = index["native_hw"]
            self.class_pixels: NDArray[np.int64] = index["class_pixels"]  # (N, 256) pixels per class index
            self.thumbnails: NDArray[np.uint8] = index["thumbnails"]
            self.has_invalid: NDArray[np.bool_] = index["has_unseen"]  # (N,) images with invalid pixels
            self.pixel_hashes: NDArray[np.uint64] = index["pixel_hashes"]  # (N,) `hash_pixels` at native size
        pixels = int(self.offsets[-1])
        self.images = np.memmap(folder / _IMAGES, self.dtype, "r", shape=(pixels, self.channels))
        self.masks = np.memmap(folder / _MASKS, np.uint8, "r", shape=(pixels,))
        if self.has_invalid.any():
            self._invalid = np.memmap(folder / _INVALID, np.bool_, "r", shape=(pixels,))

    def __len__(self) -> int:
        return len(self.shapes_hw)

    def image(self, index: int) -> NDArray[Any]:
        """(h, w, C) image at its stored size."""
        here = slice(self.offsets[index], self.offsets[index + 1])
        return self.images[here].reshape(*self.shapes_hw[index], self.channels)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """(h, w) class index or IGNORED, at the stored size."""
        here = slice(self.offsets[index], self.offsets[index + 1])
        return self.masks[here].reshape(*self.shapes_hw[index])

    def invalid(self, index: int) -> NDArray[np.bool_] | None:
        """(h, w) bool, invalid pixels of an image at its stored size; None: all pixels are valid."""
        if not self.has_invalid[index]:
            return None
        here = slice(self.offsets[index], self.offsets[index + 1])
        return self._invalid[here].reshape(*self.shapes_hw[index])

    def paint(
        self,
        index: int,
        image: NDArray[Any],
        mask: NDArray[np.uint8],
        corner_yx: Sequence[int] = (0, 0),
        size_hw: Sequence[int] | None = None,
    ) -> None:
        """Copy an image, or a rectangle of it, to the top left of a canvas; the rest repeats the edge.

        Args:
            image: (H, W, C), overwritten; at least as large as the rectangle.
            mask: (H, W), overwritten with class indices; IGNORED where the edge is repeated.
            corner_yx, size_hw: the rectangle, px; None: the image's size.
        """
        (top, left), (h, w) = corner_yx, size_hw or self.shapes_hw[index]
        here = slice(top, top + h), slice(left, left + w)
        image[:h, :w], mask[:h, :w] = self.image(index)[here], self.mask(index)[here]
        image[:h, w:], image[h:] = image[:h, w - 1 : w], image[h - 1]
        mask[:h, w:], mask[h:] = IGNORED, IGNORED


def list_stores(cache: Path) -> list[tuple[Path, int]]:
    """The stores and other cached results of runs, complete or partial, oldest first, with their sizes in bytes.

    Only paths named as ubend names them are listed, so that nothing else is deleted, whatever UBEND_CACHE is set to.
    """
    stores = [p for p in cache.glob("*") if _STORE_NAME.fullmatch(_SUFFIX.sub("", p.name))]
    stores = sorted(stores, key=lambda p: p.stat().st_mtime)
    return [(p, sum(f.stat().st_size for f in (p, *p.rglob("*")) if f.is_file())) for p in stores]


def describe_store(path: Path) -> tuple[str, str]:
    """(description, folder of the source images) of a path from `list_stores`.

    The folder is "" if unknown: written by an earlier version, damaged, or incomplete.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if path.name.endswith((LABEL_SCAN_SUFFIX, WIDTHS_SUFFIX)):
            what = _("values of masks") if path.name.endswith(LABEL_SCAN_SUFFIX) else _("widths of objects")
            with np.load(path) as arrays:
                return what, str(arrays["folder"]) if "folder" in arrays else ""
        if path.name.endswith(ARRAYS_SUFFIX):
            return _("arrays given in Python"), str(path)
        if path.name.endswith(FILE_CACHE_SUFFIX):
            return _("list of files"), common_folder(json.loads(path.read_text(encoding="utf-8").partition("\n")[2]))
        facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        text = _("images of {size} px") if facts["size_px"] else _("images at native size")
        return text.format(size=facts["size_px"]), str(facts.get("folder", ""))
    return _("unknown"), ""


def clear_stores(cache: Path) -> int:
    """Delete everything that `list_stores` lists; returns the number of bytes freed."""
    freed = 0
    for path, size in list_stores(cache):
        if path.is_dir():
            (path / _FACTS).unlink(missing_ok=True)  # first, so that an interrupted deletion leaves no valid store
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        freed += size
    for lock in cache.glob("*.lock"):
        if _STORE_NAME.fullmatch(lock.stem):
            lock.unlink(missing_ok=True)
    return freed


def open_store(
    pairs: Sequence[Pair],
    shapes_hw: Sequence[tuple[int, int]],
    sizing: Sizing,
    labels: LabelMap,
    hashes: list[list[str]],
    cache: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda sentence: None,
) -> Store:
    """Open the store of these pairs; builds it if it is not in the cache.

    Args:
        pairs: images with masks.
        shapes_hw: native (height, width) of each, from `read_headers`.
        sizing: size, aspect ratio, channels.
        labels: the class table of the masks.
        hashes: of each image and mask, from `hash_pairs`.
        cache: folder of stores.
        report: called with (images done, all images) while building.
        log: called with a message if the store was damaged and is built again.
    Raises:
        PairError: images or masks that cannot be read, or whose sizes differ; all together.
        OutputError: the disk is full, or the cache cannot be written.
    """
    from filelock import FileLock

    meaning = [labels.kind, labels.codes, labels.ignored, labels.reach, labels.others]
    contents = json.dumps([STORE_VERSION, vars(sizing), meaning, hashes])
    key = hashlib.blake2b(contents.encode(), digest_size=12).hexdigest()
    final = cache / key
    if (final / _FACTS).exists():
        try:
            return Store(final)
        except DamagedStoreError:
            log(_("note: decoded images in the cache were damaged and are recreated ({path})").format(path=final))
            (final / _FACTS).unlink(missing_ok=True)  # marks the store as incomplete
    if not (final / _FACTS).exists():
        suggestion = _("set UBEND_CACHE to another disk or use a smaller --size")
        if sizing.size_px is None:
            suggestion = _("set UBEND_CACHE to another disk, or train on whole images with --size")
        stored_hw = (model_size(shape, sizing.size_px, sizing.keep_aspect) for shape in shapes_hw)
        pixel_bytes = sizing.channels * _first_dtype(pairs, sizing.channels).itemsize + 1
        size = sum(h * w for h, w in stored_hw) * pixel_bytes + len(pairs) * (THUMBNAIL_PX**2 + 256 * 8)
        check_disk_space([DiskRequirement(cache, size, suggestion)])
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{key}.lock"):
                if not (final / _FACTS).exists():
                    for rest in (final, *cache.glob(f".{key}-*")):  # left by a killed process
                        shutil.rmtree(rest, ignore_errors=True)
                    _build(pairs, shapes_hw, sizing, labels, hashes, final, report)
        except OSError as error:
            raise cache_error(cache, error) from error
    return Store(final)


def hash_pairs(pairs: Sequence[Pair], file_cache: FileCache | None = None) -> list[list[str]]:
    """[image digest, mask digest] of each pair, from the content of the files.

    Args:
        file_cache: has digests of unchanged files from earlier runs; new digests are added.
    Raises:
        PairError: files that cannot be read.
    """

    file_cache = file_cache or FileCache()
    paths = [pair.image for pair in pairs]
    paths += [path for pair in pairs if not isinstance(pair.mask, ShapeMask) for path in pair.mask.files]
    files = {path: file_cache.look(path) for path in paths}
    unreadable: dict[Path, str] = {}

    def digest(path: Path) -> None:
        try:
            with regular_file(path).open("rb") as file:
                digest_of_file = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            files[path].digest = digest_of_file.hexdigest()
        except OSError as error:
            unreadable[path] = Problem(_("{path}: {reason}").format(path=path, reason=reason(error)), path)

    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(digest, [path for path, file in files.items() if file.digest is None]))
    if unreadable:
        files_of = {pair.name: (pair.image, *pair.mask.files) for pair in pairs}
        bad = {
            name: [unreadable[path] for path in pair_files if path in unreadable]
            for name, pair_files in files_of.items()
        }
        raise PairError({name: problems for name, problems in bad.items() if problems})
    digest_of = {path: file.digest or "" for path, file in files.items()}
    masks = hash_masks((pair.mask for pair in pairs), digest_of)
    return [[digest_of[pair.image], mask] for pair, mask in zip(pairs, masks, strict=True)]


def _build(
    pairs: Sequence[Pair],
    shapes_hw: Sequence[tuple[int, int]],
    sizing: Sizing,
    labels: LabelMap,
    hashes: list[list[str]],
    final: Path,
    report: Callable[[int, int], None],
) -> None:
    stored_hw = [model_size(shape, sizing.size_px, sizing.keep_aspect) for shape in shapes_hw]
    offsets = np.concatenate([[0], np.cumsum([h * w for h, w in stored_hw])]).astype(np.int64)
    dtype = _first_dtype(pairs, sizing.channels)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        images = _reserve(temporary / _IMAGES, dtype, (int(offsets[-1]), sizing.channels))
        masks = _reserve(temporary / _MASKS, np.dtype(np.uint8), (int(offsets[-1]),))
        class_pixels = np.zeros((len(pairs), 256), np.int64)
        has_invalid, invalid_at, opening = np.zeros(len(pairs), np.bool_), list[NDArray[np.bool_]](), Lock()
        thumbnails = np.zeros((len(pairs), THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
        pixel_hashes = np.zeros(len(pairs), np.uint64)

        def keep_invalid(index: int, invalid: NDArray[np.bool_]) -> None:
            with opening:
                if not invalid_at:
                    invalid_at.append(_reserve(temporary / _INVALID, np.dtype(np.bool_), masks.shape))
            has_invalid[index] = True
            invalid_at[0][offsets[index] : offsets[index + 1]] = resize_mask(invalid, stored_hw[index]).reshape(-1)

        def fill(part: list[int]) -> dict[int, list[str]]:
            """Read, resize and store pairs of one native size; returns {index: problems}.

            All in one thread: passing images to another thread costs as much as the work itself.
            """
            native_hw, size_hw = shapes_hw[part[0]], stored_hw[part[0]]
            outs = [images[offsets[n] : offsets[n + 1]].reshape(*size_hw, sizing.channels) for n in part]
            bad: dict[int, list[str]] = {}
            invalid: dict[int, NDArray[np.bool_]] = {}
            if native_hw == size_hw and math.prod(native_hw) > _LARGE_PIXELS:
                down, across = (max(1, side // (4 * THUMBNAIL_PX)) for side in native_hw)  # enough for a thumbnail
                for index, out in zip(part, outs, strict=True):
                    try:
                        if (bad_of_part := read_into_array(pairs[index].image, out)) is not None:
                            invalid[index] = bad_of_part
                    except DataError as error:
                        bad[index] = error.problems
                    thumbnails[index] = _thumbnails(np.ascontiguousarray(out[None, ::down, ::across]))[0]
                    pixel_hashes[index] = hash_pixels(out)
            else:
                paths = [pairs[index].image for index in part]
                small, problems, hidden, pixel_hashes[part] = read_resized(
                    paths, sizing.channels, native_hw, size_hw, dtype
                )
                bad = {part[slot]: lines for slot, lines in problems.items()}
                invalid = {part[slot]: where for slot, where in hidden.items()}
                thumbnails[part] = _thumbnails(small)
                for pixels, out in zip(small, outs, strict=True):
                    out[:] = pixels
            for index in (item for item in part if item not in bad):
                try:
                    mask = read_class_map(pairs[index], native_hw, labels)
                    if index in invalid:
                        mask = ignore_invalid(mask, invalid[index], pairs[index])
                        keep_invalid(index, invalid[index])
                    masks[offsets[index] : offsets[index + 1]] = resize_mask(mask.classes, size_hw).reshape(-1)
                    class_pixels[index] = mask.pixels
                except DataError as error:
                    bad[index] = error.problems
            return bad

        bad: dict[int, list[str]] = {}
        done = 0
        with ThreadPoolExecutor(threads()) as pool:
            parts = _parts(shapes_hw, sizing.channels)
            for part, bad_of_part in zip(parts, pool.map(fill, parts), strict=True):
                bad |= bad_of_part
                done += len(part)
                report(done, len(pairs))
        if bad:
            raise PairError({pairs[index].name: bad[index] for index in sorted(bad)})
        images.flush()
        masks.flush()
        for array in invalid_at:
            array.flush()  # type: ignore[attr-defined]
        index: dict[str, NDArray[Any]] = {
            "offsets": offsets,
            "shapes_hw": np.array(stored_hw, np.int64),
            "native_hw": np.array(shapes_hw, np.int64),
            "class_pixels": class_pixels,
            "thumbnails": thumbnails,
            "has_unseen": has_invalid,
            "pixel_hashes": pixel_hashes,
        }
        np.savez(temporary / _INDEX, allow_pickle=False, **index)
        facts = {"version": STORE_VERSION, **vars(sizing), "dtype": dtype.name, "hashes": hashes}
        facts["folder"] = common_folder(path for pair in pairs for path in (pair.image, *pair.mask.files))
        facts |= {"files": _check_sums(temporary), "changed_ns": _read_times(temporary)}
        (temporary / _FACTS).write_text(json.dumps(facts | {"digest": _digest(facts)}), encoding="utf-8")
        for name in (_INDEX, _FACTS):
            with (temporary / name).open("rb+") as file:
                os.fsync(file.fileno())
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _parts(shapes_hw: Sequence[tuple[int, int]], channels: int) -> list[list[int]]:
    """Groups of images of equal size: small enough for memory and for all threads, otherwise as large as possible."""
    maximum = max(1, min(_PART_IMAGES, len(shapes_hw) // (4 * threads())))
    alike: dict[tuple[int, int], list[int]] = {}
    for index, (h, w) in enumerate(shapes_hw):
        alike.setdefault((h, w), []).append(index)
    parts = []
    for (h, w), indices in alike.items():
        count = max(1, min(maximum, _PART_VALUES // max(1, h * w * channels)))
        parts += [indices[start : start + count] for start in range(0, len(indices), count)]
    return parts


def _first_dtype(pairs: Sequence[Pair], channels: int) -> np.dtype[Any]:
    """The dtype of the first image whose header can be read; unreadable ones are reported later, together."""
    for pair in pairs:
        try:
            return np.dtype(read_header(pair.image, channels).dtype)
        except DataError:
            continue
    return np.dtype(np.uint8)


def read_class_map(pair: Pair, image_hw: tuple[int, int], labels: LabelMap) -> ClassMap:
    """A pair's mask as class indices, at native size.

    Raises:
        DataError: it cannot be read, differs in size from its image, or has label values without a class.
    """
    mask_values = read_label_values(pair.mask, image_hw)
    if mask_values.values.shape != tuple(image_hw):
        raise DataError(mask_size_problem(pair, mask_values.values.shape, image_hw))
    try:
        class_map = labels.translate(mask_values)
    except DataError as error:
        raise DataError(
            _("{path}: {reason}").format(path=pair.mask.path, reason=error), path=pair.mask.path, key=error.key
        ) from error
    if len(class_map.unknown_values):
        raise DataError(unknown_values_problem(pair, class_map.unknown_values, labels))
    return class_map


def ignore_invalid(mask: ClassMap, invalid: NDArray[np.bool_] | None, pair: Pair) -> ClassMap:
    """The mask with IGNORED at invalid pixels of the image.

    Args:
        mask: at native size.
        invalid: (H, W), see `LoadedImage`; None: the mask is returned unchanged.
    Raises:
        DataError: all pixels that have a class are invalid.
    """
    if invalid is None:
        return mask
    classes = np.where(invalid, np.uint8(IGNORED), mask.classes)
    pixels = np.bincount(classes.reshape(-1), minlength=256)
    if pixels[:IGNORED].sum() == 0 < mask.pixels[:IGNORED].sum():
        line = _("{path}: all pixels that have a class are invalid (nodata, alpha 0 or NaN); remove the image")
        raise DataError(line.format(path=pair.image), path=pair.image, key="unseen")
    return ClassMap(classes, mask.unknown_values, pixels)


def _thumbnails(images: NDArray[Any]) -> NDArray[np.uint8]:
    """(N, h, w, C) -> (N, THUMBNAIL_PX, THUMBNAIL_PX) uint8, grey; 16-bit and float images use the full range each.

    Of these, pixels with extreme values (see `find_normal_range`) get the mean of the others: a single undeclared
    nodata value would set the range, and all images would look alike.
    """
    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    if images.dtype == np.uint8:
        return np.asarray(resize_arrays(images, side).mean(axis=3).astype(np.uint8))
    grey = images.astype(np.float32).mean(axis=3, keepdims=True)
    for plane, image in zip(grey, images, strict=True):
        low, high = find_normal_range([image.reshape(-1, image.shape[2])], image.shape[2])
        extreme = ((image < low) | (image > high)).any(axis=2)
        if extreme.any() and not extreme.all():
            plane[extreme] = plane[~extreme].mean()
    low, high = (reach(grey, axis=(1, 2, 3), keepdims=True) for reach in (np.min, np.max))
    grey = (grey - low) * (255.0 / np.maximum(high - low, 1e-12))
    return resize_arrays(grey, side)[:, :, :, 0].clip(0, 255).astype(np.uint8)


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()


def _is_as_written(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether the files of a store are unchanged.

    Checksums are computed only if size or modification time of a file differ, since a store can be large.
    """
    return bool(facts["changed_ns"] == _read_times(folder) or facts["files"] == _check_sums(folder))


def _files(folder: Path) -> list[str]:
    return [_IMAGES, _MASKS, _INDEX, *([_INVALID] if (folder / _INVALID).exists() else [])]


def _read_times(folder: Path) -> dict[str, list[int]]:
    """[size in bytes, modification time in ns] of each file of a store."""
    stats = {name: (folder / name).stat() for name in _files(folder)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _check_sums(folder: Path) -> dict[str, list[int]]:
    """[size in bytes, CRC-32 of each piece] of each file of a store."""
    sizes = {name: (folder / name).stat().st_size for name in _files(folder)}
    pieces = [(folder / name, start) for name, size in sizes.items() for start in range(0, size, _PIECE_BYTES)]

    def check(piece: tuple[Path, int]) -> int:
        path, start = piece
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            return zlib.crc32(file.read(_PIECE_BYTES))

    with ThreadPoolExecutor(threads()) as pool:
        sums = list(pool.map(check, pieces))
    sums_of = {name: [size] for name, size in sizes.items()}
    for (path, _start), value in zip(pieces, sums, strict=True):
        sums_of[path.name].append(value)
    return sums_of


def _reserve(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    """Create a memory-mapped file and allocate its disk space, so that a full disk is an error here.

    Otherwise a later write to the map would crash the process.
    """
    size = max(1, int(np.prod(shape)) * dtype.itemsize)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)
