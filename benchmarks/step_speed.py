"""Images per second of a training step: forward, backward and optimiser on one batch that stays on the device.

    python benchmarks/step_speed.py                                          # width 16 and batch 16 on a CPU
    python benchmarks/step_speed.py --width 64 --batch 64 --compile own      # as in docs/benchmarks.md, on a GPU

No data and no augmentation: see `training_speed.py` for these. Every step is Adam on the mean cross entropy of
3 classes. Each peer's network runs twice:

    float32    as torch is installed: convolutions in TF32 where the GPU has it, no search of algorithms
    bfloat16   autocast, channels last, fused Adam, cuDNN's search: what its users can set (where the device has
               no bfloat16 units: the same in float32)

and with `--compile all` also compiled. (On the CPU the float32 rows too have the allocator that ubend sets.)

A row tells the median, and the least and greatest of `--rounds` turns; its network's parameters and GFLOP for each
image; the TFLOP/s that this makes; and two shares: of the rate of a large matrix product, and of the limit when
memory traffic is added (how it is counted: `counting.py`). Both limits are measured in the same process.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from counting import Limits, StepCost, count_step, measure_limits
from peers import find_peers
from timing import (
    Row,
    Variant,
    divide_rows,
    make_ready,
    make_turns_parser,
    print_facts,
    read_facts,
    spread_words,
    take_turns,
    write_report,
)
from ubend import UNet
from ubend.accel.accelerate import accelerate_network
from ubend.accel.gate import usable
from ubend.core.device import fastest_precision

CLASSES = 3
Form = Literal["float32", "bfloat16", "compiled", "captured"]


def make_step(network: nn.Module, image: Tensor, target: Tensor, form: Form, channels_last: bool) -> Callable[[], None]:
    """A function that takes one step.

    Args:
        network: its weights move to the device of `image`.
        image: (N, 3, H, W) float32.
        target: (N, H, W) class index.
        form: see the top.
        channels_last: the layout in memory, of weights and images.
    """
    device, layout = image.device, torch.channels_last if channels_last else torch.contiguous_format
    network = network.train().to(device, memory_format=layout)  # type: ignore[call-overload]
    image = image.contiguous(memory_format=layout)
    optimizer = torch.optim.Adam(
        network.parameters(), 1e-3, fused=None if form == "float32" else True, capturable=form == "captured"
    )
    half = form != "float32" and has_half(device)
    run = torch.compile(network) if form == "compiled" else accelerate_network(network)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = run(image)
        nn.functional.cross_entropy(logits.float(), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return capture(step) if form == "captured" else step


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph, as `ubend fit` takes it (ubend.accel.captured)."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.empty_cache()
    with torch.cuda.graph(graph):
        step()

    def replay(_kept: Callable[[], None] = step) -> None:  # the graph reads the memory of the step's tensors
        graph.replay()

    return replay


def has_half(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    return fastest_precision(device)[0] == "bfloat16"


def own_variants(image: Tensor, target: Tensor, width: int, compiled: bool) -> list[Variant]:
    """ubend's steps; the one place where they are made."""

    def build() -> UNet:
        return UNet(3, CLASSES, width=width)

    facts = cost_facts(build, image, half=has_half(image.device)) | {"of": "ubend"}
    variants = [Variant("ubend, eager", make_step(build(), image, target, "bfloat16", True), len(image), facts=facts)]
    if usable(image):
        step = make_step(build(), image, target, "captured", True)
        variants.append(Variant("ubend, captured", step, len(image), facts=facts))
    if compiled:
        step = make_step(build(), image, target, "compiled", True)
        variants.append(Variant("ubend, compiled", step, len(image), facts=facts))
    return variants


def peer_variants(
    image: Tensor, target: Tensor, width: int, compiled: bool, milesial: Path | None
) -> tuple[list[Variant], list[str]]:
    """The steps of the peers that are here, and their packages."""
    variants, packages = list[Variant](), list[str]()
    forms: tuple[Form, ...] = ("float32", "bfloat16", "compiled") if compiled else ("float32", "bfloat16")
    for peer in find_peers(CLASSES, width, milesial):
        packages += [peer.package] if peer.package else []
        for form in forms:
            plain = form == "float32"
            step = make_step(peer.build(), image, target, form, peer.channels_last or not plain)
            facts = cost_facts(peer.build, image, half=not plain and has_half(image.device)) | {"of": peer.name}
            name = f"{peer.name}, {form}"
            variants.append(Variant(name, step, len(image), tuning="none" if plain else "all", facts=facts))
    return variants, packages


def cost_facts(build: Callable[[], nn.Module], image: Tensor, half: bool) -> Row:
    """What a step of this network costs for each image."""
    cost = count_step(build, len(image), image.shape[-1], half)
    return {"parameters": cost.parameters, "flops": cost.flops, "bytes": cost.bytes}


def add_shares(row: Row, limits: Limits) -> Row:
    """The row with what it comes to, measured by the limits."""
    cost = StepCost(row["parameters"], row["flops"], row["bytes"])
    arithmetic, traffic = limits.arithmetic_rate(cost), limits.traffic_rate(cost)
    return {
        **row,
        "tflops_per_s": row["median"] * cost.flops / 1e12,
        "arithmetic_limit": arithmetic,
        "traffic_limit": traffic,
        "arithmetic_share": row["median"] / arithmetic,
        "traffic_share": row["median"] / traffic,
    }


def print_rows(rows: Sequence[Row], ratios: Sequence[Row]) -> None:
    """A table of the steps, and one of how they compare."""
    head = ("img/s", "M par.", "GFLOP", "TFLOP/s", "of product", "of limit")
    print(f"\n{'':28}{head[0]:^28}" + "".join(f"{words:>11}" for words in head[1:]))
    for row in rows:
        print(
            f"{row['name']:28}{spread_words(row, int(row['median'] < 100)):^28}{row['parameters'] / 1e6:11.1f}"
            f"{row['flops'] / 1e9:11.1f}{row['tflops_per_s']:11.3g}"
            f"{row['arithmetic_share']:11.1%}{row['traffic_share']:11.1%}"
        )
    print()
    for ratio in ratios:
        print(f"{ratio['of']} is {spread_words(ratio, 2)} times as fast as {ratio['to']}")


def main(words: Sequence[str]) -> None:
    parser = make_turns_parser(__doc__)
    parser.add_argument("--size", type=int, default=128, help="px; must divide by 32 for some peers  [128]")
    parser.add_argument("--width", type=int, help="channels of the first level  [64 on a GPU, 16 on a CPU]")
    parser.add_argument("--batch", type=int, help="images  [64 on a GPU, 16 on a CPU]")
    parser.add_argument("--compile", choices=["none", "own", "all"], default="none", help="whose compiled steps too")
    parser.add_argument("--milesial", type=Path, help="a checkout of github.com/milesial/Pytorch-UNet (GPL)")
    parser.add_argument("--product", type=int, help="side of the matrix product  [8192 on a GPU, 2048 on a CPU]")
    args = parser.parse_args(words)
    device = make_ready(args.device)
    gpu = device.type == "cuda"
    args.width, args.batch = args.width or (64 if gpu else 16), args.batch or (64 if gpu else 16)
    args.product = args.product or (8192 if gpu else 2048)
    limits = measure_limits(device, args.product, 2**30 if gpu else 2**28)
    image = torch.randn(args.batch, 3, args.size, args.size, device=device)
    target = torch.randint(0, CLASSES, (args.batch, args.size, args.size), device=device)
    peers, packages = peer_variants(image, target, args.width, args.compile == "all", args.milesial)
    variants = peers + own_variants(image, target, args.width, args.compile != "none")
    rows = [add_shares(row, limits) for row in take_turns(variants, device, args.rounds, args.seconds)]
    own, others = ([row for row in rows if (row["of"] == "ubend") == mine] for mine in (True, False))
    ratios = [divide_rows(row, by) for row in own for by in others]
    facts = read_facts(device, packages)
    print()
    print_facts(facts)
    print(
        f"U-Net of width {args.width}, {args.size} px, batch {args.batch}, {args.rounds} rounds of {args.seconds:g} s"
    )
    print(f"limits: {limits.flops_per_s / 1e12:.3g} TFLOP/s, {limits.bytes_per_s / 1e12:.3g} TB/s ({limits.words})")
    print_rows(rows, ratios)
    measured = {"flops_per_s": limits.flops_per_s, "bytes_per_s": limits.bytes_per_s, "words": limits.words}
    write_report(__file__, words, args, facts=facts, unit="img/s", rows=rows, ratios=ratios, limits=measured)


if __name__ == "__main__":
    main(sys.argv[1:])
