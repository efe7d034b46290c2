"""Every lesson says what to see, how sure it is and what is recorded; the recorded figures are those of the docs."""

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from ubend.cli.app import main
from ubend.core.i18n import choose_language
from ubend_lessons.explain import FILE, draw_table, explain
from ubend_lessons.faults import FAULTS
from ubend_lessons.lessons import LESSONS

TEXTS = tomllib.loads(FILE.read_text(encoding="utf-8"))
RESULTS = (Path(__file__).parent.parent / "docs" / "results.md").read_text(encoding="utf-8")
TABLES = [name for name, own in TEXTS.items() if "rows" in own]


def test_nothing_is_left_unexplained() -> None:
    assert sorted(TEXTS) == sorted([*(str(one.name) for one in LESSONS), *(f"fault-{fault}" for fault in FAULTS)])
    assert all(own[key] for own in TEXTS.values() for key in ("see", "sure", "real"))


@pytest.mark.parametrize("name", TABLES)
def test_recorded_figures_are_those_of_the_docs(name: str) -> None:
    """Each figure stands in docs/results.md (with or without its leading 0), and what made it is reported."""
    own = TEXTS[name]
    assert own.get("commands") or TEXTS[name.partition("-")[0].replace("fault", "faults")]["commands"]
    assert {len(row) for row in own["rows"]} == {len(own["columns"])}
    known = set(re.findall(r"\d*\.?\d+(?:e\+\d+)?%?", RESULTS))
    known |= {f"0{figure}" for figure in known if figure.startswith(".")}
    for row in own["rows"]:
        for cell in row[1:]:
            assert set(re.findall(r"\d+(?:\.\d+)?(?:e\+\d+)?%?", cell)) <= known, row


def test_leaks_and_choosing_are_told_by_real_images() -> None:
    lines = "\n".join(explain("fault-leak"))
    assert "+0.041 (+0.015..+0.055)" in lines
    assert max(map(len, explain("fault-leak"))) < 120


def test_table() -> None:
    """Columns are aligned; figures and names in backticks stay as they are in every language."""
    choose_language("vi")
    try:
        lines = draw_table([["", "grey"], ["`local`", "0.5"], ["none", "1"]])
    finally:
        choose_language("en")
    assert len(set(map(len, lines))) == 1
    assert "xám" in lines[0]
    assert "| `local`" in lines[2]
    assert "none" not in lines[3]


@pytest.mark.parametrize(("language", "words"), [("en", "What to see: Each input"), ("vi", "Cần xem gì: Mỗi giá trị")])
def test_a_lesson_ends_with_its_explanation(language: str, words: str, tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["lesson", "transposed-convolution", "--out", str(tmp_path), "--lang", language])
    choose_language("en")
    assert run.exit_code == 0, run.output
    assert run.output.index(words) > run.output.index("checkerboard.png\n")
