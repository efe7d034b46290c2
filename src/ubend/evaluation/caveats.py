"""Caveats of scores: images that the model has seen in training, and test sets that are too small."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ubend.core.i18n import _, ngettext
from ubend.io.images import fit_channels, hash_pixels
from ubend.layouts.pairs import SPLITS, SplitName
from ubend.models.model_file import Bundle, unpack_hashes
from ubend.portable.printable import some_names

_FEW_IMAGES = 10  # with fewer test images a mean Dice varies by about 0.1 by chance


class SplitLookup:
    """The images that models were trained, validated and tested on, recognised by their decoded pixels.

    Attributes:
        complete: whether all model files contain these hashes; files of earlier versions do not.
    """

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self.complete = all(bundle.image_hashes is not None for bundle in bundles)
        self._models = [
            (bundle.sizing.channels, {split: {*unpack_hashes(text)} for split, text in bundle.image_hashes.items()})
            for bundle in bundles
            if bundle.image_hashes is not None
        ]

    def __bool__(self) -> bool:
        return bool(self._models)

    def find_split(self, pixels: NDArray[Any]) -> SplitName | None:
        """The split that an image was in; None: in none. With several models, train takes precedence over val and test.

        Args:
            pixels: (H, W, C) as `read_image` gives it, with the models' channels.
        """
        matches: set[SplitName] = set()
        for channels, splits in self._models:
            if (fitted := fit_channels(pixels, channels)) is not None:
                pixel_hash = hash_pixels(fitted)
                matches |= {split for split, hashes in splits.items() if pixel_hash in hashes}
        return next((split for split in SPLITS if split in matches), None)


def describe_seen(split_lookup: SplitLookup, left_out: Sequence[str], validation: int) -> list[str]:
    """Notes on scored images that the models have seen, one line each.

    Args:
        split_lookup: the images of the models.
        left_out: names of the images that were not scored because they are training images.
        validation: number of scored images that are validation images.
    """
    lines = []
    if not split_lookup.complete:
        lines.append(
            _(
                "note: the model file does not list its training images (it is from an earlier version), so it is "
                "unknown whether they are among the scored ones; train the model again to list them"
            )
        )
    if left_out:
        line = ngettext(
            "note: {count} training image of the model is left out of the scores: {names}",
            "note: {count} training images of the model are left out of the scores: {names}",
            len(left_out),
        )
        lines.append(line.format(count=len(left_out), names=some_names(left_out)))
    return [*lines, *describe_validation(validation)]


def describe_validation(count: int) -> list[str]:
    """A note if validation images are scored."""
    line = _(
        "note: {count} of the scored images are validation images, by which the weights were chosen, so the scores "
        "are optimistic"
    )
    return [line.format(count=count)] if count else []


def describe_few(count: int, split: SplitName | None) -> list[str]:
    """A note if too few images are scored.

    Args:
        count: number of images.
        split: their split; None: any.
    """
    if count >= _FEW_IMAGES:
        return []
    line = ngettext(
        "note: scores of only {count} {split} image are a rough estimate for new images",
        "note: scores of only {count} {split} images are a rough estimate for new images",
        count,
    )
    if split is None:
        line = ngettext(
            "note: scores of only {count} image are a rough estimate for new images",
            "note: scores of only {count} images are a rough estimate for new images",
            count,
        )
    return [line.format(count=count, split=split)]


def only_training_images(names: Sequence[str], suggestion: str) -> str:
    """The error text if all images are training images."""
    line = ngettext(
        "nothing to score: {count} image, a training image of the model ({names}); {suggestion}",
        "nothing to score: all {count} images are training images of the model ({names}); {suggestion}",
        len(names),
    )
    return line.format(count=len(names), names=some_names(names), suggestion=suggestion)
