"""Images of a report: figures, and examples of several figures."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """An image of the page: title, alternative text, and `data:` URI."""

    title: str
    alt: str
    uri: str


@dataclass(frozen=True)
class Example:
    """A test image, or a part of it, with truth, predictions and errors."""

    caption: str
    figures: Sequence[Figure]
