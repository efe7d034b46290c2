"""Cross-validation: K normal trainings, each without one fold of the images, and one model file of all K networks.

    plan, made on fold 1 -> K runs (RUN/fold-1, ...) -> out-of-fold scores -> RUN/model.safetensors -> scores

Train and val are divided into K folds; run k trains on the other folds and validates on fold k (`data.folds`,
`data.held_out`). The test split is the same for all folds, and is scored once, by all networks together. A fold with
scores is finished; resuming trains the others.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import wraps
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ubend._version import __version__
from ubend.core.autoconfig import choose_folds, resolve
from ubend.core.device import describe_device, pick_device, prepare_process, set_up
from ubend.core.errors import SettingError, TrainingError
from ubend.core.files import read_text, write_json
from ubend.core.i18n import _
from ubend.core.lock import locked
from ubend.core.plan import Choice, Plan
from ubend.core.progress import Reporter
from ubend.core.settings import Settings, change_settings, make_settings, read_config
from ubend.dataset.dataset import Dataset
from ubend.evaluation.report import Scores
from ubend.evaluation.scores import evaluate_pairs, identify_images
from ubend.inference.prediction import class_index
from ubend.inference.predictor import Logits, Predictor
from ubend.inference.tiling import TileSource
from ubend.labels.class_table import background_class
from ubend.layouts.pairs import Pair
from ubend.metrics.overlap import count_confusion_batch, dice_from_confusion
from ubend.models.ensemble_net import EnsembleNet, ViewKind
from ubend.models.model_file import Bundle, load_bundle, pack_hashes, save_bundle
from ubend.tasks import fit as one
from ubend.tasks.data import report_dataset
from ubend.tasks.fit_result import FitResult
from ubend.tasks.report import write_report
from ubend.tasks.user_settings import asks_for_folds, read_user_settings, source_name
from ubend.training.launcher import process_rank, run_processes, share_of_cores
from ubend.training.run_folder import RunFolder, free_run_name
from ubend.training.trackers import check_tracker

_INTERRUPTED = (130, 143)  # exit codes
# The weights that are tried for each class in the choice of the most probable class; the largest number of classes.
_WEIGHTS, _MOST_CLASSES = (0.125, 0.25, 0.5, 0.67, 1.5, 2.0, 4.0, 8.0), 16
_SURE = 2.0  # standard errors by which weights must be better than no weights


@dataclass(frozen=True)
class _Folds:
    """The data set, divided into folds.

    Attributes:
        run: the run folder of all folds; it contains the run folder of each fold.
        first: the data set as split for fold 1.
        plan: the plan of all folds; only `data.held_out` differs between them.
    """

    run: RunFolder
    first: Dataset
    plan: Plan
    device: torch.device

    @property
    def count(self) -> int:
        assert self.plan.data.folds is not None
        return self.plan.data.folds

    def run_of(self, fold: int) -> RunFolder:
        return RunFolder(self.run.path / f"fold-{fold}")

    def held_out(self) -> list[tuple[int, Pair]]:
        """(fold, pair) of all images that are in a fold, ordered by fold."""
        numbered = zip(self.first.folds, self.first.folder.pairs, strict=True)
        return sorted(((fold, pair) for fold, pair in numbered if fold), key=lambda both: both[0])


@wraps(one.fit)
def fit(folder: Path | str | None, out: Path | str | None = None, **options: Any) -> FitResult:
    """Train one model (see `ubend.tasks.fit.fit`), or one for each fold; for `gpus` see `resume`."""
    options = {key: value for key, value in options.items() if value is not None}
    gpus, show, log = (options.pop(key, None) for key in ("gpus", "show", "reporter"))
    named = {key: options.pop(key, None) for key in ("recipe", "config", "settings")}
    if not asks_for_folds(folder, named["config"], named["settings"], options):
        return one.fit(folder, out, show=bool(show), reporter=log, gpus=gpus, **named, **options)
    reporter = log or Reporter()
    _refuse_ranks()
    if options.pop("network", None) is not None or callable(options.get("loss")):
        line = _("your own network or loss cannot be combined with folds or effort best; leave these out")
        raise SettingError(line, key="data.folds")
    if out is not None:
        RunFolder(Path(out)).refuse_existing_results()
    requested = read_user_settings(folder, named["recipe"], named["config"], named["settings"], options, reporter)
    settings, choices = choose_folds(requested.settings)
    check_tracker(settings.train.track)
    if requested.initial is not None:
        line = _(
            "--folds and --effort best cannot be combined with --from: {path} may have been trained on images that a "
            "fold holds out"
        )
        raise SettingError(line.format(path=requested.initial.path), key="train.init_from")
    _refuse_gpus(gpus, settings.device)
    run = RunFolder(Path(out) if out is not None else free_run_name(Path(source_name(settings))))
    with locked(run.path):
        folds = _open(run, settings, reporter, choices)
        report_dataset(reporter, folds.first.all_folds())
        sizes = [folds.first.folds.count(fold) for fold in range(1, folds.count + 1)]
        line = _(
            "{folds} folds of {least} to {most} images: for each fold, a model is trained on the other folds and "
            "validated on it"
        )
        reporter.report(line.format(folds=folds.count, least=min(sizes), most=max(sizes)))
        for choice in folds.plan.choices:
            reporter.report(_("chosen: {choice}").format(choice=choice.line()))
        run.create()
        run.started.touch()
        facts = {
            "begun_with": None,
            "began": datetime.now().astimezone().isoformat(timespec="seconds"),
            "device": describe_device(folds.device),
            "processes": 1,
        }
        run.begin(folds.plan, folds.first.all_folds(), facts)
        return _run(folds, gpus or 1, bool(show), reporter)


def resume(
    run: Path | str, *, gpus: int | None = None, show: bool = False, reporter: Reporter | None = None, **own_parts: Any
) -> FitResult:
    """Resume an interrupted training, as if it had not been interrupted; with folds, the unfinished ones.

    Args:
        gpus: the number of folds to train at once, each on its own GPU.
        own_parts: `network` and `loss`, see `ubend.tasks.fit.resume`.
    Raises:
        OutputError: there is no run to resume, or it is from an older version.
        TrainingError: the images have changed since.
    """
    whole, reporter = RunFolder(Path(run)), reporter or Reporter()
    if not asks_for_folds(None, whole.settings):
        if gpus not in (None, process_rank().count):
            line = _(
                "gpus: Python cannot start the processes; use the command line, `ubend fit ... --gpus {count}`, or "
                "start your script with torchrun"
            )
            raise SettingError(line.format(count=gpus), key="--gpus")
        return one.resume(run, show=show, reporter=reporter, **own_parts)
    _refuse_ranks()
    if not whole.facts.is_file():
        whole.read_facts()  # raises an error that explains it
    settings = make_settings(config=read_config(whole.settings))
    _refuse_gpus(gpus, settings.device)
    with locked(whole.path):
        folds = _open(whole, settings, reporter)
        folds.first.all_folds().with_splits_of(read_text(whole.data))  # refuses images that have changed
        return _run(folds, gpus or 1, show, reporter)


def _refuse_ranks() -> None:
    if process_rank().count > 1:
        line = _("--folds and --effort best do not work under torchrun; use --gpus N, which trains N folds at once")
        raise SettingError(line, key="data.folds")


def _refuse_gpus(gpus: int | None, device: str | None) -> None:
    """Raise SettingError if the folds cannot be trained on this number of GPUs."""
    if gpus in (None, 1) or device == "cpu":
        return
    if device not in (None, "cuda"):
        line = _(
            "device {name} is a single device, but there are {count} processes; give --device "
            "cuda or cpu, or leave it out"
        )
        raise SettingError(line.format(name=device, count=gpus), key="device")
    if torch.cuda.device_count() < gpus:
        line = _(
            "this computer has {there} GPUs, too few for {count} processes; give a smaller --gpus, or --device "
            "cpu for processes on the CPU"
        )
        raise SettingError(line.format(there=torch.cuda.device_count(), count=gpus), key="--gpus")


def _open(run: RunFolder, settings: Settings, reporter: Reporter, choices: Sequence[Choice] = ()) -> _Folds:
    """Open the data set and resolve the plan of all folds, from the facts of fold 1."""
    prepare_process(settings.train.deterministic)
    device = pick_device(settings.device)
    set_up(device, settings.train.deterministic)
    found = one.scan(change_settings(settings, {"data.held_out": 1}), device, reporter)
    plan = resolve(change_settings(settings, {"data.held_out": 1}), found.facts)
    data = plan.data.model_copy(update={"held_out": None})
    plan = plan.model_copy(update={"data": data, "choices": (*choices, *plan.choices)})
    return _Folds(run, found.data, plan, device)


def _run(folds: _Folds, gpus: int, show: bool, reporter: Reporter) -> FitResult:
    """Train the unfinished folds, combine all models in one file, and score it."""
    path = folds.run.path
    waiting = [fold for fold in range(1, folds.count + 1) if not folds.run_of(fold).scores.exists()]
    train = _train_at_once if gpus > 1 else _train_in_turn
    if not train(folds, waiting, gpus, show, reporter):
        line = _("stopped; `ubend fit --resume {run}` trains the remaining folds")
        reporter.report(line.format(run=path))
        return FitResult(path, None)
    members = [load_bundle(folds.run_of(fold).model_path) for fold in range(1, folds.count + 1)]
    best = folds.plan.train.effort == "best"
    views = _views(members) if best else "plain"
    alone = [replace(bundle, model=EnsembleNet([bundle.model], views).eval()) for bundle in members]
    held_out = folds.held_out()
    reporter.report(
        _("out-of-fold scores: {count} images, each predicted by the model that was not trained on it").format(
            count=len(held_out)
        )
    )
    predictors = [Predictor(bundle, folds.device) for bundle in alone]
    answering = _OutOfFold(predictors, [fold - 1 for fold, _pair in held_out])
    out_of_fold = evaluate_pairs(answering, [pair for _fold, pair in held_out])
    bias = _choose_bias(folds, predictors, reporter) if best else None
    save_bundle(folds.run.model_path, _pack(folds, members, views, bias, out_of_fold))
    whole = folds.first.all_folds()
    if "test" in whole.splits:
        ensemble = Predictor(load_bundle(folds.run.model_path), folds.device)
        scores = one.evaluate(folds.run, whole, folds.plan, ensemble, reporter)
        reporter.report(_mean_line(out_of_fold))
    else:  # every image is in a fold
        hashes = dict(zip((pair.name for pair in folds.first.folder.pairs), folds.first.store.hashes, strict=True))
        pairs = [pair for _fold, pair in held_out]
        images = identify_images(pairs, [hashes[pair.name] for pair in pairs])
        scores = {"part": "out-of-fold", "recipe": folds.plan.recipe, **out_of_fold, "images": images}
    scores["out_of_fold"] = out_of_fold
    write_json(folds.run.scores, scores)
    write_report(path, predictor=Predictor(load_bundle(folds.run.model_path), folds.device))
    return FitResult(path, Scores(scores))


def _mean_line(scores: dict[str, Any]) -> str:
    dice = scores["native"]["dice"]["per_image"]["mean_foreground"]
    line = _(
        "out-of-fold scores, at native size: Dice {dice:.4f}, mean over images and over the classes without the "
        "background"
    )
    return line.format(dice=float("nan") if dice is None else dice)


def _train_in_turn(folds: _Folds, waiting: Sequence[int], _gpus: int, show: bool, reporter: Reporter) -> bool:
    """Train the folds one after another in this process; returns False if interrupted."""
    for fold in waiting:
        run = folds.run_of(fold)
        reporter.report(_("fold {fold} of {folds}: {run}").format(fold=fold, folds=folds.count, run=run.path))
        if run.facts.is_file():
            result = one.resume(run.path, show=show, reporter=reporter)
        else:
            config, changes = folds.run.settings, {"data.held_out": fold}
            result = one.fit(None, run.path, config=config, settings=changes, show=show, reporter=reporter)
        if result.scores is None:
            return False
    return True


def _train_at_once(folds: _Folds, waiting: Sequence[int], gpus: int, show: bool, reporter: Reporter) -> bool:
    """Train the folds in processes, one for each GPU; returns False if interrupted.

    Raises:
        TrainingError: one of them failed; its error is already printed.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    for some in (waiting[start : start + gpus] for start in range(0, len(waiting), gpus)):
        commands, environments = [], []
        for fold, gpu in zip(some, [*visible.split(","), *map(str, range(gpus))], strict=False):
            run = folds.run_of(fold)
            words = ["--config", str(folds.run.settings), "--set", f"data.held_out={fold}", "--out", str(run.path)]
            words = ["--resume", str(run.path)] if run.facts.is_file() else words
            commands.append([sys.executable, "-m", "ubend", "fit", *words, *(["--show"] if show else [])])
            environments.append({"OMP_NUM_THREADS": share_of_cores(gpus), **os.environ, "CUDA_VISIBLE_DEVICES": gpu})
        line = _("training folds {folds} of {count} at once; the following lines are from the first of them")
        reporter.report(line.format(folds=", ".join(map(str, some)), count=folds.count))
        code = run_processes(commands, environments, together=False)
        if code in _INTERRUPTED:
            return False
        failed = [fold for fold in some if not folds.run_of(fold).scores.exists()]
        if code or failed:
            line = _("the training of fold {fold} failed; `ubend fit --resume {run} --gpus {count}` trains the rest")
            path, fold = folds.run.path, (failed or some)[0]
            raise TrainingError(line.format(fold=fold, run=path, count=gpus), path=path, key="data.held_out")
    return True


def _views(members: Sequence[Bundle]) -> ViewKind:
    """The mirror images and rotations with which all of the models were trained."""
    if not all(bundle.flips for bundle in members):
        return "plain"
    return "square" if all(bundle.orientation == "free" for bundle in members) else "mirror"


class _OutOfFold:
    """A `ScoredPredictor` in which each image is predicted by the model of its fold.

    Args:
        predictors: one for each fold.
        folds: for each image, in the order in which `run` receives them, the index of its predictor; ascending.
    """

    def __init__(self, predictors: Sequence[Predictor], folds: Sequence[int]) -> None:
        self._predictors, self._folds = predictors, folds
        first = predictors[0]
        self.labels, self.inspect, self.prepare = first.labels, first.inspect, first.prepare

    def run(self, sources: Iterable[TileSource]) -> Iterator[Logits]:
        offset = 0
        for fold, group in groupby(enumerate(sources), lambda item: self._folds[item[0]]):
            count = 0

            for logits in self._predictors[fold].run(source for _number, source in group):
                yield replace(logits, numbers=[offset + number for number in logits.numbers])
                count += len(logits.numbers) if logits.is_last else 0
            offset += count


def _choose_bias(folds: _Folds, predictors: Sequence[Predictor], reporter: Reporter) -> list[float] | None:
    """The `EnsembleNet.class_bias` that raises the out-of-fold Dice at model size; None if no bias surely does.

    A few weights are tried for each class except the background, one class at a time. The best weights of all classes
    are then used together, and kept if they are better than no weights by `_SURE` standard errors over the images. The
    criterion is the mean Dice over all classes: the mean without the background would also rise if an untrained model
    predicted foreground everywhere.
    """
    labels = folds.first.labels
    if labels.classes > _MOST_CLASSES:
        return None
    background = background_class(labels.names) or 0  # only the ratios of the weights matter, so one stays 1
    tried = [number for number in range(labels.classes) if number != background]
    single = [{number: float(np.log(weight))} for number in tried for weight in _WEIGHTS]
    dice = _dice_with(folds, predictors, [{}, *single])
    means = np.array([_mean(one_rule) for one_rule in dice])
    together = dict[int, float]()
    for place in range(len(tried)):
        own = means[1 + place * len(_WEIGHTS) :][: len(_WEIGHTS)]
        if own.max() > means[0]:
            together |= single[place * len(_WEIGHTS) + int(own.argmax())]
    plain, after = dice[0], dice[0]
    if together:
        after = _dice_with(folds, predictors, [together])[0]
    defined = np.isfinite(plain) & np.isfinite(after)
    gains = [
        float((new - old)[there].mean()) for old, new, there in zip(plain, after, defined, strict=True) if there.any()
    ]
    error = float(np.std(gains) / max(1, len(gains)) ** 0.5) if gains else 0.0
    names = ", ".join(f"{labels.names[number]} {np.exp(bias):.3g}" for number, bias in together.items())
    if not together or _mean(after) <= means[0] or float(np.mean(gains)) <= _SURE * error:
        reporter.report(
            _("chosen: the most probable class of each pixel, without class weights, since none are clearly better")
        )
        return None
    line = _(
        "chosen: class weights for choosing the most probable class: {names}; mean out-of-fold Dice over all classes "
        "at model size {after:.4f}, without weights {plain:.4f}"
    )
    reporter.report(line.format(names=names, after=_mean(after), plain=means[0]))
    return [together.get(number, 0.0) for number in range(labels.classes)]


def _mean(dice: NDArray[np.float64]) -> float:
    """(N, C) Dice, NaN where undefined -> the mean over classes of the means over images, as in scores.json."""
    means = [column[np.isfinite(column)].mean() for column in dice.T if np.isfinite(column).any()]
    return float(np.mean(means)) if means else 0.0


def _dice_with(
    folds: _Folds, predictors: Sequence[Predictor], rules: Sequence[dict[int, float]]
) -> NDArray[np.float64]:
    """(R, N, C) out-of-fold Dice of each image and class at model size, for R rules (class index -> its bias)."""
    store, classes = folds.first.store, folds.first.labels.classes
    biases = torch.zeros(len(rules), classes, device=folds.device)
    for row, rule in enumerate(rules):
        for number, bias in rule.items():
            biases[row, number] = bias
    found = list[NDArray[np.float64]]()
    for fold, predictor in enumerate(predictors, 1):
        numbers = [number for number, own in enumerate(folds.first.folds) if own == fold]
        counts = np.zeros((len(rules), len(numbers), classes, classes), np.int64)
        images = (store.image(number) for number in numbers)
        sources = (TileSource.of_pixels(image, (image.shape[0], image.shape[1])) for image in images)
        for logits in predictor.run(sources):
            truth = np.stack([store.mask(numbers[place])[logits.rows] for place in logits.numbers])
            target = torch.from_numpy(truth).to(folds.device)
            for row, bias in enumerate(biases):
                guess = class_index((logits.values + bias[:, None, None]).movedim(1, 0))
                counts[row, logits.numbers] += count_confusion_batch(guess, target, classes).cpu().numpy()
        found.append(dice_from_confusion(counts))
    return np.concatenate(found, axis=1)


def _pack(
    folds: _Folds, members: Sequence[Bundle], views: ViewKind, bias: Sequence[float] | None, out_of_fold: dict[str, Any]
) -> Bundle:
    """One model file of all networks."""
    net, data = EnsembleNet([bundle.model for bundle in members], views).eval(), folds.first.all_folds()
    if bias is not None:
        net.class_bias.copy_(torch.tensor(bias))
    hashes, scales = data.store.pixel_hashes, [bundle.scale for bundle in members if bundle.scale is not None]
    dice = {
        name: own for name, own in out_of_fold["native"]["dice"]["per_image"].items() if not name.startswith("mean")
    }
    about = {key: value for key, value in members[0].about.items() if key not in ("epochs", "kept_epoch", "val_dice")}
    about |= {"ubend": __version__, "training_pictures": len(data.numbers("train")), "folds": folds.count}
    return replace(
        members[0],
        model=net,
        about=about | {"out_of_fold_dice": dice},
        scale=(min(low for low, _high in scales), max(high for _low, high in scales)) if scales else None,
        orientation=members[0].orientation if len({bundle.orientation for bundle in members}) == 1 else "upright",
        image_hashes={split: pack_hashes(hashes[data.numbers(split)]) for split in ("train", "val", "test")},
    )
