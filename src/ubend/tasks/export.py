"""Export a model: one file for programs without torch, or a web page, compared with the model before it is written."""

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from ubend.core.errors import ModelFileError, OutputError, SettingError, UbendError
from ubend.core.files import EXPORTED_SUFFIX, model_path, refuse_existing, refuse_existing_results, write_file
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.exporting import calibration, web_page
from ubend.exporting.graph import build_graph, to_bytes
from ubend.exporting.network_graph import trace_network
from ubend.exporting.ort_web import find_ort_web
from ubend.exporting.precisions import PrecisionMaker, list_attempts
from ubend.exporting.proof import KnownPredictions, ProofImage, draw_images, find_difference, prove, read_images
from ubend.exporting.targets import Precision, Target, check_precision
from ubend.inference.predictor import Predictor
from ubend.models.exported import import_package, open_exported
from ubend.models.model_file import Bundle, load_bundle, make_entry
from ubend.portable.contract import CONTRACT, Contract, Tiles, describe_proof
from ubend.portable.openvino_session import import_openvino
from ubend.portable.version import __version__
from ubend.tasks.evaluate import read_run_pairs, read_run_subset
from ubend.tasks.runs import read_summary
from ubend.training.run_folder import RunFolder

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_SUFFIXES: dict[tuple[Target, bool], str] = {  # of what is written, in one file or not; "": a folder
    ("onnx", False): EXPORTED_SUFFIX,
    ("openvino", False): EXPORTED_SUFFIX,
    ("web", False): "",
    ("web", True): ".html",
}


def export(
    model: Path | str,
    *,
    to: Target = "onnx",
    out: Path | str | None = None,
    precision: Precision = "fp32",
    single_file: bool = False,
    ort_web: Path | str | None = None,
    network: nn.Module | None = None,
    reporter: Reporter,
) -> Path:
    """Write a model as one file for other programs or as a web page, if it predicts what the model does.

    Args:
        model: a run folder or a model file.
        to: the kind of file.
        out: the file, new, or the page's folder, new or empty; None: `model.onnx`, `web` or `model.html` beside the
            model file.
        precision: of the computation, or with fp16 of the stored weights; a more exact one is taken where the file
            would differ too much.
        single_file: the page is one HTML file.
        ort_web: folder with the package onnxruntime-web; None: downloaded once.
        network: your own network, if the model was trained with it.
    Returns:
        The file or folder.
    Raises:
        SettingError: the network cannot be exported, or `to` has no such precision; MissingPackageError: the extra
            `export` is not installed.
        ModelFileError: the model cannot be read, is an exported one, or the export differs from it too much.
        OutputError: the file exists or cannot be written, or a single file would be too large.
        DataError: onnxruntime-web cannot be had.
    """
    check_precision(to, precision)
    if to != "web" and (single_file or ort_web is not None):
        key = "--single-file" if single_file else "--ort-web"
        raise SettingError(_("{flag} goes with --to web").format(flag=key), key=key)
    path = model_path(Path(model))
    bundle = load_bundle(path, network)
    out = _choose_output(path, out, _SUFFIXES[to, single_file])
    _import_packages(to)
    runtime = {}
    if to == "web":
        web_page.refuse_other_images(bundle)
        if single_file:
            web_page.refuse_large(out, bundle.model, precision)
        runtime = find_ort_web(ort_web, reporter)
    line = _("exporting {path}")
    if (count := len(bundle.model.averaging().members)) > 1:
        line = _("exporting {path}; this takes a minute or more, since it holds {count} networks")
    reporter.report(line.format(path=path, count=count))
    contract = describe(path, bundle, precision, to)
    graph = build_graph(
        bundle.model,
        [trace_network(member) for member in bundle.model.averaging().members],
        bundle.dtype,
        tiles=contract.tiles.px > 0,
    )
    model = _make_proven(bundle, graph, contract, to, path, reporter)
    if bundle.precision == "bfloat16" and contract.precision != "bf16":
        line = _(
            "note: the exported model computes in float32; `ubend predict` of the run uses bfloat16 if the device is "
            "faster with it, so its masks may differ in a few pixels"
        )
        reporter.report(line)
    data = to_bytes(model, contract_text(contract))
    if to == "web":
        write = web_page.write_single_file if single_file else web_page.write_folder
        size = write(out, data, contract, runtime)
        line = _("page: {path} ({size:.1f} MB); open it in a browser")
        if not single_file:
            line = _("page: {path} ({size:.1f} MB), for any file server: `python -m http.server --directory {path}`")
        reporter.report(line.format(path=out, size=size / 1e6))
        return out
    write_file(out, lambda temporary: temporary.write_bytes(data))
    reporter.report(
        _("exported model: {path} ({size:.1f} MB); predict with it: `ubend predict {path} IMAGES --out masks`").format(
            path=out, size=len(data) / 1e6
        )
    )
    return out


def _choose_output(path: Path, out: Path | str | None, suffix: str) -> Path:
    """What is written: a new file with the suffix, or a new or empty folder if the suffix is empty.

    Raises:
        OutputError: it exists, or the name has another suffix.
    """
    if not suffix:
        return refuse_existing_results(path.with_name("web") if out is None else Path(out))
    out = path.with_suffix(suffix) if out is None else Path(out)
    if out.suffix.lower() != suffix:
        line = _("{path}: give a name that ends in {suffix}")
        raise OutputError(line.format(path=out, suffix=suffix), path=out)
    refuse_existing([out])
    return out


def _import_packages(target: Target) -> None:
    for name in _PACKAGES:
        import_package(name)
    if target == "openvino":
        import_openvino(import_package)


def _make_proven(bundle: Bundle, graph: Any, contract: Contract, to: Target, path: Path, reporter: Reporter) -> Any:
    """The graph in the precision of the contract, or the next more exact one that predicts what the model does.

    The contract gets its precision and its proof. `path` is that of the model file.

    Raises:
        ModelFileError: none does; `key` is the measure that is beyond its limit.
    """
    run, known = path.parent, KnownPredictions()
    images, compared_on = _find_images(run, bundle)
    maker = PrecisionMaker(
        graph,
        contract.target,
        lambda model: to_bytes(model, contract_text(replace(contract, target="onnx", precision="fp32"))),
        lambda: _read_training_images(run, bundle),
    )
    problem = None
    for attempt in list_attempts(to, contract.precision):
        if problem is not None:
            reporter.report(_("{problem}; trying {precision}").format(problem=problem[1], precision=attempt.describe()))
        made, contract.precision = maker.make(attempt), attempt.precision
        compared = contract if made.compared is None else replace(contract, target="onnx")
        exported = open_exported(path, to_bytes(made.compared or made.model, contract_text(compared)))
        proof = prove(bundle, exported, images, compared_on, reporter, target=contract.target, known=known)
        contract.proof = proof | ({"layers": made.layers} if made.layers else {})
        if made.compared is not None:
            contract.proof["emulated"] = True
            del contract.proof["seconds_per_megapixel"][contract.target]
        for line in describe_proof(contract.proof):
            reporter.report(line)
        problem = find_difference(contract.proof, attempt.precision)
        if problem is None:
            return made.model
    assert problem is not None
    key, line = problem
    suggestion = _("nothing was written; please report it")
    raise ModelFileError(f"{line}; {suggestion}", key=key)


def describe(path: Path, bundle: Bundle, precision: Precision, to: Target = "onnx") -> Contract:
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
        target="openvino" if to == "openvino" else "onnx",
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


def _find_images(run: Path, bundle: Bundle) -> tuple[list[ProofImage], str]:
    """The images to compare on: those of the run's test or validation split, else drawn ones; and which they are."""
    if RunFolder(run).data.is_file():
        with suppress(UbendError):
            split, pairs = read_run_subset(run, None)
            if images := read_images(bundle, pairs):
                return images, split or "all"
    return draw_images(bundle), "drawn"


def _read_training_images(run: Path, bundle: Bundle) -> list[ProofImage]:
    """Images for the calibration of 8 bits; those of drawn values would give other ranges.

    Raises:
        SettingError: there are none, or they are gone.
    """
    with suppress(UbendError):
        pairs = read_run_pairs(run)
        learnt = [pair for pair in pairs if pair.split == "train"] or [pair for pair in pairs if pair.split != "test"]
        if images := read_images(bundle, learnt, calibration.MAX_IMAGES, calibration.MAX_PIXELS):
            return images
    line = _("--precision int8 needs some of the training images, and {run} has none that can be read; move them back")
    raise SettingError(line.format(run=run), key="--precision")
