"""The cache: listing and clearing it."""

from collections.abc import Iterator
from datetime import datetime

from ubend.core.files import default_cache
from ubend.core.i18n import _
from ubend.dataset.named_sets import clear_datasets, list_datasets
from ubend.dataset.store import clear_stores, describe_store, list_stores
from ubend.exporting.ort_web import PACKAGE, clear_ort_web, list_ort_web
from ubend.tasks.runs import align, show_date


def describe_cache() -> Iterator[str]:
    """A line for each cached item (size, date, kind, data folder, path), and one for the total."""
    where = default_cache()
    entries = [(path, size, *describe_store(path)) for path, size in list_stores(where)]
    entries += [(path, size, _("data set"), str(path)) for path, size in list_datasets(where)]
    entries += [(path, size, PACKAGE, str(path)) for path, size in list_ort_web(where)]
    rows = [
        [
            f"{size / 2**20:10.1f} MiB",
            show_date(datetime.fromtimestamp(path.stat().st_mtime)),
            text,
            folder or "?",
            path.relative_to(where).as_posix(),
        ]
        for path, size, text, folder in entries
    ]
    yield from align(rows, right=len(rows[0])) if rows else []
    total = sum(size for _path, size, _text, _folder in entries) / 2**20
    yield _("{size:.1f} MiB in {path}; `ubend cache --clear` deletes it").format(size=total, path=where)


def clear_cache() -> Iterator[str]:
    """Delete the cache; returns a line with the freed size."""
    where = default_cache()
    freed = clear_stores(where) + clear_datasets(where) + clear_ort_web(where)
    yield _("{size:.1f} MiB freed in {path}").format(size=freed / 2**20, path=where)
