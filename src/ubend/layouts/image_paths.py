"""The image files that a command line names."""

import glob
import sys
from collections.abc import Iterable
from pathlib import Path

from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.layouts.naming import IMAGE_SUFFIXES


def list_images(paths: Iterable[Path | str]) -> list[Path]:
    """Files as they are; folders give the images in them, patterns what they match, both sorted by name; `-`
    the lines of the standard input.

    Raises:
        DataError: there is no such file, or there are no images.
    """
    images: list[Path] = []
    lines = (sys.stdin if str(path) == "-" else [str(path)] for path in paths)
    for path in (Path(line.rstrip("\r\n")) for some in lines for line in some if line.strip()):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
            if not found:
                raise DataError(_("{path}: no pictures in this folder").format(path=path), path=path)
            images += found
        elif path.exists():
            images.append(path)
        elif matched := sorted(glob.glob(str(path), recursive=True)):
            images += [Path(p) for p in matched if Path(p).is_file()]
        else:
            raise DataError(_("{path}: no such file").format(path=path), path=path)
    if not images:
        raise DataError(_("no pictures to predict; name files or folders"), key="paths")
    return images
