"""Hounsfield units, or any others, to 8 bit: the part of the range that somebody looks at."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import SettingError
from ubend.core.i18n import _

# Centre and width in Hounsfield units, as radiology reads computed tomography.
PRESETS = {
    "abdomen": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "liver": (60.0, 160.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 350.0),
}


@dataclass(frozen=True)
class Window:
    """What becomes 0..255, and what is beyond.

    Attributes:
        center, width: in the units of the values; width > 0.
    """

    center: float
    width: float

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Values of any shape -> uint8 of it: center - width / 2 and less is 0, center + width / 2 and more is 255."""
        low = self.center - self.width / 2
        scaled: NDArray[np.float32] = (np.asarray(values, dtype=np.float32) - low) * (255.0 / self.width)
        seen: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        return seen


def parse_window(text: str) -> Window:
    """`lung`, or `CENTER,WIDTH` in the units of the values: `40,400`.

    Raises:
        SettingError: neither.
    """
    if text in PRESETS:
        return Window(*PRESETS[text])
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        near = get_close_matches(text, PRESETS, 1)
        meant = _("; did you mean {name}?").format(name=near[0]) if near else ""
        raise SettingError(
            _("--window {text}: give one of {names}, or CENTER,WIDTH as in 40,400{meant}").format(
                text=text, names=", ".join(PRESETS), meant=meant
            ),
            key="--window",
        ) from None
    if not (np.isfinite(center) and np.isfinite(width) and width > 0):
        raise SettingError(_("--window {text}: the width must be greater than 0").format(text=text), key="--window")
    return Window(center, width)
