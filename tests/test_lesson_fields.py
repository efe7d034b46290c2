"""The lessons of three fields: what they draw is what they say, and they take the public sets that they name."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from support.refusal import check, raises, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError
from ubend.dataset.dataset import open_dataset
from ubend.io.images import read_image
from ubend.io.scans import read_scan
from ubend.portable.pixel_size import read_spatial_info
from ubend.tasks.user_settings import read_user_settings
from ubend_lessons import driving, medicine, satellite
from ubend_lessons.variants import SilentReporter

TINY = {"model.width": 2, "train.epochs": 1, "train.batch": 4, "data.size": 32}
TINY_WORDS = ["--device", "cpu", *(word for key, value in TINY.items() for word in ("--set", f"{key}={value}"))]


def teach(*words: object) -> str:
    """What the lesson says."""
    run = CliRunner().invoke(main, ["lesson", *(str(word) for word in words), *TINY_WORDS])
    assert run.exit_code == 0, run.output
    return run.output


def test_drawn_slices() -> None:
    """16-bit Hounsfield units; the lesions lie in the organ and are darker, by less than a window shows of all."""
    values, mask = medicine.draw_volume(0, 0, 6, 64)
    assert (values.dtype, values.shape, mask.shape) == (np.int16, (6, 64, 64), (6, 64, 64))
    assert values.min() < -950
    assert values.max() > 300
    assert set(np.unique(mask)) == {0, 1, 2}
    assert 15 < values[mask == 1].mean() - values[mask == 2].mean() < 80
    np.testing.assert_array_equal(medicine.draw_volume(0, 0, 6, 64)[0], values)
    assert (medicine.draw_volume(0, 1, 6, 64)[1] != mask).any()


def test_medicine(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    said = teach("medicine", "--out", tmp_path / "out")
    assert "ml found" in said
    assert "lesson medicine --data Task09_Spleen" in said
    scan, mask = (read_scan(tmp_path / "out" / name) for name in ("scan.nii.gz", "scan_masks/scan_mask.nii.gz"))
    assert scan.spacing_mm == pytest.approx(medicine.SPACING_MM)
    np.testing.assert_array_equal(scan.slices, medicine.draw_volume(0, 1000, 16, 96)[0])
    assert mask.slices.shape == scan.slices.shape
    for name in ("window", "predictions"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.width > 300
    with (tmp_path / "out" / "run" / "data.csv").open(encoding="utf-8") as file:
        parts: dict[str, set[str]] = {}
        for row in csv.DictReader(file):
            parts.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in parts.values())  # a patient is in one part


def test_scans_of_the_decathlon(tmp_path: Path) -> None:
    """imagesTr/, labelsTr/, dataset.json: slices in which something is marked, as the scan has them."""
    pytest.importorskip("nibabel")
    truths = {}
    for number in range(3):
        values, mask = medicine.draw_volume(1, number, 5, 32)
        mask[0] = 0
        truths[f"spleen_{number}"] = mask
        medicine.write_nifti(tmp_path / "task" / "imagesTr" / f"spleen_{number}.nii.gz", values)
        medicine.write_nifti(tmp_path / "task" / "labelsTr" / f"spleen_{number}.nii.gz", mask.astype(np.int16))
    told = {"labels": {"0": "background", "1": "spleen", "2": "cyst"}}
    (tmp_path / "task" / "dataset.json").write_text(json.dumps(told))
    medicine.cut_scans(tmp_path / "task", tmp_path / "slices")
    assert (tmp_path / "slices" / "classes.txt").read_text() == "background\nspleen\ncyst\n"
    for name, mask in truths.items():
        marked = mask[mask.any(axis=(1, 2))]
        cut = [tifffile.imread(path) for path in sorted((tmp_path / "slices" / "masks").glob(f"{name}_*"))]
        np.testing.assert_array_equal(cut, marked)
    rows = [line.split(",") for line in (tmp_path / "slices" / "split.csv").read_text().split()[1:]]
    assert {part for _file, part, _group in rows} == {"train", "val", "test"}
    (tmp_path / "none" / "imagesTr").mkdir(parents=True)
    with raises(DataError, path=tmp_path / "none"):
        medicine.cut_scans(tmp_path / "none", tmp_path / "other")


def test_drawn_fields(tmp_path: Path) -> None:
    """Six bands of 16 bit that lie side by side on the map; plants are green by the index."""
    satellite.draw_fields(tmp_path, 9, 48)
    first, second, below = (read_image(tmp_path / "images" / f"field_0{n}.tif") for n in (0, 1, 8))
    assert first.shape == second.shape == below.shape == (48, 48, 6)
    assert first.dtype == np.uint16
    size = read_spatial_info(tmp_path / "images" / "field_00.tif").pixel
    assert size is not None
    assert (size.height, size.width, size.unit) == (10, 10, "m")
    places = []
    for number in (0, 1, 8):
        with tifffile.TiffFile(tmp_path / "images" / f"field_{number:02d}.tif") as file:
            places.append(file.pages[0].tags[33922].value[3:5])
    assert np.subtract(places[1], places[0]).tolist() == [480, 0]
    assert np.subtract(places[2], places[0]).tolist() == [0, -480]
    values, mask = satellite.draw_field(0, 0, 48)
    index = satellite.vegetation_index(values.transpose(1, 2, 0))
    assert index[np.isin(mask, [1, 2])].mean() > index[np.isin(mask, [0, 3, 4])].mean() + 0.3
    assert -1 <= index.min() <= index.max() <= 1


def test_satellite(tmp_path: Path) -> None:
    said = teach("satellite", "--out", tmp_path / "out")
    count = len(list((tmp_path / "out" / "placed").glob("field_??.tif")))
    assert count > 3
    assert f"{count} of them with the georeference" in said
    assert "by the vegetation index" in said


def test_drawn_streets() -> None:
    """Every class is seen in some of the scenes, some of them seldom."""
    counts = np.zeros(len(driving.CLASSES), int)
    for number in range(12):
        image, mask = driving.draw_street(0, number, 64)
        assert image.shape == (64, 96, 3)
        counts += np.bincount(mask.ravel(), minlength=len(counts))
    shares = dict(zip(driving.CLASSES, counts / counts.sum(), strict=True))
    assert all(share > 0.002 for share in shares.values())
    assert shares["person"] < 0.04 < 0.2 < shares["road"]


def test_driving(tmp_path: Path) -> None:
    """Drawn as CamVid is laid out, so what is read is what that would be."""
    said = teach("driving", "--out", tmp_path / "out", "--lang", "vi")
    assert "ubend fit CamVid" in said
    lines = said.splitlines()
    shares = [float(line.split()[1].rstrip("%")) for line in lines if "%" in line and len(line.split()) == 4]
    assert len(shares) == 8
    assert shares == sorted(shares, reverse=True)
    data = open_dataset(
        read_user_settings(tmp_path / "out" / "streets", settings=TINY).settings, "cpu", tmp_path, SilentReporter()
    )
    assert data.labels.names == tuple(driving.CLASSES)
    assert set(data.splits) == {"train", "val", "test"}
    _image, mask = driving.draw_street(0, 0, 96)
    with Image.open(tmp_path / "out" / "streets" / "train_labels" / "street_00_L.png") as file:
        np.testing.assert_array_equal(np.asarray(file), np.array(list(driving.CLASSES.values()), np.uint8)[mask])


def test_land_cover(tmp_path: Path) -> None:
    """GeoTIFFs in images/ and masks/, values 0 to 4, classes told: as `--patches` of the lesson's line reads them."""
    rng = np.random.default_rng(0)
    for number in range(5):
        for kind, shape in (("images", (70, 80, 3)), ("masks", (70, 80))):
            (tmp_path / kind).mkdir(exist_ok=True)
            top = 5 if kind == "masks" else 256
            tifffile.imwrite(tmp_path / kind / f"M-{number}.tif", rng.integers(0, top, shape).astype(np.uint8))
    flags = {"patches": True, "classes": "background,building,woodland,water,road"}
    data = open_dataset(read_user_settings(tmp_path, flags=flags).settings, "cpu", tmp_path / "cache", SilentReporter())
    assert data.labels.names == ("background", "building", "woodland", "water", "road")
    assert data.store.native_hw[0].tolist() == [70, 80]


@pytest.mark.parametrize("name", ["medicine", "satellite", "driving"])
def test_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check(refused_once("lesson", name, "--out", tmp_path), OutputError, path=tmp_path)
