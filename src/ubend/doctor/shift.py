"""Splits that differ: grey values, contrast, sharpness, size and share of objects of one split against another's."""

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.core.i18n import _
from ubend.doctor.finding import Finding
from ubend.doctor.images import measure_sharpness
from ubend.doctor.inspection import Inspection

_LEVEL = 0.001  # of the Kolmogorov-Smirnov tests together, after Holm
_EFFECT = 0.5  # of the pooled standard deviation: a middling difference after Cohen
_MIN_IMAGES = 8  # in each split


def check_domain_shift(inspection: Inspection) -> list[Finding]:
    """Measures of images that differ between the training split and another."""
    data = inspection.data
    measures = _measure(inspection)
    training = data.indices("train")
    tests = []
    for split in ("val", "test"):
        other = data.indices(split)
        if min(len(training), len(other)) < _MIN_IMAGES:
            continue
        for name, values in measures.items():
            training_values, other_values = values[training], values[other]
            spread = float(np.sqrt((training_values.var() + other_values.var()) / 2))
            effect = float(other_values.mean() - training_values.mean()) / max(spread, 1e-9)
            if spread > 0:
                tests.append((_compare_distributions(training_values, other_values), effect, split, name))
    findings = []
    for rank, (chance, effect, split, name) in enumerate(sorted(tests)):
        if chance > _LEVEL / (len(tests) - rank):
            break
        if abs(effect) > _EFFECT:
            message = _("{measure} differs between the training split and {split}").format(
                measure=_names()[name], split=split
            )
            repair = _("check how the split was made; split at random by groups if images come from one source")
            evidence = {"p": chance, "effect": effect, "threshold": _EFFECT}
            findings.append(Finding("domain shift", "warning", (), message, repair, evidence))
    return findings


def _compare_distributions(values: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The p value of the two-sided Kolmogorov-Smirnov test, by Stephens' approximation (JRSS B, 1970).

    scipy.stats has the exact test, but takes a second to import.
    """
    both = np.sort(np.concatenate([values, others]))
    shares = (np.searchsorted(np.sort(sample), both, side="right") / len(sample) for sample in (values, others))
    distance = float(np.abs(np.subtract(*shares)).max())
    root = np.sqrt(len(values) * len(others) / (len(values) + len(others)))
    return float(scipy.special.kolmogorov((root + 0.12 + 0.11 / root) * distance))


def _names() -> dict[str, str]:
    return {
        "grey": _("the mean grey level"),
        "contrast": _("the contrast"),
        "sharpness": _("the sharpness"),
        "area": _("the size of the images"),
        "foreground": _("the share of the foreground"),
    }


def _measure(inspection: Inspection) -> dict[str, NDArray[np.float64]]:
    thumbnails = inspection.data.store.thumbnails.reshape(len(inspection), -1)
    pixels, foreground = inspection.class_pixels, list(inspection.data.foreground_classes())
    return {
        "grey": thumbnails.mean(axis=1),
        "contrast": thumbnails.std(axis=1),
        "sharpness": measure_sharpness(inspection),
        "area": np.log(inspection.data.store.native_hw.prod(axis=1)),
        "foreground": pixels[:, foreground].sum(axis=1) / np.maximum(pixels.sum(axis=1), 1),
    }
