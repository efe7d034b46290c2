"""The faults of a much-copied U-Net tutorial: each is run as in the text and corrected, and compared.

E epochs, N images. Losses are mean cross entropies per pixel, nats; Dice is the mean over images and over the classes
without the background.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ubend.core.device import pick_device
from ubend.core.files import default_cache, refuse_existing_results, write_text
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.core.settings import RECIPES, flatten
from ubend.dataset.dataset import open_dataset
from ubend.dataset.prepare import prepare
from ubend.dataset.sample import draw_sample
from ubend.drawing.panels import show_image
from ubend.labels.class_table import IGNORED
from ubend.portable.images import save_png
from ubend.tasks.user_settings import read_user_settings
from ubend.training.build import build
from ubend_lessons.explain import draw_table, explain
from ubend_lessons.fault_data import HELD, ResizedData, size_images, write_images, write_leak
from ubend_lessons.fault_figures import draw_leak, draw_trimaps
from ubend_lessons.recorded import RecordedRun, train_recorded
from ubend_lessons.variants import SilentReporter

# The tutorial's loss, optimizer and choice of weights, without augmentation; takes a minute on two cores.
_QUICK: dict[str, Any] = {
    **dict(flatten(RECIPES["tutorial"])),
    "augment.kind": "none",
    "model.width": 8,
    "train.epochs": 12,
    "train.batch": 8,
    "train.precision": None,
}
_SAMPLE, _SAMPLE_PX = 60, 256  # images, and their side: twice the network's, so that masks have to be resized
_MAX_COPIED = 30  # images of which copies are made
_BLURRED = "blurred"  # prefix of the names of test images whose mask was resized bilinearly
FAULTS = ("leak", "choosing", "bilinear", "summed", "batch-means", "after-the-loop", "grey")  # in the lesson's order
# Such a small training on few drawn images does not overfit and is best at its end (docs/experiments.md).
_HIDDEN = ("leak", "choosing")
_RATE = 0.01  # learning rate of the step of plain gradient descent


@dataclass(frozen=True)
class Finding:
    """One measure of one fault, with and without the fault.

    Attributes:
        fault: one of `FAULTS`; not translated.
        measure: translated description.
        text: value as in the tutorial.
        mended: value without the fault.
        form: format specification of both values.
    """

    fault: str
    measure: str
    text: float
    mended: float
    form: str = ".3f"

    def row(self) -> list[str]:
        """The cells of a table row: the measure, both values, and their difference."""
        difference = self.text - self.mended
        sign = "+" if difference > 0 else ""
        figures = [f"{self.text:{self.form}}", f"{self.mended:{self.form}}"]
        return [self.measure, *figures, f"{sign}{difference:{self.form}}"]


def teach_faults(
    out: Path | str,
    *,
    folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    show: bool = False,
    reporter: Reporter,
) -> list[Finding]:
    """Measure, explain and draw the faults.

    Faults that the drawn sample cannot show (`_HIDDEN`) are not measured on it; recorded figures of real images are
    shown instead. Writes `faults.md`, `trimaps.png` (where bilinear resizing gives a wrong class) and `leak.png` (test
    items, and items of the same images in the training split) into `out`.

    Args:
        folder: 8-bit images and masks; None: a sample is drawn into `out`.
        settings: for all trainings; they override the lesson's own.
        device: cuda, mps or cpu; None: the fastest here.
    Raises:
        OutputError: `out` is not empty.
        DataError: see `size_images`.
    """
    out = refuse_existing_results(out)
    hidden: tuple[str, ...] = ()
    if folder is None:
        folder = out / "sample"
        draw_sample(folder, _SAMPLE, _SAMPLE_PX)
        hidden = _HIDDEN
    sized = read_sized(folder, settings)
    work_dir = out / "pictures"
    findings = find_faults(sized, work_dir, settings=settings, device=device, leave_out=hidden, reporter=reporter)
    lines = _describe_faults(findings, on_sample=bool(hidden))
    write_text(out / "faults.md", "\n".join(lines) + "\n")
    for line in lines:
        reporter.report(line)
    images = {"trimaps": draw_trimaps(sized), "leak": draw_leak(work_dir / "leak")}
    for name, image in images.items():
        save_png(image, out / f"{name}.png")
        reporter.report(str(out / f"{name}.png"))
        if show:
            show_image(image)
    return findings


def _describe_faults(findings: list[Finding], *, on_sample: bool) -> list[str]:
    """The lines on each fault: its explanation, the values measured in this run, and the recorded figures.

    On the drawn sample, rows with equal values are left out, unless their equality is the lesson.
    """
    heading = [_("measured in this run"), _("as the text does"), _("corrected"), _("difference")]
    lines = []
    for fault in FAULTS:
        rows = [one.row() for one in findings if one.fault == fault]
        if on_sample and fault != "summed":
            rows = [row for row in rows if row[1] != row[2]]
        lines += explain(f"fault-{fault}") + (["", *draw_table([heading, *rows])] if rows else [])
    return lines[1:]


def read_sized(folder: Path | str, settings: Mapping[str, Any] | None = None) -> ResizedData:
    """The images of a folder at the network's size; for errors see `size_images`."""
    wanted = read_user_settings(folder, settings={**_QUICK, **(settings or {})}).settings
    return size_images(open_dataset(wanted, "cpu", default_cache(), SilentReporter()))


def find_faults(
    sized: ResizedData,
    work_dir: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    copied: int = _MAX_COPIED,
    leave_out: Collection[str] = (),
    reporter: Reporter,
) -> list[Finding]:
    """Run up to four trainings (plain, grey, on bilinear masks, on leaking copies), and measure every fault.

    Args:
        sized: images and masks.
        work_dir: folder to create for the training images.
        settings, device: see `teach_faults`.
        copied: largest number of images of which copies are made; each gives five training images.
        leave_out: faults (of `FAULTS`) that are not measured; leaking copies are written anyway, for the drawing.
    Raises:
        UbendError: see `train_recorded`.
    """
    chosen = {**_QUICK, **(settings or {})}
    quiet = SilentReporter()
    # settings such as data.values apply to the given folder; the folders written here have their own
    own = {key: value for key, value in chosen.items() if not key.startswith("data.")}
    own |= {"data.size": sized.images.shape[1], "data.resize": "squash"}
    seed = int(chosen.get("train.seed", 0))

    def learn(what: str, written: Mapping[str, Any]) -> RecordedRun:
        reporter.report(_("training: {what}").format(what=what))
        return train_recorded(written["data.folder"], {**own, **written}, device=device, reporter=quiet)

    plain_files = _write_plain(work_dir / "plain", sized)
    plain = learn(_("plain"), plain_files)
    findings = [*_batch_means(plain), *_after_the_loop(plain), *_summed(plain, device)]
    if "choosing" not in leave_out:
        findings = [*_choosing(plain), *findings]
    if sized.images.shape[3] == 3:
        findings += _grey(learn(_("grey images"), {**plain_files, "data.channels": 1}), plain)
    findings += _resized(sized, learn(_("bilinear masks"), _write_blurred(work_dir / "blurred", sized)), plain)
    leak_files = write_leak(work_dir / "leak", sized, copied, seed)
    if "leak" in leave_out:
        return findings
    leak_files["train.epochs"] = max(1, 2 * own["train.epochs"] // 3)  # an epoch has several copies of each image
    return [*_leak(learn(_("copies made before the split"), leak_files)), *findings]


def mean_of_batches(losses: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
    """The tutorial's epoch loss: the mean of batch means, in which images of a smaller last batch have more weight.

    Args:
        losses: (E, N) mean loss of each image, in the order of the batches.
        batch: batch size.
    Returns:
        (E,) loss of each epoch.
    """
    starts = range(0, losses.shape[1], batch)
    return np.asarray(np.mean([losses[:, start : start + batch].mean(axis=1) for start in starts], axis=0))


def _write_plain(root: Path, sized: ResizedData) -> dict[str, Any]:
    names = [f"{index:05d}" for index in range(len(sized.images))]
    return write_images(root, sized.images, sized.masks, names, sized.splits, sized.labels)


def _write_blurred(root: Path, sized: ResizedData) -> dict[str, Any]:
    """Write masks resized bilinearly; test images are also written with masks resized by nearest pixel."""
    test = np.flatnonzero(np.array(sized.splits) == "test")
    names = [f"{_BLURRED if p == 'test' else 'learnt'}-{n:05d}" for n, p in enumerate(sized.splits)]
    return write_images(
        root,
        np.concatenate([sized.images, sized.images[test]]),
        np.concatenate([sized.blurred, sized.masks[test]]),
        [*names, *(f"true-{number:05d}" for number in test)],
        [*sized.splits, *["test"] * len(test)],
        sized.labels,
    )


def _leak(leaking: RecordedRun) -> list[Finding]:
    held = np.array([name.startswith(HELD) for name in leaking.names])
    siblings = ~held & ~leaking.is_val
    originals = held & np.array([Path(name).stem.endswith("-0") for name in leaking.names])
    epoch = leaking.best_epoch(leaking.is_val)
    pairs = leaking.data.folder.pairs
    trained = {_image_of(pairs[number].name) for number in leaking.data.indices("train")}
    known = float(np.mean([_image_of(name) in trained for name in leaking.names[siblings]]))
    dice = leaking.dice(epoch, siblings)
    return [
        Finding("leak", _("leak: test items with a copy of the same image in training"), known, 0.0, ".0%"),
        Finding("leak", _("leak: Dice; corrected: copies of new images"), dice, leaking.dice(epoch, held)),
        Finding("leak", _("leak: Dice; corrected: new images only"), dice, leaking.dice(epoch, originals)),
        Finding(
            "leak",
            _("leak: loss; corrected: copies of new images"),
            float(leaking.losses[epoch, siblings].mean()),
            float(leaking.losses[epoch, held].mean()),
        ),
    ]


def _image_of(name: str) -> str:
    """`copy-00012-3.png` -> `00012`."""
    return name.split("-")[1]


def _choosing(plain: RecordedRun) -> list[Finding]:
    test = ~plain.is_val
    wrong, right = plain.best_epoch(test), plain.best_epoch(plain.is_val)
    losses = plain.losses[:, test].mean(axis=1)
    return [
        Finding("choosing", _("weights chosen on the test set: its loss"), float(losses[wrong]), float(losses[right])),
        Finding(
            "choosing",
            _("weights chosen on the test set: its Dice"),
            plain.dice(wrong, test),
            plain.dice(right, test),
        ),
        Finding("choosing", _("weights chosen on the test set: epoch"), wrong + 1, right + 1, ".0f"),
    ]


def _batch_means(plain: RecordedRun) -> list[Finding]:
    """The fault of batch means, on the validation split, by which the epoch is chosen."""
    losses = plain.losses[:, plain.is_val]
    batch = plain.plan.train.batch
    wrong, right = mean_of_batches(losses, batch), losses.mean(axis=1)
    worst = int(np.abs(wrong - right).argmax())
    last = losses.shape[1] % batch or min(batch, losses.shape[1])
    words = _("mean of batch means, last batch of {last} instead of {batch}: loss in the epoch with the largest error")
    return [
        Finding(
            "batch-means",
            words.format(last=last, batch=min(batch, losses.shape[1])),
            float(wrong[worst]),
            float(right[worst]),
            ".4f",
        ),
        Finding(
            "batch-means",
            _("mean of batch means: epoch chosen"),
            int(wrong.argmin()) + 1,
            int(right.argmin()) + 1,
            ".0f",
        ),
    ]


def _after_the_loop(plain: RecordedRun) -> list[Finding]:
    losses = plain.losses[:, plain.is_val]
    batch = plain.plan.train.batch
    start = (losses.shape[1] - 1) // batch * batch
    return [
        Finding("after-the-loop", _("losses kept after the loop: points of the curve"), 1, len(losses), ".0f"),
        Finding(
            "after-the-loop",
            _("losses kept after the loop: loss of the last batch instead of the epoch"),
            float(losses[-1, start:].mean()),
            float(losses[-1].mean()),
        ),
        Finding(
            "after-the-loop",
            _("losses kept after the loop: loss of the last epoch instead of the kept weights"),
            float(losses[-1].mean()),
            float(losses.mean(axis=1).min()),
        ),
    ]


def _summed(plain: RecordedRun, device: str | None) -> list[Finding]:
    """Cross entropy summed over each image (and averaged over the batch), compared with its mean over the pixels."""
    where = pick_device(device)
    built = build(plain.data, plain.plan, where)
    loss, state = built.loss, built.state
    batch = prepare(plain.data, plain.plan, where).batches.sample(0)
    counts = loss.count(batch.target, plain.data.labels.classes)
    pixels = float(counts.pixels) / len(batch.target)

    def measure(factor: float) -> tuple[float, float, float]:
        """Gradient norm, loss after a step of gradient descent, and largest change of a weight by Adam's first step."""
        found = []
        for make in (
            lambda weights: torch.optim.SGD(weights, lr=_RATE),
            lambda weights: torch.optim.Adam(weights, lr=0.001),
        ):
            model = copy.deepcopy(state.model).train()
            before = [weight.detach().clone() for weight in model.parameters()]
            optimizer = make(model.parameters())
            value = loss.mean(loss.sum(model(batch.image), batch.target), counts) * factor
            value.backward()  # type: ignore[no-untyped-call]
            lengths = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
            norm = float(torch.stack(lengths).norm())
            optimizer.step()
            with torch.no_grad():
                after = float(loss.mean(loss.sum(model(batch.image), batch.target), counts))
                moved = max(float((w - b).abs().max()) for w, b in zip(model.parameters(), before, strict=True))
            found.append((norm, after, moved))
        return found[0][0], found[0][1], found[1][2]

    (norm, after, moved), (mean_norm, mean_after, mean_moved) = measure(pixels), measure(1.0)
    rate = plain.plan.train.learning_rate
    words = _("summed loss: loss after one step of plain gradient descent with learning rate {rate:g}")
    return [
        Finding("summed", _("summed loss: norm of the gradient"), norm, mean_norm, ".3g"),
        Finding("summed", words.format(rate=_RATE), after, mean_after, ".3g"),
        Finding(
            "summed",
            _("summed loss: learning rate for the same step of plain gradient descent"),
            rate / pixels,
            rate,
            ".2g",
        ),
        Finding("summed", _("summed loss: largest change of a weight by Adam's first step"), moved, mean_moved, ".2g"),
    ]


def _grey(grey: RecordedRun, plain: RecordedRun) -> list[Finding]:
    one, other = (run.dice(run.best_epoch(run.is_val), ~run.is_val) for run in (grey, plain))
    return [Finding("grey", _("grey instead of colour: Dice"), one, other)]


def _resized(sized: ResizedData, blurred: RecordedRun, plain: RecordedRun) -> list[Finding]:
    scored = sized.masks != IGNORED
    wrong = float((sized.blurred != sized.masks)[scored].mean())
    unknown = float(sized.unknown[scored].mean())
    epoch = blurred.best_epoch(blurred.is_val)
    own = np.array([name.startswith(_BLURRED) for name in blurred.names]) & ~blurred.is_val
    true = ~own & ~blurred.is_val
    right = plain.dice(plain.best_epoch(plain.is_val), ~plain.is_val)
    return [
        Finding("bilinear", _("masks resized bilinearly: pixels of a wrong class"), wrong, 0.0, ".2%"),
        Finding("bilinear", _("masks resized bilinearly: pixels whose value is not a class"), unknown, 0.0, ".2%"),
        Finding("bilinear", _("masks resized bilinearly: Dice on such masks"), blurred.dice(epoch, own), right),
        Finding("bilinear", _("masks resized bilinearly: Dice on true masks"), blurred.dice(epoch, true), right),
    ]
