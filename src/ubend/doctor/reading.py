"""Read a folder in spite of what is wrong with it: each problem is a finding, and the checks look at the rest."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ubend.core.errors import DataError, PairError
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.core.settings import Settings, change_settings
from ubend.dataset.dataset import find_folder, open_folder
from ubend.dataset.scan import read_headers, scan_masks
from ubend.dataset.store import hash_pairs
from ubend.doctor.finding import Finding
from ubend.doctor.inspection import Inspection
from ubend.doctor.values import check_values, given_values
from ubend.layouts.pairs import Folder, Pair

_CHECKS = {  # key of a problem -> check
    "no mask": "image without mask",
    "split without masks": "image without mask",
    "no image": "mask without image",
    "two masks": "double name",
    "two images": "double name",
    "annotated twice": "double name",
    "empty": "unreadable file",
    "foreign": "unreadable file",
    "size": "size mismatch",
    "data.values": "odd values",
    "data.classes": "odd values",
    "color": "odd values",
    "value": "odd values",
    "dtype": "odd depth",
    "data.channels": "odd channels",
    "data.split": "split",
    "split file": "split",
    "split word": "split",
    "split twice": "split",
    "split unclear": "split",
    "split unknown": "split",
    "split missing": "split",
}


def inspect_folder(
    settings: Settings, device: str, cache: Path, reporter: Reporter
) -> tuple[Inspection | None, list[Finding]]:
    """The data set without the pairs that cannot be used, and a finding for each problem; None: nothing can be read.

    Args:
        settings, device, cache, reporter: see `open_dataset`; `data.skip_bad` is on.
    Raises:
        SettingError: settings contradict each other.
        OutputError: the cache cannot be written.
    """
    settings = change_settings(settings, {"data.skip_bad": True})
    try:
        folder = find_folder(settings)
    except DataError as error:
        return None, [_of_folder(line) for line in error.problems]
    findings = [_from_problem(problem, ()) for _name, problem in folder.skipped]
    skipped: list[tuple[Pair, list[str]]] = []
    while True:
        try:
            return Inspection(open_folder(folder, settings, device, cache, reporter, skipped), settings), findings
        except PairError as error:
            bad = {pair.name: pair for pair in folder.pairs if pair.name in error.bad}
            for name, pair in bad.items():
                findings += [_from_problem(line, (pair.mask.path, pair.image)) for line in error.bad[name]]
            skipped += [(pair, error.bad[name]) for name, pair in bad.items()]
        except DataError as error:
            more, bad = _find_odd_masks(folder, settings, cache)
            if not bad:
                return None, [*findings, *(_of_folder(line) for line in error.problems)]
            findings += more
            skipped += [(pair, error.problems) for pair in bad.values()]
        folder = replace(folder, pairs=tuple(pair for pair in folder.pairs if pair.name not in bad))
        if not folder.pairs:
            return None, findings


def _find_odd_masks(folder: Folder, settings: Settings, cache: Path) -> tuple[list[Finding], dict[str, Pair]]:
    """The masks whose values keep the set from being read, and the findings."""
    pairs = folder.pairs
    hashes = hash_pairs(pairs)
    shapes = [header.size_hw for header in read_headers(pairs, settings.data.channels)]
    label_scan = scan_masks(pairs, shapes, [mask for _image, mask in hashes], cache)
    paths = [pair.mask.path for pair in pairs]
    given, are_objects = given_values(folder, settings)
    findings, odd = check_values(label_scan, paths, given, are_objects)
    lossy = np.flatnonzero(label_scan.lossy).tolist()
    if not odd and 2 * len(lossy) < len(pairs):  # what the others hold is exact
        findings, odd = [finding for finding in findings if finding.check == "JPEG mask"], lossy
    return findings[: len(odd)], {pairs[i].name: pairs[i] for i in odd}


def _from_problem(line: str, files: Iterable[Path]) -> Finding:
    """A problem of some files as a finding; the rest can be read without them."""
    path = getattr(line, "path", None)
    check = _CHECKS.get(getattr(line, "key", None) or "", "unreadable file")
    repair = _("repair it, or leave it out with --skip-bad")
    return Finding(check, "error", tuple(files) if path is None else (path,), str(line), repair)


def _of_folder(line: str) -> Finding:
    """A problem of the whole folder, of which nothing can be read, as a finding; the sentence says what to do too."""
    path = getattr(line, "path", None)
    check = _CHECKS.get(getattr(line, "key", None) or "", "unreadable folder")
    repair = _("the other checks can run after that")
    if check == "odd values" and path is None:  # of all masks together
        repair = _("correct the masks, or say with --values what their values mean")
    return Finding(check, "error", () if path is None else (path,), str(line), repair)
