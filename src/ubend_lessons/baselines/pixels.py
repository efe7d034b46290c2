"""The features of pixels that traditional methods use: brightness, colour, and the texture around a pixel.

h rows, w columns of the size at which the methods work, C channels.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

By = Literal["color", "texture", "both"]
Maps = NDArray[np.float32]

SIDE_PX = 256.0  # lengths in px refer to an image with the area of a square of this side
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in `read_image`
_BANDS_PX = ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0))  # scales of texture: differences of two Gaussian blurs
_AROUND = 2.0  # the energy of a band is averaged over this many times its coarser scale
_TEXTURE_GAIN = 4.0  # measured: then texture varies half as much as colour in the sample, a third in Kvasir-SEG


class Pixels(NamedTuple):
    """An image as feature maps, with values of about 0..1.

    Attributes:
        light: (h, w) float32 brightness: the luma of colour, else the mean of the channels; 0 black, 1 white.
        color: (h, w, F) float32: CIE L*a*b* divided by 100 for three channels, else the channels.
        texture: (h, w, 3) float32: local energy of the brightness at three scales, fine to coarse.
    """

    light: Maps
    color: Maps
    texture: Maps

    @property
    def unit_px(self) -> float:
        """The length in this image, px, that corresponds to 1 px at `SIDE_PX`."""
        return float(np.sqrt(self.light.size)) / SIDE_PX

    def maps(self, by: By) -> Maps:
        """(h, w, F) the features by which pixels are compared."""
        match by:
            case "color":
                return self.color
            case "texture":
                return self.texture
            case "both":
                return np.concatenate([self.color, self.texture], axis=2)


def describe_pixels(image: NDArray[Any], low: NDArray[np.float64], high: NDArray[np.float64]) -> Pixels:
    """The feature maps of an image.

    Args:
        image: (h, w, C), any dtype.
        low, high: (C,) values of each channel that are mapped to 0 and 1, such as 0 and 255.
    Source: texture as the energy of band-pass filters, Laws 1980, Textured Image Segmentation; Malik & Perona 1990.
    """
    from skimage.color import rgb2lab

    values = ((image - low) / (high - low)).clip(0, 1).astype(np.float32)
    if values.shape[2] == 3:
        light, color = values @ np.array(_LUMA, np.float32), rgb2lab(values).astype(np.float32) / 100
    else:
        light, color = values.mean(axis=2), values
    return Pixels(light, color, _texture(light))


def blur(maps: Maps, sigma_px: float) -> Maps:
    """Gaussian blur along the first two axes; 0 px: no change."""
    if sigma_px == 0:
        return maps
    sigmas = (sigma_px, sigma_px, *[0.0] * (maps.ndim - 2))
    return np.asarray(scipy.ndimage.gaussian_filter(maps, sigmas, mode="nearest", truncate=3.0))


def _texture(light: Maps) -> Maps:
    unit_px = float(np.sqrt(light.size)) / SIDE_PX
    found = []
    for fine, coarse in _BANDS_PX:
        band = blur(light, fine * unit_px) - blur(light, coarse * unit_px)
        found.append(np.sqrt(blur(band**2, _AROUND * coarse * unit_px)))
    return np.asarray(_TEXTURE_GAIN * np.stack(found, axis=2), np.float32)
