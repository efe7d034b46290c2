"""The findings of the dataset doctor as one HTML page, with thumbnails, that needs no other file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ubend.core.files import write_text
from ubend.core.i18n import _
from ubend.doctor.finding import Finding
from ubend.doctor.finding_text import describe_counts, describe_evidence, name_check, name_files, name_grade
from ubend.doctor.inspection import Inspection, shrink, to_bytes
from ubend.drawing.encoding import image_uri
from ubend.drawing.pages import render_page

_SIDE_PX = 192  # long side of a thumbnail
_IMAGES = 4  # of a finding
_OUTLINE = (0, 230, 60)


class _Entry(NamedTuple):
    """A finding as it is shown; `images`: (name, `data:` URI) of each thumbnail."""

    finding: Finding
    grade: str
    name: str
    numbers: str
    files: str
    images: list[tuple[str, str]]


def write_page(path: Path, title: str, findings: Sequence[Finding], inspection: Inspection | None) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: what was examined.
        findings: in the order of the page.
        inspection: where the images come from, shown plain and with the outlines of their masks; None: no thumbnails.
    Raises:
        OutputError: it cannot be written.
    """
    indices = dict[Path, int]()
    for index in range(len(inspection) if inspection else 0):
        assert inspection is not None
        indices |= {inspection.image_path(index): index, inspection.mask_path(index): index}
    entries = []
    for finding in findings:
        shown = dict.fromkeys(indices[file] for file in finding.files if file in indices)
        images = [_draw(inspection, index) for index in list(shown)[:_IMAGES]] if inspection else []
        entries.append(
            _Entry(
                finding,
                name_grade(finding.grade),
                name_check(finding.check),
                describe_evidence(finding),
                name_files(finding),
                images,
            )
        )
    counts = describe_counts(findings) if findings else _("no findings")
    page = render_page(Path(__file__).with_name("doctor.html"), title=title, counts=counts, entries=entries)
    write_text(path, page)


def _draw(inspection: Inspection, index: int) -> tuple[str, str]:
    """The pair's name, and its image beside the same with the outlines of its mask."""
    store = inspection.data.store
    mask = store.mask(index)
    scale = min(1.0, _SIDE_PX / max(mask.shape))
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    image = shrink(to_bytes(store.image(index)), (width, height))
    image = np.repeat(image, 3 // image.shape[2], axis=2)
    rows, columns = (
        np.arange(side_px) * side // side_px for side_px, side in zip((height, width), mask.shape, strict=True)
    )
    classes = np.asarray(mask)[rows][:, columns]
    outlines = np.zeros(classes.shape, np.bool_)
    outlines[1:] |= classes[1:] != classes[:-1]
    outlines[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    drawn = image.copy()
    drawn[outlines] = _OUTLINE
    return inspection.data.folder.pairs[index].name, image_uri(np.concatenate([image, drawn], axis=1))
