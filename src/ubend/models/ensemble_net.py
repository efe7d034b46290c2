"""Several networks of the same shape as one network, such as the models of several folds.

N images of a batch, C channels, H x W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ubend.core.i18n import _
from ubend.models.segmentation_net import Averaging, SegmentationNet

ViewKind = Literal["plain", "mirror", "square"]
MAX_MEMBERS = 100
# Symmetries of the square: (counterclockwise quarter turns, then whether to flip left and right).
_VIEWS: dict[ViewKind, tuple[tuple[int, bool], ...]] = {
    "plain": ((0, False),),
    "mirror": ((0, False), (0, True)),
    "square": tuple((turns, mirrored) for turns in range(4) for mirrored in (False, True)),
}


class EnsembleNet(SegmentationNet):
    """The mean of the networks' probabilities over all views of an image, as logits.

    The logits are the logarithm of the mean probabilities, plus a bias for each class, `class_bias`, 0 by default. For
    two classes the bias acts as a threshold: with biases 0 and b, the second class is chosen from the probability
    1 / (1 + exp(b)). For more classes, exp(bias) is the weight of each class when choosing the most probable one.

    Args:
        members: networks of the same shape.
        views: plain: the image; mirror: the image and its mirror image; square: all eight rotations and flips.
    """

    is_ensemble = True
    class_bias: Tensor

    def __init__(self, members: Sequence[SegmentationNet], views: ViewKind = "plain") -> None:
        nn.Module.__init__(self)
        first = members[0]
        self.channels, self.classes, self.width, self.depth = first.channels, first.classes, first.width, first.depth
        self.skips, self.upsampling = first.skips, first.upsampling
        self.margin, self.edge_px, self.encoder_name = first.margin, first.edge_px, first.encoder_name
        self.views, self.averages_views = views, views != "plain"
        self.members = nn.ModuleList(members)
        self.register_buffer("class_bias", torch.zeros(first.classes))

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """(1, C, 1, 1) average of the members' means; each member uses its own for normalisation."""
        return torch.stack([net.mean for net in self._nets]).mean(dim=0)

    @property
    def std(self) -> Tensor:  # type: ignore[override]
        """See `mean`."""
        return torch.stack([net.std for net in self._nets]).mean(dim=0)

    @property
    def _nets(self) -> list[SegmentationNet]:
        return [net for net in self.members if isinstance(net, SegmentationNet)]

    @property
    def _first(self) -> SegmentationNet:
        return self._nets[0]

    def forward(self, image: Tensor) -> Tensor:
        return self.average(self._nets, image)

    def forward_tiles(self, image: Tensor) -> Tensor:
        return self.average([net.forward_tiles for net in self._nets], image)

    def average(self, members: Iterable[Callable[[Tensor], Tensor]], image: Tensor) -> Tensor:
        """Average the given functions over all views, as logits.

        Args:
            members: one function per member: (N, C, H, W) raw values -> (N, classes, h, w) logits.
            image: (N, C, H, W) raw values.
        Returns:
            (N, classes, h, w) float32.
        """
        views, probs = _VIEWS[self.views], list[Tensor]()
        for member in members:
            for turns, mirrored in views:
                view = torch.rot90(image, turns, (2, 3)) if turns else image
                view = view.flip(3) if mirrored else view
                logits = member(view.contiguous(memory_format=torch.channels_last)).float()
                prob = logits.softmax(dim=1)
                prob = prob.flip(3) if mirrored else prob
                prob = torch.rot90(prob, -turns, (2, 3)) if turns else prob
                probs = [probs[0] + prob] if probs else [prob]  # a running sum, to save memory
        mean = probs[0] / (len(views) * len(self.members))
        return mean.clamp_min(torch.finfo(torch.float32).tiny).log() + self.class_bias[:, None, None]

    @property
    def input_multiple(self) -> int:
        return self._first.input_multiple

    def padded_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """See `SegmentationNet.padded_hw`; with several views, padding on one side would change the result."""
        return size_hw if self.averages_views else self._first.padded_hw(size_hw)

    def config(self) -> dict[str, Any]:
        return {**self._first.config(), "members": len(self.members), "views": self.views}

    def averaging(self) -> Averaging:
        return Averaging(self._nets, _VIEWS[self.views], self.class_bias)

    def first_weight(self) -> str:
        return f"members.0.{self._first.first_weight()}"

    def describe(self) -> list[str]:
        lines = [_("average of the probabilities of {count} networks").format(count=len(self.members))]
        if self.averages_views:
            line = _(
                "average of the probabilities of {count} networks, each over {views} rotations and flips of the image"
            )
            lines = [line.format(count=len(self.members), views=len(_VIEWS[self.views]))]
        if self.class_bias.any():
            weights = ", ".join(f"{weight:.3g}" for weight in self.class_bias.exp().tolist())
            lines.append(_("class weights for choosing the most probable class: {weights}").format(weights=weights))
        return [*lines, *self._first.describe()]
