"""The files of onnxruntime-web that a page needs, of one pinned version: from a folder, the cache, or npm's registry.

They are not part of ubend. Wherever they come from, their SHA-256 must be the one below.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from ubend.core.errors import DataError
from ubend.core.files import default_cache, explain_write_errors, write_file
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.download import Remote, download

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
OPTION = "--ort-web"
SCRIPT, GLUE, WASM = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
_SHA256 = {
    SCRIPT: "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    GLUE: "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_ARCHIVE, _ARCHIVE_BYTES = f"{PACKAGE}-{VERSION}.tgz", 33_106_585
_LARGEST = 2**25  # bytes of a file in the archive that is read
_PLACES = (".", "dist", "package/dist", f"{PACKAGE}/dist", f"node_modules/{PACKAGE}/dist")  # below the user's folder
_PUBLIC_REGISTRY = "https://registry.npmjs.org/"


def find_ort_web(folder: Path | str | None, reporter: Reporter) -> dict[str, bytes]:
    """The files `SCRIPT`, `GLUE` and `WASM`.

    Args:
        folder: with the unpacked package, its `dist`, or the archive of `npm pack`; None: the cache, to which they are
            downloaded if they are missing.
        reporter: shows the download.
    Raises:
        DataError: the folder has no such files, or those of another version; or they cannot be downloaded.
        OutputError: the cache cannot be written.
    """
    if folder is not None:
        return _read_folder(Path(folder))
    cached = _cache_folder(default_cache())
    with explain_write_errors(cached):
        cached.mkdir(parents=True, exist_ok=True)
        with FileLock(cached / ".lock"):
            files = _read_files(cached)
            if _find_wrong(files) is None:
                return files
            return _download(cached, reporter)


def list_ort_web(cache: Path) -> list[tuple[Path, int]]:
    """The folder of these files in a cache, if it is there, with its size in bytes."""
    folder = _cache_folder(cache)
    if not folder.is_dir():
        return []
    return [(folder, sum(path.stat().st_size for path in folder.iterdir()))]


def clear_ort_web(cache: Path) -> int:
    """Delete these files from a cache; returns the number of bytes freed."""
    freed = 0
    for folder, size in list_ort_web(cache):
        shutil.rmtree(folder, ignore_errors=True)
        freed += size
    return freed


def _cache_folder(cache: Path) -> Path:
    return cache / f"{PACKAGE}-{VERSION}"


def _read_files(folder: Path) -> dict[str, bytes]:
    """Those of the files that are in a folder."""
    return {name: path.read_bytes() for name in _SHA256 if (path := folder / name).is_file()}


def _find_wrong(files: Mapping[str, bytes]) -> str | None:
    """The first file that is missing, or is not the published one; None: all are right."""
    return next(
        (name for name, digest in _SHA256.items() if hashlib.sha256(files.get(name, b"")).hexdigest() != digest), None
    )


def _read_folder(folder: Path) -> dict[str, bytes]:
    try:
        for place in _PLACES:
            if files := _read_files(folder / place):
                return _refuse_wrong(files, folder / place)
        if (folder / _ARCHIVE).is_file():
            return _refuse_wrong(_read_archive(folder / _ARCHIVE), folder / _ARCHIVE)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}", path=folder, key=OPTION) from error
    line = _("{path}: no {package} in it; give the folder in which `npm pack {package}@{version}` was run")
    raise DataError(line.format(path=folder, package=PACKAGE, version=VERSION), path=folder, key=OPTION)


def _refuse_wrong(files: dict[str, bytes], path: Path) -> dict[str, bytes]:
    if wrong := _find_wrong(files):
        line = _(
            "{path}: {name} is not that of {package} {version}; run `npm pack {package}@{version}` in an empty folder, "
            "and give that folder with {option} DIR"
        )
        raise DataError(
            line.format(path=path, name=wrong, package=PACKAGE, version=VERSION, option=OPTION), path=path, key=OPTION
        )
    return files


def _read_archive(path: Path) -> dict[str, bytes]:
    """Those of the files that are in an archive of npm."""
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("package/dist/")
                if name in _SHA256 and member.isreg() and member.size <= _LARGEST:
                    content = archive.extractfile(member)
                    files[name] = content.read() if content else b""
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(
            _("{path}: damaged or truncated ({reason})").format(path=path, reason=error), path=path
        ) from error
    return files


def _download(folder: Path, reporter: Reporter) -> dict[str, bytes]:
    archive = folder / _ARCHIVE
    line = _("{package} {version} (MIT licence), {size:.0f} MiB to download once")
    reporter.report(line.format(package=PACKAGE, version=VERSION, size=_ARCHIVE_BYTES / 2**20))
    url = f"{_find_registry().rstrip('/')}/{PACKAGE}/-/{_ARCHIVE}"
    download(Remote(_ARCHIVE, (url,), _ARCHIVE_BYTES, folder_option=OPTION), archive, reporter)
    try:
        files = _refuse_wrong(_read_archive(archive), archive)
    finally:
        archive.unlink(missing_ok=True)
    for name, content in files.items():
        _write(folder / name, content)
    return files


def _write(path: Path, content: bytes) -> None:
    write_file(path, lambda temporary: temporary.write_bytes(content))


def _find_registry() -> str:
    """The address of npm's registry: that of the environment, or of npm if it is installed; else the public one."""
    stated = next((value for name, value in os.environ.items() if name.lower() == "npm_config_registry" and value), "")
    npm = None if stated else shutil.which("npm")
    if npm:
        try:
            done = subprocess.run(
                [npm, "config", "get", "registry"], capture_output=True, text=True, timeout=60, check=False
            )
            stated = done.stdout.strip() if done.returncode == 0 else ""
        except (OSError, subprocess.TimeoutExpired):
            stated = ""
    return stated if stated.startswith(("https://", "http://")) else _PUBLIC_REGISTRY
