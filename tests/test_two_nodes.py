"""Training on two nodes: torchrun in two network namespaces, which share the folders and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, namespace
from support.discs import make_discs

TINY = ["--size", "32", "--width", "4", "--batch", "6", "--device", "cpu", "--epochs", "2", "--encoder", "none"]
TINY += ["--set", "train.precision=float32", "--set", "train.sync_batch_norm=true"]


def _why_none() -> str:
    if reason := namespace.why_none():
        return reason
    tried = namespace.run(["sh", "-c", "ip link add near type veth peer name far"])
    return "" if tried.returncode == 0 else "virtual network cables (veth) are not to be had here"


@pytest.mark.slow
@pytest.mark.skipif(bool(_why_none()), reason=_why_none() or "two nodes")
def test_two_nodes_are_one(tmp_path: Path) -> None:
    """As docs/several-gpus.md starts it: the losses are those of one process with the same batch, and one node
    writes."""
    make_discs(tmp_path / "discs", 24)
    ubend = ["-m", "ubend", "fit", tmp_path / "discs", *TINY]
    subprocess.run([sys.executable, *map(str, [*ubend, "--out", tmp_path / "one"])], check=True, capture_output=True)
    torchrun = f"{sys.executable} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --local-addr $NODE"
    meeting = "--rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29500 --rdzv-id 7"
    meeting += " --rdzv-conf is_host=$((1 - NODE_RANK))"  # their host names are no addresses here
    os.mkfifo(tmp_path / "second.ready")
    start = ["sh", ROOT / "tests" / "support" / "two_nodes.sh", tmp_path / "second"]
    train = ["sh", "-c", f'exec {torchrun} {meeting} "$@"', "sh", *ubend, "--out", tmp_path / "two"]
    log = tmp_path / "first"
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with namespace.started([*start, *train], environment, log) as process:
        assert process.wait(400) == 0, log.read_text() + (tmp_path / "second").read_text()
    said = log.read_text() + (tmp_path / "second").read_text()
    assert said.count("processes: 2, each with 3 of a step's 6 images") == 1
    assert said.count("epoch 1/2") == 1
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["step"] for row in two] == [row["step"] for row in one]
    # the statistics of the first 60 steps are measured in each process, then averaged
    for name, tolerance in (("train_loss", 1e-4), ("val_loss", 1e-3)):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=tolerance)
