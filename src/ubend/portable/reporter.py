"""What long work tells the user, and the plain way to print it."""

from typing import Protocol

from .printable import printable_line


class Reporter(Protocol):
    """Takes lines for the user, and how far the work is."""

    def report(self, sentence: str) -> None:
        """Print one line."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Start a progress count up to `total`."""

    def count(self, done: int) -> None:
        """Set the progress to `done` of the total."""

    def end(self) -> None:
        """End the progress count."""


class LineReporter:
    """Prints the lines, and no progress."""

    def report(self, sentence: str) -> None:
        print(printable_line(sentence), flush=True)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        pass

    def count(self, done: int) -> None:
        pass

    def end(self) -> None:
        pass
