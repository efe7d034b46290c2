"""Writes a copy of a data folder in which findings of the dataset doctor are mended; the original is not changed.

The copy is written beside its place and renamed when it is complete. It is examined again, and what is found then is
mended too: a mask without its image, a copy of an image that could not be read before.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ubend.core.errors import DataError, OutputError, SettingError
from ubend.core.files import DiskRequirement, check_disk_space, csv_text, explain_write_errors, write_file, write_text
from ubend.core.i18n import _, ngettext
from ubend.core.progress import Reporter
from ubend.core.settings import Settings, change_settings
from ubend.dataset.dataset import find_folder
from ubend.doctor.finding import Finding
from ubend.doctor.finding_text import describe_counts
from ubend.doctor.inspection import Inspection
from ubend.doctor.repairs import VALUE_CHECKS, Change, RepairContext, plan_repairs
from ubend.doctor.values import find_known_values, given_values
from ubend.layouts.folder import finds_pairs_by_name
from ubend.layouts.pairs import Folder
from ubend.layouts.split_file import SPLIT_COLUMNS
from ubend.portable.image_paths import is_system

REPAIRS_FILE = "repairs.csv"
_COLUMNS = ("file", "check", "repair")
_ROUNDS = 5  # rounds of mending and examining, at most; a round that mends nothing new is the last
_SPLIT_FILE = "split.csv"


@dataclass(frozen=True)
class Examination:
    """What the doctor says of a folder.

    Attributes:
        inspection: the pairs that can be read; None: there are none.
        findings: errors first, without accepted ones.
        accepted: number of findings that are accepted.
    """

    inspection: Inspection | None
    findings: list[Finding]
    accepted: int


def refuse_unfit(settings: Settings, out: Path) -> None:
    """Fail if no copy can be written, before anything is read.

    Raises:
        SettingError: the data is not one folder.
        OutputError: the copy exists, or would be inside the original.
    """
    if settings.data.folder is None:
        line = _("--fix copies a folder: give FOLDER instead of --images and --masks")
        raise SettingError(line, key="--fix")
    if os.path.lexists(out):
        line = _("{path} exists already; choose another folder for --fix")
        raise OutputError(line.format(path=out), path=out, key="--fix")
    if out.resolve().is_relative_to(Path(settings.data.folder).resolve()):
        line = _("{path} is inside the data folder; choose another folder for --fix")
        raise OutputError(line.format(path=out), path=out, key="--fix")


def write_repaired(
    settings: Settings,
    out: Path,
    examination: Examination,
    examine: Callable[[Settings], Examination],
    log: Reporter,
) -> list[Finding]:
    """Write a copy of the data folder with all that `REPAIRS` mends, and `repairs.csv`: file, check, repair.

    Args:
        settings: of the original.
        out: the copy's folder, which does not exist.
        examination: of the original.
        examine: examines the folder of other settings.
        log: reports what was done.
    Returns:
        The findings that are left.
    Raises:
        DataError: nothing can be read, or more than half of the pairs would be left out; nothing is written then.
        OutputError: the disk is full, or the folder cannot be written.
    """
    root = Path(str(settings.data.folder))
    if examination.inspection is None:
        raise DataError(_("{folder}: nothing of it can be read, so no copy is written").format(folder=root), path=root)
    by_name = finds_pairs_by_name(root)
    if not by_name:
        log.report(_("note: this folder lists its pairs in a file, so none is left out of the copy"))
    changes = _plan(settings, examination, by_name)
    files = dict(_list_files(root))
    _check_space(out, files, changes)
    copy = _Copy(root, out.absolute().with_name(f".{out.name}-{secrets.token_hex(4)}"), settings)
    try:
        with explain_write_errors(out):
            copy.begin(files, changes, log)
            for _round in range(_ROUNDS if changes else 0):
                examination = examine(copy.settings)
                changes = copy.leave_out_done(_plan(copy.settings, examination, by_name))
                if not changes:
                    break
                copy.apply(changes)
            copy.finish()
            os.rename(copy.stage, out)
    finally:
        shutil.rmtree(copy.stage, ignore_errors=True)
    _report(out, copy, examination, log)
    place = copy.stage if copy.rows else root
    return [_move_files(finding, place, out) for finding in examination.findings]


def _plan(settings: Settings, examination: Examination, by_name: bool) -> list[Change]:
    """The changes that mend the findings."""
    inspection = examination.inspection
    if inspection is None:
        return []
    folder = find_folder(change_settings(settings, {"data.skip_bad": True}))
    odd_files = {file for finding in examination.findings if finding.check in VALUE_CHECKS for file in finding.files}
    odd = [i for i in range(len(inspection)) if inspection.mask_path(i) in odd_files]
    known = find_known_values(inspection.data.label_scan, given_values(folder, settings)[0], odd)
    changes = plan_repairs(RepairContext(inspection, folder, known, by_name), examination.findings)
    _refuse_many(folder, changes)
    return changes


def _refuse_many(folder: Folder, changes: Sequence[Change]) -> None:
    """Fail if more than half of the pairs would be left out: the cause is then probably not in their files.

    Raises:
        DataError: they would.
    """
    left_out = {change.file for change in changes if change.target is None}
    count = sum(pair.image in left_out for pair in folder.pairs)
    if 2 * count > len(folder.pairs):
        line = _("{count} of {total} pairs would be left out, so no copy is written; look at the findings above first")
        raise DataError(line.format(count=count, total=len(folder.pairs)), path=folder.root)


def _list_files(root: Path) -> Iterator[tuple[Path, int]]:
    """(path relative to the root, bytes) of each regular file, linked ones too, without hidden and system files."""
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        above = {os.path.realpath(root / parent) for parent in Path(folder).relative_to(root).parents}
        if real in above:  # a loop of links
            names.clear()
            continue
        names[:] = [name for name in sorted(names) if name[0] != "." and not is_system(name)]
        for name in sorted(files):
            path = Path(folder, name)
            if name[0] != "." and not is_system(name) and path.is_file():
                yield path.relative_to(root), path.stat().st_size


def _check_space(out: Path, files: dict[Path, int], changes: Sequence[Change]) -> None:
    size = sum(files.values()) + sum(change.size for change in changes)
    check_disk_space([DiskRequirement(out, size, _("choose another folder for --fix"))])


class _Copy:
    """The copy while it is written.

    Attributes:
        stage: its folder.
        settings: with which it is read.
        rows: of `repairs.csv`.
    """

    def __init__(self, root: Path, stage: Path, settings: Settings) -> None:
        self.root, self.stage, self.rows = root, stage, list[tuple[str, str, str]]()
        self._original, self._done = settings, set[tuple[Path, str]]()
        self._left_out = set[str]()  # names of pairs
        self.settings = change_settings(settings, {"data.folder": str(stage)})

    def begin(self, files: dict[Path, int], changes: Sequence[Change], log: Reporter) -> None:
        """Copy all files but those that are left out, and apply the other changes to the copies."""
        left_out = {change.file.relative_to(self.root) for change in changes if change.target is None}
        self.stage.mkdir(parents=True)
        log.begin(_("copying files"), len(files))
        for done, file in enumerate(files, 1):
            if file not in left_out:
                (self.stage / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / file, self.stage / file)
            log.count(done, len(files))
        log.end()
        self._apply(self.root, changes)

    def leave_out_done(self, changes: Sequence[Change]) -> list[Change]:
        """The changes that were not made before: a repair that did not help is not repeated."""
        return [change for change in changes if (change.file.relative_to(self.stage), change.check) not in self._done]

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes to the copy."""
        self._apply(self.stage, changes)

    def _apply(self, base: Path, changes: Sequence[Change]) -> None:
        for change in changes:
            file = change.file.relative_to(base)
            if change.write is None or change.target is None:
                (self.stage / file).unlink(missing_ok=True)
            else:
                target = self.stage / change.target.relative_to(base)
                write_file(target, change.write)
                if target != self.stage / file:
                    (self.stage / file).unlink(missing_ok=True)
            self._done.add((file, change.check))
            self.rows.append((file.as_posix(), change.check, change.done))
        if self._original.data.split is not None and any(change.target is None for change in changes):
            self._write_split()

    def _write_split(self) -> None:
        """The split file without the pairs that are left out."""
        folder = find_folder(change_settings(self._original, {"data.skip_bad": True}))
        pairs = [pair for pair in folder.pairs if not self._is_left_out(pair.image)]
        columns = SPLIT_COLUMNS if any(pair.split for pair in pairs) else (SPLIT_COLUMNS[0], SPLIT_COLUMNS[2])
        cells = [(pair.name, pair.split or "", pair.group or "") for pair in pairs]
        rows = [row if len(columns) == len(row) else (row[0], row[2]) for row in cells]
        path = self.stage / self._split_name()
        write_text(path, csv_text([columns, *rows]))
        self.settings = change_settings(self.settings, {"data.split": str(path)})

    def _split_name(self) -> Path:
        split, root = Path(str(self._original.data.split)).absolute(), self.root.absolute()
        return split.relative_to(root) if split.is_relative_to(root) else Path(_SPLIT_FILE)

    def _is_left_out(self, image: Path) -> bool:
        file = image.relative_to(self.root)
        return not any((self.stage / file).with_suffix(suffix).exists() for suffix in (file.suffix, ".png"))

    @property
    def split(self) -> Path | None:
        """The split file of the copy, relative to it; None: the original's is used, or none."""
        return None if self.settings.data.split == self._original.data.split else self._split_name()

    def finish(self) -> None:
        """Write `repairs.csv`; the rows of an earlier repair stay above."""
        path = self.stage / REPAIRS_FILE
        earlier = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
        header = csv_text([_COLUMNS])
        write_text(path, (earlier if earlier.startswith(header) else header) + csv_text(self.rows))


def _report(out: Path, copy: _Copy, examination: Examination, log: Reporter) -> None:
    line = ngettext(
        "{folder}: a copy with {count} repaired file, listed in {file}; left: {counts}",
        "{folder}: a copy with {count} repaired files, listed in {file}; left: {counts}",
        len(copy.rows),
    )
    counts = describe_counts(examination.findings) or _("no findings")
    log.report(line.format(folder=out, count=len(copy.rows), file=REPAIRS_FILE, counts=counts))
    if copy.split is not None:
        log.report(_("read it with --split {file}").format(file=out / copy.split))


def _move_files(finding: Finding, place: Path, out: Path) -> Finding:
    """The finding with the final paths of its files."""
    files = (out / file.relative_to(place) if file.is_relative_to(place) else file for file in finding.files)
    return replace(finding, files=tuple(files))
