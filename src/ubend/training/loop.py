"""The loop, visible top to bottom.

    for each step: draw a batch -> U-Net -> loss -> gradients -> optimiser -> average
    at the end of each epoch: validate -> keep the best weights -> tell, draw, save

Nothing that changes a result depends on the clock: when a state is saved does not matter, since a
resumed run draws the same batches from the same positions.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ubend.config import TrainSettings, settled
from ubend.data.batches import Batch, Pictures, TrainingBatches
from ubend.device import has_compiler
from ubend.errors import TrainingError
from ubend.language import _
from ubend.metrics.overlap import count_confusion_batch, dice_from_confusion
from ubend.teller import Teller
from ubend.training.checkpoint import Saver, TrainingState
from ubend.training.losses import count_targets, mean_loss, sum_losses, sums_dtype
from ubend.training.run_folder import RunFolder
from ubend.training.schedule import averaging_decay, learning_rate_at, update_average

_SAVE_AFTER_S = 300.0  # without a save, inside an epoch; at its end one is made whenever it costs little
_VALIDATION_PIXELS = 4 * 2**20  # in one forward pass without gradients


@dataclass(frozen=True)
class Job:
    """All that stays the same while training.

    Attributes:
        batches: the training part.
        validation: the pictures that choose the weights.
        class_names: of the class table.
        settings: resolved; no None is left.
        steps: of the whole training.
        run: where it is written.
        after_epoch: called with the state after each epoch's row is in the history (panels, curves).
        save_model: writes the model file, given the weights that are kept.
    """

    batches: TrainingBatches
    validation: Pictures
    class_names: tuple[str, ...]
    settings: TrainSettings
    steps: int
    run: RunFolder
    after_epoch: Callable[[TrainingState], None]
    save_model: Callable[[Mapping[str, Tensor]], None]


def steps_until(epoch: int, items: int, batch: int) -> int:
    """Steps after which `epoch` epochs of `items` pictures have been shown; batches are always full."""
    return max(epoch, round(epoch * items / batch))


def train(job: Job, state: TrainingState, teller: Teller) -> None:
    """Train from wherever `state` stands to the end, or until Ctrl-C, or until patience is out.

    Raises:
        TrainingError: the loss is not finite.
    """
    settings, progress = job.settings, state.progress
    network = _compiled(state.model, teller) if settings.compile else state.model
    epochs = settled(settings.epochs)
    teller.begin(_("training"), job.steps, progress.step)
    with Saver(job.run.state, job.save_model) as saver:
        with _interruptible() as interrupted:
            # by epochs, not by steps: after the last step the last epoch still waits for its validation
            while len(progress.history) < epochs and progress.stopped is None:
                epoch = len(progress.history) + 1
                end = steps_until(epoch, job.batches.items, settled(settings.batch))
                began, began_step = time.monotonic(), progress.step
                while progress.step < end and not interrupted.is_set():
                    take_step(job, state, network)
                    progress.step += 1
                    teller.count(progress.step)
                    if saver.is_due(after_s=_SAVE_AFTER_S):
                        saver.save(state)
                if interrupted.is_set():
                    break
                train_s = _finish_epoch(job, state, began)
                _tell(job, state, teller, train_s, progress.step - began_step, time.monotonic() - began)
                job.run.write_metrics(progress.history)
                job.after_epoch(state)
                if saver.is_due():
                    saver.save(state)
        teller.end()
        job.run.write_metrics(progress.history)
        saver.save(state)
        saver.wait()
    if len(progress.history) < epochs and progress.stopped is None:
        raise KeyboardInterrupt


def _compiled(model: nn.Module, teller: Teller) -> nn.Module | Callable[[Tensor], Tensor]:
    if has_compiler():
        compiled: Callable[[Tensor], Tensor] = torch.compile(model)
        return compiled
    teller.say(_("note: no C compiler was found, so training goes on uncompiled (the same results, slower)"))
    return model


def take_step(job: Job, state: TrainingState, network: nn.Module | Callable[[Tensor], Tensor]) -> None:
    """One optimiser step on one effective batch, in micro-batches; no host sync."""
    settings, step = job.settings, state.progress.step
    batch = job.batches.draw(step)
    counts = count_targets(batch.target, len(job.class_names))
    state.model.train()
    for image, target in _micro_batches(batch, settings.micro_batch or len(batch.image)):
        with autocast(image.device, settings):
            logits = network(image)
        sums = sum_losses(logits, target)
        mean_loss(sums, counts, settings.dice).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            state.sums[0::2] += torch.stack([sums.cross_entropy, sums.dice])
    state.sums[1::2] += torch.stack(counts)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(step, job.steps, settings)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not state.model:
        update_average(state.average, state.model, averaging_decay(step, settings.average_decay))


def _finish_epoch(job: Job, state: TrainingState, began: float) -> float:
    """Validate, keep the best weights, add the epoch's row; returns the seconds that training alone took."""
    settings, progress = job.settings, state.progress
    cross_entropy, pixels, dice, regions = state.sums.tolist()  # waits for the device
    train_s = time.monotonic() - began
    train_loss = cross_entropy / pixels + settings.dice * dice / regions
    val_loss, val_dice = validate(state.average, job.validation, settings, len(job.class_names))
    if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
        raise TrainingError(
            _(
                "the loss is not a finite number any more after step {step}; use a smaller learning rate "
                "(--set train.learning_rate={rate:g}) or --set train.precision=float32"
            ).format(step=progress.step, rate=settings.learning_rate / 10)
        )
    state.sums.zero_()
    figure = -val_loss if settings.select == "loss" else float(np.nanmean(val_dice))
    best = progress.best_value is None or figure > progress.best_value
    epoch = len(progress.history) + 1
    if best:
        progress.best_value, progress.best_epoch = figure, epoch
        weights = state.average.state_dict()
        if not state.best:
            state.best = {name: torch.empty_like(tensor) for name, tensor in weights.items()}
        for name, tensor in weights.items():
            state.best[name].copy_(tensor)
    progress.history.append(
        {
            "epoch": epoch,
            "step": progress.step,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_dice": {
                name: None if math.isnan(value) else value
                for name, value in zip(job.class_names, val_dice.tolist(), strict=True)
            },
            "lr": learning_rate_at(progress.step - 1, job.steps, settings),
            "best": best,
        }
    )
    if settings.patience is not None and epoch - progress.best_epoch >= settings.patience:
        progress.stopped = _("no better validation figure for {count} epochs").format(count=settings.patience)
    return train_s


@torch.inference_mode()
def validate(
    model: nn.Module, pictures: Pictures, settings: TrainSettings, classes: int
) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
    """Loss, and Dice of each class as per-image mean (NaN where a class never occurs), at model size."""
    model.eval()
    area = pictures.canvas_hw[0] * pictures.canvas_hw[1]
    count = max(1, _VALIDATION_PIXELS // area)
    confusions, sums = [], torch.zeros(4, dtype=sums_dtype(pictures.device), device=pictures.device)
    for start in range(0, len(pictures), count):
        image, target = pictures.take(np.arange(start, min(start + count, len(pictures))))
        with autocast(image.device, settings):
            logits = model(image.float())
        sums[0::2] += torch.stack(sum_losses(logits, target))
        sums[1::2] += torch.stack(count_targets(target, classes))
        confusions.append(count_confusion_batch(logits.argmax(dim=1).to(torch.uint8), target, classes))
    cross_entropy, pixels, dice, regions = sums.tolist()
    per_image = dice_from_confusion(torch.cat(confusions).cpu().numpy())
    defined = np.maximum(1, (~np.isnan(per_image)).sum(axis=0))
    means = np.where(np.isnan(per_image).all(axis=0), np.nan, np.nansum(per_image, axis=0) / defined)
    return cross_entropy / pixels + settings.dice * dice / regions, means


def _tell(job: Job, state: TrainingState, teller: Teller, train_s: float, steps: int, all_s: float) -> None:
    row = state.progress.history[-1]
    timing = {
        "epoch": row["epoch"],
        "train_s": train_s,
        "validation_s": all_s - train_s,
        "images_per_s": steps * settled(job.settings.batch) / max(train_s, 1e-9),
        "seconds_left": all_s / max(1, steps) * (job.steps - state.progress.step),
    }
    job.run.append_timing(timing)
    teller.tell_epoch(row, timing, settled(job.settings.epochs))


def _micro_batches(batch: Batch, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(batch.image, size), torch.split(batch.target, size), strict=True)


def autocast(device: torch.device, settings: TrainSettings) -> Any:
    """A context in which the network computes in the training's precision."""
    if settings.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that a step is finished and saved; the second one ends at once."""
    event = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
