"""The pipeline from files through a model to files, shared by all commands that write something for each input.

All inputs are inspected before anything is written: duplicate output names, existing files, disk space. Then each is
predicted and written. Whatever fails for one input, in reading, predicting or writing it, is reported at the end and
stops no other; only a disk that cannot be written to, or a missing package, ends the command. A subclass for each kind
of input (images, videos, scans) defines how it is inspected, which files it gives, and how they are made.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from numpy.typing import NDArray

from .decode import read_header
from .describe import describe_scales, describe_tiling
from .errors import (
    DataError,
    FilesError,
    MissingPackageError,
    OutputError,
    Problem,
    UbendError,
    is_out_of_memory,
    missing_package,
    reason,
)
from .extremes import ExtremeValues
from .files import (
    DiskRequirement,
    is_of_the_disk,
    is_too_long,
    refuse_existing,
    refuse_foreign,
    refuse_inputs,
    refuse_shared,
)
from .i18n import _, now
from .image_paths import list_images, refuse_folder
from .images import LoadedImage, read_with_channels
from .input_checks import describe_channels
from .mask_predictor import AnyMaskPredictor
from .predictors import MaskResult
from .prefetch import prefetch
from .raster import Header
from .record import Record, name_resume
from .reporter import Reporter
from .storage import LOCAL, Storage, describe_source

_log = logging.getLogger(__name__)
_Inspected = TypeVar("_Inspected")
_Result = TypeVar("_Result")
Role = Literal["mask", "prob", "overlay", "shares", "ids", "table", "geojson", "panoptic", "cutout"]  # of an output


class FileJob(ABC, Generic[_Inspected]):
    """Inputs of one kind and their output files; an error in one input does not stop the others.

    Args:
        predictor: of the models, with post-processing.
        paths: the inputs.
        out: the output folder; files in it are not overwritten.
        resume: continue in a folder that has the files of some inputs already; these are kept.
    Attributes:
        output_name: description of an output, for the collision message.
        exist_message: message about existing outputs.
        done_message: message at the end.
        storage: where inputs and outputs are.
        record: of the folder; None: there is none. Set by `run_jobs`.
        summary_names: of the files that are for all inputs.
        usable: index of an input -> result of `inspect`; usable inputs only.
        todo: indices of the inputs whose files are to be made.
        failed: index of an input -> its problems; it has no output files.
        damaged: index of an input -> its problems; the readable part of it has output files.
    """

    output_name, exist_message, done_message = "", "", ""
    summary_names: Sequence[str] = ()
    storage: Storage = LOCAL

    def __init__(self, predictor: AnyMaskPredictor, paths: Sequence[Path], out: Path, *, resume: bool = False) -> None:
        self.predictor, self.paths, self.out, self.resume = predictor, paths, out, resume
        self.usable: dict[int, _Inspected] = {}
        self.todo: list[int] = []
        self.failed: dict[int, list[str]] = {}
        self.damaged: dict[int, list[str]] = {}
        self.record: Record | None = None
        self._sources: dict[int, dict[str, Any]] = {}
        self._remade = 0

    @abstractmethod
    def inspect(self, index: int) -> _Inspected:
        """Read an input's header.

        Raises:
            DataError: the input cannot be used.
        """

    @abstractmethod
    def outputs(self, index: int) -> dict[Role, Path]:
        """The output files of an input, the main one first."""

    def files(self, index: int) -> list[Path]:
        """The paths of `outputs`."""
        return [*self.outputs(index).values()]

    def is_done(self, index: int) -> bool:
        """Whether the output files of an input are complete and were made from its current content."""
        return self.record is not None and self.record.is_current(self.files(index), self.paths[index])

    def note_source(self, index: int) -> None:
        """Record an input's size and digest, before it is read and its files are written."""
        if self.record is not None:
            self._sources[index] = describe_source(self.paths[index])
            self.record.begin(self.files(index), self._sources[index])

    def note_done(self, index: int) -> None:
        """Record that all files of an input are written."""
        if self.record is not None:
            self.record.add(self.files(index), self._sources.pop(index))

    def size(self, _index: int) -> float:
        """Estimated bytes of the files of an input."""
        return 0

    @abstractmethod
    def make(self, reporter: Reporter) -> None:
        """Make the files of the inputs in `todo`; problems are collected by `collect_problems`."""

    def finish(self, _indices: Sequence[int], _reporter: Reporter) -> None:
        """Write the summary files of all inputs whose files are written."""

    def inspect_all(self) -> list[DiskRequirement]:
        """Inspect all inputs, before anything is written; returns the required disk space.

        Raises:
            DataError: duplicate output names.
            OutputError: an output exists already (with `resume`: one that this command did not write), or is an input.
        """
        inspected = dict(self.map_inputs(self.inspect, range(len(self.paths))))
        self.usable = {index: about for index, about in inspected.items() if self._check_name_lengths(index, about)}
        if not self.usable:
            return []
        files = [(self.paths[index], self.files(index)) for index in self.usable]
        refuse_shared(files, now(self.output_name))
        refuse_inputs(self.paths, (path for _input, outputs in files for path in outputs))
        groups = [*(outputs for _input, outputs in files), *([self._summaries] if self.summary_names else [])]
        if not self.resume:
            can_resume = self.record is not None and not any(map(self.record.foreign, groups))
            refuse_existing([path for group in groups for path in group], self.storage.exists, resumable=can_resume)
        finished = dict(self.map_inputs(lambda index: self.resume and self.is_done(index), [*self.usable]))
        sizes = dict(self.map_inputs(self.size, [index for index, done in finished.items() if not done]))
        self.usable = {index: about for index, about in self.usable.items() if index not in self.failed}
        self.todo = [*sizes]
        if self.resume and self.record is not None:
            rewritten = [*map(self.files, self.todo), *groups[len(files) :]]
            refuse_foreign([path for group in rewritten for path in self.record.foreign(group)], self.record.path)
        self._remade = sum(any(map(self.storage.exists, self.files(index))) for index in self.todo)
        return [DiskRequirement(self.out, int(sum(sizes.values())), _("choose another --out"))]

    def _check_name_lengths(self, index: int, about: _Inspected) -> bool:
        """Whether an input's output files can have their names; if not, that is its problem."""
        self.usable[index] = about
        for path in self.files(index):
            if is_too_long(path):
                line = _("{path}: the name of its result, {name}, is too long for a file; rename the input")
                self.failed[index] = [Problem(line.format(path=self.paths[index], name=path.name), path, "name")]
                return False
        return True

    def notes(self) -> list[str]:
        """What the user should know before the inputs in `todo` are predicted, one sentence each."""
        return []

    def write(self, reporter: Reporter) -> list[Path]:
        """Predict and write all inputs in `todo`; returns the first file of each input, including existing ones."""
        if (existing := len(self.usable) - len(self.todo)) and self.exist_message:
            reporter.report(now(self.exist_message).format(count=existing))
        if self._remade:
            message = _("note: {count} of the files are recreated: their input has changed, or they are incomplete")
            reporter.report(message.format(count=self._remade))
        self.storage.clear_leftovers(path for index in self.usable for path in self.files(index))
        with name_resume(self.record, reporter):
            self.make(reporter)
        indices = [index for index in self.usable if index not in self.failed]
        if indices:
            if self.record is not None and self.summary_names:
                self.record.begin(self._summaries, {})
            self.finish(indices, reporter)
            if self.record is not None and self.summary_names:
                self.record.add(self._summaries, {})
            reporter.report(now(self.done_message).format(count=len(indices), out=self.out))
        return [self.files(index)[0] for index in indices]

    @property
    def _summaries(self) -> list[Path]:
        return [self.out / name for name in self.summary_names]

    @contextmanager
    def collect_problems(self, index: int) -> Iterator[None]:
        """Collect what goes wrong with this input instead of raising it.

        Raises:
            OutputError: the disk is full, or cannot be written.
            MissingPackageError: a package is missing, so every other input would fail, too.
        """
        path = self.paths[index]
        try:
            yield
        except DataError as error:
            self.failed[index] = [self._named(index, line) for line in error.problems]
        except UbendError as error:
            if isinstance(error, MissingPackageError) or (isinstance(error, OutputError) and is_of_the_disk(error)):
                raise
            self.failed[index] = [Problem(str(error), error.path or path, error.key)]
        except ImportError as error:
            raise missing_package(error) from error
        except MemoryError:
            self.failed[index] = [Problem(_("{path}: not enough memory").format(path=path), path, "memory")]
        except OSError as error:
            self.failed[index] = [Problem(_("{path}: {reason}").format(path=path, reason=reason(error)), path)]
        except Exception as error:
            message = _("{path}: failed with an internal error; please report it ({reason})")
            if is_out_of_memory(error):
                message = _("{path}: not enough memory on the device; try --tiles, or --device cpu")
            else:
                _log.debug("%s", path, exc_info=True)
            cause = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            self.failed[index] = [Problem(message.format(path=path, reason=cause), path)]

    def _named(self, index: int, line: str) -> str:
        """Add the file's path to a problem that has none: the predictor knows only the array."""
        if not isinstance(line, Problem) or line.path is not None:
            return line
        path = self.paths[index]
        return Problem(_("{path}: {problem}").format(path=path, problem=line), path, line.key)

    def map_inputs(
        self, work: Callable[[int], _Result], indices: Iterable[int], size_of: Callable[[int], int] = lambda _index: 0
    ) -> Iterator[tuple[int, _Result]]:
        """(index, result) of successful inputs, in order; computed ahead in threads, see `prefetch`."""

        def kept(index: int) -> list[tuple[int, _Result]]:
            results = []
            with self.collect_problems(index):
                results.append((index, work(index)))
            return results

        for results in prefetch(kept, indices, size_of):
            yield from results


class ImageJob(FileJob[Header]):
    """Images: read ahead in threads, predicted in batches, written by background threads; each is decoded once.

    Args:
        paths: images, folders of images, patterns such as `set/*.png`, or `-`: one path per line of the standard
            input.
    Attributes:
        title: title of the progress bar.
        probabilities: whether `write_one` is given probabilities.
        as_stored: whether it is given the image with the file's channels, instead of the models'.
        extremes: the images with values far beyond those of the training.
    Raises:
        DataError: no images.
    """

    title, probabilities, as_stored = "", False, False

    def __init__(
        self, predictor: AnyMaskPredictor, paths: Iterable[Path | str], out: Path, *, resume: bool = False
    ) -> None:
        super().__init__(predictor, list_images(paths), out, resume=resume)
        self.extremes = ExtremeValues(*(member.predictor.bundle for member in predictor.members))

    def inspect(self, index: int) -> Header:
        return self._inspect_file(self.paths[index])

    def _inspect_file(self, path: Path) -> Header:
        refuse_folder(path)
        header = read_header(path, self.predictor.channels)
        self.predictor.refuse_other_kind(path, header)
        return header

    def notes(self) -> list[str]:
        headers = [self.usable[index] for index in self.todo]
        return [*describe_channels(headers, self.predictor.channels), *describe_scales(headers, self.predictor)]

    @abstractmethod
    def write_one(self, index: int, result: MaskResult, image: NDArray[Any]) -> None:
        """Write the files of an image; called in threads."""

    def make(self, reporter: Reporter) -> None:
        self.predict_in_memory(self.todo, reporter)
        self.extremes.tell(reporter)

    def predict_in_memory(self, indices: Sequence[int], reporter: Reporter) -> None:
        """Predict and write images that fit in memory."""

        def write(predicted: tuple[tuple[int, NDArray[Any]], MaskResult]) -> None:
            (index, image), result = predicted
            with self.collect_problems(index):
                self.write_one(index, result, image)
                self.note_done(index)

        existing = len(self.usable) - len(self.todo)
        reporter.begin(now(self.title), existing + len(indices), existing)
        written = prefetch(
            write, self._predict_each(indices), lambda predicted: self._bytes(predicted[0][0]) + predicted[1].bytes
        )
        for count, _none in enumerate(written, existing + 1):
            reporter.count(count)
        reporter.end()

    def _predict_each(self, indices: Sequence[int]) -> Iterator[tuple[tuple[int, NDArray[Any]], MaskResult]]:
        """((index, image for `write_one`), result) of each image; after an error, the rest is predicted one by one."""
        started: list[int] = []

        def given() -> Iterator[tuple[tuple[int, NDArray[Any]], LoadedImage]]:
            for index, (image, overlay_pixels) in self.map_inputs(self._read, indices, self._bytes):
                started.append(index)
                yield (index, overlay_pixels), image

        finished = set[int]()
        try:
            for key, result in self.predictor.predict(given(), probabilities=self.probabilities):
                finished.add(key[0])
                yield key, result
            return
        except Exception as error:
            failure = error
        if len(indices) == 1 or (isinstance(failure, OutputError) and is_of_the_disk(failure)):
            with self.collect_problems(indices[0]):
                raise failure
        else:
            for index in (input_index for input_index in started or indices if input_index not in finished):
                yield from self._predict_each([index])
            rest = [index for index in indices if index not in started and index not in self.failed]
            if started and rest:
                yield from self._predict_each(rest)

    def _read(self, index: int) -> tuple[LoadedImage, NDArray[Any]]:
        """An image for the models and for `write_one`; the same pixels if both take the same channels."""
        path, header, channels = self.paths[index], self.usable[index], self.predictor.channels
        self.note_source(index)
        given, displayed = read_with_channels(path, (channels, None if self.as_stored else channels))
        if given.pixels.shape[:2] != header.size_hw or given.pixels.dtype != header.dtype:
            raise DataError(_("{path}: changed while it was read; run the command again").format(path=path), path=path)
        self.extremes.look(path, given.pixels)
        return given, displayed.pixels

    def _bytes(self, index: int) -> int:
        """Upper limit of the bytes of an image in memory."""
        header = self.usable[index]
        return header.bytes(self.predictor.channels + (header.channels if self.as_stored else 0))


def run_jobs(jobs: Sequence[FileJob[Any]], reporter: Reporter, record: Record | None = None) -> list[Path]:
    """Inspect the inputs of all jobs, then write all files.

    Args:
        record: how the files are made; it is written to the folder, and refuses to mix outputs of different settings.
            None: the command has no `--resume`.
    Returns:
        The first file of each input, including existing ones.
    Raises:
        DataError: duplicate output names; or no input can be used.
        FilesError: some inputs failed or are damaged; all others are written.
        OutputError: another process writes to the folder; outputs exist already, or were made with other settings;
            disk full, or no write permission.
    """
    with jobs[0].storage.locked(jobs[0].out):
        return _run_locked(jobs, reporter, record)


def _run_locked(jobs: Sequence[FileJob[Any]], reporter: Reporter, record: Record | None) -> list[Path]:
    if record is not None:
        record.read_files()
        for job in jobs:
            job.record = record
    requirements = [requirement for job in jobs for requirement in job.inspect_all()]
    written: list[Path] = []
    if requirements:
        jobs[0].storage.check_space(requirements)
        for line in [*describe_tiling(jobs[0].predictor), *(line for job in jobs for line in job.notes())]:
            reporter.report(line)
        if record is not None:
            record.write()
        written = [path for job in jobs for path in job.write(reporter)]
        if record is not None:
            record.close([path.name for path in written])
    problems = [line for job in jobs for _index, lines in sorted((job.failed | job.damaged).items()) for line in lines]
    if problems:
        if written:
            raise FilesError(problems)
        raise DataError(problems)
    return written
