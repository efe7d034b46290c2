"""Masks of videos, frame by frame."""

from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.core.files import Need, write_csv, write_file
from ubend.core.i18n import _, later
from ubend.core.progress import Teller
from ubend.drawing.overlay import overlay_mask
from ubend.io.images import fit_channels
from ubend.io.video import Video, open_video, read_frames, written_video
from ubend.labels.class_table import background_class
from ubend.tasks.file_jobs import FileJob

_WHOLE = 0.9  # of the frames that a video states, at least; the sound may be longer, by which some are counted
_ENDS = ("_mask.mkv", "_overlay.mp4", "_shares.csv")


class VideoJob(FileJob[Video]):
    """Masks of videos, by models of 8 bit images of 1 or 3 channels.

    For NAME.mp4 writes `NAME_overlay.mp4` with its sound, `NAME_mask.mkv` and `NAME_shares.csv`. A mask's grey values
    are the class indices, without loss (FFV1). The table tells each frame's time and shares.
    """

    what = later("mask or overlay")
    done = later("{count} masks and overlays of videos in {out}")

    def look(self) -> list[Need]:
        if not self.masks.takes_color or self.masks.bundle.dtype != "uint8":
            said = _("the model was not trained on 8 bit pictures in grey or colour, which frames of videos are")
            raise DataError(said, key="data.channels")
        return super().look()

    def inspect(self, number: int) -> Video:
        return open_video(self.paths[number])

    def files(self, number: int) -> list[Path]:
        return [self.out / f"{self.paths[number].stem}{end}" for end in _ENDS]

    def size(self, number: int) -> float:
        return 2 * self.paths[number].stat().st_size  # an overlay is about as large

    def make(self, teller: Teller) -> None:
        for number in self.todo:
            with self.keeping(number):
                self.note_source(number)
                self._predict(number, teller)
                self.note_done(number)

    def _predict(self, number: int, teller: Teller) -> None:
        video, (mask, overlay, table) = self.found[number], self.files(number)
        labels, rows, damage = self.masks.labels, list[NDArray[np.float64]](), list[str]()
        teller.begin(_("predicting"), video.frames or 0)

        def write_both(overlay_place: Path, mask_place: Path) -> None:
            frames = read_frames(video, damage.append)
            first = next(frames, None)
            if first is None:
                raise DataError(_("{path}: no frames in this video").format(path=video.path), path=video.path)
            size = first.shape[0], first.shape[1]
            with (
                written_video(overlay_place, size, video, exact=False) as shown,
                written_video(mask_place, size, video, exact=True) as masks,
            ):
                # all have one size, so batches get full in order
                given = ((frame, self._fit(frame)) for frame in chain([first], frames))
                for frame, (index, _prob) in self.masks.predict(given):
                    shown.add(overlay_mask(frame, index, labels.colors, background=background_class(labels.names)))
                    masks.add(index)
                    rows.append(np.bincount(index.reshape(-1), minlength=labels.classes) / index.size)
                    teller.count(len(rows))

        write_file(overlay, lambda shown: write_file(mask, lambda masks: write_both(shown, masks)))
        teller.end()
        if damage or (video.steady and len(rows) < _WHOLE * (video.frames or 0)):
            line = _("WARNING: {path} is damaged or cut: {count} frames were read, {stated} are stated ({reason})")
            why = damage[0] if damage else _("it ends early")
            teller.say(line.format(path=video.path, count=len(rows), stated=video.frames or "?", reason=why))
        timed = [[n, f"{float(n / video.rate):.3f}", *(f"{s:.6f}" for s in shares)] for n, shares in enumerate(rows)]
        write_csv(table, [["frame", "seconds", *labels.names], *timed])

    def _fit(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        fitted = fit_channels(frame, self.masks.channels)
        assert fitted is not None
        return fitted
