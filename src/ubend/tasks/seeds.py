"""Several trainings on the same split that differ in the seed alone, to see how much the scores vary by chance.

    plan -> N runs (RUN/seed-1, ...) -> mean and spread of their scores; RUN/model.safetensors is the best by validation

All start from one plan; run k has the seed `train.seed` + k - 1, and all have the same `data.split_seed`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ubend.core.autoconfig import resolve
from ubend.core.device import pick_device, prepare_process, set_up
from ubend.core.errors import OutputError, reason
from ubend.core.files import read_text, write_json, write_text
from ubend.core.i18n import _
from ubend.core.plan import Plan
from ubend.core.progress import Reporter
from ubend.core.settings import Settings, change_settings
from ubend.dataset.dataset import Dataset
from ubend.evaluation.score_tables import Scores, main_row
from ubend.models.model_file import load_bundle, save_bundle
from ubend.tasks import fit as one
from ubend.tasks.fit_result import FitResult
from ubend.tasks.report import write_report
from ubend.tasks.sub_runs import SubRun
from ubend.training.run_folder import RunFolder

MEASURES = ("dice", "iou")


@dataclass(frozen=True)
class Seeds:
    """A data set, and trainings on it with different seeds: a `Several`.

    Attributes:
        run: the run folder of all trainings; it contains the run folder of each.
        whole: the data set; its split is the same in all trainings.
        plan: of all trainings; only the seed differs between them.
    """

    run: RunFolder
    whole: Dataset
    plan: Plan
    device: torch.device

    def sub_runs(self) -> list[SubRun]:
        """A training for each seed."""
        count, first = self.plan.train.seeds, self.plan.train.seed
        line, trainings = _("seed {seed} ({number} of {count})"), []
        for number in range(1, count + 1):
            seed = first + number - 1
            run = RunFolder(self.run.path / f"seed-{number}")
            title = line.format(seed=seed, number=number, count=count)
            trainings.append(SubRun(run, title, {"train.seeds": 1, "train.seed": seed}))
        return trainings

    def describe(self) -> str:
        """A line on the seeds."""
        first, count = self.plan.train.seed, self.plan.train.seeds
        line = _("{count} trainings on the same split, with the seeds {first} to {last}")
        return line.format(count=count, first=first, last=first + count - 1)

    def finish(self, reporter: Reporter) -> FitResult:
        """Summarise the scores, and keep the model that is best on the validation split."""
        subs, run = self.sub_runs(), self.run
        figures = [_read_validation(sub.run, self.plan.train.select) for sub in subs]
        best = subs[int(np.argmax(figures))]
        all_scores = [json.loads(read_text(sub.run.scores)) for sub in subs]
        seeds = [sub.changes["train.seed"] for sub in subs]
        summary = summarise_seeds(dict(zip(seeds, all_scores, strict=True)), dict(zip(seeds, figures, strict=True)))
        scores = all_scores[subs.index(best)] | {"seeds": summary}
        line = _("the model is that of seed {seed}, which is the best on the validation split: {run}")
        reporter.report(line.format(seed=best.changes["train.seed"], run=best.run.path))
        save_bundle(run.model_path, load_bundle(best.run.model_path))
        write_text(run.metrics, read_text(best.run.metrics))
        write_json(run.scores, scores)
        write_report(run.path, device=str(self.device))
        return FitResult(run.path, Scores(scores))


def open_seeds(run: RunFolder, settings: Settings, reporter: Reporter) -> Seeds:
    """Open the data set and resolve the plan of all trainings."""
    prepare_process(settings.train.deterministic)
    device = pick_device(settings.device)
    set_up(device, settings.train.deterministic)
    if settings.data.split_seed is None:
        settings = change_settings(settings, {"data.split_seed": settings.train.seed})
    scan = one.scan(settings, device, reporter)
    return Seeds(run, scan.data, resolve(settings, scan.facts), device)


def summarise_seeds(scores: Mapping[int, Mapping[str, Any]], validation: Mapping[int, float]) -> dict[str, Any]:
    """The content of `seeds` in scores.json: each seed's scores, and their mean and spread.

    Args:
        scores: seed -> content of its scores.json, of the same images.
        validation: seed -> the validation figure of its weights; more is better.
    Returns:
        `kept`: the seed of the model; `row`: the class, or the mean over classes; `scores`: seed -> `dice`, `iou`
        (means over images at native size), `validation`; `dice`, `iou`: `mean`, `std` (of the sample, N - 1), `min`,
        `max` over the seeds; None: undefined.
    """
    seeds = [*scores]
    row = main_row([*scores[seeds[0]]["native"]["predicted_share"]])
    table = dict[str, dict[str, float | None]]()
    for seed in seeds:
        native = scores[seed]["native"]
        table[str(seed)] = {measure: native[measure]["per_image"][row] for measure in MEASURES}
        figure = validation[seed]
        table[str(seed)]["validation"] = figure if math.isfinite(figure) else None
    spread = {measure: _spread([scores_of_seed[measure] for scores_of_seed in table.values()]) for measure in MEASURES}
    return {"kept": max(seeds, key=lambda seed: validation[seed]), "row": row, "scores": table, **spread}


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return None
    return {
        "mean": float(np.mean(known)),
        "std": float(np.std(known, ddof=1)),
        "min": min(known),
        "max": max(known),
    }


def _read_validation(run: RunFolder, select: str) -> float:
    """The figure by which the weights of a run were chosen among its epochs; more is better, -inf: none.

    Raises:
        OutputError: its log is missing or damaged.
    """
    try:
        rows = [json.loads(line) for line in read_text(run.metrics).splitlines()]
        best = next((row for row in reversed(rows) if row["best"]), None)
        if best is None:
            return -math.inf
        if select == "loss":
            return -float(best["val_loss"])
        dice = [float(value) for value in best["val_dice"].values() if value is not None and math.isfinite(value)]
        return float(np.mean(dice)) if dice else -math.inf
    except (OSError, ValueError, KeyError, TypeError) as error:
        line = _("{path}: damaged ({reason}), so the best of the models cannot be chosen; train again")
        raise OutputError(line.format(path=run.metrics, reason=reason(error)), path=run.metrics) from error
