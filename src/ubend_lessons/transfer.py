"""The lesson on transfer learning: an encoder trained on breeds, then segmentation with few and with many masks."""

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
from ubend.models.model_file import load_bundle, save_bundle
from ubend.models.unet import UNet
from ubend.portable.tiling import TileSource
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

COUNTS = (50, 200)  # numbers of training images, before all
_MORE = 10  # largest factor of the number of epochs for fewer images, which would otherwise give too few steps
_MAX_VALIDATED, _MAX_SCORED = 200, 1000  # images: enough to choose weights and to compare
_BREED_EPOCHS = 40


@dataclass(frozen=True)
class Row:
    """Dice on the test split (mean over images and over the classes without background) for a number of images."""

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
    """Compare segmentation from scratch and from an encoder trained on breeds, with few images and with all.

    The encoder is trained on the breeds of the whole training split; for segmentation, masks of only some of its images
    are used. The test split is used by neither. Writes `breeds.safetensors` (for `ubend fit --from`) and `transfer.png`
    into `out`.

    Args:
        folder: images and masks named after breeds; None: animals are drawn into `out`.
        counts: numbers of training images with masks; numbers that are too large are left out; all images come last.
        settings: override the lesson's own; `train.epochs` is for all images, fewer are shown more often.
        epochs: number of epochs of the training on breeds.
        device: cuda, mps or cpu; None: the fastest here.
    Raises:
        OutputError: `out` is not empty.
        SettingError: a count is not above 0.
        UbendError: see `open_breeds`.
    """
    if min(counts, default=1) < 1:
        raise SettingError(_("counts: give numbers of training images, each at least 1"), key="--counts")
    out, folder, chosen = prepare_lesson(out, folder, settings)
    breeds = open_breeds(folder, chosen, device)
    initial = out / "breeds.safetensors"
    accuracy = pretrain(breeds, initial, epochs)
    reporter.report(
        _(
            "the encoder was trained on {breeds} breeds with {count} images; accuracy on test images: {share:.1%}"
        ).format(breeds=len(breeds.names), count=len(breeds.data.indices("train")), share=accuracy)
    )
    whole = len(breeds.data.indices("train"))
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
    """Train the encoder of a U-Net on breeds, and write the U-Net; its decoder keeps its random weights.

    Returns:
        The accuracy on the test split, 0..1.
    Raises:
        SettingError: the network of the settings is not the plain U-Net.
    """
    bundle = build(breeds.data, breeds.plan, breeds.device).bundle
    if not isinstance(bundle.model, UNet):
        raise SettingError(
            _("this lesson trains the encoder of the plain U-Net; leave out model.encoder"), key="model.encoder"
        )
    torch.manual_seed(breeds.plan.train.seed)
    net = BreedNet(bundle.model, len(breeds.names)).to(breeds.device)
    train_breeds(breeds, net, epochs)
    bundle.about["encoder"] = f"{len(breeds.names)} breeds"
    save_bundle(path, bundle)
    return measure_accuracy(breeds, net)


def train_subset(breeds: Breeds, count: int, initial: InitialModel | None, out: Path) -> float:
    """Train on some images of the training split, into a run folder; returns the Dice on the test split.

    Args:
        count: number of training images, spread over the breeds; the same number always gives the same images.
        initial: the model to initialise from; None: random weights.
        out: the run folder.
    """
    data, device = _take_subset(breeds, count), breeds.device
    whole = len(breeds.data.indices("train"))
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
    """The data with `count` training images, taken from each breed in turn, and a limited number of validation images.

    All other images are marked as test images, so that the training does not use them; scores are computed on the true
    test split.
    """
    data = breeds.data
    numbers = data.indices("train")
    order = np.random.Generator(np.random.Philox(breeds.plan.train.seed)).permutation(len(numbers))
    turn: NDArray[np.int64] = np.zeros(len(numbers), np.int64)  # how many images of the same breed come before
    seen = [0] * len(breeds.names)
    for place in order:
        breed = breeds.of_image[numbers[place]]
        turn[place], seen[breed] = seen[breed], seen[breed] + 1
    kept = set(numbers[order[np.argsort(turn[order], kind="stable")]][:count].tolist())
    kept |= set(_evenly(data.indices("val"), _MAX_VALIDATED).tolist())
    return replace(data, splits=tuple(p if index in kept else "test" for index, p in enumerate(data.splits)))


def _score(data: Dataset, predictor: Predictor) -> float:
    store, numbers = data.store, _evenly(data.indices("test"), _MAX_SCORED).tolist()

    def take_stored(place: int) -> DecodedImage:
        height, width = store.native_hw[numbers[place]].tolist()
        return DecodedImage(TileSource.of_pixels(store.image(numbers[place]), (height, width)))

    scores = evaluate_pairs(predictor, [data.folder.pairs[number] for number in numbers], decoded=take_stored)
    return float(scores["native"]["dice"]["per_image"]["mean_foreground"])


def _evenly(numbers: NDArray[np.int64], maximum: int) -> NDArray[np.int64]:
    return numbers[:: -(-len(numbers) // maximum)]


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Plot the Dice over the number of training images, from scratch and with transfer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    counts = [row.images for row in rows]
    axis.plot(counts, [row.scratch for row in rows], "o-", label=_("from scratch"))
    axis.plot(counts, [row.transferred for row in rows], "s-", label=_("initialised from an encoder trained on breeds"))
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_xlabel(_("training images with masks"))
    axis.set_ylabel(_("Dice on test images"))
    axis.set_ylim(0, 1)  # the whole range, so that small differences look small
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    write_file(path, lambda place: figure.savefig(place, format="png"))
