"""Folds: every image held out once, groups whole, the test split untouched; one model of all networks; resuming."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

import ubend
from support.discs import make_discs
from support.models import make_bundle
from support.refusal import raises
from support.tally import Tally
from support.tensors import same_tensors
from support.training import Listener, press_once
from ubend.core.autoconfig import choose_folds
from ubend.core.errors import DataError, ModelFileError, SettingError, TrainingError
from ubend.core.settings import make_settings
from ubend.dataset.splits import cut_folds
from ubend.inference.ensemble import Ensemble
from ubend.inference.predictor import Logits, Predictor
from ubend.labels.class_table import make_label_map
from ubend.layouts.pairs import SplitName
from ubend.models.ensemble_net import EnsembleNet, ViewKind
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.portable.ensemble import MIRRORED, PLAIN, SQUARE, Member
from ubend.portable.tiling import TileSource
from ubend.tasks import folds as tasks
from ubend.tasks.info import describe_model
from ubend.tasks.report_facts import read_facts
from ubend.training.run_folder import RunFolder

TINY: dict[str, Any] = {"data.size": 32, "model.width": 2, "model.depth": 2, "train.epochs": 2, "train.batch": 4}


def fit(folder: Path, run: Path, reporter: Listener | None = None, **flags: Any) -> ubend.FitResult:
    reporter = reporter or Listener()
    return ubend.fit(folder, out=run, settings=TINY, device="cpu", reporter=reporter, **{"folds": 3, **flags})


def splits_of(run: Path) -> dict[str, str]:
    with RunFolder(run).data.open(newline="", encoding="utf-8") as file:
        return {row["name"]: row["split"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds") / "discs"
    make_discs(folder, 20)
    return folder


@pytest.fixture(scope="module")
def run(discs: Path) -> Path:
    return fit(discs, discs.parent / "run").run


@pytest.mark.understood(at_least=0.5)
@examples(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_each_image_is_in_one_fold(tally: Tally, data: st.DataObject) -> None:
    """Those of test in none; groups and near-identical images are whole; the order of the images plays no role."""
    count, folds = data.draw(st.integers(12, 40)), data.draw(st.integers(2, 4))
    kinds: list[SplitName] = ["train", "val", "test"]
    splits = data.draw(st.lists(st.sampled_from(kinds), min_size=count, max_size=count))
    groups = data.draw(st.lists(st.sampled_from([None, None, None, "a", "b"]), min_size=count, max_size=count))
    alike = np.array(data.draw(st.lists(st.integers(0, 3 * count), min_size=count, max_size=count)), np.int64)
    names = [f"image{number}" for number in range(count)]
    try:
        found = cut_folds(names, splits, groups, alike, 3, folds)
    except DataError:
        tally.add(False)
        return
    tally.add(True)
    assert {number for number, split in zip(found, splits, strict=True) if split == "test"} <= {0}
    assert {number for number, split in zip(found, splits, strict=True) if split != "test"} == {*range(1, folds + 1)}
    for one in range(count):
        for other in range(one):
            joined = alike[one] == alike[other] or (groups[one] is not None and groups[one] == groups[other])
            if joined and "test" not in (splits[one], splits[other]):
                assert found[one] == found[other]
    order = data.draw(st.permutations(range(count)))
    mixed = cut_folds(
        [names[i] for i in order], [splits[i] for i in order], [groups[i] for i in order], alike[order], 3, folds
    )
    assert mixed.tolist() == found[order].tolist()


def test_folds_are_of_equal_sizes() -> None:
    names = [f"{number:03d}" for number in range(103)]
    found = cut_folds(names, ["train"] * 103, [None] * 103, np.arange(103), 0, 5)
    assert sorted(np.bincount(found)[1:].tolist()) == [20, 20, 21, 21, 21]
    assert found.tolist() != cut_folds(names, ["train"] * 103, [None] * 103, np.arange(103), 1, 5).tolist()


def test_fewer_groups_than_folds() -> None:
    groups = ["a", "b"] * 10
    with raises(DataError, key="data.folds"):
        cut_folds([f"{n}" for n in range(20)], ["train"] * 20, groups, np.arange(20), 0, 3)


def test_every_image_is_held_out_once(run: Path) -> None:
    """Each fold is a run of its own, scored on what it held out; the test images are the same in all."""
    whole, folds = splits_of(run), [splits_of(run / f"fold-{fold}") for fold in (1, 2, 3)]
    for name, split in whole.items():
        own = [fold[name] for fold in folds]
        assert sorted(own) == (["test"] * 3 if split == "test" else ["train", "train", "val"])
    assert {"train", "test"} == {*whole.values()}
    out_of_fold = json.loads(RunFolder(run).scores.read_text())["out_of_fold"]["per_picture"]
    for fold, splits in enumerate(folds, 1):
        scores = json.loads(RunFolder(run / f"fold-{fold}").scores.read_text())
        assert scores["part"] == "val"
        assert {*scores["per_picture"]} == {name for name, split in splits.items() if split == "val"}
        for name, own in scores["per_picture"].items():
            assert out_of_fold[name] == own
    scores = json.loads(RunFolder(run).scores.read_text())
    assert scores["part"] == "test"
    assert {*scores["per_picture"]} == {name for name, split in whole.items() if split == "test"}
    assert "3 networks" in (run / "report.html").read_text(encoding="utf-8")


def test_any_class_name_has_its_out_of_fold_dice(discs: Path, tmp_path: Path) -> None:
    """Also one that begins as the names of the means do."""
    run = fit(discs, tmp_path / "run", folds=2, classes=("background", "meander"), epochs=1).run
    assert load_bundle(run / "model.safetensors").about["out_of_fold_dice"].keys() == {"background", "meander"}


def test_groups_stay_whole_in_a_training(discs: Path, tmp_path: Path) -> None:
    rows = [f"disc{number:02d},group{number % 6}" for number in range(20)]
    (tmp_path / "groups.csv").write_text("\n".join(["file,group", *rows]) + "\n")
    run = fit(discs, tmp_path / "run", folds=2, split=tmp_path / "groups.csv", epochs=1).run
    for fold in (1, 2):
        seen = dict[int, str]()
        splits = splits_of(run / f"fold-{fold}")
        assert len(splits) == 20
        for name, split in splits.items():
            assert seen.setdefault(int(name[-2:]) % 6, split) == split


def test_the_test_split_changes_no_fold(discs: Path, tmp_path: Path) -> None:
    """Other pixels in the test images: the same weights and settings of every fold."""
    rows = [f"disc{number:02d},{'test' if number % 4 == 0 else 'train'}" for number in range(20)]
    (tmp_path / "split.csv").write_text("\n".join(["file,split", *rows]) + "\n")
    runs = []
    for name in ("plain", "changed"):
        shutil.copytree(discs, tmp_path / name)
        if name == "changed":
            for number in range(0, 20, 4):
                image = tmp_path / name / "images" / f"disc{number:02d}.png"
                noise = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(noise).save(image)
        runs.append(fit(tmp_path / name, tmp_path / f"run-{name}", folds=2, split=tmp_path / "split.csv", epochs=1).run)
    for fold in ("fold-1", "fold-2"):
        assert same_tensors(*(RunFolder(run / fold).model_path for run in runs))
    scores = [json.loads(RunFolder(run).scores.read_text()) for run in runs]
    assert scores[0]["out_of_fold"] == scores[1]["out_of_fold"]
    assert scores[0]["native"] != scores[1]["native"]


@pytest.mark.parametrize(("split", "flags"), [("val", {}), ("test", {"test": "none"})])
def test_without_a_test_split_the_score_is_that_out_of_fold(
    split: str, flags: dict[str, str], discs: Path, tmp_path: Path
) -> None:
    rows = [f"disc{number:02d},{split if number % 4 == 0 else 'train'}" for number in range(20)]
    (tmp_path / "split.csv").write_text("\n".join(["file,split", *rows]) + "\n")
    result = fit(discs, tmp_path / "run", folds=2, split=tmp_path / "split.csv", epochs=1, **flags)
    assert result.scores is not None
    assert len(result.scores.data["per_picture"]) == 20
    assert result.scores.data["native"] == result.scores.data["out_of_fold"]["native"]
    page = (result.run / "report.html").read_text(encoding="utf-8")
    assert "2 networks; each of the 20 images" in page
    assert page.count("data:image/jpeg") == 9 * 4
    with raises(DataError, key="--subset", named=["run", "20", "scores.json", "--subset train"]):
        ubend.evaluate(result.run)  # each image by a model that was trained on it
    assert ubend.evaluate(result.run, subset="train").data["part"] == "train"


VIEWS: list[tuple[ViewKind, Sequence[Any]]] = [("plain", PLAIN), ("mirror", MIRRORED), ("square", SQUARE)]


def members(count: int = 3, channels: int = 3) -> list[Bundle]:
    bundles = [make_bundle(channels) for _ in range(count)]
    for number, bundle in enumerate(bundles):
        torch.manual_seed(number)
        for parameter in bundle.model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return bundles


@pytest.mark.parametrize(("views", "same"), VIEWS)
@pytest.mark.parametrize("tiles", [0, 16])
def test_packed_is_the_mean_of_its_members(views: ViewKind, same: Sequence[Any], tiles: int, tmp_path: Path) -> None:
    """Read from its file; with mirror images as `Ensemble` has them, for images at the model's size."""
    bundles = members()
    packed = Bundle(EnsembleNet([one.model for one in bundles], views).eval(), bundles[0].labels, bundles[0].sizing)
    save_bundle(tmp_path / "packed.safetensors", packed)
    loaded = load_bundle(tmp_path / "packed.safetensors")
    assert loaded.model.config() == packed.model.config()
    image = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    alone = [Predictor(one, "cpu", tiles=tiles, overlap=0) for one in bundles]
    found = Predictor(loaded, "cpu", tiles=tiles, overlap=0)(image, probabilities=True).probabilities
    wanted = Ensemble([Member(one, same) for one in alone])(image, probabilities=True).probabilities
    first = alone[0](image, probabilities=True).probabilities
    assert found is not None
    assert wanted is not None
    assert first is not None
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.abs(found - first).max() > 0.01


def test_packed_is_one_predictor(run: Path, discs: Path) -> None:
    """`ubend.load` gives a plain predictor; of a folder only what no member has learnt from is scored."""
    assert isinstance(ubend.load(run, device="cpu"), Predictor)
    scores = ubend.evaluate(run, folder=discs, device="cpu", reporter=Listener())
    assert {*scores.data["per_picture"]} == {name for name, split in splits_of(run).items() if split == "test"}
    assert scores.data["native"] == json.loads(RunFolder(run).scores.read_text())["native"]


def test_info_has_the_score_out_of_fold(run: Path) -> None:
    scores = json.loads((run / "scores.json").read_text())
    dice = scores["out_of_fold"]["native"]["dice"]["per_image"]["foreground"]
    (line,) = (line for line in describe_model(run) if "out of fold" in line)
    assert line.endswith(f"foreground {dice:.3f}")


def test_the_report_has_the_score_out_of_fold(run: Path) -> None:
    dice = json.loads((run / "scores.json").read_text())["out_of_fold"]["native"]["dice"]["per_image"]["foreground"]
    facts = read_facts(run)
    assert f"it is {dice:.3f}." in facts.sentences[2]
    assert [split.name for split in facts.splits] == ["training", "test"]  # the folds validate


def test_a_single_model_is_stored_as_before(tmp_path: Path) -> None:
    """The file of one network names no members, so that it is the file that it was."""
    save_bundle(tmp_path / "one.safetensors", make_bundle())
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        network = json.loads(file.metadata()["ubend"])["network"]
    assert not {"members", "views"} & {*network}


def test_damaged_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    bundle = members(2)[0]
    save_bundle(path, Bundle(EnsembleNet([bundle.model]), bundle.labels, bundle.sizing))
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"members\\": 1', b'\\"members\\": 2'))
    with raises(ModelFileError, key="members.1.decoders.0.block.0.weight"):
        load_bundle(path)
    path.write_bytes(data.replace(b'\\"members\\": 1', b'\\"members\\": 0'))
    with raises(ModelFileError, key="network.members"):
        load_bundle(path)


def test_class_bias_is_a_threshold() -> None:
    bundle = make_bundle(classes=2)
    net = EnsembleNet([bundle.model]).eval()
    image = torch.rand(1, 3, 32, 32) * 255
    with torch.no_grad():
        prob = bundle.model.eval()(image).softmax(dim=1)
        net.class_bias[1] = math.log(0.25)
        mask = net(image).argmax(dim=1)
    assert torch.equal(mask == 1, prob[:, 1] > 1 / (1 + 0.25))
    assert not torch.equal(mask == 1, prob[:, 1] > 0.5)


class _Biased:
    """A predictor whose logits are right after its bias of each image was added to those of class 1."""

    def __init__(self, store: Any, numbers: Sequence[int], biases: Sequence[float]) -> None:
        self.store, self.numbers, self.biases = store, numbers, biases

    def run(self, sources: Iterator[TileSource]) -> Iterator[Logits]:
        for place, source in enumerate(sources):
            number = self.numbers[place]
            one = torch.from_numpy(self.store.mask(number).astype(np.float32)) - 0.5 - self.biases[number]
            yield Logits(
                [place], source.native_hw, slice(0, source.native_hw[0]), torch.stack([-one / 2, one / 2])[None]
            )


@pytest.mark.parametrize(
    ("biases", "wanted"),
    [([0.0] * 8, None), ([1.2] * 8, 1.2), ([-1.2] * 8, -1.2), ([1.2, 0.0] * 3 + [1.2] * 2, None)],
    ids=["right", "too few", "too many", "not surely better"],
)
def test_weights_of_classes_only_where_they_help(biases: list[float], wanted: float | None) -> None:
    """Logits that are right need none; those that are off by a constant get it back; three images against five are
    no proof."""
    masks = np.random.default_rng(0).integers(0, 2, (8, 6, 6)).astype(np.uint8)
    store = SimpleNamespace(image=lambda n: np.zeros((6, 6, 1), np.uint8), mask=lambda n: masks[n])
    labels = make_label_map([0, 1], ["background", "disc"])
    first = SimpleNamespace(labels=labels, store=store, folds=(1, 2) * 4, foreground_classes=lambda: (1,))
    folds: Any = SimpleNamespace(first=first, device=torch.device("cpu"))
    predictors: Any = [_Biased(store, range(start, 8, 2), biases) for start in (0, 1)]
    found = tasks._choose_bias(folds, predictors, Listener())
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == 0
        assert abs(found[1] - wanted) < 0.5


def test_resumed_in_the_second_fold(run: Path, discs: Path, tmp_path: Path) -> None:
    """Ctrl-C in fold 2: fold 1 is not trained again, and the end is that of a training without a break."""
    listener = Listener()

    def press(done: int) -> None:
        if "fold 2 of 3" in listener.said:
            press_once(2)(done)

    listener.at_step = press
    stopped = fit(discs, tmp_path / "run", listener)
    assert stopped.scores is None
    assert not RunFolder(stopped.run).model_path.exists()
    assert not (stopped.run / "fold-3").exists()
    before = RunFolder(stopped.run / "fold-1").model_path.stat()
    again = Listener()
    result = ubend.resume(stopped.run, reporter=again)
    assert "fold 1 of 3" not in again.said
    assert RunFolder(stopped.run / "fold-1").model_path.stat().st_mtime_ns == before.st_mtime_ns
    assert same_tensors(RunFolder(result.run).model_path, RunFolder(run).model_path)
    assert result.scores is not None
    assert result.scores.data == json.loads(RunFolder(run).scores.read_text())


KILLED = """
import os, signal, sys
from support.training import Listener
from test_folds import fit
from pathlib import Path
listener = Listener()
listener.at_step = lambda done: "fold 2 of 3" in listener.said and done == 3 and os.kill(os.getpid(), signal.SIGKILL)
fit(Path(sys.argv[1]), Path(sys.argv[2]), listener)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_in_the_second_fold(run: Path, discs: Path, tmp_path: Path) -> None:
    place = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    command = [sys.executable, "-c", KILLED, str(discs), str(tmp_path / "run")]
    assert subprocess.run(command, env=place, check=False, timeout=300).returncode == -9
    result = ubend.resume(tmp_path / "run", reporter=Listener())
    assert same_tensors(RunFolder(result.run).model_path, RunFolder(run).model_path)


def test_resume_refuses_changed_images(discs: Path, tmp_path: Path) -> None:
    shutil.copytree(discs, tmp_path / "discs")
    result = fit(tmp_path / "discs", tmp_path / "run", folds=2, epochs=1)
    shutil.copy(tmp_path / "discs/images/disc00.png", tmp_path / "discs/images/disc01.png")
    with raises(TrainingError, path=tmp_path / "discs"):
        ubend.resume(result.run, reporter=Listener())
    (tmp_path / "discs").rename(tmp_path / "moved")
    for moved in (result.run, result.run / "fold-1"):
        with raises(TrainingError, path=tmp_path / "discs", key="data.folder", named=[str(moved / "settings.toml")]):
            ubend.resume(moved, reporter=Listener())


@pytest.mark.slow
def test_folds_at_once(run: Path, discs: Path, tmp_path: Path) -> None:
    """In processes, two at a time: the models that one process makes, one after another."""
    words = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "ubend", "fit", str(discs), *words, "--folds", "3", "--gpus", "2"]
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([*command, "--device", "cpu", "--out", str(tmp_path / "run")], env=place, check=True, timeout=300)
    assert same_tensors(RunFolder(tmp_path / "run").model_path, RunFolder(run).model_path)


def test_effort(discs: Path, tmp_path: Path) -> None:
    """quick: a quarter of the epochs, with its reason; best: folds, unless their number is given."""
    rest = {key: value for key, value in TINY.items() if key != "train.epochs"}
    del rest["train.batch"]
    plans = {}
    for effort in ("quick", "normal"):
        settings = make_settings(changes={**rest, "data.folder": str(discs), "train.effort": effort})
        found = tasks.one.scan(settings, torch.device("cpu"), Listener())
        plans[effort] = tasks.resolve(settings, found.facts)
    assert plans["quick"].train.epochs == plans["normal"].train.epochs / 4 == 100
    assert [choice.key for choice in plans["quick"].choices] == [choice.key for choice in plans["normal"].choices]
    best, choices = choose_folds(make_settings(changes={"train.effort": "best"}))
    assert best.data.folds == 5
    assert [choice.key for choice in choices] == ["data.folds"]
    assert choose_folds(make_settings(changes={"train.effort": "best", "data.folds": 2}))[1] == []
    assert choose_folds(make_settings())[0].data.folds is None
    result = fit(discs, tmp_path / "run", effort="best", folds=2, epochs=1)
    net = load_bundle(result.run).model
    assert isinstance(net, EnsembleNet)
    assert (len(net.members), net.views) == (2, "square")


@pytest.mark.parametrize(
    ("key", "flags"),
    [
        ("data.folds", {"folds": 30}),
        ("data.folds", {"folds": 1}),
        ("train.effort", {"effort": "worst"}),
        ("data.test", {"folds": None, "test": "none"}),
        ("train.init_from", {"init_from": "RUN/fold-1"}),
        ("network.members", {"init_from": "RUN"}),
        ("--gpus", {"gpus": 99, "device": None}),
        ("device", {"gpus": 2, "device": "cuda:1"}),
    ],
)
def test_refused(key: str, flags: dict[str, Any], run: Path, discs: Path, tmp_path: Path) -> None:
    """In one line, before anything is trained or written."""
    if "init_from" in flags:
        flags = {"init_from": flags["init_from"].replace("RUN", str(run))}
    kind = {"network.members": ModelFileError}.get(key, DataError if flags.get("folds") == 30 else SettingError)
    with raises(kind, key=key):
        ubend.fit(
            discs, out=tmp_path / "run", settings=TINY, reporter=Listener(), **{"folds": 3, "device": "cpu", **flags}
        )
    assert not (tmp_path / "run").exists()


def test_refused_under_torchrun(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    with raises(SettingError, key="data.folds"):
        fit(discs, tmp_path / "run")
