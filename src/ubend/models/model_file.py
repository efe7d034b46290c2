"""The model file, model.safetensors: weights and everything needed to use them.

The `ubend` entry of its header is JSON: the network's shape, the class table, the size of images, and the model's
origin. `Header` (with `StoredFields`) defines the fields with their types and ranges; the entry is validated on
writing, and on reading before a network is built. Normalisation is stored among the tensors. There is no pickle, so
nothing in the file is executed.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ubend.core.errors import Contradiction, DataError, ModelFileError, reason, validation_key, validation_reason
from ubend.core.files import EXPORTED_SUFFIX, MODEL_FILE, model_path, named_in_utf8, regular_file, write_file
from ubend.core.i18n import _
from ubend.core.settings import CUSTOM, AnyNetwork, Orientation, Precision, Upsampling
from ubend.io.images import Sizing
from ubend.labels.class_table import IGNORED, MAX_CLASSES, NAME_PATTERN, LabelMap
from ubend.layouts.pairs import SplitName
from ubend.models.ensemble_net import MAX_MEMBERS, ViewKind
from ubend.models.networks import Network, make_network
from ubend.portable.predictors import is_same_scale
from ubend.portable.printable import shell_word
from ubend.portable.raster import MAX_CHANNELS

_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # undecodable bytes of file names
_HEADER = "ubend"  # key in the file's metadata
FORMAT = 3  # to be increased when older versions of ubend could not use the file correctly
MAX_HASHES = 100_000  # of each split: 1.1 million characters
_MAX_CHARACTERS = 2**22  # of the entry; 65,536 label values need 2**19, the hashes of three splits 3.2 million
_STORED_DTYPES = {  # as safetensors calls them; all but float32 and int64 are of users' own networks
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_Ratio = Annotated[float, Field(gt=0)]


def pack_hashes(hashes: NDArray[np.uint64]) -> str:
    """Image hashes as text: base64 of 8 bytes each, sorted; the smallest ones if more than MAX_HASHES."""
    return base64.b64encode(np.sort(hashes)[:MAX_HASHES].astype("<u8").tobytes()).decode()


def unpack_hashes(text: str) -> list[int]:
    """The inverse of `pack_hashes`.

    Raises:
        ValueError: invalid text, or too many hashes.
    """
    hashes: list[int] = np.frombuffer(base64.b64decode(text, validate=True), "<u8").tolist()
    if len(hashes) > MAX_HASHES:
        raise ValueError(f"{len(hashes)} hashes, at most {MAX_HASHES}")
    return hashes


def _check_hashes(text: str) -> str:
    unpack_hashes(text)
    return text


@dataclass(kw_only=True)
class StoredFields:
    """The fields of a model that are stored unchanged in its file; to add one, add a line with range and default.

    Attributes:
        about: origin of the model, for users.
        dtype: of the training images: uint8, uint16 or float32.
        precision: used in training and validation; predictions use the same.
        window_px: side of the training crops, px; None: trained on whole images.
        scale: smallest and largest ratio of model size to native size of the training images; None: unknown.
        orientation: rotations and flips in training, see `augment.orientation`; None: unknown.
        flips: whether training included mirror images.
        image_hashes: `hash_pixels` of the images of each split, read with the model's channels, see `pack_hashes`;
            None: unknown.
    """

    about: dict[str, Any] = field(default_factory=dict)
    dtype: Annotated[str, Field(pattern="^(uint8|uint16|float32)$")] = "uint8"
    precision: Precision = "float32"
    window_px: Annotated[int, Field(ge=16, le=8192)] | None = None
    scale: tuple[_Ratio, _Ratio] | None = None
    orientation: Orientation | None = None
    flips: bool = True
    image_hashes: dict[SplitName, Annotated[str, AfterValidator(_check_hashes)]] | None = None


@dataclass
class Bundle(StoredFields):
    """The content of a model file: a network with its class table and settings.

    Attributes:
        model: the network; in evaluation mode after loading.
        labels: the class table.
        sizing: size in px, aspect ratio and channels of the training images.
    """

    model: Network
    labels: LabelMap
    sizing: Sizing

    @property
    def keeps_scale(self) -> bool:
        """Whether it was trained on crops at native scale, so that images are predicted in tiles."""
        return self.window_px is not None and is_same_scale(self.scale)

    @property
    def channel_statistics(self) -> NDArray[np.float64]:
        """(2, channels) mean and standard deviation of the training images."""
        net = self.model
        return np.stack([values.detach().flatten().cpu().numpy().astype(np.float64) for values in (net.mean, net.std)])


class NetworkFields(BaseModel):
    """The arguments of `make_network` in the header; each kind of network uses some of them."""

    model_config = ConfigDict(frozen=True, **_CONFIG)

    kind: AnyNetwork = "unet"
    channels: int = Field(ge=1, le=MAX_CHANNELS)
    classes: int = Field(ge=1, le=MAX_CLASSES)
    width: int = Field(ge=1, le=1024)
    depth: int = Field(ge=1, le=8)
    skips: tuple[bool, ...] | None = None
    upsampling: Upsampling = Field("transposed", alias="growth")
    dropout: float = Field(0.5, ge=0, lt=1)
    encoder: str = Field("", pattern=f"^{NAME_PATTERN}$")
    members: int = Field(1, ge=1, le=MAX_MEMBERS)
    views: ViewKind = "plain"


@checked_dataclass(config=_CONFIG, kw_only=True)
class Header(StoredFields):
    """The `ubend` entry of a model file.

    Attributes:
        digest: BLAKE2b of the tensors and all fields except `about`, see `find_digest`; None: older format.
    """

    format: Literal[3]
    network: NetworkFields
    labels: LabelMap
    sizing: Sizing
    digest: str | None = None

    @model_validator(mode="after")
    def _check_conflicts(self) -> "Header":
        network, labels = self.network, self.labels
        conflicts = {
            "labels.names": len(labels.names) != network.classes,
            "labels.codes": len(labels.codes) != network.classes,
            "labels.colors": len(labels.colors) != network.classes,
            "labels.others": labels.others not in (None, IGNORED, *range(network.classes)),
            "network.kind": network.kind != "unet"
            and bool(network.model_fields_set & {"skips", "upsampling", "encoder"}),
            "network.dropout": network.kind != "paper" and "dropout" in network.model_fields_set,
            "network.views": "views" in network.model_fields_set and "members" not in network.model_fields_set,
            "network.skips": network.skips is not None and len(network.skips) != network.depth,
            "network.growth": bool(network.encoder) and network.upsampling == "unpool",
            "sizing.channels": self.sizing.channels != network.channels,
            "scale": self.scale is not None and self.scale[0] > self.scale[1],
        }
        for key, is_there in conflicts.items():
            if is_there:
                raise Contradiction(key, _("does not fit the other fields"))
        return self


def save_bundle(path: Path, bundle: Bundle, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a model file, completely or not at all.

    Args:
        weights: replace those of the network; None: its own.
    Raises:
        ModelFileError: a field has a value that `load_bundle` would refuse.
        OutputError: the file cannot be written.
    """
    state = weights or bundle.model.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    text = json.dumps(make_entry(bundle, tensors), ensure_ascii=False)
    read_header(path, text)
    write_tensors(path, tensors, {_HEADER: text})


def make_entry(bundle: Bundle, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `ubend` entry of a bundle's file, see `Header`; the tensors are contiguous, on the CPU."""
    entry = {
        "format": FORMAT,
        "network": {"growth" if key == "upsampling" else key: value for key, value in bundle.model.config().items()},
        "labels": asdict(bundle.labels),
        "sizing": asdict(bundle.sizing),
        **{stored.name: getattr(bundle, stored.name) for stored in fields(StoredFields)},
    }
    text = json.dumps(entry, ensure_ascii=False)
    entry = json.loads(_NOT_UTF8.sub(lambda byte: rf"\\x{ord(byte[0]) & 255:02x}", text))
    return {**entry, "digest": find_digest(entry, tensors)}


def load_bundle(path: Path, network: nn.Module | None = None) -> Bundle:
    """Read a model file, given by its path or its run folder.

    The header is validated before a network is built, and the tensors' names, shapes and dtypes before memory is
    allocated.

    Args:
        network: for a file of kind custom: a module with the trained architecture and any weights; it is copied.
    Raises:
        ModelFileError: missing, truncated, modified, not written by ubend, newer than this version, or with values
            that do not fit; `key` is the field of the header (`labels.colors`) or the tensor's name.
        SettingError: it needs an encoder from timm, which is not installed, or too old.
    """
    path = model_path(path)
    if path.suffix.lower() == EXPORTED_SUFFIX:
        line = _("{path}: an exported model, which is only used; name the run that it was made from")
        raise ModelFileError(line.format(path=path), path=path, key="model")
    try:
        with named_in_utf8(regular_file(path)) as opened_path, safe_open(opened_path, "pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            if text is None:
                raise ModelFileError(
                    _("{path}: weights not written by ubend; train a model with `ubend fit`").format(path=path),
                    path=path,
                    key="metadata",
                )
            header, entry = read_header(path, text)
            shape, kwargs = header.network.model_dump(exclude_unset=True), _own_module(path, header, network)
            with torch.device("meta"):
                wanted = make_network(shape, **kwargs).state_dict()
            _check_tensors(path, file, wanted, _misfit if kwargs else _refusal)
            tensors = {name: file.get_tensor(name) for name in wanted}
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise _refusal(path, name, _("has values that are not finite"))
            if header.digest not in (None, find_digest(entry, tensors)):
                raise _refusal(path, "digest", _("the file was modified after it was written"))
            model = make_network(shape, **kwargs)
            model.load_state_dict(tensors)
    except OSError as error:  # not caused by the content of the file
        cause = reason(error)
        if isinstance(error, FileNotFoundError):
            cause = _("no such model file; give a run folder or a model file")
            if path.name == MODEL_FILE and path.parent.is_dir():
                cause = _("no such file, and the folder is not one of a training; the model comes before the images")
                if (path.parent / "run.json").exists():
                    cause = _("not saved yet; `ubend fit --resume {run}` continues the training").format(
                        run=shell_word(path.parent)
                    )
        raise ModelFileError(_("{path}: {reason}").format(path=path, reason=cause), path=path) from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if path.suffix.lower() != ".safetensors":
            line = _("{path}: not a model file; give a run folder, or its model.safetensors, before the images")
            raise ModelFileError(line.format(path=path), path=path, key="header") from error
        raise _refusal(path, None, next(iter(str(error).splitlines()), type(error).__name__)) from error
    stored = {field.name: getattr(header, field.name) for field in fields(StoredFields)}
    return Bundle(model.eval(), header.labels, header.sizing, **stored)


def read_header(path: Path, text: str) -> tuple[Header, dict[str, Any]]:
    """(validated header, its JSON object) from the `ubend` entry of a file; an older format is upgraded.

    Raises:
        ModelFileError: see `load_bundle`; tensors are not checked.
    """
    try:
        if len(text) > _MAX_CHARACTERS:
            raise ValueError(f"{len(text)} characters of header")
        entry = json.loads(text)
        version = entry["format"]
        if version == FORMAT - 1:
            entry = upgrade_entry(entry)
        elif isinstance(version, int) and version != FORMAT:
            line = _("{path}: written by an older version of ubend (format {format}); train the model again")
            if version > FORMAT:
                line = _("{path}: written by a newer version of ubend (format {format}); run `pip install -U ubend`")
            raise ModelFileError(line.format(path=path, format=version), path=path, key="format")
        return TypeAdapter(Header).validate_json(json.dumps(entry)), entry
    except DataError as error:
        raise _refusal(path, "labels.names", str(error)) from error
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise _refusal(path, validation_key(problem), validation_reason(problem)) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _refusal(path, None, str(error)) from error


def upgrade_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Convert an entry of format 2 to format 3; format 2 had no digest, and unknown fields were ignored."""
    known = {stored.name for stored in fields(Header)} - {"digest"}
    return {name: value for name, value in entry.items() if name in known} | {"format": FORMAT}


def find_digest(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """BLAKE2b of a header's fields (except `about` and the digest itself) and the tensors in the order of their names.

    Args:
        entry: see `Header`, as JSON object.
        tensors: contiguous, on the CPU.
    Returns:
        32 hexadecimal digits.
    """
    known = {name: value for name, value in entry.items() if name not in ("about", "digest")}
    digest = hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _own_module(path: Path, header: Header, network: nn.Module | None) -> dict[str, nn.Module]:
    """The additional arguments of `make_network`: the module of a network of kind custom.

    Raises:
        ModelFileError: a module is missing, or not needed.
    """
    if header.network.kind == CUSTOM and network is None:
        line = _("{path}: has the weights of your own network, but not its code; use it in Python: {call}")
        call = "ubend.load(path, network=...)"
        raise ModelFileError(line.format(path=path, call=call), path=path, key="network")
    if header.network.kind != CUSTOM and network is not None:
        line = _("{path}: has one of ubend's networks; leave out network=...")
        raise ModelFileError(line.format(path=path), path=path, key="network")
    return {} if network is None else {"module": network}


def _check_tensors(
    path: Path, file: Any, wanted: Mapping[str, Tensor], refusal: Callable[[Path, str, str], ModelFileError]
) -> None:
    """Refuse a file whose tensors differ from those of the network in name, shape or dtype, without reading them."""
    names_in_file = set(file.keys())
    for name in sorted(names_in_file ^ set(wanted)):
        raise refusal(path, name, _("is missing") if name in wanted else _("is not in the network"))
    for name, tensor in wanted.items():
        stored = file.get_slice(name)
        kind = _STORED_DTYPES.get(tensor.dtype, str(tensor.dtype))
        here, there = f"{stored.get_dtype()} {list(stored.get_shape())}", f"{kind} {list(tensor.shape)}"
        if here != there:
            raise refusal(path, name, _("is {found}, not {wanted}").format(found=here, wanted=there))


def _misfit(path: Path, key: str, cause: str) -> ModelFileError:
    """The error for a module that differs from the trained one."""
    line = _("{path}: network=... differs from the trained network: in the file, {key} {reason}")
    return ModelFileError(line.format(path=path, key=key.removeprefix("module."), reason=cause), path=path, key=key)


def _refusal(path: Path, key: str | None, cause: str) -> ModelFileError:
    """The error for a damaged file; text from the file is cut, and its control characters are removed."""
    key, cause = (re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)[:200] for text in (key or "", cause))
    line = _("{path}: damaged model file ({reason}); copy it again, or train again")
    return ModelFileError(
        line.format(path=path, reason=f"{key}: {cause}" if key else cause), path=path, key=key or "header"
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file, completely or not at all."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(stored, temporary, header)
        except SafetensorError as error:  # the library reports a full disk as its own kind of error
            raise OSError(str(error)) from error

    write_file(path, write)
