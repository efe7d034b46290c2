"""What predicts, in words: for people, and for the record in the folder of results."""

import hashlib
import math
from typing import Any

from ubend.core.files import model_path
from ubend.core.i18n import _
from ubend.core.plan import Choice
from ubend.inference.conditions import MaskPredictor
from ubend.inference.predictor import Predictor
from ubend.models.model_file import SAME_SCALE


def describe_masks(masks: MaskPredictor) -> dict[str, Any]:
    """What makes the masks, fit for JSON: equal where they would be equal."""
    members = []
    for path, (predictor, views) in zip(masks.paths, masks.members, strict=True):
        tiling = predictor.tiling
        with model_path(path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        cut = {"tiles": tiling.tile_px, "overlap": tiling.overlap} if tiling else {"tiles": 0}
        members.append({"path": str(path), "sha256": digest, "views": len(views), **cut})
    names = masks.labels.names
    facts: dict[str, Any] = {"models": members}
    for key in ("thresholds", "min_area", "fill_holes"):
        requested = getattr(masks.wanted, key)
        facts[key] = {names[index]: "all" if value == math.inf else value for index, value in requested.items()}
    return facts


def describe_tiling(masks: MaskPredictor) -> list[str]:
    """How images are cut, and why; a warning where a model has not seen them so."""
    lines_given = [_describe_one(member.predictor, masks.tiles_requested) for member in masks.members]
    if all(lines == lines_given[0] for lines in lines_given):
        return lines_given[0]
    named = zip(masks.paths, lines_given, strict=True)
    return [_("{model}: {line}").format(model=path, line=line) for path, lines in named for line in lines]


def _describe_one(predictor: Predictor, requested: bool) -> list[str]:
    bundle, tiling = predictor.bundle, predictor.tiling
    if not requested:
        reason = _("images are taken whole and resized to {size} px, as in training")
        if tiling is not None:
            reason = _("trained on windows of {window} px of images at native scale")
        text = reason.format(window=bundle.window_px, size=bundle.sizing.size_px)
        choice = Choice("--tiles", tiling.tile_px if tiling else 0, text)
        return [_("chosen: {choice}").format(choice=choice.line())]
    if tiling is None and bundle.keeps_scale and bundle.sizing.size_px is not None:
        return [
            _(
                "WARNING: the model was trained on crops at native scale; images of another size, "
                "taken whole, look to it as if seen from another distance. Leave --tiles out"
            )
        ]
    low, high = bundle.scale or (1.0, 1.0)
    if tiling is not None and not bundle.keeps_scale and bundle.scale is None:
        return [_("WARNING: the model file does not say at which scale it was trained; tiles show the image's own")]
    if tiling is not None and (low < 1 / SAME_SCALE or high > SAME_SCALE):
        return [
            _(
                "WARNING: the model was trained on images at {low:.2g} to {high:.2g} of their size; tiles show it "
                "objects at native size, so its masks may be wrong. Leave --tiles out, or train with --patches"
            ).format(low=low, high=high)
        ]
    return []
