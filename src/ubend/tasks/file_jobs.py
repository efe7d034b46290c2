"""One way of files through a model, for all commands that write something for each of their inputs.

All inputs are looked at before anything is written: names that collide, files that are there already, disk room.
Then each is predicted and written; what is wrong with some of them is told when all others are done. A kind of input
(images, videos, scans) says in a subclass how it is looked at, which files it gives, and how they are made.
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
    """Inputs of one kind, and what is made of them; what is wrong with one does not stop the others.

    Args:
        masks: the models.
        paths: the inputs.
        out: folder for what is written; nothing in it is overwritten.
        resume: continue in a folder where the files of some inputs are already: those stay as they are.
    Attributes:
        what: what two inputs of one name would overwrite, for people.
        there: told of inputs whose files are there already.
        done: told at the end.
        together: files that tell of all inputs.
        resumable: whether the command takes `--resume`.
        found: number of an input -> what `inspect` gave, of those that can be used.
        todo: numbers of the inputs whose files are to be made.
        wrong: number of an input -> what is wrong with it.
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
        """Look at an input's header; DataError: it cannot be used."""

    @abstractmethod
    def files(self, number: int) -> list[Path]:
        """The files of an input, the most important one first."""

    def is_done(self, number: int) -> bool:
        """Whether the files of an input are whole: by default, whether the first one is there."""
        return self.files(number)[0].exists()

    def size(self, _number: int) -> float:
        """About what the files of an input take, bytes."""
        return 0

    @abstractmethod
    def make(self, teller: Teller) -> None:
        """Make the files of the inputs in `todo`; problems are kept by `keeping`."""

    def finish(self, _numbers: Sequence[int], _teller: Teller) -> None:
        """Write what tells of all inputs that have their files."""

    def look(self) -> list[Need]:
        """Look at all inputs, before anything is written; gives the room that is wanted.

        Raises:
            DataError: two of one name.
            OutputError: something of that name is there already.
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
        """Predict and write all that `look` found; gives the first file of each, those of before included."""
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
        """What is wrong with this input is kept, instead of raised."""
        try:
            yield
        except DataError as error:
            self.wrong[number] = error.problems

    def attempt(
        self, work: Callable[[int], _Result], numbers: Iterable[int], weigh: Callable[[int], int] = lambda _number: 0
    ) -> Iterator[tuple[int, _Result]]:
        """(number, result) of those that nothing is wrong with, in order; done ahead in threads, as in `map_ahead`."""

        def kept(number: int) -> list[tuple[int, _Result]]:
            results = []
            with self.keeping(number):
                results.append((number, work(number)))
            return results

        for results in map_ahead(kept, numbers, weigh):
            yield from results


class ImageJob(FileJob[Header]):
    """Images: read ahead, predicted in batches, and written behind in threads, all at once; each is decoded once.

    Args:
        paths: images, folders of images, patterns such as `set/*.png`, or `-`: one path in each line of the standard
            input.
    Attributes:
        title: of the progress bar.
        with_prob: whether `write_one` is given probabilities.
        as_stored: whether it is given the image with the file's own channels, instead of the models'.
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
        """Predict and write images that memory holds."""

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
        """An image as the models take it, and as `write_one` is given it; one array where both are the same."""
        path, header, channels = self.paths[number], self.found[number], self.masks.channels
        given, shown = read_with_channels(path, (channels, None if self.as_stored else channels))
        if given.shape[:2] != header.size_hw or given.dtype != header.dtype:
            raise DataError(_("{path}: was changed while it was read; start again").format(path=path), path=path)
        return given, shown

    def _bytes(self, number: int) -> int:
        """What an image takes in memory, at most."""
        header = self.found[number]
        return header.bytes(self.masks.channels + (header.channels if self.as_stored else 0))


def run_jobs(jobs: Sequence[FileJob[Any]], teller: Teller, record: Record | None = None) -> list[Path]:
    """Look at the inputs of all jobs, then write the files of all.

    Args:
        record: says in the folder what made the files, so that nothing of another make is put among them.
    Returns:
        The first file of each input, those of before included.
    Raises:
        DataError: two inputs of one name; at the end, when all others are written: those that could not be used.
        OutputError: something of that name is there already, or other facts made it; no room, or no right to write.
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
