"""One way of files through a model, for all commands that write something for each of their inputs.

All inputs are looked at before anything is written: names that collide, files that are there already, disk room.
Then each is predicted and written; what is wrong with some of them is told when all others are done. A kind of input
(images, videos, scans) says in a subclass how it is looked at, which files it gives, and how they are made.
"""

import glob
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from ubend._version import __version__
from ubend.core.errors import DataError, OutputError
from ubend.core.files import Need, clear_leftovers, refuse_existing, refuse_full, write_json
from ubend.core.i18n import _, now
from ubend.core.progress import Teller
from ubend.inference.conditions import Answer, Masks
from ubend.inference.prefetch import map_ahead
from ubend.io.raster import Header
from ubend.layouts.naming import IMAGE_SUFFIXES

_FREE = ("ubend", "path")  # of a record: may differ

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
        self._refuse_collisions()
        if not self.resume:
            each = [path for number in self.found for path in self.files(number)]
            refuse_existing([*each, *(self.out / name for name in self.together)], resumable=self.resumable)
        self.todo = [number for number in self.found if not (self.resume and self.is_done(number))]
        return [Need(self.out, int(sum(map(self.size, self.todo))), _("choose another --out"))]

    def _refuse_collisions(self) -> None:
        owners: dict[Path, list[Path]] = {}
        for number in self.found:
            for file in self.files(number):
                owners.setdefault(file, []).append(self.paths[number])
        twice = sorted({str(path) for paths in owners.values() if len(paths) > 1 for path in paths})
        if twice:
            raise DataError(
                _("{names} would overwrite each other's {what}; give each its own --out").format(
                    names=", ".join(twice[:6]), what=now(self.what)
                ),
                path=Path(twice[0]),
                key="--out",
            )

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
    """Images: read ahead, predicted in batches, and written behind in threads, all at once.

    Args:
        paths: images, folders of images, patterns such as `set/*.png`, or `-`: one path in each line of the standard
            input.
    Attributes:
        title: of the progress bar.
        with_prob: whether `write_one` is given probabilities.
    Raises:
        DataError: no images.
    """

    title, with_prob = "", False

    def __init__(self, masks: Masks, paths: Iterable[Path | str], out: Path, *, resume: bool = False) -> None:
        super().__init__(masks, list_pictures(paths), out, resume=resume)

    def inspect(self, number: int) -> Header:
        return self.masks.inspect(self.paths[number])

    @abstractmethod
    def write_one(self, number: int, answer: Answer) -> None:
        """Write the files of an image; called in threads."""

    def make(self, teller: Teller) -> None:
        self.predict_held(self.todo, teller)

    def predict_held(self, numbers: Sequence[int], teller: Teller) -> None:
        """Predict and write images that memory holds."""

        def write(found: tuple[int, Answer]) -> None:
            with self.keeping(found[0]):
                self.write_one(*found)

        there = len(self.found) - len(self.todo)
        teller.begin(now(self.title), len(self.found), there)
        images = self.attempt(lambda number: self.masks.read(self.paths[number]), numbers, self._bytes)
        answers = self.masks.predict(images, with_prob=self.with_prob)
        written = map_ahead(write, answers, lambda found: self._bytes(found[0]) + found[1].bytes)
        for count, _none in enumerate(written, there + 1):
            teller.count(count)
        teller.end()

    def _bytes(self, number: int) -> int:
        """What an image takes in memory."""
        header = self.found[number]
        return header.height * header.width * self.masks.channels * np.dtype(header.dtype).itemsize


def run_jobs(
    jobs: Sequence[FileJob[Any]], teller: Teller, record: Path | None = None, facts: Mapping[str, Any] | None = None
) -> list[Path]:
    """Look at the inputs of all jobs, then write the files of all.

    Args:
        record: the JSON file in the folder that says what made the others, so that nothing of another make is put
            among them.
        facts: what it says: the models' hashes, the conditions, what else decides over what is written.
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
            _refuse_other(record, facts or {}, teller, resume=jobs[0].resume)
        refuse_full(needs)
        for line in jobs[0].masks.describe_tiling():
            teller.say(line)
        if record is not None and not record.exists():
            write_json(record, {"ubend": __version__, **(facts or {})})
        written = [path for job in jobs for path in job.write(teller)]
        if record is not None and not written:
            record.unlink(missing_ok=True)
            with suppress(OSError):
                record.parent.rmdir()
    problems = [line for job in jobs for number in sorted(job.wrong) for line in job.wrong[number]]
    if problems:
        raise DataError(problems)
    return written


def _refuse_other(record: Path, facts: Mapping[str, Any], teller: Teller, *, resume: bool) -> None:
    """Fail where other facts made what is in the folder."""
    if not record.exists():
        if resume and record.parent.is_dir() and any(record.parent.iterdir()):
            said = _("note: {path} is missing, so it is not known whether this model made what is there")
            teller.say(said.format(path=record))
        return
    try:
        was = json.loads(record.read_text(encoding="utf-8"))
        differ = [key for key, value in facts.items() if _stripped(was.get(key)) != _stripped(value)]
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError(
            _("{path}: cannot be read ({reason}); choose another --out").format(path=record, reason=error),
            path=record,
            key="--out",
        ) from error
    if differ:
        raise OutputError(
            _(
                "{folder}: what is there was made by another model or under other conditions ({path} differs in "
                "{keys}); choose another --out"
            ).format(folder=record.parent, path=record.name, keys=", ".join(differ)),
            path=record,
            key=differ[0],
        )


def _stripped(value: Any) -> Any:
    """As JSON gives it back, without what may differ."""
    if isinstance(value, Mapping):
        return {key: _stripped(one) for key, one in value.items() if key not in _FREE}
    return [_stripped(one) for one in value] if isinstance(value, list | tuple) else value


def list_pictures(paths: Iterable[Path | str]) -> list[Path]:
    """Files as they are; folders give the images in them, patterns what they match, both sorted by name; `-`
    the lines of the standard input."""
    pictures: list[Path] = []
    lines = (sys.stdin if str(path) == "-" else [str(path)] for path in paths)
    for path in (Path(line.rstrip("\r\n")) for some in lines for line in some if line.strip()):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
            if not found:
                raise DataError(_("{path}: no pictures in this folder").format(path=path), path=path)
            pictures += found
        elif path.exists():
            pictures.append(path)
        elif matched := sorted(glob.glob(str(path), recursive=True)):
            pictures += [Path(p) for p in matched if Path(p).is_file()]
        else:
            raise DataError(_("{path}: no such file").format(path=path), path=path)
    if not pictures:
        raise DataError(_("no pictures to predict; name files or folders"), key="paths")
    return pictures
