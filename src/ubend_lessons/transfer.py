"""Transfer learning: an encoder that learnt breeds first, then segmentation on few images and on many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ubend.accel.accelerate import accelerate_augmentation
from ubend.core.autoconfig import resolve
from ubend.core.device import fastest_precision
from ubend.core.errors import SettingError
from ubend.core.files import write_file
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.core.settings import change_settings
from ubend.dataset.augment import augment
from ubend.dataset.dataset import Dataset
from ubend.dataset.prepare import prepare
from ubend.drawing.panels import show_image
from ubend.evaluation.scores import DecodedImage, evaluate_pairs
from ubend.inference.predictor import Predictor
from ubend.inference.tiling import TileSource
from ubend.models.model_file import load_bundle, save_bundle
from ubend.models.unet import UNet
from ubend.tasks.fit import assemble
from ubend.training.build import build
from ubend.training.checkpoint import Saver, save_trained
from ubend.training.interrupts import stop_on_signals
from ubend.training.loop import train
from ubend.training.recorder import Recorder
from ubend.training.run_folder import RunFolder
from ubend.training.transfer import InitialModel, initialise_from, load_initial_model
from ubend_lessons.breeds import BreedNet, Breeds, measure_accuracy, open_breeds, prepare_lesson, train_breeds
from ubend_lessons.variants import SilentReporter

COUNTS = (50, 200)  # training images, and then all
_MORE = 10  # times the epochs, at most, for a part of the images: else it would be shown too few
_MAX_VALIDATED, _MAX_SCORED = 200, 1000  # images: enough to choose and to compare
_BREED_EPOCHS = 40


@dataclass(frozen=True)
class Row:
    """Dice on the test split, mean over images and classes without the background, by number of training images."""

    images: int
    scratch: float
    transferred: float


def teach_transfer(
    out: Path | str,
    *,
    folder: Path | str | None = None,
    counts: Sequence[int] = COUNTS,
    settings: Mapping[str, Any] | None = None,
    epochs: int = _BREED_EPOCHS,
    device: str | None = None,
    show: bool = False,
    reporter: Reporter,
) -> list[Row]:
    """Segmentation from scratch, and from an encoder trained to tell breeds, on few images and on all.

    The encoder learns the breeds of the whole training split, of which masks are then given for few; the test split
    is seen by neither. Writes `breeds.safetensors` (for `ubend fit --from`) and `transfer.png` into `out`.

    Args:
        folder: images and masks named after breeds; None: animals are drawn into `out`.
        counts: training images with masks; those that are not less than all are left out, and all come last.
        settings: over the lesson's own; `train.epochs` is for all images, fewer are shown more often.
        epochs: how often the training of breeds shows all images.
        device: cuda, mps or cpu; None: the fastest here.
    Raises:
        OutputError: `out` holds something already.
        SettingError: a count is not above 0.
        UbendError: see `open_breeds`.
    """
    if min(counts, default=1) < 1:
        raise SettingError(_("counts: each is a number of training images, 1 or more"), key="--counts")
    out, folder, chosen = prepare_lesson(out, folder, settings)
    breeds = open_breeds(folder, chosen, device)
    initial = out / "breeds.safetensors"
    accuracy = pretrain(breeds, initial, epochs)
    reporter.report(
        _("the encoder learnt {breeds} breeds from {count} images; on test images it is right for {share:.1%}").format(
            breeds=len(breeds.names), count=len(breeds.data.numbers("train")), share=accuracy
        )
    )
    whole = len(breeds.data.numbers("train"))
    rows = []
    for count in [*(count for count in sorted(counts) if count < whole), whole]:
        scratch = train_subset(breeds, count, None, out / f"scratch-{count}")
        row = Row(
            count, scratch, train_subset(breeds, count, load_initial_model(initial), out / f"transferred-{count}")
        )
        rows.append(row)
        reporter.report(
            _("{count} images: Dice {scratch:.3f} from scratch, {transferred:.3f} initialised from the encoder").format(
                count=count, scratch=row.scratch, transferred=row.transferred
            )
        )
    image = out / "transfer.png"
    _draw(rows, image)
    reporter.report(str(image))
    if show:
        show_image(image)
    return rows


def pretrain(breeds: Breeds, path: Path, epochs: int) -> float:
    """Train a U-Net's way down to tell breeds, and write the U-Net; its way up is as drawn. Returns the accuracy on
    the test split, 0..1.

    Raises:
        SettingError: the settings ask for another network than the U-Net.
    """
    bundle = build(breeds.data, breeds.plan, breeds.device).bundle
    if not isinstance(bundle.model, UNet):
        raise SettingError(_("the lesson trains the U-Net's own encoder; leave out model.encoder"), key="model.encoder")
    torch.manual_seed(breeds.plan.train.seed)
    net = BreedNet(bundle.model, len(breeds.names)).to(breeds.device)
    train_breeds(breeds, net, epochs)
    bundle.about["encoder"] = f"{len(breeds.names)} breeds"
    save_bundle(path, bundle)
    return measure_accuracy(breeds, net)


def train_subset(breeds: Breeds, count: int, initial: InitialModel | None, out: Path) -> float:
    """Train on some images of the training split, into a run folder; the model's Dice on the test split.

    Args:
        count: training images; the same ones whenever it is asked with the same count, spread over the breeds.
        initial: initial model; None: random weights.
    """
    data, device = _take_subset(breeds, count), breeds.device
    whole = len(breeds.data.numbers("train"))
    epochs = breeds.plan.train.epochs
    more = {"train.epochs": min(_MORE * epochs, round(epochs * whole / count))}
    more |= {"train.batch": min(breeds.plan.train.batch, count)}
    plan = resolve(change_settings(breeds.plan, more), data.facts(device.type, fastest_precision(device)))
    built = build(data, plan, device)
    if initial is not None:
        initialise_from(initial, built.state, data.labels.names)
    _training, runtime = assemble(
        plan, data, prepare(data, plan, device, augment=accelerate_augmentation(augment)), built, SilentReporter()
    )
    run = RunFolder(out)
    run.create()
    with Saver(run.state_path, partial(save_trained, run.model_path, built.bundle)) as saver, stop_on_signals() as stop:
        train(runtime, Recorder(run, saver, SilentReporter()), stop)
    return _score(breeds.data, Predictor(load_bundle(run.model_path), device))


def _take_subset(breeds: Breeds, count: int) -> Dataset:
    """The data with so few training images, one of each breed in turn, and not too many to validate on.

    The others are called test images, so that training looks at none; scores are made on the true test split.
    """
    data = breeds.data
    numbers = data.numbers("train")
    order = np.random.Generator(np.random.Philox(breeds.plan.train.seed)).permutation(len(numbers))
    turn: NDArray[np.int64] = np.zeros(len(numbers), np.int64)  # how many of its breed come before
    seen = [0] * len(breeds.names)
    for place in order:
        breed = breeds.of_image[numbers[place]]
        turn[place], seen[breed] = seen[breed], seen[breed] + 1
    kept = set(numbers[order[np.argsort(turn[order], kind="stable")]][:count].tolist())
    kept |= set(_evenly(data.numbers("val"), _MAX_VALIDATED).tolist())
    return replace(data, splits=tuple(p if number in kept else "test" for number, p in enumerate(data.splits)))


def _score(data: Dataset, predictor: Predictor) -> float:
    store, numbers = data.store, _evenly(data.numbers("test"), _MAX_SCORED).tolist()

    def take_stored(place: int) -> DecodedImage:
        height, width = store.native_hw[numbers[place]].tolist()
        return DecodedImage(TileSource.of_pixels(store.image(numbers[place]), (height, width)))

    scores = evaluate_pairs(predictor, [data.folder.pairs[number] for number in numbers], decoded=take_stored)
    return float(scores["native"]["dice"]["per_image"]["mean_foreground"])


def _evenly(numbers: NDArray[np.int64], maximum: int) -> NDArray[np.int64]:
    return numbers[:: -(-len(numbers) // maximum)]


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Dice against the number of training images, both ways."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    counts = [row.images for row in rows]
    axis.plot(counts, [row.scratch for row in rows], "o-", label=_("from scratch"))
    axis.plot(counts, [row.transferred for row in rows], "s-", label=_("initialised from an encoder that knows breeds"))
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_xlabel(_("training images with masks"))
    axis.set_ylabel(_("Dice on test images"))
    axis.set_ylim(0, 1)  # all of it, so that hundredths look like hundredths
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    write_file(path, lambda place: figure.savefig(place, format="png"))
