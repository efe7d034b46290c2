"""Paths of any kind: pictures, videos, scans; each goes its own way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ubend.errors import SettingError
from ubend.inference.conditions import Conditions
from ubend.jobs.predict import predict_files
from ubend.jobs.scans import predict_scans
from ubend.jobs.videos import predict_videos
from ubend.language import _
from ubend.pictures.video import VIDEO_SUFFIXES
from ubend.teller import Teller
from ubend.volumes.scan import is_scan


def predict_paths(
    model: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    device: str | None,
    window: str | None,
    conditions: Conditions,
    teller: Teller,
    **of_pictures: Any,
) -> None:
    """Predict all; arguments and errors as of `predict_files`, `predict_videos` and `predict_scans`.

    Args:
        window: for scans alone.
        conditions, of_pictures: for pictures alone.
    """
    scans = [path for path in paths if is_scan(path)]
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [path for path in paths if path not in (*scans, *videos)]
    if window is not None and not scans:
        raise SettingError(_("--window is for scans (NIfTI files, folders of DICOM files); there are none"))
    if (scans or videos) and conditions:
        raise SettingError(
            _("--with, --tta, --threshold, --min-area and --fill-holes are for pictures, not for videos and scans")
        )
    if scans:
        targets = predict_scans(model, scans, out, window=window, device=device, teller=teller)
        teller.say(_("{count} masks of scans in {out}").format(count=len(targets), out=out))
    if videos:
        targets = predict_videos(model, videos, out, device=device, teller=teller)
        teller.say(_("{count} masks and overlays of videos in {out}").format(count=len(targets), out=out))
    if pictures:  # last: what is wrong with some of them is told when all else is done
        predict_files(model, pictures, out, device=device, conditions=conditions, teller=teller, **of_pictures)
