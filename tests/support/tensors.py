"""The tensors of model files."""

from pathlib import Path

import torch
from safetensors import safe_open

from ubend.core.files import model_path


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Of a model file, or of a run folder."""
    with safe_open(model_path(path), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def same_tensors(a: Path, b: Path) -> bool:
    """Whether two model files, or run folders, have the same tensors to the bit."""
    left, right = tensors_of(a), tensors_of(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
