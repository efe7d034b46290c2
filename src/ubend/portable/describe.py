"""Describes models and settings of a prediction, for users and for the record in the output folder."""

import hashlib
import math
from typing import Any

from .files import model_path
from .i18n import _
from .mask_predictor import AnyMaskPredictor
from .predictors import ImagePredictor, is_same_scale
from .tile_options import WHOLE


def describe_masks(masks: AnyMaskPredictor) -> dict[str, Any]:
    """Everything that determines the masks, as JSON object; equal descriptions give equal masks."""
    members = []
    for path, (predictor, views) in zip(masks.paths, masks.members, strict=True):
        tiling = predictor.tiling
        with model_path(path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        cut = {"tiles": tiling.tile_px, "overlap": tiling.overlap} if tiling else {"tiles": 0}
        members.append({"path": str(path), "sha256": digest, "views": len(views), **cut})
    names = masks.labels.names
    parameters: dict[str, Any] = {"models": members}
    for key in ("thresholds", "min_area", "fill_holes"):
        requested = getattr(masks.wanted, key)
        parameters[key] = {names[index]: "all" if value == math.inf else value for index, value in requested.items()}
    return parameters


def describe_tiling(masks: AnyMaskPredictor) -> list[str]:
    """Messages on how images are tiled, and why; a warning if this does not match the model's training."""
    lines_given = [_describe_one(member.predictor, masks.tiles_requested) for member in masks.members]
    if all(lines == lines_given[0] for lines in lines_given):
        return lines_given[0]
    named = zip(masks.paths, lines_given, strict=True)
    return [_("{model}: {line}").format(model=path, line=line) for path, lines in named for line in lines]


def _describe_one(predictor: ImagePredictor, requested: bool) -> list[str]:
    bundle, tiling = predictor.bundle, predictor.tiling
    if not requested:
        reason = _("whole images are resized to {size} px, as in training")
        if tiling is not None:
            reason = _("trained on crops of {window} px at native scale")
        text = reason.format(window=bundle.window_px, size=bundle.sizing.size_px)
        return [_("chosen: {choice}").format(choice=f"--tiles = {tiling.tile_px if tiling else WHOLE}: {text}")]
    if tiling is None and bundle.keeps_scale and bundle.sizing.size_px is not None:
        return [
            _(
                "WARNING: the model was trained on crops at native scale; whole images are resized, so that objects "
                "have another size than in training. Leave --tiles out"
            )
        ]
    if tiling is not None and not bundle.keeps_scale and bundle.scale is None:
        return [_("WARNING: the model file does not state the scale of training; tiles are at native scale")]
    if tiling is not None and bundle.scale is not None and not is_same_scale(bundle.scale):
        low, high = bundle.scale
        return [
            _(
                "WARNING: the model was trained on images at {low:.2g} to {high:.2g} of their size, but tiles are at "
                "native size, so its masks may be wrong. Leave --tiles out, or train with --patches"
            ).format(low=low, high=high)
        ]
    return []
