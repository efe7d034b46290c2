"""The networks whose steps are timed beside ubend's, built as their users build them, on 3 channels.

A peer that is not installed is left out, with a line that says how to get it. None is needed to use ubend.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from tutorial import TutorialUNet


@dataclass(frozen=True)
class Peer:
    """Another's network.

    Attributes:
        name: in the table.
        build: makes it, with weights drawn again.
        package: on the package index, whose version is reported; None: from a checkout, or written here.
        channels_last: also in float32, since its own training sets it.
    """

    name: str
    build: Callable[[], nn.Module]
    package: str | None = None
    channels_last: bool = False


def find_peers(classes: int, width: int, milesial: Path | None) -> list[Peer]:
    """Those that are here; says which are not.

    Args:
        classes: of the logits.
        width: channels of the first level, where a network lets it be chosen.
        milesial: a checkout of github.com/milesial/Pytorch-UNet. (Its licence is the GPL: it is imported from
            there and nowhere else.)
    """
    peers = [Peer("tutorial", lambda: TutorialUNet(3, classes, width))]
    if find_spec("segmentation_models_pytorch"):
        peers.append(Peer("smp Unet, resnet34", lambda: _build_smp(classes), "segmentation-models-pytorch"))
    else:
        _say_absent("segmentation_models.pytorch", "pip install segmentation-models-pytorch")
    if find_spec("monai"):
        peers.append(Peer("MONAI BasicUNet", lambda: _build_monai(classes, width), "monai"))
    else:
        _say_absent("MONAI", "pip install monai")
    if milesial:
        peers.append(Peer("milesial U-Net", lambda: _build_milesial(classes, milesial), channels_last=True))
    else:
        _say_absent(
            "milesial's U-Net", "git clone https://github.com/milesial/Pytorch-UNet, then --milesial Pytorch-UNet"
        )
    return peers


def _say_absent(name: str, suggestion: str) -> None:
    print(f"left out: {name} ({suggestion})", flush=True)


def _build_smp(classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    network: nn.Module = smp.Unet("resnet34", encoder_weights=None, in_channels=3, classes=classes)
    return network


def _build_monai(classes: int, width: int) -> nn.Module:
    from monai.networks.nets import BasicUNet

    features = (width, 2 * width, 4 * width, 8 * width, 16 * width, width)
    network: nn.Module = BasicUNet(spatial_dims=2, in_channels=3, out_channels=classes, features=features)
    return network


def _build_milesial(classes: int, checkout: Path) -> nn.Module:
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    network: nn.Module = importlib.import_module("unet").UNet(n_channels=3, n_classes=classes)
    return network
