"""Export a model: one file for programs without torch, compared with the model before it is written."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ubend.core.errors import OutputError, UbendError
from ubend.core.files import EXPORTED_SUFFIX, model_path, refuse_existing, write_file
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.exporting.graph import build_graph, to_bytes, to_half
from ubend.exporting.network_graph import trace_network
from ubend.exporting.proof import TestImage, draw_images, prove, read_images, refuse_different
from ubend.exporting.targets import Precision, Target, check_precision
from ubend.inference.predictor import Predictor
from ubend.models.exported import import_package, open_exported
from ubend.models.model_file import Bundle, load_bundle, make_entry
from ubend.portable.contract import CONTRACT, Contract, Tiles, describe_proof
from ubend.portable.version import __version__
from ubend.tasks.evaluate import read_run_subset
from ubend.tasks.runs import read_summary
from ubend.training.run_folder import RunFolder

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(
    model: Path | str,
    *,
    to: Target = "onnx",
    out: Path | str | None = None,
    precision: Precision = "fp32",
    network: nn.Module | None = None,
    reporter: Reporter,
) -> Path:
    """Write a model as one file for other programs, if it answers as the model does.

    Args:
        model: a run folder or a model file.
        to: the kind of file.
        out: the file, new; None: the model file's name with the ending of the kind.
        precision: of the stored weights.
        network: your own network, if the model was trained with it.
    Returns:
        The file.
    Raises:
        SettingError: the network cannot be exported, or `to` has no such precision; MissingPackageError: the extra
            `export` is not installed.
        ModelFileError: the model cannot be read, is an exported one, or the export differs from it too much.
        OutputError: the file exists or cannot be written.
    """
    check_precision(to, precision)
    path = model_path(Path(model))
    bundle = load_bundle(path, network)
    out = path.with_suffix(EXPORTED_SUFFIX) if out is None else Path(out)
    if out.suffix.lower() != EXPORTED_SUFFIX:
        line = _("{path}: give a name that ends in {suffix}")
        raise OutputError(line.format(path=out, suffix=EXPORTED_SUFFIX), path=out)
    refuse_existing([out])
    for name in _PACKAGES:
        import_package(name)
    reporter.report(_("exporting {path}; this takes a minute or more for several networks").format(path=path))
    contract = describe(path, bundle, precision)
    graph = build_graph(
        bundle.model,
        [trace_network(member) for member in bundle.model.parts().members],
        bundle.dtype,
        tiles=contract.tiles.px > 0,
    )
    if precision == "fp16":
        to_half(graph)
    exported = open_exported(out, to_bytes(graph, contract_text(contract)))
    images, compared_on = _find_images(path.parent, bundle)
    contract.proof = prove(bundle, exported, images, compared_on, reporter)
    for line in describe_proof(contract.proof):
        reporter.report(line)
    if bundle.precision == "bfloat16":
        line = _(
            "note: the exported model computes in float32; `ubend predict` of the run uses bfloat16 if the device is "
            "faster with it, so its masks may differ in a few pixels"
        )
        reporter.report(line)
    refuse_different(contract.proof, precision)
    data = to_bytes(graph, contract_text(contract))
    write_file(out, lambda temporary: temporary.write_bytes(data))
    reporter.report(
        _(
            "exported model: {path} ({size:.1f} MB); use it like a run: `ubend predict {path} IMAGES --out masks`"
        ).format(path=out, size=len(data) / 1e6)
    )
    return out


def describe(path: Path, bundle: Bundle, precision: Precision) -> Contract:
    """The metadata of the file, still without the proof."""
    net, tiling = bundle.model, Predictor(bundle, "cpu").tiling
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    tiles = Tiles(
        px=tiling.tile_px if tiling else 0,
        overlap=tiling.overlap if tiling else 0.0,
        multiple=net.input_multiple,
        margin=net.margin if tiling else 0,
        edge_px=net.edge_px if tiling else 0,
    )
    weights = bundle.about.get("encoder_weights")
    return Contract(
        contract=CONTRACT,
        precision=precision,
        mean=net.mean.flatten().tolist(),
        std=net.std.flatten().tolist(),
        tiles=tiles,
        model=make_entry(bundle, tensors),
        licence={"encoder_weights": str(weights)} if weights else {},
        scores=_read_scores(path.parent),
        proof=None,
        ubend=__version__,
    )


def contract_text(contract: Contract) -> str:
    """The metadata entry of the file."""
    return json.dumps(asdict(contract), ensure_ascii=False, allow_nan=False)


def _read_scores(run: Path) -> dict[str, Any] | None:
    """Split, number of images and mean Dice per image of each class, as the run was scored; None: it was not."""
    with suppress(UbendError):
        summary = read_summary(run)
        if summary.test_dice is not None:
            return {"subset": summary.scored, "images": summary.images, "dice": dict(summary.test_dice)}
    return None


def _find_images(run: Path, bundle: Bundle) -> tuple[list[TestImage], str]:
    """The images to compare on: those of the run's test or validation split, else drawn ones; and which they are."""
    if RunFolder(run).data.is_file():
        with suppress(UbendError):
            split, pairs = read_run_subset(run, None)
            if images := read_images(bundle, pairs):
                return images, split or "all"
    return draw_images(bundle), "drawn"
