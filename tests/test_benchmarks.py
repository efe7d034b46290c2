"""Each benchmark in its smallest form: it runs, and what it writes has its form. Nothing here looks at a speed."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import counting
import peers
import step_speed
import timing
import two_trees
import whole_fit
import zoo
import zoo_peer
from counting import Limits, StepCost, count_step
from support import ROOT
from support.discs import make_discs
from tutorial import TutorialImages, TutorialUNet
from ubend import UNet
from ubend.core.settings import make_settings

pytestmark = pytest.mark.slow  # together more than half a minute

SMALL = ["--device", "cpu", "--width", "2", "--size", "16", "--batch", "2", "--rounds", "2", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def _only_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that happen to be installed take seconds to load, and want larger images."""
    monkeypatch.setattr(peers, "find_spec", lambda _name: None)


def run_script(name: str, words: list[str], place: Path) -> dict[str, Any]:
    """What it wrote."""
    path = place / "figures" / f"{name}.json"
    importlib.import_module(name).main([*words[: (end := _end_of_own(words))], "--json", str(path), *words[end:]])
    report: dict[str, Any] = json.loads(path.read_text())
    assert report["benchmark"] == name
    assert report["command"].startswith(f"python benchmarks/{name}.py ")
    assert report["facts"]["python"]
    assert report["unit"]
    assert report["rows"]
    for row in report["rows"]:
        assert row["name"]
        if "n" in row:
            assert row["n"] == len(row["values"])
            assert row["least"] <= row["median"] <= row["greatest"]
    for number in numbers_of(report["rows"]):
        assert math.isfinite(number)
    return report


def _end_of_own(words: list[str]) -> int:
    return words.index("--") if "--" in words else len(words)


def numbers_of(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for one in value.values() for number in numbers_of(one)]
    if isinstance(value, list):
        return [number for one in value for number in numbers_of(one)]
    return [value] if isinstance(value, int | float) else []


def test_step_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_script("step_speed", [*SMALL, "--product", "64"], tmp_path)
    assert [row["name"] for row in report["rows"]] == ["tutorial, float32", "tutorial, bfloat16", "ubend, eager"]
    assert all(number > 0 for row in report["rows"] for number in numbers_of(row))
    assert all(row["n"] == 2 for row in report["rows"])
    assert all(row["flops"] == report["rows"][0]["flops"] for row in report["rows"])
    assert all(row["traffic_share"] > row["arithmetic_share"] for row in report["rows"])
    assert [ratio["to"] for ratio in report["ratios"]] == ["tutorial, float32", "tutorial, bfloat16"]
    assert report["limits"]["flops_per_s"] > 0
    said = capsys.readouterr().out
    for suggestion in ("pip install segmentation-models-pytorch", "pip install monai", "--milesial"):
        assert suggestion in said


def test_a_checkout_as_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `unet` with a class UNet, as in milesial's; imported from there only."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "__init__.py").write_text(
        "from torch import nn\n"
        "class UNet(nn.Conv2d):\n"
        "    def __init__(self, n_channels, n_classes):\n"
        "        super().__init__(n_channels, n_classes, 3, padding=1)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "unet", raising=False)
    report = run_script("step_speed", [*SMALL, "--product", "64", "--milesial", str(tmp_path)], tmp_path)
    sys.modules.pop("unet")
    row = next(row for row in report["rows"] if row["name"] == "milesial U-Net, float32")
    assert row["parameters"] == 3 * 3 * 9 + 3
    assert row["flops"] == 2 * (2 * 27 * 3 * 16 * 16)  # forward, and the weights' gradient; the image needs none


def test_training_speed(tmp_path: Path) -> None:
    make_discs(tmp_path / "discs", 8)
    words = [*SMALL, "--data", str(tmp_path / "discs"), "--workers", "0"]
    report = run_script("training_speed", words, tmp_path)
    rows = {row["name"]: row for row in report["rows"]}
    assert all(number > 0 for row in report["rows"] for number in numbers_of(row))
    assert [name for name, row in rows.items() if "step_share" in row] == [
        "ubend's loop",
        "ubend's loop, no augmentation",
        "tutorial's loop",
    ]
    loop, step = (rows[name]["values"] for name in ("ubend's loop", "ubend's step"))
    assert rows["ubend's loop"]["step_share"] == pytest.approx(sum(a / b for a, b in zip(loop, step, strict=True)) / 2)
    assert {ratio["to"] for ratio in report["ratios"]} == {"tutorial's loop"}


def test_time_to_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_discs(tmp_path / "discs", 12)
    goals = ["--goal-miou", "0", "--goal-seconds", "0"]
    fit = ["--", "--epochs", "1", "--size", "16", "--width", "2", "--batch", "4", "--device", "cpu"]
    report = run_script("time_to_quality", [str(tmp_path / "discs"), "--seeds", "3", *goals, *fit], tmp_path)
    (row,) = report["rows"]
    assert row["seconds"] > row["epoch_seconds"] > 0
    assert (row["seed"], row["epochs"]) == (3, 1)
    assert 0 <= row["miou"] <= 1
    assert report["goals"] == ["goal: mIoU of 0 or more, kept by 1 of 1", "goal: 0 s or less, kept by 0 of 1"]
    assert report["command"].endswith("-- --epochs 1 --size 16 --width 2 --batch 4 --device cpu")
    assert "n 1" in capsys.readouterr().out


def test_time_to_quality_says_what_fit_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing-there"):
        run_script("time_to_quality", [str(tmp_path / "nothing-there")], tmp_path)


def test_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_discs(tmp_path / "discs", 24)
    small = ["model.width=2", "train.epochs=2", "train.batch=2", "data.size=16"]
    words = [str(tmp_path / "discs"), "--seeds", "0", "1", "--device", "cpu"]
    report = run_script("faults", [*words, *(word for one in small for word in ("--set", one))], tmp_path)
    faults = {row["fault"] for row in report["rows"]}
    assert faults == {"leak", "choosing", "bilinear", "batch-means", "after-the-loop", "grey", "summed"}
    for row in report["rows"]:
        assert [len(row[column]) for column in ("text", "mended", "difference")] == [2, 2, 2]
        assert row["difference"] == pytest.approx([a - b for a, b in zip(row["text"], row["mended"], strict=True)])
    assert f"| {report['rows'][0]['name']} | " in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="what a process took is reported on Linux and macOS")
def test_big_images(tmp_path: Path) -> None:
    words = ["96", "128x64", "--width", "2", "--place", str(tmp_path)]
    report = run_script("big_images", [*words, "--", "--tiles", "64"], tmp_path)
    assert [row["name"] for row in report["rows"]] == ["96x96", "128x64"]
    assert all(row["seconds"] > 0 and row["peak_rss_mib"] > 50 for row in report["rows"])
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_two_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trees take turns, each with its own source; figures are ratios of the same pair."""
    turns: list[tuple[str, int]] = []

    def measure(self: two_trees.Tree, turn: int, _fit: Any, _device: str, _megapixels: Any) -> dict[str, float]:
        turns.append((self.place.name, turn))
        return {"fit, s": (3.0 if self.place.name == "old" else 6.0) + turn}

    monkeypatch.setattr(two_trees.Tree, "measure", measure)
    (tmp_path / "src").mkdir()
    report = run_script("two_trees", [str(tmp_path), str(ROOT), "--pairs", "3", "--images", "4"], tmp_path)
    assert turns == [("old", -1), ("new", -1), ("old", 0), ("new", 0), ("new", 1), ("old", 1), ("old", 2), ("new", 2)]
    (row,) = report["rows"]
    assert (row["old"], row["new"]) == (4.0, 7.0)
    assert row["values"] == pytest.approx([2.0, 1.75, 1.6])
    found = two_trees.Tree(ROOT, tmp_path).run("-c", "import ubend; print(ubend.__file__)")[0]
    assert Path(found.strip()).is_relative_to(ROOT)


ZOO = "--epochs 1 --size 16 --batch 4 --encoder none --width 2 --device cpu"


def zoo_words(place: Path, out: str) -> list[str]:
    if not (place / "data").exists():
        make_discs(place / "data" / "drive", 12)
    return ["--data", str(place / "data"), "--out", str(place / out), "--words", ZOO, "--sets", "drive", "pets"]


def test_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A peer takes as many steps on the same images as ubend; what is done is not done again, here or elsewhere."""
    some = ["--variants", "none", "tutornet", "--seeds", "0", "--slots", "2"]
    report = run_script("zoo", [*zoo_words(tmp_path, "one"), *some], tmp_path)
    assert "left out: pets" in capsys.readouterr().out
    ours, theirs = report["rows"]
    assert [ours["name"], theirs["name"]] == ["drive-none-0", "drive-tutornet-0"]
    for key in ("steps", "batch", "size", "window", "epochs", "device"):
        assert ours[key] == theirs[key], key
    for subset in ("val", "test"):
        own, peer = ours["native"][subset], theirs["native"][subset]
        assert own["true_share"] == peer["true_share"]
        assert own["pictures"] == peer["pictures"] > 0
    assert not ours["comparable"]
    assert report["ranks"]["sets"] == ["drive"]
    means = [zoo.measure(row, "val")["score"] for row in (ours, theirs)]
    assert [(line["mean"], line["spread"]) for line in report["table"]] == [(mean, 0) for mean in means]
    monkeypatch.setattr(zoo.Zoo, "_call", lambda *_given: pytest.fail("a process is started"))
    first = tmp_path / "figures" / "zoo.json"
    for out, more in (("one", []), ("two", ["--known", str(first)])):
        again = run_script("zoo", [*zoo_words(tmp_path, out), *some, *more], tmp_path)
        assert again["rows"] == report["rows"]
    report = run_script("zoo", [*zoo_words(tmp_path, "one"), *some, "--subset", "test"], tmp_path)
    assert [line["mean"] for line in report["table"]] == [zoo.measure(row, "test")["score"] for row in (ours, theirs)]
    with pytest.raises(SystemExit, match="--words"):
        zoo.main([*zoo_words(tmp_path, "one"), *some, "--words", ""])


def test_zoo_in_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is cut off leaves nothing; one that cannot end is not begun."""
    words = [*zoo_words(tmp_path, "out"), "--variants", "none", "scratch", "--seeds", "0"]
    zoo.main([*words, "--seconds", "0.3"])
    assert not list((tmp_path / "out" / "rows").iterdir())
    row = {"name": "drive-none-1", "set": "drive", "variant": "none", "seed": 1, "words": ZOO, "seconds": 1e6}
    row["native"] = {"val": {"dice": {"per_image": {"mean": 0.5, "mean_foreground": 0.5}}}}
    (tmp_path / "out" / "rows" / "drive-none-1.json").write_text(json.dumps(row))
    begun: list[str] = []
    monkeypatch.setattr(zoo.Zoo, "_train", lambda _zoo, job, _gpu: begun.append(job.name))
    zoo.main([*words, "--seconds", "1000"])
    assert begun == ["drive-scratch-0"]


def test_zoo_ranks() -> None:
    """On the sets that all variants have; equal means share their ranks."""
    means = {"a": {"x": 0.9, "y": 0.8, "z": 0.8}, "b": {"x": 0.1, "y": 0.3, "z": 0.2}, "c": {"x": 0.1}}
    table = [{"set": name, "variant": one, "mean": mean} for name, some in means.items() for one, mean in some.items()]
    assert zoo.rank(table) == {"sets": ["a", "b"], "mean_rank": {"x": 2, "y": 1.75, "z": 2.25}}


def test_the_peers_masks_follow_the_images() -> None:
    plan = make_settings("modern", None, {"train.batch": 6, "data.crop": 16, "augment.orientation": "free"})
    y, x = np.mgrid[:40, :24]
    mask = ((y > 8) & (x < 14)).astype(np.uint8)
    image = np.repeat(200 * mask[..., None] + np.uint8(20), 3, axis=2)

    class One(SimpleNamespace):
        def __len__(self) -> int:
            return 1

    source: Any = One(image=lambda _n: image, mask=lambda _n: mask, repeats=np.array([1]), device=torch.device("cpu"))
    images, masks = next(iter(zoo_peer.Augmented(source, plan, (16, 16), 255.0)))  # type: ignore[arg-type]
    assert (images.shape, masks.shape) == ((6, 3, 16, 16), (6, 16, 16))
    assert set(masks.unique().tolist()) <= {0, 1, 255}
    bright = images.mean(dim=1)
    for values, index in zip(bright, masks, strict=True):
        if {0, 1} <= set(index.unique().tolist()):
            assert values[index == 1].mean() > values[index == 0].mean() + 60


def test_the_peers_loss() -> None:
    """0 where all is right; what is unlabelled, and classes that are not there, do not count."""
    target = torch.tensor([[[0, 1], [1, 255]]])
    right = 50.0 * torch.nn.functional.one_hot(target % 254, 3).movedim(-1, 1).float()
    assert zoo_peer.cross_entropy_and_dice(right, target).item() == pytest.approx(0, abs=1e-4)
    assert zoo_peer.cross_entropy_and_dice(right.roll(1, 1), target).item() > 10


def test_startup(tmp_path: Path) -> None:
    report = run_script("startup", ["--rounds", "1"], tmp_path)
    assert [row["name"] for row in report["rows"]] == ["ubend --help", "ubend fit --help"]


def test_data_check(tmp_path: Path) -> None:
    report = run_script("data_check", ["--pairs", "12"], tmp_path)
    assert [row["name"] for row in report["rows"]] == [
        f"masks of {kind}, {state}" for kind in ("values", "colors") for state in ("cold", "again")
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory of a process is read on Linux")
def test_large_store(tmp_path: Path) -> None:
    report = run_script("large_store", ["--gib", "0.02", "--steps", "1"], tmp_path)
    assert report["rows"][0]["median"] > 0


def test_chart(tmp_path: Path) -> None:
    from PIL import Image

    make_discs(tmp_path / "discs", 8)
    run_script("step_speed", [*SMALL, "--product", "64"], tmp_path)
    run_script("training_speed", [*SMALL, "--data", str(tmp_path / "discs"), "--workers", "0"], tmp_path)
    files = [str(tmp_path / "figures" / f"{name}.json") for name in ("step_speed", "training_speed")]
    importlib.import_module("chart").main([*files, "--out", str(tmp_path / "speed.png")])
    with Image.open(tmp_path / "speed.png") as image:
        assert image.width == 1350
        assert len(set(image.convert("RGB").resize((64, 64)).get_flattened_data())) > 8  # something is drawn


@pytest.mark.parametrize("name", ["training_speed", "imbalance", "results", "zoo", "zoo_peer"])
def test_as_a_process(name: str) -> None:
    """Its neighbours are found, as they are here by pytest's path."""
    path = ROOT / "benchmarks" / f"{name}.py"
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_the_tutorials_network_is_ubends() -> None:
    """Its parameters at its own width, and with one network's weights in the other, their answers."""
    with torch.device("meta"):
        pairs = [(TutorialUNet(3, 3), UNet(3, 3, width=64)), (TutorialUNet(1, 2), UNet(1, 2, width=64))]
    shapes = [[[p.shape for p in network.parameters()] for network in pair] for pair in pairs]
    assert all(theirs == ours for theirs, ours in shapes)
    assert [sum(p.numel() for p in pair[0].parameters()) for pair in pairs] == [39_393_603, 39_392_386]
    torch.manual_seed(0)
    theirs, ours = TutorialUNet(3, 3, 4), UNet(3, 3, width=4)
    weights = iter(theirs.state_dict().values())
    ours.load_state_dict({n: t if n in ("mean", "std") else next(weights) for n, t in ours.state_dict().items()})
    image = torch.randn(2, 3, 32, 48)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(image), theirs.train(mode)(image))


def test_the_tutorials_images(tmp_path: Path) -> None:
    make_discs(tmp_path / "discs", 1)
    files = [(tmp_path / "discs" / kind / "disc00.png") for kind in ("images", "masks")]
    image, mask = TutorialImages([(files[0], files[1])], [0, 255], 32)[0]
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
    assert (mask.shape, mask.dtype) == ((32, 32), torch.int64)
    assert mask.unique().tolist() == [0, 1]
    assert image[:, mask == 1].mean() > image[:, mask == 0].mean() + 1  # the disc is where the mask says


def test_the_step_is_counted() -> None:
    """The figures that docs/benchmarks.md calls the limit: 81.9 GFLOP for an image of 128 px."""
    cost = count_step(lambda: UNet(3, 3, width=64), 64, 128, half=True)
    assert cost.parameters == 39_393_603
    assert cost.flops == pytest.approx(81.87e9, rel=1e-4)
    assert cost.bytes == pytest.approx(205.6e6, rel=1e-3)
    limits = Limits(790e12, 3e12, "")
    assert limits.arithmetic_rate(cost) == pytest.approx(9649, abs=1)
    assert limits.traffic_rate(cost) == pytest.approx(5808, abs=1)


def test_bytes_are_counted_by_the_rules() -> None:
    """Of a small network whose passes can be counted by hand."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            features = torch.relu(self.norm(self.conv(image)))
            return torch.cat([features, self.up(self.pool(features))], 1)

    elements = 4 * 16 * 16  # of the features of an image
    norm, pool_up, join, sum_of_gradients = 3 + 5, 4 * 1.25, 4 * 2, 3
    parameters = 4 * 3 * 9 + 8
    cost = count_step(Small, 2, 16, half=False)
    assert cost.parameters == parameters
    assert cost.bytes == elements * 4 * (norm + pool_up + join + sum_of_gradients) + parameters * 28 / 2
    cost = count_step(Small, 2, 16, half=True)
    assert cost.bytes == elements * 2 * (norm + pool_up + join + sum_of_gradients) + parameters * 40 / 2


def test_the_limit_is_of_both() -> None:
    cost = StepCost(1, 100.0, 10.0)
    assert Limits(1000.0, 50.0, "").arithmetic_rate(cost) == 10
    assert Limits(1000.0, 50.0, "").traffic_rate(cost) == pytest.approx(1 / (0.1 + 0.2))
    limits = counting.measure_limits(torch.device("cpu"), 64, 4096)
    assert limits.flops_per_s > 0
    assert limits.bytes_per_s > 0


def test_variants_take_turns() -> None:
    """Each with torch's settings or ubend's; one that memory does not suffice for is left out."""
    seen: list[tuple[str, bool]] = []

    def note(name: str) -> None:
        seen.append((name, torch.backends.cudnn.benchmark))

    def fail() -> None:
        raise MemoryError

    variants = [
        timing.Variant("a", lambda: note("a"), 3, tuning="none", warm_up=1, facts={"of": "x"}),
        timing.Variant("b", lambda: note("b"), 3, tuning="all", warm_up=1),
        timing.Variant("c", fail, 3),
    ]
    before = torch.backends.cudnn.benchmark
    rows = timing.take_turns(variants, torch.device("cpu"), 2, 0.0)
    assert torch.backends.cudnn.benchmark is before
    assert [(row["name"], row.get("of"), row["n"]) for row in rows] == [("a", "x", 2), ("b", None, 2)]
    turn = [("a", False), ("b", True)]
    assert seen == [turn[0], turn[0], turn[1], turn[1], *turn, *turn]  # warmed up, counted, then two rounds


def test_ratios_are_of_the_same_round() -> None:
    one, two = ({"name": name, **timing.summarise(values)} for name, values in (("x", [2.0, 9.0]), ("y", [1.0, 3.0])))
    ratio = timing.divide_rows(one, two)
    assert (ratio["of"], ratio["to"], ratio["values"], ratio["median"]) == ("x", "y", [2.0, 3.0], 2.5)
    assert timing.spread_words(timing.summarise([1300.4, 1301.0, 1303.2])) == "1,301 (1,300 to 1,303)"


def test_a_step_trains() -> None:
    """In every form, as long as there is no compiler needed: the loss of the batch goes down."""
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 16, 16))
    image = torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2).float()
    for form in ("float32", "bfloat16"):
        network = UNet(3, 3, width=4)
        step = step_speed.make_step(network, image, target, form, form == "bfloat16")
        losses = []
        for _ in range(20):
            step()
            losses.append(nn.functional.cross_entropy(network(image).float(), target).item())
        assert losses[-1] < losses[0] - 0.1


def test_whole_fit(tmp_path: Path) -> None:
    """Every phase is found where it is looked for, and together they are the whole process."""
    make_discs(tmp_path / "discs", 24)
    words = ("--size", 16, "--width", 2, "--batch", 2, "--epochs", 1, "--rounds", 1)
    figures = run_other("whole_fit", tmp_path, *words)
    assert figures["facts"]["cores"] >= 1
    seconds = {name: values[0] for name, values in figures["seconds"].items()}
    for name in whole_fit.PHASES:
        assert seconds[name] > 0, name
        assert figures["first"][name] > 0, name
    whole, to_first_step = (seconds.pop(name) for name in ("whole process", whole_fit.TO_FIRST_STEP))
    assert sum(seconds.values()) == pytest.approx(whole, rel=0.1)
    assert seconds["first step"] < to_first_step < whole


def test_decoding(tmp_path: Path) -> None:
    """ubend's images are those of a full decode and the antialiased resize."""
    (tmp_path / "discs").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).resize((352, 352)).save(tmp_path / "discs" / f"{number}.jpg")
    figures = run_other("decoding", tmp_path, "--rounds", 1)
    assert figures["facts"]["pictures"] == 3
    assert figures["difference"]["ubend"] == 0
    assert all(rates[0] > 0 for rates in figures["img_per_s"].values())


def test_paper(tmp_path: Path) -> None:
    """With the weight map and without, for each seed."""
    tiny = ["model.width=2", "model.depth=1", "train.epochs=1", "train.batch=4", "train.learning_rate=1e-6"]
    words = [word for setting in tiny for word in ("--set", setting)]
    words += ["--count", "8", "--size", "64", "--seeds", "0", "1", "--device", "cpu"]
    report = run_script("paper", words, tmp_path)
    assert [row["name"] for row in report["rows"]] == ["border weight 0", "border weight 10"]
    for row in report["rows"]:
        assert len(row["count_error"]) == len(row["f1"]) == len(row["dice"]) == 2
        assert all(0 <= value <= 1 for value in [*row["f1"], *row["dice"]])


def run_other(name: str, place: Path, *words: object) -> dict[str, Any]:
    """What a script that has a form of its own wrote of the folder `discs`; in a process, since it settles threads."""
    path = place / f"{name}.json"
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", place / "discs", "--json", path, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures
