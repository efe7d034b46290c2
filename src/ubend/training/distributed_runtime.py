"""Training in several processes: one order of images, with sums over all processes.

A loss is a sum over the batch divided by counts of its targets (losses.py). So each process (rank) handles its share
of every batch, and sums over the batch become sums over the ranks: the counts before the loss is divided by them, and
the gradients before the optimizer's step (large ones early, see `OverlappedReduction`). All ranks then take the same
step. There is no wrapper around the network, and no wait for the device inside a step.

Only batch norm sees the images of one rank alone (see `sum_step`; sync_batch_norm.py synchronises it).
"""

from collections.abc import Callable, Set

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from ubend.dataset.batches import Batch
from ubend.training.distributed import ProcessGroup, explain_lost_peers
from ubend.training.loop import PlainRuntime, forward_backward, seed_random_layers, stack_sums
from ubend.training.losses import LossSums
from ubend.training.training import Training


class DistributedRuntime(PlainRuntime):
    """The plain runtime on this process's share of every batch; sums are those of all processes."""

    def __init__(self, training: Training, processes: ProcessGroup, reduction: "OverlappedReduction") -> None:
        super().__init__(training, processes)
        self._reduction = reduction

    def backward(self, step: int, batch: Batch) -> Tensor:
        training, processes = self.training, self.processes
        seed_random_layers(training, step * processes.count + processes.rank)
        counts = training.loss.count(batch.target, len(training.class_names), batch.pixel_weights)
        processes.sum_tensors(counts)
        loss_sums = forward_backward(training, batch, counts)
        sum_step(processes, training.state.model, loss_sums, self._reduction.take())
        return stack_sums(loss_sums, counts)


class OverlappedReduction:
    """Gradients of the largest tensors, summed over the processes during the backward pass.

    All ranks take the same steps in the same order, so they send the same messages in the same order.
    """

    def __init__(self, processes: ProcessGroup) -> None:
        self._processes = processes
        self._done: set[int] = set()
        self._travelling: list[tuple[dist.Work, Tensor]] = []

    @property
    def hook(self) -> Callable[[nn.Parameter, Tensor], None] | None:
        """A hook for networks that report each gradient when it is ready (`accelerate_network`); single process:
        None."""
        return None if self._processes.count == 1 else self.add

    def add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Start summing a dense gradient over the ranks while other gradients are computed."""
        # its memory, not a view: autograd copies gradients that are referenced elsewhere
        flat = gradient.new_empty(0).set_(
            gradient.untyped_storage(), gradient.storage_offset(), (gradient.numel(),), (1,)
        )
        with explain_lost_peers():
            work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._travelling.append((work, flat))
        self._done.add(id(parameter))
        if parameter.grad is not None:  # of an earlier micro-batch, to which this one is added
            self._wait()

    def take(self) -> set[int]:
        """Return the ids of the parameters whose gradients have been summed, and reset."""
        self._wait()
        done, self._done = self._done, set()
        return done

    def _wait(self) -> None:
        travelling, self._travelling = self._travelling, []
        with explain_lost_peers():
            for work, _flat in travelling:
                work.wait()


def sum_step(processes: ProcessGroup, model: nn.Module, loss_sums: LossSums, done: Set[int]) -> None:
    """Sum gradients and the loss over the ranks after a step's backward pass.

    In the same message, batch norm's running statistics are replaced by their mean over the ranks, so that they are
    equal on all ranks whenever a state is saved. The variance between the ranks' means is not included, as it is not
    between micro-batches.

    Args:
        done: ids of parameters whose gradients are already summed.
    """
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if statistics:  # some networks have no batch norm
        torch._foreach_div_(statistics, processes.count)
    gradients = [p.grad for p in model.parameters() if p.grad is not None and id(p) not in done]
    processes.sum_tensors([*gradients, *statistics, *loss_sums])
