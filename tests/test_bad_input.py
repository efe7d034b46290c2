"""What people bring and set wrong, through the command line: exit code 2, one clear line per problem with its
file or setting and the suggestion, no traceback, and nothing lost. Runs and models: `test_bad_runs.py`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.refusal import TINY, check, refused, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, PairError, SettingError, UbendError
from ubend.dataset import prepare

# --------------------------------------------------------------------------------------- images, masks


def _no_folder(data: Path) -> None:
    shutil.rmtree(data)


def _nothing(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()


def _unknown(data: Path) -> None:
    (data / "images").rename(data / "photos")
    (data / "masks").rename(data / "regions")
    shutil.copytree(data / "regions", data / "borders")  # which of the two?


def _archive(data: Path) -> None:
    shutil.rmtree(data)
    data.write_bytes(b"PK\3\4")


def _no_mask(data: Path) -> None:
    (data / "masks" / "disc03.png").unlink()


def _missing_image(data: Path) -> None:
    (data / "images" / "disc03.png").unlink()


def _sizes(data: Path) -> None:
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(data / "masks" / "disc03.png")


def _truncated(data: Path) -> None:
    path = data / "images" / "disc03.png"
    path.write_bytes(path.read_bytes()[:-2000])


def _truncated_mask(data: Path) -> None:
    path = data / "masks" / "disc03.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(data: Path) -> None:
    (data / "images" / "disc03.png").write_bytes(b"")


def _not_an_image(data: Path) -> None:
    (data / "images" / "disc03.png").write_bytes(b"%PDF-1.7 this is no picture, though it is called one" * 9)


def _coloured_mask(data: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)).save(
        data / "masks" / "disc03.png"
    )


def _empty_masks(data: Path) -> None:
    for path in (data / "masks").iterdir():
        Image.fromarray(np.zeros((40, 48), np.uint8)).save(path)


def _few(data: Path) -> None:
    for kind in ("images", "masks"):
        for path in sorted((data / kind).iterdir())[2:]:
            path.unlink()


def _two_of_one_name(data: Path) -> None:
    shutil.copy(data / "images" / "disc03.png", data / "images" / "disc03.bmp")


def _bad_names(data: Path) -> None:
    (data / "classes.txt").write_text("ground\ndisc\nmoon\n")


# What is spoilt -> the class, the key and the file below the data (None: the folder), and what else must be named.
FAULTS: list[tuple[Callable[[Path], None], type[UbendError], str | None, str | None, list[str]]] = [
    (_no_folder, DataError, None, None, []),
    (_nothing, DataError, "nothing", None, []),
    (_unknown, DataError, "unclear folders", None, ["photos/", "regions/", "--images", "--masks"]),
    (_archive, DataError, None, None, []),
    (_no_mask, DataError, "no mask", None, ["images/disc03.png"]),
    (_missing_image, DataError, "no image", None, ["masks/disc03.png"]),
    (_sizes, PairError, "size", "masks/disc03.png", ["9x7 px", "48x40 px"]),
    (_truncated, PairError, None, "images/disc03.png", []),
    (_truncated_mask, PairError, None, "masks/disc03.png", []),
    (_empty, DataError, "empty", None, ["images/disc03.png"]),
    (_not_an_image, PairError, None, "images/disc03.png", []),
    (_coloured_mask, DataError, "data.values", None, ["masks/disc03.png: #", "#000000, #ffffff"]),
    (_empty_masks, DataError, "data.masks", None, []),
    (_few, DataError, "data.split", None, ["2"]),
    (_two_of_one_name, DataError, "two images", None, ["disc03.bmp, disc03.png"]),
    (_bad_names, DataError, "data.classes", None, ["2", "3", "moon"]),
]


@pytest.mark.parametrize(
    ("spoil", "kind", "key", "file", "named"), FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_fit_refuses(
    spoil: Callable[[Path], None],
    kind: type[UbendError],
    key: str | None,
    file: str | None,
    named: list[str],
    good: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(good / "data", data)
    spoil(data)
    error = refused_once("fit", data, "--out", tmp_path / "out", *TINY)
    assert (type(error), error.key) == (kind, key)
    if key != "data.split":  # which is about the images, wherever they lie
        assert error.path == data / (file or "")
    for word in named:
        assert word in str(error)
    assert not (tmp_path / "out").exists()


def test_everything_wrong_with_a_folder_is_told_at_once(good: Path, tmp_path: Path) -> None:
    """What the names tell, what the headers tell, and what only decoding tells."""
    data = tmp_path / "data"
    shutil.copytree(good / "data", data)
    (data / "masks" / "disc00.png").unlink()
    (data / "images" / "disc01.png").unlink()
    (data / "images" / "disc02.png").write_bytes(b"")
    (data / "images" / "disc04.png").write_bytes(b"no picture" * 50)
    path = data / "images" / "disc05.png"
    path.write_bytes(path.read_bytes()[:-2000])
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(data / "masks" / "disc06.png")
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(data / "masks" / "disc07.png")
    for words in (["images/disc00"], ["masks/disc01"], ["images/disc02"]):  # by and by people fix some
        told = refused("fit", data, "--out", tmp_path / "out", *TINY).problems
        everything = "\n".join(told)
        for number in ("04", "05", "06", "07"):
            assert sum(f"disc{number}" in line for line in told) == 1, everything
        assert words[0] in everything
        kind, name = words[0].split("/")
        source = good / "data" / ("masks" if kind == "images" and name == "disc00" else "images") / f"{name}.png"
        shutil.copy(source, data / source.parent.name / source.name)
    told = refused("fit", data, "--out", tmp_path / "out", *TINY).problems  # headers and pixels are left
    assert len(told) == 4


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_mask_values_beyond_the_classes(command: str, tmp_path: Path, good: Path) -> None:
    """The pets' layout says which values there are; each file with another one is named."""
    pets = tmp_path / "pets"
    (pets / "images").mkdir(parents=True)
    (pets / "annotations" / "trimaps").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(12):
        mask = random.integers(1, 4, (40, 40), np.uint8)
        if number in (3, 8):
            mask[:2] = 7
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(pets / "images" / f"cat_{number}.jpg")
        Image.fromarray(mask).save(pets / "annotations" / "trimaps" / f"cat_{number}.png")
    for file, numbers in (("trainval.txt", range(9)), ("test.txt", range(9, 12))):
        lines = [f"cat_{number} 1 1 1\n" for number in numbers]
        (pets / "annotations" / file).write_text("".join(lines))
    if command == "fit":
        told = refused("fit", pets, "--out", tmp_path / "out", *TINY)
        assert [line.path.name for line in told.problems] == ["cat_3.png", "cat_8.png"]
        assert {line.key for line in told.problems} == {"data.values"}
        assert all("7" in line and "1 -> pet, 2 -> background, 3 -> contour" in line for line in told.problems)
    else:  # a model of 0 and 255 must not be scored on other values as if they did not count
        error = refused_once("evaluate", good / "run", pets, "--device", "cpu")
        check(error, DataError, key="data.values")
        assert error.path == pets
        assert "contour" in str(error)
        assert "background, foreground" in str(error)


# -------------------------------------------------------------------------------------- settings and flags


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--set", "train.epoch=3"], "train.epoch"),
        (["--set", "learning_rat=3"], "learning_rat"),
        (["--set", "train.epochs"], "--set"),
        (["--set", "train.epochs=none"], "train.epochs"),
        (["--set", "recipe=classic"], "recipe"),
        (["--set", "recipe=[1]"], "recipe"),
        (["--set", "model.depth=deep", "--skips", "all"], "model.depth"),
        (["--set", "data.mean=[0.5, 0.5, 0.5]"], "data.mean"),
        (["--set", "data.mean=[0.5]", "--set", "data.std=[0.2]"], "data.mean"),
        (["--set", "data.mean=[0.5, 0.5, 0.5]", "--set", "data.std=[0.2, 0, 0.2]"], "data.std"),
        (["--epochs", "0"], "train.epochs"),
        (["--size", "2"], "data.size"),
        (["--size", "16", "--batch", "1"], "train.batch"),
        (["--batch", str(10**9)], "train.batch"),
        (["--classes", "a" * 100_000 + ",b"], "data.classes"),
        (["--classes", "a" * 100_000], "data.classes"),
        (["--classes", ",".join(f"class {number}" for number in range(5000))], "data.classes"),
        (["--classes", "a,b,c"], "data.classes"),
        (["--classes", "a,a"], "data.classes"),
        (["--device", "abacus"], "device"),
        (["--config", "nowhere.toml"], Path("nowhere.toml")),
        (["--split", "nowhere.csv"], "split file"),
    ],
)
def test_settings(words: list[str], key: str | Path, good: Path, tmp_path: Path) -> None:
    error = refused_once("fit", good / "data", "--out", tmp_path / "out", *TINY, *words)
    assert key in (error.key, error.path)
    assert not (tmp_path / "out").exists()


def test_a_batch_that_no_memory_holds(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before it is drawn."""
    monkeypatch.setattr(prepare.os, "sysconf", lambda name: {"SC_PHYS_PAGES": 16, "SC_PAGE_SIZE": 4096}[name])
    error = refused_once("fit", good / "data", "--out", tmp_path / "out", *TINY, "--batch", "8")
    check(error, SettingError, key="train.batch", named=["8"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--recipe", "classic"], "'classic' is unknown; use modern, tutorial or paper"),
        (["--leave-out", "patient"], "'patient' is unknown; use group; the patient, video or site of each image"),
        (["--epoch", "3"], "--epochs"),
        (["--epochs", "many"], "not a valid integer"),
    ],
)
def test_flags(words: list[str], says: str, good: Path, tmp_path: Path) -> None:
    """What click itself refuses."""
    result = CliRunner().invoke(main, ["fit", str(good / "data"), "--out", str(tmp_path / "out"), *words])
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[train\n", None),
        ("[train]\nepochz = 3\n", "train.epochz"),
        ("train = 3\n", "train"),
        ('[train]\nepochs = "x"\n', "train.epochs"),
        ("recipe = {a = 1}\n", "recipe.a"),
    ],
)
def test_config_files(text: str, key: str | None, good: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(text)
    error = refused_once("fit", good / "data", "--out", tmp_path / "out", "--config", tmp_path / "settings.toml")
    assert type(error) is SettingError
    assert error.key == key
    assert error.path == (tmp_path / "settings.toml" if key is None else None)
