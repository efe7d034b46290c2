"""User options for prediction, and models with these options."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ubend.inference.ensemble import Ensemble, Member, load
from ubend.inference.prediction import class_index
from ubend.inference.predictor import Predictor, fetch
from ubend.io.images import LoadedImage
from ubend.labels.class_table import IGNORED
from ubend.portable.input_checks import refuse_other_kind
from ubend.portable.postprocess import PostprocessOptions, parse_areas, parse_thresholds, postprocess
from ubend.portable.raster import Header
from ubend.portable.tiling import TileSource

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Conditions:
    """User options for prediction. Defaults: the most probable class, no post-processing.

    Attributes:
        models: additional models; the probabilities of all are averaged.
        tta: test-time augmentation, see `ensemble.load`.
        threshold: `CLASS=P`, see `parse_thresholds`.
        min_area, fill_holes: `PX` or `CLASS=PX`, see `parse_areas`; applied to each image, frame, or slice.
        tiles: side of the tiles in px; 0: whole images; None: as each model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side.
    """

    models: Sequence[Path | str] = ()
    tta: bool = False
    threshold: Sequence[str] = ()
    min_area: Sequence[str] = ()
    fill_holes: Sequence[str] = ()
    tiles: int | None = None
    overlap: float = 0.25


class MaskResult(NamedTuple):
    """(H, W) class index of an image, IGNORED where it is invalid, and (C, H, W) probabilities if requested."""

    mask: NDArray[np.uint8]
    prob: NDArray[np.float32] | None = None

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.mask.nbytes + (0 if self.prob is None else self.prob.nbytes)


class MaskPredictor:
    """One or more models with post-processing; predicts images, video frames and scan slices.

    Args:
        base: the model or the ensemble.
        wanted: the post-processing; false if there is none.
        paths: the model files or run folders.
        tiles_requested: whether --tiles was given.
    Attributes:
        predictor, labels, bundle: those of the first model.
        channels: number of channels to load: the maximum over the models.
        by_rows: whether an image can be predicted row by row, without probabilities of the whole image.
        takes_color: whether all models take one or three channels, so that they accept grey and colour images.
    """

    def __init__(
        self, base: Predictor | Ensemble, wanted: PostprocessOptions, paths: Sequence[Path], tiles_requested: bool
    ) -> None:
        self._base, self.wanted, self.paths, self.tiles_requested = base, wanted, paths, tiles_requested
        self.members = base.members if isinstance(base, Ensemble) else [Member(base)]
        self.predictor = self.members[0].predictor
        self.labels, self.bundle = self.predictor.labels, self.predictor.bundle
        each = [member.predictor.bundle.sizing.channels for member in self.members]
        self.channels, self.takes_color = max(each), {*each} <= {1, 3}
        by_parts = wanted.min_area or wanted.fill_holes
        self.by_rows = self.predictor.tiling is not None and base is self.predictor and not by_parts

    def refuse_other_kind(self, path: Path, header: Header) -> None:
        """Raise DataError if channels or bit depth of the image do not fit one of the models."""
        for predictor, _views in self.members:
            refuse_other_kind(path, header, predictor.bundle)

    def predict(
        self, images: Iterable[tuple[_Key, NDArray[Any] | LoadedImage]], *, with_prob: bool = False
    ) -> Iterator[tuple[_Key, MaskResult]]:
        """Yield (key, result) of each (key, image), with post-processing; faster without probabilities."""
        keys: dict[int, _Key] = {}

        def given() -> Iterator[NDArray[Any] | LoadedImage]:
            for number, (key, image) in enumerate(images):
                keys[number] = key
                yield image

        for number, prediction in self._base.predict(given(), probabilities=with_prob or bool(self.wanted)):
            prob, mask = prediction.probabilities, prediction.mask
            if self.wanted and prob is not None:
                mask = postprocess(prob, self.wanted, mask == IGNORED)
            yield keys.pop(number), MaskResult(mask, prob if with_prob else None)

    def predict_rows(self, source: TileSource, *, with_prob: bool = False) -> Iterator[tuple[slice, MaskResult]]:
        """Yield (row range, result) of an image, from top to bottom; only if `by_rows`."""

        def make(logits: Tensor) -> list[Tensor]:
            mask = [] if self.wanted else [class_index(logits[0])]
            return [*mask, logits[0].softmax(dim=0)] if self.wanted or with_prob else mask

        for part, made in fetch(self.predictor.run([source]), make):
            mask = postprocess(made[0], self.wanted) if self.wanted else made[0]
            yield part.rows, MaskResult(mask, made[-1] if with_prob else None)


def load_mask_predictor(model: Path | str, device: str | None, conditions: Conditions) -> MaskPredictor:
    """Load the models; for arguments and errors see `ensemble.load`, `parse_thresholds` and `parse_areas`."""
    models = [model, *conditions.models]
    base = load(models, device=device, tta=conditions.tta, tiles=conditions.tiles, overlap=conditions.overlap)
    names = base.labels.names
    wanted = PostprocessOptions(
        parse_thresholds(conditions.threshold, names),
        parse_areas("--min-area", conditions.min_area, names),
        parse_areas("--fill-holes", conditions.fill_holes, names),
    )
    return MaskPredictor(base, wanted, [Path(path) for path in models], conditions.tiles is not None)
