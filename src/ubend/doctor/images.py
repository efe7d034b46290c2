"""Images that differ from the set's others: constant, dark, light, blurred, turned, of another kind or form."""

from collections import Counter

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.core.i18n import _
from ubend.doctor.finding import Finding, Grade
from ubend.doctor.inspection import Inspection, lower_bound, upper_bound

_FLAT = 0.5  # grey levels of standard deviation in a thumbnail: nothing is to be seen
_DARK, _LIGHT = 20, 235  # mean grey level beyond which little is to be seen
_FAR = 40  # grey levels beyond the set's bounds
_FEW = 0.05  # share of a set: what more images have is usual
_MIN_IMAGES = 12
_BLUR = 0.25  # of the usual sharpness
_ASPECT = 1.25  # ratio of aspects that differ


def check_exposure(inspection: Inspection) -> list[Finding]:
    """Images that are constant, or far darker or lighter than the set's."""
    thumbnails = inspection.data.store.thumbnails.reshape(len(inspection), -1)
    mean, contrast = thumbnails.mean(axis=1), thumbnails.std(axis=1)
    low, high = (bound(mean) for bound in (lower_bound, upper_bound))
    findings = []
    for i in range(len(inspection)):
        evidence = {"mean": float(mean[i]), "contrast": float(contrast[i])}
        files = (inspection.image_path(i),)
        if contrast[i] < _FLAT:
            message, repair = _("the image shows nothing: all pixels are nearly equal"), _("leave it out")
            findings.append(Finding("constant image", "error", files, message, repair, evidence | {"threshold": _FLAT}))
        elif len(inspection) >= _MIN_IMAGES and (mean[i] < min(low, _DARK) or mean[i] < low - _FAR):
            message, repair = (
                _("the image is far darker than the others"),
                _("look at it; leave it out if it is a slip"),
            )
            findings.append(Finding("dark image", "warning", files, message, repair, evidence | {"threshold": low}))
        elif len(inspection) >= _MIN_IMAGES and (mean[i] > max(high, _LIGHT) or mean[i] > high + _FAR):
            message = _("the image is far lighter than the others")
            repair = _("look at it; leave it out if it is a slip")
            findings.append(Finding("light image", "warning", files, message, repair, evidence | {"threshold": high}))
    return findings


def measure_sharpness(inspection: Inspection) -> NDArray[np.float64]:
    """(N,) share of an image's contrast that lies in its finest details, as a logarithm."""
    sharpness = np.zeros(len(inspection))
    for i, (image, _mask) in enumerate(inspection.small):
        grey = image.mean(axis=2)
        details = grey - scipy.ndimage.uniform_filter(grey, 3)
        sharpness[i] = np.log((details.std() + 0.05) / (grey.std() + 1))
    return sharpness


def check_blur(inspection: Inspection) -> list[Finding]:
    """Images that are far less sharp than the set's."""
    if len(inspection) < _MIN_IMAGES:
        return []
    sharpness = measure_sharpness(inspection)
    bound = min(lower_bound(sharpness), float(np.median(sharpness)) + np.log(_BLUR))
    return [
        Finding(
            "blurred image",
            "warning",
            (inspection.image_path(i),),
            _("the image is far less sharp than the others"),
            _("look at it; leave it out if its objects cannot be seen"),
            {"score": float(sharpness[i]), "threshold": bound},
        )
        for i in np.flatnonzero(sharpness < bound).tolist()
    ]


def check_headers(inspection: Inspection) -> list[Finding]:
    """Images that are turned by their EXIF, or of other channels or another aspect than nearly all others."""
    findings, headers = [], inspection.data.headers
    turned = [i for i, header in enumerate(headers) if header.turned]
    if turned:
        grade: Grade = "warning" if len(turned) < len(headers) else "note"
        findings.append(
            Finding(
                "turned image",
                grade,
                tuple(inspection.image_path(i) for i in turned),
                _("images are turned upright, as their EXIF says; their masks must be upright too"),
                _("look at them with `ubend preview`; save the images without EXIF if masks do not fit"),
                {"images": len(turned)},
            )
        )
    kinds = Counter(header.channels for header in headers)
    usual = kinds.most_common(1)[0][0]
    odd = [i for i, header in enumerate(headers) if header.channels != usual]
    if odd and len(odd) <= _FEW * len(headers):
        findings.append(
            Finding(
                "odd channels",
                "warning",
                tuple(inspection.image_path(i) for i in odd),
                _("images of other channels than the rest, which have {usual}").format(usual=usual),
                _("check where they come from; save all images alike"),
                {"images": len(odd), "usual": usual},
            )
        )
    aspects = np.array([header.width / header.height for header in headers])
    middle = float(np.median(aspects))
    off = np.maximum(aspects / middle, middle / aspects) > _ASPECT
    if off.any() and off.mean() <= _FEW:
        findings.append(
            Finding(
                "odd aspect",
                "warning",
                tuple(inspection.image_path(i) for i in np.flatnonzero(off).tolist()),
                _("images of another form than the rest (width / height {usual:.2f})").format(usual=middle),
                _("check whether they were stretched, turned or cropped"),
                {"images": int(off.sum()), "usual": middle, "threshold": _ASPECT},
            )
        )
    return findings
