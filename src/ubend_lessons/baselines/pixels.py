"""What a traditional method sees of a pixel: how light it is, its colour, the texture around it.

h rows, w columns of the size at which the methods work, C channels.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

By = Literal["color", "texture", "both"]
Maps = NDArray[np.float32]

SIDE_PX = 256.0  # lengths in px are meant at this size: of an image with the area of such a square
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as `read_image` makes grey of colour
_BANDS_PX = ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0))  # scales of texture: what a blur keeps and the next one takes away
_AROUND = 2.0  # the energy of a band is averaged over so many times its coarser scale
_TEXTURE_GAIN = 4.0  # measured: texture then spreads half as far as colour in the sample, a third in Kvasir-SEG


class Pixels(NamedTuple):
    """An image as maps; all about 0..1.

    Attributes:
        light: (h, w) float32, luma of colour, else the mean of the channels; 0 black, 1 white.
        color: (h, w, F) float32: CIE L*a*b* in hundredths where there are three channels, else the channels.
        texture: (h, w, 3) float32: local energy of the light at three scales, fine to coarse.
    """

    light: Maps
    color: Maps
    texture: Maps

    @property
    def unit_px(self) -> float:
        """What a length of 1 px at `SIDE_PX` is here, px."""
        return float(np.sqrt(self.light.size)) / SIDE_PX

    def maps(self, by: By) -> Maps:
        """(h, w, F) what pixels are compared by."""
        match by:
            case "color":
                return self.color
            case "texture":
                return self.texture
            case "both":
                return np.concatenate([self.color, self.texture], axis=2)


def describe_pixels(image: NDArray[Any], low: NDArray[np.float64], high: NDArray[np.float64]) -> Pixels:
    """The maps of an image.

    Args:
        image: (h, w, C), any dtype.
        low, high: (C,) what counts as 0 and as 1 of each channel, such as 0 and 255.
    Source: texture as energy of band-passes, Laws 1980, Textured Image Segmentation; Malik & Perona 1990.
    """
    from skimage.color import rgb2lab

    values = ((image - low) / (high - low)).clip(0, 1).astype(np.float32)
    if values.shape[2] == 3:
        light, color = values @ np.array(_LUMA, np.float32), rgb2lab(values).astype(np.float32) / 100
    else:
        light, color = values.mean(axis=2), values
    return Pixels(light, color, _texture(light))


def blur(maps: Maps, sigma_px: float) -> Maps:
    """Gaussian of the first two axes; 0 px changes nothing."""
    if sigma_px == 0:
        return maps
    sigmas = (sigma_px, sigma_px, *[0.0] * (maps.ndim - 2))
    return np.asarray(ndimage.gaussian_filter(maps, sigmas, mode="nearest", truncate=3.0))


def _texture(light: Maps) -> Maps:
    unit_px = float(np.sqrt(light.size)) / SIDE_PX
    found = []
    for fine, coarse in _BANDS_PX:
        band = blur(light, fine * unit_px) - blur(light, coarse * unit_px)
        found.append(np.sqrt(blur(band**2, _AROUND * coarse * unit_px)))
    return np.asarray(_TEXTURE_GAIN * np.stack(found, axis=2), np.float32)
