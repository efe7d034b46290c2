"""Vietnamese: whole, true to the English in numbers, names and flags, and reported by every command."""

import ast
import json
import math
import os
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from babel.messages.catalog import Message
from click.testing import CliRunner, Result
from PIL import Image

import messages
from support.discs import make_discs
from support.sentences import Marking, bare_sentences, early_lookups, unmarked
from ubend.cli.app import main
from ubend.dataset.sample import draw_sample
from ubend.portable import i18n as language
from ubend.tasks import demo
from ubend.training import recorder

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
FILES = sorted(SOURCE.rglob("*.py"))
OTHERS = [name for name in language.LANGUAGES if name != "en"]
_PAINT = np.array([[0, 0, 0], [230, 159, 0]], np.uint8)
ENGLISH, VIETNAMESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.vi.md"))
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.S)
TINY = ["--size", "32", "--width", "4", "--epochs", "2", "--batch", "8", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The language of the process is nobody's choice again."""
    monkeypatch.setenv("LANGUAGE", "")
    yield
    language.choose_language("en")
    language._chosen = None


# The catalogues


def texts(message: Message) -> tuple[list[str], list[str]]:
    """The English of a message and its translations: one each, or by number."""
    ids = [message.id] if isinstance(message.id, str) else list(message.id)
    strings = [message.string] if isinstance(message.string, str) else list(message.string or [])
    return ids, [str(one) for one in strings]


def catalogue(name: str) -> list[tuple[list[str], list[str]]]:
    return [texts(message) for message in messages.read(name) if message.id]


def test_every_language_has_its_catalogue() -> None:
    assert sorted(OTHERS) == sorted(path.name for path in language.LOCALE_FOLDER.iterdir())


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_is_left_to_translate(name: str) -> None:
    assert messages.open_sentences(messages.read(name)) == []


@pytest.mark.parametrize("name", OTHERS)
def test_the_catalogue_holds_the_sentences_of_the_source(name: str) -> None:
    """Otherwise: `make messages`."""
    here, source = messages.read(name), messages.extract()
    assert {str(message.id) for message in here} == {str(message.id) for message in source}
    assert messages.po_path(name).read_bytes() == messages.render(messages.update(name))


def test_no_sentence_inside_an_f_string() -> None:
    """Python before 3.12 does not find these when the catalogue is made."""
    for path in FILES:
        formatted = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)]
        calls = [node for one in formatted for node in ast.walk(one) if isinstance(node, ast.Call)]
        assert not [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "_"], path


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_compiled_is_the_catalogue(name: str) -> None:
    """Otherwise: `make messages`."""
    assert messages.po_path(name).with_suffix(".mo").read_bytes() == messages.compiled(messages.read(name))


def placeholders(text: str) -> frozenset[tuple[str, str | None, str | None]]:
    """(name, format, conversion) of every `{name!r:.2f}`."""
    parsed = string.Formatter().parse(text)
    return frozenset((name, spec, conversion) for _text, name, spec, conversion in parsed if name is not None)


NAMES = re.compile(
    r"`[^`]+`|--[a-z-]+(?: [a-z_.]+=\S*[\w}])?"  # commands, flags
    r"|[\w*-]+\.(?:toml|csv|md|json|png|txt|safetensors|npy)\b|[\w-]+/(?!\w)"  # files, folders
    r"|\b(?:data|augment|model|train)\.[a-z_]+|\bfile,split(?:\[,group\])?"  # settings, columns
    r"|\b[A-Z][A-Z_]{2,}\b|\[[^\]]*[a-z]+[^\]]*\](?=$)"  # FOLDER, UBEND_CACHE, PNG
    r"|\d+(?:\.\d+)?"
)


def names(text: str) -> set[str]:
    """Words that a translation keeps as they are."""
    return {word for word in NAMES.findall(text) if not word.startswith("[") and word != "WARNING"}


@pytest.mark.parametrize("name", OTHERS)
def test_translations_keep_values_and_names(name: str) -> None:
    wrong = []
    for english, translated in catalogue(name):
        if not set(map(placeholders, translated)) <= set(map(placeholders, english)):
            wrong.append(f"placeholders: {english[0]}")
        if lost := names(english[0]) - names(translated[0]):
            wrong.append(f"{lost}: {english[0]}")
        edges = [
            (text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]) for text in (*english, *translated)
        ]
        if len(set(edges)) > 1:
            wrong.append(f"spaces at the ends: {english[0]}")
    assert wrong == []


# Terms of which the translation once had several; CONTRIBUTING.md names the one for each.
LEFT_OVERS = re.compile(
    r"bài giảng|bài hướng dẫn|bài viết|thư mục kết quả|chấm điểm|đường bao|\bthreads?\b|\binteger\b|"
    r"(?<![\w/])phần (?:train|val|test|huấn luyện|kiểm)\b|\bencoder\b(?! NAME)",
    re.I,
)


def test_one_term_for_one_thing() -> None:
    """In what a reader sees: the Vietnamese catalogue, and the README without its code."""
    prose = re.sub(r"`[^`]*`|--encoder", "", BLOCK.sub("", VIETNAMESE))
    said = [
        re.sub(r"`[^`]*`|\{[^}]*\}|model\.encoder|--encoder", "", text) for _id, ts in catalogue("vi") for text in ts
    ]
    assert [text for text in [*said, *prose.splitlines()] if LEFT_OVERS.search(text)] == []


def test_left_overs_are_found() -> None:
    for text in (
        "2 threads",
        "không phải là giá trị kiểu integer",
        "ảnh của phần test",
        "Bài giảng",
        "thư mục kết quả",
    ):
        assert LEFT_OVERS.search(text)
    assert not LEFT_OVERS.search("phần lớn ảnh; ảnh của tập kiểm tra; giáo trình; thư mục huấn luyện")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("fit x --epochs many", "số nguyên"),
        ("lesson transfer --out x --epochs many", "số nguyên"),
        ("lesson training --seconds many", "số thực"),
    ],
)
def test_types_of_numbers_are_translated(words: str, kind: str) -> None:
    said = say(*words.split(), "--lang", "vi", status=2).output
    assert kind in said
    assert "'many'" in said
    assert not re.search("integer|float|range", said)
    assert re.search("integer|float", say(*words.split(), "--lang", "en", status=2).output)


def test_lost_values_and_names_are_found() -> None:
    assert placeholders("{a:.2f} {b}") != placeholders("{a:.1f} {b}")
    assert placeholders("{a!r}") != placeholders("{a}")
    english = "see docs/settings.md: --set train.epochs=20, `ubend fit FOLDER`, at least 16; data.size, masks/"
    for word in ("settings.md", "--set train.epochs=20", "`ubend fit FOLDER`", "16", "data.size", "masks/"):
        assert word in names(english)
        assert word not in names(english.replace(word, "x"))


# The source


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_sentences_can_be_translated(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name != "i18n.py":  # which tells of a language that does not exist
        assert bare_sentences(tree) == []
    assert early_lookups(tree) == []


@pytest.mark.parametrize(
    "line",
    [
        "raise DataError('no images')",
        "raise DataError(f'no images in {x}')",
        "raise DataError('no images in {x}'.format(x=x))",
        "raise errors.OutputError(['one', _('two')])",
        "raise SettingError('a word' + _('b'))",
        "x = _(f'{count} images')",
        "x = _('a {b}'.format(b=1))",
        "x = later(y)",
        "reporter.report('done')",
        "click.echo(f'{x} images')",
        "reporter.report('done' if x else _('not done'))",
        "axis.set_title('loss')",
        "draw_grid(rows, [_('input'), 'truth'])",
        "option('--out', help='Folder to make.')",
    ],
)
def test_a_bare_sentence_is_found(line: str) -> None:
    assert bare_sentences(ast.parse(line)) == [1]


@pytest.mark.parametrize(
    "line",
    [
        "raise DataError(_('no {x}').format(x=x)); raise DataError(problems)",
        "click.echo(f'{size:10.1f} MiB  {name}'); reporter.report(''); reporter.report(f'  {x}  {y}')",
        "f(help=later('Folder'), type='word')",
    ],
)
def test_a_translated_sentence_is_fine(line: str) -> None:
    assert bare_sentences(ast.parse(line)) == []


def test_lookups_while_importing_are_found() -> None:
    text = (
        "A = _('a')\ndef f(x=_('b')):\n    return _('c')\n@d(_('e'))\ndef g(): pass\nB = lambda: _('f')\nC = later('g')"
    )
    assert early_lookups(ast.parse(text)) == [1, 2, 4]


# What is reported


def say(*words: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words], terminal_width=1000, max_content_width=1000)
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def main_job(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All that the commands of the main job say, also of bad input; the same words in every language."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("UBEND_CACHE", str(place / "cache"))
    small = {"data.size": 32, "model.width": 2, "train.epochs": 1, "train.batch": 4}
    monkeypatch.setattr(demo, "_SETTINGS", small)
    monkeypatch.setattr(recorder, "_ENOUGH_S", math.inf)  # how long a step takes does not decide what is said
    monkeypatch.setattr(demo, "draw_sample", lambda folder, seed: draw_sample(folder, 16, 64, seed))
    make_discs(place / "discs", 24)
    (place / "empty").mkdir()
    shutil.copytree(place / "discs", place / "bad")
    (place / "bad" / "images" / "disc02.png").write_bytes(b"no picture")
    shutil.copytree(place / "bad", place / "broken")
    (place / "bad" / "masks" / "disc00.png").unlink()
    (place / "bad" / "images" / "disc01.png").write_bytes(b"")
    shutil.copytree(place / "discs", place / "painted")
    for mask in (place / "painted" / "masks").iterdir():
        Image.fromarray(_PAINT[(np.array(Image.open(mask)) > 0).astype(int)]).save(mask)
    (place / "drawn").mkdir()
    for number, points in enumerate(([[1, 1], [9, 1], [9, 9]], [[1, 1], [9, 1]], "nonsense")):
        shutil.copy(place / "discs" / "images" / f"disc0{number}.png", place / "drawn")
        shape = {"label": "disc", "points": points, "shape_type": "polygon"}
        labels = {"version": "5.0.0", "imagePath": f"disc0{number}.png", "shapes": [shape]}
        (place / "drawn" / f"disc0{number}.json").write_text(json.dumps(labels), encoding="utf-8")
    said = [
        say(*words.split(), status=status).output
        for words, status in (
            ("sample cells --count 3 --size 64", 0),
            ("preview discs --out look.png", 0),
            ("data discs --out known", 0),
            ("data broken --skip-bad --out known-broken", 0),
            ("data painted --out known-painted", 0),
            ("data drawn --out known-drawn", 2),
            ("fit discs --values 0=only", 2),
            ("fit discs --values nonsense", 2),
            ("fit discs --out run " + " ".join(TINY), 0),
            (
                "fit discs --out early --patience 1 --set train.learning_rate=1e-9 --recipe tutorial " + " ".join(TINY),
                0,
            ),
            ("fit --resume run", 0),
            ("evaluate run", 0),
            ("predict run discs/images --out masks", 0),
            ("show run --device cpu", 0),
            ("show run --worst --subset val --device cpu", 0),
            ("info run", 0),
            ("runs .", 0),
            ("cache", 0),
            ("cache --clear", 0),
            ("demo --out demo", 0),
            ("fit nowhere", 2),
            ("fit empty", 2),
            ("fit bad", 2),
            ("fit discs --out run", 2),
            ("fit discs --set train.epochs=x --set data.resize=no --set train.loss=no --set data.size=3", 2),
            ("fit discs --set train.epoch=3", 2),
            ("fit discs --split nowhere.csv", 2),
            ("fit discs --device tpu", 2),
            ("fit discs --config nowhere.toml", 2),
            ("evaluate nowhere", 2),
            ("evaluate discs/images/disc00.png", 2),
            ("predict run empty --out more", 2),
            ("predict run discs/images --out masks", 2),
        )
    ]
    return "".join(said)


USUAL = [
    *("fit", "fit --nonsense", "fit --epochs many", "fit --recipe ancient", "predict", "predict a b", "evaluate a b c"),
    *("nonsense", "--nonsense", "sample x --count 0", "--help", *(f"{name} --help" for name in main.commands)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("main_job")


@pytest.fixture(scope="module")
def spoken(place: Path) -> dict[str, str]:
    """Language -> all that the main job says in it, each in a folder of its own."""
    said = {}
    for name in language.LANGUAGES:
        (place / name).mkdir()
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("UBEND_LANG", name)
            monkeypatch.setenv("LANGUAGE", "")
            said[name] = main_job(place / name, monkeypatch)
    return said


def english_in(said: str, name: str) -> list[str]:
    """Lines that hold a piece (two words or more) of an English sentence that has a translation."""
    pieces = set()
    for english, translated in catalogue(name):
        for text in english:
            for piece, *_rest in string.Formatter().parse(text):
                words = re.findall(r"[A-Za-z]{2,}", piece)
                if len(words) >= 2 and not any(piece.strip() in one for one in translated):
                    pieces.add(piece.strip())
    return [line for line in said.splitlines() if any(piece in line for piece in pieces)]


@pytest.mark.parametrize("name", OTHERS)
def test_the_main_job_says_nothing_in_english(name: str, spoken: dict[str, str]) -> None:
    assert english_in(spoken[name], name) == []
    # and the check can see: nearly every line of the English job is found
    assert len(english_in(spoken["en"], name)) > 60


def numbers(said: str) -> list[str]:
    """All numbers, without speeds, times, waits and sizes on disk, which differ from run to run, and paths."""
    beside = (
        r"(  |: )[\d,]+ \S+/s.*|/\S+|: \d+%\)|\d{4}-\d\d-\d\d \d\d:\d\d|^(about|khoảng) \d+|[0-9a-f]{24}\S*|[\d.]+ MiB"
    )
    kept = [re.sub(beside, "", line) for line in said.splitlines()]
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", "\n".join(kept)))


@pytest.mark.parametrize("name", OTHERS)
def test_numbers_and_files_stay_the_same(name: str, spoken: dict[str, str], place: Path) -> None:
    assert len(spoken[name].splitlines()) == len(spoken["en"].splitlines())
    assert numbers(spoken[name]) == numbers(spoken["en"])
    for file in ("model.safetensors", "metrics.jsonl", "scores.json", "settings.toml"):
        here, english = ((place / one / "run" / file).read_bytes() for one in (name, "en"))
        assert here.replace(str(place / name).encode(), b"") == english.replace(str(place / "en").encode(), b""), file


# What may stand outside sentences: names that are written for programs too.
GIVEN = re.compile(
    r"[\w./-]*(?:nowhere|discs?|bad|broken|only|nonsense|empty|run|early|known|painted|drawn|skipped|demo|cells?_?|masks|more|look|samples|x|cache)\b[\w./-]*"
    r"|\b(?:data|augment|model|train|images|masks|ids|val|test|all|tiles)\b[\w./]*|'[^']*'"
    r"|\b(?:background|foreground|contour|modern|tutorial|ubend|uint8|polygon|free|warp|frozen|none|whole|float32|bfloat16|MiB|tpu|AMX)\b"
    r"|\bDice\b|\b(?:log)?dice\+ce\b|\bwidth\b|\btf_efficientnet_lite0\b"
    r"|\S+\.\w+\b|x86_64|aarch64|arm64|AMD64|CPU, .*?(?=⟦|$)|AVX512-BF16|NVIDIA .*|[_-]+[a-z_]+|\b[0-9a-f]{24}\b"
    r"|Error while deserializing header: header too large"  # in brackets, what a library says
)


def test_nothing_is_said_beside_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a catalogue that marks what goes through it, only names and numbers are left."""
    marking = Marking()
    monkeypatch.setattr(language, "_catalogue", lambda _name: marking)
    said = main_job(tmp_path, monkeypatch)
    assert "⟦" in said
    left = [line for line in unmarked(said).splitlines() if re.search(r"[^\W\d_]{2,}", GIVEN.sub("", line))]
    assert left == []


@pytest.mark.parametrize("words", USUAL)
def test_click_speaks_it_too(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {}
    for name in language.LANGUAGES:
        monkeypatch.setenv("UBEND_LANG", name)
        result = CliRunner().invoke(main, words.split(), terminal_width=1000)
        said[name] = result.output
        assert "Traceback" not in result.output
    assert said["en"] != said["vi"]
    assert english_in(said["vi"], "vi") == []
    assert not re.search(r"\b(Usage|Options|Commands|Error|error|Try|Missing|default|such|Show)\b", said["vi"])
    assert set(re.findall(r"--[a-z-]+", said["en"])) == set(re.findall(r"--[a-z-]+", said["vi"]))


# The choice


@pytest.mark.parametrize(
    "words",
    ["--lang vi info nowhere", "info nowhere --lang vi", "info --lang=vi nowhere", "--lang en info nowhere --lang vi"],
)
def test_the_flag_may_stand_anywhere(words: str) -> None:
    assert say(*words.split(), status=2).stderr.startswith("lỗi: nowhere: không có tệp mô hình này")


def test_the_flag_is_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBEND_LANG", "vi")
    assert say("info", "nowhere", "--lang", "en", status=2).stderr.startswith("error: nowhere: no such model file")
    assert say("info", "nowhere", status=2).stderr.startswith("lỗi: nowhere: không có tệp mô hình này")
    monkeypatch.delenv("UBEND_LANG")
    assert say("info", "nowhere", status=2).stderr.startswith("error: nowhere: no such model file")


def test_what_follows_two_dashes_is_no_flag() -> None:
    assert say("info", "--", "--lang", status=2).stderr.startswith("error: --lang: no such model file")


@pytest.mark.parametrize("words", ["--lang tlh info x", "info x --lang tlh", "--lang"])
def test_an_unknown_language_is_one_line(words: str) -> None:
    line = say(*words.split(), status=2).stderr
    wrong = "tlh" if "tlh" in words else ""
    assert line == f"error: unknown language '{wrong}'; --lang and UBEND_LANG accept: en, vi\n"


def test_an_unknown_language_from_python(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("UBEND_LANG", "tlh")
    assert language._("interrupted") == "interrupted"
    assert "tlh" in caplog.text
    monkeypatch.setenv("UBEND_LANG", "vi")
    assert language._("interrupted") == "đã ngắt"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_the_terminal_lacks(encoding: str, tmp_path: Path) -> None:
    """In a process of its own, with the locale of a Vietnamese system, which chooses nothing."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LANG": "vi_VN.UTF-8", "LANGUAGE": "vi"}
    environment.pop("UBEND_LANG", None)
    for words, starts in (("--help --lang vi", b"C\xc3\xa1ch d"), ("--help", b"Usage: ")):
        done = subprocess.run(
            [sys.executable, "-m", "ubend", *words.split()],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        if encoding == "utf-8" or starts == b"Usage: ":
            assert done.stdout.startswith(starts)


# README.vi.md


def code(text: str) -> list[tuple[str, str]]:
    """Code blocks without comments, which are translated."""
    return [(kind, re.sub(r"\s*# .*", "", block)) for kind, block in BLOCK.findall(text)]


def test_the_readmes_are_equal() -> None:
    assert code(VIETNAMESE) == code(ENGLISH)
    prose = {text: BLOCK.sub("", text) for text in (ENGLISH, VIETNAMESE)}
    for pattern in (
        r"^#+ ",  # headings
        r"^\|(?:.*\|)+$",  # rows
        r"\]\(([^)]+)\)",  # links
        r"`[^`]+`",
        r"\d+(?:[.,]\d+)*",
    ):
        found = [re.findall(pattern, prose[text], re.M) for text in (ENGLISH, VIETNAMESE)]
        if pattern.startswith(r"^\|"):
            found = [[re.sub(r"[^|.\d]", "", row) for row in rows] for rows in found]
        if pattern.startswith(r"\]"):
            found = [sorted(link for link in links if not link.startswith("README")) for links in found]
        if pattern.startswith("`"):
            found = [sorted(words) for words in found]
        assert found[0] == found[1], pattern
    assert "](README.vi.md)" in ENGLISH
    assert "](README.md)" in VIETNAMESE
    paragraphs = [len(re.findall(r"\n\n+", prose[text])) for text in (ENGLISH, VIETNAMESE)]
    assert paragraphs[0] == paragraphs[1]


def test_one_thing_is_singular() -> None:
    """Sentences that count: one, several, and both in a language without plurals."""
    sentences = ("{subset}, {count} image at native size", "{subset}, {count} images at native size")
    assert [language.ngettext(*sentences, count) for count in (1, 2)] == list(sentences)
    language.choose_language("vi")
    one, two = (language.ngettext(*sentences, count) for count in (1, 2))
    assert one == two not in sentences
