"""Learning rates, averaging, parameter groups."""

import copy
import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ubend.core.settings import TrainSettings
from ubend.models.unet import UNet
from ubend.training.optim import ema_decay, learning_rate_at, make_optimizer, update_ema


def rates(steps: int, **given: object) -> list[float]:
    chosen = TrainSettings.model_validate({"learning_rate": 0.01, **given})
    return [learning_rate_at(step, steps, chosen) for step in range(steps)]


def test_constant() -> None:
    assert set(rates(17, schedule="constant")) == {0.01}


def test_one_cycle() -> None:
    """From about a 25th of the peak, up to it after the warm-up, down to about a 250,000th of it."""
    table = rates(1000, schedule="one-cycle", warmup=0.2)
    assert table.index(max(table)) == 200
    assert max(table) == pytest.approx(0.01)
    assert table[0] == pytest.approx(0.01 / 25, rel=1e-2)
    assert learning_rate_at(1000, 1000, TrainSettings(learning_rate=0.01)) == pytest.approx(0.01 / 250_000)
    middle = 600  # half way down: halfway between peak and end, along half a cosine
    assert table[middle] == pytest.approx(0.01 / 2, rel=1e-3)


def test_cosine() -> None:
    """A straight line up, half a cosine down to nothing."""
    table = rates(100, schedule="cosine", warmup=0.1)
    rise = [table[i + 1] - table[i] for i in range(9)]
    assert rise == pytest.approx([rise[0]] * 9)
    assert table[10] == pytest.approx(0.01)
    for step in range(10, 100):
        assert table[step] == pytest.approx(0.005 * (1 + math.cos(math.pi * (step - 10) / 90)))
    assert learning_rate_at(100, 100, TrainSettings(schedule="cosine")) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=80)
@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.95),
    schedule=st.sampled_from(["one-cycle", "cosine"]),
)
def test_rises_then_falls(steps: int, warmup: float, schedule: str) -> None:
    """One rise, one fall, never above the peak, never nothing before the end, whatever the length."""
    table = rates(steps, schedule=schedule, warmup=warmup)
    top = table.index(max(table))
    assert all(a < b for a, b in itertools.pairwise(table[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(table[top:]))
    assert 0 < min(table) <= max(table) <= 0.01 * (1 + 1e-12)


def test_average_against_a_naive_loop() -> None:
    """Weights and batch norm statistics, step by step; the model itself is not touched."""
    torch.manual_seed(0)
    model = UNet(1, 2, width=2, depth=1)
    average = copy.deepcopy(model).requires_grad_(False)
    expected = {name: t.double().clone() for name, t in model.state_dict().items()}
    for step in range(30):
        with torch.no_grad():
            for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
                tensor.add_(torch.randn_like(tensor))
        before = {name: t.clone() for name, t in model.state_dict().items()}
        decay = ema_decay(step, 0.9)
        assert decay == min(0.9, (1 + step) / (10 + step))
        update_ema(average, model, decay)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_no_compiler_is_imported(name: str) -> None:
    """It takes longer than all other imports together."""
    program = (
        "import sys, torch; from ubend.core.settings import TrainSettings as Settings; "
        "from ubend.training.optim import make_optimizer; "
        "net = torch.nn.Conv2d(1, 1, 3); net(torch.ones(1, 1, 8, 8)).sum().backward(); "
        f"optimizer = make_optimizer(net, Settings(optimizer='{name}')); optimizer.step(); optimizer.zero_grad(); "
        "assert net.weight.grad is None; assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_decay_grows_to_its_limit() -> None:
    table = [ema_decay(step, 0.999) for step in range(20_000)]
    assert table[0] == pytest.approx(0.1)
    assert table == sorted(table)
    assert table[-1] == 0.999


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_groups(name: str) -> None:
    """Every parameter once; kernels are decayed, biases and batch norms are not."""
    model = UNet(3, 2, width=2, depth=2)
    chosen = TrainSettings.model_validate({"optimizer": name, "weight_decay": 0.05, "learning_rate": 3e-4})
    optimizer = make_optimizer(model, chosen)
    assert optimizer.defaults["decoupled_weight_decay"] == (name == "adamw")
    decayed, others = optimizer.param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert sorted(id(p) for g in (decayed, others) for p in g["params"]) == sorted(names)
    assert {p.ndim for p in decayed["params"]} == {4}
    assert {p.ndim for p in others["params"]} == {1}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert decayed["lr"] == others["lr"] == 3e-4


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("fused", [False, True])
def test_steps_are_torchs(name: str, fused: bool) -> None:
    """To the bit, the moments too; a parameter without a gradient stays, and the rate may change."""
    torch.manual_seed(0)
    ours = UNet(1, 2, width=2, depth=1)
    theirs = copy.deepcopy(ours)
    chosen = TrainSettings.model_validate({"optimizer": name, "weight_decay": 0.1, "learning_rate": 0.01})
    optimizer = make_optimizer(ours, chosen)
    for group in optimizer.param_groups:
        group["fused"] = fused
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    groups = [
        {"params": [p for p in theirs.parameters() if (p.ndim > 1) == many], "weight_decay": decay}
        for many, decay in ((True, 0.1), (False, 0.0))
    ]
    reference = kind(groups, lr=0.01, fused=fused)
    image = torch.randn(2, 1, 8, 8)
    for rate in (0.01, 0.02, 0.005):
        for model, one in ((ours, optimizer), (theirs, reference)):
            model(image).square().mean().backward()
            next(model.parameters()).grad = None
            for group in one.param_groups:
                group["lr"] = rate
            one.step()
            one.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.grad is None
        found, wanted = optimizer.state.get(mine, {}), reference.state.get(other, {})
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert len(optimizer.state) == len(list(ours.parameters())) - 1


def test_adamw_steps_as_written() -> None:
    """One AdamW step by hand (Loshchilov & Hutter 2019): decay apart from the gradient."""
    torch.manual_seed(0)
    model = UNet(1, 2, width=2, depth=1)
    chosen = TrainSettings(weight_decay=0.1, learning_rate=0.01)
    optimizer = make_optimizer(model, chosen)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(2, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert p.grad is not None
        kept = before[name] * (1 - 0.01 * (0.1 if p.ndim > 1 else 0.0))
        expected = kept - 0.01 * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)
