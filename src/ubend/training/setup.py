"""Data and settings -> network, optimiser, batches: everything a training begins with."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ubend._version import __version__
from ubend.core.autoconfig import default_width
from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.core.settings import ModelSettings, Settings, settled
from ubend.dataset import augment as augmentation
from ubend.dataset.batches import TrainingBatches
from ubend.dataset.dataset import Dataset
from ubend.dataset.foreground import Foreground
from ubend.dataset.sources import Source, open_sources
from ubend.models.encoders import make_encoder, pretrained_normalisation
from ubend.models.model_file import Bundle
from ubend.models.networks import Network, make_network, network_class, shape_from_settings
from ubend.training.border_weights import weigh_pictures
from ubend.training.checkpoint import Progress, TrainingState
from ubend.training.distributed import ALONE, Ranks
from ubend.training.losses import Loss, sums_dtype
from ubend.training.optim import make_optimizer

_PANEL_BYTES = 2**19  # of one epoch's picture, as a PNG


def make_state(
    data: Dataset, settings: Settings, device: torch.device, ranks: Ranks = ALONE
) -> tuple[Bundle, TrainingState]:
    """The network with its first weights, drawn on the CPU so that every device and every process starts alike."""
    _low, high = data.value_range()
    mean, std = data.mean_std()
    if settings.data.mean is not None and settings.data.std is not None:
        if len(settings.data.mean) != data.store.channels:
            raise SettingError(
                _(
                    "data.mean and data.std have {count} numbers, but the pictures are read with {channels} channels"
                ).format(count=len(settings.data.mean), channels=data.store.channels),
                key="data.mean",
            )
        mean = [m * white for m, white in zip(settings.data.mean, high, strict=True)]
        std = [s * white for s, white in zip(settings.data.std, high, strict=True)]
    elif settings.model.encoder is not None and _encoder_weights(settings.model):  # as these weights know pictures
        of_white = pretrained_normalisation(settings.model.encoder, data.store.channels)
        mean, std = ([v * white for v, white in zip(values, high.tolist(), strict=True)] for values in of_white)
    width = settled(settings.model.width)
    first: dict[str, Any] = {"mean": mean, "std": std}
    if weights := _encoder_weights(settings.model):
        first["pretrained"] = weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.train.seed)
        shape = shape_from_settings(settings.model, data.store.channels, data.labels.classes, width)
        net = make_network(shape, **first)
    model: Network = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average: nn.Module = copy.deepcopy(model).requires_grad_(False) if settings.train.average_decay else model
    if settings.train.sync_batch_norm and ranks.count > 1:
        from ubend.training.sync_batch_norm import (
            synchronise_batch_norm,  # imports torch's compiler, for 1.3 s and more
        )

        synchronise_batch_norm(model, ranks)
    about = {
        "ubend": __version__,
        "data": data.folder.root.name,
        "recipe": settings.recipe,
        "training_pictures": len(data.numbers("train")),
    }
    state = TrainingState(
        model,
        average,
        make_optimizer(model, settings.train),
        torch.zeros(4, dtype=sums_dtype(device), device=device),
        Progress(),
    )
    bundle = Bundle(
        model,
        data.labels,
        data.sizing,
        about=about,
        dtype=data.store.dtype.name,
        precision=settings.train.precision or "float32",
        window_px=settings.data.window if settings.augment.kind == "warp" else None,
        scale=_training_scale(data),
    )
    return bundle, state


def fetch_weights(settings: ModelSettings) -> None:
    """Before anything slow happens: download what an encoder begins with, unless it is here.

    Raises:
        SettingError: it cannot be had.
    """
    if settings.encoder is not None and (weights := _encoder_weights(settings)):
        make_encoder(settings.encoder, 3, 1, weights)


def _encoder_weights(settings: ModelSettings) -> bool | Path:
    return Path(settings.weights) if settings.weights is not None else settings.pretrained


def _training_scale(data: Dataset) -> tuple[float, float]:
    """Least and greatest size at which pictures are learnt, over their own."""
    numbers = data.numbers("train")
    scales = np.sqrt(data.store.shapes_hw[numbers].prod(axis=1) / data.store.native_hw[numbers].prod(axis=1))
    return float(scales.min()), float(scales.max())


def make_batches(
    data: Dataset,
    settings: Settings,
    device: torch.device,
    ranks: Ranks = ALONE,
    augment: augmentation.Augment = augmentation.augment,
) -> tuple[TrainingBatches, Source]:
    """The training split as batches, and the validation split; on the device if they fit.

    Args:
        augment: as in `TrainingBatches`.
    """
    window_hw = window_size(data.store.shapes_hw[data.numbers("train")], settings)
    training, validation = open_sources(data, settings, device, window_hw)
    share, seed, foreground = settings.data.foreground_share, settings.train.seed, None
    if share:
        classes = data.foreground_classes()
        foreground = Foreground(training.mask, len(training), classes, share, seed)
    batches = TrainingBatches(
        training,
        settings.augment,
        seed,
        settled(settings.train.batch),
        window_hw,
        data.value_range(),
        foreground,
        (ranks.rank, ranks.count),
        weigh_pictures(data, training, settings.train),
        augment,
    )
    return batches, validation


def run_bytes(settings: Settings, device: str, resumed: bool) -> int:
    """About what a run writes, the old files counted that stand while new ones are written beside them.

    Weights are float32; the state holds them with two moments, the kept and the averaged ones.
    """
    width = settings.model.width or default_width(device, settings.model.encoder)
    with torch.device("meta"):
        net = make_network(shape_from_settings(settings.model, settings.data.channels or 3, 2, width))
    model: int = sum(4 * tensor.numel() for tensor in net.state_dict().values())
    state = model * (5 if settings.train.average_decay else 4)
    return state + model + (0 if resumed else state + (settings.train.epochs or 0) * _PANEL_BYTES)


def make_loss(data: Dataset, settings: Settings, device: torch.device) -> Loss:
    """What training makes small.

    Raises:
        SettingError: as many class weights as classes are needed, and one of them above 0.
    """
    weights = settings.train.class_weights
    if weights is None:
        return Loss(settled(settings.train.loss))
    if len(weights) != data.labels.classes:
        raise SettingError(
            _("train.class_weights has {count} numbers for {classes} classes: {names}").format(
                count=len(weights), classes=data.labels.classes, names=", ".join(data.labels.names)
            ),
            key="train.class_weights",
        )
    return Loss(settled(settings.train.loss), torch.tensor(weights, dtype=torch.float32, device=device))


def has_lone_values(batches: TrainingBatches, depth: int, micro_batch: int) -> bool:
    """Whether the smallest micro-batch is one value per channel at the deepest level: batch norm needs two."""
    smallest = batches.batch % micro_batch or micro_batch
    return bool(smallest * math.prod(math.ceil(side / 2**depth) for side in batches.window_hw) < 2)


def refuse_lone_values(batches: TrainingBatches, settings: Settings) -> None:
    """Before anything slow happens; see `has_lone_values`."""
    if not network_class(settings.model.kind, settings.model.encoder).has_batch_norm:
        return
    batch = batches.batch
    micro = min(settings.train.micro_batch or batch, batch)
    if has_lone_values(batches, settings.model.depth, micro):
        raise SettingError(
            _(
                "train.batch = {batch} (in steps of {micro}) leaves one picture of a single pixel at the deepest of "
                "{depth} levels; use a larger --batch, a larger --size or a smaller model.depth"
            ).format(batch=settled(settings.train.batch), micro=micro, depth=settings.model.depth),
            key="train.batch",
        )


def window_size(shapes_hw: NDArray[np.int64], settings: Settings) -> tuple[int, int]:
    """(H, W) of a training picture: the middle one of the pictures' sizes, or `data.window` if less."""
    multiple = 2**settings.model.depth
    height, width = (int(v) for v in np.median(shapes_hw, axis=0))
    height, width = (multiple * max(1, round(side / multiple)) for side in (height, width))
    if settings.augment.kind != "warp":
        return int(shapes_hw[:, 0].max()), int(shapes_hw[:, 1].max())
    window = settings.data.window
    return (height, width) if window is None else (min(window, height), min(window, width))
