"""Masks of scans: NIfTI files and DICOM series, predicted slice by slice."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.errors import DataError, OutputError, SettingError
from ubend.files import write_text
from ubend.inference.predictor import Predictor, load
from ubend.language import _
from ubend.teller import Teller
from ubend.volumes.scan import Scan, read_scan
from ubend.volumes.window import Window, parse_window

_TABLE = "volumes.csv"


def predict_scans(
    model: Path | str,
    paths: Sequence[Path],
    out: Path | str,
    *,
    window: str | None = None,
    device: str | None = None,
    teller: Teller,
) -> list[Path]:
    """Predict scans; writes `NAME_mask.nii.gz`, or the DICOM series `NAME_mask/`, and `volumes.csv`.

    A mask has the scan's geometry: orientation, spacing, place. `volumes.csv` tells each class's voxels and
    millilitres.

    Args:
        model: a run folder or a model file, of pictures of 1 or 3 channels.
        paths: NIfTI files, or folders with one DICOM series each.
        out: folder for the masks; nothing in it is overwritten.
        window: a preset's name or CENTER,WIDTH: the scan's values become 8 bit by it; None: they are used as they are.
    Returns:
        The masks.
    Raises:
        SettingError: no such window, or one is needed.
        DataError: a scan cannot be read.
        OutputError: a mask is there already, or cannot be written.
    """
    predictor, out = load(model, device), Path(out)
    chosen = None if window is None else parse_window(window)
    _refuse_unfit(predictor, chosen)
    targets: list[Path] = []
    rows: list[tuple[Any, ...]] = []
    for path in paths:
        scan = read_scan(path)
        target = scan.target(out)
        if target.exists() or target in targets or (not targets and (out / _TABLE).exists()):
            there = target if target.exists() or target in targets else out / _TABLE
            raise OutputError(_("{path} exists already; choose another --out").format(path=there))
        teller.begin(_("predicting"), len(scan.slices))
        mask = np.empty(scan.slices.shape, dtype=np.uint8)
        for done, (number, prediction) in enumerate(predictor.predict(_pictures(scan, predictor, chosen)), start=1):
            mask[number] = prediction.mask
            teller.count(done)
        teller.end()
        scan.write_mask(mask, target)
        targets.append(target)
        found = _measure(scan, mask, predictor)
        sizes = ", ".join(f"{name} {ml} ml" for _path, name, _voxels, ml in found)
        teller.say(f"{scan.name}: {sizes}")
        rows += found
    _write_table(out / _TABLE, rows)
    return targets


def _refuse_unfit(predictor: Predictor, window: Window | None) -> None:
    channels, dtype = predictor.bundle.sizing.channels, predictor.bundle.dtype
    if channels not in (1, 3):
        raise DataError(
            _("the model was trained on pictures of {channels} channels; a scan has one").format(channels=channels)
        )
    if dtype == "uint8" and window is None:
        raise SettingError(
            _("the model was trained on 8 bit pictures; say by --window (lung, or 40,400) what becomes 0 to 255")
        )
    if dtype != "uint8" and window is not None:
        raise SettingError(
            _("the model was trained on {dtype} values, which --window would make 8 bit; leave it out").format(
                dtype=dtype
            )
        )


def _pictures(scan: Scan, predictor: Predictor, window: Window | None) -> Iterator[NDArray[Any]]:
    """Each slice as the predictor takes it: (H, W, channels) of the model's dtype or float32."""
    for values in scan.slices:
        image = values.astype(np.float32) if window is None else window.apply(values)
        yield np.repeat(image[:, :, None], predictor.bundle.sizing.channels, axis=2)


def _measure(scan: Scan, mask: NDArray[np.uint8], predictor: Predictor) -> list[tuple[Any, ...]]:
    """Rows of `volumes.csv`."""
    labels = predictor.labels
    voxel_ml = float(np.prod(scan.spacing_mm)) / 1000
    counts = np.bincount(mask.reshape(-1), minlength=labels.classes)
    return [
        (scan.path, name, int(count), f"{count * voxel_ml:.3f}")
        for name, count in zip(labels.names, counts, strict=True)
    ]


def _write_table(path: Path, rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scan", "class", "voxels", "ml"])
    writer.writerows(rows)
    write_text(path, text.getvalue())
