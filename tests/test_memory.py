"""Memory that runs out: smaller parts, the same training, one line where there is no smaller part; full disks."""

import json
import math
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import make_discs
from refusal import raises
from test_loop import MODERN, TUTORIAL, Listener, contents, make_job, press_once
from ubend.config import make_settings
from ubend.data.batches import Batch
from ubend.device import attempt, is_out_of_memory
from ubend.errors import OutputError, SettingError
from ubend.evaluation.evaluate import evaluate_pairs
from ubend.inference.predictor import load
from ubend.jobs import fit as job
from ubend.jobs.evaluate import read_run_pairs
from ubend.model.folded import FoldedUNet
from ubend.model.unet import UNet
from ubend.training import memory
from ubend.training.captured import make_step
from ubend.training.checkpoint import TrainingState
from ubend.training.setup import run_bytes
from ubend.training.step import Job, Step, micro_batch_of

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
    monkeypatch.setattr(job, "draw_panel", lambda *_args: lambda: None)
    monkeypatch.setattr("ubend.drawing.curves.draw_curves", lambda *_args: None)
    monkeypatch.setattr(job, "draw_curves", lambda *_args: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "discs"
    make_discs(folder, 24)
    return folder


def limit(monkeypatch: Patch, training: int = 99, other: int = 99) -> None:
    """A device on which at most so many pictures fit, while training and else."""

    def forward(self: UNet, image: Tensor) -> Tensor:
        logits = FORWARD(self, image)  # batch norm has counted by then
        if len(image) > (training if self.training else other):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return logits

    monkeypatch.setattr(UNet, "forward", forward)


def fit(folder: Path, run: Path, at_step: Callable[[int], None] = lambda done: None, **changes: Any) -> str:
    listener = Listener(at_step)
    job.fit(folder, run, settings={**MODERN, **changes}, device="cpu", teller=listener)
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
    assert "with 5 pictures at a time; the step is repeated, and training goes on, with 2 at a time" in said
    assert results(tmp_path / "limited") == results(tmp_path / "smaller")


@pytest.mark.parametrize(("where", "call"), [("forward", 7), ("backward", 8)])
def test_halved_on_the_way(where: str, call: int, folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Memory runs out once, in the first or a later micro-batch of a step: to the bit the run whose
    micro-batches get smaller at that step. Nothing of the failed try is left, not in gradients, sums or
    running statistics."""
    changes = {**TUTORIAL, "recipe": "tutorial"}  # 20 pictures a step, 8 at a time: three parts
    at = (call - 1) // 3
    with monkeypatch.context() as patch:
        patch.setattr(Step, "_micro_batch", lambda self: 8 if self.state.progress.step < at else 4)
        job.fit(folder, tmp_path / "planned", settings=changes, device="cpu", teller=Listener())
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
    job.fit(folder, tmp_path / "halved", settings=changes, device="cpu", teller=listener)
    assert "with 8 pictures at a time; the step is repeated, and training goes on, with 4" in listener.said
    assert results(tmp_path / "halved") == results(tmp_path / "planned")


def test_resume_keeps_the_smaller_size(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Stopped after every step and resumed, even where memory has grown since: the same to the bit, and
    what was said is not said again."""
    limit(monkeypatch, training=2, other=3)
    fit(folder, tmp_path / "whole")
    said = fit(folder, tmp_path / "run", press_once(1))
    assert said.count("note: out of memory") == 1
    for step in (2, 3, 4, 7, 99):
        listener = Listener(press_once(step))
        if step > 4:  # after the first validation
            monkeypatch.setattr(UNet, "forward", FORWARD)
        result = job.resume(tmp_path / "run", teller=listener)
        assert "out of memory with" not in listener.said
    assert result.scores is not None
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_validation(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Its pictures are taken fewer at a time, said once; the figures stay."""
    fit(folder, tmp_path / "whole")
    limit(monkeypatch, other=1)
    said = fit(folder, tmp_path / "limited")
    assert said.count("note: out of memory while validating") == 2, "4 pictures -> 2 -> 1, in the first epoch"
    for name in ("model.safetensors", "data.csv"):
        assert (tmp_path / "limited" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("changes", [{}, {"data.size": 32, "model.depth": 5, "train.batch": 4}])
def test_no_smaller_part(changes: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """One picture at a time, or two where batch norm needs two (one pixel at the deepest level): one line."""
    limit(monkeypatch, training=0)
    least = 2 if changes else 1
    with raises(SettingError, key="train.micro_batch", named=[f" {least} ", "--device cpu"]) as caught:
        fit(folder, tmp_path / "run", **{"data.resize": "squash", **changes})
    assert "\n" not in str(caught.value)


def test_prediction_and_evaluation(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Fewer pictures in a pass where memory runs out; one picture too many is one line with its size."""
    fit(folder, tmp_path / "run")
    pairs = read_run_pairs(tmp_path / "run")
    pictures = [pair.image for pair in pairs]
    wanted = {n: p.prob for n, p in load(tmp_path / "run", "cpu").predict(pictures)}
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
    found = {n: p.prob for n, p in predictor.predict(pictures)}
    assert set(found) == set(wanted)
    for n, prob in wanted.items():
        np.testing.assert_allclose(found[n], prob, atol=1e-5)
    sizes.clear()
    assert len(list(predictor.predict(pictures))) == len(pictures)
    assert max(sizes) <= 3, "what was learnt about the memory is kept"
    again = evaluate_pairs(load(tmp_path / "run", "cpu"), pairs)
    assert again["native"]["cross_entropy"] == pytest.approx(scores["native"]["cross_entropy"], rel=1e-4)

    limit(monkeypatch, other=0)
    monkeypatch.setattr(FoldedUNet, "__call__", lambda self, image: self._net(image.float()))
    for work in (lambda: list(load(tmp_path / "run", "cpu").predict(pictures)), lambda: job.resume(tmp_path / "run")):
        with raises(SettingError, key="device", named=["48x40", "--device cpu"]) as caught:
            work()
        assert "\n" not in str(caught.value)


def test_disk_without_room(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Said before anything is written: too little for the run, then too little for run and store together;
    with the store there, what the run needs is enough, and it was a fair guess."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    monkeypatch.setenv("UBEND_CACHE", str(cache))
    needed = run_bytes(make_settings(changes=MODERN), "cpu", resumed=False)
    free = needed - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**12, 10**12 - free, free))
    with raises(OutputError, path=run, named=["MiB", "--out"]) as caught:
        fit(folder, run)
    assert str(cache) not in str(caught.value)
    free = needed + 1
    with raises(OutputError, named=["UBEND_CACHE", "--size", "--out", "--width"]) as caught:
        fit(folder, run)
    assert "\n" not in str(caught.value)
    assert not run.exists()
    assert not list(cache.glob("*/store.json"))
    free = 10**10
    fit(folder, run)
    free = needed
    fit(folder, tmp_path / "again")
    state, model = ((run / name).stat().st_size for name in ("resume.safetensors", "model.safetensors"))
    panels = 3 * 2**19  # none is drawn here
    assert 0.5 < (needed - panels) / (2 * state + model) < 2


PASSES = memory.PassBytes((2, 5 * 10**6), (4, 9 * 10**6))


def give_room(monkeypatch: Patch, room: int | None) -> None:
    """A device with so many bytes to give, on which passes have taken what PASSES says."""
    monkeypatch.setattr(memory, "room_bytes", lambda _device: room)
    monkeypatch.setattr(job, "measure_passes", lambda *_args: None if room is None else PASSES)


def begun(folder: Path, run: Path, **changes: Any) -> tuple[Job, TrainingState]:
    """A training before its first step, and its state after its last one."""
    found: list[tuple[Job, TrainingState]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "choose_micro_batch", lambda *given: found.append(given[:2]))
        fit(folder, run, **changes)
    return found[0]


def test_micro_batch_that_fits(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Batches of 7: whole where there is room; in two parts, three where there is less, said with the figures and
    written down; to the bit the run whose micro_batch is set so. Resumed with more room, the choice stays."""
    changes = {"train.batch": 7}
    work, state = begun(folder, tmp_path / "begun", **changes)
    whole, four, three = (memory.predict_training_bytes(work, state, PASSES, size).coming for size in (7, 4, 3))
    assert three < four < whole
    rooms = {whole: None, whole - 1: 4, four: 4, four - 1: 3}
    for room, size in rooms.items():
        give_room(monkeypatch, math.ceil(room / memory._PLANNED))
        run = tmp_path / f"room for {size}, {room}"
        said = fit(folder, run, press_once(1), **changes)
        give_room(monkeypatch, None)
        said += job_resumed(run)
        line = f"train.micro_batch = {size}: a step with all 7 pictures at a time would take 0.0 GiB of memory"
        assert said.count(f"chosen: {line}") == (size is not None)
        chosen = json.loads((run / "run.json").read_text())["choices"]
        assert [choice.startswith(line) for choice in chosen].count(True) == (size is not None)
        fit(folder, tmp_path / f"set {size}, {room}", **changes, **({"train.micro_batch": size} if size else {}))
        assert results(run) == results(tmp_path / f"set {size}, {room}")


def test_the_smaller_of_what_is_set_and_what_fits() -> None:
    """As when somebody follows the advice to set less, for a run that goes on."""
    batches: Any = SimpleNamespace(batch=7)
    for given, kept, wanted in ((None, None, 7), (4, None, 4), (9, None, 7), (None, 3, 3), (4, 3, 3), (2, 3, 2)):
        work: Any = SimpleNamespace(batches=batches, settings=SimpleNamespace(micro_batch=given))
        state: Any = SimpleNamespace(progress=SimpleNamespace(micro_batch=kept))
        assert micro_batch_of(work, state) == wanted


def job_resumed(run: Path) -> str:
    listener = Listener()
    job.resume(run, teller=listener)
    return listener.said


def test_no_room_at_all(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """The smallest part that can be trained on is tried: a prediction is not a measurement."""
    give_room(monkeypatch, 1)
    assert "chosen: train.micro_batch = 1:" in fit(folder, tmp_path / "run")
    deep = {"data.size": 32, "data.resize": "squash", "model.depth": 5, "train.batch": 4}
    assert "chosen: train.micro_batch = 2:" in fit(folder, tmp_path / "deep", **deep)


def test_what_is_set_is_never_chosen_over(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    give_room(monkeypatch, 1)
    assert "chosen: train.micro_batch" not in fit(folder, tmp_path / "run", **{"train.micro_batch": 4})


def test_what_is_tried_before_the_first_step(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """A quarter and a half of what is taken at a time, less where memory is short; never one value per channel."""
    work, state = begun(folder, tmp_path / "run", **{"train.batch": 8})
    monkeypatch.setattr(memory, "room_bytes", lambda _device: 10**9)
    tried: list[int] = []
    most = 8

    def measure(_work: Job, _state: TrainingState, batch: Batch, pictures: int) -> int:
        tried.append(pictures)
        if pictures > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 100 + 10 * pictures

    monkeypatch.setattr(memory, "_measure_pass", measure)
    for fitting, wanted in ((8, (2, 4)), (3, (1, 2)), (1, None)):
        most = fitting
        found = memory.measure_passes(work, state)
        assert found == (wanted and memory.PassBytes(*((count, 100 + 10 * count) for count in wanted)))
        assert found is None or found.of(8) == 180
    monkeypatch.setattr(memory, "has_lone_values", lambda _batches, _depth, size: size == 1)
    most, tried = 3, []
    assert memory.measure_passes(work, state) is None
    assert tried == [2, 4]
    compiled = replace(work, settings=work.settings.model_copy(update={"compile": True}))
    assert memory.measure_passes(compiled, state) is None
    monkeypatch.setattr(memory, "room_bytes", lambda _device: None)
    assert memory.measure_passes(work, state) is None


def test_trying_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """Whether it works or not: weights, running statistics, no gradients."""
    work, state = begun(folder, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    batch = work.batches.draw(0)
    memory.try_pass(work, state, batch, 3)
    failing = replace(
        work, loss=SimpleNamespace(of_step=lambda *_args: 1 / 0, sum=work.loss.sum, count=work.loss.count)
    )
    with pytest.raises(ZeroDivisionError):
        memory.try_pass(failing, state, batch, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("micro_batch", [24, 8])
def test_predicted_and_measured(micro_batch: int, folder: Path, tmp_path: Path) -> None:
    """Within a tenth, of captured steps too."""
    given = {"model.width": 32, "train.batch": 24, "train.micro_batch": micro_batch}
    work, state = make_job(folder, tmp_path, given, "cuda")
    there = torch.cuda.memory_allocated()
    passes = memory.measure_passes(work, state)
    assert passes is not None
    predicted = memory.predict_training_bytes(work, state, passes)
    step = make_step(work, state, Listener())
    torch.cuda.reset_peak_memory_stats()
    for number in range(6):
        step(number)
    taken = torch.cuda.max_memory_allocated() - there
    assert predicted.coming - predicted.best == pytest.approx(taken, rel=0.1)


def test_room_is_known_on_a_gpu_only(monkeypatch: Patch) -> None:
    """There, what the allocator holds for later counts as free."""
    assert memory.room_bytes(torch.device("cpu")) is None
    given = {"mem_get_info": (700, 9000), "memory_reserved": 300, "memory_allocated": 200}
    for name, value in given.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    assert memory.room_bytes(torch.device("cuda")) == 800


def test_parts_of_the_prediction(folder: Path, tmp_path: Path) -> None:
    """What is there before the first step, and what stays after it, to the byte but for its rounding."""
    work, state = begun(folder, tmp_path / "run")
    predicted = memory.predict_training_bytes(work, state, PASSES)
    there = [work.batches.pictures, work.validation]
    assert predicted.pictures == sum(some.images.nbytes + some.masks.nbytes for some in there)
    nets = [*state.model.state_dict().values(), *state.average.state_dict().values()]
    assert predicted.weights == sum(tensor.nbytes for tensor in nets)
    assert predicted.best == sum(tensor.nbytes for tensor in state.best.values())
    moments = [t for some in state.optimizer.state.values() for name, t in some.items() if name != "step"]
    assert predicted.moments == sum(tensor.nbytes for tensor in moments)
    assert predicted.step == PASSES.of(5) == 11 * 10**6
    assert predicted.total == predicted.pictures + predicted.weights + predicted.coming


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda(folder: Path, tmp_path: Path) -> None:
    """A real allocator with little to give: training goes on in smaller parts, and resumes to the bit."""
    given = {"data.size": 256, "model.width": 32, "train.batch": 32, "train.epochs": 3, "train.precision": "float32"}
    given["train.deterministic"] = True
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(3 * 2**30 / total)
    try:
        for run, listener in (("whole", Listener()), ("cut", Listener(press_once(1)))):
            job.fit(folder, tmp_path / run, settings=given, device="cuda", teller=listener)
            assert "note: out of memory with 32 pictures at a time" in listener.said
        job.resume(tmp_path / "cut", teller=Listener())
    finally:
        torch.use_deterministic_algorithms(False)
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
