"""Ensembles and test-time augmentation: averages the probabilities of several models, and of several views of an image.

Each image is predicted in all views by all models before the next one is read, so only the views of one image and one
sum are in memory. H x W pixels of the image, C classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ubend.core.errors import ModelFileError, SettingError
from ubend.core.i18n import _
from ubend.core.settings import read_config
from ubend.inference.prediction import Prediction
from ubend.inference.predictor import Predictor
from ubend.inference.predictor import load as load_one
from ubend.io.images import LoadedImage, fit_channels
from ubend.labels.class_table import IGNORED
from ubend.models.model_file import Bundle
from ubend.portable.input_checks import Image, given_image, take_pixels
from ubend.training.run_folder import RunFolder

_A = TypeVar("_A", bound=np.generic)


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


class Member(NamedTuple):
    """A model of an ensemble, and the views in which it predicts each image."""

    predictor: Predictor
    views: Sequence[View] = PLAIN


class Ensemble:
    """Several models with the interface of `Predictor`; all models have equal weight, and all views of a model.

    Args:
        members: models with the same classes in the same order; sizes, channels and widths may differ.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self.labels = self.members[0].predictor.labels

    def __call__(self, image: Image, *, probabilities: bool = False) -> Prediction:
        """Predict one image; for arguments and errors see `Predictor`."""
        total: NDArray[np.float32] | None = None
        seen: list[NDArray[Any]] = []
        for predictor, views in self.members:
            loaded = _read(image, predictor)
            pixels = loaded.pixels
            seen.append(pixels)
            # An array with fewer than two axes is refused by the predictor.
            shown = [view.see(pixels) for view in views] if pixels.ndim > 1 else [pixels]
            for number, prediction in predictor.predict(shown, probabilities=True):
                assert prediction.probabilities is not None
                part = views[number].back(prediction.probabilities)
                part = part * np.float32(1 / (len(views) * len(self.members)))
                total = part if total is None else np.add(total, part, out=total)
        assert total is not None
        mask = total.argmax(axis=0).astype(np.uint8)
        if loaded.invalid is not None:
            mask[loaded.invalid], total[:, loaded.invalid] = IGNORED, 0
        colorful = max(seen, key=lambda pixels: pixels.shape[-1])  # some models may take grey, others colour
        return Prediction(mask, self.labels, colorful, np.ascontiguousarray(total) if probabilities else None)

    def predict(self, images: Iterable[Image], *, probabilities: bool = False) -> Iterator[tuple[int, Prediction]]:
        """Predict several images: yields (index, prediction) in order."""
        for index, image in enumerate(images):
            yield index, self(image, probabilities=probabilities)


def load(
    model: Path | str | Sequence[Path | str],
    *,
    device: str | None = None,
    tta: bool = False,
    tiles: int | None = None,
    overlap: float = 0.25,
    network: nn.Module | None = None,
) -> Predictor | Ensemble:
    """Load a predictor from one or several model files or run folders; probabilities of several are averaged.

    Args:
        model: a run folder or a model file; or several with the same classes, such as folds or seeds.
        device: cuda, cuda:1, mps or cpu; None: the fastest one available.
        tta: test-time augmentation: average over the image and its mirror image, or over all eight rotations and
            flips if the model was trained with these.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side, 0 <= overlap < 1.
        network: for models of your own network (`network=` of `ubend.fit`): the module, with any weights; it is copied.
    Raises:
        ModelFileError: a file is missing, truncated, not written by ubend, newer than this version, or differs from
            the others in classes or bit depth.
        SettingError: there is no such device, no model is given, or `tiles` or `overlap` is out of range.
    """
    paths = [model] if isinstance(model, str | Path) else list(model)
    if not paths:
        raise SettingError(_("no model to predict with; give at least one"), key="models")
    predictors = [load_one(path, device, tiles=tiles, overlap=overlap, network=network) for path in paths]
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
    if len(paths) == 1 and not tta:
        return predictors[0]
    views = [
        find_views(Path(path), predictor.bundle) if tta else PLAIN
        for path, predictor in zip(paths, predictors, strict=True)
    ]
    return Ensemble([Member(*member) for member in zip(predictors, views, strict=True)])


def find_views(model: Path, bundle: Bundle) -> Sequence[View]:
    """The views for test-time augmentation: those used in training.

    They are stated in the model file, or, for older files, in the settings of the run folder; otherwise: the image and
    its mirror image.
    """
    if not bundle.flips or bundle.model.averages_views:
        return PLAIN
    if bundle.orientation is not None:
        return SQUARE if bundle.orientation == "free" else MIRRORED
    settings = RunFolder(model if model.is_dir() else model.parent).settings
    augment = read_config(settings).get("augment") if settings.is_file() else None
    free = isinstance(augment, dict) and augment.get("kind") == "warp" and augment.get("orientation") == "free"
    return SQUARE if free else MIRRORED


def _read(image: Image, predictor: Predictor) -> LoadedImage:
    """The image with the channels that a model takes; arrays are converted between grey and colour."""
    if isinstance(image, str | Path):
        return take_pixels(image, predictor.bundle)
    loaded = given_image(image)
    pixels = loaded.pixels
    fitted = fit_channels(pixels, predictor.bundle.sizing.channels) if pixels.ndim == 3 else None
    # An image that cannot be converted is refused by the predictor.
    return loaded if fitted is None else LoadedImage(fitted, loaded.invalid)
