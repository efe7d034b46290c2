"""Opens a folder as a data set: pairs, store, class table, splits, and facts about the images.

folder -> pairs -> headers -> scan of the masks -> class table -> object widths -> size -> store (decoded once)
       -> splits
"""

import csv
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ubend.core.autoconfig import choose_input_format
from ubend.core.errors import DataError, PairError, Problem, SettingError, TrainingError
from ubend.core.files import csv_cell, csv_text, resolve_many
from ubend.core.i18n import _, ngettext
from ubend.core.plan import Facts, InputFormat, Width
from ubend.core.progress import Reporter
from ubend.core.settings import Precision, Settings
from ubend.dataset.arrays import refuse_lost
from ubend.dataset.object_directions import measure_directions
from ubend.dataset.object_widths import find_widths
from ubend.dataset.scan import (
    LabelScan,
    agree_channels,
    damaged_cache,
    find_damage,
    read_headers,
    scan_masks,
    scan_masks_uncached,
    unknown_values_problem,
)
from ubend.dataset.splits import (
    check_groups,
    cut_folds,
    find_near_duplicates,
    hold_out,
    number_groups,
    split_pairs,
)
from ubend.dataset.store import Store, hash_pairs, open_store
from ubend.io.file_cache import FileCache
from ubend.io.images import Sizing
from ubend.labels.class_checks import find_unknown_values
from ubend.labels.class_table import IGNORED, LabelMap, background_class
from ubend.labels.classes import LabelHints, find_classes
from ubend.labels.label_values import format_values
from ubend.labels.mask_files import FileMask, mask_to_text, read_label_values
from ubend.labels.match_classes import drop_absent, find_held_classes, match_classes, match_palettes
from ubend.labels.object_ids import read_object_ids
from ubend.labels.value_table import parse_table
from ubend.layouts.folder import ReadOptions, read_folder, read_pairs
from ubend.layouts.pairs import Folder, Pair, SplitName
from ubend.layouts.split_file import SPLIT_COLUMNS
from ubend.portable.extreme_values import find_normal_range, name_values
from ubend.portable.printable import enumerate_names, some_names
from ubend.portable.raster import Header

_Result = TypeVar("_Result")
_ENLARGED = 4  # times in length and width; more is hardly meant
_PIECE_PIXELS = 2**20  # larger images are read in pieces of this size for statistics
DATA_COLUMNS = ("name", "image", "mask", "split", "group", "image_hash", "mask_hash")  # of data.csv
SKIPPED_COLUMNS = ("name", "problem")  # of skipped.csv
_STATISTICS_IMAGES = 1000  # sample, evenly spaced; more do not change the third digit


@dataclass(frozen=True)
class Dataset:
    """A data set opened for training and scoring.

    Attributes:
        folder: as found on disk.
        store: the decoded images, in the order of `folder.pairs`.
        labels: the class table.
        splits: the split of each pair.
        widths: class name -> width of its objects, measured on a sample.
        input_format: how images become the network's input.
        sizing: the same format, as needed to read one file.
        remarks: messages for the user.
        skipped: pairs skipped because of `data.skip_bad`, with their problems.
        fold: the fold that is the validation split, with `data.folds`; None: there is no such fold.
        folds: the fold of each pair, from 1; 0 for the test split; empty without folds. With `data.leave_out`, the
            folds are the groups.
        fold_groups: number of a fold -> names of its groups, with `data.leave_out`.
        headers: of the images.
        label_scan: the label values of the masks.
    """

    folder: Folder
    store: Store
    labels: LabelMap
    splits: tuple[SplitName, ...]
    widths: Mapping[str, Width]
    input_format: InputFormat
    sizing: Sizing
    remarks: list[str]
    skipped: tuple[tuple[Pair, list[str]], ...]
    headers: list[Header]
    label_scan: LabelScan
    fold: int | None = None
    folds: tuple[int, ...] = ()
    fold_groups: Mapping[int, str] = field(default_factory=dict)

    def indices(self, split: SplitName) -> NDArray[np.int64]:
        """(n,) indices of the images of a split, in the store."""
        return np.array([i for i, assigned in enumerate(self.splits) if assigned == split], np.int64)

    def pairs(self, split: SplitName) -> list[Pair]:
        return [pair for pair, assigned in zip(self.folder.pairs, self.splits, strict=True) if assigned == split]

    @property
    def scored_split(self) -> SplitName:
        """The split that is scored: test, or val if there is no test split.

        A single fold is scored on val, too: the test split is reserved for the models of all folds together.
        """
        return pick_scored_split(self.splits) if self.fold is None else "val"

    def all_folds(self) -> "Dataset":
        """The data set for the models of all folds together; all images outside test count as training images."""
        splits = tuple[SplitName, ...]("train" if fold else "test" for fold in self.folds)
        names, pixels = self.labels.names, self.store.class_pixels
        of_fold = _describe_missing(names, pixels, self.splits)
        of_all = _describe_missing(names, pixels, splits) if "test" in splits else []  # else every image is scored
        remarks = [line for line in self.remarks if line not in of_fold] + of_all
        return replace(self, splits=splits, remarks=remarks, fold=None)

    def value_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(low, high), each (C,): 0 and 255 for 8 bit, else minimum and maximum of the training split.

        Pixels with values outside `normal_range` do not count.
        """
        channels = self.store.channels
        if self.store.dtype == np.uint8:
            return np.zeros(channels), np.full(channels, 255.0)
        low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
        for pixels in self._training_pixels():
            if len(pixels):
                low, high = np.minimum(low, pixels.min(axis=0)), np.maximum(high, pixels.max(axis=0))
        return low, np.where(high > low, high, low + 1)

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the training split, in raw units.

        Pixels with values outside `normal_range` do not count.
        """
        channels = self.store.channels
        count, total, squares = 0, np.zeros(channels), np.zeros(channels)
        for pixels in self._training_pixels():
            planes = np.ascontiguousarray(pixels.T, np.float64)  # 9 times as fast as sums over interleaved channels
            count += len(pixels)
            total += planes.sum(axis=1)
            squares += np.einsum("cp,cp->c", planes, planes)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return mean.tolist(), np.where(std > 0, std, 1).tolist()

    @cached_property
    def normal_range(self) -> NDArray[np.float64]:
        """(2, C) bounds of the values, of a sample (`_pixels`), see `find_normal_range`; infinite for 8 bit."""
        if self.store.dtype == np.uint8:
            return np.repeat([[-np.inf], [np.inf]], self.store.channels, axis=1)
        pieces = (pixels for _number, pixels in self._pixels(np.arange(len(self.store))))
        return find_normal_range(pieces, self.store.channels)

    def extreme_pixels(self) -> dict[int, NDArray[Any]]:
        """Index of an image -> (P,) its values outside `normal_range`; only images of a sample (`_pixels`) with any."""
        extremes = dict[int, list[NDArray[Any]]]()
        for index, pixels in self._pixels(np.arange(len(self.store))) if np.isfinite(self.normal_range).any() else ():
            if (extreme := self._is_extreme(pixels)).any():
                extremes.setdefault(index, []).append(pixels[extreme])
        return {index: np.concatenate(pieces) for index, pieces in extremes.items()}

    def describe_extremes(self) -> list[str]:
        """A message, with the remedy, if images have values outside `normal_range`; otherwise no line."""
        extremes = self.extreme_pixels()
        if not extremes:
            return []
        values, commonest = name_values(extremes.values())
        line = ngettext(
            "note: {count} image has values far outside the range of all others ({values}): {names}; probably nodata "
            "or hot pixels; mean, standard deviation and value range ignore them, but a prediction of this image will "
            "be wrong: declare them as the file's nodata value (gdal_edit.py -a_nodata {value}), or save them as NaN",
            "note: {count} images have values far outside the range of all others ({values}): {names}; probably nodata "
            "or hot pixels; mean, standard deviation and value range ignore them, but predictions of these images will "
            "be wrong: declare them as the files' nodata value (gdal_edit.py -a_nodata {value}), or save them as NaN",
            len(extremes),
        )
        return [
            line.format(
                count=len(extremes),
                values=values,
                names=enumerate_names([self.folder.pairs[index].image.name for index in sorted(extremes)]),
                value=commonest,
            )
        ]

    def _is_extreme(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        """(P, C) whether values are outside `normal_range`."""
        low, high = self.normal_range
        return np.asarray((pixels < low) | (pixels > high))

    def _training_pixels(self) -> Iterator[NDArray[Any]]:
        """(P, C) pixels of the training split, without those with values outside `normal_range`; P may be 0."""
        bounded = np.isfinite(self.normal_range).any()
        for _number, pixels in self._pixels(self.indices("train")):
            yield pixels[~self._is_extreme(pixels).any(axis=1)] if bounded else pixels

    def _pixels(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[Any]]]:
        """(index, (P, C) valid pixels) of a sample of these images, large images in pieces; P may be 0.

        At most `_STATISTICS_IMAGES` images, and as many pieces, evenly spaced.
        """
        indices = _evenly(indices, _STATISTICS_IMAGES)
        pieces = [
            (int(index), start, min(start + _PIECE_PIXELS, pixels))
            for index, pixels in zip(indices, self.store.shapes_hw[indices].prod(axis=1).tolist(), strict=True)
            for start in range(0, pixels, _PIECE_PIXELS)
        ]
        for piece_index in _evenly(np.arange(len(pieces)), _STATISTICS_IMAGES):
            index, start, stop = pieces[piece_index]
            pixels, invalid = self.store.image(index).reshape(-1, self.store.channels), self.store.invalid(index)
            piece = pixels[start:stop]
            yield index, piece if invalid is None else piece[~invalid.reshape(-1)[start:stop]]

    def class_shares(self) -> NDArray[np.float64]:
        """(C,) fraction of each class in the scored pixels of the training split, at native size; 0..1."""
        counts = self.store.class_pixels[self.indices("train"), : self.labels.classes].sum(axis=0)
        return np.asarray(counts / max(1, int(counts.sum())))

    @property
    def background_index(self) -> int:
        """Index of the class called background, or of the most common class if none is called so."""
        background = background_class(self.labels.names)
        return int(self.class_shares().argmax()) if background is None else background

    def foreground_classes(self) -> tuple[int, ...]:
        """All class indices except `background_index`."""
        skipped = self.background_index
        return tuple(index for index in range(self.labels.classes) if index != skipped)

    def facts(
        self,
        device: str,
        precision: tuple[Precision, str],
        pretrained: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> Facts:
        """The facts on which automatic choices are based; for the arguments see `Facts`."""
        training, names = self.indices("train"), self.labels.names
        return Facts(
            input_format=self.input_format,
            training_images=len(training),
            training_pixels=int(self.store.shapes_hw[training].prod(axis=1).sum()),
            shares=dict(zip(names, self.class_shares().tolist(), strict=True)),
            foreground=tuple(names[class_index] for class_index in self.foreground_classes()),
            directions=measure_directions(self._thinned_masks(), self.background_index),
            device=device,
            precision=precision,
            pretrained=pretrained,
        )

    def _thinned_masks(self) -> Iterator[NDArray[np.uint8]]:
        """Masks of a sample of the training split, (H, W) of at most about `_PIECE_PIXELS`."""
        for index in _evenly(self.indices("train"), _STATISTICS_IMAGES):
            mask = self.store.mask(int(index))
            thin = max(1, int((mask.size / _PIECE_PIXELS) ** 0.5))  # positions need not be exact to the pixel
            yield mask[::thin, ::thin]

    def table(self) -> str:
        """The list of pairs as CSV: name, files, split, group, hashes."""
        resolve = resolve_many()  # absolute paths, so that the run can be scored from any working folder
        rows = [DATA_COLUMNS]
        for pair, split, hashes in zip(self.folder.pairs, self.splits, self.store.hashes, strict=True):
            image, mask = resolve(pair.image), mask_to_text(pair.mask, resolve)
            rows.append((pair.name, image, mask, split, pair.group or "", hashes[0], hashes[1]))
        return csv_text(rows)

    def skipped_table(self) -> str:
        """The skipped files and pairs as CSV: name, problem."""
        rows = [*self.folder.skipped, *((pair.name, problem) for pair, cause in self.skipped for problem in cause)]
        return csv_text([SKIPPED_COLUMNS, *rows])

    def split_table(self) -> str:
        """The splits as CSV for `--split`: file, split, group; includes skipped pairs."""
        pairs = [
            *zip(self.folder.pairs, self.splits, strict=True),
            *((p, p.split or "train") for p, _why in self.skipped),
        ]
        return csv_text([SPLIT_COLUMNS, *((pair.name, split, pair.group or "") for pair, split in pairs)])

    def with_splits_of(self, table: str) -> "Dataset":
        """The same data with the splits of a saved `table`.

        Raises:
            TrainingError: the table is damaged, or images or masks have changed since it was saved.
        """
        rows = [{key: csv_cell(cell or "") for key, cell in row.items()} for row in csv.DictReader(io.StringIO(table))]
        if not rows or not set(DATA_COLUMNS) <= set(rows[0]):
            raise TrainingError(_("data.csv of the run is damaged; start a new run"), key="data.csv")
        saved = [(row["name"], row["image_hash"], row["mask_hash"]) for row in rows]
        here = [(pair.name, *hashes) for pair, hashes in zip(self.folder.pairs, self.store.hashes, strict=True)]
        if saved != here:
            changed = sorted({row[0] for row in set(saved) ^ set(here)})
            raise TrainingError(
                ngettext(
                    "{folder}: {count} pair has changed since the run was started ({names}); start a new run",
                    "{folder}: {count} pairs have changed since the run was started ({names}); start a new run",
                    len(changed),
                ).format(folder=self.folder.root, count=len(changed), names=some_names(changed)),
                path=self.folder.root,
            )
        return replace(self, splits=tuple(cast(SplitName, row["split"]) for row in rows))


def find_folder(settings: Settings) -> Folder:
    """Read the folder or file lists given by the settings; see `read_folder` and `read_pairs`.

    Raises:
        SettingError: neither is given, or both.
        DataError: see `read_folder`.
    """
    data = settings.data

    def find(pairs: Sequence[Pair]) -> list[str]:
        return [problem for problems in find_damage(pairs, data.channels).values() for problem in problems]

    options = ReadOptions(Path(data.split) if data.split else None, data.skip_bad, data.unmasked, find)
    if data.images is not None and data.masks is not None and data.folder is None:
        refuse_lost(Path(data.images))
        return read_pairs(data.images, data.masks, options)
    if data.images is not None or data.masks is not None:
        raise SettingError(_("use --images and --masks together, and without FOLDER"), key="data.images")
    if data.folder is None:
        raise SettingError(_("give the FOLDER of images and masks, or --images and --masks"), key="data.folder")
    return read_folder(Path(data.folder), options)


def open_dataset(settings: Settings, device: str, cache: Path, reporter: Reporter) -> Dataset:
    """Open the data set given by the settings; all its problems are reported together, before training.

    With `data.skip_bad`, pairs that cannot be used are skipped and recorded.

    Raises:
        DataError: see `read_folder`, `scan_masks`, `find_classes`, `open_store`, `split_pairs`, `cut_folds`,
            `check_groups`.
        SettingError: several folds are requested, but not which of them is the validation split.
        OutputError: the cache cannot be written, or the disk is full.
    """
    several = settings.data.folds is not None or settings.data.leave_out is not None or settings.train.effort == "best"
    if settings.data.held_out is None and several:
        line = _(
            "several folds are several trainings: `ubend fit` and `ubend.fit` run them, or set one as data.held_out"
        )
        raise SettingError(line, key="data.folds")
    return read_usable(
        settings, lambda folder, skipped: open_folder(folder, settings, device, cache, reporter, skipped)
    )


def read_usable(settings: Settings, read: Callable[[Folder, list[tuple[Pair, list[str]]]], _Result]) -> _Result:
    """Call `read` for the folder given by the settings, and return its result.

    Args:
        read: called with the folder and the skipped pairs with their problems; with `data.skip_bad` it is called
            again without the pairs of a PairError.
    Raises:
        PairError: pairs that cannot be used.
    """
    folder = find_folder(settings)
    skipped: list[tuple[Pair, list[str]]] = []
    while True:
        try:
            return read(folder, skipped)
        except PairError as error:
            usable = tuple(pair for pair in folder.pairs if pair.name not in error.bad)
            if not settings.data.skip_bad or not usable:
                more = find_damage(folder.pairs, settings.data.channels)
                more = {name: list(dict.fromkeys([*error.bad.get(name, []), *causes])) for name, causes in more.items()}
                raise PairError(error.bad | more) from error
            skipped += [(pair, error.bad[pair.name]) for pair in folder.pairs if pair.name in error.bad]
            folder = replace(folder, pairs=usable)


def open_folder(
    folder: Folder,
    settings: Settings,
    device: str,
    cache: Path,
    reporter: Reporter,
    skipped: Sequence[tuple[Pair, list[str]]],
) -> Dataset:
    """Open the data set of these pairs; `skipped` are left out, with their problems.

    Raises:
        PairError: pairs that cannot be used.
    """
    pairs = folder.pairs
    if settings.data.leave_out is not None:
        check_groups([pair.name for pair in pairs], [pair.group for pair in pairs])
    scan = scan_folder(folder, settings, cache, reporter)
    labels, remarks = scan.labels, scan.remarks
    widths = find_widths(pairs, scan.shapes_hw, labels, [mask for _image, mask in scan.hashes], cache, reporter.report)
    native_hw = np.array(scan.shapes_hw, np.int64)
    input_format = choose_input_format(settings, native_hw, scan.channels, labels.classes, widths, device)
    sizing = Sizing(input_format.size, input_format.resize != "squash", input_format.channels)
    reporter.begin(_("reading images"), len(pairs))
    store = open_store(pairs, scan.shapes_hw, sizing, labels, scan.hashes, cache, reporter.count, reporter.report)
    reporter.end()
    empty = np.flatnonzero(store.class_pixels[:, : labels.classes].sum(axis=1) == 0)
    if len(empty):
        line = _("{path}: no pixel of this mask has a class")
        paths = {pairs[i].name: pairs[i].mask.path for i in empty.tolist()}
        raise PairError({name: [Problem(line.format(path=path), path)] for name, path in paths.items()})
    if count := int(store.has_invalid.sum()):
        line = ngettext(
            "{count} of {all} images has invalid pixels (nodata, alpha 0, NaN or a mask in the file); they "
            "are neither trained on nor scored",
            "{count} of {all} images have invalid pixels (nodata, alpha 0, NaN or a mask in the file); they "
            "are neither trained on nor scored",
            count,
        )
        remarks.append(line.format(count=count, all=len(pairs)))
    holds = find_held_classes(scan.label_scan, labels)
    split = _choose_splits(pairs, settings, find_near_duplicates(store.thumbnails), holds)
    if skipped or folder.skipped:
        count = len(skipped) + len({name for name, _problem in folder.skipped})
        remarks.append(
            ngettext(
                "{count} bad file or pair is skipped; a run lists it in skipped.csv",
                "{count} bad files or pairs are skipped; a run lists them in skipped.csv",
                count,
            ).format(count=count)
        )
    remarks += _describe_enlarged(native_hw, input_format.size)
    remarks = [*remarks, *split.remarks, *_describe_missing(labels.names, store.class_pixels, split.splits)]
    return Dataset(
        folder=folder,
        store=store,
        labels=labels,
        splits=split.splits,
        widths=widths,
        input_format=input_format,
        sizing=sizing,
        remarks=remarks,
        skipped=tuple(skipped),
        headers=scan.headers,
        label_scan=scan.label_scan,
        fold=split.fold,
        folds=split.folds,
        fold_groups=split.fold_groups,
    )


class _Split(NamedTuple):
    """The split and the folds of a data set; for the fields see `Dataset`."""

    splits: tuple[SplitName, ...]
    remarks: tuple[str, ...]
    fold: int | None = None
    folds: tuple[int, ...] = ()
    fold_groups: Mapping[int, str] = {}


def _choose_splits(
    pairs: Sequence[Pair], settings: Settings, duplicates: NDArray[np.int64], holds: NDArray[np.bool_]
) -> _Split:
    """Split the pairs as the settings say: into splits, into folds, or with one group left out.

    Args:
        duplicates: (N,) from `find_near_duplicates`.
        holds: (N, C) from `find_held_classes`.
    """
    data = settings.data
    seed = settings.train.seed if data.split_seed is None else data.split_seed
    names, groups = [pair.name for pair in pairs], [pair.group for pair in pairs]
    if data.leave_out is not None:
        return _leave_group_out(pairs, settings, duplicates, seed)
    tested = data.test != "none"
    stated = [pair.split if tested else None for pair in pairs]
    split = split_pairs(names, stated, groups, duplicates, seed, data.val_share, data.test_share, holds)
    if data.folds is None:
        return _Split(split.splits, split.remarks)
    splits = split.splits if tested else tuple[SplitName, ...]("train" for _split in split.splits)
    fold_of = cut_folds(names, splits, groups, duplicates, seed, data.folds, holds).tolist()
    splits = tuple("test" if fold == 0 else "val" if fold == data.held_out else "train" for fold in fold_of)
    return _Split(splits, split.remarks, data.held_out, tuple(fold_of))


def _leave_group_out(pairs: Sequence[Pair], settings: Settings, duplicates: NDArray[np.int64], seed: int) -> _Split:
    """The split without the group of number `data.held_out`, which is the test split.

    Raises:
        DataError: there is no such group.
    """
    data = settings.data
    groups, held_out = [pair.group for pair in pairs], data.held_out or 1
    group_of, fold_groups = number_groups(groups, duplicates)
    if held_out not in fold_groups:
        line = _("data.held_out = {number}: there are only {count} groups to leave out")
        raise DataError(line.format(number=held_out, count=len(fold_groups)), key="data.held_out")
    names = [pair.name for pair in pairs]
    split = hold_out(names, groups, duplicates, group_of, held_out, seed, data.val_share)
    remarks = list(split.remarks)
    if joined := [name for name in fold_groups.values() if name not in groups]:
        line = _("groups that share near-identical images are left out together: {names}")
        remarks.append(line.format(names="; ".join(joined)))
    if any(pair.split for pair in pairs):
        remarks.append(_("the given split is not used, because every group is left out once (--leave-out)"))
    return _Split(split.splits, tuple(remarks), None, tuple(group_of.tolist()), fold_groups)


def pick_scored_split(splits: Collection[SplitName]) -> SplitName:
    """The split that is scored: test, or val if there is no test split."""
    return "test" if "test" in splits else "val"


class MissingClasses(NamedTuple):
    """Names of the classes that a split lacks.

    Attributes:
        untrained: only in validation or test images.
        unscored: in training images, not in images of the scored split.
        unvalidated: in training and test images, not in those of the validation split, if there is one.
    """

    untrained: list[str]
    unscored: list[str]
    unvalidated: list[str]


def find_missing_classes(
    names: Sequence[str], pixels: NDArray[np.int64], splits: Sequence[SplitName]
) -> MissingClasses:
    """The classes that no image of a split holds, of the (N, 256) pixels of each class in each image."""
    found, scored = MissingClasses([], [], []), pick_scored_split(splits)
    for name, counts in zip(names, pixels.T[: len(names)].tolist(), strict=True):
        present_in = {split for split, count in zip(splits, counts, strict=True) if count}
        if present_in and "train" not in present_in:
            found.untrained.append(name)
        elif present_in and scored not in present_in:
            found.unscored.append(name)
        elif present_in and "val" in splits and "val" not in present_in:
            found.unvalidated.append(name)
    return found


def _describe_missing(names: Sequence[str], pixels: NDArray[np.int64], splits: Sequence[SplitName]) -> list[str]:
    """Lines on classes that no image of a split holds."""
    sentences = (
        _("classes missing from the training split ({count}): {names}; to learn them, move images there"),
        _("classes missing from the {split} split ({count}): {names}; they have no score"),
        _("classes missing from the validation split ({count}): {names}; the best epoch is chosen without them"),
    )
    found = zip(sentences, find_missing_classes(names, pixels, splits), strict=True)
    return [
        line.format(count=len(missing), names=enumerate_names(missing), split=pick_scored_split(splits))
        for line, missing in found
        if missing
    ]


@dataclass(frozen=True)
class FolderScan:
    """Facts from image headers and masks, before images are decoded.

    Attributes:
        shapes_hw: native (height, width) of each image.
        channels: of the images as read.
        hashes: digests of each image and mask.
        labels: the class table.
        remarks: messages for the user.
        headers: of the images.
        label_scan: the label values of the masks.
    """

    shapes_hw: list[tuple[int, int]]
    channels: int
    hashes: list[list[str]]
    labels: LabelMap
    remarks: list[str]
    headers: list[Header]
    label_scan: LabelScan


def scan_folder(folder: Folder, settings: Settings, cache: Path, reporter: Reporter) -> FolderScan:
    """Read the image headers and masks of a folder, and find its class table.

    Raises:
        PairError: pairs that cannot be used.
        DataError: the masks do not define the classes.
    """
    pairs = folder.pairs
    file_cache = FileCache(cache, folder.root, settings.data.channels)
    if file_cache.damaged:
        reporter.report(damaged_cache(file_cache.damaged))
    headers = read_headers(pairs, settings.data.channels, file_cache)
    channels, notes = agree_channels(headers, pairs, settings.data.channels)
    shapes = [header.size_hw for header in headers]
    hashes = hash_pairs(pairs, file_cache)
    file_cache.save()
    reporter.begin(_("reading masks"), len(pairs))
    label_scan = scan_masks(pairs, shapes, [mask for _image, mask in hashes], cache, reporter.count, reporter.report)
    reporter.end()
    labels, remarks = _find_classes(folder, settings, label_scan)
    unknown = find_unknown_values(label_scan, labels)
    _refuse_unmasked(folder, labels)
    if unknown:
        raise PairError({pairs[i].name: [unknown_values_problem(pairs[i], unknown[i], labels)] for i in unknown})
    return FolderScan(shapes, channels, hashes, labels, [*folder.remarks, *notes, *remarks], headers, label_scan)


def _refuse_unmasked(folder: Folder, labels: LabelMap) -> None:
    """Raise SettingError if images without a mask file were read as the value 0, and that is not the background."""
    background = background_class(labels.names)
    named = {pair.name for pair in folder.unmasked} & {pair.name for pair in folder.pairs}
    if named and (background is None or 0 not in labels.codes[background]):
        line = _(
            "data.unmasked = background needs masks whose value 0, or the colour black, is called background; give "
            '--values 0=background,VALUE=NAME,... or "#000000=background,COLOR=NAME,..."'
        )
        raise SettingError(line, key="data.unmasked")


def _describe_enlarged(native_hw: NDArray[np.int64], size: int | None) -> list[str]:
    """A remark if most images become more than `_ENLARGED` times longer and wider at the model size."""
    side = float(np.median(np.sqrt(native_hw.prod(axis=1))))
    if size is None or size <= _ENLARGED * side:
        return []
    line = _("note: images of about {side:.0f} px are enlarged to {size} px, which takes time and shows nothing more")
    return [line.format(side=side, size=size)]


def _find_classes(folder: Folder, settings: Settings, label_scan: LabelScan) -> tuple[LabelMap, list[str]]:
    data = settings.data
    names = data.classes or (folder.classes if data.values is None else None)
    hints = LabelHints(data.values or folder.table, names, folder.values, folder.colors, folder.ignored)
    pairs, said = folder.pairs, list[str]()
    try:
        if all(isinstance(pair.mask, FileMask) for pair in pairs):
            hints, said = read_object_ids(label_scan, hints, lambda i: read_label_values(pairs[i].mask, (1, 1)).values)
        labels, remarks = find_classes(label_scan, hints)
        return labels, _describe_replaced(folder, settings) + said + remarks
    except DataError as error:
        raise DataError(
            f"{error}{_oddest_masks(folder.pairs, label_scan)}", path=error.path or folder.root, key=error.key
        ) from error


def _describe_replaced(folder: Folder, settings: Settings) -> list[str]:
    """A remark if the settings give the folder's own classes another order, or some of them other names."""
    given, stated = tuple(settings.data.classes or ()), tuple(folder.classes or ())
    if given == stated or {*given}.isdisjoint(stated) or settings.data.values is not None:
        return []
    line = _("note: the classes are {given}, as in --classes, and not {stated}, as in the folder")
    return [line.format(given=", ".join(given), stated=", ".join(stated))]


def match_folder(folder: Folder, settings: Settings, model: LabelMap, chosen: Sequence[Pair]) -> LabelMap:
    """The class table of a folder's masks, in the order of a model's classes.

    Classes named by the folder or the settings are matched by name, and palettes without names by colour, if the
    colours are the model's; otherwise the masks are expected to have the model's own label values. Classes of the
    model that the masks cannot contain have no label values.

    Args:
        settings: `data.values`, if set, must name the model's classes.
        model: classes and label values of the model.
        chosen: the pairs to be scored.
    Raises:
        SettingError: `data.values` names a class that the model does not have.
        DataError: the folder's own class list names such a class, or the masks do not define their classes.
        PairError: images or masks that cannot be read.
    """
    if settings.data.values is not None:
        return parse_table(settings.data.values, settings.data.classes).in_order_of(model.names, model.colors)
    named = settings.data.classes is not None or folder.classes is not None
    pairs = folder.pairs if named else chosen
    try:
        plain = not named and read_label_values(chosen[0].mask, (1, 1)).palette is None
    except DataError as error:
        raise PairError({chosen[0].name: error.problems}) from error
    if plain and model.classes == 2:
        return model
    label_scan = scan_masks_uncached(pairs, [header.size_hw for header in read_headers(pairs, settings.data.channels)])
    if not named:
        return drop_absent(label_scan, model if plain else match_palettes(label_scan, model))
    labels, _remarks = _find_classes(folder, settings, label_scan)
    names = {pair.name for pair in chosen}
    wanted = np.array([pair.name in names for pair in folder.pairs])
    values = label_scan.entries(labels.kind)[wanted[label_scan.mask_of]]
    occurring = set(labels.classify(np.unique(values))[0].tolist()) - {IGNORED}
    numbered = all(isinstance(pair.mask, FileMask) for pair in folder.pairs)
    try:
        return match_classes(labels, model, occurring, numbered=numbered)
    except DataError as error:
        raise DataError(str(error), path=folder.root, key=error.key) from error


def _oddest_masks(pairs: Sequence[Pair], label_scan: LabelScan) -> str:
    """An addition to an error message: the masks with the rarest label values, probably the faulty ones.

    Empty if most masks have rare numbers, such as object ids.
    """
    entries = label_scan.entries(label_scan.kind())
    _codes, inverse, masks = np.unique(entries, return_inverse=True, return_counts=True)
    rarity = np.minimum.reduceat(masks[inverse], label_scan.starts[:-1].clip(max=max(0, len(entries) - 1)))
    odd = rarity < len(label_scan) / 2
    if not odd.any() or (label_scan.kind() == "value" and 2 * odd.sum() > len(odd)):
        return ""
    worst = [int(i) for i in np.argsort(rarity, kind="stable")[:3] if odd[i]]
    rare = {i: entries[label_scan.mask_of == i][masks[inverse[label_scan.mask_of == i]] == rarity[i]] for i in worst}
    named = [f"{pairs[i].mask.path}: {format_values(rare[i].tolist(), label_scan.kind())}" for i in worst]
    return _(" (rare values: {masks})").format(masks=", ".join(named))


def _evenly(indices: NDArray[np.int64], maximum: int) -> NDArray[np.int64]:
    """At most `maximum` of the numbers, evenly spaced."""
    if len(indices) <= maximum:
        return indices
    return indices[np.linspace(0, len(indices) - 1, maximum).astype(np.int64)]
