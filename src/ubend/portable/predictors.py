"""Models as the pipeline of files sees them, whether torch or onnxruntime computes them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .class_table import ClassTable
from .input_checks import Image
from .tiling import TileSource, Tiling

SAME_SCALE = 1.1  # scales that differ by less are considered equal: augmentation zooms by more


class _Sizing(Protocol):
    @property
    def size_px(self) -> int | None: ...

    @property
    def channels(self) -> int: ...


class ModelInfo(Protocol):
    """A model, as far as the messages and checks of a prediction need it; see the fields of a model file."""

    @property
    def dtype(self) -> str: ...

    @property
    def sizing(self) -> _Sizing: ...

    @property
    def window_px(self) -> int | None: ...

    @property
    def scale(self) -> tuple[float, float] | None: ...

    @property
    def keeps_scale(self) -> bool: ...

    @property
    def channel_statistics(self) -> NDArray[np.float64]:
        """(2, channels) mean and standard deviation of the training images."""
        ...


def is_same_scale(scale: tuple[float, float] | None) -> bool:
    """Whether training images of this smallest and largest scale are about as large as the native ones."""
    low, high = scale or (0.0, 0.0)
    return low >= 1 / SAME_SCALE and high <= SAME_SCALE


class MaskResult(NamedTuple):
    """(H, W) class index of an image, IGNORED where it is invalid, and (C, H, W) probabilities if requested."""

    mask: NDArray[np.uint8]
    prob: NDArray[np.float32] | None = None

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.mask.nbytes + (0 if self.prob is None else self.prob.nbytes)


class AnyPrediction(Protocol):
    """The prediction for one image, of `ubend` or of `ubend-runtime`."""

    @property
    def mask(self) -> NDArray[np.uint8]: ...

    @property
    def probabilities(self) -> NDArray[np.float32] | None: ...


class PredictsMany(Protocol):
    """A model or several, ready to predict."""

    def predict(self, images: Iterable[Image], *, probabilities: bool = False) -> Iterator[tuple[int, AnyPrediction]]:
        """(index, prediction) of each image."""
        ...


class ImagePredictor(PredictsMany, Protocol):
    """A model, ready to predict."""

    @property
    def bundle(self) -> ModelInfo: ...

    @property
    def labels(self) -> ClassTable: ...

    @property
    def tiling(self) -> Tiling | None: ...

    def predict_rows(self, source: TileSource, *, probabilities: bool) -> Iterator[tuple[slice, MaskResult]]:
        """(row range, result) of an image that is read by rows, from top to bottom; only with tiles."""
        ...
