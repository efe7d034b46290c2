"""Cross-validation: K normal trainings, each without one fold of the images, and one model file of all K networks.

    plan, made on fold 1 -> K runs (RUN/fold-1, ...) -> out-of-fold scores -> RUN/model.safetensors -> scores

Train and val are divided into K folds; run k trains on the other folds and validates on fold k (`data.folds`,
`data.held_out`). The test split is the same for all folds, and is scored once, by all networks together.

With `data.leave_out` the folds are the groups. Run k trains and validates on the other groups and is scored on group k,
and all images are in a fold.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ubend.core.autoconfig import resolve
from ubend.core.device import pick_device, prepare_process, set_up
from ubend.core.files import write_json
from ubend.core.i18n import _
from ubend.core.plan import Choice, Plan
from ubend.core.progress import Reporter
from ubend.core.settings import Settings, change_settings
from ubend.dataset.dataset import Dataset
from ubend.evaluation.group_scores import score_groups
from ubend.evaluation.score_tables import Scores
from ubend.evaluation.scores import evaluate_pairs, identify_images
from ubend.inference.ensemble import shared_views
from ubend.inference.prediction import class_index
from ubend.inference.predictor import Logits, Predictor
from ubend.layouts.pairs import Pair
from ubend.metrics.overlap import count_confusion_batch, dice_from_confusion
from ubend.metrics.summary import mean_defined
from ubend.models.ensemble_net import EnsembleNet, ViewKind
from ubend.models.model_file import Bundle, load_bundle, pack_hashes, save_bundle
from ubend.portable.tiling import TileSource
from ubend.portable.version import __version__
from ubend.tasks import fit as one
from ubend.tasks.fit_result import FitResult
from ubend.tasks.report import write_report
from ubend.tasks.sub_runs import SubRun
from ubend.training.run_folder import RunFolder

# The class weights that `_choose_bias` tries, and the largest number of classes for which it tries any.
_WEIGHTS, _MOST_CLASSES = (0.125, 0.25, 0.5, 0.67, 1.5, 2.0, 4.0, 8.0), 16
_SURE = 2.0  # weights must be better than no weights by this many standard errors


@dataclass(frozen=True)
class Folds:
    """The data set, divided into folds, and the trainings without each of them: a `Several`.

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
        return max(self.first.folds)

    @property
    def whole(self) -> Dataset:
        return self.first.all_folds()

    def sub_runs(self) -> list[SubRun]:
        """A training for each fold."""
        trainings = []
        for fold in range(1, self.count + 1):
            line, group = _("fold {fold} of {folds}"), self.first.fold_groups.get(fold)
            if group is not None:
                line = _("group {group} is left out ({fold} of {folds})")
            title = line.format(fold=fold, folds=self.count, group=group)
            trainings.append(SubRun(RunFolder(self.run.path / f"fold-{fold}"), title, {"data.held_out": fold}))
        return trainings

    def describe(self) -> str:
        """A line on the folds and their sizes."""
        sizes = [self.first.folds.count(fold) for fold in range(1, self.count + 1)]
        line = _(
            "{folds} folds of {least} to {most} images: for each fold, a model is trained on the other folds and "
            "validated on it"
        )
        if self.first.fold_groups:
            line = _(
                "{folds} groups of {least} to {most} images: for each group, a model is trained and validated on the "
                "other groups, and scored on it"
            )
        return line.format(folds=self.count, least=min(sizes), most=max(sizes))

    def held_out(self) -> list[tuple[int, Pair]]:
        """(fold, pair) of all images that are in a fold, ordered by fold."""
        numbered = zip(self.first.folds, self.first.folder.pairs, strict=True)
        return sorted(((fold, pair) for fold, pair in numbered if fold), key=lambda both: both[0])

    def finish(self, reporter: Reporter) -> FitResult:
        """Combine all models in one file, and score it."""
        path = self.run.path
        models = [(sub.run.model_path, load_bundle(sub.run.model_path)) for sub in self.sub_runs()]
        members = [bundle for _path, bundle in models]
        best = self.plan.train.effort == "best"
        views = shared_views(models) if best else "plain"
        alone = [replace(bundle, model=EnsembleNet([bundle.model], views).eval()) for bundle in members]
        held_out = self.held_out()
        reporter.report(
            _("out-of-fold scores: {count} images, each predicted by the model that was not trained on it").format(
                count=len(held_out)
            )
        )
        predictors = [Predictor(bundle, self.device) for bundle in alone]
        answering = _OutOfFold(predictors, [fold - 1 for fold, _pair in held_out])
        out_of_fold = evaluate_pairs(answering, [pair for _fold, pair in held_out])
        bias = _choose_bias(self, predictors, reporter) if best else None
        save_bundle(self.run.model_path, _pack(self, members, views, bias, out_of_fold))
        scores = self._score(out_of_fold, reporter)
        write_json(self.run.scores, scores)
        write_report(path, predictor=Predictor(load_bundle(self.run.model_path), self.device))
        return FitResult(path, Scores(scores))

    def _score(self, out_of_fold: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
        """The content of scores.json: of the test split, or if every image is in a fold, the out-of-fold scores."""
        whole, first = self.whole, self.first
        if "test" in whole.splits:
            ensemble = Predictor(load_bundle(self.run.model_path), self.device)
            scores = one.evaluate(self.run, whole, self.plan, ensemble, reporter)
            reporter.report(_mean_line(out_of_fold))
        else:
            hashes = dict(zip((pair.name for pair in first.folder.pairs), first.store.hashes, strict=True))
            pairs = [pair for _fold, pair in self.held_out()]
            images = identify_images(pairs, [hashes[pair.name] for pair in pairs])
            scores = {"part": "out-of-fold", "recipe": self.plan.recipe, **out_of_fold, "images": images}
        scores["out_of_fold"] = out_of_fold
        if first.fold_groups:
            groups = {pair.name: str(pair.group) for _fold, pair in self.held_out()}
            scores["left_out"] = score_groups(out_of_fold, groups, first.labels)
        return scores


def open_folds(run: RunFolder, settings: Settings, reporter: Reporter, choices: Sequence[Choice] = ()) -> Folds:
    """Open the data set and resolve the plan of all folds, from the facts of fold 1."""
    prepare_process(settings.train.deterministic)
    device = pick_device(settings.device)
    set_up(device, settings.train.deterministic)
    scan = one.scan(change_settings(settings, {"data.held_out": 1}), device, reporter)
    plan = resolve(change_settings(settings, {"data.held_out": 1}), scan.facts)
    data = plan.data.model_copy(update={"held_out": None})
    plan = plan.model_copy(update={"data": data, "choices": (*choices, *plan.choices)})
    return Folds(run, scan.data, plan, device)


def _mean_line(scores: dict[str, Any]) -> str:
    dice = scores["native"]["dice"]["per_image"]["mean_foreground"]
    line = _(
        "out-of-fold scores, at native size: Dice {dice:.4f}, mean over images and over the classes without the "
        "background"
    )
    return line.format(dice=float("nan") if dice is None else dice)


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
        for fold, of_fold in groupby(enumerate(sources), lambda item: self._folds[item[0]]):
            count = 0
            for logits in self._predictors[fold].run(source for _index, source in of_fold):
                yield replace(logits, image_indices=[offset + index for index in logits.image_indices])
                count += len(logits.image_indices) if logits.is_last else 0
            offset += count


def _choose_bias(folds: Folds, predictors: Sequence[Predictor], reporter: Reporter) -> list[float] | None:
    """The `EnsembleNet.class_bias` that raises the out-of-fold Dice at model size; None if none clearly does.

    A few weights are tried for each class except the background, one class at a time. The best weights of all classes
    are then used together, and kept if they are better than no weights by `_SURE` standard errors over the images. The
    criterion is the mean Dice over all classes: the mean without the background would also rise if an untrained model
    predicted foreground everywhere.
    """
    labels = folds.first.labels
    if labels.classes > _MOST_CLASSES:
        return None
    tried = folds.first.foreground_classes()  # only the ratios of the weights matter, so that of the background stays 1
    single = [{index: float(np.log(weight))} for index in tried for weight in _WEIGHTS]
    dice = _dice_with(folds, predictors, [{}, *single])
    means = np.array([_mean(one_rule) for one_rule in dice])
    together = dict[int, float]()
    for place in range(len(tried)):
        class_means = means[1 + place * len(_WEIGHTS) :][: len(_WEIGHTS)]
        if class_means.max() > means[0]:
            together |= single[place * len(_WEIGHTS) + int(class_means.argmax())]
    plain, after = dice[0], dice[0]
    if together:
        after = _dice_with(folds, predictors, [together])[0]
    defined = np.isfinite(plain) & np.isfinite(after)
    gains = [
        float((new - old)[there].mean()) for old, new, there in zip(plain, after, defined, strict=True) if there.any()
    ]
    error = float(np.std(gains) / max(1, len(gains)) ** 0.5) if gains else 0.0
    names = ", ".join(f"{labels.names[index]} {np.exp(bias):.3g}" for index, bias in together.items())
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
    return [together.get(index, 0.0) for index in range(labels.classes)]


def _mean(dice: NDArray[np.float64]) -> float:
    """(N, C) Dice, NaN where undefined -> the mean over classes of the means over images, as in scores.json."""
    mean = float(mean_defined(mean_defined(dice)))
    return 0.0 if np.isnan(mean) else mean


def _dice_with(folds: Folds, predictors: Sequence[Predictor], rules: Sequence[dict[int, float]]) -> NDArray[np.float64]:
    """(R, N, C) out-of-fold Dice of each image and class at model size, for R rules (class index -> its bias)."""
    store, classes = folds.first.store, folds.first.labels.classes
    biases = torch.zeros(len(rules), classes, device=folds.device)
    for row, rule in enumerate(rules):
        for index, bias in rule.items():
            biases[row, index] = bias
    dice_of_folds = list[NDArray[np.float64]]()
    for fold, predictor in enumerate(predictors, 1):
        indices = [index for index, image_fold in enumerate(folds.first.folds) if image_fold == fold]
        counts = np.zeros((len(rules), len(indices), classes, classes), np.int64)
        images = (store.image(index) for index in indices)
        sources = (TileSource.of_pixels(image, (image.shape[0], image.shape[1])) for image in images)
        for logits in predictor.run(sources):
            truth = np.stack([store.mask(indices[place])[logits.rows] for place in logits.image_indices])
            target = torch.from_numpy(truth).to(folds.device)
            for row, bias in enumerate(biases):
                guess = class_index((logits.values + bias[:, None, None]).movedim(1, 0))
                counts[row, logits.image_indices] += count_confusion_batch(guess, target, classes).cpu().numpy()
        dice_of_folds.append(dice_from_confusion(counts))
    return np.concatenate(dice_of_folds, axis=1)


def _pack(
    folds: Folds, members: Sequence[Bundle], views: ViewKind, bias: Sequence[float] | None, out_of_fold: dict[str, Any]
) -> Bundle:
    """One model file of all networks."""
    net, data = EnsembleNet([bundle.model for bundle in members], views).eval(), folds.first.all_folds()
    if bias is not None:
        net.class_bias.copy_(torch.tensor(bias))
    hashes, scales = data.store.pixel_hashes, [bundle.scale for bundle in members if bundle.scale is not None]
    dice = {
        name: mean_dice
        for name, mean_dice in out_of_fold["native"]["dice"]["per_image"].items()
        if name not in ("mean", "mean_foreground")
    }
    about = {key: value for key, value in members[0].about.items() if key not in ("epochs", "kept_epoch", "val_dice")}
    about |= {"ubend": __version__, "training_pictures": len(data.indices("train")), "folds": folds.count}
    return replace(
        members[0],
        model=net,
        about=about | {"out_of_fold_dice": dice},
        scale=(min(low for low, _high in scales), max(high for _low, high in scales)) if scales else None,
        orientation=members[0].orientation if len({bundle.orientation for bundle in members}) == 1 else "upright",
        image_hashes={split: pack_hashes(hashes[data.indices(split)]) for split in ("train", "val", "test")},
    )
