"""Automatic choices: settings and facts -> plan. Every open setting gets a value and a reason.

choose_network  encoder, weights and depth, from the settings alone
choose_folds    the number of folds, from the settings alone
choose_format   how images are read, from their headers and the widths of objects in the masks, before decoding
resolve         everything else, once
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.i18n import _, ngettext
from ubend.core.plan import Choice, Facts, ImageFormat, Plan, Width
from ubend.core.settings import CUSTOM, NO_ENCODER, UNET_DEPTH, Settings, change_settings, flatten, nest, validate

# Images shown in a training, all epochs together, if the number of epochs is open: 80,000 is the number in
# docs/results.md for Kvasir-SEG; 16,000 keep a training on two CPU cores near ten minutes.
_IMAGES_GPU, _IMAGES_CPU = 80_000, 16_000
_QUICK = 0.25  # of these epochs, with `train.effort` quick
_FOLDS = 5  # with `train.effort` best; each model is trained on four fifths of the images
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Crops at native scale in an epoch, at most: an epoch should take minutes, not hours, and a training
# has 20 validations or more.
_EPOCH_GPU, _EPOCH_CPU = 4_000, 800
_CROP_GPU, _CROP_CPU = 256, 128  # px; of images at native scale
# Images per step: at most 16, since small steps mean more steps, which rare classes need; and few enough for ten steps
# per epoch, but at least 4 for batch norm: otherwise some dozen images give too few steps (docs/experiments.md).
_BATCH, _MIN_BATCH, _EPOCH_STEPS = 16, 4, 10
_NARROW_PX = 10.0  # at model size: an outline half a pixel off on both sides costs a tenth of an object
_SHRUNK = 0.75  # of the original width; objects that are narrow in the original images do not count as shrunk
_MIN_PX = 2.0  # in the images; narrower classes are outlines and rims left by resized masks: no size is chosen for them
# px; whole images may be enlarged up to this for narrow objects: four times the pixels of the usual size on a GPU,
# 2.25 times on a CPU, where a training then takes about nine minutes. Beyond that, crops at native scale cost less: as
# much as images of 256 or 128 px.
_WIDE_GPU, _WIDE_CPU = 512, 192
# Megapixels of all images together, up to which crops at native scale are chosen automatically: the store contains all
# pixels (8 GB in colour), and all pixels of the test split are scored.
_NATIVE_MEGAPIXELS = 2_000
_MEAN_RATE = 1e-3  # of SGD with momentum .99, if the loss is a mean; measured (docs/experiments.md)
_FOREGROUND_SHARE = 0.5  # of such crops: most of a large image is often background
_RARE = 0.02  # of the pixels: crops are placed on objects if a class is rarer; measured: gains at 1%, not at 5%
# An encoder with ImageNet weights, unless the settings shape the plain U-Net: better than or equal to it on four real
# validation splits; worse on drawn cells with few steps (docs/experiments.md).
_ENCODER, _ENCODER_DEPTH = "tf_efficientnet_lite0", 5
_ENCODERS_BY_PIP = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
_ENCODER_RATE = 0.3  # for pretrained weights; not varied separately
_EMA_DECAY = 0.02  # fraction of the steps over which the EMA averages; not varied separately (docs/experiments.md)
_UPRIGHT_OFFSET = 0.15  # standard deviations; measured: pets 0.30 (and 0.00 sideways), Kvasir-SEG 0.09 (0.38)
_UPRIGHT_T = 4.0  # minimum t statistic
# Values of settings that are not used.
_UNUSED: dict[str, Any] = {
    "augment.orientation": "free",
    "augment.rotation_deg": 180.0,
    "data.foreground_share": 0.0,
    "model.width": 1,
    "train.compile": False,
    "train.encoder_rate": 1.0,
}


def choose_network(settings: Settings) -> tuple[Settings, list[Choice]]:
    """(settings with encoder, pretrained weights and depth decided, automatic choices among these)."""
    model, choices = settings.model, list[Choice]()
    encoder, pretrained, by_pip = model.encoder, model.pretrained, model.encoder in (None, *_ENCODERS_BY_PIP)
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
            if not by_pip:
                reason = _("its weights would be downloaded; --set model.pretrained=true does that")
            choices.append(Choice("model.pretrained", pretrained, reason))
    depth = model.depth or (UNET_DEPTH if encoder == NO_ENCODER else _ENCODER_DEPTH)
    chosen = {"model.encoder": encoder, "model.pretrained": pretrained, "model.depth": depth}
    return change_settings(settings, chosen), choices


def choose_folds(settings: Settings) -> tuple[Settings, list[Choice]]:
    """(settings with the number of folds decided, the choice if `train.effort` made it)."""
    if settings.train.effort != "best" or settings.data.folds is not None:
        return settings, []
    reason = _("effort best: one model is trained without each fold, and their predictions and mirror images averaged")
    return change_settings(settings, {"data.folds": _FOLDS}), [Choice("data.folds", _FOLDS, reason)]


def choose_format(
    settings: Settings,
    native_hw: NDArray[np.int64],
    channels: int,
    classes: int,
    widths: Mapping[str, Width],
    device: str,
) -> ImageFormat:
    """How images are read: channels, and size or crop.

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
        choices.append(Choice("data.channels", channels, reason.format(count=len(native_hw))))
    if data.resize == "native":
        crop, chosen = _native_crop(settings, native_hw, device)
        return ImageFormat(data.channels or channels, None, crop, "native", (*choices, *chosen))
    size = data.size
    if size is None:
        side = float(np.median(np.sqrt(native_hw.prod(axis=1))))
        maximum = 128 if device == "cpu" else 256
        size = int(max(32, min(maximum, 16 * round(side / 16))))
        where = _("a CPU") if device == "cpu" else _("this device")
        reason = _("images of about {side:.0f} px, at most {maximum} on {where}").format(
            side=side, maximum=maximum, where=where
        )
        choice = _spare_narrow(settings, native_hw, size, widths, device) or Choice("data.size", size, reason)
        choices.append(choice)
        if choice.key == "data.resize":
            crop, chosen = _native_crop(settings, native_hw, device)
            return ImageFormat(data.channels or channels, None, crop, choice.value, (*choices, *chosen))
        size = choice.value
    return ImageFormat(data.channels or channels, size, data.crop, data.resize or "keep", tuple(choices))


def find_narrow(widths: Mapping[str, Width], size: int) -> dict[str, Width]:
    """The classes whose objects are too narrow in whole images of this `data.size`, and wider in the originals."""
    return {name: own for name, own in widths.items() if size * own.relative < min(_NARROW_PX, _SHRUNK * own.native_px)}


def wide_enough(own: Width) -> int:
    """The smallest `data.size`, a multiple of 16, at which objects are 10 px wide, or as wide as in the originals."""
    return 16 * math.ceil(min(_NARROW_PX, own.native_px) / own.relative / 16 - 0.01)  # a hundredth: rounding errors


def _spare_narrow(
    settings: Settings, native_hw: NDArray[np.int64], size: int, widths: Mapping[str, Width], device: str
) -> Choice | None:
    """A larger size, or crops at native scale, if objects become too narrow in whole images of this size; else None.

    The class that needs the largest size decides, unless its objects are too narrow in the images themselves.
    """
    narrow = {name: own for name, own in find_narrow(widths, size).items() if own.native_px >= _MIN_PX}
    if settings.recipe != "modern" or settings.data.resize or settings.data.crop or not narrow:
        return None
    name, own = max(narrow.items(), key=lambda item: (wide_enough(item[1]), -item[1].native_px))
    reason = _("objects of class {name} (median width {native:.1f} px) would be {narrow:.1f} px wide at {size} px")
    shrunk = reason.format(name=name, native=own.native_px, narrow=size * own.relative, size=size)
    wide, maximum = wide_enough(own), _WIDE_CPU if device == "cpu" else _WIDE_GPU
    side = float(np.median(np.sqrt(native_hw.prod(axis=1))))
    if wide <= min(maximum, 16 * math.ceil(side / 16)):
        reason = _("{shrunk}; here they are {wide:.1f} px wide")
        return Choice("data.size", wide, reason.format(shrunk=shrunk, wide=wide * own.relative))
    if settings.augment.kind != "warp" or settings.train.border_weight:
        return None  # not possible with crops at native scale
    if native_hw.prod(axis=1).sum() > _NATIVE_MEGAPIXELS * 10**6:
        return None
    reason = _("{shrunk}; crops at native scale keep them")
    return Choice("data.resize", "native", reason.format(shrunk=shrunk))


def _native_crop(settings: Settings, native_hw: NDArray[np.int64], device: str) -> tuple[int, list[Choice]]:
    """The crop size for images at native size; a requested size that is too large for them is reduced."""
    requested, multiple = settings.data.crop, 2 ** (settings.model.depth or UNET_DEPTH)
    height, width = (int(side) for side in np.median(native_hw, axis=0))
    if requested is not None:
        longer = max(16, height, width)
        if requested <= longer:
            return requested, []
        reason = _("{requested} was requested, but the median image has {width}x{height} px")
        return longer, [Choice("data.crop", longer, reason.format(requested=requested, width=width, height=height))]
    maximum = _CROP_CPU if device == "cpu" else _CROP_GPU
    where = _("a CPU") if device == "cpu" else _("this device")
    reason = _("crops at native scale, at most {maximum} px on {where}; the median image has {width}x{height}")
    side = max(16, multiple, min(maximum, height, width) // multiple * multiple)
    return side, [Choice("data.crop", side, reason.format(maximum=maximum, where=where, width=width, height=height))]


def resolve(settings: Settings, facts: Facts) -> Plan:
    """Choose a value for every open setting; given settings are kept.

    Raises:
        SettingError: a setting does not fit the facts.
    """
    settings, network = choose_network(change_settings(settings, {"data.resize": facts.images.resize}))
    choices = [*network, *facts.images.choices, *_choose(settings, facts)]
    chosen = {choice.key: choice.value for choice in choices}
    images = {
        "data.channels": facts.images.channels,
        "data.size": facts.images.size,
        "data.crop": facts.images.crop,
    }
    given = {key: value for key, value in flatten(settings.model_dump()) if value is not None}
    batch = chosen.get("train.batch", settings.train.batch)
    values = {**_UNUSED, "model.skips": (True,) * (settings.model.depth or UNET_DEPTH), "train.micro_batch": batch}
    return validate(Plan, nest({**values, **given, **images, **chosen, "choices": choices}))


def _choose(settings: Settings, facts: Facts) -> list[Choice]:
    """All automatic choices except those of `choose_format`."""
    choices: list[Choice] = []
    if settings.recipe == "tutorial":
        choices += _tutorial_job(settings, facts)
    elif facts.pretrained is not None and settings.data.mean is None:
        mean, std = facts.pretrained
        reason = _("the pretrained weights of {encoder} were trained with these numbers").format(
            encoder=settings.model.encoder
        )
        choices += [Choice("data.mean", mean, reason), Choice("data.std", std, reason)]
    if settings.augment.kind == "warp":
        choices += _orientation(settings, facts)
    gpu = facts.device != "cpu"
    where = _("a GPU") if gpu else _("a CPU")
    if settings.model.width is None and settings.model.kind != CUSTOM:
        reason = _("on {where}").format(where=where)
        if settings.model.encoder != NO_ENCODER:
            reason = _("for the decoder; the encoder {encoder} has its own").format(encoder=settings.model.encoder)
        choices.append(Choice("model.width", default_width(facts.device, settings.model.encoder), reason))
    an_epoch = facts.training
    if settings.data.resize == "native":
        choices += _epoch_crops(settings, facts)
        an_epoch = max(facts.training, settings.data.crops_per_epoch or int(choices[-1].value))
    batch = settings.train.batch
    if batch is None:
        batch = min(_BATCH, max(_MIN_BATCH, an_epoch // _EPOCH_STEPS), max(1, an_epoch))
        reason = ngettext(
            "on {where}, {count} training image", "on {where}, {count} training images", facts.training
        ).format(where=where, count=facts.training)
        choices.append(Choice("train.batch", batch, reason))
    if settings.train.epochs is None:
        shown = _IMAGES_GPU if gpu else _IMAGES_CPU
        epochs = int(np.clip(round(shown / an_epoch), 10, 400))
        reason = _("about {shown} training images in total, on {where}")
        if settings.train.effort == "quick":
            epochs = max(1, round(_QUICK * epochs))
            reason = _(
                "about {shown} training images in total, on {where}; effort quick: a quarter of the usual number"
            )
        reason = reason.format(shown=epochs * an_epoch, where=where)
        choices.append(Choice("train.epochs", epochs, reason))
    else:
        epochs = settings.train.epochs
    choices += _imbalance(settings, facts)
    if settings.train.ema_decay is None:
        steps = max(1, round(epochs * an_epoch / batch))
        decay = round(float(np.clip(1 - 1 / (_EMA_DECAY * steps), 0.9, 0.999)), 4)
        reason = _("the weights are averaged over about {count:.0f} of {steps:,} steps")
        choices.append(Choice("train.ema_decay", decay, reason.format(count=1 / (1 - decay), steps=steps)))
    if settings.train.encoder_rate is None and settings.model.encoder != NO_ENCODER:
        is_pretrained = bool(settings.model.pretrained or settings.model.weights)
        reason = (
            _("pretrained weights change in smaller steps than the others")
            if is_pretrained
            else _("no pretrained weights")
        )
        choices.append(Choice("train.encoder_rate", _ENCODER_RATE if is_pretrained else 1.0, reason))
    if settings.train.learning_rate is None:
        choices.append(_summed_rate(settings, facts, batch))
    if settings.train.precision is None:
        choices.append(Choice("train.precision", *facts.precision))
    return choices


def _epoch_crops(settings: Settings, facts: Facts) -> list[Choice]:
    """Number of crops per epoch: as many as cover the training split, within limits."""
    if settings.data.crops_per_epoch is not None:
        return []
    side = facts.images.crop or 1
    cover = max(facts.training, -(-facts.training_pixels // side**2))
    maximum = max(facts.training, _EPOCH_CPU if facts.device == "cpu" else _EPOCH_GPU)
    size = f"{facts.training_pixels / 1e6:,.1f}"
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
    return [Choice("data.crops_per_epoch", min(cover, maximum), reason.format(pixels=size, side=side, cover=cover))]


def _summed_rate(settings: Settings, facts: Facts, batch: int) -> Choice:
    """The learning rate for a summed loss: the rate that suits its mean, divided by the pixels of a step.

    Adam divides by the gradients' size, so a sum and a mean need the same rate.
    """
    if settings.train.loss != "ce-sum" or settings.train.optimizer != "sgd":
        return Choice("train.learning_rate", _MEAN_RATE, _("suits a loss that is a mean over the pixels, and Adam"))
    pixels = facts.training_pixels // max(1, facts.training)
    if facts.images.crop is not None:
        pixels = min(pixels, facts.images.crop**2)
    reason = _("the loss is a sum: {rate:g}, which suits its mean, divided by the {pixels:,} pixels of a step")
    shown = reason.format(rate=_MEAN_RATE, pixels=batch * pixels)
    return Choice("train.learning_rate", float(f"{_MEAN_RATE / max(1, batch * pixels):.3g}"), shown)


def default_width(device: str, encoder: str | None = None) -> int:
    """The default width: channels of the first level of the network, or of an encoder's decoder."""
    if device == "cpu":
        return 16
    return 64 if encoder in (None, NO_ENCODER) else 32


def _tutorial_job(settings: Settings, facts: Facts) -> list[Choice]:
    """The tutorial's two tasks: pets (colour, no augmentation), polyps (2 classes, grey, frozen copies)."""
    polyps = len(facts.shares) == 2
    choices = []
    if settings.augment.kind is None:
        if polyps:
            choices.append(
                Choice("augment.kind", "frozen", _("two classes: the tutorial's polyp task trains on augmented copies"))
            )
        else:
            choices.append(Choice("augment.kind", "none", _("the tutorial's pet task does not augment")))
    channels = facts.images.channels
    if settings.data.mean is None and settings.data.std is None and channels in (1, 3):
        choices.append(Choice("data.mean", _IMAGENET_MEAN[:channels], _("the tutorial's numbers (ImageNet's)")))
        choices.append(Choice("data.std", _IMAGENET_STD[:channels], _("the tutorial's numbers (ImageNet's)")))
    return choices


def _imbalance(settings: Settings, facts: Facts) -> list[Choice]:
    """Loss and foreground oversampling, by the share of the rarest class; measured in docs/experiments.md."""
    choices = []
    name = min(facts.foreground, key=facts.shares.__getitem__)
    share = facts.shares[name]
    rarest = _("the rarest class, {name}, has {share} of the pixels").format(name=name, share=percent(share))
    if settings.train.loss is None:
        reason = _("{rarest}; -log(Dice) gives equal weight to all classes, and most to those hardly found").format(
            rarest=rarest
        )
        choices.append(Choice("train.loss", "logdice+ce", reason))
    if settings.recipe == "paper" and settings.train.class_weights is None:
        weights = tuple(round(1 / (len(facts.shares) * own), 3) if own else 1.0 for own in facts.shares.values())
        reason = _("the recipe weights classes by the inverse of their frequency: {shares}")
        shares = ", ".join(percent(own) for own in facts.shares.values())
        choices.append(Choice("train.class_weights", weights, reason.format(shares=shares)))
    data, images = settings.data, facts.images
    cropped = images.crop is not None and images.size is not None and images.crop < images.size
    if data.foreground_share is None and data.resize == "native":
        reason = _(
            "{rarest}; half of the crops are placed on an object, because most of a large image may be background"
        )
        choices.append(Choice("data.foreground_share", _FOREGROUND_SHARE, reason.format(rarest=rarest)))
    elif data.foreground_share is None and cropped and settings.augment.kind == "warp":
        if share < _RARE:
            reason = _("{rarest}; this fraction of the crops is placed on an object").format(rarest=rarest)
            choices.append(Choice("data.foreground_share", 0.33, reason))
        else:
            reason = _("{rarest}, so most random crops contain it").format(rarest=rarest)
            choices.append(Choice("data.foreground_share", 0.0, reason))
    return choices


def percent(share: float) -> str:
    """0..1 -> `15.3%`, `0.25%`, `0.0004%`."""
    return f"{share:.1%}" if share >= 0.01 or share == 0 else f"{100 * share:.2g}%"


def _orientation(settings: Settings, facts: Facts) -> list[Choice]:
    choices = []
    orientation = settings.augment.orientation
    if orientation is None:
        upright = facts.upright_offset >= _UPRIGHT_OFFSET and facts.upright_t >= _UPRIGHT_T
        orientation = "upright" if upright else "free"
        if upright:
            says = _(
                "objects are above or below the centre, as in photographs ({d:.2f} standard deviations, t = {t:.1f})"
            )
        else:
            says = _("object positions show no preferred up direction; if your images have one, set this to upright")
        choices.append(
            Choice("augment.orientation", orientation, says.format(d=facts.upright_offset, t=facts.upright_t))
        )
    if settings.augment.rotation_deg is None:
        degrees = 15.0 if orientation == "upright" else 180.0
        reason = _("images are upright") if orientation == "upright" else _("images may have any orientation")
        choices.append(Choice("augment.rotation_deg", degrees, reason))
    return choices
