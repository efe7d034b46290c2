"""Peak memory of training beside what was predicted for it.

    python benchmarks/memory.py                                                        # a short form on a CPU
    python benchmarks/memory.py --width 64 --size 128 256 --batch 32 64 256            # on a GPU

Every combination of size and batch trains some steps and validates once, in a process of its own, on drawn
pictures, as `ubend fit` would. On a GPU: the peak of what torch's allocator had given out, in the steps and in the
validation, and the peak of what it had reserved (what others on the card cannot have). On a CPU (Linux): how much
the anonymous memory of the process grew, and all of it; that holds more than tensors (libraries, what glibc keeps).
Predicted, on a GPU alone, is the peak of the steps; the ratio is that over what was measured.
"""

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch

from engine import begin_training, make_step, open_data
from large_store import anonymous_mib
from timing import Row, make_parser, make_ready, print_facts, read_facts, synchronise, write_report
from ubend.data.sample import draw_sample
from ubend.teller import Teller
from ubend.training.loop import validate
from ubend.training.memory import measure_passes, predict_training_bytes

STEPS = 5  # the peak is reached in the first, but for the search of algorithms
_MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        folder: of pictures and masks.
        device: its name.
        size: px of a picture.
        batch, width: of the settings.
    """

    folder: Path
    device: str
    size: int
    batch: int
    width: int


def measure(plan: Plan) -> Row:
    """Train and validate by the plan, in a process that has done nothing else."""
    device = make_ready(plan.device)
    changes = {"data.size": plan.size, "model.width": plan.width, "train.batch": plan.batch, "train.epochs": 10}
    before = current_mib(device)
    with tempfile.TemporaryDirectory() as cache:
        data = open_data(plan.folder, Path(cache), device, changes)
        job, state = begin_training(data, device)
        passes = measure_passes(job, state)
        predicted = None if passes is None else predict_training_bytes(job, state, passes)
        step, peak = make_step(job, state), 0.0
        for _ in range(STEPS):
            step()
            peak = max(peak, peak_mib(device))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        validate(job, state, Teller())
        synchronise(device)
        validated = peak_mib(device)
    steps = peak - before
    # no weights are kept before the end of an epoch, which five steps do not reach
    told = None if predicted is None else (predicted.total - predicted.best) / _MIB
    return {
        "name": f"{plan.size} px, batch {plan.batch}",
        "size": plan.size,
        "batch": plan.batch,
        "steps_mib": steps,
        "validation_mib": validated - before,
        "reserved_mib": torch.cuda.memory_reserved(device) / _MIB if device.type == "cuda" else max(peak, validated),
        "predicted_mib": told,
        "ratio": None if told is None else told / steps,
    }


def current_mib(device: torch.device) -> float:
    """Taken now."""
    return torch.cuda.memory_allocated(device) / _MIB if device.type == "cuda" else anonymous_mib()


def peak_mib(device: torch.device) -> float:
    """The most that was taken since the last reset; on the CPU, where glibc keeps what is freed, what is taken."""
    return torch.cuda.max_memory_allocated(device) / _MIB if device.type == "cuda" else anonymous_mib()


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--device", help="cuda, cuda:1, cpu  [CUDA if there is one]")
    parser.add_argument("--size", type=int, nargs="+", default=[128], help="px  [128]")
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="pictures  [16]")
    parser.add_argument("--width", type=int, default=16, help="channels of the first level  [16]")
    parser.add_argument("--pictures", type=int, default=32, help="to draw, of 256 px  [32]")
    args = parser.parse_args(words)
    device = make_ready(args.device)
    facts = read_facts(device)
    print_facts(facts)
    print(f"U-Net of width {args.width}, {STEPS} steps and a validation; MiB")
    print(f"{'':24}{'steps':>12}{'validation':>12}{'reserved':>12}{'predicted':>12}{'ratio':>8}")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sample"
        draw_sample(folder, args.pictures, 256)
        plans = [Plan(folder, str(device), size, batch, args.width) for size, batch in product(args.size, args.batch)]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            for row in pool.map(measure, plans):
                taken = [f"{row[name]:12,.0f}" for name in ("steps_mib", "validation_mib", "reserved_mib")]
                predicted = "-" if row["predicted_mib"] is None else f"{row['predicted_mib']:,.0f}"
                ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
                print(f"{row['name']:24}{''.join(taken)}{predicted:>12}{ratio:>8}", flush=True)
                rows.append(row)
    write_report(__file__, words, args, facts=facts, unit="MiB", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
