"""What is kept between runs."""

from collections.abc import Iterator

from ubend.core.files import default_cache
from ubend.core.i18n import _
from ubend.dataset.named_sets import clear_datasets, list_datasets
from ubend.dataset.store import clear_stores, list_stores


def describe_cache() -> Iterator[str]:
    """A line for each thing that is kept, and one for all."""
    where = default_cache()
    held = [*list_stores(where), *list_datasets(where)]
    for folder, size in held:
        yield f"{size / 2**20:10.1f} MiB  {folder.relative_to(where).as_posix()}"
    total = sum(size for _folder, size in held) / 2**20
    yield _("{size:.1f} MiB in {path}; `ubend cache --clear` deletes it").format(size=total, path=where)


def clear_cache() -> Iterator[str]:
    """Delete all of it; a line that says how much it was."""
    where = default_cache()
    freed = clear_stores(where) + clear_datasets(where)
    yield _("{size:.1f} MiB freed in {path}").format(size=freed / 2**20, path=where)
