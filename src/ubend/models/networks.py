"""The list of networks. To add one: a module in this package, a line in `NETWORKS`, and a value of `model.kind`."""

from typing import Any

from ubend.core.settings import CUSTOM, NO_ENCODER, ModelSettings
from ubend.models.custom import CustomNetwork
from ubend.models.encoders import EncodedUNet
from ubend.models.ensemble_net import EnsembleNet
from ubend.models.paper import PaperUNet
from ubend.models.segmentation_net import SegmentationNet
from ubend.models.unet import UNet

Network = SegmentationNet
NETWORKS: dict[str, type[Network]] = {  # by `model.kind`; "encoder": kind unet with `model.encoder` set
    "unet": UNet,
    "paper": PaperUNet,
    "encoder": EncodedUNet,
}


def network_class(kind: str, encoder: str | None) -> type[Network]:
    """The network class for these settings.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind == CUSTOM:
        return CustomNetwork
    name = "encoder" if kind == "unet" and encoder not in (None, NO_ENCODER) else kind
    if name not in NETWORKS:
        raise ValueError(f"a network of kind {kind}")
    return NETWORKS[name]


def shape_from_settings(settings: ModelSettings, channels: int, classes: int, width: int) -> dict[str, Any]:
    """The arguments of `make_network` for these settings."""
    options = network_class(settings.kind, settings.encoder).options
    shape: dict[str, Any] = {"kind": settings.kind, "channels": channels, "classes": classes, "width": width}
    return shape | {name: getattr(settings, name) for name in options}


def make_network(shape: dict[str, Any], **more: Any) -> Network:
    """Make a randomly initialised network.

    Args:
        shape: from `SegmentationNet.config`, or `shape_from_settings`.
        more: further arguments of the network class, such as `mean`; kind custom needs `module`.
    Raises:
        SettingError: see `EncodedUNet`.
        ValueError: the kind is unknown.
    """
    rest = dict(shape)
    if "members" in rest:
        count, views = rest.pop("members"), rest.pop("views", "plain")
        return EnsembleNet([make_network(rest, **more) for _member in range(count)], views)
    kind = rest.pop("kind", "unet")  # old files do not state it
    return network_class(kind, rest.get("encoder"))(**rest, **more)
