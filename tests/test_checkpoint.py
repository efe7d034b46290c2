"""resume.safetensors: every tensor bit by bit, in the network's own memory order; nothing half loaded."""

import copy
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from support.refusal import raises
from ubend.core.errors import ModelFileError, OutputError
from ubend.core.settings import TrainSettings
from ubend.models import model_file as writer
from ubend.models.unet import UNet
from ubend.training import checkpoint
from ubend.training.checkpoint import Progress, Saver, TrainingState, load_state, save_state
from ubend.training.optim import make_optimizer, update_ema


def fresh(seed: int = 0, average: bool = True, channels: int = 3, width: int = 2, name: str = "adamw") -> TrainingState:
    """A state before its first step, channels last as the job makes it."""
    torch.manual_seed(seed)
    model = UNet(channels, 2, width=width, depth=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(model).requires_grad_(False) if average else model
    optimizer = make_optimizer(model, TrainSettings.model_validate({"optimizer": name}))
    return TrainingState(model, averaged, optimizer, torch.zeros(4, dtype=torch.float64), Progress())


def step(state: TrainingState) -> float:
    """One step on images that depend on the step's number alone; the loss."""
    generator = torch.Generator().manual_seed(state.progress.step)
    channels = next(state.model.parameters()).shape[1]
    image = torch.randn(2, channels, 12, 12, generator=generator).contiguous(memory_format=torch.channels_last)
    state.model.train()
    loss = state.model(image).square().mean()
    loss.backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.ema is not state.model:
        update_ema(state.ema, state.model, 0.5)
    state.sums += torch.rand(4, generator=generator, dtype=torch.float64) / 3
    state.progress.step += 1
    return float(loss.detach())


def trained(seed: int = 0, steps: int = 3, best: bool = True, **given: Any) -> TrainingState:
    state = fresh(seed, **given)
    for _ in range(steps):
        step(state)
    if best:
        state.best = {name: t.clone() + 0 for name, t in state.ema.state_dict().items()}
        state.progress.best_value, state.progress.best_epoch = -0.1 - 0.2, 1
        state.progress.history = [{"epoch": 1, "val_dice": {"nền": None}, "train_loss": 1 / 3, "best": True}]
        step(state)
    return state


def tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    """Every tensor of a state, named independently of the code under test."""
    out = {f"model {n}": t for n, t in state.model.state_dict().items()}
    out |= {f"average {n}": t for n, t in state.ema.state_dict().items()}
    if state.progress.best_epoch:
        out |= {f"best {n}": t for n, t in state.best.items()}
    for number, parameter in enumerate(state.model.parameters()):
        out |= {f"moment {number} {n}": t for n, t in state.optimizer.state.get(parameter, {}).items()}
    return out | {"sums": state.sums}


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_round_trip(average: bool, best: bool, name: str, tmp_path: Path) -> None:
    """Values and strides of every tensor, and the progress; then both continue alike."""
    state = trained(average=average, best=best, name=name)
    save_state(tmp_path / "resume.safetensors", state)
    loaded = fresh(1, average=average, name=name)
    load_state(tmp_path / "resume.safetensors", loaded)
    mine, theirs = tensors(state), tensors(loaded)
    assert mine.keys() == theirs.keys()
    assert ("best head.weight" in mine) is best
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]), key
        assert tensor.dtype == theirs[key].dtype, key
        assert tensor.stride() == theirs[key].stride(), key
    kernel = next(p for p in loaded.model.parameters() if p.shape[-1] == 3 and p.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
    assert loaded.progress == state.progress
    assert [step(state) for _ in range(3)] == [step(loaded) for _ in range(3)]
    theirs = tensors(loaded)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in tensors(state).items())


def test_before_the_first_step(tmp_path: Path) -> None:
    """No moments and no best weights yet."""
    state = fresh()
    save_state(tmp_path / "s.safetensors", state)
    loaded = fresh(1)
    load_state(tmp_path / "s.safetensors", loaded)
    assert not loaded.progress.best_epoch
    assert not loaded.optimizer.state
    assert [step(state), step(state)] == [step(loaded), step(loaded)]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_parameter_without_gradient(name: str, tmp_path: Path) -> None:
    """It has no moments, neither in the file nor after loading."""

    def fresh() -> TrainingState:
        torch.manual_seed(0)
        model: Any = nn.ModuleDict({"unused": nn.Linear(2, 2), "used": nn.Linear(2, 2)})
        optimizer = make_optimizer(model, TrainSettings.model_validate({"optimizer": name}))
        return TrainingState(model, model, optimizer, torch.zeros(4, dtype=torch.float64), Progress())

    state, loaded = fresh(), fresh()
    state.model.get_submodule("used")(torch.ones(1, 2)).sum().backward()
    state.optimizer.step()
    save_state(tmp_path / "s.safetensors", state)
    load_state(tmp_path / "s.safetensors", loaded)
    mine, theirs = tensors(state), tensors(loaded)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())


def refused(path: Path, state: TrainingState) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_state(path, state)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, trained())
    content = path.read_bytes()
    for length in {0, 1, 8, 50, len(content) - 1, *range(0, len(content), 9973)}:
        path.write_bytes(content[:length])
        refused(path, fresh())


def test_not_a_state(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    refused(tmp_path / "none.safetensors", fresh())
    path.write_bytes(b"no tensors here, only words")
    refused(path, fresh())
    for header in (None, {"ubend": "{}"}, {"ubend_state": "["}, {"ubend_state": "[]"}, {"ubend_state": '{"new": 1}'}):
        save_file({"weight": torch.zeros(3)}, path, header)
        refused(path, fresh())


@pytest.mark.parametrize("given", [{"width": 4}, {"channels": 1}, {"average": False}])
def test_of_another_network(given: dict[str, Any], tmp_path: Path) -> None:
    """Another shape is refused, one that could be stretched over this one too."""
    path = tmp_path / "s.safetensors"
    save_state(path, trained(**given))
    refused(path, fresh())


def test_failed_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "resume.safetensors"
    save_state(path, trained(steps=1))
    before = path.read_bytes()

    def fill(_tensors: Any, target: Path, _header: Any) -> None:
        Path(target).write_bytes(before[:500])
        raise writer.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writer, "save_file", fill)
    with raises(OutputError, path="resume.safetensors", named=["No space left"]):
        save_state(path, trained(steps=2))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["resume.safetensors"]


def test_saver_writes_the_state_as_it_was(tmp_path: Path) -> None:
    """Training may continue while it writes; the model file holds the best weights, or else the averaged ones."""
    models: list[dict[str, torch.Tensor]] = []
    gate = threading.Event()

    def keep(weights: Mapping[str, torch.Tensor], _history: object) -> None:
        assert gate.wait(10)
        time.sleep(0.2)  # the test does not win by chance
        models.append(dict(weights))

    state, expected = trained(best=False), trained(best=False)
    with Saver(tmp_path / "s.safetensors", keep) as saver:
        saver.save(state)
        assert not saver.is_due()  # one write at a time
        step(state)
        gate.set()
    loaded = fresh(1)
    load_state(tmp_path / "s.safetensors", loaded)  # whole as soon as the saver is left
    theirs = tensors(loaded)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in tensors(expected).items())
    assert loaded.progress == expected.progress
    averaged = expected.ema.state_dict()
    assert all(torch.equal(models[0][name], tensor) for name, tensor in averaged.items())
    state = trained(best=True)
    with Saver(tmp_path / "s.safetensors", keep) as saver:
        saver.save(state)
        saver.wait()
    assert models[1].keys() == state.best.keys()
    assert all(torch.equal(models[1][name], tensor) for name, tensor in state.best.items())


def test_other_writing_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel is there before the state of its epoch, so that a run that continues from it lacks none; few wait; nobody
    waits for them to have the model."""
    monkeypatch.setattr(checkpoint, "_MAX_WAITING", 2)
    state, done, has_model = tmp_path / "s.safetensors", list[object](), threading.Event()

    def draw(number: int) -> Callable[[], None]:
        def work() -> None:
            time.sleep(0.05)
            assert number < 3 or has_model.wait(60), "the model waits for the last panel"
            done.append((number, state.exists()))

        return work

    with Saver(state, lambda _weights, _history: done.append("model")) as saver:
        for number in range(4):
            saver.begin(draw(number))
            assert len(done) >= number - 1
        saver.save(trained(steps=1))
        saver.wait_for_model()
        assert "model" in done
        assert (3, False) not in done
        has_model.set()
        saver.wait()
        done.remove("model")
        assert done == [(number, False) for number in range(4)]
        assert state.exists()


def test_saver_tells_of_a_failed_drawing(tmp_path: Path) -> None:
    def refuse() -> None:
        raise OutputError("no room")

    with Saver(tmp_path / "s.safetensors", lambda _weights, _history: None) as saver:
        saver.begin(refuse)
        with pytest.raises(OutputError, match="no room"):
            saver.wait()


def test_saver_tells_of_a_failed_write(tmp_path: Path) -> None:
    """At the next save, or at the end; a failure does not hang or hide an error that is on its way."""

    def refuse(_weights: Mapping[str, torch.Tensor], _history: object) -> None:
        raise OutputError("no room")

    def stop(saver: Saver) -> None:
        with saver:
            saver.save(trained(steps=1))
            raise KeyboardInterrupt

    with Saver(tmp_path / "s.safetensors", refuse) as saver:
        saver.save(trained(steps=1))
        with pytest.raises(OutputError, match="no room"):
            saver.save(trained(steps=1))
    with pytest.raises(OutputError, match="no room"), Saver(tmp_path / "s.safetensors", refuse) as saver:
        saver.save(trained(steps=1))
    with pytest.raises(KeyboardInterrupt):
        stop(Saver(tmp_path / "s.safetensors", refuse))
