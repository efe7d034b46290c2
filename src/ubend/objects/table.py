"""The measures of objects, and their CSV. H x W pixels."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.files import write_csv
from ubend.io.pixel_size import PixelSize
from ubend.objects.instances import Objects

Row = dict[str, str | int | float]

_UNITS = ("um", "m")


def measure(
    picture: Path, image: NDArray[Any], found: Objects, names: Sequence[str], pixel: PixelSize | None
) -> list[Row]:
    """A row for each object, in the order of their numbers: file, id, class; area and perimeter in px, the middle (row
    before column, 0 the middle of the first pixel), box (its end beyond it); eccentricity and solidity 0..1; the mean
    of each channel. With a pixel size also area and perimeter in its unit, such as `area_um2`, and the middle, counted
    from the picture's upper left corner; no perimeter where pixels are not square.

    Args:
        image: (H, W, channels) values.
        names: of the classes.
    """
    from skimage.measure import regionprops

    rows = []
    for part in regionprops(found.ids.astype(np.int64), intensity_image=image):
        (middle_y, middle_x), (top, left, bottom, right) = part.centroid, part.bbox
        row: Row = {
            "file": str(picture),
            "id": int(part.label),
            "class": names[found.classes[part.label - 1]],
            "area_px": int(part.area),
            "perimeter_px": _figure(part.perimeter),
            "row": _figure(middle_y),
            "column": _figure(middle_x),
        }
        if pixel is not None:
            unit = pixel.unit
            row[f"area_{unit}2"] = _figure(part.area * pixel.height * pixel.width)
            row[f"perimeter_{unit}"] = _figure(part.perimeter * pixel.width) if pixel.is_square else ""
            row[f"row_{unit}"] = _figure((middle_y + 0.5) * pixel.height)
            row[f"column_{unit}"] = _figure((middle_x + 0.5) * pixel.width)
        row |= {"top": int(top), "left": int(left), "bottom": int(bottom), "right": int(right)}
        row |= {"eccentricity": _figure(part.eccentricity), "solidity": _figure(part.solidity)}
        row |= {f"mean_{n}": _figure(mean) for n, mean in enumerate(np.atleast_1d(part.intensity_mean))}
        rows.append(row)
    return rows


def write_table(path: Path, rows: Sequence[Row], channels: int, pixels: Iterable[PixelSize | None]) -> None:
    """Write rows as CSV, with columns for the units of the pictures' pixel sizes; empty where a file tells none."""
    told = {pixel.unit for pixel in pixels if pixel is not None}
    names = ["file", "id", "class", "area_px", "perimeter_px", "row", "column"]
    for unit in (unit for unit in _UNITS if unit in told):
        names += [f"area_{unit}2", f"perimeter_{unit}", f"row_{unit}", f"column_{unit}"]
    names += ["top", "left", "bottom", "right", "eccentricity", "solidity"]
    names += [f"mean_{n}" for n in range(channels)]
    write_csv(path, [names, *([row.get(name, "") for name in names] for row in rows)])


def _figure(value: float) -> float:
    """Six digits, as no picture is measured better; whole numbers of them stay whole."""
    return float(f"{value:.6g}")
