"""An exported model, `model.onnx`, as a network: onnxruntime or OpenVINO computes it, all else is as for any other.

Its metadata are a `Contract` (`ubend.portable.contract`), with the header of the model file that was exported.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ubend.core.errors import MissingPackageError, SettingError
from ubend.core.files import EXPORTED_SUFFIX, model_path
from ubend.core.i18n import _
from ubend.models.model_file import Bundle, Header, StoredFields, load_bundle, read_header
from ubend.models.paper import mirror_to_fit
from ubend.models.segmentation_net import SegmentationNet, check_channels
from ubend.portable.contract import Contract, describe_contract
from ubend.portable.engines import open_engine
from ubend.portable.session import Run, check_exported, read_exported


class ExportedNetwork(SegmentationNet):
    """The graph of an exported file, on the CPU.

    Args:
        run: (N, C, H, W) values of the model's dtype -> (N, classes, h, w) float32 logits.
        contract: of the file.
        header: of the model file in it.
    Attributes:
        run: as given.
    """

    is_exported = True

    def __init__(self, run: Run, contract: Contract, header: Header) -> None:
        shape, tiles = header.network, contract.tiles
        super().__init__(
            shape.channels, shape.classes, shape.width, shape.depth, None, shape.upsampling, contract.mean, contract.std
        )
        self.run, self._dtype, self._contract = run, header.dtype, contract
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
        return torch.from_numpy(self.run(values.numpy()))

    @property
    def input_multiple(self) -> int:
        return self._multiple

    def padded_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """See `SegmentationNet`; padding changes what is mirrored on all sides, or shown in several views."""
        return size_hw if self._mirrors or self.averages_views else super().padded_hw(size_hw)

    def describe(self) -> list[str]:
        return describe_contract(self._contract)


def load_model(path: Path, network: nn.Module | None = None) -> Bundle:
    """A run folder, a model file, or an exported file; for arguments and errors see `load_bundle`.

    Raises:
        ModelFileError: also of an exported file that is cut off, not ours, of a newer contract, or that holds what
            ubend does not write.
        MissingPackageError: onnxruntime, or OpenVINO if the file is for it, is not installed.
    """
    path = model_path(path)
    return load_exported(path) if path.suffix.lower() == EXPORTED_SUFFIX else load_bundle(path, network)


def load_exported(path: Path) -> Bundle:
    """Read an exported file; see `load_model`. Predictions are in float32."""
    return open_exported(path, read_exported(path))


def open_exported(path: Path, data: bytes) -> Bundle:
    """A model from the bytes of an exported file; `path` is for messages. For errors see `load_model`."""
    contract = check_exported(path, data)
    header, _entry = read_header(path, json.dumps(contract.model))
    run = open_engine(
        import_package,
        path,
        data,
        contract,
        dtype=header.dtype,
        classes=header.network.classes,
        threads=torch.get_num_threads(),
    )
    stored = {field.name: getattr(header, field.name) for field in fields(StoredFields)} | {"precision": "float32"}
    return Bundle(ExportedNetwork(run, contract, header).eval(), header.labels, header.sizing, **stored)


def import_package(name: str) -> Any:
    """A package of the extra `export` or `openvino`; MissingPackageError: it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = name if name == "openvino" else "export"
        line = _("exported models need {package}; install it with: pip install 'ubend[{extra}]'")
        raise MissingPackageError(line.format(package=name, extra=extra), key=name) from error
