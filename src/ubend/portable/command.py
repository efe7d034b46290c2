"""The command line of `ubend-runtime`: masks and objects of images from an exported model, and what a model is."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from . import option_help
from .contract import describe_contract
from .errors import FilesError, UbendError, missing_package
from .file_jobs import run_jobs
from .i18n import _, now
from .images import describe_sizing
from .mask_job import MaskImageJob, run_mask_jobs
from .mask_predictor import PredictionOptions
from .model import load_file, load_mask_predictor
from .object_files import Export
from .object_job import CountingOptions, ObjectJob, refuse_missing_libraries
from .objects import Method
from .pixel_size import parse_pixel_size
from .printable import printable, printable_line
from .probabilities import ProbKind
from .reporter import LineReporter
from .tile_options import DEFAULT_OVERLAP, parse_tiles
from .version import __version__

_NONE = PredictionOptions()
_NOTHING_DONE, _SOME_FAILED, _INTERRUPTED = 2, 3, 130  # exit codes, those of ubend


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; `words` are its arguments, None: those of the process. Returns the exit code."""
    given = _make_parser().parse_args(words)
    try:
        if given.command == "info":
            for line in describe_model(given.model):
                print(printable_line(line))
        elif given.command == "objects":
            inputs = given.model, given.images, given.out, _take_counting(given)
            find_objects(*inputs, options=_take_options(given), threads=given.threads)
        else:
            kept = {name: getattr(given, name) for name in ("prob", "resume", "threads")}
            predict_files(given.model, given.images, given.out, options=_take_options(given), **kept)
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
    model = load_file(path)
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


def predict_files(
    model: Path | str,
    images: Sequence[Path | str],
    out: Path,
    *,
    options: PredictionOptions = _NONE,
    prob: ProbKind | None = None,
    resume: bool = False,
    threads: int | None = None,
) -> list[Path]:
    """Predict masks of images into a folder, as `ubend predict` does, see `MaskImageJob`; prints notes and shares.

    Args:
        images: files, folders, patterns, or `-` for a list of files, see `list_images`.
        prob: file type of the probabilities, see `write_probabilities`; None: not written. All but npz need tifffile.
        resume: keep existing files, and write the missing ones.
        threads: see `load`.
    Returns:
        The masks, including existing ones.
    Raises:
        ModelFileError, SettingError, MissingPackageError: see `load_mask_predictor`; or tifffile is missing.
        DataError, OutputError: see `run_jobs`.
        FilesError: some of the images failed; the masks of all others are written.
    """
    if prob not in (None, "npz"):
        _require_tifffile()
    masks = load_mask_predictor(model, options, threads=threads)
    job = MaskImageJob(masks, images, out, prob=prob, resume=resume)
    return run_mask_jobs([job], out, window=None, prob=prob, reporter=LineReporter())


def find_objects(
    model: Path | str,
    images: Sequence[Path | str],
    out: Path,
    counting: CountingOptions,
    *,
    options: PredictionOptions = _NONE,
    threads: int | None = None,
) -> list[Path]:
    """Find the objects of images, and write ids, overlays and tables, as `ubend objects` does, see `ObjectJob`.

    Args:
        images, threads: see `predict_files`.
    Returns:
        The id images.
    Raises:
        MissingPackageError: the extra `objects` is not installed.
        ModelFileError, SettingError: see `load_mask_predictor`; or the method does not fit the classes.
        DataError, OutputError: see `run_jobs`.
        FilesError: some of the images failed; the files of all others are written.
    """
    refuse_missing_libraries(counting.exports, "ubend-runtime[objects]")
    masks = load_mask_predictor(model, options, threads=threads)
    return run_jobs([ObjectJob(masks, images, out, counting)], LineReporter())


def _require_tifffile() -> None:
    """Raise MissingPackageError if TIFF cannot be written, before anything is predicted."""
    try:
        import imagecodecs  # noqa: F401
        import tifffile  # noqa: F401
    except ImportError as error:
        raise missing_package(error) from error


class _Parser(argparse.ArgumentParser):
    """Refuses wrong arguments in one line, as all that is refused."""

    def error(self, message: str) -> NoReturn:
        """Print the line, and exit with 2."""
        line = _("error: {message}; see {command} --help").format(message=message, command=self.prog)
        self.exit(_NOTHING_DONE, printable_line(line) + "\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ubend-runtime", description=_("Masks of images from a model that `ubend export` wrote."))
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}", help=_("Show the version and exit.")
    )
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help=_("Write the masks of images."))
    objects = commands.add_parser("objects", help=_("Number, measure and outline the objects in images."))
    info = commands.add_parser("info", help=_("Show what a model is."))
    for command in (predict, objects, info):
        command.add_argument("model", metavar="MODEL", type=Path, help=_("An exported model, model.onnx."))
    _add_mask_options(predict)
    _add_object_options(objects)
    return parser


# The options of each command are those of the same command of ubend that need no torch, with the same names.


def _add_mask_options(predict: argparse.ArgumentParser) -> None:
    _add_images(predict, option_help.OUT)
    _add(predict, "--min-area", option_help.MIN_AREA, metavar="[CLASS=]PX", action="append", default=[])
    _add(predict, "--prob", option_help.PROB, choices=get_args(ProbKind))
    _add(predict, "--resume", option_help.RESUME, action="store_true")
    _add_model_options(predict)


def _add_object_options(objects: argparse.ArgumentParser) -> None:
    _add_images(objects, option_help.OBJECTS_OUT)
    _add(objects, "--method", option_help.METHOD, choices=get_args(Method))
    _add(objects, "--min-area", option_help.LEAST_AREA, metavar="PX", dest="least_area", type=_read_area, default=1)
    _add(objects, "--export", option_help.EXPORT, choices=get_args(Export), action="append", default=[])
    _add(objects, "--pixel-size", option_help.PIXEL_SIZE, metavar="LENGTH")
    _add_model_options(objects)
    objects.set_defaults(min_area=[])  # of regions, before objects are separated


def _add_images(command: argparse.ArgumentParser, out: str) -> None:
    command.add_argument("images", metavar="IMAGES", nargs="+", help=_("Images, folders, patterns, or - for a list."))
    _add(command, "--out", out, metavar="FOLDER", type=Path, required=True)


def _add_model_options(command: argparse.ArgumentParser) -> None:
    _add(command, "--tiles", option_help.TILES, metavar="PX")
    _add(command, "--overlap", option_help.OVERLAP, metavar="FRACTION", type=float, default=DEFAULT_OVERLAP)
    _add(command, "--with", option_help.WITH, metavar="MODEL", dest="models", type=Path, action="append", default=[])
    _add(command, "--tta", option_help.TTA, action="store_true")
    _add(command, "--threshold", option_help.THRESHOLD, metavar="CLASS=P", action="append", default=[])
    _add(command, "--fill-holes", option_help.FILL_HOLES, metavar="[CLASS=]PX", action="append", default=[])
    command.add_argument("--threads", metavar="COUNT", type=_read_count, help=_("Threads of the CPU."))


def _add(command: argparse.ArgumentParser, flag: str, sentence: str, **how: Any) -> None:
    command.add_argument(flag, help=now(sentence).replace("%", "%%"), **how)


def _take_counting(given: argparse.Namespace) -> CountingOptions:
    pixel = None if given.pixel_size is None else parse_pixel_size(given.pixel_size)
    return CountingOptions(given.method, given.least_area, given.export, pixel)


def _take_options(given: argparse.Namespace) -> PredictionOptions:
    return PredictionOptions(
        given.models,
        given.tta,
        given.threshold,
        given.min_area,
        given.fill_holes,
        parse_tiles(given.tiles),
        given.overlap,
    )


def _read_area(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(_("give a whole number, 1 or more"))
    return int(text)


def _read_count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise argparse.ArgumentTypeError(_("give a whole number, 1 or more"))
    return int(text)
