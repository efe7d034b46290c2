"""The lesson on augmentation: shows what each kind does to an image and its mask.

The images are drawn by the code of a training: a store of one image, `WholeImages`, `TrainingBatches`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ubend.core.counter_rng import shuffled_item
from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.core.plan import AugmentPlan
from ubend.core.settings import FROZEN_COPIES, Settings, known_keys, make_settings
from ubend.dataset.batches import Augmentation, BatchOrder, TrainingBatches
from ubend.dataset.sources import WholeImages
from ubend.dataset.store import Store
from ubend.drawing.panels import draw_grid, show_image
from ubend.labels.class_table import IGNORED, background_class
from ubend.portable.images import save_png
from ubend.portable.overlay import IGNORED_COLOR, overlay_mask, to_rgb
from ubend_lessons.example import Example, store_example

DRAWS = 3  # of each kind
_SIZE_PX = 256  # of the image that is augmented
_CELL_PX = 224  # in the gallery
_VEIL = 0.6  # opacity of the grey over pixels that are not scored
_OUTLINES = ((0, 255, 0), (255, 0, 255), (0, 255, 255), (255, 255, 0))  # of classes, in turn; visible on most images
_ROOM_BYTES = 2**28

# Kinds of augmentation, and the settings that control each.
KINDS: dict[str, tuple[str, ...]] = {
    "flips": ("flip_share",),
    "rotation": ("rotation_deg",),
    "scale": ("scale",),
    "stretch": ("stretch",),
    "shift": ("shift",),
    "elastic": ("elastic", "elastic_share"),
    "brightness": ("brightness",),
    "contrast": ("contrast",),
    "color": ("color",),
    "saturation": ("saturation",),
    "gamma": ("gamma",),
    "blur": ("blur_px", "blur_share"),
    "noise": ("noise", "noise_share"),
}
_SHAPE = ("flips", "rotation", "scale", "stretch", "shift", "elastic")  # the others do not change the mask
_SHARES = ("elastic_share", "blur_share", "noise_share")  # shares of the images that are changed; 1 in the galleries


@dataclass(frozen=True)
class Row:
    """One kind of augmentation, drawn a few times.

    Attributes:
        name: its translated name.
        settings: with which it was drawn.
        images: (DRAWS, H, W, C) raw values; masks: (DRAWS, H, W) uint8.
    """

    name: str
    settings: AugmentPlan
    images: NDArray[np.float32]
    masks: NDArray[np.uint8]


def teach_augmentation(
    example: Example, *, out: Path | str, settings: Mapping[str, Any] | None = None, seed: int = 0, show: bool = False
) -> list[str]:
    """Draw galleries of the tutorial's copies, of the kinds that move pixels, and of those that change colours.

    Writes into `out`: `augmentation_tutorial.png`, `augmentation_shape.png`, `augmentation_color.png`. If a kind moves
    the mask, the outline of the mask is drawn on the image; pixels that are not scored are grey.

    Args:
        example: the image and its mask.
        settings: the strength of each kind, by dotted key, such as {"augment.scale": 0.5}.
        seed: random seed.
    Returns:
        A line for each kind: how much it changes image and mask; then the files.
    Raises:
        SettingError: a setting is unknown or out of range.
        OutputError: an image cannot be written.
    """
    for key in settings or {}:
        if not key.startswith("augment.") and key in known_keys():
            raise SettingError(
                _("{key} does not affect augmentation; give settings such as augment.scale").format(key=key), key=key
            )
    chosen = fix_warp(make_settings(changes=settings))
    with TemporaryDirectory() as place:
        store = store_example(example, min(_SIZE_PX, max(example.mask.shape)), Path(place))
        galleries = {
            "tutorial": draw_copies(store, chosen, seed),
            "shape": [*(draw_kind(store, chosen, name, seed) for name in _SHAPE), *_draw_edges(store, chosen, seed)],
            "color": [
                *(draw_kind(store, chosen, name, seed) for name in KINDS if name not in _SHAPE),
                _draw_row(store, _("all together"), chosen, seed),
            ],
        }
        image, mask = store.image(0), store.mask(0)
        lines, files = [], []
        for name, rows in galleries.items():
            lines += [_describe_change(row, image, mask) for row in rows]
            files.append(Path(out) / f"augmentation_{name}.png")
            page = _draw_gallery(rows, image, mask, example)
            save_png(page, files[-1])
            if show:
                show_image(page)
    return [*lines, *map(str, files)]


def fix_warp(settings: Settings) -> AugmentPlan:
    """The warp of these settings; open ones are chosen as in `autoconfig.py`, for an image of any orientation."""
    augment = settings.augment
    turn = 15.0 if augment.orientation == "upright" else 180.0
    chosen = {
        "kind": "warp",
        "orientation": augment.orientation or "free",
        "rotation_deg": turn if augment.rotation_deg is None else augment.rotation_deg,
    }
    return AugmentPlan(**augment.model_dump() | chosen)


def leave_out(settings: AugmentPlan, names: Sequence[str]) -> AugmentPlan:
    """These settings with some kinds turned off."""
    return settings.model_copy(update={key: 0.0 for name in names for key in KINDS[name]})


def isolate(settings: AugmentPlan, name: str) -> AugmentPlan:
    """These settings with all kinds turned off except one."""
    return leave_out(settings, [other for other in KINDS if other != name])


def for_all_images(settings: AugmentPlan) -> AugmentPlan:
    """These settings, with every kind that is on applied to all images."""
    return settings.model_copy(update={key: 1.0 for key in _SHARES if getattr(settings, key)})


def draw_kind(store: Store, settings: AugmentPlan, name: str, seed: int) -> Row:
    """Draw one kind alone."""
    return _draw_row(store, kind_words(name), for_all_images(isolate(settings, name)), seed)


def draw_copies(store: Store, settings: AugmentPlan, seed: int) -> list[Row]:
    """Draw the tutorial's copies: its 'elastic' deformation with three seeds, and its three kinds of flips."""
    frozen = settings.model_copy(update={"kind": "frozen"})
    order = shuffled_item(seed, FROZEN_COPIES, np.arange(FROZEN_COPIES))
    images, masks = _draw(store, frozen, seed, FROZEN_COPIES)
    flips = [int(np.flatnonzero(order == copy)[0]) for copy in (2, 3, 4)]
    bent = []
    for other in range(seed, seed + DRAWS):
        first = int(np.flatnonzero(shuffled_item(other, FROZEN_COPIES, np.arange(FROZEN_COPIES)) == 1)[0])
        bent.append([one[first] for one in _draw(store, frozen, other, FROZEN_COPIES)])
    flipping = _("the tutorial's flips: left-right, up-down, both")
    if settings.both_flips == "elastic":
        flipping = _("the tutorial's flips: left-right, up-down, both after 'elastic'")
    name = _("the tutorial's 'elastic': three anchors move, augment.anchor_shift_px = {px:g}")
    return [
        Row(
            name.format(px=settings.anchor_shift_px),
            frozen,
            np.stack([image for image, _mask in bent]),
            np.stack([mask for _image, mask in bent]),
        ),
        Row(flipping, frozen, images[flips], masks[flips]),
    ]


def _draw_edges(store: Store, settings: AugmentPlan, seed: int) -> list[Row]:
    """Draw shifts and zooms with both treatments of pixels beyond the edge: not scored, and reflected with the mask."""
    moving = isolate(settings, "shift").model_copy(update={"scale": settings.scale, "shift": 3 * settings.shift})
    names = {
        "ignored": _("beyond the edge: reflected, but not scored (augment.out_of_frame = ignored)"),
        "reflected": _("beyond the edge: reflected with its mask (augment.out_of_frame = reflected)"),
    }
    return [
        _draw_row(store, caption, moving.model_copy(update={"out_of_frame": value}), seed)
        for value, caption in names.items()
    ]


def kind_words(name: str) -> str:
    """The translated name of a kind."""
    return {
        "flips": _("flips"),
        "rotation": _("rotation"),
        "scale": _("scale"),
        "stretch": _("stretch"),
        "shift": _("shift"),
        "elastic": _("elastic field"),
        "brightness": _("brightness"),
        "contrast": _("contrast"),
        "color": _("colour"),
        "saturation": _("saturation"),
        "gamma": _("gamma"),
        "blur": _("blur"),
        "noise": _("noise"),
    }[name]


def _draw_row(store: Store, name: str, settings: AugmentPlan, seed: int) -> Row:
    return Row(name, settings, *_draw(store, settings, seed, DRAWS))


def _draw(store: Store, settings: AugmentPlan, seed: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The first batch of a training on this single image: (count, H, W, C) images and (count, H, W) masks."""
    images = WholeImages(store, np.array([0]), torch.device("cpu"), _ROOM_BYTES)
    window = (int(store.shapes_hw[0, 0]), int(store.shapes_hw[0, 1]))
    augmentation = Augmentation(settings, window, _value_range(store))
    batch = TrainingBatches(images, BatchOrder(seed, count), augmentation).sample(0)
    return batch.image.permute(0, 2, 3, 1).numpy(), batch.target.numpy()


def _value_range(store: Store) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same as `Dataset.value_range`, for the single image."""
    if store.dtype == np.uint8:
        return np.zeros(store.channels), np.full(store.channels, 255.0)
    pixels = store.image(0).reshape(-1, store.channels)
    low, high = pixels.min(axis=0).astype(np.float64), pixels.max(axis=0).astype(np.float64)
    return low, np.where(high > low, high, low + 1)


def _describe_change(row: Row, image: NDArray[Any], mask: NDArray[np.uint8]) -> str:
    low, high = float(image.min()), float(image.max())
    values = np.abs(row.images - image).mean() / max(high - low, 1e-9)
    return _("{name}: values change by {values:.1%} of their range; {pixels:.1%} of the mask's pixels change").format(
        name=row.name, values=values, pixels=(row.masks != mask).mean()
    )


def _draw_gallery(rows: Sequence[Row], image: NDArray[Any], mask: NDArray[np.uint8], example: Example) -> Any:
    """A row for each kind: the original image, then the draws; with outlines if the kind moves the mask."""
    low, high = (0, 255) if image.dtype == np.uint8 else (float(image.min()), float(image.max()))

    background = background_class(example.names)
    colors = [_OUTLINES[(number - 1) % len(_OUTLINES)] for number in range(len(example.names))]

    def show(values: NDArray[Any], index: NDArray[np.uint8], moved: bool) -> NDArray[np.uint8]:
        shown = ((values.astype(np.float32) - low) * (255 / max(high - low, 1e-9))).clip(0, 255).round()
        page = to_rgb(shown.astype(np.uint8)).copy()
        if moved:
            page = overlay_mask(page, index, colors, 0.0, background)
        veiled = index == IGNORED
        page[veiled] = ((1 - _VEIL) * page[veiled] + _VEIL * np.array(IGNORED_COLOR)).round()
        return page

    cells = []
    for row in rows:
        moved = bool((row.masks != mask).any())
        params = [show(*one, moved) for one in zip(row.images, row.masks, strict=True)]
        cells.append([show(image, mask, moved), *params])
    headings = [_("original"), *(_("draw {number}").format(number=n) for n in range(1, DRAWS + 1))]
    legend = [one for number, one in enumerate(zip(example.names, colors, strict=True)) if number != background]
    if any((row.masks == IGNORED).any() for row in rows):
        legend.append((_("not scored"), IGNORED_COLOR))
    labels = [f"{row.name}{_strength(row.settings)}" for row in rows]
    return draw_grid(cells, headings, labels, _CELL_PX, legend)


def _strength(settings: AugmentPlan) -> str:
    """The settings of the only kind that is on; empty if there are several."""
    active = [name for name, keys in KINDS.items() if all(getattr(settings, key) for key in keys)]
    if settings.kind != "warp" or len(active) != 1:
        return ""
    return ": " + ", ".join(f"augment.{key} = {getattr(settings, key):g}" for key in KINDS[active[0]])
