"""Paths of any kind: pictures, videos, scans; each goes its own way, under the same conditions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ubend.errors import DataError, SettingError
from ubend.files import Need, refuse_full
from ubend.inference.conditions import Conditions, load_masks
from ubend.jobs.predict import PictureJob
from ubend.jobs.record import Record
from ubend.jobs.scans import ScanJob
from ubend.jobs.videos import VideoJob
from ubend.language import _
from ubend.pictures.probabilities import ProbKind
from ubend.pictures.video import VIDEO_SUFFIXES
from ubend.teller import Teller
from ubend.volumes.scan import is_scan

_NONE = Conditions()


class _Job(Protocol):
    """Files of one kind: first all are looked at, then all are written."""

    def look(self) -> list[Need]: ...

    def write(self, teller: Teller) -> list[Path]: ...

    @property
    def problems(self) -> list[str]: ...


def predict_paths(
    model: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    device: str | None = None,
    window: str | None = None,
    conditions: Conditions = _NONE,
    prob: ProbKind | None = None,
    resume: bool = False,
    teller: Teller,
) -> list[Path]:
    """Predict pictures (as of `PictureJob`), videos (`VideoJob`) and scans (`ScanJob`) into one folder, beside a
    `predict.json` that says what made them.

    All are looked at before anything is written; what is wrong with some of them is told when all others are done.

    Args:
        model: a run folder or a model file.
        paths: files, and for pictures folders, patterns, or `-`.
        out: the folder; files in it are not overwritten.
        window: of scans.
        prob: of pictures, as of `write_probabilities`.
        resume: what is there stays.
    Returns:
        The masks, those of before included.
    Raises:
        SettingError: a flag that does not go with the model or with the paths.
        DataError: nothing to predict, or two files of one name; at the end: files that could not be used.
        OutputError: something of that name is there already, or another model made it; no room, or no right to write.
    """
    named, out = [Path(path) for path in paths], Path(out)
    scans = [path for path in named if is_scan(path)]
    videos = [path for path in named if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [path for path in named if path not in (*scans, *videos)]
    if window is not None and not scans:
        raise SettingError(
            _("--window is for scans (NIfTI files, folders of DICOM files); there are none"), key="--window"
        )
    if prob is not None and (scans or videos):
        raise SettingError(
            _("--prob is for pictures, not for videos and scans; predict these by themselves"), key="--prob"
        )
    masks = load_masks(model, device, conditions)
    jobs: list[_Job] = []
    if scans:
        jobs.append(ScanJob(masks, scans, out, window=window, resume=resume))
    if videos:
        jobs.append(VideoJob(masks, videos, out, resume=resume))
    if pictures or not jobs:
        jobs.append(PictureJob(masks, pictures, out, prob=prob, resume=resume))
    record = Record(out / "predict.json", {**masks.describe(), "window": window, "prob": prob})
    needs = [need for job in jobs for need in job.look()]
    if needs:
        record.refuse_other(teller, resume=resume)
        refuse_full(needs)
        for line in masks.describe_tiling():
            teller.say(line)
        record.write()
    written = [path for job in jobs for path in job.write(teller)] if needs else []
    if needs and not written:
        record.withdraw()
    problems = [line for job in jobs for line in job.problems]
    if problems:
        raise DataError(problems)
    return written
