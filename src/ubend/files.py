"""Files written whole or not at all: beside the target, synced, then renamed over it."""

import contextlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ubend.errors import OutputError, reason
from ubend.language import _


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write(temporary)` fill a file beside `path`, sync it, then rename it to `path`.

    A reader sees the old file or the new one, never a part; on any failure the old one stays.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
        temporary.touch(exist_ok=False)  # with the permissions that the user's umask gives
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            _("cannot write {path}: {reason}; free some space or choose another place").format(
                path=path, reason=reason(error)
            )
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_file(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
