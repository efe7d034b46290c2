"""The networks that a model file may hold: the tutorial's U-Net, the original one, one on an encoder of timm."""

from typing import Any

from ubend.models.encoders import EncodedUNet, first_convolution
from ubend.models.paper import PaperUNet
from ubend.models.unet import UNet

Network = UNet | PaperUNet | EncodedUNet


def shape_of(net: Network) -> dict[str, Any]:
    """The arguments that make a network of the same shape, fit for JSON."""
    shape: dict[str, Any] = {"channels": net.channels, "classes": net.classes, "width": net.width, "depth": net.depth}
    if isinstance(net, PaperUNet):
        return {"kind": "paper", **shape, "dropout": net.dropout.p}
    shape |= {"skips": list(net.skips), "growth": net.growth}
    return shape | {"encoder": net.name} if isinstance(net, EncodedUNet) else shape


def make_network(shape: dict[str, Any], **more: Any) -> Network:
    """A network with drawn weights, from `shape_of`, and further arguments such as `mean`.

    Raises:
        SettingError: as of `EncodedUNet`.
        ValueError: of a kind that is not known.
    """
    rest = dict(shape)
    kind = rest.pop("kind", "unet")  # files that do not say it have the one that there was
    match kind:
        case "paper":
            return PaperUNet(**rest, **more)
        case "unet":
            return EncodedUNet(**rest, **more) if "encoder" in rest else UNet(**rest, **more)
        case _:
            raise ValueError(f"a network of kind {kind}")


def first_weight(net: Network) -> str:
    """The name in `state_dict` of the weights that the picture meets first."""
    if not isinstance(net, EncodedUNet):
        return "stem.0.weight"
    weight = first_convolution(net.encoder, net.channels).weight
    return next(name for name, parameter in net.named_parameters() if parameter is weight)
