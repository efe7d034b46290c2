"""Find the objects of images: ids, tables, overlays, files for other programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .class_table import IGNORED
from .errors import MissingPackageError
from .file_jobs import ImageJob, Role
from .files import write_file
from .i18n import _, later, ngettext
from .images import save_png
from .mask_predictor import AnyMaskPredictor
from .object_files import (
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
from .object_overlay import draw_objects
from .objects import (
    LIBRARIES,
    Method,
    Objects,
    choose_method,
    contour_class,
    object_classes,
    refuse_missing,
    separate,
)
from .overlay import to_rgb
from .pixel_size import PixelSize, SpatialInfo, read_spatial_info
from .predictors import MaskResult
from .printable import enumerate_names
from .raster import Header
from .reporter import Reporter

_TABLE, _SUMMARY, _COCO, _PANOPTIC = "objects.csv", "images.csv", "coco.json", "panoptic.json"
_MERGED_SHARE = (
    0.05  # share of objects that probably touch, above which a note is shown; measured (docs/experiments.md)
)
_TIFF_LIBRARIES = {"tifffile": "tifffile", "imagecodecs": "imagecodecs"}  # module -> package
_NEEDED_BY_EXPORT: dict[Export, tuple[str, ...]] = {
    "coco": ("shapely", "pycocotools"),
    "geojson": ("shapely",),
    "panoptic": (),
}


@dataclass(frozen=True)
class CountingOptions:
    """Options of finding objects.

    Attributes:
        method: see `separate`; None: chosen by the names of the classes.
        min_area: smaller objects are left out, px.
        exports: formats of other programs to write.
        pixel_size: for all images; overrides what their files state.
    """

    method: Method | None = None
    min_area: int = 1
    exports: Sequence[Export] = ()
    pixel_size: PixelSize | None = None

    def choose_method(self, names: Sequence[str]) -> Method:
        """The method, or that which the names of the classes choose.

        Raises:
            SettingError: the method does not fit the classes.
        """
        method = self.method or choose_method(names)
        separate(np.zeros((1, 1), np.uint8), names, method)
        return method


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
    """Results of an image that are kept until all are done."""

    rows: list[Row]
    summary: list[Row]
    instances: list[Entry] = field(default_factory=list)
    segments: list[Entry] = field(default_factory=list)


class ObjectJob(ImageJob):
    """Images whose objects are found.

    For NAME.jpg writes `NAME_ids.tif`, `NAME_objects.png` and `NAME_objects.csv`, and for all images together
    `objects.csv` (a row for each object) and `images.csv` (a row for each image and class).

    `NAME_ids.tif` holds the number of the object at each pixel, 0 for none (16 bit, or 32 bit if needed), and the
    georeference of the image. See `measure` and `summarize` for the tables, `draw_objects` for the overlay. Exports
    are `coco.json`, `NAME.geojson`, or `panoptic.json` and `panoptic/NAME.png`.

    Args:
        predictor, paths, out: see `ImageJob`.
        counting: the options.
    Attributes:
        method: how objects are separated.
        min_area: of objects, px.
    Raises:
        DataError: no images.
        SettingError: the method does not fit the classes.
    """

    output_name, title = later("ids"), later("finding objects")
    done_message = later("images with numbered objects in {out}: {count}")

    def __init__(
        self,
        predictor: AnyMaskPredictor,
        paths: Sequence[Path | str],
        out: Path,
        counting: CountingOptions,
    ) -> None:
        super().__init__(predictor, paths, out)
        self._counting, self._exports, self.min_area = counting, counting.exports, counting.min_area
        self.method = counting.choose_method(predictor.labels.names)
        self._names, self._channels = predictor.labels.names, predictor.channels
        self._spatial: dict[int, SpatialInfo] = {}
        self._replaced: dict[int, PixelSize] = {}  # what files state and --pixel-size overrides
        self._kept: dict[int, _ImageObjects] = {}
        self.summary_names = [
            _TABLE,
            _SUMMARY,
            *([_COCO] if "coco" in self._exports else []),
            *([_PANOPTIC] if "panoptic" in self._exports else []),
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

    def outputs(self, index: int) -> dict[Role, Path]:
        """Ids, overlay and table; GeoJSON and panoptic PNG if requested."""
        stem = self.paths[index].stem
        files: dict[Role, Path] = {
            "ids": self.out / f"{stem}_ids.tif",
            "overlay": self.out / f"{stem}_objects.png",
            "table": self.out / f"{stem}_objects.csv",
        }
        exports: dict[Role, Path] = {
            "geojson": self.out / f"{stem}.geojson",
            "panoptic": self.out / "panoptic" / f"{stem}.png",
        }
        return files | {role: path for role, path in exports.items() if role in self._exports}

    def make(self, reporter: Reporter) -> None:
        for line in describe_method(self._names, self.method, is_chosen=self._counting.method is None):
            reporter.report(line)
        super().make(reporter)

    def check_objects(self, index: int, objects: Objects, mask: NDArray[np.uint8], image: NDArray[Any]) -> None:
        """Called in threads with the objects, the mask and the pixels of an image, before its files are written."""

    def write_one(self, index: int, result: MaskResult, image: NDArray[Any]) -> None:
        path, spatial, exports, files = self.paths[index], self._spatial[index], self._exports, self.outputs(index)
        objects = separate(result.mask, self._names, self.method, self.min_area)
        self.check_objects(index, objects, result.mask, image)
        valid_px = int((result.mask != IGNORED).sum())
        rows = measure(path, image, objects, self._names, spatial.pixel)
        kept = _ImageObjects(rows, summarize(path, rows, self._names, valid_px, spatial.pixel))
        outlines = trace(objects.ids) if {"coco", "geojson"} & set(exports) else []
        if "coco" in exports:
            kept.instances = describe_instances(objects, outlines, self._names)
        if "geojson" in exports:
            measures = [{key: value for key, value in row.items() if key != "file"} for row in rows]
            write_geojson(files["geojson"], outlines, measures, spatial.transform)
        if "panoptic" in exports:
            kept.segments = describe_panoptic(objects, self._names)
            write_panoptic(files["panoptic"], objects.ids)
        save_png(draw_objects(to_rgb(image), objects.ids), files["overlay"])
        write_table(files["table"], rows, self._channels, [spatial.pixel])
        small = objects.ids.astype(np.uint16) if objects.ids.max(initial=0) < 2**16 else objects.ids
        _write_ids(files["ids"], small, spatial)
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
        if self._counting.pixel_size is None:
            for line in _describe_pixel_sizes(
                {self.paths[index].name: self._spatial[index].pixel for index in indices}
            ):
                reporter.report(line)

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
            if not areas:
                message = _("{name}: no objects, images {images}; counts of each image: {table}")
            lines.append(
                message.format(
                    name=name,
                    count=sum(counts),
                    images=len(counts),
                    minimum=min(counts),
                    maximum=max(counts),
                    median=float(np.median(counts)),
                    area=float(np.median(areas or [0])),
                    table=self.out / _SUMMARY,
                )
            )
        return lines

    def _warn_merged(self, images: Sequence[Sequence[Row]], reporter: Reporter) -> None:
        """A note if objects probably touch and another method would separate them."""
        merged, total = sum(map(count_probably_merged, images)), sum(map(len, images))
        if self.method == "parts" and merged > _MERGED_SHARE * total:
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
                    "file_name": self.outputs(index)["panoptic"].name,
                    "segments_info": result.segments,
                }
                for index, result in kept.items()
            ]
            write_coco(self.out / _PANOPTIC, images, segments, self._names)


def _describe_pixel_sizes(pixels: Mapping[str, PixelSize | None]) -> list[str]:
    """Lines on which files (name -> pixel size) state the size of a pixel, and which only that of a print."""
    unknown = [name for name, pixel in pixels.items() if pixel is None]
    count = len(pixels) - len(unknown)
    if not count:
        return []
    line = ngettext(
        "{count} of {total} files states the size of a pixel",
        "{count} of {total} files state the size of a pixel",
        count,
    ).format(count=count, total=len(pixels))
    if unknown:
        line = _("{line}; without it: {names}").format(line=line, names=enumerate_names(unknown))
    prints = [name for name, pixel in pixels.items() if pixel is not None and pixel.may_be_print]
    if not prints:
        return [line]
    note = _(
        "note: the size of a pixel is taken from 300 px per inch, which may be only the resolution for printing, in:"
        " {names}; --pixel-size replaces it"
    )
    return [line, note.format(names=enumerate_names(prints))]


def _write_ids(path: Path, ids: NDArray[Any], spatial: SpatialInfo) -> None:
    import tifffile

    write_file(path, lambda temporary: tifffile.imwrite(temporary, ids, compression="zlib", extratags=spatial.tags))


def refuse_missing_libraries(exports: Sequence[Export], extra: str) -> None:
    """Refuse to find objects without the libraries for it, before anything is predicted.

    Args:
        exports: formats of other programs to write.
        extra: what brings the libraries, for pip, such as `ubend[objects]`.
    Raises:
        MissingPackageError: one of them is not installed.
    """
    refuse_missing(LIBRARIES | _TIFF_LIBRARIES, extra)
    for name in exports:
        for package in _NEEDED_BY_EXPORT.get(name, ()):
            if find_spec(package) is None:
                line = _("--export {name} needs {package}; install it with: pip install '{extra}'")
                raise MissingPackageError(line.format(name=name, package=package, extra=extra), key=package)
