"""The model card: metadata that the Hub reads, scores of scores.json, limitations of the run; never overwritten."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import ubend
from support.discs import make_discs
from support.refusal import raises
from support.training import Listener
from ubend.cli.app import main
from ubend.core.errors import OutputError, SettingError
from ubend.models.model_file import load_bundle, save_bundle
from ubend.portable import i18n
from ubend.training.run_folder import RunFolder

TINY: dict[str, Any] = {"data.size": 32, "model.width": 2, "model.depth": 2, "train.epochs": 1, "train.batch": 4}
HOSTILE = "a|b <i>*c*</i>"


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images; a training image is also a test image, under another name."""
    folder = tmp_path_factory.mktemp("card") / "two: discs"
    make_discs(folder, 16)
    for kind in ("images", "masks"):
        shutil.copy(folder / kind / "disc00.png", folder / kind / "disc15.png")
    rows = [f"disc{number:02d},{'test' if number > 11 else 'val' if number > 8 else 'train'}" for number in range(16)]
    (folder.parent / "split.csv").write_text("\n".join(["file,split", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(discs: Path) -> Path:
    flags: dict[str, Any] = {"split": discs.parent / "split.csv", "classes": ["background", HOSTILE]}
    return ubend.fit(discs, out=discs.parent / "no: 1", settings=TINY, device="cpu", reporter=Listener(), **flags).run


@pytest.fixture(scope="module")
def card(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ubend.report(run, out=tmp_path_factory.mktemp("written") / "README.md", card=True)


def read_front(card: Path) -> tuple[dict[str, Any], str]:
    _empty, front, body = card.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_metadata_are_those_of_scores_json(run: Path, card: Path) -> None:
    front, _body = read_front(card)
    native = json.loads(RunFolder(run).scores.read_text())["native"]
    assert (front["library_name"], front["pipeline_tag"]) == ("ubend", "image-segmentation")
    assert front["license"] == "unknown"
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert model["name"] == "no: 1"
    assert result["task"]["type"] == "image-segmentation"
    assert result["dataset"] == {"type": "two: discs", "name": "two: discs", "split": "test"}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {kind: native[kind]["per_image"][HOSTILE] for kind in ("dice", "iou")}
    assert {*values} <= {*front["metrics"]}


def test_the_hub_reads_it(card: Path) -> None:
    """The Hub's own library finds the same results in the metadata."""
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(card).data
    front, _body = read_front(card)
    wanted = front["model-index"][0]["results"][0]["metrics"]
    assert [(one.metric_type, one.metric_value) for one in data.eval_results] == [
        (metric["type"], metric["value"]) for metric in wanted
    ]
    assert data.model_name == "no: 1"


def test_the_text_says_what_the_run_shows(run: Path, card: Path) -> None:
    _front, body = read_front(card)
    dice = json.loads(RunFolder(run).scores.read_text())["intervals"]["dice"][HOSTILE]
    shown = f"{dice['mean']:.3f} ({dice['t_low']:.3f} to {dice['t_high']:.3f})"
    assert body.count(shown) >= 3
    titles = re.findall("^## (.*)$", body, re.MULTILINE)
    assert titles == [
        "Model",
        "Intended use",
        "Training data",
        "Scores",
        "Limitations",
        "How to use it",
        "Licence",
        "Train it again",
    ]
    limitations = body.split("## Limitations")[1].split("## How")[0]
    assert "Only 4 images were scored" in limitations
    assert "Leaks: 1 scored image is also in another split" in limitations
    assert "disc15" in limitations
    assert body.count("To be filled in by the author") == 4
    assert "| training | 9 |" in body
    assert HOSTILE not in body
    assert r"a\|b \<i\>\*c\*\</i\>" in body
    tables = [line.replace(r"\|", "") for line in body.splitlines() if line.startswith("|")]
    heads = [line.count("|") for line, rule in pairwise(tables) if rule.startswith("| ---")]
    assert {line.count("|") for line in tables} == {*heads}
    assert str(run.parent) not in body


def test_pretrained_weights_are_named(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    bundle = load_bundle(copied)
    bundle.about["encoder_weights"] = "some-package, Apache-2.0"
    save_bundle(RunFolder(copied).model_path, bundle)
    body = read_front(ubend.report(copied, card=True))[1]
    assert "Pretrained weights of the encoder, and their licence: some-package, Apache-2.0" in body


def test_in_vietnamese(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is translated, the metadata are not."""
    english = read_front(ubend.report(run, out=tmp_path / "en.md", card=True))
    monkeypatch.setattr(i18n, "_chosen", "vi")
    front, body = read_front(ubend.report(run, out=tmp_path / "vi.md", card=True))
    assert front == english[0]
    assert "To be filled in" not in body
    assert "## Giới hạn" in body


def test_the_command_keeps_what_the_author_wrote(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    first = CliRunner().invoke(main, ["report", str(copied), "--card"])
    assert first.exit_code == 0
    assert first.output.strip() == str(copied / "README.md")
    (copied / "README.md").write_text("my text")
    second = CliRunner().invoke(main, ["report", str(copied), "--card"])
    assert second.exit_code == 2
    assert (copied / "README.md").read_text() == "my text"
    assert RunFolder(copied).report.read_bytes() == RunFolder(run).report.read_bytes()


def test_refused(run: Path, tmp_path: Path) -> None:
    with raises(SettingError, key="--card"):
        ubend.report([run, run], card=True)
    with raises(OutputError, path=tmp_path):
        ubend.report(tmp_path, card=True)
    assert not (tmp_path / "README.md").exists()
