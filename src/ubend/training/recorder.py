"""Records a training: metrics, timing, states and progress; files are written in the background."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ubend.core.i18n import _
from ubend.core.progress import Reporter, rough_duration
from ubend.training.batch_norm_warmup import BATCH_NORM_WARMUP_STEPS, shows_batch_statistics
from ubend.training.branches import describe_mean
from ubend.training.checkpoint import Saver, TrainingState
from ubend.training.run_folder import RunFolder
from ubend.training.trackers import TrackedRun
from ubend.training.training import Training
from ubend.training.unlearned import describe_unlearned

_READING_LIMITS = 0.2  # share of the training time spent waiting for images
_ENOUGH_S = 3.0  # seconds of timed steps after which the duration of a training on a CPU is estimated
_SAVE_AFTER_S = 300.0  # seconds without a save within an epoch; at its end a state is saved if that is cheap


@dataclass(frozen=True)
class EpochTiming:
    """Seconds of an epoch: steps, validation, and the part of the steps spent waiting for images."""

    train_s: float
    validation_s: float
    waited_s: float
    steps: int


class StepTimer:
    """Measures the duration of steps after the warm-up, including validations between them.

    On a CPU the figure is ready after five timed steps, or after fewer that took `_ENOUGH_S` together. A GPU computes
    while the host runs ahead, so that only a fixed number of steps can be timed, between two waits for the device. If
    its first epochs are shorter than that, they are left out, since the first validations compile kernels as well.
    """

    def __init__(self, device: torch.device) -> None:
        # on a GPU, the first steps compile kernels and capture the graph, and steps are short
        self._first, self._last, self._enough_s = (1, 6, _ENOUGH_S) if device.type == "cpu" else (5, 25, math.inf)
        self._starts_again = 0 if device.type == "cpu" else 2  # times, at most
        self._steps, self._since = 0, 0.0
        self._is_ready = False

    def after_step(self, sums: torch.Tensor) -> float | None:
        """Seconds per step, returned once, when enough steps are timed."""
        self._steps += 1
        if self._steps == self._first:
            sums.cpu()  # waits for the device
            self._since = time.monotonic()
        if self._steps <= self._first or self._is_ready:
            return None
        if self._steps < self._last and time.monotonic() - self._since < self._enough_s:
            return None
        sums.cpu()
        self._is_ready = True
        return (time.monotonic() - self._since) / (self._steps - self._first)

    def after_epoch(self) -> None:
        """Start again, if this epoch, among the first, was too short to time its steps."""
        if self._starts_again and not self._is_ready:
            self._starts_again -= 1
            self._steps = self._first - 1


class Recorder:
    """Writes metrics, timing, states and the model of a run, and reports progress.

    Args:
        run: the run folder.
        saver: of the run's state and model.
        reporter: reports progress.
        after_epoch: called with the state after each epoch; the function it returns runs in the writing thread.
        tracked: the run of an experiment tracker.
        writes: True only in the first process; the others write nothing.
    """

    def __init__(
        self,
        run: RunFolder,
        saver: Saver,
        reporter: Reporter,
        after_epoch: Callable[[TrainingState], Callable[[], None]] = lambda _state: lambda: None,
        *,
        tracked: TrackedRun | None = None,
        writes: bool = True,
    ) -> None:
        self._run, self._saver, self._reporter, self._after_epoch = run, saver, reporter, after_epoch
        self._tracked = tracked
        self._writes, self._epochs = writes, 0  # of this process
        self._step_s: float | None = None  # after the warm-up

    def begin(self, training: Training) -> None:
        progress = training.state.progress
        self._timer, self._is_resumed = StepTimer(training.state.sums.device), progress.step > 0
        self._reporter.begin(_("training"), training.steps, progress.step)
        if self._tracked is not None and self._writes:
            self._tracked.begin(progress.history)
        following = len(progress.history) + 1
        is_finished = following > training.settings.epochs or progress.stop_reason is not None
        if not is_finished and shows_batch_statistics(training, training.steps_until(following)):
            line = _(
                "note: in the first {steps} steps validation scores may be far too low, because the running statistics "
                "of batch norm have not converged yet; the scores in parentheses use the statistics of the validation "
                "images instead"
            )
            self._reporter.report(line.format(steps=BATCH_NORM_WARMUP_STEPS))

    def after_step(self, training: Training) -> None:
        state = training.state
        self._reporter.count(state.progress.step)
        if (step_s := self._timer.after_step(state.sums)) is not None:
            self._step_s = step_s
            steps = training.steps - (state.progress.step if self._is_resumed else 0)
            self._reporter.report(
                describe_duration(
                    step_s * steps,
                    training.settings.epochs,
                    crops=training.batches.source.draws_crops,
                    is_resumed=self._is_resumed,
                )
            )
        if self._writes and self._saver.is_due(after_s=_SAVE_AFTER_S):
            self._saver.save(state)

    def after_epoch(self, training: Training, timing: EpochTiming) -> None:
        if not self._writes:
            return
        state, history = training.state, training.state.progress.history
        self._epochs += 1
        self._timer.after_epoch()
        step_s: float | None = (timing.train_s + timing.validation_s) / max(1, timing.steps)
        if self._epochs == 1 and (self._step_s is not None or state.sums.device.type != "cpu"):
            step_s = self._step_s  # the first epoch compiles kernels and captures the graph
        row = {
            "epoch": history[-1]["epoch"],
            "train_s": timing.train_s,
            "validation_s": timing.validation_s,
            "images_per_s": timing.steps * training.settings.batch / max(timing.train_s, 1e-9),
            "seconds_left": None if step_s is None else step_s * (training.steps - state.progress.step),
        }
        self._run.append_timing(row)
        self._reporter.report_epoch(history[-1], row, training.settings.epochs)
        self._run.write_metrics(history)
        if self._tracked is not None:
            self._tracked.log_epoch(history[-1], row)
        self._saver.begin(self._after_epoch(state))
        if self._saver.is_due():
            self._saver.save(state)
        if self._epochs == 2:
            self._reporter.report(describe_limit(timing.waited_s / max(timing.train_s, 1e-9), state.sums.device))
        for line in (describe_unlearned(training), describe_mean(training)):
            if line:
                self._reporter.report(line)

    def finish(self, state: TrainingState) -> None:
        """End the training; the model is written when this returns, the state may still be in progress."""
        self._reporter.end()
        if self._writes:
            self._run.write_metrics(state.progress.history)
            self._saver.save(state)
            self._saver.wait_for_model()


def describe_duration(seconds: float, epochs: int, *, crops: bool, is_resumed: bool) -> str:
    """One line: the estimated duration of the training, and how to shorten it.

    Args:
        seconds: estimated for all steps; for a resumed training, for the remaining ones.
        epochs: of the whole training.
        crops: whether it is on crops at native scale; their size is not that of --size.
    """
    if is_resumed:  # with its own settings
        return _("about {duration} to go").format(duration=rough_duration(seconds))
    line = _(
        "about {duration} for all {epochs} epochs; to shorten it, use fewer --epochs, a smaller --size, or --patience "
        "N, which stops after N epochs without a better validation score"
    )
    if crops and epochs > 1:
        line = _(
            "about {duration} for all {epochs} epochs; to shorten it, use fewer --epochs, or --patience N, which stops "
            "after N epochs without a better validation score"
        )
    elif epochs == 1:
        line = _("about {duration} for one epoch; to shorten it, use a smaller --size")
    return line.format(duration=rough_duration(seconds), epochs=epochs)


def describe_limit(waiting: float, device: torch.device) -> str:
    """One line: whether reading or computing limits the run, and the GPU's memory in use.

    Args:
        waiting: share of the training time that was spent waiting for images, 0..1.
    """
    memory = ""
    if device.type == "cuda":
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        memory = _("; GPU memory in use: {used:.1f} of {total:.1f} GiB").format(used=total - free, total=total)
    line = _("the run is limited by computing (time spent waiting for images: {share})")
    if waiting >= _READING_LIMITS:
        line = _(
            "the run is limited by reading images (time spent waiting for them: {share}); a faster disk for the cache "
            "(UBEND_CACHE) helps, or a smaller --size"
        )
    return line.format(share=f"{waiting:.0%}") + memory
