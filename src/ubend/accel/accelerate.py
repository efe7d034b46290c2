"""Faster versions of networks, losses and augmentation, with the same arguments and results.

Each function returns a callable that uses the fast path where the gate (gate.py) allows it, and the plain one
otherwise. Importing this module needs no Triton.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ubend.accel import fused, layers
from ubend.accel.folded import FoldedUNet, can_fold
from ubend.accel.fused import GradientHook
from ubend.accel.gate import usable
from ubend.core.device import has_compiler
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.core.settings import LossKind
from ubend.dataset.augment import Augment, AugmentConstants, elastic_basis
from ubend.models.custom import CustomNetwork
from ubend.models.ensemble_net import EnsembleNet
from ubend.training.losses import Loss, LossSums


def accelerate_network(net: nn.Module, on_gradient: GradientHook | None = None) -> Callable[[Tensor], Tensor]:
    """A network as a function that needs fewer passes over memory: U-Nets by `fused.py`, others by `layers.py`.

    Each call checks the training mode, whether gradients are needed, and the device.

    Args:
        net: the network; its parameters and buffers are used, and its running statistics are updated.
        on_gradient: called with (weight, its gradient) of each convolution as soon as the gradient is computed, while
            the backward pass continues; it may change the gradient in place. Only the fused U-Net calls it.
    """
    if isinstance(net, CustomNetwork):  # its code may use the layers in other ways than calling them
        return net
    if not fused.can_fuse(net):
        return layers.accelerate_layers(net)

    def forward(image: Tensor) -> Tensor:
        kernels = fused.find_kernels(image)
        if kernels is None or not fused.fits_call(net, image):
            logits: Tensor = net(image)
            return logits
        return fused.run(net, image, kernels, on_gradient)

    return forward


def compile_network(model: nn.Module, reporter: Reporter) -> Callable[[Tensor], Tensor]:
    """The network compiled by `torch.compile`, or unchanged if there is no C compiler."""
    if has_compiler():
        compiled: Callable[[Tensor], Tensor] = torch.compile(model)
        return compiled
    reporter.report(_("note: no C compiler was found, so training is not compiled (same results, but slower)"))
    return model


def accelerate_inference(
    plain: Callable[[Tensor], Tensor], net: nn.Module, precision: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """A network for prediction only, with batch norm folded into its convolutions (`folded.py`).

    Folding is plain arithmetic and happens on every device, also with UBEND_ACCEL=off; the gate decides only about the
    kernels between the convolutions.

    Args:
        plain: (N, C, H, W) raw values -> (N, classes, H, W) float32 logits of `net`; returned if `net` cannot be
            folded.
        net: in `eval` mode; later changes of its parameters have no effect.
        precision: the dtype of feature maps.
    """
    if isinstance(net, EnsembleNet):
        members = [FoldedUNet(member, precision) for member in net.members if can_fold(member)]
        return partial(net.average, members) if len(members) == len(net.members) else plain
    return FoldedUNet(net, precision) if can_fold(net) else plain


_KERNEL_LOSSES: tuple[LossKind, ...] = ("ce", "ce-sum", "dice+ce", "logdice+ce")


def accelerate_loss(loss: Loss) -> Loss:
    """The same loss with `sum` as one kernel; `loss` itself if there is no kernel for its kind."""
    has_kernel = type(loss) is Loss and loss.kind in _KERNEL_LOSSES
    return _KernelLoss(loss.kind, loss.class_weights) if has_kernel else loss


@dataclass(frozen=True)
class _KernelLoss(Loss):
    """Cross entropy, with or without Dice, as one kernel; with pixel weights, the plain implementation."""

    def sum(self, logits: Tensor, target: Tensor, pixel_weights: Tensor | None = None) -> LossSums:
        if pixel_weights is not None or not usable(logits):
            return super().sum(logits, target, pixel_weights)
        from ubend.accel.loss import MAX_CLASSES, SumLosses

        classes = logits.shape[1]
        if classes > MAX_CLASSES:
            return super().sum(logits, target)
        weights = logits.new_ones(classes) if self.class_weights is None else self.class_weights
        return LossSums(*SumLosses.apply(logits, target, weights.float(), self.kind))


def accelerate_augmentation(plain: Augment) -> Augment:
    """`ubend.dataset.augment.augment` as two kernels on the device of the images."""

    def augment(
        images: Tensor, masks: Tensor, items: Tensor, packed: Tensor, constants: AugmentConstants
    ) -> tuple[Tensor, Tensor]:
        if not usable(images):
            return plain(images, masks, items, packed, constants)
        from ubend.accel.augment import blur_and_noise, warp

        basis_y, basis_x = (elastic_basis(side, images.device, constants.elastic_points) for side in constants.crop_hw)
        noise, value_range, ignore = constants.noise, constants.value_range, constants.ignore_outside
        basis, colors = (basis_y, basis_x), noise is not None
        warped, target = warp(images, masks, items, packed, basis, value_range, colors=colors, ignore_outside=ignore)
        return warped if noise is None else blur_and_noise(warped, packed, noise, value_range), target

    return augment
