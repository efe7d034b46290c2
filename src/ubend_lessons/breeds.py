"""The lesson on breeds: recognise them with the encoder of a segmentation network, with and without the mask.

The file name contains the breed: `Abyssinian_12.jpg`. N images, C channels, H x W pixels.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.accel.accelerate import accelerate_augmentation
from ubend.core.autoconfig import resolve
from ubend.core.device import pick_device, set_up
from ubend.core.errors import DataError, SettingError
from ubend.core.files import refuse_existing_results
from ubend.core.i18n import _
from ubend.core.plan import Plan
from ubend.core.progress import Reporter
from ubend.dataset.augment import ITEM, augment
from ubend.dataset.dataset import Dataset
from ubend.dataset.prepare import prepare
from ubend.dataset.sources import WholeImages
from ubend.drawing.panels import draw_grid, show_image
from ubend.labels.class_table import background_class
from ubend.models.model_file import load_bundle
from ubend.models.segmentation_net import pad_to_multiple
from ubend.models.unet import UNet
from ubend.portable.images import save_png
from ubend.portable.overlay import to_rgb
from ubend.tasks.fit import fit, scan
from ubend.tasks.user_settings import read_user_settings
from ubend.training.optim import learning_rate_at, make_optimizer
from ubend.training.training import autocast
from ubend_lessons.drawn_pets import draw_pets
from ubend_lessons.plain_unet import PLAIN_UNET
from ubend_lessons.variants import SilentReporter

View = Literal["whole", "pixels", "cut"]
VIEWS: tuple[View, ...] = ("whole", "pixels", "cut")
# About a minute on two cores with drawn animals; images are squashed to one size.
QUICK: dict[str, Any] = {**PLAIN_UNET, "data.size": 64, "data.resize": "squash", "data.test_share": 0.3}
QUICK |= {"model.width": 8, "train.epochs": 25, "train.batch": 16}
_BREED_EPOCHS = 40
_MIN_SHARE = 1e-3  # weight of pixels outside the animal: if no animal is found, the whole image is used
_CHUNK = 64  # images in one forward pass without gradients
_SHOWN = 4


class BreedNet(nn.Module):
    """A classifier: the encoder of a U-Net, average pooling of its deepest feature map, and a linear layer.

    Args:
        net: the U-Net; its encoder layers and normalisation are shared, so training one trains the other.
        breeds: number of breeds.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: UNet, breeds: int) -> None:
        super().__init__()
        self.stem, self.encoders, self.depth = net.stem, net.encoders, net.depth
        self.head = nn.Linear(net.width * 2**net.depth, breeds)
        self.register_buffer("mean", net.mean)
        self.register_buffer("std", net.std)

    def forward(self, image: Tensor, share: Tensor | None = None) -> Tensor:
        """(N, C, H, W) raw values and (N, H, W) pixel weights 0..1 (None: equal weights) -> (N, breeds) logits."""
        features = self.stem(pad_to_multiple((image - self.mean) / self.std, 2**self.depth))
        for encoder in self.encoders:
            features = encoder(features)
        if share is None:
            return self.head(features.mean((2, 3)))  # type: ignore[no-any-return]
        weight = F.adaptive_avg_pool2d(share[:, None].float(), features.shape[-2:]) + _MIN_SHARE
        pooled = (features * weight).sum((2, 3)) / weight.sum((2, 3))
        return self.head(pooled)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Breeds:
    """Images with their breeds.

    Attributes:
        data: the images.
        plan: the resolved settings.
        device: the device of all computations.
        names: names of the breeds.
        of_image: (images of the store,) index of each image's breed.
    """

    data: Dataset
    plan: Plan
    device: torch.device
    names: tuple[str, ...]
    of_image: NDArray[np.int64]


class Finder:
    """Finds animals (all classes except the background) in batches, by a trained segmentation network.

    Args:
        model: a run folder or a model file.
        data: the images that are to be segmented.
    Raises:
        SettingError: the model was trained for other classes.
    """

    def __init__(self, model: Path, data: Dataset, device: torch.device) -> None:
        bundle = load_bundle(model)
        if bundle.labels.names != data.labels.names:
            raise SettingError(
                _("{model} has the classes {theirs}, but {folder} has {own}; use a model for the same classes").format(
                    model=model,
                    theirs=", ".join(bundle.labels.names),
                    folder=data.folder.root,
                    own=", ".join(data.labels.names),
                ),
                path=model,
                key="--model",
            )
        self.net = bundle.model.to(device)
        self._background = background_class(bundle.labels.names) or 0

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """(N, C, H, W) raw values -> (N, H, W) probability that a pixel belongs to an animal."""
        prob: Tensor = self.net(image).float().softmax(dim=1)
        return 1 - prob[:, self._background]

    def look(self, image: Tensor, view: View) -> tuple[Tensor, Tensor | None]:
        """The arguments of `BreedNet` for a view: the whole image; the same with pixel weights; the animal cut out."""
        if view == "whole":
            return image, None
        prob = self(image)
        if view == "pixels":
            return image, prob
        return torch.lerp(self.net.mean.expand_as(image), image, prob[:, None]), None


def open_breeds(
    folder: Path | str, settings: Mapping[str, Any], device: str | None = None, reporter: Reporter | None = None
) -> Breeds:
    """Read a folder of images and masks named after breeds.

    Raises:
        DataError: the file names do not contain breeds, or there is no test split.
        UbendError: see `ubend.fit`.
    """
    place, reporter = pick_device(device), reporter or SilentReporter()
    set_up(place, False)
    user_settings = read_user_settings(folder, settings=settings).settings
    found = scan(user_settings, place, reporter)
    data, plan = found.data, resolve(user_settings, found.facts)
    words = [pair.name.rpartition("/")[2].rpartition("_")[0] for pair in data.folder.pairs]
    names = tuple(sorted(set(words)))
    if "" in names or len(names) < 2 or min(Counter(words).values()) < 2:
        raise DataError(
            _(
                "{folder}: the file names do not contain breeds; name the files BREED_NUMBER, such as Abyssinian_12"
            ).format(folder=folder),
            path=folder,
        )
    if not len(data.indices("test")):
        raise DataError(
            _("{folder}: there is no test split to compare on; add images").format(folder=folder),
            path=folder,
            key="test",
        )
    return Breeds(data, plan, place, names, np.array([names.index(word) for word in words]))


def train_breeds(
    breeds: Breeds, net: BreedNet, epochs: int, finder: Finder | None = None, view: View = "whole"
) -> float:
    """Train with cross entropy on the augmented training split; returns the loss of the last step.

    Args:
        breeds: the images and their breeds.
        net: on the device of `breeds`; trained in place.
        epochs: number of epochs.
        finder: finds the animals, for views that need it.
        view: see `Finder.look`.
    """
    settings = breeds.plan.train
    batches = prepare(breeds.data, breeds.plan, breeds.device, augment=accelerate_augmentation(augment)).batches
    of_item = breeds.of_image[breeds.data.indices("train")]
    steps = max(epochs, round(epochs * batches.items_per_epoch / settings.batch))
    optimizer = make_optimizer(net, settings)
    net.train()
    loss = torch.zeros(())
    for step in range(steps):
        items = np.ascontiguousarray(batches.pack(step)[:, ITEM]).view(np.int32)  # the images of this step
        target = torch.from_numpy(of_item[items]).to(breeds.device)
        image = batches.sample(step).image
        with autocast(breeds.device, settings):
            seen, share = (image, None) if finder is None else finder.look(image, view)
            loss = F.cross_entropy(net(seen, share).float(), target)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, settings)
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


@torch.no_grad()
def measure_accuracy(breeds: Breeds, net: BreedNet, finder: Finder | None = None, view: View = "whole") -> float:
    """The share of test images whose breed is recognised, 0..1."""
    net.eval()
    numbers = breeds.data.indices("test")
    images, right = WholeImages(breeds.data.store, numbers, breeds.device, 0), 0
    for items in np.array_split(np.arange(len(numbers)), -(-len(numbers) // _CHUNK)):
        image = images.take(items)[0].float()
        with autocast(breeds.device, breeds.plan.train):
            said = net(*((image, None) if finder is None else finder.look(image, view))).argmax(dim=1)
        right += int((said.cpu().numpy() == breeds.of_image[numbers[items]]).sum())
    return right / len(numbers)


def teach_breeds(
    out: Path | str,
    *,
    folder: Path | str | None = None,
    model: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    epochs: int = _BREED_EPOCHS,
    device: str | None = None,
    show: bool = False,
    reporter: Reporter,
) -> dict[str, float]:
    """Recognise breeds with a second head on a segmentation network's encoder; returns the accuracy for each view.

    The encoder is trained further with each of `VIEWS`: the whole image, pooling weighted by the mask, and the animal
    cut out. Masks are predicted, also in training. Writes `breeds.png` and, if a model is trained, its run folder into
    `out`.

    Args:
        folder: images and masks named after breeds; None: animals are drawn into `out`.
        model: a segmentation model with the classes of the folder; None: one is trained.
        settings: override the lesson's own (`QUICK`).
        epochs: number of epochs of each training on breeds.
        device: cuda, mps or cpu; None: the fastest here.
    Raises:
        OutputError: `out` is not empty.
        UbendError: see `open_breeds` and `Finder`.
    """
    out, folder, chosen = prepare_lesson(out, folder, settings)
    breeds = open_breeds(folder, chosen, device)
    if model is None:
        model = out / "run"
        scores = fit(folder, model, settings=chosen, device=device, reporter=SilentReporter()).scores
        if scores is None:
            raise KeyboardInterrupt
        dice = scores.native.dice.per_image.mean_foreground
        reporter.report(_("a segmentation network was trained: Dice {dice:.3f}").format(dice=dice))
    finder = Finder(Path(model), breeds.data, breeds.device)
    if not isinstance(finder.net, UNet):
        raise SettingError(
            _("{model}: this lesson needs the encoder of a plain U-Net; give another --model").format(model=model),
            path=model,
            key="--model",
        )
    found: dict[str, float] = {}
    for view, name in zip(VIEWS, view_names(), strict=True):
        torch.manual_seed(breeds.plan.train.seed)
        net = BreedNet(copy.deepcopy(finder.net), len(breeds.names)).to(breeds.device)
        train_breeds(breeds, net, epochs, finder, view)
        found[view] = measure_accuracy(breeds, net, finder, view)
        reporter.report(
            _("{name}: breed recognised in {share:.1%} of {count} test images").format(
                name=name, share=found[view], count=len(breeds.data.indices("test"))
            )
        )
    chance = Counter(breeds.of_image[breeds.data.indices("train")].tolist()).most_common(1)[0][0]
    share = float((breeds.of_image[breeds.data.indices("test")] == chance).mean())
    reporter.report(
        _("for comparison: always answering {name} is correct for {share:.1%}").format(
            name=breeds.names[chance], share=share
        )
    )
    grid = _draw(breeds, finder, list(found.values()))
    save_png(grid, out / "breeds.png")
    reporter.report(str(out / "breeds.png"))
    if show:
        show_image(grid)
    return found


def prepare_lesson(
    out: Path | str, folder: Path | str | None, settings: Mapping[str, Any] | None
) -> tuple[Path, Path | str, dict[str, Any]]:
    """Create the output folder; returns it, the folder of images (drawn if None), and the lesson's settings.

    Raises:
        OutputError: `out` is not empty.
    """
    out = refuse_existing_results(out)
    out.mkdir(parents=True, exist_ok=True)
    if folder is None:
        folder = out / "pets"
        draw_pets(folder)
    return out, folder, {**QUICK, **(settings or {})}


def view_names() -> Sequence[str]:
    """The translated names of `VIEWS`."""
    return _("whole image"), _("the mask's pixels"), _("cut out by the mask")


def _draw(breeds: Breeds, finder: Finder, shares: Sequence[float]) -> Any:
    """Draw test images in each view; pixels with little weight in the pooling are pale."""
    numbers = breeds.data.indices("test")
    chosen = numbers[np.linspace(0, len(numbers) - 1, min(_SHOWN, len(numbers)), dtype=np.int64)]
    image = WholeImages(breeds.data.store, chosen, breeds.device, 0).take(np.arange(len(chosen)))[0].float()
    prob, cut = finder(image)[:, None], finder.look(image, "cut")[0]
    pale = torch.lerp(torch.full_like(image, float(breeds.data.value_range()[1].max())), image, 0.25 + 0.75 * prob)
    rows = []
    for views in zip(image, pale, cut, strict=True):
        arrays = (view.permute(1, 2, 0).cpu().numpy().astype(breeds.data.store.dtype) for view in views)
        rows.append([to_rgb(array) for array in arrays])
    headings = [f"{name} {share:.0%}" for name, share in zip(view_names(), shares, strict=True)]
    labels = [breeds.names[breeds.of_image[number]] for number in chosen]
    return draw_grid(rows, headings, labels, cell_px=240)
