"""Runs a traditional method on a folder: fitted to its training split, scored like a model, masks written."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ubend.core.errors import DataError, OutputError
from ubend.core.files import default_cache, write_json
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.dataset.store import read_class_map
from ubend.evaluation.scores import evaluate_pairs
from ubend.inference.prediction import class_index
from ubend.inference.predictor import Logits
from ubend.io.images import read_image, write_mask
from ubend.labels.class_table import LabelMap, background_class
from ubend.layouts.pairs import Pair, SplitName
from ubend.portable.images import save_png
from ubend.portable.overlay import overlay_mask, to_rgb
from ubend.portable.raster import Header
from ubend.portable.tiling import TileSource
from ubend.tasks.user_settings import read_user_settings
from ubend_lessons.baselines.baseline import Baseline, Example, learn_baseline
from ubend_lessons.baselines.methods import parse_method, refuse_missing

_SIZED_FOR = "cuda"  # images have the size that `fit` would choose for this device; nothing runs on it
_WHOLE = {"data.resize": "keep"}  # also if `fit` would train on crops
_TAUGHT = 64  # training images that are used, evenly spaced
_SCORES = "scores.json"


@dataclass(frozen=True)
class BaselineResult:
    """A traditional method and its scores.

    Attributes:
        baseline: the method, for other images: `baseline(image).mask`.
        scores: see `evaluate`, plus `method` and `parameters`. `cross_entropy` is None: masks have no probabilities.
    """

    baseline: Baseline
    scores: dict[str, Any]


def run_baseline(
    method: str,
    folder: Path | str | None = None,
    out: Path | str | None = None,
    *,
    subset: SplitName | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> BaselineResult:
    """Fit a method to the training split, and score it on another split.

    Args:
        method: one of `METHODS`.
        folder: images with masks, or the name of a data set.
        out: folder for `NAME.png` (class indices with a palette, at the image's own size), `NAME_overlay.png` and
            `scores.json`; None: nothing is written.
        subset: the split to score; None: test, or val if there is no test split. Splits are the same as in `fit`.
        options: images, masks, split, classes, values, channels, skip_bad, root, size, seed: see `fit`; without a size,
            the methods work at the images' own size, but at most at 256 px.
    Raises:
        SettingError: no such method, or scikit-image or scikit-learn is missing.
        DataError: see `open_dataset`; or the split is empty.
        OutputError: a file exists already, or cannot be written.
    """
    name = parse_method(method)
    refuse_missing()
    reporter = reporter or Reporter()
    dataset = _open(folder, options, reporter)
    subset = subset or dataset.scored_split
    pairs = dataset.pairs(subset)
    if not pairs:
        found = ", ".join(sorted(set(dataset.splits)))
        raise DataError(
            _("no images in the subset {subset}; available: {found}").format(subset=subset, found=found),
            key="--subset",
        )
    target = None if out is None else Path(out)
    if target is not None:
        _refuse_there(pairs, target)
    examples = _take_examples(dataset, _TAUGHT)
    reporter.report(_("fitting the method to {count} training images").format(count=len(examples)))
    baseline = learn_baseline(name, examples, dataset.labels, dataset.sizing, dataset.value_range())
    shown = ", ".join(f"{key} {value}" for key, value in baseline.parameters.items())
    reporter.report(_("chosen on the training split: {parameters}").format(parameters=shown))
    reporter.begin(_("segmenting"), len(pairs))
    scores = evaluate_pairs(_Watched(baseline, pairs, target, reporter), pairs)
    reporter.end()
    for size in ("native", "model_size"):
        scores[size]["cross_entropy"] = None  # a method has no probabilities
    scores["calibration"] = None
    scores = {"part": subset, "method": name, "parameters": dict(baseline.parameters), **scores}
    if target is not None:
        write_json(target / _SCORES, scores)
        reporter.report(_("masks and overlays in {out}: {count}").format(count=len(pairs), out=target))
    return BaselineResult(baseline, scores)


def open_examples(folder: Path | str, count: int = 16) -> tuple[list[Example], Example, LabelMap]:
    """Examples from a folder.

    Returns:
        Training images with their masks, at the size at which methods work; the first image of the test split (or val)
        with its mask, at native size; and the class table.
    """
    dataset = _open(folder, {}, Reporter())
    shown = dataset.pairs(dataset.scored_split)[0]
    image = read_image(shown.image, dataset.sizing.channels)
    truth = read_class_map(shown, image.shape[:2], dataset.labels).classes
    return _take_examples(dataset, count), (image, truth), dataset.labels


def _open(folder: Path | str | None, options: Mapping[str, Any], reporter: Reporter) -> Dataset:
    settings = read_user_settings(folder, settings=_WHOLE, flags=options, reporter=reporter).settings
    dataset = open_dataset(settings, _SIZED_FOR, default_cache(), reporter)
    for remark in dataset.remarks:
        reporter.report(remark)
    return dataset


def _take_examples(dataset: Dataset, count: int) -> list[Example]:
    """Evenly spaced training images and their masks, at the size of the data set."""
    numbers = dataset.indices("train")
    chosen = numbers[np.unique(np.linspace(0, len(numbers) - 1, count).astype(int))]
    return [(dataset.store.image(int(number)), dataset.store.mask(int(number))) for number in chosen]


class _Watched:
    """A baseline whose results are counted and, if there is an output folder, written."""

    def __init__(self, baseline: Baseline, pairs: Sequence[Pair], out: Path | None, reporter: Reporter) -> None:
        self._baseline, self._pairs, self._out, self._reporter = baseline, pairs, out, reporter

    @property
    def labels(self) -> LabelMap:
        return self._baseline.labels

    def inspect(self, path: Path) -> Header:
        return self._baseline.inspect(path)

    def prepare(self, image: Path, header: Header) -> TileSource:
        return self._baseline.prepare(image, header)

    def run(self, sources: Iterable[TileSource]) -> Iterator[Logits]:
        for done, logits in enumerate(self._baseline.run(sources), 1):
            if self._out is not None:
                self._write(self._out, logits)
            self._reporter.count(done)
            yield logits

    def _write(self, out: Path, logits: Logits) -> None:
        pair, mask = self._pairs[logits.image_indices[0]], class_index(logits.native()[0]).numpy()
        image = to_rgb(read_image(pair.image, self._baseline.sizing.channels))
        overlay = overlay_mask(image, mask, self.labels.colors, background=background_class(self.labels.names))
        save_png(Image.fromarray(overlay), _targets(out, pair)[1])
        write_mask(_targets(out, pair)[0], mask, self.labels.colors)


def _targets(out: Path, pair: Pair) -> tuple[Path, Path]:
    """The files of a pair's mask and overlay; the name of a pair may contain folders."""
    return out / f"{pair.name}.png", out / f"{pair.name}_overlay.png"


def _refuse_there(pairs: Sequence[Pair], out: Path) -> None:
    for path in (out / _SCORES, *(path for pair in pairs for path in _targets(out, pair))):
        if path.exists():
            raise OutputError(
                _("{path} exists already; choose another --out").format(path=path), path=path, key="--out"
            )
