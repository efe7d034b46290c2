"""Process groups: the processes that train together, and their communication.

The distributed training step is in distributed_runtime.py. Processes are started by launcher.py or torchrun.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from ubend.core.device import pick_device
from ubend.core.errors import SettingError, TrainingError, reason
from ubend.core.i18n import _
from ubend.portable.errors import is_out_of_memory
from ubend.training.launcher import ProcessRank, process_rank

_STEP_TIMEOUT = timedelta(minutes=30)  # timeout for the other ranks' share of a step; a state may be written meanwhile
_HOST_TIMEOUT = timedelta(days=2)  # timeout for the first rank, which may download and decode a data set
_LOST_PEER_S = 10.0  # after losing a peer, a rank waits this long to be ended by the launcher, which knows the cause


@dataclass(frozen=True)
class ProcessGroup(ProcessRank):
    """The processes that train together, and the rank of this one; a no-op for a single process.

    Attributes:
        host: the backend for tensors in main memory.
    """

    host: dist.ProcessGroup | None = None

    def pick_device(self, name: str | None) -> torch.device:
        """This rank's device: its own GPU, or the CPU if requested; in a single process `device.pick_device` decides.

        Raises:
            SettingError: the device is unavailable, or this computer has fewer GPUs than ranks.
        """
        if self.count == 1 or name == "cpu":
            return pick_device(name)
        if name not in (None, "cuda"):
            raise SettingError(
                _(
                    "device {name} is a single device, but there are {count} processes; give --device "
                    "cuda or cpu, or leave it out"
                ).format(name=name, count=self.count),
                key="device",
            )
        available = torch.cuda.device_count()
        if self.local >= available:
            raise SettingError(
                _(
                    "this computer has {there} GPUs, too few for {count} processes; give a smaller --gpus, or "
                    "--device cpu for processes on the CPU"
                ).format(there=available, count=self.count),
                key="--gpus",
            )
        torch.cuda.set_device(self.local)
        return pick_device(f"cuda:{self.local}")

    def refuse_uneven(self, batch: int) -> None:
        """Refuse batches that cannot be split evenly: ranks would take different times."""
        if batch % self.count:
            less = batch // self.count * self.count
            raise SettingError(
                _("train.batch = {batch} cannot be split evenly over {count} processes; use --batch {near}").format(
                    batch=batch, count=self.count, near=less or self.count
                ),
                key="train.batch",
            )

    def shard(self, items: int) -> range:
        """This rank's share of the items, in order; may be empty."""
        return range(self.rank * items // self.count, (self.rank + 1) * items // self.count)

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all ranks in place, bitwise equal on each; one message per dtype.

        Args:
            tensors: dense, all on this rank's device, of the same shapes on all ranks; changed in place.
        """
        if self.count == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            of_dtype = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.empty(sum(tensor.numel() for tensor in of_dtype), dtype=dtype, device=of_dtype[0].device)
            parts, start = [], 0
            for tensor in of_dtype:  # in memory order, so that all are copied in one launch
                parts.append(flat.as_strided(tensor.size(), tensor.stride(), start))
                start += tensor.numel()
            torch._foreach_copy_(parts, of_dtype)
            with explain_lost_peers():
                dist.all_reduce(flat)
            torch._foreach_copy_(of_dtype, parts)

    @contextmanager
    def first_rank_first(self) -> Iterator[None]:
        """A context that one rank of each computer enters first; the others enter when it is done and reuse its
        work."""
        if self.local > 0:
            self._meet()
        yield
        if self.local == 0:
            self._meet()

    def refuse_different(self, facts: str) -> None:
        """Refuse to train if `facts` differ between ranks.

        Raises:
            TrainingError: they differ.
        """
        if self.count == 1:
            return
        digest = int.from_bytes(hashlib.blake2b(facts.encode(), digest_size=7).digest(), "big")
        extremes = torch.tensor([digest, -digest])
        with explain_lost_peers():
            dist.all_reduce(extremes, dist.ReduceOp.MIN, self.host)
        if int(extremes.sum()) != 0:
            raise TrainingError(
                _(
                    "the processes do not see the same images, settings or run; use a location where all of them read "
                    "the same files"
                ),
                key="--gpus",
            )

    def leave(self) -> None:
        """Leave the group; all ranks must call it at the same point."""
        if self.count > 1 and dist.is_initialized():
            self._meet()
            dist.destroy_process_group()

    def _meet(self) -> None:
        if self.count > 1:
            with explain_lost_peers():
                dist.barrier(self.host)


ALONE = ProcessGroup()


@contextmanager
def join_processes() -> Iterator[ProcessGroup]:
    """Join the other ranks, if any, until the context ends.

    Raises:
        TrainingError: they cannot be reached.
    """
    own_rank = process_rank()
    if own_rank.count == 1:
        yield ALONE
        return
    if not (dist.is_available() and dist.is_gloo_available()):
        raise TrainingError(
            _("this build of torch has no distributed training; install another one, or train in one process"),
            key="--gpus",
        )
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_STEP_TIMEOUT)
        host = dist.new_group(backend="gloo", timeout=_HOST_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            _("process {rank} of {count} cannot reach the others: {reason}").format(
                rank=own_rank.rank, count=own_rank.count, reason=_first_line(error)
            ),
            key="--gpus",
        ) from error
    assert isinstance(host, dist.ProcessGroup)  # no rank is left out
    processes = ProcessGroup(own_rank.rank, own_rank.count, own_rank.local, host)
    yield processes
    processes.leave()  # not after an error: the launcher ends the other ranks


class Vote:
    """Agreement on stopping: whether any rank wants to stop; all ranks ask at the same points.

    The answer is that of the previous call: it is exchanged while a step is computed, so no step waits for it. All
    ranks get the same answers and stop after the same step.
    """

    def __init__(self, processes: ProcessGroup) -> None:
        self._processes = processes
        self._travelling: tuple[dist.Work, Tensor] | None = None

    def any(self, vote: bool) -> bool:
        """Give this rank's vote; returns whether any vote of the previous call was True (single process: `vote`)."""
        if self._processes.count == 1:
            return vote
        before = self.close()
        votes = torch.tensor([int(vote)])
        with explain_lost_peers():
            work = dist.all_reduce(votes, dist.ReduceOp.MAX, self._processes.host, async_op=True)
        assert work is not None
        self._travelling = work, votes
        return before

    def close(self) -> bool:
        """Wait for the last answer, and return it."""
        if self._travelling is None:
            return False
        (work, votes), self._travelling = self._travelling, None
        with explain_lost_peers():
            work.wait()
        return bool(votes.item())


@contextmanager
def explain_lost_peers() -> Iterator[None]:
    """A context that handles lost peers: if communication fails, another rank has died and reports the cause itself.

    This rank first waits to be ended by the launcher, so that the cause is reported.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        time.sleep(_LOST_PEER_S)
        raise TrainingError(
            _("the other processes can no longer be reached ({reason}); continue with --resume").format(
                reason=_first_line(error)
            ),
            key="--gpus",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(reason(error).splitlines()), type(error).__name__)
