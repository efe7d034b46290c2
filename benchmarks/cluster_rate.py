"""Images per second of `ubend predict --cluster auto` and of `ubend predict` with as many threads; the driver's memory.

The rate is in steady state: by the times at which the masks were written, without the first and last tenth, so that the
start of Ray and of the processes does not count; CPU seconds depend less than seconds on what else the machine does.
Ray runs in a network namespace of its own (Linux, with `unshare` permitted).

    python benchmarks/cluster_rate.py --images 5000 --threads 2
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, save_bundle
from ubend.models.unet import UNet

_ALONE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_LOOPBACK = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


class Measurement(NamedTuple):
    """A run of the command.

    Attributes:
        rate: images per second in steady state.
        per_cpu: images per CPU second in steady state.
        seconds: of the whole command.
        memory: MiB of the driver, each second.
    """

    rate: float
    per_cpu: float
    seconds: float
    memory: list[float]


def draw_inputs(folder: Path, count: int, side: int, width: int) -> None:
    """Noise images of side x side px in `images`, and an untrained model of this width in `model.safetensors`."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(count):
        pixels = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels).save(folder / "images" / f"{number:06d}.png")
    torch.manual_seed(0)
    net = UNet(3, 2, width=width, depth=2, mean=[128.0] * 3, std=[64.0] * 3)
    labels = make_label_map([0, 1], ["background", "object"])
    save_bundle(folder / "model.safetensors", Bundle(net.eval(), labels, Sizing(side, True, 3)))


def measure(folder: Path, out: Path, threads: int, cluster: bool) -> Measurement:
    """Predict all images; sampled each second."""
    words = [sys.executable, "-m", "ubend", "predict", folder / "model.safetensors", folder / "images", "--out", out]
    command = [*map(str, words), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if cluster:
        environment |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-")}
        command = [*_ALONE, *_LOOPBACK, *command, "--cluster", "auto"]
    began, memory, samples = time.monotonic(), list[float](), list[tuple[float, float]]()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(1)
        if resident := _resident_mib(process.pid, cluster):
            memory.append(resident)
        samples.append((time.time(), _cpu_seconds(process.pid, cluster)))
    assert process.returncode == 0
    times = np.sort([path.stat().st_mtime for path in out.glob("*.png") if not path.stem.endswith("_overlay")])
    first, last = len(times) // 10, len(times) - len(times) // 10 - 1
    used = np.diff(np.interp(times[[first, last]], *np.transpose(samples)))[0]
    rate = (last - first) / (times[last] - times[first])
    return Measurement(rate, (last - first) / used, time.monotonic() - began, memory)


def _resident_mib(process: int, cluster: bool) -> float:
    """Resident memory of the command; with a cluster, it is the child of unshare."""
    try:
        if cluster:
            process = int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_seconds(process: int, cluster: bool) -> float:
    """CPU seconds of the command; with a cluster, of all processes in its namespace, Ray's own included."""
    try:
        wanted = os.readlink(f"/proc/{process}/ns/pid_for_children") if cluster else ""
    except OSError:
        return 0.0
    total = 0
    for folder in Path("/proc").glob("[0-9]*") if cluster else [Path(f"/proc/{process}")]:
        try:
            if not cluster or os.readlink(folder / "ns" / "pid") == wanted:
                total += sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13]))
        except OSError:
            continue
    return total / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--width", type=int, default=4)
    given = parser.parse_args()
    rates: dict[bool, list[Measurement]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw_inputs(folder, given.images, given.side, given.width)
        for number in range(given.rounds):
            for cluster in (False, True):
                measured = measure(folder, folder / f"{number}-{cluster}", given.threads, cluster)
                rates[cluster].append(measured)
                half = measured.memory[len(measured.memory) // 2 :]
                print(
                    f"{'cluster' if cluster else 'one process'}: {measured.rate:.0f} images/s, "
                    f"{measured.per_cpu:.1f} images per CPU second, {measured.seconds:.0f} s in all, driver "
                    f"{max(measured.memory):.0f} MiB, in the second half {min(half):.0f} to {max(half):.0f} MiB",
                    flush=True,
                )
    for name in ("rate", "per_cpu"):
        single, cluster_ = (np.median([getattr(one, name) for one in rates[kind]]) for kind in (False, True))
        print(f"cluster / one process, {name}: {cluster_ / single:.2f}")


if __name__ == "__main__":
    main()
