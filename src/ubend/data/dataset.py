"""A folder, understood: pairs, store, class table, split, and what is known of the pictures.

folder -> pairs -> headers -> size -> store (decoded once) -> class table -> split
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ubend.choices import Choice, Facts, choose_pictures
from ubend.config import Settings, settled
from ubend.data.folder import Folder, Pair, Part, read_folder
from ubend.data.images import Sizing, is_lossy, read_mask
from ubend.data.labels import IGNORED, LabelMap, background_class, detect_label_map
from ubend.data.splits import find_near_duplicates, split_pairs
from ubend.data.store import Store, find_damage, open_store, read_shapes
from ubend.errors import DataError, TrainingError
from ubend.language import _
from ubend.teller import Teller

_PEEKED_MASKS = 24  # masks read to count the classes before the store is laid out
_STATISTICS_PICTURES = 1000  # of the training part, evenly taken; more do not move the third digit


@dataclass(frozen=True)
class Dataset:
    """Everything that training and scoring need to know about the pictures.

    Attributes:
        folder: as found on disk.
        store: the decoded pictures, numbered as `folder.pairs`.
        labels: the class table.
        parts: the part of each pair.
        settings: with the choices that the pictures settle.
        choices: those, with reasons.
        remarks: what the user should know.
    """

    folder: Folder
    store: Store
    labels: LabelMap
    parts: tuple[Part, ...]
    settings: Settings
    choices: list[Choice]
    remarks: list[str]

    def numbers(self, part: Part) -> NDArray[np.int64]:
        """The pictures of a part, by their number in the store."""
        return np.array([i for i, mine in enumerate(self.parts) if mine == part], np.int64)

    def pairs(self, part: Part) -> list[Pair]:
        return [pair for pair, mine in zip(self.folder.pairs, self.parts, strict=True) if mine == part]

    @property
    def score_part(self) -> Part:
        """The part that scores are made on: test, or validation where there is no test."""
        return "test" if "test" in self.parts else "val"

    @property
    def sizing(self) -> Sizing:
        return _sizing(self.settings)

    def value_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(low, high), each (C,): 0 and 255 for 8 bit, else the least and greatest of the training part."""
        channels = self.store.channels
        if self.store.dtype == np.uint8:
            return np.zeros(channels), np.full(channels, 255.0)
        low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
        for number in _evenly(self.numbers("train"), _STATISTICS_PICTURES):
            pixels = self.store.image(int(number)).reshape(-1, channels)
            low, high = np.minimum(low, pixels.min(axis=0)), np.maximum(high, pixels.max(axis=0))
        return low, np.where(high > low, high, low + 1)

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the training part, in raw units."""
        channels = self.store.channels
        count, total, squares = 0, np.zeros(channels), np.zeros(channels)
        for number in _evenly(self.numbers("train"), _STATISTICS_PICTURES):
            pixels = self.store.image(int(number)).reshape(-1, channels).astype(np.float64)
            count += len(pixels)
            total += pixels.sum(axis=0)
            squares += (pixels**2).sum(axis=0)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return mean.tolist(), np.where(std > 0, std, 1).tolist()

    def class_shares(self) -> NDArray[np.float64]:
        """(C,) share of each class in the scored pixels of the training part, at native size; 0..1."""
        lookup = self.labels.lookup()
        pixels = self.store.mask_pixels[self.numbers("train")].sum(axis=0)
        counts = np.array([pixels[lookup == number].sum() for number in range(self.labels.classes)], np.float64)
        shares: NDArray[np.float64] = counts / max(1.0, counts.sum())
        return shares

    def foreground_classes(self) -> tuple[int, ...]:
        """All classes but the background, or but the commonest where none is called that."""
        background = background_class(self.labels.names)
        skipped = int(self.class_shares().argmax()) if background is None else background
        return tuple(number for number in range(self.labels.classes) if number != skipped)

    def facts(self, device: str, precision: tuple[str, str]) -> Facts:
        upright_t, upright_offset = self._upright()
        training = self.numbers("train")
        return Facts(
            self.store.channels,
            self.labels.classes,
            len(training),
            device,
            precision,
            upright_t,
            upright_offset,
        )

    def _upright(self) -> tuple[float, float]:
        """How surely, and how far, objects of the training part lie off the middle vertically rather
        than sideways: photographs of the upright world do, microscope pictures do not."""
        lookup, background = self.labels.lookup(), background_class(self.labels.names)
        offsets = []
        for number in _evenly(self.numbers("train"), _STATISTICS_PICTURES):
            index = lookup[self.store.mask(int(number))]
            objects = (index != (0 if background is None else background)) & (index != IGNORED)
            if objects.any():
                h, w = objects.shape
                y, x = (np.flatnonzero(objects) // w), (np.flatnonzero(objects) % w)
                offsets.append((2 * (y.mean() + 0.5) / h - 1, 2 * (x.mean() + 0.5) / w - 1))
        if len(offsets) < 8:
            return 0.0, 0.0
        table = np.array(offsets)
        spread = table.std(axis=0) + 1e-9
        vertical, sideways = np.abs(table.mean(axis=0)) / spread
        return float(vertical * len(table) ** 0.5), float(vertical - sideways)

    def table(self) -> str:
        """The data list as CSV: name, files, part, group, hashes."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["name", "image", "mask", "split", "group", "image_hash", "mask_hash"])
        for pair, part, hashes in zip(self.folder.pairs, self.parts, self.store.hashes, strict=True):
            files = (pair.image.resolve(), pair.mask.resolve())  # so that the run can be scored from anywhere
            writer.writerow([pair.name, *files, part, pair.group or "", *hashes])
        return out.getvalue()

    def with_parts_of(self, table: str) -> "Dataset":
        """The same data with the split of a saved data list.

        Raises:
            TrainingError: pictures or masks are not those of the list any more.
        """
        rows = list(csv.DictReader(io.StringIO(table)))
        if not rows or not {"name", "split", "image_hash", "mask_hash"} <= set(rows[0]):
            raise TrainingError(_("data.csv of the run is damaged; start a new run"))
        saved = [(row["name"], row["image_hash"], row["mask_hash"]) for row in rows]
        here = [(pair.name, *hashes) for pair, hashes in zip(self.folder.pairs, self.store.hashes, strict=True)]
        if saved != here:
            changed = sorted({row[0] for row in set(saved) ^ set(here)})
            raise TrainingError(
                _("{folder}: {count} pairs are not what the run began with ({names}); start a new run").format(
                    folder=self.folder.root, count=len(changed), names=", ".join(changed[:5])
                )
            )
        return replace(self, parts=tuple(cast(Part, row["split"]) for row in rows))


def open_dataset(root: Path, settings: Settings, device: str, cache: Path, teller: Teller) -> Dataset:
    """Understand a folder; everything wrong with it is told at once, before anything is trained.

    Raises:
        DataError: see `read_folder`, `open_store`, `detect_label_map`, `split_pairs`.
        OutputError: the cache cannot be written.
    """
    folder = read_folder(root, Path(settings.data.split) if settings.data.split else None, find_damage)
    shapes, channels = read_shapes(folder.pairs)
    native = np.array(shapes, np.int64)
    names = list(settings.data.classes or folder.classes or ()) or None
    classes = len(names) if names else _peek_classes(folder.pairs)
    settings, choices = choose_pictures(settings, native, channels, classes, device)
    teller.begin(_("reading pictures"), len(folder.pairs))
    store = open_store(folder.pairs, shapes, _sizing(settings), cache, teller.count)
    teller.end()
    known = list(folder.values) if folder.values else None
    if known is not None and not store.lossy.any():
        _refuse_strangers(folder.pairs, store, known)
    try:
        labels, remarks = detect_label_map(store.mask_pixels.sum(axis=0), bool(store.lossy.any()), names, known)
    except DataError as error:
        raise DataError([*error.problems, *_busiest_masks(folder.pairs, store)]) from error
    _refuse_unlabelled(folder.pairs, store, labels)
    split = split_pairs(
        [pair.name for pair in folder.pairs],
        [pair.part for pair in folder.pairs],
        [pair.group for pair in folder.pairs],
        find_near_duplicates(store.thumbnails),
        settings.train.seed,
        settings.data.val_share,
        settings.data.test_share,
    )
    return Dataset(folder, store, labels, split.parts, settings, choices, [*remarks, *split.remarks])


def _sizing(settings: Settings) -> Sizing:
    data = settings.data
    return Sizing(settled(data.size), data.resize == "keep", settled(data.channels))


def _peek_classes(pairs: Sequence[Pair]) -> int | None:
    """The number of classes by a few masks; None when they do not tell."""
    some = [pairs[int(i)] for i in _evenly(np.arange(len(pairs)), _PEEKED_MASKS)]
    try:
        counts = sum(np.bincount(read_mask(pair.mask).reshape(-1), minlength=256) for pair in some)
        lossy = any(is_lossy(pair.mask) for pair in some)
        return detect_label_map(np.asarray(counts), lossy)[0].classes
    except DataError:
        return None  # opening the store names the trouble


def _refuse_strangers(pairs: Sequence[Pair], store: Store, known: list[int]) -> None:
    """Fail when masks hold values that the layout of the folder does not know; each file is named."""
    strange = store.mask_pixels.copy()
    strange[:, known] = 0
    problems = []
    for number in np.flatnonzero(strange.any(axis=1)):
        values = ", ".join(map(str, np.flatnonzero(strange[number])))
        problems.append(
            _("{path}: mask values beyond the classes: {values}; this layout knows {known}, so mend the mask").format(
                path=pairs[int(number)].mask, values=values, known=", ".join(map(str, known))
            )
        )
    if problems:
        raise DataError(problems)


def _busiest_masks(pairs: Sequence[Pair], store: Store) -> list[str]:
    """The masks with the most values, where they differ: there the trouble is likely to be."""
    values = (store.mask_pixels > 0).sum(axis=1)
    if values.max() <= max(2, int(np.median(values))):
        return []
    worst = np.argsort(-values, kind="stable")[:3]
    return [_("{path}: holds {count} values").format(path=pairs[i].mask, count=values[i]) for i in worst]


def _refuse_unlabelled(pairs: Sequence[Pair], store: Store, labels: LabelMap) -> None:
    """Fail when no pixel of a mask belongs to any class."""
    scored = store.mask_pixels[:, labels.lookup() != IGNORED].sum(axis=1)
    empty = [pairs[int(i)].mask for i in np.flatnonzero(scored == 0)]
    if empty:
        raise DataError([_("{path}: no pixel of this mask has a class").format(path=path) for path in empty])


def _evenly(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).astype(np.int64)]
