"""What a person asks of masks beyond one model's most probable class, as the command line says it."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ubend.core.files import model_path
from ubend.core.i18n import _
from ubend.core.plan import Choice
from ubend.inference.ensemble import Ensemble, Member, load
from ubend.inference.postprocess import Refinement, parse_areas, parse_thresholds, refine
from ubend.inference.predictor import Predictor, class_index, refuse_other_kind
from ubend.inference.strips import Source, Strip
from ubend.io.decode import read_header
from ubend.io.images import read_image
from ubend.io.raster import Header
from ubend.models.model_file import SAME_SCALE

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Conditions:
    """Nothing asked: as the model says.

    Attributes:
        models: more models, whose probabilities are averaged with the first one's.
        tta: test-time augmentation, as of `ensemble.load`.
        threshold: `CLASS=P`, as of `parse_thresholds`.
        min_area, fill_holes: `PX` or `CLASS=PX`, as of `parse_areas`; of each picture, frame, or slice.
        tiles: side of the tiles in px, 0: whole pictures; None: as each model was trained.
        overlap: share of a tile's side that neighbours have in common.
    """

    models: Sequence[Path | str] = ()
    tta: bool = False
    threshold: Sequence[str] = ()
    min_area: Sequence[str] = ()
    fill_holes: Sequence[str] = ()
    tiles: int | None = None
    overlap: float = 0.25


class Answer(NamedTuple):
    """(H, W) class index of an image, and (C, H, W) probabilities where they are asked for."""

    mask: NDArray[np.uint8]
    prob: NDArray[np.float32] | None = None

    @property
    def bytes(self) -> int:
        """In memory."""
        return self.mask.nbytes + (0 if self.prob is None else self.prob.nbytes)


class Masks:
    """Models under conditions: what predicts pictures, frames of videos, slices of scans.

    Attributes:
        predictor, labels, bundle: the first model's; what the images have to be like.
        channels: of the pictures that are to be given: the most that one of the models takes.
        by_rows: whether an image can be predicted row by row, without its probabilities as a whole.
        takes_color: whether images in colour can be given, or in grey: each model takes one of the two.
    """

    def __init__(self, answering: Predictor | Ensemble, wanted: Refinement, paths: Sequence[Path], asked: bool) -> None:
        self._answering, self._wanted, self._paths, self._asked = answering, wanted, paths, asked
        self._members = answering.members if isinstance(answering, Ensemble) else [Member(answering)]
        self.predictor = self._members[0].predictor
        self.labels, self.bundle = self.predictor.labels, self.predictor.bundle
        each = [member.predictor.bundle.sizing.channels for member in self._members]
        self.channels, self.takes_color = max(each), {*each} <= {1, 3}
        by_parts = wanted.min_area or wanted.fill_holes
        self.by_rows = self.predictor.tiling is not None and answering is self.predictor and not by_parts

    def inspect(self, picture: Path) -> Header:
        """A file's header.

        Raises:
            DataError: unreadable, or with other channels or another depth than one of the models takes.
        """
        for predictor, _views in self._members:
            refuse_other_kind(picture, read_header(picture, predictor.bundle.sizing.channels), predictor.bundle)
        return read_header(picture, self.channels)

    def read(self, picture: Path) -> NDArray[Any]:
        """(H, W, channels) of a file, as it is; errors as in `inspect`."""
        self.inspect(picture)
        return read_image(picture, self.channels)

    def predict(
        self, images: Iterable[tuple[_Key, NDArray[Any]]], *, with_prob: bool = False
    ) -> Iterator[tuple[_Key, Answer]]:
        """(key, answer) of each (key, image), the mask under the conditions; without probabilities, sooner."""
        keys: dict[int, _Key] = {}

        def given() -> Iterator[NDArray[Any]]:
            for number, (key, image) in enumerate(images):
                keys[number] = key
                yield image

        if isinstance(self._answering, Predictor) and not self._wanted and not with_prob:
            for number, mask in self._answering.predict_masks(given()):
                yield keys.pop(number), Answer(mask)
            return
        for number, found in self._answering.predict(given()):
            mask = refine(found.prob, self._wanted) if self._wanted else found.mask
            yield keys.pop(number), Answer(mask, found.prob if with_prob else None)

    def predict_rows(self, source: Source) -> Iterator[tuple[Strip, NDArray[np.uint8]]]:
        """(logits, (h, W) class index) of the strips of a picture, from top to bottom, where `by_rows` says so."""
        for strip in self.predictor.strips([source]):
            if self._wanted:
                yield strip, refine(strip.logits.softmax(dim=0).cpu().numpy(), self._wanted)
            else:
                yield strip, class_index(strip.logits).cpu().numpy()

    def describe_tiling(self) -> list[str]:
        """How pictures are taken, and why; a warning where a model has not seen them so."""
        said = [_describe_tiling(member.predictor, self._asked) for member in self._members]
        if all(lines == said[0] for lines in said):
            return said[0]
        named = zip(self._paths, said, strict=True)
        return [_("{model}: {line}").format(model=path, line=line) for path, lines in named for line in lines]

    def describe(self) -> dict[str, Any]:
        """What makes the masks, for a file: equal where they would be equal."""
        members = []
        for path, (predictor, views) in zip(self._paths, self._members, strict=True):
            tiling = predictor.tiling
            file = model_path(path)
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            cut = {"tiles": tiling.tile_px, "overlap": tiling.overlap} if tiling else {"tiles": 0}
            members.append({"path": str(path), "sha256": digest, "views": len(views), **cut})
        names = self.labels.names
        facts: dict[str, Any] = {"models": members}
        for key in ("thresholds", "min_area", "fill_holes"):
            asked = getattr(self._wanted, key)
            facts[key] = {names[index]: "all" if value == math.inf else value for index, value in asked.items()}
        return facts


def load_masks(model: Path | str, device: str | None, conditions: Conditions) -> Masks:
    """Load the models; arguments and errors as of `ensemble.load`, `parse_thresholds` and `parse_areas`."""
    models = [model, *conditions.models]
    answering = load(models, device, tta=conditions.tta, tiles=conditions.tiles, overlap=conditions.overlap)
    names = answering.labels.names
    wanted = Refinement(
        parse_thresholds(conditions.threshold, names),
        parse_areas("--min-area", conditions.min_area, names),
        parse_areas("--fill-holes", conditions.fill_holes, names),
    )
    return Masks(answering, wanted, [Path(path) for path in models], conditions.tiles is not None)


def _describe_tiling(predictor: Predictor, asked: bool) -> list[str]:
    bundle, tiling = predictor.bundle, predictor.tiling
    if not asked:
        reason = _("pictures are taken whole and resized to {size} px, as in training")
        if tiling is not None:
            reason = _("trained on windows of {window} px of pictures at their own scale")
        told = reason.format(window=bundle.window_px, size=bundle.sizing.size_px)
        choice = Choice("--tiles", tiling.tile_px if tiling else 0, told)
        return [_("chosen: {choice}").format(choice=choice.line())]
    if tiling is None and bundle.keeps_scale and bundle.sizing.size_px is not None:
        return [
            _(
                "WARNING: the model was trained on windows of pictures at their own scale; pictures of another size, "
                "taken whole, look to it as if seen from another distance. Leave --tiles out"
            )
        ]
    low, high = bundle.scale or (1.0, 1.0)
    if tiling is not None and not bundle.keeps_scale and bundle.scale is None:
        return [_("WARNING: the model file does not say at which scale it was trained; tiles show the picture's own")]
    if tiling is not None and (low < 1 / SAME_SCALE or high > SAME_SCALE):
        return [
            _(
                "WARNING: the model was trained on pictures at {low:.2g} to {high:.2g} of their size; tiles show it "
                "objects at their own size, so its masks may be wrong. Leave --tiles out, or train with --patches"
            ).format(low=low, high=high)
        ]
    return []
