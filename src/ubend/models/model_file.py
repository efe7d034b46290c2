"""model.safetensors: weights, and everything needed to use them, in one file.

The header's `ubend` entry is JSON: the network's shape, the class table, how pictures are sized, and how
the model came about. Normalisation is among the tensors. No pickle: nothing in the file is executed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ubend.core.errors import ModelFileError
from ubend.core.files import model_path, write_file
from ubend.core.i18n import _
from ubend.core.settings import Orientation, Precision
from ubend.io.images import Sizing
from ubend.labels.class_table import LabelMap
from ubend.models.networks import Network, make_network, shape_of

SAME_SCALE = 1.1  # sizes that differ by less count as one: training itself zooms by more
_HEADER = "ubend"  # the entry of the file's metadata
FORMAT = 2  # grows when an older ubend could not use the file rightly


@dataclass
class Bundle:
    """A network and what belongs to it.

    Attributes:
        model: in evaluation mode when loaded.
        labels: the class table.
        sizing: size in px, aspect, channels of the pictures it was trained on.
        about: how it came about, for people.
        dtype: of the pictures it was trained on: uint8, uint16 or float32.
        precision: in which it was trained and validated; predictions are made in the same.
        window_px: side of the windows of them that it was trained on; None: whole pictures.
        scale: least and greatest size of them at model size over their own, of the training part; None: not known.
        orientation: what it was shown of the turns and flips of them, as of `augment.orientation`; None: not known.
        flips: whether mirror images were among them.
    """

    model: Network
    labels: LabelMap
    sizing: Sizing
    about: dict[str, Any] = field(default_factory=dict)
    dtype: str = "uint8"
    precision: Precision = "float32"
    window_px: int | None = None
    scale: tuple[float, float] | None = None
    orientation: Orientation | None = None
    flips: bool = True

    @property
    def keeps_scale(self) -> bool:
        """Whether it has seen windows of pictures at their own scale, so that larger pictures are cut into tiles."""
        low, high = self.scale or (0.0, 0.0)
        return self.window_px is not None and low >= 1 / SAME_SCALE and high <= SAME_SCALE


def save_bundle(path: Path, bundle: Bundle, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the bundle, whole or not at all; `weights` stand in for the network's own when given."""
    net = bundle.model
    header = {
        "format": FORMAT,
        "network": shape_of(net),
        "labels": bundle.labels.to_json(),
        "sizing": asdict(bundle.sizing),
        "about": bundle.about,
        "dtype": bundle.dtype,
        "precision": bundle.precision,
        "window_px": bundle.window_px,
        "scale": bundle.scale,
        "orientation": bundle.orientation,
        "flips": bundle.flips,
    }
    write_tensors(path, weights or net.state_dict(), {_HEADER: json.dumps(header, ensure_ascii=False)})


def load_bundle(path: Path) -> Bundle:
    """Read a model file, or the one of a run folder.

    Raises:
        ModelFileError: missing, truncated, not ours, or newer than this version.
        SettingError: its encoder is one of timm's, which is not installed, or too old to know it.
    """
    path = model_path(path)
    if not path.exists():
        raise ModelFileError(_("{path}: no such model file").format(path=path), path=path)
    try:
        with safe_open(path, "pt") as file:
            entry = (file.metadata() or {}).get(_HEADER)
            if entry is None:
                raise ModelFileError(
                    _("{path}: weights, but not made by ubend; train a model with `ubend fit`").format(path=path),
                    path=path,
                    key="metadata",
                )
            header = json.loads(entry)
            if header["format"] != FORMAT:
                line = _("{path}: made by an older ubend (format {format}); train it anew")
                if header["format"] > FORMAT:
                    line = _("{path}: made by a newer ubend (format {format}); upgrade with `pip install -U ubend`")
                raise ModelFileError(line.format(path=path, format=header["format"]), path=path, key="format")
            model = make_network(header["network"])
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        labels, sizing = LabelMap.from_json(header["labels"]), Sizing(**header["sizing"])
        rest = {name: header[name] for name in ("about", "dtype", "precision")}
        # older files lack these
        rest |= {name: header[name] for name in ("window_px", "scale", "orientation", "flips") if name in header}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelFileError(
            _("{path}: not a whole model file ({reason}); copy it again or train anew").format(
                path=path, reason=reason
            ),
            path=path,
        ) from error
    return Bundle(model.eval(), labels, sizing, **rest | {"scale": rest.get("scale") and tuple(rest["scale"])})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; tensors are stored contiguous."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(stored, temporary, header)
        except SafetensorError as error:  # the library reports a full disk as its own kind
            raise OSError(str(error)) from error

    write_file(path, write)
