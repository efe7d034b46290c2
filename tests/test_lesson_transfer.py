"""Breeds, transfer and shapes: what is learnt, what is drawn, and what is refused."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import transfer as benchmark
import ubend
from support.discs import make_discs
from support.refusal import check, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError, SettingError
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.unet import UNet
from ubend_lessons.breeds import BreedNet, Breeds, Finder, measure_accuracy, open_breeds, train_breeds
from ubend_lessons.drawn_pets import KINDS, draw_pet, draw_pets
from ubend_lessons.shapes import CutOut, cut_objects
from ubend_lessons.transfer import _take_subset, pretrain

TINY: dict[str, Any] = {"data.size": 32, "data.resize": "squash", "model.width": 2, "model.depth": 2}
TINY |= {"train.epochs": 1, "train.batch": 8}
WORDS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lesson") / "pets"
    draw_pets(folder, 36, 64)
    return folder


@pytest.fixture(scope="module")
def breeds(pets: Path) -> Breeds:
    return open_breeds(pets, TINY, "cpu")


def save_model(path: Path, names: list[str]) -> Path:
    labels = make_label_map(list(range(len(names))), names)
    save_bundle(path, Bundle(UNet(3, len(names), width=2, depth=2), labels, Sizing(32, False, 3)))
    return path


def test_pets_are_drawn_alike() -> None:
    image, mask = draw_pet(0, 3, 64)
    again, _mask = draw_pet(0, 3, 64)
    np.testing.assert_array_equal(image, again)
    assert 0.05 < mask.mean() < 0.4
    assert not np.array_equal(image, draw_pet(0, 3 + len(KINDS), 64)[0])


def test_breeds_are_read_from_names(breeds: Breeds) -> None:
    assert breeds.names == tuple(sorted(KINDS))
    first = breeds.data.folder.pairs[7]
    assert first.name.startswith(breeds.names[breeds.of_image[7]])


def test_pooling_over_the_mask() -> None:
    """What lies off the mask says next to nothing; without a mask, as with an empty one, all says the same."""
    torch.manual_seed(0)
    net = BreedNet(UNet(3, 2, width=2, depth=2), 3).eval()
    image, share = 255 * torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64)
    torch.testing.assert_close(net(image, share), net(image))
    share[:, :, :16] = 1
    other = image.clone()
    other[..., 40:] = 0
    assert (net(other, share) - net(image, share)).abs().max() < 0.05 * (net(other) - net(image)).abs().max()


def test_views(pets: Path, breeds: Breeds, tmp_path: Path) -> None:
    finder = Finder(save_model(tmp_path / "m.safetensors", ["background", "pet"]), breeds.data, torch.device("cpu"))
    finder.net.eval()
    image = 255 * torch.rand(2, 3, 32, 32)
    prob = finder(image)
    torch.testing.assert_close(prob, finder.net(image).softmax(dim=1)[:, 1])
    assert finder.look(image, "whole")[1] is None
    torch.testing.assert_close(finder.look(image, "pixels")[1], prob)
    cut, none = finder.look(image, "cut")
    assert none is None
    torch.testing.assert_close(cut, image * prob[:, None])  # its mean is 0: a net with no normalisation


def test_breeds_are_learnt(pets: Path) -> None:
    """The encoder trained is the network's own, and the images as they are, are soon known by heart."""
    breeds = open_breeds(pets, {**TINY, "augment.kind": "none", "train.learning_rate": 0.01}, "cpu")
    torch.manual_seed(0)
    net = UNet(3, 2, width=8, depth=3, mean=[128] * 3, std=[64] * 3)
    before = net.stem[0].weight.detach().clone()
    head = BreedNet(net, len(breeds.names))
    assert train_breeds(breeds, head, 40) < 1.2  # log 6 = 1.79
    assert not torch.equal(net.stem[0].weight, before)
    assert 0 <= measure_accuracy(breeds, head) <= 1


def test_pretrained_weights_are_kept(breeds: Breeds, tmp_path: Path) -> None:
    """A U-Net whose way down was trained, and whose way up was not."""
    from ubend.training.build import build

    pretrain(breeds, tmp_path / "b.safetensors", 1)
    net, drawn = load_bundle(tmp_path / "b.safetensors").model, build(breeds.data, breeds.plan, breeds.device)
    mine, theirs = net.state_dict(), drawn.state.model.state_dict()
    changed = {name.partition(".")[0] for name in mine if not torch.equal(mine[name], theirs[name])}
    assert changed == {"stem", "encoders"}


def test_parts(breeds: Breeds) -> None:
    """The same images for a count, of as many breeds as there are, and none of the test split."""
    part = _take_subset(breeds, 6)
    numbers = part.indices("train")
    assert len(numbers) == 6
    assert set(numbers) <= set(breeds.data.indices("train"))
    assert len(set(breeds.of_image[numbers])) == len(set(breeds.of_image[breeds.data.indices("train")]))
    assert set(part.indices("val")) <= set(breeds.data.indices("val"))
    assert part.splits == _take_subset(breeds, 6).splits


@pytest.mark.parametrize("language", ["en", "vi"])
def test_transfer(language: str, pets: Path, tmp_path: Path) -> None:
    words = ["lesson", "transfer", "--data", str(pets), "--out", str(tmp_path / "out"), "--counts", "6,99", *WORDS]
    run = CliRunner().invoke(main, [*words, "--epochs", "1", "--device", "cpu", "--lang", language])
    assert run.exit_code == 0, run.output
    assert len(re.findall(r"Dice \d", run.output)) == 2  # 6 images, and all; 99 are not there
    with Image.open(tmp_path / "out" / "transfer.png") as image:
        assert image.width > 300
    assert load_bundle(tmp_path / "out" / "breeds.safetensors").about["encoder"] == "6 breeds"
    again = ubend.fit(
        pets, out=tmp_path / "run", init_from=str(tmp_path / "out" / "breeds.safetensors"), size=32, epochs=1, batch=8
    )
    assert again.scores is not None


def test_breeds_command(pets: Path, tmp_path: Path) -> None:
    words = ["lesson", "breeds", "--data", str(pets), "--out", str(tmp_path / "out"), *WORDS, "--epochs", "1"]
    run = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert run.exit_code == 0, run.output
    for name in ("whole image: ", "the mask's pixels: ", "cut out by the mask: ", "for comparison: "):
        assert name in run.output
    with Image.open(tmp_path / "out" / "breeds.png") as image:
        assert image.width > 300


def test_refused(pets: Path, tmp_path: Path) -> None:
    make_discs(tmp_path / "discs", 12)
    out = ["--out", tmp_path / "out", "--device", "cpu"]
    error = refused_once("lesson", "breeds", "--data", tmp_path / "discs", *out, *WORDS)
    check(error, DataError, path=tmp_path / "discs")
    other = save_model(tmp_path / "other.safetensors", ["ground", "cell", "wall"])
    out = ["--out", tmp_path / "out2", "--device", "cpu"]
    error = refused_once("lesson", "breeds", "--data", pets, "--model", other, *out, *WORDS)
    check(error, SettingError, path=other, key="--model", named=["ground, cell, wall", "background, pet"])
    out = ["--out", tmp_path / "out3", "--device", "cpu"]
    error = refused_once("lesson", "transfer", "--data", pets, "--counts", "x", *out)
    check(error, SettingError, key="--counts")
    check(refused_once("lesson", "shapes", "--out", tmp_path / "discs"), OutputError, path=tmp_path / "discs")
    error = refused_once("lesson", "shapes", "--out", tmp_path / "4", "--images", "0")
    check(error, SettingError, key="--images")


def test_shapes_of_known_objects() -> None:
    """A disc is round, a bar is not; each is alone on its cut-out, in its own colours."""
    y, x = np.mgrid[:100, :120]
    disc, bar = (y - 30) ** 2 + (x - 30) ** 2 < 20**2, (abs(y - 80) < 4) & (abs(x - 60) < 40)
    image = np.full((100, 120, 3), 9, np.uint8)
    image[disc] = (200, 20, 20)
    labels = make_label_map([0, 1], ["background", "thing"])
    first, second = cut_objects(Path("a.png"), image, (disc | bar).astype(np.uint8), labels)
    assert first.row["area_px"] == disc.sum()
    assert first.roundness == pytest.approx(1, abs=0.1)
    assert second.roundness < 0.4
    assert float(second.row["eccentricity"]) > 0.95
    solid = first.pixels[..., 3] == 255
    assert abs(int(solid.sum()) - int(disc.sum())) < 150
    assert (first.pixels[solid][:, :3] == (200, 20, 20)).all()
    assert first.pixels[0, 0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("language", ["en", "vi"])
def test_shapes(language: str, tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["lesson", "shapes", "--out", str(tmp_path / "out"), "--lang", language])
    assert run.exit_code == 0, run.output
    rows = list(csv.DictReader((tmp_path / "out" / "shapes.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) > 3
    assert len(list((tmp_path / "out").glob("cell_*_*.png"))) == len(rows)
    with Image.open(tmp_path / "out" / "shapes.png") as image:
        assert image.width > 600


def test_shapes_by_a_model(pets: Path, tmp_path: Path) -> None:
    run = ubend.fit(pets, out=tmp_path / "run", settings=TINY, device="cpu").run
    words = ["lesson", "shapes", "--data", str(pets), "--model", str(run), "--images", "2"]
    found = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert found.exit_code == 0 or "no objects in the images (2)" in found.output, found.output


def test_benchmark(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(pets), "--seeds", "0", "--counts", "6", "--breed-epochs", "1", "--device", "cpu", *WORDS]
    benchmark.main([*words, "--json", str(tmp_path / "f.json")])
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert rows[0]["name"] == "6 images, from scratch"
    assert [row["name"] for row in rows][-3:] == ["breeds, whole", "breeds, pixels", "breeds, cut"]
    assert "| 6 images, initialised from breeds |" in capsys.readouterr().out


def test_roundness_of_a_pixel() -> None:
    """Which has no outline."""
    assert CutOut({"perimeter_px": 0.0, "area_px": 1}, np.zeros((1, 1, 4), np.uint8)).roundness == 1
