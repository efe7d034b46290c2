"""Memory that runs out: smaller regions, the same training, one line where there is no smaller part; full disks."""

import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from support.discs import make_discs
from support.refusal import raises
from support.training import MODERN, TUTORIAL, Listener, contents, press_once
from ubend.accel.folded import FoldedUNet
from ubend.core.device import attempt
from ubend.core.errors import OutputError, SettingError
from ubend.evaluation.scores import evaluate_pairs
from ubend.inference.predictor import load
from ubend.models.unet import UNet
from ubend.portable.errors import is_out_of_memory
from ubend.tasks import fit as job
from ubend.tasks.evaluate import read_run_pairs
from ubend.training.training import Training

Patch = pytest.MonkeyPatch
FORWARD = UNet.forward


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: Patch) -> None:
    """No panels and curves, for speed."""
    monkeypatch.setattr(job, "EpochDrawing", lambda *_args, **_named: lambda _state: lambda: None)
    monkeypatch.setattr(job, "draw_curves", lambda *_args: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "discs"
    make_discs(folder, 24)
    return folder


def limit(monkeypatch: Patch, training: int = 99, other: int = 99) -> None:
    """A device on which at most so many images fit, while training and else, in inference mode."""

    def forward(self: UNet, image: Tensor) -> Tensor:
        logits = FORWARD(self, image)  # batch norm has counted by then
        if len(image) > (other if torch.is_inference_mode_enabled() else training):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return logits

    monkeypatch.setattr(UNet, "forward", forward)


def fit(folder: Path, run: Path, at_step: Callable[[int], None] = lambda done: None, **changes: Any) -> str:
    listener = Listener(at_step)
    job.fit(folder, run, settings={**MODERN, **changes}, device="cpu", reporter=listener)
    return listener.said


def results(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(run).items() if name not in ("settings.toml", "resume.safetensors")}


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((9,), np.dtype(float)), True),  # type: ignore[attr-defined]
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_out_of_memory(error: BaseException, wanted: bool) -> None:
    assert is_out_of_memory(error) is wanted


def test_a_real_allocation_that_fails() -> None:
    """torch's and numpy's own errors for more than any machine has, and then nothing is kept alive."""
    kept = []

    def work(take: Callable[[], object]) -> object:
        tensor = torch.ones(1000)
        kept.append(weakref.ref(tensor))
        return take(), tensor

    assert attempt(work, lambda: torch.empty(2**50)) is None
    assert attempt(work, lambda: np.empty(2**50)) is None
    assert [tensor() for tensor in kept] == [None, None]
    assert attempt(lambda a, b: a + b, 2, b=3) == 5
    with pytest.raises(ValueError, match="another"):
        attempt(lambda: (_ for _ in ()).throw(ValueError("another")))


def test_same_as_begun_smaller(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Batches of 5, of which 2 fit: to the bit the run with micro_batch 2; said once."""
    fit(folder, tmp_path / "smaller", **{"train.micro_batch": 2})
    limit(monkeypatch, training=2)
    said = fit(folder, tmp_path / "limited")
    assert said.count("note: out of memory with") == 1
    assert "with 5 images at a time; the step is repeated, and training continues with 2 at a time" in said
    assert results(tmp_path / "limited") == results(tmp_path / "smaller")


@pytest.mark.parametrize(("where", "call"), [("forward", 7), ("backward", 8)])
def test_halved_on_the_way(where: str, call: int, folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Memory runs out once, in the first or a later micro-batch of a step: to the bit the run whose
    micro-batches get smaller at that step. Nothing of the failed try is left, not in gradients, sums or
    running statistics."""
    changes = {**TUTORIAL, "recipe": "tutorial"}  # 20 images a step, 8 at a time: three parts
    at = (call - 1) // 3
    with monkeypatch.context() as patch:
        patch.setattr(Training, "micro_batch", property(lambda self: 8 if self.state.progress.step < at else 4))
        job.fit(folder, tmp_path / "planned", settings=changes, device="cpu", reporter=Listener())
    calls = 0

    def forward(self: UNet, image: Tensor) -> Tensor:
        nonlocal calls
        logits = FORWARD(self, image)
        calls += self.training
        if self.training and calls == call:
            if where == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            logits.register_hook(fail)  # type: ignore[no-untyped-call]
            calls += 1
        return logits

    def fail(_gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(UNet, "forward", forward)
    listener = Listener()
    job.fit(folder, tmp_path / "halved", settings=changes, device="cpu", reporter=listener)
    assert "with 8 images at a time; the step is repeated, and training continues with 4" in listener.said
    assert results(tmp_path / "halved") == results(tmp_path / "planned")


def test_resume_keeps_the_smaller_size(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Stopped after every step and resumed, even where memory has grown since: the same to the bit, and
    what was reported is not said again."""
    limit(monkeypatch, training=2, other=3)
    fit(folder, tmp_path / "whole")
    said = fit(folder, tmp_path / "run", press_once(1))
    assert said.count("note: out of memory") == 1
    for at in (2, 3, 4, 7, 99):
        listener = Listener(press_once(at))
        if at > 4:  # after the first validation
            monkeypatch.setattr(UNet, "forward", FORWARD)
        result = job.resume(tmp_path / "run", reporter=listener)
        assert "out of memory with" not in listener.said
    assert result.scores is not None
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_validation(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Its images are taken fewer at a time, said once; the figures stay."""
    fit(folder, tmp_path / "whole")
    limit(monkeypatch, other=1)
    said = fit(folder, tmp_path / "limited")
    assert said.count("note: out of memory while validating") == 2, "4 images -> 2 -> 1, in the first epoch"
    for name in ("model.safetensors", "data.csv"):
        assert (tmp_path / "limited" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("changes", [{}, {"data.size": 32, "model.depth": 5, "train.batch": 4}])
def test_no_smaller_part(changes: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """One image at a time, or two where batch norm needs two (one pixel at the deepest level): one line."""
    limit(monkeypatch, training=0)
    least = 2 if changes else 1
    with raises(SettingError, key="train.micro_batch", named=[f" {least} ", "--device cpu"]) as caught:
        fit(folder, tmp_path / "run", **{"data.resize": "squash", **changes})
    assert "\n" not in str(caught.value)


def test_prediction_and_evaluation(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Fewer images in a pass where memory runs out; one image too many is one line with its size."""
    fit(folder, tmp_path / "run")
    pairs = read_run_pairs(tmp_path / "run")
    images = [pair.image for pair in pairs]
    wanted = {n: p.probabilities for n, p in load(tmp_path / "run", "cpu").predict(images, probabilities=True)}
    scores = evaluate_pairs(load(tmp_path / "run", "cpu"), pairs)
    sizes = []

    folded = FoldedUNet.__call__

    def forward(self: FoldedUNet, image: Tensor) -> Tensor:
        sizes.append(len(image))
        if len(image) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return folded(self, image)

    monkeypatch.setattr(FoldedUNet, "__call__", forward)
    predictor = load(tmp_path / "run", "cpu")
    found = {n: p.probabilities for n, p in predictor.predict(images, probabilities=True)}
    assert set(found) == set(wanted)
    for n, prob in wanted.items():
        np.testing.assert_allclose(found[n], prob, atol=1e-5)
    sizes.clear()
    assert len(list(predictor.predict(images))) == len(images)
    assert max(sizes) <= 3, "what was learnt about the memory is kept"
    again = evaluate_pairs(load(tmp_path / "run", "cpu"), pairs)
    assert again["native"]["cross_entropy"] == pytest.approx(scores["native"]["cross_entropy"], rel=1e-4)

    limit(monkeypatch, other=0)
    monkeypatch.setattr(FoldedUNet, "__call__", lambda self, image: self._net(image.float()))
    for work in (lambda: list(load(tmp_path / "run", "cpu").predict(images)), lambda: job.resume(tmp_path / "run")):
        with raises(SettingError, key="device", named=["48x40", "--device cpu"]) as caught:
            work()
        assert "\n" not in str(caught.value)


def test_disk_without_room(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Said before the store is built, and before the run is begun; what was decoded stays; a fair guess."""
    cache, run, free = tmp_path / "cache", tmp_path / "run", 1000
    monkeypatch.setenv("UBEND_CACHE", str(cache))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**12, 10**12 - free, free))
    with raises(OutputError, path=cache, named=["MiB", "UBEND_CACHE", "--size"]):
        fit(folder, run)
    assert not list(cache.glob("*/store.json"))
    fit_sizes, real = [], job.run_bytes
    monkeypatch.setattr(
        job, "run_bytes", lambda *given, **named: fit_sizes.append(real(*given, **named)) or fit_sizes[-1]
    )
    free = 300_000
    with raises(OutputError, path=run, named=["MiB", "--out"]) as caught:
        fit(folder, run)
    assert "\n" not in str(caught.value)
    assert not run.exists()
    assert list(cache.glob("*/store.json"))
    (needed,) = set(fit_sizes)
    free = needed
    fit(folder, run)
    state, model = ((run / name).stat().st_size for name in ("resume.safetensors", "model.safetensors"))
    panels = 3 * 2**19  # none is drawn here
    assert 0.5 < (needed - panels) / (2 * state + model) < 2


def test_the_smaller_of_what_is_set_and_what_fits() -> None:
    """As when somebody follows the advice to set less, for a run that continues."""
    batches: Any = SimpleNamespace(batch_per_process=7)
    for given, kept, wanted in ((7, None, 7), (4, None, 4), (9, None, 7), (7, 3, 3), (4, 3, 3), (2, 3, 2)):
        state: Any = SimpleNamespace(progress=SimpleNamespace(micro_batch=kept))
        plan: Any = SimpleNamespace(micro_batch=given)
        work: Any = SimpleNamespace(batches=batches, settings=plan, state=state)
        assert Training.micro_batch.fget(work) == wanted  # type: ignore[attr-defined]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda(folder: Path, tmp_path: Path) -> None:
    """A real allocator with little to give: training continues in smaller regions, and resumes to the bit."""
    given = {"data.size": 256, "model.width": 32, "train.batch": 32, "train.epochs": 3, "train.precision": "float32"}
    given["train.deterministic"] = True
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(3 * 2**30 / total)
    try:
        for run, listener in (("whole", Listener()), ("cut", Listener(press_once(1)))):
            job.fit(folder, tmp_path / run, settings=given, device="cuda", reporter=listener)
            assert "note: out of memory with 32 images at a time" in listener.said
        job.resume(tmp_path / "cut", reporter=Listener())
    finally:
        torch.use_deterministic_algorithms(False)
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
