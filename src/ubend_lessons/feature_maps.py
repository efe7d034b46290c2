"""The lesson on feature maps: those of an image in a network, and how the image is normalised.

C channels, H x W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.drawing.panels import draw_grid, show_image
from ubend.io.images import model_size, resize_array
from ubend.models.model_file import Bundle
from ubend.portable.images import save_png
from ubend.portable.overlay import color_mask, to_rgb
from ubend_lessons.cards import Card, draw_cards
from ubend_lessons.trace import Step, trace_network

CHANNELS = 6  # channels shown of each feature map
_CELL_PX, _CARD_PX = 160, 300
_MAX_PX = 512  # largest side; larger images are cropped around the middle


def teach_feature_maps(bundle: Bundle, image: NDArray[Any], *, out: Path | str, show: bool = False) -> list[str]:
    """Draw feature maps (`feature_maps.png`), and the image normalised and de-normalised (`normalise.png`).

    `feature_maps.png` has a few channels of each block's feature map, the probabilities and the mask.

    Args:
        bundle: a trained model.
        image: (H, W) or (H, W, C) values of the dtype of the model's training images.
    Returns:
        Lines: the numbers of the normalisation, the shape of each feature map and its number of channels that are 0;
        then the files.
    Raises:
        DataError: the image has a different number of channels, or another dtype, than the model's.
        OutputError: an image cannot be written.
    """
    image = _fit_model(bundle, image)
    net = bundle.model.cpu().eval()
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    steps = trace_network(net, pixels)
    mean, std = (value.reshape(-1).numpy() for value in (net.mean, net.std))
    cards, lines = normalise_cards(image, mean, std)
    blocks = last_of_blocks(steps)
    maps, words = _draw_maps(bundle, image, steps, blocks)
    pages = {"normalise": draw_cards(cards, len(cards)), "feature_maps": maps}
    files = [Path(out) / f"{name}.png" for name in pages]
    for page, path in zip(pages.values(), files, strict=True):
        save_png(page, path)
        if show:
            show_image(page)
    return [*lines, *words, *map(str, files)]


def last_of_blocks(steps: Sequence[Step]) -> list[int]:
    """The indices of the outputs of blocks: feature maps after which the size changes or the network ends."""
    ends = ("pooling", "upsampling", "last")
    return [n for n, step in enumerate(steps[:-1]) if step.kind == "convolution" and steps[n + 1].kind in ends]


def pick_channels(features: NDArray[np.float32], count: int = CHANNELS) -> list[int]:
    """The channels of (C, H, W) with the largest variance over the image, in ascending order."""
    spread = features.std(axis=(1, 2))
    return sorted(np.argsort(-spread, kind="stable")[:count].tolist())


def normalise_cards(
    image: NDArray[Any], mean: NDArray[np.float32], std: NDArray[np.float32]
) -> tuple[list[Card], list[str]]:
    """The image, two views of it normalised, and it de-normalised, each with its numbers.

    Args:
        image: (H, W, C) raw values.
        mean, std: (C,) of the training images, in the same units.
    """
    size = _card_size(image)
    normal = (image.astype(np.float32) - mean) / std
    back = normal * std + mean
    error = float(np.abs(back - image).max())
    cut = float(((normal < 0) | (normal > 1)).mean())
    shown = resize_array(to_rgb(image), size)
    restored = to_rgb(back.round().clip(0, None).astype(image.dtype) if image.dtype.kind == "u" else back)
    cards = [
        Card(_("image"), shown, _numbers(image)),
        Card(
            _("normalised, shown as an image"),
            resize_array(to_rgb((normal.clip(0, 1) * 255).round().astype(np.uint8)), size),
            _("{numbers} An image shows only 0 to 1: {share:.0%} of these values are clipped.").format(
                numbers=_numbers(normal), share=cut
            ),
        ),
        Card(
            _("normalised, stretched for display"),
            resize_array(to_rgb(normal), size),
            _("The same values, from black for the smallest to white for the largest."),
        ),
        Card(
            _("de-normalised"),
            resize_array(restored, size),
            _("{numbers} value x std + mean; largest difference from the image: {error:.2g}.").format(
                numbers=_numbers(back), error=error
            ),
        ),
    ]
    lines = [_("normalise: (value - mean) / std for each channel; de-normalise: value x std + mean")]
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        before, after = image[:, :, channel], normal[:, :, channel]
        lines.append(
            _(
                "  channel {channel}: mean {mean:.4g}, std {std:.4g}; {low:.4g} .. {high:.4g} becomes"
                " {minimum:.3g} .. {maximum:.3g}"
            ).format(
                channel=channel,
                mean=m,
                std=s,
                low=before.min(),
                high=before.max(),
                minimum=after.min(),
                maximum=after.max(),
            )
        )
    return cards, lines


def _fit_model(bundle: Bundle, image: NDArray[Any]) -> NDArray[Any]:
    """(h, w, C) the image at model size, at most `_MAX_PX` per side."""
    image = image[:, :, None] if image.ndim == 2 else image
    sizing = bundle.sizing
    if image.ndim != 3 or image.shape[2] != sizing.channels or not image.size:
        raise DataError(
            _("the image has the shape {shape}, but the model takes {channels} channels").format(
                shape=image.shape, channels=sizing.channels
            ),
            key="shape",
        )
    if image.dtype.name != bundle.dtype:
        raise DataError(
            _("the image has {depth} values, but the model was trained on {wanted}").format(
                depth=image.dtype.name, wanted=bundle.dtype
            ),
            key="dtype",
        )
    size = model_size((image.shape[0], image.shape[1]), sizing.size_px, sizing.keep_aspect)
    image = image if bundle.keeps_scale else resize_array(image, size)
    above, left = (max(0, side - _MAX_PX) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[above : above + _MAX_PX, left : left + _MAX_PX])


def _draw_maps(
    bundle: Bundle, image: NDArray[Any], steps: Sequence[Step], blocks: Sequence[int]
) -> tuple[Image.Image, list[str]]:
    labels = [_("the image, {height} x {width}").format(height=image.shape[0], width=image.shape[1])]
    rows, lines = [[to_rgb(image)]], []
    for number in blocks:
        features = steps[number].features[0].numpy()
        picked = pick_channels(features)
        silent = int((features.reshape(len(features), -1).max(axis=1) <= 0).sum())
        channels, height, width = features.shape
        words = _("map {number}: {channels} channels of {height} x {width}").format(
            number=number, channels=channels, height=height, width=width
        )
        rows.append([to_rgb(features[channel]) for channel in picked])
        labels.append(_("{words}; shown: {picked}").format(words=words, picked=", ".join(map(str, picked))))
        lines.append(_("{words}; channels that are 0 everywhere: {silent}").format(words=words, silent=silent))
    height, width = image.shape[:2]
    logits = steps[-1].features[0, :, :height, :width]
    prob = logits.softmax(dim=0).numpy()
    mask = prob.argmax(axis=0).astype(np.uint8)
    shown = [to_rgb((255 * one).round().astype(np.uint8)) for one in prob[: CHANNELS - 1]]
    rows.append([*shown, color_mask(mask, bundle.labels.colors)])
    labels.append(
        _("probabilities: {names}; the class of each pixel").format(
            names=", ".join(bundle.labels.names[: CHANNELS - 1])
        )
    )
    legend = list(zip(bundle.labels.names, bundle.labels.colors, strict=True))
    return draw_grid(rows, (), labels, _CELL_PX, legend), lines


def _card_size(image: NDArray[Any]) -> tuple[int, int]:
    scale = _CARD_PX / max(image.shape[:2])
    return max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))


def _numbers(values: NDArray[Any]) -> str:
    return _("{low:.4g} .. {high:.4g}, mean {mean:.4g}, std {std:.4g}.").format(
        low=float(values.min()), high=float(values.max()), mean=float(values.mean()), std=float(values.std())
    )
