"""Score a model: on the test part of its own run, or on any folder of pictures and masks."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ubend.core.errors import DataError, OutputError
from ubend.core.files import csv_cell
from ubend.core.i18n import _
from ubend.dataset.dataset import find_folder, match_folder
from ubend.evaluation.scores import evaluate_pairs
from ubend.inference.predictor import load
from ubend.labels.mask_files import mask_from_text
from ubend.layouts.pairs import Folder, Pair, Part
from ubend.tasks.gather import gather
from ubend.training.run_folder import RunFolder

_ONE_CLASS_SHARE = 0.999  # of all predicted pixels: nothing but one class


def evaluate(
    model: Path | str,
    folder: Path | str | None = None,
    *,
    subset: Part | None = None,
    device: str | None = None,
    tiles: int | None = None,
    **words: Any,
) -> dict[str, Any]:
    """Scores of a model.

    Args:
        model: a run folder or a model file.
        folder: pictures with masks, or a data set by name; None: those of the run (then `model` is a run folder).
        subset: which of them; None: test where there is one, else validation, else all.
        device: None: the best one here.
        tiles: side of the tiles in px, 0: whole pictures; None: as the model was trained.
        words: images, masks, split, root: as of `fit`. And values: what the masks of `folder` hold, where that
            differs from the model's own masks; the names are the model's. Without it, classes that the folder names
            (annotations, class lists, ...) are matched by name; else the values are those of the model's own masks.
    Returns:
        As `ubend.evaluation.scores.evaluate_pairs`, and `part`.
    """
    predictor = load(model, device, tiles=tiles)
    found: Folder | None = None
    if folder is None and words.get("images") is None:
        pairs = read_run_pairs(Path(model))
    else:
        settings = gather(folder, flags=words).settings
        found = find_folder(settings)
        pairs = list(found.pairs)
    subset, chosen = choose_subset(pairs, subset)
    labels = match_folder(found, settings, predictor.labels, chosen) if found else predictor.labels
    return {"part": subset or "all", **evaluate_pairs(predictor, chosen, labels)}


def choose_subset(pairs: Sequence[Pair], subset: Part | None) -> tuple[Part | None, list[Pair]]:
    """The pairs of a subset; of None, those of the test split where there is one, else of validation, else all.

    Raises:
        DataError: there are none.
    """
    there = {pair.part for pair in pairs}
    if subset is None:
        subset = next((name for name in cast(tuple[Part, ...], ("test", "val")) if name in there), None)
    chosen = [pair for pair in pairs if subset is None or pair.part == subset]
    if not chosen:
        found = ", ".join(sorted(str(name) for name in there))
        raise DataError(
            _("no pictures in the subset {subset}; there are: {found}").format(subset=subset, found=found),
            key="--subset",
        )
    return subset, chosen


def read_run_pairs(run: Path) -> list[Pair]:
    """The pairs of a run with their parts, from its data list.

    Raises:
        OutputError: it is no run folder.
    """
    path = RunFolder(run).data
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [
                Pair(
                    row["name"],
                    Path(row["image"]),
                    mask_from_text(row["mask"]),
                    cast(Part, row["split"]),
                    row["group"] or None,
                )
                for row in ({key: csv_cell(cell or "") for key, cell in row.items()} for row in csv.DictReader(file))
            ]
    except (OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise OutputError(
            _("{run}: no run folder with a data list; name a folder of pictures and masks to score on").format(run=run),
            path=run,
        ) from error


def score_lines(scores: Mapping[str, Any]) -> list[str]:
    """The scores as plain lines of a table, fit for a terminal."""
    lines = []
    if scores["model_size"] == scores["native"]:
        lines.append(_("the model takes these pictures at their own size, so there is no other size to score at"))
        scores = {name: part for name, part in scores.items() if name != "model_size"}
    for size, title in (("native", _("at the pictures' own size")), ("model_size", _("at model size"))):
        if size not in scores:
            continue
        part = scores[size]
        lines.append(
            _("{title}: {count} pictures of part {part}, pixel accuracy {accuracy}, cross entropy {loss}").format(
                title=title,
                count=part["pictures"],
                part=scores["part"],
                accuracy=_figure(part["pixel_accuracy"]),
                loss=_figure(part["cross_entropy"]),
            )
        )
        columns = [("dice", "per_image"), ("dice", "pooled"), ("iou", "per_image"), ("iou", "pooled")]
        rows = list(part["dice"]["per_image"])
        if len(rows) == 4:  # two classes: the mean without the background is the other class
            rows.remove("mean_foreground")
        wide = max(len(_row_name(row)) for row in rows)
        heads = [_("Dice per image"), _("Dice pooled"), _("IoU per image"), _("IoU pooled")]
        lines.append(" " * (wide + 2) + "  ".join(f"{head:>14}" for head in heads))
        for row in rows:
            cells = "  ".join(f"{_figure(part[kind][way][row]):>14}" for kind, way in columns)
            lines.append(f"  {_row_name(row):<{wide}}{cells}")
    return lines


def warn_one_class(scores: Mapping[str, Any]) -> str | None:
    """A loud sentence when the model says one class everywhere, with the usual causes."""
    shares = scores["native"]["predicted_share"]
    alive = [name for name, share in shares.items() if share > _ONE_CLASS_SHARE]
    if not alive:
        return None
    return _(
        "WARNING: the model predicts one class ({name}) nearly everywhere; it has learnt nothing yet. Usual causes: "
        "too few epochs, a learning rate that is too high, masks that do not belong to the pictures "
        "(look at them with `ubend samples FOLDER`)"
    ).format(name=alive[0])


def _row_name(row: str) -> str:
    return {"mean": _("mean"), "mean_foreground": _("mean without background")}.get(row, row)


def _figure(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.4f}"
