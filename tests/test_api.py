"""The Python API: its signatures, its results, and its page of documentation."""

import dataclasses
import importlib
import inspect
import io
import json
import math
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

import api_page
import ubend
from support.commands import succeed
from support.discs import make_discs
from support.refusal import raises
from support.training import Listener
from ubend.cli.app import main
from ubend.core.errors import OutputError
from ubend.evaluation.score_tables import PerClass, Scores
from ubend.io.images import read_image
from ubend.tasks import evaluate as evaluate_task

FUNCTIONS = [name for name in ubend.__all__ if inspect.isfunction(getattr(ubend, name))]
TINY: dict[str, Any] = {"size": 32, "width": 2, "epochs": 1, "batch": 4, "device": "cpu"}
# What Python has no word for, or does by another function or keyword.
RENAMED = {"with": None, "class": "classes", "from": "init_from", "set": "settings", "resume": "resume"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, and a model of it in `run`."""
    place = tmp_path_factory.mktemp("api")
    make_discs(place / "data", 24)
    ubend.fit(place / "data", out=place / "run", reporter=Listener(), **TINY)
    return place


def described(thing: Any) -> str:
    """The text of the Args of a docstring."""
    found = re.search(r"^Args:\n(.*?)(?=^\w|\Z)", inspect.cleandoc(thing.__doc__ or ""), re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def test_functions_can_be_called_whatever_was_imported() -> None:
    """No package has the name of a function: importing it would replace the function."""
    for name in FUNCTIONS:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"ubend.{name}")
    assert {"fit", "load", "evaluate", "predict", "objects", "cutout", "data", "draw_sample"} <= set(FUNCTIONS)
    assert {"export", "read_folder", "read_image", "read_scan", "resume"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", [*FUNCTIONS, "UNet", "Predictor.__call__", "Prediction.overlay"])
def test_signatures_are_enumerated_typed_and_described(name: str) -> None:
    thing: Any = ubend
    for word in name.split("."):
        thing = getattr(thing, word)
    parameters = [one for one in inspect.signature(thing).parameters.values() if one.name != "self"]
    positional = {"UNet": 2, "Prediction.overlay": 0}.get(name, 1)  # ubend.UNet(3, 3)
    for number, one in enumerate(parameters):
        assert one.kind is (one.KEYWORD_ONLY if number >= positional else one.POSITIONAL_OR_KEYWORD), one
        assert one.annotation not in (one.empty, Any, "Any"), one
        assert re.search(rf"^    (\w+, )*{one.name}(, \w+)*: \S", described(thing), re.MULTILINE), one
    documented = re.findall(r"^    (\w[\w, ]*?): ", described(thing), re.MULTILINE)
    assert [word for words in documented for word in words.split(", ")] == [one.name for one in parameters]


@pytest.mark.parametrize(
    "name", ["fit", "evaluate", "compare", "report", "predict", "export", "objects", "cutout", "data", "sample"]
)
def test_keywords_have_the_names_of_the_flags(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    keywords = set(inspect.signature(getattr(ubend, "draw_sample" if name == "sample" else name)).parameters)
    flags = [one.opts[0] for one in command.params if one.param_type_name == "option" and one.name != "help"]
    words = [flag.removeprefix("--").replace("-", "_") for flag in flags]
    if name == "fit":
        words.remove("resume")  # ubend.resume
    words += [str(one.name) for one in command.params if one.param_type_name == "argument"]
    wanted = {RENAMED.get(word, word) for word in words} - {None}
    assert keywords - {"reporter", "settings", "network", "groups"} == wanted - {"settings"}  # objects of Python


def test_scores_are_those_of_the_file(place: Path) -> None:
    scores = ubend.evaluate(place / "run", device="cpu", out=place / "scores.json", reporter=Listener())
    saved = json.loads((place / "scores.json").read_text())
    assert scores.to_dict() == saved
    result = ubend.FitResult(place / "run", Scores(json.loads((place / "run" / "scores.json").read_text())))
    assert result.scores is not None
    assert {name: saved[name] for name in ("native", "model_size", "per_picture")}.items() <= (
        result.scores.to_dict().items()
    )
    assert scores.subset == "test"
    for size, typed in (("native", scores.native), ("model_size", scores.model_size)):
        for measure, averages in (("dice", typed.dice), ("iou", typed.iou)):
            for way, found in (("per_image", averages.per_image), ("pooled", averages.pooled)):
                wanted = saved[size][measure][way]
                assert {**found.classes, "mean": found.mean, "mean_foreground": found.mean_foreground} == wanted
                assert found["foreground"] == wanted["foreground"]
        assert typed.images == saved[size]["pictures"]
        assert typed.predicted_share == saved[size]["predicted_share"]
    name, image = next(iter(scores.per_image.items()))
    assert image.dice["foreground"] == saved["per_picture"][name]["dice"]["foreground"]
    assert result.model(device="cpu").labels.names == ("background", "foreground")


def test_scores_are_a_table(place: Path) -> None:
    """The very lines of the command, and the same numbers in HTML."""
    scores = ubend.evaluate(place / "run", device="cpu", reporter=Listener())
    said = succeed("evaluate", place / "run").stdout
    assert str(scores) in said
    html = scores._repr_html_()
    cells = re.findall(r"<td>([^<]+)</td>", html)
    assert f"{scores.native.dice.per_image['foreground']:.4f}" in cells
    table, _line, intervals = str(scores).partition("with 95% intervals")
    rows = [line.split()[-4:] for line in table.splitlines() if line.startswith("  ") and line[-1].isdigit()]
    assert cells == [cell for row in rows for cell in row]
    assert all(f"<p>{escape(line.strip())}</p>" in html for line in intervals.splitlines()[1:])
    assert "\n" not in repr(scores)


def test_scores_cannot_be_changed(place: Path) -> None:
    scores = ubend.evaluate(place / "run", device="cpu", reporter=Listener())
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.data = {}  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.native.images = 3  # type: ignore[misc]
    scores.to_dict()["native"]["pictures"] = 99
    assert scores.native.images != 99


def test_undefined_scores_and_odd_names() -> None:
    nothing = {"<b>": None, "class mean": 0.5, "mean": 0.5, "mean_foreground": 0.5}
    size = {
        "dice": {"per_image": nothing, "pooled": nothing},
        "iou": {"per_image": nothing, "pooled": nothing},
        "pixel_accuracy": 1.0,
        "cross_entropy": None,
        "pictures": 1,
        "defined": {"<b>": 0, "class mean": 1},
        "true_share": {"<b>": 0.0, "mean": 1.0},
        "predicted_share": {"<b>": 0.0, "mean": 1.0},
    }
    scores = Scores({"part": "all", "native": size, "model_size": size, "per_picture": {}, "skipped": {"a": ["<i>"]}})
    assert math.isnan(scores.native.dice.pooled["<b>"])
    assert math.isnan(scores.native.cross_entropy)
    assert scores.native.iou.per_image["class mean"] == scores.native.iou.per_image.mean == 0.5
    assert scores.skipped == {"a": ("<i>",)}
    html = scores._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "<i>" not in html


def test_python_says_what_the_command_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line but the table itself, which is the value; also the warning of a model that says one class."""
    whole = evaluate_task.evaluate

    def one_class(*words: Any, **given: Any) -> dict[str, Any]:
        scores = whole(*words, **given)
        scores["native"]["predicted_share"] = {"background": 1.0, "foreground": 0.0}
        return scores

    monkeypatch.setattr(evaluate_task, "evaluate", one_class)
    listener = Listener()
    scores = ubend.evaluate(place / "run", device="cpu", reporter=listener)
    command = succeed("evaluate", place / "run")
    said = (command.stdout.replace(str(scores), "") + command.stderr).split()
    assert listener.said.split() == said
    assert "WARNING:" in said


def test_a_prediction_is_looked_at_and_saved(place: Path, tmp_path: Path) -> None:
    """Its overlay and its mask are those that `ubend predict` writes."""
    path = place / "data" / "images" / "disc01.png"
    succeed("predict", place / "run", path, "--out", tmp_path / "out")
    predictor = ubend.load(place / "run", device="cpu")
    prediction = predictor(path)
    assert prediction.probabilities is None
    assert prediction.class_names == ("background", "foreground")
    assert prediction.valid.dtype == bool
    assert prediction.valid.all()
    overlay = prediction.overlay()
    assert overlay.dtype == np.uint8
    np.testing.assert_array_equal(overlay, read_image(tmp_path / "out" / "disc01_overlay.png"))
    prediction.save(str(tmp_path / "new" / "mask.png"))
    with Image.open(tmp_path / "new" / "mask.png") as mask, Image.open(tmp_path / "out" / "disc01.png") as wanted:
        np.testing.assert_array_equal(np.asarray(mask), prediction.mask)
        assert mask.getpalette() == wanted.getpalette()
        np.testing.assert_array_equal(np.asarray(wanted), prediction.mask)
    with raises(OutputError, path=tmp_path / "mask.jpg"):
        prediction.save(tmp_path / "mask.jpg")
    with Image.open(io.BytesIO(prediction._repr_png_())) as shown:
        np.testing.assert_array_equal(np.asarray(shown), overlay)
    with_prob = predictor(path, probabilities=True)
    assert with_prob.probabilities is not None
    assert with_prob.probabilities.shape == (2, *prediction.mask.shape)
    large = np.zeros((3000, 40, 3), np.uint8)
    with Image.open(io.BytesIO(predictor(large)._repr_png_())) as shown:
        assert shown.size == (14, 1024)
    several = ubend.load([place / "run", place / "run"], device="cpu")(path)
    np.testing.assert_array_equal(several.overlay(), overlay)


def test_a_prediction_is_shown(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setattr("ubend.inference.prediction.show_image", shown.append)
    prediction = ubend.load(place / "run", device="cpu")(np.zeros((20, 30, 3), np.uint8))
    prediction.show()
    np.testing.assert_array_equal(np.asarray(shown[0]), prediction.overlay())


CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "predict": (
        ubend.predict,
        {"threshold": {"foreground": 0.4}, "min_area": 9, "fill_holes": {"foreground": "all"}, "prob": "npz"},
        "--threshold foreground=0.4 --min-area 9 --fill-holes foreground=all --prob npz",
    ),
    "objects": (
        ubend.objects,
        {"method": "parts", "min_area": 3, "export": ["coco", "geojson"], "pixel_size": "0.5um", "tta": True},
        "--method parts --min-area 3 --export coco --export geojson --pixel-size 0.5um --tta",
    ),
    "cutout": (
        ubend.cutout,
        {"classes": {"foreground": 0.5}, "background": "white", "soft": 3, "tiles": 0},
        "--class foreground=0.5 --background white --soft 3 --tiles whole",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_files_are_those_of_the_command(name: str, place: Path, tmp_path: Path) -> None:
    call, keywords, words = CALLS[name]
    paths = [place / "data" / "images" / f"disc0{number}.png" for number in (1, 2)]
    listener = Listener()
    models = [place / "run", str(place / "run")]
    written = call(models, paths=paths, out=tmp_path / "python", device="cpu", reporter=listener, **keywords)
    same = ["--with", place / "run", "--out", tmp_path / "command", *words.split()]
    said = succeed(name, place / "run", *paths, *same).stdout
    assert listener.said.replace("python", "command").split() == said.split()
    files = {path.relative_to(tmp_path / "python") for path in (tmp_path / "python").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "command") for path in (tmp_path / "command").rglob("*")}
    assert {path.name for path in written} <= {path.name for path in files}
    assert len(written) == 2
    for path in files:
        assert (tmp_path / "python" / path).read_bytes() == (tmp_path / "command" / path).read_bytes(), path


def test_data_is_what_fit_takes(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = ubend.data(place / "data", classes=["ground", "disc"], seed=3, reporter=Listener())
    assert path == Path("data-data") / "data.toml"
    ubend.data(place / "data", classes="ground,disc", seed=3, out="again", reporter=Listener())
    for name in ("split.csv", "samples.png"):
        assert path.with_name(name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert ubend.read_folder(path).class_names == ("ground", "disc")


def test_the_page_is_up_to_date() -> None:
    """docs/api.md; else run `make api`."""
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.write_page()


def test_the_page_has_every_public_name() -> None:
    page = api_page.PAGE.read_text(encoding="utf-8")
    for name in ubend.__all__:
        assert re.search(rf"^### ubend\.{name}$|^`ubend\.{name}`", page, re.MULTILINE), name
    for thing in (one for things in api_page.SECTIONS.values() for one in things):
        for one in dataclasses.fields(thing) if dataclasses.is_dataclass(thing) and thing is not Scores else ():
            if not one.name.startswith("_"):
                assert re.search(rf"^- .*`{one.name}: ", page, re.MULTILINE), (thing, one.name)


def test_an_unknown_class_names_the_classes() -> None:
    with pytest.raises(KeyError, match="'cel' is none of the classes background, cell"):
        PerClass({"background": 1.0, "cell": 0.5}, 0.75, 0.5)["cel"]
