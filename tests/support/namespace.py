"""Commands in a network namespace of their own, for programs that do not stay on the loopback interface."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_ALONE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_LOOPBACK = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@functools.cache
def why_none() -> str:
    """Why this machine has no such namespaces; empty if it has."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("ip"):
        return "needs Linux with unshare and ip"
    return "" if run(["true"]).returncode == 0 else "network namespaces are not permitted here"


def run(words: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
    """Run a short command in its own network and process namespace."""
    return subprocess.run([*_ALONE, *_LOOPBACK, *words], capture_output=True, check=False)


@contextlib.contextmanager
def started(words: Sequence[object], environment: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A command in its own network and process namespace; whatever it started ends with the context.

    Args:
        environment: added to that of this process.
        log: takes its output.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_ALONE, *_LOOPBACK, *map(str, words)],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the first process of the namespace dies with unshare
            process.wait(60)
