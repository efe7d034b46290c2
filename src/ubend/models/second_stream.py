"""A second CUDA stream for work that nothing waits for soon.

In a backward pass that is the weights' gradients: the next layer needs the gradient of its map alone. Side by
side they fill what each leaves idle, above all the last, half empty wave of every kernel's programs.
"""

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


class SecondStream:
    """Runs work beside the current stream of a device; on a CPU at once.

    torch gives memory back as soon as the current stream is done with it, and knows nothing of the other. So
    what the work reads is held here until the current stream has waited for the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream_of(device) if device.type == "cuda" else None
        self._running: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()

    def run(self, work: Callable[[], Tensor], *reads: Tensor) -> Tensor:
        """What `work` returns; its content is there after `wait`."""
        if self._stream is None:
            return work()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            made = work()
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._running.append((done, reads))
        return made

    def wait(self, holding: int = 0) -> None:
        """The current stream waits for all work so far, but for the last piece if that holds so many bytes at most."""
        while self._running:
            done, reads = self._running[0]
            if len(self._running) == 1 and sum(tensor.nbytes for tensor in reads) <= holding:
                break
            torch.cuda.current_stream().wait_event(done)
            self._running.popleft()


@cache
def _stream_of(device: torch.device) -> Any:
    """One for each device: memory that was used on one stream is not given to another."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
