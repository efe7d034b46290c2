"""Objects of pictures: numbers, a table, an overlay, files for other programs, scores."""

import colorsys
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from ubend.drawing.overlay import to_rgb
from ubend.drawing.panels import save_png
from ubend.errors import DataError, OutputError, SettingError
from ubend.files import write_file, write_json
from ubend.inference.ahead import map_ahead
from ubend.inference.conditions import Conditions, Masks, load_masks
from ubend.jobs.many import Problems
from ubend.jobs.predict import list_pictures
from ubend.language import _
from ubend.metrics.panoptic import Quality, compare_objects
from ubend.objects.export import (
    Entry,
    Export,
    describe_image,
    describe_instances,
    describe_panoptic,
    write_coco,
    write_geojson,
    write_panoptic,
)
from ubend.objects.instances import Method, choose_method, separate
from ubend.objects.outlines import trace
from ubend.objects.table import Row, measure, write_table
from ubend.objects.truth import Files, find_truth, looks_like_mask, read_truth, score, score_lines
from ubend.pictures.decode import read_header
from ubend.pictures.images import read_image
from ubend.pictures.scale import Scale, read_scale
from ubend.teller import Teller

_TABLE, _COCO, _PANOPTIC, _SCORES = "objects.csv", "coco.json", "panoptic.json", "scores.json"
_GOLDEN = 0.618034  # turns of the hue from object to object: neighbours in number are far apart in colour
_NONE = Conditions()


@dataclass(frozen=True)
class Counting:
    """What is asked of objects.

    Attributes:
        method: as of `separate`; None: by the names of the classes.
        min_area: smaller objects are left out, px.
        exports: formats of other programs.
        truth: folder of true ids, as of `find_truth`, to score against.
    """

    method: Method | None = None
    min_area: int = 1
    exports: Sequence[Export] = ()
    truth: Path | None = None


def find_objects(
    model: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    counting: Counting = Counting(),
    device: str | None = None,
    conditions: Conditions = _NONE,
    teller: Teller,
) -> list[Path]:
    """Find the objects of pictures; for NAME.jpg writes `NAME_ids.tif`, `NAME_objects.png` and `NAME_objects.csv`, and
    one `objects.csv` for all.

    `NAME_ids.tif` holds 0 where there is no object, else its number (16 bit, 32 where that is not enough), and the
    georeference of the picture. The tables are as of `measure`. With exports also `coco.json`, `NAME.geojson`, or
    `panoptic.json` and `panoptic/NAME.png`; with a truth `scores.json`.

    Args:
        model: a run folder or a model file.
        paths: as of `PictureJob`.
        out: folder for what is written; nothing in it is overwritten.
        conditions: more models, views, tiles, thresholds, holes.
    Returns:
        The id pictures.
    Raises:
        SettingError: the method does not go with the classes, or a package is not installed.
        DataError: no pictures, two of one name, or no true ids that fit; at the end, when all others are written: those
            that could not be used.
        OutputError: something of that name is there already, or cannot be written.
    """
    _refuse_missing(counting.exports)
    masks, out = load_masks(model, device, conditions), Path(out)
    names = masks.labels.names
    method = counting.method or choose_method(names)
    separate(np.zeros((1, 1), np.uint8), names, method)  # fails now, not after the first picture
    pictures = list_pictures(paths)
    _refuse_collisions(pictures, out, counting)
    job = _Job(masks, pictures, out, counting, method)
    found = job.look()
    if not found:
        raise DataError(job.problems.told())
    for line in masks.describe_tiling():
        teller.say(line)
    if counting.method is None:
        teller.say(_("objects are told apart by {method} (--method)").format(method=method))
    teller.begin(_("finding objects"), len(found))
    for done, _number in enumerate(job.write(found), 1):
        teller.count(done)
    teller.end()
    job.write_together(teller)
    if job.problems.told():
        raise DataError(job.problems.told())
    return [_ids_path(out, pictures[number]) for number in found]


@dataclass
class _Answer:
    """What is kept of a picture until all are done."""

    size_hw: tuple[int, int]
    rows: list[Row]
    instances: list[Entry] = field(default_factory=list)
    segments: list[Entry] = field(default_factory=list)
    qualities: list[Quality] = field(default_factory=list)
    odd_truth: bool = False


class _Job:
    """Pictures on their way to objects; `problems` holds what is wrong with some."""

    def __init__(self, masks: Masks, pictures: list[Path], out: Path, counting: Counting, method: Method) -> None:
        self._masks, self._pictures, self._out, self._counting, self._method = masks, pictures, out, counting, method
        self._names, self._channels = masks.labels.names, masks.channels
        self._scales: dict[int, Scale] = {}
        self._truth: dict[Path, Files] = {}
        self._answers: dict[int, _Answer] = {}
        self._pixels: dict[int, int] = {}
        self.problems = Problems()

    def look(self) -> list[int]:
        """The pictures that are of the model's kind, by their headers; fails where a true one is missing."""
        sizes = {}
        for number, picture in enumerate(self._pictures):
            with self.problems.keeping(number):
                self._masks.refuse_unfit(picture)
                sizes[picture] = read_header(picture, self._channels).size_hw
                self._pixels[number] = math.prod(sizes[picture])
                self._scales[number] = read_scale(picture)
        if self._counting.truth is not None:
            self._truth = find_truth(self._counting.truth, sizes, self._names)
        return list(self._scales)

    def write(self, numbers: Sequence[int]) -> Iterator[int]:
        """Predict and write; gives each number when its files are there."""
        answers = self.problems.predict(
            self._masks.predict_masks,
            lambda number: self._masks.read(self._pictures[number]),
            numbers,
            lambda number: self._pixels[number] * self._channels,
        )
        yield from map_ahead(self._write_one, answers, lambda answer: answer[1].nbytes)

    def _write_one(self, answer: tuple[int, NDArray[np.uint8]]) -> int:
        number, mask = answer
        picture, scale, exports = self._pictures[number], self._scales[number], self._counting.exports
        image = read_image(picture, self._channels)
        found = separate(mask, self._names, self._method, self._counting.min_area)
        rows = measure(picture, image, found, self._names, scale.pixel)
        kept = _Answer((mask.shape[0], mask.shape[1]), rows)
        if self._truth:
            with self.problems.keeping(number):
                truth = read_truth(self._truth[picture])
            if number in self.problems:
                return number
            kept.odd_truth = looks_like_mask(truth)
            kept.qualities = compare_objects(found.ids, found.classes, truth.ids, truth.classes, len(self._names))
        outlines = trace(found.ids) if {"coco", "geojson"} & set(exports) else []
        if "coco" in exports:
            kept.instances = describe_instances(found, outlines, self._names)
        if "geojson" in exports:
            own = [{key: value for key, value in row.items() if key != "file"} for row in rows]
            write_geojson(_geojson_path(self._out, picture), outlines, own, scale.place)
        if "panoptic" in exports:
            kept.segments = describe_panoptic(found, self._names)
            write_panoptic(_panoptic_path(self._out, picture), found.ids)
        save_png(Image.fromarray(_draw(to_rgb(image), found.ids)), _overlay_path(self._out, picture))
        write_table(_table_path(self._out, picture), rows, self._channels, [scale.pixel])
        _write_ids(_ids_path(self._out, picture), found.ids, scale)
        self._answers[number] = kept
        return number

    def write_together(self, teller: Teller) -> None:
        """The files that speak of all pictures."""
        answers = {number: self._answers[number] for number in sorted(self._answers)}
        pixels = [self._scales[number].pixel for number in answers]
        write_table(self._out / _TABLE, [row for own in answers.values() for row in own.rows], self._channels, pixels)
        self._write_exports(answers)
        for number, own in list(answers.items())[:10]:
            teller.say(_("{name}: {count} objects").format(name=self._pictures[number].name, count=len(own.rows)))
        told = sum(pixel is not None for pixel in pixels)
        if told:
            teller.say(_("{count} of {total} files tell the size of a pixel").format(count=told, total=len(pixels)))
        if self._truth and answers:
            self._write_scores(answers, teller)

    def _write_exports(self, answers: dict[int, _Answer]) -> None:
        images = [describe_image(number, self._pictures[number], own.size_hw) for number, own in answers.items()]
        if "coco" in self._counting.exports:
            entries = [{"image_id": number + 1} | entry for number, own in answers.items() for entry in own.instances]
            numbered = [{"id": place} | entry for place, entry in enumerate(entries, 1)]
            write_coco(self._out / _COCO, images, numbered, self._names)
        if "panoptic" in self._counting.exports:
            segments = [
                {
                    "image_id": number + 1,
                    "file_name": _panoptic_path(self._out, self._pictures[number]).name,
                    "segments_info": own.segments,
                }
                for number, own in answers.items()
            ]
            write_coco(self._out / _PANOPTIC, images, segments, self._names)

    def _write_scores(self, answers: dict[int, _Answer], teller: Teller) -> None:
        qualities = {self._pictures[number]: own.qualities for number, own in answers.items()}
        scores = {"method": self._method, "min_area": self._counting.min_area, **score(qualities, self._names)}
        write_json(self._out / _SCORES, scores)
        teller.say(
            _("objects by {method} against {folder}, {count} pictures; matched above an IoU of .5").format(
                method=self._method, folder=self._counting.truth, count=len(qualities)
            )
        )
        for line in score_lines(scores):
            teller.say(line)
        if all(own.odd_truth for own in answers.values()):
            teller.say(
                _(
                    "WARNING: every true picture holds one number in several places; are these masks of classes? "
                    "--truth takes a number for each object"
                )
            )


def _refuse_missing(exports: Sequence[Export]) -> None:
    if find_spec("skimage") is None:
        raise SettingError(
            _("objects need scikit-image; install it by pip install 'ubend[objects]'"), key="scikit-image"
        )
    polygons = [name for name in exports if name != "panoptic"]
    if polygons and find_spec("shapely") is None:
        raise SettingError(
            _("--export {name} needs shapely; install it by pip install 'ubend[objects]'").format(name=polygons[0]),
            key="--export",
        )


def _refuse_collisions(pictures: Sequence[Path], out: Path, counting: Counting) -> None:
    each = [_ids_path, _overlay_path, _table_path]
    each += [_geojson_path] if "geojson" in counting.exports else []
    each += [_panoptic_path] if "panoptic" in counting.exports else []
    together = [
        _TABLE,
        _COCO if "coco" in counting.exports else "",
        _PANOPTIC if "panoptic" in counting.exports else "",
    ]
    together += [_SCORES] if counting.truth is not None else []
    wanted = [name(out, picture) for name in each for picture in pictures]
    wanted += [out / name for name in together if name]
    twice = [path for path, count in Counter(wanted).items() if count > 1]
    if twice:
        raise DataError(
            _("several pictures would write {path}; find their objects in different --out folders").format(
                path=twice[0]
            ),
            path=twice[0],
            key="--out",
        )
    for path in wanted:
        if path.exists():
            raise OutputError(
                _("{path} exists already; choose another --out").format(path=path), path=path, key="--out"
            )


def _ids_path(out: Path, picture: Path) -> Path:
    return out / f"{picture.stem}_ids.tif"


def _overlay_path(out: Path, picture: Path) -> Path:
    return out / f"{picture.stem}_objects.png"


def _table_path(out: Path, picture: Path) -> Path:
    return out / f"{picture.stem}_objects.csv"


def _geojson_path(out: Path, picture: Path) -> Path:
    return out / f"{picture.stem}.geojson"


def _panoptic_path(out: Path, picture: Path) -> Path:
    return out / "panoptic" / f"{picture.stem}.png"


def _write_ids(path: Path, ids: NDArray[np.uint32], scale: Scale) -> None:
    small = ids.astype(np.uint16) if ids.max(initial=0) < 2**16 else ids

    def write(place: Path) -> None:
        tifffile.imwrite(place, small, compression="zlib", extratags=scale.tags)

    write_file(path, write)


def _draw(image: NDArray[np.uint8], ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Each object's outline, on its own pixels, in a colour of its own."""
    from skimage.segmentation import find_boundaries

    out, line = image.copy(), find_boundaries(ids, mode="inner")
    hues = (np.arange(ids.max(initial=0) + 1) * _GOLDEN) % 1
    colors = np.array([colorsys.hsv_to_rgb(hue, 0.9, 1.0) for hue in hues])
    out[line] = np.rint(255 * colors[ids[line]]).astype(np.uint8)
    return out
