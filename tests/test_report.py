"""The report: one sound HTML file whose figures are those of scores.json; in a browser where there is one."""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import ubend
from support.discs import make_discs
from support.refusal import check, raises, refused_once
from support.training import Listener
from ubend.cli.app import main
from ubend.core.errors import OutputError, SettingError
from ubend.doctor.finding import read_findings
from ubend.drawing.pages import render_page
from ubend.evaluation.score_tables import show_mean
from ubend.inference.predictor import load
from ubend.labels.class_table import make_label_map
from ubend.labels.mask_files import FileMask
from ubend.layouts.pairs import Pair
from ubend.portable import i18n
from ubend.portable.overlay import ERROR_COLORS, NEAR_COLOR, draw_errors
from ubend.tasks import show
from ubend.tasks.report import write_report
from ubend.tasks.report_advice import advise
from ubend.tasks.report_facts import FindingRow, RunFacts, choose_examples, read_facts
from ubend.tasks.report_missed import LargestMissed, draw_missed

CHROMIUM = shutil.which("chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and its text; fails where tags are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", list[str]()
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += f" {data}"

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_page(path: Path, language: str = "en") -> Parsed:
    """What every report is."""
    page = Parsed(path)
    assert path.stat().st_size < 15 * 2**20
    assert page.find("html")[0]["lang"] == language
    headings = [int(tag[1]) for tag, _attributes in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1 == headings[0]
    assert all(below <= above + 1 for above, below in pairwise(headings))
    for image in page.find("img"):
        assert image["alt"]
        assert str(image["src"]).startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,"))
    ids = {attributes["id"] for _tag, attributes in page.tags if "id" in attributes}
    for _tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:") or value.removeprefix("#") in ids
    assert all(one.get("scope") in ("col", "row") for one in page.find("th"))
    assert not page.find("script")
    assert "url(" not in path.read_text(encoding="utf-8")
    return page


def copy(run: Path, place: Path) -> Path:
    shutil.copytree(run, place)
    return place


def rewrite_data(run: Path, change: Any) -> None:
    """Change the rows of data.csv."""
    with (run / "data.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with (run / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_fit_writes_it_with_the_figures_of_the_scores(run: Path) -> None:
    page, scores = check_page(run / "report.html"), json.loads((run / "scores.json").read_text())
    for measure in ("dice", "iou", "precision", "recall", "boundary_f1"):
        assert show_mean(scores["intervals"][measure]["foreground"]) in page.text
    for measure in ("hausdorff_95", "surface_distance"):
        assert show_mean(scores["intervals"][measure]["foreground"], is_distance=True) in page.text
    assert show_mean(scores["intervals"]["dice"]["background"]) in page.text
    for way in ("median", "worst_decile", "pooled"):
        assert f"{scores['native']['dice'][way]['foreground']:.3f}" in page.text
    assert f"{scores['calibration']['expected_error']:.3f}" in page.text
    confusion = scores["confusion"]["background"]
    assert f"{confusion['foreground'] / sum(confusion.values()):.1%}" in page.text
    assert sum(sum(row.values()) for row in scores["confusion"].values()) == 4 * 40 * 48
    names = [one["alt"] for one in page.find("img")]
    for name in scores["per_picture"]:  # four, each once
        assert len([alt for alt in names if str(alt).startswith(f"{name}, ")]) == 4
    assert "ubend fit --config " in page.text
    for line in json.loads((run / "run.json").read_text())["choices"]:
        assert line.partition(": ")[2] in page.text
    assert (run / "settings.toml").read_text().split("\n")[0] in page.text


def test_the_command_writes_the_same_again(run: Path, tmp_path: Path) -> None:
    (run / "report.html").unlink()
    result = CliRunner().invoke(main, ["report", str(run), "--device", "cpu"])
    assert result.stdout.strip() == str(run / "report.html")
    first = (run / "report.html").read_bytes()
    assert ubend.report(run, device="cpu") == run / "report.html"
    assert (run / "report.html").read_bytes() == first
    check(refused_once("report", run, "--out", run / "report.html"), OutputError, path=run / "report.html")
    (run / "scores.json").unlink()
    check(refused_once("report", run), OutputError, path=run / "scores.json")
    check(refused_once("report", tmp_path / "nowhere"), OutputError, path=tmp_path / "nowhere")
    with raises(SettingError, key="runs"):
        ubend.report([])


def test_a_class_that_was_hardly_learnt_is_named(run: Path, tmp_path: Path) -> None:
    scores = json.loads((run / "scores.json").read_text())
    for mean in (0.09, 0.11):
        scores["intervals"]["dice"]["foreground"]["mean"] = mean
        (run / "scores.json").write_text(json.dumps(scores))
        page = check_page(ubend.report(run, out=tmp_path / f"{mean}.html", device="cpu"))
        assert ("Hardly learnt (Dice below 0.1): foreground;" in page.text) is (mean < 0.1)


def test_what_to_do_next_follows_from_the_run(run: Path) -> None:
    facts = read_facts(run)
    epochs = len(facts.history)
    assert epochs > 1

    def says(text: str, changed: RunFacts) -> bool:
        return any(text in line for line in advise(changed))

    def keep(epoch: int) -> RunFacts:
        return replace(facts, summary=replace(facts.summary, kept_epoch=epoch))

    assert says(f"`--epochs {2 * epochs}`", keep(epochs))
    assert not says("`--epochs", keep(1))
    assert says("longer training will hardly help", keep(1))
    assert says("`--effort best`", facts)
    assert not says("`--effort best`", replace(facts, settings=facts.settings.replace('"normal"', '"best"')))
    assert not says("were reduced to", replace(facts, summary=replace(facts.summary, size_px=40)))
    small = replace(facts, summary=replace(facts.summary, size_px=16))
    assert says(
        "Images of about 44 px were reduced to 16 px; where thin parts or outlines matter, try `--size 32`", small
    )
    found = FindingRow("warning", "", "", "", "", "")
    assert says("found 2 warnings", replace(facts, findings=(found, found, replace(found, grade="note"))))
    assert says("found 1 error;", replace(facts, findings=(found, replace(found, grade="error"))))


def test_it_speaks_vietnamese(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(i18n, "_chosen", "vi")
    page = check_page(ubend.report(run, out=tmp_path / "vi.html", device="cpu"), "vi")
    assert "Những ảnh kém nhất" in page.text


def test_without_images_it_says_so(run: Path, tmp_path: Path) -> None:
    rewrite_data(run, lambda rows: [row.update(image=str(tmp_path / "gone" / row["name"])) for row in rows])
    before = (run / "report.html").read_bytes()
    with raises(OutputError, path=run / "report.html", named=["--out"]):
        ubend.report(run, device="cpu")
    assert (run / "report.html").read_bytes() == before
    page = check_page(ubend.report(run, out=tmp_path / "without.html", device="cpu"))
    assert str(tmp_path / "gone") in page.text
    assert not [one for one in page.find("img") if "jpeg" in str(one["src"])[:30]]


def test_it_names_leaks_and_scores_without_them(run: Path) -> None:
    scores = json.loads((run / "scores.json").read_text())["per_picture"]
    leaked = sorted(scores)[0]
    rest = [row["dice"]["foreground"] for name, row in scores.items() if name != leaked]
    assert "Without these images" not in check_page(run / "report.html").text

    def plant(rows: list[dict[str, str]]) -> None:
        (test,) = [row for row in rows if row["name"] == leaked]
        next(row for row in rows if row["split"] == "train")["image_hash"] = test["image_hash"]

    rewrite_data(run, plant)
    text = check_page(ubend.report(run, device="cpu")).text
    assert re.search(rf"Leaks: 1 .*{leaked}", text)
    assert "It is optimistic: 1 of these images" in text
    assert f"{np.mean(rest):.3f} (" in text.partition("Without these images")[2]

    def group(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["group"] = "patient" if row["split"] in ("test", "val") else row["name"]

    rewrite_data(run, group)
    assert "Leaks: 4 " in check_page(ubend.report(run, device="cpu")).text


def test_names_are_text_not_tags(tmp_path: Path) -> None:
    make_discs(tmp_path / "data", 9)
    for number in range(9):
        for side in ("images", "masks"):
            path = tmp_path / "data" / side / f"disc{number:02d}.png"
            path.rename(path.with_name(f"<i>{number}\x1b[31;7m.png"))
    classes = ["background", "<img src=x onerror=alert(1)>"]
    run = tmp_path / "<b>run</b>"
    small: dict[str, Any] = {"size": 32, "width": 2, "epochs": 1, "batch": 4, "device": "cpu"}
    ubend.fit(tmp_path / "data", out=run, classes=classes, reporter=Listener(), **small)
    page = check_page(run / "report.html")
    assert not page.find("b")
    assert not page.find("i")
    assert "\x1b" not in page.text
    assert "<i>" in page.text
    assert classes[1] in page.text


def test_a_class_called_mean_is_no_mean(tmp_path: Path) -> None:
    make_discs(tmp_path / "data", 9)
    small: dict[str, Any] = {"size": 32, "width": 2, "epochs": 1, "batch": 4, "device": "cpu", "encoder": "none"}
    classes = ["background", "mean"]
    result = ubend.fit(tmp_path / "data", out=tmp_path / "run", classes=classes, reporter=Listener(), **small)
    shown = show_mean(result.scores.data["intervals"]["dice"]["class mean"])
    assert "class mean, with 95%" in str(result.scores)
    assert shown in str(result.scores)
    assert shown in check_page(tmp_path / "run/report.html").text


def test_examples_are_the_worst_the_typical_and_the_best_each_once() -> None:
    dice = {f"image{n}": n / 100 for n in range(100)}
    assert choose_examples(dice, 2) == {
        "worst": ["image0", "image1"],
        "typical": ["image49", "image50"],
        "best": ["image99", "image98"],
    }
    assert choose_examples({"a": 0.5}) == {"worst": ["a"], "typical": [], "best": []}
    few = choose_examples(dict.fromkeys("abcd", 0.1))
    assert sorted(name for names in few.values() for name in names) == list("abcd")


def make_different(run: Path) -> str:
    """Change the score of an image, and return its name."""
    scores = json.loads((run / "scores.json").read_text())
    changed_image = sorted(scores["per_picture"])[2]
    scores["per_picture"][changed_image]["dice"]["foreground"] += 0.2
    (run / "scores.json").write_text(json.dumps(scores))
    return changed_image


def test_a_comparison_shows_verdict_changes_and_settings(run: Path, tmp_path: Path) -> None:
    other = copy(run, tmp_path / "other")
    assert not check_page(ubend.report([run, other], device="cpu")).find("img")
    settings = (other / "settings.toml").read_text()
    (other / "settings.toml").write_text(settings.replace("learning_rate = 0.001", "learning_rate = 0.25"))
    changed_image = make_different(other)
    path = ubend.report([run, other], device="cpu")
    page, found = check_page(path), ubend.compare([run, other])
    assert path == run / "comparison.html"
    assert show_mean(found.pairs[0].difference.to_json()).split()[0].lstrip("-+") in page.text
    assert "0.25" in page.text
    shown = [one["alt"] for one in page.find("img") if str(one["alt"]).startswith(f"{changed_image}, ")]
    assert len(shown) == 6  # image, truth, and of each run prediction and errors
    check_page(ubend.report([run, other], out=tmp_path / "out.html", device="cpu"))
    shutil.rmtree(tmp_path / "other")
    with raises(OutputError, path=other):
        write_report([run, other])


def test_errors_beside_an_outline_have_a_colour_of_their_own() -> None:
    truth, prediction = np.zeros((2, 9, 9), np.uint8)
    truth[:, 3:] = 1
    prediction[:, 6:] = 1
    image = np.zeros((9, 9, 3), np.uint8)
    errors = draw_errors(image, truth, prediction, near_px=1)
    assert errors[4, 3].tolist() == list(NEAR_COLOR)
    assert errors[4, 4].tolist() == errors[4, 5].tolist() == list(ERROR_COLORS["negative"])
    assert errors[4, 2].tolist() == errors[4, 6].tolist() == [112, 112, 112]


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb; WCAG 2.1."""
    values = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_text_has_the_contrast_that_wcag_asks_for(run: Path) -> None:
    style = (run / "report.html").read_text(encoding="utf-8")
    named = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style))
    for ink in ("ink", "faint", "link"):
        for paper in ("#ffffff", named["soft"]):
            assert (luminance(paper) + 0.05) / (luminance(named[ink]) + 0.05) >= 4.5


@pytest.mark.skipif(CHROMIUM is None, reason="no browser to look at the report with; apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser_it_fits_and_every_image_loads(width: int, run: Path, tmp_path: Path) -> None:
    """In a frame of this width, whose measures the page around it writes down."""
    other = copy(run, tmp_path / "a run with a rather long name, for the narrow page")
    make_different(other)
    for path in (run / "report.html", ubend.report([run, other], device="cpu")):
        frame = html.escape(path.read_text(encoding="utf-8"))
        script = (
            "const d = f.contentDocument; document.body.dataset.found = JSON.stringify({"
            "wide: d.documentElement.scrollWidth, images: d.images.length, "
            "broken: [...d.images].filter(i => !i.naturalWidth).length,"
            "overflow: [...d.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > "
            "f.clientWidth + 1).map(e => e.tagName)})"
        )
        page = f"<!doctype html><body><iframe id=f width={width} height=900 srcdoc='{frame}'></iframe><script>"
        (tmp_path / "frame.html").write_text(f"{page}f.onload = () => {{ {script} }}</script>", encoding="utf-8")
        words = [str(CHROMIUM), *FLAGS, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        done = subprocess.run(
            [*words, f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, check=True, timeout=120
        )
        (found,) = re.findall(r'data-found="(.*?)"', done.stdout)
        measured = json.loads(html.unescape(found))
        assert measured["wide"] <= width
        assert measured["overflow"] == []
        assert measured["images"] > 0
        assert measured["broken"] == 0
        assert "CONSOLE" not in done.stderr


TRAINING: dict[str, Any] = {"size": 32, "width": 2, "epochs": 1, "batch": 4, "device": "cpu", "encoder": "none"}


def test_it_shows_what_the_quick_checks_found(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in ("images", "masks"):
        for number in range(7):  # more than are shown
            shutil.copy(discs / side / f"disc{number:02d}.png", discs / side / f"disc{number + 80}.png")
    run = tmp_path / "run"
    ubend.fit(discs, out=run, reporter=Listener(), **TRAINING)
    found = [one for one in read_findings(run / "findings.json") if one.check == "duplicate image"]
    assert len(found) == 7
    assert {path.name for one in found for path in one.files} >= {"disc00.png", "disc80.png"}
    page = check_page(run / "report.html")
    assert page.text.count("warning: duplicate image") == 1 + 1  # the heading, and how many more
    assert page.text.count(found[0].message) == 5
    assert "2 more; findings.json lists all" in page.text
    for part in (found[0].message, found[0].repair, "disc80.png", "images 2"):
        assert part in page.text
    monkeypatch.setattr(i18n, "_chosen", "vi")
    text = check_page(ubend.report(run, out=tmp_path / "vi.html", device="cpu"), "vi").text
    assert "cảnh báo: ảnh trùng" in text
    assert "duplicate image" not in text


def test_findings_may_be_none_unknown_or_damaged(run: Path) -> None:
    (found,) = read_findings(run / "findings.json")
    assert found.check == "narrow objects"
    facts = json.loads((run / "findings.json").read_text())
    (run / "findings.json").write_text(json.dumps({**facts, "findings": []}))
    assert not read_findings(run / "findings.json")
    assert "found nothing" in check_page(ubend.report(run, device="cpu")).text
    (run / "findings.json").write_text('{"findings": [{"check": 1}]}')
    check(refused_once("report", run), OutputError, path=run)
    (run / "findings.json").unlink()  # as in runs of an earlier version
    assert "quick checks" not in check_page(ubend.report(run, device="cpu")).text


def test_show_and_report_draw_errors_alike(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[tuple[bytes, int]]()

    def draw(*arguments: Any) -> Any:
        errors = draw_errors(*arguments)
        drawn.append((errors.tobytes(), arguments[-1]))
        return errors

    monkeypatch.setattr(show, "draw_errors", draw)
    ubend.report(run, device="cpu")
    of_report, drawn = drawn, []
    show.draw_predictions(run, worst=True, device="cpu")
    assert sorted(drawn) == sorted(of_report)
    assert len(drawn) == 4
    assert NEAR_COLOR in [color for _name, color in show.error_legend(load(run, "cpu").labels)]


def test_it_shows_which_sizes_of_objects_are_missed(run: Path, tmp_path: Path) -> None:
    assert "Missed objects" in check_page(run / "report.html").text
    scores = json.loads((run / "scores.json").read_text())
    names = sorted(scores["per_picture"])
    missed = [{"image": name, "area": 1234, "covered": 0.02, "box": [0, 30, 12, 48]} for name in names]
    sizes = [{"smallest": 3, "largest": 1200, "objects": 40, "missed": 10}]
    own = {"left_out": 2, "sizes": sizes, "largest_missed": missed}
    others = {f"other {number}": own | {"largest_missed": []} for number in range(12)}
    scores["missed_objects"]["classes"] = {"foreground": own | {"sizes": [sizes[0] | {"missed": 20}]}, **others}
    (run / "scores.json").write_text(json.dumps(scores))
    page = check_page(ubend.report(run, device="cpu"))
    for part in ("3–1,200", "20 (50%)", "10 (25%)", "1 class with fewer missed objects", "In 2 images the objects"):
        assert part in page.text
    assert page.text.count("1,234 px, of which 2% are found") == 4
    frames = [one for one in page.find("img") if "foreground, 1,234 px" in str(one["alt"])]
    assert len(frames) == 2 * 4
    del scores["missed_objects"]  # as in scores of an earlier version
    (run / "scores.json").write_text(json.dumps(scores))
    assert "Missed objects" not in check_page(ubend.report(run, device="cpu")).text
    scores["missed_objects"] = {"missed_below": 0.1, "classes": {"foreground": {"sizes": 3}}}
    (run / "scores.json").write_text(json.dumps(scores))
    check(refused_once("report", run), OutputError, path=run)


def decode_uri(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_a_thumbnail_frames_the_object_and_shows_truth_and_prediction(discs: Path) -> None:
    labels = make_label_map([0, 255])
    pair = Pair("disc00", discs / "images" / "disc00.png", FileMask(discs / "masks" / "disc00.png"), None, None)
    prediction = np.zeros((40, 48), np.uint8)
    missed = LargestMissed("disc00", "disc", (10, 20, 20, 30), 100, 0.0)
    (example,) = draw_missed(pair, prediction, [missed], labels, 3).values()
    truth, guess = (decode_uri(figure.uri) for figure in example.figures)
    assert truth.shape == guess.shape == (40 * 4, 48 * 4, 3)  # the whole small image, enlarged by 224 // 48
    for pixels in (truth, guess):
        is_blue = np.abs(pixels.astype(int) - ERROR_COLORS["negative"]).max(axis=2) < 70
        assert is_blue[4 * 10 - 2, 4 * 20 : 4 * 30].mean() > 0.9
        assert is_blue[4 * 10 : 4 * 20, 4 * 30 + 1].mean() > 0.9
        assert is_blue.sum() < 2 * (4 * 10 + 4 * 10 + 20) * 2
    assert not np.array_equal(truth, guess)


def test_commands_in_sentences_are_code(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>{{ line | code }}</p>")
    html = render_page(page, line="<b> is escaped; see `ubend data <FOLDER>`")
    assert html == "<p>&lt;b&gt; is escaped; see <code>ubend data &lt;FOLDER&gt;</code></p>"
