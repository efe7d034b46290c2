"""The loop: it learns, it continues exactly where it stopped, it stops when it must."""

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.discs import draw_disc, make_discs
from support.refusal import raises
from support.training import FILES, MODERN, TUTORIAL, Listener, contents, make_runtime, press_once, press_twice
from ubend.accel.captured import capture_steps
from ubend.accel.fused import fits_call
from ubend.core.errors import TrainingError
from ubend.core.settings import Recipe
from ubend.inference.predictor import load
from ubend.models.model_file import load_bundle
from ubend.models.paper import PaperUNet
from ubend.models.unet import UNet
from ubend.tasks import fit as job
from ubend.training import loop, recorder
from ubend.training.batch_norm_warmup import (
    BATCH_NORM_WARMUP_STEPS,
    batch_statistics,
    in_batch_norm_warmup,
    shows_batch_statistics,
)
from ubend.training.checkpoint import Saver
from ubend.training.loop import Runtime
from ubend.training.memory import LimitedMemoryRuntime
from ubend.training.run_folder import RunFolder
from ubend.training.training import Training

# recipe, settings and steps of trainings that are interrupted; `branches`: a trunk and two branches, an epoch each
TRAININGS: dict[str, tuple[Recipe, dict[str, Any], int]] = {
    "modern": ("modern", MODERN, 10),
    "tutorial": ("tutorial", TUTORIAL, 8),
    "branches": ("modern", MODERN | {"train.branches": 2}, 10),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are many times faster with one thread where processors are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop") / "discs"
    make_discs(folder, 24)
    return folder


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No panels and curves, for speed; they are drawn from the state and do not change it."""
    monkeypatch.setattr(job, "EpochDrawing", lambda *_args, **_named: lambda _state: lambda: None)
    monkeypatch.setattr(job, "draw_curves", lambda *_args: None)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run of each kind."""
    runs = {}
    for kind, (recipe, settings, _steps) in TRAININGS.items():
        runs[kind] = tmp_path_factory.mktemp("whole") / kind
        job.fit(folder, runs[kind], recipe=recipe, settings=settings, device="cpu", reporter=Listener())
    return runs


def test_learns_discs(discs: Path, tmp_path: Path) -> None:
    """The loss falls, and the drawn discs are found; everything a run folder promises is there."""
    result = job.fit(
        discs,
        tmp_path / "run",
        settings={"train.precision": "float32", "train.learning_rate": 1e-2},
        size=32,
        width=4,
        epochs=24,
        batch=4,
        device="cpu",
        reporter=Listener(),
    )
    assert result.scores is not None
    assert result.scores.native.dice.per_image["foreground"] > 0.8
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert rows[-1]["val_loss"] < 0.5 * rows[0]["val_loss"]
    best = [row["epoch"] for row in rows if row["best"]][-1]
    top = max(rows, key=lambda row: np.mean(list(row["val_dice"].values())))
    assert top["epoch"] == best
    run = RunFolder(tmp_path / "run")
    for path in (run.settings, run.facts, run.data, run.curves, run.model_path, run.scores, run.panel(24)):
        assert path.stat().st_size > 0, path


def test_row_of_an_epoch(whole: dict[str, Path]) -> None:
    """What the metrics hold; nothing that depends on the clock."""
    for kind, (_recipe, settings, steps) in TRAININGS.items():
        rows = [json.loads(line) for line in (whole[kind] / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == list(range(1, settings["train.epochs"] + 1))
        assert rows[-1]["step"] == steps
        for row in rows:
            settling = {"batch_statistics_dice"} if kind == "tutorial" else set[str]()  # no EMA, fewer than 60 steps
            mean = {"branches"} if kind == "branches" and row is rows[-1] else set[str]()
            assert set(row) == {"epoch", "step", "train_loss", "val_loss", "val_dice", "lr", "best"} | settling | mean


@pytest.mark.usefixtures("plain")
def test_scores_with_batch_statistics_change_nothing(
    folder: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that never makes them has the same weights to the bit, and the same rows except for them."""
    for module in (loop, recorder):
        monkeypatch.setattr(module, "shows_batch_statistics", lambda _training, _step: False)
    reporter = Listener()
    job.fit(folder, tmp_path / "run", recipe="tutorial", settings=TUTORIAL, device="cpu", reporter=reporter)
    assert "batch statistics" not in reporter.said
    for name in ("model.safetensors", "scores.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole["tutorial"] / name).read_bytes(), name
    rows, plain = (
        [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (whole["tutorial"], tmp_path / "run")
    )
    assert [{key: value for key, value in row.items() if key != "batch_statistics_dice"} for row in rows] == plain


def test_batch_statistics() -> None:
    """The output is that of training mode; the running statistics, their counters and the mode stay as they are."""
    torch.manual_seed(0)
    net = UNet(3, 2, width=2, depth=2)
    image = 255 * torch.rand(4, 3, 16, 16)
    net.train()
    with torch.no_grad():
        net(image / 2)  # the statistics are no longer the initial ones
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        plain = net.eval()(image)
        with batch_statistics(net):
            shown = net(image)
            assert not fits_call(net, image), "kernels would take the running statistics, or change them"
        after = net(image)
    assert torch.equal(after, plain)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        expected = net.train()(image)
    assert torch.equal(shown, expected)
    assert not torch.equal(shown, plain)


def test_without_an_ema_the_first_scores_are_shown_with_batch_statistics(tmp_path: Path) -> None:
    """Before batch norm's running statistics have settled, the score with batch statistics is far ahead."""
    make_discs(tmp_path / "discs", 24)
    reporter = Listener()
    settings = {**MODERN, "train.epochs": 10, "train.learning_rate": 2e-2, "model.width": 4, "train.ema_decay": 0.0}
    job.fit(tmp_path / "discs", tmp_path / "run", settings=settings, device="cpu", reporter=reporter)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ahead = [row["batch_statistics_dice"]["foreground"] - row["val_dice"]["foreground"] for row in rows]
    assert max(ahead) > 0.2
    assert reporter.said.count("in the first 60 steps") == 1
    lines = [line for line in reporter.said.splitlines() if line.startswith("epoch ")]
    for row, line in zip(rows, lines, strict=True):
        shown = " ".join(f"{value:.3f}" for value in row["batch_statistics_dice"].values())
        assert f"(batch statistics: {shown})" in line


def test_with_an_ema_the_first_scores_say_what_was_learned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statistics of the EMA are measured, so that the first scores and the kept model are far ahead."""
    settings = {**MODERN, "train.epochs": 4, "train.learning_rate": 2e-2, "model.width": 4}
    foreground = {}
    for name in ("measured", "running"):
        job.fit(folder, tmp_path / name, settings=settings, device="cpu", reporter=Listener())
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        foreground[name] = [row["val_dice"]["foreground"] for row in rows]
        monkeypatch.setattr(loop, "settle_statistics", lambda _training, _processes: None)
    assert max(foreground["measured"]) > max(foreground["running"]) + 0.2


@pytest.mark.parametrize(
    ("step", "net", "side", "settling"),
    [
        (BATCH_NORM_WARMUP_STEPS, UNet(3, 2, width=2, depth=2), 16, True),
        (BATCH_NORM_WARMUP_STEPS + 1, UNet(3, 2, width=2, depth=2), 16, False),
        (1, UNet(3, 2, width=2, depth=4), 16, False),  # one value per channel has no variance
        (1, PaperUNet(3, 2, width=2, depth=2), 16, False),  # no batch norm
    ],
)
def test_is_settling(step: int, net: Any, side: int, settling: bool) -> None:
    state, plan = SimpleNamespace(model=net, ema=net), SimpleNamespace(sync_batch_norm=False)
    training: Any = SimpleNamespace(state=state, settings=plan, validation=SimpleNamespace(canvas_hw=(side, side)))
    assert in_batch_norm_warmup(training, step) == settling
    assert shows_batch_statistics(training, step) == settling
    plan.sync_batch_norm = True  # with the network itself validated, processes would wait for each other
    assert not shows_batch_statistics(training, step)
    plan.sync_batch_norm, state.ema = False, object()  # the statistics of an EMA are measured
    assert not shows_batch_statistics(training, step)


def test_time_is_told_once_from_timed_steps(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of 2 s per step: the first step is not timed, two are; 16 images, batch 5, 3 epochs: 10 steps."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(recorder, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def tick(done: int) -> None:
        clock.now += 100.0 if done == 1 else 2.0

    reporter = Listener(tick)
    job.fit(folder, tmp_path / "run", settings=MODERN, device="cpu", reporter=reporter)
    lines = [line for line in reporter.said.splitlines() if line.startswith("about ")]
    assert len(lines) == 1
    assert lines[0].startswith("about 20 s for all 3 epochs; ")
    assert all(flag in lines[0] for flag in ("--epochs", "--size", "--patience"))
    assert reporter.said.index(lines[0]) < reporter.said.index("epoch 2/3")
    first, *_others = map(json.loads, (tmp_path / "run" / "timing.jsonl").read_text().splitlines())
    assert first["seconds_left"] == 2.0 * 7  # without the slow first step


def test_no_flags_are_told_to_a_resumed_run() -> None:
    assert recorder.describe_duration(600.0, 3, crops=False, is_resumed=True) == "about 10 min to go"


def test_crops_are_not_made_smaller_by_a_flag_for_whole_images() -> None:
    assert "--size" in recorder.describe_duration(600.0, 3, crops=False, is_resumed=False)
    assert "--size" not in recorder.describe_duration(600.0, 3, crops=True, is_resumed=False)


@pytest.mark.parametrize(
    ("device", "step_s", "ready"),
    [("cpu", 0.1, 6), ("cpu", 1.0, 4), ("cpu", 20.0, 2), ("cuda", 20.0, 25)],
    ids=["short steps", "steps of a second", "long steps", "gpu"],
)
def test_the_duration_is_known_after_few_steps_if_they_are_long(
    device: str, step_s: float, ready: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step, which is slow, is never in the figure."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(recorder.time, "monotonic", lambda: clock.now)
    timer, figures = recorder.StepTimer(torch.device(device)), []
    for step in range(1, 41):
        clock.now += 1000.0 if step == 1 else step_s
        figures.append(timer.after_step(torch.zeros(4)))
    assert [step for step, figure in enumerate(figures, 1) if figure is not None] == [ready]
    assert figures[ready - 1] == pytest.approx(step_s)


@pytest.mark.parametrize(
    ("device", "epoch_steps", "ready"),
    [("cuda", 10, 21 + 20), ("cuda", 22, 23 + 20), ("cuda", 100, 25), ("cuda", 1, 3 + 20), ("cpu", 4, 6)],
)
def test_short_epochs_on_a_gpu_are_not_timed_at_first(
    device: str, epoch_steps: int, ready: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two validations take 300 s, the later ones 1 s."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(recorder.time, "monotonic", lambda: clock.now)
    timer, figures, validations = recorder.StepTimer(torch.device(device)), {}, 0
    for step in range(1, 101):
        clock.now += 0.1
        if (figure := timer.after_step(torch.zeros(4))) is not None:
            figures[step] = figure
        if step % epoch_steps == 0:
            validations += 1
            clock.now += 300.0 if validations <= 2 and device == "cuda" else 1.0
            timer.after_epoch()
    assert list(figures) == [ready]
    assert figures[ready] < 1.2


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("kind", TRAININGS)
def test_stopped_after_every_step(kind: str, folder: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    """One Ctrl-C after each step, the last one too, and a resume after each: the run is the same to the bit."""
    recipe, settings, steps = TRAININGS[kind]
    run = tmp_path / "run"
    result = job.fit(folder, run, recipe=recipe, settings=settings, device="cpu", reporter=Listener(press_once(1)))
    for step in range(2, steps + 1):
        assert result.scores is None
        result = job.resume(run, reporter=Listener(press_once(step)))
    assert result.scores is None, "stopped after the last step, before its epoch was validated"
    assert job.resume(run, reporter=Listener()).scores is not None
    assert contents(run) == contents(whole[kind])
    assert job.resume(run, reporter=Listener()).scores is not None  # a finished run only scores again
    assert contents(run) == contents(whole[kind])


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("saves", ["seldom", "always"])
@pytest.mark.parametrize("kind", TRAININGS)
def test_killed(
    kind: str, saves: str, folder: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped without a save: resumed from an older state, or from the start, the run is the same to the bit."""
    if saves == "always":
        monkeypatch.setattr(Saver, "is_due", lambda self, after_s=0.0: True)
    recipe, settings, steps = TRAININGS[kind]
    run = tmp_path / "run"
    first, *others = sorted(np.random.default_rng(len(kind)).choice(np.arange(1, steps), 2, replace=False).tolist())
    listener = Listener(press_twice(first))
    assert job.fit(folder, run, recipe=recipe, settings=settings, device="cpu", reporter=listener).scores is None
    assert f"stopped after step {first}" in listener.said
    assert ("best weights so far" in listener.said) is (run / "model.safetensors").exists()
    for step in [*others, steps]:
        assert job.resume(run, reporter=Listener(press_twice(step))).scores is None
    assert job.resume(run, reporter=Listener()).scores is not None
    assert contents(run) == contents(whole[kind])


@pytest.mark.usefixtures("plain")
def test_same_seed_same_run(folder: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    """The same seed twice is the same run to the bit (without panels, so these leave no trace either);
    another seed is another run."""
    job.fit(folder, tmp_path / "again", settings=MODERN, device="cpu", reporter=Listener())
    assert contents(tmp_path / "again") == contents(whole["modern"])
    job.fit(folder, tmp_path / "other", settings={**MODERN, "train.seed": 1}, device="cpu", reporter=Listener())
    mine, other = contents(whole["modern"]), contents(tmp_path / "other")
    assert all(mine[name] != other[name] for name in FILES)


@pytest.mark.usefixtures("plain")
def test_ctrl_c_leaves_a_model(folder: Path, tmp_path: Path) -> None:
    """Also in the first epoch, before any validation; the signal's own handler is back afterwards."""
    before = signal.getsignal(signal.SIGINT)
    listener = Listener(press_once(2))
    result = job.fit(folder, tmp_path / "run", settings=MODERN, device="cpu", reporter=listener)
    assert result.scores is None
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped after step 2" in listener.said
    assert "--resume" in listener.said
    image = draw_disc(99)[0]
    mask = load(tmp_path / "run", "cpu")(image).mask
    assert mask.shape == image.shape[:2]
    assert set(np.unique(mask)) <= {0, 1}
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


@pytest.mark.usefixtures("plain")
def test_sigterm_is_passed_on_when_all_is_saved(folder: Path, tmp_path: Path) -> None:
    """The handler that was there before gets it, with a usable model; a second SIGTERM does not wait for a step."""
    run, heard = tmp_path / "run", []

    def note(number: int, _frame: object) -> None:
        image = draw_disc(99)[0]
        assert load(run, "cpu")(image).mask.shape == image.shape[:2]
        heard.append(number)

    def impatient(done: int) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, note)
    try:
        listener = Listener(press_once(2, signal.SIGTERM))
        assert job.fit(folder, run, settings=MODERN, device="cpu", reporter=listener).scores is None
        assert heard == [signal.SIGTERM]
        assert job.resume(run, reporter=Listener(press_once(3))).scores is None
        assert heard == [signal.SIGTERM], "Ctrl-C is not passed on"
        assert "stopped after step 2" in listener.said
        again = Listener(lambda done: impatient(done - 2))
        assert job.resume(run, reporter=again).scores is None
        assert len(heard) == 2
        assert "stopped after step 4" in again.said
    finally:
        assert signal.signal(signal.SIGTERM, before) is note


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("epochs", [1, 6])
def test_loss_that_is_not_finite(epochs: int, folder: Path, tmp_path: Path) -> None:
    """One line with the step and a smaller learning rate; also when only the last validation shows it."""
    changes = {**MODERN, "train.epochs": epochs, "train.learning_rate": 1e38, "train.schedule": "constant"}
    if epochs == 1:
        changes["train.batch"] = 16  # one step, whose own loss is finite
    with raises(TrainingError, key="train.learning_rate", named=["learning_rate=0.001"]) as caught:
        job.fit(folder, tmp_path / "run", settings=changes, device="cpu", reporter=Listener())
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("plain")
def test_patience_and_best_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops when the figure has not grown for so many epochs; the weights of the best epoch are kept."""
    figures = iter([3.0, 1.0, 2.0, 1.0, 0.5])
    seen: list[dict[str, Tensor]] = []

    def scripted(runtime: Runtime) -> tuple[float, np.ndarray]:
        seen.append({name: t.clone() for name, t in runtime.training.state.ema.state_dict().items()})
        return next(figures), np.array([0.5, 0.5])

    monkeypatch.setattr(loop, "validate", scripted)
    changes = {**MODERN, "train.epochs": 9, "train.select": "loss"}
    listener = Listener()
    result = job.fit(folder, tmp_path / "run", settings=changes, patience=2, device="cpu", reporter=listener)
    assert len(seen) == 4
    assert "stopped early" in listener.said
    assert result.scores is not None
    kept = load_bundle(tmp_path / "run").model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[1].items())
    assert not all(torch.equal(kept[name], tensor) for name, tensor in seen[3].items())
    before = contents(tmp_path / "run")
    job.resume(tmp_path / "run", reporter=Listener())
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_are_the_whole_batch(
    micro_batch: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gradients and sums however the batch is cut, where batch norm does not look at the batch."""
    monkeypatch.setattr(UNet, "train", lambda self, mode=True: nn.Module.train(self, False))
    found = []
    for size in (None, micro_batch):
        changes = {"train.micro_batch": size} if size else {}
        runtime = make_runtime(folder, {"augment.out_of_frame": "ignored", **changes})
        state = runtime.training.state
        monkeypatch.setattr(state.optimizer, "zero_grad", lambda: None)
        runtime.training_step(0)
        found.append(([p.grad for p in state.model.parameters()], state.sums))
    (whole, sums), (cut, cut_sums) = found
    assert sum(float(g.abs().sum()) for g in whole) > 0
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums, cut_sums, rtol=1e-5, atol=1e-5)


def test_step_is_written_as_expected(folder: Path, tmp_path: Path) -> None:
    """One step changes the weights, the average and the sums; the learning rate is the schedule's."""
    runtime = make_runtime(folder, {"augment.out_of_frame": "reflected"})
    work, state = runtime.training, runtime.training.state
    before = [p.detach().clone() for p in state.model.parameters()]
    average = [p.detach().clone() for p in state.ema.parameters()]
    assert before
    runtime.training_step(0)
    assert all(not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    for old, mean, new in zip(average, state.ema.parameters(), state.model.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.1 * old + 0.9 * new, rtol=1e-5, atol=1e-6)
    assert float(state.sums[1]) == 5 * math.prod(work.batches.crop_hw)
    assert all(p.grad is None for p in state.model.parameters())


@pytest.mark.usefixtures("plain")
def test_train_loss_is_of_its_own_epoch(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over pixels and regions of the epoch's steps, divided by their counts; the next epoch begins again."""

    def pretend(self: Runtime, step: int) -> None:
        self.training.state.sums += torch.tensor([10.0 * (step + 1), 10.0, 3.0, 2.0], dtype=torch.float64)

    monkeypatch.setattr(Runtime, "training_step", pretend)
    job.fit(folder, tmp_path / "run", settings=MODERN, device="cpu", reporter=Listener())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    began = 0
    for row in rows:
        assert row["train_loss"] == pytest.approx(np.mean(range(began + 1, row["step"] + 1)) + 3 / 2)
        began = row["step"]


def test_steps_until() -> None:
    """Steps grow with every epoch, and end within half a batch of the images asked for."""
    for items in (1, 5, 16, 24, 850):
        for batch in (1, 2, 5, 7, 16, 64):
            training: Any = SimpleNamespace(
                batches=SimpleNamespace(items_per_epoch=items), settings=SimpleNamespace(batch=batch)
            )
            table = [Training.steps_until(training, epoch) for epoch in range(1, 40)]
            assert all(a < b for a, b in zip([0, *table], table, strict=False))
            if items >= batch:
                assert all(abs(s * batch - e * items) <= batch / 2 for e, s in enumerate(table, 1))


def test_validation_against_a_naive_loop(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and Dice image by image, however many images share a forward pass."""
    runtime = make_runtime(folder, {})
    work, state = runtime.training, runtime.training.state
    for _ in range(3):
        runtime.training_step(0)
    loss, dice = loop.validate(runtime)
    monkeypatch.setattr(work.validation, "validation_pixels", 1)
    one_by_one, same_dice = loop.validate(runtime)
    assert loss == pytest.approx(one_by_one, rel=1e-5)
    np.testing.assert_allclose(dice, same_dice, rtol=1e-6)

    image, target = work.validation.take(np.arange(len(work.validation)))
    with torch.no_grad():
        logits = state.ema.eval()(image.float())
    truth, guess, prob = target.numpy(), logits.argmax(1).numpy(), logits.softmax(1).double().numpy()
    scores = np.full((len(truth), 2), np.nan)
    soft = []
    for n, c in np.ndindex(scores.shape):
        t, p = truth[n] == c, (guess[n] == c) & (truth[n] != 255)
        if t.any() or p.any():
            scores[n, c] = 2 * (t & p).sum() / (t.sum() + p.sum())
        if t.any():
            soft.append(1 - 2 * prob[n, c][t].sum() / (prob[n, c][truth[n] != 255].sum() + t.sum()))
    np.testing.assert_allclose(dice, np.nanmean(scores, axis=0), rtol=1e-9)
    cross_entropy = torch.nn.functional.cross_entropy(logits, target.long(), ignore_index=255)
    assert loss == pytest.approx(float(cross_entropy) + np.mean(soft), rel=1e-5)


@pytest.mark.usefixtures("plain")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_deterministic_on_cuda(folder: Path, tmp_path: Path) -> None:
    """With `deterministic`, a run stopped on the way is the same to the bit on a GPU too."""
    given = {**MODERN, "model.width": 8, "train.deterministic": True, "train.precision": "bfloat16"}
    try:
        job.fit(folder, tmp_path / "whole", settings=given, device="cuda", reporter=Listener())
        job.fit(folder, tmp_path / "cut", settings=given, device="cuda", reporter=Listener(press_once(4)))
        job.resume(tmp_path / "cut", reporter=Listener())
    finally:
        torch.use_deterministic_algorithms(False)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("kind", TRAININGS)
def test_a_step_never_waits_for_the_gpu(
    kind: str, captured: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def watch(runtime: LimitedMemoryRuntime, reporter: Listener) -> Runtime:
        watched = capture_steps(runtime, reporter) if captured else runtime
        training_step = watched.training_step

        def take(step: int) -> None:
            if step < 4:  # first steps may wait: workspaces are made, the graph is captured
                training_step(step)
                return
            try:
                torch.cuda.set_sync_debug_mode("error")
                training_step(step)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            steps.append(step)

        monkeypatch.setattr(watched, "training_step", take)
        return watched

    monkeypatch.setattr(job, "capture_steps", watch)
    recipe, settings, count = TRAININGS[kind]
    job.fit(folder, tmp_path / "run", recipe=recipe, settings=settings, device="cuda", reporter=Listener())
    assert steps == list(range(4, count))
