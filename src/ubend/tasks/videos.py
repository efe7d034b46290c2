"""Predict masks of videos, frame by frame."""

from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, Problem
from ubend.core.files import DiskRequirement, write_csv, write_file
from ubend.core.i18n import _, later
from ubend.io.images import fit_channels
from ubend.io.video import Video, VideoReader, open_video, written_video
from ubend.labels.class_table import background_class
from ubend.portable.file_jobs import FileJob, Role
from ubend.portable.overlay import overlay_mask
from ubend.portable.reporter import Reporter

_ENDS: dict[Role, str] = {"mask": "_mask.mkv", "overlay": "_overlay.mp4", "shares": "_shares.csv"}


class VideoJob(FileJob[Video]):
    """Predicts masks of videos, with models for 8-bit images of 1 or 3 channels.

    For NAME.mp4 writes `NAME_overlay.mp4` with its sound, `NAME_mask.mkv` and `NAME_shares.csv`. Masks are lossless
    grey values, the class indices (FFV1). The table has each frame's time in seconds from the start of the file, and
    its shares. Both videos have the input's time stamps. Of a damaged or truncated video, the readable frames are
    written, and the damage is reported at the end.
    """

    output_name = later("mask or overlay")
    done_message = later("masks and overlays of videos in {out}: {count}")

    def inspect_all(self) -> list[DiskRequirement]:
        if not self.predictor.takes_grey_and_color or self.predictor.bundle.dtype != "uint8":
            message = _(
                "the model was not trained on 8 bit grey or colour images, so it cannot be "
                "used on videos; use another model"
            )
            raise DataError(message, key="data.channels")
        return super().inspect_all()

    def inspect(self, index: int) -> Video:
        return open_video(self.paths[index])

    def outputs(self, index: int) -> dict[Role, Path]:
        return {role: self.out / f"{self.paths[index].stem}{end}" for role, end in _ENDS.items()}

    def size(self, index: int) -> float:
        return 2 * self.paths[index].stat().st_size  # estimated: the overlay and the mask, each as large

    def make(self, reporter: Reporter) -> None:
        for index in self.todo:
            with self.collect_problems(index):
                self.note_source(index)
                if damage := self._predict(index, reporter):
                    self.damaged[index] = [damage]  # not recorded, so that --resume recreates and reports it
                else:
                    self.note_done(index)

    def _predict(self, index: int, reporter: Reporter) -> Problem | None:
        """Write the files of a video; returns its problems."""
        video, files = self.usable[index], self.outputs(index)
        labels, rows = self.predictor.labels, list[list[str | int]]()
        reader = VideoReader(video)
        reporter.begin(_("predicting"), video.frames or 0)

        def write_both(overlay_path: Path, mask_path: Path) -> None:
            frames = iter(reader)
            first = next(frames)
            start, size = first[0], (first[1].shape[0], first[1].shape[1])
            with (
                written_video(overlay_path, size, video, exact=False, start=start) as overlay_video,
                written_video(mask_path, size, video, exact=True, start=start) as masks,
            ):
                # all frames have one size, so batches fill in order
                given = ((timed, self._fit(timed[1])) for timed in chain([first], frames))
                for (seconds, frame), (predicted, _prob) in self.predictor.predict(given):
                    colored = overlay_mask(frame, predicted, labels.colors, background=background_class(labels.names))
                    overlay_video.add(seconds, colored)
                    masks.add(seconds, predicted)
                    shares = np.bincount(predicted.reshape(-1), minlength=len(labels.names)) / predicted.size
                    rows.append([len(rows), f"{seconds:.3f}", *(f"{share:.6f}" for share in shares)])
                    reporter.count(len(rows))

        write_file(
            files["overlay"],
            lambda overlay_path: write_file(files["mask"], lambda mask_path: write_both(overlay_path, mask_path)),
        )
        reporter.end()
        write_csv(files["shares"], [["frame", "seconds", *labels.names], *rows])
        if reader.damage is None:
            return None
        line = _("{path}: damaged or truncated ({reason}); masks of the {count} frames that could be read are written")
        if video.frames is not None and video.frames > len(rows):
            line = _(
                "{path}: damaged or truncated ({reason}); masks of the {count} frames that could be read are written, "
                "of about {total}"
            )
        message = line.format(path=video.path, reason=reader.damage, count=len(rows), total=video.frames)
        return Problem(message, video.path, "frames")

    def _fit(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        fitted = fit_channels(frame, self.predictor.channels)
        assert fitted is not None
        return fitted
