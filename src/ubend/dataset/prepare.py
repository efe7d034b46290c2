"""Prepares training batches and validation images from a data set and a plan."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.core.plan import Plan
from ubend.dataset.augment import Augment, augment
from ubend.dataset.batches import Augmentation, BatchOrder, TrainingBatches
from ubend.dataset.border_weights import border_weights_of
from ubend.dataset.dataset import Dataset
from ubend.dataset.foreground import Foreground
from ubend.dataset.sources import ItemSource, open_sources
from ubend.labels.class_table import IGNORED
from ubend.layouts.pairs import SplitName


@dataclass(frozen=True)
class TrainData:
    """The images for a training, on the device if they fit.

    Attributes:
        batches: of the training split.
        validation: the validation split, or crops of it.
    """

    batches: TrainingBatches
    validation: ItemSource


def prepare(
    data: Dataset,
    plan: Plan,
    device: torch.device,
    process: tuple[int, int] = (0, 1),
    augment: Augment = augment,
) -> TrainData:
    """Open the training and the validation split.

    Args:
        process: (rank, number of processes): selects this process's share of each batch.
        augment: `ubend.dataset.augment.augment`, or a faster function with the same arguments.
    Raises:
        SettingError: a batch does not fit in the memory of this computer, or no pixel of a split has a class.
    """
    _refuse_large_batch(plan, data, device)
    _refuse_unlabelled(data)
    crop_hw = crop_size(data.store.shapes_hw[data.indices("train")], plan)
    training, validation = open_sources(data, plan, device, crop_hw)
    share, seed, foreground = plan.data.foreground_share, plan.train.seed, None
    if share:
        foreground = Foreground(training.mask, len(training), data.foreground_classes(), share, seed)
    batches = TrainingBatches(
        training,
        BatchOrder(seed, plan.train.batch, process),
        Augmentation(plan.augment, crop_hw, data.value_range(), augment),
        foreground=foreground,
        pixel_weights=border_weights_of(data, training, plan.train),
    )
    return TrainData(batches, validation)


def _refuse_large_batch(plan: Plan, data: Dataset, device: torch.device) -> None:
    """Fail early if a batch certainly does not fit in this computer's memory; does nothing on a GPU.

    The estimate includes only what every network needs: image and target of the batch, and for a micro-batch the
    logits and two feature maps of the first level, with their gradients.

    Raises:
        SettingError: it does not fit.
    """
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return
    window = plan.data.crop
    pixels = window**2 if window is not None else int(data.store.shapes_hw.prod(axis=1).min())
    values = 2 * plan.model.width + 2 * data.labels.classes
    wanted = pixels * (
        plan.train.batch * (4 * data.store.channels + 1) + min(plan.train.batch, plan.train.micro_batch) * 4 * values
    )
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > there:
        line = _(
            "train.batch = {batch} needs at least {wanted:.1f} GiB, but this computer has {there:.1f} GiB; use a "
            "smaller --batch"
        )
        raise SettingError(
            line.format(batch=plan.train.batch, wanted=wanted / 2**30, there=there / 2**30), key="train.batch"
        )


def _refuse_unlabelled(data: Dataset) -> None:
    """Fail if no pixel of the training or validation split has a class in the stored masks: sparse labels, resized.

    Raises:
        SettingError: it is so.
    """
    splits: tuple[SplitName, ...] = ("train", "val")
    for split in splits:
        if not any((data.store.mask(index) != IGNORED).any() for index in data.indices(split).tolist()):
            line = _(
                "the {split} split has no labelled pixel left at the size of the model; use --patches or a larger "
                "--size: the labels are sparse, and smaller masks lose them"
            )
            raise SettingError(line.format(split=split), key="data.size")


def crop_size(shapes_hw: NDArray[np.int64], plan: Plan) -> tuple[int, int]:
    """(H, W) of a training image: the median size of the images, or `data.crop` if that is smaller.

    Args:
        shapes_hw: (N, 2) stored height and width of each image, px.
    """
    if plan.augment.kind != "warp":
        return int(shapes_hw[:, 0].max()), int(shapes_hw[:, 1].max())
    multiple = 2**plan.model.depth
    height, width = (multiple * max(1, round(int(side) / multiple)) for side in np.median(shapes_hw, axis=0))
    window = plan.data.crop
    return (height, width) if window is None else (min(window, height), min(window, width))
