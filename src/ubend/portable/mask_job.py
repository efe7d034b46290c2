"""Predict masks of images: which files each image gives, and how they are written."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .class_table import IGNORED, background_class
from .decode import read_header
from .describe import describe_masks
from .file_jobs import FileJob, ImageJob, Role, run_jobs
from .i18n import _, later
from .images import save_png, write_mask
from .mask_predictor import AnyMaskPredictor
from .overlay import overlay_mask, to_rgb
from .predictors import MaskResult
from .probabilities import BYTES_PER_VALUE, ProbKind, prob_path, write_probabilities, written_beside
from .raster import Header
from .record import Record
from .reporter import Reporter
from .row_windows import TiffRowReader, may_be_tiff, write_tiff_mask
from .shares import SHARES, ClassShares
from .tiling import TileSource

_LARGE_PIXELS = 64 * 2**20  # larger TIFFs are processed by rows
_MASK_BYTES_PER_PIXEL = 0.1  # compressed, estimated; masks of the sample take 0.02 to 0.05
_BYTES_PER_PIXEL = 1.6  # estimated PNG bytes of mask and overlay; measured on photographs: 1.5 (1.0 to 2.2)


class _Tiff(NamedTuple):
    """How the output of an image is written; all empty unless it is a TIFF.

    Attributes:
        georeference: see `TiffRowReader`.
        has_invalid: see `TiffRowReader`.
        by_rows: whether it is read, predicted and written by rows.
    """

    georeference: list[Any]
    has_invalid: bool
    by_rows: bool


class MaskImageJob(ImageJob):
    """Predicts masks of images.

    For NAME.jpg writes `NAME.png` (class indices with a palette, at the image's own size), `NAME_overlay.png`,
    with `prob` the probabilities `NAME_prob.tif` or `.npz`, and one `shares.csv` for all. Invalid pixels (nodata,
    alpha 0, NaN) are 255. A georeferenced image gets a georeferenced mask `NAME.tif`. A TIFF above 64 * 2**20 pixels
    also gets a `NAME.tif` if it is predicted in tiles: it is processed by rows, in bounded memory, and gets no overlay.

    Args:
        prob: see `write_probabilities`.
    """

    output_name, title = later("mask or overlay"), later("predicting")
    exist_message = later("masks that exist already and are kept: {count}")
    done_message = later("masks and overlays in {out}: {count}")
    summary_names = (SHARES,)

    def __init__(
        self,
        predictor: AnyMaskPredictor,
        paths: Sequence[Path | str],
        out: Path,
        *,
        prob: ProbKind | None,
        resume: bool,
    ) -> None:
        super().__init__(predictor, paths, out, resume=resume)
        self._prob_kind, self.probabilities = prob, prob is not None
        self._labels = predictor.labels
        self._tiffs: dict[int, _Tiff] = {}
        self._shares = ClassShares(self._labels.names, out)

    def inspect(self, index: int) -> Header:
        with self.storage.fetched(self.paths[index], head=True) as path:
            if not may_be_tiff(path):
                self._tiffs[index] = _Tiff([], False, False)
                return self._inspect_file(path)
            with TiffRowReader(path, self.predictor.channels) as rows_reader:
                header, georeference = rows_reader.header, rows_reader.georeference
                self.predictor.refuse_other_kind(path, header)
                by_rows = rows_reader.is_readable and header.pixels > _LARGE_PIXELS and self.predictor.by_rows
                self._tiffs[index] = _Tiff(georeference, rows_reader.has_invalid, by_rows)
            return header

    def outputs(self, index: int) -> dict[Role, Path]:
        """The mask, the probabilities with `prob`, and the overlay unless the image is predicted by rows."""
        tiff, name = self._tiffs[index], self.paths[index].stem
        mask = self.out / f"{name}{'.tif' if tiff.by_rows or tiff.georeference else '.png'}"
        prob: dict[Role, Path] = {} if self._prob_kind is None else {"prob": prob_path(mask, self._prob_kind)}
        overlay: dict[Role, Path] = {} if tiff.by_rows else {"overlay": self.out / f"{name}_overlay.png"}
        return {"mask": mask, **prob, **overlay}

    def is_done(self, index: int) -> bool:
        """Whether the files are complete and current, and the mask is as large as the image."""
        if not super().is_done(index):
            return False
        mask = self.outputs(index)["mask"]
        if mask.suffix != ".tif":
            return read_header(mask).size_hw == self.usable[index].size_hw
        with TiffRowReader(mask) as rows_reader:
            return rows_reader.size_hw == self.usable[index].size_hw

    def size(self, index: int) -> float:
        values = BYTES_PER_VALUE[self._prob_kind] * len(self._labels.names) if self._prob_kind is not None else 0.0
        mask = _MASK_BYTES_PER_PIXEL if self._tiffs[index].by_rows else _BYTES_PER_PIXEL
        return (mask + values) * self.usable[index].pixels

    def make(self, reporter: Reporter) -> None:
        by_rows = [index for index in self.todo if self._tiffs[index].by_rows]
        in_memory = sorted({*self.todo} - {*by_rows})
        for index in in_memory:
            if self.usable[index].pixels > _LARGE_PIXELS:
                message = _("note: {path} has {count:.0f} megapixels and is held in memory as a whole")
                reporter.report(message.format(path=self.paths[index], count=self.usable[index].pixels / 1e6))
        self.predict_in_memory(in_memory, reporter)
        for index in by_rows:
            with self.collect_problems(index):
                self.note_source(index)
                self._write_by_rows(index, reporter)
                self.note_done(index)
        reporter.end()
        self.extremes.tell(reporter)

    def write_one(self, index: int, result: MaskResult, image: NDArray[Any]) -> None:
        """Write the files of an image, the mask last."""
        labels, files, (mask, prob) = self._labels, self.outputs(index), result
        georeference, has_invalid, _by_rows = self._tiffs[index]
        self._shares.count(self.paths[index], mask)
        overlay = overlay_mask(to_rgb(image), mask, labels.colors, background=background_class(labels.names))
        save_png(Image.fromarray(overlay), files["overlay"])
        size_hw = self.usable[index].size_hw
        if prob is not None and self._prob_kind is not None:
            write_probabilities(files["prob"], size_hw, [prob], labels.names, self._prob_kind, georeference)
        if georeference:
            write_tiff_mask(files["mask"], size_hw, [mask], labels.colors, georeference, has_invalid=has_invalid)
        else:
            write_mask(files["mask"], mask, labels.colors)

    def _write_by_rows(self, index: int, reporter: Reporter) -> None:
        """Predict and write an image that is too large for memory, by rows."""
        path, tiff, labels, files = self.paths[index], self._tiffs[index], self._labels, self.outputs(index)
        with TiffRowReader(path, self.predictor.channels) as rows_reader:
            size_hw, georeference = rows_reader.size_hw, tiff.georeference
            reporter.begin(_("predicting {name}, rows").format(name=path.name), size_hw[0])
            results = self._predict_rows(index, rows_reader, reporter)

            def write(rows: Iterable[NDArray[np.uint8]]) -> None:
                write_tiff_mask(files["mask"], size_hw, rows, labels.colors, georeference, has_invalid=tiff.has_invalid)

            if self._prob_kind is None:
                write(result.mask for result in results)
                return
            with written_beside(write) as add_rows:  # the mask file is completed last

                def take_prob() -> Iterator[NDArray[np.float32]]:
                    for mask, prob in results:
                        assert prob is not None
                        add_rows(mask)
                        yield prob

                write_probabilities(files["prob"], size_hw, take_prob(), labels.names, self._prob_kind, georeference)

    def _predict_rows(self, index: int, rows_reader: TiffRowReader, reporter: Reporter) -> Iterator[MaskResult]:
        """Masks and probabilities of (h, W) rows, from top to bottom."""
        source = TileSource(self.extremes.watch(rows_reader), rows_reader.size_hw, rows_reader.size_hw)
        for rows, result in self.predictor.predict_rows(source, probabilities=self.probabilities):
            if (invalid := rows_reader.invalid(rows.start, rows.stop)) is not None:
                result.mask[invalid] = IGNORED
                if result.prob is not None:
                    result.prob[:, invalid] = 0
            self._shares.count(rows_reader.path, result.mask)
            yield result
            reporter.count(rows.stop)

    def finish(self, indices: Sequence[int], reporter: Reporter) -> None:
        """Write the table of the class shares."""
        masks = {self.paths[index]: self.outputs(index)["mask"] for index in indices}
        self._shares.write(masks, self.storage, reporter)


def run_mask_jobs(
    jobs: Sequence[FileJob[Any]], out: Path, *, window: str | None, prob: ProbKind | None, reporter: Reporter
) -> list[Path]:
    """Predict the masks of all jobs, which have one predictor, into one folder; for arguments and errors see
    `predict_paths` and `run_jobs`.

    `predict.json` in this folder records how they were made.
    """
    parameters = {**describe_masks(jobs[0].predictor), "window": window, "prob": prob}
    return run_jobs(jobs, reporter, Record(out / "predict.json", parameters, jobs[0].storage))
