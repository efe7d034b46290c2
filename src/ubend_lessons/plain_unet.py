"""The network of the course text and how it is trained, in the lessons that train on purpose without an encoder."""

from typing import Any

# Also the loss and the average with which the lessons' figures were recorded.
PLAIN_UNET: dict[str, Any] = {"model.encoder": "none", "train.loss": "dice+ce", "train.ema_decay": 0.999}
