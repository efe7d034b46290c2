"""Wraps a user's own network in the interface of all networks.

N images of a batch, C channels, K classes, H x W pixels.
"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.core.settings import CUSTOM
from ubend.models.segmentation_net import SegmentationNet, check_channels, pad_to_multiple


class CustomNetwork(SegmentationNet):
    """A copy of a module, with normalisation and padding of the image.

    Args:
        module: (N, C, H, W) float32 normalised images -> (N, K, H, W) logits. If it has the attribute
            `input_multiple`, images are padded so that H and W are multiples of it (by mirroring below and to the
            right); otherwise they can have any size.
        depth: determines the sides of training crops, which are multiples of 2**depth; see `find_depth`.
        Others: see `SegmentationNet`; `width` is not used.
    """

    kind = CUSTOM
    options = ("depth",)
    is_stochastic = True  # unknown, so assumed

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int = 1,
        depth: int = 1,
        *,
        module: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(channels, classes, width, depth, None, "transposed", mean, std)
        self.module = copy.deepcopy(module)

    def forward(self, image: Tensor) -> Tensor:
        """See `SegmentationNet.forward`.

        Raises:
            SettingError: the module does not return logits of the expected shape.
        """
        check_channels(image, self.channels)
        height, width = image.shape[-2:]
        normalised = pad_to_multiple((image - self.mean) / self.std, self.input_multiple)
        logits = self.module(normalised)
        wanted = (image.shape[0], self.classes, *normalised.shape[-2:])
        if not isinstance(logits, Tensor) or logits.shape != wanted:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            line = _(
                "network: returns {found} for images of shape {given}; it must return logits of shape {wanted} "
                "(N, classes, H, W)"
            )
            line = line.format(found=shape, given=tuple(normalised.shape), wanted=wanted)
            raise SettingError(line, key="network")
        return logits[..., :height, :width]

    @property
    def input_multiple(self) -> int:
        return find_multiple(self.module)

    def config(self) -> dict[str, Any]:
        shape = {"channels": self.channels, "classes": self.classes, "width": self.width, "depth": self.depth}
        return {"kind": self.kind, **shape}

    def describe(self) -> list[str]:
        line = _("your own network {name}: {parameters:,} parameters")
        return [line.format(name=type(self.module).__name__, parameters=sum(p.numel() for p in self.parameters()))]


def find_multiple(module: nn.Module) -> int:
    """The attribute `input_multiple` of a module: sides of its images must be multiples of it, px; default 1.

    Raises:
        SettingError: it is not an integer >= 1.
    """
    multiple = getattr(module, "input_multiple", 1)
    if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
        line = _("network: input_multiple is {found}; it must be a whole number of px, 1 or more")
        raise SettingError(line.format(found=multiple), key="network")
    return multiple


def find_depth(module: nn.Module) -> int:
    """How often `input_multiple` can be halved, 1 to 8; sides of training crops are multiples of 2**depth."""
    multiple = find_multiple(module)
    return min(8, max(1, (multiple & -multiple).bit_length() - 1))
