"""Options for prediction, and models with these options."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from .class_table import IGNORED
from .ensemble import Member
from .images import LoadedImage
from .input_checks import refuse_other_kind
from .postprocess import PostprocessOptions, parse_areas, parse_thresholds, postprocess
from .predictors import ImagePredictor, MaskResult, PredictsMany
from .raster import Header
from .tile_options import DEFAULT_OVERLAP
from .tiling import TileSource

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class PredictionOptions:
    """User options for prediction. Defaults: the most probable class, no post-processing.

    Attributes:
        models: additional models; the probabilities of all are averaged.
        tta: test-time augmentation: average over the image and its mirror image, or over all eight rotations and
            flips if the model was trained with these.
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
    overlap: float = DEFAULT_OVERLAP


_P = TypeVar("_P", bound=ImagePredictor)


class MaskPredictor(Generic[_P]):
    """One or more models with post-processing; predicts images, video frames and scan slices.

    Args:
        base: the model or the ensemble.
        members: its models.
        wanted: the post-processing; false if there is none.
        paths: the model files or run folders.
        tiles_requested: whether --tiles was given.
    Attributes:
        predictor, labels, bundle: those of the first model.
        channels: number of channels to load: the maximum over the models.
        by_rows: whether an image can be predicted row by row, without probabilities of the whole image.
        takes_grey_and_color: whether all models take one or three channels, so that they accept grey and colour images.
    """

    def __init__(
        self,
        base: PredictsMany,
        members: Sequence[Member[_P]],
        wanted: PostprocessOptions,
        paths: Sequence[Path],
        tiles_requested: bool,
    ) -> None:
        self._base, self.members, self.wanted = base, list(members), wanted
        self.paths, self.tiles_requested = paths, tiles_requested
        self.predictor = self.members[0].predictor
        self.labels, self.bundle = self.predictor.labels, self.predictor.bundle
        each = [member.predictor.bundle.sizing.channels for member in self.members]
        self.channels, self.takes_grey_and_color = max(each), {*each} <= {1, 3}
        by_parts = wanted.min_area or wanted.fill_holes
        self.by_rows = self.predictor.tiling is not None and base is self.predictor and not by_parts

    def refuse_other_kind(self, path: Path, header: Header) -> None:
        """Raise DataError if channels or bit depth of the image do not fit one of the models."""
        for predictor, _views in self.members:
            refuse_other_kind(path, header, predictor.bundle)

    def predict(
        self, images: Iterable[tuple[_Key, NDArray[Any] | LoadedImage]], *, probabilities: bool = False
    ) -> Iterator[tuple[_Key, MaskResult]]:
        """Yield (key, result) of each (key, image), with post-processing; faster without probabilities."""
        keys: dict[int, _Key] = {}

        def given() -> Iterator[NDArray[Any] | LoadedImage]:
            for index, (key, image) in enumerate(images):
                keys[index] = key
                yield image

        for index, prediction in self._base.predict(given(), probabilities=probabilities or bool(self.wanted)):
            prob, mask = prediction.probabilities, prediction.mask
            if self.wanted and prob is not None:
                mask = postprocess(prob, self.wanted, mask == IGNORED)
            yield keys.pop(index), MaskResult(mask, prob if probabilities else None)

    def predict_rows(self, source: TileSource, *, probabilities: bool = False) -> Iterator[tuple[slice, MaskResult]]:
        """Yield (row range, result) of an image, from top to bottom; only if `by_rows`."""
        needed = probabilities or bool(self.wanted)
        for rows, (mask, prob) in self.predictor.predict_rows(source, probabilities=needed):
            if self.wanted and prob is not None:
                mask = postprocess(prob, self.wanted)
            yield rows, MaskResult(mask, prob if probabilities else None)


AnyMaskPredictor = MaskPredictor[Any]


def make_mask_predictor(
    base: PredictsMany, members: Sequence[Member[_P]], paths: Sequence[Path | str], options: PredictionOptions
) -> MaskPredictor[_P]:
    """A model or an ensemble with the user's options; for errors see `parse_thresholds` and `parse_areas`."""
    names = members[0].predictor.labels.names
    wanted = PostprocessOptions(
        parse_thresholds(options.threshold, names),
        parse_areas("--min-area", options.min_area, names),
        parse_areas("--fill-holes", options.fill_holes, names),
    )
    return MaskPredictor(base, members, wanted, [Path(path) for path in paths], options.tiles is not None)
