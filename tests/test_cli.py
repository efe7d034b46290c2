"""The whole way through the command line, on drawn discs: fit, evaluate, predict, show, preview, info, cache."""

import csv
import json
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from support.discs import make_discs
from support.refusal import check, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, ModelFileError, OutputError, SettingError
from ubend.drawing.panels import draw_grid
from ubend.io import file_cache
from ubend.models.model_file import load_bundle, save_bundle
from ubend.portable.version import __version__
from ubend.tasks import show as show_task

TINY = ["--size", "32", "--width", "4", "--epochs", "3", "--batch", "8", "--device", "cpu"]


def ubend(*words: object, status: int = 0) -> Result:
    """One command in this process; its exit code is looked at."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "discs"
    make_discs(folder, 24)
    return folder


@pytest.fixture(scope="module")
def fitted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run, and what was reported while it was made."""
    run = tmp_path_factory.mktemp("runs") / "first"
    return run, ubend("fit", folder, "--out", run, *TINY).output


@pytest.fixture(scope="module")
def run(fitted: tuple[Path, str]) -> Path:
    return fitted[0]


def read_scores(path: Path) -> dict[str, object]:
    scores: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return scores


def test_a_run_in_place_of_the_data(run: Path) -> None:
    line = ubend("fit", run, status=2).output
    assert f"--resume {run}" in line
    assert f"--from {run}" in line


def test_the_folder_of_a_description_in_place_of_the_data(folder: Path, tmp_path: Path) -> None:
    ubend("data", folder, "--out", tmp_path / "described")
    error = refused_once("fit", tmp_path / "described", "--out", tmp_path / "run")
    check(error, SettingError, path=tmp_path / "described", named=[str(tmp_path / "described" / "data.toml")])


def test_a_folder_of_images_in_place_of_a_model(folder: Path, tmp_path: Path) -> None:
    error = refused_once("predict", folder, folder / "images", "--out", tmp_path / "out")
    check(error, ModelFileError, path=folder / "model.safetensors")
    assert "--resume" not in str(error)


def test_errors_name_what_was_typed(folder: Path) -> None:
    """The flag if the value was given by a flag, the setting if by --set."""
    line = ubend("fit", folder, "--size", 7, "--encoder", "none", status=2).output
    assert "--size: " in line
    assert "data.size" not in line
    line = ubend("fit", folder, "--size", 64, "--set", "data.size=7", status=2).output
    assert "data.size: " in line


def test_fit_leaves_a_whole_run(run: Path) -> None:
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names == {
        "settings.toml",
        "run.json",
        "data.csv",
        "metrics.jsonl",
        "timing.jsonl",
        "curves.png",
        "model.safetensors",
        "resume.safetensors",
        "scores.json",
        "report.html",
        "findings.json",
        *(f"panels/epoch_{epoch:04d}.png" for epoch in (1, 2, 3)),
    }
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_fit_says_what_it_understood_in_plain_lines(fitted: tuple[Path, str]) -> None:
    """Not on a terminal there are no bars, no colours, no broken lines: one line is one line."""
    run, said = fitted
    assert "\x1b" not in said
    assert "\r" not in said
    lines = said.splitlines()
    assert "mask values: 0 -> background, 255 -> foreground" in lines
    assert any(line.startswith("images: ") for line in lines)
    chosen = [line for line in lines if line.startswith("chosen: ")]
    assert any(line.startswith("chosen: augment.orientation = ") for line in chosen)
    assert re.fullmatch(rf"chosen: \d+ other settings; `ubend info {re.escape(str(run))}` lists them .*", chosen[-1])
    assert len(chosen) <= 6
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1/3", "2/3", "3/3"]
    assert lines[-1] == f"model: {run / 'model.safetensors'}; see its predictions with `ubend show {run}`"


def test_evaluate_gives_the_scores_of_the_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    said = ubend("evaluate", run, "--device", "cpu", "--out", out).stdout
    scores, again = read_scores(run / "scores.json"), read_scores(out)
    assert scores.pop("recipe") == "modern"
    assert again == scores
    assert scores["part"] == "test"
    assert "at native size: 4 images of the test split" in said
    before = out.read_bytes()
    assert str(out) in ubend("evaluate", run, "--out", out, status=2).stderr
    assert out.read_bytes() == before


def test_evaluate_on_a_folder(run: Path, folder: Path, tmp_path: Path) -> None:
    """Of the run's own folder the test split, which the model file knows."""
    out = tmp_path / "again.json"
    ubend("evaluate", run / "model.safetensors", folder, "--device", "cpu", "--out", out)
    scores = read_scores(run / "scores.json")
    del scores["recipe"]
    assert read_scores(out) == scores
    ubend("evaluate", run, "--subset", "val", "--device", "cpu")


def test_predict(run: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "pictures", tmp_path / "masks"
    images.mkdir()
    sizes = {"a": (40, 48), "b": (61, 33)}
    for name, (height, width) in sizes.items():
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.png")
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(tmp_path / "c.png")  # grey, named by itself
    sizes["c"] = (20, 24)
    said = ubend("predict", run, images, tmp_path / "c.png", "--out", out, "--device", "cpu").output
    assert f"masks and overlays in {out}: 3" in said.splitlines()
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["predict.json", "shares.csv", *(f"{name}{end}.png" for name in sizes for end in ("", "_overlay"))]
    )
    rows = {Path(row["file"]).stem: row for row in csv.DictReader((out / "shares.csv").read_text().splitlines())}
    colors = read_scores(run / "run.json")["classes"]["colors"]  # type: ignore[index]
    for name, (height, width) in sizes.items():
        with Image.open(out / f"{name}.png") as mask:
            assert (mask.mode, mask.size) == ("P", (width, height))
            index = np.asarray(mask)
            assert mask.getpalette()[:6] == [channel for color in colors for channel in color]  # type: ignore[index]
        assert set(np.unique(index)) <= {0, 1}
        assert float(rows[name]["foreground"]) == pytest.approx((index == 1).mean(), abs=1e-6)
        assert float(rows[name]["background"]) == pytest.approx((index == 0).mean(), abs=1e-6)
        with Image.open(out / f"{name}_overlay.png") as overlay:
            assert (overlay.mode, overlay.size) == ("RGB", (width, height))


def test_show_and_preview(run: Path, folder: Path, tmp_path: Path) -> None:
    assert ubend("show", run, "--device", "cpu").stdout.strip() == str(run / "predictions.png")
    ubend("show", run, "--device", "cpu", "--count", 2, "--out", tmp_path / "two.png")
    ubend("preview", folder, "--out", tmp_path / "samples.png", "--count", 3)
    heights = []
    for path in (run / "predictions.png", tmp_path / "two.png", tmp_path / "samples.png"):
        with Image.open(path) as grid:
            grid.load()
            assert grid.width > 3 * 100
            heights.append(grid.height)
    assert heights[1] < heights[2] < heights[0]  # two, three and four rows
    (run / "predictions.png").unlink()


def test_preview_names_its_file_after_the_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is overwritten: the next one has the next number."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert ubend("preview", folder, "--count", 1).stdout == f"discs-preview-{number}.png\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["discs-preview-1.png", "discs-preview-2.png"]


def test_show_the_worst(run: Path) -> None:
    """The lowest score first, each with its score and its errors; the scores are those of `evaluate`."""
    captions, headings, named = list[str](), list[str](), list[str]()

    def draw(rows: Any, heads: Any, labels: Any, legend: Any) -> Image.Image:
        captions.extend(labels)
        headings.extend(heads)
        named.extend(name for name, _color in legend)
        return draw_grid(rows, heads, labels, legend=legend)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(show_task, "draw_grid", draw)
        assert ubend("show", run, "--worst", "--device", "cpu").stdout.strip() == str(run / "worst.png")
    scores = read_scores(run / "scores.json")["per_picture"]
    dice = sorted((row["dice"]["foreground"], name) for name, row in scores.items())  # type: ignore[attr-defined]
    assert len({value for value, _name in dice}) == len(dice) == 4
    assert captions == [f"{name}: Dice {value:.3f}" for value, name in dice]
    assert headings[-1] == "errors"
    near = "wrong, within 2 px of a true outline"
    assert named == ["background", "foreground", "false positive", "false negative", near]
    with Image.open(run / "worst.png") as grid:
        assert grid.width > 4 * 100
    (run / "worst.png").unlink()


def test_show_a_subset(run: Path, tmp_path: Path) -> None:
    """`--subset` picks the split; one that the run does not have is refused."""
    heights = []
    for subset in ("val", "train"):
        ubend("show", run, "--subset", subset, "--device", "cpu", "--out", tmp_path / f"{subset}.png")
        with Image.open(tmp_path / f"{subset}.png") as grid:
            heights.append(grid.height)
    assert heights[0] < heights[1]  # 3 and 10 images
    shutil.copytree(run, tmp_path / "run")
    rows = (run / "data.csv").read_text().replace(",test,", ",val,")
    (tmp_path / "run" / "data.csv").write_text(rows)
    check(refused_once("show", tmp_path / "run", "--subset", "test"), DataError, key="--subset")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("trian", "fit"), ("train", "fit"), ("evalute", "evaluate"), ("smaple", "sample"), ("lesons", "lesson")],
)
def test_an_unknown_command_names_the_nearest(wrong: str, right: str) -> None:
    said = CliRunner().invoke(main, [wrong, "x"])
    assert said.exit_code == 2
    assert f"'{right}'" in said.stderr


@pytest.mark.parametrize("words", [(), ("lesson",)])
def test_the_list_of_commands_has_whole_sentences(words: tuple[str, ...]) -> None:
    assert "..." not in ubend(*words, "--help").output.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("flag", "key"), [("--lr", "train.learning_rate"), ("--weight-decay", "train.weight_decay"), ("--kind", None)]
)
def test_a_flag_that_is_a_setting_names_it(flag: str, key: str | None) -> None:
    output = ubend("fit", "folder", flag, "3", status=2).output
    assert (f"--set {key}=VALUE" in output) == (key is not None)
    assert "No such option" in ubend("evaluate", "run", flag, "3", status=2).output


def test_a_file_that_is_no_model(folder: Path) -> None:
    image = next((folder / "images").iterdir())
    assert "not a model file" in ubend("predict", image, folder, "--out", "nowhere", status=2).output


def test_a_renamed_command_names_the_new_one(tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["samples", str(tmp_path)])
    assert said.exit_code == 2
    assert len(said.stderr.splitlines()) == 1
    assert "ubend preview" in said.stderr


def test_info(run: Path) -> None:
    said = ubend("info", run).stdout
    assert said == ubend("info", run / "model.safetensors").stdout
    assert "U-Net: width 4, depth 4" in said
    assert "1 foreground  mask value 255" in said
    assert "recipe: modern" in said


def test_info_lists_all_choices(fitted: tuple[Path, str]) -> None:
    """Those that `fit` printed, and as many others as it said."""
    run, said = fitted
    printed = [line for line in said.splitlines() if line.startswith("chosen: ")]
    listed = [line for line in ubend("info", run).stdout.splitlines() if line.startswith("chosen: ")]
    assert set(printed[:-1]) < set(listed)
    assert len(listed) == len(printed) - 1 + int(printed[-1].split()[1])
    assert any(line.startswith("chosen: data.channels = 3: ") for line in listed)


def test_info_says_how_training_went(run: Path, tmp_path: Path) -> None:
    """Scores of both splits, date, epochs, seed; a model file alone has all but the date and the test scores."""
    lines = ubend("info", run).stdout.splitlines()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["best"]][-1]
    dice = ", ".join(f"{name} {value:.3f}" for name, value in kept["val_dice"].items())
    validation, epochs = (
        f"validation, at training size: Dice {dice}",
        f"epochs: 3 of 3, weights kept from epoch {kept['epoch']}",
    )
    began = datetime.fromisoformat(str(read_scores(run / "run.json")["began"]))
    scores = read_scores(run / "scores.json")["native"]["dice"]["per_image"]  # type: ignore[index]
    test = ", ".join(f"{name} {scores[name]:.3f}" for name in ("background", "foreground"))
    for line in (
        "data: discs",
        f"ubend: {__version__}",
        "seed: 0",
        f"trained: {began:%Y-%m-%d %H:%M}",
        epochs,
        validation,
        f"test, 4 images at native size: Dice {test}",
    ):
        assert line in lines
    shutil.copy(run / "model.safetensors", tmp_path)
    alone = ubend("info", tmp_path / "model.safetensors").stdout.splitlines()
    assert {epochs, validation, "seed: 0"} <= set(alone)
    assert not any(line.startswith(("trained: ", "test, ")) for line in alone)


def test_runs(run: Path, tmp_path: Path) -> None:
    """The newest first, whatever else lies there; a damaged run is one line and no end."""
    for name, began in (
        ("old", "2026-01-02T03:04:05"),
        ("new", "2026-02-03T04:05:06"),
        ("damaged", ""),
        ("unfinished", ""),
    ):
        shutil.copytree(run, tmp_path / name)
        facts = {**read_scores(run / "run.json"), "began": began or "2025-01-01T00:00:00"}
        (tmp_path / name / "run.json").write_text(json.dumps(facts))
    (tmp_path / "damaged" / "scores.json").write_text("[]")
    (tmp_path / "unfinished" / "scores.json").unlink()
    lines = (tmp_path / "unfinished" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "unfinished" / "metrics.jsonl").write_text(lines[0])
    settings = tmp_path / "new" / "settings.toml"
    images, masks = (json.dumps(str(Path("cells", kind))) for kind in ("images", "ids"))
    stated, count = re.subn("(?m)^folder = .*", f"images = {images}\nmasks = {masks}", settings.read_text())
    assert count == 1
    settings.write_text(stated)
    (tmp_path / "notes").mkdir()
    head, new, old, unfinished, explained, ranked, damaged = ubend("runs", tmp_path).stdout.splitlines()
    assert head.split() == ["run", "date", "data", "epochs", "size", "seed", "validation", "test"]
    native = read_scores(run / "scores.json")["native"]["dice"]["per_image"]  # type: ignore[index]
    assert old.split()[:7] == ["old", "2026-01-02", "03:04", "discs", "3", "32", "0"]
    assert old.split()[8] == f"{native['foreground']:.3f}"
    assert new.split()[:4] == ["new", "2026-02-03", "04:05", "cells"]
    assert unfinished.split()[4] == "1/3"
    assert unfinished.split()[-1] == "-"
    assert "without the background" in explained
    assert "new, old" in ranked
    assert str(tmp_path / "damaged") in damaged
    assert "scores.json" in damaged
    assert len(ubend("runs", run).stdout.splitlines()) == 3
    for place in ("nowhere", "notes"):
        check(refused_once("runs", tmp_path / place), OutputError, path=tmp_path / place)


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ("size = 256\ncrop = 128", ["256", "128"]),
        ('resize = "native"\ncrop = 128', ["native", "128"]),
        ('resize = "native"', ["native"]),
    ],
)
def test_runs_show_the_size_of_images_and_of_crops(lines: str, shown: list[str], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "one")
    settings = (run / "settings.toml").read_text()
    assert settings.count("\nsize = 32\n") == 1
    kept = "".join(line for line in settings.splitlines(keepends=True) if not line.startswith(("size =", "resize =")))
    (tmp_path / "one" / "settings.toml").write_text(kept.replace("[data]\n", f"[data]\n{lines}\n"))
    row = ubend("runs", tmp_path).stdout.splitlines()[1]
    size = row.partition("  3  ")[2].partition("  0  ")[0].replace(",", "").split()
    assert [word for word in size if word.isdigit() or word == "native"] == shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "{"),
        ("run.json", '{"began": "0001-01-01T00:00:00+14:00", "ubend": "1"}'),
        ("run.json", '{"began": 5}'),
        ("settings.toml", None),
        ("settings.toml", "[data]\nsize = 3\n[train]\nseed = 0\nepochs = inf\n"),
        ("settings.toml", "data = 3\ntrain = 4\n"),
        ("metrics.jsonl", "5\n"),
        ("metrics.jsonl", '{"best": true, "epoch": 1, "val_dice": {"a": "high"}}\n'),
        ("scores.json", '{"part": "test", "native": []}'),
        ("scores.json", '{"part": "test", "native": {"dice": 3}}'),
    ],
)
def test_a_damaged_run_is_one_line(name: str, text: str | None, run: Path, tmp_path: Path) -> None:
    """In the list, and in what `info` says of a model that is whole; the line names the file."""
    shutil.copytree(run, tmp_path / "one")
    (tmp_path / "one" / name).unlink()
    if text is not None:
        (tmp_path / "one" / name).write_text(text)
    (line,) = ubend("runs", tmp_path).stdout.splitlines()
    assert f"{tmp_path / 'one' / name}: damaged (" in line
    assert "delete" not in line  # the model is whole
    whole = ubend("info", run).stdout.splitlines()
    info = ubend("info", tmp_path / "one").stdout.splitlines()
    assert info[-1] == line
    for start in ("classes:", "seed: ", "epochs: ", "validation, "):  # what the model file says
        assert [one for one in info if one.startswith(start)] == [one for one in whole if one.startswith(start)] != []


def test_info_of_a_model_that_says_something_else(run: Path, tmp_path: Path) -> None:
    bundle = load_bundle(run)
    bundle.about["val_dice"] = {"background": "high"}
    save_bundle(tmp_path / "model.safetensors", bundle)
    assert "validation" not in ubend("info", tmp_path / "model.safetensors").stdout


def test_a_second_fit_into_a_run_is_refused(run: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    error = refused_once("fit", folder, "--out", run, *TINY)
    check(error, OutputError, path=run, key="--out")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_settings_of_a_run_give_it_again(run: Path, folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    ubend("fit", folder, "--out", again, "--config", run / "settings.toml")
    for name in ("model.safetensors", "resume.safetensors", "metrics.jsonl", "scores.json", "settings.toml"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name


def test_a_flag_is_stronger_than_a_config_file(run: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    words = ["--epochs", 1, "--set", "train.patience=7", "--seed", 5]
    ubend("fit", folder, "--out", out, "--config", run / "settings.toml", *words)
    settings = (out / "settings.toml").read_text()
    assert "epochs = 1\n" in settings
    assert "patience = 7\n" in settings
    assert "seed = 5\n" in settings
    assert "width = 4\n" in settings


@pytest.mark.parametrize(
    ("words", "kept"), [("none", "none"), ("1,3", "1, 3"), ("all", "1, 2, 3, 4"), (" 2 , 4", "2, 4")]
)
def test_skips(words: str, kept: str, folder: Path, tmp_path: Path) -> None:
    ubend("fit", folder, "--out", tmp_path / "run", *TINY, "--epochs", 1, "--skips", words)
    assert f"skip connections at levels {kept}\n" in ubend("info", tmp_path / "run").stdout


@pytest.mark.parametrize("words", ["0", "5", "1,x", "", "first"])
def test_wrong_skips(words: str, folder: Path, tmp_path: Path) -> None:
    error = refused_once("fit", folder, "--out", tmp_path / "run", *TINY, "--skips", words)
    check(error, SettingError, key="model.skips", named=["1", "4"])


def test_skips_of_another_depth(folder: Path, tmp_path: Path) -> None:
    words = [*TINY, "--epochs", 1, "--set", "model.depth=2", "--skips", "2"]
    ubend("fit", folder, "--out", tmp_path / "run", *words)
    assert "depth 2" in ubend("info", tmp_path / "run").stdout


def test_resume_of_a_finished_run_changes_nothing(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    said = ubend("fit", "--resume", copy)
    assert "running statistics of batch norm" not in said.stdout + said.stderr  # no steps follow
    for name in ("model.safetensors", "resume.safetensors", "metrics.jsonl", "scores.json"):
        assert (copy / name).read_bytes() == (run / name).read_bytes(), name


def test_resume_takes_nothing_else(run: Path) -> None:
    assert "--resume uses" in ubend("fit", "--resume", run, "--epochs", 9, status=2).stderr


def test_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not ours stays, wherever UBEND_CACHE points."""
    place = tmp_path / "cache"
    monkeypatch.setenv("UBEND_CACHE", str(place))
    assert "0.0 MiB" in ubend("cache").stdout
    (place / "thesis").mkdir(parents=True)
    (place / "thesis" / "only-copy.txt").write_text("precious")
    (place / "poetry.lock").write_text("not a store's")
    monkeypatch.setattr(file_cache, "_TICK_NS", -(10**12))  # else files this young are not remembered
    ubend("fit", folder, "--out", tmp_path / "run", *TINY, "--epochs", 1)
    lines = ubend("cache").stdout.splitlines()
    assert len(lines) == 5
    for line, what in zip(
        lines, ("list of files", "values of masks", "widths of objects", "images of 32 px"), strict=False
    ):
        assert re.search(rf" MiB  \d{{4}}-\d\d-\d\d \d\d:\d\d  {what} +{re.escape(str(folder))}  [0-9a-f]{{24}}", line)
    assert "thesis" not in "".join(lines[:4])
    assert str(place) in lines[4]
    assert "freed" in ubend("cache", "--clear").stdout
    assert sorted(path.name for path in place.iterdir()) == ["poetry.lock", "thesis"]
    assert (place / "thesis" / "only-copy.txt").read_text() == "precious"
    assert len(ubend("cache").stdout.splitlines()) == 1


def test_sample(tmp_path: Path) -> None:
    assert "2 images" in ubend("sample", tmp_path / "drawn", "--count", 2, "--size", 64).stdout
    assert len(list((tmp_path / "drawn" / "masks").iterdir())) == 2


def test_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ubend", "info", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: nowhere: no such model file; give a run folder or a model file\n",
    )


def test_subcommands_have_help() -> None:
    listed = ubend("--help").stdout
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert name in listed
        assert command is not None
        assert command.help
        assert ubend(name, "--help").stdout.startswith("Usage: ")


def test_help_has_one_notation_for_defaults() -> None:
    """Those that click knows, and those that are stated in the help because they are found later."""
    shown = " ".join(ubend("fit", "--help").stdout.split())
    assert "Random seed. [default: 0]" in shown
    assert "train on; with --device cpu, of processes. [default: 1; 1<=x<=64]" in shown
    assert "Channels of the images: 1 (grey), 3 (colour) or more. [default: as stored]" in shown
    assert "Number of images. [default: 8; x>=1]" in " ".join(ubend("preview", "--help").stdout.split())


def test_every_note_in_the_help_says_what_it_is() -> None:
    """A default, a range, or that an option is required; of all commands."""
    notes = list[str]()

    def read(group: click.Group, context: click.Context) -> None:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            own = click.Context(command, context, name)
            for record in (option.get_help_record(own) for option in command.get_params(own)):
                notes.extend(re.findall(r"  \[([^]]+)\]", record[1]) if record else [])
            if isinstance(command, click.Group):
                read(command, own)

    read(main, click.Context(main))
    assert sum("default: " in note for note in notes) > 40
    assert [note for note in notes if not re.match(r"default: |required$|-?[0-9.]+<|x[<>]", note)] == []
