"""All settings of a run, validated; the recipes `modern`, `tutorial`, `paper`.

A setting that is None is chosen later from the images and the device (`autoconfig.py`), and the reason is printed.
The resolved plan (`plan.py`) is saved in the run folder as `settings.toml`, which `--config` takes back.

Precedence: the recipe's values < a `--config` file < flags < `--set key=value`.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError

from ubend.core.errors import Contradiction, SettingError, reason, validation_key, validation_reason
from ubend.core.files import read_text
from ubend.core.i18n import _

_Settings = TypeVar("_Settings", bound="Settings")
Recipe = Literal["modern", "tutorial", "paper"]
Resize = Literal["keep", "squash", "native"]
Orientation = Literal["free", "upright"]
Precision = Literal["float32", "bfloat16"]
Upsampling = Literal["transposed", "nearest", "bilinear", "unpool"]
LossKind = Literal["ce", "ce-sum", "dice+ce", "logdice+ce", "dice+focal"]
NetworkKind = Literal["unet", "paper"]
NO_ENCODER = "none"  # as `model.encoder`: the U-Net's own encoder
UNET_DEPTH = 4  # default number of poolings of the U-Net


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` as a number; pydantic accepts it as 1."""
        kinds = re.findall(r"\b(?:int|float)\b", str(cls.model_fields[str(info.field_name)].annotation))
        some = value if isinstance(value, list | tuple) else [value]
        if kinds and any(isinstance(one, bool) for one in some):
            raise PydanticKnownError("float_type" if "float" in kinds else "int_type")
        return value


class DataSettings(_Section):
    """How images and masks are read and split."""

    folder: str | None = None  # of images and masks
    images: str | None = None  # folder or glob of the images, instead of `folder`
    masks: str | None = None  # folder or glob of the masks
    split: str | None = None  # CSV `file,split[,group]` or `file,group`
    classes: tuple[str, ...] | None = None  # names, in the order of the mask values
    values: tuple[str, ...] | None = None  # `code=name` each: what mask values or colours mean
    skip_bad: bool = False  # continue without pairs that cannot be used
    channels: int | None = Field(None, ge=1, le=16)  # 1 reads grey, 3 colour; None: as the images are; a mixture: 3
    size: int | None = Field(None, ge=8, le=8192)  # px; side of a square with the area of the resized image
    # keep the aspect, squash to a square, or leave images at native size (native); None: by the width of objects
    resize: Resize | None = None
    crop: int | None = Field(None, ge=16, le=8192)  # px; train on crops of this side instead of whole images
    crops_per_epoch: int | None = Field(None, ge=1)  # native: crops shown in an epoch, at least one of each image
    foreground_share: float | None = Field(
        None, ge=0, le=1
    )  # fraction of the crops placed on an object of a random class
    val_share: float = Field(0.15, gt=0, lt=0.5)
    test_share: float = Field(0.15, gt=0, lt=0.5)
    mean: tuple[float, ...] | None = None  # per channel, 1 = white; None: measured on the training split
    std: tuple[float, ...] | None = None


class AugmentSettings(_Section):
    """Augmentation of training images. Ranges are half-widths of uniform draws unless stated otherwise."""

    kind: Literal["none", "frozen", "warp"] | None = None
    # frozen: the tutorial's copies, the same in every epoch
    anchor_shift_px: float = Field(10.0, ge=0)  # three anchors move this far, at native size
    both_flips: Literal["flips", "elastic"] = "flips"  # as in the tutorial's code, or in its text: elastic + both flips
    # warp: drawn again for every image of every epoch
    orientation: Orientation | None = None  # free: any rotation and both flips; upright: small rotations, left-right
    rotation_deg: float | None = Field(None, ge=0, le=180)
    flip_share: float = Field(0.5, ge=0, le=1)  # of the images: mirrored left-right; free: up-down, too
    scale: float = Field(0.25, ge=0, le=2)  # natural logarithm of the zoom
    stretch: float = Field(0.1, ge=0, le=1)  # natural logarithm of height over width
    shift: float = Field(0.1, ge=0, le=1)  # of the image's side
    elastic: float = Field(0.03, ge=0, le=0.5)  # standard deviation of the coarse field, of the image's side
    elastic_px: float | None = Field(None, ge=0)  # the same in px of the resized image, instead of `elastic`
    elastic_grid: int = Field(5, ge=2, le=5)  # points a side of the coarse field
    elastic_share: float = Field(0.5, ge=0, le=1)  # of the images
    out_of_frame: Literal["ignored", "reflected"] = "ignored"  # the mask outside the image; the image is reflected
    brightness: float = Field(0.15, ge=0, le=1)  # of the value range
    contrast: float = Field(0.25, ge=0, le=2)  # natural logarithm
    color: float = Field(0.1, ge=0, le=1)  # gain of each of several channels, natural logarithm
    saturation: float = Field(0.3, ge=0, le=2)  # natural logarithm; only with three channels
    gamma: float = Field(0.25, ge=0, le=2)  # natural logarithm
    blur_px: float = Field(1.0, ge=0, le=2)  # greatest standard deviation
    blur_share: float = Field(0.15, ge=0, le=1)
    noise: float = Field(0.04, ge=0, le=1)  # greatest standard deviation, of the value range
    noise_share: float = Field(0.15, ge=0, le=1)


class ModelSettings(_Section):
    """The shape of the U-Net."""

    kind: NetworkKind = "unet"  # paper: the original one, without padding
    width: int | None = Field(None, ge=1, le=1024)  # channels of the first level; doubled at each deeper one
    depth: int | None = Field(None, ge=1, le=8)  # poolings
    skips: tuple[bool, ...] | None = None  # level 1 (full size) first; None: all
    upsampling: Upsampling = "transposed"  # how the decoder doubles the resolution
    dropout: float = Field(0.5, ge=0, lt=1)  # of the values at the two deepest levels; with kind = paper
    encoder: str | None = None  # its name in timm; none: the U-Net's own
    pretrained: bool | None = (
        None  # initialise from its ImageNet weights, from its pip package, or downloaded if needed
    )
    weights: str | None = None  # initialise from these: a local file instead of the download


class TrainSettings(_Section):
    """The optimisation."""

    epochs: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1, le=2**20)
    micro_batch: int | None = Field(None, ge=1)  # images in memory at once; None: the batch
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    momentum: float = Field(0.99, ge=0, lt=1)  # of sgd
    learning_rate: float | None = Field(1e-3, gt=0)
    encoder_rate: float | None = Field(None, ge=0)  # learning rate of an encoder, as a share of the others'
    weight_decay: float = Field(1e-2, ge=0)
    schedule: Literal["constant", "one-cycle", "cosine"] = "one-cycle"
    warmup: float = Field(0.2, ge=0, lt=1)  # share of the steps in which one-cycle and cosine rise
    loss: LossKind | None = (
        None  # ce: cross entropy, sum: not its mean; dice adds 1 - Dice, logdice -log(Dice); focal: hard pixels count
    )
    class_weights: tuple[float, ...] | None = None  # in the cross entropy, one per class; None: all alike
    border_weight: float = Field(0.0, ge=0)  # in the cross entropy: extra weight of background between close objects
    border_sigma_px: float = Field(5.0, gt=0)  # px of the resized image: the distance that counts as close
    sync_batch_norm: bool = False  # in several processes: batch norm over the images of all of them
    ema_decay: float | None = Field(None, ge=0, lt=1)  # EMA of the weights; 0: none
    select: Literal["loss", "dice"] = "dice"  # the validation score by which the best weights are kept
    patience: int | None = Field(None, ge=1)  # early stopping: epochs without a better validation score
    init_from: str | None = None  # model file or run folder whose weights the training starts from
    precision: Precision | None = None
    compile: bool | None = None
    deterministic: bool = False
    seed: int = Field(0, ge=0, lt=2**63)


class Settings(_Section):
    """All settings of a run; sections as in settings files: `[data]`, `[augment]`, `[model]`, `[train]`."""

    recipe: Recipe = "modern"
    device: str | None = None
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _check_conflicts(self) -> "Settings":
        data, model, train = self.data, self.model, self.train
        plain = model.encoder in (None, NO_ENCODER)  # skips without an encoder are those of the U-Net
        depth = model.depth or (UNET_DEPTH if plain else len(model.skips or ()))
        paper, native = model.kind == "paper", data.resize == "native"
        weights, mean, std = train.class_weights, data.mean, data.std
        conflicts = [
            (
                "model.skips",
                model.skips is not None and len(model.skips) != depth,
                _("model.skips has {count} entries for model.depth {depth}").format(
                    count=len(model.skips or ()), depth=depth
                ),
            ),
            (
                "model.encoder",
                model.encoder == NO_ENCODER and (model.pretrained or model.weights is not None),
                _("model.pretrained and model.weights need an encoder; set model.encoder (--encoder)"),
            ),
            (
                "model.upsampling",
                not plain and model.upsampling == "unpool",
                _(
                    "model.upsampling = unpool cannot be used with model.encoder, because encoders "
                    "pool in other ways; choose another upsampling"
                ),
            ),
            (
                "train.class_weights",
                weights is not None and (min(weights, default=0) < 0 or max(weights, default=0) == 0),
                _("train.class_weights: give one number per class, none below 0 and not all 0"),
            ),
            (
                "model.upsampling",
                paper and (model.upsampling != "transposed" or not all(model.skips or ())),
                _("model.upsampling and model.skips cannot be changed with model.kind = paper; use model.kind = unet"),
            ),
            (
                "train.sync_batch_norm",
                paper and train.sync_batch_norm,
                _("train.sync_batch_norm needs model.kind = unet; the paper's network has no batch norm"),
            ),
            (
                "data.resize",
                native and (self.recipe == "tutorial" or self.augment.kind in ("none", "frozen")),
                _(
                    "data.resize = native (--patches) needs the recipe modern or paper, and augment.kind = warp, "
                    "which draws the crops"
                ),
            ),
            (
                "train.border_weight",
                native and train.border_weight,
                _(
                    "train.border_weight needs whole images and cannot be used with data.resize = native (--patches); "
                    "give --size instead, or --set train.border_weight=0"
                ),
            ),
            (
                "data.size",
                native and data.size is not None,
                _("with data.resize = native (--patches) images keep their size; set data.crop instead of data.size"),
            ),
            (
                "data.foreground_share",
                not native and data.foreground_share and data.crop is None,
                _("data.foreground_share needs crops; set data.crop too"),
            ),
            (
                "data.crops_per_epoch",
                not native and data.crops_per_epoch is not None,
                _("data.crops_per_epoch needs data.resize = native (--patches)"),
            ),
            (
                "data.crop",
                data.crop is not None and data.resize == "squash",
                _("data.crop cannot be used with data.resize = squash; set data.resize = keep"),
            ),
            (
                "data.mean",
                (mean is None) != (std is None) or (mean and std and len(mean) != len(std)),
                _("data.mean and data.std must be set together, with one number per channel in each"),
            ),
            ("data.std", std is not None and not all(value > 0 for value in std), _("data.std must be greater than 0")),
        ]
        for key, conflict, message in conflicts:
            if conflict:
                raise Contradiction(key, message)
        return self


# The tutorial's values where they differ from `modern`. Its two jobs differ in the images
# and the copies; `autoconfig.py` distinguishes them by the number of classes.
RECIPES: dict[Recipe, dict[str, dict[str, Any]]] = {
    "modern": {"augment": {"kind": "warp"}},
    "tutorial": {
        "data": {"size": 128, "resize": "squash"},
        "model": {"width": 64, "depth": 4, "encoder": NO_ENCODER},
        "train": {
            "epochs": 30,
            "batch": 64,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "schedule": "constant",
            "loss": "ce",
            "ema_decay": 0.0,
            "select": "loss",
            "precision": "float32",
        },
    },
    # Ronneberger et al. 2015, arXiv:1505.04597. What it does not state is chosen in `autoconfig.py`: # learning rate
    # and epochs. The ranges of shifts and grey values are ours.
    "paper": {
        "augment": {
            "kind": "warp",
            "scale": 0.0,
            "stretch": 0.0,
            "elastic_px": 10.0,
            "elastic_grid": 3,
            "elastic_share": 1.0,
            "color": 0.0,
            "saturation": 0.0,
            "blur_share": 0.0,
            "noise_share": 0.0,
        },
        "model": {"kind": "paper", "width": 64, "depth": 4, "encoder": NO_ENCODER},
        "train": {
            "batch": 1,
            "optimizer": "sgd",
            "momentum": 0.99,
            "learning_rate": None,
            "weight_decay": 0.0,
            "schedule": "constant",
            "loss": "ce-sum",
            "border_weight": 10.0,
            "border_sigma_px": 5.0,
            "ema_decay": 0.0,
        },
    },
}


def read_config(path: Path) -> dict[str, Any]:
    """The nested settings of a TOML file."""
    try:
        return tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(
            _("cannot read settings from {path}: {reason}").format(path=path, reason=reason(error)), path=path
        ) from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """`train.epochs=5` -> ("train.epochs", 5); the value is TOML, otherwise plain text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingError(
            _("--set {text}: write it as key=value, for example train.epochs=20").format(text=text), key="--set"
        )
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), value.strip()


def make_settings(
    recipe: Recipe | None = None,
    config: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings of a recipe, overridden by a file's values and then by `changes` (dotted keys).

    Raises:
        SettingError: an unknown key (the nearest known one is named), or a value that does not fit.
    """
    given = dict(flatten(config or {})) | dict(changes or {})
    named = given.pop("recipe", "modern")
    recipe = recipe or named
    if recipe not in list(RECIPES):  # a list: a value from a file may be unhashable
        known = ", ".join(RECIPES)
        raise SettingError(
            _("unknown recipe {recipe}; choose one of: {known}").format(recipe=recipe, known=known), key="recipe"
        )
    _check_keys(given)
    values = {**dict(flatten(RECIPES[recipe])), **given}
    return validate(Settings, {"recipe": recipe, **nest(values)})


def change_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings with some dotted keys replaced, validated again."""
    return validate(Settings, nest(dict(flatten(settings.model_dump())) | dict(changes)))


SECTIONS = ("data", "augment", "model", "train")


def dump_toml(settings: Settings, sections: Sequence[str] = SECTIONS) -> str:
    """The settings, or some sections of them, as TOML; None (not chosen yet) becomes a comment."""
    lines = []
    if tuple(sections) == SECTIONS:
        lines.append(f'recipe = "{settings.recipe}"')
        if settings.device is not None:
            lines.append(f"device = {_toml(settings.device)}")
    for section in sections:
        lines += ["", f"[{section}]"]
        for key, value in getattr(settings, section).model_dump(mode="json").items():
            lines.append(f"# {key} =" if value is None else f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections -> dotted keys."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys() -> list[str]:
    """Every dotted key of the settings."""
    return [key for key, _value in flatten(Settings().model_dump())]


def _toml(value: Any) -> str:
    """JSON's strings, numbers, booleans and lists are TOML's too, except for one control character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys -> nested sections."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _dot, leaf = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    return nested


_RENAMED = {
    "model.growth": "model.upsampling",
    "data.window": "data.crop",
    "data.epoch_windows": "data.crops_per_epoch",
    "train.average_decay": "train.ema_decay",
}
_SHORT_NAMES = {"lr": "train.learning_rate", "wd": "train.weight_decay"}  # as in many other programs


def _check_keys(given: Mapping[str, Any]) -> None:
    known = known_keys()
    for key in given:
        if key in known:
            continue
        if key in _RENAMED:
            raise SettingError(_("setting {key} is now called {name}").format(key=key, name=_RENAMED[key]), key=key)
        leaves = {name.rpartition(".")[2]: name for name in known}
        if key.rpartition(".")[2] in _SHORT_NAMES:
            leaves[key.rpartition(".")[2]] = _SHORT_NAMES[key.rpartition(".")[2]]
        near = difflib.get_close_matches(key, known, 1, 0.5)
        leaf = difflib.get_close_matches(key.rpartition(".")[2], leaves, 1, 0.5)
        best = leaves[leaf[0]] if leaf else (near[0] if near else None)
        section = key.rpartition(".")[0]
        if leaf and f"{section}.{leaf[0]}" in known:  # `kind` is in two of them
            best = f"{section}.{leaf[0]}"
        cure = _("did you mean {name}?").format(name=best) if best else _("see docs/settings.md for all of them")
        raise SettingError(_("unknown setting {key}; {cure}").format(key=key, cure=cure), key=key)


def validate(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """Validate nested values.

    Raises:
        SettingError: values that do not fit, or that contradict each other.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or _("the settings")
            cause = validation_reason(problem)
            if problem["loc"]:
                cause = _("{reason} (got {value!r})").format(reason=cause, value=problem["input"])
            lines.append(f"{key}: {cause}")
        raise SettingError("; ".join(lines), key=validation_key(error.errors()[0])) from error
