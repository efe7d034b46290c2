"""Tables of measured objects, and export to COCO (instances and panoptic) and GeoJSON. H x W pixels.

Sources: COCO data format (cocodataset.org, "Data format"), with pycocotools to write and check run lengths; GeoJSON,
RFC 7946. RFC 7946 allows only longitude and latitude; for other coordinates the member `crs` of GeoJSON 2008 is
written, which GDAL and QGIS read.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .files import json_text, write_csv, write_text
from .images import save_png
from .objects import Objects, find_boxes, object_classes
from .pixel_size import GeoTransform, PixelSize
from .run_lengths import coco_masks, decode_rle

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon


Row = dict[str, str | int | float]

_CONCAVE = 0.9  # solidity below which objects probably touch; chosen on nuclei (docs/experiments.md)
_LARGE_UNITS = {"um": "mm", "m": "km"}  # unit of a pixel's side -> unit of densities: per mm², per km²


def measure(
    path: Path, image: NDArray[Any], objects: Objects, names: Sequence[str], pixel: PixelSize | None
) -> list[Row]:
    """Measure each object of an image; returns a row for each, in the order of their ids.

    Args:
        path: for the column `file`.
        image: (H, W, channels) values.
        names: class names.
        pixel: size of a pixel; None: unknown.
    Returns:
        Columns: file, id, class; area and perimeter in px; row and column of the centroid (0 is the middle of the first
        pixel); bounding box in px, its end exclusive; eccentricity and solidity, 0..1; the mean of each channel. With a
        pixel size also area and perimeter in its unit, such as `area_um2` (no perimeter if pixels are not square), and
        the centroid's distance from the upper left corner of the image.
    """
    from skimage.measure import regionprops

    rows = []
    for part in regionprops(objects.ids.astype(np.int64), intensity_image=image):
        (middle_y, middle_x), (top, left, bottom, right) = part.centroid, part.bbox
        row: Row = {
            "file": str(path),
            "id": int(part.label),
            "class": names[objects.classes[part.label - 1]],
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


def summarize(
    path: Path, rows: Sequence[Row], names: Sequence[str], valid_px: int, pixel: PixelSize | None
) -> list[Row]:
    """Summarise the objects of an image; returns a row for each class of objects.

    Args:
        path: for the column `file`.
        rows: the image's rows from `measure`.
        names: class names.
        valid_px: number of valid pixels of the image; density and share refer to these.
        pixel: size of a pixel; None: unknown.
    Returns:
        Columns: file, class, count, mean area in px (empty without objects), objects per px^2, share of the valid
        pixels that the objects cover. With a pixel size also the mean area in its unit, and objects per mm^2 (unit um)
        or km^2 (unit m).
    """
    summary = []
    for name in (names[index] for index in object_classes(names)):
        areas = [int(row["area_px"]) for row in rows if row["class"] == name]
        count, covered, valid = len(areas), sum(areas), max(1, valid_px)
        row: Row = {"file": str(path), "class": name, "count": count}
        row |= {"mean_area_px": _figure(covered / count) if count else "", "density_per_px2": _figure(count / valid)}
        if pixel is not None:
            px2 = pixel.height * pixel.width
            row[f"mean_area_{pixel.unit}2"] = _figure(covered / count * px2) if count else ""
            row[f"density_per_{_LARGE_UNITS[pixel.unit]}2"] = _figure(count / valid / px2 * 1e6)
        summary.append(row | {"foreground_share": _figure(covered / valid)})
    return summary


def count_probably_merged(rows: Sequence[Row]) -> int:
    """Count the objects that probably are several touching ones: concave, and larger than the median of the image.

    Args:
        rows: the image's rows from `measure`.
    """
    median = np.median([float(row["area_px"]) for row in rows]) if rows else 0.0
    return sum(float(row["solidity"]) < _CONCAVE and float(row["area_px"]) > median for row in rows)


def write_table(path: Path, rows: Sequence[Row], channels: int, pixels: Iterable[PixelSize | None]) -> None:
    """Write rows of `measure` as CSV, with columns for each unit of `pixels`; cells without a pixel size are empty."""
    units = _list_units(pixels)
    names = ["file", "id", "class", "area_px", "perimeter_px", "row", "column"]
    for unit in units:
        names += [f"area_{unit}2", f"perimeter_{unit}", f"row_{unit}", f"column_{unit}"]
    names += ["top", "left", "bottom", "right", "eccentricity", "solidity"]
    names += [f"mean_{n}" for n in range(channels)]
    _write_rows(path, rows, names)


def write_summary(path: Path, rows: Sequence[Row], pixels: Iterable[PixelSize | None]) -> None:
    """Write rows of `summarize` as CSV, with columns as in `write_table`."""
    units = _list_units(pixels)
    names = ["file", "class", "count", "mean_area_px", *(f"mean_area_{unit}2" for unit in units)]
    names += ["density_per_px2", *(f"density_per_{_LARGE_UNITS[unit]}2" for unit in units), "foreground_share"]
    _write_rows(path, rows, names)


def _list_units(pixels: Iterable[PixelSize | None]) -> list[str]:
    known = {pixel.unit for pixel in pixels if pixel is not None}
    return [unit for unit in _LARGE_UNITS if unit in known]


def _write_rows(path: Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    write_csv(path, [names, *([row.get(name, "") for name in names] for row in rows)])


def _figure(value: float) -> float:
    """A number rounded to six significant digits; no image is measured more exactly."""
    return float(f"{value:.6g}")


Export = Literal["coco", "geojson", "panoptic"]
Entry = dict[str, Any]


def list_categories(names: Sequence[str]) -> list[Entry]:
    """The categories of COCO: the classes of objects, numbered 1, 2, ... in the order of the class table."""
    kinds = [names[index] for index in object_classes(names)]
    return [{"id": category, "name": name, "supercategory": "", "isthing": 1} for category, name in enumerate(kinds, 1)]


def describe_image(index: int, path: Path, size_hw: tuple[int, int]) -> Entry:
    """An entry of COCO's list of images; `index` counts from 0, and the id is `index` + 1."""
    return {"id": index + 1, "file_name": path.name, "height": size_hw[0], "width": size_hw[1]}


def describe_instances(
    objects: Objects, outlines: "Sequence[Polygon | MultiPolygon]", names: Sequence[str]
) -> list[Entry]:
    """The COCO annotations of one image, without their ids.

    An object is written as polygons if pycocotools converts them back to exactly its pixels, otherwise as run lengths.

    Args:
        objects: the objects.
        outlines: from `trace`.
        names: class names.
    """
    entries, height, width = _describe_segments(objects, names), *objects.ids.shape
    for object_id, (entry, outline, box) in enumerate(zip(entries, outlines, find_boxes(objects.ids), strict=True), 1):
        entry["segmentation"] = _segment(objects.ids[box] == object_id, outline, box, (height, width))
    return entries


def describe_panoptic(objects: Objects, names: Sequence[str]) -> list[Entry]:
    """The COCO `segments_info` of one image; a segment's id is the object's id."""
    return [{"id": object_id} | entry for object_id, entry in enumerate(_describe_segments(objects, names), 1)]


def write_panoptic(path: Path, ids: NDArray[np.uint32]) -> None:
    """Write the PNG of COCO's panoptic format: the id is red + 256 green + 65536 blue; black: no object."""
    save_png(Image.fromarray(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)), path)


def write_coco(path: Path, images: Sequence[Entry], annotations: Iterable[Entry], names: Sequence[str]) -> None:
    """Write the COCO JSON of all images."""
    whole = {"images": images, "annotations": list(annotations), "categories": list_categories(names)}
    write_text(path, json_text(whole) + "\n")


def trace(ids: NDArray[np.uint32]) -> "list[Polygon | MultiPolygon]":
    """The outline of each object, with its holes; several polygons if parts of the object touch only at corners.

    Args:
        ids: (H, W), 0 where there is no object, else 1, 2, ... without gaps.
    Returns:
        Valid polygons of object 1, 2, ...: x is the column and y the row, 0 is the outer edge of the first pixel;
        vertices are only where the outline turns.
    """
    return [_trace_one(ids[box] == object_id, box) for object_id, box in enumerate(find_boxes(ids), 1)]


def _trace_one(region: NDArray[np.bool_], box: tuple[slice, slice]) -> "Polygon | MultiPolygon":
    """The outline of one object: the union of the horizontal runs of its pixels."""
    import shapely

    steps = np.diff(np.pad(region, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _rows, ends = np.nonzero(steps == -1)
    top, left = rows + box[0].start, box[1].start
    whole = shapely.union_all(shapely.box(left + starts, top, left + ends, top + 1))
    outline: Polygon | MultiPolygon = shapely.simplify(whole, 0)
    return outline


def write_geojson(
    path: Path,
    outlines: "Sequence[Polygon | MultiPolygon]",
    properties: Sequence[Mapping[str, Any]],
    transform: GeoTransform | None,
) -> None:
    """Write the objects of one image as a GeoJSON FeatureCollection; outer rings are counter-clockwise.

    Args:
        outlines: from `trace`.
        properties: the properties of each object.
        transform: converts px to map coordinates; None: coordinates are px from the upper left corner, x to the right
            and y down.
    """
    import shapely

    features = []
    for object_id, (outline, measures) in enumerate(zip(outlines, properties, strict=True), 1):
        shape = outline if transform is None else shapely.transform(outline, lambda xy: _to_map(xy, transform))
        geometry = shapely.geometry.mapping(shapely.orient_polygons(shape))
        features.append({"type": "Feature", "id": object_id, "properties": dict(measures), "geometry": geometry})
    whole: Entry = {"type": "FeatureCollection", "features": features}
    if transform is not None and transform.epsg is not None:
        whole["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{transform.epsg}"}}
    write_text(path, json_text(whole) + "\n")


def _to_map(xy: NDArray[np.float64], transform: GeoTransform) -> NDArray[np.float64]:
    a, b, c, d, e, f = transform.matrix
    return np.stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f], axis=1)


def _describe_segments(objects: Objects, names: Sequence[str]) -> list[Entry]:
    categories = {index: category for category, index in enumerate(object_classes(names), 1)}
    areas = np.bincount(objects.ids.reshape(-1), minlength=len(objects.classes) + 1)[1:]
    return [
        {
            "category_id": categories[int(index)],
            "area": int(area),
            "bbox": [left.start, top.start, left.stop - left.start, top.stop - top.start],
            "iscrowd": 0,
        }
        for index, area, (top, left) in zip(objects.classes, areas, find_boxes(objects.ids), strict=True)
    ]


def _segment(
    region: NDArray[np.bool_],
    outline: "Polygon | MultiPolygon",
    box: tuple[slice, slice],
    size_hw: tuple[int, int],
) -> list[list[float]] | Entry:
    """The segmentation of an object for COCO: polygons, or compressed run lengths."""
    coco = coco_masks()
    parts = list(getattr(outline, "geoms", [outline]))
    corners = [np.array(part.exterior.coords[:-1]) for part in parts]
    corner = box[1].start, box[0].start
    rasterized = coco.merge(
        coco.frPyObjects([(corner_yx - corner).ravel().tolist() for corner_yx in corners], *region.shape)
    )
    if np.array_equal(decode_rle({"size": region.shape, "counts": rasterized["counts"].decode("ascii")}), region):
        return [corner_yx.ravel().tolist() for corner_yx in corners]
    whole = np.zeros(size_hw, np.uint8, order="F")
    whole[box] = region
    runs = coco.encode(whole)
    return {"size": list(size_hw), "counts": runs["counts"].decode("ascii")}
