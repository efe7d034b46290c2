"""The main task: a folder of images and masks in; a trained, scored model in a run folder out.

    scan -> resolve -> prepare -> build -> train -> evaluate

Each stage is one function that is called once, and all but the last two return one frozen value; `assemble` joins what
they made to the training and its runtime:

    scan       here                  the folder: pairs, headers, labels, splits           Scan (dataset and Facts)
    resolve    core/autoconfig.py    settings + facts -> a value and a reason for each    Plan
    prepare    dataset/prepare.py    batches and validation images, on the device         TrainData
    build      training/build.py     network, EMA, optimizer, loss                        ModelSetup
    train      training/loop.py      the loop                                             the state, files of the run
    evaluate   here                  the saved model on the test split, else validation   scores
"""

import glob
import io
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from ubend.accel.accelerate import accelerate_augmentation, accelerate_loss, accelerate_network, compile_network
from ubend.accel.captured import capture_steps
from ubend.accel.warmup import warmed_up
from ubend.core.autoconfig import choose_network, resolve
from ubend.core.device import describe_device, explain_out_of_memory, fastest_precision, prepare_process, set_up
from ubend.core.errors import DataError, TrainingError
from ubend.core.files import DiskRequirement, check_disk_space, default_cache, read_text, write_json
from ubend.core.i18n import _
from ubend.core.plan import Facts, Plan
from ubend.core.progress import Reporter
from ubend.core.settings import Recipe, Settings, make_settings, read_config
from ubend.dataset.arrays import refuse_lost
from ubend.dataset.augment import augment
from ubend.dataset.border_weights import describe_objects
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.dataset.prepare import TrainData, prepare
from ubend.doctor.finding import Finding, write_findings
from ubend.doctor.finding_text import report_quick_checks
from ubend.drawing.curves import draw_curves
from ubend.evaluation.caveats import describe_few
from ubend.evaluation.score_tables import Scores
from ubend.evaluation.scores import DecodedImage, evaluate_pairs, identify_images
from ubend.inference.predictor import Predictor
from ubend.models.encoders import download_weights, is_pretrained, pretrained_normalisation
from ubend.models.model_file import load_bundle
from ubend.portable.lock import locked
from ubend.portable.printable import shell_word
from ubend.portable.tiling import TileSource
from ubend.tasks.data import describe_choices, report_dataset
from ubend.tasks.fit_result import FitResult
from ubend.tasks.report import write_report
from ubend.tasks.user_settings import read_user_settings, source_name
from ubend.tasks.watch import watch_page
from ubend.training.build import ModelSetup, build
from ubend.training.checkpoint import Saver, TrainingState, load_state, run_bytes, save_state, save_trained
from ubend.training.custom_parts import NO_CUSTOM, CustomParts, LossFunction, take_custom_parts
from ubend.training.distributed import ALONE, ProcessGroup, join_processes
from ubend.training.distributed_runtime import DistributedRuntime, OverlappedReduction
from ubend.training.interrupts import stop_on_signals
from ubend.training.launcher import process_rank
from ubend.training.loop import PlainRuntime, Runtime, train
from ubend.training.memory import LimitedMemoryRuntime, refuse_single_values
from ubend.training.panels import EpochDrawing
from ubend.training.recorder import Recorder
from ubend.training.run_folder import INITIAL_MODEL, RunFolder, free_run_name
from ubend.training.trackers import check_tracker, track_run
from ubend.training.training import Training
from ubend.training.transfer import InitialModel, initialise_from


@dataclass(frozen=True)
class Scan:
    """The data set in the folder, and its facts.

    Attributes:
        data: pairs, class table, decoded images, splits.
        facts: inputs of the automatic choices.
    """

    data: Dataset
    facts: Facts


@dataclass(frozen=True)
class _Session:
    """Context of a run.

    Attributes:
        run: the run folder.
        processes: the processes that train together.
        reporter: reports progress.
        show: display each epoch's panel.
        watch: show the training on a local page.
        resumed: whether this resumes a run.
        initial: the model to initialise from, if any.
        custom: the user's own network and loss.
    """

    run: RunFolder
    processes: ProcessGroup
    reporter: Reporter
    show: bool
    watch: bool = False
    resumed: bool = False
    initial: InitialModel | None = None
    custom: CustomParts = NO_CUSTOM


def fit(
    folder: Path | str | None = None,
    out: Path | str | None = None,
    *,
    recipe: Recipe | None = None,
    config: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    show: bool = False,
    watch: bool = False,
    reporter: Reporter | None = None,
    **flags: Any,
) -> FitResult:
    """Train a U-Net on a folder of images and masks, score it, and write model, scores and logs to a run folder.

    Under torchrun all processes train together; only the first one reports and writes.

    Args:
        folder: images and masks in any of the layouts of docs/formats.md, or the name of a data set, or a
            `data.toml` of `ubend data`; None: given by `images` and `masks`.
        out: the run folder, new or empty; None: `runs/NAME-1`, `-2`, ...
        recipe: `modern` (default, unless `config` names another), `tutorial`: settings of the course text, with
            fixes, or `paper`: the original U-Net and its training.
        config: a TOML file of settings.
        settings: dotted key -> value of any settings, such as {"train.learning_rate": 3e-4}.
        show: also display each epoch's panel.
        watch: show curves and panels on a local page while training.
        flags: the other keywords of `ubend.fit`: images, masks, groups (arrays: `arrays_to_files`), network
            (`CustomNetwork`), loss (a function: `CustomLoss`), split, classes, size, ...
    Raises:
        UbendError: bad input; the message says what, where, and how to fix it.
    """
    custom = take_custom_parts(flags)
    if out is not None and process_rank().is_first:
        RunFolder(Path(out)).refuse_existing_results()
    with (
        join_processes() as processes,
        _rank_reporter(processes, reporter) as log,
        explain_out_of_memory(_memory_hint()),
    ):
        with processes.first_rank_first():  # a named data set is downloaded once
            requested = read_user_settings(folder, recipe, config, settings, flags, log)
        check_tracker(requested.settings.train.track)
        run = RunFolder(Path(out) if out is not None else free_run_name(Path(source_name(requested.settings))))
        with locked(run.path) if processes.is_first else nullcontext():
            session = _Session(run, processes, log, show, watch, initial=requested.initial, custom=custom)
            return _fit(session, requested.settings)


def resume(
    run: Path | str,
    *,
    network: nn.Module | None = None,
    loss: LossFunction | None = None,
    show: bool = False,
    watch: bool = False,
    reporter: Reporter | None = None,
) -> FitResult:
    """Resume an interrupted training, as if it had not been interrupted.

    Args:
        network, loss: the user's own network and loss, if the training uses them.
    Raises:
        OutputError: there is no run to resume, or it is from an older version.
        TrainingError: the images have changed since, or were moved.
    """
    folder = RunFolder(Path(run))
    started = folder.read_facts()
    settings = make_settings(config=read_config(folder.settings))
    refuse_moved_data(folder, settings)
    with join_processes() as processes, _rank_reporter(processes, reporter) as log:
        current = (describe_device(processes.pick_device(settings.device)), torch.get_num_threads(), torch.__version__)
        original = (started["device"], started["threads"], started["torch"])
        if original != current:
            line = _("note: started on {then}, continues with {now} (device, threads, torch): last digits may differ")
            log.report(line.format(then=", ".join(map(str, original)), now=", ".join(map(str, current))))
        if started["processes"] != processes.count:
            log.report(
                _(
                    "note: started in {then} processes, continues in {now}: each step uses the same images, but batch "
                    "norm sees a different number of them at a time"
                ).format(then=started["processes"], now=processes.count)
            )
        with locked(folder.path) if processes.is_first else nullcontext(), explain_out_of_memory(_memory_hint()):
            if processes.is_first:
                folder.clear_leftovers()
            session = _Session(folder, processes, log, show, watch, resumed=True, custom=CustomParts(network, loss))
            return _fit(session, settings)


def refuse_moved_data(run: RunFolder, settings: Settings) -> None:
    """Raise TrainingError if the folders of a run's images or masks no longer exist; DataError if they were arrays."""
    data = settings.data
    if data.images is not None:
        refuse_lost(Path(data.images))
    for key, place in {"folder": data.folder, "images": data.images, "masks": data.masks}.items():
        if place is not None and not Path(place).exists() and not glob.has_magic(place):
            line = _("{place}: no longer there; move it back, or change data.{key} in {settings} to its new place")
            raise TrainingError(line.format(place=place, key=key, settings=run.settings), path=place, key=f"data.{key}")


def _rank_reporter(processes: ProcessGroup, reporter: Reporter | None) -> Reporter:
    """The reporter; only the first process reports."""
    return (reporter or Reporter()) if processes.is_first else Reporter(Console(file=io.StringIO(), quiet=True))


def _memory_hint() -> str:
    """The out-of-memory message for cases in which a smaller micro-batch does not help."""
    return _("the device ran out of memory; use a smaller --size, or --device cpu")


def _fit(session: _Session, settings: Settings) -> FitResult:
    """Run all stages in order."""
    session.custom.check(settings)
    run, processes, reporter = session.run, session.processes, session.reporter
    prepare_process(settings.train.deterministic)
    device = processes.pick_device(settings.device)
    set_up(device, settings.train.deterministic)
    from_pretrained = not (session.resumed and run.state_path.exists())  # else all weights come from the saved state
    with warmed_up(device), processes.first_rank_first():  # the other processes reuse what the first one has decoded
        data_list = read_text(run.data) if session.resumed else None
        scanned = scan(settings, device, reporter, data_list, pretrained=from_pretrained)
    plan = resolve(settings, scanned.facts)
    processes.refuse_uneven(plan.train.batch)
    _report_start(session, scanned.data, plan, device)
    findings = report_quick_checks(reporter, scanned.data, settings) if processes.is_first else []
    prepared = prepare(scanned.data, plan, device, (processes.rank, processes.count), accelerate_augmentation(augment))
    built = build(scanned.data, plan, device, processes, pretrained=from_pretrained, custom=session.custom)
    if plan.train.border_weight:
        reporter.report(describe_objects(scanned.data))
    if note := prepared.validation.note():
        reporter.report(note)
    training, runtime = assemble(plan, scanned.data, prepared, built, reporter, processes)
    _check_disk_space(session, plan, training)
    if session.resumed:
        _restore(session, training.state, plan.train.epochs)
    else:
        _begin(session, plan, scanned.data, training.state, findings)
    processes.refuse_different(f"{scanned.data.store.hashes}{scanned.data.splits}{plan!r}{training.state.progress}")
    drawing = EpochDrawing(run, scanned.data, training, show=session.show)
    tracked = track_run(plan, run, reporter)
    watched = watch_page(run, plan.train.epochs, reporter) if session.watch and processes.is_first else nullcontext()
    with watched, tracked, Saver(run.state_path, partial(save_trained, run.model_path, built.bundle)) as saver:
        try:
            recorder = Recorder(run, saver, reporter, drawing, tracked=tracked, writes=processes.is_first)
            with stop_on_signals(processes) as stop_request:
                train(runtime, recorder, stop_request)
        except KeyboardInterrupt as interrupt:
            saver.wait()
            _report_interrupted(session, scanned.data, training)
            if signal.SIGTERM in interrupt.args:  # re-raise the deferred SIGTERM
                signal.raise_signal(signal.SIGTERM)
            return FitResult(run.path, None)
        processes.leave()
        if not processes.is_first:
            return FitResult(run.path, None)
        if training.state.progress.stop_reason:
            reporter.report(_("stopped early: {reason}").format(reason=training.state.progress.stop_reason))
        saver.begin(partial(_draw_curves, run, scanned.data, training.state))
        predictor = Predictor(load_bundle(run.model_path, session.custom.network), device)
        scores = evaluate(run, scanned.data, plan, predictor, reporter)
        tracked.finish(scores, len(training.state.progress.history))
    write_report(run.path, predictor=predictor)
    return FitResult(run.path, Scores(scores))


def scan(
    settings: Settings, device: torch.device, reporter: Reporter, split: str | None = None, *, pretrained: bool = True
) -> Scan:
    """Scan the folder that the settings name: pairs, labels, decoded images, splits, facts.

    Args:
        split: text of a run's data list, to take the split from; None: a new split.
        pretrained: download the encoder's pretrained weights first, if the settings ask for them.
    Raises:
        DataError: lists all problems of the folder.
        SettingError: the pretrained weights are unavailable.
        OutputError: the pretrained weights cannot be written.
        TrainingError: the images or masks differ from those of `split`.
    """
    model = choose_network(settings)[0].model
    pretrained = pretrained and is_pretrained(model)
    if pretrained:
        download_weights(model)
    data = open_dataset(settings, device.type, default_cache(), reporter)
    if split is not None:
        data = data.with_splits_of(split)
    # A resumed run has mean and standard deviation in its settings. 16-bit and float images have no white that a single
    # hot pixel could not change, so theirs are measured.
    is_8_bit = data.store.dtype == np.uint8
    mean_and_std = (
        pretrained_normalisation(str(model.encoder), data.store.channels) if pretrained and is_8_bit else None
    )
    return Scan(data, data.facts(device.type, fastest_precision(device), mean_and_std))


def assemble(
    plan: Plan,
    data: Dataset,
    prepared: TrainData,
    built: ModelSetup,
    reporter: Reporter,
    processes: ProcessGroup = ALONE,
) -> tuple[Training, Runtime]:
    """The training and its runtime, the fastest one for this device."""
    reduction, model = OverlappedReduction(processes), built.state.model
    compiled = compile_network(model, reporter) if plan.train.compile else None
    training = Training(
        plan.train,
        data.labels.names,
        prepared.batches,
        prepared.validation,
        accelerate_loss(built.loss),
        built.state,
        # only the fused U-Net calls the hook: the gradients of others are summed after the backward pass
        forward=compiled or accelerate_network(model, reduction.hook),
        forward_ema=accelerate_network(built.state.ema),
    )
    refuse_single_values(training)
    plain = PlainRuntime(training) if processes.count == 1 else DistributedRuntime(training, processes, reduction)
    return training, capture_steps(LimitedMemoryRuntime(plain, reporter), reporter)


def evaluate(run: RunFolder, data: Dataset, plan: Plan, predictor: Predictor, reporter: Reporter) -> dict[str, Any]:
    """Score the saved model on the test split, which is not used in training, else on the validation split."""
    split = data.scored_split
    pairs = data.pairs(split)
    if not pairs:
        raise DataError(_("no images to score"), path=run.path)
    reporter.report(_("scoring the {split} split, images: {count}").format(count=len(pairs), split=split))
    for line in describe_few(len(pairs), split):
        reporter.report(line)
    indices, store = data.indices(split).tolist(), data.store
    at_native_size = bool((store.shapes_hw[indices] == store.native_hw[indices]).all())

    def take_stored(position: int) -> DecodedImage:  # decoded data, as if read from the files
        if store.has_invalid[indices[position]]:  # only the file contains the invalid pixels at native size
            return DecodedImage(predictor.prepare(pairs[position].image))
        height, width = store.native_hw[indices[position]].tolist()
        image = TileSource.of_pixels(store.image(indices[position]), (height, width))
        return DecodedImage(image, store.mask(indices[position]) if at_native_size else None)

    can_take_stored = at_native_size or predictor.tiling is None
    measured = evaluate_pairs(predictor, pairs, decoded=take_stored if can_take_stored else None)
    images = identify_images(pairs, [store.hashes[index] for index in indices])
    scores = {"part": split, "recipe": plan.recipe, **measured, "images": images}
    write_json(run.scores, scores)
    return scores


def _report_start(session: _Session, data: Dataset, plan: Plan, device: torch.device) -> None:
    """Report the data, the main automatic choices and the device."""
    reporter, count = session.reporter, session.processes.count
    report_dataset(reporter, data)
    for line in describe_choices(plan.choices, session.run.path):
        reporter.report(line)
    message = _("device: {device}; threads: {count}") if device.type == "cpu" else _("device: {device}")
    reporter.report(message.format(device=describe_device(device), count=torch.get_num_threads()))
    if count > 1:
        reporter.report(
            _("processes: {count}, each with {share} of a step's {batch} images").format(
                count=count, share=plan.train.batch // count, batch=plan.train.batch
            )
        )


def _check_disk_space(session: _Session, plan: Plan, training: Training) -> None:
    """Raise OutputError if the disk has no room for the run."""
    if session.processes.is_first:  # the others write nothing
        size = run_bytes(training.state, plan.train, resumed=session.resumed)
        check_disk_space([DiskRequirement(session.run.path, size, _("choose another --out"))])


def _restore(session: _Session, state: TrainingState, epochs: int) -> None:
    """Continue from the run's saved state; tensors are filled in place, so what wraps the network sees it."""
    run = session.run
    if run.state_path.exists():
        load_state(run.state_path, state)
        done = len(state.progress.history) == epochs or state.progress.stop_reason
        session.reporter.report(
            _("the training was already finished; scoring it again")
            if done
            else _("resuming after step {step}").format(step=state.progress.step)
        )
    else:
        session.reporter.report(
            _("{run} ended before its first save, so the training starts from the beginning").format(run=run.path)
        )
    if session.processes.is_first:
        run.trim_timing(len(state.progress.history))


def _begin(session: _Session, plan: Plan, data: Dataset, state: TrainingState, findings: Sequence[Finding]) -> None:
    """Copy the initial model's weights, if there is one, and start the run folder."""
    run, reporter, initial = session.run, session.reporter, session.initial
    notes = [] if initial is None else initialise_from(initial, state, data.labels.names)
    for line in notes:
        reporter.report(line)
    if not session.processes.is_first:
        return
    run.create()
    run.started.touch()
    run.state_path.unlink(missing_ok=True)  # left by a killed start
    weights = initial, plan.model.weights, session.custom.network
    if plan.model.pretrained or any(start is not None for start in weights):
        save_state(run.state_path, state)  # --resume then works from the first step, without the initial model
    facts = {
        INITIAL_MODEL: initial and {"path": str(initial.path), "sha256": initial.sha256, "kept": notes},
        "began": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": describe_device(state.sums.device),
        "processes": session.processes.count,
    }
    write_findings(run.findings, findings)
    run.begin(plan, data, facts)


def _report_interrupted(session: _Session, data: Dataset, training: Training) -> None:
    run, state = session.run, training.state
    if not session.processes.is_first:
        return
    _draw_curves(run, data, state)
    if run.model_path.exists():
        message = _(
            "stopped after step {step} of {steps}; {model} has the best weights so far, and `ubend fit --resume {run}` "
            "continues"
        )
    else:  # a second Ctrl-C, before anything was saved
        message = _("stopped after step {step}, before a model was saved; `ubend fit --resume {run}` starts again")
    fields = {
        "step": state.progress.step,
        "steps": training.steps,
        "model": run.model_path,
        "run": shell_word(run.path),
    }
    session.reporter.report(message.format(**fields))


def _draw_curves(run: RunFolder, data: Dataset, state: TrainingState) -> None:
    if state.progress.history:
        draw_curves(state.progress.history, data.labels.names, run.curves)
