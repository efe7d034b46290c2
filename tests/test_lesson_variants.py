"""The lessons that train several times: what differs, what is scored, what is drawn."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import ubend
from support.refusal import raises
from ubend.cli.app import main
from ubend.core.errors import OutputError
from ubend.dataset.sample import draw_sample
from ubend_lessons import variants as subject
from ubend_lessons.boundary import boundary_dice
from ubend_lessons.variants import SilentReporter, Variant, compare_variants, teach_skips, teach_upsampling

TINY = {"data.size": 32, "model.width": 2, "train.epochs": 1, "train.batch": 4}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lesson") / "cells"
    draw_sample(folder, 14, 64)
    return folder


def test_variants_are_what_they_say(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[Variant] = []

    def note(variants: list[Variant], _out: Path, **_options: object) -> list[object]:
        requested.extend(variants)
        return []

    monkeypatch.setattr(subject, "compare_variants", note)
    teach_upsampling(tmp_path)
    assert [v.settings["model.upsampling"] for v in requested] == ["transposed", "nearest", "bilinear", "unpool"]
    requested.clear()
    teach_skips(tmp_path)
    kept = [v.settings.get("model.skips") for v in requested]
    assert kept[:2] == [None, [False] * 4]
    assert [row.index(False) for row in kept[2:] if row] == [0, 1, 2, 3]
    assert all(row is None or sum(row) in (0, 3) for row in kept)


def test_comparison(cells: Path, tmp_path: Path) -> None:
    """Both are trained on the same images; the scores are those of their files, the outlines those of their masks."""
    pair = [Variant("one", {}), Variant("other", {"model.upsampling": "nearest"})]
    out = tmp_path / "out"
    found = compare_variants(pair, out, folder=cells, settings=TINY, device="cpu", reporter=SilentReporter())
    assert [outcome.variant.name for outcome in found] == ["one", "other"]
    for number, outcome in enumerate(found, 1):
        run = out / f"run-{number}"
        scores = ubend.evaluate(run, device="cpu")
        assert outcome.dice == pytest.approx(scores.native.dice.per_image.mean_foreground, abs=1e-6)
        predictor = ubend.load(run, device="cpu")
        assert predictor.bundle.model.upsampling == ("nearest" if number == 2 else "transposed")
        pairs = [one for one in subject.read_run_pairs(run) if one.split == "test"]
        np.testing.assert_array_equal(outcome.masks[0], predictor(pairs[0].image).mask)
        outlines = [
            boundary_dice(predictor(one.image).mask, np.asarray(Image.open(one.mask.files[0])), 3)[1:] for one in pairs
        ]
        assert outcome.boundary == pytest.approx(float(np.nanmean(outlines)))
    with Image.open(out / "comparison.png") as image:
        assert image.width > 4 * 150
    with raises(OutputError, path=out):
        compare_variants(pair, out, folder=cells, settings=TINY, device="cpu", reporter=SilentReporter())


def test_command(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def note(_variants: object, out: Path, **options: object) -> list[object]:
        given.update(options, out=out)
        return []

    monkeypatch.setattr(subject, "compare_variants", note)
    words = ["lesson", "skips", "--data", str(cells), "--out", str(tmp_path / "out"), "--set", "train.epochs=3"]
    run = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert run.exit_code == 0, run.output
    assert (given["folder"], given["settings"], given["device"]) == (cells, {"train.epochs": 3}, "cpu")
