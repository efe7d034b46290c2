"""What a person sees: plain lines in a file, a live bar on a terminal."""

import io
import math

import pytest
from rich.console import Console

from ubend.core.progress import Reporter, rough_duration

ROW = {"epoch": 3, "train_loss": 0.51234, "val_loss": 0.4, "val_dice": {"ground": 0.9, "disc": None}, "best": True}
TIMING = {"images_per_s": 123.4, "seconds_left": 65.0}


def listen(terminal: bool = False) -> tuple[Reporter, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, soft_wrap=True, highlight=False)
    return Reporter(console), out


def test_sentences_are_said_as_they_are() -> None:
    """Brackets of a file name are no markup, long lines are not broken."""
    reporter, out = listen()
    reporter.report("picture [bold]7[/bold] [/x] of C:\\new")
    reporter.report("x" * 500)
    assert out.getvalue() == "picture [bold]7[/bold] [/x] of C:\\new\n" + "x" * 500 + "\n"


def test_epoch_line() -> None:
    reporter, out = listen()
    reporter.report_epoch(ROW, TIMING, 30)
    line = out.getvalue()
    assert line.count("\n") == 1
    for part in (
        "epoch 3/30",
        "loss 0.512",
        "val 0.400",
        "ground 0.900 disc -",
        "123 img/s",
        "1 min 05 s left",
        "best so far",
    ):
        assert part in line
    reporter.report_epoch({**ROW, "best": False, "val_loss": math.nan}, TIMING, 30)
    assert "best" not in out.getvalue()[len(line) :]
    assert "val -" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (7384, "2 h 03 min")],
)
def test_durations(seconds: float, text: str) -> None:
    reporter, out = listen()
    reporter.report_epoch(ROW, {**TIMING, "seconds_left": seconds}, 30)
    assert f" {text} left" in out.getvalue()


def test_no_time_left_while_it_is_not_known() -> None:
    reporter, out = listen()
    reporter.report_epoch(ROW, {**TIMING, "seconds_left": None}, 30)
    assert "img/s" in out.getvalue()
    assert "left" not in out.getvalue()


def test_no_bar_in_a_file() -> None:
    """Counting prints nothing where there is no terminal."""
    with listen()[0] as reporter:
        reporter.begin("reading", 5)
        for done in range(5):
            reporter.count(done)
        assert reporter.console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_bar_on_a_terminal() -> None:
    """A bar that counts, lets sentences through, and is gone at the end, also after an error."""
    reporter, out = listen(terminal=True)

    def work() -> None:
        with reporter:
            reporter.begin("reading [x]", 5, 2)
            reporter.count(4, 5)
            reporter.report("between")
            reporter.begin("training", 7)  # a new count ends the old one
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        work()
    text = out.getvalue()
    assert "between" in text
    assert "reading [x]" in text
    assert "4/5" in text
    assert text.rstrip("\n").endswith("\x1b[2K") or "\x1b[?25h" in text  # the cursor is shown again
    reporter.end()
    reporter.count(3)


def test_settling_scores_stand_in_brackets() -> None:
    reporter, out = listen()
    reporter.report_epoch({**ROW, "batch_statistics_dice": {"ground": 0.95, "disc": None}}, TIMING, 30)
    assert "Dice ground 0.900 disc - (batch statistics: 0.950 -)  123 img/s" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "5 s"), (61.0, "60 s"), (89.9, "90 s"), (95.0, "2 min"), (3540.0, "59 min"), (7384.0, "2 h 03 min")],
)
def test_rough_durations(seconds: float, text: str) -> None:
    assert rough_duration(seconds) == text
