"""Cut a class out of images, onto a transparent or another background.

H x W pixels of the image's own size. The edge follows the model's probabilities, or has a fixed width.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from ubend.core.errors import SettingError
from ubend.core.i18n import _, later
from ubend.inference.mask_predictor import MaskPredictor, load_mask_predictor
from ubend.io.images import read_image
from ubend.labels.class_table import IGNORED, background_class
from ubend.portable.describe import describe_masks
from ubend.portable.file_jobs import ImageJob, Role, run_jobs
from ubend.portable.images import save_png
from ubend.portable.mask_predictor import PredictionOptions
from ubend.portable.overlay import Color, to_rgb
from ubend.portable.postprocess import find_class, split_number
from ubend.portable.predictors import MaskResult
from ubend.portable.record import Record
from ubend.portable.reporter import Reporter
from ubend.tasks.expand import report_deeper_folders

_CLEAR, _SOLID = 0.25, 0.75  # probabilities at which the edge begins and ends; its middle is the mask's border
_REACH_SHARE = 1 / 64  # how far the edge reaches to either side of its middle, as a fraction of the image's longer side
_MIN_REACH_PX = 2.0
_BYTES_PER_PIXEL = 2.0  # bytes per pixel of a cut-out as PNG; a guess: photographs without an edge take 1.5
_NONE = PredictionOptions()
_CutoutOptions = tuple[
    Mapping[int, float], Color | Image.Image | None, float | None
]  # class weights, background, width of the edge in px


def cut_out_files(
    model: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    classes: Sequence[str] = (),
    background: str = "transparent",
    soft_px: float | None = None,
    options: PredictionOptions = _NONE,
    resume: bool = False,
    device: str | None = None,
    reporter: Reporter,
) -> list[Path]:
    """Cut a class out of images; for NAME.jpg writes `NAME.png` at the image's own size, and one `cutout.json`
    that records how they were made. An error in one image does not stop the others.

    Args:
        model: a run folder or a model file.
        paths: as in `ImageJob`.
        out: folder for the cut-outs; files in it are not overwritten.
        classes: see `parse_classes`.
        background: `transparent` (RGBA output), or a colour or an image (RGB output).
        soft_px: width of the edge in px; None: by the model's probabilities, within limits.
        options: more models, views, tiles; options that only change masks are ignored, since the edge follows
            the probabilities.
        resume: keep existing cut-outs.
    Returns:
        The files, including existing ones.
    Raises:
        SettingError: an unknown class, colour or width.
        DataError, OutputError: as in `run_jobs`; or no images.
    """
    if soft_px is not None and not 0 <= soft_px < math.inf:
        raise SettingError(_("--soft {width}: give a width in px, 0 or more").format(width=soft_px), key="--soft")
    masks, out = load_mask_predictor(model, device, options), Path(out)
    names = masks.labels.names
    weights = parse_classes(classes, names)
    report_deeper_folders(paths, reporter)
    job = _CutoutJob(masks, paths, out, (weights, _read_background(background), soft_px), resume=resume)
    chosen = {"classes": {names[index]: weight for index, weight in weights.items()}}
    parameters = {**describe_masks(masks), **chosen, "background": background, "soft_px": soft_px}
    return run_jobs([job], reporter, Record(out / "cutout.json", parameters))


class _CutoutJob(ImageJob):
    output_name, title = later("cut-out"), later("cutting out")
    probabilities, as_stored = True, True
    exist_message = later("cut-outs that exist already and are kept: {count}")
    done_message = later("cut-outs in {out}: {count}")

    def __init__(
        self,
        predictor: MaskPredictor,
        paths: Sequence[Path | str],
        out: Path,
        how: _CutoutOptions,
        *,
        resume: bool = False,
    ) -> None:
        super().__init__(predictor, paths, out, resume=resume)
        self._weights, self._behind, self._soft_px = how
        self._empty: list[int] = []

    def outputs(self, index: int) -> dict[Role, Path]:
        return {"cutout": self.out / f"{self.paths[index].stem}.png"}

    def size(self, index: int) -> float:
        return _BYTES_PER_PIXEL * math.prod(self.usable[index].size_hw)

    def write_one(self, index: int, result: MaskResult, image: NDArray[Any]) -> None:
        assert result.prob is not None
        alpha = make_alpha(weigh_classes(result.prob, self._weights), self._soft_px)
        alpha[result.mask == IGNORED] = 0  # invalid pixels
        if not alpha.any():
            self._empty.append(index)
        colors = extend_colors(to_rgb(image), alpha)
        save_png(Image.fromarray(_composite(colors, alpha, self._behind)), self.outputs(index)["cutout"])

    def finish(self, _indices: Sequence[int], reporter: Reporter) -> None:
        sought = ", ".join(self.predictor.labels.names[index] for index in self._weights)
        for index in sorted(self._empty):
            message = _("{path}: no pixels of {name} were found; its cut-out is empty")
            reporter.report(message.format(path=self.paths[index], name=sought))


def parse_classes(texts: Iterable[str], names: Sequence[str]) -> dict[int, float]:
    """Parse each `--class`, such as `pet` or `contour=0.5`: class index -> weight of its probability.

    Raises:
        SettingError: an unknown class, a weight outside 0..1, or no class given although the model has several.
    """
    weights: dict[int, float] = {}
    for text in texts:
        name, weight = (text, 1.0) if text in names or "=" not in text else split_number(text)
        if not 0 < weight <= 1:
            raise SettingError(
                _("--class {text}: write CLASS or CLASS=WEIGHT, with a weight above 0 and at most 1").format(text=text),
                key="--class",
            )
        weights[find_class(name or "", names)] = weight
    if weights:
        return weights
    objects = [index for index in range(len(names)) if index != background_class(names)]
    if len(objects) == 1:
        return {objects[0]: 1.0}
    known = ", ".join(names[index] for index in objects)
    raise SettingError(
        _("the model has several classes; choose with --class: {known}").format(known=known), key="--class"
    )


def weigh_classes(prob: NDArray[np.float32], weights: Mapping[int, float]) -> NDArray[np.float32]:
    """(C, H, W) probabilities -> (H, W) probability that a pixel belongs to the cut-out, 0..1."""
    total = np.zeros(prob.shape[1:], np.float32)
    for index, weight in weights.items():
        total += np.float32(weight) * prob[index]
    return total


def make_alpha(prob: NDArray[np.float32], soft_px: float | None = None) -> NDArray[np.float32]:
    """(H, W) probabilities of the cut-out -> (H, W) alpha, from 0 (transparent) to 1 (opaque).

    Alpha is one half where the probability is one half. It rises with the probability between two bounds, within a
    small distance of that line; with `soft_px` it rises with the distance from the line, over that width.
    """
    inside = prob >= 0.5
    if soft_px == 0 or not inside.any() or inside.all():
        return inside.astype(np.float32)
    # distance to the line between pixels, half a pixel before the nearest pixel of the other side
    depth_px = scipy.ndimage.distance_transform_edt(inside) - scipy.ndimage.distance_transform_edt(~inside)
    depth_px = (depth_px - 0.5 * np.sign(depth_px)).astype(np.float32)
    alpha: NDArray[np.float32]
    if soft_px is not None:
        alpha = 0.5 + depth_px / np.float32(soft_px)
    else:
        reach = depth_px / np.float32(max(_MIN_REACH_PX, max(prob.shape) * _REACH_SHARE))
        alpha = ((prob - _CLEAR) / (_SOLID - _CLEAR)).clip(reach, 1 + reach)
    return alpha.clip(0, 1)


def extend_colors(image: NDArray[np.uint8], alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Replace colours on the edge, where pixels mix with the old background and would form a halo.

    Each edge pixel is blended with the colour of the nearest solid pixel, more where alpha is lower. Without solid
    pixels colours stay. Clear pixels become black, so that the file contains nothing of the background.

    Args:
        image: (H, W, 3) the image.
        alpha: (H, W), 0..1.
    Returns:
        (H, W, 3).
    """
    solid, edge = alpha >= 1, (alpha > 0) & (alpha < 1)
    out = image.copy()
    out[alpha == 0] = 0
    if solid.any() and edge.any():
        rows, columns = scipy.ndimage.distance_transform_edt(~solid, return_distances=False, return_indices=True)
        nearest = image[rows[edge], columns[edge]].astype(np.float32)
        weight = alpha[edge][:, None] ** 2  # with alpha itself, half of the halo remained
        out[edge] = np.rint(weight * image[edge] + (1 - weight) * nearest)
    return out


def _composite(
    colors: NDArray[np.uint8], alpha: NDArray[np.float32], behind: Color | Image.Image | None
) -> NDArray[np.uint8]:
    """(H, W, 4) on transparency, or (H, W, 3) on a colour, or on an image scaled to cover all of it."""
    if behind is None:
        return np.concatenate([colors, np.rint(alpha * 255).astype(np.uint8)[..., None]], axis=2)
    height, width = alpha.shape
    ground = ImageOps.fit(behind, (width, height)) if isinstance(behind, Image.Image) else behind
    share = alpha[..., None]
    mixed: NDArray[np.float32] = share * colors + (1 - share) * np.asarray(ground, np.float32)
    return np.rint(mixed).astype(np.uint8)


def _read_background(text: str) -> Color | Image.Image | None:
    """A colour, an image, or None for transparency."""
    if text == "transparent":
        return None
    if Path(text).is_file():
        return Image.fromarray(to_rgb(read_image(Path(text))))
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise SettingError(
            _(
                "--background {text}: neither an existing image nor a colour; give a file, a name such as white, "
                "#rrggbb, or transparent"
            ).format(text=text),
            key="--background",
        ) from error
    return red, green, blue
