"""Pipes and devices instead of files are refused at once; opening one would wait for ever."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ubend
from support.discs import make_discs
from support.models import save_model
from support.refusal import invoke, raises
from ubend.core.errors import DataError, ModelFileError, SettingError, UbendError
from ubend.core.settings import read_config
from ubend.io.scans import is_scan, read_scan
from ubend.io.video import open_video
from ubend.labels.mask_files import FileMask, read_label_values
from ubend.models.model_file import load_bundle
from ubend.portable.decode import read_header, read_raster
from ubend.portable.pixel_size import SpatialInfo, read_spatial_info
from ubend.portable.row_windows import TiffRowReader

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


@pytest.fixture(autouse=True)
def _end_of_waiting() -> Iterator[None]:
    """A test that waits for a pipe fails."""

    def stop(*_words: object) -> None:
        raise TimeoutError("waits for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


READERS: dict[str, tuple[Callable[[Path], object], type[UbendError]]] = {
    "image": (read_raster, DataError),
    "header": (read_header, DataError),
    "rows": (TiffRowReader, DataError),
    "from Python": (ubend.read_image, DataError),
    "mask.npy": (lambda path: read_label_values(FileMask(path), (8, 8)), DataError),
    "scan.nii.gz": (read_scan, DataError),
    "scan.dcm": (read_scan, DataError),
    "film.mp4": (open_video, DataError),
    "model.safetensors": (load_bundle, ModelFileError),
    "settings.toml": (read_config, SettingError),
}


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("name", READERS)
def test_readers(name: str, device: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    if device:
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    if name == "film.mp4" and not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg")
    read, kind = READERS[name]
    with raises(kind, path=path, named=["a pipe or a device"]):
        read(path)
    assert is_scan(path) == name.endswith(".nii.gz")
    assert read_spatial_info(path) == SpatialInfo()


@pytest.mark.parametrize("place", ["images/disc03.png", "masks/disc03.png", "split.csv", "coco.json", "classes.csv"])
def test_in_a_folder(place: str, tmp_path: Path) -> None:
    """One line with the file; what does not need it continues."""
    make_discs(tmp_path / "data", 6)
    path = tmp_path / "data" / place
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    words = ["--split", path] if place == "split.csv" else []
    result, error = invoke("data", tmp_path / "data", *words, "--out", tmp_path / "out")
    assert (error is None) == (place in ("coco.json", "classes.csv")), result.output
    if error is not None:
        assert path.name in str(error)
        assert "\n" not in str(error)


def test_predict(tmp_path: Path) -> None:
    """A pipe among images is reported at the end."""
    make_discs(tmp_path / "data", 2)
    images = sorted((tmp_path / "data" / "images").iterdir())
    os.mkfifo(tmp_path / "data" / "images" / "pipe.png")
    save_model(tmp_path / "model.safetensors", 3, "uint8")
    words = ["predict", tmp_path / "model.safetensors", tmp_path / "data" / "images", "--out", tmp_path / "out"]
    _result, error = invoke(*words, "--device", "cpu")
    assert error is not None
    assert "pipe.png" in str(error)
    assert all((tmp_path / "out" / image.name).exists() for image in images)
