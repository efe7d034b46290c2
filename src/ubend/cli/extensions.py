"""Commands of other installed packages: entry points of the group `ubend.commands`."""

import functools
import importlib
import operator
import os
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import click

from ubend.core.click_i18n import Command
from ubend.core.errors import UbendError
from ubend.core.i18n import _

GROUP = "ubend.commands"


class Extension(NamedTuple):
    """A command of another package, not imported yet."""

    name: str
    value: str  # as in entry_points.txt: "package.module:function"
    package: str


@functools.cache
def find_extensions() -> dict[str, Extension]:
    """The commands of all packages installed in folders of `sys.path`, by name; the first one wins.

    This reads the files that `importlib.metadata` reads (https://packaging.python.org/specifications/entry-points/):
    importing that module and searching with it would take a quarter of the CPU time of `ubend --help`.
    Packages in zip archives and eggs are not found.
    """
    extensions: dict[str, Extension] = {}
    packages: set[str] = set()
    for folder in sys.path:
        for metadata in _list_metadata(folder):
            package = metadata.rpartition(".")[0].partition("-")[0]
            normalized = re.sub(r"[-_.]+", "_", package).lower()
            if normalized not in packages:  # otherwise an earlier folder hides it
                packages.add(normalized)
                for name, value in _read_entries(os.path.join(folder, metadata, "entry_points.txt")):
                    extensions.setdefault(name, Extension(name, value, package))
    return extensions


def _list_metadata(folder: str) -> list[str]:
    """Names of the metadata folders in a folder of `sys.path`, in which "" is the working directory."""
    try:
        return sorted(name for name in os.listdir(folder or ".") if name.endswith((".dist-info", ".egg-info")))
    except OSError:
        return []


def _read_entries(path: str) -> Iterator[tuple[str, str]]:
    """Name and value of each entry point of our group; empty if the file is missing."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except OSError:
        return
    section = ""
    for line in map(str.strip, data.decode(errors="replace").splitlines() if GROUP.encode() in data else ()):
        if line.startswith("["):
            section = line
        elif section == f"[{GROUP}]" and "=" in line and not line.startswith("#"):
            name, _equals, value = line.partition("=")
            yield name.strip(), value.strip()


def load_extension(extension: Extension) -> click.Command:
    """Load the command; if that fails, return one that reports the error in the list of commands and when called."""
    try:
        reference = extension.value.partition("[")[0]  # without extras
        module, _colon, attribute = (word.strip() for word in reference.partition(":"))
        command = operator.attrgetter(attribute)(importlib.import_module(module))
        if not isinstance(command, click.Command):
            raise TypeError(_("{value} is not a click command").format(value=extension.value))
        return command
    except Exception as error:
        problem = _("package {package} is broken ({reason}); update or uninstall it").format(
            package=extension.package, reason=" ".join(f"{type(error).__name__}: {error}".split())
        )

    def fail(arguments: tuple[str, ...]) -> None:
        raise UbendError(problem, key=extension.name)

    return Command(
        extension.name,
        callback=fail,
        help=problem,
        params=[click.Argument(["arguments"], nargs=-1)],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
