"""Which findings are mended without a person looking, and how: the table `REPAIRS`.

A repair is listed where nothing has to be guessed. A file that cannot be used is left out with its counterpart; a copy
of an image is left out if another copy stays; a mask is changed only where its right content follows from the set's
other masks or from the files themselves. All other findings stay for a person, as `docs/doctor.md` says.

Of copies in several splits, those of the scored splits stay (test, then val, then train): scores before and after are
of the same images. Of copies within a split, the first by name stays.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ubend.core.i18n import _
from ubend.doctor.finding import Finding
from ubend.doctor.inspection import Inspection
from ubend.doctor.mask_fit import name_flip
from ubend.doctor.mask_repair import (
    MASK_SUFFIXES,
    read_orientation,
    save_image_upright,
    save_mask_turned,
    save_values,
    snap_values,
    undo_flip,
    undo_orientation,
)
from ubend.doctor.values import KnownValues
from ubend.labels.mask_files import FileMask, read_label_values
from ubend.layouts.pairs import Folder, Pair
from ubend.portable.decode import read_header

_MOST_COPIES = 8  # images of a group; more are frames of a video, which need a split by groups
_KEPT_FIRST = ("test", "val", "train")


@dataclass(frozen=True)
class Change:
    """One file of the copy that differs from the original.

    Attributes:
        file: of the original.
        check: the check whose finding this mends.
        done: what was done, one sentence.
        target: the file that is written in its place, in the folder of `file`; None: it is left out.
        write: writes the new content to a path.
        size: bytes that `write` needs at most.
    """

    file: Path
    check: str
    done: str
    target: Path | None = None
    write: Callable[[Path], None] | None = None
    size: int = 0


@dataclass(frozen=True)
class RepairContext:
    """What repairs look at.

    Attributes:
        inspection: the pairs that can be read.
        folder: all pairs.
        known: the label values of the set's masks.
        leaves_out: whether pairs are found by the names of their files, so that the rest can be read without one.
    """

    inspection: Inspection
    folder: Folder
    known: KnownValues
    leaves_out: bool

    @cached_property
    def _pairs(self) -> dict[Path, Pair]:
        return {file: pair for pair in self.folder.pairs for file in (pair.image, *pair.mask.files)}

    def pair_of(self, file: Path) -> Pair | None:
        """The pair whose image or mask is in this file."""
        return self._pairs.get(file)

    def indices(self, files: Iterable[Path]) -> list[int]:
        """The images of these files, by their index in the inspection."""
        wanted = {*files}
        return [i for i in range(len(self.inspection)) if self.inspection.image_path(i) in wanted]


Repair = Callable[[RepairContext, Finding], list[Change]]


def plan_repairs(context: RepairContext, findings: Sequence[Finding]) -> list[Change]:
    """The changes that mend findings; at most one for each file, and none of notes. Files left out come first."""
    changes: dict[Path, Change] = {}
    for finding in findings:
        if finding.check in REPAIRS and finding.grade != "note":
            for change in REPAIRS[finding.check](context, finding):
                left_out = changes.get(change.file, change).target is None
                if change.file not in changes or (change.target is None and not left_out):
                    changes[change.file] = change
    return sorted(changes.values(), key=lambda change: change.target is not None)


def _leave_out_file(context: RepairContext, finding: Finding) -> list[Change]:
    """An image without mask, a mask without image; of a split without any mask, all images."""
    files = [below for file in finding.files for below in (sorted(file.rglob("*")) if file.is_dir() else [file])]
    done = _("left out: it has no counterpart")
    return [Change(file, finding.check, done) for file in files if context.leaves_out and not file.is_dir()]


def _leave_out_unreadable(context: RepairContext, finding: Finding) -> list[Change]:
    return _leave_out_pairs(context, finding, _("left out: one of the pair cannot be read"))


def _leave_out_identical(context: RepairContext, finding: Finding) -> list[Change]:
    return _leave_out_pairs(context, finding, _("left out: image and mask are the same file"))


def _leave_out_constant(context: RepairContext, finding: Finding) -> list[Change]:
    """An image whose pixels are all equal; one that is nearly constant may still show something."""
    (index,) = context.indices(finding.files)
    image = context.inspection.data.store.image(index)
    is_constant = (image == image[0, 0]).all()
    return _leave_out_pairs(context, finding, _("left out: all pixels are equal")) if is_constant else []


def _leave_out_pairs(context: RepairContext, finding: Finding, done: str) -> list[Change]:
    """The pairs of these files; a file that belongs to no pair, alone."""
    changes: list[Change] = []
    for file in finding.files if context.leaves_out else ():
        pair = context.pair_of(file)
        files = [pair.image, *pair.mask.files] if pair is not None else [] if file.is_dir() else [file]
        changes += [Change(left_out, finding.check, done) for left_out in files]
    return changes


def _leave_out_later(context: RepairContext, finding: Finding) -> list[Change]:
    """Copies in one split: the first by name stays."""
    indices = context.indices(finding.files)  # in the order of names
    kept = context.inspection.image_path(indices[0])
    return _leave_out_copies(context, finding, indices[1:], kept)


def _leave_out_of_training(context: RepairContext, finding: Finding) -> list[Change]:
    """Copies in several splits: those of the first of test, val and train stay. Nothing is done where equal images have
    different masks, since a person has to choose the mask, nor for a video's frames, which need another split."""
    data, indices = context.inspection.data, context.indices(finding.files)
    contradict = finding.check == "leaked image" and len({data.store.hashes[i][1] for i in indices}) > 1
    if contradict or len(indices) > _MOST_COPIES:
        return []
    best = min((data.splits[i] for i in indices), key=_KEPT_FIRST.index)
    kept = next(context.inspection.image_path(i) for i in indices if data.splits[i] == best)
    return _leave_out_copies(context, finding, [i for i in indices if data.splits[i] != best], kept)


def _leave_out_copies(context: RepairContext, finding: Finding, indices: Sequence[int], kept: Path) -> list[Change]:
    done = _("left out: a copy of {kept}, which stays").format(kept=kept.name)
    pairs = [context.inspection.data.folder.pairs[i] for i in indices] if context.leaves_out else []
    return [Change(file, finding.check, done) for pair in pairs for file in (pair.image, *pair.mask.files)]


def _snap(context: RepairContext, finding: Finding) -> list[Change]:
    """Values that no other mask holds become those of the classes, where there is one answer."""
    changes = []
    for file in finding.files:
        pair = context.pair_of(file)
        if pair is None or not isinstance(pair.mask, FileMask) or pair.mask.path != file:
            continue
        mask = read_label_values(pair.mask, (1, 1))
        snapped = None if mask.lossy else snap_values(mask, context.known)
        if snapped is not None and file.suffix.lower() in MASK_SUFFIXES:
            done = _("label values of the set's other masks written in place of those that only this mask held")
            changes.append(_rewrite(file, finding, done, file, save_values(snapped), 4 * snapped.values.size))
    return changes


def _save_as_png(context: RepairContext, finding: Finding) -> list[Change]:
    """JPEG masks: each pixel gets the value of its nearest class, as it is read anyway."""
    changes, labels = [], context.inspection.data.labels
    for file in finding.files:
        pair, target = context.pair_of(file), file.with_suffix(".png")
        if pair is None or pair.mask != FileMask(file) or target.exists():
            continue
        mask = read_label_values(pair.mask, (1, 1))
        snapped = snap_values(mask, context.known, labels)
        if mask.lossy and snapped is not None:
            done = _("saved as {name}, each pixel with the value of its nearest class").format(name=target.name)
            changes.append(_rewrite(file, finding, done, target, save_values(snapped), 4 * mask.values.size))
    return changes


def _undo_flip(context: RepairContext, finding: Finding) -> list[Change]:
    """A mask that is flipped or turned beyond doubt: an error, whose gain is twice the bound of ordinary masks."""
    file, pair = finding.files[0], context.pair_of(finding.files[0])
    if finding.grade != "error" or pair is None or not _is_plain_file(pair, file):
        return []
    flip = str(finding.evidence["flip"])
    done, write = _("the mask is {flip}").format(flip=name_flip(flip)), save_mask_turned(file, undo_flip(flip))
    return [_rewrite(file, finding, done, file, write, 4 * read_header(file).pixels)]


def _turn_mask(context: RepairContext, finding: Finding) -> list[Change]:
    """A mask of the size of its image as stored, not as its EXIF turns it: it is turned in the same way."""
    changes = []
    for file in finding.files:
        pair = context.pair_of(file)
        if pair is None or file == pair.image or not _is_plain_file(pair, file):
            continue
        upright, orientation = read_header(pair.image).size_hw, read_orientation(pair.image)
        if orientation >= 5 and read_header(file).size_hw == upright[::-1] != upright:
            done = _("turned as the EXIF orientation of its image says")
            write = save_mask_turned(file, undo_orientation(orientation))
            changes.append(_rewrite(file, finding, done, file, write, 4 * upright[0] * upright[1]))
    return changes


def _store_upright(context: RepairContext, finding: Finding) -> list[Change]:
    """Images that EXIF turns are stored upright. They are read as before, so nothing is done where a mask misfits."""
    changes = []
    for file in finding.files:
        pair = context.pair_of(file)
        target = file.with_suffix(".png") if file.suffix.lower() in (".jpg", ".jpeg") else file
        renamed = target != file and (target.exists() or pair is None or not isinstance(pair.mask, FileMask))
        if renamed or target.suffix.lower() not in MASK_SUFFIXES:
            continue
        write = save_image_upright(file)
        if write is not None:
            done = _("stored upright, without an EXIF orientation, as {name}").format(name=target.name)
            header = read_header(file)
            changes.append(_rewrite(file, finding, done, target, write, header.pixels * (header.channels + 1)))
    return changes


def _is_plain_file(pair: Pair, file: Path) -> bool:
    """Whether the mask is one lossless file that can be written again, and has no EXIF orientation itself."""
    return pair.mask == FileMask(file) and file.suffix.lower() in MASK_SUFFIXES and read_orientation(file) == 1


def _rewrite(file: Path, finding: Finding, done: str, target: Path, write: Callable[[Path], None], size: int) -> Change:
    return Change(file, finding.check, done, target, write, size)


VALUE_CHECKS = ("value off by one", "near colour", "odd values", "resampled mask")
REPAIRS: dict[str, Repair] = {
    "image without mask": _leave_out_file,
    "mask without image": _leave_out_file,
    "unreadable file": _leave_out_unreadable,
    "image as mask": _leave_out_identical,
    "constant image": _leave_out_constant,
    "duplicate image": _leave_out_later,
    "leaked image": _leave_out_of_training,
    "leaked near-duplicate": _leave_out_of_training,
    "value off by one": _snap,
    "near colour": _snap,
    "odd values": _snap,
    "resampled mask": _snap,
    "JPEG mask": _save_as_png,
    "flipped mask": _undo_flip,
    "size mismatch": _turn_mask,
    "turned image": _store_upright,
}
