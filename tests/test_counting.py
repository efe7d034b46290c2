"""`ubend objects`: its files, masks as in `ubend predict`, scores against true ids, and what is refused."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

import ubend
import ubend.tasks.objects as job
from support.geotiff import PIXEL_SCALE, TIE, keys
from support.models import brighter_than_half, save_model
from support.refusal import check, contents, raises, refused, refused_once
from ubend.accel.folded import FoldedUNet
from ubend.cli.app import main
from ubend.core.errors import DataError, FilesError, MissingPackageError, OutputError, Problem, SettingError, UbendError
from ubend.instances.truth import find_truth, read_truth, score, score_lines
from ubend.metrics.panoptic import Quality, compare_objects
from ubend.portable import object_job
from ubend.portable.mask_predictor import PredictionOptions
from ubend.portable.pixel_size import read_spatial_info

TWO = np.zeros((40, 48), np.uint8)
TWO[5:15, 5:15] = TWO[5:15, 20:40] = 1
RING = np.zeros((40, 48), np.uint8)
RING[10:30, 10:30] = 1
RING[15:25, 15:25] = 0
RING[0:3, 0:3] = 1
EMPTY = np.zeros((40, 48), np.uint8)
IDS = {"two": TWO + (np.arange(48) >= 20) * TWO, "ring": RING * 2 - (np.arange(48) < 5) * RING, "empty": EMPTY}
EXPORTS = ["--export", "coco", "--export", "geojson", "--export", "panoptic"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that takes what is bright, images, and their true ids; tiles let it see each pixel."""
    save_model(tmp_path / "model.safetensors", 1, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    monkeypatch.chdir(tmp_path)
    for name, mask in (("two", TWO), ("ring", RING), ("empty", EMPTY)):
        save(tmp_path / "images" / f"{name}.png", mask * 200)
    for name, ids in IDS.items():
        save(tmp_path / "truth" / f"{name}.png", ids.astype(np.uint16) * 7)  # any numbers
    return tmp_path


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def count(*words: object, out: str = "out", images: str = "images") -> str:
    """What the command says."""
    base = ["objects", "model.safetensors", images, "--out", out, "--device", "cpu", "--tiles", "64"]
    run = CliRunner().invoke(main, [*base, *map(str, words)])
    assert run.exit_code == 0, run.output
    return run.output


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def refuse(*words: object) -> UbendError:
    """The error, of one line; nothing is written."""
    error = refused_once("objects", "model.safetensors", "images", "--out", "out", "--device", "cpu", *words)
    assert not Path("out").exists()
    return error


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_all_files(place: Path) -> None:
    """They speak of the same objects."""
    said = count(*EXPORTS, "--truth", "truth")
    out = place / "out"
    names = [f"{name}{end}" for name in IDS for end in (".geojson", "_ids.tif", "_objects.csv", "_objects.png")]
    names += [f"panoptic/{name}.png" for name in IDS]
    assert sorted(contents(out)) == sorted(
        [*names, "coco.json", "panoptic.json", "objects.csv", "images.csv", "scores.json"]
    )
    coco, panoptic = COCO(out / "coco.json"), json.loads((out / "panoptic.json").read_text())
    whole = read_table(out / "objects.csv")
    for name, true in IDS.items():
        ids = tifffile.imread(out / f"{name}_ids.tif")
        np.testing.assert_array_equal(ids, true)
        own = read_table(out / f"{name}_objects.csv")
        assert own == [row for row in whole if Path(row["file"]).stem == name]
        (image,) = [image for image in coco.imgs.values() if image["file_name"] == f"{name}.png"]
        entries = coco.loadAnns(coco.getAnnIds(image["id"]))
        (segments,) = [entry for entry in panoptic["annotations"] if entry["file_name"] == f"{name}.png"]
        assert segments["image_id"] == image["id"]
        features = json.loads((out / f"{name}.geojson").read_text())["features"]
        assert len(own) == len(entries) == len(segments["segments_info"]) == len(features) == true.max()
        for row, entry, segment, feature in zip(own, entries, segments["segments_info"], features, strict=True):
            np.testing.assert_array_equal(coco.annToMask(entry), ids == int(row["id"]))
            assert entry["area"] == segment["area"] == feature["properties"]["area_px"] == int(row["area_px"])
            assert segment["id"] == feature["id"] == int(row["id"])
    assert panoptic["categories"] == list(coco.cats.values())
    scores = json.loads((out / "scores.json").read_text())
    assert scores["method"] == "parts"
    assert scores["classes"]["organ"] == {
        **dict.fromkeys(("pq", "sq", "rq", "f1"), 1),
        **dict.fromkeys(("true", "found", "matched"), 4),
        **dict.fromkeys(("count_error", "mean_absolute_count_error"), 0),
    }
    assert scores["per_picture"][str(Path("images/empty.png"))]["organ"]["pq"] is None
    assert "organ   1.0000   1.0000   1.0000        4        4       +0" in said
    assert "compared with truth, 3 images" in said


def test_a_row_for_each_image(place: Path) -> None:
    """Count, mean area, density and share of the seen pixels, also of an image without objects."""
    count()
    empty, ring, two = read_table(place / "out" / "images.csv")
    assert [Path(row["file"]).stem for row in (empty, ring, two)] == ["empty", "ring", "two"]
    assert (empty["count"], empty["mean_area_px"], empty["density_per_px2"]) == ("0", "", "0.0")
    assert (two["class"], two["count"], two["mean_area_px"]) == ("organ", "2", "150.0")
    assert float(two["density_per_px2"]) == pytest.approx(2 / (40 * 48), rel=1e-5)
    assert float(two["foreground_share"]) == pytest.approx(300 / (40 * 48), rel=1e-5)
    assert float(ring["foreground_share"]) == pytest.approx(309 / (40 * 48), rel=1e-5)
    assert not any(name.endswith(("um2", "mm2", "km2", "_m2")) for name in two)


def test_one_summary_line_for_all_images(place: Path) -> None:
    """However many they are; it was a line for each of the first ten."""
    for number in range(11):
        save(place / "images" / f"more{number:02d}.png", TWO * 200)
    said = count()
    lines = [line for line in said.splitlines() if line.startswith("organ: ")]
    assert len(lines) == 1
    for figure in ("organ: objects 26, images 14", "0 to 2 objects per image", "median 2", "images.csv"):
        assert figure in lines[0]
    assert "more00.png" not in said


def test_objects_that_touch_are_noticed(place: Path) -> None:
    """With the method that separates them; not when nothing touches, and not when they are separated."""
    y, x = np.mgrid[:60, :90]
    places = [(12, 12), (12, 28), (28, 12), (45, 60), (45, 80), (12, 60), (12, 80)]  # the first three are one part
    discs = np.any([(y - row) ** 2 + (x - column) ** 2 <= 81 for row, column in places], axis=0)
    save(place / "discs" / "touching.png", discs.astype(np.uint8) * 200)
    save(place / "apart" / "apart.png", (discs & (x > 40)).astype(np.uint8) * 200)
    said = count(out="a", images="discs")
    (line,) = (line for line in said.splitlines() if "touch" in line)
    assert "1 of 5 objects" in line
    assert "--method distance" in line
    assert "touch" not in count(out="b", images="apart")
    assert "touch" not in count("--method", "distance", out="c", images="discs")


def test_pixel_size(place: Path) -> None:
    """For files that state none, and instead of what a file states, which is reported once."""
    said = count("--pixel-size", "0.5 µm", out="plain")
    assert "--pixel-size" not in said
    assert "tell the size" not in said
    rows = read_table(place / "plain" / "objects.csv")
    assert [row["area_um2"] for row in rows if "two" in row["file"]] == ["25.0", "50.0"]
    *_others, two = read_table(place / "plain" / "images.csv")
    assert two["mean_area_um2"] == "37.5"
    assert float(two["density_per_mm2"]) == pytest.approx(2 / (40 * 48 * 0.25e-6), rel=1e-5)
    (place / "maps").mkdir()
    tags = [PIXEL_SCALE, TIE, keys(model=1, projected=32633)]
    tifffile.imwrite(place / "maps" / "field.tif", TWO * 200, extratags=tags, metadata=None)
    tifffile.imwrite(place / "maps" / "slide.tif", TWO * 200, resolution=(10000, 10000), resolutionunit="CENTIMETER")
    said = count("--pixel-size", "30cm", images="maps")
    (line,) = (line for line in said.splitlines() if "--pixel-size" in line)
    assert "2 of 2 files" in line
    assert [row["area_m2"] for row in read_table(place / "out" / "objects.csv")] == ["9.0", "18.0"] * 2
    assert read_spatial_info(place / "out" / "field_ids.tif") == read_spatial_info(place / "maps" / "field.tif")
    for row in read_table(place / "out" / "images.csv"):
        assert float(row["density_per_km2"]) == pytest.approx(2 / (40 * 48 * 0.09e-6), rel=1e-5)


def test_bad_pixel_size(place: Path) -> None:
    check(refuse("--pixel-size", "0.325"), SettingError, key="--pixel-size", named=["0.325", "0.325um"])
    with raises(SettingError, key="--pixel-size", named=["0.325", "0.325um"]):
        ubend.objects("model.safetensors", paths=["images"], out="out", pixel_size=0.325)  # type: ignore[arg-type]


def test_without_objects_there_is_no_median_area(place: Path) -> None:
    said = count(images="images/empty.png")
    assert "no objects, images 1; counts of each image:" in said
    assert "median" not in said


def test_errors_are_counted(place: Path) -> None:
    """One image misses an object, one has two too many: +1 in all, 1 an image on the mean of three."""
    save(place / "truth" / "two.png", np.where(np.arange(40)[:, None] < 8, IDS["two"], 0))  # the top 3 rows of 10
    save(place / "truth" / "ring.png", IDS["ring"] % 2)
    save(place / "truth" / "empty.png", np.eye(40, 48, dtype=np.uint8))
    said = count("--truth", "truth")
    organ = json.loads((place / "out" / "scores.json").read_text())["classes"]["organ"]
    assert (organ["true"], organ["found"], organ["matched"], organ["count_error"]) == (4, 4, 1, 0)
    assert organ["mean_absolute_count_error"] == pytest.approx(2 / 3)
    assert organ["f1"] == organ["rq"] == 0.25
    assert organ["sq"] == 1
    assert "not a class mask" not in said


@pytest.mark.parametrize("classes", [(255,), (1, 2)])
def test_masks_in_place_of_ids_are_noticed(classes: tuple[int, ...], place: Path) -> None:
    """A mask of one class, or of two, each of which has two regions or more."""
    for name, ids in IDS.items():
        mask = np.zeros(ids.shape, np.uint8)
        for number, value in enumerate(classes):
            mask[10 * number : 10 * number + 3, 0:40:8] = value
        save(place / "truth" / f"{name}.png", mask)
    (place / "images" / "empty.png").unlink()
    said = count("--truth", "truth")
    assert "not a class mask" in said


def test_flags_arrive(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def note(_model: Path, _device: str | None, options: PredictionOptions) -> None:
        given.append(options)
        raise DataError("seen")

    monkeypatch.setattr(job, "load_mask_predictor", note)
    words = ["--with", "other", "--tta", "--threshold", "organ=0.3", "--fill-holes", "9", "--tiles", "32"]
    assert str(refuse(*words, "--overlap", "0.5")) == "seen"
    wanted = PredictionOptions(models=(Path("other"),), tta=True, threshold=("organ=0.3",), fill_holes=("9",), tiles=32)
    assert given == [replace(wanted, overlap=0.5)]


@pytest.mark.parametrize(
    "flags",
    [[], ["--tiles", "32"], ["--tta", "--with", "run", "--threshold", "foreground=0.4"], ["--fill-holes", "all"]],
)
def test_masks_are_those_of_predict(flags: list[str], good: Path, tmp_path: Path) -> None:
    images = [str(good / "data" / "images" / f"disc0{number}.png") for number in range(3)]
    flags = [str(good / "run") if word == "run" else word for word in flags]
    for kind, own in (("predict", []), ("objects", ["--method", "parts"])):
        words = [kind, str(good / "run"), *images, "--out", str(tmp_path / kind), "--device", "cpu", *flags, *own]
        run = CliRunner().invoke(main, words)
        assert run.exit_code == 0, run.output
    seen = 0
    for name in ("disc00", "disc01", "disc02"):
        mask = np.asarray(Image.open(tmp_path / "predict" / f"{name}.png"))
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "objects" / f"{name}_ids.tif") > 0, mask == 1)
        seen += int(mask.sum())
    assert seen


def test_fill_holes(place: Path) -> None:
    count("--fill-holes", "all")
    assert (tifffile.imread(place / "out" / "ring_ids.tif")[10:30, 10:30] > 0).all()


def test_an_image_on_the_map(place: Path) -> None:
    """Ids keep the georeference, polygons have the map's coordinates, the table has square metres."""
    tags = [PIXEL_SCALE, TIE, keys(model=1, projected=32633)]
    (place / "maps").mkdir()
    tifffile.imwrite(place / "maps" / "field.tif", TWO * 200, extratags=tags, metadata=None)
    tifffile.imwrite(place / "maps" / "slide.tif", TWO * 200, resolution=(10000, 10000), resolutionunit="CENTIMETER")
    said = count("--export", "geojson", images="maps")
    assert "2 of 2 files state the size of a pixel\n" in said
    assert read_spatial_info(place / "out" / "field_ids.tif") == read_spatial_info(place / "maps" / "field.tif")
    told = json.loads((place / "out" / "field.geojson").read_text())
    assert told["crs"]["properties"]["name"].endswith("EPSG::32633")
    assert [499990 + 50, 4600040 - 100] in told["features"][0]["geometry"]["coordinates"][0]
    assert told["features"][0]["properties"]["area_m2"] == 100 * 200
    rows = read_table(place / "out" / "objects.csv")
    assert [row["area_m2"] for row in rows] == ["20000.0", "40000.0", "", ""]
    assert [row["area_um2"] for row in rows] == ["", "", "100.0", "200.0"]


def test_files_without_a_pixel_size_and_with_that_of_a_print_are_named(place: Path) -> None:
    (place / "scans").mkdir()
    for name, resolution in {"print": (300, 300), "scan": (600, 600), "screen": (72, 72)}.items():
        tifffile.imwrite(
            place / "scans" / f"{name}.tif", TWO * 200, resolution=resolution, resolutionunit="INCH", metadata=None
        )
    said = count(images="scans")
    assert "2 of 3 files state the size of a pixel; without it: screen.tif" in said
    (note,) = (line for line in said.splitlines() if "300 px per inch" in line)
    assert "print.tif" in note
    assert "scan.tif" not in note
    assert "per inch" not in count("--pixel-size", "1um", images="scans", out="given")


def test_broken_files_do_not_stop_the_rest(place: Path) -> None:
    """Neither an image nor its true ids."""
    (place / "images" / "none.png").write_bytes(b"")
    (place / "images" / "half.png").write_bytes((place / "images" / "two.png").read_bytes()[:-30])
    save(place / "truth" / "half.png", EMPTY)
    tifffile.imwrite(place / "truth" / "ring.tif", IDS["ring"] * 0.5)
    (place / "truth" / "ring.png").unlink()
    words = ["objects", "model.safetensors", "images", "--out", "out", "--truth", "truth", "--tiles", 64, *EXPORTS]
    told = refused(*words)
    assert [problem.path.name for problem in told.problems] == ["half.png", "none.png", "ring.tif"]
    assert {path.stem.removesuffix("_ids") for path in (place / "out").glob("*_ids.tif")} == {"two", "empty"}
    assert len(json.loads((place / "out" / "coco.json").read_text())["images"]) == 2
    assert len(json.loads((place / "out" / "scores.json").read_text())["per_picture"]) == 2


def test_bad_truth(place: Path) -> None:
    """A missing folder stops everything; what is wrong with one image's true ids is the problem of that image."""

    def refuse_two() -> Problem:
        error = refused("objects", "model.safetensors", "images", "--out", "out", "--truth", "truth", "--device", "cpu")
        assert isinstance(error, FilesError)
        assert {*json.loads((place / "out" / "scores.json").read_text())["per_picture"]} == {
            "images/empty.png", "images/ring.png",
        }  # fmt: skip
        shutil.rmtree(place / "out")
        (problem,) = error.problems
        assert isinstance(problem, Problem)
        return problem

    check(refuse("--truth", "nowhere"), SettingError, path=Path("nowhere"), key="--truth")
    (place / "truth" / "two.png").unlink()
    problem = refuse_two()
    assert (problem.path, problem.key) == (Path("images") / "two.png", "--truth")
    save(place / "truth" / "two.png", TWO[:, :40])
    problem = refuse_two()
    assert (problem.path, problem.key) == (Path("truth") / "two.png", "--truth")
    assert "40x40" in problem
    assert "48x40" in problem
    tifffile.imwrite(place / "truth" / "two_ids.tif", IDS["two"])
    problem = refuse_two()
    assert problem.path == Path("images") / "two.png"
    assert "two_ids.tif" in problem
    (place / "truth" / "two.png").unlink()
    count("--truth", "truth")
    for path in (place / "truth").iterdir():
        path.unlink()
    shutil.rmtree(place / "out")
    error = refused("objects", "model.safetensors", "images", "--out", "out", "--truth", "truth", "--device", "cpu")
    assert len(error.problems) == 3
    assert not (place / "out").exists()


def test_what_is_there_is_not_overwritten(place: Path) -> None:
    for name in ("coco.json", "ring.geojson", "panoptic/two.png", "panoptic.json", "scores.json", "two_objects.csv"):
        (place / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "out" / name).write_text("mine")
        error = refused_once(
            "objects", "model.safetensors", "images", "--out", "out", "--truth", "truth", *EXPORTS, "--device", "cpu"
        )
        check(error, OutputError, path=Path("out") / name, key="--out")
        (place / "out" / name).unlink()
    count()


def test_bad_exports(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["objects", "model.safetensors", "images", "--out", "out", "--export"]
    run = CliRunner().invoke(main, [*words, "yolo"])
    assert run.exit_code == 2
    assert all(name in run.output for name in ("yolo", "coco", "geojson", "panoptic"))
    monkeypatch.setattr(object_job, "find_spec", lambda name: None if name == "shapely" else name)
    for name in ("coco", "geojson"):
        error = refuse("--export", name)
        check(error, MissingPackageError, key="shapely")
        assert name in str(error)
        assert "pip install 'ubend[objects]'" in str(error)
    count("--export", "panoptic")


def test_bad_tiles(place: Path) -> None:
    check(refuse("--tiles", "some"), SettingError, key="--tiles")


def test_true_ids_of_several_classes(tmp_path: Path) -> None:
    """Each class has its folder; ids begin again in it; a pixel is of one class."""
    names = ("background", "a", "b", "contour")
    for kind, ids in (("a", TWO), ("b", RING)):
        (tmp_path / kind).mkdir()
        tifffile.imwrite(tmp_path / kind / "x.tif", ids.astype(np.uint32))
    image = tmp_path / "x.jpg"
    (files,) = find_truth(tmp_path, {image: (40, 48)}, names).values()
    with raises(DataError, path=tmp_path / "b" / "x.tif", key="--truth"):
        read_truth(files)
    tifffile.imwrite(tmp_path / "b" / "x.tif", (EMPTY + 3 * np.eye(40, 48)).astype(np.uint32) * (TWO == 0))
    truth = read_truth(files)
    np.testing.assert_array_equal(truth.classes, [1, 2])
    np.testing.assert_array_equal(truth.ids == 1, TWO)
    qualities = compare_objects(truth.ids, truth.classes, truth.ids, truth.classes, 4)
    scores = score({image: qualities}, names)
    assert list(scores["classes"]) == ["a", "b"]
    assert [line.split()[0] for line in score_lines(scores)[1:]] == ["a", "b"]
    (tmp_path / "b" / "x.tif").unlink()
    with raises(DataError, path=image, key="--truth"):
        find_truth(tmp_path, {image: (40, 48)}, names)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 5, 3), np.uint8), np.full((4, 5), -1, np.int16), np.zeros((4, 5), np.float32)]
)
def test_no_ids(pixels: NDArray[Any], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", pixels)
    with raises(DataError, path=tmp_path / "x.tif", key="--truth"):
        read_truth({1: tmp_path / "x.tif"})


def test_true_ids_without_ground(tmp_path: Path) -> None:
    """Where no pixel is 0, the least number is an object too; large numbers are read."""
    tifffile.imwrite(tmp_path / "x.tif", np.array([[5, 5, 2**31]], np.uint32))
    np.testing.assert_array_equal(read_truth({1: tmp_path / "x.tif"}).ids, [[1, 1, 2]])


def test_nothing_to_score() -> None:
    scores = score({Path("x"): [Quality(), Quality()]}, ("background", "cell"))
    assert scores["classes"]["cell"]["pq"] is None
    assert "-" in score_lines(scores)[1]
    assert not any(isinstance(value, float) and math.isnan(value) for value in scores["classes"]["cell"].values())


def test_scores_without_images_are_undefined() -> None:
    scores = score({}, ("background", "cell"))
    assert scores["classes"]["cell"]["mean_absolute_count_error"] is None
    assert score_lines(scores)[1].split()[-1] == "-"
