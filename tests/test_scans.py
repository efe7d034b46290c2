"""Scans: slices are seen the same way whatever their axes stand for, and masks lie where the scan lies."""

import gzip
from collections import namedtuple
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import generate_uid

import ubend
from support.models import brighter_than_half, save_model
from support.refusal import check, raises, refused_once
from support.scans import SEEN, write_nifti, write_slice
from ubend.accel.folded import FoldedUNet
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError, SettingError
from ubend.io.scans import PRESETS, IntensityWindow, is_scan, parse_intensity_window, read_scan
from ubend.portable import files

CODES = ["".join(code) for pairs in permutations(["LR", "PA", "SI"]) for code in product(*pairs)]


def write_series(folder: Path, **changes: Any) -> Path:
    """SEEN as files whose names say nothing of their order."""
    folder.mkdir()
    series = generate_uid()
    for number, name in enumerate(["c", "a", "e.dcm", "b", "d"]):
        write_slice(folder / name, SEEN[number], 2.0 * number, series, **changes)
    (folder / "notes.txt").write_text("not a slice")
    return folder


@pytest.mark.parametrize("codes", CODES)
def test_any_axes_are_seen_the_same(codes: str, tmp_path: Path) -> None:
    """All 48 orders and directions: the same slices; the mask has the scan's affine, voxel for voxel."""
    image = write_nifti(tmp_path / "scan.nii", codes)
    assert "".join(aff2axcodes(image.affine)) == codes
    scan = read_scan(tmp_path / "scan.nii")
    np.testing.assert_array_equal(scan.slices, SEEN)
    assert scan.spacing_mm == (2.0, 0.5, 0.25)
    data = ubend.read_scan(tmp_path / "scan.nii")
    np.testing.assert_array_equal(data.slices, SEEN)
    assert (data.spacing, data.affine.dtype) == ((2.0, 0.5, 0.25), np.float64)
    for place in np.ndindex(image.shape):  # nibabel's voxels lie where ours of the same value do
        same = np.argwhere(data.slices == image.dataobj[place])
        there = same @ data.affine[:3, :3].T + data.affine[:3, 3]
        assert np.abs(there - nibabel.affines.apply_affine(image.affine, place)).max(axis=1).min() < 1e-4
    scan.write_mask((SEEN > 0).astype(np.uint8), tmp_path / "mask.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask.dataobj, np.asarray(image.dataobj) > 0)
    assert mask.get_data_dtype() == np.uint8
    for found, wanted in ((mask.get_sform, image.get_sform), (mask.get_qform, image.get_qform)):
        assert found(coded=True)[1] == wanted(coded=True)[1]
        np.testing.assert_allclose(found(), wanted(), atol=1e-5)
    assert mask.header.get_xyzt_units() == image.header.get_xyzt_units()


def test_series(tmp_path: Path) -> None:
    """Sorted by place, in Hounsfield units; the mask is a series with the same geometry, of the same patient."""
    folder = write_series(tmp_path / "ct")
    assert is_scan(folder)
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.slices, SEEN)
    assert (scan.name, scan.spacing_mm) == ("ct", (2.0, 0.5, 0.25))
    scan.write_mask((SEEN > 0).astype(np.uint8), scan.target(tmp_path))
    files = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct_mask").iterdir())]
    assert len({file.SeriesInstanceUID for file in files}) == 1
    assert files[0].SeriesInstanceUID != pydicom.dcmread(folder / "a").SeriesInstanceUID
    for number, file in enumerate(files):
        np.testing.assert_array_equal(file.pixel_array, SEEN[number] > 0)
        assert file.ImagePositionPatient == [7, -8, 2 * number]
        assert (file.PixelSpacing, file.ImageOrientationPatient) == ([0.5, 0.25], [1, 0, 0, 0, 1, 0])
        assert (file.PatientID, file.StudyInstanceUID, file.FrameOfReferenceUID) == ("p1", "1.2.3", "1.2.4")
    np.testing.assert_array_equal(read_scan(tmp_path / "ct_mask").slices, SEEN > 0)


@pytest.mark.parametrize("count", [1, 5])
def test_affine_of_a_series(count: int, tmp_path: Path) -> None:
    """Oblique slices: the equation of DICOM PS3.3 C.7.6.2.1.1, with x and y turned round."""
    along_row, along_column = np.array([0.6, 0.8, 0]), np.array([0, 0, -1.0])
    normal = np.cross(along_row, along_column)
    (tmp_path / "ct").mkdir()
    for number in range(count):
        corner = np.array([7, -8, 9]) + 2.0 * number * normal
        write_slice(
            tmp_path / "ct" / str(number),
            SEEN[number],
            0,
            "1.2.9",
            ImageOrientationPatient=[*along_row, *along_column],
            ImagePositionPatient=list(map(float, corner.round(6))),
        )
    data = ubend.read_scan(tmp_path / "ct")
    for s, r, c in np.ndindex(count, *SEEN.shape[1:]):  # as stored
        wanted = np.array([7, -8, 9]) + along_row * 0.25 * c + along_column * 0.5 * r + 2.0 * s * normal
        same = np.argwhere(data.slices == SEEN[s, r, c])
        there = same @ data.affine[:3, :3].T + data.affine[:3, 3]
        assert np.abs(there - wanted * [-1, -1, 1]).max(axis=1).min() < 1e-5
    assert data.spacing == pytest.approx(tuple(np.linalg.norm(data.affine[:3, :3], axis=0)))


def test_series_and_nifti_are_seen_alike(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", "RAS")
    found = [ubend.read_scan(path).slices for path in (tmp_path / "scan.nii.gz", write_series(tmp_path / "ct"))]
    np.testing.assert_array_equal(*found)


def write_body(folder: Path, codes: str, start: NDArray[Any], turned: NDArray[Any]) -> None:
    """SEEN as a NIfTI file and as a DICOM series of the same geometry, whose axes (slice, row, column) stand for
    `codes`, turned a little."""
    there = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(tuple(codes)))
    values = np.ascontiguousarray(nibabel.orientations.apply_orientation(SEEN.transpose(2, 1, 0), there))
    standing = np.diag([-0.25, -0.5, 2.0, 1.0])
    affine = standing @ inv_ornt_aff(there, SEEN.transpose(2, 1, 0).shape)
    affine[:3] = turned @ affine[:3]
    affine[:3, 3] = start
    nibabel.save(nibabel.Nifti1Image(values, affine), folder / "scan.nii")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    for number, slice_values in enumerate(values):
        write_slice(
            folder / "ct" / str(number),
            slice_values,
            0,
            "1.2.9",
            PixelSpacing=[float(f"{side:.8g}") for side in spacing[1:]],
            ImageOrientationPatient=[float(f"{v:.8g}") for axis in (2, 1) for v in lps[:3, axis] / spacing[axis]],
            ImagePositionPatient=[float(f"{v:.8g}") for v in lps[:3, 3] + number * lps[:3, 0]],
        )


@settings(max_examples=30)
@given(st.sampled_from(CODES), st.integers(0, 2**32 - 1))
def test_nifti_and_dicom_of_one_body(tmp_path_factory: pytest.TempPathFactory, codes: str, seed: int) -> None:
    """In whatever orientation each is stored, and also if it is oblique: the same slices, spacing and places; a mask
    is written back to where the scan lies."""
    draw = np.random.default_rng(seed)
    turned = np.linalg.qr(np.eye(3) + draw.uniform(-0.15, 0.15, (3, 3)))[0]
    turned *= np.sign(np.diag(turned))
    folder = tmp_path_factory.mktemp("body")
    (folder / "ct").mkdir()
    write_body(folder, codes, draw.uniform(-200, 200, 3).round(2), turned)
    one, other = read_scan(folder / "scan.nii"), read_scan(folder / "ct")
    np.testing.assert_array_equal(one.slices, SEEN)
    np.testing.assert_array_equal(other.slices, SEEN)
    np.testing.assert_allclose(one.spacing_mm, (2.0, 0.5, 0.25), rtol=1e-5)
    np.testing.assert_allclose(other.spacing_mm, (2.0, 0.5, 0.25), rtol=1e-4)  # places have 8 digits
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-3)
    mask = (draw.random(SEEN.shape) < 0.5).astype(np.uint8)
    for scan, name in ((one, "mask.nii.gz"), (other, "mask")):
        scan.write_mask(mask, folder / name)
        back = read_scan(folder / name)
        np.testing.assert_array_equal(back.slices, mask)
        np.testing.assert_allclose(back.affine, scan.affine, atol=1e-3)


@settings(max_examples=20)
@given(st.tuples(*[st.floats(1e-3, 50)] * 3), st.sampled_from(CODES))
def test_units(tmp_path_factory: pytest.TempPathFactory, spacing: tuple[float, ...], codes: str) -> None:
    """The same spacing, hence the same millilitres, whatever unit the header states."""
    folder = tmp_path_factory.getbasetemp()
    for unit, mm in (("mm", 1.0), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1.0)):
        affine = np.diag([*(side / mm for side in spacing), 1.0])
        there = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(codes)))
        values = nibabel.orientations.apply_orientation(SEEN, there)
        image = nibabel.Nifti1Image(values, affine @ inv_ornt_aff(there, SEEN.shape))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, folder / "unit.nii")
        scan = read_scan(folder / "unit.nii")
        np.testing.assert_allclose(scan.spacing_mm, spacing[::-1], rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), spacing[::-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"srow_x": [0.5, 0, 0, 0]}, "pixdim"),
        ({"pixdim": [1, 0.25, 0.5, 3, 1, 1, 1, 1]}, "pixdim"),
        ({"srow_x": [0, 0, 0, 0]}, "pixdim"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "geometry"),
        ({"xyzt_units": 5}, "xyzt_units"),
    ],
)
def test_contradictory_geometry(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "whole.nii", "LPS")
    for name, value in changes.items():
        image.header[name] = value
    data = (tmp_path / "whole.nii").read_bytes()
    (tmp_path / "scan.nii").write_bytes(image.header.binaryblock + data[len(image.header.binaryblock) :])
    with raises(DataError, path="scan.nii", key=key):
        read_scan(tmp_path / "scan.nii")


def test_scans_that_are_larger_than_their_files(tmp_path: Path) -> None:
    """Refused before memory is taken."""
    image = write_nifti(tmp_path / "whole.nii", "LPS")
    data = (tmp_path / "whole.nii").read_bytes()[len(image.header.binaryblock) :]
    for shape, key in (((5, 400, 4), None), ((30_000, 30_000, 300), "shape")):
        image.header["dim"][1:4] = shape
        for name, pack in (("scan.nii", bytes), ("scan.nii.gz", gzip.compress)):
            (tmp_path / name).write_bytes(
                pack(image.header.binaryblock + data[: 10 if pack is gzip.compress else None])
            )
            with raises(DataError, path=name, key=key):
                read_scan(tmp_path / name)


def test_no_orientation_is_noted(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "scan.nii", "LAS")
    assert read_scan(tmp_path / "scan.nii").notes == ()
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert len(scan.notes) == 1
    np.testing.assert_array_equal(scan.slices, SEEN)


def rewrite_header(path: Path, changes: dict[str, Any]) -> None:
    """Fields of the header of a `.nii`, as given."""
    image, data = nibabel.load(path), path.read_bytes()
    for name, value in changes.items():
        image.header[name] = value
    path.write_bytes(image.header.binaryblock + data[len(image.header.binaryblock) :])


def test_no_voxel_size_or_unit_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does nibabel say it a second time."""
    write_nifti(tmp_path / "scan.nii", "LPS")
    rewrite_header(tmp_path / "scan.nii", {"xyzt_units": 0})
    scan = read_scan(tmp_path / "scan.nii")
    assert scan.has_spacing
    assert ["xyzt_units" in note for note in scan.notes] == [True]
    rewrite_header(tmp_path / "scan.nii", {"pixdim": [1, 0, 0.5, 2, 0, 0, 0, 0], "sform_code": 0, "qform_code": 0})
    scan = read_scan(tmp_path / "scan.nii")
    assert not scan.has_spacing
    assert sum("pixdim" in note for note in scan.notes) == 1
    assert not caplog.records


def test_no_millilitres_without_a_voxel_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model.safetensors", 1, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    write_nifti(tmp_path / "scan.nii", "LPS")
    rewrite_header(tmp_path / "scan.nii", {"pixdim": [1, 0, 0, 0, 0, 0, 0, 0], "sform_code": 0, "qform_code": 0})
    words = ["predict", tmp_path / "model.safetensors", tmp_path / "scan.nii", "--out", tmp_path / "out"]
    run = CliRunner().invoke(main, [*map(str, words), "--window", "0,2000", "--device", "cpu"])
    assert run.exit_code == 0, run.output
    assert " ml," not in run.output
    rows = [line.split(",") for line in (tmp_path / "out" / "volumes.csv").read_text().splitlines()]
    assert [row[3] for row in rows] == ["ml", "", ""]
    assert int(rows[1][2]) + int(rows[2][2]) == SEEN.size


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    values = SEEN.astype(np.float64)
    values[2, 1, :2] = value
    write_nifti(tmp_path / "scan.nii", "RAS", values)
    with raises(DataError, path="scan.nii", key="value", named=["(2)"]):
        read_scan(tmp_path / "scan.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.complex64), np.eye(4)), tmp_path / "complex.nii")
    with raises(DataError, path="complex.nii", key="dtype"):
        read_scan(tmp_path / "complex.nii")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ImagePositionPatient": None}, "slices lack ImagePositionPatient;"),
        ({"ImageOrientationPatient": None}, "slices lack ImageOrientationPatient;"),
        ({"ImageOrientationPatient": None, "PixelSpacing": None}, "slices lack ImageOrientationPatient, PixelSpacing;"),
        ({"PixelSpacing": [0.5, 0.5]}, "different sizes, pixel spacings or directions"),
        ({"ImagePositionPatient": [90, -8, 8]}, "one straight line"),
        ({"ImagePositionPatient": [0, 0, 1]}, "several slices at the same position"),
        ({"SeriesInstanceUID": "1.2.9"}, "several series"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "different sizes, pixel spacings or directions"),
        ({"NumberOfFrames": 2}, "several frames"),
        ({"ImagePositionPatient": [7, -8, 33]}, "between slices are 2 to 27 mm"),
    ],
)
def test_slices_that_make_no_stack(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", **(changes if "at the same position" in says else {}))
    file = pydicom.dcmread(folder / "b")
    write_slice(folder / "d", SEEN[4], 8.0, **{"series": file.SeriesInstanceUID, **changes})
    with pytest.raises(DataError, match=says) as caught:
        read_scan(folder)
    assert "\n" not in str(caught.value)


def test_damaged(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", "LPS")
    for name, data in (("cut.nii.gz", (tmp_path / "scan.nii.gz").read_bytes()[:90]), ("empty.nii", b"")):
        (tmp_path / name).write_bytes(data)
        with raises(DataError, path=name):
            read_scan(tmp_path / name)
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 3), np.uint8), np.eye(4)), tmp_path / "film.nii")
    with raises(DataError, path="film.nii", key="shape", named=["(2, 2, 2, 3)"]):
        read_scan(tmp_path / "film.nii")
    folder = write_series(tmp_path / "ct")
    (folder / "a").write_bytes((folder / "a").read_bytes()[:400])
    with raises(DataError, path="ct"):
        read_scan(folder)
    assert not is_scan(tmp_path)
    assert not is_scan(tmp_path / "nowhere")


@pytest.mark.parametrize("ending", ["", ".dcm"])
def test_damaged_slices_are_named(ending: str, tmp_path: Path) -> None:
    """Also at the ends of the stack, where no gap tells of them; what is no slice may lie beside them."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for number, values in enumerate(SEEN):
        write_slice(folder / f"1.2.84.{number}{ending}", values, 2.0 * number, "1.2.9")
    for name in ("notes.txt", ".DS_Store"):
        (folder / name).write_text("no slice")
    np.testing.assert_array_equal(read_scan(folder).slices, SEEN)
    last = folder / f"1.2.84.4{ending}"
    whole = last.read_bytes()
    pixels_at = whole.rindex(bytes.fromhex("e07f1000"))  # the tag of the pixel data
    for size in (0, 100, 140, 178, 400, pixels_at, len(whole) - 10):
        last.write_bytes(whole[:size])
        with raises(DataError, path=folder, key="slices", named=[last.name]):
            read_scan(folder)


def test_volumes_of_sheared_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A voxel has the volume of a parallelepiped, not the product of its sides."""
    save_model(tmp_path / "model.safetensors", 1, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    affine = np.diag([20.0, 20.0, 20.0, 1.0])
    affine[0, 2] = 15.0
    nibabel.save(nibabel.Nifti1Image(np.zeros((16, 16, 16), np.int16), affine), tmp_path / "scan.nii")
    words = ["predict", tmp_path / "model.safetensors", tmp_path / "scan.nii", "--out", tmp_path / "out"]
    run = CliRunner().invoke(main, [*map(str, words), "--window", "0,2000", "--device", "cpu"])
    assert run.exit_code == 0, run.output
    rows = [line.split(",") for line in (tmp_path / "out" / "volumes.csv").read_text().splitlines()]
    assert float(rows[1][3]) == pytest.approx(16**3 * 8.0)


def test_folders_of_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder gives its NIfTI files and its folders of DICOM series, a pattern what it matches; beside images they
    are left out, which is reported."""
    save_model(tmp_path / "model.safetensors", 1, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    place = tmp_path / "patients"
    (place / "empty").mkdir(parents=True)
    write_nifti(place / "b.nii.gz", "LPS")
    write_series(place / "a")
    (place / "notes.txt").touch()

    def predict(name: str, path: Path, *words: object) -> list[str]:
        line = ["predict", tmp_path / "model.safetensors", path, "--out", tmp_path / name, "--device", "cpu", *words]
        run = CliRunner().invoke(main, list(map(str, line)))
        assert run.exit_code == 0, run.output
        said.append(run.output)
        return sorted(one.name for one in (tmp_path / name).iterdir())

    said: list[str] = []
    window = ["--window", "0,2000"]
    assert predict("out", place, *window) == ["a_mask", "b_mask.nii.gz", "predict.json", "volumes.csv"]
    assert predict("some", place / "*.nii.gz", *window) == ["b_mask.nii.gz", "predict.json", "volumes.csv"]
    Image.new("L", (16, 16)).save(place / "shot.png")
    assert predict("mixed", place) == ["predict.json", "shares.csv", "shot.png", "shot_overlay.png"]
    assert "2 scans" in said[-1]
    words = ["predict", tmp_path / "model.safetensors", place / "empty", "--out", tmp_path / "none", "--device", "cpu"]
    check(refused_once(*words), DataError, path=place / "empty")


def test_a_mask_of_another_scan_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut one is."""
    save_model(tmp_path / "model.safetensors", 1, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    write_nifti(tmp_path / "scan.nii.gz", "LPS")
    words = ["predict", tmp_path / "model.safetensors", tmp_path / "scan.nii.gz", "--window", "lung", "--device", "cpu"]
    words += ["--out", tmp_path / "out", "--resume"]
    assert CliRunner().invoke(main, [*map(str, words)]).exit_code == 0
    mask = tmp_path / "out" / "scan_mask.nii.gz"
    whole = mask.read_bytes()
    write_nifti(mask, "LPS", SEEN[:3])
    other = mask.read_bytes()
    check(refused_once(*words), DataError, path=mask, key="shape")
    assert mask.read_bytes() == other
    mask.write_bytes(whole[:-9])
    assert CliRunner().invoke(main, [*map(str, words)]).exit_code == 0
    assert mask.read_bytes() == whole


@given(st.floats(-2000, 2000), st.floats(0.5, 4000), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_window(center: float, width: float, a: float, b: float) -> None:
    """The ends are 0 and 255, the centre half; greater values are never darker."""
    window = IntensityWindow(center, width)
    low, high = center - width / 2, center + width / 2
    ends = window.apply(np.array([low - 1, center, high + 1]))
    assert ends[0] == 0
    assert ends[2] == 255
    assert abs(int(ends[1]) - 127.5) <= 0.5 + 255 * 1e-3 * max(1.0, abs(center)) / width
    first, second = window.apply(np.array(sorted([a, b])))
    assert first <= second


def test_window_words() -> None:
    assert parse_intensity_window("lung") == IntensityWindow(*PRESETS["lung"])
    assert parse_intensity_window("40,400") == IntensityWindow(40.0, 400.0)
    for text, named in (("lun", ["lung?"]), ("40", ["CENTER,WIDTH"]), ("1,0", []), ("1,nan", [])):
        with raises(SettingError, key="--window", named=named):
            parse_intensity_window(text)


@pytest.mark.parametrize(("thickness", "known"), [(2, True), (None, False)])
def test_a_single_slice_without_its_thickness_has_no_volume(
    thickness: float | None, known: bool, tmp_path: Path
) -> None:
    write_slice(tmp_path / "a.dcm", SEEN[0], 0.0, "1.2", SliceThickness=thickness)
    scan = read_scan(tmp_path / "a.dcm")
    assert scan.has_spacing == known
    assert [note for note in scan.notes if "SliceThickness" in note and "a.dcm" in note] == [*scan.notes]
    assert bool(scan.notes) != known


@pytest.mark.parametrize("channels", [1, 3])
def test_command(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds beside each other: masks, and the table of volumes, whose millilitres are the scan's."""
    save_model(tmp_path / "model.safetensors", channels, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    big = np.kron(SEEN, np.ones((1, 8, 8), np.int16))
    write_nifti(tmp_path / "scan.nii.gz", "PIR", big)
    series = write_series(tmp_path / "ct")
    words = ["predict", tmp_path / "model.safetensors", tmp_path / "scan.nii.gz", series, "--out", tmp_path / "out"]
    run = CliRunner().invoke(main, [*map(str, words), "--window", "0,2000", "--device", "cpu"])
    assert run.exit_code == 0, run.output
    assert "masks of scans in" in run.output
    mask = read_scan(tmp_path / "out" / "scan_mask.nii.gz").slices
    assert (mask == (big > 4)).mean() > 0.8  # resized there and back
    assert (read_scan(tmp_path / "out" / "ct_mask").slices.shape) == SEEN.shape
    rows = [line.split(",") for line in (tmp_path / "out" / "volumes.csv").read_text().splitlines()]
    assert rows[0] == ["scan", "class", "voxels", "ml"]
    assert [int(row[2]) for row in rows[1:3]] == [int((mask == index).sum()) for index in (0, 1)]
    assert float(rows[2][3]) == pytest.approx(int(rows[2][2]) * 0.25 / 1000, abs=1e-3)
    again = CliRunner().invoke(main, [*map(str, words), "--window", "0,2000", "--device", "cpu"])
    assert again.exit_code == 2
    assert "exists already" in again.output


@pytest.mark.parametrize(
    ("model", "words", "says"),
    [
        ((1, "uint8"), [], "--window (lung, or 40,400)"),
        ((1, "float32"), ["--window", "lung"], "leave --window out"),
        ((4, "uint8"), ["--window", "lung"], "4 channels"),
        ((1, "uint8"), ["--window", "lung,"], "CENTER,WIDTH"),
    ],
)
def test_what_does_not_go_together(model: tuple[int, str], words: list[str], says: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", *model)
    write_nifti(tmp_path / "scan.nii", "LPS")
    line = ["predict", str(tmp_path / "model.safetensors"), str(tmp_path / "scan.nii"), "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(main, [*line, "--device", "cpu", *words])
    assert run.exit_code == 2
    assert says in run.output
    assert not (tmp_path / "out").exists()


def test_conditions_and_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices go the way of images: tiles, several models, views, thresholds, parts; how is reported once. A broken scan
    is reported at the end, --resume leaves what is whole, also of a series."""
    save_model(tmp_path / "grey.safetensors", 1, "uint8")
    save_model(tmp_path / "color.safetensors", 3, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    big = np.kron(SEEN, np.ones((1, 8, 8), np.int16))
    write_nifti(tmp_path / "scan.nii.gz", "PIR", big)
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "scan.nii.gz").read_bytes()[:90])
    series = write_series(tmp_path / "ct")
    out = tmp_path / "out"
    words: list[Any] = ["predict", tmp_path / "grey.safetensors", "--device", "cpu", "--window", "0,2000"]
    words += ["--tiles", 16, "--overlap", 0.5, "--tta", "--with", tmp_path / "color.safetensors"]
    words += ["--threshold", "organ=0.5", "--out", out]
    paths = [tmp_path / "cut.nii.gz", tmp_path / "scan.nii.gz", series]
    run = CliRunner().invoke(main, [*map(str, [*words, *paths])])
    assert run.exit_code == 3
    assert "cut.nii.gz: not a readable scan" in run.output
    assert run.output.count("does not state the scale") == 1
    np.testing.assert_array_equal(
        read_scan(out / "scan_mask.nii.gz").slices, IntensityWindow(0, 2000).apply(big) >= 128
    )
    table = (out / "volumes.csv").read_text()
    assert len(table.splitlines()) == 5
    before = {path.name: path.stat().st_mtime_ns for path in out.rglob("*")}
    (out / "ct_mask" / "0005.dcm").unlink()
    run = CliRunner().invoke(main, [*map(str, [*words, *paths[1:], "--resume"])])
    assert run.exit_code == 0, run.output
    after = {path.name: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert {name for name in before if before[name] != after[name]} | {"predict.json"} == {
        "volumes.csv", "predict.json", "ct_mask", "0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm", "0005.dcm",
    }  # fmt: skip
    assert (out / "volumes.csv").read_text() == table
    np.testing.assert_array_equal(read_scan(out / "ct_mask").slices, IntensityWindow(0, 2000).apply(SEEN) >= 128)
    for more, key in (
        (["--window", "0,1000"], "--window"),
        (["--min-area", 3], "--min-area"),
        (["--prob", "npz"], "--prob"),
        ([tmp_path / "copy" / "scan.nii.gz"], "--out"),
    ):
        (tmp_path / "copy").mkdir(exist_ok=True)
        write_nifti(tmp_path / "copy" / "scan.nii.gz", "PIR", big)
        assert refused_once(*words, *paths[1:], "--resume", *more).key == key


def test_no_room_and_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model.safetensors", 1, "uint8")
    words = [
        "predict",
        tmp_path / "model.safetensors",
        "--window",
        "lung",
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
    ]
    check(refused_once(*words, tmp_path / "none.nii"), DataError, path=tmp_path / "none.nii")
    write_nifti(tmp_path / "scan.nii", "LPS")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 10))
    check(refused_once(*words, tmp_path / "scan.nii"), OutputError, path=tmp_path / "out")
    assert not (tmp_path / "out").exists()
