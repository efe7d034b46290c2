"""A missing library is reported once, by its name and what to type; the files that it reads are not to blame."""

import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from support.annotated import yolo_parts
from support.discs import make_discs
from support.models import save_model
from support.refusal import TINY, check, invoke, raises, refused_once
from support.scans import SEEN, write_nifti, write_slice
from ubend.core.errors import DataError, MissingPackageError
from ubend.io.images import load_image, read_image, read_into_array
from ubend.io.scans import read_scan

IMAGECODECS: dict[str, Any] = {"key": "imagecodecs", "named": ["pip install imagecodecs"]}


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)


def test_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((16, 16, 3), np.uint8), compression="lzw", photometric="rgb")
    read_image(path)
    hide(monkeypatch, "imagecodecs")
    with raises(MissingPackageError, **IMAGECODECS):
        read_image(path)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pillow_decodes_in_its_place(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JPEG and PNG of 8 and 16 bits: the same values."""
    pixels = np.random.default_rng(channels).integers(0, 2**16, (33, 47, channels), np.uint16)
    paths = [tmp_path / "deep.png", tmp_path / "flat.png", *([tmp_path / "a.jpg"] if channels != 2 else [])]
    flat = Image.fromarray((pixels >> 8).astype(np.uint8).squeeze(), {4: "CMYK"}.get(channels))
    paths[0].write_bytes(imagecodecs.png_encode(pixels))
    paths[1].write_bytes(imagecodecs.png_encode(np.asarray(flat)))
    for path in paths[2:]:
        flat.save(path, quality=80)
    wanted = [load_image(path) for path in paths]
    assert wanted[0].pixels.dtype == np.uint16
    hide(monkeypatch, "imagecodecs")
    for path, image in zip(paths, wanted, strict=True):
        again = load_image(path)
        np.testing.assert_array_equal(again.pixels, image.pixels, err_msg=path.name)
        np.testing.assert_array_equal(again.invalid, image.invalid)


@pytest.mark.parametrize("data", ["cut.jpg", "cut.png"])
def test_pillow_reports_damage_in_its_place(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / data
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    hide(monkeypatch, "imagecodecs")
    with raises(DataError, path=path):
        read_image(path)


def test_one_codec_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """imagecodecs loads each codec when it is used, and does not say its own name when that fails."""
    path, place = tmp_path / "a.tif", np.zeros((16, 16, 1), np.uint8)
    tifffile.imwrite(path, place[:, :, 0], compression="lzw")

    def decode(*_args: Any, **_named: Any) -> None:
        raise ImportError("could not import name 'lzw_decode' from 'imagecodecs'")

    monkeypatch.setattr(tifffile.TiffPage, "decode", decode)
    with raises(MissingPackageError, named=["lzw_decode", "pip install ubend"]):
        read_into_array(path, place)


def test_commands_say_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with --skip-bad, which would leave out every pair; afterwards the same command works."""
    make_discs(tmp_path / "discs", 6)
    for path in (tmp_path / "discs").rglob("*.png"):
        tifffile.imwrite(path.with_suffix(".tif"), np.asarray(Image.open(path)), compression="lzw")
        path.unlink()
    model = tmp_path / "model.safetensors"
    save_model(model, 3, "uint8")
    predict = ["predict", model, tmp_path / "discs" / "images", "--out", tmp_path / "out", "--device", "cpu"]
    with monkeypatch.context() as patch:
        hide(patch, "imagecodecs")
        for words in (
            ["fit", tmp_path / "discs", "--out", tmp_path / "run", *TINY],
            ["fit", tmp_path / "discs", "--out", tmp_path / "run", *TINY, "--skip-bad"],
            ["data", tmp_path / "discs"],
            ["preview", tmp_path / "discs", "--out", tmp_path / "samples.png"],
            ["evaluate", model, tmp_path / "discs", "--device", "cpu"],
            predict,
        ):
            check(refused_once(*words), MissingPackageError, **IMAGECODECS)
    result, error = invoke(*predict)
    assert (result.exit_code, error) == (0, None), result.output


@pytest.mark.parametrize(("package", "kind"), [("nibabel", "NIfTI"), ("pydicom", "DICOM")])
def test_scans(package: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written, also of other inputs."""
    paths = [tmp_path / f"{name}.{'nii.gz' if kind == 'NIfTI' else 'dcm'}" for name in "ab"]
    for path in paths:
        if kind == "NIfTI":
            write_nifti(path, "RAS")
        else:
            write_slice(path, SEEN[0], 0.0, "1.2.5")
    make_discs(tmp_path / "discs", 2)
    model = tmp_path / "model.safetensors"
    save_model(model, 3, "uint8")
    hide(monkeypatch, package)
    expected: dict[str, Any] = {"key": package, "named": [kind, "pip install 'ubend[medical]'"]}
    with raises(MissingPackageError, **expected):
        read_scan(paths[0])
    words = ["--window", "lung", "--out", tmp_path / "out", "--device", "cpu"]
    check(
        refused_once("predict", model, tmp_path / "discs" / "images", *paths, *words), MissingPackageError, **expected
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("module", "package"), [("yaml", "pyyaml"), ("pycocotools", "pycocotools")])
def test_annotations(module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads YOLO's class names, and what draws polygons; the package is not always called as its module is."""
    yolo_parts(tmp_path / "set")
    hide(monkeypatch, module)
    fit = ["fit", "--out", tmp_path / "run", *TINY]
    for words in (["data"], fit, [*fit, "--skip-bad"]):
        told = refused_once(words[0], tmp_path / "set", *words[1:])
        check(told, MissingPackageError, key=package, named=[f"pip install {package}"])
    assert not (tmp_path / "run").exists()


def test_objects_for_coco(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written; other exports do without it."""
    words = ["objects", good / "run", good / "data" / "images", "--method", "parts", "--device", "cpu"]
    hide(monkeypatch, "pycocotools")
    told = refused_once(*words, "--out", tmp_path / "coco", "--export", "coco")
    check(told, MissingPackageError, key="pycocotools")
    assert not (tmp_path / "coco").exists()
    result, error = invoke(*words, "--out", tmp_path / "panoptic", "--export", "panoptic")
    assert (result.exit_code, error) == (0, None), result.output
