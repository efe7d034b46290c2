"""What a step is predicted to take, beside what the tensors of a real step add up to, followed one by one."""

import importlib
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from ubend.config import LossKind, TrainSettings
from ubend.data.batches import Batch
from ubend.model.unet import UNet
from ubend.training.checkpoint import Progress, TrainingState
from ubend.training.footprint import StepPlan, count_step_flops, predict_step_bytes
from ubend.training.losses import Loss
from ubend.training.ranks import ALONE
from ubend.training.schedule import make_optimizer
from ubend.training.step import Step

SLACK = 0.05  # of the peak: what is counted by the channel (statistics, partial sums, biases) is not predicted


class Followed(TorchDispatchMode):
    """Bytes of all memory that operations have made, as a GPU's allocator rounds it: alive now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known | given:
                    self._enter(storage)
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Idle:
    """A kernel that computes nothing; what it is given to write to is made by torch all the same."""

    def __getitem__(self, _grid: Any) -> Any:
        return lambda *_args, **_kwargs: None


@contextmanager
def pretended_gpu(half: bool) -> Iterator[None]:
    """The fused network and loss, on the CPU and without their arithmetic; weights are copied as on a GPU."""
    pytest.importorskip("triton", reason="Triton is not installed: there is no fused network")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name in ("norm", "norm_gradient", "join", "loss"):
            module = importlib.import_module(f"ubend.kernels.{name}")
            for key, value in list(vars(module).items()):
                if type(value).__module__.startswith("triton") and key.startswith("_"):
                    patch.setattr(module, key, Idle())
        for where in ("ubend.model.unet", "ubend.training.losses"):
            patch.setattr(f"{where}.usable", lambda _tensor: True)
        stack.callback(torch.set_autocast_enabled, "cuda", False)
        stack.callback(torch.set_autocast_dtype, "cuda", torch.get_autocast_dtype("cuda"))
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", half)
        yield


def follow_step(net: UNet, plan: StepPlan) -> int:
    """The peak of the gradients of one batch, from when the batch is there."""
    settings = TrainSettings(
        batch=plan.batch, micro_batch=plan.micro_batch, precision="bfloat16" if plan.half else "float32"
    )
    state = TrainingState(net, net, make_optimizer(net, settings), {}, torch.zeros(4), Progress())
    names = tuple(map(str, range(net.classes)))
    job: Any = SimpleNamespace(batches=plan, loss=Loss(plan.loss), class_names=names, settings=settings, ranks=ALONE)
    step = Step(job, state, None)  # type: ignore[arg-type]
    with pretended_gpu(plan.half) if plan.fused else ExitStack(), Followed() as followed:
        image = torch.rand(plan.batch, net.channels, *plan.window_hw).to(memory_format=torch.channels_last)
        target = torch.zeros(plan.batch, *plan.window_hw, dtype=torch.uint8)
        followed.peak = followed.now
        step._gradients(Batch(image, target))
    return followed.peak


def make_plan(fused: bool, half: bool, batch: int = 4, micro_batch: int = 0, hw: Any = (32, 32)) -> StepPlan:
    return StepPlan(batch, micro_batch or batch, hw, half, fused, fused)


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "maps take most": ({"width": 8, "depth": 3}, {}),
    "weights take most": ({"width": 32, "depth": 4}, {"batch": 1}),
    "both": ({"width": 16, "depth": 4}, {"batch": 2, "hw": (64, 64)}),
    "three parts": ({"width": 32, "depth": 3}, {"batch": 6, "micro_batch": 2}),
    "sides that do not divide, a skip cut": ({"width": 8, "depth": 2, "skips": (True, False)}, {"hw": (30, 41)}),
    "grey, more classes than channels": ({"width": 8, "depth": 2, "channels": 1, "classes": 12}, {}),
    "eight channels": ({"width": 8, "depth": 2, "channels": 8}, {}),
    "wider than the head holds": ({"width": 136, "depth": 1}, {"hw": (16, 16)}),
}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("fused", [False, True], ids=["layers", "fused"])
@pytest.mark.parametrize("name", SHAPES)
def test_peak_of_a_step(name: str, fused: bool, half: bool) -> None:
    shape, step = SHAPES[name]
    net = UNet(**{"classes": 3, **shape}).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plan = make_plan(fused, half, **step)
    assert predict_step_bytes(net, plan) == pytest.approx(follow_step(net, plan), rel=SLACK)


@pytest.mark.parametrize("kind", ["ce", "dice+ce", "dice+focal"])
@pytest.mark.parametrize("fused", [False, True])
def test_peak_with_each_loss_of_torch(kind: LossKind, fused: bool) -> None:
    """Also beside the fused network, as where there are too many classes for the kernel."""
    net = UNet(3, 12, 8, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plan = StepPlan(4, 4, (32, 32), half=True, fused=fused, fused_loss=False, loss=kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loss, "has_kernel", lambda *_args: False)
        assert predict_step_bytes(net, plan) == pytest.approx(follow_step(net, plan), rel=0.05)


def test_flops() -> None:
    """As torch counts them, for whole batches."""
    net = UNet(3, 4, 4, 3, (True, False, True))
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(2, 3, 32, 40)).sum().backward()
    assert 2 * count_step_flops(net, (32, 40)) == counter.get_total_flops()
    assert count_step_flops(net, (30, 33)) == count_step_flops(net, (32, 40))
