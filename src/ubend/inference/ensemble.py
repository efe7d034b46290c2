"""Several models, or several views of an image, as one predictor; `ubend.portable.ensemble` averages."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import nn

from ubend.core.settings import read_config
from ubend.inference.prediction import Prediction
from ubend.inference.predictor import Predictor
from ubend.inference.predictor import load as load_one
from ubend.models.ensemble_net import ViewKind
from ubend.models.model_file import Bundle
from ubend.portable.ensemble import PLAIN, Member, View, average, choose_views, refuse_unlike
from ubend.portable.input_checks import Image
from ubend.training.run_folder import RunFolder

_VIEW_KINDS: dict[int, ViewKind] = {1: "plain", 2: "mirror", 8: "square"}  # by the number of views


class Ensemble:
    """Several models with the interface of `Predictor`; all models have equal weight, and all views of a model.

    Args:
        members: models with the same classes in the same order; sizes, channels and widths may differ.
    """

    def __init__(self, members: Sequence[Member[Predictor]]) -> None:
        self.members = list(members)
        self.labels = self.members[0].predictor.labels

    def __call__(self, image: Image, *, probabilities: bool = False) -> Prediction:
        """Predict one image; for arguments and errors see `Predictor`."""
        mask, prob, pixels = average(image, self.members)
        return Prediction(mask, self.labels, pixels, prob if probabilities else None)

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
    predictors = [load_one(path, device, tiles=tiles, overlap=overlap, network=network) for path in paths]
    refuse_unlike(paths, predictors)
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
    return choose_views(bundle.orientation or _read_orientation(model))


def shared_views(models: Iterable[tuple[Path, Bundle]]) -> ViewKind:
    """The views of `find_views` that all models share, for an `EnsembleNet`; of two kinds one contains the other."""
    return _VIEW_KINDS[min(len(find_views(path, bundle)) for path, bundle in models)]


def _read_orientation(model: Path) -> str | None:
    """The orientation in the settings of the run folder that the model is in; None: not stated."""
    settings = RunFolder(model if model.is_dir() else model.parent).settings
    augment = read_config(settings).get("augment") if settings.is_file() else None
    free = isinstance(augment, dict) and augment.get("kind") == "warp" and augment.get("orientation") == "free"
    return "free" if free else None
