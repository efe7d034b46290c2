"""Predict masks of scans (NIfTI files and DICOM series), slice by slice."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, SettingError
from ubend.core.files import DiskRequirement, write_csv
from ubend.core.i18n import _, later
from ubend.inference.mask_predictor import MaskPredictor
from ubend.io.scans import Scan, mask_path, parse_intensity_window, read_scan, require_reader
from ubend.portable.file_jobs import FileJob, Role
from ubend.portable.reporter import Reporter

_TABLE = "volumes.csv"
_MASK_SHARE = 0.5  # bytes of a mask in DICOM, 8 bit and not compressed, per byte of the scan, which mostly has 16 bit


class ScanJob(FileJob[None]):
    """Predicts masks of scans (NIfTI files, or folders of one DICOM series), with models of 1 or 3 channels.

    Writes `NAME_mask.nii.gz`, or the DICOM series `NAME_mask/`, and `volumes.csv`. A mask has the scan's geometry:
    orientation, spacing, position. `volumes.csv` has each class's voxels and millilitres (empty if the scan states no
    voxel size).

    Args:
        window: a preset's name or CENTER,WIDTH: it maps the scan's values to 8 bit; None: values are used unchanged.
    Raises:
        SettingError: an unknown window; from `look`: a window is required, or not allowed.
    """

    output_name = later("mask")
    done_message = later("masks of scans in {out}: {count}")
    summary_names = (_TABLE,)

    def __init__(
        self,
        predictor: MaskPredictor,
        paths: Sequence[Path],
        out: Path,
        *,
        window: str | None = None,
        resume: bool = False,
    ) -> None:
        super().__init__(predictor, paths, out, resume=resume)
        self._window = None if window is None else parse_intensity_window(window)
        self._rows: dict[int, list[tuple[Any, ...]]] = {}

    def inspect_all(self) -> list[DiskRequirement]:
        self._refuse_unfit()
        return super().inspect_all()

    def inspect(self, index: int) -> None:
        """Check that the scan can be read; it is read later."""
        if not os.path.exists(self.paths[index]):
            raise DataError(_("{path}: no such file").format(path=self.paths[index]), path=self.paths[index])
        require_reader(self.paths[index])

    def outputs(self, index: int) -> dict[Role, Path]:
        return {"mask": mask_path(self.paths[index], self.out)}

    def size(self, index: int) -> float:
        path = self.paths[index]
        files = path.iterdir() if path.is_dir() else [path]
        return _MASK_SHARE * sum(file.stat().st_size for file in files if file.is_file())

    def make(self, reporter: Reporter) -> None:
        """Predict the scans that have no complete mask yet; measure and report all of them."""
        for index in self.usable:
            with self.collect_problems(index):
                is_new = index in self.todo
                if is_new:
                    self.note_source(index)
                scan, target = read_scan(self.paths[index]), self.outputs(index)["mask"]
                for note in scan.notes:
                    reporter.report(note)
                mask = None if is_new else self._read_before(scan, target)
                if mask is None:
                    if not is_new:
                        self.note_source(index)
                    mask = self._predict(scan, reporter)
                    scan.write_mask(mask, target)
                    self.note_done(index)
                self._rows[index] = self._measure(scan, mask)
                sizes = ", ".join(
                    f"{name} {ml} ml" if ml else _("{name} {count} voxels").format(name=name, count=voxels)
                    for _path, name, voxels, ml in self._rows[index]
                )
                reporter.report(f"{scan.name}: {sizes}")

    def finish(self, indices: Sequence[int], _reporter: Reporter) -> None:
        rows = [row for index in indices for row in self._rows[index]]
        write_csv(self.out / _TABLE, [("scan", "class", "voxels", "ml"), *rows])

    def _refuse_unfit(self) -> None:
        bundle = self.predictor.bundle
        if not self.predictor.takes_grey_and_color:
            raise DataError(
                _(
                    "the model was trained on images with {channels} channels, but a scan has one; "
                    "use a model of 1 or 3 channels"
                ).format(channels=self.predictor.channels),
                key="data.channels",
            )
        if bundle.dtype == "uint8" and self._window is None:
            raise SettingError(
                _(
                    "the model was trained on 8 bit images; give the intensity window that is mapped "
                    "to 0..255 with --window (lung, or 40,400)"
                ),
                key="--window",
            )
        if bundle.dtype != "uint8" and self._window is not None:
            raise SettingError(
                _(
                    "the model was trained on {dtype} values, but --window converts them to 8 bit; leave --window out"
                ).format(dtype=bundle.dtype),
                key="--window",
            )

    def _read_before(self, scan: Scan, target: Path) -> NDArray[np.uint8] | None:
        """Read the existing mask; None: slices of its series are missing.

        Raises:
            DataError: the file is not a mask of this scan.
        """
        try:
            before = read_scan(target).slices
        except DataError:
            if not target.is_dir():
                raise
            return None
        if before.shape == scan.slices.shape:
            return before.astype(np.uint8)
        if not target.is_dir():
            line = _("{path} is not a mask of {scan}: its shape differs; move it away, or choose another --out")
            raise DataError(line.format(path=target, scan=scan.path), path=target, key="shape")
        return None

    def _predict(self, scan: Scan, reporter: Reporter) -> NDArray[np.uint8]:
        reporter.begin(_("predicting"), len(scan.slices))
        mask = np.empty(scan.slices.shape, dtype=np.uint8)
        for done, (index, result) in enumerate(self.predictor.predict(enumerate(self._images(scan))), start=1):
            mask[index] = result.mask
            reporter.count(done)
        reporter.end()
        return mask

    def _images(self, scan: Scan) -> Iterator[NDArray[Any]]:
        """Each slice as input of the models: (H, W, channels) uint8, or float32 in the scan's units."""
        for values in scan.slices:
            image = values.astype(np.float32) if self._window is None else self._window.apply(values)
            yield np.repeat(image[:, :, None], self.predictor.channels, axis=2)

    def _measure(self, scan: Scan, mask: NDArray[np.uint8]) -> list[tuple[Any, ...]]:
        """Rows of `volumes.csv`."""
        names = self.predictor.labels.names
        voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
        counts = np.bincount(mask.reshape(-1), minlength=len(names))
        return [
            (scan.path, name, int(count), _format_ml(count * voxel_ml) if scan.has_spacing else "")
            for name, count in zip(names, counts, strict=True)
        ]


def _format_ml(ml: float) -> str:
    """A volume with three decimals, or with three significant digits if the decimals would all be 0."""
    return f"{ml:.3g}" if 0 < ml < 0.001 else f"{ml:.3f}"
