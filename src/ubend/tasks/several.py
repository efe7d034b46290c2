"""Training in one run: one model, or several for folds, groups that are left out, or seeds.

settings -> Folds or Seeds -> sub-runs (RUN/fold-1, RUN/seed-1, ...) -> RUN/model.safetensors and RUN/scores.json
"""

from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

from ubend.core.autoconfig import choose_folds
from ubend.core.device import describe_device
from ubend.core.errors import SettingError
from ubend.core.files import read_text
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.core.settings import make_settings, read_config
from ubend.portable.lock import locked
from ubend.portable.printable import shell_word
from ubend.tasks import fit as single_fit
from ubend.tasks.data import describe_choices, report_dataset
from ubend.tasks.fit_result import FitResult
from ubend.tasks.folds import open_folds
from ubend.tasks.seeds import open_seeds
from ubend.tasks.sub_runs import Several, refuse_gpus, refuse_ranks, train_sub_runs
from ubend.tasks.user_settings import asks_for_several, read_user_settings, source_name
from ubend.training.launcher import process_rank
from ubend.training.run_folder import INITIAL_MODEL, RunFolder, free_run_name
from ubend.training.trackers import check_tracker


@wraps(single_fit.fit)
def fit(folder: Path | str | None, out: Path | str | None = None, **options: Any) -> FitResult:
    """Train one model (see `ubend.tasks.fit.fit`), or several; for `gpus` see `resume`."""
    options = {key: value for key, value in options.items() if value is not None}
    gpus, show, watch, log = (options.pop(key, None) for key in ("gpus", "show", "watch", "reporter"))
    named = {key: options.pop(key, None) for key in ("recipe", "config", "settings")}
    kind = asks_for_several(folder, named["config"], named["settings"], options)
    if kind is None:
        _refuse_starting_processes(gpus)
        return single_fit.fit(folder, out, show=bool(show), watch=bool(watch), reporter=log, **named, **options)
    reporter = log or Reporter()
    refuse_ranks(kind)
    _refuse_watch(watch)
    if options.pop("network", None) is not None or callable(options.get("loss")):
        line = _(
            "your own network or loss cannot be combined with folds, leave_out, seeds or effort best; leave these out"
        )
        raise SettingError(line, key=kind)
    if out is not None:
        RunFolder(Path(out)).refuse_existing_results()
    requested = read_user_settings(folder, named["recipe"], named["config"], named["settings"], options, reporter)
    settings, choices = choose_folds(requested.settings)
    check_tracker(settings.train.track)
    if requested.initial is not None and kind == "data.folds":
        line = _(
            "--folds, --leave-out and --effort best cannot be combined with --from: {path} may have been trained on "
            "images that are held out"
        )
        raise SettingError(line.format(path=requested.initial.path), key="train.init_from")
    refuse_gpus(gpus, settings.device)
    run = RunFolder(Path(out) if out is not None else free_run_name(Path(source_name(settings))))
    with locked(run.path):
        several: Several
        if kind == "data.folds":
            several = open_folds(run, settings, reporter, choices)
        else:
            several = open_seeds(run, settings, reporter)
        report_dataset(reporter, several.whole)
        reporter.report(several.describe())
        for line in describe_choices(several.plan.choices, run.path):
            reporter.report(line)
        _begin(several)
        return _run(several, gpus or 1, bool(show), reporter)


def resume(
    run: Path | str,
    *,
    gpus: int | None = None,
    show: bool = False,
    watch: bool = False,
    reporter: Reporter | None = None,
    **custom: Any,
) -> FitResult:
    """Resume an interrupted training, as if it had not been interrupted; of several models, the unfinished ones.

    Args:
        gpus: the number of models to train at once, each on its own GPU.
        custom: `network` and `loss`, see `ubend.tasks.fit.resume`.
    Raises:
        OutputError: there is no run to resume, or it is from an older version.
        TrainingError: the images have changed since, or were moved.
    """
    whole, reporter = RunFolder(Path(run)), reporter or Reporter()
    kind = asks_for_several(None, whole.settings)
    if kind is None:
        _refuse_starting_processes(gpus)
        return single_fit.resume(run, show=show, watch=watch, reporter=reporter, **custom)
    refuse_ranks(kind)
    _refuse_watch(watch)
    if not whole.facts.is_file():
        whole.read_facts()  # raises an error that explains it
    settings = make_settings(config=read_config(whole.settings))
    single_fit.refuse_moved_data(whole, settings)
    refuse_gpus(gpus, settings.device)
    with locked(whole.path):
        open_several = open_folds if kind == "data.folds" else open_seeds
        several: Several = open_several(whole, settings, reporter)
        several.whole.with_splits_of(read_text(whole.data))  # refuses images that have changed
        return _run(several, gpus or 1, show, reporter)


def _refuse_starting_processes(gpus: int | None) -> None:
    if gpus not in (None, 1, process_rank().count):
        line = _(
            "gpus: Python cannot start the processes; use the command line, `ubend fit ... --gpus {count}`, or "
            "start your script with torchrun"
        )
        raise SettingError(line.format(count=gpus), key="--gpus")


def _refuse_watch(watch: bool | None) -> None:
    if watch:
        line = _("--watch shows one training; leave it out with --folds, --leave-out, --seeds and --effort best")
        raise SettingError(line, key="--watch")


def _begin(several: Several) -> None:
    """Create the run folder."""
    run = several.run
    run.create()
    run.started.touch()
    facts = {
        INITIAL_MODEL: None,
        "began": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": describe_device(several.device),
        "processes": 1,
        "sub_runs": [sub.run.path.name for sub in several.sub_runs()],
    }
    run.begin(several.plan, several.whole, facts)


def _run(several: Several, gpus: int, show: bool, reporter: Reporter) -> FitResult:
    """Train the unfinished models, and write the model and the scores of all."""
    path = several.run.path
    if train_sub_runs(several, gpus, show, reporter):
        return several.finish(reporter)
    reporter.report(_("stopped; `ubend fit --resume {run}` trains the remaining models").format(run=shell_word(path)))
    return FitResult(path, None)
