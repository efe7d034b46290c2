"""Score a model: on the test split of its own run, or on any folder of images and masks."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from ubend.core.errors import DataError, OutputError, SettingError
from ubend.core.files import csv_cell
from ubend.core.i18n import _, ngettext
from ubend.core.progress import Reporter
from ubend.core.settings import Settings
from ubend.dataset.arrays import refuse_lost
from ubend.dataset.dataset import match_folder, read_usable
from ubend.dataset.store import hash_pairs
from ubend.evaluation.caveats import (
    SplitLookup,
    describe_few,
    describe_seen,
    describe_validation,
    only_training_images,
)
from ubend.evaluation.scores import evaluate_pairs, identify_images
from ubend.inference.ensemble import shared_views
from ubend.inference.predictor import Predictor, load
from ubend.io.images import LoadedImage
from ubend.labels.class_table import LabelMap
from ubend.labels.label_values import format_values
from ubend.labels.mask_files import mask_from_text
from ubend.layouts.pairs import Folder, Pair, SplitName
from ubend.models.ensemble_net import EnsembleNet
from ubend.portable.extremes import ExtremeValues
from ubend.portable.input_checks import take_pixels
from ubend.portable.printable import some_names
from ubend.portable.raster import Header
from ubend.portable.tiling import TileSource
from ubend.tasks.user_settings import read_user_settings
from ubend.training.run_folder import RunFolder

_SETTINGS = ("data.unmasked",)  # of a folder to score, which have no option of their own


def evaluate(
    model: Path | str,
    folder: Path | str | None = None,
    *,
    subset: SplitName | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    tiles: int | None = None,
    tta: bool = False,
    network: nn.Module | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score a model on images with masks.

    Images of a folder that were in the model's training split are recognised by their pixels and left out, unless
    `subset` is train. If all images of a folder are the model's own (the moved data of its run), they keep their
    splits. With `skip_bad`, pairs that cannot be used are left out and listed under `skipped`.

    Args:
        model: a run folder or a model file.
        folder: images with masks, or the name of a data set; None: the data of the run (`model` is a run folder).
        subset: which split; None: test if there is one, else validation, else all.
        settings: {"data.unmasked": "background"}: images of `folder` without a mask file show background alone.
        device: None: the best one available.
        tiles: side of the tiles in px, 0: whole images; None: as the model was trained.
        tta: test-time augmentation, see `average_views`.
        network: your own network, if the model was trained with it.
        options: images, masks, split, skip_bad, root: see `fit`; values: the class of each label value of `folder`, by
            the model's class names. Without `values`, classes that the folder names (annotations, class lists, ...)
            are matched by name; otherwise the label values mean the same as in the model's training masks. Classes of
            the model without a label value in `folder` have no score.
    Returns:
        The result of `ubend.evaluation.scores.evaluate_pairs`, and `part`: the scored split, or `all`.
    Raises:
        PairError: lists all pairs that cannot be used.
        DataError: no images in that split, or only training images.
        SettingError: a setting that does not describe a folder.
    """
    _refuse_settings_of_training(settings or {})
    predictor = load(model, device, tiles=tiles, network=network)
    predictor = average_views(Path(model), predictor, tiles) if tta else predictor
    if folder is None and options.get("images") is None:
        scored = _score_run(Path(model), predictor, subset, skip_bad=bool(options.get("skip_bad")))
    else:
        scored = _score_folder(predictor, read_user_settings(folder, settings=settings, flags=options).settings, subset)
    with reporter or Reporter() as log:
        for line in [*scored.lines, *describe_few(len(scored.scores["per_picture"]), scored.split)]:
            log.report(line)
    return {"part": scored.split or "all", **scored.scores}


class _Scored(NamedTuple):
    """The result of `evaluate_pairs`, the split that was scored (None: all), and messages for the user."""

    scores: dict[str, Any]
    split: SplitName | None
    lines: list[str]


def _score_run(run: Path, predictor: Predictor, subset: SplitName | None, *, skip_bad: bool) -> _Scored:
    """Score a model on the images of its own run."""
    rows = read_run_rows(run)
    split, pairs = _choose_present(run, [pair for pair, _hashes in rows], subset)
    if split is None:  # no test and no validation split, as after --folds K --test none
        line = _(
            "{run}: all {count} images are training images of the model, so a score of them says nothing of new "
            "images; the score of the training is in {scores}. Give a folder of other images, or --subset train"
        )
        raise DataError(line.format(run=run, count=len(pairs), scores=RunFolder(run).scores), key="--subset")
    inspecting = _ExtremesPredictor(predictor)
    scores = evaluate_pairs(inspecting, pairs, skip_bad=skip_bad)
    scored = [(pair, hashes) for pair, hashes in rows if pair.name in scores["per_picture"]]
    now = hash_pairs([pair for pair, _then in scored])
    scores["images"] = identify_images([pair for pair, _then in scored], now)
    lines = [*_describe_changed(scored, now), *describe_validation(len(pairs) if split == "val" else 0)]
    return _Scored(scores, split, [*lines, *inspecting.extremes.describe()])


def _score_folder(predictor: Predictor, settings: Settings, subset: SplitName | None) -> _Scored:
    """Score a model on the images and masks that the settings name; its training images are left out."""
    split_lookup, skip_bad = SplitLookup([predictor.bundle]), settings.data.skip_bad

    def score(folder: Folder, skipped: Sequence[tuple[Pair, list[str]]]) -> _Scored:
        chosen, pairs = choose_subset(folder.pairs, subset, split_lookup)
        labels = match_folder(folder, settings, predictor.labels, pairs)
        filtered = _NewImagesPredictor(predictor, split_lookup, pairs, chosen)
        scores = evaluate_pairs(filtered, pairs, labels, skip_bad=skip_bad, select=filtered.select)
        left_out = {name: [problem] for name, problem in folder.skipped} | {pair.name: why for pair, why in skipped}
        left_out |= scores.pop("skipped", {})
        scores |= {"skipped": left_out} if left_out else {}
        scored = [pair for pair in pairs if pair.name in scores["per_picture"]]
        scores["images"] = identify_images(scored, hash_pairs(scored))
        lines = [*_describe_unmapped(labels), *describe_seen(split_lookup, filtered.left_out, filtered.validation)]
        return _Scored(scores, filtered.split, [*lines, *filtered.extremes.describe()])

    return read_usable(settings, score)


def _refuse_settings_of_training(settings: Mapping[str, Any]) -> None:
    if others := [key for key in settings if key not in _SETTINGS]:
        line = _(
            "{key} cannot be set here, only {keys}; the folder has options of its own, and the rest is the model's"
        )
        raise SettingError(line.format(key=others[0], keys=", ".join(_SETTINGS)), key=others[0])


def average_views(model: Path, predictor: Predictor, tiles: int | None) -> Predictor:
    """A predictor that averages the probabilities of the model over the views of `find_views`, at model size.

    `predict --tta` averages them at the image's own size, so their scores differ in the third or fourth decimal.
    """
    bundle = predictor.bundle
    views = shared_views([(model, bundle)])
    if views == "plain":  # trained without flips, or the network averages its views itself
        return predictor
    network = EnsembleNet([bundle.model], views).eval()
    return Predictor(replace(bundle, model=network), predictor.device, tiles=tiles)


def _describe_unmapped(labels: LabelMap) -> list[str]:
    """A warning about classes of the model without a label value, if any."""
    unmapped = [labels.names[index] for index in labels.unmapped]
    line = _(
        "WARNING: the masks are read as {known}; no label value is assigned to {unmapped}, which gets no score and is "
        "not part of the means. If the values mean something else, give their classes with --values"
    )
    mapped = ((values, name) for values, name in zip(labels.codes, labels.names, strict=True) if values)
    known = [f"{format_values(values, labels.kind)} -> {name}" for values, name in mapped]
    return [line.format(known=", ".join(known), unmapped=", ".join(unmapped))] if unmapped else []


def choose_subset(
    pairs: Sequence[Pair], subset: SplitName | None, split_lookup: SplitLookup | None = None
) -> tuple[SplitName | None, list[Pair]]:
    """The split to score, and its pairs; `subset` None: the test split if there is one, else validation, else all.

    Args:
        split_lookup: a model's images that may be among the pairs; they are recognised only when read, so all pairs are
            returned unless the folder states a test split.
    Raises:
        DataError: there are none.
    """
    splits = {pair.split for pair in pairs}
    if subset is None and (not split_lookup or "test" in splits):
        subset = _scored_split(splits)
    elif split_lookup:
        return subset, list(pairs)
    chosen = [pair for pair in pairs if subset is None or pair.split == subset]
    if not chosen:
        raise _no_images(subset, splits)
    return subset, chosen


def _scored_split(splits: Iterable[SplitName | None]) -> SplitName | None:
    """The split to score among the existing ones: test, else validation, else all."""
    existing = set(splits)
    return next((name for name in cast(tuple[SplitName, ...], ("test", "val")) if name in existing), None)


def _no_images(split: SplitName | None, splits: Iterable[SplitName | None]) -> DataError:
    existing = ", ".join(sorted({name for name in splits if name}))
    line = _("no images in the split {subset}; available: {found}")
    if not existing:
        line = _("no images in the split {subset}: the folder states no splits; leave out --subset, or give --split")
    return DataError(line.format(subset=split, found=existing), key="--subset")


class _ExtremesPredictor:
    """A predictor for `evaluate_pairs` that detects values far beyond those of the training images.

    Attributes:
        extremes: the values found.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.labels, self.inspect, self.run = predictor.labels, predictor.inspect, predictor.run
        self._predictor, self.extremes = predictor, ExtremeValues(predictor.bundle)

    def prepare(self, image: Path, header: Header) -> TileSource | None:
        loaded = take_pixels(image, self._predictor.bundle, header)
        if not self._is_scored(image, loaded):
            return None
        self.extremes.look(image, loaded.pixels)
        return self._predictor.resize_input(loaded)

    def _is_scored(self, _image: Path, _loaded: LoadedImage) -> bool:
        return True


class _NewImagesPredictor(_ExtremesPredictor):
    """A predictor for `evaluate_pairs` that skips training images of its model.

    An image belongs to the split that its folder states, and to its split in the model's training.

    Args:
        split_lookup: the model's images.
        pairs: those that are read.
        split: the split to score; None: `select` decides.
    Attributes:
        split: the split that is scored; None: all.
        left_out: names of the training images that are not scored.
        validation: number of scored images that are validation images.
    """

    def __init__(
        self, predictor: Predictor, split_lookup: SplitLookup, pairs: Sequence[Pair], split: SplitName | None
    ) -> None:
        super().__init__(predictor)
        self._known, self._pairs, self.split = split_lookup, pairs, split
        self._stated = {pair.image: pair.split for pair in pairs}
        self._splits: dict[Path, SplitName | None] = {}
        self.left_out: list[str] = []
        self.validation = 0

    def _is_scored(self, image: Path, loaded: LoadedImage) -> bool:
        split = self._splits[image] = self._known.find_split(loaded.pixels)
        seen = split == "train" != self.split
        wanted = self.split in (None, split, self._stated[image])
        return wanted and not seen

    def select(self, read: list[int]) -> list[int]:
        """Choose the images to score among those read; the subset may still be open.

        Raises:
            DataError: there are none.
        """
        splits = [self._splits.get(pair.image) for pair in self._pairs]
        present = [splits[n] or pair.split for n, pair in enumerate(self._pairs) if pair.image in self._splits]
        if self.split is None:  # images without a split in the folder or the model are new: all are scored
            self.split = _scored_split(present if None not in present else self._stated.values())
        chosen = [n for n in read if self.split in (None, splits[n], self._pairs[n].split)]
        readable = [n for n, pair in enumerate(self._pairs) if pair.image in self._splits]
        stated = [n for n in readable if self.split is None or self._pairs[n].split in (None, self.split)]
        if self.split != "train":
            self.left_out = [self._pairs[n].name for n in stated if splits[n] == "train"]
        if self.left_out and len(self.left_out) == len(stated):
            suggestion = _("name other images, or score these with --subset train")
            raise DataError(only_training_images(self.left_out, suggestion), key="--subset")
        if not chosen:
            raise _no_images(self.split, present)
        self.validation = sum(splits[n] == "val" for n in chosen)
        return chosen


def _describe_changed(rows: Sequence[tuple[Pair, list[str]]], now: Sequence[list[str]]) -> list[str]:
    """A note if images or masks have changed since the training.

    Args:
        rows: pairs, and the hashes of their images and masks in the training.
        now: these hashes today.
    """
    changed = [pair.name for (pair, then), here in zip(rows, now, strict=True) if then != here]
    line = ngettext(
        "note: the image or mask of {count} scored pair was changed since the training: {names}",
        "note: the images or masks of {count} scored pairs were changed since the training: {names}",
        len(changed),
    )
    return [line.format(count=len(changed), names=some_names(changed))] if changed else []


def read_run_subset(run: Path, subset: SplitName | None) -> tuple[SplitName | None, list[Pair]]:
    """A subset of a run's data list and its pairs, see `choose_subset`.

    Raises:
        DataError: there are none, or none of their images exists, for example because the data folder was moved.
        OutputError: it is not a run folder, or its data list is empty.
    """
    return _choose_present(run, read_run_pairs(run), subset)


def _choose_present(run: Path, listed: Sequence[Pair], subset: SplitName | None) -> tuple[SplitName | None, list[Pair]]:
    """Choose a subset and its pairs among the listed ones; DataError if none of their images exists."""
    split, pairs = choose_subset(listed, subset)
    if not any(os.path.exists(pair.image) for pair in pairs):
        refuse_lost(pairs[0].image)
        line = _(
            "{run}: the images of the run are no longer in {folder}; move them back (`ubend show` needs them there), "
            "or score them in their new folder: `ubend evaluate {run} FOLDER`"
        )
        folder = pairs[0].image.parent
        raise DataError(line.format(run=run, folder=folder), path=folder, key="folder")
    return split, pairs


def read_run_pairs(run: Path) -> list[Pair]:
    """The pairs of a run with their splits, from its data list.

    Raises:
        OutputError: it is not a run folder, or the list is empty.
    """
    return [pair for pair, _hashes in read_run_rows(run)]


def read_run_rows(run: Path) -> list[tuple[Pair, list[str]]]:
    """The same as `read_run_pairs`, each pair with the hashes of its image and mask."""
    path = RunFolder(run).data
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [
                (
                    Pair(
                        row["name"],
                        Path(row["image"]),
                        mask_from_text(row["mask"]),
                        cast(SplitName, row["split"]),
                        row["group"] or None,
                    ),
                    [row["image_hash"], row["mask_hash"]],
                )
                for row in ({key: csv_cell(cell or "") for key, cell in row.items()} for row in csv.DictReader(file))
            ]
    except OSError as error:
        if not run.exists():
            raise OutputError(_("{run}: there is no such folder").format(run=run), path=run) from error
        line = _("{path}: not a run folder, it has no {name}; `ubend runs {path}` lists the runs in a folder")
        if run.is_file():
            line = _(
                "{path} is a file, which does not list its images; give a run folder, or name the images and masks: "
                "`ubend evaluate {path} FOLDER`"
            )
        raise OutputError(line.format(path=run, name=path.name), path=run) from error
    except (KeyError, ValueError, TypeError, RecursionError):
        rows = []
    if not rows:
        line = _(
            "{path}: the run's list of images is empty or damaged; name a folder instead: `ubend evaluate {run} FOLDER`"
        )
        raise OutputError(line.format(path=path, run=run), path=path)
    return rows
