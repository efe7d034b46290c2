"""Masks of videos, frame by frame."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ubend.drawing.overlay import overlay_mask
from ubend.errors import DataError
from ubend.files import Need, clear_leftovers, write_file, write_text
from ubend.inference.conditions import Masks
from ubend.jobs.many import Problems, refuse_collisions, refuse_there
from ubend.language import _
from ubend.masks.labels import background_class
from ubend.pictures.images import fit_channels
from ubend.pictures.video import Video, open_video, read_frames, written_video
from ubend.teller import Teller

_ENDS = ("_mask.mkv", "_overlay.mp4", "_shares.csv")


class VideoJob:
    """Videos on their way to masks; what is wrong with one does not stop the others.

    For NAME.mp4 writes `NAME_overlay.mp4` with its sound, `NAME_mask.mkv` and `NAME_shares.csv`. A mask's grey values
    are the class indices, without loss (FFV1). The table tells each frame's time and shares.

    Args:
        masks: models of 8 bit pictures of 1 or 3 channels.
        paths: videos.
        out: folder for what is written; nothing in it is overwritten.
        resume: videos that have their table already are left as they are.
    """

    def __init__(self, masks: Masks, paths: Sequence[Path], out: Path, *, resume: bool = False) -> None:
        self._masks, self._paths, self._resume = masks, paths, resume
        self._written = [[out / f"{path.stem}{end}" for end in _ENDS] for path in paths]
        self._out = out
        self._videos: dict[int, Video] = {}
        self._problems = Problems()

    @property
    def problems(self) -> list[str]:
        """What is wrong with videos, so far."""
        return self._problems.told()

    def look(self) -> list[Need]:
        """Open all, before anything is written; gives the room that is wanted.

        Raises:
            DataError: the models take other pictures, or two videos have one name.
            OutputError: something of that name is there already.
        """
        if not self._masks.takes_color or self._masks.bundle.dtype != "uint8":
            said = _("the model was not trained on 8 bit pictures in grey or colour, which frames of videos are")
            raise DataError(said, key="data.channels")
        refuse_collisions(self._paths, self._written, _("mask or overlay"))
        for number, path in enumerate(self._paths):
            with self._problems.keeping(number):
                self._videos[number] = open_video(path)
        if not self._resume:
            refuse_there(place for number in self._videos for place in self._written[number])
        size = sum(2 * self._paths[number].stat().st_size for number in self._todo())  # about: an overlay as large
        return [Need(self._out, size, _("choose another --out"))] if self._videos else []

    def write(self, teller: Teller) -> list[Path]:
        """Predict and write all that `look` found; gives the masks, those of before included."""
        todo = self._todo()
        for number in todo:
            for place in self._written[number]:
                clear_leftovers(place)
            with self._problems.keeping(number):
                self._predict(number, teller)
        done = [number for number in self._videos if number not in self._problems]
        if done:
            said = _("{count} masks and overlays of videos in {out}")
            teller.say(said.format(count=len(done), out=self._out))
        return [self._written[number][0] for number in done]

    def _todo(self) -> list[int]:
        """The table is written last."""
        return [number for number in self._videos if not (self._resume and self._written[number][-1].exists())]

    def _predict(self, number: int, teller: Teller) -> None:
        video, (mask, overlay, table) = self._videos[number], self._written[number]
        labels, rows = self._masks.labels, list[NDArray[np.float64]]()
        teller.begin(_("predicting"), video.frames or 0)

        def write_both(overlay_place: Path, mask_place: Path) -> None:
            frames = read_frames(video)
            first = next(frames, None)
            if first is None:
                raise DataError(_("{path}: no frames in this video").format(path=video.path), path=video.path)
            size = first.shape[0], first.shape[1]
            with (
                written_video(overlay_place, size, video, exact=False) as shown,
                written_video(mask_place, size, video, exact=True) as masks,
            ):
                for frame, index in self._predict_frames(chain([first], frames)):
                    shown.add(overlay_mask(frame, index, labels.colors, background=background_class(labels.names)))
                    masks.add(index)
                    rows.append(np.bincount(index.reshape(-1), minlength=labels.classes) / index.size)
                    teller.count(len(rows))

        write_file(overlay, lambda shown: write_file(mask, lambda masks: write_both(shown, masks)))
        teller.end()
        _write_table(table, video, labels.names, rows)

    def _predict_frames(
        self, frames: Iterator[NDArray[np.uint8]]
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Frames with their masks, in order: all have one size, so batches get full in order."""
        waiting: dict[int, NDArray[np.uint8]] = {}

        def given() -> Iterator[NDArray[np.uint8]]:
            for number, frame in enumerate(frames):
                waiting[number] = frame
                fitted = fit_channels(frame, self._masks.channels)
                assert fitted is not None
                yield fitted

        for number, mask in self._masks.predict_masks(given()):
            yield waiting.pop(number), mask


def _write_table(path: Path, video: Video, names: Sequence[str], rows: Sequence[NDArray[np.float64]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "seconds", *names])
    for number, shares in enumerate(rows):
        writer.writerow([number, f"{float(number / video.rate):.3f}", *(f"{share:.6f}" for share in shares)])
    write_text(path, text.getvalue())
