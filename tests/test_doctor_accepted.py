"""Accepted findings: quiet until their files change, in `doctor`, `data` and `fit`."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.refusal import contents
from ubend.cli.app import main
from ubend.core.errors import SettingError
from ubend.core.files import write_text
from ubend.core.settings import make_settings
from ubend.doctor.accepted import FILE_NAME, read_accepted
from ubend.doctor.finding import Finding
from ubend.tasks.doctor import examine_data


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path / "cache"))


def darken(path: Path, share: float = 0.15) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image)
    Image.fromarray((pixels * share).astype(np.uint8)).save(path)


def examine(folder: Path, *accepted: str) -> list[tuple[str, list[str]]]:
    """(check, names of files) of the warnings; the discs are too easy a set for its notes to matter."""
    found: list[Finding] = examine_data(make_settings(changes={"data.folder": str(folder)}), accepted=accepted)
    return [(one.check, [path.name for path in one.files]) for one in found if one.grade == "warning"]


@pytest.fixture
def dark(discs: Path) -> Path:
    """The discs, two images of which are dark."""
    for name in ("disc03", "disc07"):
        darken(discs / "images" / f"{name}.png")
    return discs


def dark_files(folder: Path, *accepted: str) -> list[str]:
    return [name for check, files in examine(folder, *accepted) if check == "dark image" for name in files]


def test_an_accepted_finding_is_quiet_until_its_file_changes(dark: Path) -> None:
    before = contents(dark)
    assert dark_files(dark) == ["disc03.png", "disc07.png"]
    assert dark_files(dark, "dark image:images/disc03.png") == ["disc07.png"]
    assert {name for name in contents(dark) if contents(dark)[name] != before.get(name)} == {FILE_NAME}
    assert [entry.file for entry in read_accepted(dark / FILE_NAME)] == ["images/disc03.png"]
    darken(dark / "images" / "disc03.png", 0.9)
    assert dark_files(dark, "dark image:disc07.png") == ["disc03.png"]
    assert dark_files(dark, "dark image:disc03.png") == []  # accepted again: an entry for each file, not two
    assert len(read_accepted(dark / FILE_NAME)) == 2


def test_a_check_is_accepted_in_all_its_files(dark: Path) -> None:
    assert dark_files(dark, "dark image") == []
    assert {entry.file for entry in read_accepted(dark / FILE_NAME)} == {"images/disc03.png", "images/disc07.png"}
    darken(dark / "images" / "disc09.png")
    assert dark_files(dark) == ["disc09.png"]


def test_one_of_many_files_is_taken_out_of_a_finding(discs: Path) -> None:
    for name in ("disc03.png", "disc07.png"):
        with Image.open(discs / "masks" / name) as mask:
            empty = np.zeros_like(np.asarray(mask))
        Image.fromarray(empty).save(discs / "masks" / name)
    found = examine_data(make_settings(changes={"data.folder": str(discs)}), accepted=["empty mask:disc03.png"])
    assert [[path.name for path in one.files] for one in found if one.check == "empty mask"] == [["disc07.png"]]


def test_a_pair_of_copies_is_accepted_together(discs: Path) -> None:
    for kind in ("images", "masks"):
        (discs / kind / "disc98.png").write_bytes((discs / kind / "disc03.png").read_bytes())
    assert "duplicate image" not in {check for check, _files in examine(discs, "duplicate image:disc98.png")}
    for kind in ("images", "masks"):
        (discs / kind / "disc99.png").write_bytes((discs / kind / "disc03.png").read_bytes())
    assert ("duplicate image", ["disc03.png", "disc98.png", "disc99.png"]) in examine(discs)


def test_the_quick_checks_of_data_and_fit_are_quiet_too(dark: Path, tmp_path: Path) -> None:
    words = ["data", str(dark), "--out"]
    assert "ubend doctor" in CliRunner().invoke(main, [*words, str(tmp_path / "before")]).output
    examine(dark, "dark image")
    assert "ubend doctor" not in CliRunner().invoke(main, [*words, str(tmp_path / "after")]).output


def test_what_else_the_file_holds_is_kept(dark: Path) -> None:
    path = dark / FILE_NAME
    text = '# mine\n[data]\nfolder = "x"\n\n[[accepted]]\ncheck = "a"\nfile = "b"\nhash = "c"\n\n[train]\nseed = 3\n'
    write_text(path, text)
    examine(dark, "dark image:disc03.png")
    table = tomllib.loads(path.read_text())
    assert table["data"] == {"folder": "x"}
    assert table["train"] == {"seed": 3}
    assert "# mine" in path.read_text()
    assert [entry["check"] for entry in table["accepted"]] == ["a", "dark image"]
    write_text(path, 'accepted = [{check = "a", file = "b", hash = "c"}]\n')
    with pytest.raises(SettingError) as refused:
        examine(dark, "dark image:disc03.png")
    assert refused.value.path == path
    assert path.read_text().startswith("accepted")


@pytest.mark.parametrize(
    "text",
    ["x = [", '[[accepted]]\ncheck = "a"\n', '[[accepted]]\ncheck = 1\nfile = "b"\nhash = "c"\n', "accepted = 3\n",
     '[[accepted]]\ncheck = "a"\nfile = "b"\nhash = "c"\nwhy = "d"\n', "\udcff"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["doctor", "data"])
def test_a_damaged_file_is_one_line(command: str, text: str, discs: Path, tmp_path: Path) -> None:
    write_text(discs / FILE_NAME, text)
    words = [command, str(discs), *(["--out", str(tmp_path / "out")] if command == "data" else [])]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert FILE_NAME in line


@pytest.mark.parametrize("text", ["no such check", "dark image:disc01.png", "", ":disc03.png"])
def test_what_is_not_found_cannot_be_accepted(text: str, dark: Path) -> None:
    with pytest.raises(SettingError) as refused:
        examine(dark, text)
    assert refused.value.key == "--accept"
    assert not (dark / FILE_NAME).exists()


def test_what_cannot_be_read_cannot_be_accepted(discs: Path) -> None:
    (discs / "images" / "disc05.png").write_bytes(b"no image")
    with pytest.raises(SettingError) as refused:
        examine(discs, "unreadable file")
    assert refused.value.key == "--accept"


def test_a_folder_with_accepted_findings_is_read_as_before(dark: Path, tmp_path: Path) -> None:
    before = CliRunner().invoke(main, ["data", str(dark), "--out", str(tmp_path / "before")]).output
    examine(dark, "dark image")
    after = CliRunner().invoke(main, ["data", str(dark), "--out", str(tmp_path / "after")]).output
    kept = [line for line in before.splitlines() if "quick checks" not in line]
    assert [line.replace("after", "before") for line in after.splitlines() if "quick checks" not in line] == kept
