"""The layouts of polygon annotations: COCO, LabelMe, Label Studio, YOLO."""

from collections.abc import Callable
from pathlib import Path

from ubend.folders.coco import fits_coco, read_coco
from ubend.folders.collection import annotation_folders, side_of
from ubend.folders.labelme import fits_labelme, read_labelme
from ubend.folders.labelstudio import fits_label_studio, read_label_studio
from ubend.folders.naming import IMAGE_SUFFIXES, bare_stem
from ubend.folders.pairs import Layout
from ubend.folders.tree import entries, subfolders
from ubend.folders.yolo import fits_yolo, read_yolo
from ubend.language import _


def _without_masks(fits: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """`fits`, but not for a folder that holds drawn masks too: those go before annotations."""
    return lambda root: fits(root) and not _has_masks(root)


def _has_masks(root: Path) -> bool:
    """Are there pictures in a folder called after masks, or two called `NAME` and `NAME_mask`?"""
    for place in dict.fromkeys([*annotation_folders(root), *subfolders(root).values()]):
        names = [Path(entry.name) for entry in entries(place)]
        stems = {name.stem for name in names if name.suffix.lower() in IMAGE_SUFFIXES}
        if stems and "mask" in map(side_of, place.relative_to(root).parts):
            return True
        if any((bare := bare_stem(stem, "mask")) != stem and bare in stems for stem in stems):
            return True
    return False


LAYOUTS = (
    Layout(lambda: _("COCO: pictures, and JSON files of annotations"), _without_masks(fits_coco), read_coco),
    Layout(lambda: _("LabelMe: pictures, and a JSON file of each"), _without_masks(fits_labelme), read_labelme),
    Layout(
        lambda: _("Label Studio: pictures, and an exported JSON file"),
        _without_masks(fits_label_studio),
        read_label_studio,
    ),
    Layout(lambda: _("YOLO: images/ and labels/ with text files of polygons"), _without_masks(fits_yolo), read_yolo),
)
