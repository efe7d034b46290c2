"""Models made by code, without a training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.accel.folded import FoldedUNet
from ubend.inference.prediction import Prediction
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, save_bundle
from ubend.models.unet import UNet


def make_bundle(channels: int = 3, classes: int = 3, keep_aspect: bool = True) -> Bundle:
    torch.manual_seed(5)
    model = UNet(channels, classes, width=4, depth=2, mean=[120.0] * channels, std=[60.0] * channels)
    with torch.no_grad():
        for _ in range(3):  # statistics that fit such images, and weights that tell classes apart
            model.train()(torch.rand(4, channels, 32, 32) * 255)
        model.head.weight.mul_(8)
    return Bundle(model.eval(), make_label_map(list(range(classes))), Sizing(32, keep_aspect, channels))


def brighter_than_half(_net: FoldedUNet, image: Tensor) -> Tensor:
    """Logits of a network that says class 1 where the first channel is above 128."""
    bright = image[:, :1].float() - 128
    return torch.cat([-bright, bright], dim=1)


def save_model(path: Path, channels: int, dtype: str) -> None:
    net = UNet(channels, 2, width=2, depth=1, mean=[128.0] * channels, std=[64.0] * channels)
    labels = make_label_map([0, 1], ["background", "organ"])
    save_bundle(path, Bundle(net, labels, Sizing(32, True, channels), dtype=dtype))


def prob_of(predictor: Callable[..., Prediction], image: Any) -> NDArray[np.float32]:
    """The (C, H, W) probabilities of an image."""
    found = predictor(image, probabilities=True).probabilities
    assert found is not None
    return found
