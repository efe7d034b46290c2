"""The loop, visible top to bottom.

    for each step: draw a batch -> U-Net -> loss -> gradients -> optimiser -> average
    at the end of each epoch: validate -> keep the best weights -> tell, draw, save

Where memory runs out, the step (or the validation's forward pass) begins again in smaller parts. Nothing
that changes a result depends on the clock: when a state is saved does not matter, since a resumed run
draws the same batches from the same positions. Of several processes (ranks.py) each works off its part of the
batches; the first one speaks and writes.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ubend.core.device import attempt
from ubend.core.errors import SettingError, TrainingError
from ubend.core.i18n import _
from ubend.core.progress import Teller
from ubend.core.settings import settled
from ubend.dataset.sources import Source
from ubend.metrics.overlap import count_confusion_batch, dice_from_confusion
from ubend.training.checkpoint import Progress, Saver, TrainingState
from ubend.training.distributed import Vote
from ubend.training.losses import LossCounts, LossSums
from ubend.training.optim import learning_rate_at
from ubend.training.step import Job, autocast

_READING_LIMITS = 0.2  # share of the training time spent waiting for images
_SAVE_AFTER_S = 300.0  # without a save, inside an epoch; at its end one is made whenever it costs little


def steps_until(epoch: int, items: int, batch: int) -> int:
    """Steps after which `epoch` epochs of `items` pictures have been shown; batches are always full."""
    return max(epoch, round(epoch * items / batch))


def train(job: Job, state: TrainingState, saver: Saver, teller: Teller, step: Callable[[int], None]) -> None:
    """Train from wherever `state` stands to the end, or until Ctrl-C or SIGTERM, or until patience is out.

    The last state is still being written when this returns; the model is there.

    Args:
        step: takes the step of this number from `state` as it stands: a `Step`, or a faster one.
    Raises:
        KeyboardInterrupt: it was stopped and saved; the argument, if any, is the number of the signal.
        TrainingError: the loss is not finite.
        SettingError: there is not even memory for one picture at a time.
    """
    settings, progress, writes = job.settings, state.progress, job.ranks.is_first
    epochs = settled(settings.epochs)
    second = len(progress.history) + 2  # of this process; kernels are compiled and the step is captured in the first
    teller.begin(_("training"), job.steps, progress.step)
    vote = Vote(job.ranks)
    with _interruptible([signal.SIGINT] if job.ranks.count > 1 else [signal.SIGINT, signal.SIGTERM]) as received:
        # by epochs, not by steps: after the last step the last epoch still waits for its validation
        while len(progress.history) < epochs and progress.stopped is None:
            epoch = len(progress.history) + 1
            end = steps_until(epoch, job.batches.items, settled(settings.batch))
            began, began_step, began_waited_s = time.monotonic(), progress.step, job.batches.waited_s
            stopped = vote.any(bool(received))
            while progress.step < end and not stopped:
                step(progress.step)
                progress.step += 1
                teller.count(progress.step)
                if writes and saver.is_due(after_s=_SAVE_AFTER_S):
                    saver.save(state)
                stopped = vote.any(bool(received))
            if stopped:
                break
            train_s = _finish_epoch(job, state, teller, began)
            if writes:
                _tell(job, state, teller, train_s, progress.step - began_step, time.monotonic() - began)
                job.run.write_metrics(progress.history)
                saver.begin(job.after_epoch(state))
                if saver.is_due():
                    saver.save(state)
                if epoch == second:
                    teller.say(describe_limit((job.batches.waited_s - began_waited_s) / train_s, state.sums.device))
    vote.close()
    teller.end()
    if writes:
        job.run.write_metrics(progress.history)
        saver.save(state)
        saver.wait_for_model()
    if len(progress.history) < epochs and progress.stopped is None:
        raise KeyboardInterrupt(*received)


def _finish_epoch(job: Job, state: TrainingState, teller: Teller, began: float) -> float:
    """Validate, keep the best weights, add the epoch's row; returns the seconds that training alone took."""
    settings, progress = job.settings, state.progress
    train_loss = _mean_loss(job, state.sums)  # waits for the device
    train_s = time.monotonic() - began
    val_loss, val_dice = validate(job, state, teller)
    if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
        raise TrainingError(
            _(
                "the loss is not a finite number any more after step {step}; use a smaller learning rate "
                "(--set train.learning_rate={rate:g}) or --set train.precision=float32"
            ).format(step=progress.step, rate=settled(settings.learning_rate) / 10),
            key="train.learning_rate",
        )
    state.sums.zero_()
    figure = -val_loss if settings.select == "loss" else float(np.nanmean(val_dice))
    best = progress.best_value is None or figure > progress.best_value
    epoch = len(progress.history) + 1
    if best:
        progress.best_value, progress.best_epoch = figure, epoch
        for name, tensor in state.average.state_dict().items():
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


def validate(job: Job, state: TrainingState, teller: Teller) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
    """Loss, and Dice of each class as per-image mean (NaN where a class never occurs), at model size, of the
    averaged weights."""
    pictures, progress = job.validation, state.progress
    state.average.eval()
    mine, classes = job.ranks.part(len(pictures)), len(job.class_names)
    sums, start = torch.zeros_like(state.sums), mine.start
    # a window is a part of its picture
    confusions = torch.zeros((pictures.source_count, classes, classes), dtype=torch.int64, device=sums.device)
    while start < mine.stop:
        count = validation_batch(pictures, progress)
        items = np.arange(start, min(start + count, mine.stop))
        found = attempt(_validate_some, job, items)
        if found is None:
            _halve_validation_batch(state, len(items), teller)
            continue
        sums += found[0]
        confusions.index_add_(0, torch.from_numpy(pictures.sources[items]).to(sums.device), found[1])
        start += len(items)
    job.ranks.sum_tensors([sums, confusions])  # what others have counted is zero here
    per_image = dice_from_confusion(confusions.cpu().numpy())
    defined = np.maximum(1, (~np.isnan(per_image)).sum(axis=0))
    means = np.where(np.isnan(per_image).all(axis=0), np.nan, np.nansum(per_image, axis=0) / defined)
    return _mean_loss(job, sums), means


@torch.inference_mode()
def _validate_some(job: Job, items: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[Tensor, Tensor]:
    """(4,) sums as in `TrainingState.sums`, and (n, C, C) confusions of these validation pictures."""
    image, target = job.validation.take(items)
    with autocast(image.device, job.settings):
        logits = job.forward_average(image.float())
    sums, counts = job.loss.sum(logits, target), job.loss.count(target, len(job.class_names))
    both = torch.stack([sums.cross_entropy, counts.pixels, sums.dice, counts.regions])
    return both, count_confusion_batch(logits.argmax(dim=1).to(torch.uint8), target, len(job.class_names))


def validation_batch(validation: Source, progress: Progress) -> int:
    """Items in one forward pass without gradients, as far as memory is known to allow."""
    return progress.validation_batch or max(1, validation.validation_pixels // math.prod(validation.canvas_hw))


def _halve_validation_batch(state: TrainingState, before: int, teller: Teller) -> None:
    if before == 1:
        raise SettingError(
            _("the device ran out of memory while validating one picture; use a smaller --size, or --device cpu"),
            key="data.size",
        )
    state.progress.validation_batch = before // 2
    teller.say(
        _("note: out of memory while validating {before} pictures at a time; it goes on with {size}").format(
            before=before, size=before // 2
        )
    )


def describe_limit(waiting: float, device: torch.device) -> str:
    """One line: whether reading or computing limits the run, and the GPU's memory in use.

    Args:
        waiting: share of the training time that was spent waiting for images, 0..1.
    """
    figures = f"{waiting:.0%}"
    if device.type == "cuda":
        free, total = (number / 2**30 for number in torch.cuda.mem_get_info(device))
        figures += _(", {used:.1f} of {total:.1f} GiB of GPU memory in use").format(used=total - free, total=total)
    if waiting < _READING_LIMITS:
        return _("the run is limited by computing (time spent waiting for images: {figures})").format(figures=figures)
    return _(
        "the run is limited by reading images (time spent waiting for them: {figures}); a faster disk for the cache "
        "(UBEND_CACHE) helps, or a smaller --size"
    ).format(figures=figures)


def _mean_loss(job: Job, sums: Tensor) -> float:
    cross_entropy, pixels, dice, regions = sums.cpu()
    return float(job.loss.mean(LossSums(cross_entropy, dice), LossCounts(pixels, regions)))


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


@contextmanager
def _interruptible(signals: Sequence[signal.Signals]) -> Iterator[list[int]]:
    """The first signal goes into the list, so that a step is finished and saved; the second one ends at once."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt(number)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, note) for number in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
