"""Describes models and settings of a prediction, for users and for the record in the output folder."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from .files import model_path
from .i18n import _
from .mask_predictor import AnyMaskPredictor
from .predictors import ImagePredictor, is_same_scale
from .raster import Header
from .tile_options import WHOLE

_OTHER_SCALE = 2.0  # times smaller or larger than in training; augmentation zooms by much less


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
        line = _(
            "WARNING: the model was trained on images at {scale} of their size, but tiles are at native size, so its "
            "masks may be wrong. Leave --tiles out, or train with --patches"
        )
        return [line.format(scale=_show_scale(bundle.scale))]
    return []


def describe_scales(headers: Sequence[Header], masks: AnyMaskPredictor) -> list[str]:
    """A warning if whole images are reduced or enlarged far more than the images of the training were."""
    for member in masks.members:
        size_px, scale = member.predictor.bundle.sizing.size_px, member.predictor.bundle.scale
        if member.predictor.tiling is not None or size_px is None or scale is None:
            continue
        factors = [size_px / math.sqrt(header.pixels) for header in headers]
        unlike = [f for f in factors if not scale[0] / _OTHER_SCALE <= f <= scale[1] * _OTHER_SCALE]
        if unlike:
            line = _(
                "WARNING: images that are resized to another scale than those of the training: {count} of {total}, to "
                "{factors} of their size instead of {scale}; their objects then have another size, so the masks may be "
                "wrong. Cut or resize the images so that objects are as large as in the training images"
            )
            found = _show_scale((min(unlike), max(unlike)))
            return [line.format(count=len(unlike), total=len(headers), factors=found, scale=_show_scale(scale))]
    return []


def _show_scale(scale: tuple[float, float]) -> str:
    """A range of scales with two digits, as one number where its ends look alike."""
    low, high = (f"{end:.2g}" for end in scale)
    return low if low == high else _("{low} to {high}").format(low=low, high=high)
