"""Atomic save and exact resume: one safetensors file contains everything that a step depends on.

Tensors are stored contiguous and copied back into tensors of the network's own memory format. Everything else is JSON
in the file's header, so that a single file stays consistent.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ubend.core.errors import ModelFileError
from ubend.core.files import named_in_utf8
from ubend.core.i18n import _
from ubend.core.plan import TrainPlan
from ubend.models.model_file import Bundle, save_bundle, write_tensors
from ubend.models.networks import Network

_SHARE = 20  # the next save waits this many times as long as the last one took, so saving takes at most 5% of the time
_PANEL_BYTES = 2**19  # estimated PNG size of one panel; one is written per epoch
_MAX_WAITING = 8  # maximum number of panels waiting to be drawn, if epochs are short
# names in the file
_HEADER, _MODEL, _EMA, _BEST, _OPTIMIZER, _SUMS = "ubend_state", "model.", "average.", "best.", "optimizer.", "sums"
_FORK, _MEAN = "fork.", "mean."
_STOPPED = "stopped"  # key of `Progress.stop_reason` in the header


@dataclass
class Progress:
    """The progress of a training: the part of its state that is not tensors.

    Attributes:
        step: steps done.
        history: one row per finished epoch, as in metrics.jsonl.
        best_value: validation score of the kept weights, greater is better; None before the first validation.
        best_epoch: its epoch.
        stop_reason: why the training was stopped early; None while it continues, and if it ran to its end.
        branch: number of the current branch, from 1; 0 in the trunk, and without branches, see branches.py.
        micro_batch: images in memory at once, reduced after running out of memory; None: as in the settings.
        validation_batch: the same for validation.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_value: float | None = None
    best_epoch: int = 0
    stop_reason: str | None = None
    branch: int = 0
    micro_batch: int | None = None
    validation_batch: int | None = None

    @staticmethod
    def from_json(text: str) -> "Progress":
        """Read the header of a state's file."""
        return Progress(**{"stop_reason" if key == _STOPPED else key: value for key, value in json.loads(text).items()})

    def to_json(self) -> str:
        """The header of a state's file."""
        return json.dumps({_STOPPED if key == "stop_reason" else key: value for key, value in vars(self).items()})


class RunningStatistics:
    """Backup of batch norm's running statistics, for a step that may have to be repeated.

    The copies are allocated once and filled in two launches, so that a GPU's step does not wait for Python.
    """

    def __init__(self, model: nn.Module) -> None:
        buffers = list(model.buffers())
        kinds = {buffer.dtype for buffer in buffers}
        self._buffers = [[buffer for buffer in buffers if buffer.dtype == kind] for kind in kinds]
        self._copies = [[buffer.clone() for buffer in of_model] for of_model in self._buffers]

    def keep(self) -> None:
        for copies, buffers in zip(self._copies, self._buffers, strict=True):
            torch._foreach_copy_(copies, buffers)

    def restore(self) -> None:
        for copies, buffers in zip(self._copies, self._buffers, strict=True):
            torch._foreach_copy_(buffers, copies)


@dataclass
class TrainingState:
    """Everything that changes while training.

    Attributes:
        model: being trained.
        ema: the EMA of the weights; the model itself if there is no EMA.
        optimizer: with its moments.
        sums: (4,) float64 (float32 on MPS) on the device, of the steps of this epoch so far: cross entropy, pixels,
            Dice loss, Dice terms; see `LossSums` and `LossCounts`.
        best: the weights of the best epoch, by name; undefined before the first validation. They and the copies of
            the statistics are allocated in advance, so that memory runs out in the first step, not after an epoch.
        fork: network, EMA and optimizer at the end of the trunk, named as in the file; empty in the trunk.
        mean: mean of the EMAs at the ends of the finished branches, by name; empty in the trunk and the first branch.
    """

    model: Network
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    sums: Tensor
    progress: Progress

    def __post_init__(self) -> None:
        self.best = {name: torch.empty_like(tensor) for name, tensor in self.ema.state_dict().items()}
        self.statistics = RunningStatistics(self.model)
        self.fork: dict[str, Tensor] = {}
        self.mean: dict[str, Tensor] = {}


class Saver:
    """Writes states and other files of a run in the background; training waits only for the copy of the tensors.

    Use it as a context manager: all writes are complete at its end, and errors of background writes are raised there.

    Args:
        path: the state's file.
        save_model: writes the model file from the kept weights, by name, and the history so far.
    """

    def __init__(
        self, path: Path, save_model: Callable[[Mapping[str, Tensor], Sequence[Mapping[str, Any]]], None]
    ) -> None:
        self._path, self._save_model = path, save_model
        self._saving = ThreadPoolExecutor(1, thread_name_prefix="ubend-save")
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="ubend-draw")
        self._drawings: deque[Future[None]] = deque()
        self._write: Future[float] | None = None
        self._model: Future[None] | None = None
        self._started, self._pause_s = time.monotonic(), 0.0

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._saving.shutdown()
        self._drawing.shutdown()
        if error is None:
            self.wait()

    def is_due(self, after_s: float = 0.0) -> bool:
        """Whether saving now is cheap: at most a 20th of the time, with no other write in progress."""
        since = time.monotonic() - self._started
        return (self._write is None or self._write.done()) and since >= max(after_s, self._pause_s)

    def save(self, state: TrainingState) -> None:
        """Copy the state and start writing it, the model first; errors of the previous write are raised here."""
        self._wait_for_files()
        self._started = time.monotonic()
        tensors, header = snapshot_state(state)
        copied_s = time.monotonic() - self._started
        self._pause_s = max(self._pause_s, _SHARE * copied_s)
        prefix = next(kind for kind in (_BEST, _EMA, _MODEL) if any(n.startswith(kind) for n in tensors))
        weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        self._model = self._saving.submit(self._save_model, weights, list(state.progress.history))
        self._write = self._saving.submit(self._write_state, tensors, header, list(self._drawings))

    def begin(self, work: Callable[[], None]) -> None:
        """Start another write, which finishes before any state that is saved later; for errors see `save`."""
        while self._drawings and (self._drawings[0].done() or len(self._drawings) >= _MAX_WAITING):
            self._drawings.popleft().result()
        self._drawings.append(self._drawing.submit(work))

    def wait_for_model(self) -> None:
        """Wait until the model file of the last saved state is written."""
        model, self._model = self._model, None
        if model is not None:
            model.result()

    def wait(self) -> None:
        """Wait until all writes are finished."""
        while self._drawings:
            self._drawings.popleft().result()
        self._wait_for_files()

    def _wait_for_files(self) -> None:
        self.wait_for_model()
        write, self._write = self._write, None
        if write is not None:
            self._pause_s = max(self._pause_s, _SHARE * write.result())

    def _write_state(self, tensors: dict[str, Tensor], header: dict[str, str], before: list[Future[None]]) -> float:
        wait(before)
        started = time.monotonic()
        write_tensors(self._path, tensors, header)
        return time.monotonic() - started


def snapshot_state(state: TrainingState) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies of all tensors in main memory, and the file's header."""
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(state).items()}
    return tensors, {_HEADER: state.progress.to_json()}


def save_state(path: Path, state: TrainingState) -> None:
    """Write the state atomically."""
    write_tensors(path, *snapshot_state(state))


def save_fork(state: TrainingState) -> None:
    """Keep network, EMA and optimizer as they are, for `restore_fork`."""
    state.fork = {name: tensor.detach().clone() for name, tensor in _changing_tensors(state).items()}


@torch.no_grad()
def restore_fork(state: TrainingState) -> None:
    """Set network, EMA and optimizer to what they were at the fork; in place, so a captured step sees it."""
    for name, tensor in _changing_tensors(state).items():
        tensor.copy_(state.fork[name])


@torch.no_grad()
def load_state(path: Path, state: TrainingState) -> None:
    """Load a file into a newly built state.

    Raises:
        ModelFileError: truncated, not a training state, or of another network.
    """
    try:
        with named_in_utf8(path) as opened_path, safe_open(opened_path, "pt") as file:
            header = file.metadata() or {}
            state.progress = Progress.from_json(header[_HEADER])
            names = set(file.keys())
            moved = {int(name.split(".")[1]) for name in names if name.startswith(_OPTIMIZER)}
            if moved:
                for index, parameter in enumerate(_parameters(state.optimizer)):
                    if index in moved:  # parameters that the loss does not depend on have no gradient, and no moments
                        parameter.grad = torch.zeros_like(parameter)
                state.optimizer.step()  # creates the moments; its change of the weights is overwritten below
                state.optimizer.zero_grad()
            if state.progress.branch:
                save_fork(state)
            if state.progress.branch > 1:
                state.mean = {name: torch.empty_like(tensor) for name, tensor in state.ema.state_dict().items()}
            targets = _tensors(state)
            if set(targets) != names:
                raise KeyError(next(iter(set(targets) ^ names)))
            for name, tensor in targets.items():
                saved = file.get_tensor(name)
                if saved.shape != tensor.shape:  # copy_ would broadcast one channel to three
                    raise ValueError(f"{name}: {tuple(saved.shape)} instead of {tuple(tensor.shape)}")
                tensor.copy_(saved)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelFileError(
            _("{path}: cannot resume from this file ({reason}); start the training again").format(
                path=path, reason=error
            ),
            path=path,
        ) from error


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """All tensors of a state, by their names in the file."""
    tensors = _changing_tensors(state) | {_SUMS: state.sums}
    if state.progress.best_epoch:
        tensors |= {_BEST + name: tensor for name, tensor in state.best.items()}
    tensors |= {_FORK + name: tensor for name, tensor in state.fork.items()}
    return tensors | {_MEAN + name: tensor for name, tensor in state.mean.items()}


def _changing_tensors(state: TrainingState) -> dict[str, Tensor]:
    """The tensors that a step changes: network, EMA and optimizer."""
    tensors = {_MODEL + name: tensor for name, tensor in state.model.state_dict().items()}
    if state.ema is not state.model:
        tensors |= {_EMA + name: tensor for name, tensor in state.ema.state_dict().items()}
    for index, parameter in enumerate(_parameters(state.optimizer)):
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"{_OPTIMIZER}{index}.{name}": tensor for name, tensor in moments.items()}
    return tensors


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for parameter_group in optimizer.param_groups for parameter in parameter_group["params"]]


def save_trained(
    path: Path, bundle: Bundle, weights: Mapping[str, Tensor], history: Sequence[Mapping[str, Any]]
) -> None:
    """Write the model file; its `about` states the training progress and the validation scores of these weights.

    Args:
        weights: by name, of the best row of `history`.
        history: one row per epoch, as in metrics.jsonl.
    Raises:
        OutputError: it cannot be written.
    """
    about = bundle.about | {"epochs": len(history)}
    for row in [row for row in history if row["best"]][-1:]:
        about |= {"kept_epoch": row["epoch"], "val_dice": row["val_dice"]}
    save_bundle(path, replace(bundle, about=about), weights)


def run_bytes(state: TrainingState, settings: TrainPlan, *, resumed: bool) -> int:
    """Estimated bytes that a run still needs on the disk.

    A new file is complete before it replaces the old one, so that both exist for a while. Everything is float32; the
    state holds weights, best and EMA weights, and the optimizer's two moments; with branches as much for the fork and
    the mean. One panel is written per epoch.
    """
    model: int = sum(4 * tensor.numel() for tensor in state.model.state_dict().values())
    weights = model * (5 if state.ema is not state.model else 4) * (2 if settings.branches > 1 else 1)
    return weights + model + (0 if resumed else weights + settings.epochs * _PANEL_BYTES)
