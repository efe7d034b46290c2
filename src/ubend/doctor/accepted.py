"""Findings that a person has accepted: kept in `data.toml` in the data folder, quiet until a file changes.

    [[accepted]]
    check = "blurred image"
    file = "images/0007.png"    # relative to the data folder; "." for findings of the set as a whole
    hash = "..."                # of the content of the file; of all files for "."

The file may be one that `ubend data` wrote: its other content is kept, and not read here.
"""

import hashlib
import json
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ubend.core.errors import SettingError, reason
from ubend.core.files import read_text, write_text
from ubend.core.i18n import _
from ubend.core.settings import ACCEPTED_KEY, Settings
from ubend.doctor.finding import Finding
from ubend.doctor.inspection import Inspection
from ubend.layouts.layouts import list_root

FILE_NAME = "data.toml"
_FIELDS = ("check", "file", "hash")
_WHOLE_SET = "."
# Each file of these findings has the fault by itself; the files of others are findings together.
_OF_SINGLE_FILES = frozenset(
    ("empty mask", "full mask", "absent class", "specks", "pin-holes", "JPEG mask", "turned image", "odd channels",
     "odd aspect")
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Accepted:
    """An accepted finding in one file; for the fields see the module."""

    check: str
    file: str
    hash: str


def accepted_path(settings: Settings) -> Path:
    """The file of the accepted findings: in the folder of the data, or that of images and masks."""
    data = settings.data
    if data.folder is None and data.images is not None and data.masks is not None:
        return list_root(data.images, data.masks) / FILE_NAME
    return Path(data.folder or "") / FILE_NAME


def read_accepted(path: Path) -> frozenset[Accepted]:
    """The accepted findings of a file; none if it does not exist.

    Raises:
        SettingError: it cannot be read, is not TOML, or an entry is not as the module says.
    """
    if not path.exists():
        return frozenset()
    try:
        table = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        line = _("cannot read accepted findings from {path}: {reason}; repair the file, or delete it")
        raise SettingError(line.format(path=path, reason=reason(error)), path=path, key=ACCEPTED_KEY) from error
    entries = table.get(ACCEPTED_KEY, [])
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        if not _is_entry(entry) or not isinstance(entries, list):
            line = _(
                "{path}: entry {number} of [[accepted]] must have the texts check, file and hash, and nothing else; "
                "repair or delete it, and accept the finding again with `ubend doctor --accept`"
            )
            raise SettingError(line.format(path=path, number=number), path=path, key=ACCEPTED_KEY)
    return frozenset(Accepted(**entry) for entry in entries)


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict) and set(entry) == {*_FIELDS} and all(isinstance(text, str) for text in entry.values())
    )


def leave_out_accepted(findings: Sequence[Finding], inspection: Inspection) -> tuple[list[Finding], int]:
    """The findings that are not accepted, and how many are.

    Args:
        findings: of the checks. A finding is accepted if it is in all of its files as they are now; where each file has
            the fault by itself, accepted files are taken out.
        inspection: of the data.
    Raises:
        SettingError: see `read_accepted`.
    """
    path = accepted_path(inspection.settings)
    accepted = read_accepted(path)
    if not accepted:
        return list(findings), 0
    entries = _Entries(path.parent, inspection)
    left = []
    for finding in findings:
        files = [file for file in finding.files if entries.make(finding.check, file) not in accepted]
        if finding.files and finding.check in _OF_SINGLE_FILES and files:
            left.append(replace(finding, files=tuple(files)))
        elif files or (not finding.files and entries.make(finding.check, None) not in accepted):
            left.append(finding)
    return left, len(findings) - len(left)


def accept(wanted: Sequence[str], findings: Sequence[Finding], inspection: Inspection) -> list[Finding]:
    """Add findings to the accepted ones; entries of files that have changed since are replaced.

    Args:
        wanted: of each, `CHECK`: all findings of this check; or `CHECK:FILE`: those that name this file, by its path in
            the data folder or by its name alone.
        findings: of the checks.
        inspection: of the data.
    Returns:
        The findings that are accepted now.
    Raises:
        SettingError: no such finding; see also `read_accepted`.
        OutputError: the file cannot be written.
    """
    path = accepted_path(inspection.settings)
    entries, accepted = _Entries(path.parent, inspection), set(read_accepted(path))
    taken: list[Finding] = []
    added: set[Accepted] = set()
    for text in wanted:
        check, _colon, name = text.partition(":")
        chosen = [
            (finding, files)
            for finding in findings
            if finding.check == check.strip() and (files := _choose_files(finding, name.strip(), entries)) is not None
        ]
        if not chosen:
            line = _("--accept {text}: no such finding; give CHECK or CHECK:FILE, as `ubend doctor` prints them")
            raise SettingError(line.format(text=text), key="--accept")
        for finding, files in chosen:
            taken.append(finding)
            added |= {entries.make(finding.check, file) for file in files or (None,)}
    replaced = {(entry.check, entry.file) for entry in added}
    accepted = {entry for entry in accepted if (entry.check, entry.file) not in replaced} | added
    _write_accepted(path, accepted)
    return taken


def _choose_files(finding: Finding, name: str, entries: "_Entries") -> tuple[Path, ...] | None:
    """The files of a finding to accept; None: it does not name the file."""
    if not name:
        return finding.files
    named = [file for file in finding.files if name in (file.name, entries.shorten(file))]
    if not named:
        return None
    return tuple(named) if finding.check in _OF_SINGLE_FILES else finding.files


def _write_accepted(path: Path, accepted: Collection[Accepted]) -> None:
    """Write the entries at the end of the file; its other content is kept.

    Raises:
        SettingError: the file has its entries in another form than `[[accepted]]`.
        OutputError: it cannot be written.
    """
    before = read_text(path) if path.exists() else ""
    rest, inside = list[str](), False
    for line in before.splitlines():
        if line.strip().startswith("["):
            inside = line.strip().startswith(f"[[{ACCEPTED_KEY}]]")
        if not inside:
            rest.append(line)
    tables = [
        "\n".join([f"[[{ACCEPTED_KEY}]]", *(f"{field} = {_quote(getattr(entry, field))}" for field in _FIELDS)])
        for entry in sorted(accepted)
    ]
    above = "\n".join(rest).rstrip()
    text = "\n\n".join([above, *tables] if above else tables) + "\n"
    if _parse(text) != (_parse(before) or {}) | {ACCEPTED_KEY: [vars(entry) for entry in sorted(accepted)]}:
        line = _("{path}: write each accepted finding as a table [[accepted]], or delete them, and accept them again")
        raise SettingError(line.format(path=path), path=path, key=ACCEPTED_KEY)
    write_text(path, text)


def _parse(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except ValueError:
        return None


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's basic strings have JSON's escapes


class _Entries:
    """Makes the entries of findings, as files are now."""

    def __init__(self, folder: Path, inspection: Inspection) -> None:
        self._folder, self._hashes = folder.absolute(), dict[Path, str]()
        for index, (image, mask) in enumerate(inspection.data.store.hashes):
            self._hashes |= {inspection.image_path(index): image, inspection.mask_path(index): mask}
        self._all = hashlib.blake2b(json.dumps(inspection.data.store.hashes).encode(), digest_size=16).hexdigest()

    def shorten(self, file: Path) -> str:
        """The path below the data folder."""
        file = file.absolute()
        return file.relative_to(self._folder).as_posix() if file.is_relative_to(self._folder) else file.as_posix()

    def make(self, check: str, file: Path | None) -> Accepted:
        """The entry of a finding in a file; None: in the set as a whole."""
        if file is None:
            return Accepted(check, _WHOLE_SET, self._all)
        return Accepted(check, self.shorten(file), self._hashes[file])
