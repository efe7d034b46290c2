"""ubend's training, opened up: what `ubend fit` makes of a folder before its first step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ubend.accel import captured
from ubend.accel.accelerate import accelerate_augmentation, accelerate_loss, accelerate_network
from ubend.core.autoconfig import choose_training
from ubend.core.device import fastest_precision
from ubend.core.progress import Teller
from ubend.core.settings import make_settings
from ubend.dataset.augment import augment
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.training.checkpoint import TrainingState
from ubend.training.run_folder import RunFolder
from ubend.training.setup import make_batches, make_loss, make_state
from ubend.training.step import Job

_ENDLESS = 10**6  # steps of a training that is never finished


def open_data(folder: Path, cache: Path, device: torch.device, changes: Mapping[str, Any]) -> Dataset:
    """The pictures of a folder, stored below `cache`."""
    settings = make_settings("modern", None, {"device": str(device), "data.folder": str(folder), **changes})
    return open_dataset(settings, device.type, cache, Teller())


def begin_training(
    data: Dataset, device: torch.device, precision: tuple[Any, str] | None = None, steps: int = _ENDLESS
) -> tuple[Job, TrainingState]:
    """A training that has not taken a step; nothing is written.

    Args:
        precision: and its reason; None: the device's fastest.
        steps: of the whole training, which the schedule of the learning rate runs over.
    """
    facts = data.facts(device.type, precision or fastest_precision(device))
    settings, _choices = choose_training(data.settings, facts)
    batches, validation = make_batches(data, settings, device, augment=accelerate_augmentation(augment))
    _bundle, state = make_state(data, settings, device)
    loss, names = accelerate_loss(make_loss(data, settings, device)), data.labels.names
    run = RunFolder(data.folder.root)  # is not written to by single steps
    forward, forward_average = accelerate_network(state.model), accelerate_network(state.average)
    job = Job(
        batches,
        validation,
        names,
        loss,
        settings.train,
        steps,
        run,
        lambda _: print,
        print,
        forward=forward,
        forward_average=forward_average,
    )
    return job, state


def make_step(job: Job, state: TrainingState) -> Callable[[], None]:
    """A function that takes the next step, as the loop of `ubend fit` does."""
    take_step = captured.make_step(job, state, Teller())

    def step() -> None:
        take_step(state.progress.step)
        state.progress.step += 1

    return step
