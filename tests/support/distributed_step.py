"""One step and one validation in each of several processes; what the first one finds goes to a file.

    python distributed_step.py FOLDER OUT.safetensors      with torchrun's environment, or alone

Three ways of batch norm: `frozen` (its statistics stay), `synced`, `live` (each process looks at its own images).
And `fused`: live batch norm in the fused network, whose gradients are summed while others are computed.
"""

import io
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from ubend.accel import fused, reference
from ubend.core.autoconfig import resolve
from ubend.core.progress import Reporter
from ubend.core.settings import make_settings
from ubend.dataset.prepare import prepare
from ubend.models.unet import UNet
from ubend.tasks.fit import assemble, scan
from ubend.training import loop
from ubend.training.build import build
from ubend.training.distributed import ProcessGroup, join_processes
from ubend.training.sync_batch_norm import synchronise_batch_norm

BATCH = 6
SETTINGS: dict[str, Any] = {
    "data.size": 32,
    "model.width": 4,
    "model.depth": 2,
    "train.precision": "float32",
    "train.batch": BATCH,
    "train.epochs": 1,
    "train.loss": "dice+ce",
    "augment.orientation": "free",
    "augment.rotation_deg": 180.0,
}


def find(folder: Path, way: str, micro_batch: int, processes: ProcessGroup) -> dict[str, Tensor]:
    """Gradients, sums and running statistics after one step; validation's figures after it."""
    changes = {"data.folder": str(folder), "train.sync_batch_norm": way == "synced", "train.micro_batch": micro_batch}
    quiet, cpu = Reporter(Console(file=io.StringIO())), torch.device("cpu")
    settings = make_settings(changes={**SETTINGS, **changes})
    found = scan(settings, cpu, quiet)
    data, plan = found.data, resolve(settings, found.facts)
    built = build(data, plan, cpu, processes)
    state = built.state
    if way == "synced" and processes.count == 1:  # torch's own rounds otherwise; test_distributed.py compares the two
        synchronise_batch_norm(state.model, processes)
    prepared = prepare(data, plan, cpu, (processes.rank, processes.count))
    _training, runtime = assemble(plan, data, prepared, built, quiet, processes)
    state.optimizer.zero_grad = lambda: None  # type: ignore[method-assign]  # so that they can be seen
    runtime.training_step(0)
    figures = loop.validate(runtime)
    tensors = {f"gradient {name}": p.grad for name, p in state.model.named_parameters() if p.grad is not None}
    tensors |= {f"weight {name}": p.detach().clone() for name, p in state.model.named_parameters()}
    tensors |= {f"statistics {name}": buffer for name, buffer in state.model.named_buffers() if "running" in name}
    return tensors | {"sums": state.sums, "validation": torch.tensor([figures[0], *figures[1]])}


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    with join_processes() as processes:
        for way in ("frozen", "synced", "live", "fused"):
            train = UNet.train
            fused.find_kernels = lambda _image, way=way: reference if way == "fused" else None
            if way == "frozen":
                UNet.train = lambda self, mode=True: nn.Module.train(self, False)  # type: ignore[method-assign]
            for micro in sorted({BATCH, BATCH // 2, BATCH // 3, 1} if processes.count == 1 else {BATCH, 1}):
                key = f"{way} {min(micro, BATCH // processes.count)} "
                found |= {key + name: tensor for name, tensor in find(folder, way, micro, processes).items()}
            UNet.train = train  # type: ignore[method-assign]
    if processes.is_first:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)


main(Path(sys.argv[1]), Path(sys.argv[2]))
