"""One truth, written as many folders by code, and what ubend understands of them.

`folder_layouts.py`, `folder_annotations.py`, `folder_masks.py` and `folder_images.py` hold the cases;
`test_formats.py` writes each, reads it and compares. docs/formats.md names the case of each of its rows.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from ubend.core.progress import Reporter
from ubend.dataset.dataset import open_dataset
from ubend.dataset.store import read_class_map
from ubend.tasks.user_settings import read_user_settings

COUNT, HEIGHT, WIDTH = 8, 40, 48
CLASSES = ("ground", "leaf", "spot")
COLORS = ((0, 0, 0), (220, 40, 30), (30, 120, 230))
PARTS = ("train",) * 4 + ("val",) * 2 + ("test",) * 2
IGNORED = 255


@dataclass(frozen=True)
class Thing:
    """An object of the truth: an L of whole pixels, so that its outline can be drawn without rounding.

    Attributes:
        label: 1 leaf, 2 spot.
        corners: six (x, y), the pixel (0, 0) reaching from 0 to 1.
    """

    label: int
    corners: tuple[tuple[int, int], ...]

    def draw(self) -> NDArray[np.bool_]:
        """(HEIGHT, WIDTH): its pixels."""
        (left, top), (right, _), (_, middle), (step, _), (_, bottom), _ = self.corners
        out = np.zeros((HEIGHT, WIDTH), np.bool_)
        out[top:middle, left:right] = True
        out[middle:bottom, left:step] = True
        return out


def _draw_things(number: int) -> list[Thing]:
    """Four objects in four of six fields of an image, at least 2 px apart; image 3 has no spot."""
    random = np.random.default_rng(100 + number)
    things = []
    for place, cell in enumerate(random.permutation(6)[:4]):
        top, left = 20 * int(cell // 3) + int(random.integers(1, 4)), 16 * int(cell % 3) + int(random.integers(1, 3))
        width, height = int(random.integers(10, 14)), int(random.integers(11, 16))
        step, middle = left + int(random.integers(5, width - 3)), top + int(random.integers(5, height - 3))
        right, bottom = left + width, top + height
        label = 1 if number == 3 else 1 + place % 2
        corners = ((left, top), (right, top), (right, middle), (step, middle), (step, bottom), (left, bottom))
        things.append(Thing(label, corners))
    return things


THINGS = [_draw_things(number) for number in range(COUNT)]


def _draw_labels(number: int) -> NDArray[np.uint8]:
    out = np.zeros((HEIGHT, WIDTH), np.uint8)
    for thing in THINGS[number]:
        out[thing.draw()] = thing.label
    return out


def _draw_image(number: int, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Objects on a ground whose shading differs from image to image, so that none is another's copy."""
    random = np.random.default_rng(200 + number)
    shade = np.asarray(Image.fromarray(random.integers(30, 130, (5, 6), np.uint8)).resize((WIDTH, HEIGHT)), float)
    tones = np.array([(0, 0, 0), (110, 70, 20), (20, 60, 120)])[labels]
    return (shade[:, :, None] + tones + random.normal(0, 3, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)


LABELS = [_draw_labels(number) for number in range(COUNT)]
IMAGES = [_draw_image(number, labels) for number, labels in enumerate(LABELS)]


class Maker:
    """Writes a case's files below `root`, and remembers which image is where.

    Attributes:
        maps: (HEIGHT, WIDTH) class index of each image: the truth that reading must give; a case may
            change it (ignored pixels, an image without objects).
        numbers: image file -> its number.
    """

    def __init__(self, root: Path, binary: bool = False, scale: int = 1) -> None:
        self.root, self.scale = root, scale
        self.maps = [self.enlarge((labels > 0).astype(np.uint8) if binary else labels.copy()) for labels in LABELS]
        self.things = [list(things) for things in THINGS]
        self.numbers: dict[Path, int] = {}

    def enlarge(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """(H, W, ...) -> (H * scale, W * scale, ...), every pixel a square."""
        return pixels if self.scale == 1 else pixels.repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def clear(self, number: int) -> None:
        """An image without objects."""
        self.maps[number][:] = 0
        self.things[number] = []

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, name: str, pixels: Any, **options: Any) -> Path:
        """Pixels (or a ready Pillow image) as a file of the kind that its suffix says."""
        path = self.path(name)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        kind = Image.registered_extensions()[path.suffix.lower()]
        out = io.BytesIO()
        image.save(out, format=kind, **options)
        path.write_bytes(out.getvalue())
        return path

    def image(self, name: str, number: int, pixels: Any = None, **options: Any) -> Path:
        """The image of that number as a file."""
        path = self.save(name, self.enlarge(IMAGES[number]) if pixels is None else pixels, **options)
        self.numbers[path] = number
        return path

    def know(self, name: str, number: int) -> Path:
        """The path of an image that the case writes itself."""
        path = self.path(name)
        self.numbers[path] = number
        return path

    def text(self, name: str, text: str) -> Path:
        path = self.path(name)
        path.write_text(text, encoding="utf-8")
        return path

    def bytes(self, name: str, content: bytes = b"") -> Path:
        path = self.path(name)
        path.write_bytes(content)
        return path

    def images(self, pattern: str = "images/cell_{}.png") -> None:
        """All images; {} is the number."""
        for number in range(COUNT):
            self.image(pattern.format(number), number)

    def masks(self, draw: Callable[[NDArray[np.uint8]], Any] | None = None, pattern: str = "masks/cell_{}.png",
              **options: Any) -> None:  # fmt: skip
        """All masks: `draw` makes of (H, W) class indices what the file is to hold; None: the indices."""
        for number in range(COUNT):
            self.save(pattern.format(number), draw(self.maps[number]) if draw else self.maps[number], **options)


@dataclass(frozen=True)
class Case:
    """A way to write the truth.

    Attributes:
        key: as in docs/formats.md.
        write: makes the folder.
        binary: the truth has two classes, ground and all objects.
        classes: the names that reading gives, in the order of the truth's classes; None: any names, in
            the order of the truth. A name order of its own is found by name.
        parts: whether the folder says the parts.
        flags: words of the command line -> what is given.
        says: words of the one error that must come instead; none: it must be read.
        notes: words that the remarks must hold.
        scale: pixels of the truth are squares of this side in the files.
        wrong: share of the pixels that may be wrong, of those more than 2 px inside a region.
        image: what is checked of the images, beyond that each is the one meant: (channels, dtype).
        or_error: an error with these words is as good.
    """

    key: str
    write: Callable[[Maker], None]
    binary: bool = False
    classes: tuple[str, ...] | None = None
    splits: bool = False
    flags: Mapping[str, Any] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scale: int = 1
    wrong: float | None = None
    image: tuple[int, str] = (3, "uint8")
    or_error: tuple[str, ...] = ()


class Cases(list[Case]):
    """A list that is filled by decorated functions: `no_mask` becomes the case `no-mask`."""

    def add(self, **facts: Any) -> Callable[[Callable[[Maker], None]], Callable[[Maker], None]]:
        def put(write: Callable[[Maker], None]) -> Callable[[Maker], None]:
            self.append(Case(write.__name__.replace("_", "-"), write, **facts))
            return write

        return put


@dataclass(frozen=True)
class Understood:
    """What ubend says of a folder.

    Attributes:
        classes: names, in the order of the class index.
        maps: image file -> (part, (H, W) class index or IGNORED at native size); in the order of the pairs.
        images: image file -> (H, W, C) as stored, at native size.
        said: everything told to the user.
    """

    classes: tuple[str, ...]
    maps: dict[Path, tuple[str, NDArray[np.uint8]]]
    images: dict[Path, NDArray[Any]]
    said: str


def read_class_maps(root: Path, cache: Path, flags: Mapping[str, Any], scale: int = 1) -> Understood:
    """The one place that knows how a folder is read; images are stored at native size.

    Raises:
        UbendError: what the user would see.
    """
    size = {"data.size": round(scale * (HEIGHT * WIDTH) ** 0.5)}
    told = io.StringIO()
    settings = read_user_settings(None if "images" in flags else root, settings=size, flags=flags).settings
    data = open_dataset(settings, "cpu", cache, Reporter(Console(file=told, width=1000)))
    pairs, store = data.folder.pairs, data.store
    assert len({pair.name for pair in pairs}) == len(pairs), "names of pairs must differ"
    maps = {}
    for number, pair in enumerate(pairs):
        native = tuple(store.native_hw[number])
        index = read_class_map(pair, native, data.labels).classes
        assert np.array_equal(store.class_pixels[number], np.bincount(index.reshape(-1), minlength=256))
        assert np.array_equal(store.mask(number), index)
        maps[pair.image] = (data.splits[number], index)
    images = {pair.image: store.image(number) for number, pair in enumerate(pairs)}
    said = "\n".join([told.getvalue(), data.folder.layout, *data.remarks])
    return Understood(data.labels.names, maps, images, said)
