"""Label values of masks that the set's other masks do not hold: off by one, between two values, near colours.

Works on the scan of the masks alone, so also where the values do not define the classes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ubend.core.i18n import _
from ubend.core.settings import Settings
from ubend.doctor.finding import Finding, Grade
from ubend.doctor.inspection import Inspection
from ubend.labels.class_checks import FEW_CLASSES
from ubend.labels.label_values import LabelScan, ValueKind, format_values, unpack_color
from ubend.labels.value_table import parse_table
from ubend.layouts.pairs import Folder

_USUAL = 0.5  # share of the masks that hold a value which the others are compared with
_RARE = 0.15  # share of the masks that hold a value which may be a slip
_MANY = 8  # odd values: resampling, or noise
NEAR_VALUE, NEAR_COLOR = 2, 32  # distance of a slip
_COMMON_PIXELS = 1e-3  # share of the pixels between two values in JPEG masks that is worth a note


@dataclass(frozen=True)
class KnownValues:
    """The label values of a set's lossless masks without odd ones, and those that the user or the folder states.

    Attributes:
        kind: of the values.
        values: (K,) int32, ascending.
    """

    kind: ValueKind
    values: NDArray[np.int32]


def find_known_values(label_scan: LabelScan, given: frozenset[int], odd: Collection[int]) -> KnownValues:
    """The values that the other masks hold.

    Args:
        label_scan: of all masks.
        given: label values that the user or the folder states.
        odd: masks that have other values; these and lossy masks do not count.
    """
    kind = label_scan.kind()
    counts = ~label_scan.lossy & ~np.isin(np.arange(len(label_scan)), list(odd))
    values = np.unique(label_scan.entries(kind)[counts[label_scan.mask_of]])
    return KnownValues(kind, np.union1d(values, np.array(sorted(given), np.int32)).astype(np.int32))


def check_label_values(inspection: Inspection) -> list[Finding]:
    """Masks with label values that the others do not hold, and JPEG masks."""
    pairs = inspection.data.folder.pairs
    given, are_objects = given_values(inspection.data.folder, inspection.settings)
    are_objects |= inspection.data.labels.others is not None  # object ids that were recognised as such
    return check_values(inspection.data.label_scan, [pair.mask.path for pair in pairs], given, are_objects)[0]


def check_values(
    label_scan: LabelScan, paths: Sequence[Path], given: frozenset[int], are_objects: bool
) -> tuple[list[Finding], list[int]]:
    """Findings, and the masks with values that no class is for: they cannot be read with the others.

    Args:
        label_scan: of all masks.
        paths: of each mask.
        given: label values that the user or the folder states.
        are_objects: whether values are numbers of objects, which differ from mask to mask.
    """
    if are_objects or len(label_scan) < 3:
        return [], []
    kind = label_scan.kind()
    counts = np.diff(label_scan.starts)[~label_scan.lossy]
    if kind == "value" and len(counts) and np.median(counts) > FEW_CLASSES:
        return [], []  # more values in most masks than classes: object ids, or photographs
    entries, mask_of = label_scan.entries(kind), label_scan.mask_of
    exact = ~label_scan.lossy[mask_of]
    values, inverse = np.unique(entries, return_inverse=True)
    masks = np.bincount(inverse[exact], minlength=len(values))
    lossless = max(1, int((~label_scan.lossy).sum()))
    usual = (masks >= _USUAL * lossless) | np.isin(values, list(given))
    rare = (masks > 0) & (masks <= max(1, _RARE * lossless)) & ~usual
    known = values[usual]
    findings, odd = [], []
    if len(known) >= 1:
        for mask in np.flatnonzero(~label_scan.lossy).tolist():
            mask_values = entries[label_scan.starts[mask] : label_scan.starts[mask + 1]]
            here = rare[inverse[label_scan.starts[mask] : label_scan.starts[mask + 1]]]
            if here.any() and (
                finding := _judge(mask_values, mask_values[here], known, kind, values[~rare], paths[mask])
            ):
                findings.append(finding)
                odd.append(mask)
    lossy = np.flatnonzero(label_scan.lossy)
    if len(lossy):
        findings.append(_describe_noise(label_scan, lossy, paths))
    return findings, odd


def _judge(
    mask_values: NDArray[np.int32],
    strange: NDArray[np.int32],
    known: NDArray[np.int32],
    kind: ValueKind,
    others: NDArray[np.int32],
    path: Path,
) -> Finding | None:
    """What to say of a mask with rare values; None: they may be a rare class."""
    shown = format_values(strange.tolist(), kind, 8)
    distance = value_distances(strange, known, kind)
    evidence: dict[str, float | int | str] = {"values": shown, "usual": format_values(known.tolist(), kind, 8)}
    if len(strange) >= _MANY:
        message = _("the mask holds {count} values that the others do not, such as {values}: it was resampled")
        repair = _("export it again, or resize it from the original with nearest neighbours")
        text = message.format(count=len(strange), values=format_values(strange.tolist(), kind))
        return Finding("resampled mask", "error", (path,), text, repair, evidence | {"score": len(strange)})
    lacks = not np.isin(
        known[distance.argmin(axis=1)], mask_values
    ).all()  # it holds these in the place of the known ones
    lacks |= kind == "value" and any(
        np.isin(mask_values - step, known).all() and 0 not in mask_values for step in (-1, 1)
    )
    gap = kind == "color" or bool((np.diff(np.unique(others)) > 1).any())  # in a row of class numbers, a new one is new
    if (distance.min(axis=1) <= (NEAR_COLOR if kind == "color" else NEAR_VALUE)).all() and (lacks or gap):
        check = "near colour" if kind == "color" else "value off by one"
        message = _("the mask holds {values}, which the others do not, near their {known}")
        text = message.format(values=shown, known=format_values(known.tolist(), kind, 8))
        repair = _("write the value that the other masks have")
        return Finding(check, "error", (path,), text, repair, evidence | {"distance": float(distance.min())})
    if lacks or not np.isin(mask_values, known).any():
        message = _("the mask holds {values}, which the others do not; they hold {known}")
        text = message.format(values=shown, known=format_values(known.tolist(), kind, 8))
        repair = _("write the values that the other masks have, or name these with --values")
        return Finding("odd values", "error", (path,), text, repair, evidence)
    return None


def value_distances(values: NDArray[np.int32], known: NDArray[np.int32], kind: ValueKind) -> NDArray[np.float64]:
    """(K, M) distances of K label values from M: differences of values, Euclidean distances of colours."""
    if kind == "value":
        return np.asarray(np.abs(values[:, None] - known[None]).astype(np.float64))
    points, corners = (np.stack(unpack_color(colors), axis=-1).astype(np.float64) for colors in (values, known))
    return np.asarray(np.linalg.norm(points[:, None] - corners[None], axis=2))


def _describe_noise(label_scan: LabelScan, lossy: NDArray[np.int64], paths: Sequence[Path]) -> Finding:
    """JPEG masks: a warning where the others are lossless, since somebody has saved these again."""
    pixels = np.array([label_scan.pixels[label_scan.starts[i] : label_scan.starts[i + 1]].sum() for i in lossy])
    common = np.array(
        [np.sort(label_scan.pixels[label_scan.starts[i] : label_scan.starts[i + 1]])[-2:].sum() for i in lossy]
    )
    noise = 1 - common / np.maximum(pixels, 1)
    grade: Grade = "warning" if len(lossy) < len(label_scan) else "note"
    message = _("masks are JPEG, so their values are noisy ({share:.1%} of the pixels); each goes to the nearest class")
    worst = lossy[np.argsort(-noise, kind="stable")]
    return Finding(
        "JPEG mask",
        grade,
        tuple(paths[i] for i in worst.tolist()),
        message.format(share=float(noise.mean())),
        _("save masks as PNG"),
        {"masks": len(lossy), "noise": float(noise.mean()), "threshold": _COMMON_PIXELS},
    )


def given_values(folder: Folder, settings: Settings) -> tuple[frozenset[int], bool]:
    """The label values that the user or the folder states, and whether values are numbers of objects."""
    given = {*(folder.values or ()), *folder.ignored}
    given |= {red << 16 | green << 8 | blue for red, green, blue in folder.colors or ()}
    if settings.data.values is None:
        return frozenset(given), False
    table = parse_table(settings.data.values, settings.data.classes)
    given |= {value for values in table.codes for value in values} | {*table.ignored}
    return frozenset(given), table.others is not None
