"""Reading ahead: threads compute the next results while one is in use, limited by count and bytes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_READERS = 4  # threads; more of them would compete for the GIL with the thread that launches kernels
_READ_PREFETCH = 2  # images, or rows of tiles, per thread
_PREFETCH_BYTES = 2**26  # of all results read ahead; the last one, such as a row of a wide image, may exceed it

_T = TypeVar("_T")
_R = TypeVar("_R")


def prefetch(
    work: Callable[[_T], _R], items: Iterable[_T], size_of: Callable[[_T], int] = lambda _item: 0
) -> Iterator[_R]:
    """`map` in threads, in order; reads ahead at most _READ_PREFETCH results per thread, and about _PREFETCH_BYTES.

    Args:
        size_of: bytes of the result of an item.
    """
    source, buffered_bytes = iter(items), 0
    pending: deque[tuple[Future[_R], int]] = deque()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="ubend-read") as pool:

        def read_on() -> None:
            nonlocal buffered_bytes
            while not pending or (buffered_bytes < _PREFETCH_BYTES and len(pending) < _READ_PREFETCH * _READERS):
                item = list(islice(source, 1))
                if not item:
                    return
                buffered_bytes += size_of(item[0])
                pending.append((pool.submit(work, item[0]), size_of(item[0])))

        read_on()
        while pending:
            future, size = pending.popleft()
            future.result()
            buffered_bytes -= size
            read_on()  # refill before yielding
            yield future.result()
