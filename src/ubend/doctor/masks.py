"""Masks by themselves: empty or full, specks and holes, a class that is missing."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.dataset.scan import threads
from ubend.dataset.store import read_class_map
from ubend.doctor.finding import Finding, Grade
from ubend.doctor.inspection import Inspection, upper_bound
from ubend.labels.class_table import IGNORED

_FEW = 0.05  # share of a set: what more masks have is usual
_MIN_IMAGES = 12
_OFTEN = 0.9  # share of the masks that hold a class which is missed elsewhere
_SPECK_PX = 6  # connected pixels that are no object
_MIN_SPECKS = 6
_SPREAD_STEPS = 8  # px along which a thin branch of a large region is followed before all regions are labelled
# Share of the borders, and pixels of these. Measured on 150 drawn masks: at most .05, resampled .14 and more in 98%; on
# CamVid, the pets and the drawn cells at most .03.
_MIN_RIMS, _MIN_BORDERS = 0.13, 50


def check_uniform_masks(inspection: Inspection) -> list[Finding]:
    """Masks of a single class where the other masks hold several."""
    pixels = inspection.class_pixels
    single = np.flatnonzero((pixels > 0).sum(axis=1) == 1)
    foreground = set(inspection.data.foreground_classes())
    findings = []
    for index in range(inspection.data.labels.classes):
        group = [i for i in single.tolist() if pixels[i, index]]
        if not group:
            continue
        rare = len(inspection) >= _MIN_IMAGES and len(group) <= max(1, _FEW * len(inspection))
        name = inspection.data.labels.names[index]
        evidence = {"masks": len(group), "share": len(group) / len(inspection), "threshold": _FEW}
        files = tuple(inspection.mask_path(i) for i in group)
        grade: Grade = "warning" if rare or index in foreground else "note"
        check = "full mask" if index in foreground else "empty mask"
        message = _("masks are all {name}").format(name=name)
        findings.append(Finding(check, grade, files, message, _("look at them; annotate what is missing"), evidence))
    return findings


def check_absent_class(inspection: Inspection) -> list[Finding]:
    """Masks without a class that nearly all others hold; masks of a single class are another check's."""
    findings, pixels = [], inspection.class_pixels
    several = (pixels > 0).sum(axis=1) > 1
    for index, name in enumerate(inspection.data.labels.names):
        holds = pixels[:, index] > 0
        missing = np.flatnonzero(~holds & several)
        if len(inspection) >= 2 * _MIN_IMAGES and len(missing) and holds.mean() >= _OFTEN and len(pixels[0]) > 2:
            findings.append(
                Finding(
                    "absent class",
                    "note",
                    tuple(inspection.mask_path(i) for i in missing.tolist()),
                    _("masks lack the class {name}, which nearly all others hold").format(name=name),
                    _("look at their images; annotate the class where it is to be seen"),
                    {"masks": len(missing), "share": float(holds.mean()), "threshold": _OFTEN},
                )
            )
    return findings


def check_fine_structure(inspection: Inspection) -> list[Finding]:
    """Masks with more specks, pin-holes or rims between classes than the set's others."""
    data = inspection.data
    background = next(i for i in range(data.labels.classes) if i not in set(data.foreground_classes()))

    def count(index: int) -> tuple[int, int, float]:
        try:
            classes = read_class_map(
                data.folder.pairs[index], tuple(data.store.native_hw[index].tolist()), data.labels
            ).classes
        except DataError:
            return 0, 0, 0.0
        objects = (classes != background) & (classes != IGNORED)
        return _count_small(objects), _count_small(~objects), _share_of_rims(classes)

    with ThreadPoolExecutor(threads()) as pool:
        counts = np.array(list(pool.map(count, range(len(inspection)))), np.float64).reshape(-1, 3)
    messages = {
        "specks": _("masks have specks of at most {px} px, far more than the others (up to {count})"),
        "pin-holes": _("masks have holes of at most {px} px, far more than the others (up to {count})"),
    }
    findings = []
    for count_of_mask, (check, message) in zip(counts.T[:2], messages.items(), strict=True):
        bound = max(_MIN_SPECKS, upper_bound(count_of_mask))
        many = np.flatnonzero(count_of_mask >= bound)
        worst = many[np.argsort(-count_of_mask[many], kind="stable")]
        if len(worst):
            findings.append(
                Finding(
                    check,
                    "warning" if len(worst) <= 0.02 * len(inspection) or len(worst) == 1 else "note",
                    tuple(inspection.mask_path(i) for i in worst.tolist()),
                    message.format(count=int(count_of_mask.max()), px=_SPECK_PX),
                    _("remove them, or fill them, if they are slips of the annotation tool"),
                    {"masks": len(worst), "score": int(count_of_mask.max()), "threshold": bound},
                )
            )
    rims = counts[:, 2]
    bound = max(_MIN_RIMS, upper_bound(rims))
    findings += [
        Finding(
            "resampled mask",
            "warning",
            (inspection.mask_path(i),),
            _("between two classes lies a rim of a third, a pixel wide, as after resampling"),
            _("export it again, or resize it from the original with nearest neighbours"),
            {"score": float(rims[i]), "threshold": bound},
        )
        for i in np.flatnonzero(rims > bound).tolist()
    ]
    return findings


def _share_of_rims(classes: NDArray[np.uint8]) -> float:
    """Of the borders between classes that are not neighbours in the table: the share with a class between these on it,
    a pixel wide. Resampling writes such rims; 0 where there are few borders."""
    if np.where(classes == IGNORED, 0, classes).max(initial=0) < 2:
        return 0.0  # two classes have none between them
    rims = jumps = 0
    for plane in (classes.astype(np.int16), classes.T.astype(np.int16)):
        scored = plane != IGNORED
        step = np.where(scored[1:] & scored[:-1], plane[1:] - plane[:-1], 0)
        rims += int(np.count_nonzero(step[1:] * step[:-1] > 0))
        jumps += int(np.count_nonzero(np.abs(step) > 1))
    return rims / (rims + jumps) if rims + jumps >= _MIN_BORDERS else 0.0


def _count_small(objects: NDArray[np.bool_]) -> int:
    """Connected regions of at most _SPECK_PX pixels; diagonal neighbours are connected."""
    # Labelling is slow, so first all is left out that is connected with a square of 3 x 3 px: it is larger.
    core = _spread(objects, np.logical_and)
    large = _spread(core, np.logical_or)
    small = objects & ~large
    for _step in range(_SPREAD_STEPS):
        touched = small & _spread(large, np.logical_or)
        if not touched.any():
            break
        small &= ~touched
        large = touched
    if not small.any():
        return 0
    labelled, _count = scipy.ndimage.label(objects, np.ones((3, 3)))
    return int((np.bincount(labelled.reshape(-1))[1:] <= _SPECK_PX).sum())


def _spread(mask: NDArray[np.bool_], join: np.ufunc) -> NDArray[np.bool_]:
    """(H, W) each pixel joined with its eight neighbours; beyond the border is False."""
    padded = np.pad(mask, 1)
    rows = join(join(padded[:-2], padded[1:-1]), padded[2:])
    return np.asarray(join(join(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))
