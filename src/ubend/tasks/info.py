"""What a model file says of itself."""

from pathlib import Path

from ubend.core.i18n import _
from ubend.labels.label_values import code_words
from ubend.models.encoders import EncodedUNet
from ubend.models.model_file import load_bundle
from ubend.models.paper import PaperUNet


def describe_model(path: Path | str) -> list[str]:
    """Lines for people: network, classes with colours and mask values, size, normalisation, origin."""
    bundle = load_bundle(Path(path))
    net, labels, sizing = bundle.model, bundle.labels, bundle.sizing
    parameters = sum(p.numel() for p in net.parameters())
    kept = ", ".join(str(level) for level, there in enumerate(net.skips, 1) if there) or _("none")
    if sizing.size_px is None:
        aspect = _("at their own size")
    elif sizing.keep_aspect:
        aspect = _("aspect kept, the area of a {size} px square")
    else:
        aspect = _("squashed to {size} x {size} px")
    words = _("U-Net: width {width}, depth {depth}, {parameters:,} parameters, skip connections at levels {skips}")
    if isinstance(net, PaperUNet):
        words = _("original U-Net, without padding: width {width}, depth {depth}, {parameters:,} parameters")
    lines = [
        words.format(width=net.width, depth=net.depth, parameters=parameters, skips=kept),
        *([_("encoder: {name}, of timm").format(name=net.name)] if isinstance(net, EncodedUNet) else []),
        _("pictures: {channels} channels, {aspect}").format(
            channels=sizing.channels, aspect=aspect.format(size=sizing.size_px)
        ),
        _("normalisation: mean {mean}, standard deviation {std} (inside the model)").format(
            mean=[round(v, 2) for v in net.mean.flatten().tolist()],
            std=[round(v, 2) for v in net.std.flatten().tolist()],
        ),
        _("classes:"),
    ]
    for index, (name, codes, color) in enumerate(zip(labels.names, labels.codes, labels.colors, strict=True)):
        value = code_words(codes, labels.kind)
        lines.append(f"  {index} {name}  " + _("mask value {value}, colour {color}").format(value=value, color=color))
    titles = {"data": _("data"), "recipe": _("recipe"), "training_pictures": _("training pictures")}
    return lines + [f"{titles.get(key, key)}: {value}" for key, value in bundle.about.items()]
