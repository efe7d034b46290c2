"""What a kind of augmentation is worth: the trainings differ in that kind alone, and differences are of one seed."""

import json
from pathlib import Path

import pytest

import augmentation_ablation
from augmentation_ablation import list_variants, summarise_variants, table_lines
from ubend.core.settings import AugmentSettings, make_settings
from ubend_lessons.augmentation import KINDS, leave_out


def test_the_variants() -> None:
    variants = list_variants(augmentation_ablation.GROUPS, list(KINDS))
    assert len(variants) == 2 + 2 * len(KINDS)
    assert variants["none"] == {"augment.kind": "none"}
    assert variants["all"] == {"augment.kind": "warp"}
    settings = {name: make_settings(changes=changes).augment for name, changes in variants.items()}
    default = AugmentSettings(kind="warp")
    for kind, keys in KINDS.items():
        assert variants[f"without {kind}"] == {"augment.kind": "warp", **{f"augment.{key}": 0.0 for key in keys}}
        only = settings[f"only {kind}"]
        assert [getattr(only, key) for key in keys] == [getattr(default, key) for key in keys]
        assert leave_out(only, [kind]) == leave_out(default, list(KINDS))


def test_differences_are_of_the_same_seed() -> None:
    rows = [("all", 0, 0.5), ("all", 1, 0.7), ("none", 1, 0.6), ("none", 0, 0.2), ("only blur", 1, 0.9)]
    trained = [{"variant": name, "seed": seed, "dice": dice} for name, seed, dice in rows]
    found = {row["name"]: row for row in summarise_variants(trained, "all")}
    assert list(found) == ["only blur", "all", "none"]
    assert found["none"]["difference"]["values"] == pytest.approx([-0.3, -0.1])
    assert found["only blur"]["difference"]["values"] == pytest.approx([0.2])
    assert "difference" not in found["all"]
    lines = table_lines(list(found.values()), "all")
    assert lines[2] == "| only blur | 0.9000 (0.9000 to 0.9000) | +0.2000 (+0.2000 to +0.2000) |"
    assert lines[3] == "| all | 0.6000 (0.5000 to 0.7000) |  |"


@pytest.mark.slow
def test_the_smallest_form(discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "worth.json"
    words = "--groups none only --kinds flips --seeds 3 --size 16 --width 2 --batch 4 --epochs 1 --device cpu"
    augmentation_ablation.main([str(discs), *words.split(), "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["command"].startswith("python benchmarks/augmentation_ablation.py ")
    assert [(one["variant"], one["seed"], one["part"]) for one in report["trained"]] == [
        ("none", 3, "test"),
        ("only flips", 3, "test"),
    ]
    assert all(0 <= one["dice"] <= 1 for one in report["trained"])
    assert {row["name"] for row in report["rows"]} == {"none", "only flips"}
    assert report["against"] == "none"
    assert "| only flips | " in capsys.readouterr().out
