"""`ubend-runtime objects` writes what `ubend objects` writes, to the byte, and says what it needs."""

import csv
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from support.exports import NEEDS_EXPORT, make_bundle, make_bytes, settle
from support.geotiff import GEO
from support.refusal import invoke, raises
from ubend.core.errors import MissingPackageError, SettingError
from ubend.labels.class_table import make_label_map
from ubend.models.unet import UNet
from ubend.portable.command import main
from ubend.portable.model import load

pytestmark = NEEDS_EXPORT
EXACT = torch.backends.cpu.get_cpu_capability() == "AVX2"  # elsewhere the last bit of logits may differ
NAMES = {"a": ("background", "cell", "contour"), "b": ("background", "nerve", "vessel")}


def draw(height: int, width: int, channels: int) -> np.ndarray:
    """Smooth colours, so that all classes occur in regions of some size."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (3 + number)) * np.cos(columns / (4 + number)) for number in range(channels)]
    return ((np.stack(waves, axis=2) + 1) * 127).astype(np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported models, one with a contour class; only to be read."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    for name, classes in NAMES.items():
        torch.manual_seed(9)
        net = settle(UNet(3, 3, width=4, depth=2, mean=[120.0] * 3, std=[60.0] * 3))
        with torch.no_grad():  # all classes occur
            assert isinstance(net.head.bias, torch.Tensor)
            image = torch.from_numpy(draw(64, 64, 3)).permute(2, 0, 1)[None].float()
            net.head.bias -= net(image).mean(dim=(0, 2, 3))
        bundle = dataclasses.replace(make_bundle(net), labels=make_label_map([0, 1, 2], classes))
        made[name] = folder / f"{name}.onnx"
        made[name].write_bytes(make_bytes(bundle))
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph, one with invalid pixels, and a TIFF with a georeference; only to be read."""
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(draw(61, 90, 3)).save(folder / "photo.jpg", quality=90)
    alpha = draw(45, 133, 4)
    alpha[..., 3] = 255
    alpha[:9, :37, 3] = 0
    Image.fromarray(alpha).save(folder / "alpha.png")
    tifffile.imwrite(folder / "map.tif", draw(80, 70, 3), photometric="rgb", extratags=GEO)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FLAGS: dict[str, tuple[str, Sequence[str]]] = {
    "contour": ("a", []),
    "distance": ("a", ["--method", "distance", "--min-area", "9", "--tta"]),
    "parts, all exports": ("b", ["--export", "coco", "--export", "geojson", "--export", "panoptic"]),
    "pixel size, tiles": ("b", ["--pixel-size", "0.5um", "--tiles", "32", "--fill-holes", "all"]),
    "thresholds, two models": ("b", ["--threshold", "nerve=0.5", "--with", "{b}", "--min-area", "4"]),
}


@pytest.mark.parametrize("name", FLAGS)
def test_same_files(
    name: str, models: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the same lines; there are objects."""
    model, words = models[FLAGS[name][0]], [word.format(**models) for word in FLAGS[name][1]]
    given = ["objects", str(model), str(images), *words, "--out"]
    result, error = invoke(*given, tmp_path / "ubend")
    assert (result.exit_code, error) == (0, None), result.output
    assert main([*given, str(tmp_path / "runtime")]) == 0
    assert capsys.readouterr().out.replace("runtime", "ubend") == result.output
    wanted, made = read_files(tmp_path / "ubend"), read_files(tmp_path / "runtime")
    assert made.keys() == wanted.keys()
    assert {"objects.csv", "images.csv", "photo_ids.tif", "photo_objects.png", "map_objects.csv"} <= made.keys()
    if EXACT:
        assert [path for path, data in wanted.items() if made[path] != data] == []
    with (tmp_path / "runtime" / "objects.csv").open(encoding="utf-8-sig", newline="") as file:
        classes = {row["class"] for row in csv.DictReader(file)}
    assert classes
    assert classes <= ({"cell"} if model.stem == "a" else {"nerve", "vessel"})


@pytest.mark.parametrize("package", ["skimage", "tifffile", "imagecodecs"])
def test_a_missing_package(
    package: str,
    models: dict[str, Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, before anything is predicted; without them masks are still written."""
    monkeypatch.setitem(sys.modules, package, None)
    words = [str(models["b"]), str(images / "photo.jpg"), "--out", str(tmp_path / "out")]
    assert main(["objects", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith("install it with: pip install 'ubend-runtime[objects]'\n")
    assert not (tmp_path / "out").exists()
    assert main(["predict", *words]) == 0


@pytest.mark.parametrize("package", ["shapely", "pycocotools"])
def test_a_missing_package_of_an_export(
    package: str,
    models: dict[str, Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = ["objects", str(models["b"]), str(images / "photo.jpg"), "--out", str(tmp_path / "out"), "--export"]
    assert main([*words, "coco"]) == 2
    said = capsys.readouterr().err
    assert f"--export coco needs {package}" in said
    assert "pip install 'ubend-runtime[objects]'" in said
    assert main([*words, "panoptic"]) == 0


WRONG: dict[str, tuple[Sequence[str], str]] = {
    "method": (["--method", "contour"], "--method contour needs"),
    "pixel size": (["--pixel-size", "5"], "--pixel-size 5: give the side of a pixel"),
    "tiles": (["--tiles", "-1"], "--tiles -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(
    name: str, models: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the words of `ubend objects`."""
    flags, named = WRONG[name]
    words = ["objects", str(models["b"]), str(images), "--out", str(tmp_path / "out"), *flags]
    assert main(words) == 2
    said = capsys.readouterr().err
    result, _error = invoke(*words)
    assert said == result.stderr
    assert named in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--min-area", "0"], ["--min-area", "x"], ["--method", "best"], ["--export", "svg"]])
def test_words_that_are_no_values(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["objects", "model.onnx", "image.png", "--out", "out", *words])
    said = capsys.readouterr().err
    assert words[0] in said
    assert said.count("\n") == 1
    assert said.endswith("; see ubend-runtime objects --help\n")


def test_from_python(models: dict[str, Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids that the command writes."""
    prediction = load(models["a"])(images / "photo.jpg")
    found = prediction.objects(min_area=5)
    words: list[Any] = ["objects", models["a"], images / "photo.jpg", "--min-area", "5", "--out", tmp_path / "out"]
    assert main(list(map(str, words))) == 0
    np.testing.assert_array_equal(found.ids, tifffile.imread(tmp_path / "out" / "photo_ids.tif"))
    assert {*found.classes.tolist()} == {1}
    assert len(prediction.objects("parts").classes) != len(found.classes)
    with raises(SettingError, key="--method"):
        load(models["b"])(images / "photo.jpg").objects("contour")
    monkeypatch.setitem(sys.modules, "skimage", None)
    with raises(MissingPackageError, key="scikit-image"):
        prediction.objects()
