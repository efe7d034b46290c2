"""An exported model as a web page that predicts in the browser: a folder for a file server, or one HTML file.

The page's own files are in `web/`: `predict.js` computes masks as `portable/model.py` does, `worker.js` runs it beside
the page, `page.js` and `index.html` are what people see.
"""

import base64
import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ubend.core.errors import OutputError, SettingError
from ubend.core.files import write_file, write_json, write_text
from ubend.core.i18n import _
from ubend.drawing.pages import render_page
from ubend.exporting.ort_web import GLUE, SCRIPT, WASM
from ubend.exporting.targets import Precision
from ubend.portable.class_table import background_class
from ubend.portable.contract import Contract, describe_scores, read_model
from ubend.portable.images import describe_sizing
from ubend.portable.input_checks import TakesImages

MAX_FILE_BYTES = 30 * 10**6  # of a single file: browsers read it as one text, which takes several times its memory
PAGE, _LICENSE = "index.html", "onnxruntime-license.txt"
_RUNTIME_BYTES = 5 * 10**6  # of a single file without the model
_PACKED = 0.85 * 4 / 3  # of weights: gzip leaves .85 to .95 of them (measured), base64 makes four bytes of three
_MODEL, _GLUE_NAME = "model.onnx", GLUE.replace(".mjs", ".js")  # not all file servers know .mjs as JavaScript
_WEB = Path(__file__).parent / "web"
_COMMON_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:"  # blob: what the page made itself
_NAMES_IN_TITLE = 4


def refuse_other_images(model: TakesImages) -> None:
    """Fail if a model takes images that browsers do not decode.

    Raises:
        SettingError: it takes other than 8-bit images of 1 or 3 channels.
    """
    if model.dtype != "uint8" or model.sizing.channels not in (1, 3):
        line = _(
            "--to web: browsers give 8-bit grey or colour, but the model takes {channels} channels of {dtype}; use "
            "--to onnx"
        )
        raise SettingError(line.format(channels=model.sizing.channels, dtype=model.dtype), key="--to")


def refuse_large(path: Path, network: nn.Module, precision: Precision) -> None:
    """Fail early if the weights of a model are too large for a single file.

    Raises:
        OutputError: they are.
    """
    count = sum(tensor.numel() for tensor in network.state_dict().values())
    size = int(_PACKED * count * (2 if precision == "fp16" else 4)) + _RUNTIME_BYTES
    if size > MAX_FILE_BYTES:
        raise _too_large(path, size)


def write_folder(folder: Path, data: bytes, contract: Contract, runtime: Mapping[str, bytes]) -> int:
    """Write a page and its files, `index.html` last.

    Args:
        folder: new or empty.
        data: the exported model.
        contract: its metadata.
        runtime: see `find_ort_web`.
    Returns:
        Size of all files in bytes.
    Raises:
        OutputError: the folder cannot be written.
    """
    about = _describe(contract)
    contents = {
        _MODEL: data,
        SCRIPT: runtime[SCRIPT],
        _GLUE_NAME: runtime[GLUE],
        WASM: runtime[WASM],
        **{name: (_WEB / name).read_bytes() for name in ("page.js", "predict.js", "worker.js")},
        _LICENSE: (_WEB / _LICENSE).read_bytes(),
    }
    for name, content in contents.items():
        _write(folder / name, content)
    write_json(folder / "model.json", about)  # for other programs
    policy = f"{_COMMON_POLICY}; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'"
    write_text(folder / PAGE, _render(contract, about, policy, files={}, page="", worker=""))
    return sum(path.stat().st_size for path in folder.iterdir())


def write_single_file(path: Path, data: bytes, contract: Contract, runtime: Mapping[str, bytes]) -> int:
    """Write a page that holds all its files, packed by gzip, and opens from the disk.

    Args:
        path: the file, `.html`.
        data, contract, runtime: see `write_folder`.
    Returns:
        Its size in bytes.
    Raises:
        OutputError: it would have more than `MAX_FILE_BYTES`, or cannot be written.
    """
    files = {_MODEL: data, SCRIPT: runtime[SCRIPT], _GLUE_NAME: runtime[GLUE], WASM: runtime[WASM]}
    page, worker, predict = (_read_script(name) for name in ("page.js", "worker.js", "predict.js"))
    digest = base64.b64encode(hashlib.sha256(page.encode()).digest()).decode()
    policy = f"{_COMMON_POLICY}; script-src 'sha256-{digest}' blob: data: 'wasm-unsafe-eval'; worker-src blob:"
    text = _render(
        contract,
        _describe(contract),
        policy,
        files={name: _pack(content) for name, content in files.items()},
        page=page,
        worker=f"{predict}\n{worker}",
    )
    if (size := len(text.encode())) > MAX_FILE_BYTES:
        raise _too_large(path, size)
    write_text(path, text)
    return size


def _too_large(path: Path, size: int) -> OutputError:
    line = _(
        "{path}: the single file would have about {size:.0f} MB, at most {most:.0f} are allowed; export with "
        "--precision fp16, or without --single-file"
    )
    line = line.format(path=path, size=size / 1e6, most=MAX_FILE_BYTES / 1e6)
    return OutputError(line, path=path, key="--single-file")


def _describe(contract: Contract) -> dict[str, Any]:
    """What the page's scripts need of a model; the content of `model.json`."""
    model = read_model(Path(_MODEL), contract)
    tiles = contract.tiles
    return {
        "names": model.names,
        "colors": model.colors,
        "background": background_class(model.names),
        "sizing": model.sizing._asdict(),
        "tiles": {
            "px": tiles.px,
            "overlap": tiles.overlap,
            "multiple": tiles.multiple,
            "margin": tiles.margin,
            "edge_px": tiles.edge_px,
        },
    }


def _render(contract: Contract, about: dict[str, Any], policy: str, **parts: Any) -> str:
    shown = [name for index, name in enumerate(about["names"]) if index != about["background"]]
    names = ", ".join(shown[:_NAMES_IN_TITLE]) + ("…" if len(shown) > _NAMES_IN_TITLE else "")
    return render_page(
        _WEB / PAGE,
        title=_("Segmentation: {names}").format(names=names),
        lines=_describe_for_people(contract),
        about=about,
        texts=_texts(),
        policy=policy,
        license=(_WEB / _LICENSE).read_text(encoding="utf-8").split("\n\n"),
        **parts,
    )


def _describe_for_people(contract: Contract) -> list[str]:
    """Data, size, scores, licence and versions."""
    model, tiles, lines = read_model(Path(_MODEL), contract), contract.tiles, list[str]()
    origin = contract.model.get("about") or {}
    if "data" in origin:
        lines.append(_("trained on: {data}").format(data=origin["data"]))
    if tiles.px:
        lines.append(_("images: at native size, in tiles of {px} px").format(px=tiles.px))
    else:
        lines.append(describe_sizing(*model.sizing))
    lines += describe_scores(contract.scores)
    title = _("encoder weights")  # all that a licence is known of
    lines += [f"{title}: {value}" for value in contract.licence.values()]
    line = _(
        "computed on this device's processor, one thread, by onnxruntime-web (MIT licence); written by ubend {version}"
    )
    return [*lines, line.format(version=contract.ubend)]


def _texts() -> dict[str, str]:
    """The sentences of the page's scripts, which put the values in."""
    return {
        "loading": _("Loading the model…"),
        "ready": _("Ready."),
        "served": _(
            "Browsers load this page only from a file server: run `python -m http.server` in its folder and open the "
            "address that it prints, or export with --single-file."
        ),
        "broken": _("The model could not be loaded ({reason}). A current browser is needed."),
        "computing": _("Computing {name}…"),
        "queued": _("Images waiting: {count}."),
        "tiles": _("Computing {name}: tile {done} of {all}…"),
        "unreadable": _("{name}: not an image that this browser can read"),
        "deep": _("{name}: an image of 16 bits, but the model takes 8; convert it to 8 bits"),
        "inks": _("{name}: a CMYK image; save it in RGB"),
        "empty": _("{name}: transparent everywhere, or too large for this browser"),
        "failed": _("{name}: could not be computed ({reason}); reload the page and try a smaller image"),
        "size": _("{width} × {height} px, computed in {seconds} s"),
        "alt": _("{name} with its mask: {classes}"),
        "invalid": _("transparent"),
    }


def _read_script(name: str) -> str:
    text = (_WEB / name).read_text(encoding="utf-8")
    assert "</script" not in text.lower()
    assert "<!--" not in text
    return text


def _pack(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _write(path: Path, content: bytes) -> None:
    write_file(path, lambda temporary: temporary.write_bytes(content))
