"""Objects of pictures: numbers, a table, an overlay."""

import colorsys
import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from ubend.drawing.overlay import to_rgb
from ubend.drawing.panels import save_png
from ubend.errors import DataError, OutputError, SettingError
from ubend.files import write_file, write_text
from ubend.inference.predictor import load
from ubend.jobs.predict import list_pictures
from ubend.language import _
from ubend.objects.instances import Method, Objects, choose_method, separate
from ubend.pictures.images import read_image
from ubend.teller import Teller

_TABLE = "objects.csv"
_GOLDEN = 0.618034  # turns of the hue from object to object: neighbours in number are far apart in colour


def find_objects(
    model: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    method: Method | None = None,
    min_area: int = 1,
    device: str | None = None,
    teller: Teller,
) -> list[Path]:
    """Find the objects of pictures; for NAME.jpg writes `NAME_ids.tif` and `NAME_objects.png`, and one `objects.csv`.

    `NAME_ids.tif` holds 0 where there is no object, else its number (16 bit, 32 where that is not enough).
    `objects.csv` has a row for each object: class, area and perimeter in px, centroid and box (row before column,
    the box's end beyond it), eccentricity and solidity 0..1, mean intensity of each channel.

    Args:
        model: a run folder or a model file.
        paths: as of `predict_files`.
        out: folder for what is written; nothing in it is overwritten.
        method: as of `separate`; None: by the names of the classes.
        min_area: smaller objects are left out, px.
    Returns:
        The id pictures.
    Raises:
        SettingError: the method does not go with the classes, or scikit-image is not installed.
        DataError: no pictures, unreadable ones, or two of one name.
        OutputError: something of that name is there already, or cannot be written.
    """
    _refuse_missing()
    predictor, out = load(model, device), Path(out)
    names = predictor.labels.names
    chosen = method or choose_method(names)
    separate(np.zeros((1, 1), np.uint8), names, chosen)  # fails now, not after the first picture
    pictures = list_pictures(paths)
    targets = [out / f"{picture.stem}_ids.tif" for picture in pictures]
    _refuse_collisions(targets, out)
    if method is None:
        teller.say(_("objects are told apart by {method} (--method)").format(method=chosen))
    teller.begin(_("finding objects"), len(pictures))
    rows: dict[int, list[list[Any]]] = {}
    for number, mask in predictor.predict_masks(pictures):
        image = read_image(pictures[number], predictor.bundle.sizing.channels)
        found = separate(mask, names, chosen, min_area)
        _write_ids(targets[number], found.ids)
        save_png(Image.fromarray(_draw(to_rgb(image), found.ids)), _overlay_path(targets[number]))
        rows[number] = _measure(pictures[number], image, found, names)
        teller.count(len(rows))
    teller.end()
    _write_table(
        out / _TABLE, [row for number in sorted(rows) for row in rows[number]], predictor.bundle.sizing.channels
    )
    counts = {pictures[number].name: len(rows[number]) for number in sorted(rows)}
    for name, count in list(counts.items())[:10]:
        teller.say(_("{name}: {count} objects").format(name=name, count=count))
    return targets


def _refuse_missing() -> None:
    try:
        import skimage  # noqa: F401
    except ImportError:
        raise SettingError(_("objects need scikit-image; install it by pip install 'ubend[objects]'")) from None


def _refuse_collisions(targets: Sequence[Path], out: Path) -> None:
    twice = [target for target, count in Counter(targets).items() if count > 1]
    if twice:
        raise DataError(
            _("several pictures would write {path}; find their objects in different --out folders").format(
                path=twice[0]
            )
        )
    for path in (*targets, *map(_overlay_path, targets), out / _TABLE):
        if path.exists():
            raise OutputError(_("{path} exists already; choose another --out").format(path=path))


def _overlay_path(target: Path) -> Path:
    return target.with_name(target.name.replace("_ids.tif", "_objects.png"))


def _write_ids(path: Path, ids: NDArray[np.uint32]) -> None:
    small = ids.astype(np.uint16) if ids.max(initial=0) < 2**16 else ids

    def write(place: Path) -> None:
        tifffile.imwrite(place, small, compression="zlib")

    write_file(path, write)


def _draw(image: NDArray[np.uint8], ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Each object's outline, on its own pixels, in a colour of its own."""
    from skimage.segmentation import find_boundaries

    out, line = image.copy(), find_boundaries(ids, mode="inner")
    hues = (np.arange(ids.max(initial=0) + 1) * _GOLDEN) % 1
    colors = np.array([colorsys.hsv_to_rgb(hue, 0.9, 1.0) for hue in hues])
    out[line] = np.rint(255 * colors[ids[line]]).astype(np.uint8)
    return out


def _measure(picture: Path, image: NDArray[Any], found: Objects, names: Sequence[str]) -> list[list[Any]]:
    """A row for each object, in the order of their numbers."""
    from skimage.measure import regionprops

    rows = []
    for part in regionprops(found.ids.astype(np.int64), intensity_image=image):
        means = np.atleast_1d(part.intensity_mean)
        numbers = [part.perimeter, *part.centroid, *part.bbox, part.eccentricity, part.solidity, *means]
        rows.append(
            [picture, part.label, names[found.classes[part.label - 1]], int(part.area), *(f"{x:.4g}" for x in numbers)]
        )
    return rows


def _write_table(path: Path, rows: Sequence[Sequence[Any]], channels: int) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["file", "id", "class", "area_px", "perimeter_px", "row", "column", "top", "left", "bottom", "right"]
    writer.writerow([*names, "eccentricity", "solidity", *(f"mean_{channel}" for channel in range(channels))])
    writer.writerows(rows)
    write_text(path, text.getvalue())
