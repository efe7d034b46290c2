"""Predict masks of images, videos and scans: one job for each kind, with shared options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.inference.mask_predictor import load_mask_predictor
from ubend.io.scans import is_scan
from ubend.portable.file_jobs import FileJob
from ubend.portable.mask_job import MaskImageJob, run_mask_jobs
from ubend.portable.mask_predictor import PredictionOptions
from ubend.portable.probabilities import ProbKind
from ubend.portable.reporter import Reporter
from ubend.tasks.expand import expand_input, is_video
from ubend.tasks.scans import ScanJob
from ubend.tasks.url_storage import refuse_urls
from ubend.tasks.videos import VideoJob

_NONE = PredictionOptions()


def predict_paths(
    model: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    device: str | None = None,
    window: str | None = None,
    options: PredictionOptions = _NONE,
    prob: ProbKind | None = None,
    resume: bool = False,
    reporter: Reporter,
) -> list[Path]:
    """Predict masks of images (see `MaskImageJob`), videos (`VideoJob`) and scans (`ScanJob`) into a folder.

    Args:
        model: a run folder or a model file.
        paths: files, patterns, folders of images, or of scans (NIfTI files, folders of DICOM series) and videos; for
            images also `-` (see `ImageJob`).
        out: the output folder; files in it are not overwritten.
        window: intensity window of scans, see `ScanJob`.
        prob: file type of the probabilities of images, see `write_probabilities`; None: not written.
        resume: keep existing files, and write the missing ones.
    Returns:
        The masks, including existing ones.
    Raises:
        SettingError: an option does not fit the model or the paths.
        DataError, OutputError: see `run_jobs`; or nothing to predict.
    """
    refuse_urls([*paths, out])
    named, out = [expanded for path in paths for expanded in expand_input(Path(path), reporter)], Path(out)
    scans = [path for path in named if is_scan(path)]
    videos = [path for path in named if is_video(path)]
    images = [path for path in named if path not in (*scans, *videos)]
    if window is not None and not scans:
        raise SettingError(
            _("--window applies to scans (NIfTI, folders of DICOM files), but there are none"), key="--window"
        )
    if prob is not None and (scans or videos):
        raise SettingError(
            _("--prob applies to images, not to videos and scans; predict these separately"), key="--prob"
        )
    masks = load_mask_predictor(model, device, options)
    jobs: list[FileJob[Any]] = []
    if scans:
        jobs.append(ScanJob(masks, scans, out, window=window, resume=resume))
    if videos:
        jobs.append(VideoJob(masks, videos, out, resume=resume))
    if images or not jobs:
        jobs.append(MaskImageJob(masks, images, out, prob=prob, resume=resume))
    return run_mask_jobs(jobs, out, window=window, prob=prob, reporter=reporter)
