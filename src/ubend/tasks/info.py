"""What a model file says of itself."""

from pathlib import Path

from ubend.core.i18n import _
from ubend.labels.label_values import code_words
from ubend.models.model_file import load_bundle


def describe_model(path: Path | str) -> list[str]:
    """Lines for people: network, classes with colours and mask values, size, normalisation, origin."""
    bundle = load_bundle(Path(path))
    net, labels, sizing = bundle.model, bundle.labels, bundle.sizing
    if sizing.size_px is None:
        aspect = _("at their own size")
    elif sizing.keep_aspect:
        aspect = _("aspect kept, the area of a {size} px square")
    else:
        aspect = _("squashed to {size} x {size} px")
    lines = [
        *net.describe(),
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
