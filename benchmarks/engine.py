"""ubend's training, opened up: what `ubend fit` makes of a folder before its first step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ubend.accel.accelerate import accelerate_augmentation
from ubend.core.autoconfig import resolve
from ubend.core.device import fastest_precision
from ubend.core.progress import Reporter
from ubend.core.settings import Settings, make_settings
from ubend.dataset.augment import augment
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.dataset.prepare import prepare
from ubend.tasks.fit import assemble
from ubend.training.build import build
from ubend.training.loop import Runtime


def open_data(folder: Path, cache: Path, device: torch.device, changes: Mapping[str, Any]) -> tuple[Dataset, Settings]:
    """The images of a folder, stored below `cache`, and the settings."""
    settings = make_settings("modern", None, {"device": str(device), "data.folder": str(folder), **changes})
    return open_dataset(settings, device.type, cache, Reporter()), settings


def begin_training(data: Dataset, settings: Settings, device: torch.device) -> Runtime:
    """A training that has not taken a step; nothing is written."""
    plan = resolve(settings, data.facts(device.type, fastest_precision(device)))
    prepared = prepare(data, plan, device, augment=accelerate_augmentation(augment))
    return assemble(plan, data, prepared, build(data, plan, device), Reporter())[1]


def make_step(runtime: Runtime) -> Callable[[], None]:
    """A function that takes the next step, as the loop of `ubend fit` does."""
    progress = runtime.training.state.progress

    def step() -> None:
        runtime.training_step(progress.step)
        progress.step += 1

    return step
