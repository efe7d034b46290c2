"""The layouts of polygon annotations: COCO, LabelMe, Label Studio, YOLO."""

import re
from collections.abc import Callable
from pathlib import Path

from ubend.data.coco import fits_coco, read_coco
from ubend.data.collection import annotation_folders
from ubend.data.labelme import fits_labelme, read_labelme
from ubend.data.labelstudio import fits_label_studio, read_label_studio
from ubend.data.naming import IMAGE_SUFFIXES, entries
from ubend.data.pairs import Layout
from ubend.data.yolo import fits_yolo, read_yolo
from ubend.language import _

_MASK = re.compile(r"(^|[_-])(masks?|seg|segmentations?|segmentationclass|gt|labels?|annotations?|trimaps)$", re.I)


def _without_masks(fits: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """`fits`, but not for a folder that holds drawn masks too: those go before annotations."""

    def fits_alone(root: Path) -> bool:
        return fits(root) and not any(map(_is_mask, _pictures(root)))

    return fits_alone


def _pictures(root: Path) -> list[Path]:
    places = dict.fromkeys([*annotation_folders(root), *(p for p in entries(root) if p.is_dir())])
    return [path for place in places for path in entries(place) if path.suffix.lower() in IMAGE_SUFFIXES]


def _is_mask(path: Path) -> bool:
    return bool(_MASK.search(path.parent.name) or _MASK.search(path.stem))


LAYOUTS = (
    Layout(lambda: _("COCO: pictures, and JSON files of annotations"), _without_masks(fits_coco), read_coco),
    Layout(lambda: _("LabelMe: pictures, and a JSON file of each"), _without_masks(fits_labelme), read_labelme),
    Layout(
        lambda: _("Label Studio: pictures, and an exported JSON file"),
        _without_masks(fits_label_studio),
        read_label_studio,
    ),
    Layout(lambda: _("YOLO: images/ and labels/ with text files of polygons"), fits_yolo, read_yolo),
)
