"""The metadata of an exported model, checked field by field; docs/deploy.md describes them.

The entry `ubend` is JSON, see `Contract`; with it is the header of the model file that was exported, of which
`ImageModel` is what a prediction needs.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .class_table import MAX_CLASSES, NAME_PATTERN
from .errors import ModelFileError
from .i18n import _, later, ngettext, now
from .predictors import is_same_scale
from .raster import MAX_CHANNELS

ENTRY = "ubend"  # of the file's metadata
CONTRACT: Literal[1] = 1  # grows when an older reader could not use the file rightly
HEADER_FORMAT = 3  # of a model file's header
TARGET_NAMES = {"onnx": "ONNX", "openvino": "OpenVINO"}
PACKAGE = __name__.partition(".")[0].replace("_", "-")  # ubend, or ubend-runtime in its wheel
_Read = TypeVar("_Read")
_MISFIT = later("does not fit the other fields")


@dataclass(kw_only=True)
class Tiles:
    """How larger images are cut.

    Attributes:
        px: side of a tile at native scale; 0: images are resized and go through the network whole.
        overlap: of neighbouring tiles, as a fraction of the side.
        multiple: distances between tiles are multiples of it, px.
        margin: px of mirrored surroundings that the graph takes on each side, and that its outputs lack.
        edge_px: with a margin: sides of the outputs are a multiple of `multiple`, and this.
    """

    px: int
    overlap: float
    multiple: int
    margin: int
    edge_px: int


@dataclass(kw_only=True)
class Contract:
    """The metadata of an exported file; fields that are not known are left alone.

    Attributes:
        contract: version of this table.
        target: which engine the file is for: onnxruntime and other readers of ONNX, or OpenVINO.
        precision: in which the engine computes; of fp16, in which the weights are stored.
        mean, std: per channel, in the image's units; the graph normalises.
        tiles: how larger images are cut.
        model: the header of the model file: network, class table, sizing, dtype, and how it came about.
        licence: of what the model was made from, as far as ubend knows: what -> licence.
        scores: of the run: split, number of images, mean Dice of each class.
        proof: what `ubend.exporting.proof` measured.
        ubend: version that exported it.
    """

    contract: Literal[1]
    target: Literal["onnx", "openvino"]
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    mean: list[float]
    std: list[float]
    tiles: Tiles
    model: dict[str, Any]
    licence: dict[str, str]
    scores: dict[str, Any] | None
    proof: dict[str, Any] | None
    ubend: str


class ImageSizing(NamedTuple):
    """How images are resized for the network: see `model_size` in `images.py`; and how many channels it takes."""

    size_px: int | None
    keep_aspect: bool
    channels: int


@dataclass(frozen=True)
class ImageModel:
    """What a prediction needs of a model file's header.

    Attributes:
        names: class index -> name.
        colors: class index -> (red, green, blue), 0..255.
        sizing: see `ImageSizing`.
        dtype: of the images: uint8, uint16 or float32.
        pads: whether mirroring below and to the right leaves the logits as they are.
        mirrors: whether whole images are mirrored beyond their borders, so that it takes no tiles without a margin.
        flips: whether test-time augmentation averages views: it was trained with flips, and averages none itself.
        orientation: of the training, `free`: with all rotations; None: unknown.
        window_px: side of the training crops, px; None: trained on whole images.
        scale: smallest and largest ratio of model size to native size of the training images; None: unknown.
        channel_statistics: (2, channels) mean and standard deviation of the training images.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    sizing: ImageSizing
    dtype: str
    pads: bool
    mirrors: bool
    flips: bool
    orientation: str | None
    window_px: int | None
    scale: tuple[float, float] | None
    channel_statistics: NDArray[np.float64]

    @property
    def keeps_scale(self) -> bool:
        """Whether it was trained on crops at native scale, so that images are predicted in tiles."""
        return self.window_px is not None and is_same_scale(self.scale)


class _FieldError(ValueError):
    """A field that is missing, or has a value that cannot be."""

    def __init__(self, key: str, cause: str) -> None:
        super().__init__(cause)
        self.key = key


def read_contract(path: Path, text: str) -> Contract:
    """The metadata entry of an exported file, checked; `path` is for messages.

    Raises:
        ModelFileError: it is damaged, or of a newer contract.
    """
    return _explain(path, lambda: _read_contract(path, text))


def read_model(path: Path, contract: Contract) -> ImageModel:
    """What a prediction needs of the metadata.

    Raises:
        ModelFileError: it is damaged, or of another format.
    """
    return _explain(path, lambda: _read_model(_Fields(contract.model, "model."), contract))


def refusal(path: Path, key: str | None, cause: str) -> ModelFileError:
    """The error of a file that is not loaded, on one line whatever the file holds."""
    key, cause = ("".join(c if c.isprintable() else " " for c in text)[:200] for text in (key or "", cause))
    line = _("{path}: not a whole exported model ({reason}); copy it again or export it again")
    return ModelFileError(
        line.format(path=path, reason=f"{key}: {cause}" if key else cause), path=path, key=key or "graph"
    )


def describe_contract(contract: Contract) -> list[str]:
    """What the metadata say of the file, for people."""
    line = _("exported model: {target}, {precision}, contract {contract}, written by ubend {version}")
    target = TARGET_NAMES[contract.target]
    return [
        line.format(target=target, precision=contract.precision, contract=contract.contract, version=contract.ubend),
        *describe_scores(contract.scores),
        *describe_proof(contract.proof or {}),
    ]


def describe_scores(scores: dict[str, Any] | None) -> list[str]:
    """A line with the scores of the exported run; none if they are unknown."""
    if not scores:
        return []
    try:
        dice = ", ".join(f"{name} {value:.3f}" for name, value in scores["dice"].items() if value is not None)
        line = _("Dice on the images of {which} ({count}): {dice}")
        return [line.format(count=int(scores["images"]), which=scores["subset"], dice=dice)]
    except (KeyError, TypeError, ValueError, AttributeError):  # malformed
        return []


def describe_proof(proof: dict[str, Any]) -> list[str]:
    """What an export's proof measured, for people."""
    try:
        count, compared = int(proof["images"]), str(proof["compared_on"])
        line = ngettext(
            "compared with torch on {count} image ({which}): probabilities differ by at most {largest:.2g}, the class "
            "on {share:.2g} of the pixels",
            "compared with torch on {count} images ({which}): probabilities differ by at most {largest:.2g}, the class "
            "on {share:.2g} of the pixels",
            count,
        )
        lines = [
            line.format(
                count=count,
                which=compared,
                largest=float(proof["largest_probability_difference"]),
                share=float(proof["share_of_pixels"]),
            )
        ]
        if (dice := proof["dice"]) is not None:
            low, high = dice["interval"] or (None, None)
            line = _(
                "mean Dice over all classes, with the background: {before:.4f} before, {after:.4f} after, difference "
                "{difference:+z.5f}{interval}"
            )
            shown = "" if low is None else _(" (95% interval {low:+z.5f} to {high:+z.5f})").format(low=low, high=high)
            given = {key: float(dice[key]) for key in ("before", "after", "difference")}
            lines.append(line.format(**given, interval=shown))
        if proof.get("emulated"):
            lines.append(_("this processor has no bfloat16: the file was compared with its values rounded to it"))
        if layers := proof.get("layers"):
            line = _("convolutions in 8 bits: {count} of {total}")
            lines.append(line.format(count=int(layers["int8"]), total=sum(map(int, layers.values()))))
        seconds = proof["seconds_per_megapixel"]
        if len(seconds) < 2:
            return lines
        line = _(
            "seconds per megapixel of the network's input, threads {threads}: torch {torch:.2f}, {name} {time:.2f}"
        )
        (target,) = (key for key in seconds if key in TARGET_NAMES)
        times = {"torch": float(seconds["torch"]), "time": float(seconds[target]), "name": TARGET_NAMES[target]}
        return [*lines, line.format(threads=int(proof["threads"]), **times)]
    except (KeyError, TypeError, ValueError):  # of a file that says something else
        return []


class _Fields:
    """A JSON object whose fields are taken out one by one, each of a kind and within its range."""

    def __init__(self, entry: Any, prefix: str = "") -> None:
        if not isinstance(entry, dict):
            raise _FieldError(prefix.rstrip("."), _("must be a table of names and values"))
        self._entry, self._prefix = entry, prefix

    def refuse(self, key: str, cause: str) -> _FieldError:
        return _FieldError(self._prefix + key, cause)

    def take(self, key: str) -> Any:
        if key not in self._entry:
            raise self.refuse(key, _("is missing"))
        return self._entry[key]

    def inner(self, key: str) -> "_Fields":
        return _Fields(self.take(key), f"{self._prefix}{key}.")

    def optional_table(self, key: str) -> dict[str, Any] | None:
        value = self.take(key)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(key, _("must be a table of names and values"))
        return value

    def table(self, key: str) -> dict[str, Any]:
        value = self.optional_table(key)
        if value is None:
            raise self.refuse(key, _("must be a table of names and values"))
        return value

    def items(self, key: str) -> list[Any]:
        value = self.take(key)
        if not isinstance(value, list):
            raise self.refuse(key, _("must be a list"))
        return value

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str):
            raise self.refuse(key, _("must be text"))
        return value

    def choice(self, key: str, choices: tuple[str, ...], *, missing: str | None = None) -> Any:
        if missing and key not in self._entry:
            return missing
        if (value := self.text(key)) not in choices:
            raise self.refuse(key, _("must be one of: {expected}").format(expected=", ".join(choices)))
        return value

    def whole(self, key: str, low: int, high: int) -> int:
        value = self.take(key)
        if type(value) is not int:
            raise self.refuse(key, _("must be a whole number"))
        if value < low:
            raise self.refuse(key, _("must be {ge} or more").format(ge=low))
        if value > high:
            raise self.refuse(key, _("must be {le} or less").format(le=high))
        return value

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if not isinstance(value, bool):
            raise self.refuse(key, _("must be true or false"))
        return value

    def numbers(self, key: str) -> list[float]:
        values = self.items(key)
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise self.refuse(key, _("must be a finite number"))
        return [float(value) for value in values]


def _read_contract(path: Path, text: str) -> Contract:
    fields = _Fields(json.loads(text))
    version = fields.whole("contract", 1, 2**31)
    if version > CONTRACT:
        line = _("{path}: exported by a newer ubend (contract {found}); upgrade with `pip install -U {package}`")
        raise ModelFileError(line.format(path=path, found=version, package=PACKAGE), path=path, key="contract")
    licence = fields.table("licence")
    if not all(isinstance(value, str) for value in licence.values()):
        raise fields.refuse("licence", _("must be text"))
    contract = Contract(
        contract=CONTRACT,
        target=fields.choice("target", ("onnx", "openvino"), missing="onnx"),
        precision=fields.choice("precision", ("fp32", "fp16", "bf16", "int8")),
        mean=fields.numbers("mean"),
        std=fields.numbers("std"),
        tiles=_read_tiles(fields.inner("tiles")),
        model=fields.table("model"),
        licence=licence,
        scores=fields.optional_table("scores"),
        proof=fields.optional_table("proof"),
        ubend=fields.text("ubend"),
    )
    channels = fields.inner("model").inner("sizing").whole("channels", 1, MAX_CHANNELS)
    if not len(contract.mean) == len(contract.std) == channels:
        raise fields.refuse("mean", now(_MISFIT))
    return contract


def _read_tiles(fields: _Fields) -> Tiles:
    overlap = fields.take("overlap")
    if type(overlap) not in (int, float) or not 0 <= overlap < 1:
        raise fields.refuse("overlap", _("must be a number"))
    return Tiles(
        px=fields.whole("px", 0, 8192),
        overlap=float(overlap),
        multiple=fields.whole("multiple", 1, 4096),
        margin=fields.whole("margin", 0, 4096),
        edge_px=fields.whole("edge_px", 0, 4096),
    )


def _read_model(fields: _Fields, contract: Contract) -> ImageModel:
    fields.whole("format", HEADER_FORMAT, HEADER_FORMAT)
    labels, sizing, network = (fields.inner(key) for key in ("labels", "sizing", "network"))
    names, colors = labels.items("names"), labels.items("colors")
    classes = network.whole("classes", 1, MAX_CLASSES)
    if not all(isinstance(name, str) and re.fullmatch(NAME_PATTERN, name) for name in names):
        raise labels.refuse("names", _("must be text"))
    if not len(set(names)) == len(names) == classes:
        raise labels.refuse("names", now(_MISFIT))
    if len(colors) != classes or not all(_is_color(color) for color in colors):
        raise labels.refuse("colors", now(_MISFIT))
    channels = sizing.whole("channels", 1, MAX_CHANNELS)
    if network.whole("channels", 1, MAX_CHANNELS) != channels:
        raise sizing.refuse("channels", now(_MISFIT))
    size_px = None if sizing.take("size_px") is None else sizing.whole("size_px", 8, 8192)
    kind, views = ((fields.table("network").get(key) or plain) for key, plain in (("kind", "unet"), ("views", "plain")))
    return ImageModel(
        tuple(names),
        tuple((red, green, blue) for red, green, blue in colors),
        ImageSizing(size_px, sizing.flag("keep_aspect"), channels),
        fields.choice("dtype", ("uint8", "uint16", "float32")),
        kind != "paper" and views == "plain",
        kind == "paper",
        fields.flag("flips") and views == "plain",
        None if fields.take("orientation") is None else fields.text("orientation"),
        None if fields.take("window_px") is None else fields.whole("window_px", 16, 8192),
        None if fields.take("scale") is None else _read_scale(fields),
        np.array([contract.mean, contract.std], np.float32).astype(np.float64),
    )


def _read_scale(fields: _Fields) -> tuple[float, float]:
    numbers = fields.numbers("scale")
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1]:
        raise fields.refuse("scale", now(_MISFIT))
    return numbers[0], numbers[1]


def _is_color(color: Any) -> bool:
    return isinstance(color, list) and len(color) == 3 and all(type(v) is int and 0 <= v <= 255 for v in color)


def _explain(path: Path, read: Callable[[], _Read]) -> _Read:
    """The result of reading; what is wrong with the file's content becomes a ModelFileError."""
    try:
        return read()
    except _FieldError as error:
        raise refusal(path, error.key, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise refusal(path, None, str(error)) from error
