"""Ctrl-C and SIGTERM: a step is finished and saved before a training stops."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ubend.training.distributed import ALONE, ProcessGroup, Vote


class StopRequest:
    """A request to stop the training, by a signal to this process or, if there are several, to any of them.

    Attributes:
        signals: numbers of the signals that this process has received.
    """

    def __init__(self, processes: ProcessGroup = ALONE) -> None:
        self.signals: list[int] = []
        self._vote = Vote(processes)

    def is_made(self) -> bool:
        """Whether the training should stop; all processes must call it at the same points and get the same answer."""
        return self._vote.any(bool(self.signals))

    def close(self) -> None:
        """After the last call: wait for the pending answer."""
        self._vote.close()


@contextmanager
def stop_on_signals(processes: ProcessGroup = ALONE) -> Iterator[StopRequest]:
    """The first Ctrl-C or SIGTERM requests a stop; the second one raises KeyboardInterrupt at once.

    In several processes, SIGTERM comes from the launcher as a Ctrl-C. Outside the main thread, signals are not handled.
    """
    request = StopRequest(processes)

    def note(signal_number: int, _frame: FrameType | None) -> None:
        if request.signals:
            raise KeyboardInterrupt(signal_number)
        request.signals.append(signal_number)

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handled = [signal.SIGINT] if processes.count > 1 else [signal.SIGINT, signal.SIGTERM]
    before = {signal_number: signal.signal(signal_number, note) for signal_number in handled}
    try:
        yield request
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)
