"""The runtime without torch writes the masks that `ubend predict` writes, and refuses what it refuses."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

import ubend
from support.exports import NEEDS_EXPORT, make_bundle, make_bytes, onnx, settle
from support.geotiff import GEO
from support.refusal import invoke, raises
from ubend.core.errors import DataError, ModelFileError, OutputError, SettingError
from ubend.io.images import read_image
from ubend.models.ensemble_net import EnsembleNet
from ubend.models.paper import PaperUNet
from ubend.models.segmentation_net import SegmentationNet
from ubend.models.unet import UNet
from ubend.portable import mask_job
from ubend.portable import model as portable_model
from ubend.portable.command import describe_model, main
from ubend.portable.model import Model, ModelEnsemble, load, load_file
from ubend.portable.row_windows import TiffRowReader, write_tiff_mask
from ubend.portable.tiff import NODATA
from ubend.portable.version import __version__

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
    "tiles": (lambda: unet(3, 3), "uint8", {**CROPS, "orientation": "free"}),
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
        for member in net.averaging().members:
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


def predict_by_both(tmp_path: Path, model: Path, images: Sequence[Path], *flags: str | Path) -> dict[str, Path]:
    """The folders that `ubend predict` and `ubend-runtime predict` write."""
    places = {name: tmp_path / name for name in ("ubend", "runtime")}
    result, error = invoke("predict", model, *images, "--out", places["ubend"], *flags)
    assert (result.exit_code, error) == (0, None), result.output
    assert main(list(map(str, ["predict", model, *images, "--out", places["runtime"], *flags]))) == 0
    return places


def assert_same_files(places: dict[str, Path]) -> None:
    """All files, to the byte; where torch rounds otherwise, masks may differ at single pixels."""
    wanted, made = ({path.name: path for path in places[name].iterdir()} for name in ("ubend", "runtime"))
    assert made.keys() == wanted.keys()
    for name, path in wanted.items():
        if EXACT:
            assert made[name].read_bytes() == path.read_bytes(), name
        elif f"{path.stem}_overlay.png" in wanted:
            assert (read_image(made[name]) != read_image(path)).mean() < 1e-3, name


@pytest.mark.slow  # most of it is the export
@pytest.mark.parametrize("name", MODELS)
def test_same_files(
    name: str,
    models: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To the byte; without imagecodecs, which the runtime does not need."""
    _make, dtype, stored = MODELS[name]
    model, images = models(name), tmp_path / "images"
    channels = load_file(model).sizing.channels
    write_images(images, dtype, channels, large=bool(stored))
    result, error = invoke("predict", model, images, "--out", tmp_path / "ubend")
    assert (result.exit_code, error) == (0, None), result.output
    with monkeypatch.context() as patch:
        for package in ("imagecodecs", "tifffile", "scipy"):
            patch.setitem(sys.modules, package, None)
        assert main(["predict", str(model), str(images), "--out", str(tmp_path / "runtime")]) == 0
    said = capsys.readouterr().out
    assert said.replace("runtime", "ubend") == result.output
    assert f"masks and overlays in {tmp_path / 'runtime'}: {len(list(images.iterdir()))}" in said
    assert_same_files({place: tmp_path / place for place in ("ubend", "runtime")})


FLAGS: dict[str, list[str]] = {
    "threshold": ["--threshold", "class 1=0.3", "--threshold", "class 2=0.9"],
    "regions": ["--min-area", "60", "--min-area", "class 1=9", "--fill-holes", "class 2=all"],
    "tta": ["--tta"],
    "with another": ["--with", "{other}", "--tta", "--threshold", "class 1=0.3"],
    "prob uint8": ["--prob", "uint8"],
    "prob uint16": ["--prob", "uint16", "--with", "{other}", "--tiles", "40"],
    "prob npz": ["--prob", "npz", "--min-area", "20"],
    "other tiles": ["--tiles", "24", "--overlap", "0.6"],
    "no tiles": ["--tiles", "whole"],
}


@pytest.mark.parametrize("name", ["colour", "tiles"])
@pytest.mark.parametrize("flags", FLAGS)
def test_same_files_with_options(flags: str, name: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    """To the byte, probability files too; each option changes what is written."""
    model, image = models(name), tmp_path / "image.png"
    alpha = draw(77, 90, 4)
    alpha[:9, :7, 3] = 0
    Image.fromarray(alpha).save(image)
    Image.fromarray(draw(61, 50, 3)).save(tmp_path / "photo.jpg")
    other = models("tiles" if name == "colour" else "colour")
    images, words = [image, tmp_path / "photo.jpg"], [word.format(other=other) for word in FLAGS[flags]]
    places = predict_by_both(tmp_path, model, images, *words)
    assert_same_files(places)
    assert main(["predict", str(model), *map(str, images), "--out", str(tmp_path / "plain")]) == 0
    plain, changed = (
        {path.name: path.read_bytes() for path in place.iterdir()} for place in (tmp_path / "plain", places["runtime"])
    )
    if "prob" in flags:
        assert len(changed) == len(plain) + 2
    elif (name, flags) != ("colour", "no tiles"):
        assert changed["image.png"] != plain["image.png"]


@pytest.mark.parametrize("flags", [["--prob", "uint16"], ["--threshold", "class 1=0.4"]])
def test_tiff_by_rows(
    flags: list[str], models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read, predicted and written by rows; with georeference and nodata value."""
    monkeypatch.setattr(mask_job, "_LARGE_PIXELS", 2000)
    monkeypatch.setattr(portable_model, "_TILE_BATCH_PIXELS", 2 * 32 * 32)
    path, size = tmp_path / "image.tif", (200, 70)
    pixels = draw(*size, 3)
    pixels[20:60, 30:50] = 7
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=16, extratags=[*GEO, (NODATA, 2, 2, "7", True)])
    heights = list[int]()

    def read(reader: TiffRowReader, top: int, bottom: int) -> NDArray[Any]:
        heights.append(bottom - top)
        return read_rows(reader, top, bottom)

    read_rows = TiffRowReader.read
    monkeypatch.setattr(TiffRowReader, "read", read)
    flags = [*flags, "--tiles", "32"]
    places = predict_by_both(tmp_path, models("tiles"), [path], *flags)
    assert_same_files(places)
    assert max(heights) <= 32
    assert sum(heights) > 2 * size[0]
    names = {"image.tif", "shares.csv", "predict.json"} | ({"image_prob.tif"} if "--prob" in flags else set())
    assert {file.name for file in places["runtime"].iterdir()} == names
    with TiffRowReader(places["runtime"] / "image.tif") as mask:
        assert mask.georeference
        assert len(np.unique(mask.read_stored(0, size[0]))) > 1


def test_each_continues_what_the_other_began(models: Callable[[str], Path], tmp_path: Path) -> None:
    """They write one record, and check it alike."""
    model, flags = models("colour"), ["--min-area", "5", "--prob", "uint8"]
    images = [tmp_path / f"{number}.png" for number in range(3)]
    for path in images:
        Image.fromarray(draw(40, 50, 3)).save(path)
    places = predict_by_both(tmp_path, model, images, *flags)
    for name in ("0.png", "1_overlay.png", "2_prob.tif"):
        (places["ubend"] / name).unlink()
    assert main(["predict", str(model), *map(str, images), "--out", str(places["ubend"]), *flags, "--resume"]) == 0
    (places["runtime"] / "2.png").unlink()
    result, error = invoke("predict", model, *images, "--out", places["runtime"], *flags, "--resume")
    assert (result.exit_code, error) == (0, None), result.output
    assert_same_files(places)
    assert main(["predict", str(model), *map(str, images), "--out", str(places["ubend"]), "--resume"]) == 2


@pytest.mark.slow
def test_classes_differ(models: Callable[[str], Path]) -> None:
    """The masks that are compared have more than one class."""
    for name in MODELS:
        _make, dtype, _stored = MODELS[name]
        model = load_file(models(name))
        pixels = draw(120, 140, model.sizing.channels, dtype)
        assert len(np.unique(model(pixels).mask)) > 1, name


@pytest.mark.parametrize("name", ["colour", "16 bit", "tiles"])
def test_probabilities_and_arrays(name: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    path = models(name)
    model, predictor = load_file(path), ubend.load(path)
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
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"good.png", "good_overlay.png", "shares.csv", "predict.json"}
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["predict", "none.onnx", "a.png", "--out", "out"], "no such model file"),
        (["predict", "{model}", "none.png", "--out", "out"], "none.png: no such file"),
        (["predict", "{model}", "a.png", "--out", "."], "is an input and would be overwritten"),
        (["predict", "{model}", "a.png", "b/a.png", "--out", "out"], "would overwrite each other's mask or overlay"),
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


def test_without_tifffile(
    colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Probabilities as TIFF are refused before anything is predicted; npz is written without it."""
    Image.fromarray(draw(9, 9, 3)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    words = ["predict", str(colour), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--prob"]
    assert main([*words, "uint8"]) == 2
    assert capsys.readouterr().err.endswith("install it with: pip install tifffile\n")
    assert not (tmp_path / "out").exists()
    assert main([*words, "npz"]) == 0
    with np.load(tmp_path / "out" / "a_prob.npz") as file:
        assert file["prob"].shape == (9, 9, 3)
        np.testing.assert_allclose(file["prob"].sum(axis=2), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--tiles", "-3"], "--tiles -3"),
        (["--overlap", "1"], "--overlap 1"),
        (["--threshold", "class 9=.5"], "unknown class class 9"),
        (["--min-area", "x"], "--min-area x"),
        (["--with", "{other}"], "has the classes class 0, class 1, class 2"),
    ],
)
def test_wrong_options(
    flags: list[str],
    key: str,
    colour: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the words of `ubend predict`."""
    other = change(
        colour, lambda entry: entry["model"]["labels"].update(names=["a", "b", "c"]), tmp_path / "other.onnx"
    )
    Image.fromarray(draw(9, 9, 3)).save(tmp_path / "a.png")
    words = ["predict", str(colour), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    words += [flag.format(other=other) for flag in flags]
    assert main(words) == 2
    said = capsys.readouterr().err
    result, _error = invoke(*words)
    assert said == result.stderr
    assert key in said
    assert not (tmp_path / "out").exists()


def test_tiles_that_a_model_cannot_take(models: Callable[[str], Path], tmp_path: Path) -> None:
    tiled = change(models("tiles"), lambda entry: entry["tiles"].update(margin=4), tmp_path / "tiled.onnx")
    whole = change(models("colour"), lambda entry: entry["model"]["network"].update(kind="paper"), tmp_path / "a.onnx")
    assert load_file(tiled).tiling is not None
    assert load_file(whole).tiling is None
    with raises(SettingError, key="--tiles"):
        load(tiled, tiles=0)
    with raises(SettingError, key="--tiles"):
        load(whole, tiles=64)


def test_several_models(models: Callable[[str], Path]) -> None:
    """From Python, as `ubend.load`."""
    paths, pixels = [models("colour"), models("tiles")], draw(50, 60, 3)
    model, wanted = load(paths, tta=True), ubend.load(paths, tta=True)
    assert isinstance(model, ModelEnsemble)
    assert [len(member.views) for member in model.members] == [2, 8]
    made = model(pixels, probabilities=True)
    assert made.probabilities is not None
    np.testing.assert_allclose(made.probabilities, wanted(pixels, probabilities=True).probabilities, rtol=0, atol=1e-6)
    assert model(pixels).probabilities is None
    with raises(SettingError, key="models"):
        load([])


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

    model = load_file(colour)
    starved = Model(run, model.contract, model.bundle)
    with raises(SettingError, key="device"):
        starved(np.zeros((4, 4, 3), np.uint8))


def test_it_states_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"ubend-runtime {__version__}\n"
