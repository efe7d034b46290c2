"""Build network, optimizer and loss from a data set and a plan."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.core.plan import Plan
from ubend.core.settings import LossKind
from ubend.dataset.dataset import Dataset
from ubend.layouts.pairs import SPLITS
from ubend.models.encoders import describe_weights, pretrained_weights
from ubend.models.model_file import Bundle, pack_hashes
from ubend.models.networks import Network, make_network, shape_from_settings
from ubend.portable.version import __version__
from ubend.training.checkpoint import Progress, TrainingState
from ubend.training.custom_parts import NO_CUSTOM, CustomParts
from ubend.training.distributed import ALONE, ProcessGroup
from ubend.training.losses import Loss, sums_dtype
from ubend.training.optim import make_optimizer


@dataclass(frozen=True)
class ModelSetup:
    """The model with its optimizer and loss.

    Attributes:
        state: the network with its EMA and optimizer.
        loss: the loss that the plan names.
        bundle: the content of the model file; its network is the one in `state`.
    """

    state: TrainingState
    loss: Loss
    bundle: Bundle


def build(
    data: Dataset,
    plan: Plan,
    device: torch.device,
    processes: ProcessGroup = ALONE,
    *,
    pretrained: bool = True,
    custom: CustomParts = NO_CUSTOM,
) -> ModelSetup:
    """Build network, optimizer and loss. Weights are initialised on the CPU, so all devices and processes start equal.

    Args:
        pretrained: load the pretrained weights that the plan names; False: a checkpoint will replace the weights.
        custom: the user's network and loss, which replace those of the plan.
    Raises:
        SettingError: a setting, or the user's network or loss, does not fit the number of channels or classes.
    """
    model = _initialise_network(data, plan, pretrained, custom).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = custom.try_out(model, make_loss(data, plan, device))
    ema: nn.Module = copy.deepcopy(model).requires_grad_(False) if plan.train.ema_decay else model
    if plan.train.sync_batch_norm and processes.count > 1:
        from ubend.training.sync_batch_norm import synchronise_batch_norm  # imports torch's compiler: 1.3 s or more

        synchronise_batch_norm(model, processes)
    optimizer = make_optimizer(model, plan.train, model.encoder_parameters())
    sums = torch.zeros(4, dtype=sums_dtype(device), device=device)
    warps = plan.augment.kind == "warp"
    train_indices = data.indices("train")
    scales = np.sqrt(
        data.store.shapes_hw[train_indices].prod(axis=1) / data.store.native_hw[train_indices].prod(axis=1)
    )
    bundle = Bundle(
        model,
        data.labels,
        data.sizing,
        about={
            "ubend": __version__,
            "data": data.folder.root.name,
            "recipe": plan.recipe,
            "training_pictures": len(train_indices),
            "seed": plan.train.seed,
            **({"encoder_weights": describe_weights(plan.model)} if pretrained_weights(plan.model) else {}),
        },
        dtype=data.store.dtype.name,
        precision=plan.train.precision,
        window_px=plan.data.crop if warps else None,
        scale=(float(scales.min()), float(scales.max())),
        orientation=plan.augment.orientation if warps else None,
        flips=not warps or plan.augment.flip_share > 0,
        image_hashes={split: pack_hashes(data.store.pixel_hashes[data.indices(split)]) for split in SPLITS},
    )
    return ModelSetup(TrainingState(model, ema, optimizer, sums, Progress()), loss, bundle)


def _initialise_network(data: Dataset, plan: Plan, pretrained: bool, custom: CustomParts) -> Network:
    channels, classes = data.store.channels, data.labels.classes
    mean, std = data.mean_std()
    if plan.data.mean is not None and plan.data.std is not None:
        if len(plan.data.mean) != channels:
            raise SettingError(
                _(
                    "data.mean and data.std have {count} numbers, but the images are read with {channels} channels"
                ).format(count=len(plan.data.mean), channels=channels),
                key="data.mean",
            )
        white = data.value_range()[1].tolist()
        mean, std = (
            [value * high for value, high in zip(values, white, strict=True)]
            for values in (plan.data.mean, plan.data.std)
        )
    weights = pretrained_weights(plan.model) if pretrained else False
    shape = shape_from_settings(plan.model, channels, classes, plan.model.width)
    kwargs: dict[str, Any] = {"pretrained": weights} if weights else {}
    kwargs |= {} if custom.network is None else {"module": custom.network}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.train.seed)
        return make_network(shape, mean=mean, std=std, **kwargs)


def make_loss(data: Dataset, plan: Plan, device: torch.device) -> Loss:
    """The training loss.

    Raises:
        SettingError: the number of class weights is not the number of classes.
    """
    weights = plan.train.class_weights
    # a custom loss replaces this one in `CustomParts.try_out`
    kind: LossKind = "ce" if plan.train.loss == "custom" else plan.train.loss
    if weights is None:
        return Loss(kind)
    if len(weights) != data.labels.classes:
        raise SettingError(
            _("train.class_weights has {count} numbers for {classes} classes: {names}").format(
                count=len(weights), classes=data.labels.classes, names=", ".join(data.labels.names)
            ),
            key="train.class_weights",
        )
    return Loss(kind, torch.tensor(weights, dtype=torch.float32, device=device))
