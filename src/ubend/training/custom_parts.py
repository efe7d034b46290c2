"""The user's own network and loss, passed to `ubend.fit` and `ubend.resume` in Python.

N images of a batch, K classes, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.core.settings import CUSTOM, Settings
from ubend.labels.class_table import IGNORED
from ubend.models.custom import find_depth
from ubend.models.networks import Network
from ubend.training.losses import Loss, LossCounts, LossSums, one_hot

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
_TRIAL_HW = 65, 97  # px; odd, since images that are validated and predicted have any size


@dataclass(frozen=True)
class CustomParts:
    """The user's own network and loss, each in place of ubend's.

    Attributes:
        network: see `CustomNetwork`; None: the network that the settings name.
        loss: see `CustomLoss`; None: the loss that the settings name.
    """

    network: nn.Module | None = None
    loss: LossFunction | None = None

    def check(self, settings: Settings) -> None:
        """Check that the settings name a custom network or loss exactly where one is given.

        Raises:
            SettingError: they do not.
        """
        for name, key, part, kind in (
            ("network", "model.kind", self.network, settings.model.kind),
            ("loss", "train.loss", self.loss, settings.train.loss),
        ):
            if part is None and kind == CUSTOM:
                line = _("{key} = custom: this training needs your own {name}; start it in Python with {name}=...")
                raise SettingError(line.format(key=key, name=name), key=key)
            if part is not None and kind != CUSTOM:
                line = _("{name}=... needs {key} = custom, but {key} is {kind}; leave one of them out")
                raise SettingError(line.format(name=name, key=key, kind=kind), key=key)

    def try_out(self, model: Network, loss: Loss) -> Loss:
        """Call the user's network and loss once on small blank images; returns the loss to train with.

        Args:
            model: the network, on the device of the training.
            loss: the loss of the settings; a custom loss takes over its class weights.
        Raises:
            SettingError: the network or the loss fails, or returns something of the wrong type or shape.
        """
        height, width = _TRIAL_HW
        device = model.mean.device
        if self.network is not None:
            model.eval()
            image = model.mean.expand(2, -1, height, width)
            line = _(
                "network: fails on images of {height} x {width} px ({reason}); if sides must be multiples of a number "
                "of px, set this number as the attribute input_multiple of the network"
            )
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                _call("network", line, model, image)
        if self.loss is None:
            return loss
        custom = CustomLoss("ce", loss.class_weights, self.loss)
        logits = torch.zeros(2, model.classes, height, width, device=device, requires_grad=True)
        target = (torch.arange(width, device=device) % model.classes).to(torch.uint8).repeat(2, height, 1)
        target[:, 0] = IGNORED
        line = _(
            "loss: fails on a small batch ({reason}); it is called with logits (N, K, H, W), target (N, H, W) int64 "
            "(255: not scored) and weights (N, H, W), and must return a scalar"
        )
        _call("loss", line, custom.sum, logits, target)
        return custom


NO_CUSTOM = CustomParts()


def take_custom_parts(flags: dict[str, Any]) -> CustomParts:
    """Move the network and the loss out of the arguments of `ubend.fit`, and set the matching settings there.

    Args:
        flags: the keyword arguments; changed in place.
    Raises:
        SettingError: the network is not a module with parameters, or other arguments define a network, too.
    """
    network = flags.pop("network", None)
    loss = flags.pop("loss") if callable(flags.get("loss")) else None
    if network is not None:
        if not isinstance(network, nn.Module) or not any(True for _parameter in network.parameters()):
            line = _("network: give a torch.nn.Module with parameters, not {found}")
            raise SettingError(line.format(found=type(network).__name__), key="network")
        others = [name for name in ("width", "encoder", "skips", "init_from") if flags.get(name) is not None]
        if others:
            line = _("network: has its own shape and weights; leave out {names}").format(names=", ".join(others))
            raise SettingError(line, key="network")
        flags |= {"model.kind": CUSTOM, "model.depth": find_depth(network)}
    if loss is not None:
        flags["train.loss"] = CUSTOM
    return CustomParts(network, loss)


@dataclass(frozen=True)
class CustomLoss(Loss):
    """The user's own loss; the loss of a step is the mean over its micro-batches, weighted by their number of images.

    So, unlike ubend's losses, it depends on how a batch is split into micro-batches or over processes, unless it is
    itself a mean over images. The reported training and validation losses are means over images, too.

    Attributes:
        function: (logits (N, K, H, W) float32, target (N, H, W) int64 class index or 255, weights (N, H, W) float32)
            -> scalar with a gradient. The weights are 0 where the target is 255, else 1 (or the class's weight of
            `train.class_weights`) plus the weight of `train.border_weight`.
    """

    function: LossFunction = torch.nn.functional.cross_entropy
    can_capture = False  # the function may synchronise with the device

    def count(self, target: Tensor, classes: int, pixel_weights: Tensor | None = None) -> LossCounts:
        """The number of images, in place of pixels."""
        images = torch.full((), float(len(target)), device=target.device)
        return LossCounts(images, torch.zeros_like(images))

    def sum(self, logits: Tensor, target: Tensor, pixel_weights: Tensor | None = None) -> LossSums:
        """The function's value times the number of images."""
        hot = one_hot(target, logits.shape[1]).float()
        class_weights = hot.new_ones(hot.shape[1]) if self.class_weights is None else self.class_weights
        weights = torch.einsum("nchw,c->nhw", hot, class_weights)
        if pixel_weights is not None:
            weights = weights + hot.sum(dim=1) * pixel_weights
        value = self.function(logits.float(), target.long(), weights)
        if not isinstance(value, Tensor) or value.ndim or (logits.requires_grad and not value.requires_grad):
            shape = (
                _("a tensor of shape {shape}").format(shape=tuple(value.shape)) if isinstance(value, Tensor) else None
            )
            line = _("loss: returns {found}; it must return a scalar tensor with a gradient")
            raise SettingError(line.format(found=shape or type(value).__name__), key="loss")
        total = value.float() * len(target)
        return LossSums(total, torch.zeros_like(total))


def _call(key: str, line: str, part: Callable[..., Any], *given: Tensor) -> None:
    """Call the user's network or loss; if it fails, raise SettingError with `line` and the reason."""
    try:
        part(*given)
    except SettingError:
        raise
    except Exception as error:  # whatever the user's code raises
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        height, width = _TRIAL_HW
        raise SettingError(line.format(reason=cause, height=height, width=width), key=key) from error
