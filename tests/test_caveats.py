"""Images of a model's training are recognised and not scored, and small test sets are reported."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from support.commands import succeed
from support.discs import draw_disc, make_discs
from support.refusal import refused_once
from ubend.cli.app import main
from ubend.evaluation.caveats import SplitLookup, describe_few
from ubend.io.images import hash_pixels, read_image
from ubend.layouts.pairs import Pair, SplitName
from ubend.models.model_file import MAX_HASHES, load_bundle, pack_hashes, save_bundle, unpack_hashes
from ubend.tasks.evaluate import evaluate, read_run_pairs


def copy_pairs(good: Path, folder: Path, split: SplitName | None, suffix: str = ".png") -> list[str]:
    """The images of a split of the run, saved again under other names, with their masks; returns the names."""
    names = []
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for pair in read_run_pairs(good / "run"):
        if split in (None, pair.split):
            name = f"copy-{pair.name}"
            Image.open(pair.image).save(folder / "images" / f"{name}{suffix}")
            shutil.copy(pair.mask.path, folder / "masks" / f"{name}.png")
            names.append(name)
    return names


def add_new(folder: Path, count: int) -> list[str]:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, mask = draw_disc(1000 + number)
        Image.fromarray(image).save(folder / "images" / f"new{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"new{number}.png")
    return [f"new{number}" for number in range(count)]


def score(model: Path, *words: object, out: Path) -> tuple[dict[str, Any], str]:
    """The scores and what is reported."""
    said = succeed("evaluate", model, *words, "--out", out).output
    return json.loads(out.read_text()), said


@pytest.fixture
def unnamed(good: Path, tmp_path: Path) -> Path:
    """The run's model as a file of an earlier version, which does not name its images."""
    bundle = load_bundle(good / "run")
    bundle.image_hashes = None
    save_bundle(tmp_path / "unnamed.safetensors", bundle)
    return tmp_path / "unnamed.safetensors"


# ------------------------------------------------------------------------------------------------ hashes


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("uint16", 1), ("float32", 3)])
def test_copies_of_the_same_pixels_have_one_hash(dtype: str, channels: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 250, (9, 14, channels)).astype(dtype)
    kind = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", values.squeeze(), compression="zlib", photometric=kind)
    tifffile.imwrite(tmp_path / "b.tif", values.squeeze(), byteorder=">", rowsperstrip=2, photometric=kind)
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    if dtype != "float32":
        Image.fromarray(values.squeeze()).save(tmp_path / "c.png")
        paths.append(tmp_path / "c.png")
    hashes = {hash_pixels(read_image(path, channels)) for path in paths}
    assert len(hashes) == 1
    assert hashes == {hash_pixels(values)}


def test_other_pixels_have_other_hashes() -> None:
    values = np.zeros((6, 4, 3), np.uint8)
    changed = values.copy()
    changed[5, 3, 2] = 1
    others = [changed, values.reshape(4, 6, 3), values.astype(np.uint16), values[:5]]
    assert len({hash_pixels(one) for one in [values, *others]}) == 5


def test_hashes_are_kept_as_text() -> None:
    hashes = np.array([2**64 - 1, 0, 7], np.uint64)
    assert unpack_hashes(pack_hashes(hashes)) == [0, 7, 2**64 - 1]
    assert len(unpack_hashes(pack_hashes(np.arange(MAX_HASHES + 5, dtype=np.uint64)))) == MAX_HASHES


def test_a_model_file_names_the_images_of_each_split(good: Path) -> None:
    known = SplitLookup([load_bundle(good / "run")])
    assert known.complete
    pairs: Sequence[Pair] = read_run_pairs(good / "run")
    assert [known.find_split(read_image(pair.image, 3)) for pair in pairs] == [pair.split for pair in pairs]
    assert known.find_split(draw_disc(1000)[0]) is None


def test_the_largest_header_can_be_read(good: Path, tmp_path: Path) -> None:
    bundle = load_bundle(good / "run")
    many = pack_hashes(np.arange(MAX_HASHES, dtype=np.uint64))
    bundle.image_hashes = {"train": many, "val": many, "test": many}
    save_bundle(tmp_path / "m.safetensors", bundle)
    assert load_bundle(tmp_path / "m.safetensors").image_hashes == bundle.image_hashes


# ------------------------------------------------------------------------------------------------ evaluate


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_training_images_are_left_out(suffix: str, good: Path, tmp_path: Path) -> None:
    """Of a copy of the model file alone; the others get the scores that they get alone, to the last digit."""
    shutil.copy(good / "run" / "model.safetensors", tmp_path / "m.safetensors")
    new = add_new(tmp_path / "new", 3)
    alone, said_alone = score(tmp_path / "m.safetensors", tmp_path / "new", out=tmp_path / "alone.json")
    assert "left out" not in said_alone
    train = copy_pairs(good, tmp_path / "mixed", "train", suffix)
    add_new(tmp_path / "mixed", 3)
    scores, said = score(tmp_path / "m.safetensors", tmp_path / "mixed", out=tmp_path / "mixed.json")
    assert scores == alone
    assert [*scores["per_picture"]] == new
    assert f"{len(train)} training images" in said
    assert train[0] in said


def test_scores_of_new_images_are_as_without_hashes(good: Path, unnamed: Path, tmp_path: Path) -> None:
    add_new(tmp_path / "new", 4)
    named, said = score(good / "run", tmp_path / "new", out=tmp_path / "a.json")
    plain, said_plain = score(unnamed, tmp_path / "new", out=tmp_path / "b.json")
    assert named == plain
    assert named["part"] == "all"
    assert "it is unknown whether" in said_plain
    assert "it is unknown whether" not in said


def test_without_hashes_all_are_scored(good: Path, unnamed: Path, tmp_path: Path) -> None:
    train = copy_pairs(good, tmp_path / "data", "train")
    scores, said = score(unnamed, tmp_path / "data", out=tmp_path / "a.json")
    assert sorted(scores["per_picture"]) == sorted(train)
    assert "it is unknown whether" in said


def test_only_training_images_are_refused(good: Path, tmp_path: Path) -> None:
    train = copy_pairs(good, tmp_path / "data", "train")
    error = refused_once("evaluate", good / "run", tmp_path / "data", "--device", "cpu")
    assert error.key == "--subset"
    assert str(len(train)) in str(error)
    scores, said = score(good / "run", tmp_path / "data", "--subset", "train", out=tmp_path / "a.json")
    assert len(scores["per_picture"]) == len(train)
    assert "left out" not in said


def test_training_images_in_a_stated_test_part(good: Path, tmp_path: Path) -> None:
    """A folder that calls them test images does not make them so."""
    train = copy_pairs(good, tmp_path / "data" / "test", "train")
    add_new(tmp_path / "data" / "test", 2)
    add_new(tmp_path / "data" / "train", 2)
    scores, said = score(good / "run", tmp_path / "data", out=tmp_path / "a.json")
    assert len(scores["per_picture"]) == 2
    assert f"{len(train)} training images" in said


def test_validation_images_are_scored_and_told(good: Path, tmp_path: Path) -> None:
    validation = copy_pairs(good, tmp_path / "data", "val")
    new = add_new(tmp_path / "data", 2)
    scores, said = score(good / "run", tmp_path / "data", out=tmp_path / "a.json")
    assert sorted(scores["per_picture"]) == sorted([*validation, *new])
    assert f"{len(validation)} of the scored images are validation images" in said
    _scores, said = score(good / "run", "--subset", "val", out=tmp_path / "b.json")
    assert f"{len(validation)} of the scored images are validation images" in said
    _scores, said = score(good / "run", out=tmp_path / "c.json")
    assert "validation" not in said


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("part", [None, "test", "val"])
def test_a_moved_folder_keeps_its_split(part: SplitName | None, suffix: str, good: Path, tmp_path: Path) -> None:
    copy_pairs(good, tmp_path / "elsewhere", None, suffix)
    here = evaluate(good / "run", subset=part, device="cpu")
    there = evaluate(good / "run" / "model.safetensors", tmp_path / "elsewhere", subset=part, device="cpu")
    assert there["part"] == here["part"] == (part or "test")
    assert there["native"] == here["native"]
    assert [*there["per_picture"]] == [f"copy-{name}" for name in here["per_picture"]]


def test_an_absent_part(good: Path, tmp_path: Path) -> None:
    add_new(tmp_path / "new", 2)
    assert (
        refused_once("evaluate", good / "run", tmp_path / "new", "--subset", "test", "--device", "cpu").key
        == "--subset"
    )


# ------------------------------------------------------------------------------------------- few images


def test_few_images(good: Path, tmp_path: Path) -> None:
    assert describe_few(10, None) == []
    add_new(tmp_path / "few", 9)
    _scores, said = score(good / "run", tmp_path / "few", out=tmp_path / "a.json")
    assert describe_few(9, None)[0] in said
    add_new(tmp_path / "enough", 10)
    _scores, said = score(good / "run", tmp_path / "enough", out=tmp_path / "b.json")
    assert "rough estimate" not in said
    _scores, said = score(good / "run", out=tmp_path / "c.json")
    assert "only 4 test images" in said


@pytest.mark.parametrize(("count", "told"), [(24, True), (80, False)])
def test_data_says_that_few_are_scored(count: int, told: bool, tmp_path: Path) -> None:
    make_discs(tmp_path / "discs", count)
    result = CliRunner().invoke(main, ["data", str(tmp_path / "discs"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if "rough estimate" in line]
    assert [("val" in line, "data.val_share" in line) for line in lines[:1]] == [(True, True)] * told
    assert len(lines) == 2 * told


def test_a_stated_split_is_not_changed_by_a_share(tmp_path: Path) -> None:
    make_discs(tmp_path / "discs" / "train", 80)
    make_discs(tmp_path / "discs" / "test", 3)
    result = CliRunner().invoke(main, ["data", str(tmp_path / "discs"), "--out", str(tmp_path / "out")])
    (line,) = [line for line in result.output.splitlines() if "rough estimate" in line]
    assert "3 test images" in line
    assert "test_share" not in line


# --------------------------------------------------------------------------------------------- objects


def make_truth(folder: Path) -> None:
    (folder / "truth").mkdir()
    for path in (folder / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(folder / "truth" / path.name)


def test_objects_of_training_images_are_not_scored(good: Path, unnamed: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    train = copy_pairs(good, tmp_path / "data", "train")
    validation = copy_pairs(good, tmp_path / "data", "val")
    new = add_new(tmp_path / "data", 2)
    make_truth(tmp_path / "data")
    words = [tmp_path / "data" / "images", "--truth", tmp_path / "data" / "truth", "--method", "parts"]
    said = succeed("objects", good / "run", *words, "--out", tmp_path / "out").output
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert sorted(Path(path).stem for path in scores["per_picture"]) == sorted([*validation, *new])
    assert f"{len(train)} training images" in said
    assert f"{len(validation)} of the scored images are validation images" in said
    assert len(list((tmp_path / "out").glob("*_ids.tif"))) == len(train) + len(validation) + 2
    said = succeed("objects", unnamed, *words, "--out", tmp_path / "plain").output
    plain = json.loads((tmp_path / "plain" / "scores.json").read_text())
    assert plain["pictures"] == len(train) + len(validation) + 2
    assert "it is unknown whether" in said
    # of an ensemble, what one model has seen is seen
    said = succeed("objects", unnamed, *words, "--with", good / "run", "--out", tmp_path / "both").output
    assert json.loads((tmp_path / "both" / "scores.json").read_text())["pictures"] == len(validation) + 2
    assert "it is unknown whether" in said


def test_objects_of_training_images_alone_are_refused(good: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    copy_pairs(good, tmp_path / "data", "train", ".tif")
    make_truth(tmp_path / "data")
    words = ["objects", good / "run", tmp_path / "data" / "images", "--out", tmp_path / "out", "--device", "cpu"]
    error = refused_once(*words, "--truth", tmp_path / "data" / "truth")
    assert error.key == "--truth"
    assert not (tmp_path / "out" / "objects.csv").exists()
