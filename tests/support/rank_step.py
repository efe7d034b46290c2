"""One step and one validation in each of several processes; what the first one finds goes to a file.

    python rank_step.py FOLDER OUT.safetensors      with torchrun's environment, or alone

Three ways of batch norm: `frozen` (its statistics stay), `synced`, `live` (each process looks at its own pictures).
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
from ubend.accel.accelerate import accelerate_network
from ubend.core.files import default_cache
from ubend.core.progress import Teller
from ubend.core.settings import make_settings
from ubend.dataset.dataset import open_dataset
from ubend.models.unet import UNet
from ubend.training import loop
from ubend.training.distributed import EarlySums, Ranks, join_ranks
from ubend.training.run_folder import RunFolder
from ubend.training.setup import make_batches, make_loss, make_state
from ubend.training.step import Job, Step
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


def find(folder: Path, way: str, micro_batch: int, ranks: Ranks) -> dict[str, Tensor]:
    """Gradients, sums and running statistics after one step; validation's figures after it."""
    changes = {"data.folder": str(folder), "train.sync_batch_norm": way == "synced", "train.micro_batch": micro_batch}
    quiet, cpu = Teller(Console(file=io.StringIO())), torch.device("cpu")
    data = open_dataset(make_settings(changes={**SETTINGS, **changes}), "cpu", default_cache(), quiet)
    _bundle, state = make_state(data, data.settings, cpu, ranks)
    if way == "synced" and ranks.count == 1:  # torch's own rounds otherwise; test_ranks.py compares the two
        synchronise_batch_norm(state.model, ranks)
    batches, validation = make_batches(data, data.settings, cpu, ranks)
    loss, train = make_loss(data, data.settings, cpu), data.settings.train
    names, run = data.labels.names, RunFolder(Path())
    early_sums = EarlySums(ranks)
    work = Job(
        batches,
        validation,
        names,
        loss,
        train,
        9,
        run,
        lambda _: lambda: None,
        lambda _: None,
        forward=accelerate_network(state.model, early_sums.hook),
        forward_average=accelerate_network(state.average),
        ranks=ranks,
        early_sums=early_sums,
    )
    state.optimizer.zero_grad = lambda: None  # type: ignore[method-assign]  # so that they can be seen
    Step(work, state, quiet)(0)
    figures = loop.validate(work, state, quiet)
    found = {f"gradient {name}": p.grad for name, p in state.model.named_parameters() if p.grad is not None}
    found |= {f"weight {name}": p.detach().clone() for name, p in state.model.named_parameters()}
    found |= {f"statistics {name}": buffer for name, buffer in state.model.named_buffers() if "running" in name}
    return found | {"sums": state.sums, "validation": torch.tensor([figures[0], *figures[1]])}


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    with join_ranks() as ranks:
        for way in ("frozen", "synced", "live", "fused"):
            train = UNet.train
            fused.find_kernels = lambda _image, way=way: reference if way == "fused" else None
            if way == "frozen":
                UNet.train = lambda self, mode=True: nn.Module.train(self, False)  # type: ignore[method-assign]
            for micro in sorted({BATCH, BATCH // 2, BATCH // 3, 1} if ranks.count == 1 else {BATCH, 1}):
                key = f"{way} {min(micro, BATCH // ranks.count)} "
                found |= {key + name: tensor for name, tensor in find(folder, way, micro, ranks).items()}
            UNet.train = train  # type: ignore[method-assign]
    if ranks.is_first:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)


main(Path(sys.argv[1]), Path(sys.argv[2]))
