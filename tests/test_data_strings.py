"""Strings that are data: purposes of random draws, names of files, tensors, columns and keys.

Changing one makes runs draw other numbers, or files of before unreadable, or breaks what others wrote to read ours.
"""

import ast
import csv
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open

import ubend
from support import ROOT
from ubend.cli.app import main
from ubend.core import counter_rng
from ubend.core.counter_rng import Purpose, random_bits, random_normal, random_uniform, shuffled_item

PURPOSES = {
    "anchors",
    "bootstrap",
    "candidates",
    "dropout",
    "elastic",
    "export",
    "foreground",
    "gain",
    "hyperplanes",
    "noise field",
    "order of round",
    "warp",
}


def _word(seed: int, words: str, position: int, column: int) -> int:
    """The 64 bits of a draw, in Python's integers: SplitMix64 of the position, then of the column."""
    golden = 0x9E3779B97F4A7C15

    def mix(word: int) -> int:
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    key = int.from_bytes(hashlib.blake2b(f"{seed}/{words}".encode(), digest_size=8).digest(), "little")
    return mix((mix((position * golden + key) % 2**64) + (column + 1) * golden) % 2**64)


def test_the_purposes() -> None:
    assert set(get_args(Purpose)) == PURPOSES
    used = {
        call.args[1].value
        for path in (ROOT / "src").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        and call.func.id in ("random_bits", "random_uniform", "random_normal")
        and len(call.args) > 1 and isinstance(call.args[1], ast.Constant)
    }  # fmt: skip
    assert used == PURPOSES


@pytest.mark.parametrize("purpose", sorted(PURPOSES))
@pytest.mark.parametrize("number", [None, 2])
def test_what_is_drawn_for_a_purpose(purpose: Any, number: int | None) -> None:
    words = purpose if number is None else f"{purpose} {number}"
    wanted = [[_word(7, words, position, column) for column in range(3)] for position in (0, 5, 10**12)]
    places = np.array([0, 5, 10**12])
    assert random_bits(7, purpose, places, 3, number).tolist() == wanted
    assert random_uniform(7, purpose, places, 3, number).tolist() == [
        [(w >> 11) / 2**53 for w in row] for row in wanted
    ]
    if number is None:
        first, second = (np.array(wanted)[:, column] // 2**11 / 2**53 for column in (0, 1))
        normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
        np.testing.assert_allclose(random_normal(7, purpose, places, 1)[:, 0], normal, atol=1e-12)


def test_the_order_of_a_round() -> None:
    counter_rng._order_of_round.cache_clear()
    keys = [_word(7, "order of round 3", item, 0) for item in range(9)]
    assert shuffled_item(7, 9, np.arange(27, 36)).tolist() == sorted(range(9), key=keys.__getitem__)


# ------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, and what the commands write with it: `cells`, `cache`, `data`, `run`, `masks`, `objects`, ..."""
    place = tmp_path_factory.mktemp("strings")
    before = os.environ["UBEND_CACHE"]
    os.environ["UBEND_CACHE"] = str(place / "cache")
    try:
        ubend.draw_sample(place / "cells", count=9)
        Image.new("L", (8, 8)).save(place / "cells" / "masks" / "cell_008.png")  # of another size than its image
        flags = {"size": 32, "width": 2, "epochs": 2, "batch": 4, "device": "cpu", "skip_bad": True}
        ubend.fit(place / "cells", out=place / "run", settings={"model.depth": 2}, **flags)
        with Image.open(place / "cells" / "images" / "cell_000.png") as image:
            tifffile.imwrite(place / "a.tif", np.asarray(image), photometric="rgb", resolution=(2e4, 2e4),
                             resolutionunit="CENTIMETER")  # fmt: skip
        model = [place / "run", place / "a.tif", "--device", "cpu"]
        for words in (
            ["data", place / "cells", "--skip-bad", "--out", place / "data"],
            ["predict", *model, "--out", place / "masks"],
            ["objects", *model, "--method", "parts", "--out", place / "objects"],
            ["evaluate", place / "run", "--device", "cpu", "--out", place / "test.json"],
        ):
            result = CliRunner().invoke(main, list(map(str, words)))
            assert result.exit_code == 0, result.output
    finally:
        os.environ["UBEND_CACHE"] = before
    return place


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _columns(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_files(place: Path) -> None:
    assert _files(place / "run") == {
        "curves.png",
        "data.csv",
        "metrics.jsonl",
        "model.safetensors",
        "panels/epoch_0001.png",
        "panels/epoch_0002.png",
        "report.html",
        "resume.safetensors",
        "run.json",
        "scores.json",
        "settings.toml",
        "findings.json",
        "skipped.csv",
        "timing.jsonl",
    }
    assert _files(place / "data") == {"data.toml", "samples.png", "skipped.csv", "split.csv"}
    assert _files(place / "masks") == {"a.png", "a_overlay.png", "predict.json", "shares.csv"}
    assert _files(place / "objects") == {"a_ids.tif", "a_objects.csv", "a_objects.png", "images.csv", "objects.csv"}
    cached = {re.sub("^[0-9a-f]{24}", "KEY", name) for name in _files(place / "cache")}
    assert cached == {
        "KEY.files.json",
        "KEY.lock",
        "KEY.survey.npz",
        "KEY.widths.npz",
        "KEY/images.bin",
        "KEY/index.npz",
        "KEY/masks.bin",
        "KEY/store.json",
    }


def test_columns(place: Path) -> None:
    assert _columns(place / "run" / "data.csv") == [
        "name",
        "image",
        "mask",
        "split",
        "group",
        "image_hash",
        "mask_hash",
    ]
    assert _columns(place / "run" / "skipped.csv") == ["name", "problem"]
    assert _columns(place / "data" / "split.csv") == ["file", "split", "group"]
    assert _columns(place / "masks" / "shares.csv") == ["file", "background", "cell", "contour"]
    expected = ["file", "id", "class", "area_px", "perimeter_px", "row", "column"]
    expected += ["area_um2", "perimeter_um", "row_um", "column_um"]
    expected += ["top", "left", "bottom", "right", "eccentricity", "solidity", "mean_0", "mean_1", "mean_2"]
    assert _columns(place / "objects" / "objects.csv") == expected
    expected = ["file", "class", "count", "mean_area_px", "mean_area_um2", "density_per_px2", "density_per_mm2"]
    assert _columns(place / "objects" / "images.csv") == [*expected, "foreground_share"]


def test_keys(place: Path) -> None:
    scores, again = _json(place / "run" / "scores.json"), _json(place / "test.json")
    assert set(scores) == {"part", "recipe", "native", "model_size", "per_picture"} | {
        "boundary",
        "calibration",
        "confusion",
        "images",
        "intervals",
        "missed_objects",
    }
    assert set(again) == set(scores) - {"recipe"}
    summary = {"dice", "iou", "pixel_accuracy", "pictures", "defined", "cross_entropy", "true_share", "predicted_share"}
    summary |= {"precision", "recall"}
    classes = {"background", "cell", "contour"}
    for part in (scores["native"], scores["model_size"], again["native"], again["model_size"]):
        assert set(part) == summary
        for measure in ("dice", "iou"):
            assert set(part[measure]) == {"per_image", "median", "worst_decile", "pooled"}
            assert set(part[measure]["pooled"]) == classes | {"mean", "mean_foreground"}
    for image in scores["per_picture"].values():
        assert set(image) == {"dice", "iou", "precision", "recall", "boundary_f1", "hausdorff_95", "surface_distance"}
    for about in scores["images"].values():
        assert set(about) == {"image_hash", "mask_hash", "group"}
    assert set(scores["confusion"]) == classes == set(scores["confusion"]["cell"])
    for name, keys in (
        ("metrics", {"epoch", "step", "train_loss", "val_loss", "val_dice", "lr", "best"}),
        ("timing", {"epoch", "train_s", "validation_s", "images_per_s", "seconds_left"}),
    ):
        lines = (place / "run" / f"{name}.jsonl").read_text().splitlines()
        assert [set(json.loads(line)) for line in lines] == [keys] * 2
    assert set(_json(place / "masks" / "predict.json")) == {
        "ubend",
        "models",
        "thresholds",
        "min_area",
        "fill_holes",
        "window",
        "prob",
        "files",
    }


def test_model_file(place: Path) -> None:
    with safe_open(place / "run" / "model.safetensors", "pt") as file:
        assert set(file.metadata()) == {"ubend"}
        header, names = json.loads(file.metadata()["ubend"]), set(file.keys())
    assert set(header) == {
        "format",
        "network",
        "labels",
        "sizing",
        "about",
        "dtype",
        "precision",
        "window_px",
        "scale",
        "orientation",
        "flips",
        "image_hashes",
        "digest",
    }
    assert set(header["labels"]) == {"names", "kind", "codes", "colors", "ignored", "reach", "others"}
    assert set(header["sizing"]) == {"size_px", "keep_aspect", "channels"}
    assert {name.split(".")[0] for name in names} == {"mean", "std", "stem", "encoders", "decoders", "head"}


def test_resume_file(place: Path) -> None:
    with safe_open(place / "run" / "resume.safetensors", "pt") as file:
        assert set(file.metadata()) == {"ubend_state"}
        progress, names = json.loads(file.metadata()["ubend_state"]), set(file.keys())
    assert set(progress) == {
        "step",
        "history",
        "best_value",
        "best_epoch",
        "stopped",
        "branch",
        "micro_batch",
        "validation_batch",
    }
    with safe_open(place / "run" / "model.safetensors", "pt") as file:
        weights = set(file.keys())
    for prefix in ("model.", "average.", "best."):
        assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == weights
    rest = {re.sub(r"\d+", "N", name) for name in names if not name.startswith(("model.", "average.", "best."))}
    assert rest == {"sums", "optimizer.N.step", "optimizer.N.exp_avg", "optimizer.N.exp_avg_sq"}


def test_store(place: Path) -> None:
    folders = [path for path in (place / "cache").iterdir() if path.is_dir()]  # of two sizes
    for folder in folders:
        facts = _json(folder / "store.json")
        assert set(facts) == {
            "version",
            "size_px",
            "keep_aspect",
            "channels",
            "dtype",
            "hashes",
            "folder",
            "files",
            "changed_ns",
            "digest",
        }
        with np.load(folder / "index.npz") as index:
            assert set(index) == {"offsets", "shapes_hw", "native_hw", "class_pixels", "pixel_hashes", "thumbnails"} | {
                "has_unseen"
            }
    assert len(folders) == 2
    (survey,) = (place / "cache").glob("*.survey.npz")
    with np.load(survey) as arrays:
        assert set(arrays) == {
            "folder",
            "colored",
            "with_palette",
            "lossy",
            "starts",
            "codes",
            "pixels",
            "shown",
            "covered",
        }
