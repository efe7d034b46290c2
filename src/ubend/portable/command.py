"""The command line of `ubend-runtime`: masks of images from an exported model, and what a model is."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .contract import describe_contract
from .errors import DataError, FilesError, OutputError, Problem, UbendError
from .files import is_of_the_disk, refuse_existing, refuse_inputs, refuse_shared
from .i18n import _
from .image_paths import list_images, refuse_folder
from .images import describe_sizing
from .input_checks import describe_channels, inspect_file
from .model import Model, load
from .printable import printable, printable_line
from .raster import Header

_NOTHING_DONE, _SOME_FAILED, _INTERRUPTED = 2, 3, 130  # exit codes, those of ubend


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; `words` are its arguments, None: those of the process. Returns the exit code."""
    given = _make_parser().parse_args(words)
    try:
        if given.command == "info":
            for line in describe_model(given.model):
                print(printable_line(line))
        else:
            predict_files(given.model, given.images, given.out, threads=given.threads)
    except UbendError as error:
        print(printable(_("error: {message}").format(message=error)), file=sys.stderr)
        return _SOME_FAILED if isinstance(error, FilesError) else _NOTHING_DONE
    except KeyboardInterrupt:
        print(_("interrupted"), file=sys.stderr)
        return _INTERRUPTED
    return 0


def describe_model(path: Path) -> list[str]:
    """Lines for people: export, size, tiles, classes with colours.

    Raises:
        ModelFileError, MissingPackageError: see `load`.
    """
    model = load(path)
    tiles = model.contract.tiles
    lines = [*describe_contract(model.contract), describe_sizing(*model.sizing)]
    lines.append(_("bit depth: {dtype}").format(dtype=model.dtype))
    if tiles.px:
        line = _("tiles: {px} px at native scale, overlap {overlap:.0%}")
        lines.append(line.format(px=tiles.px, overlap=tiles.overlap))
    lines.append(_("classes:"))
    for index, (name, color) in enumerate(zip(model.class_names, model.colors, strict=True)):
        lines.append(f"  {index} {name}  #{bytes(color).hex()}")
    return lines


def predict_files(model_path: Path, images: Sequence[str], out: Path, *, threads: int | None = None) -> list[Path]:
    """Write the mask of each image, `NAME.png`, into a folder; prints notes and the number of masks.

    All images are inspected before anything is written.

    Args:
        images: files, folders, patterns, or `-` for a list of files, see `list_images`.
        threads: see `load`.
    Returns:
        The masks.
    Raises:
        ModelFileError, MissingPackageError: see `load`.
        DataError: no images, none that can be used, or two whose masks would have the same name.
        OutputError: a mask exists already, is an input, or cannot be written.
        FilesError: some of the images failed; the masks of all others are written.
    """
    model, paths = load(model_path, threads=threads), list_images(images)
    wrong: list[str] = []
    headers: dict[Path, Header] = {}
    for path in dict.fromkeys(paths):
        try:
            refuse_folder(path)
            headers[path] = inspect_file(path, model)
        except DataError as error:
            wrong += error.problems
    if not headers:
        raise DataError(wrong)
    masks = {path: out / f"{path.stem}.png" for path in headers}
    refuse_shared([(path, [mask]) for path, mask in masks.items()], _("masks"))
    refuse_inputs(headers, masks.values())
    refuse_existing(masks.values())
    for line in describe_channels(list(headers.values()), model.sizing.channels):
        print(printable_line(line))
    written = [masks[path] for path, header in headers.items() if _write_mask(model, path, header, masks[path], wrong)]
    if written:
        print(printable_line(_("masks in {out}: {count}").format(out=out, count=len(written))))
    if wrong:
        raise FilesError(wrong) if written else DataError(wrong)
    return written


def _write_mask(model: Model, path: Path, header: Header, mask: Path, wrong: list[str]) -> bool:
    """Predict an image and write its mask; adds what is wrong with it to `wrong`. Returns whether it is written.

    Raises:
        OutputError: the disk is full, or cannot be written.
    """
    try:
        model(path, header=header).save(mask)
    except UbendError as error:
        if isinstance(error, OutputError) and is_of_the_disk(error):
            raise
        for line in error.problems if isinstance(error, DataError) else [str(error)]:
            at = line.path if isinstance(line, Problem) else error.path
            text = line if at else _("{path}: {problem}").format(path=path, problem=line)
            wrong.append(Problem(text, at or path, error.key))
        return False
    return True


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ubend-runtime", description=_("Masks of images from a model that `ubend export` wrote.")
    )
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help=_("Write the masks of images."))
    info = commands.add_parser("info", help=_("Show what a model is."))
    for command in (predict, info):
        command.add_argument("model", metavar="MODEL", type=Path, help=_("An exported model, model.onnx."))
    predict.add_argument("images", metavar="IMAGES", nargs="+", help=_("Images, folders, patterns, or - for a list."))
    predict.add_argument("--out", metavar="FOLDER", type=Path, required=True, help=_("Folder for the masks."))
    predict.add_argument("--threads", metavar="COUNT", type=_read_count, help=_("Threads of the CPU."))
    return parser


def _read_count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise argparse.ArgumentTypeError(_("give a whole number, 1 or more"))
    return int(text)
