"""Many files on their way through a model: what is wrong with one of them does not stop the others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ubend.errors import DataError, OutputError
from ubend.inference.ahead import map_ahead
from ubend.language import _

_Good = TypeVar("_Good")
_Image = TypeVar("_Image")


class Problems:
    """What is wrong with some of many files, by the number of the file."""

    def __init__(self) -> None:
        self._lines: dict[int, list[str]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._lines

    def told(self) -> list[str]:
        """All of it, in the order of the files."""
        return [line for number in sorted(self._lines) for line in self._lines[number]]

    @contextmanager
    def keeping(self, number: int) -> Iterator[None]:
        """What is wrong with this file is kept, instead of raised."""
        try:
            yield
        except DataError as error:
            self._lines[number] = error.problems

    def work(
        self, work: Callable[[int], _Good], numbers: Iterable[int], weigh: Callable[[int], int] = lambda _number: 0
    ) -> Iterator[tuple[int, _Good]]:
        """(number, result) of those that nothing is wrong with, in order; done ahead in threads, as of `map_ahead`."""

        def attempt(number: int) -> tuple[int, _Good | DataError]:
            try:
                return number, work(number)
            except DataError as error:
                return number, error

        for number, result in map_ahead(attempt, numbers, weigh):
            if isinstance(result, DataError):
                self._lines[number] = result.problems
            else:
                yield number, result

    def predict(
        self,
        predict: Callable[[Iterator[_Image]], Iterable[tuple[int, _Good]]],
        read: Callable[[int], _Image],
        numbers: Sequence[int],
        weigh: Callable[[int], int],
    ) -> Iterator[tuple[int, _Good]]:
        """(number, answer) of those that can be read, as they get ready.

        Args:
            predict: takes pictures; gives (place among those, answer).
            read: number -> picture.
            weigh: bytes of a picture.
        """
        given: list[int] = []

        def images() -> Iterator[_Image]:
            for number, image in self.work(read, numbers, weigh):
                given.append(number)
                yield image

        for place, answer in predict(images()):
            yield given[place], answer


def refuse_collisions(inputs: Sequence[Path], written: Sequence[Sequence[Path]], what: str) -> None:
    """Fail where two inputs would write one file.

    Args:
        written: the files of each input.
        what: would be overwritten, for people.
    """
    owners: dict[Path, list[Path]] = {}
    for path, files in zip(inputs, written, strict=True):
        for file in files:
            owners.setdefault(file, []).append(path)
    twice = sorted({str(path) for paths in owners.values() if len(paths) > 1 for path in paths})
    if twice:
        raise DataError(
            _("{names} would overwrite each other's {what}; give each its own --out").format(
                names=", ".join(twice[:6]), what=what
            ),
            path=Path(twice[0]),
            key="--out",
        )


def refuse_there(wanted: Iterable[Path]) -> None:
    """Fail where something would be overwritten."""
    there = [path for path in wanted if path.exists()]
    if there:
        raise OutputError(
            _("{path} exists already, and {count} more; choose another --out, or go on with --resume").format(
                path=there[0], count=len(there) - 1
            ),
            path=there[0],
            key="--out",
        )
