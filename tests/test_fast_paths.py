"""The fast ways to take a step compute what the plain one does: compiled, by kernels, captured.

(Micro-batches: test_loop.py. Several processes: test_distributed.py. Each kernel: test_kernels.py.)
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

from support.discs import make_discs
from support.training import Listener, make_runtime
from ubend.accel import gate, warmup
from ubend.accel.accelerate import accelerate_augmentation, accelerate_loss, accelerate_network, compile_network
from ubend.accel.captured import CapturedRuntime, can_capture, capture_steps
from ubend.core.device import has_compiler
from ubend.models.unet import UNet
from ubend.training.loop import PlainRuntime
from ubend.training.memory import LimitedMemoryRuntime

CPU, CPU_TENSOR = torch.device("cpu"), torch.zeros(1)
STEPS = 8  # of which the last five are the graph's, when captured


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fast") / "discs"
    make_discs(folder, 24)
    return folder


def take_steps(
    discs: Path,
    device: str,
    changes: dict[str, Any],
    wrap: Callable[[PlainRuntime], PlainRuntime] = lambda plain: plain,
) -> dict[str, Tensor]:
    """Where so many steps lead: weights, their EMA, the losses' sums."""
    runtime = wrap(make_runtime(discs, changes, device))
    for number in range(STEPS):
        runtime.training_step(number)
    state = runtime.training.state
    return {
        **{f"weight {name}": tensor.detach().clone() for name, tensor in state.model.state_dict().items()},
        **{f"average {name}": tensor.detach().clone() for name, tensor in state.ema.state_dict().items()},
        "sums": state.sums.clone(),
    }


def compile_steps(plain: PlainRuntime) -> PlainRuntime:
    training = plain.training
    return PlainRuntime(replace(training, forward=compile_network(training.state.model, Listener())))


def accelerate(plain: PlainRuntime) -> PlainRuntime:
    """The plain steps with kernels."""
    training = plain.training
    return PlainRuntime(
        replace(
            training,
            loss=accelerate_loss(training.loss),
            forward=accelerate_network(training.state.model),
            forward_ema=accelerate_network(training.state.ema),
        )
    )


def capture(plain: PlainRuntime) -> PlainRuntime:
    captured = capture_steps(LimitedMemoryRuntime(accelerate(plain), Listener()), Listener())
    assert isinstance(captured, CapturedRuntime)
    return captured


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], slack: float) -> None:
    """Every tensor within `slack` of its greatest value."""
    for name, tensor in wanted.items():
        most = float(tensor.double().abs().max())
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=0, atol=slack * (most + 1e-3), msg=name)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C compiler: training continues uncompiled")
def test_compiled(discs: Path, tmp_path: Path) -> None:
    changes = {"model.depth": 1, "train.precision": "float32"}
    eager = take_steps(discs, "cpu", changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = take_steps(discs, "cpu", changes, compile_steps)
    assert_near(compiled, eager, 1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("encoder", ["none", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("micro_batch", [5, 2])
def test_captured(
    resident: bool, micro_batch: int, encoder: str, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a graph, and step by step with kernels: the same bits; without kernels, nearly the same losses.

    Not with cuDNN's sums in any order: Adam's first steps make as much of a gradient's rounding as of a gradient.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    if not resident:
        monkeypatch.setattr("ubend.dataset.sources._RESIDENT_SHARE", 0.0)
    given = {"model.width": 8, "train.precision": "float32", "train.micro_batch": micro_batch, "model.encoder": encoder}
    captured = take_steps(discs, "cuda", given, capture)
    eager = take_steps(discs, "cuda", given, accelerate)
    assert_near(captured, eager, 0)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("fused", "accelerate"):
            patch.setattr(f"ubend.accel.{module}.usable", lambda _tensor: False)
        plain = take_steps(discs, "cuda", given)
    assert_near({"sums": captured["sums"]}, {"sums": plain["sums"]}, 2e-3)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the CPU say that they are on an H100."""
    pytest.importorskip("triton", reason="Triton is not installed: there is no fast path")
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.delenv("UBEND_ACCEL", raising=False)


def test_plain_function_where_no_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called with the arguments as they are, and its result comes back."""
    monkeypatch.setattr("ubend.accel.accelerate.usable", lambda _tensor: False)
    calls: list[tuple[Any, ...]] = []

    def plain(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(given)
        return torch.ones(1), torch.zeros(1)

    given: Any = tuple(range(5))
    found = accelerate_augmentation(plain)(*given)
    assert calls == [given]
    assert [tensor.item() for tensor in found] == [1, 0]


@pytest.mark.usefixtures("pretended_gpu")
def test_when_a_fast_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate.usable(torch.zeros(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
        assert not gate.usable(torch.zeros(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "_has_triton", lambda: False)
        assert not gate.usable(torch.zeros(1))
    torch.use_deterministic_algorithms(True)
    try:
        assert not gate.usable(torch.zeros(1))
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("UBEND_ACCEL", "off")
    assert not gate.usable(torch.zeros(1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is for machines without a GPU")
@pytest.mark.usefixtures("pretended_gpu")
def test_off_takes_the_plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    forward, image = accelerate_network(UNet(3, 2, width=4, depth=1)), torch.rand(2, 3, 8, 8)

    def operators() -> str:
        cropped = forward(image).grad_fn
        assert cropped is not None
        return str(cropped.next_functions)

    assert "_NormHead" in operators()
    monkeypatch.setenv("UBEND_ACCEL", "off")
    assert "_NormHead" not in operators()
    assert "Convolution" in operators()


@pytest.mark.usefixtures("pretended_gpu")
def test_off_captures_no_step(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is loaded for it beside the reading; no note either, since it was asked for."""
    loaded: list[torch.device] = []
    monkeypatch.setattr(warmup, "_run_something", loaded.append)
    runtime = LimitedMemoryRuntime(make_runtime(discs, {}), Listener())
    for setting, captures in (("", True), ("off", False)):
        monkeypatch.setenv("UBEND_ACCEL", setting)
        assert (gate.usable(CPU_TENSOR) and can_capture(runtime.training)) is captures
        with warmup.warmed_up(CPU):
            pass
        assert loaded == [CPU]
    listener = Listener()
    assert capture_steps(runtime, listener) is runtime
    assert listener.said == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_no_memory_to_capture_in(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said once, and the steps are taken one by one."""

    def refuse(*_args: object, **_words: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    given = {"model.width": 8, "train.precision": "float32"}
    eager = take_steps(discs, "cuda", given, accelerate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "graph", refuse)
        uncaptured = take_steps(discs, "cuda", given, capture)
    assert_near(uncaptured, eager, 0)


def test_a_failed_capture_leaves_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out in the capture, after the backward pass: the step that follows has its own gradients alone."""
    net = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    gradients = list[Tensor]()

    def backward(*_args: object) -> Tensor:
        net(torch.ones(4, 3)).sum().backward()
        return torch.zeros(4)

    def capture(*_args: object) -> bool:
        backward()
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def update(_sums: Tensor) -> None:
        assert net.weight.grad is not None
        gradients.append(net.weight.grad.clone())

    captured = object.__new__(CapturedRuntime)
    attributes = {
        "training": SimpleNamespace(state=SimpleNamespace(optimizer=optimizer)),
        "_runtime": SimpleNamespace(backward=backward),
        "_reporter": Listener(),
        "_taken": 3,
        "_stream": MagicMock(),
        "_send": lambda _step: None,
        "_render": lambda: None,
        "_capture": capture,
        "_update": update,
    }
    for name, value in attributes.items():
        setattr(captured, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", MagicMock())
    captured.training_step(3)
    assert [gradient.tolist() for gradient in gradients] == [[[4.0, 4.0, 4.0]]]
