"""Paths of any kind: images, videos, scans; each goes its own way, under the same conditions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ubend.errors import SettingError
from ubend.inference.conditions import Conditions, load_masks
from ubend.jobs.many import FileJob, run_jobs
from ubend.jobs.predict import PictureJob
from ubend.jobs.scans import ScanJob
from ubend.jobs.videos import VideoJob
from ubend.language import _
from ubend.pictures.probabilities import ProbKind
from ubend.pictures.video import VIDEO_SUFFIXES
from ubend.teller import Teller
from ubend.volumes.scan import is_scan

_NONE = Conditions()


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
    """Predict images (see `PictureJob`), videos (`VideoJob`) and scans (`ScanJob`) into one folder, beside a
    `predict.json` that says what made them.

    Args:
        model: a run folder or a model file.
        paths: files, and for images folders, patterns, or `-`.
        out: the folder; files in it are not overwritten.
        window: of scans.
        prob: of images, as in `write_probabilities`.
        resume: what is there stays.
    Returns:
        The masks, those of before included.
    Raises:
        SettingError: a flag that does not go with the model or with the paths.
        DataError, OutputError: as in `run_jobs`; or nothing to predict.
    """
    named, out = [Path(path) for path in paths], Path(out)
    scans = [path for path in named if is_scan(path)]
    videos = [path for path in named if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [path for path in named if path not in (*scans, *videos)]
    if window is not None and not scans:
        raise SettingError(_("--window is for scans (NIfTI files, folders of DICOM files); there are none"))
    if prob is not None and (scans or videos):
        raise SettingError(_("--prob is for pictures, not for videos and scans; predict these by themselves"))
    masks = load_masks(model, device, conditions)
    jobs: list[FileJob[Any]] = []
    if scans:
        jobs.append(ScanJob(masks, scans, out, window=window, resume=resume))
    if videos:
        jobs.append(VideoJob(masks, videos, out, resume=resume))
    if pictures or not jobs:
        jobs.append(PictureJob(masks, pictures, out, prob=prob, resume=resume))
    return run_jobs(jobs, teller, out / "predict.json", {**masks.describe(), "window": window, "prob": prob})
