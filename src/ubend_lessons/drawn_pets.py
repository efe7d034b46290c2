"""Draws animals of several breeds, on backgrounds with the same patterns, for lessons without images of pets.

A breed is a coat (plain, striped, spotted) and a shape of the ears (pointed, round). The background has the pattern of
any coat, which misleads a network that uses the whole image. An image is a pure function of (seed, number).
"""

from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.core.files import write_text
from ubend.portable.images import save_png

_COATS, _EARS = ("plain", "striped", "spotted"), ("pointed", "round")
KINDS = tuple(f"{coat}-{ears}" for coat, ears in product(_COATS, _EARS))

Field = NDArray[np.float64]


def draw_pets(folder: Path, count: int = 200, size_px: int = 96, seed: int = 0) -> None:
    """Write images and masks: FOLDER/images/KIND_007.png, FOLDER/masks/KIND_007.png, FOLDER/classes.txt.

    Args:
        count: number of images; breeds alternate.
        size_px: height and width.
    """
    for index in range(count):
        image, mask = draw_pet(seed, index, size_px)
        name = f"{KINDS[index % len(KINDS)]}_{index:03d}.png"
        save_png(Image.fromarray(image), folder / "images" / name)
        save_png(Image.fromarray(mask), folder / "masks" / name)
    write_text(folder / "classes.txt", "background\npet\n")


def draw_pet(seed: int, number: int, size_px: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw an animal: (H, W, 3) image and (H, W) mask (1: animal); its breed is `KINDS[number % 6]`."""
    coat, ears = KINDS[number % len(KINDS)].split("-")
    random = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    y, x = np.mgrid[:size_px, :size_px] / size_px
    radius = random.uniform(0.11, 0.15)
    middle, side = random.uniform(0.35, 0.65, 2), random.choice([-1, 1])
    head_y, head_x = middle[0] - 0.12, middle[1] + side * 1.4 * radius
    inside = _ellipse(y, x, middle[0] + 0.05, middle[1], 0.9 * radius, 1.7 * radius)
    inside |= _ellipse(y, x, head_y, head_x, radius, radius)
    for ear in (-0.75, 0.75):
        ear_y, ear_x = head_y - 0.85 * radius, head_x + ear * radius
        if ears == "round":
            inside |= _ellipse(y, x, ear_y, ear_x, 0.45 * radius, 0.45 * radius)
        else:
            depth = (y - ear_y) / radius + 0.9  # 0 at the tip
            inside |= (depth > 0) & (depth < 1.5) & (np.abs(x - ear_x) < 0.35 * radius * depth)
    ground = _paint(random, random.choice(_COATS), y, x)
    image = np.where(inside[..., None], _paint(random, coat, y, x), ground)
    image += random.normal(0, 0.03, image.shape)
    return (255 * image.clip(0, 1)).astype(np.uint8), inside.astype(np.uint8)


def _paint(random: np.random.Generator, coat: str, y: Field, x: Field) -> Field:
    """(H, W, 3) values 0..1: a colour of fur or earth, and a darker one in the pattern of the coat."""
    color = random.uniform(0.45, 0.9) * np.array([1.0, random.uniform(0.75, 0.95), random.uniform(0.5, 0.8)])
    angle, waves, start = random.uniform(0, np.pi), random.uniform(9, 13), random.uniform(0, 2 * np.pi, 2)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    stripes = np.sin(2 * np.pi * waves * along + start[0])
    if coat == "plain":
        dark = np.zeros(y.shape)
    elif coat == "striped":
        dark = stripes > 0.2
    else:
        dark = stripes * np.sin(2 * np.pi * waves * across + start[1]) > 0.35
    painted: Field = color * (1 - 0.55 * dark[..., None])
    return painted


def _ellipse(y: Field, x: Field, middle_y: float, middle_x: float, tall: float, wide: float) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = ((y - middle_y) / tall) ** 2 + ((x - middle_x) / wide) ** 2 < 1
    return inside
