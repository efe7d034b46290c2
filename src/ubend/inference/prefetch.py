"""Reading ahead: threads compute the next results while one is used, bounded by count and by bytes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_READERS = 4  # threads; more threads keep the GIL from the thread that launches kernels
_READ_AHEAD = 2  # images, or rows of tiles, per thread
_AHEAD_BYTES = 2**26  # of all that is read ahead; may be exceeded by the last item, such as a row of a wide image

_T = TypeVar("_T")
_R = TypeVar("_R")


def map_ahead(
    work: Callable[[_T], _R], items: Iterable[_T], weigh: Callable[[_T], int] = lambda _item: 0
) -> Iterator[_R]:
    """`map` in threads, in order; holds at most _READ_AHEAD results per thread, and about _AHEAD_BYTES in all.

    Args:
        weigh: bytes of the result of an item.
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
            read_on()  # refill before yielding
            yield future.result()
