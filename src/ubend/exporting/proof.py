"""Whether an exported file predicts what the model does: both on the same images, on the CPU; the model in float32.

The limits are of what users see, the class of each pixel and the Dice. A file in full precision differs by rounding
alone; one in half precision may lose a little, but not much on any one image. H x W pixels of an image, K classes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.core.counter_rng import random_normal
from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.store import ignore_invalid, read_class_map
from ubend.evaluation.intervals import compare_means, mean_intervals
from ubend.exporting.targets import Precision, Target
from ubend.inference.prediction import class_index
from ubend.inference.predictor import Predictor
from ubend.io.images import LoadedImage, resize_array
from ubend.labels.class_table import IGNORED
from ubend.layouts.pairs import Pair
from ubend.metrics.overlap import count_confusion_batch, dice_from_confusion
from ubend.metrics.summary import mean_defined
from ubend.models.model_file import Bundle
from ubend.portable.input_checks import inspect_file, take_pixels

MAX_IMAGES = 100
MAX_PIXELS = 8e6  # of the network's input, over all images: two minutes of the tutorial's network on two cores
MAX_BYTES = 2**29  # of images in memory; and of the reference's probabilities
MAX_SHARE: dict[Precision, float] = {"fp32": 1e-5, "fp16": 0.01, "bf16": 0.01, "int8": 0.01}  # whose class differs
MAX_DICE_LOSS = 0.005  # of the mean, at the upper end of its 95% interval; not of fp32
MAX_IMAGE_LOSS = 0.05  # of any one image; not of fp32
_DRAWN = 4  # images, where those of the run are gone
_GRID = 8  # blobs along each side of a drawn image


@dataclass(frozen=True)
class ProofImage:
    """An image for the proof.

    Attributes:
        image: as `take_pixels` gives it.
        truth: (H, W) class index or IGNORED; None: not known.
        group: patient, video or site; None: its own.
    """

    image: LoadedImage
    truth: NDArray[np.uint8] | None = None
    group: str | None = None


class _Prediction(NamedTuple):
    """(K, H, W) probabilities, (H, W) class index, and the seconds of the network alone."""

    prob: NDArray[np.float32]
    mask: NDArray[np.uint8]
    seconds: float


class KnownPredictions(dict[int, "_Prediction"]):
    """The model's own predictions by the number of the image, kept between comparisons while they are few bytes."""

    def keep(self, index: int, prediction: "_Prediction") -> "_Prediction":
        """Add a prediction, if there is room."""
        if sum(kept.prob.nbytes for kept in self.values()) + prediction.prob.nbytes <= MAX_BYTES:
            self[index] = prediction
        return prediction


def prove(
    bundle: Bundle,
    exported: Bundle,
    images: Sequence[ProofImage],
    compared_on: str,
    reporter: Reporter,
    *,
    target: Target = "onnx",
    known: KnownPredictions | None = None,
) -> dict[str, Any]:
    """How far the predictions of both models on the same images differ, fit for JSON.

    Args:
        bundle: the model.
        exported: the exported file, loaded.
        images: one or more.
        compared_on: which images they are: test, val, or drawn.
        target: of the exported file.
        known: predictions of the model from comparisons before; this one's are added.
    Returns:
        `largest_probability_difference`, `share_of_pixels` whose class differs, `dice` (None without true masks):
        means of both over images and classes, their `difference` (after less before) with its paired 95% `interval`,
        and that of the `worst_image`; `seconds_per_megapixel` of the network's input: of the network alone.
    """
    before = Predictor(replace(bundle, precision="float32"), "cpu")
    after = Predictor(exported, "cpu")
    classes, known = bundle.labels.classes, KnownPredictions() if known is None else known
    largest, differing, pixels, megapixels = 0.0, 0, 0, 0.0
    seconds, confusions = np.zeros(2), list[NDArray[np.int64]]()
    for predictor in (before, after):  # the first pass of each is slower
        _predict(predictor, images[0].image)
    reporter.begin(_("comparing the exported model"), len(images))
    for index, item in enumerate(images, 1):
        predictions = [known.get(index) or known.keep(index, _predict(before, item.image)), _predict(after, item.image)]
        (prob, mask, _time), (other_prob, other_mask, _other_time) = predictions
        largest = max(largest, float(np.abs(prob - other_prob).max()))
        differing += int((mask != other_mask).sum())
        pixels += mask.size
        megapixels += np.prod(before.resize_input(item.image).size_hw, dtype=float) / 1e6
        seconds += [prediction.seconds for prediction in predictions]
        if item.truth is not None:
            masks, truth = (torch.from_numpy(np.stack(pair)) for pair in ([mask, other_mask], [item.truth, item.truth]))
            confusions.append(count_confusion_batch(masks, truth, classes).numpy())
        reporter.count(index)
    reporter.end()
    per_megapixel = (seconds / megapixels).tolist()
    return {
        "compared_on": compared_on,
        "images": len(images),
        "largest_probability_difference": largest,
        "share_of_pixels": differing / pixels,
        "dice": _compare_dice(np.stack(confusions), [item.group for item in images]) if confusions else None,
        "seconds_per_megapixel": dict(zip(("torch", target), per_megapixel, strict=True)),
        "threads": torch.get_num_threads(),
    }


def _compare_dice(confusions: NDArray[np.int64], groups: Sequence[str | None]) -> dict[str, Any]:
    """Of (N, 2, K, K) confusions, before and after."""
    before, after = (dice_from_confusion(confusions[:, side]) for side in (0, 1))
    means = [interval.mean for interval in mean_intervals([before, after], groups)]
    interval_found = compare_means(after, before, groups).interval
    per_image = mean_defined(after.T) - mean_defined(before.T)
    interval = None if np.isnan(interval_found.low) else list(interval_found.reported)
    return {
        "before": means[0],
        "after": means[1],
        "difference": interval_found.mean,
        "interval": interval,
        "worst_image": float(np.nanmin(per_image, initial=0.0)),
    }


def _predict(predictor: Predictor, image: LoadedImage) -> _Prediction:
    seconds, probs, masks = 0.0, list[Tensor](), list[Tensor]()
    began = time.perf_counter()
    for logits in predictor.run([predictor.resize_input(image)]):
        seconds += time.perf_counter() - began
        native = logits.native()[0]
        probs.append(native.softmax(dim=0))
        masks.append(class_index(native))
        began = time.perf_counter()
    return _Prediction(torch.cat(probs, dim=1).numpy(), torch.cat(masks).numpy(), seconds)


def find_difference(proof: dict[str, Any], precision: Precision) -> tuple[str, str] | None:
    """The measure that differs by more than the precision may, and a line that says so; None: there is none."""
    dice = proof["dice"] or {}
    measures = [("share_of_pixels", proof["share_of_pixels"], MAX_SHARE[precision])]
    if precision != "fp32" and dice:
        low = dice["interval"][0] if dice["interval"] else dice["difference"]
        measures += [("dice", -low, MAX_DICE_LOSS), ("worst_image", -dice["worst_image"], MAX_IMAGE_LOSS)]
    for key, measured, limit in measures:
        if measured <= limit:
            continue
        line = {
            "share_of_pixels": _(
                "the exported model gives another class on {found:.2g} of the pixels, at most {limit:.2g} are allowed"
            ),
            "dice": _("the exported model may lose {found:.4f} of Dice (95% bound), at most {limit:.3f} is allowed"),
            "worst_image": _("the exported model loses {found:.3f} of Dice on one image, at most {limit} is allowed"),
        }[key]
        return key, line.format(found=measured, limit=limit)
    return None


def read_images(
    bundle: Bundle, pairs: Sequence[Pair], max_images: int = MAX_IMAGES, max_pixels: float = MAX_PIXELS
) -> list[ProofImage]:
    """Images with their masks, spread evenly over the pairs; those that cannot be read are left out.

    At most `max_images`, `max_pixels` of the network's input and `MAX_BYTES` in memory; one if there is any.
    """
    predictor, images, pixels, held = Predictor(bundle, "cpu"), dict[int, ProofImage](), 0.0, 0
    count = min(len(pairs), max_images)
    for index in sorted(range(count), key=_reversed_bits):  # wherever the limits end it, the images are spread evenly
        pair = pairs[index * len(pairs) // count]
        try:
            image = take_pixels(pair.image, bundle, inspect_file(pair.image, bundle))
            mask = ignore_invalid(read_class_map(pair, image.pixels.shape[:2], bundle.labels), image.invalid, pair)
        except DataError:
            continue
        pixels += np.prod(predictor.resize_input(image).size_hw, dtype=float)
        held += image.pixels.nbytes
        if images and (pixels > max_pixels or held > MAX_BYTES):
            break
        if (mask.classes != IGNORED).any():
            images[index] = ProofImage(image, mask.classes, pair.group)
    return [images[index] for index in sorted(images)]


def _reversed_bits(number: int) -> int:
    """The bits of a number of up to 32 bits in reverse: numbers sorted by it are a van der Corput sequence."""
    return int(f"{number:032b}"[::-1], 2)


def draw_images(bundle: Bundle) -> list[ProofImage]:
    """Blobs and noise with the mean and the spread of the training images, one and a half times as wide as high."""
    side = bundle.sizing.size_px or bundle.window_px or 256
    height, width, channels = side, side * 3 // 2, bundle.sizing.channels
    count, grid = channels * (_GRID**2 + height * width), _GRID**2 * channels
    mean, std = (value.cpu().numpy().reshape(-1) for value in (bundle.model.mean, bundle.model.std))
    kind, images = np.dtype(bundle.dtype), []
    for index in range(_DRAWN):
        noise = random_normal(0, "export", np.array([index]), count)[0].astype(np.float32)
        blobs = resize_array(noise[:grid].reshape(_GRID, _GRID, channels), (height, width))
        values = mean + std * (blobs + 0.2 * noise[grid:].reshape(height, width, channels))
        if kind.kind == "u":
            values = np.rint(values).clip(0, np.iinfo(kind).max)
        images.append(ProofImage(LoadedImage(values.astype(kind))))
    return images
