"""Pictures per second of training: the engine's whole loop, the bare step, and the tutorial's loop.

    python benchmarks/training_speed.py                       # CPU or GPU, whichever is there
    python benchmarks/training_speed.py --width 64 --batch 64 # as in docs/benchmarks.md, on a GPU

The variants take turns, `--rounds` times; printed are median, least and greatest. "loop" draws batches
from the store with the modern augmentation, averages weights and sums losses, as `ubend fit` does.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ubend.choices import choose_training
from ubend.config import make_settings
from ubend.data.dataset import open_dataset
from ubend.data.sample import draw_sample
from ubend.device import describe_device, fastest_precision, pick_device, prepare_process, settle
from ubend.model.unet import UNet
from ubend.teller import Teller
from ubend.training.captured import make_step
from ubend.training.run_folder import RunFolder
from ubend.training.setup import make_batches, make_loss, make_state
from ubend.training.step import Job


def engine_step(args: argparse.Namespace, device: torch.device, folder: Path, **changes: object) -> Callable[[], None]:
    """One step of `ubend fit` on the drawn sample."""
    base = {
        "device": str(device),
        "data.folder": str(folder),
        "data.size": args.size,
        "model.width": args.width,
        "train.batch": args.batch,
        "train.epochs": 10,
        **changes,
    }
    settings = make_settings("modern", None, base)
    data = open_dataset(settings, device.type, folder.parent / "cache", Teller())
    settings, _choices = choose_training(data.settings, data.facts(device.type, fastest_precision(device)))
    _bundle, state = make_state(data, settings, device)
    batches, validation = make_batches(data, settings, device)
    loss, names = make_loss(data, settings, device), data.labels.names
    job = Job(batches, validation, names, loss, settings.train, 10**6, RunFolder(folder), print, print)
    take_step = make_step(job, state, Teller())

    def step() -> None:
        take_step(state.progress.step)
        state.progress.step += 1

    return step


def bare_step(
    args: argparse.Namespace, device: torch.device, like_tutorial: bool, compiled: bool = False
) -> Callable[[], None]:
    """Forward, backward, optimiser on one resident batch: as the tutorial writes it, or as fast as eager goes."""
    model: nn.Module = UNet(3, 3, args.width)
    image = torch.rand(args.batch, 3, args.size, args.size) * 255
    target = torch.randint(0, 3, (args.batch, args.size, args.size))
    if like_tutorial:
        model, image, target = model.to(device), image.to(device), target.to(device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    else:
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        image, target = image.to(device).contiguous(memory_format=torch.channels_last), target.to(device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    low = not like_tutorial and fastest_precision(device)[0] == "bfloat16"
    network = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            logits = network(image)
        nn.functional.cross_entropy(logits.float(), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(step: Callable[[], None], batch: int, device: torch.device, seconds: float) -> float:
    """Pictures per second of about `seconds` of steps."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            step()
        steps += 4
        wait()
    return steps * batch / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--compile", action="store_true", help="also the compiled variants")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    prepare_process(False)
    device = pick_device(None)
    settle(device, False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sample"
        draw_sample(folder, 64, 256)
        steps = {
            "loop": engine_step(args, device, folder),
            "loop, no augmentation": engine_step(args, device, folder, **{"augment.kind": "none"}),
            "step": bare_step(args, device, like_tutorial=False),
            "step as the tutorial writes it": bare_step(args, device, like_tutorial=True),
        }
        if args.compile:
            steps["loop, compiled"] = engine_step(args, device, folder, **{"train.compile": True})
            steps["step, compiled"] = bare_step(args, device, like_tutorial=False, compiled=True)
        results: dict[str, list[float]] = {name: [] for name in steps}
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(5):
                step()
            print(f"first five steps of {name}: {time.perf_counter() - began:.1f} s", flush=True)
        for _ in range(args.rounds):
            for name, step in steps.items():
                results[name].append(measure(step, args.batch, device, args.seconds))
    facts = {"device": describe_device(device), "torch": torch.__version__, **vars(args), "json": None}
    print(facts)
    for name, rates in results.items():
        print(f"{name:32} {statistics.median(rates):8.0f} img/s  ({min(rates):.0f} to {max(rates):.0f})")
    if args.json:
        args.json.write_text(json.dumps({"facts": facts, "img_per_s": results}, indent=1))


if __name__ == "__main__":
    main()
