"""The interface of every network: raw images in, logits out.

N images of a batch, C channels, H x W pixels.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.core.i18n import _, later, now
from ubend.core.settings import AnyNetwork, Upsampling


class SegmentationNet(nn.Module):
    """The interface of every network: all that the rest of ubend asks of one.

    A subclass defines `forward` and states where it differs from the attributes and methods below; `models/networks.py`
    lists it.

    Args:
        channels: C of the image.
        classes: number of classes.
        width: channels of the first level; each deeper level has twice as many.
        depth: number of poolings, >= 1.
        skips: for each level, full size first, whether its skip connection is there; None: all.
        upsampling: how the decoder doubles the resolution: the tutorial's transposed convolution; nearest or bilinear
            enlargement, then a 3x3 convolution; or a 3x3 convolution, then max unpooling.
        mean, std: per channel, in the image's own units (0..255 for 8 bit); stored as (1, C, 1, 1) buffers.
    Attributes:
        kind: `model.kind` of the settings that make it.
        options: the settings of `[model]` that are arguments of it, except width.
        has_batch_norm: whether training needs two values per channel at the deepest level.
        is_stochastic: whether a training pass may draw random numbers (dropout, drop path), so that it must be seeded.
        can_capture: whether its training step can be a CUDA graph.
        edge_px: a side of what `forward_tiles` returns is a multiple of `input_multiple`, and this.
        summary_template: what `describe` says of it, with {width}, {depth}, {parameters} and {skips}.
        margin: px that `forward_tiles` takes from each side; 0: it pads, and tiles are blended where they overlap.
        encoder_name: of its encoder, as timm names it; None: the encoder is its own.
        is_ensemble: whether it is several networks, `shape()["members"]` of them.
        averages_views: whether a forward pass is the mean over mirror images already.
    """

    kind: ClassVar[AnyNetwork] = "unet"
    options: ClassVar[tuple[str, ...]] = ("depth", "skips", "upsampling")
    has_batch_norm: ClassVar[bool] = True
    edge_px: ClassVar[int] = 0
    summary_template: ClassVar[str] = later(
        "U-Net: width {width}, depth {depth}, {parameters:,} parameters, skip connections at levels {skips}"
    )
    is_stochastic = False
    can_capture = False
    margin = 0
    encoder_name: str | None = None
    is_ensemble = False
    averages_views = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int,
        depth: int,
        skips: Sequence[bool] | None,
        upsampling: Upsampling,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.depth = channels, classes, width, depth
        self.skips, self.upsampling = (True,) * depth if skips is None else tuple(skips), upsampling
        if len(self.skips) != depth:
            raise ValueError(f"skips has {len(self.skips)} entries for depth {depth}")
        for name, values in (("mean", mean or [0.0] * channels), ("std", std or [1.0] * channels)):
            if len(values) != channels:
                raise ValueError(f"{len(values)} values given for {channels} channels")
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(1, channels, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch: (N, C, H, W) raw values, any H and W >= 1 -> (N, classes, H, W) unnormalised scores.

        Raises:
            ValueError: the image has another shape.
        """
        raise NotImplementedError

    def forward_tiles(self, image: Tensor) -> Tensor:
        """Logits of tiles with their margin: (N, C, h + 2 margin, w + 2 margin) -> (N, classes, h, w)."""
        logits: Tensor = self(image)
        return logits

    @property
    def input_multiple(self) -> int:
        """What the sides of padded images, and the distances between tiles, are multiples of, px."""
        return 1 << self.depth

    def padded_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """(H, W) up to which the last row and column may be repeated, and the logits of the image stay the same."""
        height, width = (side + -side % self.input_multiple for side in size_hw)
        return height, width

    def shape(self) -> dict[str, Any]:
        """The arguments of `make_network` that give a network of the same shape, fit for JSON."""
        shape = {"channels": self.channels, "classes": self.classes, "width": self.width, "depth": self.depth}
        return shape | {"skips": list(self.skips), "upsampling": self.upsampling}

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters of an encoder, which have a learning rate of their own; of other networks none."""
        return []

    def first_weight(self) -> str:
        """The name in `state_dict` of the weights that the image meets first."""
        return "stem.0.weight"

    def describe(self) -> list[str]:
        """Lines for people: kind, size, number of parameters."""
        kept = ", ".join(str(level) for level, there in enumerate(self.skips, 1) if there) or _("none")
        parameters = sum(p.numel() for p in self.parameters())
        return [
            now(self.summary_template).format(width=self.width, depth=self.depth, parameters=parameters, skips=kept)
        ]


def check_channels(image: Tensor, channels: int) -> None:
    """Raise ValueError unless a batch is (N, channels, H, W): other shapes may be broadcast, or read past their end."""
    if image.ndim != 4 or image.shape[1] != channels:
        raise ValueError(f"the network takes (N, {channels}, H, W), got {tuple(image.shape)}")


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until H and W divide by `multiple`; (N, C, H, W) -> (N, C, H', W')."""
    height, width = image.shape[-2:]
    below, right = -height % multiple, -width % multiple
    return F.pad(image, (0, right, 0, below), mode="replicate") if below or right else image
