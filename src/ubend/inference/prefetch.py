"""Reading ahead: work in threads while the results before are used, bounded by count and by bytes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_READERS = 4  # threads; more of them keep Python's lock from the one that starts kernels
_READ_AHEAD = 2  # pictures, or rows of tiles, for each
_AHEAD_BYTES = 2**26  # of all that is read ahead, the last one aside: rows of tiles are as long as pictures are wide

_T = TypeVar("_T")
_R = TypeVar("_R")


def map_ahead(
    work: Callable[[_T], _R], items: Iterable[_T], weigh: Callable[[_T], int] = lambda _item: 0
) -> Iterator[_R]:
    """`map` in threads, in order; at most _READ_AHEAD results of each wait, and no more once they have _AHEAD_BYTES.

    Args:
        weigh: bytes that the result of an item takes.
    """
    source, held = iter(items), 0
    pending: deque[tuple[Future[_R], int]] = deque()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="ubend-read") as pool:

        def read_on() -> None:
            nonlocal held
            while not pending or (held < _AHEAD_BYTES and len(pending) < _READ_AHEAD * _READERS):
                item = list(islice(source, 1))
                if not item:
                    return
                held += weigh(item[0])
                pending.append((pool.submit(work, item[0]), weigh(item[0])))

        read_on()
        while pending:
            future, size = pending.popleft()
            future.result()
            held -= size
            read_on()  # beside what is done with this one
            yield future.result()
