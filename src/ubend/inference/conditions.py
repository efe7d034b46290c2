"""What a person asks of masks beyond one model's most probable class, as the command line says it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.inference.ensemble import Ensemble, load
from ubend.inference.predictor import Predictor
from ubend.inference.refine import Refinement, parse_areas, parse_thresholds, refine
from ubend.inference.strips import Held
from ubend.model.bundle import Bundle


@dataclass(frozen=True)
class Conditions:
    """Nothing asked: as the model says.

    Attributes:
        models: more models, whose probabilities are averaged with the first one's.
        tta: test-time augmentation, as of `ensemble.load`.
        threshold: `CLASS=P`, as of `parse_thresholds`.
        min_area, fill_holes: `PX` or `CLASS=PX`, as of `parse_areas`.
    """

    models: Sequence[Path | str] = ()
    tta: bool = False
    threshold: Sequence[str] = ()
    min_area: Sequence[str] = ()
    fill_holes: Sequence[str] = ()

    def __bool__(self) -> bool:
        return self != Conditions()


class Masks:
    """A predictor under conditions, as far as masks are asked of it.

    Attributes:
        predictor: the first model's.
    """

    def __init__(self, answering: Predictor | Ensemble, wanted: Refinement) -> None:
        self._answering, self._wanted = answering, wanted
        self.predictor = answering.members[0].predictor if isinstance(answering, Ensemble) else answering

    @property
    def bundle(self) -> Bundle:
        """What the pictures have to be like: the first model's."""
        return self.predictor.bundle

    @property
    def by_rows(self) -> bool:
        """Whether a picture can be predicted row by row, without its probabilities as a whole."""
        return self.predictor.tiling is not None and self._answering is self.predictor and not self._wanted

    def hold(self, image: Path) -> Held:
        """A picture as it is, checked."""
        return self.predictor.hold(image)

    def predict_masks(self, images: Iterable[NDArray[Any]]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(number, (H, W) class index) of each picture."""
        if isinstance(self._answering, Predictor) and not self._wanted:
            yield from self._answering.predict_masks(images)
            return
        for number, prediction in self._answering.predict(images):
            yield number, refine(prediction.prob, self._wanted)


def load_masks(
    model: Path | str, device: str | None, conditions: Conditions, *, tiles: int | None, overlap: float
) -> Masks:
    """Load the models; arguments and errors as of `ensemble.load`, `parse_thresholds` and `parse_areas`."""
    models = [model, *conditions.models]
    answering = load(models, device, tta=conditions.tta, tiles=tiles, overlap=overlap)
    names = answering.labels.names
    return Masks(
        answering,
        Refinement(
            parse_thresholds(conditions.threshold, names),
            parse_areas("--min-area", conditions.min_area, names),
            parse_areas("--fill-holes", conditions.fill_holes, names),
        ),
    )
