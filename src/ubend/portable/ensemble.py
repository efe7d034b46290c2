"""Ensembles and test-time augmentation: averages the probabilities of several models, and of several views of an image.

Each image is predicted in all views by all models before the next one is read, so only the views of one image and one
sum are in memory. H x W pixels of the image, C classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .class_table import IGNORED
from .errors import ModelFileError, SettingError
from .i18n import _
from .images import LoadedImage, fit_channels
from .input_checks import Image, given_image, take_pixels
from .predictors import ImagePredictor

_A = TypeVar("_A", bound=np.generic)


_P = TypeVar("_P", bound=ImagePredictor, covariant=True)


class View(NamedTuple):
    """One of the eight symmetries of the square.

    Attributes:
        turns: counterclockwise quarter turns.
        mirrored: whether left and right are flipped after the turns.
    """

    turns: int
    mirrored: bool

    def see(self, image: NDArray[_A]) -> NDArray[_A]:
        """Apply the view to an image (H, W) or (H, W, channels)."""
        turned = np.rot90(image, self.turns)
        turned = turned[:, ::-1] if self.mirrored else turned
        return image if self == View(0, False) else turned.copy()  # torch does not support negative strides

    def back(self, prob: NDArray[_A]) -> NDArray[_A]:
        """Undo the view: (C, h, w) of the view -> (C, H, W) of the image."""
        straight = prob[:, :, ::-1] if self.mirrored else prob
        return np.rot90(straight, -self.turns, axes=(1, 2))


PLAIN = (View(0, False),)
MIRRORED = (View(0, False), View(0, True))
SQUARE = tuple(View(turns, mirrored) for turns in range(4) for mirrored in (False, True))


class Member(NamedTuple, Generic[_P]):
    """A model of an ensemble, and the views in which it predicts each image."""

    predictor: _P
    views: Sequence[View] = PLAIN


def average(
    image: Image, members: Sequence[Member[ImagePredictor]]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[Any]]:
    """Average the probabilities of all models, which have equal weight, and of all views of a model.

    Args:
        image: see `take_pixels`, also for errors.
        members: models with the same classes in the same order; sizes, channels and widths may differ.
    Returns:
        (H, W) class index, IGNORED where the image is invalid; (C, H, W) probabilities, 0 there; and the (H, W,
        channels) image, with the most channels that a model takes.
    """
    total: NDArray[np.float32] | None = None
    seen: list[NDArray[Any]] = []
    for predictor, views in members:
        loaded = _read(image, predictor)
        pixels = loaded.pixels
        seen.append(pixels)
        turned = [view.see(pixels) for view in views]
        for view_index, prediction in predictor.predict(turned, probabilities=True):
            assert prediction.probabilities is not None
            part = views[view_index].back(prediction.probabilities)
            part = part * np.float32(1 / (len(views) * len(members)))
            total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    mask = total.argmax(axis=0).astype(np.uint8)
    if loaded.invalid is not None:
        mask[loaded.invalid], total[:, loaded.invalid] = IGNORED, 0
    colorful = max(seen, key=lambda pixels: pixels.shape[-1])  # some models may take grey, others colour
    return mask, np.ascontiguousarray(total), colorful


def refuse_unlike(paths: Sequence[Path | str], predictors: Sequence[ImagePredictor]) -> None:
    """Fail if models that are to be averaged differ in classes or bit depth, or if there are none.

    Args:
        paths: of the models, for messages.
    Raises:
        ModelFileError: they differ.
        SettingError: there are none.
    """
    if not paths:
        raise SettingError(_("no model to predict with; give at least one"), key="models")
    for path, predictor in zip(paths, predictors, strict=True):
        if predictor.labels.names != predictors[0].labels.names:
            line = _(
                "{first} has the classes {known}, but {path} has {found}; models that are averaged need the "
                "same classes in the same order"
            )
            first_names, class_names = (", ".join(p.labels.names) for p in (predictors[0], predictor))
            line = line.format(first=paths[0], path=path, known=first_names, found=class_names)
            raise ModelFileError(line, path=path, key="classes")
        if predictor.bundle.dtype != predictors[0].bundle.dtype:
            line = _(
                "{first} takes {known} images, but {path} takes {found}; models that are averaged need the same dtype"
            ).format(first=paths[0], path=path, known=predictors[0].bundle.dtype, found=predictor.bundle.dtype)
            raise ModelFileError(line, path=path, key="dtype")


def choose_views(orientation: str | None) -> Sequence[View]:
    """The views for test-time augmentation of a model that was trained with flips.

    Args:
        orientation: of the training, see `StoredFields`; `free`: with all rotations; None: unknown.
    Returns:
        All eight views for `free`, else the image and its mirror image.
    """
    return SQUARE if orientation == "free" else MIRRORED


def _read(image: Image, predictor: ImagePredictor) -> LoadedImage:
    """See `take_pixels`; arrays in colour are converted to grey, too, since another model may take colour."""
    if not isinstance(image, str | Path):
        image = given_image(image)
        fitted = fit_channels(image.pixels, predictor.bundle.sizing.channels) if image.pixels.ndim == 3 else None
        image = image if fitted is None else LoadedImage(fitted, image.invalid)
    return take_pixels(image, predictor.bundle)
