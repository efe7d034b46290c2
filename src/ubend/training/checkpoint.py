"""Atomic save and exact resume: one safetensors file holds everything that a step depends on.

Tensors are stored contiguous and copied back into tensors of the network's own memory format. What is
not a tensor stands as JSON in the file's header, so that there are not two files to get out of step.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ubend.errors import ModelFileError
from ubend.language import _
from ubend.model.bundle import write_tensors


@dataclass
class Progress:
    """Where a training stands; the part of its state that is not tensors.

    Attributes:
        step: steps done.
        history: one row per finished epoch, as in metrics.jsonl.
        best_value: validation figure of the kept weights, greater is better; None before the first.
        best_epoch: its epoch.
        stopped: why training ended before its last step; None while it goes on.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_value: float | None = None
    best_epoch: int = 0
    stopped: str | None = None


@dataclass
class TrainingState:
    """Everything that changes while training.

    Attributes:
        model: being trained.
        average: averaged weights; the model itself when nothing is averaged.
        optimizer: with its moments.
        best: the weights that are kept, by name; empty before the first validation.
        sums: (4,) float64 on the device: cross entropy, pixels, 1 - Dice, regions of the unfinished epoch.
    """

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Adam
    best: dict[str, Tensor]
    sums: Tensor
    progress: Progress


def save_state(path: Path, state: TrainingState) -> None:
    """Write the state, whole or not at all."""
    write_tensors(path, _tensors(state), {"ubend_state": json.dumps(vars(state.progress))})


@torch.no_grad()
def load_state(path: Path, state: TrainingState) -> None:
    """Fill a freshly made state from a file.

    Raises:
        ModelFileError: truncated, not a training state, or of another network.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            state.progress = Progress(**json.loads(header["ubend_state"]))
            names = set(file.keys())
            for parameter in _parameters(state.optimizer):
                if "optimizer.0.step" in names:
                    on = parameter.device if state.optimizer.defaults["fused"] else "cpu"
                    state.optimizer.state[parameter] = {
                        "step": torch.zeros((), dtype=torch.float32, device=on),
                        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    }
            if any(name.startswith("best.") for name in names):
                state.best = {name: torch.empty_like(t) for name, t in state.average.state_dict().items()}
            targets = _tensors(state)
            if set(targets) != names:
                raise KeyError(next(iter(set(targets) ^ names)))
            for name, tensor in targets.items():
                tensor.copy_(file.get_tensor(name))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelFileError(
            _("{path}: cannot go on from this file ({reason}); start the training anew").format(path=path, reason=error)
        ) from error


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    if state.average is not state.model:
        tensors |= {f"average.{name}": tensor for name, tensor in state.average.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for number, parameter in enumerate(_parameters(state.optimizer)):
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    return tensors | {"sums": state.sums}


def _parameters(optimizer: torch.optim.Adam) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
