"""Automatic choices: settings and facts -> plan. Every open setting that matters gets a value and a reason.

choose_network       encoder, weights and depth, from the settings alone
choose_folds         number of folds, likewise
choose_input_format  how images are read, from their headers and the widths of objects in the masks, before decoding
resolve              everything else, by the functions in `RULES`, in their order

Constants without a source were measured on validation splits: docs/experiments.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.i18n import _, ngettext
from ubend.core.plan import Choice, Facts, InputFormat, Plan, Width
from ubend.core.settings import (
    CUSTOM,
    FROZEN_COPIES,
    NO_ENCODER,
    PIP_ENCODERS,
    UNET_DEPTH,
    ModelSettings,
    Settings,
    change_settings,
    flatten,
    nest,
    validate,
)

# The network: an encoder with ImageNet weights, unless the settings shape the plain U-Net. On the validation splits of
# four real sets it is ahead of the plain U-Net or level with it; on drawn cells with few steps it is behind.
_ENCODER, _ENCODER_DEPTH = "tf_efficientnet_lite0", 5

_FOLDS = 5  # with `train.effort` best; each model is trained on four fifths of the images

# The size of whole images, px; larger ones are reduced to it. The plain U-Net gains more from more epochs than from
# larger images (measured on Kvasir-SEG).
_SIZE_GPU, _SIZE_GPU_PLAIN, _SIZE_CPU = 256, 192, 128
# Unless objects would become narrower than _NARROW_PX at the model's size: an outline that is half a pixel off on both
# sides then costs a tenth of the object. Objects that keep at least _KEPT_WIDTH of their original width do not count,
# nor do classes narrower than _MIN_PX in the originals: outlines, and rims left by resized masks.
_NARROW_PX, _KEPT_WIDTH, _MIN_PX = 10.0, 0.75, 1.5
# Whole images may be larger for their sake up to this, px: 4 times the usual pixels on a GPU, 2.25 times on a CPU,
# where a training then takes some nine minutes. Beyond, crops at native scale are cheaper.
_WIDE_GPU, _WIDE_CPU = 512, 192
_CROP_GPU, _CROP_CPU = 256, 128  # px, at native scale
# Such crops are chosen automatically up to this many megapixels in all images together: the store holds every pixel
# (8 GB in colour), and scoring reads all of the test split. Beyond, whole images have the largest size for objects.
_NATIVE_MEGAPIXELS = 2_000


def choose_network(settings: Settings) -> tuple[Settings, list[Choice]]:
    """Decide on encoder, pretrained weights and depth; returns the settings, and the automatic choices among these."""
    model, choices = settings.model, list[Choice]()
    encoder, pretrained, by_pip = model.encoder, model.pretrained, model.encoder in (None, *PIP_ENCODERS)
    if encoder is None and model.kind != "unet":
        encoder = NO_ENCODER
    elif encoder is None:
        shaped = [key for key in ("width", "depth", "skips") if getattr(model, key) is not None]
        shaped += ["upsampling"] if model.upsampling == "unpool" else []
        encoder = NO_ENCODER if shaped else _ENCODER
        reason = _("its ImageNet weights help most where training images are few; --encoder none is the plain U-Net")
        if shaped:
            reason = _(
                "model.{key} is set, which applies to the plain U-Net; add --encoder "
                "{encoder} to apply it to that encoder's decoder"
            )
        line = reason.format(key=shaped[0] if shaped else "", encoder=_ENCODER)
        choices.append(Choice("model.encoder", encoder, line))
    if pretrained is None:
        pretrained = encoder != NO_ENCODER and by_pip and model.weights is None
        if encoder != NO_ENCODER and model.weights is None:
            reason = _("its weights were installed with ubend")
            if by_pip and encoder != _ENCODER:
                reason = _("its weights come from a pip package of their own, which ubend does not install")
            if not by_pip:
                reason = _(
                    "it starts from random weights, since pretrained ones would have to be downloaded; --set "
                    "model.pretrained=true does that"
                )
            choices.append(Choice("model.pretrained", pretrained, reason))
    depth = model.depth or (UNET_DEPTH if encoder == NO_ENCODER else _ENCODER_DEPTH)
    chosen = {"model.encoder": encoder, "model.pretrained": pretrained, "model.depth": depth}
    return change_settings(settings, chosen), choices


def is_plain_unet(model: ModelSettings) -> bool:
    """Whether the network is ubend's U-Net, trained from random weights."""
    return model.kind == "unet" and model.encoder == NO_ENCODER


def choose_folds(settings: Settings) -> tuple[Settings, list[Choice]]:
    """Decide on the number of folds; returns the settings, and the choice if `train.effort` made it."""
    if settings.train.effort != "best" or settings.data.folds is not None or settings.data.leave_out is not None:
        return settings, []
    reason = _("effort best: one model is trained without each fold, and their predictions and mirror images averaged")
    return change_settings(settings, {"data.folds": _FOLDS}), [Choice("data.folds", _FOLDS, reason)]


def choose_input_format(
    settings: Settings,
    native_hw: NDArray[np.int64],
    channels: int,
    classes: int,
    widths: Mapping[str, Width],
    device: str,
) -> InputFormat:
    """How images become the network's input: channels, and size or crop.

    Args:
        native_hw: (N, 2) height and width of each image, px.
        channels: of the images.
        classes: number of classes.
        widths: class name -> width of its objects.
        device: "cuda", "cpu" or "mps".
    """
    settings, _network = choose_network(settings)
    choices: list[Choice] = []
    data = settings.data
    if settings.recipe == "tutorial" and classes == 2 and data.channels is None and channels in (1, 3):
        channels = 1
        choices.append(Choice("data.channels", 1, _("two classes: the tutorial's polyp task reads grey")))
    elif data.channels is None:
        kinds = {1: _("all images are grey"), 3: _("the images are read in colour")}
        reason = kinds.get(channels) or _("all images have that many channels")
        choices.append(Choice("data.channels", channels, reason))
    if data.resize == "native":
        crop, chosen = _native_crop(settings, native_hw, device)
        return InputFormat(data.channels or channels, None, crop, "native", (*choices, *chosen))
    size = data.size
    if size is None:
        side = float(np.median(np.sqrt(native_hw.prod(axis=1))))
        on_gpu = _SIZE_GPU_PLAIN if is_plain_unet(settings.model) else _SIZE_GPU
        maximum = _SIZE_CPU if device == "cpu" else on_gpu
        size = int(max(32, min(maximum, 16 * round(side / 16))))
        where = _("a CPU") if device == "cpu" else _("this device")
        reason = _("images of about {side:.0f} px, at most {maximum} on {where}").format(
            side=side, maximum=maximum, where=where
        )
        choice = _choose_for_narrow_objects(settings, native_hw, size, widths, device) or Choice(
            "data.size", size, reason
        )
        choices.append(choice)
        if choice.key == "data.resize":
            crop, chosen = _native_crop(settings, native_hw, device)
            return InputFormat(data.channels or channels, None, crop, choice.value, (*choices, *chosen))
        size = choice.value
    return InputFormat(data.channels or channels, size, data.crop, data.resize or "keep", tuple(choices))


def find_narrow(widths: Mapping[str, Width], size: int) -> dict[str, Width]:
    """The classes whose objects are too narrow in whole images of this `data.size`, and wider in the originals."""
    return {
        name: width
        for name, width in widths.items()
        if size * width.relative < min(_NARROW_PX, _KEPT_WIDTH * width.native_px)
    }


def describe_sample(width: Width) -> str:
    """In which images a width was measured."""
    return _("in the training split") if width.is_of_training else _("in all splits")


def find_sufficient_size(width: Width) -> int:
    """The least `data.size`, a multiple of 16 px, at which objects are 10 px wide, or as wide as in the originals."""
    return 16 * math.ceil(min(_NARROW_PX, width.native_px) / width.relative / 16 - 0.01)  # a hundredth: rounding errors


def _choose_for_narrow_objects(
    settings: Settings, native_hw: NDArray[np.int64], size: int, widths: Mapping[str, Width], device: str
) -> Choice | None:
    """A larger size, or crops at native scale, where whole images of this size would shrink objects away; else None.

    The class that needs the largest size decides, unless its objects are too narrow in the images themselves.
    """
    narrow = {name: width for name, width in find_narrow(widths, size).items() if width.native_px >= _MIN_PX}
    if settings.recipe != "modern" or settings.data.resize or settings.data.crop or not narrow:
        return None
    name, width = max(narrow.items(), key=lambda item: (find_sufficient_size(item[1]), -item[1].native_px))
    reason = _(
        "objects of class {name} (at most {native:.1f} px wide in a quarter of the images {where}) would be "
        "{narrow:.1f} px wide at {size} px"
    )
    narrow_px, where = size * width.relative, describe_sample(width)
    shrunk = reason.format(name=name, native=width.native_px, where=where, narrow=narrow_px, size=size)
    side = float(np.median(np.sqrt(native_hw.prod(axis=1))))
    maximum = min(_WIDE_CPU if device == "cpu" else _WIDE_GPU, 16 * math.ceil(side / 16))
    wide, megapixels = find_sufficient_size(width), native_hw.prod(axis=1).sum() / 1e6
    reason = _("{shrunk}; here they are {wide:.1f} px wide")
    if wide > maximum:
        if settings.augment.kind != "warp" or settings.train.border_weight:
            return None  # crops at native scale go with neither
        if megapixels <= _NATIVE_MEGAPIXELS:
            reason = _("{shrunk}; crops at native scale keep them")
            return Choice("data.resize", "native", reason.format(shrunk=shrunk))
        if maximum <= size:
            return None
        wide = maximum
        reason = _(
            "{shrunk}; here they are {wide:.1f} px wide; crops at native scale (--patches) would keep them, and store "
            "the {megapixels:,.0f} megapixels of all images"
        )
    reason = reason.format(shrunk=shrunk, wide=wide * width.relative, megapixels=megapixels)
    return Choice("data.size", wide, reason)


def _native_crop(settings: Settings, native_hw: NDArray[np.int64], device: str) -> tuple[int, list[Choice]]:
    """The crop size for images at native size; a requested size that is too large for them is reduced."""
    requested, multiple = settings.data.crop, 2 ** (settings.model.depth or UNET_DEPTH)
    height, width = (int(side) for side in np.median(native_hw, axis=0))
    if requested is not None:
        longer = max(16, height, width)
        if requested <= longer:
            return requested, []
        reason = _("{requested} was requested, but the median image has {width}x{height} px")
        reason = reason.format(requested=requested, width=width, height=height)
        return longer, [Choice("data.crop", longer, reason, replaces=True)]
    maximum = _CROP_CPU if device == "cpu" else _CROP_GPU
    where = _("a CPU") if device == "cpu" else _("this device")
    reason = _("crops at native scale, at most {maximum} px on {where}; the median image has {width}x{height}")
    side = max(16, multiple, min(maximum, height, width) // multiple * multiple)
    return side, [Choice("data.crop", side, reason.format(maximum=maximum, where=where, width=width, height=height))]


class Draft:
    """Settings that are being resolved.

    Attributes:
        settings: as given, with what was chosen so far; not validated.
        choices: the automatic choices so far.
    """

    def __init__(self, settings: Settings, choices: Sequence[Choice]) -> None:
        self.settings, self.choices = settings, list(choices)

    def choose(self, key: str, value: Any, reason: str) -> None:
        section, _dot, name = key.partition(".")
        changed = getattr(self.settings, section).model_copy(update={name: value})
        self.settings = self.settings.model_copy(update={section: changed})
        self.choices.append(Choice(key, value, reason))


def resolve(settings: Settings, facts: Facts) -> Plan:
    """Choose a value for every open setting, by `RULES`; settings that are given stay.

    Raises:
        SettingError: a setting does not fit the facts.
    """
    settings, network = choose_network(change_settings(settings, {"data.resize": facts.input_format.resize}))
    draft = Draft(settings, (*network, *facts.input_format.choices))
    for rule in RULES:
        rule(draft, facts)
    model, train, input_format = draft.settings.model, draft.settings.train, facts.input_format
    defaults = {
        **_PLACEHOLDERS,
        "model.skips": (True,) * (model.depth or UNET_DEPTH),
        "train.micro_batch": train.batch,
    }
    chosen = {key: value for key, value in flatten(draft.settings.model_dump()) if value is not None}
    read = {"data.channels": input_format.channels, "data.size": input_format.size, "data.crop": input_format.crop}
    return validate(Plan, nest({**defaults, **chosen, **read, "choices": draft.choices}))  # later values win


# Values of settings that no rule chooses in a training, because they have no effect there (or are off).
_PLACEHOLDERS: dict[str, Any] = {
    "augment.orientation": "free",
    "augment.rotation_deg": 180.0,
    "data.foreground_share": 0.0,
    "model.width": 1,
    "train.compile": False,
}

# The tutorial's numbers, which are ImageNet's.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _tutorial_task(draft: Draft, facts: Facts) -> None:
    """The tutorial's two tasks: pets (colour, no augmentation), polyps (2 classes, grey, frozen copies)."""
    if draft.settings.recipe != "tutorial":
        return
    if draft.settings.augment.kind is None:
        if len(facts.shares) == 2:
            reason = _("two classes: the tutorial's polyp task trains on augmented copies")
            draft.choose("augment.kind", "frozen", reason)
        else:
            draft.choose("augment.kind", "none", _("the tutorial's pet task does not augment"))
    data, channels = draft.settings.data, facts.input_format.channels
    if data.mean is None and data.std is None and channels in (1, 3):
        draft.choose("data.mean", _IMAGENET_MEAN[:channels], _("the tutorial's numbers (ImageNet's)"))
        draft.choose("data.std", _IMAGENET_STD[:channels], _("the tutorial's numbers (ImageNet's)"))


def _normalisation(draft: Draft, facts: Facts) -> None:
    """Mean and standard deviation of pretrained weights; else those of the training split are used."""
    if draft.settings.recipe == "tutorial" or facts.pretrained is None or draft.settings.data.mean is not None:
        return
    reason = _("the pretrained weights of {encoder} were trained with these numbers")
    for key, value in zip(("data.mean", "data.std"), facts.pretrained, strict=True):
        draft.choose(key, value, reason.format(encoder=draft.settings.model.encoder))


# Images are upright if objects lie off the centre vertically by this many standard deviations more than horizontally,
# with this t value. Measured: pets .30, Kvasir-SEG .09.
_UPRIGHT_OFFSET, _UPRIGHT_T = 0.15, 4.0
# Or if this share more of the borders lies along the rows than along the columns, or the reverse. Measured: drawn line
# scans .58; at most .13 in 18 other sets (CamVid .11, Kvasir-SEG .09, pets .06, DRIVE .05, nuclei .01).
_EDGES, _EDGE_T = 0.3, 4.0


def _orientation(draft: Draft, facts: Facts) -> None:
    """How far training images may be turned."""
    if draft.settings.augment.kind != "warp":
        return
    if draft.settings.augment.orientation is None:
        found = facts.directions
        if found.upright_offset >= _UPRIGHT_OFFSET and found.upright_t >= _UPRIGHT_T:
            reason = _(
                "objects are above or below the centre, as in photographs ({d:.2f} standard deviations, t = {t:.1f})"
            )
            reason = reason.format(d=found.upright_offset, t=found.upright_t)
            draft.choose("augment.orientation", "upright", reason)
        elif abs(found.edges) >= _EDGES and found.edge_t >= _EDGE_T:
            along_rows = _("the borders of objects are mostly horizontal, as in layers ({share:.0%}, t = {t:.1f})")
            along_columns = _("the borders of objects are mostly vertical, as in fences ({share:.0%}, t = {t:.1f})")
            reason = (along_rows if found.edges > 0 else along_columns).format(
                share=(1 + abs(found.edges)) / 2, t=found.edge_t
            )
            draft.choose("augment.orientation", "upright", reason)
        else:
            reason = _(
                "object positions show no preferred up direction; if your images have one, use --set "
                "augment.orientation=upright"
            )
            draft.choose("augment.orientation", "free", reason)
    if draft.settings.augment.rotation_deg is None:
        if draft.settings.augment.orientation == "upright":
            draft.choose("augment.rotation_deg", 15.0, _("images are upright"))
        else:
            draft.choose("augment.rotation_deg", 180.0, _("images may have any orientation"))


def _width(draft: Draft, facts: Facts) -> None:
    model = draft.settings.model
    if model.width is not None or model.kind == CUSTOM:
        return
    reason = _("on {where}").format(where=_device(facts))
    if model.encoder != NO_ENCODER:
        reason = _("for the decoder; the encoder {encoder} has its own").format(encoder=model.encoder)
    draft.choose("model.width", default_width(facts.device, model.encoder), reason)


def default_width(device: str, encoder: str | None = None) -> int:
    """The default width: channels of the first level of the network, or of an encoder's decoder."""
    if device == "cpu":
        return 16
    return 64 if encoder in (None, NO_ENCODER) else 32


# At most this many crops at native scale in an epoch: an epoch should take minutes, not hours, and a training needs
# several validations.
_EPOCH_GPU, _EPOCH_CPU = 4_000, 800


def _crops_per_epoch(draft: Draft, facts: Facts) -> None:
    """As many crops as cover the training split, within limits."""
    if draft.settings.data.resize != "native" or draft.settings.data.crops_per_epoch is not None:
        return
    side = facts.input_format.crop or 1
    cover = max(facts.training_images, -(-facts.training_pixels // side**2))
    maximum = max(facts.training_images, _EPOCH_CPU if facts.device == "cpu" else _EPOCH_GPU)
    if cover <= maximum:
        reason = _(
            "enough crops of {side} px to cover {pixels} megapixels of training images; each "
            "image in proportion to its area"
        )
    else:
        reason = _(
            "covering {pixels} megapixels of training images would take {cover} crops of {side} px; an epoch draws "
            "this many, each image in proportion to its area"
        )
    reason = reason.format(pixels=f"{facts.training_pixels / 1e6:,.1f}", side=side, cover=cover)
    draft.choose("data.crops_per_epoch", min(cover, maximum), reason)


def _images_per_epoch(settings: Settings, facts: Facts) -> int:
    """The number of whole images, frozen copies or crops in an epoch."""
    images = facts.training_images * (FROZEN_COPIES if settings.augment.kind == "frozen" else 1)
    return max(images, (settings.data.crops_per_epoch or 0) if settings.data.resize == "native" else 0)


# At most this many images in a step: smaller batches mean more steps, which rare classes need. Fewer if an epoch would
# have less than ten steps, as far as batch norm allows: a few dozen images give too few steps otherwise.
_BATCH, _MIN_BATCH, _EPOCH_STEPS = 16, 4, 10


def _batch(draft: Draft, facts: Facts) -> None:
    if draft.settings.train.batch is not None:
        return
    images = _images_per_epoch(draft.settings, facts)
    reason = _("a tenth of the {count} images or crops in an epoch, but at least {least} and at most {most}")
    if images < _MIN_BATCH:
        reason = ngettext("there is {count} training image", "there are {count} training images", images)
    batch = min(_BATCH, max(_MIN_BATCH, images // _EPOCH_STEPS), max(1, images))
    draft.choose("train.batch", batch, reason.format(count=images, least=_MIN_BATCH, most=_BATCH))


# Images in a training, all epochs together; the scores of docs/results.md were reached with 80,000. The plain U-Net,
# from random weights, gains from more: as many as have the pixels of 200,000 at 192 px, if that is not less. On a CPU
# 16,000, or with more than 256 in an epoch 1,000 times the square root of their number: 28,000 for 800 keep two cores
# busy for a quarter of an hour.
_IMAGES_GPU, _IMAGES_GPU_PLAIN, _IMAGES_CPU, _IMAGES_CPU_ROOT = 80_000, 200_000, 16_000, 1_000
_QUICK = 0.25  # of the usual epochs, with `train.effort` quick


def _epochs(draft: Draft, facts: Facts) -> None:
    if draft.settings.train.epochs is not None:
        return
    images = _images_per_epoch(draft.settings, facts)
    total: float = _IMAGES_GPU
    if facts.device == "cpu":
        total = max(_IMAGES_CPU, _IMAGES_CPU_ROOT * images**0.5)
    elif is_plain_unet(draft.settings.model):
        side = facts.input_format.crop or facts.input_format.size or _SIZE_GPU_PLAIN
        total = max(_IMAGES_GPU, _IMAGES_GPU_PLAIN * min(1.0, (_SIZE_GPU_PLAIN / side) ** 2))
    epochs = int(np.clip(round(total / images), 10, 400))
    reason = _("about {images} training images in total, on {where}")
    if draft.settings.train.effort == "quick":
        epochs = max(1, round(_QUICK * epochs))
        reason = _("about {images} training images in total, on {where}; effort quick: a quarter of the usual number")
    epochs = round(epochs * _schedule_parts(draft.settings.train.branches))
    draft.choose("train.epochs", epochs, reason.format(images=epochs * images, where=_device(facts)))


def _schedule_parts(branches: int) -> float:
    """Length of a training with branches, relative to the trunk and one branch."""
    return (branches + 1) / 2


def _loss(draft: Draft, facts: Facts) -> None:
    if draft.settings.train.loss is None:
        reason = _("{rarest}; -log(Dice) counts all classes alike, and its gradient is largest for those hardly found")
        draft.choose("train.loss", "logdice+ce", reason.format(rarest=_rarest(facts)))


def _class_weights(draft: Draft, facts: Facts) -> None:
    """The paper's weights: the inverse of each class's frequency."""
    if draft.settings.recipe != "paper" or draft.settings.train.class_weights is not None:
        return
    weights = tuple(round(1 / (len(facts.shares) * share), 3) if share else 1.0 for share in facts.shares.values())
    reason = _("the recipe weights classes by the inverse of their frequency: {shares}")
    shares = ", ".join(percent(share) for share in facts.shares.values())
    draft.choose("train.class_weights", weights, reason.format(shares=shares))


# Share of the crops that are placed on an object: at native scale, where most of a large image may be background; and
# in images that were resized, if the rarest class has less than _RARE of the pixels (measured: gains at 1%, not at 5%).
_ON_OBJECTS_NATIVE, _ON_OBJECTS_RARE, _RARE = 0.5, 0.33, 0.02


def _foreground_share(draft: Draft, facts: Facts) -> None:
    data, input_format = draft.settings.data, facts.input_format
    if data.foreground_share is not None:
        return
    cropped = input_format.crop is not None and input_format.size is not None and input_format.crop < input_format.size
    if data.resize == "native":
        share = _ON_OBJECTS_NATIVE
        reason = _(
            "{rarest}; half of the crops are placed on an object, because most of a large image may be background"
        )
    elif not cropped or draft.settings.augment.kind != "warp":
        return
    elif min(facts.shares[name] for name in facts.foreground) < _RARE:
        share, reason = _ON_OBJECTS_RARE, _("{rarest}; this fraction of the crops is placed on an object")
    else:
        share, reason = 0.0, _("{rarest}, so most random crops contain it")
    draft.choose("data.foreground_share", share, reason.format(rarest=_rarest(facts)))


_EMA_SHARE = 0.02  # of the steps: how far back the average of the weights looks


def _ema_decay(draft: Draft, facts: Facts) -> None:
    train = draft.settings.train
    if train.ema_decay is not None:
        return
    images = _images_per_epoch(draft.settings, facts)
    epochs = (train.epochs or 1) / _schedule_parts(train.branches)
    steps = max(1, round(epochs * images / (train.batch or 1)))
    decay = round(float(np.clip(1 - 1 / (_EMA_SHARE * steps), 0.9, 0.999)), 4)
    reason = _("the weights are averaged over about {count:.0f} of {steps:,} steps")
    draft.choose("train.ema_decay", decay, reason.format(count=min(steps, 1 / (1 - decay)), steps=steps))


_RATE_OF_MEAN_LOSS = 1e-3  # of a loss that is a mean over the pixels; also for SGD with momentum .99 (experiments.md)


def _learning_rate(draft: Draft, facts: Facts) -> None:
    """A rate that suits a mean loss. For SGD on a summed loss it is divided by the number of pixels in a step.

    Adam divides by the gradients' size, so a sum and a mean need the same rate.
    """
    train = draft.settings.train
    if train.learning_rate is not None:
        return
    if train.loss != "ce-sum" or train.optimizer != "sgd":
        reason = _("suits Adam with any loss, and SGD with a loss that is a mean over the pixels")
        draft.choose("train.learning_rate", _RATE_OF_MEAN_LOSS, reason)
        return
    pixels = facts.training_pixels // max(1, facts.training_images)
    if facts.input_format.crop is not None:
        pixels = min(pixels, facts.input_format.crop**2)
    pixels *= train.batch or 1
    reason = _("the loss is a sum: {rate:g}, which suits its mean, divided by the {pixels:,} pixels of a step")
    rate = float(f"{_RATE_OF_MEAN_LOSS / max(1, pixels):.3g}")
    draft.choose("train.learning_rate", rate, reason.format(rate=_RATE_OF_MEAN_LOSS, pixels=pixels))


def _precision(draft: Draft, facts: Facts) -> None:
    if draft.settings.train.precision is None:
        draft.choose("train.precision", *facts.precision)


# In this order: later rules read what earlier ones chose.
RULES: tuple[Callable[[Draft, Facts], None], ...] = (
    _tutorial_task,
    _normalisation,
    _orientation,
    _width,
    _crops_per_epoch,
    _batch,
    _epochs,
    _loss,
    _class_weights,
    _foreground_share,
    _ema_decay,
    _learning_rate,
    _precision,
)


def _device(facts: Facts) -> str:
    return _("a CPU") if facts.device == "cpu" else _("a GPU")


def _rarest(facts: Facts) -> str:
    name = min(facts.foreground, key=facts.shares.__getitem__)
    line = _("the rarest class, {name}, has {share} of the training pixels")
    return line.format(name=name, share=percent(facts.shares[name]))


def percent(share: float) -> str:
    """0..1 -> `15.3%`, `0.25%`, `0.0004%`."""
    return f"{share:.1%}" if share >= 0.01 or share == 0 else f"{100 * share:.2g}%"
