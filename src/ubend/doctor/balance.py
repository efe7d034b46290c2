"""Classes and objects: classes that a split lacks, and objects that are small at the training size."""

from ubend.core.i18n import _
from ubend.dataset.dataset import find_missing_classes, pick_scored_split
from ubend.dataset.object_widths import describe_narrow
from ubend.doctor.finding import Finding
from ubend.doctor.inspection import Inspection
from ubend.layouts.pairs import SPLITS

_RARE = 1e-3  # share of the pixels


def check_missing_classes(inspection: Inspection) -> list[Finding]:
    """Classes that no training image holds, or no scored one."""
    data = inspection.data
    untrained, unscored, _unvalidated = find_missing_classes(data.labels.names, data.store.class_pixels, data.splits)
    findings = []
    for name in untrained:
        message = _("no training image holds the class {name}").format(name=name)
        repair = _("move images that hold it to the training split")
        findings.append(Finding("class missing in training", "error", (), message, repair, {"class": name}))
    for name in unscored:
        split = pick_scored_split(data.splits)
        message = _("no image of the {split} split holds the class {name}, so it gets no score")
        message = message.format(split=split, name=name)
        repair = _("move images that hold it to this split")
        findings.append(Finding("class without score", "warning", (), message, repair, {"class": name}))
    return findings


def check_balance(inspection: Inspection) -> list[Finding]:
    """Classes of very few pixels: a note with their share of pixels and images in each split."""
    data, findings = inspection.data, []
    total = max(1, int(inspection.class_pixels.sum()))
    for index, name in enumerate(data.labels.names):
        share = inspection.class_pixels[:, index].sum() / total
        if not 0 < share < _RARE:
            continue
        evidence: dict[str, float | int | str] = {"share": float(share), "threshold": _RARE}
        for split in SPLITS:
            pixels_of_class = inspection.class_pixels[data.indices(split), index]
            evidence[f"{split} images"] = int((pixels_of_class > 0).sum())
        message = _("the class {name} has only {share:.3%} of the pixels").format(name=name, share=float(share))
        repair = _("add images that hold it; foreground oversampling with --patches shows it more often")
        findings.append(Finding("rare class", "note", (), message, repair, evidence))
    return findings


def check_scale(inspection: Inspection) -> list[Finding]:
    """Objects that become too narrow at the training size."""
    data = inspection.data
    return [
        Finding("narrow objects", "note", (), line.partition(": ")[2], _("train at a larger size, or on crops"), {})
        for line in describe_narrow(data.widths, data.input_format.size)
    ]
