"""An exported model, `model.onnx`, as a network: onnxruntime computes it, all else is as for any other.

The metadata entry `ubend` is JSON, see `Contract` and docs/deploy.md; with it are the header of the model file that
was exported, how the graph is to be used, and what the proof measured.
"""

import json
import os
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from ubend.core.errors import (
    MissingPackageError,
    ModelFileError,
    SettingError,
    reason,
    validation_key,
    validation_reason,
)
from ubend.core.files import EXPORTED_SUFFIX, model_path, regular_file
from ubend.core.i18n import _, ngettext
from ubend.models.model_file import Bundle, Header, StoredFields, load_bundle, read_header
from ubend.models.onnx_scan import MAX_BYTES, OnnxRefusedError, scan
from ubend.models.paper import mirror_to_fit
from ubend.models.segmentation_net import SegmentationNet, check_channels

ENTRY = "ubend"  # of the file's metadata
CONTRACT: Literal[1] = 1  # grows when an older reader could not use the file rightly
_MEMORY_SHARE = 0.8  # of the machine's memory, for the values inside a graph
INPUT, OUTPUTS = "image", ("logits", "probabilities", "class_index")
_CONFIG = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


@checked_dataclass(config=_CONFIG, kw_only=True)
class Tiles:
    """How larger images are cut.

    Attributes:
        px: side of a tile at native scale; 0: images are resized and go through the network whole.
        overlap: of neighbouring tiles, as a fraction of the side.
        multiple: distances between tiles are multiples of it, px.
        margin: px of mirrored surroundings that the graph takes on each side, and that its outputs lack.
        edge_px: with a margin: sides of the outputs are a multiple of `multiple`, and this.
    """

    px: Annotated[int, Field(ge=0, le=8192)]
    overlap: Annotated[float, Field(ge=0, lt=1)]
    multiple: Annotated[int, Field(ge=1, le=4096)]
    margin: Annotated[int, Field(ge=0, le=4096)]
    edge_px: Annotated[int, Field(ge=0, le=4096)]


@checked_dataclass(config=_CONFIG, kw_only=True)
class Contract:
    """The metadata of an exported file; fields that are not known are left alone.

    Attributes:
        contract: version of this table.
        precision: of the stored weights.
        mean, std: per channel, in the image's units; the graph normalises.
        tiles: how larger images are cut.
        model: the header of the model file: network, class table, sizing, dtype, and how it came about.
        licence: of what the model was made from, as far as ubend knows: what -> licence.
        scores: of the run: split, number of images, mean Dice of each class.
        proof: what `ubend.exporting.proof` measured.
        ubend: version that exported it.
    """

    contract: Literal[1]
    precision: Literal["fp32", "fp16"]
    mean: list[float]
    std: list[float]
    tiles: Tiles
    model: dict[str, Any]
    licence: dict[str, str]
    scores: dict[str, Any] | None
    proof: dict[str, Any] | None
    ubend: str


class ExportedNetwork(SegmentationNet):
    """The graph of an exported file, on the CPU.

    Args:
        run: (N, C, H, W) values of the model's dtype -> (N, classes, h, w) float32 logits.
        contract: of the file.
        header: of the model file in it.
    """

    cpu_only = True

    def __init__(self, run: Callable[[NDArray[Any]], NDArray[np.float32]], contract: Contract, header: Header) -> None:
        shape, tiles = header.network, contract.tiles
        super().__init__(
            shape.channels, shape.classes, shape.width, shape.depth, None, shape.upsampling, contract.mean, contract.std
        )
        self._run, self._dtype, self._contract = run, header.dtype, contract
        self._multiple, self.margin, self.edge_px = tiles.multiple, tiles.margin, tiles.edge_px
        self.averages_views = shape.views != "plain"
        self._mirrors = shape.kind == "paper"

    def forward(self, image: Tensor) -> Tensor:
        if not self.margin:
            return self._compute(image)
        height, width = image.shape[-2:]
        return self._compute(mirror_to_fit(image, self.depth))[..., :height, :width]

    def forward_tiles(self, image: Tensor) -> Tensor:
        if self._mirrors and not self.margin:
            raise SettingError(
                _("--tiles: this exported model takes whole images; leave --tiles out, or use the run itself"),
                key="--tiles",
            )
        return self._compute(image)

    def _compute(self, image: Tensor) -> Tensor:
        check_channels(image, self.channels)
        values = image.detach().cpu().contiguous()
        if self._dtype != "float32":  # arrays may be float
            values = values.round().to(getattr(torch, self._dtype))
        return torch.from_numpy(self._run(values.numpy()))

    @property
    def input_multiple(self) -> int:
        return self._multiple

    def padded_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """See `SegmentationNet`; a repeated edge is another image where it is mirrored, or shown in several views."""
        return size_hw if self._mirrors or self.averages_views else super().padded_hw(size_hw)

    def describe(self) -> list[str]:
        line = _("exported model: ONNX, {precision}, contract {contract}, written by ubend {version}")
        made = self._contract
        return [
            line.format(precision=made.precision, contract=made.contract, version=made.ubend),
            *describe_proof(made.proof or {}),
        ]


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
            line = _("mean Dice: {before:.4f} before, {after:.4f} after, difference {difference:+.5f}{interval}")
            shown = "" if low is None else _(" (95% interval {low:+.5f} to {high:+.5f})").format(low=low, high=high)
            given = {key: float(dice[key]) for key in ("before", "after", "difference")}
            lines.append(line.format(**given, interval=shown))
        seconds = proof["seconds_per_megapixel"]
        line = _("seconds per megapixel of the network's input, threads {threads}: torch {torch:.2f}, ONNX {onnx:.2f}")
        times = {key: float(seconds[key]) for key in ("torch", "onnx")}
        return [*lines, line.format(threads=int(proof["threads"]), **times)]
    except (KeyError, TypeError, ValueError):  # of a file that says something else
        return []


def load_model(path: Path, network: nn.Module | None = None) -> Bundle:
    """A run folder, a model file, or an exported file; for arguments and errors see `load_bundle`.

    Raises:
        ModelFileError: also of an exported file that is cut off, not ours, of a newer contract, or that holds what
            ubend does not write.
        MissingPackageError: onnxruntime is not installed.
    """
    path = model_path(path)
    return load_exported(path) if path.suffix.lower() == EXPORTED_SUFFIX else load_bundle(path, network)


def load_exported(path: Path) -> Bundle:
    """Read an exported file; see `load_model`. Predictions are in float32."""
    try:
        size = os.path.getsize(regular_file(path))
        if size > MAX_BYTES:
            raise OnnxRefusedError(_("{count} bytes").format(count=size))
        data = path.read_bytes()
    except OSError as error:
        cause = _("no such model file") if isinstance(error, FileNotFoundError) else reason(error)
        raise ModelFileError(_("{path}: {reason}").format(path=path, reason=cause), path=path) from error
    except OnnxRefusedError as error:
        raise _refusal(path, None, str(error)) from error
    return open_exported(path, data)


def open_exported(path: Path, data: bytes) -> Bundle:
    """A model from the bytes of an exported file; `path` is for messages. For errors see `load_model`."""
    try:
        text = scan(memoryview(data), ENTRY)
    except OnnxRefusedError as error:
        raise _refusal(path, None, str(error)) from error
    if text is None:
        line = _("{path}: an ONNX file, but not exported by ubend; `ubend export RUN` writes one")
        raise ModelFileError(line.format(path=path), path=path, key="metadata")
    contract = read_contract(path, text)
    header, _entry = read_header(path, json.dumps(contract.model))
    network = ExportedNetwork(_open_session(path, data, header, contract.tiles.margin), contract, header)
    stored = {kept.name: getattr(header, kept.name) for kept in fields(StoredFields)} | {"precision": "float32"}
    return Bundle(network.eval(), header.labels, header.sizing, **stored)


def read_contract(path: Path, text: str) -> Contract:
    """The metadata entry of an exported file, checked.

    Raises:
        ModelFileError: it is damaged, or of a newer contract.
    """
    try:
        entry = json.loads(text)
        found = entry["contract"]
        if isinstance(found, int) and found > CONTRACT:
            line = _("{path}: exported by a newer ubend (contract {found}); upgrade with `pip install -U ubend`")
            raise ModelFileError(line.format(path=path, found=found), path=path, key="contract")
        contract = TypeAdapter(Contract).validate_json(text)
        channels = contract.model["sizing"]["channels"]
        if not len(contract.mean) == len(contract.std) == channels:
            raise ValueError("mean, std")
        return contract
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise _refusal(path, validation_key(problem), validation_reason(problem)) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _refusal(path, None, str(error)) from error


def import_package(name: str) -> Any:
    """A package of the extra `export`; MissingPackageError: it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        line = _("exported models need {package}; install it with: pip install 'ubend[export]'")
        raise MissingPackageError(line.format(package=name), key=name) from error


def _open_session(
    path: Path, data: bytes, header: Header, margin: int
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """The graph as a function of images.

    Raises:
        ModelFileError: onnxruntime does not load it, or it has other inputs and outputs than the header says.
    """
    runtime = import_package("onnxruntime")
    options, run_options = runtime.SessionOptions(), runtime.RunOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = run_options.log_severity_level = 4  # the one line is ours
    run_options.only_execute_path_to_fetches = True
    if _limit_memory(runtime):
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        # its own fallback prints, and tries the same again
        session = runtime.InferenceSession(data, options, ["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # of many classes, which have no name in common
        raise _refusal(path, None, next(iter(str(error).splitlines()), "")) from error
    wanted = [(INPUT, f"tensor({ {'float32': 'float'}.get(header.dtype, header.dtype) })")]
    found = [(one.name, one.type) for one in session.get_inputs()]
    if found != wanted or {*OUTPUTS} != {one.name for one in session.get_outputs()}:
        raise _refusal(path, INPUT, _("other inputs and outputs than the header says"))

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        try:
            logits: NDArray[np.float32] = session.run(OUTPUTS[:1], {INPUT: images}, run_options)[0]
        except Exception as error:
            if any(word in str(error).lower() for word in ("alloc", "arena")):
                raise MemoryError(str(error)) from error
            raise _refusal(path, None, next(iter(str(error).splitlines()), "")) from error
        sides = (side - 2 * margin for side in images.shape[2:])
        if logits.shape != (len(images), header.network.classes, *sides):
            raise _refusal(path, OUTPUTS[0], _("other inputs and outputs than the header says"))
        return logits

    return run


@cache
def _limit_memory(runtime: Any) -> bool:
    """Let onnxruntime use most of this machine's memory and no more: sizes inside a graph are the file's own; whether
    the system says how much there is."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return False
    place = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    runtime.create_and_register_allocator(place, runtime.OrtArenaCfg({"max_mem": int(_MEMORY_SHARE * total)}))
    return True


def _refusal(path: Path, key: str | None, cause: str) -> ModelFileError:
    """The error of a file that is not loaded, on one line whatever the file holds."""
    key, cause = ("".join(c if c.isprintable() else " " for c in text)[:200] for text in (key or "", cause))
    line = _("{path}: not a whole exported model ({reason}); copy it again or export it again")
    return ModelFileError(
        line.format(path=path, reason=f"{key}: {cause}" if key else cause), path=path, key=key or "graph"
    )
