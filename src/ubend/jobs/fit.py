"""The main job: a folder of pictures and masks in; a trained, scored model in a run folder out.

understand the folder -> choose -> make the network -> train -> score -> write
"""

import copy
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import ubend
from ubend.choices import Choice, choose_training
from ubend.config import Settings, dump_toml, make_settings, read_config
from ubend.data.batches import Pictures, TrainingBatches
from ubend.data.dataset import Dataset, open_dataset
from ubend.data.store import default_cache
from ubend.device import describe_device, fastest_precision, free_bytes, pick_device, prepare_process, settle
from ubend.drawing.curves import draw_curves
from ubend.drawing.overlay import color_mask, to_rgb
from ubend.drawing.panels import draw_grid, save_png, show_picture
from ubend.errors import DataError, OutputError, SettingError
from ubend.evaluation.evaluate import evaluate_pairs
from ubend.files import write_json, write_text
from ubend.inference.predictor import Predictor
from ubend.language import _
from ubend.model.bundle import Bundle, load_bundle, save_bundle
from ubend.model.unet import UNet
from ubend.teller import Teller
from ubend.training.checkpoint import Progress, TrainingState, load_state
from ubend.training.loop import Job, steps_until, train
from ubend.training.run_folder import RunFolder, free_run_name
from ubend.training.schedule import make_optimizer

# The words of the flags and of `ubend.fit(...)`, and the settings that they stand for.
FLAGS = {
    "split": "data.split",
    "classes": "data.classes",
    "size": "data.size",
    "width": "model.width",
    "skips": "model.skips",
    "epochs": "train.epochs",
    "batch": "train.batch",
    "patience": "train.patience",
    "seed": "train.seed",
    "device": "device",
    "deterministic": "train.deterministic",
}
_PANEL_PICTURES = 3  # of the validation part, in each epoch's panel
_RESIDENT_SHARE = 0.4  # of a GPU's free memory that pictures may take
_RESIDENT_CPU_BYTES = 2**30  # on the CPU the memory-mapped store is as good; a copy only saves the gathering


@dataclass(frozen=True)
class FitResult:
    """What a training left.

    Attributes:
        run: the run folder.
        scores: as in scores.json; None when training was interrupted before scoring.
    """

    run: Path
    scores: dict[str, Any] | None


def fit(
    folder: Path | str,
    out: Path | str | None = None,
    *,
    recipe: Literal["modern", "tutorial"] = "modern",
    config: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    show: bool = False,
    teller: Teller | None = None,
    **flags: Any,
) -> FitResult:
    """Train a U-Net on a folder of pictures and masks, score it, and write all of it to a run folder.

    Args:
        folder: pictures and masks in any of the layouts of docs/formats.md.
        out: the run folder, new or empty; None: `runs/NAME-1`, `-2`, ...
        recipe: `modern`, or `tutorial` (the course text's settings, its faults mended).
        config: a TOML file of settings.
        settings: any setting by its dotted key, such as {"train.learning_rate": 3e-4}.
        show: also display each epoch's panel.
        flags: the words of the command line: split, classes, size, width, skips, epochs, batch,
            patience, seed, device, deterministic.
    Raises:
        UbendError: bad input; the message says what, where, and how to mend it.
    """
    changes = {FLAGS.get(key, key): value for key, value in flags.items() if value is not None}
    given = read_config(Path(config)) if config is not None else None
    chosen = make_settings(recipe, given, changes | dict(settings or {}))
    run = RunFolder(Path(out) if out is not None else free_run_name(Path(folder)))
    run.refuse_taken()
    with teller or Teller() as voice:
        return _fit(Path(folder), run, chosen, voice, show, resumed=False)


def resume(run: Path | str, *, show: bool = False, teller: Teller | None = None) -> FitResult:
    """Go on with an interrupted training, as if it had never stopped.

    Raises:
        OutputError: there is no run to go on with.
        TrainingError: the pictures have changed since.
    """
    folder = RunFolder(Path(run))
    try:
        facts = json.loads(folder.facts.read_text(encoding="utf-8"))
        where, began_with = Path(facts["folder"]), (facts["threads"], facts["torch"])
        folder.data.stat()
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            _("{path}: no run to go on with ({name}: {reason}); begin one with `ubend fit FOLDER --out NEW`").format(
                path=run, name=folder.facts.name, reason=reason
            )
        ) from error
    chosen = make_settings(config=read_config(folder.settings))
    with teller or Teller() as voice:
        if began_with != (torch.get_num_threads(), torch.__version__):
            voice.say(_("other threads or another torch than when the run began: the result may differ in last digits"))
        folder.clear_leftovers()
        return _fit(where, folder, chosen, voice, show, resumed=True)


def _fit(folder: Path, run: RunFolder, settings: Settings, teller: Teller, show: bool, resumed: bool) -> FitResult:
    prepare_process(settings.train.deterministic)
    device = pick_device(settings.device)
    settle(device, settings.train.deterministic)
    data = open_dataset(folder, settings, device.type, default_cache(), teller)
    if resumed:
        data = data.with_parts_of(run.data.read_text(encoding="utf-8"))
    settings, choices = choose_training(data.settings, data.facts(device.type, fastest_precision(device)))
    _introduce(teller, data, [*data.choices, *choices], describe_device(device))

    bundle, state = make_state(data, settings, device)
    batches, validation = make_batches(data, settings, device)
    _refuse_lone_values(batches, settings)
    if resumed and run.state.exists():
        load_state(run.state, state)
        teller.say(_("going on after step {step}").format(step=state.progress.step))
    if not resumed:
        run.create()
        _write_facts(run, folder, data, settings, choices, device)
    epochs = settings.train.epochs or 1
    job = Job(
        batches,
        validation,
        data.labels.names,
        settings.train,
        steps_until(epochs, batches.items, settings.train.batch or 1),
        run,
        lambda state: _draw_epoch(run, data, validation, state, show),
        lambda weights: save_bundle(run.model, bundle, weights),
    )
    try:
        train(job, state, teller)
    except KeyboardInterrupt:
        if run.model.exists():
            said = _("stopped after step {step}; {model} is usable, and `ubend fit --resume {run}` goes on")
        else:  # a second Ctrl-C, before anything was saved
            said = _("stopped after step {step}, before a model was saved; `ubend fit --resume {run}` begins anew")
        teller.say(said.format(step=state.progress.step, model=run.model, run=run.path))
        return FitResult(run.path, None)
    if state.progress.stopped:
        teller.say(_("stopped early: {reason}").format(reason=state.progress.stopped))
    if state.progress.history:
        draw_curves(state.progress.history, data.labels.names, run.curves)
    scores = _score(run, data, settings, device, teller)
    return FitResult(run.path, scores)


def make_state(data: Dataset, settings: Settings, device: torch.device) -> tuple[Bundle, TrainingState]:
    """The network with its first weights, drawn on the CPU so that every device starts alike."""
    _low, high = data.value_range()
    mean, std = data.mean_std()
    if settings.data.mean is not None and settings.data.std is not None:
        if len(settings.data.mean) != data.store.channels:
            raise SettingError(
                _(
                    "data.mean and data.std have {count} numbers, but the pictures are read with {channels} channels"
                ).format(count=len(settings.data.mean), channels=data.store.channels)
            )
        mean = [m * white for m, white in zip(settings.data.mean, high, strict=True)]
        std = [s * white for s, white in zip(settings.data.std, high, strict=True)]
    width = settings.model.width or 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.train.seed)
        net = UNet(
            data.store.channels,
            data.labels.classes,
            width,
            settings.model.depth,
            settings.model.skips,
            mean=mean,
            std=std,
        )
    model: UNet = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average: nn.Module = copy.deepcopy(model).requires_grad_(False) if settings.train.average_decay else model
    about = {
        "ubend": ubend.__version__,
        "data": data.folder.root.name,
        "recipe": settings.recipe,
        "trained_on": f"{len(data.numbers('train'))} pictures",
    }
    state = TrainingState(
        model,
        average,
        make_optimizer(model, settings.train),
        {},
        torch.zeros(4, dtype=torch.float64, device=device),
        Progress(),
    )
    return Bundle(model, data.labels, data.layout, about), state


def make_batches(data: Dataset, settings: Settings, device: torch.device) -> tuple[TrainingBatches, Pictures]:
    """The training part as batches, and the pictures of the validation part; on the device if they fit."""
    room = _RESIDENT_CPU_BYTES if device.type == "cpu" else int(_RESIDENT_SHARE * free_bytes(device))
    lookup = data.labels.lookup()
    training = Pictures(data.store, data.numbers("train"), lookup, device, room)
    validation = Pictures(data.store, data.numbers("val"), lookup, device, room - training.bytes)
    batches = TrainingBatches(
        training,
        settings.augment,
        settings.train.seed,
        settings.train.batch or 1,
        window_size(training, settings),
        data.value_range(),
    )
    return batches, validation


def _refuse_lone_values(batches: TrainingBatches, settings: Settings) -> None:
    """Batch norm needs two values per channel, also at the deepest level, where a picture is smallest."""
    multiple, batch = 2**settings.model.depth, settings.train.batch or 1
    micro = min(settings.train.micro_batch or batch, batch)
    smallest = batch % micro or micro
    if smallest * math.prod(math.ceil(side / multiple) for side in batches.window_hw) < 2:
        raise SettingError(
            _(
                "train.batch = {batch} (in steps of {micro}) leaves one picture of a single pixel at the deepest of "
                "{depth} levels; use a larger --batch, a larger --size or a smaller model.depth"
            ).format(batch=batch, micro=micro, depth=settings.model.depth)
        )


def window_size(pictures: Pictures, settings: Settings) -> tuple[int, int]:
    """(H, W) of a training picture: the middle one of the pictures' sizes, or `data.window` if less."""
    multiple = 2**settings.model.depth
    height, width = (int(v) for v in np.median(pictures.shapes_hw, axis=0))
    height, width = (multiple * max(1, round(side / multiple)) for side in (height, width))
    if settings.augment.kind != "warp":
        return pictures.canvas_hw
    window = settings.data.window
    return (height, width) if window is None else (min(window, height), min(window, width))


def _introduce(teller: Teller, data: Dataset, choices: list[Choice], device: str) -> None:
    """Say what was understood and chosen, before anything slow happens."""
    counts = {part: len(data.numbers(part)) for part in ("train", "val", "test")}
    teller.say(_("{folder}: {layout}").format(folder=data.folder.root, layout=data.folder.layout))
    teller.say(_("pictures: {train} training, {val} validation, {test} test").format(**counts))
    shares = data.store.mask_pixels.sum(axis=0)
    total = max(1, int(shares.sum()))
    index = data.labels.lookup()
    teller.say(_("mask values: {mapping}").format(mapping=data.labels.describe()))
    teller.say(
        _("class shares: {shares}").format(
            shares=", ".join(
                f"{name} {shares[index == number].sum() / total:.1%}" for number, name in enumerate(data.labels.names)
            )
        )
    )
    for remark in data.remarks:
        teller.say(_("note: {remark}").format(remark=remark))
    for choice in choices:
        teller.say(_("chosen: {choice}").format(choice=choice.line()))
    teller.say(_("device: {device}").format(device=device))


def _write_facts(
    run: RunFolder, folder: Path, data: Dataset, settings: Settings, choices: list[Choice], device: torch.device
) -> None:
    write_text(run.settings, dump_toml(settings))
    write_text(run.data, data.table())
    facts = {
        "folder": str(folder.resolve()),
        "layout": data.folder.layout,
        "classes": data.labels.to_json(),
        "remarks": data.remarks,
        "choices": [choice.line() for choice in [*data.choices, *choices]],
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "ubend": ubend.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    write_json(run.facts, facts)  # last: a run folder with it is whole


def _draw_epoch(run: RunFolder, data: Dataset, validation: Pictures, state: TrainingState, show: bool) -> None:
    """The panel of an epoch: the same validation pictures every time, input | prediction | truth."""
    count = min(_PANEL_PICTURES, len(validation))
    items = np.unique(np.linspace(0, len(validation) - 1, count).astype(np.int64))
    image, target = validation.take(items)
    state.average.eval()
    with torch.inference_mode():
        index = state.average(image.float()).argmax(dim=1).to(torch.uint8).cpu().numpy()
    colors, rows, labels = data.labels.colors, [], []
    for slot, item in enumerate(items):
        h, w = validation.shapes_hw[item]
        number = int(validation.numbers[item])
        truth = target[slot, :h, :w].cpu().numpy()
        rows.append(
            [to_rgb(data.store.image(number)), color_mask(index[slot, :h, :w], colors), color_mask(truth, colors)]
        )
        labels.append(data.folder.pairs[number].name)
    epoch = state.progress.history[-1]["epoch"]
    panel = draw_grid(
        rows,
        [_("input"), _("prediction after epoch {epoch}").format(epoch=epoch), _("truth")],
        labels,
        legend=list(zip(data.labels.names, colors, strict=True)),
    )
    save_png(panel, run.panel(epoch))
    if show:
        show_picture(panel)


def _score(run: RunFolder, data: Dataset, settings: Settings, device: torch.device, teller: Teller) -> dict[str, Any]:
    """Score the saved model on the test part, which nothing has looked at before."""
    part = data.score_part
    pairs = data.pairs(part)
    if not pairs:
        raise DataError(_("no pictures to score"))
    teller.say(_("scoring {count} pictures of the part {part}").format(count=len(pairs), part=part))
    predictor = Predictor(load_bundle(run.model), device)
    scores = {"part": part, "recipe": settings.recipe, **evaluate_pairs(predictor, pairs)}
    write_json(run.scores, scores)
    return scores
