"""Draws satellite images: six bands of reflectance, as GeoTIFFs that are side by side on the map.

B bands of H x W pixels, H = W.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import scipy
import tifffile
from numpy.typing import NDArray

from ubend.core.files import write_file, write_text

CLASSES = ("bare soil", "field", "forest", "water", "built")
BANDS = ("blue", "green", "red", "red edge", "near infrared", "short-wave infrared")
_RED, _NEAR = 2, 4
PIXEL_M = 10.0
_CRS = 32648  # EPSG: UTM zone 48 north
_ORIGIN_M = (584000.0, 2330000.0)  # east, north of the first image's upper left corner
# Reflectance of each class in each band, similar to that of Sentinel-2.
_SPECTRA = np.array(
    [
        [0.10, 0.13, 0.17, 0.20, 0.24, 0.33],
        [0.05, 0.09, 0.06, 0.17, 0.38, 0.20],
        [0.03, 0.06, 0.04, 0.14, 0.33, 0.14],
        [0.07, 0.07, 0.05, 0.04, 0.03, 0.02],
        [0.14, 0.16, 0.18, 0.20, 0.22, 0.27],
    ]
)


def draw_field(seed: int, number: int, size_px: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Draw an image: (B, H, W) uint16 reflectance times 10,000, and (H, W) uint8 class index of `CLASSES`."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    y, x = np.mgrid[0:size_px, 0:size_px].astype(float)
    turn, crossing = random.uniform(0, np.pi), random.uniform(0.25, 0.75, (2, 2)) * size_px
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    # parcels of a rotated grid, each with a crop or bare
    parcel = (np.floor(along / random.uniform(14, 24)) * 57 + np.floor(across / random.uniform(9, 16))).astype(int)
    parcel = np.unique(parcel, return_inverse=True)[1].reshape(parcel.shape)
    bare = random.random(parcel.max() + 1) < 0.4
    mask = np.where(bare[parcel], 0, 1).astype(np.uint8)
    growth = random.uniform(0.55, 1.15, parcel.max() + 1)[parcel]
    woods = _smooth(random, size_px, 14) + 0.25 * _smooth(random, size_px, 4)
    mask[woods > 0.55] = 2
    (down, right), (top, left) = crossing  # a point on the river, and one on the road
    bend = across - (down * np.cos(turn) - right * np.sin(turn)) - 9 * np.sin(along / random.uniform(14, 22))
    mask[np.abs(bend) < random.uniform(2, 6)] = 3
    if random.random() < 0.85:  # a road, and houses along it
        road = along - (left * np.cos(turn) + top * np.sin(turn)) + 4 * np.sin(across / 30)
        near = (np.abs(road) < 14) & (mask != 3)
        houses = np.zeros_like(mask, bool)
        for _house in range(int(random.integers(8, 22))):
            (upper, west), (tall, wide) = random.integers(0, size_px, 2), random.integers(3, 8, 2)
            houses[upper : upper + tall, west : west + wide] = True
        mask[(houses & near) | (np.abs(road) < 1.3)] = 4
    spectra = _SPECTRA[mask].transpose(2, 0, 1)
    crop = mask == 1
    soil = _SPECTRA[0][:, None, None]
    spectra = np.where(crop, growth * spectra + (1 - growth) * soil, spectra)
    grain = np.where(mask == 2, 0.22, np.where(mask == 4, 0.25, np.where(mask == 3, 0.03, 0.08)))
    light = np.exp(grain * _smooth(random, size_px, 1.2) + 0.1 * _smooth(random, size_px, 30))
    haze = random.uniform(0, 0.03) * np.array([1, 0.8, 0.6, 0.4, 0.2, 0.1])[:, None, None]
    values = spectra * light * random.uniform(0.8, 1.15) + haze
    values = scipy.ndimage.gaussian_filter(values, (0, 0.6, 0.6)) + random.normal(0, 0.006, values.shape)
    return np.rint(10000 * values.clip(0.0001, 1.6)).astype(np.uint16), mask


def draw_fields(folder: Path, count: int = 60, size_px: int = 96, seed: int = 0) -> None:
    """Write GeoTIFFs and their masks.

    FOLDER/images/field_00.tif   (B, size_px, size_px) uint16, in planes, with a georeference
    FOLDER/masks/field_00.tif    (size_px, size_px) uint8 class index
    FOLDER/classes.txt
    """
    for index in range(count):
        values, mask = draw_field(seed, index, size_px)
        for kind, pixels in (("images", values), ("masks", mask)):
            _write_geotiff(folder / kind / f"field_{index:02d}.tif", pixels, index)
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in CLASSES))


def vegetation_index(bands: NDArray[np.uint16]) -> NDArray[np.float64]:
    """(H, W, B) drawn bands -> (H, W) normalised difference vegetation index, -1..1.

    Source: Rouse et al. 1974, (near infrared - red) / (near infrared + red).
    """
    red, near = bands[..., _RED].astype(float), bands[..., _NEAR].astype(float)
    return np.asarray((near - red) / np.maximum(near + red, 1))


def _write_geotiff(path: Path, pixels: NDArray[np.uint16] | NDArray[np.uint8], number: int) -> None:
    """Write a GeoTIFF; on the map, eight images form a row."""
    side = PIXEL_M * pixels.shape[-1]
    east, north = _ORIGIN_M[0] + side * (number % 8), _ORIGIN_M[1] - side * (number // 8)
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, _CRS)  # projected; pixels are areas; the CRS
    tags = [
        (33550, 12, 3, (PIXEL_M, PIXEL_M, 0.0), True),  # ModelPixelScale
        (33922, 12, 6, (0.0, 0.0, 0.0, east, north, 0.0), True),  # ModelTiepoint
        (34735, 3, len(keys), keys, True),  # GeoKeyDirectory
    ]
    planes: Literal["separate"] | None = "separate" if pixels.ndim == 3 else None

    def write(temporary: Path) -> None:
        tifffile.imwrite(
            temporary,
            pixels,
            photometric="minisblack",
            planarconfig=planes,
            compression="deflate",
            extratags=tags,
            metadata=None,
        )

    write_file(path, write)


def _smooth(random: np.random.Generator, size_px: int, grain_px: float) -> NDArray[np.float64]:
    """A smooth random field, mean 0, deviation 1."""
    field = scipy.ndimage.gaussian_filter(random.standard_normal((size_px, size_px)), grain_px, mode="reflect")
    return np.asarray((field - field.mean()) / field.std())
