"""What to do next, concluded from the facts of a run: a section of its report."""

import math
import tomllib
from collections import Counter
from collections.abc import Callable

from ubend.core.errors import UbendError
from ubend.core.i18n import _, ngettext
from ubend.evaluation.score_tables import describe_lowered, main_row
from ubend.portable.decode import read_header
from ubend.portable.printable import shell_word
from ubend.tasks.report_facts import RunFacts, find_unlearnt

_LATE, _EARLY = 0.9, 0.6  # share of the epochs after which the best one is late, or before which it is early
_REDUCED = 1.3  # images that were reduced by more than this factor may have lost details
_WIDE = 0.02  # width of an interval of the Dice that is worth narrowing


def advise(run: RunFacts) -> list[str]:
    """Sentences on what may improve the model or its scores, the most important first."""
    rules: tuple[Callable[[RunFacts], str | None], ...] = (
        _repair_data,
        _add_images,
        _change_length,
        _enlarge,
        _remove_fragments,
        _narrow_interval,
        _check_masks,
        _spend_more,
    )
    return [line for rule in rules if (line := rule(run)) is not None]


def _repair_data(run: RunFacts) -> str | None:
    grades = Counter(finding.grade for finding in run.findings or ())
    if count := grades["error"]:
        line = ngettext(
            "Repair the data first: the quick checks found {count} error; `ubend doctor` says how.",
            "Repair the data first: the quick checks found {count} errors; `ubend doctor` says how.",
            count,
        )
    else:
        count = grades["warning"]
        line = ngettext(
            "Look at the data first: the quick checks found {count} warning; `ubend doctor` says how to repair it.",
            "Look at the data first: the quick checks found {count} warnings; `ubend doctor` says how to repair them.",
            count,
        )
    return line.format(count=count) if count else None


def _add_images(run: RunFacts) -> str | None:
    names = find_unlearnt(run.scores, run.labels)
    line = _("Add training images with these classes, which are hardly learnt: {names}.")
    return line.format(names=", ".join(names)) if names else None


def _change_length(run: RunFacts) -> str | None:
    kept, epochs = run.summary.kept_epoch, len(run.history)
    if kept is None or epochs < 2 or "branches" in run.history[-1]:
        return None
    if kept >= _LATE * epochs:
        line = _("The best epoch was one of the last, {kept} of {epochs}: try `--epochs {twice}`.")
        return line.format(kept=kept, epochs=epochs, twice=2 * epochs)
    if kept <= _EARLY * epochs:
        line = _(
            "The best epoch was already {kept} of {epochs}: longer training will hardly help, more or more varied "
            "training images will."
        )
        return line.format(kept=kept, epochs=epochs)
    return None


def _enlarge(run: RunFacts) -> str | None:
    size = run.summary.size_px
    try:
        side = max(
            (math.sqrt(math.prod(read_header(pair.image).size_hw)) for pair in [*run.pairs.values()][:1]), default=0
        )
    except (OSError, UbendError):  # the images were moved
        return None
    if size is None or side <= _REDUCED * size:
        return None
    line = _(
        "Images of about {side:.0f} px were reduced to {size} px; where thin parts or outlines matter, try "
        "`--size {larger}`, which takes about {times:.0f} times as long."
    )
    larger = min(2 * size, 16 * round(side / 16))
    return line.format(side=side, size=size, larger=larger, times=(larger / size) ** 2)


def _remove_fragments(run: RunFacts) -> str | None:
    found = describe_lowered(run.scores.data)
    line = _(
        "Predicted pixels of a class in an image without it count as Dice 0: {classes}. Where these are small "
        "fragments, `ubend predict --min-area PX` removes them."
    )
    return line.format(classes=", ".join(found)) if found else None


def _narrow_interval(run: RunFacts) -> str | None:
    interval = run.scores.data["intervals"]["dice"][main_row(list(run.labels.names))]
    if interval is None or interval["low"] is None or run.scores.subset == "out-of-fold":
        return None
    low, high = interval["low"], interval["high"]
    line = _(
        "The Dice is known to lie between {low:.2f} and {high:.2f}, from {count} images; `--folds 5 --test none` "
        "scores every image, which narrows this."
    )
    return line.format(low=low, high=high, count=len(run.image_dice)) if high - low > _WIDE else None


def _check_masks(run: RunFacts) -> str | None:
    line = _(
        "Look at the worst images: where the truth is wrong, correct the masks. `ubend doctor {folder} --model RUN` "
        "lists masks that the model contradicts."
    )
    return line.format(folder=shell_word(tomllib.loads(run.settings)["data"].get("folder", "FOLDER")))


def _spend_more(run: RunFacts) -> str | None:
    if tomllib.loads(run.settings)["train"].get("effort") == "best":
        return None
    return _("`--effort best` averages five models: usually a little better, in five times the time.")
