"""Find the objects of images: ids, tables, overlays, files for other programs, scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ubend.core.errors import DataError, MissingPackageError
from ubend.core.files import DiskRequirement, write_file, write_json
from ubend.core.i18n import _, later, ngettext
from ubend.drawing.object_overlay import draw_objects
from ubend.evaluation.caveats import SplitLookup, describe_seen, only_training_images
from ubend.inference.conditions import MaskPredictor, load_mask_predictor
from ubend.instances.export import (
    Entry,
    Export,
    Row,
    count_probably_merged,
    describe_image,
    describe_instances,
    describe_panoptic,
    measure,
    summarize,
    trace,
    write_coco,
    write_geojson,
    write_panoptic,
    write_summary,
    write_table,
)
from ubend.instances.instances import Method, choose_method, contour_class, object_classes, separate
from ubend.instances.truth import Files, find_truth, keep_valid, looks_like_mask, read_truth, score, score_lines
from ubend.io.images import load_image
from ubend.io.pixel_size import PixelSize, SpatialInfo, read_spatial_info
from ubend.labels.class_table import IGNORED
from ubend.labels.shapes import coco_masks
from ubend.layouts.pairs import SplitName
from ubend.metrics.panoptic import Quality, compare_objects
from ubend.portable.conditions import Conditions
from ubend.portable.file_jobs import ImageJob, run_jobs
from ubend.portable.images import save_png
from ubend.portable.overlay import to_rgb
from ubend.portable.predictors import MaskResult
from ubend.portable.raster import Header
from ubend.portable.reporter import Reporter
from ubend.tasks.expand import report_deeper_folders

_TABLE, _SUMMARY, _COCO, _PANOPTIC, _SCORES = "objects.csv", "images.csv", "coco.json", "panoptic.json", "scores.json"
_MERGED_SHARE = (
    0.05  # share of objects that probably touch, above which a note is shown; measured (docs/experiments.md)
)
_NONE = Conditions()


@dataclass(frozen=True)
class CountingOptions:
    """Options of finding objects.

    Attributes:
        method: see `separate`; None: chosen by the names of the classes.
        min_area: smaller objects are left out, px.
        exports: formats of other programs to write.
        truth: folder of true ids, see `find_truth`, to score against; training images of the model are not scored.
        pixel_size: for all images; overrides what their files state.
    """

    method: Method | None = None
    min_area: int = 1
    exports: Sequence[Export] = ()
    truth: Path | None = None
    pixel_size: PixelSize | None = None


def find_objects(
    model: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    counting: CountingOptions = CountingOptions(),
    device: str | None = None,
    conditions: Conditions = _NONE,
    reporter: Reporter,
) -> list[Path]:
    """Find the objects of images, and write ids, overlays and tables.

    For NAME.jpg writes `NAME_ids.tif`, `NAME_objects.png` and `NAME_objects.csv`, and for all images together
    `objects.csv` (a row for each object) and `images.csv` (a row for each image and class).

    `NAME_ids.tif` holds the number of the object at each pixel, 0 for none (16 bit, or 32 bit if needed), and the
    georeference of the image. See `measure` and `summarize` for the tables, `draw_objects` for the overlay. Exports
    are `coco.json`, `NAME.geojson`, or `panoptic.json` and `panoptic/NAME.png`. With true ids, the scores go to
    `scores.json`.

    Args:
        model: a run folder or a model file.
        paths: as in `ImageJob`.
        out: the output folder; files in it are not overwritten.
        conditions: more models, views, tiles, thresholds, holes.
    Returns:
        The id images.
    Raises:
        SettingError: the method does not fit the classes; or MissingPackageError.
        DataError, OutputError: as in `run_jobs`; or no images, or only training images to score.
    """
    _refuse_missing(counting.exports)
    masks, out = load_mask_predictor(model, device, conditions), Path(out)
    names = masks.labels.names
    method = counting.method or choose_method(names)
    separate(np.zeros((1, 1), np.uint8), names, method)  # fails now, not after the first image
    report_deeper_folders(paths, reporter)
    return run_jobs([_ObjectJob(masks, paths, out, counting, method)], reporter)


def describe_method(names: Sequence[str], method: Method, *, is_chosen: bool) -> list[str]:
    """How objects are separated, and what happens to a contour class, which has no objects of its own.

    Args:
        names: class names.
        is_chosen: whether the method was chosen automatically.
    """
    contour, lines = contour_class(names), list[str]()
    if is_chosen:
        lines.append(_("objects are separated with --method {method}").format(method=method))
    if contour is None:
        return lines
    line = _("class {contour} has no objects: with --method {method}, its pixels belong to none")
    if method == "contour":
        line = _(
            "class {contour} has no objects of its own: its pixels separate those of class {name} and belong to them"
        )
    kinds = ", ".join(names[index] for index in object_classes(names))
    return [*lines, line.format(contour=names[contour], name=kinds, method=method)]


@dataclass
class _ImageObjects:
    """Results of an image that are kept until all are done; `split`: its split in the model's training."""

    rows: list[Row]
    summary: list[Row]
    instances: list[Entry] = field(default_factory=list)
    segments: list[Entry] = field(default_factory=list)
    qualities: list[Quality] = field(default_factory=list)
    odd_truth: bool = False
    split: SplitName | None = None


class _ObjectJob(ImageJob):
    output_name, title = later("ids"), later("finding objects")
    done_message = later("images with numbered objects in {out}: {count}")

    def __init__(
        self,
        predictor: MaskPredictor,
        paths: Sequence[Path | str],
        out: Path,
        counting: CountingOptions,
        method: Method,
    ) -> None:
        super().__init__(predictor, paths, out)
        self._counting, self._method, self._exports = counting, method, counting.exports
        self._names, self._channels = predictor.labels.names, predictor.channels
        self._spatial: dict[int, SpatialInfo] = {}
        self._replaced: dict[int, PixelSize] = {}  # what files state and --pixel-size overrides
        self._truth: dict[Path, Files] = {}
        self._split_lookup = SplitLookup([member.predictor.bundle for member in predictor.members])
        self._kept: dict[int, _ImageObjects] = {}
        self.together = [
            _TABLE,
            _SUMMARY,
            *([_COCO] if "coco" in self._exports else []),
            *([_PANOPTIC] if "panoptic" in self._exports else []),
            *([_SCORES] if counting.truth is not None else []),
        ]

    def inspect(self, index: int) -> Header:
        header = super().inspect(index)
        spatial, chosen = read_spatial_info(self.paths[index]), self._counting.pixel_size
        if chosen is not None:
            if spatial.pixel is not None:
                self._replaced[index] = spatial.pixel
            spatial = replace(spatial, pixel=chosen)
        self._spatial[index] = spatial
        return header

    def notes(self) -> list[str]:
        """Also notes that `--pixel-size` overrides the files."""
        lines = super().notes()
        if self._replaced:
            index, pixel = min(self._replaced.items())
            lines.append(
                ngettext(
                    "--pixel-size replaces the pixel size that {count} of {total} files states"
                    " ({name}: {height:g} x {width:g} {unit})",
                    "--pixel-size replaces the pixel size that {count} of {total} files state"
                    " ({name}: {height:g} x {width:g} {unit})",
                    len(self._replaced),
                ).format(
                    count=len(self._replaced),
                    total=len(self._spatial),
                    name=self.paths[index].name,
                    height=pixel.height,
                    width=pixel.width,
                    unit=pixel.unit,
                )
            )
        return lines

    def files(self, index: int) -> list[Path]:
        """Ids, overlay and table; GeoJSON and panoptic PNG if requested."""
        stem = self.paths[index].stem
        files = [self.out / f"{stem}{end}" for end in ("_ids.tif", "_objects.png", "_objects.csv")]
        files += [self.out / f"{stem}.geojson"] if "geojson" in self._exports else []
        return files + ([self.out / "panoptic" / f"{stem}.png"] if "panoptic" in self._exports else [])

    def inspect_all(self) -> list[DiskRequirement]:
        """In addition, find the true ids (missing ones are a problem of their image).

        Raises:
            DataError: all images are training images, so there is nothing to score.
        """
        requirements, folder = super().inspect_all(), self._counting.truth
        if folder is not None:
            find_truth(folder, {}, self._names)  # a missing folder is not the problem of an image

            def find(index: int) -> dict[Path, Files]:
                return find_truth(folder, {self.paths[index]: self.usable[index].size_hw}, self._names)

            for _index, files in self.map_inputs(find, [*self.usable]):
                self._truth |= files
            self.usable = {index: header for index, header in self.usable.items() if index not in self.wrong}
            self.todo = [index for index in self.todo if index in self.usable]
            if self._split_lookup and self.usable and all(map(self._is_training_image, self.usable)):
                names = [self.paths[index].name for index in self.usable]
                raise DataError(
                    only_training_images(names, _("name other images, or leave out --truth")), key="--truth"
                )
        return requirements if self.usable else []

    def _is_training_image(self, index: int) -> bool:
        try:
            image = load_image(self.paths[index], self.predictor.channels)
        except DataError:  # reported when it is predicted
            return False
        return self._split_lookup.find_split(image.pixels) == "train"

    def make(self, reporter: Reporter) -> None:
        for line in describe_method(self._names, self._method, is_chosen=self._counting.method is None):
            reporter.report(line)
        super().make(reporter)

    def write_one(self, index: int, result: MaskResult, image: NDArray[Any]) -> None:
        path, spatial, exports = self.paths[index], self._spatial[index], self._exports
        ids_path, overlay_path, table_path, *others = self.files(index)
        objects = separate(result.mask, self._names, self._method, self._counting.min_area)
        valid_px = int((result.mask != IGNORED).sum())
        rows = measure(path, image, objects, self._names, spatial.pixel)
        kept = _ImageObjects(rows, summarize(path, rows, self._names, valid_px, spatial.pixel))
        if self._truth:
            kept.split = self._split_lookup.find_split(image)
        if self._truth and kept.split != "train":
            truth = keep_valid(read_truth(self._truth[path]), result.mask != IGNORED)
            kept.odd_truth = looks_like_mask(truth)
            kept.qualities = compare_objects(objects.ids, objects.classes, truth.ids, truth.classes, len(self._names))
        outlines = trace(objects.ids) if {"coco", "geojson"} & set(exports) else []
        if "coco" in exports:
            kept.instances = describe_instances(objects, outlines, self._names)
        if "geojson" in exports:
            measures = [{key: value for key, value in row.items() if key != "file"} for row in rows]
            write_geojson(others[0], outlines, measures, spatial.transform)
        if "panoptic" in exports:
            kept.segments = describe_panoptic(objects, self._names)
            write_panoptic(others[-1], objects.ids)
        save_png(draw_objects(to_rgb(image), objects.ids), overlay_path)
        write_table(table_path, rows, self._channels, [spatial.pixel])
        small = objects.ids.astype(np.uint16) if objects.ids.max(initial=0) < 2**16 else objects.ids
        write_file(
            ids_path, lambda temporary: tifffile.imwrite(temporary, small, compression="zlib", extratags=spatial.tags)
        )
        self._kept[index] = kept

    def finish(self, indices: Sequence[int], reporter: Reporter) -> None:
        """Write the summary files."""
        kept = {index: self._kept[index] for index in indices}
        pixels = [self._spatial[index].pixel for index in indices]
        write_table(self.out / _TABLE, [row for result in kept.values() for row in result.rows], self._channels, pixels)
        self._write_exports(kept)
        write_summary(self.out / _SUMMARY, [row for result in kept.values() for row in result.summary], pixels)
        for line in self._summary_lines(list(kept.values())):
            reporter.report(line)
        self._warn_merged([result.rows for result in kept.values()], reporter)
        count = sum(pixel is not None for pixel in pixels)
        if count and self._counting.pixel_size is None:
            reporter.report(
                ngettext(
                    "{count} of {total} files states the size of a pixel",
                    "{count} of {total} files state the size of a pixel",
                    count,
                ).format(count=count, total=len(pixels))
            )
        if self._truth:
            self._write_scores(kept, reporter)

    def _summary_lines(self, kept: Sequence[_ImageObjects]) -> list[str]:
        """One line for each class of objects, over all images."""
        lines = []
        for index, name in enumerate(self._names[index] for index in object_classes(self._names)):
            counts = [int(result.summary[index]["count"]) for result in kept]
            areas = [int(row["area_px"]) for result in kept for row in result.rows if row["class"] == name]
            message = _(
                "{name}: objects {count}, images {images} ({minimum} to {maximum} objects per image, "
                "median {median:g}); median area {area:.10g} px; counts of each image: {table}"
            )
            lines.append(
                message.format(
                    name=name,
                    count=sum(counts),
                    images=len(counts),
                    minimum=min(counts),
                    maximum=max(counts),
                    median=float(np.median(counts)),
                    area=float(np.median(areas)) if areas else 0,
                    table=self.out / _SUMMARY,
                )
            )
        return lines

    def _warn_merged(self, images: Sequence[Sequence[Row]], reporter: Reporter) -> None:
        """A note if objects probably touch and another method would separate them."""
        merged, total = sum(map(count_probably_merged, images)), sum(map(len, images))
        if self._method == "parts" and merged > _MERGED_SHARE * total:
            better = choose_method(self._names)
            reporter.report(
                ngettext(
                    "note: {count} of {total} objects is probably several touching objects (solidity below 0.9, larger"
                    " than the median of its image); --method {method} separates them",
                    "note: {count} of {total} objects are probably several touching objects (solidity below 0.9, larger"
                    " than the median of their image); --method {method} separates them",
                    merged,
                ).format(count=merged, total=total, method="distance" if better == "parts" else better)
            )

    def _write_exports(self, kept: dict[int, _ImageObjects]) -> None:
        images = [describe_image(index, self.paths[index], self.usable[index].size_hw) for index in kept]
        if "coco" in self._exports:
            entries = [{"image_id": index + 1} | entry for index, result in kept.items() for entry in result.instances]
            numbered = [{"id": index} | entry for index, entry in enumerate(entries, 1)]
            write_coco(self.out / _COCO, images, numbered, self._names)
        if "panoptic" in self._exports:
            segments = [
                {
                    "image_id": index + 1,
                    "file_name": self.files(index)[-1].name,
                    "segments_info": result.segments,
                }
                for index, result in kept.items()
            ]
            write_coco(self.out / _PANOPTIC, images, segments, self._names)

    def _write_scores(self, kept: dict[int, _ImageObjects], reporter: Reporter) -> None:
        left_out = [self.paths[index].name for index, result in kept.items() if result.split == "train"]
        kept = {index: result for index, result in kept.items() if result.split != "train"}
        for line in describe_seen(self._split_lookup, left_out, sum(result.split == "val" for result in kept.values())):
            reporter.report(line)
        if not kept:  # all others failed
            return
        qualities = {self.paths[index]: result.qualities for index, result in kept.items()}
        scores = {"method": self._method, "min_area": self._counting.min_area, **score(qualities, self._names)}
        write_json(self.out / _SCORES, scores)
        reporter.report(
            ngettext(
                "objects (--method {method}) compared with {folder}, {count} image; a match has an IoU above 0.5",
                "objects (--method {method}) compared with {folder}, {count} images; a match has an IoU above 0.5",
                len(qualities),
            ).format(method=self._method, folder=self._counting.truth, count=len(qualities))
        )
        for line in score_lines(scores):
            reporter.report(line)
        if all(result.odd_truth for result in kept.values()):
            reporter.report(
                _(
                    "WARNING: in every true image, one id occurs in several places; --truth needs one id per object, "
                    "not a class mask"
                )
            )


def _refuse_missing(exports: Sequence[Export]) -> None:
    if find_spec("skimage") is None:
        raise MissingPackageError(
            _("objects need scikit-image; install it with: pip install 'ubend[objects]'"), key="scikit-image"
        )
    if "coco" in exports:
        coco_masks()
    polygons = [name for name in exports if name != "panoptic"]
    if polygons and find_spec("shapely") is None:
        raise MissingPackageError(
            _("--export {name} needs shapely; install it with: pip install 'ubend[objects]'").format(name=polygons[0]),
            key="--export",
        )
