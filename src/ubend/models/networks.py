"""The networks that a model file may hold. A new one is a file beside this, a line here, and its `model.kind`."""

from typing import Any

from ubend.core.settings import CUSTOM, NO_ENCODER, ModelSettings
from ubend.models.custom import CustomNetwork
from ubend.models.encoders import EncodedUNet
from ubend.models.ensemble_net import EnsembleNet
from ubend.models.paper import PaperUNet
from ubend.models.segmentation_net import SegmentationNet
from ubend.models.unet import UNet

Network = SegmentationNet
NETWORKS: dict[str, type[Network]] = {  # by `model.kind`; "encoder": of kind unet with `model.encoder`
    "unet": UNet,
    "paper": PaperUNet,
    "encoder": EncodedUNet,
}


def network_class(kind: str, encoder: str | None) -> type[Network]:
    """The class of networks of these settings; ValueError: the kind is not known."""
    if kind == CUSTOM:
        return CustomNetwork
    name = "encoder" if kind == "unet" and encoder not in (None, NO_ENCODER) else kind
    if name not in NETWORKS:
        raise ValueError(f"a network of kind {kind}")
    return NETWORKS[name]


def shape_from_settings(settings: ModelSettings, channels: int, classes: int, width: int) -> dict[str, Any]:
    """The arguments of `make_network` that these settings ask for."""
    options = network_class(settings.kind, settings.encoder).options
    shape: dict[str, Any] = {"kind": settings.kind, "channels": channels, "classes": classes, "width": width}
    return shape | {name: getattr(settings, name) for name in options}


def make_network(shape: dict[str, Any], **more: Any) -> Network:
    """A randomly initialised network, from its `shape`, and further arguments such as `mean`.

    One of kind custom also needs `module`.

    Raises:
        SettingError: as in `EncodedUNet`.
        ValueError: of a kind that is not known.
    """
    rest = dict(shape)
    if "members" in rest:
        count, views = rest.pop("members"), rest.pop("views", "plain")
        return EnsembleNet([make_network(rest, **more) for _member in range(count)], views)
    kind = rest.pop("kind", "unet")  # files that do not say it have the one that there was
    return network_class(kind, rest.get("encoder"))(**rest, **more)
