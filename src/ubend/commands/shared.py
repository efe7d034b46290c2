"""What commands share: options that say the same everywhere, progress, scores."""

import atexit
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ubend.errors import SettingError
from ubend.language import _, later
from ubend.translated import option

if TYPE_CHECKING:
    from ubend.teller import Teller

PATH = click.Path(path_type=Path)
_F = TypeVar("_F", bound=Callable[..., Any])

# Where pictures and masks are, and what they mean: the same words in every command that reads them.
_FOLDER_OPTIONS = {
    "images": option("--images", help=later("Folder or quoted pattern of the pictures, in place of FOLDER.")),
    "masks": option("--masks", help=later("Folder or quoted pattern of the masks, with --images.")),
    "split": option("--split", type=PATH, help=later("CSV file,split[,group]: which picture is in which part.")),
    "classes": option("--classes", help=later("Class names in the order of the mask values, by comma.")),
    "values": option("--values", help=later('What masks hold: 0=background,255=polyp or "#ff0000=road,..."')),
    "channels": option("--channels", type=int, help=later("1 reads grey, 3 colour, else so many  [as they are]")),
    "skip-bad": option("--skip-bad", is_flag=True, default=None, help=later("Leave out pairs that cannot be used.")),
    "root": option("--root", type=PATH, help=later("Where a data set known by name lies, or goes  [the cache]")),
}


def folder_options(*names: str) -> Callable[[_F], _F]:
    """Some of them, or all."""

    def add(command: _F) -> _F:
        for name in reversed(names or list(_FOLDER_OPTIONS)):
            command = _FOLDER_OPTIONS[name](command)
        return command

    return add


def parse_tiles(text: str | None) -> int | None:
    """What --tiles says: a side in px, 0 for `whole`; None where nothing was said."""
    if text is None or text == "whole":
        return None if text is None else 0
    if not text.isdecimal():
        raise SettingError(
            _("--tiles {tiles}: give a side in px, or 0 for whole pictures").format(tiles=text), key="--tiles"
        )
    return int(text)


def prepare(deterministic: bool) -> None:
    """torch, and a process that ends soon after its last word: all its memory goes back at once, garbage or not."""
    from ubend.device import prepare_process

    prepare_process(deterministic)
    atexit.register(gc.freeze)


def make_teller() -> "Teller":
    """What tells of progress."""
    from ubend.teller import Teller

    return Teller()


def tell_scores(scores: dict[str, Any]) -> None:
    """Print scores, and a warning where they are worth little."""
    from ubend.jobs.evaluate import score_lines, warn_one_class

    for line in score_lines(scores):
        click.echo(line)
    warning = warn_one_class(scores)
    if warning:
        click.echo(warning, err=True)
