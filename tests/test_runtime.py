"""The runtime without torch writes the masks that `ubend predict` writes, and refuses what it refuses."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import ubend
from support.exports import NEEDS_EXPORT, make_bundle, make_bytes, onnx, settle
from support.refusal import invoke, raises
from ubend.core.errors import DataError, ModelFileError, OutputError, SettingError
from ubend.io.images import read_image
from ubend.io.row_windows import write_tiff_mask
from ubend.models.ensemble_net import EnsembleNet
from ubend.models.paper import PaperUNet
from ubend.models.segmentation_net import SegmentationNet
from ubend.models.unet import UNet
from ubend.portable.command import describe_model, main
from ubend.portable.model import Model, load

pytestmark = NEEDS_EXPORT
CROPS: dict[str, Any] = {"window_px": 32, "scale": (1.0, 1.0)}
RANDOM = np.random.default_rng(11)
EXACT = torch.backends.cpu.get_cpu_capability() == "AVX2"  # elsewhere the last bit of logits may differ


def unet(channels: int, classes: int, top: float = 255.0) -> SegmentationNet:
    return UNet(channels, classes, width=4, depth=2, mean=[top / 2] * channels, std=[top / 4] * channels)


def averaged() -> SegmentationNet:
    net = EnsembleNet([unet(3, 3), unet(3, 3)], "square")  # type: ignore[list-item]
    net.class_bias[:] = torch.tensor([0.0, 0.01, -0.01])  # views of untrained networks hardly differ
    return net


MODELS: dict[str, tuple[Callable[[], SegmentationNet], str, dict[str, Any]]] = {
    "colour": (lambda: unet(3, 3), "uint8", {}),
    "grey": (lambda: unet(1, 2), "uint8", {}),
    "16 bit": (lambda: unet(3, 3, 65535.0), "uint16", {}),
    "ensemble in all views": (averaged, "uint8", {}),
    "tiles": (lambda: unet(3, 3), "uint8", CROPS),
    "tiles, 16 bit, grey": (lambda: unet(1, 2, 65535.0), "uint16", CROPS),
    "paper, tiles": (lambda: PaperUNet(1, 2, width=4, depth=2, mean=[120.0], std=[60.0]), "uint8", CROPS),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The exported files of MODELS, each made once; only to be read."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        path = folder / f"{name.replace(' ', '-').replace(',', '')}.onnx"
        if not path.exists():
            torch.manual_seed(9)
            make_net, dtype, stored = MODELS[name]
            net = settle(make_net(), float(np.iinfo(dtype).max))
            balance(net, dtype)
            path.write_bytes(make_bytes(make_bundle(net, dtype, **stored)))
        return path

    return make


def balance(net: SegmentationNet, dtype: str) -> None:
    """Let all classes occur in a drawn image."""
    image = torch.from_numpy(np.atleast_3d(draw(64, 64, net.channels, dtype)).astype(np.float32))
    with torch.no_grad():
        for member in net.parts().members:
            assert isinstance(member.head.bias, torch.Tensor)
            member.head.bias -= member(image.permute(2, 0, 1)[None]).mean(dim=(0, 2, 3))


def draw(height: int, width: int, channels: int, dtype: str = "uint8") -> NDArray[Any]:
    """Smooth colours with some noise, so that all classes occur in regions."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (7 + 3 * number)) * np.cos(columns / (9 + number)) for number in range(channels)]
    values = (np.stack(waves, axis=2) + 1) / 2 * 0.9 + RANDOM.random((height, width, channels)) * 0.1
    pixels = (values * np.iinfo(dtype).max).astype(dtype)
    return pixels[:, :, 0] if channels == 1 else pixels


def write_deep(path: Path, pixels: NDArray[np.uint16]) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    path.write_bytes(imagecodecs.png_encode(pixels))


def write_images(folder: Path, dtype: str, channels: int, *, large: bool) -> None:
    """Of every kind that is read: sides that are no multiples, formats, palettes, alpha, orientations."""
    folder.mkdir()
    if dtype == "uint16":
        for number, size in enumerate([(40, 57), (90, 33)] + [(530, 700)] * large):
            write_deep(folder / f"deep{number}.png", draw(*size, channels, dtype))
        if channels == 3:
            write_deep(folder / "alpha.png", draw(50, 41, 4, dtype))
        return
    color = draw(61, 90, 3)
    Image.fromarray(color).save(folder / "photo.jpg", quality=90)
    Image.fromarray(color[:, :, 0]).save(folder / "grey.jpg", quality=70)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(color).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(color).convert("CMYK").save(folder / "inks.jpg")
    Image.fromarray(color).save(folder / "plain.bmp")
    Image.fromarray(color).save(folder / "lossless.webp", lossless=True)
    Image.fromarray(color).quantize(40).save(folder / "palette.png")
    Image.fromarray(color[:, :, 0]).save(folder / "flat.png")
    alpha = draw(45, 33, 4)
    alpha[:9, :7, 3] = 0
    Image.fromarray(alpha).save(folder / "alpha.png")
    Image.fromarray(draw(1, 1, 3)).save(folder / "dot.png")
    Image.fromarray(draw(200, 3, 3)).save(folder / "narrow.png")
    if large:
        Image.fromarray(draw(530, 1100, 3)).save(folder / "large.png")


@pytest.mark.slow  # most of it is the export
@pytest.mark.parametrize("name", MODELS)
def test_same_masks(
    name: str,
    models: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To the byte of the file; without imagecodecs, which the runtime does not need."""
    _make, dtype, stored = MODELS[name]
    model, images = models(name), tmp_path / "images"
    channels = load(model).sizing.channels
    write_images(images, dtype, channels, large=bool(stored))
    result, error = invoke("predict", model, images, "--out", tmp_path / "ubend")
    assert (result.exit_code, error) == (0, None), result.output
    with monkeypatch.context() as patch:
        for package in ("imagecodecs", "tifffile", "scipy"):
            patch.setitem(sys.modules, package, None)
        assert main(["predict", str(model), str(images), "--out", str(tmp_path / "runtime")]) == 0
    assert f"masks in {tmp_path / 'runtime'}: {len(list(images.iterdir()))}" in capsys.readouterr().out
    for image in images.iterdir():
        wanted, made = ((tmp_path / place / f"{image.stem}.png") for place in ("ubend", "runtime"))
        if EXACT:
            assert made.read_bytes() == wanted.read_bytes(), image.name
        else:
            assert (read_image(made) != read_image(wanted)).mean() < 1e-3, image.name


@pytest.mark.slow
def test_classes_differ(models: Callable[[str], Path]) -> None:
    """The masks that are compared have more than one class."""
    for name in MODELS:
        _make, dtype, _stored = MODELS[name]
        model = load(models(name))
        pixels = draw(120, 140, model.sizing.channels, dtype)
        assert len(np.unique(model(pixels).mask)) > 1, name


@pytest.mark.parametrize("name", ["colour", "16 bit", "tiles"])
def test_probabilities_and_arrays(name: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    path = models(name)
    model, predictor = load(path), ubend.load(path)
    pixels = draw(77, 50, model.sizing.channels, model.dtype)
    hidden = np.zeros(pixels.shape, bool)
    hidden[:5] = True
    for image in (pixels, pixels.astype(np.float64), np.ma.masked_array(pixels, hidden)):
        made, wanted = model(image, probabilities=True), predictor(image, probabilities=True)
        assert made.probabilities is not None
        np.testing.assert_allclose(made.probabilities, wanted.probabilities, rtol=0, atol=1e-6)
        assert (made.mask != wanted.mask).mean() <= (0 if EXACT else 1e-3)
        assert made.class_names == wanted.class_names
        assert made.colors == wanted.labels.colors
    assert model(pixels).probabilities is None
    model(pixels).save(tmp_path / "mask.png")
    predictor(pixels).save(tmp_path / "wanted.png")
    assert (tmp_path / "mask.png").read_bytes() == (tmp_path / "wanted.png").read_bytes() or not EXACT
    with raises(OutputError, path=tmp_path / "mask.jpg"):
        model(pixels).save(tmp_path / "mask.jpg")


def test_tiff(models: Callable[[str], Path], tmp_path: Path) -> None:
    """With the extra `tiff`; its nodata values are invalid."""
    model, path = models("colour"), tmp_path / "image.tif"
    write_tiff_mask(
        path, (40, 40), [(draw(40, 40, 1) // 100)], [(0, 0, 0), (200, 0, 0), (0, 90, 200)], [], has_invalid=True
    )
    np.testing.assert_array_equal(load(model)(path).mask, ubend.load(model)(path).mask)


@pytest.fixture(scope="module")
def colour(models: Callable[[str], Path]) -> Path:
    return models("colour")


def test_wrong_files_do_not_stop_the_others(colour: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(draw(30, 30, 3)).save(images / "good.png")
    (images / "empty.png").touch()
    write_deep(images / "deep.png", draw(20, 20, 3, "uint16"))
    whole = images / "good.png"
    (images / "cut.png").write_bytes(whole.read_bytes()[:-40])
    words = ["predict", str(colour), str(images), "--out", str(tmp_path / "out")]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: 3 problems:")
    assert all(f"{name}.png: " in said for name in ("empty", "deep", "cut"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["predict", "none.onnx", "a.png", "--out", "out"], "no such model file"),
        (["predict", "{model}", "none.png", "--out", "out"], "none.png: no such file"),
        (["predict", "{model}", "a.png", "--out", "."], "is an input and would be overwritten"),
        (["predict", "{model}", "a.png", "b/a.png", "--out", "out"], "would overwrite each other's masks"),
        (["info", "model.safetensors"], "not an exported model"),
        (["info", "a.onnx"], "not a whole exported model"),
    ],
)
def test_one_line(
    words: list[str],
    named: str,
    colour: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b").mkdir()
    for name in ("a.png", "b/a.png"):
        Image.fromarray(draw(9, 9, 3)).save(name)
    Path("a.onnx").write_bytes(colour.read_bytes()[:-100])
    assert main([word.format(model=colour) for word in words]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("error: ")
    assert named in said
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_info(colour: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(colour)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == describe_model(colour)
    assert "images: 3 channels, aspect kept, the area of a 32 px square" in shown
    assert [line.split() for line in shown[-3:]] == [
        ["0", "class", "0", "#000000"],
        ["1", "class", "1", "#e69f00"],
        ["2", "class", "2", "#56b4e9"],
    ]


def change(path: Path, work: Callable[[Any], object], out: Path) -> Path:
    model = onnx.load(path)
    entry = json.loads(model.metadata_props[0].value)
    work(entry)
    model.metadata_props[0].value = json.dumps(entry)
    out.write_bytes(model.SerializeToString())
    return out


WRONG_FIELDS: dict[str, Callable[[Any], object]] = {
    "contract": lambda entry: entry.update(contract=2),
    "precision": lambda entry: entry.update(precision="fp4"),
    "mean": lambda entry: entry.update(mean=[0.0]),
    "std": lambda entry: entry.update(std=[1, 2, "3"]),
    "licence": lambda entry: entry.update(licence=None),
    "scores": lambda entry: entry.update(scores=[]),
    "ubend": lambda entry: entry.pop("ubend"),
    "tiles": lambda entry: entry.update(tiles=0),
    "tiles.px": lambda entry: entry["tiles"].update(px=-1),
    "tiles.overlap": lambda entry: entry["tiles"].update(overlap=1),
    "tiles.multiple": lambda entry: entry["tiles"].update(multiple=0),
    "model": lambda entry: entry.update(model=[]),
    "model.format": lambda entry: entry["model"].update(format=4),
    "model.dtype": lambda entry: entry["model"].update(dtype="int8"),
    "model.labels.names": lambda entry: entry["model"]["labels"].update(names=["a", "a", "b"]),
    "model.labels.colors": lambda entry: entry["model"]["labels"].update(colors=[[0, 0, 0]] * 2 + [[0, 0, 256]]),
    "model.sizing.size_px": lambda entry: entry["model"]["sizing"].update(size_px=3),
    "model.sizing.keep_aspect": lambda entry: entry["model"]["sizing"].update(keep_aspect=1),
    "model.sizing.channels": lambda entry: entry["model"]["network"].update(channels=1),
}


@pytest.mark.parametrize("key", WRONG_FIELDS)
def test_wrong_metadata(key: str, colour: Path, tmp_path: Path) -> None:
    path = change(colour, WRONG_FIELDS[key], tmp_path / "model.onnx")
    with raises(ModelFileError, path=path, key=key):
        load(path)


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("shape", np.zeros((4, 4, 5), np.uint8)),
        ("dtype", np.zeros((4, 4, 3), np.uint16)),
        ("value", np.full((4, 4, 3), np.nan)),
    ],
)
def test_values_that_do_not_fit(key: str, image: NDArray[Any], colour: Path) -> None:
    with raises(DataError, key=key):
        load(colour)(image)


def test_memory(colour: Path) -> None:
    def run(_images: NDArray[Any]) -> NDArray[np.float32]:
        raise MemoryError

    model = load(colour)
    starved = Model(run, model.contract, model.image_model)
    with raises(SettingError, key="device"):
        starved(np.zeros((4, 4, 3), np.uint8))
