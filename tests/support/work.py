"""Work counted instead of time measured, and a bound on tests that could hang."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def count_calls(work: Callable[[], object]) -> int:
    """How many functions, Python's and C's, are called by `work` and the threads it starts."""
    calls = 0

    def profile(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return calls


@contextmanager
def no_hang(seconds: int = 120) -> Iterator[None]:
    """TimeoutError in the main thread after so many seconds; POSIX only."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
