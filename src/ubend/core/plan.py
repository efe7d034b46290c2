"""Facts (found by a scan) and plan (all settings, resolved) of a training; each is created once.

    settings (from the user) + facts (from the scan) -> resolve (autoconfig.py) -> plan

H x W pixels, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import Field

from ubend.core.settings import (
    AnyLoss,
    AugmentSettings,
    DataSettings,
    ModelSettings,
    Orientation,
    Precision,
    Resize,
    Settings,
    TrainSettings,
)


@dataclass(frozen=True)
class Choice:
    """An automatic choice: a setting by its dotted key, its value, and the reason.

    Attributes:
        replaces: whether it is in place of a value that the user gave.
    """

    key: str
    value: Any
    reason: str
    replaces: bool = False

    def line(self) -> str:
        return f"{self.key} = {self.value}: {self.reason}"


class Width(NamedTuple):
    """Width of the objects of a class: the median in an image, and of the images the lower quartile.

    Attributes:
        native_px: in the original images, px.
        relative: likewise, of widths divided by the square root of the image's area; times `data.size` it is the width
            in px at that size.
        is_of_training: whether only images of the training split were measured, because the folder states it; otherwise
            images of all splits, since a random split is drawn later, when the images are decoded.
    """

    native_px: float
    relative: float
    is_of_training: bool = False


@dataclass(frozen=True)
class InputFormat:
    """How images become the network's input: channels, size and crops; chosen from headers and masks, before decoding.

    Attributes:
        channels: `data.channels`.
        size: `data.size`, px; None: images keep their native size (`data.resize = native`).
        crop: `data.crop`, px: the side of training crops; None: training images are whole.
        resize: `data.resize`.
        choices: the automatic choices among these.
    """

    channels: int
    size: int | None
    crop: int | None
    resize: Resize
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Directions:
    """Whether the objects of a data set show a direction; all values are 0 where few images have objects.

    Photographs with a natural upright direction have their objects above or below the centre, and layers or line scans
    have borders along the rows or columns; microscope images show neither.

    Attributes:
        upright_t: t statistic of the objects' mean vertical offset from the centre.
        upright_offset: how much larger the vertical offset is than the horizontal one, in standard deviations.
        edge_t: t statistic of `edges`.
        edges: difference between the border pixels along the rows and along the columns, over their sum, mean over
            images: 1 for horizontal stripes, -1 for vertical ones, 0 for round objects.
    """

    upright_t: float
    upright_offset: float
    edge_t: float
    edges: float


@dataclass(frozen=True)
class Facts:
    """The facts about a data set on which automatic choices are based.

    Attributes:
        input_format: how the images are read.
        training_images: number of images in the training split.
        training_pixels: number of pixels of these images, as decoded.
        shares: class name -> fraction of the training split's scored pixels, 0..1, in the order of the class table.
        foreground: the names of all classes except the background.
        directions: of the objects in the training split.
        device: "cuda", "cpu" or "mps".
        precision: the fastest precision of the device, and the reason.
        pretrained: mean and std per channel, 1 = white, with which the encoder's pretrained weights were trained; None:
            no pretrained weights, or no 8-bit images.
    """

    input_format: InputFormat
    training_images: int
    training_pixels: int
    shares: Mapping[str, float]
    foreground: tuple[str, ...]
    directions: Directions
    device: str
    precision: tuple[Precision, str]
    pretrained: tuple[tuple[float, ...], tuple[float, ...]] | None = None


class DataPlan(DataSettings):
    """How images are read and split."""

    channels: int
    resize: Resize
    foreground_share: float


class AugmentPlan(AugmentSettings):
    """Augmentation of training images."""

    kind: Literal["none", "frozen", "warp"]
    orientation: Orientation
    rotation_deg: float


class ModelPlan(ModelSettings):
    """The shape of the network."""

    width: int
    depth: int
    skips: tuple[bool, ...]
    encoder: str
    pretrained: bool


class TrainPlan(TrainSettings):
    """The optimisation."""

    epochs: int
    batch: int
    micro_batch: int
    learning_rate: float
    encoder_rate: float
    ema_decay: float
    loss: AnyLoss
    precision: Precision
    compile: bool


class Plan(Settings):
    """All settings of a training, resolved; saved as `settings.toml`, which can be used with `--config`.

    Optional settings have a value here. None remains only where something is absent (no split file, no early stopping,
    images that are not resized or not cropped), and for `data.mean` and `data.std` measured on the training split.

    Attributes:
        choices: the automatic choices among the settings, with their reasons.
    """

    data: DataPlan
    augment: AugmentPlan
    model: ModelPlan
    train: TrainPlan

    choices: tuple[Choice, ...] = Field((), exclude=True, repr=False)
