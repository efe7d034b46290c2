"""The lesson on the tutorial's faults: wrong arithmetic is wrong as expected, and what is drawn is what is counted."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.discs import make_discs
from support.refusal import check, raises, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError
from ubend.core.i18n import choose_language
from ubend.core.settings import FROZEN_COPIES
from ubend.dataset.sample import draw_sample
from ubend.labels.class_table import make_label_map
from ubend.tasks.fit import fit
from ubend_lessons import faults as subject
from ubend_lessons.explain import explain
from ubend_lessons.fault_data import HELD, ResizedData, make_copies, resize_bilinear, write_leak
from ubend_lessons.faults import FAULTS, find_faults, mean_of_batches, read_sized, teach_faults
from ubend_lessons.recorded import train_recorded
from ubend_lessons.variants import SilentReporter

TINY = {"model.width": 2, "train.epochs": 3, "train.batch": 4, "data.size": 32}
TINY_WORDS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells") / "cells"
    draw_sample(folder, 24, 64)
    return folder


@pytest.fixture(scope="module")
def sized(cells: Path) -> ResizedData:
    return read_sized(cells, TINY)


def test_batch_means() -> None:
    """Five images, two at a time: the last one weighs a third instead of a fifth."""
    losses = np.array([[0.0, 0.0, 0.0, 0.0, 15.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(mean_of_batches(losses, 2), [5.0, 1.0])
    np.testing.assert_allclose(losses.mean(axis=1), [3.0, 1.0])
    np.testing.assert_allclose(mean_of_batches(losses[:, :4], 2), losses[:, :4].mean(axis=1))


def test_trimaps_get_background_between_pet_and_contour() -> None:
    """1 pet, 2 background, 3 contour: half-way between 1 and 3 lies 2."""
    labels = make_label_map([1, 2, 3], ("pet", "background", "contour"))
    index = np.zeros((8, 8), np.uint8)
    index[:, 3:] = 2
    found, unknown = resize_bilinear(index, (4, 4), labels)
    assert 1 in found
    assert not unknown.any()
    same, _unknown = resize_bilinear(index, (8, 8), labels)
    np.testing.assert_array_equal(same, index)


def test_black_and_white_masks_get_grey() -> None:
    index = np.zeros((8, 8), np.uint8)
    index[:, 3:] = 1
    found, unknown = resize_bilinear(index, (4, 4), make_label_map([0, 255]))
    assert set(np.unique(found)) <= {0, 1}
    assert unknown[:, 1].all()
    assert not unknown[:, 3].any()


def test_copies() -> None:
    """The image, its elastic copy, both flips, and each flip of it alone."""
    image = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
    mask = (image[..., 0] > 127).astype(np.uint8)
    images, masks = make_copies(image, mask, np.full((2, 2), 16), 0)
    assert images.shape == (2 * FROZEN_COPIES, 16, 16, 3)
    for number in range(2):
        first = number * FROZEN_COPIES
        for copy, flipped in ((0, np.s_[:, :]), (2, np.s_[:, ::-1]), (3, np.s_[::-1]), (4, np.s_[::-1, ::-1])):
            np.testing.assert_array_equal(images[first + copy], image[number][flipped])
            np.testing.assert_array_equal(masks[first + copy], mask[number][flipped])
        assert (images[first + 1] != image[number]).any()


def test_leaking_folder(sized: ResizedData, tmp_path: Path) -> None:
    """No copy of an image that is kept apart is in training; of nearly all others some are."""
    write_leak(tmp_path, sized, 1000, 0)
    rows = [line.split(",") for line in (tmp_path / "split.csv").read_text().split()[1:]]
    splits: dict[str, set[str]] = {}
    for name, part in rows:
        splits.setdefault("-".join(name.split("-")[:2]), set()).add(part)
    held = [found for name, found in splits.items() if name.startswith(HELD)]
    assert len(held) == round(0.15 * len(sized.images))
    assert all(found == {"test"} for found in held)
    assert len(rows) == FROZEN_COPIES * len(sized.images)
    assert sum("train" in found for found in splits.values()) >= len(splits) - len(held) - 1


def test_recorded_is_what_fit_says(cells: Path, tmp_path: Path) -> None:
    """The same losses of the validation split, and the same Dice of the test split, as a run of `ubend fit`."""
    settings: dict[str, Any] = {
        **TINY,
        "augment.kind": "none",
        "data.resize": "squash",
        "train.ema_decay": 0.0,
        "train.select": "loss",
        "train.loss": "ce",
    }
    recorded = train_recorded(cells, settings, device="cpu", reporter=SilentReporter())
    result = fit(cells, tmp_path / "run", settings=settings, device="cpu", reporter=SilentReporter())
    told = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if line]
    assert len(told) == len(recorded.losses) == 3
    losses = recorded.losses[:, recorded.is_val].mean(axis=1)
    np.testing.assert_allclose(losses, [json.loads(line)["val_loss"] for line in told], rtol=1e-4)
    best = recorded.best_epoch(recorded.is_val)
    assert result.scores is not None
    wanted = result.scores.model_size.dice.per_image.mean_foreground
    assert recorded.dice(best, ~recorded.is_val) == pytest.approx(wanted, abs=2e-3)


def test_findings(sized: ResizedData, tmp_path: Path) -> None:
    findings = find_faults(sized, tmp_path / "place", settings=TINY, device="cpu", reporter=SilentReporter())
    by_fault: dict[str, list[Any]] = {}
    for finding in findings:
        by_fault.setdefault(finding.fault, []).append(finding)
    assert set(by_fault) == {"leak", "choosing", "bilinear", "batch-means", "after-the-loop", "grey", "summed"}
    assert by_fault["leak"][0].text > 0.9
    assert by_fault["leak"][0].row()[0] == "leak: test items with a copy of the same image in training"
    assert by_fault["leak"][0].mended == 0
    loss, _dice, _epoch = by_fault["choosing"]
    assert loss.text <= loss.mended  # the least of all epochs, or another one
    wrong, unknown, *_dices = by_fault["bilinear"]
    assert 0.005 < wrong.text < 0.2
    assert unknown.text == 0  # 0, 1, 2: halves are rounded to whole numbers
    points = by_fault["after-the-loop"][0]
    assert (points.text, points.mended) == (1, 3)
    norm, _after, _rate, moved = by_fault["summed"]
    assert norm.text / norm.mended == pytest.approx(32 * 32, rel=0.01)
    assert moved.text == pytest.approx(moved.mended, rel=0.05)


def test_command(cells: Path, tmp_path: Path) -> None:
    """In Vietnamese, so that both languages are reported in this file."""
    out = tmp_path / "out"
    words = ["lesson", "faults", "--data", str(cells), "--out", str(out), *TINY_WORDS, "--device", "cpu"]
    run = CliRunner().invoke(main, [*words, "--lang", "vi"])
    choose_language("en")
    assert run.exit_code == 0, run.output
    table = (out / "faults.md").read_text(encoding="utf-8")
    assert table in run.output
    assert "Dice" in table
    assert "mended" not in table
    for name in ("trimaps", "leak"):
        with Image.open(out / f"{name}.png") as image:
            assert image.width > 300


def test_the_drawn_sample_hides_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leak and the choice on the test set are not measured where they cannot be seen: real figures are reported."""
    trained = []

    def note(folder: Path, *args: Any, **options: Any) -> Any:
        trained.append(Path(folder).name)
        return train_recorded(folder, *args, **options)

    monkeypatch.setattr(subject, "train_recorded", note)
    monkeypatch.setattr(subject, "_SAMPLE", 16)
    monkeypatch.setattr(subject, "_SAMPLE_PX", 64)
    findings = teach_faults(tmp_path / "out", settings=TINY, device="cpu", reporter=SilentReporter())
    assert trained == ["plain", "plain", "blurred"]
    assert {finding.fault for finding in findings} == set(FAULTS) - {"leak", "choosing"}
    told = (tmp_path / "out" / "faults.md").read_text(encoding="utf-8")
    assert "+0.041 (+0.015..+0.055)" in told
    for fault in FAULTS:
        assert explain(f"fault-{fault}")[1] in told
    measured = [line for line in told.splitlines() if re.match(r"\| [a-z ]+(?:, .*)?: ", line)]
    assert measured
    assert not [line for line in measured if re.search(r"\| 0(?:\.0+)?%? +\|$", line) and "Adam" not in line]


def test_refused(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check(refused_once("lesson", "faults", "--data", cells, "--out", tmp_path), OutputError, path=tmp_path)
    make_discs(tmp_path / "few", 3)
    for part in ("images", "masks"):
        for path in (tmp_path / "few" / part).iterdir():
            path.rename(path.with_stem(f"train_{path.stem}"))
    (tmp_path / "split.csv").write_text(
        "file,split\ntrain_disc00.png,train\ntrain_disc01.png,train\ntrain_disc02.png,val\n"
    )
    with raises(DataError, path=tmp_path / "few", key="data.split", named=["test"]):
        read_sized(tmp_path / "few", {**TINY, "data.split": str(tmp_path / "split.csv")})
