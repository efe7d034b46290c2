"""`ubend data`: what is reported, drawn and written down; data.toml given back; --skip-bad."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.discs import make_discs
from support.refusal import TINY, check, contents, refused, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError, PairError
from ubend.core.files import default_cache
from ubend.core.progress import Reporter
from ubend.core.settings import Settings
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.tasks.user_settings import read_user_settings


def ubend(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def open_settings(settings: Settings) -> Dataset:
    return open_dataset(settings, "cpu", default_cache(), Reporter())


def open_folder(folder: Path, **flags: Any) -> Dataset:
    return open_settings(read_user_settings(folder, settings={"data.size": 32}, flags=flags).settings)


def recolor(folder: Path, colors: list[tuple[int, int, int]]) -> None:
    """The masks of discs in two colours."""
    for path in (folder / "masks").iterdir():
        index = np.asarray(Image.open(path)) // 255
        Image.fromarray(np.array(colors, np.uint8)[index]).save(path)


def same(one: Dataset, other: Dataset) -> None:
    """The same images, class maps and parts."""
    assert one.splits == other.splits
    assert [pair.name for pair in one.folder.pairs] == [pair.name for pair in other.folder.pairs]
    assert one.labels.names == other.labels.names
    np.testing.assert_array_equal(one.store.images, other.store.images)
    np.testing.assert_array_equal(one.store.masks, other.store.masks)


@pytest.mark.parametrize("name", ["plain", "two words", "it's (1) $HOME", "dữ-liệu"])
def test_suggested_commands_can_be_copied(tmp_path: Path, name: str) -> None:
    """Into a shell, also where a path needs quotes."""
    make_discs(tmp_path / "discs", 4)
    file = tmp_path / name / "data.toml"
    said = ubend("data", tmp_path / "discs", "--out", file.parent)
    suggested = re.findall(r"`(ubend (?:preview|fit) [^`]*)`", said)
    assert [shlex.split(command)[2:] for command in suggested] == [[str(file)]] * 2
    assert all(("'" in command) == (name in ("two words", "it's (1) $HOME")) for command in suggested)


def test_what_is_said_and_written(discs: Path, tmp_path: Path) -> None:
    said = ubend("data", discs, "--out", tmp_path / "out")
    assert "folders of images and of masks" in said
    assert "24" in said or "16 training" in said
    assert "mask values: 0 -> background, 255 -> foreground" in said
    assert "48x40 px" in said
    assert "(in 24 images)" in said
    assert f"ubend fit {tmp_path / 'out' / 'data.toml'}" in said
    assert sorted(contents(tmp_path / "out")) == ["data.toml", "samples.png", "split.csv"]
    with Image.open(tmp_path / "out" / "samples.png") as grid:
        assert grid.size[0] > 300


@pytest.mark.parametrize("kind", ["values", "colors", "jpeg", "told", "named"])
def test_data_toml_given_back(discs: Path, tmp_path: Path, kind: str) -> None:
    flags: dict[str, Any] = {}
    if kind in ("colors", "named"):
        recolor(discs, [(0, 0, 0), (10, 200, 30)])
    if kind == "jpeg":
        for path in (discs / "masks").iterdir():
            Image.open(path).copy().save(path.with_suffix(".jpg"), quality=60)
            path.unlink()
    if kind == "told":
        flags["values"] = "0=ground,255=disc,*=ignored"
    if kind == "named":
        flags["classes"] = "ground, disc"
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    ubend("data", discs, "--out", tmp_path / "out", *words)
    first, again = open_folder(discs, **flags), open_folder(tmp_path / "out" / "data.toml")
    same(first, again)
    assert first.store.folder == again.store.folder  # nothing is decoded twice


def test_data_toml_in_place_of_the_folder(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is edited in it counts; flags are stronger; from anywhere."""
    monkeypatch.chdir(discs.parent)
    ubend("data", discs.name, "--out", "out")
    path = tmp_path / "out" / "data.toml"
    path.write_text(path.read_text().replace('"255=foreground"', '"255=disc"'))
    split = tmp_path / "out" / "split.csv"
    text = split.read_text()
    assert "disc00,test" not in text
    rows = text.replace("disc00,train", "disc00,test").replace("disc00,val", "disc00,test")
    split.write_text(rows)
    monkeypatch.chdir("/")
    data = open_folder(path)
    assert data.labels.names == ("background", "disc")
    assert "disc00" in {pair.name for pair in data.pairs("test")}
    assert open_folder(path, values="0=a,255=b").labels.names == ("a", "b")
    said = ubend("fit", path, "--out", tmp_path / "run", *TINY, "--epochs", 1)
    assert "255 -> disc" in said
    classes = json.loads((tmp_path / "run" / "run.json").read_text())["classes"]
    assert classes["names"] == ["background", "disc"]


def test_edited_files_are_kept(discs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ubend("data", discs, "--out", out)
    first = contents(out)
    ubend("data", discs, "--out", out)
    assert contents(out) == first
    ubend("data", discs, "--out", out, "--classes", "a,b")  # unedited: written again
    assert contents(out) != first
    for name in ("data.toml", "split.csv"):
        shutil.rmtree(out)
        ubend("data", discs, "--out", out)
        (out / name).write_text((out / name).read_text() + "\n")
        edited = contents(out)
        check(refused_once("data", discs, "--out", out), OutputError, path=out / "data.toml", key="--out")
        assert contents(out) == edited
    (out / "data.toml").write_bytes(b"\xff\xfe not text")
    check(refused_once("data", discs, "--out", out), OutputError, path=out / "data.toml", key="--out")


# --skip-bad


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A set with one pair for each way to be bad."""
    folder = tmp_path / "bad"
    make_discs(folder, 24)
    images, masks = folder / "images", folder / "masks"
    (masks / "disc01.png").write_bytes(b"no picture")
    (images / "disc02.png").write_bytes(b"no picture")
    path = images / "disc03.png"
    path.write_bytes(path.read_bytes()[:-2000])  # only decoding tells
    Image.new("L", (9, 7)).save(masks / "disc04.png")
    unknown = np.array(Image.open(masks / "disc05.png"))
    unknown[:3] = 9
    Image.fromarray(unknown).save(masks / "disc05.png")
    Image.fromarray(np.full((40, 48, 3), (255, 0, 0), np.uint8)).save(masks / "disc06.png")
    return folder


@pytest.fixture
def incomplete(bad: Path) -> Path:
    """The same with files that have no partner, and an empty one."""
    (bad / "masks" / "disc07.png").unlink()
    (bad / "images" / "disc08.png").unlink()
    (bad / "images" / "disc09.png").write_bytes(b"")
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(bad / "images" / "disc10.gif")
    return bad


LOST = {"images/disc07.png", "masks/disc08.png", "images/disc09.png", "images/disc10.gif"}


BAD = {f"disc0{number}" for number in range(1, 7)}
TABLE = ["--values", "0=ground,255=disc"]


def test_every_bad_pair_is_told(bad: Path, tmp_path: Path) -> None:
    told = refused("fit", bad, "--out", tmp_path / "run", *TINY, *TABLE).problems
    for name in BAD - {"disc05", "disc06"}:  # codes are known when all masks can be read
        assert sum(name in line for line in told) == 1, name
    for name in BAD - {"disc05", "disc06"}:
        for kind in ("images", "masks"):
            (bad / kind / f"{name}.png").unlink()
    error = refused("fit", bad, "--out", tmp_path / "run", *TINY, *TABLE)
    check(error, PairError, key="data.values")
    assert ["disc05" in line for line in error.problems] == [True, False]
    assert "9" in error.problems[0]
    assert "0 -> ground, 255 -> disc" in error.problems[0]
    assert "-1" not in error.problems[1].replace(str(bad), "")


def test_files_without_a_partner_are_told(incomplete: Path, tmp_path: Path) -> None:
    told = str(refused("fit", incomplete, "--out", tmp_path / "run", *TINY, *TABLE))
    assert all(name in told for name in LOST)


def test_bad_pairs_are_left_out(incomplete: Path, tmp_path: Path) -> None:
    run, bad = tmp_path / "run", incomplete
    said = ubend("fit", bad, "--out", run, *TINY, *TABLE, "--skip-bad")
    assert "11 bad files or pairs are skipped" in said  # the empty one as a file, and as half of a pair
    rows = read_rows(run / "skipped.csv")
    assert {row["name"] for row in rows} == BAD | LOST | {"disc09"}
    assert all(row["problem"] for row in rows)
    used = {row["name"] for row in read_rows(run / "data.csv")}
    assert used == {f"disc{number:02d}" for number in range(24)} - BAD - {"disc07", "disc08", "disc09"}
    before = contents(run)
    (run / "scores.json").unlink()
    ubend("fit", "--resume", run)
    assert contents(run).keys() == before.keys()
    for name in ("skipped.csv", "data.csv", "scores.json", "model.safetensors"):
        assert contents(run)[name] == before[name], name
    ubend("evaluate", run, "--device", "cpu")


def test_the_same_by_ubend_data(bad: Path, tmp_path: Path) -> None:
    said = ubend("data", bad, "--out", tmp_path / "out", *TABLE, "--skip-bad")
    assert "6 bad files or pairs are skipped" in said
    assert {row["name"] for row in read_rows(tmp_path / "out" / "skipped.csv")} == BAD
    rows = read_rows(tmp_path / "out" / "split.csv")
    assert len(rows) == 24
    data = open_folder(tmp_path / "out" / "data.toml")
    assert len(data.folder.pairs) == 18
    assert {pair.name: part for pair, part in zip(data.folder.pairs, data.splits, strict=True)} == {
        row["file"]: row["split"] for row in rows if row["file"] not in BAD
    }


def test_evaluate_tells_all_bad_pairs_or_goes_on(good: Path, bad: Path, tmp_path: Path) -> None:
    """The scores are those of the folder without them."""
    values = ["--values", "0=background,255=foreground"]
    for path in (bad / "images").iterdir():  # so that none is an image of the run
        if path.stem not in ("disc02", "disc03"):
            image = np.array(Image.open(path))
            image[0, 0] ^= 1
            Image.fromarray(image).save(path)
    told = refused("evaluate", good / "run", bad, *values, "--device", "cpu").problems
    assert {name: sum(name in line for line in told) for name in BAD} == dict.fromkeys(BAD, 1)
    scores = tmp_path / "scores.json"
    said = ubend("evaluate", good / "run", bad, *values, "--skip-bad", "--out", scores, "--device", "cpu")
    assert all(name in said for name in BAD)
    found = json.loads(scores.read_text())
    assert found["skipped"].keys() == BAD
    for name in BAD:
        for kind in ("images", "masks"):
            (bad / kind / f"{name}.png").unlink()
    ubend("evaluate", good / "run", bad, *values, "--skip-bad", "--out", tmp_path / "clean.json", "--device", "cpu")
    clean = json.loads((tmp_path / "clean.json").read_text())
    assert {**found, "skipped": None} == {**clean, "skipped": None}
    assert "skipped" not in clean


def test_preview_continues(bad: Path, tmp_path: Path) -> None:
    refused("preview", bad, "--out", tmp_path / "samples.png", "--count", 24, *TABLE)
    ubend("preview", bad, "--out", tmp_path / "samples.png", "--count", 24, *TABLE, "--skip-bad")
    assert (tmp_path / "samples.png").exists()


def test_nothing_is_left_out_unasked(discs: Path, tmp_path: Path) -> None:
    ubend("fit", discs, "--out", tmp_path / "run", *TINY, "--skip-bad")
    assert not (tmp_path / "run" / "skipped.csv").exists()


def test_when_all_pairs_are_bad(discs: Path, tmp_path: Path) -> None:
    for path in (discs / "masks").iterdir():
        path.write_bytes(b"no picture")
    told = refused("fit", discs, "--out", tmp_path / "run", *TINY, "--skip-bad")
    assert len(told.problems) == 24


def test_what_is_unclear_is_not_bad(discs: Path, tmp_path: Path) -> None:
    """--skip-bad leaves out what cannot be read, never what is not understood."""
    path = discs / "masks" / "disc00.png"
    mask = np.array(Image.open(path))
    mask[:2] = 77
    Image.fromarray(mask).save(path)
    error = refused_once("fit", discs, "--out", tmp_path / "run", *TINY, "--skip-bad")
    check(error, DataError, key="data.values")
    assert "disc00.png: 77" in str(error)


@pytest.mark.parametrize("name", ["split.csv", "samples.png", "skipped.csv"])
def test_files_of_others_are_not_overwritten(name: str, discs: Path, tmp_path: Path) -> None:
    """Those of an earlier call are recreated, which the stamp in data.toml tells."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("file,group\ndisc01,ann\n")
    error = refused_once("data", discs, "--out", out)
    check(error, OutputError, path=out / name, key="--out")
    assert list(contents(out)) == [name]
    (out / name).unlink()
    ubend("data", discs, "--out", out)
    ubend("data", discs, "--out", out)


def test_the_data_that_is_named_wins_over_a_file(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that --config says of the place of other data is mixed with it, and what is left out is reported."""
    make_discs(tmp_path / "other", 24)
    split = tmp_path / "own.csv"
    split.write_text("file,split\n")
    config = tmp_path / "settings.toml"
    lines = [f"folder = {json.dumps(str(discs))}", f"split = {json.dumps(str(split))}", "size = 48"]
    config.write_text("\n".join(["[data]", *lines]))

    def read(folder: Path | None, **flags: Any) -> tuple[Any, str]:
        settings = flags.pop("settings", None)
        data = read_user_settings(folder, config=config, settings=settings, flags=flags).settings.data
        assert data.size == 48
        return data, capsys.readouterr().out.replace("\n", " ")

    data, said = read(None)
    assert (data.folder, data.split, said) == (str(discs), str(split), "")
    data, said = read(discs)
    assert (data.folder, data.split, said) == (str(discs), str(split), ""), "the same data"
    data, said = read(discs, split=tmp_path / "new.csv")
    assert (data.split, said) == (str(tmp_path / "new.csv"), "")
    other = tmp_path / "other"
    for folder, more in ((other, {}), (None, {"settings": {"data.folder": str(other)}})):
        data, said = read(folder, **more)
        assert (data.folder, data.split) == (str(other), None)
        assert "data.folder, data.split" in said
        assert "settings.toml" in said
    data, said = read(None, images=str(other / "images"), masks=str(other / "masks"))
    assert (data.folder, data.images, data.split) == (None, str(other / "images"), None)
    assert "data.folder, data.split" in said
    config.write_text("[data]\nimages = 'a'\nmasks = 'b'\nsize = 48\nvalues = ['0=ground', '255=cell']")
    data, said = read(other)
    assert (data.folder, data.images, data.masks) == (str(other), None, None)
    assert data.values == ("0=ground", "255=cell")
    assert "data.images, data.masks;" in said
    ubend("data", other, "--out", tmp_path / "out")
    data, said = read(tmp_path / "out" / "data.toml")
    assert (data.folder, data.split) == (str(other), str(tmp_path / "out" / "split.csv"))
    assert data.values == ("0=background", "255=foreground")
    assert "data.images, data.masks, data.values;" in said
    ubend("fit", other, "--config", config, "--out", tmp_path / "run", *TINY)
    assert all(row["image"].startswith(str(other)) for row in read_rows(tmp_path / "run" / "data.csv"))
