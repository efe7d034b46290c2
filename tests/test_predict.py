"""The `predict` job: what is named, written, left out, continued with; what is wrong is reported at the end."""

import csv
import io
import math
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import ubend
from support.commands import predict
from support.geotiff import GEO
from support.models import make_bundle, prob_of
from support.refusal import check, contents, refused, refused_once
from support.training import Listener
from ubend.core.errors import DataError, FilesError, ModelFileError, OutputError, SettingError
from ubend.io.images import Sizing, read_image
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.unet import UNet
from ubend.portable import files
from ubend.portable import mask_job as job
from ubend.portable.postprocess import PostprocessOptions, postprocess
from ubend.portable.record import Record, name_resume


def masks(out: Path) -> list[str]:
    return sorted(path.stem for path in out.glob("*.png") if not path.stem.endswith("_overlay"))


def rows(out: Path) -> list[str]:
    return [Path(row["file"]).name for row in csv.DictReader(io.StringIO((out / "shares.csv").read_text()))]


@pytest.fixture
def images(good: Path) -> Path:
    return good / "data" / "images"


@pytest.fixture
def tiler(good: Path, tmp_path: Path) -> Path:
    """A model of crops at native scale, with the classes of `good`; its masks show both."""
    bundle = load_bundle(good / "run")
    bundle.model = make_bundle(classes=2).model
    bundle.window_px, bundle.scale = 32, (1.0, 1.0)
    save_bundle(tmp_path / "tiler.safetensors", bundle)
    return tmp_path / "tiler.safetensors"


def test_patterns_and_a_list(good: Path, images: Path, tmp_path: Path) -> None:
    run = good / "run"
    predict(run, images / "disc0[12].png", "--out", tmp_path / "pattern")
    assert masks(tmp_path / "pattern") == ["disc01", "disc02"]
    predict(run, good / "**" / "images" / "disc03.png", "--out", tmp_path / "deep")
    assert masks(tmp_path / "deep") == ["disc03"]
    listed = f"{images / 'disc04.png'}\n\n{images / 'disc05.png'}\r\n"
    predict(run, "-", images / "disc06.png", "--out", tmp_path / "list", input=listed)
    assert masks(tmp_path / "list") == ["disc04", "disc05", "disc06"]
    error = refused_once("predict", run, images / "none*.png", "--out", tmp_path / "none")
    check(error, DataError, path=images / "none*.png")
    check(refused_once("predict", run, "-", "--out", tmp_path / "none"), DataError, key="paths")


@pytest.mark.parametrize("has_record", [True, False])
def test_an_interrupted_command_names_resume(has_record: bool, tmp_path: Path) -> None:
    listener = Listener()
    with pytest.raises(KeyboardInterrupt), name_resume(Record(tmp_path, {}) if has_record else None, listener):
        raise KeyboardInterrupt
    assert ("--resume" in listener.said) == has_record


def test_an_image_in_place_of_a_list(good: Path, images: Path, tmp_path: Path) -> None:
    told = refused("predict", good / "run", "-", "--out", tmp_path / "none", input=(images / "disc04.png").read_bytes())
    check(told, DataError, key="paths", named=["bytes"])
    assert not (tmp_path / "none").exists()


def test_broken_files_do_not_stop_the_rest(good: Path, images: Path, tmp_path: Path) -> None:
    """Told at the end, all of them; exit code 3; the others are written, and are in shares.csv."""
    out = tmp_path / "out"
    (tmp_path / "none.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes((images / "disc03.png").read_bytes()[:-2000])
    named = [tmp_path / "none.png", images / "disc01.png", tmp_path / "half.png", images / "disc02.png"]
    told = refused("predict", good / "run", *named, "--out", out)
    assert [problem.path.name for problem in told.problems] == ["none.png", "half.png"]
    assert masks(out) == ["disc01", "disc02"]
    assert rows(out) == ["disc01.png", "disc02.png"]
    predict(good / "run", images / "disc01.png", images / "disc02.png", "--out", tmp_path / "alone")
    for name, data in contents(out).items():
        assert name == "shares.csv" or data == contents(tmp_path / "alone")[name], "numbers were mixed up"


def test_resume(good: Path, images: Path, tmp_path: Path) -> None:
    """What is there stays; an image without its mask is made again, its overlay too; shares.csv holds all."""
    out = tmp_path / "out"
    predict(good / "run", images, "--out", out)
    whole = contents(out)
    (out / "disc05.png").unlink()
    (out / "disc07.png").unlink()
    (out / "disc05_overlay.png").write_bytes(b"half")
    (out / "shares.csv").unlink()
    before = (out / "disc01.png").stat().st_mtime_ns
    said = predict(good / "run", images, "--out", out, "--resume").output
    assert "are kept: 22" in said
    assert contents(out) == whole
    assert (out / "disc01.png").stat().st_mtime_ns == before
    assert predict(good / "run", images, "--out", out, "--resume").exit_code == 0
    assert contents(out) == whole
    error = refused_once("predict", good / "run", images, "--out", out)
    check(error, OutputError, key="--out")
    assert "--resume" in str(error)
    Image.fromarray(np.full((40, 48), 9, np.uint8)).save(out / "disc01.png")
    error = refused_once("predict", good / "run", images, "--out", out, "--resume")
    check(error, DataError, path=out, key="--out")


def test_no_room_is_told_before_anything_is_written(
    good: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 1000))
    error = refused_once("predict", good / "run", images, "--out", tmp_path / "out")
    check(error, OutputError, path=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_how_images_are_taken_is_said(good: Path, images: Path, tiler: Path, tmp_path: Path) -> None:
    image = images / "disc01.png"
    said = predict(good / "run", image, "--out", tmp_path / "a").output
    assert "chosen: --tiles = whole: whole images are resized to 32 px" in said
    said = predict(tiler, image, "--out", tmp_path / "b").output
    assert "chosen: --tiles = 512: trained on crops of 32 px at native scale" in said
    said = predict(tiler, image, "--out", tmp_path / "c", "--tiles", "whole").output
    assert "WARNING: the model was trained on crops" in said
    said = predict(good / "run", image, "--out", tmp_path / "d", "--tiles", 64, "--overlap", 0.5).output
    assert "WARNING: the model was trained on images at 0.73 of their size" in said
    assert "WARNING: the model" not in predict(tiler, image, "--out", tmp_path / "e", "--tiles", 64).output
    bundle = load_bundle(tiler)
    bundle.scale = None
    save_bundle(tmp_path / "old.safetensors", bundle)
    said = predict(tmp_path / "old.safetensors", image, "--out", tmp_path / "f", "--tiles", 64).output
    assert "does not state the scale" in said


@pytest.mark.parametrize(("times", "scale"), [(3, "0.24"), (0.3, "2.5")])
def test_images_of_another_scale(times: float, scale: str, good: Path, images: Path, tmp_path: Path) -> None:
    """Whole images that are resized far more, or far less, than those of the training are named once."""
    image = Image.open(images / "disc01.png")
    image.save(tmp_path / "usual.png")
    image.resize((round(times * image.width), round(times * image.height))).save(tmp_path / "other.png")
    given = predict(good / "run", tmp_path / "usual.png", tmp_path / "other.png", "--out", tmp_path / "out").output
    assert given.count("WARNING") == 1
    assert f"another scale than those of the training: 1 of 2, to {scale} of their size instead of 0.73;" in given
    assert "WARNING" not in predict(good / "run", tmp_path / "usual.png", "--out", tmp_path / "usual").output


def test_bad_tiles(good: Path, images: Path, tmp_path: Path) -> None:
    for words in (["--tiles", "-3"], ["--tiles", "0"], ["--tiles", "some"], ["--overlap", "1"], ["--overlap", "-0.1"]):
        error = refused_once("predict", good / "run", images, "--out", tmp_path / "out", *words)
        check(error, SettingError, key=words[0])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def large(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A georeferenced TIFF of 300 x 260 px that counts as large, its pixels discs."""
    monkeypatch.setattr(job, "_LARGE_PIXELS", 5000)
    monkeypatch.setattr("ubend.portable.shares._ROWS", 100)
    rows = [
        np.hstack([np.asarray(Image.open(images / f"disc{r * 6 + c:02d}.png")) for c in range(6)]) for r in range(4)
    ]
    pixels = np.vstack([*rows, *rows])[:300, :260]
    path = tmp_path / "field.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="zlib", extratags=GEO, metadata=None)
    return path


def test_large_images_go_by_rows(large: Path, tiler: Path, images: Path, tmp_path: Path) -> None:
    """The mask is that of the image in memory, keeps the georeference, and counts in shares.csv; others beside it."""
    out = tmp_path / "out"
    predict(tiler, large, images / "disc01.png", "--out", out, "--tiles", 64)
    assert sorted(contents(out)) == ["disc01.png", "disc01_overlay.png", "field.tif", "predict.json", "shares.csv"]
    mask = tifffile.imread(out / "field.tif")
    image = read_image(large)
    predictor = ubend.load(tiler, device="cpu", tiles=64)
    assert predictor.tiling is not None
    np.testing.assert_array_equal(mask, predictor(image).mask)
    assert 0 < (mask == 1).mean() < 1
    with tifffile.TiffFile(out / "field.tif") as file:
        assert file.pages.first.tags[33550].value == (0.5, 0.5, 0.0)
        assert file.pages.first.tags[34737].value == "WGS 84|"
    row = next(
        row
        for row in csv.DictReader(io.StringIO((out / "shares.csv").read_text()))
        if row["file"].endswith("field.tif")
    )
    assert float(row["foreground"]) == pytest.approx((mask == 1).mean(), abs=1e-6)
    before = contents(out)
    (out / "shares.csv").unlink()
    (out / ".field-01234567.tif").write_bytes(b"half")
    predict(tiler, large, images / "disc01.png", "--out", out, "--tiles", 64, "--resume")
    assert contents(out) == before, "the mask stays, half a file of a killed run goes, shares.csv holds all"


def test_thresholds_by_rows(large: Path, tiler: Path, tmp_path: Path) -> None:
    """What is asked of each pixel goes by rows; what is asked of parts needs the whole, and says so."""
    prob = prob_of(ubend.load(tiler, device="cpu", tiles=64), read_image(large))
    low = float(np.quantile(prob[1], 0.3))
    words = [tiler, large, "--tiles", 64, "--threshold", f"foreground={low}"]
    assert "held in memory" not in predict(*words, "--out", tmp_path / "rows").output
    assert not (tmp_path / "rows" / "field_overlay.png").exists()
    found = tifffile.imread(tmp_path / "rows" / "field.tif")
    assert (found == (prob[1] >= np.float32(low))).mean() > 0.9999
    assert (
        "field.tif has 0 megapixels and is held in memory"
        in predict(*words, "--out", tmp_path / "whole", "--min-area", 1).output
    )
    assert (tifffile.imread(tmp_path / "whole" / "field.tif") == found).mean() > 0.9999


def test_a_small_georeferenced_image(large: Path, tiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_LARGE_PIXELS", 10**9)
    predict(tiler, large, "--out", tmp_path / "small", "--tiles", 64)
    assert sorted(contents(tmp_path / "small")) == ["field.tif", "field_overlay.png", "predict.json", "shares.csv"]
    monkeypatch.setattr(job, "_LARGE_PIXELS", 5000)
    predict(tiler, large, "--out", tmp_path / "large", "--tiles", 64)
    assert contents(tmp_path / "small")["field.tif"] == contents(tmp_path / "large")["field.tif"]


def damage(path: Path, tile: int) -> None:
    with tifffile.TiffFile(path) as file:
        place, size = file.pages.first.dataoffsets[tile], file.pages.first.databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\x55" * size
    path.write_bytes(data)


def test_a_damaged_tile_in_the_middle(large: Path, tiler: Path, images: Path, tmp_path: Path) -> None:
    """One line; no half mask; the other images are written."""
    damage(large, 12)
    error = refused_once("predict", tiler, large, images / "disc01.png", "--out", tmp_path / "out", "--tiles", 64)
    check(error, FilesError, path=large)
    assert "128" in str(error)  # the row
    assert sorted(contents(tmp_path / "out")) == ["disc01.png", "disc01_overlay.png", "predict.json", "shares.csv"]
    assert rows(tmp_path / "out") == ["disc01.png"]


def read_prob(path: Path) -> np.ndarray:
    """(C, H, W)."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return np.moveaxis(file["prob"], 2, 0)  # type: ignore[no-any-return]
    pixels = tifffile.imread(path)
    return np.moveaxis(pixels, 2, 0) / np.iinfo(pixels.dtype).max  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["uint8", "uint16", "npz"])
def test_probabilities(kind: str, large: Path, tiler: Path, images: Path, tmp_path: Path) -> None:
    """Beside the masks, by rows too; --resume makes an image again whose probabilities are missing."""
    out, end = tmp_path / "out", "npz" if kind == "npz" else "tif"
    words = [tiler, large, images / "disc01.png", "--out", out, "--tiles", 64, "--prob", kind]
    predict(*words)
    assert set(contents(out)) == {
        "disc01.png", "disc01_overlay.png", f"disc01_prob.{end}", "field.tif", f"field_prob.{end}", "predict.json",
        "shares.csv",
    }  # fmt: skip
    predictor = ubend.load(tiler, device="cpu", tiles=64)
    for path, name in ((large, "field"), (images / "disc01.png", "disc01")):
        found, off = read_prob(out / f"{name}_prob.{end}"), 0.51 / 255 if kind == "uint8" else 1e-5
        np.testing.assert_allclose(found, prob_of(predictor, read_image(path)), atol=off)
    assert (tifffile.imread(out / "field.tif") == read_prob(out / f"field_prob.{end}").argmax(axis=0)).mean() > 0.98
    if kind != "npz":
        with tifffile.TiffFile(out / f"field_prob.{end}") as file:
            assert file.pages.first.tags[33550].value == (0.5, 0.5, 0.0)
    before = contents(out)
    for name in ("field", "disc01"):
        (out / f"{name}_prob.{end}").unlink()
    predict(*words, "--resume")
    assert contents(out) == before
    predict(*words[:3], "--out", tmp_path / "plain", "--tiles", 64)
    for name, data in contents(tmp_path / "plain").items():
        assert name == "predict.json" or data == before[name], "masks do not depend on it"


def test_a_damaged_tile_leaves_no_probabilities(large: Path, tiler: Path, images: Path, tmp_path: Path) -> None:
    damage(large, 12)
    words = [tiler, large, images / "disc01.png", "--out", tmp_path / "out", "--tiles", 64, "--prob", "uint8"]
    check(refused_once("predict", *words), FilesError, path=large)
    assert not list((tmp_path / "out").glob("*field*"))
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_another_make_is_refused(good: Path, images: Path, tiler: Path, tmp_path: Path) -> None:
    """--resume continues with the same model under the same conditions, wherever the model lies."""
    out = tmp_path / "out"
    words = ["predict", good / "run", images / "disc01.png", images / "disc02.png", "--out", out]
    predict(*words[1:], "--threshold", "foreground=0.50")
    (out / "disc02.png").unlink()
    before = contents(out)
    (tmp_path / "moved.safetensors").write_bytes((good / "run" / "model.safetensors").read_bytes())
    for model, more, keys in (
        (tiler, ["--threshold", "foreground=.5"], "MODEL"),
        (good / "run", [], "--threshold"),
        (good / "run", ["--threshold", "foreground=0.5", "--tiles", 32], "--tiles"),
        (good / "run", ["--threshold", "foreground=0.5", "--tta", "--fill-holes", "all"], "--tta, --fill-holes"),
        (good / "run", ["--threshold", "foreground=0.5", "--prob", "npz"], "--prob"),
        (good / "run", ["--threshold", "foreground=0.5", "--with", good / "run"], "--with"),
    ):
        error = refused_once("predict", model, *words[2:], *more, "--resume")
        check(error, OutputError, path=out / "predict.json", key=keys.split(", ")[0])
        assert f"values of {keys} than now (" in str(error)
        assert contents(out) == before
    predict(tmp_path / "moved.safetensors", *words[2:], "--threshold", "foreground=0.5", "--resume")
    assert masks(out) == ["disc01", "disc02"]
    (out / "predict.json").write_text("{")
    check(refused_once(*words, "--resume"), OutputError, path=out / "predict.json", key="--out")
    (out / "predict.json").unlink()
    check(refused_once(*words, "--resume"), OutputError, path=out / "disc01.png", key="--out")


def test_images_that_the_model_does_not_take(good: Path, images: Path, tmp_path: Path) -> None:
    """Other channels, another depth: one line each at the end, the rest is done."""
    rng = np.random.default_rng(0)
    for name, shape, dtype in (("five", (20, 30, 5), np.uint8), ("deep", (20, 30, 3), np.uint16)):
        tifffile.imwrite(
            tmp_path / f"{name}.tif", rng.integers(0, 200, shape).astype(dtype), photometric="minisblack",
            planarconfig="contig", metadata=None,
        )  # fmt: skip
    told = refused(
        "predict", good / "run", tmp_path / "five.tif", images / "disc01.png", tmp_path / "deep.tif", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert [(line.path.name, line.key) for line in told.problems] == [
        ("five.tif", "data.channels"),
        ("deep.tif", "dtype"),
    ]
    assert masks(tmp_path / "out") == ["disc01"]


@pytest.mark.filterwarnings("ignore:.* images (is|are) (grey|in colour)")
def test_models_of_other_images(good: Path, images: Path, tmp_path: Path) -> None:
    """A grey model and one in colour answer together, each for what it takes, whichever is first; depths must agree."""
    bundle = load_bundle(good / "run")
    grey = make_bundle(channels=1, classes=2)
    grey.labels = bundle.labels
    save_bundle(tmp_path / "grey.safetensors", grey)
    both = [tmp_path / "grey.safetensors", good / "run"]
    wanted = prob_of(ubend.load(both, device="cpu"), images / "disc01.png")
    for number, (first, second) in enumerate((both, both[::-1])):
        out = tmp_path / f"out{number}"
        predict(first, images / "disc01.png", "--with", second, "--out", out, "--prob", "npz")
        np.testing.assert_allclose(read_prob(out / "disc01_prob.npz"), wanted, atol=1e-6)
    grey.dtype = "uint16"
    save_bundle(tmp_path / "grey.safetensors", grey)
    error = refused_once("predict", *both[1:], images, "--with", both[0], "--out", tmp_path / "none")
    assert type(error) is ModelFileError


def test_other_channels_are_said_once(good: Path, images: Path, tmp_path: Path) -> None:
    """Grey and alpha files for a colour model; predicted, and reported in one line each."""
    for number in range(3):
        image = Image.open(images / "disc01.png").convert("L" if number else "RGBA")
        image.save(tmp_path / f"p{number}.png")
    said = predict(good / "run", *sorted(tmp_path.glob("*.png")), "--out", tmp_path / "out").output
    assert "2 of 3 images are grey" in said
    assert "1 of 3 images has alpha" in said
    assert "note: " not in predict(good / "run", images / "disc01.png", "--out", tmp_path / "plain").output


def test_names_that_collide(good: Path, images: Path, tmp_path: Path) -> None:
    """Also an image called as another's overlay or probabilities."""
    for name in ("disc01.jpg", "disc01_overlay.png", "disc01_prob.tif"):
        Image.open(images / "disc01.png").save(tmp_path / name)
    words = ["predict", good / "run", images / "disc01.png", "--out", tmp_path / "out"]
    for name in ("disc01.jpg", "disc01_overlay.png"):
        error = refused_once(*words, tmp_path / name)
        check(error, DataError, key="--out")
        assert name in str(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_64_megapixels_in_bounded_memory(tmp_path: Path) -> None:
    """In an interpreter of its own: the logits alone would take 512 MiB."""
    side = 8192
    block = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    path = tmp_path / "large.tif"
    tifffile.imwrite(
        path, (block for _ in range((side // 256) ** 2)), shape=(side, side), dtype=np.uint8, tile=(256, 256),
        photometric="minisblack", compression="zlib", compressionargs={"level": 1}, metadata=None,
    )  # fmt: skip
    bundle = Bundle(
        UNet(1, 2, width=1, depth=1).eval(), make_label_map([0, 1]), Sizing(256, True, 1), window_px=128, scale=(1, 1)
    )
    save_bundle(tmp_path / "tiny.safetensors", bundle)
    program = (
        ""
        "from pathlib import Path\n"
        "from large_store import anonymous_mib\n"
        "from ubend.portable import mask_job\n"
        "from ubend.core.progress import Reporter\n"
        "mask_job._LARGE_PIXELS = 2**25\n"
        "from ubend.portable.mask_predictor import PredictionOptions\n"
        "from ubend.tasks.predict import predict_paths\n"
        "import torch; torch.zeros(1).softmax(0); before = peak = anonymous_mib()\n"
        "class CountingOptions(Reporter):\n"
        "    def count(self, done, _total=0):\n"
        "        global peak; peak = max(peak, anonymous_mib())\n"
        f"predict_paths({str(tmp_path / 'tiny.safetensors')!r}, [{str(path)!r}], {str(tmp_path / 'out')!r},\n"
        "    device='cpu', options=PredictionOptions(overlap=0.0), reporter=CountingOptions())\n"
        "print('peak', peak - before)\n"
    )
    paths = [str(Path(__file__).parent.parent / folder) for folder in ("src", "benchmarks")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("peak")[-1]) < 400
    with tifffile.TiffFile(tmp_path / "out" / "large.tif") as file:
        assert file.pages.first.shape == (side, side)


def test_conditions(good: Path, images: Path, tmp_path: Path) -> None:
    """Thresholds, smallest regions and holes change masks as asked; views and more models are averaged."""

    def mask(name: str, *words: object) -> np.ndarray:
        out = tmp_path / name
        predict(good / "run", images / "disc00.png", "--out", out, *words)
        return np.asarray(Image.open(out / "disc00.png"))

    predictor = ubend.load(good / "run", device="cpu")
    prob = prob_of(predictor, images / "disc00.png")
    low = float(np.quantile(prob[1], 0.5))
    np.testing.assert_array_equal(mask("plain"), predictor(images / "disc00.png").mask)
    np.testing.assert_array_equal(mask("low", "--threshold", f"foreground={low}"), (prob[1] >= np.float32(low)) * 1)
    words = ["--threshold", f"foreground={low}", "--min-area", 9, "--min-area", "background=3", "--fill-holes", "all"]
    wanted = postprocess(prob, PostprocessOptions({1: low}, {0: 3, 1: 9}, {1: math.inf}))
    np.testing.assert_array_equal(mask("parts", *words), wanted)
    assert (wanted != mask("low", "--threshold", f"foreground={low}", "--resume")).any()
    together = mask("together", "--with", good / "run", "--tta")
    several = ubend.load([good / "run", good / "run"], device="cpu", tta=True)
    np.testing.assert_array_equal(together, several(images / "disc00.png").mask)


def test_conditions_that_cannot_be(good: Path, images: Path, tmp_path: Path) -> None:
    for words, key in (
        (["--threshold", "foregroud=0.3"], "class"),
        (["--min-area", "few"], "--min-area"),
        (["--with", tmp_path / "nowhere"], tmp_path / "nowhere"),
    ):
        error = refused_once("predict", good / "run", images / "disc00.png", "--out", tmp_path / "out", *words)
        assert key in (error.key, error.path)
        assert not (tmp_path / "out").exists()
