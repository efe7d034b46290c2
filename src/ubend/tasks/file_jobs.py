"""The pipeline from files through a model to files, shared by all commands that write something for each input.

All inputs are inspected before anything is written: duplicate output names, existing files, disk space. Then each is
predicted and written; errors are reported at the end. A subclass for each kind of input (images, videos, scans)
defines how it is inspected, which files it gives, and how they are made.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.files import Need, clear_leftovers, refuse_existing, refuse_full, refuse_shared
from ubend.core.i18n import _, now
from ubend.core.progress import Teller
from ubend.inference.conditions import Answer, Masks
from ubend.inference.describe import describe_tiling
from ubend.inference.prefetch import map_ahead
from ubend.io.decode import read_header
from ubend.io.images import read_with_channels
from ubend.io.raster import Header
from ubend.layouts.image_paths import list_images
from ubend.tasks.record import Record

_Facts = TypeVar("_Facts")
_Result = TypeVar("_Result")


class FileJob(ABC, Generic[_Facts]):
    """Inputs of one kind and their output files; an error in one input does not stop the others.

    Args:
        masks: the models.
        paths: the inputs.
        out: the output folder; files in it are not overwritten.
        resume: continue in a folder that has the files of some inputs already; these are kept.
    Attributes:
        what: description of an output, for the collision message.
        there: message about existing outputs.
        done: message at the end.
        together: names of the summary files.
        resumable: whether the command has `--resume`.
        found: number of an input -> result of `inspect`; usable inputs only.
        todo: numbers of the inputs whose files are to be made.
        wrong: number of an input -> its problems.
    """

    what, there, done = "", "", ""
    together: Sequence[str] = ()
    resumable = True

    def __init__(self, masks: Masks, paths: Sequence[Path], out: Path, *, resume: bool = False) -> None:
        self.masks, self.paths, self.out, self.resume = masks, paths, out, resume
        self.found: dict[int, _Facts] = {}
        self.todo: list[int] = []
        self.wrong: dict[int, list[str]] = {}

    @abstractmethod
    def inspect(self, number: int) -> _Facts:
        """Read an input's header; DataError: it cannot be used."""

    @abstractmethod
    def files(self, number: int) -> list[Path]:
        """The output files of an input, the main one first."""

    def is_done(self, number: int) -> bool:
        """Whether the files of an input are complete; by default, whether the first one exists."""
        return self.files(number)[0].exists()

    def size(self, _number: int) -> float:
        """Estimated bytes of the files of an input."""
        return 0

    @abstractmethod
    def make(self, teller: Teller) -> None:
        """Make the files of the inputs in `todo`; problems are collected by `keeping`."""

    def finish(self, _numbers: Sequence[int], _teller: Teller) -> None:
        """Write the summary files, about all inputs that have their files."""

    def look(self) -> list[Need]:
        """Inspect all inputs, before anything is written; returns the required disk space.

        Raises:
            DataError: duplicate output names.
            OutputError: an output exists already.
        """
        self.found = dict(self.attempt(self.inspect, range(len(self.paths))))
        if not self.found:
            return []
        files = [(self.paths[number], self.files(number)) for number in self.found]
        refuse_shared(files, now(self.what))
        if not self.resume:
            each = [path for _input, own in files for path in own]
            refuse_existing([*each, *(self.out / name for name in self.together)], resumable=self.resumable)
        self.todo = [number for number in self.found if not (self.resume and self.is_done(number))]
        return [Need(self.out, int(sum(map(self.size, self.todo))), _("choose another --out"))]

    def write(self, teller: Teller) -> list[Path]:
        """Predict and write all inputs in `todo`; returns the first file of each input, including existing ones."""
        there = len(self.found) - len(self.todo)
        if there and self.there:
            teller.say(now(self.there).format(count=there))
        for path in (path for number in self.found for path in self.files(number)):
            clear_leftovers(path)
        self.make(teller)
        numbers = [number for number in self.found if number not in self.wrong]
        if numbers:
            self.finish(numbers, teller)
            teller.say(now(self.done).format(count=len(numbers), out=self.out))
        return [self.files(number)[0] for number in numbers]

    @contextmanager
    def keeping(self, number: int) -> Iterator[None]:
        """Collect DataErrors of this input instead of raising them."""
        try:
            yield
        except DataError as error:
            self.wrong[number] = error.problems

    def attempt(
        self, work: Callable[[int], _Result], numbers: Iterable[int], weigh: Callable[[int], int] = lambda _number: 0
    ) -> Iterator[tuple[int, _Result]]:
        """(number, result) of successful inputs, in order; computed ahead in threads, see `map_ahead`."""

        def kept(number: int) -> list[tuple[int, _Result]]:
            results = []
            with self.keeping(number):
                results.append((number, work(number)))
            return results

        for results in map_ahead(kept, numbers, weigh):
            yield from results


class ImageJob(FileJob[Header]):
    """Images: read ahead in threads, predicted in batches, written by background threads; each is decoded once.

    Args:
        paths: images, folders of images, patterns such as `set/*.png`, or `-`: one path per line of the standard
            input.
    Attributes:
        title: title of the progress bar.
        with_prob: whether `write_one` is given probabilities.
        as_stored: whether it is given the image with the file's channels, instead of the models'.
    Raises:
        DataError: no images.
    """

    title, with_prob, as_stored = "", False, False

    def __init__(self, masks: Masks, paths: Iterable[Path | str], out: Path, *, resume: bool = False) -> None:
        super().__init__(masks, list_images(paths), out, resume=resume)

    def inspect(self, number: int) -> Header:
        header = read_header(self.paths[number], self.masks.channels)
        self.masks.refuse_other_kind(self.paths[number], header)
        return header

    @abstractmethod
    def write_one(self, number: int, answer: Answer, image: NDArray[Any]) -> None:
        """Write the files of an image; called in threads."""

    def make(self, teller: Teller) -> None:
        self.predict_held(self.todo, teller)

    def predict_held(self, numbers: Sequence[int], teller: Teller) -> None:
        """Predict and write images that fit in memory."""

        def write(answered: tuple[tuple[int, NDArray[Any]], Answer]) -> None:
            (number, image), answer = answered
            with self.keeping(number):
                self.write_one(number, answer, image)

        there = len(self.found) - len(self.todo)
        teller.begin(now(self.title), there + len(numbers), there)
        images = self.attempt(self._read, numbers, self._bytes)
        answers = self.masks.predict(
            (((number, shown), given) for number, (given, shown) in images), with_prob=self.with_prob
        )
        written = map_ahead(write, answers, lambda answered: self._bytes(answered[0][0]) + answered[1].bytes)
        for count, _none in enumerate(written, there + 1):
            teller.count(count)
        teller.end()

    def _read(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """An image for the models and for `write_one`; the same array if both take the same channels."""
        path, header, channels = self.paths[number], self.found[number], self.masks.channels
        given, shown = read_with_channels(path, (channels, None if self.as_stored else channels))
        if given.shape[:2] != header.size_hw or given.dtype != header.dtype:
            raise DataError(_("{path}: was changed while it was read; start again").format(path=path), path=path)
        return given, shown

    def _bytes(self, number: int) -> int:
        """Upper limit of the bytes of an image in memory."""
        header = self.found[number]
        return header.bytes(self.masks.channels + (header.channels if self.as_stored else 0))


def run_jobs(jobs: Sequence[FileJob[Any]], teller: Teller, record: Record | None = None) -> list[Path]:
    """Inspect the inputs of all jobs, then write all files.

    Args:
        record: what made the files, written to the folder; refuses to mix outputs of different settings.
    Returns:
        The first file of each input, including existing ones.
    Raises:
        DataError: duplicate output names; at the end, when all others are written: the problems of the unusable inputs.
        OutputError: outputs exist already, or were made with other settings; disk full, or no write permission.
    """
    needs = [need for job in jobs for need in job.look()]
    written: list[Path] = []
    if needs:
        if record is not None:
            record.refuse_other(teller, resume=jobs[0].resume)
        refuse_full(needs)
        for line in describe_tiling(jobs[0].masks):
            teller.say(line)
        if record is not None:
            record.write()
        written = [path for job in jobs for path in job.write(teller)]
        if record is not None and not written:
            record.remove()
    problems = [line for job in jobs for number in sorted(job.wrong) for line in job.wrong[number]]
    if problems:
        raise DataError(problems)
    return written
