"""A model's predictions for the dataset doctor; those of a fold's model where it did not see the image."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ubend.core.errors import DataError
from ubend.core.i18n import _, ngettext
from ubend.core.progress import Reporter
from ubend.core.settings import Settings
from ubend.dataset.dataset import match_folder
from ubend.dataset.store import read_class_map
from ubend.doctor.finding import Finding
from ubend.doctor.inspection import Inspection
from ubend.doctor.predictions import (
    MIN_USUAL_DICE,
    Comparison,
    check_predictions,
    compare_prediction,
    usual_dice,
)
from ubend.evaluation.caveats import SplitLookup, describe_seen
from ubend.inference.predictor import Predictor, load
from ubend.io.images import LoadedImage
from ubend.labels.class_table import LabelMap, background_class
from ubend.portable.input_checks import inspect_file, take_pixels
from ubend.training.run_folder import RunFolder


class DoctorModel:
    """A model whose predictions are compared with masks.

    Args:
        path: a run folder or a model file.
        device: None: the best one available.
    Raises:
        ModelFileError: it cannot be read.
        SettingError: there is no such device.
    """

    def __init__(self, path: Path, device: str | None) -> None:
        self.path, self._predictor = path, load(path, device)
        folds = sorted(path.glob("fold-*")) if path.is_dir() else []
        self._folds = [load(fold, device) for fold in folds if RunFolder(fold).model_path.is_file()]
        self._lookups = [SplitLookup([fold.bundle]) for fold in self._folds]
        self._lookup = SplitLookup([self._predictor.bundle])

    def check(self, inspection: Inspection, settings: Settings, log: Reporter) -> list[Finding]:
        """Predict all images, and compare the predictions with the masks.

        Raises:
            DataError, SettingError: the model's classes or channels do not fit the folder's.
        """
        folder, names = inspection.data.folder, self._predictor.labels.names
        labels = match_folder(folder, settings, self._predictor.labels, folder.pairs)
        comparisons, refused, seen = dict[int, Comparison](), list[DataError](), [0, 0]
        log.begin(_("predicting images"), len(inspection))
        for done, index in enumerate(range(len(inspection)), 1):
            try:
                comparisons[index] = self._compare(inspection, index, labels, seen)
            except DataError as error:
                refused.append(error)
            log.count(done, len(inspection))
        log.end()
        if 2 * len(refused) > len(inspection):
            raise self._misfit(folder.root, labels, refused)
        marked = np.sum([comparison.marked for comparison in comparisons.values()], axis=0)
        background = background_class(names)
        skipped = int(marked.argmax()) if background is None else background
        objects = [index for index in range(len(names)) if index != skipped and index not in labels.unmapped]
        for line in self._remarks(comparisons, objects, seen, len(refused)):
            log.report(line)
        return check_predictions(inspection, comparisons, names, objects)

    def _compare(self, inspection: Inspection, index: int, labels: LabelMap, seen: list[int]) -> Comparison:
        pair = inspection.data.folder.pairs[index]
        bundle = self._predictor.bundle
        loaded = take_pixels(pair.image, bundle, inspect_file(pair.image, bundle))  # without a warning for each
        mask = read_class_map(pair, loaded.pixels.shape[:2], labels).classes
        predictor = self._choose(loaded, seen)
        prediction = predictor(loaded, probabilities=True)
        assert prediction.probabilities is not None
        return compare_prediction(prediction.probabilities, mask)

    def _choose(self, loaded: LoadedImage, seen: list[int]) -> Predictor:
        """The model of a fold that was not trained on the image, else the model itself; `seen` counts both kinds of
        training images."""
        if self._lookup.find_split(loaded.pixels) not in ("train", "val"):
            return self._predictor
        for fold, lookup in zip(self._folds, self._lookups, strict=True):
            if lookup and lookup.find_split(loaded.pixels) != "train":
                seen[1] += 1
                return fold
        seen[0] += 1
        return self._predictor

    def _misfit(self, folder: Path, labels: LabelMap, refused: Sequence[DataError]) -> DataError:
        """The error for a model that does not fit most of the pairs, with the first reason."""
        line = _("--model {model}: it does not fit {folder}: {reason} (the model's classes: {names})")
        reason = refused[0].problems[0]
        text = line.format(model=self.path, folder=folder, reason=reason, names=", ".join(labels.names))
        return DataError(text, path=folder, key="--model")

    def _remarks(
        self, comparisons: dict[int, Comparison], objects: Sequence[int], seen: Sequence[int], refused: int
    ) -> Iterator[str]:
        yield from describe_seen(self._lookup, [], 0)
        if seen[1]:
            line = ngettext(
                "{count} image is predicted by the model of the fold that was not trained on it",
                "{count} images are predicted by the model of the fold that was not trained on them",
                seen[1],
            )
            yield line.format(count=seen[1])
        if seen[0]:
            line = ngettext(
                "note: {count} image is one that the model was trained or validated on; it may have learnt a wrong "
                "mask of it. A run with --folds has a model for each image that did not see it",
                "note: {count} images are some that the model was trained or validated on; it may have learnt wrong "
                "masks of them. A run with --folds has a model for each image that did not see it",
                seen[0],
            )
            yield line.format(count=seen[0])
        if refused:
            line = ngettext(
                "note: {count} pair does not fit the model, and is not compared with its prediction",
                "note: {count} pairs do not fit the model, and are not compared with its predictions",
                refused,
            )
            yield line.format(count=refused)
        if not usual_dice(comparisons, objects) >= MIN_USUAL_DICE:
            line = _(
                "note: predictions and masks agree with a Dice of only {dice:.2f}, so that a mask unlike its "
                "prediction tells nothing; use a better model"
            )
            yield line.format(dice=usual_dice(comparisons, objects))
