"""Masks of videos, frame by frame."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.drawing.overlay import overlay_mask
from ubend.errors import DataError, OutputError
from ubend.files import write_file, write_text
from ubend.inference.predictor import Predictor, load
from ubend.language import _
from ubend.masks.labels import background_class
from ubend.pictures.video import Video, open_video, read_frames, written_video
from ubend.teller import Teller


def predict_videos(
    model: Path | str, paths: Sequence[Path], out: Path | str, *, device: str | None = None, teller: Teller
) -> list[Path]:
    """Predict videos; for NAME.mp4 writes `NAME_overlay.mp4` with its sound, `NAME_mask.mkv` and `NAME_shares.csv`.

    A mask's grey values are the class indices, without loss (FFV1). The table tells each frame's time and shares.

    Args:
        model: a run folder or a model file, of 8 bit pictures of 1 or 3 channels.
        paths: videos.
        out: folder for what is written; nothing in it is overwritten.
    Returns:
        The masks.
    Raises:
        DataError: ffmpeg is missing, a video cannot be read, or the model wants other pictures.
        OutputError: something of that name is there already, or cannot be written.
    """
    predictor, out = load(model, device), Path(out)
    if predictor.bundle.sizing.channels not in (1, 3) or predictor.bundle.dtype != "uint8":
        raise DataError(_("the model was not trained on 8 bit pictures in grey or colour, which frames of videos are"))
    videos = [open_video(path) for path in paths]
    named = [[out / f"{path.stem}{end}" for end in ("_overlay.mp4", "_mask.mkv", "_shares.csv")] for path in paths]
    seen: set[Path] = set()
    for place in (place for places in named for place in places):
        if place in seen or place.exists():
            raise OutputError(_("{path} exists already; choose another --out").format(path=place))
        seen.add(place)
    for video, (overlay, mask, table) in zip(videos, named, strict=True):
        _predict_video(predictor, video, overlay, mask, table, teller)
    return [mask for _overlay, mask, _table in named]


def _predict_video(predictor: Predictor, video: Video, overlay: Path, mask: Path, table: Path, teller: Teller) -> None:
    teller.begin(_("predicting"), video.frames or 0)
    rows: list[dict[str, float]] = []

    def write_both(overlay_place: Path, mask_place: Path) -> None:
        frames = read_frames(video)
        first = next(frames, None)
        if first is None:
            raise DataError(_("{path}: no frames in this video").format(path=video.path))
        size = first.shape[0], first.shape[1]
        with (
            written_video(overlay_place, size, video, exact=False) as shown,
            written_video(mask_place, size, video, exact=True) as masks,
        ):
            for frame, index, shares in _predicted(predictor, first, frames):
                labels = predictor.labels
                shown.add(overlay_mask(frame, index, labels.colors, background=background_class(labels.names)))
                masks.add(index)
                rows.append(shares)
                teller.count(len(rows))

    write_file(overlay, lambda shown: write_file(mask, lambda masks: write_both(shown, masks)))
    teller.end()
    _write_table(table, video, rows)


def _predicted(
    predictor: Predictor, first: NDArray[np.uint8], frames: Iterator[NDArray[np.uint8]]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, float]]]:
    """Frames with their masks and shares, in order: all have one size, so batches get full in order."""
    waiting: dict[int, NDArray[np.uint8]] = {}

    def given() -> Iterator[NDArray[Any]]:
        for number, frame in enumerate(chain([first], frames)):
            waiting[number] = frame
            grey = predictor.bundle.sizing.channels == 1
            yield np.rint(frame @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[:, :, None] if grey else frame

    for number, prediction in predictor.predict(given()):
        yield waiting.pop(number), prediction.mask, prediction.shares()


def _write_table(path: Path, video: Video, rows: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "seconds", *rows[0]])
    for number, shares in enumerate(rows):
        writer.writerow([number, f"{float(number / video.rate):.3f}", *(f"{share:.6f}" for share in shares.values())])
    write_text(path, text.getvalue())
