"""The drawn sample: synthetic microscope images of touching cells, with masks, without a download.

The images look like stained bright-field microscopy, in three stains. They have what makes a global threshold fail:
uneven light, stain in the background, cells of another plane, cells no darker than the background, debris, sensor
noise, and partial or complete defocus. There is only one type of microscopy: with fluorescence mixed in, a network of
width 16 was not trained in 40 s on two CPU cores (contour Dice .71; .85 with either type alone; measured).

H, W = size_px. A field is (H, W) float64. Cells keep their size in pixels (mostly 20 to 45 across), so a larger image
has more cells, not larger ones. Constants of the appearance were chosen by eye, then checked with Otsu's threshold
(which must fail) and a small U-Net (which must not) by `tests/test_sample.py` and by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import SettingError
from ubend.core.files import refuse_existing_results, write_file, write_text
from ubend.core.i18n import _
from ubend.labels.class_table import default_colors

SAMPLE_CLASSES = ("background", "cell", "contour")
SMALLEST_PX = 64  # smaller images have no room for a complete cell with its surroundings

Field = NDArray[np.float64]
Color = Sequence[float]


def draw_sample(folder: Path, count: int = 64, size_px: int = 256, seed: int = 0) -> None:
    """Draw `count` images with masks and object ids, and write them as a data set.

    FOLDER/images/cell_000.png   (size_px, size_px, 3) uint8
    FOLDER/masks/cell_000.png    palette PNG; its indices are the classes of `SAMPLE_CLASSES`
    FOLDER/ids/cell_000.png      16-bit grey PNG: the id of the cell at each pixel, 0 for none
    FOLDER/classes.txt           one class name per line, in the order of the label values

    Args:
        folder: must not exist, or be empty.
        count: number of images, at least 1.
        size_px: height and width, at least 64.
        seed: 0 to 2^64 - 1.
    Raises:
        SettingError: an argument is out of range.
        OutputError: `folder` is not empty, or cannot be written.
    """
    if count < 1:
        raise SettingError(_("count is {count}; draw at least 1 image").format(count=count), key="--count")
    if size_px < SMALLEST_PX:
        raise SettingError(
            _("size is {size} px; an image needs at least {minimum} px to contain cells").format(
                size=size_px, minimum=SMALLEST_PX
            ),
            key="--size",
        )
    if not 0 <= seed < 2**64:
        raise SettingError(_("seed is {seed}; give a whole number from 0 to 2^64 - 1").format(seed=seed), key="--seed")
    refuse_existing_results(folder)
    palette = [channel for color in default_colors(len(SAMPLE_CLASSES)) for channel in color]
    digits = max(3, len(str(count - 1)))
    for index in range(count):
        image, mask, ids = _draw(seed, index, size_px)
        name = f"cell_{index:0{digits}d}.png"
        _write_png(folder / "images" / name, Image.fromarray(image))
        paletted = Image.fromarray(mask)
        paletted.putpalette(palette)  # "L" becomes "P": same indices, now with colours
        _write_png(folder / "masks" / name, paletted)
        _write_png(folder / "ids" / name, Image.fromarray(ids))
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in SAMPLE_CLASSES))


def draw_image(seed: int, index: int, size_px: int = 256) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one image and its mask: a pure function of (seed, index, size_px).

    The random draws are the same on every platform; pixels may differ by 1 where exp or cos round differently.

    Returns:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) uint8: 0 background, 1 cell, 2 contour. The contour surrounds each cell, where cells touch and
            towards the background; it is 3 px wide, so that it is still 1 to 2 px wide at half size.
    """
    image, mask, _ids = _draw(seed, index, size_px)
    return image, mask


def draw_ids(seed: int, index: int, size_px: int = 256) -> NDArray[np.uint16]:
    """(H, W) uint16: the id of the cell at each pixel of `draw_image`: 1, 2, ..., or 0 for none.

    Cells extend to their outlines: of the 3 px of the contour, 2 are inside a cell and 1 is outside.
    """
    return _draw(seed, index, size_px)[2]


def _draw(seed: int, index: int, size_px: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
    """Image, mask and ids."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
    cells = _grow_cells(random, size_px)
    contour = _contour(cells.labels)
    mask = (cells.labels > 0).astype(np.uint8)
    mask[contour] = 2
    # Renumber: some cells are outside the image, or completely covered by others.
    ids = np.unique(cells.labels, return_inverse=True)[1].reshape(cells.labels.shape)
    ids += int((cells.labels > 0).all())  # without background, the lowest label is a cell
    return _take_photo(random, _stain_cells(random, cells, contour)), mask, ids.astype(np.uint16)


# ---------------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class _Cells:
    """The cells of an image.

    Attributes:
        labels: (H, W) int64, the id of the cell at each pixel, from 1; 0 for none.
        bulge: field, thickness of the cell: 1 at its centre, 0 at its edge and outside.
        nuclei: field, 0..1, fraction of the pixel covered by a nucleus.
        count: number of cells.
    """

    labels: NDArray[np.int64]
    bulge: Field
    nuclei: Field
    count: int


def _grow_cells(random: np.random.Generator, size_px: int) -> _Cells:
    """Place cells in colonies: most new cells are placed next to an existing one."""
    wanted = max(3, round(size_px**2 / 1000 * random.uniform(0.33, 0.62)))
    margin = 10.0  # px by which a centre may be outside, so that the image border cuts cells
    placed: list[tuple[float, float, float]] = []  # y, x, radius in px
    for _attempt in range(60 * wanted):
        radius = random.uniform(13, 21)
        y, x = random.uniform(-margin, size_px + margin, 2)
        if placed and random.random() < 0.93:
            other_y, other_x, other = placed[random.integers(len(placed))]
            angle, gap = random.uniform(0, 2 * np.pi), random.uniform(0.80, 0.98) * (radius + other)
            y, x = other_y + gap * np.sin(angle), other_x + gap * np.cos(angle)
        inside = -margin < y < size_px + margin and -margin < x < size_px + margin
        apart = [np.hypot(y - v, x - u) / (radius + r) for v, u, r in placed]
        if not inside or min(apart, default=1) < 0.79:
            continue
        if sum(a < 1 for a in apart) != 1 or random.random() < 0.2:  # compact colonies rather than chains
            placed.append((float(y), float(x), radius))
        if len(placed) == wanted:
            break

    yy, xx = np.mgrid[0:size_px, 0:size_px].astype(np.float64)
    yy += 2.0 * _noise(random, size_px, 14)  # distorted coordinates give the ellipses wavy outlines
    xx += 2.0 * _noise(random, size_px, 14)
    labels = np.zeros((size_px, size_px), dtype=np.int64)
    depth = np.zeros((size_px, size_px))  # px inside the outline; a shared pixel goes to the cell with more
    bulge, nuclei = np.zeros_like(depth), np.zeros_like(depth)
    for label, (y, x, radius) in enumerate(placed, 1):
        reach = int(1.7 * radius) + 8
        top, left = max(0, int(y) - reach), max(0, int(x) - reach)
        window = np.s_[top : max(0, int(y) + reach), left : max(0, int(x) + reach)]
        dy, dx = yy[window] - y, xx[window] - x
        angle = random.uniform(0, np.pi)
        along, across = _turn(dy, dx, angle)
        stretch = random.uniform(1.0, 1.22)
        theta = np.arctan2(across, along)
        outline = 1 + sum(
            random.normal(0, 0.10 / k) * np.cos(k * theta + random.uniform(0, 2 * np.pi)) for k in (2, 3, 4)
        )
        rho = np.hypot(along / stretch, across * stretch) / (radius * outline)
        here = (1 - rho) * radius
        wins = here > depth[window]
        labels[window][wins] = label
        bulge[window][wins] = np.sqrt(1 - np.minimum(rho[wins], 1) ** 2)
        depth[window][wins] = here[wins]
        # the nucleus: off-centre, rounder than its cell, sometimes two
        pair = random.random() < 0.06
        nucleus = np.zeros_like(rho)
        for side in (-1, 1) if pair else (0,):
            centre = 0.27 * side * radius + random.normal(0, 0.09 * radius), random.normal(0, 0.09 * radius)
            size = radius * random.uniform(0.34, 0.47) * (0.72 if pair else 1.0)
            squash = random.uniform(1.0, 1.25)
            far = np.hypot((along - centre[0]) / squash, (across - centre[1]) * squash)
            nucleus = np.maximum(nucleus, np.clip(size - far + 0.5, 0, 1))
        nuclei[window][wins] = nucleus[wins]
    return _Cells(labels, bulge, nuclei, len(placed))


def _contour(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(H, W) bool: a line 3 px wide along every cell edge, 2 px on the side of the higher label.

    The background has the lowest label, so the line around a single cell is 2 px inside and 1 px outside.
    """
    disk = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2.0
    cross = np.hypot(*np.mgrid[-1:2, -1:2]) <= 1.0
    lower = scipy.ndimage.minimum_filter(labels, footprint=disk, mode="nearest") < labels
    higher = scipy.ndimage.maximum_filter(labels, footprint=cross, mode="nearest") > labels
    return np.asarray(lower | higher)


# ------------------------------------------------------------------------------------------ appearance


def _stain_cells(random: np.random.Generator, cells: _Cells, contour: NDArray[np.bool_]) -> Field:
    """(H, W, 3) light, about 0..1: absorbing stains (Beer-Lambert) on a bright background, with a bright rim."""
    size_px = len(contour)
    membrane_color, body_color, nucleus_color = _STAINS[random.integers(len(_STAINS))]
    body, membrane, nuclei = _take_up_dye(random, cells, contour)
    wash = _haze(random, size_px, 0.16) + _ghosts(random, size_px, 0.22)
    density = (
        _tint(wash + 0.20 * body, body_color)
        + _tint(0.44 * membrane + 1.1 * _debris(random, size_px), membrane_color)
        + _tint(0.42 * nuclei, nucleus_color)
    )
    # the rim: light refracted at the edge of a cell falls next to it
    outside = scipy.ndimage.gaussian_filter((cells.labels > 0).astype(np.float64), 2.6)
    rim = 0.16 * outside * (cells.labels == 0)
    lamp = np.array([0.93, 0.915, 0.885])
    return (
        np.asarray(lamp * np.exp(-density) * (1 + scipy.ndimage.gaussian_filter(rim, 0.7))[..., None])
        * _illumination(random, size_px, 0.22)[..., None]
    )


# Absorption of red, green and blue by membrane, cytoplasm and nucleus.
_STAINS: tuple[tuple[Color, Color, Color], ...] = (
    ((0.75, 1.25, 0.70), (0.45, 1.20, 0.65), (1.50, 1.60, 0.75)),  # eosin and haematoxylin
    ((1.20, 1.10, 0.60), (0.95, 0.75, 0.40), (1.60, 1.30, 0.55)),  # methylene blue
    ((0.80, 1.00, 1.15), (0.55, 0.80, 1.15), (1.30, 1.10, 0.70)),  # brown precipitate, blue nuclei
)


def _take_up_dye(random: np.random.Generator, cells: _Cells, contour: NDArray[np.bool_]) -> tuple[Field, Field, Field]:
    """Amount of dye in cytoplasm, membrane and nucleus: three fields, about 1 where a cell is well stained."""
    size_px = len(contour)
    dye = np.exp(random.normal(0, 0.5, cells.count + 1))
    dye[random.random(cells.count + 1) < 0.28] *= 0.18  # pale cells: visible only by their outline
    dye[0] = 0.0
    grain = 0.6 * _noise(random, size_px, 3) + 0.6 * _noise(random, size_px, 6) + 0.5 * _noise(random, size_px, 12)
    body = dye[cells.labels] * np.exp(0.42 * grain) * (0.35 + 0.65 * cells.bulge)
    granules = np.clip(_noise(random, size_px, 2.2) - 1.9, 0, None) * (cells.bulge > 0.45)
    body = scipy.ndimage.gaussian_filter(body + 1.6 * np.sqrt(dye)[cells.labels] * granules, 0.7)

    # membranes are stained unevenly along their length; between two cells, both contribute
    strength = np.exp(random.normal(0, 0.28, cells.count + 1))
    around = scipy.ndimage.maximum_filter(strength[cells.labels] * (cells.labels > 0), 5, mode="nearest")
    membrane = contour * around * np.exp(0.30 * _noise(random, size_px, 9) + 0.18 * grain)
    membrane = scipy.ndimage.gaussian_filter(membrane, 0.85)

    dyed = np.exp(random.normal(0, 0.35, cells.count + 1))
    dyed[random.random(cells.count + 1) < 0.25] *= 0.25
    chromatin = np.exp(0.35 * grain - 0.1) * (0.7 + 0.3 * cells.bulge)
    nucleoli = 1 + 0.8 * np.clip(_noise(random, size_px, 3.5) - 1.2, 0, 1)
    nuclei = scipy.ndimage.gaussian_filter(cells.nuclei * dyed[cells.labels] * chromatin * nucleoli, 0.8)
    return body, membrane, nuclei


# ------------------------------------------------------------------------------ light, dirt and camera


def _take_photo(random: np.random.Generator, light: Field) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: focus, exposure and sensor noise."""
    size_px = len(light)
    fate = random.random()
    if fate < 0.15:  # slightly out of focus everywhere
        light = _blur(light, random.uniform(1.1, 1.7))
    elif fate < 0.45:  # a tilted slide: sharp at one side
        soft = _blur(light, random.uniform(1.8, 2.6))
        tilt = np.clip(0.5 + 2.2 * _ramp(random, size_px), 0, 1)[..., None]
        light = light + tilt * (soft - light)
    else:
        light = _blur(light, random.uniform(0.3, 0.6))
    gain = random.uniform(0.9, 1.12)
    light = gain * np.clip(light, 0, None)
    shot, readout = random.uniform(0.018, 0.045), random.uniform(0.010, 0.024)
    noise = random.standard_normal(light.shape)
    noisy = light + noise * np.sqrt(shot**2 * light + readout**2)  # photons, then electronics
    noisy = np.where(noisy > 0.8, 0.8 + 0.2 * np.tanh((noisy - 0.8) / 0.2), noisy)  # soft saturation
    return np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)


def _illumination(random: np.random.Generator, size_px: int, fall: float) -> Field:
    """Field of about 1: darker to one side and towards the corners, by up to about `fall` each."""
    yy, xx = np.mgrid[0:size_px, 0:size_px] / (size_px - 1) - 0.5
    y, x = random.uniform(-0.2, 0.2, 2)
    vignette = 1 - random.uniform(0.4, 1.2) * fall * 2 * ((yy - y) ** 2 + (xx - x) ** 2)
    return np.asarray(vignette * (1 + random.uniform(0.3, 1.3) * fall * 1.4 * _ramp(random, size_px)))


def _ramp(random: np.random.Generator, size_px: int) -> Field:
    """Field from about -.5 to .5 along a random direction."""
    yy, xx = np.mgrid[0:size_px, 0:size_px] / (size_px - 1) - 0.5
    return _turn(yy, xx, random.uniform(0, 2 * np.pi))[0]


def _haze(random: np.random.Generator, size_px: int, level: float) -> Field:
    """Field around `level`, from a third of it to three times: light or stain outside cells."""
    return np.asarray(level * np.exp(1.1 * np.tanh(0.65 * _noise(random, size_px, 75))))


def _ghosts(random: np.random.Generator, size_px: int, strength: float) -> Field:
    """Field: blurred cells of another plane, which are in no mask."""
    field = np.zeros((size_px, size_px))
    yy, xx = np.mgrid[0:size_px, 0:size_px]
    for _ghost in range(random.poisson(5 * (size_px / 256) ** 2)):
        y, x = random.uniform(0, size_px, 2)
        dy, dx = _turn(yy - y, xx - x, random.uniform(0, np.pi))
        radius = random.uniform(11, 24)
        far = (dy / radius) ** 2 + (dx / radius * random.uniform(1, 1.5)) ** 2
        field += strength * random.uniform(0.4, 1.5) * np.exp(-(far**1.5))
    return field


def _debris(random: np.random.Generator, size_px: int) -> Field:
    """Field 0..1: specks, small fragments and sometimes a fibre, on and next to cells."""
    field = np.zeros((size_px, size_px))
    line = np.arange(size_px)
    for _fragment in range(random.poisson(5 * (size_px / 256) ** 2)):
        y, x = random.uniform(0, size_px, 2)
        for _lump in range(random.integers(1, 5)):
            spread = 2 * random.uniform(0.7, 2.0) ** 2
            down, right = np.exp(-((line - y) ** 2) / spread), np.exp(-((line - x) ** 2) / spread)
            field += random.uniform(0.2, 0.8) * down[:, None] * right
            y, x = random.normal((y, x), 2.4)
    if random.random() < 0.3:
        yy, xx = np.mgrid[0:size_px, 0:size_px]
        along, across = _turn(yy - size_px * random.random(), xx - size_px * random.random(), random.uniform(0, np.pi))
        across = across + 6 * np.sin(along / 19) + along**2 / 300
        length = random.uniform(12, 30)
        field += 0.45 * np.exp(-(across**2) / 2.2) * (np.abs(along) < length)
    return np.minimum(field, 1.0)


def _blur(light: Field, sigma_px: float) -> Field:
    return np.asarray(scipy.ndimage.gaussian_filter(light, (sigma_px, sigma_px, 0)))


def _tint(field: Field, color: Color) -> Field:
    """Field -> (H, W, 3)."""
    return np.asarray(field[..., None] * np.array(color))


def _turn(dy: Field, dx: Field, angle: float) -> tuple[Field, Field]:
    """Offsets along and across the direction `angle`."""
    sin, cos = np.sin(angle), np.cos(angle)
    return cos * dx + sin * dy, cos * dy - sin * dx


def _noise(random: np.random.Generator, size_px: int, grain_px: float) -> Field:
    """Smooth field, mean 0, standard deviation about 1: a cubic B-spline with normal knots `grain_px` apart."""
    place = np.arange(size_px) / grain_px + random.random()
    knots = int(place[-1]) + 4
    far = np.abs(place[:, None] + 1 - np.arange(knots)[None, :])  # (H, knots) distance in knots
    near = 2 / 3 - far**2 + far**3 / 2
    weight = np.where(far < 1, near, np.clip(2 - far, 0, None) ** 3 / 6)
    # .479 = 151 / 315: mean over the position of the sum of squared weights
    return np.asarray(weight @ random.standard_normal((knots, knots)) @ weight.T) / (151 / 315)


def _write_png(path: Path, image: Image.Image) -> None:
    # level 3: a third faster than the default level with 6 % more bytes (measured; noise hardly compresses)
    write_file(path, lambda temporary: image.save(temporary, "PNG", compress_level=3, bits=8))
