"""Data sets available by name: downloaded once, verified, and unpacked into the cache.

To add a data set, add an entry to `NAMED_SETS`; only data sets that need no account, with their terms.
"""

import difflib
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ubend.core.errors import DataError, OutputError
from ubend.core.files import DiskRequirement, check_disk_space, default_cache, write_json
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.download import Remote, check_file, download
from ubend.dataset.unpack import unpack
from ubend.portable.printable import shell_word


@dataclass(frozen=True)
class NamedSet:
    """A published data set.

    Attributes:
        title: with its source.
        page: web page of its authors.
        terms: of use, in words.
        files: to be downloaded.
        folder: name of the folder that it is usually unpacked to.
        top: the top folder in the archives; "": none.
        contents: folder -> suffix and minimum number of the files in it.
        classes: class names, if the layout of the folder does not state them.
        channels: in which its images are read, if the files differ.
    """

    title: str
    page: str
    terms: Callable[[], str]
    files: tuple[Remote, ...]
    folder: str
    top: str
    contents: Mapping[str, tuple[str, int]]
    classes: tuple[str, ...] | None = None
    channels: int | None = None


NAMED_SETS: dict[str, NamedSet] = {
    "oxford-pet": NamedSet(
        "Oxford-IIIT Pet (Parkhi et al., CVPR 2012)",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        lambda: _("CC BY-SA 4.0; the images remain their owners'"),
        (  # sizes and digests as torchvision and others publish them
            Remote(
                "annotations.tar.gz",
                (
                    "https://thor.robots.ox.ac.uk/pets/annotations.tar.gz",
                    "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                ),
                19_173_078,
                "95a8c909bbe2e81eed6a22bccdf3f68f",
            ),
            Remote(
                "images.tar.gz",
                (
                    "https://thor.robots.ox.ac.uk/pets/images.tar.gz",
                    "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                ),
                791_918_971,
                "5c4f3ee8e5d25df40f4fd59a7f44e54c",
            ),
        ),
        "oxford-iiit-pet",
        "",
        {"images": (".jpg", 7349), "annotations/trimaps": (".png", 7349), "annotations": (".txt", 2)},
        channels=3,
    ),
    "kvasir-seg": NamedSet(
        "Kvasir-SEG (Jha et al., MMM 2020)",
        "https://datasets.simula.no/kvasir-seg/",
        lambda: _("for research and education; ask its authors for any other use"),
        (Remote("kvasir-seg.zip", ("https://datasets.simula.no/downloads/kvasir-seg.zip",), 46_200_000),),
        "kvasir-seg",
        "Kvasir-SEG",
        {"images": (".jpg", 1000), "masks": (".jpg", 1000)},
        ("background", "polyp"),
    ),
}
_RECORD = ".files.json"  # of an unpacked data set: size, modification time (ns) and CRC-32 of each file
_UNPACKED = 1.2  # maximum ratio of unpacked to downloaded bytes


def find_dataset(name_or_folder: str | Path, root: str | Path | None, reporter: Reporter) -> Path:
    """The folder of a data set; downloads a named one if necessary.

    Args:
        name_or_folder: the name of a data set, or a folder, which is returned unchanged if it exists.
        root: folder with a copy of the named data set or its archives, or to download to; None: the cache.
        reporter: reports what is downloaded, and the terms of use.
    Raises:
        DataError: the data set cannot be downloaded, or a copy of it is incomplete.
        OutputError: the disk is full, or the folder cannot be written.
    """
    folder, name = Path(name_or_folder), str(name_or_folder)
    wanted = named_set(name, root)
    if wanted is not None:
        target = (default_cache() / "datasets" if root is None else Path(root)) / name
        return _find_copy(wanted, target, name, root is None) or _download_set(
            name, wanted, target, root is None, reporter
        )
    if root is not None:
        raise DataError(
            _("--root is only for data sets by name ({names}), not for {folder}; leave it out").format(
                names=", ".join(NAMED_SETS), folder=folder
            ),
            path=folder,
            key="--root",
        )
    near = difflib.get_close_matches(name.lower().replace("_", "-"), NAMED_SETS, 1, 0.8)
    if near and not folder.exists():
        raise DataError(
            _("{folder}: no such folder; did you mean the data set {name}?").format(folder=folder, name=near[0]),
            path=folder,
        )
    return folder


def named_set(name_or_folder: str | Path, root: str | Path | None) -> NamedSet | None:
    """The named data set; None if the argument is a folder."""
    return NAMED_SETS.get(str(name_or_folder)) if root is not None or not Path(name_or_folder).exists() else None


def list_datasets(cache: Path) -> list[tuple[Path, int]]:
    """The named data sets in a cache, complete or partial, with their sizes in bytes."""
    candidates = [path for name in NAMED_SETS if (path := cache / "datasets" / name).is_dir()]
    return [(path, sum(file.stat().st_size for file in path.rglob("*") if file.is_file())) for path in candidates]


def clear_datasets(cache: Path) -> int:
    """Delete the named data sets in a cache; returns the number of bytes freed."""
    freed = 0
    for path, size in list_datasets(cache):
        shutil.rmtree(path, ignore_errors=True)
        freed += size
    return freed


def _find_copy(wanted: NamedSet, target: Path, name: str, in_cache: bool) -> Path | None:
    """Find an unpacked copy: in its own folder, or in one of the usual folders next to and above `target`.

    A damaged copy in the cache counts as missing.

    Raises:
        DataError: a copy outside the cache is incomplete.
    """
    tops = [target / wanted.folder, target, target.parent / wanted.folder, target.parent]
    folders = [inner for top in tops for inner in (top / wanted.top, top)]
    copy = next((folder for folder in folders if all((folder / part).is_dir() for part in wanted.contents)), None)
    if copy and in_cache and copy.is_relative_to(tops[0]):
        return None if _missing(wanted, copy) or _is_changed(tops[0]) else copy
    if copy and (missing := _missing(wanted, copy)):
        raise DataError(
            _(
                "{folder} is an incomplete copy of {name}: {missing}; delete it, choose another --root, or use it "
                "as a folder: ubend fit {folder}"
            ).format(folder=shell_word(copy), name=name, missing=", ".join(missing)),
            path=copy,
            key="contents",
        )
    return copy


def _missing(wanted: NamedSet, folder: Path) -> list[str]:
    """What is missing from a copy of the data set; additional files are allowed."""
    lacking = []
    for part, (suffix, count) in wanted.contents.items():
        present = sum(path.suffix == suffix and path.name[0] != "." for path in (folder / part).glob("*"))
        if present < count:
            what = _("{found} of {count} files {kind} in {part}/")
            lacking.append(what.format(found=present, count=count, kind=suffix, part=part))
    return lacking


def _is_changed(folder: Path) -> bool:
    """Whether files of an unpacked data set differ from its record; checksums only if size or time differ."""
    if not (folder / _RECORD).exists():  # unpacked by an earlier version
        return False
    try:
        for name, (size, changed_ns, check_sum) in json.loads((folder / _RECORD).read_bytes()).items():
            stat = (folder / name).stat()
            if [stat.st_size, stat.st_mtime_ns] != [size, changed_ns] and _check_sum(folder / name) != check_sum:
                return True
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return True
    return False


def _record(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stats = {name: path.stat() for name, path in files.items()}
    rows = {name: [stat.st_size, stat.st_mtime_ns, _check_sum(files[name])] for name, stat in stats.items()}
    write_json(folder / _RECORD, rows)


def _check_sum(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


def _download_set(name: str, wanted: NamedSet, target: Path, in_cache: bool, reporter: Reporter) -> Path:
    """Download missing archives, unpack them, and move the complete data set to its folder."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target / ".lock")
        try:
            acquired = lock.acquire(timeout=0)
        except Timeout:
            reporter.report(_("waiting for another process that is downloading {name}").format(name=name))
            acquired = lock.acquire()
        with acquired:
            if copy := _find_copy(wanted, target, name, in_cache):  # made by the other process
                return copy
            if in_cache and (target / wanted.folder).exists():
                line = _("note: {name} in the cache was damaged and is downloaded again ({path})")
                reporter.report(line.format(name=name, path=target / wanted.folder))
            archives = _collect_archives(name, wanted, target, in_cache, reporter)
            try:
                _unpack_all(wanted, archives, target, in_cache, reporter)
            except DataError:  # the archives are useless
                _delete_own(archives, target, in_cache)
                raise
            _delete_own(archives, target, in_cache)
    except OSError as error:
        raise OutputError(
            _("cannot write {path}: {reason}; free some space, or choose another folder with --root DIR").format(
                path=target, reason=error.strerror or error
            ),
            path=target,
        ) from error
    copy = _find_copy(wanted, target, name, in_cache)
    assert copy is not None  # it was complete when it was moved
    return copy


def _delete_own(archives: list[Path], target: Path, in_cache: bool) -> None:
    """Delete archives in the cache, which are not needed any more; those under --root belong to the user."""
    for archive in archives:
        if in_cache and archive.parent == target:
            archive.unlink(missing_ok=True)


def _collect_archives(name: str, wanted: NamedSet, target: Path, in_cache: bool, reporter: Reporter) -> list[Path]:
    """The archives of a data set: verifies local ones, and downloads the others."""
    archives, absent = [], []
    for file in wanted.files:
        candidates = (target, target.parent, target.parent / wanted.folder)
        local_file = next((path for folder in candidates if (path := folder / file.name).is_file()), None)
        if local_file is not None and (wrong := check_file(local_file, file)):
            if not in_cache or local_file.parent != target:
                raise DataError(
                    _("{path}: {reason}; delete it, or download it again").format(path=local_file, reason=wrong),
                    path=local_file,
                )
            line = _("note: {path} was damaged and is downloaded again ({reason})")
            reporter.report(line.format(path=local_file, reason=wrong))
            local_file = None
        archives.append(local_file or target / file.name)
        if local_file is None:
            absent.append(file)
    size = sum(file.size for file in absent)
    unpacked = round(_UNPACKED * sum(file.size for file in wanted.files))
    check_disk_space([DiskRequirement(target, size + unpacked, _("choose another folder with --root DIR"))])
    if absent:
        reporter.report(
            _("{name}: {title}, {size:.0f} MiB to download to {target}").format(
                name=name, title=wanted.title, size=size / 2**20, target=target
            )
        )
        reporter.report(_("terms of use: {terms}; see {page}").format(terms=wanted.terms(), page=wanted.page))
    for file in absent:
        download(file, target / file.name, reporter)
    return archives


def _unpack_all(wanted: NamedSet, archives: list[Path], target: Path, in_cache: bool, reporter: Reporter) -> None:
    """Unpack into a hidden folder, and rename it if it is complete."""
    hidden = target / ".unpacking"
    shutil.rmtree(hidden, ignore_errors=True)  # left by a killed process
    try:
        hidden.mkdir()
        for archive in archives:
            size = archive.stat().st_size
            reporter.begin(_("unpacking {name} (MiB)").format(name=archive.name), round(size / 2**20))
            unpack(archive, hidden, lambda done: reporter.count(round(done / 2**20)))
            reporter.end()
        inner = hidden / wanted.top
        if missing := _missing(wanted, inner if inner.is_dir() else hidden):
            raise DataError(
                _("{files}: not the expected data set ({missing}); see {page}").format(
                    files=", ".join(map(str, archives)), missing=", ".join(missing), page=wanted.page
                ),
                path=archives[0],
                key="contents",
            )
        if in_cache:  # an existing folder is damaged
            _record(hidden)
            shutil.rmtree(target / wanted.folder, ignore_errors=True)
        hidden.rename(target / wanted.folder)
    finally:
        reporter.end()
        shutil.rmtree(hidden, ignore_errors=True)
