"""A training that starts from a trained model: what is kept, what is new, and that it can be resumed."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import ubend
from support.discs import draw_disc
from support.refusal import TINY, check, raises, refused_once
from support.training import Listener, press_twice
from ubend.core.errors import ModelFileError, SettingError
from ubend.core.settings import TrainSettings
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.unet import UNet
from ubend.tasks import fit as job
from ubend.training.checkpoint import Progress, TrainingState
from ubend.training.optim import make_optimizer
from ubend.training.run_folder import RunFolder
from ubend.training.transfer import fit_channels, initialise_from, load_initial_model, match_class_names, shape_settings

SMALL: dict[str, Any] = {"size": 32, "epochs": 2, "batch": 8, "device": "cpu", "seed": 3}


def write_model(path: Path, names: list[str], channels: int = 3, width: int = 2, depth: int = 2, **more: Any) -> UNet:
    """A model file with random weights, of which also the batch norms are moved off their beginnings."""
    torch.manual_seed(width + channels)
    net = UNet(channels, len(names), width=width, depth=depth, **more)
    for tensor in net.state_dict().values():
        if tensor.dtype == torch.float32 and tensor.ndim == 1:
            tensor.add_(torch.rand_like(tensor))
    save_bundle(path, Bundle(net, make_label_map(list(range(len(names))), names), Sizing(32, True, channels)))
    return load_bundle(path).model


def fresh(classes: int, channels: int = 3, average: bool = True, **more: Any) -> TrainingState:
    torch.manual_seed(99)
    net = UNet(channels, classes, width=2, depth=2, **more)
    other = UNet(channels, classes, width=2, depth=2, **more) if average else net
    other.load_state_dict(net.state_dict())
    return TrainingState(net, other, make_optimizer(net, TrainSettings()), torch.zeros(4), Progress())


def make_parts(folder: Path, names: tuple[str, ...], channels: int = 3) -> Path:
    """Discs, the values of whose masks mean `names`: ground, then disc, then (with three) a disc's core."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    order = {"ground": 0, "disc": 1, "core": 2}
    for number in range(16):
        image, disc = draw_disc(number)
        y, x = np.nonzero(disc)
        truth = (disc > 0).astype(np.uint8)
        if "core" in [name.lower() for name in names]:
            truth[int(y.mean()) - 2 : int(y.mean()) + 3, int(x.mean()) - 2 : int(x.mean()) + 3] = 2
        values = np.zeros(3, np.uint8)
        for value, name in enumerate(names):
            values[order[name.lower()]] = value
        drawing = Image.fromarray(image if channels == 3 else image[:, :, 0])
        drawing.save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(values[truth]).save(folder / "masks" / f"{number:02d}.png")
    (folder / "classes.txt").write_text("\n".join(names))
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two classes; only to be read."""
    place = tmp_path_factory.mktemp("old")
    make_parts(place / "data", ("ground", "disc"))
    ubend.fit(place / "data", out=place / "run", width=2, settings={"model.depth": 2}, **SMALL)
    return place


def test_the_same_classes_and_channels_give_the_same_predictions(tmp_path: Path) -> None:
    net = write_model(tmp_path / "m.safetensors", ["a", "b"], mean=[9.0, 8, 7], std=[2.0, 3, 4])
    state = fresh(2, mean=[9.0, 8, 7], std=[2.0, 3, 4])
    initialise_from(load_initial_model(tmp_path / "m.safetensors"), state, ["a", "b"])
    image = torch.rand(2, 3, 20, 28) * 20
    for model in (state.model, state.ema):
        assert torch.equal(model.eval()(image), net(image))
    assert state.optimizer.state == {}


def test_classes_go_by_their_names(tmp_path: Path) -> None:
    """Two classes -> three, in another order, in other capitals; the new one's row is as it was drawn."""
    net = write_model(tmp_path / "m.safetensors", ["ground", "disc"])
    state = fresh(3)
    drawn = state.model.head.weight[1].clone()
    lines = initialise_from(load_initial_model(tmp_path / "m.safetensors"), state, [" Disc", "core", "GROUND"])
    image = torch.rand(1, 3, 16, 16)
    for model in (state.model, state.ema):
        assert torch.equal(model.eval()(image)[:, [2, 0]], net(image))
        assert torch.equal(model.head.weight[1], drawn)
    assert "classes kept:  Disc, GROUND; new: core; dropped: none" in lines


def test_without_averaging(tmp_path: Path) -> None:
    net = write_model(tmp_path / "m.safetensors", ["a", "b"])
    state = fresh(2, average=False)
    initialise_from(load_initial_model(tmp_path / "m.safetensors"), state, ["a", "b"])
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(state.model.eval()(image), net(image))


def test_the_normalisation_is_that_of_the_new_images(tmp_path: Path) -> None:
    write_model(tmp_path / "m.safetensors", ["a", "b"], mean=[9.0, 8, 7], std=[2.0, 3, 4])
    state = fresh(2, mean=[1.0, 2, 3], std=[5.0, 6, 7])
    lines = initialise_from(load_initial_model(tmp_path / "m.safetensors"), state, ["a", "b"])
    assert state.model.mean.flatten().tolist() == [1, 2, 3]
    assert state.ema.std.flatten().tolist() == [5, 6, 7]
    assert "the normalisation (of these images)" in lines[-1]


@pytest.mark.parametrize(("before", "now"), [(3, 1), (1, 3), (3, 5), (4, 3), (16, 1)])
def test_images_with_alike_channels_get_the_same_answer(before: int, now: int, tmp_path: Path) -> None:
    net = write_model(tmp_path / "m.safetensors", ["a", "b"], before)
    state = fresh(2, now)
    lines = initialise_from(load_initial_model(tmp_path / "m.safetensors"), state, ["a", "b"])
    grey = torch.randn(2, 1, 16, 24)
    mine = state.model.eval()(grey.expand(-1, now, -1, -1))
    torch.testing.assert_close(mine, net(grey.expand(-1, before, -1, -1)), rtol=1e-4, atol=1e-5)
    assert f"first convolution: {before} channels spread evenly over {now}" in lines


@settings(max_examples=30)
@given(before=st.integers(1, 16), between=st.integers(1, 16), seed=st.integers(0, 99))
def test_channels_there_and_back(before: int, between: int, seed: int) -> None:
    """The sum over the channels stays; as many channels as before are the kernels themselves."""
    kernels = torch.randn(4, before, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    there = fit_channels(kernels, between)
    assert there.shape == (4, between, 3, 3)
    torch.testing.assert_close(there.sum(dim=1), kernels.sum(dim=1))
    torch.testing.assert_close(fit_channels(there, before).sum(dim=1), kernels.sum(dim=1))
    assert fit_channels(kernels, before) is kernels
    if before == 3:
        torch.testing.assert_close(fit_channels(kernels, 1)[:, 0], kernels[:, 0] + kernels[:, 1] + kernels[:, 2])
    if before == 1:
        torch.testing.assert_close(fit_channels(kernels, 3)[:, 1], kernels[:, 0] / 3)


def test_match_classes() -> None:
    assert match_class_names(["a", "b"], ["B", "c", "A "]) == [1, None, 0]
    assert match_class_names(["Cell", "cell"], ["cell", "Cell", "CELL"]) == [1, 0, 0]
    assert match_class_names([], ["a"]) == [None]


def test_the_shape_is_the_models(tmp_path: Path) -> None:
    write_model(tmp_path / "m.safetensors", ["a", "b"], 3, 2, 2, skips=(True, False))
    start = load_initial_model(tmp_path / "m.safetensors")
    shape = {"model.width": 2, "model.depth": 2, "model.skips": (True, False), "model.upsampling": "transposed"}
    shape |= {"model.kind": "unet", "model.encoder": "none", "model.pretrained": False, "model.weights": None}
    assert shape_settings(start, {}) == shape
    assert shape_settings(start, {"model.width": 2, "model.skips": [True, False]}) == shape
    for wrong in ({"model.width": 3}, {"model.depth": 4}, {"model.skips": [True, True]}, {"model.kind": "paper"}):
        with raises(SettingError, key=next(iter(wrong))):
            shape_settings(start, wrong)


def test_fine_tuning(old: Path, tmp_path: Path) -> None:
    """Two classes in colour -> three in grey, from a run folder; said, written down, and used from the first step."""
    make_parts(tmp_path / "data", ("Core", "Disc", "ground"), channels=1)
    listener = Listener()
    run = tmp_path / "run"
    ubend.fit(tmp_path / "data", out=run, init_from=old / "run", reporter=listener, **SMALL)
    assert "classes kept: Disc, ground; new: Core; dropped: none" in listener.said
    assert "first convolution: 3 channels spread evenly over 1" in listener.said
    assert "new: the normalisation (of these images) and the optimizer's state" in listener.said
    facts = json.loads((run / "run.json").read_text())["begun_with"]
    assert facts["path"] == str(old / "run")
    assert len(facts["sha256"]) == 64
    net = load_bundle(run).model
    assert (net.width, net.depth, net.channels, net.classes) == (2, 2, 1, 3)


def test_the_first_validation_is_the_models(old: Path, tmp_path: Path) -> None:
    """A training too slow to move gives the scores of the model that it began with."""
    slow = {"train.learning_rate": 1e-12, "train.ema_decay": 0.0, "train.weight_decay": 0.0}
    listener = Listener()
    result = ubend.fit(
        old / "data",
        out=tmp_path / "run",
        init_from=old / "run",
        settings=slow,
        reporter=listener,
        **SMALL | {"epochs": 1},
    )
    mine, theirs = load_bundle(result.run).model.state_dict(), load_bundle(old / "run").model.state_dict()
    for name in mine:
        if "running" not in name and "batches" not in name:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("at", [1, 3])
def test_resume_needs_no_model(at: int, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before anything of its own was saved, and later: the same to the bit, without the old file."""
    shutil.copy(old / "run" / "model.safetensors", tmp_path / "m.safetensors")
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    ubend.fit(old / "data", out=whole, init_from=tmp_path / "m.safetensors", **SMALL)
    with contextlib.suppress(KeyboardInterrupt):
        job.fit(old / "data", torn, init_from=tmp_path / "m.safetensors", reporter=Listener(press_twice(at)), **SMALL)
    assert not (torn / "scores.json").exists()
    (tmp_path / "m.safetensors").unlink()
    ubend.resume(torn)
    for name in ("model.safetensors", "resume.safetensors", "metrics.jsonl", "scores.json"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_killed_beginning_is_not_gone_on_with(old: Path, tmp_path: Path) -> None:
    """Weights that a killed `--from` left do not come into a later training without it."""
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").started.touch()
    shutil.copy(old / "run" / "resume.safetensors", tmp_path / "run")
    seen: list[bool] = []
    listener = Listener(lambda done: seen.append((tmp_path / "run" / "resume.safetensors").exists()))
    ubend.fit(old / "data", out=tmp_path / "run", width=2, settings={"model.depth": 2}, reporter=listener, **SMALL)
    assert seen[0] is False
    assert not RunFolder(tmp_path / "run").started.exists()


def test_the_recipe_gives_way_to_the_model(old: Path, tmp_path: Path) -> None:
    result = ubend.fit(
        old / "data", out=tmp_path / "run", recipe="tutorial", init_from=str(old / "run"), **SMALL | {"epochs": 1}
    )
    assert load_bundle(result.run).model.width == 2


def test_one_line_each(old: Path, tmp_path: Path) -> None:
    data, run = old / "data", old / "run"
    out = ["--out", tmp_path / "run"]
    error = refused_once("fit", data, *out, *TINY, "--from", tmp_path / "nothing")
    check(error, ModelFileError, path=tmp_path / "nothing")
    (tmp_path / "half.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:500])
    error = refused_once("fit", data, *out, "--from", tmp_path / "half.safetensors")
    check(error, ModelFileError, path=tmp_path / "half.safetensors")
    for words, key in ((TINY, "width"), (["--set", "model.depth=3"], "depth"), (["--skips", "none"], "skips")):
        error = refused_once("fit", data, *out, *words, "--from", run)
        check(error, SettingError, path=run, key=f"model.{key}")
    assert not (tmp_path / "run").exists()
