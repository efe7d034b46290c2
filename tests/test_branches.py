"""Branches: the second part of a training several times, and the mean of the weights."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from support.discs import make_discs
from support.refusal import raises
from support.training import MODERN, Listener, make_runtime
from ubend.core.errors import SettingError
from ubend.core.settings import make_settings
from ubend.tasks import fit as job
from ubend.training.batch_norm_warmup import measure_batch_norm
from ubend.training.branches import is_better_than_branches
from ubend.training.distributed import ALONE
from ubend.training.loop import PlainRuntime
from ubend.training.optim import learning_rate_at

THREE = {"train.epochs": 4, "train.branches": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branches") / "discs"
    make_discs(folder, 24)
    return folder


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if tensor.is_floating_point()}


def test_without_branches_the_schedule_is_the_usual_one(folder: Path) -> None:
    training = make_runtime(folder, {}).training
    usual = [learning_rate_at(step, training.steps, training.settings) for step in range(training.steps)]
    assert [training.learning_rate_at(step) for step in range(training.steps)] == usual


def test_the_learning_rate_falls_along_each_branch(folder: Path) -> None:
    training = make_runtime(folder, {"train.epochs": 20, "train.branches": 3, "train.batch": 4}).training
    assert training.part_ends == [5, 10, 15, 20]
    rates = np.array([training.learning_rate_at(step) for step in range(training.steps)])
    trunk, first, second, third = np.split(rates, [training.steps_until(end) for end in (5, 10, 15)])
    usual = [learning_rate_at(step, 40, training.settings) for step in range(40)]
    np.testing.assert_array_equal(np.concatenate([trunk, first]), usual)
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(third, first)


def train_by_hand(runtime: PlainRuntime) -> dict[str, Tensor]:
    """The weights of the EMA after a trunk and three branches of one epoch each, written as plainly as possible."""
    training = runtime.training
    state, ends = training.state, [0, *map(training.steps_until, (1, 2, 3, 4))]
    for step in range(ends[1]):
        runtime.training_step(step)
    fork = [copy.deepcopy(part.state_dict()) for part in (state.model, state.ema, state.optimizer)]
    branches = []
    for start, end in itertools.pairwise(ends[1:]):
        for part, kept in zip((state.model, state.ema, state.optimizer), fork, strict=True):
            part.load_state_dict(copy.deepcopy(kept))
        for step in range(start, end):
            runtime.training_step(step)
        branches.append(weights(state.ema))
    return {name: torch.stack([branch[name] for branch in branches]).mean(dim=0) for name in branches[0]}


def test_the_kept_weights_are_the_mean_of_the_branches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ubend.training.loop.is_better_than_branches", lambda _training, _loss: True)
    free = {"augment.orientation": "free", "augment.rotation_deg": 180.0, "train.loss": "dice+ce"}  # as make_runtime
    job.fit(folder, tmp_path / "run", settings=MODERN | THREE | free, device="cpu", reporter=(said := Listener()))
    assert "kept: the mean of the weights of 3 branches" in said.said
    expected = train_by_hand(make_runtime(folder, THREE))
    kept = load_file(tmp_path / "run" / "model.safetensors")
    statistics = {name for name in expected if "running" in name}
    for name in expected.keys() - statistics:
        torch.testing.assert_close(kept[name], expected[name], rtol=1e-4, atol=1e-6)
    assert statistics, "else the next test is the only one of batch norm"


def test_statistics_are_the_mean_over_the_batches(folder: Path) -> None:
    """The first norm sees the convolved images: its statistics are those of all of them, batch by batch."""
    training = make_runtime(folder, {}).training
    network = training.state.ema
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    before = weights(network)
    training.state.progress.step = 9
    measure_batch_norm(training, ALONE, 4)
    hook.remove()
    assert len(seen) == 4
    assert norm.running_mean is not None
    assert norm.running_var is not None
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen])
    variances = torch.stack([x.var(dim=(0, 2, 3), correction=1) for x in seen])
    torch.testing.assert_close(norm.running_mean, means.mean(dim=0))
    torch.testing.assert_close(norm.running_var, variances.mean(dim=0))
    assert not network.training
    assert norm.momentum == nn.BatchNorm2d(1).momentum
    for key, tensor in weights(network).items():
        assert torch.equal(tensor, before[key]) or "running" in key


def test_without_batch_norm_no_batch_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_runtime(folder, {}).training
    for module in training.state.ema.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    monkeypatch.setattr(training.batches, "sample", lambda _step: pytest.fail("a batch was read"))
    training.state.progress.step = 9
    measure_batch_norm(training, ALONE, 4)


@pytest.mark.parametrize(("mean", "branches", "kept"), [(0.5, (0.6, 0.7), True), (0.66, (0.6, 0.7), False)])
def test_a_mean_that_is_worse_than_the_branches_is_not_kept(
    mean: float, branches: tuple[float, float], kept: bool, folder: Path
) -> None:
    training = make_runtime(folder, THREE).training
    losses = [0.1, *branches]  # the trunk's is of no interest
    training.state.progress.history = [{"val_loss": loss} for loss in losses]
    assert is_better_than_branches(training, mean) is kept


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train.branches": 2, "train.patience": 3}, ["train.patience", "train.branches"]),
        ({"train.branches": 3, "train.epochs": 3}, ["train.branches = 3", "4", "--epochs"]),
    ],
)
def test_contradictions(changes: dict[str, Any], named: list[str]) -> None:
    with raises(SettingError, named=named):
        make_settings(changes=changes)
