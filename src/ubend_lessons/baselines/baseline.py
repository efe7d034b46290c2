"""A traditional method with a learned rule from segments to classes; it has the interface of a `Predictor`.

h x w pixels of the size at which the method works, H x W of the image's own size, C classes, n segments.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.inference.prediction import Prediction, class_index
from ubend.inference.predictor import Logits
from ubend.io.images import LoadedImage, Sizing, load_image, model_size, resize_array
from ubend.labels.class_table import IGNORED, LabelMap
from ubend.portable.decode import read_header
from ubend.portable.input_checks import given_image
from ubend.portable.prefetch import prefetch
from ubend.portable.raster import Header
from ubend.portable.tiling import TileSource
from ubend_lessons.baselines.methods import Method, Parameters, count_levels, list_parameters, refuse_missing, segment
from ubend_lessons.baselines.pixels import Pixels, describe_pixels
from ubend_lessons.baselines.rule import Kinds, choose_classes, count_kinds, find_kinds, halves, score_classes
from ubend_lessons.baselines.segments import describe_segments

_KINDS = (4, 12, 48)  # numbers of kinds of segments that are tried; the training split decides

Range = tuple[NDArray[np.float64], NDArray[np.float64]]
Numbers = NDArray[np.intp]
Example = tuple[NDArray[Any], NDArray[np.uint8]]


@dataclass(frozen=True)
class Baseline:
    """A traditional method that is ready to use: `baseline(image).mask`.

    Attributes:
        method: its name.
        parameters: see `list_parameters`.
        kinds: how segments are sorted into kinds; None: the number of a segment is its kind.
        classes: (K,) uint8 class index of each kind.
        labels: the class table.
        sizing: the size at which it works.
        value_range: (low, high), each (channels,): the values that are mapped to 0 and 1.
        judged_dice: Dice, mean over all classes, on training images that were not used for the rule, 0..1; the
            parameters with the highest value are chosen.
    """

    method: Method
    parameters: Parameters
    kinds: Kinds | None
    classes: NDArray[np.uint8]
    labels: LabelMap
    sizing: Sizing
    value_range: Range
    judged_dice: float

    def __call__(self, image: NDArray[Any] | Path | str) -> Prediction:
        """Segment one image.

        Args:
            image: a file, or (H, W, channels) values in the units of the training images.
        Returns:
            The mask; `probabilities` is 1 for its class, except at borders if the result was enlarged.
        Raises:
            DataError: the file cannot be read, or has a different number of channels.
        """
        loaded = self._read(image)
        (logits,) = self.run([self._resize(loaded)])
        prob = logits.native()[0]
        return Prediction(class_index(prob).numpy(), self.labels, loaded.pixels, prob.numpy())

    def inspect(self, path: Path) -> Header:
        """The header of a file.

        Raises:
            DataError: it cannot be read, or has a different number of channels.
        """
        return read_header(path, self.sizing.channels)

    def prepare(self, image: NDArray[Any] | Path | str, _header: Header | None = None) -> TileSource:
        """An image at the size at which the method works; arguments and errors are those of `__call__`."""
        return self._resize(self._read(image))

    def _read(self, image: NDArray[Any] | Path | str) -> LoadedImage:
        return load_image(Path(image), self.sizing.channels) if isinstance(image, str | Path) else given_image(image)

    def _resize(self, loaded: LoadedImage) -> TileSource:
        pixels = loaded.pixels
        native_hw = pixels.shape[0], pixels.shape[1]
        size_hw = model_size(native_hw, self.sizing.size_px, self.sizing.keep_aspect)
        return TileSource.of_pixels(resize_array(pixels, size_hw), native_hw, invalid=loaded.invalid)

    def run(self, sources: Iterable[TileSource]) -> Iterator[Logits]:
        """Segment images; instead of logits, the values are 1 for a pixel's class and 0 for the others.

        So results are enlarged and scored in the same way as those of a network.
        """

        def answer(source: TileSource) -> tuple[tuple[int, int], Tensor]:
            classes = self.classify(source.read(0, source.size_hw[0]))
            hot = np.eye(self.labels.classes, dtype=np.float32)[classes]
            return source.native_hw, torch.from_numpy(hot).permute(2, 0, 1)[None]

        for index, (native_hw, values) in enumerate(prefetch(answer, sources)):
            yield Logits([index], native_hw, slice(0, native_hw[0]), values)

    def classify(self, small: NDArray[Any]) -> NDArray[np.uint8]:
        """Segment an (h, w, channels) image of the size at which the method works; returns (h, w) class index."""
        pixels = describe_pixels(small, *self.value_range)
        segments = segment(self.method, pixels, self.parameters)
        if self.kinds is None:
            return self.classes[segments]
        return self.classes[self.kinds.sort(describe_segments(segments, pixels))][segments]


def learn_baseline(
    method: Method, examples: Sequence[Example], labels: LabelMap, sizing: Sizing, value_range: Range
) -> Baseline:
    """Fit a method to training images: choose its parameters, and learn the rule from segments to classes.

    Parameters are chosen by two-fold cross-validation: the rule is learned from half of the images, and scored by the
    Dice on the other half. With the best parameters, the rule is then learned from all images.

    Args:
        examples: images (h, w, channels) at the size of `sizing`, and their masks (h, w) of class index or IGNORED.
        labels, sizing, value_range: see `Baseline`.
    Raises:
        SettingError: scikit-image or scikit-learn is missing.
    """
    refuse_missing()
    described = list(prefetch(lambda example: describe_pixels(example[0], *value_range), examples))
    best: Baseline | None = None
    for parameters in list_parameters(method):
        seen = _inspect(method, parameters, described, [mask for _image, mask in examples], labels.classes)
        levels = count_levels(method, parameters)
        for kinds, tables in [(None, _pad(seen, levels))] if levels else [_sort(seen, count) for count in _KINDS]:
            judged = np.mean([_judge(tables, teachers, judges, kinds) for teachers, judges in halves(len(examples))])
            if best is None or judged > best.judged_dice:
                classes = choose_classes(tables, kinds)
                best = Baseline(method, parameters, kinds, classes, labels, sizing, value_range, float(judged))
    assert best is not None
    return best


def _judge(tables: NDArray[np.int64], teachers: Numbers, judges: Numbers, kinds: Kinds | None) -> float:
    """The Dice on the images `judges` of the rule that is learned from the images `teachers`."""
    return float(score_classes(tables[judges], choose_classes(tables[teachers], kinds)[None])[0])


class _Seen(NamedTuple):
    """The segments of an image.

    Attributes:
        descriptors: (n, D) see `describe_segments`.
        areas: (n,) px.
        counts: (n, C) pixels of each class.
    """

    descriptors: NDArray[np.float64]
    areas: NDArray[np.int64]
    counts: NDArray[np.int64]


def _inspect(
    method: Method,
    parameters: Parameters,
    described: Sequence[Pixels],
    masks: Sequence[NDArray[np.uint8]],
    classes: int,
) -> list[_Seen]:
    def look(number: int) -> _Seen:
        segments, mask = segment(method, described[number], parameters), masks[number]
        count, scored = int(segments.max()) + 1, mask != IGNORED
        cells = segments[scored] * classes + mask[scored]
        counts = np.bincount(cells, minlength=count * classes).reshape(count, classes)
        areas = np.bincount(segments.reshape(-1), minlength=count)
        return _Seen(describe_segments(segments, described[number]), areas, counts)

    return list(prefetch(look, range(len(masks))))


def _pad(seen: Sequence[_Seen], levels: int) -> NDArray[np.int64]:
    """(N, K, C) pixels of each class in each level; levels that do not occur in an image are 0."""
    return np.stack([np.pad(one.counts, ((0, levels - len(one.counts)), (0, 0))) for one in seen])


def _sort(seen: Sequence[_Seen], count: int) -> tuple[Kinds, NDArray[np.int64]]:
    """At most `count` kinds of segments, and (N, K, C) pixels of each class in each kind, for each image."""
    kinds = find_kinds(
        np.concatenate([one.descriptors for one in seen]), np.concatenate([one.areas for one in seen]), count
    )
    number = len(kinds.clusters.centers)
    return kinds, np.stack([count_kinds(kinds.sort(one.descriptors), one.counts, number) for one in seen])
