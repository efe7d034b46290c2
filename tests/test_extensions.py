"""Commands of other packages: found through entry points, loaded when they are needed, unable to break ubend."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from support.distribution import write_distribution
from ubend.cli import app as cli
from ubend.cli import extensions

GOOD = "import click\n@click.command(help='Count stars.')\ndef stars():\n    click.echo('many')\nfit = stars\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a package with one module and these commands."""

    def add(package: str, module: str, **commands: str) -> None:
        (tmp_path / f"{package}.py").write_text(module, encoding="utf-8")
        entries = {name: f"{package}:{target}" for name, target in commands.items()}
        write_distribution(tmp_path, package, {extensions.GROUP: entries})
        monkeypatch.delitem(sys.modules, package, raising=False)
        extensions.find_extensions.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield add
    extensions.find_extensions.cache_clear()


def ubend(*words: str) -> Result:
    return CliRunner().invoke(cli.main, list(words), terminal_width=200)


def listed() -> dict[str, str]:
    """Names and help of `ubend --help`, in its order."""
    result = ubend("--help")
    assert result.exit_code == 0, result.output
    lines = result.output.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    return {name: text for name, _spaces, text in (line.strip().partition("  ") for line in lines)}


def test_a_command_of_another_package(install: Callable[..., None]) -> None:
    install("astronomy", GOOD, stars="stars")
    assert listed()["stars"].strip() == "Count stars."
    assert ubend("stars").output == "many\n"


def test_order_in_the_help(install: Callable[..., None]) -> None:
    """Built-in commands as they are, then the others by name."""
    install("astronomy", GOOD, zenith="stars", comets="stars")
    assert list(listed()) == [*cli.main.commands, "baseline", "comets", "lesson", "zenith"]
    assert list(cli.main.commands)[:2] == ["fit", "evaluate"]


def test_built_in_names_win(install: Callable[..., None]) -> None:
    install("astronomy", GOOD, fit="fit")
    assert list(listed()).count("fit") == 1
    assert ubend("fit", "--help").output.startswith("Usage: main fit [OPTIONS] [FOLDER]")


@pytest.mark.parametrize(
    ("module", "target", "reason"),
    [
        ("import no_such_module", "stars", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def", "stars", "SyntaxError: "),
        ("raise ValueError('two\\nlines')", "stars", "ValueError: two lines"),
        ("", "stars", "AttributeError: "),
        ("stars = 3", "stars", "TypeError: "),
        ("", "a b c", ""),
    ],
)
def test_a_broken_package_is_one_line(install: Callable[..., None], module: str, target: str, reason: str) -> None:
    install("shaky", module, stars=target)
    others = listed()
    assert others.pop("stars").strip().startswith(f"package shaky is broken ({reason}"[:40])
    assert "Train on FOLDER" in others["fit"]
    for words in (["stars"], ["stars", "--help"], ["stars", "a", "--b=1", "-c"]):
        result = ubend(*words)
        assert result.exit_code == 2
        assert result.output.startswith(f"error: package shaky is broken ({reason}")
        assert result.output.count("\n") == 1


def test_the_standard_library_finds_the_same(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spaces, comments, extras, other groups, two versions of a package, a folder that is not there."""
    install("astronomy", GOOD, stars="stars")
    later_folder = tmp_path / "later"
    for metadata, text in {
        "Astronomy-0.9.dist-info": "[ubend.commands]\nold = astronomy:stars",
        "odd.name-1.0.dist-info": (
            "\n[console_scripts]\nx = y:z\n [ubend.commands] \n# no = a:b\n\n moon=astronomy : stars [ extra ] \n"
            "[ubend.commands.more]\nsun = astronomy:stars\n"
        ),
        "developed.egg-info": "[ubend.commands]\r\nmars = astronomy:stars\r\n",
        "unrelated-2.0.dist-info": "[console_scripts]\nubend.commands = a:b\n",
        "without_name.txt": "[ubend.commands]\nno = a:b",
    }.items():
        (later_folder / metadata).mkdir(parents=True)
        (later_folder / metadata / "entry_points.txt").write_bytes(text.encode())
    (later_folder / "a_file-1.0.egg-info").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(later_folder), str(tmp_path / "absent")])
    extensions.find_extensions.cache_clear()

    found = {extension.name: extension.value for extension in extensions.find_extensions().values()}
    assert found == {entry.name: entry.value for entry in importlib.metadata.entry_points(group=extensions.GROUP)}
    assert found.keys() >= {"baseline", "lesson", "stars", "moon", "mars"}
    assert ubend("moon").output == "many\n"


def test_of_two_commands_with_one_name_the_first_is_taken(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("astronomy", GOOD, stars="stars")
    write_distribution(tmp_path / "later", "another", {extensions.GROUP: {"stars": "another:stars"}})
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "later")])
    extensions.find_extensions.cache_clear()
    assert extensions.find_extensions()["stars"].package == "astronomy"


def imported(*words: str) -> set[str]:
    """What a process with these words imports of the lessons, and of what takes long."""
    program = (
        "import sys\nfrom ubend.cli.app import main\n"
        f"main({list(words)!r}, standalone_mode=False)\n"
        "slow = {'torch', 'numpy', 'pydantic', 'rich', 'importlib.metadata'}\n"
        "print('', *(name for name in sys.modules if name in slow or name.startswith('ubend_lessons')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_lessons_are_not_imported_for_the_help() -> None:
    commands = {"ubend_lessons", "ubend_lessons.commands"}
    assert imported("--help") == commands
    assert imported("lesson", "kinds", "--help") == {*commands, "ubend_lessons.lessons"}
    assert imported("fit", "--help") == set()
