"""Training in several processes: the same steps as in one, all stop together, one that dies ends all.

The processes talk by gloo, on the CPU; on GPUs the same code runs by NCCL.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from support.discs import make_discs, open_folder
from support.refusal import check, raises, refused_once
from support.training import Listener, make_runtime
from ubend.core.errors import SettingError
from ubend.core.settings import AugmentSettings
from ubend.dataset.batches import Augmentation, BatchOrder, TrainingBatches
from ubend.dataset.sources import WholeImages
from ubend.io.images import Sizing
from ubend.labels.class_table import IGNORED
from ubend.tasks.several import fit
from ubend.training import launcher as launch
from ubend.training.distributed import ALONE, ProcessGroup, Vote
from ubend.training.loop import PlainRuntime
from ubend.training.losses import Loss
from ubend.training.memory import LimitedMemoryRuntime

WORKER = Path(__file__).parent / "support" / "distributed_step.py"
UBEND = [sys.executable, "-m", "ubend"]
TINY = ["--size", "32", "--width", "4", "--batch", "6", "--device", "cpu", "--set", "train.precision=float32"]
Patch = pytest.MonkeyPatch
LIVE = ("live", "fused")  # of distributed_step.py: batch norm looks at each process's own images
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(autouse=True, scope="module")
def _environment() -> Iterator[None]:
    """Of this process and its children: they are in no group yet, and have one thread each, since scores that are
    compared to the bit depend on the number of threads."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "discs"
    make_discs(folder, 24)
    return folder


# ------------------------------------------------------------------------------------------------ one process


def test_parts_are_the_whole() -> None:
    for items, count in ((10, 3), (2, 4), (0, 2), (7, 1)):
        parts = [ProcessGroup(rank, count).shard(items) for rank in range(count)]
        assert [item for shard in parts for item in shard] == list(range(items))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("batch", "near"), [(7, 6), (2, 3)])
def test_a_batch_is_shared_evenly(batch: int, near: int) -> None:
    ALONE.refuse_uneven(batch)
    ProcessGroup(0, 3).refuse_uneven(3 * batch)
    with raises(SettingError, key="train.batch", named=[f"{batch}", "3", f"--batch {near}"]):
        ProcessGroup(0, 3).refuse_uneven(batch)


def test_devices(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ProcessGroup(0, 3).pick_device("cpu").type == "cpu"
    with raises(SettingError, key="--gpus", named=["2", "3"]):
        ProcessGroup(2, 3, 2).pick_device(None)
    with raises(SettingError, key="device", named=["cuda:1", "3"]):
        ProcessGroup(0, 3).pick_device("cuda:1")


def test_a_vote_of_one() -> None:
    vote = Vote(ALONE)
    assert [vote.any(mine) for mine in (False, True, False)] == [False, True, False]
    assert vote.close() is False


@pytest.mark.parametrize("kind", ["warp", "frozen"])
@pytest.mark.parametrize("resident", [True, False])
def test_ranks_draw_the_batch_of_one(kind: str, resident: bool, discs: Path, tmp_path: Path) -> None:
    """To the bit, step by step; so the order of images does not depend on the number of processes."""
    store = open_folder(discs, tmp_path / "cache", Sizing(32, True, 3))
    settings = AugmentSettings.model_validate({"kind": kind, "orientation": "free", "rotation_deg": 180})

    def draw(shard: tuple[int, int], step: int) -> tuple[Tensor, Tensor]:
        images = WholeImages(store, np.arange(20), torch.device("cpu"), 2**30 if resident else 0)
        ends = np.zeros(3), np.full(3, 255.0)
        augmentation = Augmentation(settings, images.canvas_hw, ends)
        batches = TrainingBatches(images, BatchOrder(0, 6, shard), augmentation)
        assert batches.batch_per_process == 6 // shard[1]
        batch = batches.sample(step)
        return batch.image, batch.target

    for step in (0, 5):
        whole = draw((0, 1), step)
        for several in (2, 3):
            parts = [draw((rank, several), step) for rank in range(several)]
            for mine, theirs in zip(whole, zip(*parts, strict=True), strict=True):
                assert torch.equal(mine, torch.cat(theirs))


def test_counts_of_parts_add_up() -> None:
    """Also where a part holds nothing to score."""
    target = torch.randint(0, 3, (4, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    target[2:] = IGNORED
    loss = Loss("dice+ce", torch.tensor([0.1, 0.2, 0.3]))
    whole = loss.count(target, 3)
    parts = [loss.count(shard, 3) for shard in target.split(2)]
    for i in range(2):
        assert float(whole[i]) == float(parts[0][i] + parts[1][i])
        assert float(parts[1][i]) == 0


def test_out_of_memory_is_told(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """One of several cannot halve its micro-batches alone; it names itself and the setting."""
    monkeypatch.setattr(PlainRuntime, "backward", raise_out_of_memory)
    plain = PlainRuntime(make_runtime(folder, {"train.batch": 6}).training, ProcessGroup(1, 2))
    with raises(SettingError, key="train.micro_batch", named=["1", "6", "train.micro_batch=3", "settings.toml"]):
        LimitedMemoryRuntime(plain, Listener()).training_step(0)


def raise_out_of_memory(*_args: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_python_does_not_start_processes(discs: Path) -> None:
    with raises(SettingError, key="--gpus", named=["`ubend fit ... --gpus 2`"]):
        fit(discs, gpus=2)


# ------------------------------------------------------------------------------------------------ several processes

TALK = """
import sys, time, torch
from pathlib import Path
from ubend.core.errors import TrainingError
from ubend.training.distributed import Vote, join_processes
place = Path(sys.argv[1])
with join_processes() as group:
    with group.first_rank_first():
        time.sleep(0.5 if group.is_first else 0)
        with (place / "order").open("a") as file:
            file.write(str(group.rank))
    vote = Vote(group)
    heard = [vote.any(group.rank == 1 and step == 1) for step in range(4)] + [vote.close()]
    tensors = [torch.full((2, 3), group.rank + 1.0).t(), torch.tensor(7), torch.arange(24.0).reshape(2, 3, 2, 2)]
    tensors[2] = tensors[2].contiguous(memory_format=torch.channels_last)
    group.sum_tensors(tensors)
    assert torch.equal(tensors[0], torch.full((3, 2), 3.0)) and tensors[1] == 14
    assert torch.equal(tensors[2], 2 * torch.arange(24.0).reshape(2, 3, 2, 2))
    group.refuse_different("the same")
    try:
        group.refuse_different(f"process {group.rank}")
    except TrainingError as error:
        heard.append("do not see the same" in str(error))
(place / f"heard{group.rank}").write_text(str(heard))
"""


@pytest.mark.slow
def test_two_talk(tmp_path: Path) -> None:
    """The first one goes in alone; a vote is heard by all one question later; sums keep every layout."""
    assert launch.launch([sys.executable, "-c", TALK, str(tmp_path)], 2) == 0
    assert (tmp_path / "order").read_text() == "01"
    for rank in range(2):
        assert (tmp_path / f"heard{rank}").read_text() == "[False, False, True, False, False, True]"


@pytest.fixture(scope="module")
def steps(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Tensor]]:
    """What `distributed_step.py` finds in 1, 2 and 3 processes."""
    found, place = {}, tmp_path_factory.mktemp("steps")
    for count in (1, 2, 3):
        out = place / f"{count}.safetensors"
        command = [sys.executable, str(WORKER), str(folder), str(out)]
        if count == 1:
            subprocess.run(command, check=True, timeout=120)
        else:
            assert launch.launch(command, count) == 0
        found[count] = load_file(out)
    return found


def pick(found: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name.removeprefix(key): tensor for name, tensor in found.items() if name.startswith(key)}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("way", ["frozen", "synced", *LIVE])
def test_a_step_of_several_is_that_of_one(way: str, count: int, steps: dict[int, dict[str, Tensor]]) -> None:
    """Gradients, sums, running statistics and validation, to float32's rounding: 2e-5 of the greatest one. With
    live batch norm the step is that of one process whose micro-batches are the parts; only the running statistics
    differ."""
    assert_same_step(
        pick(steps[count], f"{way} {6 // count} "), pick(steps[1], f"{way} {6 // count if way in LIVE else 6} "), way
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("way", ["frozen", *LIVE])
def test_micro_batches_of_several_are_those_of_one(way: str, count: int, steps: dict[int, dict[str, Tensor]]) -> None:
    """Images one at a time: gradients that have travelled already have others added to them."""
    assert_same_step(pick(steps[count], f"{way} 1 "), pick(steps[1], f"{way} 1 "), way)


def assert_same_step(several: dict[str, Tensor], one: dict[str, Tensor], way: str) -> None:
    assert set(one) == set(several)
    assert sum(name.startswith("gradient ") for name in one) > 20
    for name, tensor in one.items():
        if name.startswith("weight "):  # Adam's first step is the sign of a gradient, which may be all rounding
            continue
        if way in LIVE and (name.startswith("statistics ") or name == "validation"):
            continue
        scale = 2e-5 * float(tensor.abs().max()) + 2e-7
        torch.testing.assert_close(several[name], tensor, rtol=1e-4, atol=scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_live_batch_norm_differs(steps: dict[int, dict[str, Tensor]]) -> None:
    """The comparison above can fail: parts are not the whole where batch norm looks at them."""
    one, two = pick(steps[1], "live 6 "), pick(steps[2], "live 3 ")
    name = "gradient stem.0.weight"
    assert not torch.allclose(one[name], two[name], rtol=1e-2, atol=1e-3 * float(one[name].abs().max()))


def ubend(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*UBEND, *map(str, words)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def keys(value: object) -> object:
    return {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--patches", "--set", "data.crops_per_epoch=16")], ids=["pictures", "patches"])
def test_a_training_of_two_is_that_of_one(how: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """With synchronised batch norm: the losses of three epochs; run folder and scores alike; and one process
    continues with what two have begun."""
    more = [*TINY, *how, "--epochs", "3", "--set", "train.sync_batch_norm=true"]
    ubend("fit", folder, "--out", tmp_path / "one", *more)
    said = ubend("fit", folder, "--out", tmp_path / "two", *more, "--gpus", "2").stdout
    assert "processes: 2, each with 3 of a step's 6 images" in said
    assert said.count("epoch 1/3") == 1
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert a["step"] == b["step"]
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-4)
        # the statistics of the first 60 steps are measured in each process, then averaged
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-3)
    assert keys(json.loads((tmp_path / "two/scores.json").read_text())) == keys(
        json.loads((tmp_path / "one/scores.json").read_text())
    )
    files = [{p.relative_to(run).as_posix() for p in run.rglob("*")} for run in (tmp_path / "one", tmp_path / "two")]
    assert files[0] == files[1]
    assert json.loads((tmp_path / "two/run.json").read_text())["processes"] == 2

    model = (tmp_path / "two/model.safetensors").read_bytes()
    said = ubend("fit", "--resume", tmp_path / "two").stdout
    assert "note: started in 2 processes, continues in 1" in said
    assert "already finished" in said
    assert (tmp_path / "two/model.safetensors").read_bytes() == model

    scores = (tmp_path / "two/scores.json").read_bytes()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ubend"]
    again = subprocess.run(
        [*torchrun, "fit", "--resume", tmp_path / "two"],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert again.stdout.count("processes: 2, each with 3") == 1
    assert (tmp_path / "two/scores.json").read_bytes() == scores


@pytest.mark.slow
def test_two_without_batch_norm(folder: Path, tmp_path: Path) -> None:
    """The original network: its summed loss and the pixels' weights are those of the whole batch."""
    more = ["--recipe", "paper", "--device", "cpu", "--width", "4", "--epochs", "2", "--batch", "4"]
    more += ["--set", "model.dropout=0", "--set", "model.depth=2", "--set", "train.precision=float32"]
    ubend("fit", folder, "--out", tmp_path / "one", *more)
    ubend("fit", folder, "--out", tmp_path / "two", *more, "--gpus", "2")
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for figure in ("train_loss", "val_loss"):
            assert b[figure] == pytest.approx(a[figure], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_stopped_in_two_goes_on_in_one(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C stops all after the same step, and leaves a model; a killed process ends all, with one line."""
    run, more = tmp_path / "run", [*TINY, "--epochs", "4000"]
    with subprocess.Popen(
        [*UBEND, "fit", str(folder), "--out", str(run), *more, "--gpus", "2"], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        while "epoch 2/" not in launcher.stdout.readline():
            assert launcher.poll() is None
        launcher.send_signal(signal.SIGINT)
        said = launcher.stdout.read()
        assert launcher.wait(60) == 130
    assert "best weights so far" in said
    done = rows(run)
    assert len(done) >= 2

    with subprocess.Popen(
        [*UBEND, "fit", "--resume", str(run), "--gpus", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stderr is not None
        while f"epoch {len(done) + 1}/" not in launcher.stdout.readline():
            assert launcher.poll() is None
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        if not children.exists():
            launcher.terminate()
            pytest.skip("needs Linux")
        os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
        assert launcher.wait(60) == 2
        (line,) = launcher.stderr.read().splitlines()
        assert line.startswith("error: process 1 of 2 was ended by SIGKILL")
    assert rows(run)[: len(done)] == done

    with subprocess.Popen([*UBEND, "fit", "--resume", str(run)], stdout=subprocess.PIPE, text=True) as alone:
        assert alone.stdout is not None
        said = ""
        while f"epoch {len(rows(run)) + 1}/" not in said:
            said += alone.stdout.readline()
            assert alone.poll() is None
        alone.send_signal(signal.SIGINT)
        alone.stdout.read()
        assert alone.wait(60) == 130
    assert "note: started in 2 processes, continues in 1" in said
    assert "resuming after step" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--batch", "7"], "train.batch = 7 cannot be split evenly over 2 processes; use --batch 6"),
        (["--device", "cuda:1"], "device cuda:1 is a single device, but there are 2 processes"),
    ],
)
def test_bad_settings(words: list[str], wanted: str, folder: Path, tmp_path: Path) -> None:
    (line,) = ubend("fit", folder, "--out", tmp_path / "run", *TINY, *words, "--gpus", "2", code=2).stderr.splitlines()
    assert line.startswith(f"error: {wanted}")
    assert not (tmp_path / "run").exists()


def test_processes_that_are_there_already(folder: Path, monkeypatch: Patch) -> None:
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "x"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch.os, "_exit", lambda code: None)
    check(refused_once("fit", folder, "--gpus", "2"), SettingError, key="--gpus", named=["2", "4"])
