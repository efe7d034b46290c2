"""A network and a loss of the user's own: what they are given, and how runs with them are saved, resumed, refused."""

import contextlib
import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ubend
from support.discs import draw_disc, make_discs
from support.refusal import raises, refused_once
from support.training import FILES, Listener, press_twice
from support.training import contents as run_contents
from ubend.core.errors import ModelFileError, SettingError, UbendError
from ubend.labels.class_table import IGNORED
from ubend.models.custom import CustomNetwork, find_depth
from ubend.models.model_file import load_bundle
from ubend.training.custom_parts import CustomLoss, LossFunction

TINY: dict[str, Any] = {"size": 32, "epochs": 2, "batch": 4, "device": "cpu"}


class Small(nn.Module):
    """Takes sides that are multiples of 4 px; keeps what it is given."""

    input_multiple = 4

    def __init__(self, classes: int = 2, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.down = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(4))
        self.middle = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Dropout(0.2), nn.ReLU())
        self.up = nn.ConvTranspose2d(width, classes, 4, stride=4)

    def forward(self, image: Tensor) -> Tensor:
        assert not any(side % 4 for side in image.shape[-2:])
        out: Tensor = self.up(self.middle(self.down(image)))
        return out


def weighted(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy, mean over the scored pixels of each image, mean over images."""
    lost = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED) * weights
    return (lost.sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp_min(1)).mean()


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "discs"
    make_discs(folder, 24)
    return folder


@pytest.fixture(scope="module")
def run(discs: Path) -> Path:
    return ubend.fit(discs, out=discs.parent / "run", network=Small(), loss=weighted, **TINY).run


def test_a_module_gets_normalised_padded_images() -> None:
    given = list[Tensor]()

    class Recording(Small):
        def forward(self, image: Tensor) -> Tensor:
            given.append(image)
            return super().forward(image)

    net = CustomNetwork(3, 2, module=Recording(), mean=[10.0, 20.0, 30.0], std=[1.0, 2.0, 3.0]).eval()
    image = torch.tensor([12.0, 24.0, 36.0]).reshape(1, 3, 1, 1).repeat(1, 1, 5, 7)
    assert net(image).shape == (1, 2, 5, 7)
    assert given[0].shape == (1, 3, 8, 8)
    assert torch.equal(given[0], torch.full((1, 3, 8, 8), 2.0))


@pytest.mark.parametrize(("multiple", "depth"), [(1, 1), (2, 1), (7, 1), (14, 1), (16, 4), (224, 5), (4096, 8)])
def test_depth_of_a_module(multiple: int, depth: int) -> None:
    module = Small()
    module.input_multiple = multiple
    assert find_depth(module) == depth


def test_a_run_is_saved_loaded_and_scored(run: Path) -> None:
    """With a module of any weights, which is left as it is."""
    module = Small(seed=7)
    before = copy.deepcopy(module.state_dict())
    predictor = ubend.load(run, device="cpu", network=module)
    assert predictor(draw_disc(0)[0]).mask.shape == (40, 48)
    scores = ubend.evaluate(run, device="cpu", network=module)
    assert scores.native == ubend.evaluate(run, device="cpu", network=Small()).native
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert "Small" in load_bundle(run, module).model.describe()[0]


def test_the_module_that_is_trained_is_a_copy(discs: Path, tmp_path: Path) -> None:
    module = Small()
    before = copy.deepcopy(module.state_dict())
    ubend.fit(discs, out=tmp_path / "run", network=module, **TINY)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    trained = load_bundle(tmp_path / "run", module).model.state_dict()
    assert not torch.equal(trained["module.up.weight"], before["up.weight"])


@pytest.mark.parametrize("step", [1, 5])
def test_a_resumed_run_is_the_uninterrupted_one(run: Path, discs: Path, tmp_path: Path, step: int) -> None:
    """Before the first save and after; the weights that training began with are those of the first process."""
    place = tmp_path / "run"
    with contextlib.suppress(KeyboardInterrupt):
        reporter = Listener(press_twice(step))
        ubend.fit(discs, out=place, network=Small(), loss=weighted, reporter=reporter, **TINY)
    assert not (place / "scores.json").exists()
    ubend.resume(place, network=Small(seed=5), loss=weighted)
    assert run_contents(place) == run_contents(run)


def test_buffers_of_any_dtype(discs: Path, tmp_path: Path) -> None:
    """Trained, stored and loaded with the values that they had."""
    kinds = [torch.bool, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float64]
    module = Small()
    for kind in kinds:
        module.register_buffer(str(kind).replace(".", "_"), torch.tensor([0, 1, 1]).to(kind))
    ubend.fit(discs, out=tmp_path / "run", network=module, **TINY | {"epochs": 1})
    trained = load_bundle(tmp_path / "run", module).model.state_dict()
    for kind in kinds:
        buffer = trained["module." + str(kind).replace(".", "_")]
        assert (buffer.dtype, buffer.tolist()) == (kind, [0, 1, 1])


def test_frozen_parameters_stay(discs: Path, tmp_path: Path) -> None:
    module = Small()
    module.down.requires_grad_(False)
    ubend.fit(discs, out=tmp_path / "run", network=module, **TINY)
    trained = load_bundle(tmp_path / "run", Small()).model.state_dict()
    assert torch.equal(trained["module.down.0.weight"], module.down[0].weight)
    assert not torch.equal(trained["module.up.weight"], module.up.weight)
    before = (tmp_path / "run" / "scores.json").read_bytes()
    ubend.resume(tmp_path / "run", network=module)
    assert (tmp_path / "run" / "scores.json").read_bytes() == before


def test_an_own_loss_trains_the_u_net(discs: Path, tmp_path: Path) -> None:
    """Its model is one of ubend's, and needs nothing; where the loss is one of ubend's, so is the training."""

    shapes = list[tuple[int, ...]]()

    def mean(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        shapes.append(tuple(logits.shape))
        lost = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED)
        return (lost * weights).sum() / weights.sum()

    words = {**TINY, "width": 2, "settings": {"train.precision": "float32"}}
    trained = [
        ubend.fit(discs, out=tmp_path / name, loss=loss, **words).run for name, loss in (("own", mean), ("ubend", "ce"))
    ]
    assert len(shapes) > 2 * 4 + 1  # the steps of two epochs, and the trial; the rest is validation
    assert {shape[:2] for shape in shapes[1:]} == {(4, 2)}
    nets = [load_bundle(one).model.state_dict() for one in trained]
    for name, tensor in nets[0].items():
        assert torch.allclose(tensor.float(), nets[1][name].float(), atol=2e-3), name
    assert ubend.load(trained[0], device="cpu")(draw_disc(0)[0]).mask.shape == (40, 48)


def random_batch(images: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images)
    logits = torch.randn(images, 3, 6, 8, generator=generator, requires_grad=True)
    target = torch.randint(0, 3, (images, 6, 8), generator=generator).to(torch.uint8)
    target[:, :2, :2] = IGNORED
    return logits, target


@pytest.mark.parametrize("sizes", [(5,), (2, 2, 1), (4, 1)])
def test_micro_batches_are_weighted_by_their_images(sizes: tuple[int, ...]) -> None:
    """So a loss that is a mean over images has the same value and gradient however a batch is split."""
    loss = CustomLoss("ce", None, weighted)
    logits, target = random_batch(5)
    whole = weighted(logits, target.long(), (target != IGNORED).float())
    (wanted,) = torch.autograd.grad(whole, logits)
    counts, total = loss.count(target, 3), torch.zeros(())
    for own, labels in zip(logits.split(sizes), target.split(sizes), strict=True):
        total = total + loss.of_step(loss.sum(own, labels), counts)
    assert torch.allclose(total, whole)
    assert torch.allclose(torch.autograd.grad(total, logits)[0], wanted)
    parts = [(loss.sum(a, b), loss.count(b, 3)) for a, b in zip(logits.split(sizes), target.split(sizes), strict=True)]
    assert float(sum(count.pixels for _sums, count in parts)) == float(counts.pixels)


def test_what_a_loss_is_given() -> None:
    given = list[Tensor]()

    def keep(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        given.extend((logits, target, weights))
        return logits.sum()

    logits, target = random_batch(2)
    pixel_weights = torch.full(target.shape, 0.5)
    CustomLoss("ce", torch.tensor([1.0, 2.0, 3.0]), keep).sum(logits.bfloat16(), target, pixel_weights)
    assert (given[0].dtype, given[1].dtype, given[2].dtype) == (torch.float32, torch.int64, torch.float32)
    assert torch.equal(given[1], target.long())
    wanted = torch.where(target == IGNORED, 0.0, target.float() + 1.5)
    assert torch.equal(given[2], wanted)
    CustomLoss("ce", None, keep).sum(logits, target)
    assert torch.equal(given[5], (target != IGNORED).float())


def test_micro_batches_of_a_training(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step in micro-batches of 3 and 1 changes the weights as one of 4 does; without batch norm and dropout."""
    module = nn.Conv2d(3, 2, 3, padding=1)
    nets = []
    for micro in (4, 3):
        settings = {"train.micro_batch": micro, "train.precision": "float32"}
        run = ubend.fit(discs, out=tmp_path / str(micro), network=module, loss=weighted, settings=settings, **TINY).run
        nets.append(load_bundle(run, module).model.state_dict())
    assert all(torch.allclose(tensor, nets[1][name], atol=1e-5) for name, tensor in nets[0].items())


class Fixed(Small):
    """Without the attribute."""

    input_multiple = 1


class Tuple(Small):
    def forward(self, image: Tensor) -> Any:
        return (super().forward(image),)


BAD_NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "not a module": ("unet", {}),
    "nothing to train": (nn.Identity(), {}),
    "other classes": (Small(classes=3), {}),
    "fixed sides": (Fixed(), {}),
    "a tuple": (Tuple(), {}),
    "with a width": (Small(), {"width": 4}),
    "with skips": (Small(), {"skips": "none"}),
}


@pytest.mark.parametrize("what", BAD_NETWORKS)
def test_bad_networks(what: str, discs: Path, tmp_path: Path) -> None:
    network, words = BAD_NETWORKS[what]
    with raises(SettingError, key="network"):
        ubend.fit(discs, out=tmp_path / "run", network=network, **TINY, **words)
    assert not (tmp_path / "run").exists()


def test_bad_multiple(discs: Path, tmp_path: Path) -> None:
    module = Small()
    for wrong in (0, -4, 2.0, True):
        module.input_multiple = wrong  # type: ignore[assignment]
        with raises(SettingError, key="network"):
            ubend.fit(discs, out=tmp_path / "run", network=module, **TINY)


BAD_LOSSES: dict[str, LossFunction] = {
    "two arguments": lambda logits, target: logits.sum(),  # type: ignore[misc, dict-item]
    "no scalar": lambda logits, target, weights: logits,
    "no gradient": lambda logits, target, weights: logits.detach().sum(),
    "a number": lambda logits, target, weights: 1.0,  # type: ignore[dict-item, return-value]
    "ignored pixels": lambda logits, target, weights: F.cross_entropy(logits, target),
}


@pytest.mark.parametrize("what", BAD_LOSSES)
def test_bad_losses(what: str, discs: Path, tmp_path: Path) -> None:
    with raises(SettingError, key="loss"):
        ubend.fit(discs, out=tmp_path / "run", loss=BAD_LOSSES[what], width=2, **TINY)
    assert not (tmp_path / "run").exists()


def test_commands_say_that_the_module_is_missing(run: Path, discs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    image = discs / "images" / "disc00.png"
    for words in (
        ["predict", run, image, "--out", out],
        ["objects", run, image, "--out", out],
        ["cutout", run, image, "--out", out],
        ["evaluate", run],
        ["evaluate", run, discs],
        ["info", run],
        ["show", run, "--out", out / "show.png"],
        ["fit", discs, "--from", run, "--out", out],
    ):
        error = refused_once(*words)
        assert (type(error), error.path, error.key) == (ModelFileError, run / "model.safetensors", "network"), words
        assert "ubend.load(path, network=...)" in str(error)
    before = {name: (run / name).read_bytes() for name in FILES}
    for words, key in (
        (["fit", "--resume", run], "model.kind"),
        (["fit", discs, "--config", run / "settings.toml", "--out", out], "model.kind"),
        (["fit", discs, "--set", "model.kind=custom", "--out", out], "model.kind"),
        (["fit", discs, "--set", "train.loss=custom", "--out", out], "train.loss"),
    ):
        error = refused_once(*words)
        assert (type(error), error.key) == (SettingError, key), words
    assert not out.exists()
    assert {name: (run / name).read_bytes() for name in FILES} == before


def test_missing_and_other_parts(run: Path, discs: Path, tmp_path: Path) -> None:
    plain = ubend.fit(discs, out=tmp_path / "plain", width=2, **TINY).run
    errors: list[tuple[Any, type[UbendError], str]] = [
        (lambda: ubend.load(run, network=Small(width=5)), ModelFileError, "module.down.0.weight"),
        (lambda: ubend.load(run, network=nn.Conv2d(3, 2, 1)), ModelFileError, "module.bias"),
        (lambda: ubend.load(plain, network=Small()), ModelFileError, "network"),
        (lambda: ubend.resume(run, loss=weighted), SettingError, "model.kind"),
        (lambda: ubend.resume(run, network=Small()), SettingError, "train.loss"),
        (lambda: ubend.resume(plain, network=Small()), SettingError, "model.kind"),
        (lambda: ubend.resume(plain, loss=weighted), SettingError, "train.loss"),
        (
            lambda: ubend.fit(discs, network=Small(), settings={"model.encoder": "resnet18"}, **TINY),
            SettingError,
            "model.encoder",
        ),
    ]
    for call, kind, key in errors:
        with raises(kind, key=key):
            call()


def test_several_models_of_one_module(run: Path, tmp_path: Path) -> None:
    other, image = shutil.copytree(run, tmp_path / "other"), draw_disc(0)[0]
    together = ubend.load([run, other], device="cpu", network=Small())(image, probabilities=True).probabilities
    alone = ubend.FitResult(run, None).model(device="cpu", network=Small())(image, probabilities=True).probabilities
    assert together is not None
    assert alone is not None
    assert np.allclose(together, alone, atol=1e-6)
