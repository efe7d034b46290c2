"""Find the objects of images, and score them against true ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.files import DiskRequirement, write_json
from ubend.core.i18n import _, ngettext
from ubend.evaluation.caveats import SplitLookup, describe_seen, only_training_images
from ubend.inference.mask_predictor import MaskPredictor, load_mask_predictor
from ubend.instances.truth import Files, find_truth, keep_valid, looks_like_mask, read_truth, score, score_lines
from ubend.io.images import load_image
from ubend.labels.class_table import IGNORED
from ubend.layouts.pairs import SplitName
from ubend.metrics.panoptic import Quality, compare_objects
from ubend.portable.file_jobs import run_jobs
from ubend.portable.mask_predictor import PredictionOptions
from ubend.portable.object_job import CountingOptions, ObjectJob, refuse_missing_libraries
from ubend.portable.objects import Objects
from ubend.portable.reporter import Reporter
from ubend.tasks.expand import report_deeper_folders

_SCORES = "scores.json"
_NONE, _PLAIN = PredictionOptions(), CountingOptions()


def find_objects(
    model: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    counting: CountingOptions = _PLAIN,
    truth: Path | None = None,
    device: str | None = None,
    options: PredictionOptions = _NONE,
    reporter: Reporter,
) -> list[Path]:
    """Find the objects of images, and write ids, overlays and tables, see `ObjectJob`.

    With true ids, the scores go to `scores.json`.

    Args:
        model: a run folder or a model file.
        paths: as in `ImageJob`.
        out: the output folder; files in it are not overwritten.
        truth: folder of true ids, see `find_truth`, to score against; training images of the model are not scored.
        options: more models, views, tiles, thresholds, holes.
    Returns:
        The id images.
    Raises:
        SettingError: the method does not fit the classes; or MissingPackageError.
        DataError, OutputError: as in `run_jobs`; or no images, or only training images to score.
    """
    refuse_missing_libraries(counting.exports, "ubend[objects]")
    masks, out = load_mask_predictor(model, device, options), Path(out)
    job = ObjectJob(masks, paths, out, counting) if truth is None else _ScoredJob(masks, paths, out, counting, truth)
    report_deeper_folders(paths, reporter)
    return run_jobs([job], reporter)


@dataclass
class _Comparison:
    """An image's objects compared with true ones; `split`: its split in the model's training."""

    split: SplitName | None
    qualities: list[Quality] = field(default_factory=list)
    odd_truth: bool = False


class _ScoredJob(ObjectJob):
    """Images whose objects are found, and scored against true ones."""

    def __init__(
        self,
        predictor: MaskPredictor,
        paths: Sequence[Path | str],
        out: Path,
        counting: CountingOptions,
        folder: Path,
    ) -> None:
        super().__init__(predictor, paths, out, counting)
        self._names, self._folder = predictor.labels.names, folder
        self._truth: dict[Path, Files] = {}
        self._split_lookup = SplitLookup([member.predictor.bundle for member in predictor.members])
        self._comparisons: dict[int, _Comparison] = {}
        self.summary_names = [*self.summary_names, _SCORES]

    def inspect_all(self) -> list[DiskRequirement]:
        """In addition, find the true ids (missing ones are a problem of their image).

        Raises:
            DataError: all images are training images, so there is nothing to score.
        """
        requirements = super().inspect_all()
        find_truth(self._folder, {}, self._names)  # a missing folder is not the problem of an image

        def find(index: int) -> dict[Path, Files]:
            return find_truth(self._folder, {self.paths[index]: self.usable[index].size_hw}, self._names)

        for _index, files in self.map_inputs(find, [*self.usable]):
            self._truth |= files
        self.usable = {index: header for index, header in self.usable.items() if index not in self.failed}
        self.todo = [index for index in self.todo if index in self.usable]
        if self._split_lookup and self.usable and all(map(self._is_training_image, self.usable)):
            names = [self.paths[index].name for index in self.usable]
            raise DataError(only_training_images(names, _("name other images, or leave out --truth")), key="--truth")
        return requirements if self.usable else []

    def _is_training_image(self, index: int) -> bool:
        try:
            image = load_image(self.paths[index], self.predictor.channels)
        except DataError:  # reported when it is predicted
            return False
        return self._split_lookup.find_split(image.pixels) == "train"

    def check_objects(self, index: int, objects: Objects, mask: NDArray[np.uint8], image: NDArray[Any]) -> None:
        """Compare them with the true ones, unless it is a training image."""
        comparison = _Comparison(self._split_lookup.find_split(image))
        if comparison.split != "train":
            truth = keep_valid(read_truth(self._truth[self.paths[index]]), mask != IGNORED)
            comparison.odd_truth = looks_like_mask(truth)
            comparison.qualities = compare_objects(
                objects.ids, objects.classes, truth.ids, truth.classes, len(self._names)
            )
        self._comparisons[index] = comparison

    def finish(self, indices: Sequence[int], reporter: Reporter) -> None:
        """Write the summary files and the scores."""
        super().finish(indices, reporter)
        self._write_scores({index: self._comparisons[index] for index in indices}, reporter)

    def _write_scores(self, kept: dict[int, _Comparison], reporter: Reporter) -> None:
        left_out = [self.paths[index].name for index, result in kept.items() if result.split == "train"]
        kept = {index: result for index, result in kept.items() if result.split != "train"}
        for line in describe_seen(self._split_lookup, left_out, sum(result.split == "val" for result in kept.values())):
            reporter.report(line)
        if not kept:  # all others failed
            return
        qualities = {self.paths[index]: result.qualities for index, result in kept.items()}
        scores = {"method": self.method, "min_area": self.min_area, **score(qualities, self._names)}
        write_json(self.out / _SCORES, scores)
        reporter.report(
            ngettext(
                "objects (--method {method}) compared with {folder}, {count} image; a match has an IoU above 0.5",
                "objects (--method {method}) compared with {folder}, {count} images; a match has an IoU above 0.5",
                len(qualities),
            ).format(method=self.method, folder=self._folder, count=len(qualities))
        )
        for line in score_lines(scores):
            reporter.report(line)
        if all(result.odd_truth for result in kept.values()):
            reporter.report(
                _(
                    "WARNING: in every true image, one id occurs in several places; --truth needs one id per object, "
                    "not a class mask"
                )
            )
