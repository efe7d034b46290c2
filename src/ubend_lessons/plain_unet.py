"""Settings of the lessons that train the plain U-Net of the course text, without an encoder."""

from typing import Any

# Also the loss and the EMA with which the lessons' figures were recorded.
PLAIN_UNET: dict[str, Any] = {"model.encoder": "none", "train.loss": "dice+ce", "train.ema_decay": 0.999}
