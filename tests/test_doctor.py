"""The dataset doctor: what it finds in sets with a fault and on a clean set, and what the command does."""

import copy
import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageEnhance, ImageOps

import synthetic_faults
from support.refusal import check, contents, refused_once
from ubend.cli.app import main
from ubend.core.errors import OutputError
from ubend.doctor.duplicates import find_candidates
from ubend.doctor.finding import Finding, count_grades, sort_findings
from ubend.doctor.inspection import lower_bound, upper_bound
from ubend.tasks.doctor_page import write_page

FAULTS = {fault.kind: fault for fault in synthetic_faults.FAULTS}


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> synthetic_faults.Folder:
    return synthetic_faults.Folder(tmp_path_factory.mktemp("doctor") / "clean", "blobs", np.random.default_rng(3))


@pytest.fixture
def folder(blobs: synthetic_faults.Folder, tmp_path: Path) -> synthetic_faults.Folder:
    """A copy of the clean folder, to put faults into."""
    shutil.copytree(blobs.root, tmp_path / "data")
    own = copy.copy(blobs)
    own.root, own.free = tmp_path / "data", {split: list(names) for split, names in blobs.free.items()}
    return own


def examine(folder: synthetic_faults.Folder, tmp_path: Path) -> list[Finding]:
    return synthetic_faults.examine(folder.root, tmp_path / "cache")


@pytest.mark.parametrize("family", synthetic_faults.FAMILIES)
def test_a_clean_folder_has_no_errors(family: str, tmp_path: Path) -> None:
    clean = synthetic_faults.Folder(tmp_path / "data", family, np.random.default_rng(3))
    before = contents(clean.root)
    counts = count_grades(examine(clean, tmp_path))
    assert counts["error"] == 0
    assert counts["warning"] <= 1
    assert contents(clean.root) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind, fault in FAULTS.items() if fault.group != "others"])
def test_a_fault_is_found(folder: synthetic_faults.Folder, tmp_path: Path, kind: str) -> None:
    files = FAULTS[kind].draw(folder)
    found = [finding for finding in examine(folder, tmp_path) if finding.check in FAULTS[kind].checks]
    assert found
    named = {path.name for finding in found for path in finding.files}
    assert not files or any(path.name in named or path.name in found[0].message for path in files)


def test_two_faults_do_not_hide_each_other(folder: synthetic_faults.Folder, tmp_path: Path) -> None:
    """What cannot be read is left out, and the rest is looked at."""
    for kind in ("value off by one", "truncated", "copy in two splits"):
        FAULTS[kind].draw(folder)
    checks = {finding.check for finding in examine(folder, tmp_path)}
    assert {"unreadable file", "leaked image"} <= checks
    assert checks & {*FAULTS["value off by one"].checks}


def test_a_folder_without_masks_is_no_unreadable_file(discs: Path) -> None:
    """Leaving something out would not help, and nothing says so."""
    shutil.rmtree(discs / "masks")
    code, said = run("doctor", discs, "--json", discs.parent / "found.json")
    assert code == 2
    assert "--skip-bad" not in said
    (found,) = json.loads((discs.parent / "found.json").read_text())["findings"]
    assert found["check"] == "unreadable folder"


def test_the_shift_that_is_found_is_the_shift_that_was_drawn(folder: synthetic_faults.Folder, tmp_path: Path) -> None:
    split, name = folder.take("train", marked=True)
    path = folder.mask(split, name)
    mask = np.asarray(Image.open(path))
    Image.fromarray(np.roll(mask, (9, -7), (0, 1))).save(path)
    (found,) = [finding for finding in examine(folder, tmp_path) if finding.check == "shifted mask"]
    assert found.files[0].name == path.name
    assert float(found.evidence["dy"]) == pytest.approx(-9 / 128, abs=0.02)
    assert float(found.evidence["dx"]) == pytest.approx(7 / 128, abs=0.02)


# Near-duplicates


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "recompressed": synthetic_faults._recompress,
}


def test_object_ids_are_not_called_resampled(tmp_path: Path) -> None:
    """Ids without --values are one finding, with the flag that says what they are."""
    rng = np.random.default_rng(0)
    for number in range(6):
        ids = np.kron(np.arange(1, 26 + 5 * number).reshape(5, -1), np.ones((12, 12))).astype(np.uint16)
        for kind, pixels in (("images", rng.integers(0, 255, ids.shape, np.uint8)), ("masks", ids)):
            (tmp_path / "cells" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "cells" / kind / f"{number}.png")
    _status, output = run("doctor", tmp_path / "cells")
    assert "it was resampled" not in output
    assert "*=object" in output


def test_recognised_object_ids_are_not_called_resampled(tmp_path: Path) -> None:
    """With gaps, ids of one mask are not in the others; few masks have many."""
    rng = np.random.default_rng(0)
    for number, objects in enumerate((4, 5, 30, 6, 8, 5)):
        ids = np.zeros((84, 84), np.uint8)
        for place, value in enumerate(rng.choice(np.arange(1, 250), objects, replace=False).tolist()):
            top, left = 14 * (place // 6), 14 * (place % 6)
            ids[top : top + 9, left : left + 9] = value
        for kind, pixels in (("images", rng.integers(0, 255, ids.shape, np.uint8)), ("masks", ids)):
            (tmp_path / "cells" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "cells" / kind / f"{number}.png")
    _status, output = run("doctor", tmp_path / "cells")
    assert "object ids" in output
    assert "resampled" not in output
    assert "the mask holds" not in output


@pytest.mark.parametrize("change", CHANGES)
def test_candidates_contain_changed_copies(change: str) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(synthetic_faults.draw_pair("blobs", rng)[0]) for _ in range(12)]
    images.append(CHANGES[change](images[4]))
    thumbnails = np.stack([np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX)) for image in images])
    found = find_candidates(thumbnails)
    assert (4, 12) in [(one, other) for one, other, _turn in found]
    assert len(found) <= 3


def test_few_thumbnails_are_no_candidates() -> None:
    assert find_candidates(np.zeros((0, 32, 32), np.uint8)) == []
    assert find_candidates(np.zeros((5, 32, 32), np.uint8)) == []


# The bounds of ordinary values


def test_bounds_are_not_moved_by_a_tenth_of_bad_values() -> None:
    values = np.random.default_rng(0).normal(0, 1, 1000)
    assert upper_bound(values) == pytest.approx(3.8, abs=0.4)
    assert lower_bound(values) == pytest.approx(-3.8, abs=0.4)
    values[:100] = 50
    assert upper_bound(values) < 8


# The command


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.output


def test_exit_codes_and_json(discs: Path, tmp_path: Path) -> None:
    code, said = run("doctor", discs, "--json", tmp_path / "clean.json")
    assert code == 0, said
    data = json.loads((tmp_path / "clean.json").read_text())
    assert not [finding for finding in data["findings"] if finding["grade"] == "error"]
    shutil.copy(discs / "images" / "disc03.png", discs / "images" / "disc98.png")
    shutil.copy(discs / "masks" / "disc03.png", discs / "masks" / "disc98.png")
    assert run("doctor", discs)[0] == 0  # a copy in one split is a warning
    code, said = run("doctor", discs, "--strict")
    assert code == 2
    assert "--accept" in said
    assert "--skip-bad" not in said
    (discs / "images" / "disc05.png").write_bytes(b"no image")
    code, said = run("doctor", discs, "--json", tmp_path / "bad.json")
    assert code == 2
    assert "disc05.png" in said
    errors = [f for f in json.loads((tmp_path / "bad.json").read_text())["findings"] if f["grade"] == "error"]
    assert [Path(f["files"][0]).name for f in errors] == ["disc05.png"]


def test_data_counts_what_quick_checks_find(discs: Path, tmp_path: Path) -> None:
    assert "ubend doctor" not in run("data", discs, "--out", tmp_path / "clean")[1]
    shutil.copy(discs / "images" / "disc03.png", discs / "images" / "disc98.png")
    shutil.copy(discs / "masks" / "disc03.png", discs / "masks" / "disc98.png")
    code, said = run("data", discs, "--out", tmp_path / "out")
    assert code == 0
    assert "ubend doctor" in said


def test_a_given_split_that_leaks(discs: Path, tmp_path: Path) -> None:
    shutil.copy(discs / "images" / "disc03.png", discs / "images" / "disc98.png")
    shutil.copy(discs / "masks" / "disc03.png", discs / "masks" / "disc98.png")
    names = sorted(path.stem for path in (discs / "images").iterdir())
    with (tmp_path / "split.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "split", "group"))
        for i, name in enumerate(names):
            rows.writerow((name, "test" if i > 17 else "val" if i > 12 else "train", f"patient{i // 5}"))
    code, _said = run("doctor", discs, "--split", tmp_path / "split.csv", "--json", tmp_path / "found.json")
    assert code == 2
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    leaked = [f for f in found if f["check"] == "leaked image"]
    assert [sorted(Path(name).stem for name in f["files"]) for f in leaked] == [["disc03", "disc98"]]
    assert len([f for f in found if f["check"] == "leaked group"]) == 2  # of patients 2 and 3


def test_the_page_needs_no_other_file(discs: Path, tmp_path: Path) -> None:
    name = "disc98<b>"
    shutil.copy(discs / "images" / "disc03.png", discs / "images" / f"{name}.png")
    shutil.copy(discs / "masks" / "disc03.png", discs / "masks" / f"{name}.png")
    assert run("doctor", discs, "--html", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "duplicate image" in page
    assert page.count("<img ") == page.count("data:image/jpeg;base64,") >= 2
    assert "<b>" not in page  # names are escaped
    assert not re.search(r"(src|href)=.(?!data:)", page)


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_another_file_is_not_overwritten(option: str, discs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    check(refused_once("doctor", discs, option, tmp_path / "mine"), OutputError, path=tmp_path / "mine", key=option)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_page_without_findings_says_so(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "cells", [], None)
    assert "no findings" in (tmp_path / "page.html").read_text()


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.png")
    assert run("doctor", tmp_path, "--html", tmp_path / "page.html")[0] == 2
    assert "<section" in (tmp_path / "page.html").read_text()


def test_order_of_findings() -> None:
    grades = ("note", "error", "warning", "error")
    findings = [Finding(f"check {i}", grade, (), "", "") for i, grade in enumerate(grades)]  # type: ignore[arg-type]
    assert [finding.check for finding in sort_findings(findings)] == ["check 1", "check 3", "check 2", "check 0"]
