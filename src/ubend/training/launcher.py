"""Run the same command line in several processes, one per GPU; uses the standard library only.

torchrun does the same for several computers. In both cases a process reads its rank from the environment
(RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), as torch.distributed expects it.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

from ubend.core.errors import TrainingError
from ubend.core.i18n import _

_INTERRUPTED = 130  # exit code of a process ended by Ctrl-C, which is not a failure
_LOOK_S = 0.05  # seconds between checks of the processes
_GRACE_S = 5.0  # seconds for a process to end by itself, before it is killed
_SAVE_S = 20.0  # the same after SIGTERM, which batch systems follow by SIGKILL after 30 s


@dataclass(frozen=True)
class ProcessRank:
    """The rank of this process in its group.

    Attributes:
        rank: 0..count-1; rank 0 prints and writes.
        count: number of processes.
        local: rank on this computer.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


def process_rank() -> ProcessRank:
    """This process's rank, from the environment; a single process if it is not set."""
    environ = os.environ
    try:
        own_rank = ProcessRank(int(environ["RANK"]), int(environ["WORLD_SIZE"]), int(environ["LOCAL_RANK"]))
    except (KeyError, ValueError):
        return ProcessRank()
    return own_rank if own_rank.count > 1 and "MASTER_ADDR" in environ and "MASTER_PORT" in environ else ProcessRank()


def exit_at_once(code: int) -> None:
    """End this process without waiting for the others; a no-op for a single process.

    Python's normal exit would let torch wait for messages of the others.
    """
    if process_rank().count > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launch(command: Sequence[str], count: int) -> int:
    """Run `command` in `count` processes of this computer until all have ended.

    Rank 0 writes to the standard output of this process. The standard errors are collected; that of the first process
    to fail is shown at the end, otherwise rank 0's. If one fails, all end within seconds. Each receives Ctrl-C once;
    SIGTERM is forwarded as Ctrl-C.

    Returns:
        The exit code of the first process to fail, otherwise rank 0's; 143 after SIGTERM.
    Raises:
        TrainingError: one of them was killed.
    """
    return run_processes([command] * count, _environments(count), together=True)


def run_processes(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], *, together: bool
) -> int:
    """Run several commands at once; see `launch`.

    Args:
        environments: the environment of each process.
        together: the processes need the first one: when it has ended, the others are ended within seconds.
    """
    count, processes = len(commands), list[subprocess.Popen[bytes]]()
    with ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _process in commands]
        stack.callback(_end, processes)
        interrupts = stack.enter_context(_signals_forwarded(processes))
        for rank, (command, environment) in enumerate(zip(commands, environments, strict=True)):
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    stderr=errors[rank],
                    start_new_session=os.name == "posix",  # so that they receive Ctrl-C only from here, and once
                )
            )
        failed_rank = _wait(processes, interrupts, together)
        code = processes[failed_rank].poll()
        _end(processes)
        errors[failed_rank].seek(0)
        sys.stderr.write(errors[failed_rank].read().decode(errors="replace"))
        sys.stderr.flush()
    # None: it did not end by itself in time
    if code in (None, _INTERRUPTED) or (interrupts and not together):
        return 128 + interrupts[0] if interrupts else _INTERRUPTED
    if code < 0:
        raise TrainingError(
            _(
                "process {rank} of {count} was ended by {signal} (possibly out of memory), so all were ended; "
                "continue with `ubend fit --resume RUN --gpus {count}`"
            ).format(rank=failed_rank, count=count, signal=signal.Signals(-code).name),
            key="--gpus",
        )
    return code


def _environments(count: int) -> list[dict[str, str]]:
    """The environment of each process: its rank, in torchrun's variables, and its share of the cores."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    defaults = {
        "OMP_NUM_THREADS": share_of_cores(count),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # hides torch's warnings about its connections
    }
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
    return [defaults | os.environ | {key: str(value) for key, value in own_rank.items()} for own_rank in places]


def share_of_cores(count: int) -> str:
    """The number of threads for each of `count` processes on this computer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return str(max(1, cores // count))


def _wait(processes: Sequence[subprocess.Popen[bytes]], interrupts: Sequence[int], together: bool = True) -> int:
    """Wait until all have ended, one has failed or time is up; returns the index of the one whose errors to show."""
    deadline = math.inf
    while True:
        codes = [process.poll() for process in processes]
        failed = [process for process, code in enumerate(codes) if code not in (None, 0, _INTERRUPTED)]
        if failed:
            return failed[0]
        if None not in codes or time.monotonic() > deadline:
            return 0
        if (together and codes[0] is not None) or len(interrupts) > 1:
            deadline = min(deadline, time.monotonic() + _GRACE_S)
        elif signal.SIGTERM in interrupts:
            deadline = min(deadline, time.monotonic() + _SAVE_S)
        time.sleep(_LOOK_S)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End all processes: terminate them, and kill those that do not end in time."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _signals_forwarded(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """A context that forwards every Ctrl-C, and SIGTERM if it is the first signal, to all processes as Ctrl-C.

    Yields the list of signals forwarded so far. Any other signal ends this process, and thereby all.
    """
    interrupts: list[int] = []

    def interrupt(signal_number: int, _frame: FrameType | None) -> None:
        interrupts.append(signal_number)
        for process in processes:
            if os.name == "posix":  # Windows sends it to all by itself
                process.send_signal(signal.SIGINT)

    def leave(signal_number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signal_number)

    def terminate(signal_number: int, frame: FrameType | None) -> None:
        (leave if interrupts else interrupt)(signal_number, frame)

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: terminate if os.name == "posix" else leave}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = leave
    before = {signal_number: signal.signal(signal_number, handler) for signal_number, handler in handlers.items()}
    try:
        yield interrupts
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)
