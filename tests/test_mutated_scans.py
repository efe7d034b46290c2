"""Scans spoilt at random are read, or refused in one line; the libraries say nothing of their own."""

import gzip
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import generate_uid

from support.mutations import DAMAGES
from support.scans import write_nifti, write_slice
from support.tally import Tally
from ubend.core.errors import DataError
from ubend.io.scans import read_scan

KINDS = ("truncate", "flip", "swap", "huge", "encode", "empty", "say", "nest")


def refusal(scan: Path, whole: np.ndarray[Any, Any], certain: list[int]) -> str:
    """Why a scan cannot be read; "" if it can, and then it has the `certain` slices of the whole."""
    try:
        found = read_scan(scan)
    except DataError as error:
        return str(error)
    assert not scan.is_dir() or len(found.slices) == 3, "a damaged slice is not left out"
    for number in certain:
        assert any(np.array_equal(whole[number], values) for values in found.slices), number
    return ""


@pytest.mark.understood(at_least=0.1)  # measured: 15%
def test_spoilt_scans(tmp_path: Path, tally: Tally, capfd: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole"
    (whole / "series").mkdir(parents=True)
    write_nifti(whole / "a.nii", "RAS")
    write_nifti(whole / "b.nii.gz", "LPS")
    series = generate_uid()
    for number in range(3):
        values = np.arange(12, dtype=np.uint16).reshape(4, 3) + number
        write_slice(whole / "series" / f"{number}.dcm", values, 2.0 * number, series)
    slices = {path.name: read_scan(path).slices for path in whole.iterdir()}
    assert [values.min() for values in slices["series"]] == [0, 1, 2]
    for seed in range(300):
        random = np.random.default_rng(seed)
        source = whole / ("a.nii", "b.nii.gz", "series")[seed % 3]
        scan = tmp_path / "scan" / source.name
        shutil.rmtree(scan.parent, ignore_errors=True)
        scan.parent.mkdir()
        shutil.copytree(source, scan) if source.is_dir() else shutil.copy(source, scan)
        number, certain = int(random.integers(3)), list[int]()
        file = scan / f"{number}.dcm" if source.is_dir() else scan
        damage = DAMAGES[str(random.choice(KINDS))]
        if source.suffix == ".gz" and random.random() < 0.6:  # what was packed
            file.write_bytes(gzip.decompress(file.read_bytes()))
            damage(file, random, [file])
            file.write_bytes(gzip.compress(file.read_bytes()))
        else:
            damage(file, random, [file])
            if source.suffix == ".gz":  # its check sum tells
                certain = list(range(len(slices[source.name])))
        if source.is_dir():
            certain = [other for other in range(3) if other != number]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            said = refusal(scan, slices[source.name], certain)
        assert len(said) < 1000 + len(str(scan)), seed
        assert "\n" not in said, seed
        tally.add(not said)
    assert capfd.readouterr() == ("", "")
