"""Masks of scans: NIfTI files and DICOM series, predicted slice by slice."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.errors import DataError, SettingError
from ubend.files import Need, clear_leftovers, write_text
from ubend.inference.conditions import Masks
from ubend.jobs.many import Problems, refuse_collisions, refuse_there
from ubend.language import _
from ubend.teller import Teller
from ubend.volumes.scan import Scan, place_mask, read_scan
from ubend.volumes.window import parse_window

_TABLE = "volumes.csv"
_MASK_SHARE = 0.5  # of a scan's bytes, which are mostly 16 bit; a mask in DICOM is 8 bit and not compressed


class ScanJob:
    """Scans on their way to masks; what is wrong with one does not stop the others.

    Writes `NAME_mask.nii.gz`, or the DICOM series `NAME_mask/`, and `volumes.csv`. A mask has the scan's geometry:
    orientation, spacing, place. `volumes.csv` tells each class's voxels and millilitres.

    Args:
        masks: models of pictures of 1 or 3 channels.
        paths: NIfTI files, or folders with one DICOM series each.
        out: folder for the masks; nothing in it is overwritten.
        window: a preset's name or CENTER,WIDTH: the scan's values become 8 bit by it; None: they are used as they are.
        resume: scans that have their mask already are left as they are.
    Raises:
        SettingError: no such window, or one is needed, or there must be none.
    """

    def __init__(
        self, masks: Masks, paths: Sequence[Path], out: Path, *, window: str | None = None, resume: bool = False
    ) -> None:
        self._masks, self._paths, self._out, self._resume = masks, paths, out, resume
        self._window = None if window is None else parse_window(window)
        self._targets = [place_mask(path, out) for path in paths]
        self._problems = Problems()

    @property
    def problems(self) -> list[str]:
        """What is wrong with scans, so far."""
        return self._problems.told()

    def look(self) -> list[Need]:
        """See whether all fits, before anything is written; gives the room that is wanted. Scans are read later.

        Raises:
            SettingError: the window does not go with the model.
            DataError: the models take other pictures, or two scans have one name.
            OutputError: something of that name is there already.
        """
        self._refuse_unfit()
        refuse_collisions(self._paths, [[target] for target in self._targets], _("mask"))
        for number, path in enumerate(self._paths):
            with self._problems.keeping(number):
                if not path.exists():
                    raise DataError(_("{path}: no such file").format(path=path), path=path)
        there = [number for number in range(len(self._paths)) if number not in self._problems]
        if not there:
            return []
        if not self._resume:
            refuse_there([*self._targets, self._out / _TABLE])
        size = sum(_size(self._paths[number]) for number in there if not self._targets[number].exists())
        return [Need(self._out, int(_MASK_SHARE * size), _("choose another --out"))]

    def write(self, teller: Teller) -> list[Path]:
        """Predict and write all that can be read; gives the masks, those of before included."""
        rows: list[tuple[Any, ...]] = []
        written = []
        for number, (path, target) in enumerate(zip(self._paths, self._targets, strict=True)):
            if number in self._problems:
                continue
            with self._problems.keeping(number):
                scan = read_scan(path)
                mask = self._read_before(scan, target)
                if mask is None:
                    mask = self._predict(scan, teller)
                    clear_leftovers(target)
                    scan.write_mask(mask, target)
                found = self._measure(scan, mask)
                sizes = ", ".join(f"{name} {ml} ml" for _path, name, _voxels, ml in found)
                teller.say(f"{scan.name}: {sizes}")
                rows += found
                written.append(target)
        if written:
            _write_table(self._out / _TABLE, rows)
            teller.say(_("{count} masks of scans in {out}").format(count=len(written), out=self._out))
        return written

    def _refuse_unfit(self) -> None:
        bundle = self._masks.bundle
        if not self._masks.takes_color:
            raise DataError(
                _("the model was trained on pictures of {channels} channels; a scan has one").format(
                    channels=self._masks.channels
                ),
                key="data.channels",
            )
        if bundle.dtype == "uint8" and self._window is None:
            raise SettingError(
                _("the model was trained on 8 bit pictures; say by --window (lung, or 40,400) what becomes 0 to 255"),
                key="--window",
            )
        if bundle.dtype != "uint8" and self._window is not None:
            raise SettingError(
                _("the model was trained on {dtype} values, which --window would make 8 bit; leave it out").format(
                    dtype=bundle.dtype
                ),
                key="--window",
            )

    def _read_before(self, scan: Scan, target: Path) -> NDArray[np.uint8] | None:
        """The mask that is there already, if it is whole."""
        if not target.exists():
            return None
        try:
            before = read_scan(target).slices
        except DataError:
            return None  # some slices of a series
        whole = before.shape == scan.slices.shape
        return before.astype(np.uint8) if whole else None

    def _predict(self, scan: Scan, teller: Teller) -> NDArray[np.uint8]:
        teller.begin(_("predicting"), len(scan.slices))
        mask = np.empty(scan.slices.shape, dtype=np.uint8)
        for done, (number, index) in enumerate(self._masks.predict_masks(self._pictures(scan)), start=1):
            mask[number] = index
            teller.count(done)
        teller.end()
        return mask

    def _pictures(self, scan: Scan) -> Iterator[NDArray[Any]]:
        """Each slice as the models take it: (H, W, channels) uint8, or float32 in their units."""
        for values in scan.slices:
            image = values.astype(np.float32) if self._window is None else self._window.apply(values)
            yield np.repeat(image[:, :, None], self._masks.channels, axis=2)

    def _measure(self, scan: Scan, mask: NDArray[np.uint8]) -> list[tuple[Any, ...]]:
        """Rows of `volumes.csv`."""
        names = self._masks.labels.names
        voxel_ml = float(np.prod(scan.spacing_mm)) / 1000
        counts = np.bincount(mask.reshape(-1), minlength=len(names))
        return [
            (scan.path, name, int(count), f"{count * voxel_ml:.3f}") for name, count in zip(names, counts, strict=True)
        ]


def _size(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _write_table(path: Path, rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scan", "class", "voxels", "ml"])
    writer.writerows(rows)
    write_text(path, text.getvalue())
