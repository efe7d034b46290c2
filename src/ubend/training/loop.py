"""The training step and the training loop.

    for each step: draw a batch -> network (which normalises) -> loss -> gradients -> optimizer -> EMA of the weights
    at the end of each epoch: validate -> keep the best weights -> log -> stop early?

`PlainRuntime` is the reference implementation of a step. What makes it robust or fast is in other runtimes, which are
tested against it: smaller micro-batches when memory runs out (memory.py), several processes (distributed_runtime.py),
the step as one CUDA graph (ubend.accel.captured). Their updates are the same, except that batch norm takes its
statistics per micro-batch and per process. Nothing that changes a result depends on the clock: a resumed run draws the
same batches for the same steps.
"""

import math
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.core.counter_rng import random_bits
from ubend.core.errors import TrainingError
from ubend.core.i18n import _
from ubend.dataset.batches import Batch
from ubend.metrics.overlap import count_confusion_batch, dice_from_confusion
from ubend.metrics.summary import mean_defined
from ubend.training.batch_norm_warmup import batch_statistics, settle_statistics, shows_batch_statistics
from ubend.training.branches import begin_branch, begins_branch, finish_branches, is_better_than_branches
from ubend.training.distributed import ALONE, ProcessGroup
from ubend.training.interrupts import StopRequest
from ubend.training.losses import LossCounts, LossSums
from ubend.training.optim import ema_decay, update_ema
from ubend.training.recorder import EpochTiming, Recorder
from ubend.training.training import Training

_USUAL_RATE = 1e-3  # the default learning rate


def forward_backward(training: Training, batch: Batch, counts: LossCounts) -> LossSums:
    """Forward and backward pass of a batch: adds its gradients to the parameters' `grad`, changes no weights.

    Args:
        counts: the normalisers of the batch's loss.
    Returns:
        The loss sums of the batch, float64 (float32 on MPS).
    """
    training.state.model.train()
    cross_entropy, dice = training.state.sums.new_zeros(2)
    for micro_batch in batch.split(training.micro_batch):
        with training.autocast():
            logits = training.forward(micro_batch.image)
        loss_sums = training.loss.sum(logits, micro_batch.target, micro_batch.pixel_weights)
        training.loss.of_step(loss_sums, counts).backward()  # type: ignore[no-untyped-call]
        cross_entropy += loss_sums.cross_entropy.detach()
        dice += loss_sums.dice.detach()
    return LossSums(cross_entropy, dice)


class Runtime(ABC):
    """Executes the steps of a training.

    Runtimes are nested: CapturedRuntime(LimitedMemoryRuntime(PlainRuntime or DistributedRuntime)). Each defines:

        PlainRuntime           backward, measure    the reference
        DistributedRuntime     backward             a PlainRuntime that sums counts and gradients over all processes
        LimitedMemoryRuntime   backward, measure    calls the wrapped runtime; after out-of-memory, again at half the
                                                    size
        CapturedRuntime        training_step        does the same as a CUDA graph, in the same order; in the first
                                                    steps, which may run out of memory, the wrapped runtime does
                                                    the backward pass

    Attributes:
        processes: the processes that train together; a no-op for a single process.
    """

    def __init__(self, training: Training, processes: ProcessGroup = ALONE) -> None:
        self.training, self.processes = training, processes

    @abstractmethod
    def backward(self, step: int, batch: Batch) -> Tensor:
        """The backward pass of a batch: adds its gradients to the parameters' `grad`, and returns its loss.

        Returns:
            (4,) summed cross entropy, number of pixels, summed Dice terms, and their number, see `stack_sums`.
        """

    @abstractmethod
    def measure(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(4,) sums, see `stack_sums`, and (n, C, C) confusion matrices of these validation items."""

    def training_step(self, step: int) -> None:
        """A whole step: batch, gradients, update of weights and EMA; the host does not wait for the device.

        `CapturedRuntime` repeats this order; change both.
        """
        training, state = self.training, self.training.state
        batch = training.batches.sample(step)
        with preserve_rng_state(training):
            state.sums += self.backward(step, batch)
        rate = training.learning_rate_at(step)
        for parameter_group in state.optimizer.param_groups:
            parameter_group["lr"] = rate * parameter_group["rate_scale"]
        state.optimizer.step()
        state.optimizer.zero_grad()
        if state.ema is not state.model:
            update_ema(state.ema, state.model, ema_decay(step, training.settings.ema_decay))


class PlainRuntime(Runtime):
    """The reference runtime: a single process, no out-of-memory handling, no CUDA graph."""

    def backward(self, step: int, batch: Batch) -> Tensor:
        seed_random_layers(self.training, step)
        counts = self.training.loss.count(batch.target, len(self.training.class_names), batch.pixel_weights)
        return stack_sums(forward_backward(self.training, batch, counts), counts)

    @torch.inference_mode()
    def measure(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        training, classes = self.training, len(self.training.class_names)
        image, target = training.validation.take(items)
        with training.autocast():
            logits = training.forward_ema(image.float())
        loss_sums, counts = training.loss.sum(logits, target), training.loss.count(target, classes)
        index = logits.argmax(dim=1).to(torch.uint8)
        return stack_sums(loss_sums, counts), count_confusion_batch(index, target, classes)


def train(runtime: Runtime, recorder: Recorder, stop_request: StopRequest) -> None:
    """Train from the current state to the end, until a stop is requested, or until early stopping.

    When this returns, the model file is complete, but writing the last state may still be in progress.

    Raises:
        KeyboardInterrupt: stopped by a request, and saved; the argument, if any, is the number of the signal.
        TrainingError: the loss is not finite.
        SettingError: out of memory, and the batch cannot be reduced.
    """
    training, state, settings = runtime.training, runtime.training.state, runtime.training.settings
    progress = state.progress
    recorder.begin(training)
    # finished epochs are counted, not steps: after an interruption in the last step, the validation is still due
    while len(progress.history) < settings.epochs and progress.stop_reason is None:
        epoch = len(progress.history) + 1
        started, first_step, waited_before_s = time.monotonic(), progress.step, training.batches.waited_s
        is_interrupted = stop_request.is_made()
        if begins_branch(training) and not is_interrupted:
            begin_branch(training)
        while progress.step < training.steps_until(epoch) and not is_interrupted:
            runtime.training_step(progress.step)
            progress.step += 1
            recorder.after_step(training)
            is_interrupted = stop_request.is_made()
        if is_interrupted:
            break

        train_loss = mean_loss(training, state.sums)  # waits for the device
        train_s, waited_s = time.monotonic() - started, training.batches.waited_s - waited_before_s
        settle_statistics(training, runtime.processes)
        is_mean = finish_branches(training, runtime.processes)
        val_loss, val_dice = validate(runtime)
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise diverged(training)
        state.sums.zero_()

        score = -val_loss if settings.select == "loss" else float(np.nanmean(val_dice))
        is_best = progress.best_value is None or score > progress.best_value
        is_best = is_best or (is_mean and is_better_than_branches(training, val_loss))
        if is_best:
            progress.best_value, progress.best_epoch = score, epoch
            for name, tensor in state.ema.state_dict().items():
                state.best[name].copy_(tensor)
        progress.history.append(
            {
                "epoch": epoch,
                "step": progress.step,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "val_dice": _by_name(training, val_dice),
                "lr": training.learning_rate_at(progress.step - 1),
                "best": is_best,
                **({"branches": settings.branches} if is_mean else {}),
            }
        )
        # early on, batch norm's running statistics lag behind the weights
        if shows_batch_statistics(training, progress.step):
            with batch_statistics(state.ema):  # displayed only; nothing is chosen by it
                progress.history[-1]["batch_statistics_dice"] = _by_name(training, _score_validation(runtime)[1])
        if settings.patience is not None and epoch - progress.best_epoch >= settings.patience:
            progress.stop_reason = _("epochs without a better validation score: {count}").format(
                count=settings.patience
            )
        timing = EpochTiming(train_s, time.monotonic() - started - train_s, waited_s, progress.step - first_step)
        recorder.after_epoch(training, timing)
    stop_request.close()
    recorder.finish(state)
    if len(progress.history) < settings.epochs and progress.stop_reason is None:
        raise KeyboardInterrupt(*stop_request.signals)


def validate(runtime: Runtime) -> tuple[float, NDArray[np.float64]]:
    """Loss, and per-image mean Dice of each class (NaN if it never occurs) of the EMA model, at training resolution."""
    runtime.training.state.ema.eval()
    return _score_validation(runtime)


def _score_validation(runtime: Runtime) -> tuple[float, NDArray[np.float64]]:
    """The same as `validate`, without a change of batch norm's mode."""
    training, classes = runtime.training, len(runtime.training.class_names)
    images, shard = training.validation, runtime.processes.shard(len(training.validation))
    sums, start = torch.zeros_like(training.state.sums), shard.start
    # the counts of all crops of an image are summed
    confusions = torch.zeros((images.image_count, classes, classes), dtype=torch.int64, device=sums.device)
    while start < shard.stop:
        items = np.arange(start, min(start + validation_batch(training), shard.stop))
        batch_sums, batch_confusions = runtime.measure(items)
        sums += batch_sums
        confusions.index_add_(0, torch.from_numpy(images.image_of_item[items]).to(sums.device), batch_confusions)
        start += len(items)
    runtime.processes.sum_tensors([sums, confusions])  # entries of other ranks are zero
    return mean_loss(training, sums), mean_defined(dice_from_confusion(confusions.cpu().numpy()))


def validation_batch(training: Training) -> int:
    """Items in one validation forward pass, within the memory limit found so far."""
    images = training.validation
    maximum = max(1, images.validation_pixels // math.prod(images.canvas_hw))
    return training.state.progress.validation_batch or maximum


def _by_name(training: Training, dice: NDArray[np.float64]) -> dict[str, float | None]:
    """Dice of each class by its name; None where it is undefined."""
    values = (None if math.isnan(value) else value for value in dice.tolist())
    return dict(zip(training.class_names, values, strict=True))


def stack_sums(loss_sums: LossSums, counts: LossCounts) -> Tensor:
    """Loss sums and their counts as one (4,) tensor, called `sums`, in the order of `TrainingState.sums`."""
    (cross_entropy, dice), dtype = loss_sums, loss_sums.dice.dtype
    return torch.stack([cross_entropy, counts.pixels.to(dtype), dice, counts.dice_terms.to(dtype)])


def mean_loss(training: Training, sums: Tensor) -> float:
    """Mean loss of (4,) sums, see `stack_sums`; waits for the device."""
    cross_entropy, pixels, dice, dice_terms = sums.cpu()
    return float(training.loss.mean(LossSums(cross_entropy, dice), LossCounts(pixels, dice_terms)))


def seed_random_layers(training: Training, step: int) -> None:
    """Seed dropout from (seed, step), so that a resumed run drops the same values."""
    if training.state.model.is_stochastic:
        torch.manual_seed(int(random_bits(training.settings.seed, "dropout", np.array([step]), 1)[0, 0]) >> 1)


def preserve_rng_state(training: Training) -> AbstractContextManager[None]:
    """A context that restores torch's random state on exit, if the network has random layers."""
    device = training.state.sums.device
    devices = [device] if device.type == "cuda" else []  # the CPU's state is always restored
    return torch.random.fork_rng(devices, enabled=training.state.model.is_stochastic)


def diverged(training: Training) -> TrainingError:
    """The error of a loss that is not finite."""
    settings = training.settings
    line = _("the loss became infinite or NaN in epoch {epoch}; train again with --set train.learning_rate={rate:g}")
    if settings.precision != "float32":
        line = _(
            "the loss became infinite or NaN in epoch {epoch}; train again with --set train.learning_rate={rate:g} or "
            "--set train.precision=float32"
        )
    rate = min(settings.learning_rate / 10, _USUAL_RATE)
    epoch = len(training.state.progress.history) + 1
    return TrainingError(line.format(epoch=epoch, rate=rate), key="train.learning_rate")
