"""Draws street scenes, seen from a car: eight classes, some of them rare.

H x W pixels, W = 1.5 H.
"""

from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ubend.core.files import write_file, write_text

# Classes and their colours in the masks.
CLASSES: dict[str, tuple[int, int, int]] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "tree": (128, 128, 0),
    "road": (128, 64, 128),
    "lane": (250, 170, 160),
    "sign": (192, 128, 128),
    "car": (64, 0, 128),
    "person": (64, 64, 0),
}
_SPLITS = ("train", "train", "train", "train", "val", "test")  # splits of the scenes, in turn
_Box = tuple[float, float, float, float]


class _Scene:
    """An image and its mask, painted together, distant things first; positions are fractions of the height."""

    def __init__(self, height_px: int) -> None:
        self._px = height_px
        self.image = Image.new("RGB", (3 * height_px // 2, height_px))
        self.mask = Image.new("L", self.image.size)
        self._draws = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)

    def polygon(self, name: str, color: NDArray[np.float64], corners: list[tuple[float, float]]) -> None:
        """Paint a polygon; corners are (x, y)."""
        self._paint("polygon", name, color, [(x * self._px, y * self._px) for x, y in corners])

    def box(self, name: str, color: NDArray[np.float64], box: _Box) -> None:
        """Paint a rectangle: left, top, right, bottom."""
        self._paint("rectangle", name, color, [side * self._px for side in box])

    def ellipse(self, name: str, color: NDArray[np.float64], box: _Box) -> None:
        self._paint("ellipse", name, color, [side * self._px for side in box])

    def _paint(self, shape: str, name: str, color: NDArray[np.float64], where: object) -> None:
        fills = tuple(int(v) for v in color.clip(0, 255)), list(CLASSES).index(name)
        for draw, fill in zip(self._draws, fills, strict=True):
            getattr(draw, shape)(where, fill=fill)


def draw_street(seed: int, number: int, height_px: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a scene: (H, W, 3) uint8 image, and (H, W) uint8 class index of `CLASSES`."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    scene, horizon, middle = _Scene(height_px), random.uniform(0.38, 0.48), random.uniform(0.6, 0.9)

    def shade(*color: float, spread: float = 18) -> NDArray[np.float64]:
        return np.array(color) + random.uniform(-spread, spread) + random.uniform(-8, 8, 3)

    scene.box("sky", shade(165, 190, 225, spread=30), (-0.1, -0.1, 1.6, 1.1))
    for side in (-1, 1):
        edge = 0.0 if side < 0 else 1.5
        while abs(edge - middle) > 0.18:  # houses, smaller towards the vanishing point
            far = abs(edge - middle)
            wide, tall = far * random.uniform(0.18, 0.4), far * random.uniform(0.35, 0.8)
            near, base = edge - side * wide, horizon + 0.32 * far
            inner, outer = sorted((near, edge))
            scene.box("building", shade(140, 115, 100, spread=40), (inner, horizon - tall, outer, base))
            for _window in range(int(6 * far)):
                x, y = random.uniform(inner, outer), random.uniform(horizon - tall, horizon)
                scene.box("building", shade(70, 80, 95), (x, y, x + 0.02 * far, y + 0.045 * far))
            edge = near
    reach = random.uniform(0.75, 1.1)
    ground = [(middle - 0.02, horizon), (middle + 0.02, horizon)]
    scene.polygon("road", shade(95, 95, 98), [*ground, (middle + 3, 1.6), (middle - 3, 1.6)])
    scene.polygon("road", shade(80, 80, 84), [*ground, (middle + reach, 1.02), (middle - reach, 1.02)])
    for line in (-0.5, 0.0, 0.5):
        y = horizon + 0.02
        while y < 1:
            depth, length = y - horizon, 0.35 * (y - horizon) + 0.008
            ends = [(middle + line * reach * (d / 0.6), horizon + d) for d in (depth, depth + length)]
            thick = [0.018 * (d / 0.6) + 0.002 for d in (depth, depth + length)]
            corners = [(ends[0][0] - thick[0], ends[0][1]), (ends[0][0] + thick[0], ends[0][1])]
            corners += [(ends[1][0] + thick[1], ends[1][1]), (ends[1][0] - thick[1], ends[1][1])]
            scene.polygon("lane", shade(225, 222, 210), corners)
            y += length * random.uniform(1.9, 2.3)
    things = [("tree", random.integers(2, 5)), ("sign", random.integers(2, 4)), ("car", random.integers(1, 4))]
    things += [("person", random.integers(2, 5))]
    placed = [(random.uniform(0.1, 0.45), name) for name, count in things for _one in range(int(count))]
    for depth, name in sorted(placed):  # near things hide distant ones
        _draw_thing(scene, name, depth, middle, horizon, reach, random)
    image, mask = np.asarray(scene.image).astype(float), np.asarray(scene.mask)
    noise = scipy.ndimage.gaussian_filter(random.standard_normal(mask.shape), 1.2)
    texture = np.where(mask == list(CLASSES).index("tree"), 70.0, 18.0) * noise
    fall = 1 + random.uniform(-0.25, 0.25) * np.linspace(-1, 1, mask.shape[1])
    image = (
        scipy.ndimage.gaussian_filter(image + texture[..., None], (0.5, 0.5, 0))
        * fall[:, None]
        * random.uniform(0.6, 1.1)
    )
    image += random.normal(0, 5, image.shape)
    return np.rint(image.clip(0, 255)).astype(np.uint8), mask


def draw_streets(folder: Path, count: int = 96, height_px: int = 96, seed: int = 0) -> None:
    """Write scenes and their colour masks in the layout of CamVid.

    FOLDER/train/street_00.png            likewise val/ and test/
    FOLDER/train_labels/street_00_L.png   each class in its colour
    FOLDER/class_dict.csv                 name,r,g,b
    """
    colors = np.array(list(CLASSES.values()), np.uint8)
    for index in range(count):
        image, mask = draw_street(seed, index, height_px)
        split = _SPLITS[index % len(_SPLITS)]
        for place, pixels in ((split, image), (f"{split}_labels", colors[mask])):
            suffix = "_L" if place.endswith("_labels") else ""
            drawing = Image.fromarray(pixels)
            write_file(
                folder / place / f"street_{index:02d}{suffix}.png",
                lambda temporary, drawing=drawing: drawing.save(temporary, "PNG"),  # type: ignore[misc]
            )
    rows = [f"{name},{','.join(map(str, color))}\n" for name, color in CLASSES.items()]
    write_text(folder / "class_dict.csv", f"name,r,g,b\n{''.join(rows)}")


def _draw_thing(
    scene: _Scene,
    name: str,
    depth: float,
    middle: float,
    horizon: float,
    reach: float,
    random: np.random.Generator,
) -> None:
    """Draw a thing that stands on the ground, `depth` below the horizon; nearer things are larger."""
    base, half = horizon + depth, reach * depth / 0.6  # of the road
    side = random.choice([-1, 1])
    color = random.uniform(30, 230, 3)
    if name == "car":
        x, wide, tall = middle + half * random.uniform(-0.7, 0.7), 0.55 * depth, 0.42 * depth
        scene.box("car", color, (x - wide / 2, base - 0.6 * tall, x + wide / 2, base))
        roof = [(x - 0.4 * wide, base - 0.6 * tall), (x - 0.28 * wide, base - tall)]
        roof += [(x + 0.28 * wide, base - tall), (x + 0.4 * wide, base - 0.6 * tall)]
        scene.polygon("car", np.array([50.0, 60.0, 75.0]), roof)
        for wheel in (-0.3, 0.3):
            scene.ellipse(
                "car",
                np.array([25.0, 25.0, 25.0]),
                (x + (wheel - 0.1) * wide, base - 0.2 * tall, x + (wheel + 0.1) * wide, base + 0.08 * tall),
            )
    elif name == "person":
        x, tall = middle + side * half * random.uniform(0.8, 1.3), 0.75 * depth
        scene.box("person", color, (x - 0.14 * tall, base - 0.8 * tall, x + 0.14 * tall, base - 0.35 * tall))
        scene.box("person", color * 0.5, (x - 0.12 * tall, base - 0.4 * tall, x + 0.12 * tall, base))
        skin = np.array([200.0, 160.0, 130.0]) * random.uniform(0.5, 1.1)
        scene.ellipse("person", skin, (x - 0.1 * tall, base - tall, x + 0.1 * tall, base - 0.8 * tall))
    elif name == "tree":
        x, tall = middle + side * half * random.uniform(1.25, 1.8), depth * random.uniform(1.3, 2.0)
        scene.box("tree", np.array([85.0, 65.0, 45.0]), (x - 0.03 * tall, base - 0.5 * tall, x + 0.03 * tall, base))
        green = np.array([60.0, 105.0, 50.0]) * random.uniform(0.6, 1.3)
        for _crown in range(4):
            dx, dy = random.uniform(-0.18, 0.18, 2) * tall
            r = random.uniform(0.16, 0.26) * tall
            top = base - 0.75 * tall + dy
            scene.ellipse("tree", green * random.uniform(0.85, 1.1), (x + dx - r, top - r, x + dx + r, top + r))
    else:
        x, tall = middle + side * half * random.uniform(1.05, 1.25), 0.95 * depth
        scene.box("sign", np.array([120.0, 120.0, 125.0]), (x - 0.02 * tall, base - tall, x + 0.02 * tall, base))
        paint = np.array([[190.0, 30.0, 35.0], [30.0, 70.0, 170.0], [225.0, 190.0, 40.0]])[random.integers(3)]
        r = 0.2 * tall
        scene.ellipse("sign", paint, (x - r, base - tall - r, x + r, base - tall + r))
