"""The main job: a folder of pictures and masks in; a trained, scored model in a run folder out.

understand the folder -> choose -> make the network -> train -> score -> write
"""

import io
import json
import platform
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ubend._version import __version__
from ubend.core.autoconfig import Choice, choose_training
from ubend.core.device import (
    describe_device,
    fastest_precision,
    prepare_process,
    settle,
    tell_out_of_memory,
)
from ubend.core.errors import DataError, OutputError, SettingError, reason
from ubend.core.files import Need, default_cache, refuse_full, write_json, write_text
from ubend.core.i18n import _
from ubend.core.progress import Teller
from ubend.core.settings import Recipe, Settings, change_settings, dump_toml, make_settings, read_config, settled
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.drawing.curves import LiveCurves, draw_curves
from ubend.evaluation.scores import Decoded, evaluate_pairs
from ubend.inference.predictor import Predictor
from ubend.inference.tiling import Source
from ubend.models.model_file import load_bundle, save_bundle
from ubend.tasks.data import introduce
from ubend.tasks.gather import gather_settings, source_name
from ubend.training.border_weights import describe_objects
from ubend.training.checkpoint import Saver, TrainingState, load_state, save_state
from ubend.training.distributed import Ranks, join_ranks
from ubend.training.launcher import find_place
from ubend.training.loop import steps_until, train
from ubend.training.panels import draw_panel
from ubend.training.run_folder import RunFolder, free_run_name
from ubend.training.setup import fetch_weights, make_batches, make_loss, make_state, refuse_lone_values, run_bytes
from ubend.training.step import Job
from ubend.training.transfer import begin_with, load_start
from ubend.training.warmup import warmed_up

_FEW_PICTURES = 10  # to score on: below, chance moves a mean Dice by about 0.1


@dataclass(frozen=True)
class FitResult:
    """What a training left.

    Attributes:
        run: the run folder.
        scores: as in scores.json; None when training was interrupted before scoring, and in all but the first of
            several processes.
    """

    run: Path
    scores: dict[str, Any] | None


def fit(
    folder: Path | str | None,
    out: Path | str | None = None,
    *,
    recipe: Recipe | None = None,
    config: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    show: bool = False,
    teller: Teller | None = None,
    **flags: Any,
) -> FitResult:
    """Train a U-Net on a folder of pictures and masks, score it, and write all of it to a run folder.

    Args:
        folder: pictures and masks in any of the layouts of docs/formats.md, or the name of a data set, or a
            `data.toml` of `ubend data`;
            None: `images` and `masks` name them.
        out: the run folder, new or empty; None: `runs/NAME-1`, `-2`, ...
        recipe: `modern` (unless `config` says otherwise), `tutorial`: the course text's settings, its faults mended,
            or `paper`: the original U-Net and its training.
        config: a TOML file of settings.
        settings: any setting by its dotted key, such as {"train.learning_rate": 3e-4}.
        show: also display each epoch's panel.
        flags: the words of the command line: images, masks, split, classes, channels, size, width, skips, epochs,
            batch, patience, seed, device, deterministic, values, skip_bad, init_from (a trained model to begin
            with), root (where the named data set lies, or is to be put). `classes` and `values` may be
            strings with commas, `skips` a string such as "none" or "1,2".
    In each of several processes that torchrun starts, it trains with the others; the first one speaks and writes.
    Raises:
        UbendError: bad input; the message says what, where, and how to mend it.
    """
    gpus = flags.pop("gpus", None)
    if gpus not in (None, 1, find_place().count):
        raise SettingError(
            _(
                "gpus: processes are started by the command line, `ubend fit ... --gpus {count}`, or by torchrun with "
                "your script"
            ).format(count=gpus),
            key="--gpus",
        )
    if out is not None and find_place().is_first:
        RunFolder(Path(out)).refuse_taken()
    with join_ranks() as ranks, _voice(ranks, teller) as voice, tell_out_of_memory(_no_memory()):
        with ranks.first_alone():  # a named data set is downloaded once
            chosen = gather_settings(folder, recipe, config, settings, flags, voice)
        run = RunFolder(Path(out) if out is not None else free_run_name(Path(source_name(chosen))))
        return _fit(run, chosen, voice, show, ranks, resumed=False)


def resume(run: Path | str, *, show: bool = False, teller: Teller | None = None) -> FitResult:
    """Go on with an interrupted training, as if it had never stopped.

    Raises:
        OutputError: there is no run to go on with.
        TrainingError: the pictures have changed since.
    """
    folder = RunFolder(Path(run))
    try:
        facts = json.loads(folder.facts.read_text(encoding="utf-8"))
        began_with = (facts["device"], facts["threads"], facts["torch"])
        folder.data.stat()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            _("{path}: no run to go on with ({name}: {reason}); begin one with `ubend fit FOLDER --out NEW`").format(
                path=run, name=folder.facts.name, reason=reason(error)
            ),
            path=run,
        ) from error
    chosen = make_settings(config=read_config(folder.settings))
    with join_ranks() as ranks, _voice(ranks, teller) as voice:
        here = (describe_device(ranks.pick_device(chosen.device)), torch.get_num_threads(), torch.__version__)
        if began_with != here:
            voice.say(
                _("note: begun on {then}, goes on with {now} (device, threads, torch): last digits may differ").format(
                    then=", ".join(map(str, began_with)), now=", ".join(map(str, here))
                )
            )
        processes = facts.get("processes", 1)
        if processes != ranks.count:
            voice.say(
                _(
                    "note: begun in {then} processes, goes on in {now}: the pictures of each step stay, but batch "
                    "norm looks at another number of them"
                ).format(then=processes, now=ranks.count)
            )
        if ranks.is_first:
            folder.clear_leftovers()
        with tell_out_of_memory(_no_memory()):
            return _fit(folder, chosen, voice, show, ranks, resumed=True)


def _voice(ranks: Ranks, teller: Teller | None) -> Teller:
    """The first of several processes speaks; the others say nothing."""
    return (teller or Teller()) if ranks.is_first else Teller(Console(file=io.StringIO(), quiet=True))


def _no_memory() -> str:
    """Where a smaller micro-batch does not help."""
    return _("the device ran out of memory; use a smaller --size or --width, or --device cpu")


def _fit(run: RunFolder, settings: Settings, teller: Teller, show: bool, ranks: Ranks, resumed: bool) -> FitResult:
    prepare_process(settings.train.deterministic)
    start = None if resumed or settings.train.init_from is None else load_start(Path(settings.train.init_from))
    if not resumed:
        with ranks.first_alone():
            fetch_weights(settings.model)
    elif run.state.exists():  # it holds the weights
        settings = change_settings(settings, {"model.pretrained": False, "model.weights": None})
    device = ranks.pick_device(settings.device)
    if settings.train.batch is not None:
        ranks.refuse_uneven(settings.train.batch)
    settle(device, settings.train.deterministic)
    needs = [Need(run.path, run_bytes(settings, device.type, resumed), _("choose another --out or a smaller --width"))]
    needs = needs if ranks.is_first else []  # the others write nothing
    refuse_full(needs)
    with warmed_up(device), ranks.first_alone():  # the others find the store that it has built
        data = open_dataset(settings, device.type, default_cache(), teller, needs)
    if resumed:
        data = data.with_parts_of(run.data.read_text(encoding="utf-8"))
    settings, choices = choose_training(data.settings, data.facts(device.type, fastest_precision(device)))
    ranks.refuse_uneven(settled(settings.train.batch))
    introduce(teller, data)
    for choice in [*data.choices, *choices]:
        teller.say(_("chosen: {choice}").format(choice=choice.line()))
    teller.say(_("device: {device}").format(device=describe_device(device)))
    if ranks.count > 1:
        teller.say(
            _("processes: {count}, each with {share} of a step's {batch} pictures").format(
                count=ranks.count, share=settled(settings.train.batch) // ranks.count, batch=settings.train.batch
            )
        )

    loss = make_loss(data, settings, device)
    bundle, state = make_state(data, settings, device, ranks)
    bundle.orientation = settings.augment.orientation if settings.augment.kind == "warp" else None
    bundle.flips = settings.augment.kind != "warp" or settings.augment.flip_share > 0
    batches, validation = make_batches(data, settings, device, ranks)
    refuse_lone_values(batches, settings)
    if batches.weighs_pixels:
        teller.say(describe_objects(data))
    if note := validation.note():
        teller.say(note)
    if resumed and run.state.exists():
        load_state(run.state, state)
        done = len(state.progress.history) == settings.train.epochs or state.progress.stopped
        teller.say(
            _("the training was finished already; it is scored again")
            if done
            else _("going on after step {step}").format(step=state.progress.step)
        )
    epochs, curves = settled(settings.train.epochs), LiveCurves(data.labels.names, run.curves)

    def draw_epoch(state: TrainingState) -> Callable[[], None]:
        draw, history = draw_panel(run, data, validation, state, settings.train, show), list(state.progress.history)

        def write() -> None:
            draw()
            curves.draw(history)

        return write

    job = Job(
        batches,
        validation,
        data.labels.names,
        loss,
        settings.train,
        steps_until(epochs, batches.items, settled(settings.train.batch)),
        run,
        draw_epoch,
        lambda weights: save_bundle(run.model, bundle, weights),
        ranks,
    )
    if resumed and ranks.is_first:
        run.trim_timing(len(state.progress.history))
    if not resumed:
        kept = [] if start is None else begin_with(start, state, data.labels.names)
        for line in kept:
            teller.say(line)
        if ranks.is_first:
            facts = _gather_facts(data, [*data.choices, *choices], device, ranks)
            if start is not None:
                facts["begun_with"] = {"path": str(start.path), "sha256": start.sha256, "kept": kept}
            run.create()
            run.state.unlink(missing_ok=True)  # of a beginning that was killed
            if start is not None or settings.model.pretrained or settings.model.weights is not None:
                save_state(run.state, state)  # so that the run can go on from its first step without the other model
            _write_beginning(run, data, settings, facts)
    ranks.refuse_difference(
        f"{data.store.hashes}{data.parts}{settings.augment}{settings.model}{settings.train}{state.progress}"
    )
    with Saver(run.state, job.save_model) as saver:
        try:
            train(job, state, saver, teller)
        except KeyboardInterrupt as stop:
            saver.wait()
            if ranks.is_first:
                _draw_curves(run, data, state)
                _tell_interrupted(run, state, teller)
            if signal.SIGTERM in stop.args:  # the process ends by it, as if it had not been held back
                signal.raise_signal(signal.SIGTERM)
            return FitResult(run.path, None)
        ranks.leave()
        if not ranks.is_first:
            return FitResult(run.path, None)
        if state.progress.stopped:
            teller.say(_("stopped early: {reason}").format(reason=state.progress.stopped))
        saver.begin(lambda: _draw_curves(run, data, state))
        return FitResult(run.path, _score(run, data, settings, device, teller))


def _tell_interrupted(run: RunFolder, state: TrainingState, teller: Teller) -> None:
    if run.model.exists():
        said = _("stopped after step {step}; {model} is usable, and `ubend fit --resume {run}` goes on")
    else:  # a second Ctrl-C, before anything was saved
        said = _("stopped after step {step}, before a model was saved; `ubend fit --resume {run}` begins anew")
    teller.say(said.format(step=state.progress.step, model=run.model, run=run.path))


def _draw_curves(run: RunFolder, data: Dataset, state: TrainingState) -> None:
    if state.progress.history:
        draw_curves(state.progress.history, data.labels.names, run.curves)


def _gather_facts(data: Dataset, choices: list[Choice], device: torch.device, ranks: Ranks) -> dict[str, Any]:
    return {
        "layout": data.folder.layout,
        "classes": asdict(data.labels),
        "remarks": data.remarks,
        "choices": [choice.line() for choice in choices],
        "begun_with": None,
        "device": describe_device(device),
        "processes": ranks.count,
        "threads": torch.get_num_threads(),
        "ubend": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _write_beginning(run: RunFolder, data: Dataset, settings: Settings, facts: dict[str, Any]) -> None:
    write_text(run.settings, dump_toml(settings))
    write_text(run.data, data.table())
    if data.skipped or data.folder.skipped:
        write_text(run.skipped, data.skipped_table())
    write_json(run.facts, facts)  # last: a run folder with it is whole


def _score(run: RunFolder, data: Dataset, settings: Settings, device: torch.device, teller: Teller) -> dict[str, Any]:
    """Score the saved model on the test part, which nothing has looked at before."""
    part = data.score_part
    pairs = data.pairs(part)
    if not pairs:
        raise DataError(_("no pictures to score"), path=run.path)
    teller.say(_("scoring {count} pictures of the part {part}").format(count=len(pairs), part=part))
    if len(pairs) < _FEW_PICTURES:
        teller.say(_("note: so few pictures say little about others; trust these scores only roughly"))
    numbers, store = data.numbers(part).tolist(), data.store

    whole = bool((store.shapes_hw[numbers] == store.native_hw[numbers]).all())  # then they are what the files hold
    predictor = Predictor(load_bundle(run.model), device)

    def take_stored(number: int) -> Decoded:  # what the files would give
        height, width = store.native_hw[numbers[number]].tolist()
        image = Source.of_pixels(store.image(numbers[number]), (height, width))
        return Decoded(image, store.mask(numbers[number]) if whole else None)

    found = evaluate_pairs(predictor, pairs, decoded=take_stored if whole or predictor.tiling is None else None)
    scores = {"part": part, "recipe": settings.recipe, **found}
    write_json(run.scores, scores)
    return scores
